"""The one-layer classifier of the chapter on quantum-friendly normalisation, its training, and the claim."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from physattn.foundations.experiments import recall, reproduce
from physattn.quantum.claim import CLAIM, VARIANTS, build, cluster_bootstrap, measure
from physattn.quantum.classifier import (
    PRESETS,
    OneLayer,
    Rotary,
    Training,
    attention_cost,
    auc,
    head_forms,
    predict,
    set_spread,
    train,
)
from physattn.quantum.data import Table, frames, generated_sequences, tables
from physattn.quantum.normalized import check_norms, fold, normalize, shared_parameters

SMALL = OneLayer.Config(vocabulary=30, classes=3, d_model=16, n_heads=2, d_ff=24)
ALL = ("q", "k", "v", "o", "ffn")


def some_ids(n=5, length=9, vocabulary=30, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (n, length, 1), generator=rng)


def separable(n=120, length=8, seed=0):
    "Class 1 has tokens above 5, class 0 below, with a little overlap."
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    ids = (
        torch.randint(6, (1, n, length, 1), generator=rng) + 4 * labels[None, :, None, None]
    )
    return [Table(ids, labels, torch.arange(n))]


def test_rotary_is_orthogonal_and_relative():
    rotary = Rotary(8).double()
    at = torch.stack(
        [rotary(row.expand(70, 8)) for row in torch.eye(8, dtype=torch.float64)], 1
    )
    assert (torch.linalg.svdvals(at) - 1).abs().max() < 1e-6
    q, k = torch.randn(
        2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    scores = rotary(q.expand(70, 8)) @ rotary(k.expand(70, 8)).T
    for offset in (-9, 0, 4):
        line = scores.diagonal(offset)
        assert (line - line[0]).abs().max() < 1e-4 and line[0].abs() > 1e-6
    # as complex numbers: plane i turns by position * base^(-i / planes)
    pairs = torch.complex(q[:4], q[4:]) * torch.exp(
        1j * 7 * 10_000.0 ** (-torch.arange(4) / 4)
    )
    expected = torch.cat([pairs.real, pairs.imag])
    assert torch.allclose(rotary(q.expand(70, 8))[7], expected.to(q), atol=1e-5)


def test_the_layer_is_that_of_pytorch():
    "With multiplier 1/sqrt(d_head) and no rotation it is nn.TransformerEncoderLayer."
    model = OneLayer(replace(SMALL, pool="none"), seed=1)
    model.rotary = nn.Identity()
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        own = (model.q_proj.weight, model.k_proj.weight, model.v_proj.weight)
        layer.self_attn.in_proj_weight.copy_(torch.cat(own))
        layer.self_attn.out_proj.load_state_dict(
            {"weight": model.out_proj.weight, "bias": torch.zeros(16)}
        )
        for ours, theirs in (
            ("fc1", "linear1"),
            ("fc2", "linear2"),
            ("ln1", "norm1"),
            ("ln2", "norm2"),
        ):
            getattr(layer, theirs).load_state_dict(getattr(model, ours).state_dict())
    ids = some_ids()
    s = F.normalize(F.embedding(ids[..., 0], model.embed.weight), dim=-1)
    assert torch.allclose(model(ids), model.classify(layer(s)), atol=1e-5)


def test_every_matrix_matters_in_every_pool():
    "The output projection too, which the source never applies."
    for pool in ("mean", "cls", "none"):
        model, ids = OneLayer(replace(SMALL, pool=pool)), some_ids()
        set_spread(model, 0.5)
        model(ids).square().sum().backward()
        for name, p in model.named_parameters():
            if p.ndim == 2 or name == "log_multiplier":
                assert p.grad.abs().max() > 1e-7, (pool, name)


def test_dropout_rests_in_evaluation_and_models_share_nothing():
    model, other = (
        OneLayer(replace(SMALL, dropout=0.5)),
        OneLayer(replace(SMALL, dropout=0.5)),
    )
    ids = some_ids()
    assert not torch.equal(model(ids), model(ids))
    model.eval(), other.eval()
    assert torch.equal(model(ids), model(ids)) and torch.equal(model(ids), other(ids))
    assert shared_parameters(model, other) == []


def test_uniform_attention_is_blind_to_order_and_softmax_is_not():
    ids = some_ids()
    for attention, same in (("uniform", True), ("softmax", False)):
        model = OneLayer(replace(SMALL, attention=attention))
        set_spread(model, 1.0)
        assert torch.allclose(model(ids), model(ids.flip(1)), atol=1e-5) == same


def test_frobenius_of_one_is_nearly_uniform_at_the_usual_temperature():
    model, ids = OneLayer(SMALL), some_ids()
    normalize(model, "frobenius", where=ALL)
    _, cache = model.run_with_cache(ids)
    assert (cache["hook_pattern"] * ids.shape[1] - 1).abs().max() < 0.1


@pytest.mark.parametrize("unit_rows", [True, False])
@pytest.mark.parametrize("kind", [None, "spectral", "frobenius"])
def test_set_spread_gives_the_spread(kind, unit_rows):
    model = OneLayer(OneLayer.Config(3000, 2, unit_rows=unit_rows, embed_std=0.7))
    if kind:
        normalize(model, kind, where=ALL)
    set_spread(model, 0.4)
    model.rotary = nn.Identity()
    ids = torch.arange(1000)[None, :, None]
    _, cache = model.run_with_cache(ids, names_filter="hook_scores")
    assert torch.allclose(cache["hook_scores"].std((0, 2, 3)), torch.tensor(0.4), rtol=0.08)


def test_tau_bounds_every_logit_and_is_what_it_says():
    model = OneLayer(replace(SMALL, orthogonal=True))
    set_spread(model, 2.0)
    model.log_multiplier.data[1] += 0.5  # heads that differ
    ids = some_ids(1)
    cost = attention_cost(model, [Table(ids[None], torch.zeros(1), torch.zeros(1))])
    s = model.inputs(ids)[0].detach()
    assert cost["S squared"] == pytest.approx(np.linalg.norm(s, 2) ** 2, rel=1e-4)
    q, k = (p.weight.detach().numpy() for p in (model.q_proj, model.k_proj))
    by_head = [
        model.multiplier[h].item() * np.linalg.norm(q[i], 2) * np.linalg.norm(k[i], 2)
        for h, i in enumerate((slice(0, 8), slice(8, 16)))
    ]
    assert cost["tau head"] == pytest.approx(max(by_head) * cost["S squared"], rel=1e-4)
    _, cache = model.run_with_cache(ids, names_filter="hook_scores")
    assert cache["hook_scores"].abs().max() <= cost["tau head"] <= cost["tau"] * (1 + 1e-5)


def test_an_orthogonal_start_buys_its_spread_at_the_lower_bound():
    ratio = {}
    for orthogonal in (True, False):
        model = OneLayer(OneLayer.Config(10, 2, orthogonal=orthogonal), seed=3)
        set_spread(model, 0.3)
        q, k = (
            torch.linalg.matrix_norm(p.weight.unflatten(0, (4, -1)), 2)
            for p in (model.q_proj, model.k_proj)
        )
        ratio[orthogonal] = model.multiplier * q * k / (0.3 * 48 / 12**0.5)
    assert torch.allclose(ratio[True], torch.ones(4), rtol=1e-4)
    assert (ratio[False] > 1.5).all()
    form = head_forms(model)[1].detach().numpy()
    rows = slice(12, 24)
    q, k = (p.weight.detach().numpy()[rows] for p in (model.q_proj, model.k_proj))
    assert np.allclose(form, q.T @ k, atol=1e-6)


def test_auc_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=rng)
    p = torch.softmax(
        torch.randn(200, 3, generator=rng) + 2 * F.one_hot(labels), -1
    ).double()
    assert auc(p, labels) == pytest.approx(
        metrics.roc_auc_score(labels, p, multi_class="ovr")
    )
    two = (p[:, :2] / p[:, :2].sum(1, keepdim=True))[labels < 2]
    assert auc(two, labels[labels < 2]) == pytest.approx(
        metrics.roc_auc_score(labels[labels < 2], two[:, 1])
    )


def test_training_learns_and_keeps_the_norms():
    examples, dev = separable(), separable(seed=1)
    for kind in ("spectral", "frobenius"):
        model = OneLayer(replace(SMALL, classes=2), seed=1)
        normalize(model, kind, where=ALL)
        set_spread(model, 0.3)
        run = train(model, examples, dev, Training(1e-2, 8, 8, batch=16), seed=1)
        assert check_norms(model, kind=kind, where=ALL) == pytest.approx(1, rel=1e-5)
        logp, labels, _ = predict(model, dev)
        assert (logp[0].argmax(-1) == labels).double().mean() > 0.95
        assert len(run.history["dev"]) == 8 and not model.training
        fold(model)
        assert torch.allclose(predict(model, dev)[0], logp, atol=1e-5)


def test_training_resumes_to_the_same_bits(tmp_path):
    examples, dev = separable(), separable(seed=1)

    def fresh():
        model = OneLayer(replace(SMALL, classes=2), seed=1)
        normalize(model, "spectral", where=ALL)
        return model

    budget, whole, broken = Training(1e-2, 4, 4, batch=16), fresh(), fresh()
    train(whole, examples, dev, budget, seed=1)

    class Power(Exception):
        pass

    calls = []

    def cut(module, inputs):
        calls.append(module.training)
        if sum(calls) == 19:
            raise Power

    hook = broken.register_forward_pre_hook(cut)
    path = tmp_path / "run.safetensors"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Power):
        from physattn.quantum import classifier

        class Eager(classifier.Run):
            def __init__(self, *args, **options):
                super().__init__(*args, **options | {"every": 0.0})

        patch.setattr(classifier, "Run", Eager)
        train(broken, examples, dev, budget, seed=1, path=path)
    hook.remove()
    again = fresh()
    train(again, examples, dev, budget, seed=1, path=path)
    for a, b in zip(whole.state_dict().values(), again.state_dict().values()):
        assert torch.equal(a, b)


def test_training_stops_early_and_keeps_the_best_epoch():
    examples = separable()
    wrong = [replace(t, labels=1 - t.labels) for t in separable(seed=1)]
    model = OneLayer(replace(SMALL, classes=2), seed=1)
    run = train(model, examples, wrong, Training(1e-2, 50, 3, batch=16), seed=1)
    losses = [loss for _, loss in run.history["dev"]]
    assert len(losses) < 50 and losses.index(min(losses)) == len(losses) - 4
    with torch.no_grad():
        kept = F.cross_entropy(model(wrong[0].ids[0]), wrong[0].labels).item()
    assert kept == pytest.approx(min(losses), rel=1e-5)


def test_the_presets_of_the_source():
    source, tuning = PRESETS["source"], PRESETS["source-fine-tuning"]
    assert (source.lr, source.epochs, source.patience) == (8e-4, 100, 10)
    assert (tuning.lr, tuning.epochs, tuning.patience) == (2e-4, 200, 25)
    assert source.weight_decay == tuning.weight_decay == 0.01
    assert (source.batch, tuning.batch) == (32, 128)


def test_variants_start_from_the_same_weights():
    models = {
        name: build(VARIANTS[name], 257, 2, "mean", seed=4)
        for name in ("unnormalised", "spectral", "frobenius", "uniform")
    }
    first = models["unnormalised"]
    for model in models.values():
        assert torch.equal(model.embed.weight, first.embed.weight)
    fold(models["spectral"])
    ratio = models["spectral"].v_proj.weight / first.v_proj.weight
    assert ratio.std() < 1e-4 * ratio.mean()
    assert check_norms(models["spectral"], where=ALL) == pytest.approx(1, rel=1e-5)
    assert models["uniform"].config.attention == "uniform"


def test_cluster_bootstrap_against_a_closed_form():
    rng = np.random.default_rng(0)
    # clusters of ten copies: the error is that of the clusters, not of the examples
    right = torch.tensor(np.repeat(rng.random(400) < 0.8, 10))
    labels = torch.tensor(np.repeat(np.arange(400) % 2, 10))
    groups = np.repeat(np.arange(400), 10)
    grouped = cluster_bootstrap(right, labels, groups)
    single = cluster_bootstrap(right, labels, np.arange(4000))
    assert grouped.error == pytest.approx(math.sqrt(0.16 / 400), rel=0.15)
    assert grouped.error == pytest.approx(math.sqrt(10) * single.error, rel=0.1)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: OneLayer(replace(SMALL, n_heads=3)), "n_heads = 3"),
        (lambda: Rotary(5), "d_head = 5"),
        (lambda: set_spread(OneLayer(SMALL), 0.0), "spread = 0.0"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_the_quick_claim_runs_and_shares_no_key_with_the_full_one():
    for name in ("promoters", "pos"):
        quick = reproduce(f"quantum/{name}")
        assert not set(quick.values) & set(recall(f"quantum/{name}").values)
        found = next(iter(quick.values.values()))
        assert set(found) == {*CLAIM, "sizes"}


def test_the_stored_model_is_the_one_that_was_measured():
    stored = recall("quantum/promoters")
    config = OneLayer.Config(4**4 + 1, 2)
    model = OneLayer(config)
    model.load_state_dict(stored.weights("spectral"))
    assert check_norms(model, where=ALL) == pytest.approx(1, rel=1e-4)
    made = generated_sequences()
    test = tables(frames(made.inputs), made.labels, np.arange(len(made)))
    scores, right = measure(copy.deepcopy(model), test)
    assert scores["auc, all frames"] > 0.65  # rich in C and G, as promoters are
    assert right.shape == (len(made),)
