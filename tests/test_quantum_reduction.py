"Attention preserved while its subnormalisation falls: against the model's own weights and the bound."

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

pytest.importorskip("transformers")

from physattn.foundations.runs import generator  # noqa: E402
from physattn.quantum.norms import QUESTIONS, load, projections, tokenize  # noqa: E402
from physattn.quantum.reduction import (  # noqa: E402
    STEPS,
    attentions,
    balancing,
    bound,
    factors,
    joined,
    ladder,
    layer_inputs,
    moments,
)


@pytest.fixture(scope="module")
def minilm():
    model, tokenizer = load("minilm")
    ids = tokenize(model, tokenizer, QUESTIONS, None)
    return model, moments(model, ids[::4]), joined(ids[1:8:2])


def test_attention_of_a_real_model_is_preserved(minilm):
    model, C, text = minilm
    inputs, given = layer_inputs(model, text), attentions(model, text)
    for p in projections(model):
        for step in STEPS:
            found = factors(p, inputs[p.layer], step, C[p.layer]).attention()
            assert (found - given[p.layer]).abs().max() < 1e-4, (p.layer, step)


def test_seven_times_at_least_on_every_layer(minilm):
    model, C, text = minilm
    for p, S in zip(projections(model), layer_inputs(model, text)):
        found = ladder(p, S, C[p.layer])
        assert found["source"] > 7 * found["loaded"].max()
        assert found["source"] > 7 * found["units"].mean()


def test_the_optimal_rung_attains_the_bound_and_no_other_passes_it(minilm):
    model, C, text = minilm
    for p, S in zip(projections(model), layer_inputs(model, text)):
        S_c = (S.double() - S.double().mean(0)).numpy()
        W_q, W_k = (p.by_head(i).double().numpy() for i in (0, 1))
        singular = [
            np.linalg.svd(S_c @ q.T @ k @ S_c.T)[1] / np.sqrt(p.head_dim)
            for q, k in zip(W_q, W_k)
        ]
        least = np.array([s[0] for s in singular])
        assert np.allclose(factors(p, S, "optimal").tau(), least, rtol=1e-6)
        nuclear = factors(p, S, "optimal").tau("frobenius")
        assert np.allclose(nuclear, [s.sum() for s in singular], rtol=1e-4)
        for step in STEPS:
            f = factors(p, S, step, C[p.layer])
            assert (f.tau().numpy() >= least * (1 - 1e-6)).all(), step
            assert (f.tau("frobenius") >= f.tau() * (1 - 1e-9)).all()
            if len(f.matrices) == 2:
                assert (f.tau("frobenius") >= nuclear * (1 - 1e-6)).all()


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt", "gpt2"])
def test_biases_masks_and_fused_storage(name):
    model, tokenizer = load(name, random=True)
    rng = generator(0, name)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3, generator=rng)
    text = tokenizer("What is conserved?")["input_ids"]
    C, given = moments(model, [text]), attentions(model, text)
    for p, S, A in zip(projections(model), layer_inputs(model, text), given):
        for step in STEPS:
            found = factors(p, S, step, C[p.layer]).attention(causal="gpt" in name)
            assert (found - A).abs().max() < 2e-4, (p.layer, step)


def test_norms_of_a_pair_are_those_of_its_product():
    model, _ = load("bert", random=True)
    p, S = projections(model)[0], torch.randn(9, 48, generator=generator(1))
    A = p.by_head(0).double().mT @ p.by_head(1).double()
    for norm, order in (("spectral", 2), ("frobenius", "fro")):
        sizes = [np.linalg.norm(x, order) for x in A.numpy()]
        expected = (
            np.linalg.norm(S.double().numpy(), order) ** 2 * np.array(sizes) / 12**0.5
        )
        assert np.allclose(factors(p, S, "fused").tau(norm), expected)


def test_means_are_the_best_shifts():
    L = torch.randn(7, 7, generator=generator(2)).double() + 1

    def norm(shift):
        return np.linalg.norm(L.numpy() - shift[:7, None] - shift[7:], 2)

    least = bound(L).item()
    found = minimize(norm, np.zeros(14), method="Powell", options={"maxiter": 200})
    assert least - 1e-9 <= found.fun < 1.02 * least < norm(np.zeros(14))


def test_the_best_units_minimise_the_frobenius_norms():
    model, _ = load("bert", random=True)
    p, S = projections(model)[1], torch.randn(20, 48, generator=generator(3))
    S_c = S.double() - S.double().mean(0)
    f = factors(p, S, "units", S_c.mT @ S_c)
    left, A = f.matrices[0], f.matrices[1][0] @ f.matrices[1][1]
    best = left[0].norm() * A[0].norm()
    rng = generator(4)
    for _ in range(20):
        D = (0.1 * torch.randn(48, generator=rng).double()).exp()
        assert (left[0] / D).norm() * (D[:, None] * A[0]).norm() > best


def test_balancing():
    Q, K = (torch.randn(3, 30, 5, generator=generator(5)).double() for _ in range(2))
    K[..., 1] *= 100
    G = balancing(Q.mT @ Q, K.mT @ K)
    a = G.mT @ Q.mT @ Q @ G
    inverse = torch.linalg.inv(G)
    b = inverse @ K.mT @ K @ inverse.mT
    assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    assert torch.allclose(a, torch.diag_embed(a.diagonal(dim1=1, dim2=2)), atol=1e-6)
    singular = torch.linalg.svdvals(Q @ K.mT)[:, :5]
    assert torch.allclose(a.diagonal(dim1=1, dim2=2).sort(descending=True)[0], singular)


def test_rows_lie_between_the_entries_and_the_spectral_norm(minilm):
    model, C, text = minilm
    for p, S in zip(projections(model), layer_inputs(model, text)):
        found = ladder(p, S, C[p.layer])
        assert (found["entries"] <= found["rows"] * (1 + 1e-9)).all()
        assert (found["rows"] <= found["loaded"] * (1 + 1e-9)).all()


def test_one_sentence_for_bad_input():
    model, _ = load("bert", random=True)
    p, S = projections(model)[0], torch.randn(5, 48, generator=generator(6))
    with pytest.raises(ValueError, match="choose from heads"):
        factors(p, S, "best")
    with pytest.raises(ValueError, match="moments"):
        factors(p, S, "units")
    with pytest.raises(ValueError, match="there are 3"):
        factors(p, S, "fused").tau("rows")
    llama = projections(load("llama", random=True)[0])[0]
    with pytest.raises(ValueError, match="rotates or shifts"):
        factors(llama, S, "fused")
