"Norms of transformers: against SVDs by hand, against the models' own forward pass, and one sentence for bad input."

import json

import numpy as np
import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from physattn.foundations.runs import seeded  # noqa: E402
from physattn.quantum import norms  # noqa: E402
from physattn.quantum.norms import (  # noqa: E402
    FAMILIES,
    QUESTIONS,
    AlphaReport,
    alpha_report,
    forward,
    load,
    projections,
    read_texts,
    tokenize,
    watched,
)

_SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
)
#: Layouts beyond the families: groups of fused heads, and fused stacks with shared keys.
OTHERS = {
    "gpt_neox": _SMALL,
    "bloom": dict(hidden_size=32, n_layer=2, n_head=4),
    "falcon": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
    ),
    "phi3": _SMALL | {"num_key_value_heads": 2},
    "mpt": dict(d_model=32, n_heads=4, n_layers=2),
    "t5": dict(d_model=32, num_layers=2, num_heads=4, d_kv=16, d_ff=64),
    "distilbert": dict(dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "gpt_bigcode": dict(n_embd=32, n_layer=2, n_head=4),
}
TOKENS = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(0))


def build(name):
    if name in FAMILIES:
        model = load(name, random=True, seed=1)[0]
    else:
        tokens = dict(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        config = transformers.AutoConfig.for_model(name, **tokens, **OTHERS[name])
        with seeded(1):
            model = transformers.AutoModel.from_config(config).eval()
    # Weights of size one, and biases, so that every mistake is a large one.
    with seeded(2), torch.no_grad():
        for p in projections(model):
            for reader in {*p.readers}:
                reader.weight.normal_(0, 0.3)
                if getattr(reader, "bias", None) is not None:
                    reader.bias.normal_(0, 0.3)
    model.set_attn_implementation("eager")
    return model


def run(model):
    "Inputs, attention weights and what enters the output projections, by layer."
    found, S, contexts = projections(model), {}, {}
    outputs = ("out_proj", "c_proj", "o_proj", "dense", "o", "out_lin")
    for p in found:
        attention = model.get_submodule(p.name)
        # BERT keeps its output projection in the module above.
        if p.name.endswith(".self"):
            attention = model.get_submodule(p.name.removesuffix(".self") + ".output")
        last = next(getattr(attention, n) for n in outputs if hasattr(attention, n))
        last.register_forward_pre_hook(
            lambda _, args, i=p.layer: contexts.setdefault(i, args[0])
        )
    with watched(found, lambda i, side, x: S.setdefault((i, side), x)):
        out = forward(model, TOKENS, torch.ones_like(TOKENS), output_attentions=True)
    if model.config.is_encoder_decoder:
        kinds = {"encoder": out.encoder_attentions}
        kinds |= {"self": out.decoder_attentions, "cross": out.cross_attentions}
        count = dict.fromkeys(kinds, 0)
        weights = []
        for p in found:
            kind = "encoder" if p.name.startswith("encoder") else p.attention
            weights.append(kinds[kind][count[kind]])
            count[kind] += 1
    else:
        weights = out.attentions
    return found, S, weights, contexts


def heads(p, S, i):
    "q, k or v of every query head, (batch, heads, l, d_h)."
    return torch.einsum("bld,hed->bhle", S, p.by_head(i)) + p.biases_by_head(i)[:, None]


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_values_are_what_the_model_mixes(name):
    found, S, weights, contexts = run(build(name))
    assert len(found) == len(weights)
    for p in found:
        v = heads(p, S.get((p.layer, 1), S[p.layer, 0]), 2)
        mixed = (weights[p.layer] @ v).transpose(1, 2).flatten(2)
        assert torch.allclose(mixed, contexts[p.layer].view_as(mixed), atol=2e-5)


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "bart", "distilgpt", "gpt2", "gpt", "distilbert"]
)
def test_queries_and_keys_make_the_attention_of_the_model(name):
    found, S, weights, _ = run(build(name))
    for p in found:
        assert p.plain
        q, k = heads(p, S[p.layer, 0], 0), heads(p, S.get((p.layer, 1), S[p.layer, 0]), 1)
        logits = q @ k.mT / p.head_dim**0.5
        if "gpt" in name or (
            name == "bart" and "decoder" in p.name and p.attention == "self"
        ):
            later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        assert torch.allclose(logits.softmax(-1), weights[p.layer], atol=2e-5)


