"""Observables of a decoder agree with full sums, with free fermions, and with each other, and say what is wrong."""

import math

import numpy as np
import pytest
import torch

from physattn.foundations.estimates import Estimate
from physattn.foundations.experiments import recall
from physattn.foundations.runs import generator, seeded
from physattn.tqs.chains import TransverseFieldIsing, configurations
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.energies import Sentences, flip_terms
from physattn.tqs.observables import (
    correlations,
    exact_entropy_of,
    observe,
    orbit_mean,
    renyi_entropy,
)


def decoder(n_sites, seed=0, scale=0.2, **options):
    "A decoder far from uniform."
    model = SpinDecoder(SpinDecoder.Config(n_sites, **options), seed).double()
    with seeded(seed, "rough"), torch.no_grad():
        for p in model.parameters():
            p.mul_(2).add_(scale * torch.randn_like(p))
    return model.requires_grad_(False)


def amplitudes(model):
    "psi of all configurations, by the decoder's own forward pass."
    return model.log_amplitude(configurations(model.config.n_sites)).exp().numpy()


def pauli_sums(psi, n):
    "<X>, <Z>, <XX>, <ZZ> and <prod X>, by tensors with one axis a site."
    axes = psi.reshape((2,) * n)
    X = np.stack([np.flip(axes, i).ravel() for i in range(n)])
    Z = np.stack(
        [
            (axes * np.array([1, -1]).reshape([-1] + [1] * (n - 1 - i))).ravel()
            for i in range(n)
        ]
    )
    return {
        "x": (X @ psi.conj()).real,
        "z": (Z @ psi.conj()).real,
        "xx": (X.conj() @ X.T).real,
        "zz": (Z.conj() @ Z.T).real,
        "parity": np.vdot(psi, psi[::-1]).real,
    }


def trace_power(psi, n, start, stop, order):
    "Tr rho^order by the density matrix of the block itself."
    block = psi.reshape(2**start, 2 ** (stop - start), -1).transpose(1, 0, 2)
    block = block.reshape(2 ** (stop - start), -1)
    rho = block @ block.conj().T
    return np.trace(np.linalg.matrix_power(rho, order)).real


def above(e):
    i = np.triu_indices(len(e.value), 1)
    return Estimate(e.value[i], e.error[i], e.n)


@pytest.fixture(scope="module")
def twenty():
    stored = recall("tqs/ising")
    model = SpinDecoder(SpinDecoder.Config(**stored["20-minsr-0"]["config"]))
    model.load_state_dict(stored.weights("20-minsr-0"))
    return model.requires_grad_(False)


# --- the words before a change are read once


@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_other_endings_have_the_ratios_of_whole_sentences(k, phase):
    model = decoder(12, bits_per_token=k, phase=phase)
    s = model.sample(20, generator(0))
    read, last = Sentences(model, s), 12 // k - 1
    assert torch.allclose(read.log_amplitude, model.log_amplitude(s), atol=1e-12)
    for start in {0, 1, last}:
        other = s.clone()
        other[:, start * k :] = model.sample(20, generator(1))[:, start * k :]
        i = torch.randperm(20, generator=generator(2))
        change = read.log_ratio(i, model.tokens(other[i])[:, start:], start)
        exact = model.log_amplitude(other[i]) - model.log_amplitude(s[i])
        assert torch.allclose(change, exact, atol=1e-11)


def test_every_flip_of_every_sample_comes_once():
    model = decoder(8, bits_per_token=2)
    s, flips = model.sample(50, generator(0)), torch.eye(8, dtype=torch.bool)
    for tokens_per_call in (1, 7, 10_000):
        seen = torch.zeros(50, 8)
        for b, k, _ in flip_terms(
            model, flips, lambda s: torch.ones(s.shape), s, tokens_per_call
        ):
            seen.index_put_((b, k), torch.ones(len(b)), accumulate=True)
        assert (seen == 1).all()


# --- the orbit mean


@pytest.mark.parametrize("phase", [False, True])
def test_the_orbit_mean_has_the_same_mean_and_less_variance(phase):
    psi = amplitudes(decoder(8, bits_per_token=2, phase=phase, scale=0.4))
    r = torch.from_numpy(psi[::-1] / psi)
    p, f = np.abs(psi) ** 2, orbit_mean(r).numpy()
    assert abs(p @ f - p @ r.real.numpy()) < 1e-12 and np.abs(f).max() <= 1
    assert p @ f**2 < 0.9 * (p @ r.real.numpy() ** 2)


# --- correlations


