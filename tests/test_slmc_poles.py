"Local Monte Carlo by poles: against diagonalising, against an integral, over a thousand sweeps, and after an interruption."

import math

import pytest
import torch
from scipy import integrate

from physattn.foundations.estimates import Estimate
from physattn.foundations.runs import Run, generator
from physattn.slmc.lattice import DoubleExchange, observables, random_spins
from physattn.slmc.poles import LocalMetropolis, fit_poles, poles_for


@pytest.mark.parametrize("width, K, bound", [(45, 8, 1e-7), (90, 8, 5e-7), (450, 12, 5e-7)])
def test_fit_is_uniform_on_its_interval(width, K, bound):
    poles = fit_poles(float(width), K)
    x = torch.linspace(-width, width, 10001, dtype=torch.float64)
    wrong = (poles(x) - torch.logaddexp(x / 2, -x / 2)).abs().max()
    assert wrong < bound and poles.error == pytest.approx(float(wrong), rel=0.1)


@pytest.mark.parametrize("T", [0.01, 0.05, 1.0, 100.0])
def test_default_poles_reach_their_tolerance(T):
    poles = poles_for(DoubleExchange(4, mu=0.5, T=T))
    assert poles.error < 5e-7 and (poles.y > 0).all()


@pytest.mark.parametrize("T, mu, K", [(0.05, 0.0, 8), (0.05, 0.9, 8), (0.01, -0.4, 12)])
def test_action_differences_within_a_millionth(T, mu, K):
    system = DoubleExchange(6, mu=mu, T=T)
    S = random_spins(6, 6, generator(0))
    x = (system.spectrum(S) - mu) / T
    wrong = -poles_for(system, K)(x).sum(-1) - system.action(S)
    assert wrong.max() - wrong.min() < 1e-6


@pytest.mark.parametrize(
    "L, mu, J, T",
    [
        (2, 0.0, 1.0, 0.05),
        (4, 0.0, 1.0, 0.05),
        (4, 0.8, 2.0, 0.05),
        (3, 0.0, 1.0, 0.05),
        (4, 0.0, 4.0, 0.01),
    ],
)
@pytest.mark.parametrize("step", [None, 0.4])
def test_poles_and_diagonalising_make_the_same_chain(L, mu, J, T, step):
    system = DoubleExchange(L, mu=mu, J=J, T=T)
    S = random_spins(2, L, generator(1))
    chains = [
        LocalMetropolis(system, S, seed=3, method=m, step=step, refresh=4)
        for m in ("poles", "eigen")
    ]
    for one in chains:
        one.sweep(6)
    assert torch.equal(chains[0].S, chains[1].S)
    assert chains[0].accepted == chains[1].accepted > 0


def test_green_functions_are_inverses_after_a_thousand_sweeps():
    for L, mu in ((2, 0.0), (2, 0.4)):
        system = DoubleExchange(L, mu=mu)
        chains = LocalMetropolis(system, random_spins(2, L, generator(2)), refresh=10**6)
        chains.sweep(1000)
        h = system.one_body(chains.S)[:, None] + torch.diag_embed(
            (1j * system.T * chains.poles.y - mu)[:, None].expand(-1, 2 * L * L)
        )
        exact = torch.linalg.inv(h)[:, :, :: 2 if mu == 0 else 1]
        assert (chains._green() - exact).abs().max() < 1e-11 * exact.abs().max()
        assert chains.drift() < 1e-11


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_law_of_one_spin_is_the_integral(mu):
    "With all but one spin of 2 x 2 frozen, the law of the last is a density on the sphere."
    system = DoubleExchange(2, J=3.0, mu=mu, T=0.1)
    S = torch.zeros(4, 3, dtype=torch.float64)
    S[:, 2] = torch.tensor([1.0, -1.0, 1.0, -1.0])

    def density(z):
        turned = S.clone()
        turned[0] = torch.tensor([math.sqrt(1 - z * z), 0.0, z])
        return math.exp(float(system.action(S) - system.action(turned)))

    norm = integrate.quad(density, -1, 1)[0]
    exact = integrate.quad(lambda z: z * density(z), -1, 1)[0] / norm

    class Frozen(LocalMetropolis):
        def _draw(self):
            order, new, log_u = super()._draw()
            log_u[:, 1:] = math.inf
            return order, new, log_u

    chains = Frozen(system, S.repeat(64, 1, 1), seed=4)
    chains.sweep(20)
    z = []
    for _ in range(200):
        chains.sweep()
        z.append(chains.S[:, 0, 2].clone())
    assert torch.equal(chains.S[:, 1:], S[1:].expand(64, 3, 3))
    assert abs(Estimate.from_samples(torch.stack(z, 1)).sigma(exact)) < 4


