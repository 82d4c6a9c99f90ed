"""Local energies and variational Monte Carlo, against full sums, explicit formulas and the plain way."""

import math

import pytest
import torch
from torch import nn

from physattn.foundations.runs import generator
from physattn.tqs.chains import (
    HaldaneShastry,
    Hamiltonian,
    ModifiedHaldaneShastry,
    TransverseFieldIsing,
    configurations,
)
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.energies import local_energy
from physattn.tqs.vmc import (
    VMC,
    MinSR,
    clipped,
    exact_energy_of,
    grow,
    log_derivatives,
    log_wave_function,
    natural_direction,
)


class Twisted(Hamiltonian):
    "No symmetry at all: random elements for random flips, one of them of all spins, some of them zero."

    def __init__(self, n_sites):
        super().__init__(n_sites)
        self.flips = torch.rand(9, n_sites, generator=generator(5)) < 0.4
        self.flips[0] = True
        self.flips[:, -1] |= ~self.flips.any(1)

    def diagonal(self, s):
        return (s.double() * torch.arange(self.n_sites)).sum(-1)

    def elements(self, s):
        strength = torch.arange(9, dtype=torch.float64) - 4
        return strength * (s[..., :1] == s[..., -1:]).double()


def plain(decoder, hamiltonian, s):
    with torch.no_grad():
        flipped = s[:, None] ^ hamiltonian.flips
        ratios = (decoder.log_amplitude(flipped) - decoder.log_amplitude(s)[:, None]).exp()
    return hamiltonian.diagonal(s) + (hamiltonian.elements(s) * ratios).sum(-1)