@pytest.mark.parametrize("pairs", ["neighbours", "flips"])
@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_correlations_agree_with_the_full_sum(k, phase, pairs):
    n = 8
    model = decoder(n, seed=k, bits_per_token=k, phase=phase)
    exact, seen = pauli_sums(amplitudes(model), n), correlations(model, 2000, 1, pairs)
    for name in ("x", "z"):
        assert np.abs(getattr(seen, name).sigma(exact[name])).max() < 4
    for name in ("xx", "zz"):
        i = np.triu_indices(n, 1)
        sigma = above(getattr(seen, name)).sigma(exact[name][i])
        assert np.abs(sigma).max() < 4.5 and (sigma**2).mean() < 2.2
        assert (getattr(seen, name).value.diagonal() == 1).all()
        assert (getattr(seen, name).error.diagonal() == 0).all()
    assert abs(seen.parity.sigma(exact["parity"])) < 3 and seen.parity.error < 0.03
    assert seen.xx.n == seen.zz.n == 2000


@pytest.mark.parametrize("phase", [False, True])
def test_error_bars_are_those_of_repetitions(phase):
    model = decoder(6, bits_per_token=2, phase=phase)
    exact, chi = pauli_sums(amplitudes(model), 6), []
    i = np.triu_indices(6, 1)
    for seed in range(40):
        c = correlations(model, 800, seed)
        rows = [c.x.sigma(exact["x"]), c.z.sigma(exact["z"])]
        rows += [above(c.zz).sigma(exact["zz"][i]), above(c.xx).sigma(exact["xx"][i])]
        chi.append([np.square(row).mean() for row in rows])
    for mean_square in np.transpose(chi):
        seen = Estimate.from_samples(mean_square, independent=True)
        assert abs(seen.sigma(1.0)) < 4 and seen.error < 0.2


def test_a_sector_is_flipped_in_pairs():
    model = decoder(8, bits_per_token=2, magnetization=0, phase=True)
    exact, seen = pauli_sums(amplitudes(model), 8), correlations(model, 2000)
    i = np.triu_indices(8, 1)
    assert np.abs(above(seen.xx).sigma(exact["xx"][i])).max() < 4.5
    assert (seen.x.value == 0).all()


def test_a_learned_sector_is_not_missed():
    n = 6
    model = SpinDecoder(SpinDecoder.Config(n, n)).double().requires_grad_(False)
    inside = configurations(n).sum(-1) == n // 2
    for depth in (60.0, 1000.0):
        model.W_U.zero_(), model.b_U.copy_(torch.where(inside, 0.0, -depth))
        # Of the 20 configurations 3/5 have opposite spins at two given sites.
        xx = above(correlations(model, 1000).xx)
        assert np.abs(xx.sigma(0.6)).max() < 4.5 and (xx.error < 0.1).all()


def test_twenty_spins_are_those_of_free_fermions(twenty):
    ising, seen = TransverseFieldIsing(20), correlations(twenty, 1500, seed=2)
    assert np.abs(seen.x.sigma(ising.fermion_correlations.diagonal())).max() < 4
    i = np.triu_indices(20, 1)
    for e, exact in ((seen.xx, ising.exact_xx()), (seen.zz, ising.exact_zz())):
        sigma = above(e).sigma(exact[i])
        assert np.abs(sigma).max() < 5.5 and np.square(sigma).mean() < 2.5
        assert np.median(e.error) < 0.03


# --- entropies


@pytest.mark.parametrize(
    "order, start, stop",
    [(2, 0, 5), (2, 3, 9), (3, 0, 7), (3, 5, 6), (4, 9, 10), (5, 1, 3)],
)
@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_entropies_agree_with_the_density_matrix(k, phase, order, start, stop):
    model = decoder(10, seed=k, bits_per_token=k, phase=phase)
    exact = math.log(trace_power(amplitudes(model), 10, start, stop, order)) / (1 - order)
    seen = renyi_entropy(model, order, start, stop, 600, seed=3)
    assert abs(seen.sigma(exact)) < 4 and seen.error < 0.15 and seen.n == 600
    assert abs(exact_entropy_of(model, start, stop, order) - exact) < 1e-9


@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize("start", [0, 1])
def test_a_sector_has_entropies_too(phase, start):
    model = decoder(8, bits_per_token=2, magnetization=0, phase=phase)
    seen = renyi_entropy(model, 2, start, start + 4, 2000)
    assert abs(seen.sigma(exact_entropy_of(model, start, start + 4, 2))) < 4


def test_entropy_errors_are_those_of_repetitions():
    model = decoder(8, bits_per_token=2, phase=True)
    for order in (2, 3):
        exact = exact_entropy_of(model, 0, 4, order)
        sigma = [
            renyi_entropy(model, order, 0, 4, 300, seed).sigma(exact) for seed in range(40)
        ]
        seen = Estimate.from_samples(np.square(sigma), independent=True)
        assert abs(seen.sigma(1.0)) < 4 and abs(np.mean(sigma)) < 4 / math.sqrt(40)


def test_the_orbit_keeps_its_promise(twenty):
    ising = TransverseFieldIsing(20)
    for order in (2, 3, 4):
        S = renyi_entropy(twenty, order, 0, 10, 1000)
        trace = math.exp((1 - order) * ising.exact_entropy(0, 10, order))
        # Of the plain estimator the relative variance is 1/trace^2 - 1, with the orbit 1/trace - 1.
        assert S.error * (order - 1) * math.sqrt(1000) < 1.1 * math.sqrt(1 / trace - 1)


