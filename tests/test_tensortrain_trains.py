"Tensor trains against full tensors, closed forms, tensornetwork and TensorLy."

import math

import numpy as np
import pytest
import torch

from physattn.foundations.runs import generator
from physattn.tensortrain.trains import TensorTrain, bonds, tt_matrix, tt_qr, tt_svd


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def tails(tensor, r):
    "Norms of what the best matrices of rank r leave of each unfolding."
    cuts = [math.prod(tensor.shape[:k]) for k in range(1, tensor.ndim)]
    return [torch.linalg.svdvals(tensor.reshape(c, -1))[r:].norm() for c in cuts]


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(4, 3, 5, 4), (2, 2, 2, 2, 2, 2), (7, 6)])
def test_error_lies_between_the_best_unfolding_and_the_bound(shape, rank):
    tensor = normal(*shape) ** 3
    train = tt_svd(tensor, rank)
    error, tail = (train.full() - tensor).norm(), torch.stack(tails(tensor, rank))
    assert tail.max() * (1 - 1e-9) - 1e-12 <= error <= tail.norm() * (1 + 1e-9) + 1e-12
    assert all(r <= min(rank, b) for r, b in zip(train.ranks, bonds(shape)))


def test_quasi_optimality_against_a_train_that_is_known():
    "Noise on a train of rank 2: TT-SVD is within sqrt(d - 1) of that train."
    exact = tt_svd(normal(4, 4, 4, 4, 4, seed=1), 2).full()
    noisy = exact + 1e-3 * normal(4, 4, 4, 4, 4, seed=2)
    error = (tt_svd(noisy, 2).full() - noisy).norm()
    assert error <= math.sqrt(4) * (exact - noisy).norm()


@pytest.mark.parametrize("eps", [0.5, 1e-1, 1e-3, 1e-12])
def test_eps_is_kept_by_decomposition_and_rounding(eps):
    tensor = 1 / (1 + sum(torch.meshgrid(*[torch.arange(6.0)] * 4, indexing="ij"))).double()
    direct = tt_svd(tensor, eps=eps)
    rounded = tt_svd(tensor).rounded(eps=eps)
    for train in (direct, rounded):
        assert (train.full() - tensor).norm() <= eps * tensor.norm() * (1 + 1e-6)
    # No rank more than needed: the unfolding at the middle cut says how many.
    need = sum(
        t > eps * tensor.norm() / math.sqrt(3)
        for t in (tails(tensor, r)[1] for r in range(36))
    )
    assert direct.ranks[2] <= need and rounded.ranks[2] <= need


@pytest.mark.parametrize("eps", [0.3, 0.6, 0.9])
def test_eps_is_shared_among_the_cuts(eps):
    "Without structure every cut discards all it may, and only their sum is within eps."
    tensor = normal(5, 5, 5, 5, 5)
    train = tt_svd(tensor, eps=eps)
    for kept in (train, tt_svd(tensor).rounded(eps=eps)):
        error = (kept.full() - tensor).norm() / tensor.norm()
        assert 0.5 * eps < error <= eps


def test_rounding_equals_decomposition_and_keeps_orthogonality():
    a, b = tt_svd(normal(3, 4, 5, 3), 3), tt_svd(normal(3, 4, 5, 3, seed=1), 2)
    total = a + 0.5 * b - a * 0.25
    full = 0.75 * a.full() + 0.5 * b.full()
    assert torch.allclose(total.full(), full) and max(total.ranks) == 8
    assert torch.allclose(total.rounded(2).full(), tt_svd(full, 2).full())
    assert max(total.rounded(eps=1e-12).ranks) <= 5


@pytest.mark.parametrize("center", range(4))
def test_isometries_and_norm(center):
    train = tt_svd(normal(3, 4, 5, 3), 4)
    moved = train.orthogonalized(center)
    for k, core in enumerate(moved.cores):
        Q = core.flatten(0, 1) if k < center else core.flatten(1).T
        if k != center:
            assert torch.allclose(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype))
    assert torch.allclose(moved.full(), train.full())
    assert torch.allclose(moved.cores[center].norm(), train.full().norm())


