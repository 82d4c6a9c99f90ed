"Entropies against NumPy's singular values of the full tensor, tensornetwork's FiniteMPS, Page."

import math

import numpy as np
import pytest
import torch

from physattn.foundations.estimates import Estimate
from physattn.foundations.runs import generator
from physattn.tensortrain.entropy import (
    bond_entropies,
    core_density,
    data_weighted_spectrum,
    effective_rank,
    page_entropy,
    spectral_entropy,
)
from physattn.tensortrain.trains import TensorTrain, tt_matrix


def random_train(shapes, seed=0):
    rng = generator(seed)
    return TensorTrain([torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes])


SHAPES = [(1, 3, 3), (3, 4, 5), (5, 4, 3), (3, 3, 1)]


def numpy_entropies(tensor):
    "From the reduced density matrices of the full tensor, each cut by itself."
    out, psi = [], tensor.numpy() / np.linalg.norm(tensor.numpy())
    for k in range(1, psi.ndim):
        A = psi.reshape(math.prod(psi.shape[:k]), -1)
        p = np.linalg.eigvalsh(A @ A.T)
        p = p[p > 1e-15]
        out.append(-(p * np.log(p)).sum())
    return out


def test_bonds_against_numpy():
    train = random_train(SHAPES)
    assert np.allclose(bond_entropies(train), numpy_entropies(train.full()), atol=1e-10)
    assert np.allclose(bond_entropies(train * -7.0), bond_entropies(train), atol=1e-12)


def test_bonds_of_a_matrix_are_those_of_its_train():
    W = torch.randn(24, 30, generator=generator(1), dtype=torch.float64)
    factors = (2, 3, 4), (5, 3, 2)
    train = tt_matrix(W, *factors)
    assert np.allclose(bond_entropies(W, *factors), bond_entropies(train), atol=1e-10)
    paired = train._vector()
    flat = TensorTrain(paired).full()
    assert np.allclose(bond_entropies(W, *factors), numpy_entropies(flat), atol=1e-10)


def test_bonds_against_tensornetwork():
    tn = pytest.importorskip("tensornetwork")
    train = random_train(SHAPES, 3)
    mps = tn.FiniteMPS([c.numpy() for c in train.cores], canonicalize=True, backend="numpy")
    ours = bond_entropies(train)
    for k in range(len(SHAPES) - 1):
        mps.position(k, normalize=True)
        s = np.linalg.svd(mps.tensors[k].reshape(-1, mps.tensors[k].shape[-1]))[1]
        p = s**2 / (s**2).sum()
        assert abs(ours[k] + (p[p > 0] * np.log(p[p > 0])).sum()) < 1e-10


def test_known_states():
    d = 5
    copy = torch.zeros(2, 2, 2)
    copy[0, 0, 0] = copy[1, 1, 1] = 1.0
    ghz = TensorTrain(
        [copy.sum(0, keepdim=True), *[copy] * (d - 2), copy.sum(2, keepdim=True)]
    )
    assert torch.allclose(bond_entropies(ghz), torch.full((d - 1,), math.log(2)))
    assert torch.allclose(core_density(ghz, 2), torch.eye(2) / 2, atol=1e-6)
    product = TensorTrain([torch.tensor([0.6, 0.8]).reshape(1, 2, 1)] * d)
    assert bond_entropies(product).abs().max() < 1e-6


@pytest.mark.parametrize("k", range(4))
def test_core_density_is_a_partial_trace(k):
    train = random_train(SHAPES, 2)
    psi = torch.movedim(train.full(), k, 0).flatten(1)
    exact = psi @ psi.T / psi.square().sum()
    assert torch.allclose(core_density(train, k), exact, atol=1e-12)


@pytest.mark.parametrize("m, n", [(2, 2), (3, 8), (8, 3), (6, 6)])
def test_page(m, n):
    rng = generator(0, m, n)
    states = torch.randn(3000, m, n, generator=rng, dtype=torch.complex128)
    s = spectral_entropy(torch.linalg.svdvals(states))
    assert abs(Estimate.from_samples(s, independent=True).sigma(page_entropy(m, n))) < 4
    assert page_entropy(2, 2) == pytest.approx(1 / 3)
    big = page_entropy(16, 1024)
    assert big == pytest.approx(math.log(16) - 16 / 2048, abs=1e-4)


@pytest.mark.parametrize("samples", [5, 40, 400])
def test_data_weighted_spectrum_is_that_of_the_outputs(samples):
    rng = generator(4)
    W = torch.randn(12, 20, generator=rng, dtype=torch.float64)
    X = torch.randn(samples, 20, generator=rng, dtype=torch.float64) ** 3
    s = data_weighted_spectrum(W, X)
    outputs = np.linalg.svd((X @ W.T).numpy(), compute_uv=False) / math.sqrt(samples)
    assert s.shape == (12,)
    assert (
        np.allclose(s[: len(outputs)], outputs, atol=1e-12)
        and (s[len(outputs) :] < 1e-12).all()
    )
    # White inputs change nothing.
    white = math.sqrt(20) * torch.eye(20, dtype=torch.float64)
    assert torch.allclose(data_weighted_spectrum(W, white), torch.linalg.svdvals(W))


def test_effective_rank():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)


def test_bad_input_is_one_sentence():
    W = torch.ones(4, 6)
    for call, words in (
        (lambda: bond_entropies(W), "out_factors and in_factors"),
        (lambda: bond_entropies(W, (2, 3), (2, 3)), "out_factors"),
        (lambda: core_density(random_train(SHAPES), 4), "k = 4"),
        (lambda: data_weighted_spectrum(W, torch.ones(3, 4)), "do not fit"),
        (lambda: spectral_entropy(torch.zeros(3)), "zero"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
