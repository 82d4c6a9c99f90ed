"""The decoder is normalised, is sampled without bias, stays in its sector and says what is wrong."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from scipy.stats import chi2

from physattn.foundations.attention import Attention, KVCache
from physattn.foundations.files import save_tensors
from physattn.foundations.runs import generator, seeded
from physattn.tqs.chains import configurations
from physattn.tqs.decoder import POSITIONS, SpinDecoder, split_counts


def decoder(n_sites, seed=0, dtype=torch.float64, **options):
    "A decoder whose conditionals are far from uniform, biases included."
    model = SpinDecoder(SpinDecoder.Config(n_sites, **options), seed).to(dtype)
    with seeded(seed, "rough"), torch.no_grad():
        for p in model.parameters():
            p.mul_(2).add_(0.2 * torch.randn_like(p))
    return model.requires_grad_(False)


def chi_square(s, counts, weight):
    "The probability of a worse fit; configurations that should come rarely share a bin."
    n = s.shape[-1]
    codes = (s * 2 ** torch.arange(n - 1, -1, -1)).sum(-1)
    seen = torch.bincount(codes, counts.double(), minlength=2**n)
    expected = counts.sum() * weight
    assert not seen[expected == 0].any()
    rare = expected < 10
    seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    kept = expected > 0
    if kept.sum() == 1:
        return float(seen[kept] == expected[kept].round())
    statistic = ((seen - expected)[kept] ** 2 / expected[kept]).sum().item()
    return chi2.sf(statistic, int(kept.sum()) - 1)


# --- the amplitudes


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize("magnetization", [None, 0, -4])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_it_is_normalised(k, magnetization, phase, dtype, error):
    options = dict(bits_per_token=k, magnetization=magnetization, phase=phase)
    s = configurations(10)
    log_psi = decoder(10, dtype=dtype, **options).log_amplitude(s)
    assert log_psi.is_complex() == phase and log_psi.real.dtype == dtype
    weight = log_psi.exp().abs().double() ** 2
    assert abs(weight.sum() - 1) < error
    if magnetization is not None:
        outside = (1 - 2 * s).sum(-1) != magnetization
        assert (log_psi.real[outside] == -math.inf).all() and (weight[~outside] > 0).all()
        assert (log_psi.exp()[outside] == 0).all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_conditionals_look_back_only(positions):
    model = decoder(12, bits_per_token=2, positions=positions)
    s = torch.zeros(12, dtype=torch.long)
    for word in range(6):
        other = s.clone()
        other[2 * word] = 1
        moved = model.conditional_logits(s) != model.conditional_logits(other)
        assert moved.any(-1).tolist() == [i > word for i in range(6)]


def test_absolute_positions_are_what_their_names_say():
    def vectors(positions):
        model = decoder(40, bits_per_token=2, positions=positions, edge=3)
        return None if model.pos is None else model.pos(0, 20)

    assert vectors("none") is None and len(vectors("learned").unique(dim=0)) == 20
    edges = vectors("edges")
    assert len(edges.unique(dim=0)) == 7 and torch.equal(edges[3], edges[16])
    angle = 5 / 10000 ** (6 / 16)
    assert torch.allclose(
        vectors("sinusoidal")[5, 6:8].double(),
        torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64),
        atol=1e-6,
    )


def test_the_first_word_follows_a_start_word_of_its_own():
    model = decoder(6, bits_per_token=2)
    words = model.tokens(configurations(6))
    assert (model.inputs(words)[:, 0] == 4).all() and words.max() == 3
    before = model.conditional_logits(torch.zeros(6))[0]
    model.W_E[:4] += 1
    assert torch.equal(model.conditional_logits(torch.zeros(6))[0], before)
    model.W_E[4] += torch.arange(16) / 16
    assert not torch.equal(model.conditional_logits(torch.zeros(6))[0], before)


def test_words_and_spins_are_two_spellings():
    model, s = decoder(12, bits_per_token=4), configurations(12)
    assert torch.equal(model.spins(model.tokens(s)), s)
    assert model.tokens(torch.tensor([1, 0, 0, 0, 0, 0, 1, 1] + 4 * [0])).tolist() == [
        8,
        3,
        0,
    ]


def test_phases_are_a_sum_over_words_and_leave_the_moduli():
    model, s = decoder(8, bits_per_token=2, phase=True), configurations(8)
    psi = model.log_amplitude(s)
    words = model.tokens(s)
    raw = model.residual(model.inputs(words)) @ model.W_phase + model.b_phase
    raw = raw.gather(-1, words[..., None])[..., 0]
    assert torch.allclose(psi.imag, (math.pi * raw / (1 + raw.abs())).sum(-1))
    assert psi.imag.std() > 0.1
    model.W_phase.mul_(-1), model.b_phase.mul_(-1)
    assert torch.allclose(model.log_amplitude(s), psi.conj())


def test_any_batch_shape_and_single_configurations():
    model = decoder(6, bits_per_token=3, phase=True, magnetization=0)
    s = model.sample(12, generator(0))
    log_psi, logits = model.log_amplitude(s), model.conditional_logits(s)
    assert torch.equal(model.log_amplitude(s.view(3, 4, 6)), log_psi.view(3, 4))
    assert torch.equal(model.conditional_logits(s.view(3, 4, 6)), logits.view(3, 4, 2, 8))
    assert torch.allclose(model.log_amplitude(s[0]), log_psi[0])
    assert torch.allclose(model(s[0].bool()), log_psi[0])


def test_gradients_per_sample_and_outside_the_sector_are_finite():
    model = SpinDecoder(SpinDecoder.Config(6, 2, magnetization=2))
    s = configurations(6)
    parameters = dict(model.named_parameters())

    def log_psi(p, s):
        return torch.func.functional_call(model, p, (s[None],))[0]

    rows = torch.func.vmap(torch.func.grad(log_psi), (None, 0))(parameters, s)
    assert all(g.isfinite().all() for g in rows.values())
    model.log_amplitude(s[5]).backward()
    assert torch.allclose(rows["W_U"][5], model.W_U.grad, atol=1e-6)


def test_the_even_form_is_the_mean_of_both_mirror_images():
    model, s = decoder(8, bits_per_token=2), configurations(8)
    weight, even = (model.log_amplitude(s, even=e).mul(2).exp() for e in (False, True))
    assert torch.allclose(even, (weight + weight.flip(0)) / 2)


# --- samples


@pytest.mark.parametrize(
    "options",
    [
        dict(bits_per_token=1),
        dict(bits_per_token=2),
        dict(bits_per_token=5, phase=True),
        dict(bits_per_token=2, magnetization=2),
        dict(bits_per_token=5, magnetization=0),
        dict(bits_per_token=1, magnetization=-10),
    ],
)
def test_both_samplers_are_unbiased(options):
    model = decoder(10, **options)
    weight = model.log_amplitude(configurations(10)).exp().abs() ** 2
    n = 30_000
    s = model.sample(n, generator(1), batch=7_000)
    assert s.shape == (n, 10) and not s.is_floating_point()
    assert chi_square(s, torch.ones(n), weight) > 1e-3
    different, counts = model.sample_unique(n, generator(2))
    assert counts.sum() == n and counts.min() >= 1 and not counts.is_floating_point()
    assert len(different.unique(dim=0)) == len(different)
    assert chi_square(different, counts, weight) > 1e-3
    wrong = weight.sqrt() / weight.sqrt().sum()
    if options.get("magnetization") != -10:
        assert chi_square(s, torch.ones(n), wrong) < 1e-6


def test_multiplicities_vary_as_those_of_independent_samples():
    model = decoder(4)
    weight = model.log_amplitude(configurations(4)).mul(2).exp()
    rng, counts = generator(3), torch.zeros(400, 16)
    for row in counts:
        s, c = model.sample_unique(100, rng)
        row[(s * torch.tensor([8, 4, 2, 1])).sum(-1)] = c.float()
    expected = 100 * (weight.diag() - torch.outer(weight, weight))
    error = (expected.diag().outer(expected.diag()) + expected**2).div(400).sqrt()
    often = weight > 0.05
    assert often.sum() >= 3
    assert (
        (counts.T.cov() - expected)
        .abs()[often][:, often]
        .lt(5 * error[often][:, often])
        .all()
    )


def test_counts_are_split_to_the_last_one():
    p = torch.rand(300, 8, generator=generator(4), dtype=torch.float64) ** 3
    p[:100, :4], p[100:200, 4:], p[200:, ::2] = 0, 0, 0
    n = torch.randint(1, 1000, (300,), generator=generator(5)).double()
    split = split_counts(n, p / p.sum(-1, keepdim=True), generator(6))
    assert torch.equal(split.sum(-1), n) and not split[p == 0].any() and split.min() == 0


def test_samples_depend_on_the_generator_alone():
    model = decoder(12, bits_per_token=3)
    state = torch.random.get_rng_state()
    for draw in (model.sample, lambda n, g: model.sample_unique(n, g)[0]):
        assert torch.equal(draw(64, generator(7)), draw(64, generator(7)))
    assert not torch.equal(model.sample(64, generator(7)), model.sample(64, generator(8)))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("clip", [None, 2])
def test_cached_conditionals_equal_the_uncached_ones(positions, clip):
    options = dict(clip=clip, positions=positions, edge=2, magnetization=0, phase=True)
    model = decoder(12, bits_per_token=2, **options)
    s = model.sample(40, generator(9))
    words = model.tokens(s)
    inputs, whole = model.inputs(words), model.log_conditionals(model.inputs(words))
    caches, down = model.caches(), torch.zeros(40, dtype=torch.long)
    for start, stop in ((0, 1), (1, 4), (4, 5), (5, 6)):
        part = model.log_conditionals(inputs[:, start:stop], start, caches, down)
        down = s[:, : 2 * (stop - 1)].sum(-1)
        assert torch.allclose(part, whole[:, start:stop], atol=1e-12)
    half = model.conditional_logits(s).log_softmax(-1) / 2
    assert torch.allclose(half, whole.real, atol=1e-13)


def test_a_cache_follows_the_sequences_selected():
    with seeded(0):
        layer, x = Attention(8, 2, causal=True, clip=2), torch.randn(3, 6, 8)
    index, cache = torch.tensor([2, 0, 0, 1, 2]), KVCache(6)
    with torch.no_grad():
        layer(x[:, :4], cache)
        cache.select(index)
        assert torch.allclose(layer(x[index, 4:], cache), layer(x[index])[:, 4:], atol=1e-6)
    KVCache(3).select(index)


# --- growing


@pytest.mark.parametrize(
    "positions, kept", [("edges", 7), ("sinusoidal", 10), ("learned", 10), ("none", 10)]
)
@pytest.mark.parametrize("longer", [True, False])
def test_resize_keeps_the_conditionals_of_words_that_keep_their_place(
    positions, kept, longer
):
    lengths = (20, 34) if longer else (34, 20)
    model = decoder(lengths[0], bits_per_token=2, positions=positions, edge=3)
    model.about = {"trained": "never"}
    other = model.resize(lengths[1])
    assert other.config.n_sites == lengths[1] and other.about == model.about
    assert other.W_E.dtype == torch.float64
    s = decoder(34).sample(20, generator(10))
    old, new = (
        m.conditional_logits(s[:, : m.config.n_sites])[:, :10] for m in (model, other)
    )
    same = torch.isclose(old, new, atol=1e-12).all(-1).all(0)
    assert same.tolist() == [i < kept for i in range(10)]
    other.W_U.data.zero_()
    assert model.W_U.abs().sum() > 0


def test_new_learned_positions_repeat_the_last_old_one():
    model = decoder(6, positions="learned")
    assert torch.equal(model.resize(9).pos.W, model.pos.W[[0, 1, 2, 3, 4, 5, 5, 5, 5]])


def test_resize_takes_the_sector_along_and_refuses_an_impossible_chain():
    grown = decoder(10, magnetization=0).resize(16)
    assert (grown.sample(50, generator(11)).sum(-1) == 8).all()
    with pytest.raises(ValueError, match="magnetization = 1 does not exist for 12 spins"):
        decoder(11, magnetization=1).resize(12)
    with pytest.raises(ValueError, match="bits_per_token = 5 does not divide n_sites = 12"):
        decoder(10, bits_per_token=5).resize(12)


# --- files and bad input


def test_a_decoder_comes_back_from_disk(tmp_path):
    model = decoder(10, bits_per_token=2, positions="learned", phase=True, magnetization=2)
    again = SpinDecoder.load(model.save(tmp_path / "decoder"))
    s = model.sample(20, generator(12))
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again.log_amplitude(s), model.log_amplitude(s))


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and len(text) < 400


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(bits_per_token=3), "bits_per_token = 3 does not divide n_sites = 10"),
        (dict(bits_per_token=0), "bits_per_token = 0 makes no dictionary"),
        (dict(magnetization=1), "magnetization = 1 does not exist for 10 spins"),
        (dict(magnetization=12), "magnetization = 12 does not exist for 10 spins"),
        (dict(positions="polar"), "positions = 'polar' is unknown: choose from edges"),
        (dict(edge=-1), "edge = -1 is no distance"),
        (dict(clip=-1), "clip = -1 is no distance"),
    ],
)
def test_a_config_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        SpinDecoder(SpinDecoder.Config(10, **options))
    assert one_sentence(error)


def test_bad_input_gets_one_sentence():
    model, phased = decoder(10), decoder(10, phase=True)
    s = torch.zeros(3, 10)
    for call, message in (
        (lambda: model.log_amplitude(s[:, 1:]), "s has 9 spins and the decoder writes 10"),
        (lambda: model.log_amplitude(1 - 2 * s.add(1)), "something else than bits"),
        (lambda: model.sample(0, generator(0)), "n = 0 gives no samples"),
        (lambda: model.sample(5, generator(0), batch=0), "batch = 0 gives no samples"),
        (lambda: model.sample_unique(-1, generator(0)), "n = -1 gives no samples"),
        (lambda: phased.log_amplitude(s, even=True), "even = True averages probabilities"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert one_sentence(error)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    path = decoder(10, bits_per_token=2).save(tmp_path / "a")
    file = path.with_suffix(".safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or cut short") as error:
        SpinDecoder.load(path)
    assert one_sentence(error)
    file.write_bytes(whole)
    decoder(10).save(tmp_path / "b")
    about = json.loads((tmp_path / "b.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="describes another model") as error:
        SpinDecoder.load(path)
    assert one_sentence(error)


def test_weights_of_another_config_are_refused(tmp_path):
    model, other = decoder(10, bits_per_token=2), decoder(10, n_layers=1)
    about = {"model": "SpinDecoder", "config": asdict(other.config), "about": {}}
    save_tensors(tmp_path / "c.safetensors", model.state_dict(), about)
    with pytest.raises(ValueError, match="do not fit a SpinDecoder") as error:
        SpinDecoder.load(tmp_path / "c")
    assert "\n" not in str(error.value)
