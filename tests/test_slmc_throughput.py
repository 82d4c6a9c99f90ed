"""Effective samples per second and models on other lattices."""

import pytest
import torch

from physattn.foundations.experiments import Result
from physattn.foundations.runs import generator
from physattn.slmc.effective import Effective
from physattn.slmc.lattice import DoubleExchange, random_spins
from physattn.slmc.throughput import (
    baseline,
    effective_rate,
    stored,
    throughput,
    throughput_of,
    trained,
    transferred,
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def remembering(r, chains=50, n=2000):
    "Numbers with autocorrelation r^t, whose time is (1 + r)/(1 - r)."
    x = noise(chains, n)
    series = [x[:, 0]]
    for new in x[:, 1:].T:
        series.append(r * series[-1] + (1 - r * r) ** 0.5 * new)
    return torch.stack(series, 1)


def test_the_slowest_series_counts_in_steps():
    slow, fast = remembering(0.75), remembering(0.2)
    rate, tau = effective_rate(0.002, (fast, 1), (slow, 1))
    assert abs(tau.sigma(7)) < 4
    assert rate.value == pytest.approx(500 / tau.value)
    # every third number of a series with r = 0.2 is independent: three steps
    rate, tau = effective_rate(0.002, (fast[:, ::3].contiguous(), 3))
    assert abs(tau.sigma(3 * (1 + 0.2**3) / (1 - 0.2**3))) < 4


def test_no_time_is_refused():
    with pytest.raises(ValueError, match="seconds = 0"):
        effective_rate(0, (noise(2, 20), 1))


def test_baseline_returns_exact_actions_and_both_prices():
    system = DoubleExchange(4, T=0.2)
    found, S, action = baseline(system, chains=8, sweeps=24, thermalize=4, every=3)
    assert S.shape == (8, 8, 16, 3) and action.shape == (8, 8)
    torch.testing.assert_close(system.action(S), action)
    assert found["poles"]["tau"] == found["diagonalising"]["tau"]
    for r in found.values():
        expected = 1e3 / (r["tau"].value * r["ms"])
        assert r["rate"].value == pytest.approx(expected)


@pytest.fixture(scope="module")
def small():
    system = DoubleExchange(4, T=0.2)
    S = random_spins(400, 4, generator(1))
    return system, S, system.action(S)


def test_schemes_accept_and_end_in_exact_actions(small):
    system, S, action = small
    models = trained(system, S, action)
    assert {name: m.config.blocks for name, m in models.items()} == {
        "linear": "",
        "c": "c",
        "a": "a",
    }
    for name in models:
        out, walk = throughput_of(system, models, name, S[:16], steps=8)
        assert 0.7 < out["acceptance"].value <= 1 and out["ms"] > 0
        seen = walk.series["S"].flatten(0, 1)
        torch.testing.assert_close(
            system.action(seen), walk.series["action"].flatten(), atol=1e-8, rtol=0
        )


def test_only_attention_depends_on_the_scale(small):
    L, S, action = 4, *small[1:]
    data, test = (S[:300], action[:300]), (S[300:], action[300:])
    for blocks in ("", "c", "a"):
        model = Effective(Effective.Config(3, blocks), seed=1)
        for w in model.blocks.parameters():
            w.data += 0.3 * noise(*w.shape, seed=2)
        out = transferred(model, L, data, test)
        errors = [out[k]["refit"].value for k in ("1/N", "no scale")]
        assert (errors[0] != pytest.approx(errors[1], rel=1e-6)) == (blocks == "a")
        # new couplings have all shells, and cannot be worse than those of another lattice
        assert all(r["refit"].value < r["raw"].value for r in out.values())


def test_quick_experiment_carries_models_from_lattice_to_lattice():
    out = throughput(sizes=((2, 8), (4, 8)), chains=8, sweeps=60, T=0.5)
    assert out["2x2"]["carried"] == {} and set(out["4x4"]["carried"]) == {
        "linear",
        "c",
        "a",
    }
    assert out["4x4"]["linear"]["acceptance"].value > 0.9
    result = Result("slmc/throughput", {}, {}, {k: w for k, w in out.items() if "/" in k})
    model = stored(result, 4, "c")
    assert model.config.blocks == "c" and torch.equal(model.couplings, out["4 c/couplings"])
    with pytest.raises(KeyError, match="6 c"):
        stored(result, 6, "c")