def rotate(x, base=10000.0):
    "Rotary positions of LLaMA, written from the formula."
    l, d = x.shape[-2:]
    angle = torch.arange(l)[:, None] / base ** (torch.arange(0, d, 2) / d)
    z = torch.complex(x[..., : d // 2], x[..., d // 2 :])
    z = z * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


@pytest.mark.parametrize("name", ["llama", "tinyllama", "mistral", "phi3"])
def test_rotated_queries_and_shared_keys_make_the_attention_of_the_model(name):
    found, S, weights, _ = run(build(name))
    assert found[0].n_kv_heads == {"llama": 4, "tinyllama": 1}.get(name, 2)
    for p in found:
        assert not p.plain
        q, k = (rotate(heads(p, S[p.layer, 0], i)) for i in (0, 1))
        logits = q @ k.mT / p.head_dim**0.5
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        ours = logits.masked_fill(later, -torch.inf).softmax(-1)
        assert torch.allclose(ours, weights[p.layer], atol=2e-5)


def test_cross_attention_reads_the_encoder():
    found, S, _, _ = run(build("bart"))
    cross = [p for p in found if p.attention == "cross"]
    assert len(cross) == 2 and len(found) == 6
    for p in cross:
        assert not torch.allclose(S[p.layer, 0], S[p.layer, 1], atol=1e-2)
    assert torch.equal(S[cross[0].layer, 1], S[cross[1].layer, 1])


@pytest.mark.parametrize("name", [*FAMILIES, "gpt_neox"])
def test_norms_are_those_of_singular_values(name):
    model = build(name)
    report = alpha_report(model, random=True, max_tokens=6)
    for p, layer in zip(projections(model), report.layers, strict=True):
        for W, found in zip(p.weights, (layer.W_q, layer.W_k, layer.W_v)):
            W = W.double().numpy()
            assert found.spectral == pytest.approx(np.linalg.svd(W)[1][0], rel=1e-9)
            assert found.frobenius == pytest.approx(np.sqrt((W**2).sum()), rel=1e-9)
            columns = np.sqrt((W**2).sum(0))
            assert len(columns) == W.shape[1]
            assert found.column_mean == pytest.approx(columns.mean(), rel=1e-9)
            assert found.column_variance == pytest.approx(columns.var(ddof=1), rel=1e-9)
            assert len(found.heads) == len(W) // p.head_dim
            for h, head in enumerate(found.heads):
                block = W[h * p.head_dim : (h + 1) * p.head_dim]
                assert head.spectral == pytest.approx(np.linalg.norm(block, 2), rel=1e-9)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_inputs_are_measured_behind_the_norm_and_without_padding(name):
    model, tokenizer = load(name, random=True)
    texts = ["Why?", "What is the entropy of a mole of helium?", "A longer one. " * 4]
    report = alpha_report(model, texts, tokenizer, batch_size=3)
    assert report.lengths == [len(text) for text in texts]
    for i, text in enumerate(texts):
        seen = {}
        ids = torch.tensor([[b + 3 for b in text.encode()]])
        for p in projections(model):
            p.readers[0].register_forward_pre_hook(
                lambda _, args, i=p.layer: seen.setdefault(i, args[0])
            )
        decoder = {"decoder_input_ids": ids} if name == "bart" else {}
        with torch.no_grad():
            model(input_ids=ids, **decoder)
        for layer in report.layers:
            S = seen[layer.layer][0].double().numpy()
            assert layer.S.spectral[i] == pytest.approx(np.linalg.norm(S, 2), rel=1e-4)
            assert layer.S.frobenius[i] == pytest.approx(np.linalg.norm(S), rel=1e-4)
        for p in projections(model):
            p.readers[0]._forward_pre_hooks.clear()


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_rows_behind_a_norm_have_the_length_of_the_norm(name):
    report = alpha_report(load(name, random=True)[0], random=True, max_tokens=64)
    expected = np.sqrt(np.array(report.lengths) * 48)
    assert np.allclose(report.layers[0].S.frobenius, expected, rtol=0.03)


def test_alpha_0_is_the_largest_product_over_the_texts():
    report = alpha_report(build("bart"), random=True, max_tokens=20)
    for layer in report.layers:
        products = np.array(layer.S.spectral) * layer.S_kv.spectral
        expected = products.max() * layer.W_q.spectral * layer.W_k.spectral
        assert layer.alpha_0() == pytest.approx(expected)
        assert layer.tau() == pytest.approx(expected / np.sqrt(12))
        assert layer.alpha_w() == max(W.spectral for W in (layer.W_q, layer.W_k, layer.W_v))
    assert np.allclose(report.layers[0].S.spectral, report.layers[0].S_kv.spectral)


def test_dropout_is_off_and_the_mode_comes_back():
    model, tokenizer = load("bert", random=True)
    model.train()
    a, b = (alpha_report(model, ["Is this random?"], tokenizer) for _ in range(2))
    assert a == b and model.training


def test_minilm_offline():
    report = alpha_report("minilm", list(QUESTIONS[:8]))
    assert len(report.layers) == 6 and len(report.layers[0].W_q.heads) == 12
    assert 4.5 < min(one.W_q.spectral for one in report.layers) < 6.2
    assert 25 < report.layers[0].W_q.frobenius < 40
    one_by_one = alpha_report("minilm", list(QUESTIONS[:8]), batch_size=-1)
    for a, b in zip(report.layers, one_by_one.layers):
        assert np.allclose(a.S.spectral, b.S.spectral, rtol=1e-5)


def test_text_files_and_truncation(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("One line.\n\nAnother, which is longer.\n")
    assert read_texts(path) == ["One line.", "Another, which is longer."]
    model, tokenizer = load("gpt2", random=True)
    report = alpha_report(model, path, tokenizer, max_tokens=12)
    assert report.lengths == [9, 12]


def test_growth_finds_the_exponent_of_a_power_law():
    report = alpha_report(load("gpt2", random=True)[0], random=True, max_tokens=40)
    report.layers[0].S.frobenius[:] = [3 * n**0.37 for n in report.lengths]
    exponent = report.growth(0)
    assert exponent.value == pytest.approx(0.37) and exponent.error < 1e-9


def test_a_report_comes_back_from_its_file(tmp_path):
    report = alpha_report(load("mistral", random=True)[0], random=True, max_tokens=9)
    path = report.save(tmp_path / "report.json")
    assert AlphaReport.load(path) == report
    assert json.loads(path.read_text())["layers"][0]["n_kv_heads"] == 2
    assert report.table().count("\n") == 3
    path.write_text('{"model": 1}')
    with pytest.raises(ValueError, match="AlphaReport.save"):
        AlphaReport.load(path)


def test_one_sentence_for_bad_input(tmp_path, monkeypatch):
    model, tokenizer = load("bert", random=True)
    with pytest.raises(ValueError, match="no attention projections.*transformer"):
        alpha_report(nn.Sequential(nn.Linear(3, 3)), random=True)
    for texts, what in ((["a", "  "], "text 1 is empty"), ([], "no texts")):
        with pytest.raises(ValueError, match=what):
            alpha_report(model, texts, tokenizer)
    with pytest.raises(ValueError, match="tokenizer is missing"):
        alpha_report(model, ["a"])
    with pytest.raises(ValueError, match="max_tokens = 0"):
        alpha_report(model, ["a"], tokenizer, max_tokens=0)
    with pytest.raises(ValueError, match="600 tokens and the model 512 positions"):
        alpha_report(model, ["a" * 600], tokenizer, batch_size=-1)
    with pytest.raises(ValueError, match="choose from bert"):
        load("elman", random=True)
    with pytest.raises(FileNotFoundError, match="random=True"):
        alpha_report(model, tmp_path / "none.txt", tokenizer)
    with pytest.raises(FileNotFoundError, match="no report"):
        AlphaReport.load(tmp_path / "none.json")


def test_an_offline_hub_names_what_works(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'gpt2'.*'minilm', which works offline"):
        load("gpt2")
    datasets = pytest.importorskip("datasets")

    def offline(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match="text file or random=True"):
        read_texts("mmlu")


def test_mmlu_is_the_questions_of_its_validation_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def small(*names, split):
        asked.append((*names, split))
        return datasets.Dataset.from_dict({"question": ["Why?", "How?"], "answer": [0, 1]})

    monkeypatch.setattr(datasets, "load_dataset", small)
    assert read_texts("mmlu") == ["Why?", "How?"]
    assert asked == [("cais/mmlu", "all", "validation")]


def test_roberta_counts_its_positions_behind_the_padding():
    model, tokenizer = load("roberta", random=True)
    assert len(tokenize(model, tokenizer, ["a" * 900], 2000)[0]) == 512
    assert alpha_report(model, ["a" * 900], tokenizer, max_tokens=2000).lengths == [512]


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"physattn\[hub\]"):
        norms.load("minilm")
