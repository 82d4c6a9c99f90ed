"""Fits of effective models: planted weights are found, derivatives are right, chains are separate, cooling arrives."""

import math

import numpy as np
import pytest
import torch

from physattn.foundations.runs import generator
from physattn.slmc.effective import Effective
from physattn.slmc.lattice import DoubleExchange, random_spins
from physattn.slmc.training import (
    dataset,
    fit,
    fit_readout,
    grow,
    jacobian,
    mse,
    residuals,
    self_learn,
)


def stack(blocks="", shells=None, L=4, seed=0, shake=0.0, **more):
    model, rng = Effective(Effective.Config(L, blocks, shells, **more), seed), generator(3)
    with torch.no_grad():
        for w in model.parameters():
            w += shake * torch.randn(w.shape, generator=rng, dtype=w.dtype)
    return model


@pytest.fixture(scope="module")
def data():
    system = DoubleExchange(4, T=0.1)
    options = dict(chains=64, thermalize=30, sweeps=2)
    return system, dataset(system, 640, 0, **options), dataset(system, 640, 1, **options)


def test_the_readout_is_numpys_least_squares(data):
    _, (S, action), _ = data
    model = stack("c", shake=0.1)
    loss = fit_readout(model, S, action)
    with torch.no_grad():
        X = np.c_[model.features(S).numpy(), np.ones(len(S))]
    best, rest, *_ = np.linalg.lstsq(X, action.numpy(), rcond=None)
    assert np.allclose([*model.couplings.tolist(), model.E0.item()], best)
    assert math.isclose(loss, rest[0] / len(S), rel_tol=1e-9)
    assert math.isclose(loss, residuals(model, S, action).square().mean(), rel_tol=1e-9)


@pytest.mark.parametrize(("blocks", "degree"), [("av", 1), ("ca", 1), ("a", 2)])
def test_the_jacobian_is_autograds(blocks, degree):
    model, S = stack(blocks, shake=0.1, degree=degree), random_spins(7, 4, generator(1))
    X = jacobian(model, S, samples_per_call=3)
    for row, spins in zip(X, S):
        slopes = torch.autograd.grad(model(spins), list(model.parameters()))
        assert torch.allclose(row, torch.cat([g.flatten() for g in slopes]), atol=1e-12)


@pytest.mark.parametrize("blocks", ["c", "v", "a"])
def test_planted_weights_are_found(blocks):
    "The truth is a model of the same kind, shaken: no residual may be left, on other configurations either."
    truth, S = stack(blocks, shake=0.05, seed=4), random_spins(1200, 4, generator(2))
    with torch.no_grad():
        action = truth(S)
    found = stack(blocks, seed=4)
    run = fit(found, S[:800], action[:800], tolerance=1e-6, steps=60)
    assert residuals(found, S[800:], action[800:]).var() < 1e-6 * action.var()
    losses = [value for _, value in run.history["mse"]]
    assert all(b <= a for a, b in zip(losses, losses[1:]))


def test_levenberg_marquardt_and_adamw_agree(data):
    system, train, test = data
    found = {}
    for method, options in (("lm", {}), ("adamw", {"steps": 600, "lr": 0.003})):
        model = stack("c")
        run = fit(model, *train, method, system=system, test=test, **options)
        found[method] = mse(model, *test)
        about = model.about["trained"]
        assert (about["method"], about["T"], about["L"]) == (method, 0.1, 4)
        assert set(run.history) == {"mse", "seconds", "test"}
    linear = stack()
    fit(linear, *train, "readout")
    assert found["lm"].value < 0.8 * mse(linear, *test).value
    assert math.isclose(found["lm"].value, found["adamw"].value, rel_tol=0.1)


def test_each_layer_lowers_the_training_error(data):
    system, train, test = data
    start = stack()
    fit_readout(start, *train)
    grown = grow(start, "ca", *train, tries=2, system=system)
    errors = [residuals(m, *train).var().item() for m in (start, *grown)]
    assert errors[0] > errors[1] > errors[2]
    assert [m.config.blocks for m in (start, *grown)] == ["", "c", "ca"]
    assert mse(grown[-1], *test).value < mse(start, *test).value


def test_data_come_chain_by_chain_from_the_exact_ensemble(data):
    system, (S, action), (other, _) = data
    assert torch.allclose(action, system.action(S))
    assert not (S[:, None, 0] == other[None, :, 0]).all(-1).any()
    assert torch.equal(dataset(system, 4, 5, 2, 1, 1)[0], dataset(system, 4, 5, 2, 1, 1)[0])
    near = (S.view(64, 10, -1)[:, 0] * S.view(64, 10, -1)[:, 1]).sum(-1).mean()
    far = (S.view(64, 10, -1)[:-1, 0] * S.view(64, 10, -1)[1:, 0]).sum(-1).mean()
    assert near > far + 1


def test_cooling_arrives_in_the_ensemble(data):
    system, _, test = data
    model, chains, history = self_learn(
        system, stack("c"), n=128, chains=32, thermalize=3, seed=9
    )
    assert [stage["T"] for stage in history] == [0.8, 0.4, 0.2, 0.1]
    assert model.about["trained"]["T"] == 0.1 and chains.shape == (32, 16, 3)
    linear = stack()
    fit_readout(linear, *test)
    assert mse(model, *test).value < mse(linear, *test).value
    action = system.action(chains)
    error = math.hypot(action.std() / 32**0.5, test[1].std() / 8)
    assert abs(action.mean() - test[1].mean()) < 4 * error


def test_what_moves_the_chains_sees_the_model_of_the_present_temperature():
    seen = []

    def move(system, model, S, seed):
        seen.append((system.T, model.couplings.detach().clone(), seed))
        return random_spins(len(S), 4, generator(seed))

    system = DoubleExchange(4, T=0.5)
    self_learn(system, stack(), [1.0, 0.5], n=128, chains=32, thermalize=0, move=move)
    assert [T for T, *_ in seen] == [1.0] * 4 + [0.5] * 4
    assert seen[0][1].abs().max() == 0 and seen[4][1].abs().max() > 0
    assert len({seed for *_, seed in seen}) == 8
    hot, S = stack(), random_spins(128, 4, generator(0))
    S = torch.stack([random_spins(32, 4, generator(seed)) for *_, seed in seen[:4]], 1)
    S = S.flatten(0, 1)
    fit_readout(hot, S, DoubleExchange(4, T=1.0).action(S))
    assert torch.allclose(seen[4][1], 2 * hot.couplings)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda S, a: fit(stack(), S, a, "newton"), ValueError, "method = 'newton'"),
        (lambda S, a: fit(stack(), S[:5], a[:5]), ValueError, "5 configurations"),
        (lambda S, a: fit(stack(), S, a[1:]), ValueError, "one action for each"),
        (lambda S, a: fit(stack(), S, a * math.nan), ArithmeticError, "not all finite"),
        (lambda S, a: fit(stack(L=5), S, a), ValueError, "does not fit a model with L = 5"),
        (
            lambda S, a: self_learn(DoubleExchange(4, T=0.1), stack(), [0.05, 0.1]),
            ValueError,
            "do not fall to T = 0.1",
        ),
    ],
)
def test_bad_input_is_named(data, call, error, message):
    with pytest.raises(error, match=message):
        call(*data[1])
