"""Physics of the oscillator, its integrators, the one-token transformer, and what its weights say."""

import itertools
import json
import math
import shutil
import subprocess
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physattn.foundations.experiments import recall, reproduce
from physattn.foundations.runs import generator
from physattn.sho.identify import (
    attention_share,
    change_basis,
    fit_integrator,
    identify,
    integrator_distances,
    name_integrator,
    with_attention_share,
)
from physattn.sho.integrators import (
    INTEGRATORS,
    conformal_projection,
    det_error,
    energy_drift,
    phase_error,
    splitting,
    taylor,
)
from physattn.sho.one_token import (
    DT,
    E_TRAIN,
    OMEGA0,
    RECIPES,
    OneTokenTransformer,
    Recipe,
    energy_norm_error,
    fit,
    rollout,
    rollout_error,
    sample_states,
)
from physattn.sho.oscillator import Oscillator, misprinted_propagator

settings.register_profile("physattn", deadline=None, derandomize=True, database=None)
settings.load_profile("physattn")

REGIMES = [0.0, 0.1, 1.999, 2.0, 2.001, 3.0, 6.0]
rates, times = st.floats(0, 20), st.floats(-1, 1)


def fifty_digits(omega0: float, gamma: float, dt: float) -> np.ndarray:
    with mpmath.workdps(50):
        A = mpmath.matrix([[0, 1], [-(mpmath.mpf(omega0) ** 2), -2 * mpmath.mpf(gamma)]])
        return np.array(mpmath.expm(A * mpmath.mpf(dt)).tolist(), dtype=float)


def relative(M: torch.Tensor | np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(M) - truth) / np.linalg.norm(truth))


# The oscillator


@pytest.mark.parametrize(
    "omega0, gamma, dt",
    [
        *itertools.product(
            [0.0, 0.3, 2.0],
            [0.0, 1e-9, 0.1, 1.9, 2 - 1e-9, 2.0, 2 + 1e-9, 2.1, 6.0],
            [0.0, 1e-6, 0.1, 1.0],
        ),
        (30.0, 0.1, 1.0),
        (2.0, 50.0, 0.1),
        (2.0, 1e3, 1.0),
        (1e-9, 0.0, 1.0),
    ],
)
def test_propagator_is_exact_in_every_regime(omega0, gamma, dt):
    M, truth = (
        Oscillator(omega0, gamma).propagator(dt).numpy(),
        fifty_digits(omega0, gamma, dt),
    )
    assert relative(M, truth) < 1e-14
    library = scipy.linalg.expm(dt * Oscillator(omega0, gamma).generator.numpy())
    assert relative(M, library) < max(1e-14, 2 * relative(library, truth))


@given(rates, rates, times, times)
def test_propagators_form_a_group(omega0, gamma, s, t):
    system = Oscillator(omega0, gamma)
    a, b = system.propagator(s), system.propagator(t)
    assert (a @ b - system.propagator(s + t)).norm() <= 1e-12 * a.norm() * b.norm()


@given(rates, rates, st.floats(0, 1))
def test_determinant_obeys_liouville(omega0, gamma, dt):
    M = Oscillator(omega0, gamma).propagator(dt)
    assert (
        abs(torch.linalg.det(M) - math.exp(-2 * gamma * dt)) <= 1e-13 * float(M.norm()) ** 2
    )


def test_strong_damping_does_not_overflow():
    M = Oscillator(2.0, 1e8).propagator(1e3)
    slow = math.exp(-4 / (2e8) * 1e3)
    assert (
        torch.isfinite(M).all()
        and abs(M[0, 0] - slow) < 1e-12
        and Oscillator(0.0, 0.0).propagator(3.0).tolist() == [[1, 3], [0, 1]]
    )


