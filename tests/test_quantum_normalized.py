"""Layers of bounded norm: what the constraint promises, on every kind of storage, and the ways back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from physattn.foundations.attention import Block
from physattn.foundations.runs import generator, seeded
from physattn.quantum.normalized import (
    NORMS,
    Layout,
    Normalization,
    check_norms,
    denormalize,
    fold,
    layouts,
    leading_vectors,
    normalize,
    shared_parameters,
)


def tensor(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, "tensor"), dtype=torch.float64)


def encoder(**options):
    with seeded(0, "encoder"):
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double(), tensor(
            3, 7, 16
        )


def hugging_face(family):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=24, num_attention_heads=2, num_hidden_layers=2)
    sizes |= dict(intermediate_size=48, vocab_size=50)
    gpt = dict(n_embd=24, n_head=2, n_layer=2, vocab_size=50, n_positions=32)
    bart = dict(d_model=24, encoder_layers=1, decoder_layers=1, vocab_size=50)
    bart |= dict(encoder_attention_heads=2, decoder_attention_heads=2)
    bart |= dict(encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=32)
    config, model = {
        "bert": ("BertConfig", "BertModel"),
        "roberta": ("RobertaConfig", "RobertaModel"),
        "distilbert": ("DistilBertConfig", "DistilBertModel"),
        "gpt2": ("GPT2Config", "GPT2Model"),
        "gpt": ("OpenAIGPTConfig", "OpenAIGPTModel"),
        "bart": ("BartConfig", "BartModel"),
        "llama": ("LlamaConfig", "LlamaModel"),
        "mistral": ("MistralConfig", "MistralModel"),
    }[family]
    options = gpt if "gpt" in family else bart if family == "bart" else sizes
    if family in ("llama", "mistral"):
        options |= {"num_key_value_heads": 1}
    if family == "distilbert":
        options = dict(dim=24, n_heads=2, n_layers=2, hidden_dim=48, vocab_size=50)
    with seeded(0, family):
        config = getattr(transformers, config)(**options)
        return getattr(transformers, model)(config).eval()


def test_torch_agrees_on_the_spectral_norm():
    with seeded(0, "linear"):
        ours, theirs = nn.Linear(20, 12).double(), nn.Linear(20, 12).double()
    theirs.load_state_dict(ours.state_dict())
    parametrizations.spectral_norm(theirs, n_power_iterations=200)
    theirs.train()(tensor(1, 20))
    model = nn.ModuleDict({"query": ours})
    normalize(model)
    assert torch.allclose(ours.weight, theirs.eval().weight, rtol=1e-10)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4)])
def test_leading_vectors_are_those_of_the_svd(shape):
    matrix = tensor(*shape)
    u, v = leading_vectors(matrix)
    U, S, Vh = torch.linalg.svd(matrix)
    assert abs(u @ U[:, 0]) == pytest.approx(1, abs=1e-12)
    assert abs(v @ Vh[0]) == pytest.approx(1, abs=1e-12)
    assert u @ matrix @ v == pytest.approx(float(S[0]), rel=1e-13)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize("layout", [Layout(("q", "k", "v")), Layout(("q", "k", "v"), 1)])
def test_gradients_of_weight_and_gain(kind, at_most, layout):
    W = tensor(12, 4) if layout.axis == 0 else tensor(4, 12)
    module = Normalization(W, layout, (0, 2), kind, 3.0, gain=True, at_most=at_most)

    def weigh(W, gain):
        return torch.func.functional_call(module, {"gain": gain}, W)

    gain = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weigh, (W.requires_grad_(), gain))


def test_iterated_gradient_is_exact_once_converged():
    W, grad = tensor(6, 8).requires_grad_(), tensor(6, 8, seed=1)
    found = [
        torch.autograd.grad(
            (Normalization(W.detach(), Layout(("q",)), (0,), exact=e)(W) * grad).sum(), W
        )[0]
        for e in (True, False)
    ]
    assert torch.allclose(*found, atol=1e-12)


@pytest.mark.parametrize("kind", NORMS)
def test_parts_of_fused_weights_are_normalised_one_by_one(kind):
    model, _ = encoder()
    changed = normalize(model, kind, alpha=0.5)
    for layer in model.layers:
        parts = layer.self_attn.in_proj_weight.chunk(3)
        for W in (*parts, layer.linear1.weight, layer.linear2.weight):
            norm = torch.linalg.matrix_norm(W, NORMS[kind]).item()
            assert norm == pytest.approx(0.5, rel=1e-12)
    assert len(changed.rows) == 2 * 5
    assert changed.untouched == [f"layers.{i}.self_attn.out_proj.weight" for i in (0, 1)]
    row = changed.rows[1]
    assert (row["role"], row["shape"]) == ("k", (16, 16))
    assert row[kind][1] == pytest.approx(0.5) and row[kind][0] > 0.6
    assert "in_proj_weight` | k | 16 × 16" in changed.table()


def test_a_chosen_part_leaves_the_others_to_the_bit():
    model, _ = encoder()
    before = model.layers[0].self_attn.in_proj_weight.detach().clone()
    normalize(model, where="k", names=lambda name: name.startswith("layers.0."))
    q, k, v = model.layers[0].self_attn.in_proj_weight.chunk(3)
    assert torch.equal(q, before[:16]) and torch.equal(v, before[32:])
    assert not torch.allclose(k, before[16:32], rtol=0.1)
    assert not hasattr(model.layers[1].self_attn, "parametrizations")


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "gpt2", "gpt", "bart", "llama", "mistral"]
)
def test_hugging_face_models(family):
    model = hugging_face(family)
    tokens = torch.randint(3, 50, (2, 9), generator=generator(0, "tokens"))
    plain = {name: w.clone() for name, w in model.state_dict().items()}
    outputs = model(tokens).last_hidden_state
    changed = normalize(model, where=("q", "k", "v", "o", "ffn"))
    blocks = {"bart": 3}.get(family, 2)  # an encoder, a decoder and what joins them
    per_block = 7 if family in ("llama", "mistral") else 6
    attention = [row for row in changed.rows if row["role"] in "qkvo"]
    assert len(attention) == 4 * blocks
    assert len(changed.rows) == (3 * 4 + 2 * 2 if family == "bart" else 2 * per_block)
    assert all(row["spectral"][1] == pytest.approx(1, rel=1e-4) for row in changed.rows)
    touched = {row["name"] for row in changed.rows}
    assert not any(word in name for name in touched for word in ("wte", "embed", "wpe"))
    assert not torch.allclose(model(tokens).last_hidden_state, outputs, atol=1e-3)
    folded = copy.deepcopy(model)
    fold(folded)
    fresh = hugging_face(family)
    fresh.load_state_dict(folded.state_dict())
    want = model(tokens).last_hidden_state
    assert torch.allclose(fresh(tokens).last_hidden_state, want, atol=1e-6)
    denormalize(model)
    assert all(torch.equal(w, plain[name]) for name, w in model.state_dict().items())
    assert torch.equal(model(tokens).last_hidden_state, outputs)


def test_conv1d_is_read_along_its_right_axis():
    model = hugging_face("gpt2")
    for name, layout in layouts(model).items():
        assert layout.axis == 1
        if "c_attn" in name:
            weight = model.get_parameter(name).detach()
            q, k, v = layout.matrices(weight)
            assert torch.equal(q, weight[:, :24].T) and torch.equal(v, weight[:, 48:].T)


def test_cross_attention_of_gpt2_has_keys_and_values_in_one_weight():
    transformers = pytest.importorskip("transformers")
    options = dict(n_embd=24, n_head=2, n_layer=1, vocab_size=50, n_positions=32)
    with seeded(0, "cross"):
        config = transformers.GPT2Config(**options, add_cross_attention=True)
        model = transformers.GPT2Model(config)
    found = {name: layout.roles for name, layout in layouts(model).items()}
    assert found["h.0.crossattention.c_attn.weight"] == ("k", "v")
    assert found["h.0.crossattention.q_attn.weight"] == ("q",)


@pytest.mark.parametrize("gain", [False, True])
def test_our_block_all_heads_together(gain):
    with seeded(0, "block"):
        block = Block(12, 3, d_mlp=20)
    normalize(block, where=("q", "k", "v", "o", "ffn"), gain=gain)
    full = block.attn.W_Q.transpose(0, 1).flatten(1)  # (d_model, n_heads * d_head)
    out = block.attn.W_O.flatten(0, 1)
    for W in (full, out, block.mlp.W_in, block.mlp.W_out):
        assert torch.linalg.matrix_norm(W, 2).item() == pytest.approx(1, rel=1e-5)
    block(torch.randn(2, 4, 12, generator=generator(0))).square().sum().backward()
    if gain:
        assert block.attn.parametrizations.W_Q[0].gain.grad.abs() > 0


def test_at_most_leaves_short_matrices_alone():
    model, x = encoder()
    outputs = model.eval()(x)
    normalize(model, at_most=True, alpha=100.0)
    assert torch.equal(model(x), outputs)
    denormalize(model)
    normalize(model, at_most=True, alpha=0.9)
    assert check_norms(model, 0.9) == pytest.approx(0.9)


@pytest.mark.parametrize("exact", [True, False])
def test_the_norm_survives_training_and_the_fold_its_outputs(exact):
    model, x = encoder()
    normalize(model, exact=exact)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for i in range(20):
        loss = (model.train()(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if exact:
        assert check_norms(model, rtol=1e-10) == pytest.approx(1, rel=1e-10)
    outputs = model.eval()(x)
    model.train()  # folding must not iterate once more
    assert len(fold(model)) == 6
    plain, _ = encoder()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.eval()(x), outputs)


def test_power_iteration_moves_in_training_only():
    model = nn.ModuleDict({"query": nn.Linear(8, 8, bias=False).double()})
    with torch.no_grad():
        model.query.weight.copy_(tensor(8, 8))
    normalize(model, exact=False)
    with torch.no_grad():
        model.query.parametrizations.weight.original.copy_(tensor(8, 8, seed=1))
    first = [model.eval().query.weight.clone() for _ in range(2)]
    assert torch.equal(*first)
    errors = []
    for _ in range(80):
        W = model.train().query.weight
        errors.append(torch.linalg.matrix_norm(W, 2).item() - 1)
    assert errors[0] > 1e-2 and abs(errors[-1]) < 1e-6
    assert min(errors) > -1e-12  # never too short


def test_the_fast_path_of_torch_in_evaluation():
    model, x = encoder()
    normalize(model)
    slow = model.eval()(x)
    with torch.no_grad():
        assert torch.allclose(model(x), slow.detach(), atol=1e-12)


def test_deep_copies_are_independent():
    model, x = encoder()
    normalize(model)
    outputs = model.eval()(x)
    twin = copy.deepcopy(model)
    denormalize(twin)
    assert torch.equal(model(x), outputs)
    assert shared_parameters(model, twin) == []
    fold(model)
    assert torch.equal(model(x), outputs)


def test_the_state_of_the_random_generator_is_left_alone():
    model, _ = encoder()
    state = torch.get_rng_state()
    normalize(model, exact=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_shared_parameters_are_named():
    one, other, head = nn.Embedding(4, 2), nn.Embedding(4, 2), nn.Linear(2, 2)
    a, b, c = nn.Sequential(one), nn.Sequential(one, head), nn.Sequential(other, head)
    assert shared_parameters(a, b, c) == [("0.weight", "0.weight")] + [
        ("1.weight", "1.weight"),
        ("1.bias", "1.bias"),
    ]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(alpha=0.0), "alpha = 0.0 .* choose a target above 0"),
        (dict(alpha=float("nan")), "alpha = nan"),
        (dict(kind="nuclear"), "kind = 'nuclear' is unknown: choose from spectral, frob"),
        (dict(kind="frobenius", exact=False), "exact = False has no meaning"),
        (dict(where=("q", "embedding")), "where names 'embedding'"),
        (dict(names=lambda name: False), "no weight of this TransformerEncoder is chosen"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options, sentence):
    model, _ = encoder()
    with pytest.raises(ValueError, match=sentence):
        normalize(model, **options)
    assert not any(hasattr(m, "parametrizations") for m in model.modules())


def test_bad_models_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="none that is known by name"):
        normalize(nn.Sequential(nn.Linear(3, 3)))
    model, _ = encoder()
    with pytest.raises(
        ValueError, match="no weight .* is normalised: call normalize first"
    ):
        denormalize(model)
    normalize(model)
    with pytest.raises(ValueError, match="parametrised already: call denormalize or fold"):
        normalize(model)
    zero = nn.ModuleDict({"query": nn.Linear(3, 3)})
    nn.init.zeros_(zero.query.weight)
    with pytest.raises(ValueError, match="query.weight is zero"):
        normalize(zero)
    tied = nn.ModuleDict({"query": nn.Linear(3, 3), "key": nn.Linear(3, 3)})
    tied.key.weight = tied.query.weight
    with pytest.raises(ValueError, match="are one parameter: untie them"):
        normalize(tied)
    model, _ = encoder()
    with pytest.raises(
        ValueError, match=r"spectral norm of .* is 1\..*, above alpha = 0.5"
    ):
        check_norms(model, 0.5)
    ragged = nn.ModuleDict({"c_attn": nn.Linear(8, 20)})
    with pytest.raises(ValueError, match="does not hold queries, keys and values of one"):
        normalize(ragged)
