"""Annealed natural gradients, Marshall's signs and the sector, against full sums and Boltzmann's distribution."""

import math

import pytest
import torch
from torch import nn

from physattn.foundations.runs import generator
from physattn.tqs.chains import (
    HaldaneShastry,
    Hamiltonian,
    ModifiedHaldaneShastry,
    configurations,
)
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.energies import local_energy
from physattn.tqs.rings import (
    Annealed,
    magnetization_squared,
    marshall_agreement,
    rings,
    scattered,
)
from physattn.tqs.vmc import VMC, MinSR, exact_energy_of, log_wave_function


class Levels(Hamiltonian):
    "Random diagonal energies and no flips to speak of."

    flips = torch.ones(1, 4, dtype=torch.bool)

    def diagonal(self, s):
        code = (s.long() << torch.arange(3, -1, -1)).sum(-1)
        return torch.randn(16, generator=generator(3), dtype=torch.float64)[code]

    def elements(self, s):
        return torch.zeros(*s.shape[:-1], 1, dtype=torch.float64)


def test_annealing_holds_boltzmann():
    T, levels = 0.8, Levels(4)
    options = dict(optimizer="annealed", temperature=T, hold=60, cooling=1, momentum=0.0)
    options |= dict(samples=128, shift=1e-5, warmup=5)
    vmc = VMC(SpinDecoder(SpinDecoder.Config(4, 4)), levels, **options)
    vmc.run(60)
    p = log_wave_function(vmc.decoder).exp() ** 2
    exact = (-levels.diagonal(configurations(4)) / T).softmax(0)
    assert (p - exact).abs().sum() < 0.02


def test_cold_is_minsr():
    ring = ModifiedHaldaneShastry(6)
    directions = []
    for optimizer in (
        MinSR(SpinDecoder(SpinDecoder.Config(6, 2))),
        Annealed(SpinDecoder(SpinDecoder.Config(6, 2)), temperature=0.0, hold=2, cooling=3),
        Annealed(SpinDecoder(SpinDecoder.Config(6, 2)), temperature=3.0, hold=2, cooling=3),
        Annealed(SpinDecoder(SpinDecoder.Config(6, 2)), temperature=3.0, hold=2, cooling=3),
    ):
        s = optimizer.decoder.sample(40, generator(0))
        if len(directions) == 3:  # as cold after five steps
            optimizer.load_state_dict(optimizer.state_dict() | {"step": 5})
        optimizer.propose(s, local_energy(optimizer.decoder, ring, s))
        directions.append(optimizer.direction)
    assert torch.equal(directions[0], directions[1])
    assert torch.equal(directions[0], directions[3])
    assert not torch.allclose(directions[0], directions[2])


def test_annealing_resumes_to_the_same_bits(tmp_path):
    def weights(stop):
        config = SpinDecoder.Config(6, 2, phase=True)
        vmc = VMC(
            SpinDecoder(config),
            HaldaneShastry(6),
            samples=32,
            optimizer="annealed",
            temperature=2.0,
            hold=2,
            cooling=4,
        )
        apply = vmc.optimizer.apply

        def stopping(step, steps):
            if step == stop:
                raise KeyboardInterrupt
            apply(step, steps)

        vmc.optimizer.apply = stopping
        vmc.run(8, tmp_path / "run" if stop is not None or resumed else None, every=0)
        return nn.utils.parameters_to_vector(vmc.decoder.parameters())

    resumed = False
    whole = weights(None)
    with pytest.raises(KeyboardInterrupt):
        weights(4)
    resumed = True
    assert torch.equal(weights(None), whole)


def test_the_temperature_is_held_and_falls_to_zero():
    "The direction is that of local energies with T ln|psi|^2 added, at the T of the schedule."
    ring, s = ModifiedHaldaneShastry(6), configurations(6, 0)
    options = dict(temperature=3.0, hold=2, cooling=4)
    for step, T in enumerate([3.0, 3.0, 3.0, 3 * 0.75**2, 3 / 4, 3 / 16, 0.0, 0.0]):
        hot = Annealed(SpinDecoder(SpinDecoder.Config(6, 2)), **options)
        plain = MinSR(SpinDecoder(SpinDecoder.Config(6, 2)))
        hot.load_state_dict(hot.state_dict() | {"step": step})
        energy = local_energy(plain.decoder, ring, s)
        hot.propose(s, energy)
        plain.propose(s, energy + 2 * T * plain.decoder(s).detach().double())
        assert torch.allclose(hot.direction, plain.direction, rtol=1e-6, atol=1e-9)


