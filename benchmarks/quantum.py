"""Norms of MiniLM, our report against a loop that reads one text at a time and takes full SVDs; and an encoder with bounded norms against the plain one.

Prints time ratios (loop/ours, above 1: ours is faster; plain/bounded, below 1: the bound costs time) of one run on one thread; medians of interleaved
repetitions. The two ways to the norms measure the same numbers, and the script checks that they agree.
"""

import numpy as np
import torch
from interleaved import ratio
from torch import nn

from physattn.foundations.runs import generator, seeded
from physattn.quantum.normalized import normalize
from physattn.quantum.norms import QUESTIONS, alpha_report, load, projections, random_tokens

torch.set_num_threads(1)


@torch.no_grad()
def loop(model, texts):
    "Spectral and Frobenius norms of S by layer and text, and of the weights whole and by head."
    found = projections(model)
    inputs = [[] for _ in found]
    for ids in texts:
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for i in range(len(found)):
            S = states[i][0].numpy()
            inputs[i].append((np.linalg.svd(S)[1][0], np.linalg.norm(S)))
    weights = []
    for p in found:
        for W in p.weights:
            W = W.numpy()
            blocks = [W, *np.split(W, p.n_heads)]
            weights.append([(np.linalg.svd(b)[1][0], np.linalg.norm(b)) for b in blocks])
    return inputs, weights


model, tokenizer = load("minilm")
questions = [tokenizer(text)["input_ids"] for text in QUESTIONS]
drawn = random_tokens(model, tokenizer, 256)
cases = (
    ("24 questions", questions, lambda: alpha_report(model, QUESTIONS, tokenizer)),
    (
        "random tokens up to 256",
        drawn,
        lambda: alpha_report(model, None, tokenizer, 256, random=True),
    ),
)
for name, texts, ours in cases:
    report, (inputs, weights) = ours(), loop(model, texts)
    for layer, S in zip(report.layers, inputs, strict=True):
        assert np.allclose(layer.S.spectral, [s for s, _ in S], rtol=1e-4)
        assert np.allclose(layer.S.frobenius, [f for _, f in S], rtol=1e-4)
    assert np.isclose(report.layers[0].W_q.spectral, weights[0][0][0], rtol=1e-5)
    print(f"MiniLM, {name}: {ratio(ours, lambda texts=texts: loop(model, texts), 4, 3)}")


def encoder(d):
    with seeded(0, "encoder"):
        return nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.0, batch_first=True)


def step(model, x):
    model.train().zero_grad()
    model(x).square().mean().backward()


for d in (48, 256):
    x = torch.randn(32, 64, d, generator=generator(0, "tokens"))
    for name, options in {
        "spectral, exact": dict(),
        "spectral, power iteration": dict(exact=False),
        "Frobenius": dict(kind="frobenius"),
    }.items():
        plain, ours = encoder(d), encoder(d)
        normalize(ours, **options)
        found = ratio(lambda: step(ours, x), lambda: step(plain, x), 2, 5)
        print(f"d = {d}, 32 x 64 tokens, {name}, training step: {found}", flush=True)
