"""Degrees, success probabilities and repetitions, against closed forms and the series itself."""

import math

import numpy as np
import pytest
from scipy.special import ive

from physattn.quantum.norms import AlphaReport, alpha_report, load
from physattn.quantum.resources import (
    ScoreRange,
    cost,
    degree_law,
    designed_cost,
    estimate,
    exp_degree,
    score_ranges,
    sqrt_law_degree,
)


@pytest.mark.parametrize("tau, eps", [(5.0, 1e-2), (40.0, 1e-3), (200.0, 1e-6)])
def test_square_root_law_is_the_shortest_series_within_eps(tau, eps):
    degree, x = sqrt_law_degree(tau, eps), np.linspace(-1, 1, 2001)

    def error(n):
        c = 2 * ive(np.arange(n + 1), tau)
        c[0] /= 2
        return abs(np.polynomial.chebyshev.chebval(x, c) - np.exp(tau * (x - 1))).max()

    assert error(degree) <= eps < error(degree - 1)


def test_degree_is_two_tau_at_three_digits():
    for tau in (8, 12, 16, 20):
        assert abs(exp_degree(tau, 1e-3) / (2 * tau) - 1) < 0.1
        assert abs(degree_law(tau, 1e-3) / (2 * tau) - 1) < 0.1
    assert abs(degree_law(5000, 1e-3) / 10_000 - 1) < 0.1


def test_law_reproduces_and_extrapolates_the_programs():
    for tau, eps, reach in ((20, 1e-2, 1), (20, 1e-3, 2), (10, 3e-3, 1.4), (28, 1e-4, 1)):
        assert degree_law(tau, eps, reach) == pytest.approx(
            exp_degree(tau, eps, reach), rel=0.12
        )
    assert degree_law(100, 1e-6) > degree_law(100, 1e-5) > degree_law(100, 1e-4)


def test_amplification_brings_success_close_to_one():
    for weight in (1.0, 0.3, 1e-2, 1e-4):
        one = cost(100.0, 4, 1e-3, weight=weight)
        angle = math.asin(math.sqrt(one.probability))
        assert one.probability == pytest.approx((0.9 / 4 * weight * 0.5) ** 2)
        assert math.sin(one.repetitions * angle) ** 2 > 0.95
        assert one.repetitions < 1 / one.probability
        assert one.total == one.queries * one.repetitions
        assert one.queries == 4 * one.degree + 2


def test_queries_are_those_of_the_circuit():
    circuit = pytest.importorskip("physattn.quantum.circuit")
    one = cost(32.0, 4, 1e-3)
    assert one.queries == sum(circuit.head_queries(one.degree).values())


def test_designed_head():
    found = designed_cost(2.0, 1.0, 32, 16, 1e-3)
    assert (found["reach"], found["tau"]) == (1.0, 32.0)
    twice = designed_cost(2.0, 1.0, 64, 16, 1e-3)
    assert twice["degree"] / found["degree"] == pytest.approx(2, rel=0.05)
    assert twice["repetitions"] == found["repetitions"]


def test_estimate_of_a_small_model(tmp_path):
    model, tokenizer = load("bert", random=True)
    texts = ["a few words", "and a few more of them"]
    report = alpha_report(model, texts, tokenizer)
    ranges = score_ranges(model, texts, tokenizer)
    spectral = estimate(report, 1e-3, ranges)
    frobenius = estimate(report, 1e-3, ranges, "frobenius")
    for a, b, layer in zip(spectral.layers, frobenius.layers, report.layers):
        assert a.tau == pytest.approx(layer.tau("spectral"))
        assert b.tau > a.tau and b.total > a.total
    assert spectral.table().count("\n") == 1 + len(report.layers)
    assert estimate(report, 1e-3).layers[0].total > 0
    again = AlphaReport.load(report.save(tmp_path / "report.json"))
    assert estimate(again, 1e-3, ranges).layers == spectral.layers


def test_score_ranges_agree_with_the_attention_of_the_model():
    import torch

    model, tokenizer = load("bert", random=True)
    model.set_attn_implementation("eager")
    ids = torch.tensor([tokenizer("a few words")["input_ids"]])
    patterns = model(ids, output_attentions=True).attentions
    for one, pattern in zip(score_ranges(model, ["a few words"], tokenizer), patterns):
        # the largest weight of a row is at most exp(2 reach) times the smallest
        spread = (pattern.amax(-1) / pattern.amin(-1)).log().max().item()
        assert spread <= 2 * one.reach + 1e-5
        assert math.exp(-2 * one.reach) <= one.weight <= 1


@pytest.mark.parametrize(
    "change", [dict(eps=0.0), dict(alpha_0=-1.0), dict(weight=1.5), dict(signal=0.0)]
)
def test_bad_numbers_are_refused_in_a_sentence(change):
    (name, value), options = *change.items(), dict(alpha_0=16.0, head_dim=4, eps=1e-3)
    with pytest.raises(ValueError, match=f"{name} = {value} must be"):
        cost(**options | change)


def test_ranges_of_another_model_are_refused():
    model, tokenizer = load("bert", random=True)
    report = alpha_report(model, ["words"], tokenizer)
    with pytest.raises(ValueError, match="ranges has 1 entries for 2 layers"):
        estimate(report, 1e-3, [ScoreRange(1.0, 0.5, 0.5)])
