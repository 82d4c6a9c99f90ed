"""The exchange of free electrons, what is read off the blocks, and the lattice that plays in the page."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from physattn.foundations.experiments import recall
from physattn.foundations.runs import generator
from physattn.slmc.effective import Effective
from physattn.slmc.inside import (
    by_shell,
    changed_pattern,
    level_kernel,
    rkky,
    susceptibility,
)
from physattn.slmc.lattice import DoubleExchange, random_spins, shell_classes, shells

PLAYER = Path(__file__).parents[1] / "book/_static/lattice.js"


def perturbed(system, J=1e-3):
    "chi by the response of the density to a potential at one site, through exact levels."

    def density(v):
        h = system.hopping.clone()
        h[0, 0] += v
        e, u = torch.linalg.eigh(h)
        return u.square() @ torch.sigmoid(-system.beta * (e - system.mu))

    return -(density(J) - density(-J)).view(system.L, system.L) / (2 * J)


@pytest.mark.parametrize(
    "L, mu, T, t",
    [(2, 0, 0.5, 1), (3, 0.4, 0.3, 0.7), (4, 0, 0.5, 1), (5, -1, 0.3, 1), (6, 0, 0.4, 1)],
)
def test_the_susceptibility_is_the_response_to_a_potential(L, mu, T, t):
    system = DoubleExchange(L, t=t, mu=mu, T=T)
    assert (susceptibility(system) - perturbed(system)).abs().max() < 1e-6


@pytest.mark.parametrize("L, mu, T", [(2, 0, 0.5), (3, 0.5, 0.3), (4, 0, 0.2), (5, 0, 0.3)])
def test_the_exact_action_has_these_couplings_at_small_J(L, mu, T):
    S = random_spins(4, L, generator(L, "test"))
    system = DoubleExchange(L, mu=mu, T=T)
    pairs = Effective(Effective.Config(L)).features(S)
    expected = pairs @ rkky(system) - 0.25 * susceptibility(system)[0, 0] * L**2 / T
    curved = []
    for J in (0.1 * T, 0.05 * T):
        now, off = (DoubleExchange(L, J=j, mu=mu, T=T).action(S) for j in (J, 0.0))
        curved.append((now - off) / J**2)
    exact = (4 * curved[1] - curved[0]) / 3
    assert torch.allclose(expected, exact, rtol=1e-5)


def test_limits_of_the_susceptibility():
    hot = susceptibility(DoubleExchange(6, T=1e4)) * 1e4
    assert abs(hot[0, 0] - 0.25) < 1e-6 and hot.flatten()[1:].abs().max() < 1e-6
    cold = susceptibility(DoubleExchange(6, T=0.01))
    assert torch.isfinite(cold).all()
    assert torch.allclose(cold, cold.T) and torch.allclose(cold[1:], cold.flip(0)[:-1])
    # the total response is the compressibility
    system = DoubleExchange(5, mu=0.3, T=0.2)
    e = torch.linalg.eigvalsh(system.hopping)
    n = [torch.sigmoid(-(e - 0.3 - d) / 0.2).mean() for d in (1e-4, -1e-4)]
    assert abs(susceptibility(system).sum() - (n[0] - n[1]) / 2e-4) < 1e-6


def test_the_level_takes_over_when_it_is_cold():
    # Below the gap of 1 to the next levels, nothing else depends on temperature.
    even = (torch.arange(6)[:, None] + torch.arange(6)) % 2 == 0
    system = DoubleExchange(6, T=0.01)
    kernel = level_kernel(system)
    assert kernel[~even].abs().max() < 1e-12
    growth = susceptibility(DoubleExchange(6, T=0.005)) - susceptibility(system)
    assert torch.allclose(growth, 100 * (200 - 100) / 4 / 36**2 * kernel, atol=1e-12)
    with pytest.raises(ValueError, match="mu = 0.1 is not a level"):
        level_kernel(DoubleExchange(6, mu=0.1))


def test_a_matrix_by_shell():
    M = torch.rand(3, 16, 16, generator=generator(0)).double()
    mean, spread = by_shell(M)
    for n, A in enumerate(shells(4)):
        chosen = M[:, A > 0]
        assert abs(mean[n] - chosen.mean()) < 1e-12
        assert abs(spread[n] - chosen.std(correction=0)) < 1e-12


def test_the_attention_can_be_changed():
    model = Effective(Effective.Config(4, "a"), seed=1)
    S = random_spins(5, 4, generator(1))
    name = "blocks.0.hook_pattern"

    def pattern(*hooks):
        with model.hooks(hooks):
            return model.run_with_cache(S, names_filter=name)[1][name]

    M, A = pattern(), shells(4)
    whole = len(A) - 1
    assert torch.equal(pattern(changed_pattern(model, "near", whole)), M)
    near, far = (pattern(changed_pattern(model, how, 1)) for how in ("near", "far"))
    assert torch.equal(near + far, M) and (near * A[2:].sum(0)).abs().max() == 0
    mean = pattern(changed_pattern(model, "mean"))
    assert torch.allclose(by_shell(mean)[0], by_shell(M)[0])
    assert by_shell(mean)[1].max() < 1e-7 < by_shell(M)[1].min()
    assert torch.equal(pattern(changed_pattern(model, "other")), M[[4, 0, 1, 2, 3]])
    ones = pattern(changed_pattern(model, "ones"))
    assert torch.allclose(ones, M.mean().expand_as(M))
    with pytest.raises(ValueError, match=re.escape("how = 'none'")):
        changed_pattern(model, "none")


# The figure that plays


def played(code):
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    code = (
        f"require({json.dumps(str(PLAYER))}); const d = globalThis.physattnLattice; {code}"
    )
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_figure_in_the_page_has_the_recorded_numbers():
    told = played("console.log(JSON.stringify([d.MODEL, d.SHELLS]))")
    model, known = told
    assert [tuple(c) for c in known] == shell_classes(8)
    found = recall("slmc/playable")
    assert model["couplings"] == pytest.approx(found["couplings"], abs=1e-5)
    assert model["smear"] == pytest.approx(found["smear"], abs=1e-5)
    assert model["exact"] == pytest.approx(found["exact"].value, abs=1e-4)
    expected = [found[f"strength {s:g}"].value for s in model["strengths"]]
    assert model["mQ2"] == pytest.approx(expected, abs=1e-4)


def test_the_figure_in_the_page_is_the_librarys_model():
    S = random_spins(1, 8, generator(3))[0]
    flat = json.dumps(S.flatten().tolist())
    J, smeared, mQ2 = played(
        f"const S = Float64Array.from({flat}); const e = d.effective(S);"
        "console.log(JSON.stringify([[...d.J], [...e], d.staggered(e)]))"
    )
    found = recall("slmc/playable")
    linear, smear = (Effective(Effective.Config(8, word)) for word in ("", "c"))
    linear.couplings.data = torch.tensor(found["couplings"]).double()
    smear.blocks[0].W.data = torch.tensor(found["smear"]).double()
    J = torch.tensor(J).double().view(64, 64)
    assert (J - linear.interaction()).abs().max() < 1e-5
    expected = smear.spins(S)
    assert (torch.tensor(smeared).double().view(64, 3) - expected).abs().max() < 1e-4
    sign = 1 - 2 * ((torch.arange(64) // 8 + torch.arange(64)) % 2)
    assert abs(mQ2 - (sign[:, None] * expected).sum(0).square().sum() / 64**2) < 1e-4


def test_the_heat_bath_in_the_page_finds_the_recorded_order():
    for strength, error in ((0.5, 0.004), (1.5, 0.03)):
        seen, expected = played(
            "const rng = d.generator(5); let t = 0, n = 0; for (let c = 0; c < 8; c++) {"
            f"const S = d.random(rng); for (let k = 0; k < 300; k++) {{ d.sweep(S, {strength}, rng);"
            "if (k >= 60) { t += d.staggered(S); n++; } } }"
            f"console.log(JSON.stringify([t / n, d.reference({strength})]))"
        )
        assert abs(seen - expected) < error