def decoder_of(n, k=2, seed=0, **options):
    return SpinDecoder(SpinDecoder.Config(n, k, **options), seed=seed).double()


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("tokens_per_call", [1, 40, 3000])
@pytest.mark.parametrize(
    "chain, options",
    [
        (TransverseFieldIsing(12, g=0.7, periodic=True), {}),
        (TransverseFieldIsing(12), {"positions": "sinusoidal", "clip": None}),
        (ModifiedHaldaneShastry(12), {}),
        (ModifiedHaldaneShastry(12), {"magnetization": 0}),
        (HaldaneShastry(12), {"phase": True}),
        (HaldaneShastry(12), {"phase": True, "magnetization": 0}),
        (Twisted(12), {"phase": True, "positions": "learned"}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Hamiltonian) else ",".join(x),
)
def test_reuse_agrees_with_the_plain_way(chain, options, k, tokens_per_call):
    decoder = decoder_of(12, k, seed=k, **options)
    s = decoder.sample(8, generator(k))
    found = local_energy(decoder, chain, s, tokens_per_call)
    assert found.is_complex() == decoder.config.phase
    assert torch.allclose(found, plain(decoder, chain, s), rtol=1e-11, atol=1e-11)


def test_single_precision_is_only_rounding():
    decoder, chain = SpinDecoder(SpinDecoder.Config(40, 4)), TransverseFieldIsing(40)
    s = decoder.sample(20, generator(0))
    found = local_energy(decoder, chain, s)
    assert found.dtype == torch.float64
    assert (found - local_energy(decoder.double(), chain, s)).abs().max() < 1e-3


def test_a_word_that_had_all_the_attention_is_left_out_without_cancellation():
    decoder, chain = SpinDecoder(SpinDecoder.Config(20, 2)), TransverseFieldIsing(20)
    with torch.no_grad():
        for block in decoder.blocks:
            block.attn.W_Q.mul_(20)
    s = decoder.sample(50, generator(0))
    _, cache = decoder.run_with_cache(s)
    assert cache["blocks.0.attn.hook_pattern"].amax() > 1 - 1e-7
    found = local_energy(decoder, chain, s)
    assert torch.allclose(found, local_energy(decoder.double(), chain, s), atol=1e-3)
    assert torch.allclose(found, plain(decoder, chain, s), atol=1e-3)


def test_no_word_is_read_twice():
    decoder, read = decoder_of(12, 1), []
    s = decoder.sample(5, generator(0))
    second = "blocks.1.hook_resid_pre"
    with decoder.hooks([(second, lambda x, hook: read.append(x.shape[:2].numel()))]):
        local_energy(decoder, TransverseFieldIsing(12), s, 30)
    assert sum(read) == 5 * (12 + 11 * 12 // 2)
    assert max(read[1:]) <= 30


@pytest.mark.parametrize(
    "chain, options",
    [
        (TransverseFieldIsing(6), {}),
        (ModifiedHaldaneShastry(6), {"magnetization": 0}),
        (HaldaneShastry(6), {"phase": True}),
    ],
)
def test_the_gradient_is_that_of_the_full_sum(chain, options):
    decoder = decoder_of(6, 2, seed=3, **options)
    s = configurations(6, options.get("magnetization"))
    matrix = torch.from_numpy(chain.matrix(s).toarray())
    psi = decoder.log_amplitude(s).exp()
    exact = (psi.conj() @ (matrix.to(psi.dtype) @ psi)).real / psi.abs().square().sum()
    assert exact.item() == pytest.approx(exact_energy_of(decoder, chain), abs=1e-10)
    exact.backward()
    expected = torch.cat(
        [
            torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten()
            for w in decoder.parameters()
        ]
    )
    p, e = psi.detach().abs().square(), local_energy(decoder, chain, s)
    e = e - (p * e).sum()
    e = torch.view_as_real(e).T if e.is_complex() else e[None]
    found = 2 * ((p * e)[..., None] * log_derivatives(decoder, s)).sum((0, 1))
    assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("phase", [False, True])
def test_a_step_is_the_explicit_formula(phase):
    chain, decoder = HaldaneShastry(6), decoder_of(6, 3, d_head=2, d_mlp=4, phase=phase)
    s = decoder.sample(40, generator(0))
    E = local_energy(decoder, chain, s)
    optimizer = MinSR(decoder, shift=1e-3, momentum=0.5)
    optimizer.direction = torch.randn(
        optimizer.direction.shape, generator=generator(1), dtype=torch.float64
    )
    before = 0.5 * optimizer.direction
    length = optimizer.propose(s, E)
    O = log_derivatives(decoder, s)
    O = torch.complex(*O) if phase else O[0]
    O = O - O.mean(0)
    S = (O.conj().T @ O).real / 40
    F = (O.conj().T @ (E - E.mean()).to(O.dtype)).real / 40
    shifted = S + 1e-3 * torch.eye(len(S), dtype=S.dtype)
    expected = before + torch.linalg.solve(shifted, F - S @ before)
    assert torch.allclose(optimizer.direction, expected, rtol=1e-6, atol=1e-8)
    assert length == pytest.approx((expected @ S @ expected).sqrt().item())


def test_a_step_stays_in_the_trust_region():
    chain, decoder = TransverseFieldIsing(8), decoder_of(8)
    s = decoder.sample(64, generator(0))
    optimizer = MinSR(decoder, lr=1e3, trust=0.01, warmup=1)
    before = nn.utils.parameters_to_vector(decoder.parameters()).detach()
    length = optimizer.propose(s, local_energy(decoder, chain, s))
    optimizer.apply(0, 10)
    moved = (nn.utils.parameters_to_vector(decoder.parameters()) - before).norm()
    assert (moved / optimizer.direction.norm() * length).item() == pytest.approx(0.01)


def test_minsr_needs_no_inverse_of_the_tensor():
    X = torch.randn(7, 30, generator=generator(0), dtype=torch.float64)
    e = torch.randn(7, generator=generator(1), dtype=torch.float64)
    shifted = X.T @ X + 1e-2 * torch.eye(30, dtype=torch.float64)
    assert torch.allclose(
        natural_direction(X, e, 1e-2), torch.linalg.solve(shifted, X.T @ e), atol=1e-10
    )


def test_clipping_moves_outliers_only():
    E = torch.randn(1000, generator=generator(0), dtype=torch.float64)
    assert torch.equal(clipped(E), E)
    E[3] = 1e3
    assert clipped(E).max() == E.median() + 5 * E.std()
    assert torch.equal(clipped(E)[4:], E[4:])
    assert torch.equal(clipped(torch.complex(E, -E)).imag, clipped(-E))


@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_full_sum_is_normalised_and_in_binary_order(k):
    decoder = decoder_of(8, k, phase=True)
    log_psi = log_wave_function(decoder, batch=7)
    assert log_psi.exp().abs().square().sum().item() == pytest.approx(1)
    s = configurations(8)
    assert torch.allclose(log_psi, decoder.log_amplitude(s), atol=1e-12)


@pytest.mark.parametrize("optimizer", ["minsr", "adam"])
def test_energy_falls_is_honest_and_above_the_ground_state(optimizer):
    chain = TransverseFieldIsing(10)
    vmc = VMC(SpinDecoder(SpinDecoder.Config(10, 5)), chain, 128, optimizer)
    before = exact_energy_of(vmc.decoder, chain)
    run = vmc.run(40)
    after = exact_energy_of(vmc.decoder, chain)
    assert chain.exact_energy() < after < before - 1
    seen = vmc.measure(2000)
    assert abs(seen.energy.sigma(after)) < 4
    assert set(run.history) == {
        "energy",
        "error",
        "variance",
        "parity",
        "length",
        "seconds",
        "cpu",
    }
    psi = log_wave_function(vmc.decoder).exp()
    assert abs(seen.parity.sigma((psi * psi.flip(0)).sum().item())) < 4


def test_a_phase_head_finds_signs():
    """All flips of the Haldane-Shastry chain are positive, so that without signs no state is below the lowest diagonal energy."""
    chain = HaldaneShastry(6)
    decoder = SpinDecoder(SpinDecoder.Config(6, 3, phase=True, magnetization=0), seed=0)
    VMC(decoder, chain, samples=128, lr=0.05, shift=1e-3).run(60)
    exact = exact_energy_of(decoder, chain)
    assert chain.exact_energy() < exact < chain.diagonal(configurations(6)).min() - 0.5


class Stop(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["minsr", "adam"])
def test_resumes_to_the_same_bits(optimizer, tmp_path):
    def weights(path=None, stop=None):
        vmc = VMC(
            SpinDecoder(SpinDecoder.Config(8, 2)), TransverseFieldIsing(8), 32, optimizer
        )
        apply = vmc.optimizer.apply

        def counting(step, steps):
            if step == stop:
                raise Stop
            apply(step, steps)

        vmc.optimizer.apply = counting
        vmc.run(6, path, every=0)
        return nn.utils.parameters_to_vector(vmc.decoder.parameters())

    with pytest.raises(Stop):
        weights(tmp_path / "run", stop=3)
    assert torch.equal(weights(tmp_path / "run"), weights())


def test_a_run_stops_at_nan_and_keeps_its_checkpoint(tmp_path):
    vmc = VMC(SpinDecoder(SpinDecoder.Config(8, 2)), TransverseFieldIsing(8), 32)
    vmc.run(2, tmp_path / "run")
    kept = (tmp_path / "run").read_bytes()
    other = VMC(SpinDecoder(SpinDecoder.Config(8, 2)), TransverseFieldIsing(8), 32)
    other.hamiltonian.g = math.nan
    with pytest.raises(ArithmeticError, match="energy = nan at step 0"):
        other.run(3, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert (tmp_path / "run").read_bytes() == kept
    for w in other.decoder.parameters():
        assert w.isfinite().all()


def test_a_grown_decoder_starts_close():
    chains = [(TransverseFieldIsing(n), steps) for n, steps in ((10, 60), (20, 1))]
    decoder = SpinDecoder(SpinDecoder.Config(10, 5, edge=1))
    vmc, runs = grow(decoder, chains, samples=128)
    assert vmc.decoder.config.n_sites == 20 and len(runs) == 2
    exact = TransverseFieldIsing(20).exact_energy()
    assert runs[1].history["energy"][0][1] < 0.9 * exact


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d, H: VMC(d, TransverseFieldIsing(10)), "n_sites = 10 and the decoder 8"),
        (lambda d, H: VMC(d, H, samples=1), "samples = 1"),
        (lambda d, H: VMC(d, H, optimizer="lbfgs"), "optimizer = 'lbfgs' is unknown"),
        (
            lambda d, H: local_energy(d, H, d.sample(2, generator(0)), 0),
            "tokens_per_call = 0",
        ),
        (
            lambda d, H: local_energy(
                d, TransverseFieldIsing(9), d.sample(2, generator(0))
            ),
            "n_sites = 9 and the decoder 8",
        ),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make(SpinDecoder(SpinDecoder.Config(8, 2)), TransverseFieldIsing(8))


def trained(optimizer, path=None):
    decoder = SpinDecoder(SpinDecoder.Config(8, 2), seed=4)
    vmc = VMC(decoder, TransverseFieldIsing(8), 128, optimizer)
    vmc.run(25, path)
    return decoder


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for optimizer in ("minsr", "adam"):
        trained(optimizer, f"{folder}/checkpoint-{optimizer}").save(
            f"{folder}/{optimizer}-{rank}"
        )
    torch.distributed.destroy_process_group()


def test_two_processes_do_the_work_of_one(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    chain = TransverseFieldIsing(8)
    for optimizer in ("minsr", "adam"):
        first, second = (SpinDecoder.load(tmp_path / f"{optimizer}-{i}") for i in range(2))
        for a, b in zip(first.parameters(), second.parameters()):
            assert torch.equal(a, b)
        together, alone = (exact_energy_of(d, chain) for d in (first, trained(optimizer)))
        start = exact_energy_of(SpinDecoder(first.config, seed=4), chain)
        assert abs(together - alone) < 0.1 * (start - alone)
