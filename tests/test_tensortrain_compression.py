"""Compression of a trained layer: against least squares of scipy, closed forms, TT-SVD."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import nn

from physattn.foundations.runs import generator
from physattn.tensortrain.compression import (
    alignment,
    als,
    compress,
    compressed_network,
    folded,
    head_inputs,
    low_rank,
    moments,
    normal_equations,
    relative_error,
)
from physattn.tensortrain.layers import TTLinear
from physattn.tensortrain.networks import gratings, network
from physattn.tensortrain.trains import TensorTrain, tt_matrix

IN, OUT = (5, 2, 3), (2, 3, 4)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed, "test"))


@pytest.fixture(scope="module")
def problem():
    x = randn(400, 30, seed=1) @ randn(30, 30, seed=2) + 2.0
    return randn(24, 30), x


def test_moments_are_numpys_and_shrinkage_keeps_the_trace(problem):
    x = problem[1]
    mean, C = moments(x, shrinkage=1e-14)
    np.testing.assert_allclose(mean, x.numpy().mean(0))
    np.testing.assert_allclose(C, np.cov(x.numpy().T, bias=True), rtol=1e-9, atol=1e-9)
    shrunk = moments(x, shrinkage=0.3)[1]
    assert torch.isclose(shrunk.trace(), C.trace())
    np.testing.assert_allclose(
        scipy.linalg.eigvalsh(shrunk),
        0.7 * scipy.linalg.eigvalsh(C) + 0.3 * float(C.trace()) / 30,
    )
    zero, second = moments(x, centred=False, shrinkage=1e-14)
    assert not zero.any()
    np.testing.assert_allclose(second, x.T @ x / len(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "factors", [(IN, OUT), ((3, 2, 5, 1), (2, 3, 2, 2)), ((1, 30), (24, 1)), ((30,), (24,))]
)
def test_each_core_solves_the_regression_on_all_samples(problem, factors):
    W, x = problem
    n, m = factors
    train = tt_matrix(W, m, n, 3)
    C = moments(x, centred=False, shrinkage=1e-15)[1]
    for k, core in enumerate(train.cores):
        # the cores are not orthogonalised: the equations hold in any gauge
        A, B = normal_equations(train, k, C, W @ C)
        a, m_k, n_k, b = core.shape
        ours = torch.linalg.solve(A, B).reshape(a, n_k, b, m_k).permute(0, 3, 1, 2)
        columns = []
        for e in torch.eye(core.numel(), dtype=torch.float64):
            cores = list(train.cores)
            cores[k] = e.reshape(core.shape)
            columns.append((x @ TensorTrain(cores).full().T).flatten().numpy())
        theirs = scipy.linalg.lstsq(np.stack(columns, 1), (x @ W.T).flatten().numpy())[0]
        np.testing.assert_allclose(ours.flatten(), theirs, atol=1e-6)


def test_the_equations_of_an_orthogonal_train_are_as_well_conditioned_as_the_inputs(
    problem,
):
    W, x = problem
    C = moments(x, shrinkage=0.05)[1]
    train = tt_matrix(W, OUT, IN, (4, 5))
    train.cores[0], train.cores[1] = 1e3 * train.cores[0], 1e-3 * train.cores[1]
    low, high = torch.linalg.eigvalsh(C)[[0, -1]]
    for k in range(3):
        A, _ = normal_equations(train.orthogonalized(k), k, C, W @ C)
        values = torch.linalg.eigvalsh(A)
        assert values[0] > 0.999 * low and values[-1] < 1.001 * high
    assert torch.linalg.cond(C) <= 1 + 30 * 0.95 / 0.05


def test_sweeps_never_raise_the_loss_and_report_it(problem):
    W, x = problem
    C = moments(x, shrinkage=1e-3)[1]
    start = tt_matrix(W, OUT, IN, 4)
    before = [core.clone() for core in start.cores]
    train, losses = als(W, C, start, sweeps=8)
    assert len(losses) == 24 and (losses.diff() <= 1e-12).all()
    assert losses[0] <= relative_error(W, start.full(), C) ** 2 + 1e-12
    assert math.isclose(relative_error(W, train.full(), C) ** 2, losses[-1], rel_tol=1e-8)
    assert train.ranks == start.ranks
    assert all(torch.equal(a, b) for a, b in zip(before, start.cores))


def test_sweeps_end_where_a_general_minimiser_cannot_go_down(problem):
    W, x = problem
    C = moments(x, shrinkage=0.1)[1]
    train, losses = als(W, C, tt_matrix(W, (4, 6), (5, 6), 2), sweeps=200)
    shapes = [c.shape for c in train.cores]

    def loss(p):
        p = torch.tensor(p, requires_grad=True)
        parts = p.split([math.prod(s) for s in shapes])
        V = TensorTrain([q.reshape(s) for q, s in zip(parts, shapes)]).full()
        value = (((W - V) @ C) * (W - V)).sum() / ((W @ C) * W).sum()
        return value.item(), torch.autograd.grad(value, p)[0].numpy()

    p0 = torch.cat([c.flatten() for c in train.cores]).numpy()
    found = scipy.optimize.minimize(loss, p0, jac=True, method="L-BFGS-B")
    assert abs(loss(p0)[0] - losses[-1]) < 1e-10
    assert found.fun > losses[-1] - 1e-6


def test_two_cores_reach_the_closed_form_and_nothing_of_that_rank_is_nearer(problem):
    W, x = problem
    C = moments(x, shrinkage=0.01)[1]
    best = low_rank(W, C, 5)
    assert best.ranks == (1, 5, 1)
    # Eckart and Young with another root of C
    root = scipy.linalg.sqrtm(C.numpy())
    rest = scipy.linalg.svdvals(W.numpy() @ root)[5:]
    error = relative_error(W, best.full(), C)
    assert math.isclose(
        error, np.linalg.norm(rest) / np.linalg.norm(W.numpy() @ root), rel_tol=1e-9
    )
    swept, _ = als(W, C, tt_matrix(W, (24, 1), (1, 30), 5), sweeps=500)
    assert torch.allclose(swept.full(), best.full(), atol=1e-6)


def test_white_inputs_keep_to_the_bounds_of_tt_svd():
    white = torch.eye(30, dtype=torch.float64)
    for seed in range(5):
        W = randn(24, 30, seed=seed)
        start = tt_matrix(W, OUT, IN, 4)
        swept, _ = als(W, white, start, sweeps=20)
        ours, theirs = ((W - t.full()).norm() for t in (swept, start))
        assert theirs / math.sqrt(2) <= ours <= theirs
        # shrinkage 1 is the same question
        C = moments(randn(50, 30, seed=9), shrinkage=1.0)[1]
        again, _ = als(W, C, start, sweeps=20)
        assert torch.allclose(again.full(), swept.full(), atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_inputs_in_a_subspace_recover_a_train_hidden_on_it(seed):
    hidden = TTLinear(IN, OUT, 2, seed=seed).double().weight().detach()
    x = randn(200, 10, seed=4) @ randn(10, 30, seed=5)
    P = torch.linalg.pinv(x) @ x
    W = hidden / hidden.std() @ P + randn(24, 30) @ (torch.eye(30) - P)
    C = moments(x, centred=False, shrinkage=1e-10)[1]
    start = tt_matrix(W, OUT, IN, 2)
    swept, _ = als(W, C, start, sweeps=100)
    assert relative_error(W, start.full(), C) > 0.5
    # what is left is what the shrinkage asks for outside of the subspace
    assert relative_error(W, swept.full(), C) < 1e-4


def test_full_ranks_give_the_layer_back(problem):
    layer, x = nn.Linear(30, 24).double(), problem[1]
    for method, n, m in (("als", IN, OUT), ("tt-svd", IN, OUT), ("svd", (1, 30), (24, 1))):
        small = compress(layer, x, n, m, 100, method)
        assert small.weight().dtype == torch.float64
        assert torch.allclose(small(x), layer(x), atol=1e-9)


@pytest.mark.parametrize("method", ["als", "tt-svd"])
def test_compress_minimises_the_error_of_the_outputs(problem, method):
    layer, x = nn.Linear(30, 24), problem[1].float()
    small = compress(layer, x, IN, OUT, (3, 4), method, sweeps=20, shrinkage=1e-6)
    assert small.ranks == (1, 3, 4, 1) and small.weight().dtype == torch.float32
    with torch.no_grad():
        error = small(x) - layer(x)
        assert error.mean(0).abs().max() < 1e-4
        other = (x @ TTLinear.from_linear(layer, IN, OUT, (3, 4)).weight().T).sub(
            x @ layer.weight.T
        )
        smaller = error.square().sum() / (other - other.mean(0)).square().sum()
    assert (smaller < 0.8) if method == "als" else abs(smaller - 1) < 1e-3


def test_a_layer_without_bias_stays_without(problem):
    small = compress(nn.Linear(30, 24, bias=False), problem[1].float(), IN, OUT, 4)
    assert small.bias is None
    assert small(problem[1].float()).shape == (400, 24)


def test_alignment_of_known_layers():
    Q = torch.linalg.qr(randn(16, 16))[0]
    s = torch.arange(16, 0, -1).double()
    assert math.isclose(alignment(Q * s, (Q * s).T), 1.0, abs_tol=1e-12)
    assert alignment(Q * s, (Q.roll(1, 1) * s).T) < 1e-12
    values = [
        alignment(randn(64, 20, seed=i), randn(9, 64, seed=-i - 1)) for i in range(300)
    ]
    assert abs(np.mean(values) - math.sqrt(2 / math.pi / 64)) < 0.02


def test_head_inputs_are_what_the_head_sees():
    model, x = network("dense", 0.25, size=16).eval(), gratings(7, size=16)[0]
    with torch.no_grad():
        ours = model.head(head_inputs(model, x, batch=3))
        assert torch.allclose(ours, model(x), atol=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(method="magic"), "method = 'magic' does not exist: choose als"),
        (dict(method="svd"), r"give \(1, 30\) and \(24, 1\)"),
        (dict(in_factors=(5, 2, 2)), "multiply to 20, but the layer has 30"),
        (dict(ranks=(1, 99)), "not all between 1 and the bounds"),
        (dict(inputs=torch.zeros(9, 29)), "do not end with the 30 inputs"),
        (dict(inputs=torch.zeros(1, 30)), "at least two rows"),
        (dict(inputs=torch.full((9, 30), math.nan)), "finite"),
        (dict(shrinkage=0.0), "shrinkage = 0.0"),
        (dict(shrinkage=1.5), "shrinkage = 1.5"),
        (dict(sweeps=0), "sweeps = 0"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(problem, change, words):
    given = dict(inputs=problem[1].float(), in_factors=IN, out_factors=OUT, ranks=4)
    with pytest.raises(ValueError, match=words):
        compress(nn.Linear(30, 24), **given | change)


def test_folded_layers_act_as_one():
    layer, norm, last = nn.Linear(30, 24), nn.BatchNorm1d(24), nn.Linear(24, 10)
    x = torch.randn(50, 30, generator=generator(0, "x"))
    norm(layer(3 * x + 1))  # running averages that are not trivial
    norm.eval()
    whole = folded(folded(layer, norm), last)
    assert whole.weight.shape == (10, 30)
    assert torch.allclose(whole(x), last(norm(layer(x))), atol=1e-5)


@pytest.mark.parametrize("head", ["dense", "dense-relu"])
def test_a_compressed_network_of_full_bonds_is_the_network(head):
    model, x = network(head, 0.25, size=16, seed=1), gratings(300, size=16)[0]
    with torch.no_grad():
        model(3 * x)  # running averages that are not those of birth
        small = compressed_network(model.eval(), x, rank=64)
        assert small.config.head == head.replace("dense", "matched")
        assert torch.allclose(small(x), model(x), atol=1e-4)
        cut = compressed_network(model, x, rank=1)
        assert cut.n_parameters < small.n_parameters
        assert (cut(x) - model(x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "head, method, words",
    [("tt", "als", "head is 'tt'"), ("dense", "svd", "choose als or tt-svd")],
)
def test_what_cannot_be_compressed_is_refused(head, method, words):
    model = network(head, 0.25, size=16).eval()
    with pytest.raises(ValueError, match=words):
        compressed_network(model, torch.rand(9, 1, 16, 16), 2, method)
