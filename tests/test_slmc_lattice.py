"The double-exchange model against second quantisation, closed forms and its symmetries, and one sentence for bad input."

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physattn.foundations.runs import generator
from physattn.slmc.lattice import (
    PAULI,
    DoubleExchange,
    binder_ratio,
    check_spins,
    observables,
    random_spins,
    shell_classes,
    shells,
)

numbers = st.floats(-2.0, 2.0)


def staggering(L):
    x, y = np.divmod(np.arange(L * L), L)
    return torch.tensor((-1.0) ** (x + y), dtype=torch.float64)[:, None]


@functools.cache
def annihilators(modes):
    Z, a, one = np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [0.0, 0.0]]), np.eye(2)
    return [
        functools.reduce(np.kron, [Z] * i + [a] + [one] * (modes - i - 1))
        for i in range(modes)
    ]


def test_weight_is_the_trace_over_fock_space():
    "H is written down from the words of the model, not from its one-body matrix."
    L, t, J, mu, T = 2, 0.9, 1.4, 0.6, 0.4
    S = random_spins(1, L, generator(0))[0]
    c = annihilators(8)
    H = np.zeros((256, 256), complex)
    for x in range(L):
        for y in range(L):
            i = x * L + y
            for j in ((x + 1) % L * L + y, x * L + (y + 1) % L):
                for s in (0, 1):
                    hop = c[2 * i + s].T @ c[2 * j + s]
                    H -= t * (hop + hop.T)
            Sx, Sy, Sz = S[i].tolist()
            up, down = c[2 * i], c[2 * i + 1]
            H += J / 2 * Sz * (up.T @ up - down.T @ down)
            H += J / 2 * ((Sx - 1j * Sy) * up.T @ down + (Sx + 1j * Sy) * down.T @ up)
            H -= mu * (up.T @ up + down.T @ down)
    log_weight = np.log(np.exp(-np.linalg.eigvalsh(H) / T).sum())
    assert -DoubleExchange(L, t, J, mu, T).action(S).item() == pytest.approx(
        log_weight, rel=1e-12
    )


def test_one_body_matrix_is_hermitian_with_pauli_matrices_on_its_diagonal():
    S, system = random_spins(2, 4, generator(6)), DoubleExchange(4, J=1.6)
    h = system.one_body(S)
    blocks = 0.8 * torch.einsum("nia,ast->nist", S + 0j, PAULI)
    exact = torch.stack([torch.block_diag(*b) for b in blocks])
    exact += torch.kron(-shells(4, [(0, 1)])[0], torch.eye(2)) + 0j
    assert torch.equal(h, h.mH) and torch.allclose(h, exact, atol=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), numbers, numbers, st.integers(0, 10**6))
def test_action_has_the_symmetries_of_space_and_spin(L, mu, J, seed):
    rng = generator(seed)
    S, system = random_spins(1, L, rng)[0], DoubleExchange(L, mu=mu, J=J)
    O = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))[0]
    lattice = S.view(L, L, 3)
    images = [S @ O, S @ -O, lattice.roll((1, -2), (0, 1)), lattice.flip(1)]
    images += [torch.rot90(lattice, 1, (0, 1)), lattice.transpose(0, 1)]
    actions = system.action(torch.stack([x.reshape(L * L, 3) for x in images]))
    exact = system.action(S)
    assert (actions - exact).abs().max() < 1e-12 * exact.abs()


def test_staggering_is_no_symmetry():
    S, system = random_spins(5, 4, generator(1)), DoubleExchange(4)
    assert (system.action(S) - system.action(staggering(4) * S)).abs().min() > 1e-3


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([2, 4, 6]), numbers, st.integers(0, 10**6))
def test_charge_conjugation_on_bipartite_lattices(L, mu, seed):
    S = random_spins(1, L, generator(seed))[0]
    plus, minus = (DoubleExchange(L, mu=m).action(S).item() for m in (mu, -mu))
    assert plus == pytest.approx(minus - 2 * L * L * mu / 0.05, rel=1e-12, abs=1e-8)


def test_odd_lattices_have_no_charge_conjugation():
    S = random_spins(1, 3, generator(0))[0]
    plus, minus = (DoubleExchange(3, mu=m).action(S).item() for m in (0.5, -0.5))
    assert abs(plus - minus + 18 * 0.5 / 0.05) > 0.1


@pytest.mark.parametrize("L", [2, 3, 4, 7])
def test_bands_of_the_ferromagnet(L):
    k = 2 * math.pi * np.arange(L) / L
    band = -2 * (np.cos(k) + np.cos(k)[:, None]).ravel()
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).repeat(L * L, 1)
    exact = np.sort(np.concatenate([band + 1, band - 1]))
    assert np.allclose(DoubleExchange(L, J=2.0).spectrum(up), exact, atol=1e-12)


