"""Matrix-product operators against sparse matrices, matrix-product ground states against free fermions and closed forms."""

import sys

import numpy as np
import pytest
import torch

from physattn.tqs.chains import (
    HaldaneShastry,
    Hamiltonian,
    ModifiedHaldaneShastry,
    TransverseFieldIsing,
    block_entropy,
    configurations,
)
from physattn.tqs.dmrg import (
    dmrg,
    effective_central_charge,
    extrapolated,
    matrix_product,
    terms,
)


def dense(tensors):
    "The matrix of an operator, contracted from the right."
    H = tensors[-1].transpose(1, 2, 0)[..., None].transpose(2, 0, 1, 3)[..., 0]
    for W in reversed(tensors[:-1]):
        W = W if W.ndim == 4 else W[None]
        H = np.einsum("lrud,rxy->luxdy", W, H)
        H = H.reshape(len(H), H.shape[1] * H.shape[2], -1)
    return H[0]


@pytest.mark.parametrize("n", [2, 3, 7, 8])
@pytest.mark.parametrize(
    "model", [TransverseFieldIsing, HaldaneShastry, ModifiedHaldaneShastry]
)
def test_an_operator_is_the_sparse_matrix(model, n):
    if model is not TransverseFieldIsing and n % 2:
        pytest.skip("rings of this kind are even")
    options = dict(J=0.6, g=1.4) if model is TransverseFieldIsing else {}
    chain = model(n, **options)
    exact = chain.matrix(configurations(n)).toarray()
    assert np.allclose(dense(matrix_product(terms(chain), 1e-14)), exact, atol=1e-12)


def test_any_couplings_of_any_two_operators():
    n, rng = 5, np.random.default_rng(0)
    C = np.triu(rng.normal(size=(n, n)), 1)
    field, A, B = rng.normal(size=(3, 2, 2))

    def at(**operators):
        product = np.eye(1)
        for i in range(n):
            product = np.kron(product, operators.get(f"_{i}", np.eye(2)))
        return product

    exact = sum(at(**{f"_{i}": field}) for i in range(n))
    exact = exact + sum(
        C[i, j] * at(**{f"_{i}": A, f"_{j}": B}) for i in range(n) for j in range(i + 1, n)
    )
    assert np.allclose(dense(matrix_product((field, [(C, A, B)]), 1e-14)), exact)


def test_the_tolerance_bounds_the_operator():
    ring = ModifiedHaldaneShastry(10)
    exact = ring.matrix(configurations(10)).toarray()
    sizes, errors = [], []
    for tol in (1e-1, 1e-3, 1e-6):
        tensors = matrix_product(terms(ring), tol)
        sizes.append(max(len(W) for W in tensors))
        errors.append(np.abs(dense(tensors) - exact).max())
    assert sizes == sorted(sizes) and errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_open_and_closed_neighbours_need_one_channel():
    bonds = [W.shape[0] for W in matrix_product(terms(TransverseFieldIsing(30)))[1:]]
    assert set(bonds) == {3}


def test_another_hamiltonian_has_no_terms():
    with pytest.raises(ValueError, match="Ising chain or a Haldane-Shastry ring"):
        terms(Hamiltonian(4))


def test_aitken():
    assert np.isclose(extrapolated([9.0, 1.0, 0.5, 0.25]), 0.0)
    assert extrapolated([1.0, 0.9, 0.7]) == 0.7  # not yet converging
    with pytest.raises(ValueError, match="three bond dimensions"):
        extrapolated([1.0, 0.5])


@pytest.mark.parametrize("order", [1, 2])
def test_central_charge_of_the_critical_ising_ring(order):
    ring = TransverseFieldIsing(120, periodic=True)
    S = np.array([ring.exact_entropy(0, stop, order) for stop in range(1, 120)])
    assert abs(effective_central_charge(S, order) - 0.5) < (2e-3 if order == 1 else 2e-2)


def test_no_quimb_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "quimb", None)
    monkeypatch.setitem(sys.modules, "quimb.tensor", None)
    with pytest.raises(ImportError, match=r"physattn\[dmrg\]"):
        dmrg(TransverseFieldIsing(4))


@pytest.fixture(scope="module")
def quimb():
    return pytest.importorskip(
        "quimb", reason="matrix products need quimb, the extra [dmrg]"
    )


def test_ising_against_free_fermions(quimb):
    chain = TransverseFieldIsing(24, g=0.9)
    found = dmrg(chain, (8, 16, 32))
    assert 0 <= found.energy - chain.exact_energy() + 1e-9 < 1e-7
    assert found.variance() < 1e-6
    for order in (1, 2, 3):
        exact = [chain.exact_entropy(0, stop, order) for stop in range(1, 24)]
        assert np.allclose(found.entropies(order), exact, atol=2e-4)


@pytest.mark.parametrize("model", [HaldaneShastry, ModifiedHaldaneShastry])
def test_rings_against_diagonalisation(quimb, model):
    ring = model(10)
    E0, s, psi = ring.ground_state
    found = dmrg(ring, (8, 16, 32))
    assert abs(found.energy - E0) < 1e-6 and abs(found.magnetization_squared()) < 1e-6
    assert abs(found.variance()) < 1e-5
    for order in (1, 2):
        exact = [block_entropy(s, psi, stop, order) for stop in range(1, 10)]
        assert np.allclose(found.entropies(order), exact, atol=1e-4)


def test_energies_are_upper_bounds_that_fall(quimb):
    ring = HaldaneShastry(20)
    found = dmrg(ring, (8, 16, 32))
    above = np.array(found.energies) - ring.exact_energy()
    assert (above > 0).all() and (np.diff(above) < 0).all()
    assert above[-1] < 5 * found.missing


def test_the_seed_decides(quimb):
    energies = [
        dmrg(HaldaneShastry(12), (4, 4, 4), sweeps=1, seed=i).energies for i in (0, 0, 1)
    ]
    assert energies[0] == energies[1] != energies[2]


def test_the_magnetization_of_another_state(quimb):
    found = dmrg(TransverseFieldIsing(6, J=0.0), (2, 2, 2))  # all spins along x
    assert abs(found.magnetization_squared() - 6) < 1e-6
    assert abs(found.entropies(2)).max() < 1e-9
    assert torch.is_tensor(found.hamiltonian.flips)