def test_how_the_work_is_cut_does_not_matter():
    model = decoder(12, bits_per_token=2)
    for tokens_per_call in (60, 10**6):
        again = renyi_entropy(model, 3, 3, 7, 100, 0, tokens_per_call)
        assert abs(again.sigma(exact_entropy_of(model, 3, 7, 3))) < 4
    a, b = (correlations(model, 20, 0, "flips", t) for t in (30, 10**6))
    assert np.allclose(a.xx.value, b.xx.value, atol=1e-12) and str(a.x) == str(b.x)


def test_von_neumann_and_every_region_of_twenty_spins(twenty):
    ising = TransverseFieldIsing(20)
    for start, stop in ((0, 10), (5, 8)):
        assert (
            abs(exact_entropy_of(twenty, start, stop) - ising.exact_entropy(start, stop, 1))
            < 2e-3
        )


def test_an_entropy_that_cannot_be_seen_is_a_lower_bound():
    # A random vector, which is nearly as entangled as can be.
    model = SpinDecoder(SpinDecoder.Config(10, 10, phase=True)).double()
    model.requires_grad_(False)
    b = torch.randn(2, 1024, generator=generator(5)).double()
    model.W_U.zero_(), model.W_phase.zero_(), model.b_U.copy_(b.square().sum(0).log())
    model.b_phase.copy_(3 * b[0])
    exact = exact_entropy_of(model, 0, 5, 4)
    assert exact > 1.2
    for seed in range(12):
        seen = renyi_entropy(model, 4, 0, 5, 20, seed)
        assert math.isinf(seen.error) and math.isinf(seen.high)
        assert 0 <= seen.low < exact and "inf]" in str(seen)


# --- everything


def test_observe_agrees_with_its_parts():
    ising, model = TransverseFieldIsing(10), decoder(10, bits_per_token=2)
    seen = observe(model, ising, samples=500, seed=4)
    psi = amplitudes(model)
    s = configurations(10)
    H = ising.matrix(s)
    energy = psi @ (H @ psi)
    assert abs(seen.energy.sigma(energy)) < 4
    assert abs(seen.variance.sigma(np.sum((H @ psi - energy * psi) ** 2))) < 4
    assert str(seen.entropy) == str(renyi_entropy(model, 2, 0, 5, 500, 4))
    assert str(seen.correlations.zz) == str(correlations(model, 500, 4).zz)
    assert abs(seen.von_neumann - exact_entropy_of(model, 0, 5)) < 1e-12
    text = str(seen)
    assert "energy" in text and f"{seen.correlations.parity}" in text
    bare = observe(decoder(22, bits_per_token=2), samples=50)
    assert bare.energy is None and bare.von_neumann is None and "energy" not in str(bare)


def test_the_same_seed_gives_the_same_numbers_and_no_other_does():
    model = decoder(8)
    before = torch.get_rng_state()
    a, b, c = (correlations(model, 100, seed).z.value for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()
    S = [renyi_entropy(model, 2, 0, 4, 100, seed).value for seed in (0, 0, 1)]
    assert S[0] == S[1] != S[2] and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: renyi_entropy(m, 1, 0, 4), "order = 1 has no replicas"),
        (lambda m: renyi_entropy(m, 2.5, 0, 4), "order = 2.5 has no replicas"),
        (lambda m: renyi_entropy(m, 2, 4, 4), "sites 4:4 are no part"),
        (lambda m: renyi_entropy(m, 2, 0, 8), "sites 0:8 are no part"),
        (lambda m: renyi_entropy(m, 2, 3, 9), "sites 3:9 are no part"),
        (lambda m: renyi_entropy(m, 2, -1, 3), "sites -1:3 are no part"),
        (
            lambda m: renyi_entropy(m, 2, 0, 4, samples=1),
            "samples = 1 has no standard error",
        ),
        (lambda m: correlations(m, samples=1), "samples = 1 has no standard error"),
        (lambda m: correlations(m, pairs="all"), "pairs = 'all' is unknown"),
        (
            lambda m: correlations(decoder(8, magnetization=0), pairs="neighbours"),
            "leaves the sector magnetization = 0",
        ),
        (lambda m: correlations(m, tokens_per_call=0), "tokens_per_call = 0 reads nothing"),
        (lambda m: exact_entropy_of(m, 0, 8), "sites 0:8 are no part"),
        (lambda m: exact_entropy_of(m, 0, 4, 0), "order = 0 is not positive"),
        (lambda m: observe(m, samples=0), "samples = 0 has no standard error"),
        (lambda m: observe(m, TransverseFieldIsing(9)), "n_sites = 9 and the decoder 8"),
        (lambda m: observe(decoder(1)), "sites 0:0 are no part"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(decoder(8))