@pytest.mark.parametrize("T", [0.01, 1e-4, 50.0])
def test_action_is_right_where_exponentials_overflow(T):
    system = DoubleExchange(4, mu=0.3, T=T)
    S = random_spins(2, 4, generator(2))
    x = (system.spectrum(S).numpy() - 0.3) / T
    exact = -np.where(x < 0, -x + np.log1p(np.exp(-abs(x))), np.log1p(np.exp(-abs(x)))).sum(
        -1
    )
    assert np.allclose(system.action(S), exact, rtol=1e-13)


def test_action_follows_any_leading_shape():
    S, system = random_spins(6, 3, generator(0)), DoubleExchange(3)
    assert torch.equal(system.action(S.view(2, 3, 9, 3)).flatten(), system.action(S))
    assert system.action(S[0]).shape == ()


@pytest.mark.parametrize("L", [2, 3, 6, 10])
def test_shells_partition_the_pairs_and_hold_what_symmetry_maps_on_each_other(L):
    A, classes = shells(L), shell_classes(L)
    assert torch.equal(A.sum(0), torch.ones(L * L, L * L, dtype=torch.float64))
    assert torch.equal(A, A.transpose(1, 2)) and classes[0] == (0, 0)
    for (dx, dy), row in zip(classes, A[:, 0]):
        signed = {
            (a * u % L, b * v % L)
            for a, b in ((dx, dy), (dy, dx))
            for u in (1, -1)
            for v in (1, -1)
        }
        assert {divmod(j, L) for j in row.nonzero().flatten().tolist()} == signed
    assert torch.equal(shells(L, classes[1:])[0], A[1])


def test_number_of_classes_and_their_order():
    assert len(shell_classes(6)) == 10
    assert shell_classes(6)[:5] == [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert shell_classes(10).index((0, 5)) + 1 == shell_classes(10).index((3, 4))


def test_structure_factor_is_the_double_sum():
    L = 4
    S = random_spins(3, L, generator(3))
    seen, gram = observables(S), S @ S.mT
    x, y = np.divmod(np.arange(L * L), L)
    for a, b in ((0, 0), (1, 0), (1, 3), (2, 2)):
        phase = torch.from_numpy(np.exp(2j * np.pi * (a * x + b * y) / L))
        exact = torch.einsum("i,nij,j->n", phase, gram + 0j, phase.conj()).real / L**2
        assert torch.allclose(seen["structure_factor"][:, a, b], exact)
    assert torch.allclose(seen["mQ2"], (staggering(L) * S).mean(1).square().sum(-1))
    assert torch.allclose(seen["m2"], S.mean(1).square().sum(-1))
    assert torch.allclose(
        seen["neighbour"], (shells(L, [(0, 1)])[0] * gram).sum((1, 2)) / 64
    )


def test_observables_of_ordered_configurations():
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).repeat(36, 1)
    ferro, antiferro = observables(up), observables(staggering(6) * up)
    assert ferro["m2"] == pytest.approx(1) and ferro["mQ2"] == pytest.approx(0)
    assert antiferro["mQ2"] == pytest.approx(1) and antiferro["neighbour"] == pytest.approx(
        -1
    )
    assert "mQ2" not in observables(up[:9])


def test_binder_ratio_of_fixed_length_and_of_gaussians():
    fixed = torch.full((10, 50), 0.3, dtype=torch.float64)
    assert binder_ratio(fixed).value == pytest.approx(1)
    x = torch.randn(100, 400, 3, generator=generator(4), dtype=torch.float64)
    assert abs(binder_ratio(x.square().sum(-1)).sigma(0)) < 4


def test_random_spins_are_uniform_and_repeat():
    S = random_spins(4000, 2, generator(5))
    assert torch.allclose(S.norm(dim=-1), torch.tensor(1.0).double())
    assert (
        S.flatten(0, 1).T @ S.flatten(0, 1) / 16000 - torch.eye(3) / 3
    ).abs().max() < 0.02
    assert torch.equal(S, random_spins(4000, 2, generator(5)))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: DoubleExchange(1), "L = 1"),
        (lambda: DoubleExchange(2.5), "L = 2.5"),
        (lambda: DoubleExchange(4, T=0), "T = 0"),
        (lambda: DoubleExchange(4, T=-0.1), "T = -0.1"),
        (lambda: DoubleExchange(4, T=math.nan), "T = nan"),
        (
            lambda: DoubleExchange(4).action(random_spins(1, 6, generator(0))),
            r"\(1, 36, 3\)",
        ),
        (lambda: DoubleExchange(2).action(torch.ones(4, 3).double()), "length 1.732"),
        (lambda: DoubleExchange(2).action(torch.full((4, 3), math.nan)), "length nan"),
        (lambda: check_spins(torch.ones(3), 2), "does not fit"),
        (lambda: shells(4, [(0, 3)]), r"shell \(0, 3\)"),
        (lambda: shells(6, [(2, 1)]), r"shell \(2, 1\)"),
        (lambda: observables(torch.ones(5, 3)), "does not fit"),
    ],
)
def test_bad_input_gets_a_sentence(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()
