"Spin chains: exact answers against each other, against published values, and one sentence for bad input."

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physattn.tqs.chains import (
    HaldaneShastry,
    Hamiltonian,
    ModifiedHaldaneShastry,
    TransverseFieldIsing,
    block_entropy,
    configurations,
)


@pytest.mark.parametrize("n", [2, 10, 20, 40, 100])
def test_critical_ising_energy_is_the_closed_form(n):
    exact = 1 - 1 / math.sin(math.pi / (2 * (2 * n + 1)))
    assert TransverseFieldIsing(n).exact_energy() == pytest.approx(exact, rel=1e-13)


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 9), st.floats(0.2, 2.0), st.floats(0.2, 2.0), st.booleans())
def test_free_fermions_are_the_diagonalised_ising_chain(n, J, g, periodic):
    chain = TransverseFieldIsing(n, J, g, periodic)
    assert chain.exact_energy() == pytest.approx(chain.ground_state[0], rel=1e-9)


@pytest.mark.parametrize("n, periodic", [(10, False), (12, False), (7, True), (8, True)])
def test_ising_observables_are_sums_over_configurations(n, periodic):
    chain = TransverseFieldIsing(n, g=0.9, periodic=periodic)
    _, s, psi = chain.ground_state
    z, cube = 1 - 2 * s.double(), psi.reshape((2,) * n)
    assert torch.allclose((z.T * psi**2) @ z, torch.from_numpy(chain.exact_zz()), atol=1e-7)
    for i, j in ((0, 1), (2, n - 1), (4, 5)):
        assert (cube * cube.flip(i, j)).sum().item() == pytest.approx(
            chain.exact_xx()[i, j], abs=1e-7
        )
    x = [(cube * cube.flip(i)).sum().item() for i in range(n)]
    assert np.allclose(x, chain.fermion_correlations.diagonal(), atol=1e-7)
    for order in (1, 2, 3):
        assert block_entropy(s, psi, n // 3, order) == pytest.approx(
            chain.exact_entropy(0, n // 3, order), abs=1e-6
        )


@pytest.mark.parametrize(
    "n, S2", [(10, 0.24455), (20, 0.30301), (40, 0.35821), (100, 0.42671)]
)
def test_half_chain_entropy_of_the_critical_chain(n, S2):
    assert TransverseFieldIsing(n).exact_entropy(0, n // 2) == pytest.approx(S2, abs=1e-5)
    assert TransverseFieldIsing(n).exact_entropy(n // 2, n) == pytest.approx(S2, abs=1e-5)


def test_a_long_correlation():
    assert TransverseFieldIsing(100).exact_zz()[24, 74] == pytest.approx(0.147457, abs=1e-6)


@pytest.mark.parametrize("n", [2, 4, 8, 12])
def test_haldane_shastry_has_its_closed_energy(n):
    ring = HaldaneShastry(n)
    assert ring.ground_state[0] == pytest.approx(ring.exact_energy(), rel=1e-10)


@pytest.mark.parametrize(
    "n, energy", [(4, -10.67996585), (8, -18.4863346138), (14, -30.800877974)]
)
def test_modified_haldane_shastry_energies_and_positivity(n, energy):
    E, _, psi = ModifiedHaldaneShastry(n).ground_state
    assert pytest.approx(energy, abs=1e-7) == E and (psi > 0).all()


def test_the_sector_holds_the_ground_state():
    ring = ModifiedHaldaneShastry(8)
    everything = np.linalg.eigvalsh(ring.matrix(configurations(8)).toarray())[0]
    assert everything == pytest.approx(ring.exact_energy(), rel=1e-12)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: TransverseFieldIsing(1), "n_sites = 1"),
        (lambda: TransverseFieldIsing(4, g=-1.0), "g = -1"),
        (lambda: HaldaneShastry(5), "n_sites = 5 is odd"),
        (lambda: configurations(30), "n_sites = 30"),
        (lambda: configurations(22), "too many to diagonalise"),
        (lambda: configurations(6, 3), "magnetization = 3"),
        (lambda: TransverseFieldIsing(6).exact_entropy(2, 9), "sites 2:9"),
        (lambda: TransverseFieldIsing(6).exact_entropy(0, 3, order=0), "order = 0"),
        (lambda: block_entropy(configurations(2), torch.ones(4) / 2, 2), "stop = 2"),
        (lambda: Hamiltonian(0), "n_sites = 0"),
    ],
)
def test_bad_input_is_one_sentence(wrong, words):
    with pytest.raises(ValueError, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)