def test_staggered_order_at_the_published_point():
    "0.290(3) by diagonalising and 0.293(3) by an independent program."
    chains = LocalMetropolis(DoubleExchange(6), random_spins(16, 6, generator(5)), seed=6)
    chains.sweep(40)
    rows = []
    for _ in range(100):
        chains.sweep()
        rows.append(observables(chains.S)["mQ2"])
    found = Estimate.from_samples(torch.stack(rows, 1))
    assert abs((found - Estimate(0.2915, 0.003, 2)).sigma(0)) < 4 and found.error < 0.02


@pytest.mark.parametrize("stop, refresh", [(3, 100), (4, 2)])
def test_interrupted_run_continues_to_the_same_bits(tmp_path, stop, refresh):
    def chains_after(steps, path, at=None):
        chains = LocalMetropolis(
            DoubleExchange(2), random_spins(2, 2, generator(7)), refresh=refresh
        )
        run = Run(steps, {"chains": chains}, path, every=0)
        for step in run:
            if step == at:
                raise KeyboardInterrupt
            chains.sweep()
        return chains

    with pytest.raises(KeyboardInterrupt):
        chains_after(9, tmp_path / "run", stop)
    resumed, unbroken = chains_after(9, tmp_path / "run"), chains_after(9, None)
    assert torch.equal(resumed.S, unbroken.S)
    assert torch.equal(resumed._green(), unbroken._green())
    assert resumed.acceptance == unbroken.acceptance


def test_start_is_left_alone_and_one_chain_will_do():
    S = random_spins(1, 2, generator(8))[0]
    kept = S.clone()
    chains = LocalMetropolis(DoubleExchange(2), S)
    chains.sweep(2)
    assert torch.equal(S, kept) and chains.S.shape == (1, 4, 3)
    assert torch.allclose(chains.S.norm(dim=-1), torch.tensor(1.0).double())
    assert torch.equal(chains.action, chains.system.action(chains.S))


def test_orders_visit_every_site_once():
    chains = LocalMetropolis(DoubleExchange(4), random_spins(1, 4, generator(9)))
    orders = [chains._draw()[0] for _ in range(200)]
    assert all(sorted(order.flatten().tolist()) == list(range(16)) for order in orders)
    first = torch.stack(orders)[:, 0, 0].bincount(minlength=16)
    assert first.min() > 0


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(method="lanczos"), "method = 'lanczos'"),
        (dict(step=-1.0), "step = -1.0"),
        (dict(n_poles=1), "n_poles = 1"),
        (dict(refresh=0), "refresh = 0"),
    ],
)
def test_unknown_options_get_a_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        LocalMetropolis(DoubleExchange(2), random_spins(1, 2, generator(0)), **options)


def test_foreign_spins_and_checkpoints_get_a_sentence():
    four, six = (random_spins(1, L, generator(0)) for L in (4, 6))
    with pytest.raises(ValueError, match=r"\(1, 36, 3\) does not fit"):
        LocalMetropolis(DoubleExchange(4), six)
    state = LocalMetropolis(DoubleExchange(6), six).state_dict()
    with pytest.raises(ValueError, match="lattice and the chains"):
        LocalMetropolis(DoubleExchange(4), four).load_state_dict(state)
    with pytest.raises(ValueError, match="width = 0"):
        fit_poles(0, 4)
