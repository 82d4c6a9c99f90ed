"""The trials of the claims about layers: fair data, acceptances, exponents, curves."""

import numpy as np
import pytest
import torch

from physattn.foundations.estimates import Estimate
from physattn.foundations.experiments import Result
from physattn.slmc import layers as page
from physattn.slmc.effective import Effective
from physattn.slmc.lattice import DoubleExchange, random_spins
from physattn.slmc.layers import (
    Bench,
    against_temperature,
    chi_square,
    grown_model,
    layers,
    measured_acceptance,
    power_law,
)
from physattn.slmc.training import mse

TINY = dict(L=4, families={"pair": ("c", 2, 1)}, n=128, tests=4, chains=16, T=0.2)


@pytest.fixture(scope="module")
def bench():
    return Bench(DoubleExchange(4, T=0.1), n=320, chains=32, tests=16, seed=3)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    return folder, layers(**TINY, folder=folder)


def test_training_and_test_data_share_no_configuration(bench):
    (a, _), (b, _), (test, _) = (bench.data(i) for i in (0, 1, 99))
    flat = [x.flatten(1) for x in (a, b, test)]
    for x, y in ((0, 1), (0, 2), (1, 2)):
        assert torch.cdist(flat[x], flat[y]).min() > 1
    assert bench.data(0)[0] is a


def test_acceptance_is_one_where_the_model_is_exact():
    system, S = DoubleExchange(4, J=0.0), random_spins(8, 4, torch.Generator())
    free = Effective(Effective.Config(4))
    seen = measured_acceptance(system, free, free, S, tests=4, sweeps=2)
    assert abs(seen.value - 1) < 1e-9


def test_measured_acceptance_is_the_predicted_one(bench):
    for shells in (None, 2):
        found = bench.judge(bench.linear(shells))
        assert abs(found["measured"].sigma(found["predicted"])) < 4


def test_a_network_that_does_nothing_is_accepted_like_the_linear_model(bench):
    linear = bench.linear(None)
    S = bench.data(99)[0].view(32, -1, 16, 3)[:, -1]
    seen = [
        measured_acceptance(bench.system, model, linear, S, tests=16, sweeps=12, seed=k)
        for k, model in enumerate((linear, linear.append("c")))
    ]
    assert abs(seen[0].sigma(seen[1])) < 4


def test_the_antipode_is_what_the_linear_model_lacks(bench):
    found = bench.by_shells()
    assert list(found) == ["1", "2", "3", "4", "5", "4 and the last"]
    errors = {name: run["test"].value for name, run in found.items()}
    assert errors["5"] < 0.3 * errors["4"]
    assert errors["4 and the last"] == pytest.approx(errors["5"])


def test_blocks_lower_the_training_error_and_the_test_error(bench):
    found, model = bench.grown("a", 2, 0)
    assert model.config.blocks == "a" and found["a"]["parameters"] == model.n_parameters
    assert found["a"]["train"] < found["linear"]["train"]
    assert found["a"]["test"].value < found["linear"]["test"].value
    assert found["a"]["test"].value == pytest.approx(mse(model, *bench.data(99)).value)


def test_a_killed_run_goes_on_with_the_next_piece(kept, monkeypatch):
    folder, before = kept
    monkeypatch.setattr(page, "dataset", None)
    again = layers(**TINY, folder=folder)
    assert set(again) == set(before) and again["shells"] == before["shells"]
    (folder / "layers-pair-0.json").unlink()
    with pytest.raises(TypeError):
        layers(**TINY, folder=folder)


def test_weights_of_the_deepest_stack_come_with_the_result(kept):
    _, values = kept
    tensors = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
    result = Result("slmc/layers", {}, {"config": TINY}, tensors)
    model = grown_model(result, "pair")
    data = Bench(DoubleExchange(4, T=0.2), 128, 16, 4, 0).data(99)
    assert mse(model, *data).value == pytest.approx(values["pair, 0"]["c"]["test"].value)
    with pytest.raises(KeyError, match="crowd"):
        grown_model(result, "crowd")


def test_power_law():
    x = np.arange(1, 7)
    steep = power_law(x, [3 * x**-0.5, 2 * x**-0.7])
    assert steep.value == pytest.approx(-0.6) and 0 < steep.error < 0.1
    for bad, word in (([1.0, 2.0], "shape"), ([[1.0, 0.0]], "positive")):
        with pytest.raises(ValueError, match=word):
            power_law([1, 2], bad)
    with pytest.raises(ValueError, match="positive"):
        power_law([0, 1], [[1.0, 2.0]])


def test_chi_square_of_equal_laws():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        a, b = (
            [Estimate(x, e, 9) for x, e in zip(e * rng.normal(size=5), e)]
            for e in ([1.0, 2, 3, 1, 0.5], [2.0, 1, 1, 1, 0.5])
        )
        found.append(chi_square(a, b))
    chi2, p = np.array(found).T
    assert abs(chi2.mean() - 5) < 4 * (10 / 400) ** 0.5
    assert abs(p.mean() - 0.5) < 4 * (1 / 12 / 400) ** 0.5
    with pytest.raises(ValueError):
        chi_square(a, b[1:])


def test_observables_agree_and_go_on(tmp_path, monkeypatch):
    given = dict(L=4, T=(0.3, 0.2), records=12, chains=16, blocks="c", folder=tmp_path)
    found = against_temperature(**given)
    points = list(found.values())
    assert list(found) == ["T=0.3", "T=0.2"]
    for name in ("linear", "network"):
        for key in ("m2", "mQ2", "neighbour", "action"):
            curves = [[p[who][key] for p in points] for who in ("exact", name)]
            assert chi_square(*curves)[1] > 1e-4
        assert points[1][name]["acceptance"].value > 0.9
    monkeypatch.setattr(page, "dataset", None)
    again = against_temperature(**given)
    assert again["T=0.2"]["network"]["mQ2"] == points[1]["network"]["mQ2"]
