"""The null, its rate, Bayes, the leak test, and the recorded in-context transformers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from physattn.foundations.experiments import recall, reproduce
from physattn.foundations.runs import generator
from physattn.sho.context_transformer import (
    HORIZONS,
    ContextTransformer,
    GeneratorTransformer,
    far_errors,
    orthogonalize,
    polish,
    rollout,
    train,
    trained,
)
from physattn.sho.in_context import (
    REGIMES,
    Regime,
    attention_stack,
    autoregression,
    band_errors,
    capacity,
    decay_rate,
    energy_norm_error,
    leak,
    least_squares,
    nmse,
    posterior,
)
from physattn.sho.oscillator import Oscillator

S6 = REGIMES["s6"]


@pytest.mark.parametrize("low, high", [(0.1, 0.4), (1.0, 2.0), (0.2, 3.0)])
def test_null_decays_with_the_capacity_of_the_band(low, high):
    assert decay_rate(band_errors(low, high, lags=40)) == pytest.approx(
        capacity(low, high) ** 2, rel=2e-3
    )
    assert decay_rate(band_errors(low, high, lags=40, momentum=True)) == pytest.approx(
        capacity(low / 2, high / 2) ** 4, rel=2e-3
    )


def test_capacity_of_the_full_circle_is_one():
    assert capacity(0, math.pi) == 1
    with pytest.raises(ValueError, match="low, high"):
        capacity(0.4, 0.1)


def test_band_errors_agree_with_least_squares_over_nodes():
    regime = Regime((1.0, 2.0), (0.0, 0.0), 1.0, 0.0, 8)
    theta, weights = (
        torch.from_numpy(np.polynomial.legendre.leggauss(80)[0] / 2 + 1.5),
        torch.from_numpy(np.polynomial.legendre.leggauss(80)[1]),
    )
    lags = torch.arange(5, dtype=torch.float64)
    rows = (
        torch.cat([torch.cos(theta[:, None] * lags), torch.sin(theta[:, None] * lags)])
        * weights.sqrt().repeat(2)[:, None]
    )
    residual = (
        rows[:, 4] - rows[:, :4] @ torch.linalg.lstsq(rows[:, :4], rows[:, 4]).solution
    )
    assert math.exp(band_errors(1.0, 2.0, 4)[3]) == pytest.approx(
        float(residual.square().sum() / rows[:, 4].square().sum()), rel=1e-9
    )
    assert autoregression(regime, 6, (0,)).nmse < autoregression(regime, 4, (0,)).nmse


@pytest.mark.parametrize(
    "name, k", [("s6", 1), ("s6", 5), ("kantamneni", 3), ("follow-up", 2)]
)
def test_null_is_exact_against_regression_on_samples(name, k):
    regime = replace(REGIMES[name], length=k)
    exact, contexts = (
        autoregression(regime, k),
        regime.sample(100_000, generator(3, name), torch.float64),
    )
    past, target = contexts.observed[:, :k], contexts.clean[:, k]
    sampled = torch.linalg.lstsq(past.flatten(1), target).solution
    on_samples = nmse(exact.predict(past), target)
    # Where nothing can be predicted, the error is 1 for every sample, to rounding.
    missed = abs(on_samples.value - exact.nmse)
    assert missed < 4 * on_samples.error or missed < 1e-12
    assert (
        0
        <= on_samples.value - nmse(past.flatten(1) @ sampled, target).value
        < 2e-3 * exact.nmse
    )


def test_null_does_not_depend_on_the_quadrature():
    for regime in (S6, REGIMES["follow-up"]):
        assert autoregression(regime, 3, points=100).nmse == pytest.approx(
            autoregression(regime, 3, points=300).nmse, rel=1e-9
        )


def test_null_of_a_whole_period_is_useless():
    assert all(
        autoregression(REGIMES["kantamneni"], k).nmse == pytest.approx(1, abs=1e-9)
        for k in (1, 2, 8)
    )


def test_first_token_bayes_is_the_null():
    tokens = S6.sample(200, generator(0, "one"), torch.float64).observed[:, :1]
    assert torch.allclose(
        posterior(tokens, S6).predict(), autoregression(S6, 1).predict(tokens), atol=3e-3
    )


def test_bayes_is_beaten_by_nobody():
    contexts = S6.sample(400, generator(1, "bayes"))
    for k in (2, 4, 8):
        past, target = contexts.observed[:, :k], contexts.clean[:, k]
        missed = lambda guess: (guess.double() - target.double()).square().sum(-1)
        bayes = missed(posterior(past, S6).predict())
        others = [
            missed(autoregression(S6, k).predict(past)),
            missed(trained(0)(past)[:, -1]),
        ]
        if k > 2:
            others.append(
                missed((least_squares(past) @ past[:, -1, :, None].double())[..., 0])
            )
        for other in others:
            gain = other - bayes
            assert gain.mean() > -2 * gain.std() / math.sqrt(len(gain))


def test_bayes_does_not_depend_on_the_cells():
    tokens = S6.sample(100, generator(2, "cells"), torch.float64).observed[:, :6]
    coarse, fine = posterior(tokens, S6), posterior(tokens, S6, resolved=300.0)
    assert (1 / coarse.weight.square().sum(-1)).min() >= 100
    assert (coarse.predict() - fine.predict()).square().mean() < 1e-3 * S6.noise**2


def test_bayes_serves_a_known_damping():
    regime = replace(REGIMES["follow-up"], noise=1e-4, length=6)
    contexts = regime.sample(100, generator(4, "known"), torch.float64)
    found = posterior(contexts.observed[:, :6], regime)
    assert ((found.weight * found.omega0).sum(-1) - contexts.omega0).abs().median() < 1e-2
    with pytest.raises(ValueError, match="noise"):
        posterior(contexts.observed, REGIMES["follow-up"])


def test_least_squares_is_exact_without_noise():
    contexts = replace(REGIMES["follow-up"], length=206).sample(
        100, generator(5, "exact"), torch.float64
    )
    ahead = (
        torch.linalg.matrix_power(least_squares(contexts.observed[:, :6]), 200)
        @ contexts.observed[:, 5, :, None]
    )
    assert energy_norm_error(ahead[..., 0], contexts, 205).max() < 1e-11
    with pytest.raises(ValueError, match="at least 3"):
        least_squares(contexts.observed[:, :2])


def test_leak_catches_the_unmasked_and_passes_the_causal():
    tokens = REGIMES["follow-up"].sample(20, generator(6, "leak")).observed[:, :10]
    assert leak(attention_stack(causal=True, positions=10), tokens).max() < 1e-6
    assert leak(attention_stack(causal=False), tokens).min() > 1e-3
    with pytest.raises(ValueError, match="at least 2"):
        leak(attention_stack(), tokens[:1])


def test_regime_refuses_nonsense():
    with pytest.raises(ValueError, match="omega0"):
        Regime((3.0, 1.0), (0.0, 0.0), 1.0, 0.0, 8)
    with pytest.raises(ValueError, match="noise"):
        Regime((1.0, 3.0), (0.0, 0.0), 1.0, -0.1, 8)


def test_sampling_is_exact_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    contexts = S6.sample(50, generator(7, "sample"), torch.float64)
    again = S6.sample(50, generator(7, "sample"), torch.float64)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(
        contexts.observed, again.observed
    )
    exact = Oscillator(contexts.omega0, contexts.gamma).trajectory(
        contexts.clean[:, 0], contexts.dt, 8
    )
    assert torch.allclose(exact, contexts.clean, atol=1e-13)


def test_model_is_causal_equivariant_and_comes_back_from_disk(tmp_path):
    model = trained(0)
    tokens = S6.sample(30, generator(8, "model")).observed[:, :8]
    assert leak(model, tokens).max() < 1e-6
    assert torch.allclose(model(0.01 * tokens), 0.01 * model(tokens), atol=1e-6)
    assert torch.equal(
        ContextTransformer.load(model.save(tmp_path / "model"))(tokens), model(tokens)
    )
    assert model(torch.zeros(1, 8, 2)).isfinite().all()
    with pytest.raises(ValueError, match="length = 8"):
        model(tokens.repeat(1, 2, 1))


def test_recorded_models_meet_the_goal_again():
    result, fresh = recall("sho/in-context"), S6.sample(3000, generator(9, "again"))
    assert result["nmse"].n >= 5
    for i in range(result["nmse"].n):
        again = nmse(trained(i)(fresh.observed[:, :-1]), fresh.clean[:, 1:])
        assert np.abs(again.sigma(result[f"nmse seed{i}"])).max() < 5
        assert again.value[3] < 5e-3 and again.value[3] < autoregression(S6, 4).nmse / 35


def test_recorded_heads_are_measured_again():
    result = recall("sho/in-context-rollout")
    head = GeneratorTransformer()
    head.load_state_dict(result.weights("seed0"))
    test = replace(S6, length=65).sample(300, generator(10, "far"))
    measured = far_errors(test, head.requires_grad_(False))
    for name in ("head", "head, one Newton step"):
        assert all(
            abs((m - r).sigma(0)) < 5
            for m, r in zip(measured[name], result[f"{name} seed0"])
        )
    assert len(HORIZONS) == len(result["Bayes"])


def test_polishing_finds_the_oscillator():
    contexts = replace(S6, noise=0.0, length=15).sample(
        100, generator(11, "polish"), torch.float64
    )
    found, state = polish(
        contexts.observed, contexts.omega0 * 1.02, contexts.gamma + 0.01, S6.dt, rounds=6
    )
    assert (found.omega0 - contexts.omega0).abs().max() < 1e-5
    assert torch.allclose(state, contexts.clean[:, -1], atol=1e-5)


def test_rollout_feeds_back():
    class Doubling(torch.nn.Module):
        config = ContextTransformer.Config(length=3)

        def forward(self, tokens):
            return 2 * tokens

    assert torch.equal(
        rollout(Doubling(), torch.ones(1, 5, 2), 3)[0, :, 0], torch.tensor([2.0, 4.0, 8.0])
    )


def test_orthogonalize_keeps_singular_vectors():
    matrix = torch.randn(3, 16, 8, generator=generator(12, "muon"))
    U, _, V = torch.linalg.svd(matrix, full_matrices=False)
    core = U.mT @ orthogonalize(matrix) @ V.mT
    assert (core - torch.diag_embed(core.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4
    assert core.diagonal(dim1=-2, dim2=-1).min() > 0.5


def test_training_is_reproducible_and_kept(tmp_path):
    config, path, steps = (
        ContextTransformer.Config(d_model=8, d_mlp=16, n_heads=2),
        tmp_path / "run.safetensors",
        6,
    )
    whole, kept = (
        train(S6, config, steps, batch=8),
        train(S6, config, steps, batch=8, path=path),
    )
    again = train(S6, config, steps, batch=8, path=path)
    for weights in zip(*(model.state_dict().values() for model in (whole, kept, again))):
        assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["sho/in-context", "sho/leak", "sho/in-context-ablation", "sho/in-context-rollout"],
)
def test_quick_profiles_run(name):
    values = reproduce(name).values
    if name == "sho/in-context":
        assert values["nmse seed0"].value[3] < values["nmse AR"].value[3] / 10
    if name == "sho/leak":
        assert (
            values["no mask"].value[0]
            < autoregression(REGIMES["follow-up"], 1).nmse
            < values["causal"].value[0]
        )
    if name == "sho/in-context-rollout":
        assert (
            values["head, one Newton step seed0"][-1].value < values["head seed0"][-1].value
        )
