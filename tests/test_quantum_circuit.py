"""The attention head and the layer as circuits against softmax attention in torch, and against PennyLane."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from physattn.foundations.experiments import find
from physattn.quantum.circuit import (
    attention,
    attention_head,
    draw,
    head_queries,
    layer_queries,
    mean_free,
    pennylane_state,
    random_head,
    random_layer,
    reference_layer,
    sample,
    transformer_layer,
)
from physattn.quantum.encodings import (
    Circuit,
    dilation,
    product,
    simulate,
    state_preparation,
)


def torch_attention(S, W_q, W_k, W_v):
    "All rows, by torch's own attention, which divides by the root of d_h."
    q, k, v = (torch.tensor(S @ W)[None] for W in (W_q, W_k, W_v))
    return F.scaled_dot_product_attention(q, k, v)[0].numpy()


@pytest.mark.parametrize("tokens, d", [(4, 4), (8, 4), (3, 4), (5, 3), (2, 8)])
def test_the_head_is_softmax_attention(tokens, d):
    S, *W = random_head(tokens, d, seed=tokens)
    exact = torch_attention(S, *W)
    for query in range(min(tokens, 4)):
        head = attention_head(S, *W, query)
        assert np.linalg.norm(head.output[:d] - exact[query]) < 1e-3
        assert np.abs(head.output[d:]).max(initial=0) < 1e-12
        assert np.abs(attention(S, *W, query) - exact[query]).max() < 1e-12


def test_the_block_is_the_polynomial_of_the_exact_scores():
    S, *W = random_head(4, 4, seed=7)
    scores = (S @ W[0]) @ (S @ W[1]).T
    for query in range(4):
        head = attention_head(S, *W, query)
        expected = np.diag(head.poly(scores[query] / head.alpha_0))
        assert np.abs(head.exponential.block - expected).max() < 1e-9
    norms = [np.linalg.norm(M, 2) for M in (S, W[0], W[1], S)]
    assert np.isclose(head.alpha_0, np.prod(norms))
    assert np.isclose(head.tau, head.alpha_0 / 2)


def test_heads_of_other_dimensions_than_the_model():
    S, *_ = random_head(4, 4)
    rng = np.random.default_rng(1)
    W_q, W_k = rng.normal(size=(2, 4, 2))
    W_v = rng.normal(size=(4, 3))
    exact = torch_attention(S, W_q, W_k, W_v)[1]
    head = attention_head(S, W_q, W_k, W_v, 1)
    assert np.linalg.norm(head.output[:3] - exact) < 1e-3


def test_the_error_follows_eps():
    S, *W = random_head(4, 4)
    exact = attention(S, *W, 1)
    errors = [
        np.linalg.norm(attention_head(S, *W, 1, eps).output - exact)
        for eps in (0.3, 1e-2, 1e-4)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-4


def test_the_softmax_is_what_a_measurement_sees():
    S, *W = random_head(4, 4, seed=2)
    head = attention_head(S, *W, 3)
    scores = (S @ W[0] @ (S @ W[1]).T)[3] / 2
    exact = torch.tensor(scores).softmax(-1).numpy()
    assert np.abs(head.pattern - exact).max() < 1e-3
    assert abs(head.partition / np.exp(scores).sum() - 1) < 2e-3
    shots = sample(head.weights, 100_000, seed=4)
    assert np.abs(shots.distribution.sigma(exact)).max() < 4.5
    assert abs(shots.success.sigma(head.weights.success)) < 4


def test_sampled_success_has_the_right_spread():
    e = dilation(np.array([[0.5, 0.1], [0.2, 0.4]]), 1.0)
    exact = 0.5**2 + 0.2**2
    pulls = [float(sample(e, 400, seed).success.sigma(exact)) for seed in range(200)]
    assert abs(np.mean(pulls)) < 0.3 and 0.85 < np.std(pulls) < 1.15
    ratio = sample(e, 100_000).distribution
    assert abs(ratio.sigma(np.array([0.25, 0.04]) / exact)).max() < 4


def test_the_success_probability_has_no_other_factors():
    S, *W = random_head(4, 4, seed=3)
    head = attention_head(S, *W, 0, 1e-5)
    Z = np.exp((S @ W[0] @ (S @ W[1]).T)[0] / 2).sum()
    alphas = head.exponential.alpha * np.linalg.norm(S, 2) * np.linalg.norm(W[2], 2)
    p = (Z * np.linalg.norm(attention(S, *W, 0)) / alphas) ** 2 / 4
    assert abs(head.encoding.success / p - 1) < 1e-4


def test_frobenius_norms_cost_more():
    S, *W = random_head(4, 4)
    spectral, frobenius = (
        attention_head(S, *W, 1, norm=norm) for norm in ("spectral", "frobenius")
    )
    assert frobenius.poly.degree() > 1.5 * spectral.poly.degree()
    assert frobenius.encoding.success < spectral.encoding.success
    assert np.abs(frobenius.output - spectral.output).max() < 1e-3


def test_the_head_of_pennylane_ends_in_the_same_state():
    pytest.importorskip("pennylane")
    S, *W = random_head(4, 4, seed=1)
    W = [M / np.linalg.norm(M, 2) for M in W]
    head = attention_head(S, *W, 2).encoding
    theirs = pennylane_state(head.circuit)
    ours = simulate(head.circuit, np.eye(4, 1), head.n_ancilla, project=False)
    assert np.abs(ours.ravel() - theirs).max() < 1e-12
    assert np.abs(head.column / head.alpha - theirs[:4]).max() < 1e-12


def test_the_head_with_phases_of_pennylane():
    pytest.importorskip("pennylane")
    S, *W = random_head(4, 4)
    W = [M / np.linalg.norm(M, 2) for M in W]
    exact = attention(S, *W, 1)
    head = attention_head(S, *W, 1, solver="pennylane")
    assert np.linalg.norm(head.output - exact) < 1e-3


def test_the_first_half_of_the_layer_in_pennylane():
    pytest.importorskip("pennylane")
    layer = transformer_layer(*random_layer(4, 4, 4, seed=1), query=0)
    theirs = pennylane_state(layer.middle.circuit)[:4]
    assert np.abs(layer.middle.column / layer.middle.alpha - theirs).max() < 1e-12


def test_the_mean_free_projector():
    for d, n in ((4, 2), (3, 2), (5, 3)):
        M = np.eye(2**n)
        M[:d, :d] -= 1 / d
        e = mean_free(d, n)
        assert np.abs(e.block - M).max() < 1e-12 and np.isclose(e.alpha, 1)


def test_the_reference_is_a_layer_of_torch():
    S, W_q, W_k, W_v, M_1, M_2 = (torch.tensor(x) for x in random_layer(4, 4, 8, seed=3))
    z = torch.tensor(torch_attention(*(x.numpy() for x in (S, W_q, W_k, W_v))))
    norm = torch.nn.LayerNorm(4, eps=0.0, dtype=torch.float64)
    y = norm(S + z) / 2
    feed_forward = torch.nn.Sequential(
        torch.nn.Linear(4, 8, bias=False),
        torch.nn.GELU(),
        torch.nn.Linear(8, 4, bias=False),
    ).double()
    with torch.no_grad():
        feed_forward[0].weight.copy_(M_1)
        feed_forward[2].weight.copy_(M_2)
        expected = norm(y + feed_forward(y)) / 2
    for query in range(4):
        found = reference_layer(S, W_q, W_k, W_v, M_1, M_2, query)
        assert torch.allclose(found["middle"], y[query], atol=1e-12)
        assert torch.allclose(found["output"], expected[query], atol=1e-12)


@pytest.mark.parametrize("tokens, d, d_ff", [(4, 4, 4), (3, 4, 4), (2, 4, 3)])
def test_the_layer_is_the_layer(tokens, d, d_ff):
    weights = random_layer(tokens, d, d_ff, seed=2)
    exact = reference_layer(*map(torch.tensor, weights), query=1)
    layer = transformer_layer(*weights, query=1)
    assert np.linalg.norm(layer.output[:d] - exact["output"].numpy()) < 1e-3
    middle = layer.middle.column.real
    middle = middle / np.linalg.norm(middle)
    assert np.linalg.norm(middle[:d] - exact["middle"].numpy()) < 1e-3
    attended = layer.head.output[:d] - exact["attention"].numpy()
    assert np.linalg.norm(attended) < 1e-3
    assert layer.encoding.queries == layer_queries(
        layer.head.poly.degree(), layer.gelu.degree()
    )
    assert layer.head.encoding.queries == head_queries(layer.head.poly.degree())


def test_the_layer_needs_its_feed_forward_part():
    weights = random_layer(4, 4, 4, seed=0)
    exact = reference_layer(*map(torch.tensor, weights), query=1)
    assert np.linalg.norm((exact["output"] - exact["middle"]).numpy()) > 0.05


def test_queries_of_the_smallest_case():
    assert head_queries(3) == Counter({"S": 7, "W_q": 3, "W_k": 3, "W_v": 1})
    assert layer_queries(3, 2)["S"] == 3 * 8
    assert layer_queries(3, 2)["M_1"] == 2


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda S, W: attention_head(S, *W, 4), "query = 4"),
        (lambda S, W: attention_head(S, *W, 0, norm="nuclear"), "nuclear"),
        (lambda S, W: attention_head(S, *W, 0, eps=0), "eps"),
        (lambda S, W: attention_head(S * np.nan, *W, 0), "finite"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    S, *W = random_head(4, 4)
    with pytest.raises(ValueError, match=words) as error:
        call(S, W)
    assert "\n" not in str(error.value)


def test_too_few_shots_are_refused():
    rare = product(dilation(np.eye(2), 1000.0), state_preparation([1.0], 1))
    with pytest.raises(ArithmeticError, match="raise shots"):
        sample(rare, 10)


def test_without_pennylane_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pennylane", None)
    with pytest.raises(ImportError, match=r"physattn\[quantum\]"):
        pennylane_state(Circuit((), 2))


def test_a_drawing_has_a_line_for_each_wire():
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    S, *W = random_head(4, 4)
    circuit = attention_head(S, *W, 1).encoding.circuit
    fig = draw(Circuit(circuit.gates[:13], 12))
    assert len(fig.axes[0].get_yticks()) == 12
    assert any(
        text.get_text() == "W_q†" or text.get_text() == "W_q" for text in fig.axes[0].texts
    )
    plt.close(fig)


@pytest.mark.parametrize("name", ["quantum/head", "quantum/layer"])
def test_the_experiments_run(name):
    out = find(name).function(**find(name).profiles["quick"])
    for run in out.values():
        assert run["output_error"] < 2e-3
        assert abs(run["sampled"].sigma(run["success"])) < 4.5
