"""Each saliency is what its definition says, sample by sample, and the ground truth is the truth."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from physattn.foundations.experiments import reproduce
from physattn.foundations.runs import generator, seeded
from physattn.tqs.chains import ModifiedHaldaneShastry, TransverseFieldIsing, configurations
from physattn.tqs.decoder import SpinDecoder
from physattn.tqs.saliency import (
    METHODS,
    RINGS,
    TARGETS,
    NeighbourRing,
    agreement,
    attention_saliency,
    cascade,
    conditional_information,
    copier,
    flip_saliency,
    ground_state_probabilities,
    input_saliency,
    integrated_attention,
    jensen_shannon,
    probabilities,
    saliency,
)

PLAYER = Path(__file__).parents[1] / "book/_static/decoder.js"


def decoder(n_sites, seed=0, dtype=torch.float64, **options):
    "A decoder whose conditionals are far from uniform."
    model = SpinDecoder(SpinDecoder.Config(n_sites, **options), seed).to(dtype)
    with seeded(seed, "rough"), torch.no_grad():
        for p in model.parameters():
            p.mul_(2).add_(0.2 * torch.randn_like(p))
    return model


def table(model):
    "The probabilities of all configurations, as an array with an axis per spin."
    n = model.config.n_sites
    with torch.no_grad():
        p = (2 * model(configurations(n)).real).exp()
    return p.double().numpy().reshape([2] * n)


def conditional(p, s, word, k):
    "p(word | spins before it in s) by sums over the table; nan where those cannot occur."
    joint = p[tuple(s[: k * word])].reshape(2**k, -1).sum(-1)
    with np.errstate(invalid="ignore"):
        return joint / joint.sum()


# The truth


def test_the_information_is_the_mean_log_ratio_of_conditionals():
    n = 6
    p = torch.rand(2**n, generator=generator(0), dtype=torch.float64) ** 3
    p[5] = 0.0
    p /= p.sum()
    shaped = p.numpy().reshape([2] * n)
    for k in (1, 2, 3):
        found = conditional_information(p, k)
        assert found.shape == (n, n // k)
        for j in range(n):
            for i in range(n // k):
                expected = 0.0
                for s in np.ndindex(*shaped.shape):
                    if j >= k * i or shaped[s] == 0:
                        continue
                    word = int("".join(map(str, s[k * i : k * (i + 1)])), 2)
                    t = s[:j] + (1 - s[j],) + s[j + 1 :]
                    both = sum(shaped[x[: k * i]].reshape(2**k, -1).sum(-1) for x in (s, t))
                    kept = conditional(shaped, s, i, k)[word]
                    expected += shaped[s] * math.log(kept / (both / both.sum())[word])
                assert abs(found[j, i] - expected) < 1e-12


def test_a_classical_ising_chain_tells_only_its_neighbour():
    # Transfer matrix: s_i given s_<i depends on s_{i-1} alone, at every temperature.
    n, K = 8, 0.7
    z = 1 - 2 * configurations(n).double()
    p = (K * (z[:, 1:] * z[:, :-1]).sum(-1)).exp()
    found = conditional_information(p / p.sum())
    q = 1 / (1 + math.exp(-2 * K))
    capacity = math.log(2) + q * math.log(q) + (1 - q) * math.log(1 - q)
    assert abs(found[0, 1] - capacity) < 1e-12
    assert found.diagonal(2).max() < 1e-12
    # Further inside s_{j-1} is known, and the chain rule takes its share away.
    two_steps = q * q + (1 - q) * (1 - q)
    entropy = [-x * math.log(x) - (1 - x) * math.log(1 - x) for x in (two_steps, q)]
    assert (found.diagonal(1)[1:] - (entropy[0] - entropy[1])).abs().max() < 1e-12


def test_the_sum_of_a_sector_has_no_distance():
    s = configurations(8)
    p = (s.sum(-1) == 4).double()
    found = conditional_information(p / p.sum())
    for i in range(1, 8):
        assert found[:i, i].std(unbiased=False) < 1e-12
    assert found[0, 7] > found[0, 6] > found[0, 5] > 0


@pytest.mark.parametrize("ring", [NeighbourRing(8), ModifiedHaldaneShastry(8)])
def test_ground_state_probabilities_are_those_of_dense_diagonalisation(ring):
    s = configurations(8)
    psi = np.linalg.eigh(ring.matrix(s).toarray())[1][:, 0]
    found = ground_state_probabilities(ring)
    assert np.abs(found.numpy() - psi**2).max() < 1e-10


def test_the_neighbour_ring_is_heisenberg():
    assert abs(NeighbourRing(4).exact_energy() + 8) < 1e-9
    # Bonner and Fisher (1964): E/(4 N) of the antiferromagnetic ring of ten spins.
    assert abs(NeighbourRing(10).exact_energy() / 40 + 0.4515446) < 1e-6


# Flips


def test_jensen_shannon_is_that_of_scipy_and_bounded():
    p = torch.rand(50, 8, generator=generator(0), dtype=torch.float64)
    p[:, 0] = 0
    p[:10, :4] = 0
    q = p.flip(0).flip(1)
    p, q = (x / x.sum(-1, keepdim=True) for x in (p, q))
    expected = [jensenshannon(a, b) ** 2 for a, b in zip(p.numpy(), q.numpy())]
    found = jensen_shannon(p.log(), q.log())
    assert np.allclose(found, expected, atol=1e-12)
    one = torch.eye(2).log()
    assert abs(jensen_shannon(one[0], one[1]) - math.log(2)) < 1e-15
    assert jensen_shannon(one[0], one[0]) == 0


@pytest.mark.parametrize(
    "k, options",
    [
        (1, {}),
        (2, dict(magnetization=0)),
        (3, dict(phase=True)),
        (6, {}),
        (1, dict(magnetization=2)),
    ],
)
def test_a_flip_changes_conditionals_as_the_table_says(k, options):
    model = decoder(6, bits_per_token=k, **options)
    p, s = table(model), model.sample(12, generator(0))
    found = flip_saliency(model, s, samples_per_call=5)
    assert found.shape == (12, 6, 6 // k)
    for b, row in enumerate(s.tolist()):
        for j in range(6):
            flipped = row[:j] + [1 - row[j]] + row[j + 1 :]
            for i in range(6 // k):
                if j >= k * i:
                    assert found[b, j, i] == 0
                    continue
                before, after = (conditional(p, x, i, k) for x in (row, flipped))
                if np.isnan(after).any():
                    assert found[b, j, i].isnan()
                else:
                    assert abs(found[b, j, i] - jensenshannon(before, after) ** 2) < 1e-9


def test_the_mean_flip_is_the_information_where_both_values_are_likely():
    text = copier(9, 3, 0.8)
    p = probabilities(text)
    mean = (p[:, None, None] * flip_saliency(text, configurations(9))).sum(0)
    information = conditional_information(p)
    assert torch.allclose(mean[:3], information[:3], atol=1e-5)
    # A later spin is half known from the one that it repeats.
    assert (mean.diagonal(3)[3:] > information.diagonal(3)[3:] + 0.01).all()


# Gradients


def numeric(model, s, target, name, index, h=1e-5):
    "Derivative of all numbers of one sample when one entry at a hook point is moved."
    values = []
    for step in (h, -h):

        def move(x, hook, step=step):
            x = x.clone()
            x[index] += step
            return x

        with torch.no_grad(), model.hooks([(name, move)]):
            values.append(TARGETS[target](model.conditional_logits(s), model.tokens(s)))
    return (values[0] - values[1])[0] / (2 * h)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("k, m", [(1, None), (2, 0), (3, None)])
def test_input_x_gradient_is_that_of_difference_quotients(target, k, m):
    model = decoder(6, bits_per_token=k, n_heads=2, magnetization=m)
    s = model.sample(3, generator(0))
    found, T = input_saliency(model, s, target)[1], 6 // k
    X = model.W_E[model.inputs(model.tokens(s[1:2]))][0].detach()
    for j in range(T - 1):
        rows = [
            numeric(model, s[1:2], target, "hook_embed", (0, j + 1, c)) for c in range(8)
        ]
        expected = (torch.stack(rows, -1) * X[j + 1]).norm(dim=-1)
        assert torch.allclose(found[j], expected, atol=1e-7)
    assert not found[T - 1].any() and not found.tril().any()


def test_targets_differ_by_what_saturates():
    model = decoder(6, bits_per_token=2)
    s = model.sample(20, generator(0))
    p = TARGETS["word"](model.conditional_logits(s), model.tokens(s)).exp().detach()
    word, odds = (input_saliency(model, s, x) for x in ("word", "odds"))
    assert torch.allclose(word, (1 - p)[:, None] * odds)
    likeliest = p == model.conditional_logits(s).softmax(-1).amax(-1)
    most = input_saliency(model, s, "likeliest")
    assert torch.allclose(most.mT[likeliest], word.mT[likeliest])
    assert not torch.allclose(most, word)


@pytest.mark.parametrize("k, m", [(1, None), (3, None), (2, 0)])
def test_integrated_attention_is_complete_without_the_relu(k, m):
    config = SpinDecoder.Config(6, bits_per_token=k, magnetization=m, n_layers=3)
    model = SpinDecoder(config, seed=1).double()
    s = model.sample(5, generator(0))
    silent = [
        (f"blocks.{i}.attn.hook_pattern", lambda A, hook: torch.zeros_like(A))
        for i in range(3)
    ]
    values = []
    for hooks in ([], silent):
        with torch.no_grad(), model.hooks(hooks):
            values.append(TARGETS["odds"](model.conditional_logits(s), model.tokens(s)))
    parts = integrated_attention(model, s, nodes=64, positive=False)
    assert parts.shape == (5, 3, 4, 6 // k, 6 // k, 6 // k)
    assert torch.allclose(parts.sum((1, 2, 4, 5)), values[0] - values[1], atol=1e-6)
    errors = []
    for nodes in (2, 8, 32):
        found = integrated_attention(model, s, nodes=nodes)
        assert (found >= 0).all()
        exact = integrated_attention(model, s, nodes=64)
        errors.append((found - exact).norm() / exact.norm())
    assert errors[2] < 0.02 and errors[2] < errors[1] < errors[0]


def test_attention_saliency_is_the_row_of_its_word():
    model = decoder(4, n_heads=2, n_layers=2)
    s, nodes = model.sample(4, generator(0)), 3
    found = attention_saliency(model, s, nodes=nodes, mean=False, samples_per_call=3)
    assert found.shape == (4, 2, 2, 4, 4)
    mean = attention_saliency(model, s, nodes=nodes)
    assert torch.allclose(mean, found.mean((1, 2)))
    names = [f"blocks.{i}.attn.hook_pattern" for i in range(2)]
    A = [
        model.run_with_cache(s[2:3], names_filter=name)[1][name].detach() for name in names
    ]
    x, w = np.polynomial.legendre.leggauss(nodes)
    for layer, head, j, i in ((0, 1, 0, 2), (1, 0, 1, 2), (0, 0, 2, 3), (1, 1, 0, 3)):
        total = 0.0
        for a, b in zip((1 + x) / 2, w / 2):
            scale = [
                (name, lambda P, hook, value=a * value: value)
                for name, value in zip(names, A)
            ]
            with model.hooks(scale):
                row = numeric(model, s[2:3], "odds", names[layer], (0, head, i, j + 1))
            total += b * max(row[i].item(), 0.0)
        expected = A[layer][0, head, i, j + 1].item() * total
        assert abs(found[2, layer, head, j, i] - expected) < 1e-8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k, m", [(1, None), (4, None), (8, None), (2, 0)])
def test_saliencies_are_causal_per_sample_and_left_without_a_trace(method, k, m):
    model = decoder(8, bits_per_token=k, magnetization=m, dtype=torch.float32)
    s = model.sample(5, generator(0))
    found = saliency(model, s, method)
    assert found.shape == (5, 8 if method == "flip" else 8 // k, 8 // k)
    assert not found.requires_grad and all(p.grad is None for p in model.parameters())
    assert not (found < 0).any()
    alone = torch.cat([saliency(model, row[None], method) for row in s])
    assert torch.allclose(found, alone, atol=1e-5, equal_nan=True)
    sites = found if method == "flip" else found.repeat_interleave(k, 1)
    word = torch.arange(8) // k
    assert not sites[:, word[:, None] >= torch.arange(8 // k)].any()
    assert method == "flip" or found.isfinite().all()


# Sanity


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_the_copier_copies(lag):
    p = table(copier(7, lag, 0.7))
    for s in np.ndindex(*p.shape):
        same = sum(s[i] == s[i - lag] for i in range(lag, 7))
        expected = 0.5**lag * 0.7**same * 0.3 ** (7 - lag - same)
        assert abs(p[s] - expected) < 1e-5


def test_flips_and_attention_find_what_is_copied():
    text = copier(10, 3, 0.9)
    s = text.sample(100, generator(0))
    for method in ("flip", "attention"):
        seen = saliency(text, s, method).mean(0)
        assert seen.diagonal(3).sum() > (1 - 1e-6) * seen.sum()


def test_a_cascade_replaces_everything_once_from_above():
    model = decoder(6, n_layers=3, positions="learned")
    fresh = SpinDecoder(model.config, seed=9).state_dict()
    copies = cascade(model, seed=9)
    assert [name for name, _ in copies] == [
        "head",
        "block 2",
        "block 1",
        "block 0",
        "embeddings",
    ]
    before = model.state_dict()
    seen = set()
    for stage, copied in copies:
        now = copied.state_dict()
        changed = {key for key in now if not torch.equal(now[key], before[key])}
        place = stage.replace("block ", "blocks.") + "."
        for key in changed - seen:
            assert torch.allclose(now[key], fresh[key].double())
            assert key.startswith(
                {"head": ("W_U", "b_U", "ln_final"), "embeddings": ("W_E", "pos")}.get(
                    stage, place
                )
            )
        assert seen <= changed and changed > seen
        seen = changed
    assert seen == set(before)
    assert torch.equal(model.state_dict()["W_E"], before["W_E"])


def test_agreement_is_a_rank_correlation_of_the_pairs():
    x = torch.rand(5, 5, generator=generator(0)).triu(1)
    assert agreement(x, x.exp()) == pytest.approx(1) and agreement(x, -x) == pytest.approx(
        -1
    )
    assert agreement(x, x + torch.ones(5, 5).tril()) == pytest.approx(1)


# Bad input


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda d: saliency(d, torch.zeros(2, 4).long(), "gradient"),
            "method = 'gradient'",
        ),
        (lambda d: flip_saliency(d, torch.zeros(2, 6).long()), "6 spins"),
        (lambda d: flip_saliency(d, torch.zeros(4).long()), "shape (4,)"),
        (lambda d: attention_saliency(d, torch.full((1, 4), 2)), "bits"),
        (
            lambda d: input_saliency(d, torch.zeros(2, 4).long(), "logit"),
            "target = 'logit'",
        ),
        (lambda d: attention_saliency(d, torch.zeros(2, 4).long(), nodes=0), "nodes = 0"),
        (lambda d: probabilities(SpinDecoder(SpinDecoder.Config(21))), "n_sites = 21"),
        (lambda d: conditional_information(torch.ones(6) / 6), "shape (6,)"),
        (lambda d: conditional_information(torch.ones(8)), "its sum is 8"),
        (lambda d: conditional_information(torch.ones(8) / 8, 2), "does not divide"),
        (lambda d: copier(6, 6, 0.5), "lag = 6"),
        (lambda d: copier(6, 3, 1.0), "p = 1.0"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, words):
    with pytest.raises(ValueError, match=re.escape(words)) as told:
        call(SpinDecoder(SpinDecoder.Config(4)))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("method", METHODS)
def test_configurations_outside_the_sector_are_refused(method):
    model = SpinDecoder(SpinDecoder.Config(4, magnetization=0))
    with pytest.raises(ValueError, match="magnetization = 0"):
        saliency(model, torch.zeros(1, 4).long(), method)


# The figure that plays


def test_the_figure_in_the_page_knows_the_ground_states():
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    s = [
        [0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1],
        [0, 1] * 6,
        [1, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0],
    ]
    code = (
        f"require({json.dumps(str(PLAYER))}); const d = globalThis.physattnDecoder;"
        f"const s = {json.dumps(s)}; const told = {{}};"
        "for (const k in d.RINGS) { const L = d.beginnings(k);"
        "told[k] = [s.map(x => d.conditionals(L, x)), s.map(x => x.map((_, j) => d.changes(L, x, j)))]; }"
        "console.log(JSON.stringify(told))"
    )
    played = json.loads(
        subprocess.run(
            ["node", "-e", code], capture_output=True, text=True, check=True
        ).stdout
    )
    assert list(played) == list(RINGS)
    for name, (ups, changes) in played.items():
        p = ground_state_probabilities(RINGS[name](12)).numpy().reshape([2] * 12)
        for row, up, change in zip(s, ups, changes):
            expected = [conditional(p, row, i, 1) for i in range(12)]
            assert np.allclose(up, [x[0] for x in expected], atol=1e-7)
            for j in range(12):
                flipped = row[:j] + [1 - row[j]] + row[j + 1 :]
                for i in range(12):
                    after = conditional(p, flipped, i, 1)
                    if i <= j:
                        assert change[j][i] == 0
                    elif np.isnan(after).any():
                        assert change[j][i] is None
                    else:
                        found = jensenshannon(expected[i], after) ** 2
                        assert abs(change[j][i] - found) < 1e-6


# The experiment


def test_the_experiment_reports_maps_and_agreement():
    small = dict(seeds=2, n_sites=6, steps=2, lessons=2, samples=8)
    from physattn.tqs.saliency import locality

    out = locality(**small)
    assert out["copy-6"]["agreement"]["trained/information"].n == 2
    assert out["ising-6/block 0/attention"].shape == (2, 6, 6)
    model = SpinDecoder(SpinDecoder.Config(**out["ising-6"]["config"]))
    model.load_state_dict(
        {
            k.removeprefix("ising-6/weights/"): w
            for k, w in out.items()
            if "ising-6/weights" in k
        }
    )
    expected = out["ising-6/trained/information"][0]
    assert torch.allclose(
        conditional_information(probabilities(model)), expected, atol=1e-6
    )
    chain = TransverseFieldIsing(6, periodic=True)
    assert torch.allclose(
        out["ising-6/truth"], conditional_information(ground_state_probabilities(chain))
    )


@pytest.mark.slow
def test_the_quick_profile_runs():
    assert reproduce("tqs/saliency", "quick").values["ising-8"]["error"]