def test_entropy_of_known_states():
    "A GHZ state has ln 2 at every cut, a product state 0, and spectra are those of unfoldings."
    ghz = torch.zeros([2] * 5, dtype=torch.float64)
    ghz[(0,) * 5] = ghz[(1,) * 5] = 1
    assert torch.allclose(tt_svd(ghz).entropies(), torch.full((4,), math.log(2)).double())
    product = torch.ones([2] * 5, dtype=torch.float64)
    assert tt_svd(product).entropies().abs().max() < 1e-12
    tensor = normal(3, 4, 5)
    for s, t in zip(tt_svd(tensor).singular_values(), (3, 12)):
        assert torch.allclose(s, torch.linalg.svdvals(tensor.reshape(t, -1)))


def test_operators():
    W, V = normal(12, 30), normal(30, 8, seed=1)
    a, b = tt_matrix(W, (3, 4), (5, 6)), tt_matrix(V, (5, 6), (2, 4))
    assert torch.allclose((a @ b).full(), W @ V) and torch.allclose(a.norm(), W.norm())
    assert torch.allclose(a.inner(a), W.square().sum())
    x = tt_svd(normal(5, 6, seed=2))
    assert torch.allclose((a @ x).full().flatten(), W @ x.full().flatten())
    kron = tt_matrix(torch.kron(normal(3, 5), normal(4, 6)), (3, 4), (5, 6), eps=1e-10)
    assert kron.ranks == (1, 1, 1)


def test_operations_are_differentiable():
    cores = [c.requires_grad_() for c in tt_svd(normal(2, 3, 2), 2).cores]
    assert torch.autograd.gradcheck(lambda *c: TensorTrain(c).norm(), cores)
    assert torch.autograd.gradcheck(lambda *c: TensorTrain(c).inner(TensorTrain(c)), cores)


def test_truncated_qr_is_exact_only_without_truncation():
    tensor = 1 / (1 + sum(torch.meshgrid(*[torch.arange(6.0)] * 4, indexing="ij"))).double()
    assert torch.allclose(tt_qr(tensor).full(), tensor)
    error = [(f(tensor, 3).full() - tensor).norm() for f in (tt_svd, tt_qr)]
    assert error[1] > 3 * error[0]


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: tt_svd(normal(2, 2, 2), (3, 2)), "bounds"),
        (lambda: tt_svd(normal(2, 2, 2), (2,)), "one rank per inner bond"),
        (lambda: tt_svd(normal(2, 2, 2), 0), "ranks = 0"),
        (lambda: tt_svd(normal(2, 2, 2), eps=-1.0), "eps = -1.0"),
        (lambda: tt_matrix(normal(6, 4), (2, 2), (2, 2)), "multiply to 4"),
        (lambda: tt_matrix(normal(4, 4), (2, 2), (4,)), "paired"),
        (lambda: TensorTrain([normal(1, 2, 2), normal(3, 2, 1)]), "no train"),
        (lambda: tt_svd(normal(2, 2)) + tt_svd(normal(2, 3)), "added"),
        (lambda: tt_svd(normal(2, 2)) @ tt_svd(normal(2, 2)), "no operator"),
    ],
)
def test_bad_input_is_said_in_a_sentence(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_tensornetwork_agrees():
    tn = pytest.importorskip("tensornetwork")
    tensor = normal(3, 4, 5, 3)
    cores = [c.numpy() for c in tt_svd(tensor, 4).cores]
    mps = tn.FiniteMPS(cores, canonicalize=True, backend="numpy")
    ours = tt_svd(tensor, 4)
    ours = ours * (1 / ours.norm())
    mps.position(0)
    mps.position(2)
    s = np.linalg.svd(np.asarray(mps.tensors[2]).reshape(mps.bond_dimensions[2], -1))[1]
    assert np.allclose(s, ours.singular_values()[1].numpy())
    node = tn.Node(tensor.numpy(), backend="numpy")
    edges = node.edges
    *_, lost = tn.split_node(node, edges[:2], edges[2:], max_singular_values=4)
    assert np.isclose(np.linalg.norm(lost), tails(tensor, 4)[1])


def test_tensorly_agrees():
    tl = pytest.importorskip("tensorly")
    from tensorly.decomposition import tensor_train

    tensor = normal(3, 4, 5, 3)
    theirs = tl.tt_to_tensor(tensor_train(tensor.numpy(), [1, 3, 4, 2, 1]))
    assert np.allclose(theirs, tt_svd(tensor, (3, 4, 2)).full().numpy())