def test_derivatives_are_finite_at_critical_damping():
    omega0, gamma = (
        torch.full((), 2.0, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(
        lambda w, g: Oscillator(w, g).propagator(0.7), (omega0, gamma)
    )


def test_energy_is_conserved_without_friction_and_falls_with_it():
    start = torch.tensor([0.3, -1.0], dtype=torch.float64)
    free, damped = Oscillator(2.0), Oscillator(2.0, 0.3)
    energy = free.energy(free.trajectory(start, 0.1, 10_000))
    assert (energy / energy[0] - 1).abs().max() < 1e-12
    assert (damped.energy(damped.trajectory(start, 0.1, 300)).diff() < 0).all()


def test_a_batch_is_many_single_oscillators():
    omega0, gamma, dt = (
        torch.tensor([0.5, 2.0, 3.0]),
        torch.tensor([0.0, 2.0, 9.0]),
        torch.tensor([0.1, 0.2, 0.3]),
    )
    batch, start = (
        Oscillator(omega0, gamma),
        torch.randn(3, 2, generator=generator(0, "start")),
    )
    path = batch.trajectory(start, dt, 4)
    assert path.shape == (3, 5, 2) and batch.energy(path).shape == (3, 5)
    for k in range(3):
        single = Oscillator(float(omega0[k]), float(gamma[k]))
        assert torch.equal(path[k], single.trajectory(start[k], float(dt[k]), 4))
        assert torch.allclose(batch.energy(path)[k], single.energy(path[k]), rtol=1e-14)


def test_trajectory_obeys_the_equation_of_motion():
    system, h = Oscillator(2.0, 0.4), 1e-3
    x, p = system.trajectory(torch.tensor([1.0, 0.5]), h, 2000).unbind(-1)
    acceleration = (x[2:] - 2 * x[1:-1] + x[:-2]) / h**2
    assert (acceleration + 0.8 * p[1:-1] + 4 * x[1:-1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: Oscillator(-1.0), "omega0"),
        (lambda: Oscillator(1.0, -0.1), "gamma"),
        (lambda: Oscillator(math.nan), "omega0"),
        (lambda: Oscillator(torch.tensor([1.0, math.inf])), "omega0"),
        (lambda: Oscillator(1.0).propagator(math.inf), "dt"),
        (lambda: Oscillator(1.0).trajectory(torch.zeros(3), 0.1, 2), "state0"),
        (lambda: Oscillator(1.0).trajectory(torch.zeros(2), 0.1, -2), "steps"),
        (lambda: Oscillator(0.0).state(1.0, 0.0), "omega0"),
        (lambda: Oscillator(1.0).state(-1.0, 0.0), "energy"),
        (lambda: taylor(1.0, 0.0, 0.1, 0), "order"),
        (lambda: INTEGRATORS["leapfrog"](1.0, 0.0, math.nan), "dt"),
        (lambda: INTEGRATORS["rk4"](1.0, -1.0, 0.1), "gamma"),
        (lambda: energy_drift(torch.eye(2), Oscillator(1.0, 2.0), 0.1), "gamma"),
        (
            lambda: conformal_projection(torch.diag(torch.tensor([1.0, -1.0])), 0.0, 0.1),
            "det M",
        ),
        (lambda: fit(torch.eye(2), Oscillator(1.0), "sgd"), "recipe"),
        (lambda: identify(torch.eye(2), 0.0), "dt"),
        (lambda: identify(torch.eye(3), 0.1), "M has shape"),
        (lambda: identify(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.1), "det M"),
        (lambda: identify(Oscillator(2.0).propagator(math.pi / 2), math.pi / 2), "M12"),
        (lambda: with_attention_share(OneTokenTransformer(), 1.0), "share"),
    ],
)
def test_bad_input_gets_one_sentence_that_names_it(call, word):
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert (
        word in message
        and "\n" not in message
        and message.endswith(".")
        and ". " not in message
    )


# Integrators


@pytest.mark.parametrize("gamma", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("name", [name for name in INTEGRATORS if name != "exact"])
def test_integrator_converges_at_its_order(name, gamma):
    def error(steps):
        return (
            torch.linalg.matrix_power(INTEGRATORS[name](2.0, gamma, 2 / steps), steps)
            - Oscillator(2.0, gamma).propagator(2.0)
        ).norm()

    assert abs(math.log2(error(100) / error(200)) - INTEGRATORS[name].order) < 0.1


@given(
    st.floats(0.1, 5),
    st.floats(0, 3),
    st.floats(0.01, 0.5),
    st.sampled_from(["kd", "dk", "kdk", "dkd"]),
)
def test_splittings_are_conformally_symplectic(omega0, gamma, dt, stages):
    M, J = (
        splitting(omega0, gamma, dt, stages),
        torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64),
    )
    assert torch.allclose(
        M.T @ J @ M,
        math.exp(-2 * gamma * dt) * J,
        rtol=0,
        atol=1e-12 * float(M.norm()) ** 2,
    )


def test_taylor_and_gauss_approach_the_exponential():
    exact = Oscillator(2.0, 0.3).propagator(0.1)
    assert (taylor(2.0, 0.3, 0.1, 12) - exact).norm() < 1e-15 and (
        INTEGRATORS["gauss4"](2.0, 0.3, 0.1) - exact
    ).norm() < 1e-6


def test_symplectic_methods_keep_the_energy_and_others_lose_it():
    free = Oscillator(2.0)
    drift = {
        name: energy_drift(method(2.0, 0.0, DT), free, DT).item()
        for name, method in INTEGRATORS.items()
    }
    assert (
        drift["exact"] < 1e-11
        and drift["leapfrog"] < 0.02
        and drift["euler-kd"] < 0.3
        and drift["rk2"] > 10
        and drift["euler"] > 1e100
    )
    assert abs(drift["backward-euler"] - 1) < 1e-12


def test_energy_drift_is_that_of_the_worst_trajectory():
    system, M = Oscillator(2.0, 0.1), INTEGRATORS["rk2"](2.0, 0.1, DT)
    starts = system.state(1.0, torch.linspace(0, 2 * math.pi, 721))
    exact = system.trajectory(starts, DT, 300)[:, 251:]
    path = torch.stack(
        [starts @ torch.linalg.matrix_power(M, n).T for n in range(251, 301)], 1
    )
    worst = (system.energy(path) / system.energy(exact) - 1).abs().max()
    assert torch.isclose(worst, energy_drift(M, system, DT, 300, window=50), rtol=1e-3)


def test_projection_mends_the_determinant_and_leaves_the_phase():
    system, M = Oscillator(2.0, 0.1), INTEGRATORS["rk2"](2.0, 0.1, 0.3)
    mended = conformal_projection(M, 0.1, 0.3)
    assert abs(det_error(mended, 0.1, 0.3)) < 1e-14 < abs(det_error(M, 0.1, 0.3))
    assert torch.isclose(
        phase_error(mended, system, 0.3), phase_error(M, system, 0.3), rtol=0, atol=1e-14
    )


# The model of one token


@pytest.mark.parametrize("n_heads", [1, 2])
def test_attention_over_one_token_is_idle(n_heads):
    model = OneTokenTransformer(OneTokenTransformer.Config(n_heads=n_heads), seed=3)
    states = torch.randn(20, 2, generator=generator(0, "states"))
    prediction, cache = model.run_with_cache(states)
    prediction.square().sum().backward()
    attention = model.blocks[0].attn
    assert (cache["blocks.0.attn.hook_pattern"] == 1).all()
    assert (
        attention.W_Q.grad.abs().max() == 0 == attention.W_K.grad.abs().max()
        and attention.W_V.grad.abs().max() > 0
    )
    assert torch.allclose(
        prediction.double(), states.double() @ model.propagator.T + model.offset, atol=1e-5
    )


def test_training_states_have_uniform_energies():
    system = Oscillator(2.0)
    energy = (
        system.energy(sample_states(system, 20_000, E_TRAIN, generator(0, "states")))
        / E_TRAIN
    )
    assert (
        0 <= energy.min()
        and energy.max() <= 1
        and abs(energy.mean() - 1 / 2) < 0.01
        and abs(energy.var() - 1 / 12) < 0.003
    )


def test_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    fit(Oscillator(2.0).propagator(DT), Oscillator(2.0), Recipe("short", steps=3), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_finished_run_resumes_to_the_same_bits(tmp_path):
    system, recipe = Oscillator(2.0), Recipe("short", steps=20)
    first, second = (
        fit(
            system.propagator(DT), system, recipe, seed=1, path=tmp_path / "run.safetensors"
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_weights_survive_the_disk(tmp_path):
    model = fit(Oscillator(2.0).propagator(DT), Oscillator(2.0))
    again = OneTokenTransformer.load(model.save(tmp_path / "spring"))
    assert torch.equal(model.propagator, again.propagator)


def test_the_rollout_error_of_a_wrong_map_grows_linearly_and_has_no_spikes():
    system = Oscillator(2.0)
    exact = system.trajectory(system.state(1.0, 0.3), DT, 200)
    M = Oscillator(2.0 + 1e-5).propagator(DT)
    error = energy_norm_error(rollout(lambda u: u @ M.T, exact[0], 200), exact, system)
    assert (
        abs(error[200] / error[100] - 2) < 0.15
        and (error[1:] / error[:-1])[50:].max() < 1.1
    )


def test_recorded_rollouts_are_measured_again():
    result = recall("sho/blog")
    for recipe, gamma in itertools.product(RECIPES, result.about["config"]["gammas"]):
        model, weights = (
            OneTokenTransformer(),
            result.weights(f"{recipe}/gamma{gamma:g}/seed0"),
        )
        model = model.to(weights["W_E"].dtype)
        model.load_state_dict(weights)
        live, recorded = (
            rollout_error(model, Oscillator(OMEGA0, gamma), DT, 200).max().item(),
            result[f"{recipe}/gamma{gamma:g}"]["steps200"][0],
        )
        assert abs(live - recorded) < (
            1e-12 if recipe == "lbfgs" else 0.1 * recorded + 1e-5
        )


def test_the_published_error_is_a_draw_from_a_lottery():
    errors = {
        recipe: recall("sho/blog")[f"{recipe}/gamma0"]["steps200"] for recipe in RECIPES
    }
    assert len(errors["adamw"]) >= 10 and min(errors["adamw"]) < 1e-4 < max(errors["adamw"])
    assert (
        max(errors["lbfgs"])
        < 1e-12
        < np.median(errors["cosine"])
        < np.median(errors["adamw"])
        < np.median(errors["decay"])
    )


# What the weights say


@pytest.mark.parametrize("gamma", REGIMES)
def test_parameters_are_read_to_rounding_in_every_regime(gamma):
    system = Oscillator(OMEGA0, gamma)
    for seed in range(3):
        read = identify(fit(system.propagator(DT), system, seed=seed), DT)
        assert abs(read.omega0 - OMEGA0) <= 1e-13 and abs(read.gamma - gamma) <= 1e-13
        assert abs(read.damping_residual) < 1e-12 and abs(read.trace_residual) < 1e-14


def test_recorded_identification_holds_for_twenty_seeds():
    result = recall("sho/identify")
    assert result.about["config"]["gammas"] == REGIMES
    for gamma in REGIMES:
        found = result[f"gamma{gamma:g}"]
        assert (
            len(found["omega0"]) >= 20
            and np.abs([found["omega0"], found["gamma"]]).max() <= 1e-13
            and max(found["seconds"]) < 1
        )


@given(st.floats(0.05, 5), st.floats(0, 5), st.floats(0.02, 0.5))
def test_identification_inverts_the_propagator(omega0, gamma, dt):
    M = Oscillator(omega0, gamma).propagator(dt)
    read, lost = (
        identify(M, dt),
        1e-15
        * float(M.norm()) ** 2
        / abs(float(M[0, 1]))
        / min(1.0, float(torch.linalg.det(M))),
    )
    assert (
        abs(read.omega0 - omega0) < 1e-13 * max(omega0, 1)
        and abs(read.gamma - gamma) < 10 * lost / dt
    )
    assert abs(read.trace_residual) < 1e-11


def test_wrong_sign_is_exposed_by_the_residual():
    system = Oscillator(OMEGA0, 0.1)
    right, wrong = (
        identify(fit(M, system, seed=4), DT)
        for M in (system.propagator(DT), misprinted_propagator(OMEGA0, 0.1, DT))
    )
    assert (
        abs(wrong.damping_residual + 9.87e-4) < 1e-6 and abs(right.damping_residual) < 1e-12
    )


@settings(max_examples=30)
@given(st.integers(0, 1000), st.one_of(st.floats(-5, 0.99), st.floats(1.01, 5)))
def test_attention_share_is_gauge(seed, share):
    model = OneTokenTransformer(seed=seed).double()
    with torch.no_grad():
        model.b_E.uniform_(-1, 1, generator=generator(seed, "bias"))
    states = torch.randn(32, 2, dtype=torch.float64, generator=generator(seed, "states"))
    twin = with_attention_share(model, share)
    scale = 1 + model(states).abs().max().item()
    assert torch.allclose(
        twin(states), model(states), rtol=0, atol=1e-12 * scale * (1 + 1 / abs(1 - share))
    )
    assert abs(attention_share(twin) - abs(share)) < 1e-9 * (1 + abs(share))


@pytest.mark.parametrize("n_heads, bias", [(1, False), (1, True), (2, False), (2, True)])
def test_gauge_transformations_work_for_every_configuration(n_heads, bias):
    model = OneTokenTransformer(OneTokenTransformer.Config(n_heads, bias), seed=5).double()
    states = torch.randn(32, 2, dtype=torch.float64, generator=generator(0, "states"))
    for twin in (
        change_basis(model, torch.tensor([[2.0, 1.0], [-0.3, 0.8]])),
        with_attention_share(model, 0.7),
    ):
        assert torch.allclose(
            twin(states), model(states), rtol=0, atol=1e-13
        ) and not torch.allclose(twin.W_E, model.W_E)


def test_every_integrator_is_named_from_recorded_weights():
    result, named = recall("sho/integrators"), 0
    for gamma in result.about["config"]["gammas"]:
        seeds = result.about["config"]["seeds"]
        maps, truth = [], [name for name in INTEGRATORS for _ in range(seeds)]
        for name, k in itertools.product(INTEGRATORS, range(seeds)):
            model = OneTokenTransformer().double()
            model.load_state_dict(result.weights(f"{name}/gamma{gamma:g}/seed{k}"))
            maps.append(model.propagator.detach())
        system = Oscillator(OMEGA0, gamma)
        ranked = (
            torch.stack(list(integrator_distances(torch.stack(maps), DT, system).values()))
            .sort(0)
            .values
        )
        assert (
            name_integrator(torch.stack(maps), DT, system) == truth
            and ranked[0].max() < 1e-14
            and ranked[1].min() > 1e-7
        )
        named += len(truth)
    assert named >= 27


def test_some_integrators_are_aliases_when_the_oscillator_is_unknown():
    map_ = INTEGRATORS["midpoint"](2.0, 0.0, DT)[None]
    omega0, gamma, distance = fit_integrator(map_, DT, INTEGRATORS["verlet"])
    assert distance.item() < 1e-14 and abs(omega0.item() - 2 / math.sqrt(1.01)) < 1e-12
    others = integrator_distances(INTEGRATORS["rk4"](2.0, 0.1, DT)[None], DT)
    assert (
        others["rk4"].item() < 1e-14
        and min(d.item() for name, d in others.items() if name != "rk4") > 1e-7
    )


def test_the_figure_in_the_page_computes_the_same_matrices():
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    script = Path(__file__).parents[1] / "book/_static/oscillator.js"
    cases = [
        (w, g, h)
        for w in (0.0, 0.5, 2.0)
        for g in (0.0, 0.1, 2.0, 3.9)
        for h in (0.01, 0.3, 1.0)
    ]
    code = (
        f"require({json.dumps(str(script))}); const {{INTEGRATORS}} = globalThis.physattnOscillator;"
        f"console.log(JSON.stringify(Object.entries(INTEGRATORS).map(([k, [t, f]]) => [k, t, {json.dumps(cases)}.map(c => f(...c))])))"
    )
    played = json.loads(
        subprocess.run(
            ["node", "-e", code], capture_output=True, text=True, check=True
        ).stdout
    )
    assert [(key, title) for key, title, _ in played] == [
        (key, method.title) for key, method in INTEGRATORS.items()
    ]
    for key, _, matrices in played:
        ours = torch.stack([INTEGRATORS[key](*case) for case in cases]).flatten(1)
        assert torch.allclose(
            torch.tensor(matrices, dtype=torch.float64), ours, rtol=1e-11, atol=1e-12
        ), key


# Experiments


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sho/blog", "sho/identify", "sho/integrators"])
def test_quick_profile_agrees_with_the_record(name, tmp_path):
    quick, full = reproduce(name, profile="quick", folder=tmp_path), recall(name)
    assert all(abs(distance) < 4 for *_, distance in full.compare(quick))
    for key, found in quick.values.items():
        if name == "sho/identify":
            assert np.abs([found["omega0"], found["gamma"]]).max() <= 1e-13
        if name == "sho/integrators":
            assert found["named"] == found["trained_on"]
        if name == "sho/blog":
            assert np.max(found["steps200"]) < 10 * np.max(full[key]["steps200"])