def test_scattered_phases_belong_to_words():
    decoder = scattered(SpinDecoder(SpinDecoder.Config(6, 2, phase=True)), seed=1)
    s = configurations(6)
    words = decoder.tokens(s)
    phase = math.pi * nn.functional.softsign(decoder.b_phase)
    assert torch.allclose(decoder(s).imag, phase[words].sum(-1), atol=1e-5)
    assert phase.std() > 0.5
    again = scattered(SpinDecoder(SpinDecoder.Config(6, 2, phase=True)), seed=1)
    assert torch.equal(again.b_phase, decoder.b_phase)


def marshall(n, k, wrong=()):
    "Independent words of random weights with Marshall's phases, but for the words `wrong`."
    decoder = SpinDecoder(SpinDecoder.Config(n, k, phase=True)).double()
    bits = torch.arange(2**k)[:, None] >> torch.arange(k - 1, -1, -1) & 1
    sign = 1 - 2.0 * (bits[:, ::2].sum(-1) % 2)
    sign[list(wrong)] *= -1
    with torch.no_grad():
        for weight in (decoder.W_phase, decoder.W_U):
            weight.zero_()
        decoder.b_U.copy_(torch.randn(2**k, generator=generator(1)))
        decoder.b_phase.copy_(sign)
    return decoder


def test_marshall_agreement_counts_weight():
    fraction, coherence = marshall_agreement(marshall(8, 4))
    assert math.isclose(fraction, 1) and math.isclose(coherence, 1)
    decoder = marshall(8, 4, wrong=[3])
    s = configurations(8, 0)
    words = (s.unflatten(-1, (2, 4)) * torch.tensor([8, 4, 2, 1])).sum(-1)
    p = (2 * decoder.log_amplitude(s).real).softmax(0)
    # a configuration is wrong if the word 0011 stands in it once
    wrong = p[(words == 3).sum(-1) == 1].sum().item()
    fraction, coherence = marshall_agreement(decoder)
    assert math.isclose(fraction, 1 - wrong, rel_tol=1e-6)
    assert math.isclose(coherence, 1 - 2 * wrong, rel_tol=1e-6)


def test_marshall_signs_lower_the_energy_of_equal_amplitudes():
    ring = HaldaneShastry(8)
    plain = SpinDecoder(SpinDecoder.Config(8, 4)).double()
    with torch.no_grad():
        for weight in (plain.W_U, plain.b_U):
            weight.zero_()
    signed = marshall(8, 4)
    with torch.no_grad():
        signed.b_U.zero_()
    assert exact_energy_of(signed, ring) < exact_energy_of(plain, ring) - 5


def test_magnetization_squared():
    s = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 0]])
    found = magnetization_squared(s)
    assert found.value == (0 + 4 + 16 + 0) / 4 and found.error > 0


def test_the_mask_keeps_the_sector_and_the_ring_is_found():
    ring = ModifiedHaldaneShastry(8)
    decoder = SpinDecoder(SpinDecoder.Config(8, 4, magnetization=0))
    vmc = VMC(decoder, ring, samples=128, lr=0.05, shift=1e-3)
    vmc.run(60)
    assert magnetization_squared(decoder.sample(500, generator(0))).value == 0
    E0 = ring.exact_energy()
    assert 0 < (exact_energy_of(decoder, ring) - E0) / abs(E0) < 1e-3


def test_the_experiment_reports_what_the_page_reads():
    found = rings((8, 8), 1, 1, 1, 1, 1, ())
    for name in ("mhs-8-free-0", "mhs-8-masked-0", "hs-8-annealed-0"):
        assert {"config", "energy", "S2", "exact_S2", "exact_error", "cpu"} <= set(
            found[name]
        )
        assert found[name]["exact_error"] > 0
    assert "marshall" in found["hs-8-annealed-0"] and any(
        "/W_phase" in key for key in found
    )
