"""Self-learning Monte Carlo, against full transition matrices, closed forms and exact chains."""

import math

import pytest
import torch

from physattn.foundations.runs import generator
from physattn.slmc import sampling
from physattn.slmc.effective import Effective
from physattn.slmc.lattice import DoubleExchange, observables, random_spins
from physattn.slmc.sampling import (
    ORDERS,
    SLMC,
    HeatBath,
    LocalProposals,
    acceptance_probability,
    filtered,
    imbalance,
    moments,
    six_directions,
    visit_matrix,
    visits,
    von_mises_fisher,
)


def model_of(L, blocks="", seed=0, shells=None, size=0.3):
    "Random couplings of some size, and blocks that do something."
    model, rng = Effective(Effective.Config(L, blocks, shells), seed), generator(seed)
    for w in model.parameters():
        noise = torch.randn(w.shape, generator=rng, dtype=w.dtype)
        w.data += (size if w is model.couplings else 0.1) * noise
    return model


@pytest.fixture(scope="module")
def tiny():
    states, codes = six_directions(4)
    system, linear, network = DoubleExchange(2), model_of(2), model_of(2, "ac")
    with torch.no_grad():
        actions = linear(states), network(states), system.action(states)
    return states, codes, HeatBath(linear), network, actions


@pytest.fixture(scope="module")
def sweeps(tiny):
    P = [visit_matrix(tiny[2], i) for i in range(4)]
    sparse = [M.to_sparse() for M in P]

    def along(sites):
        M = torch.eye(len(P[0]), dtype=torch.float64)
        for i in reversed(sites):
            M = sparse[i] @ M
        return M

    random = torch.linalg.matrix_power(sum(P) / 4, 4)
    pair = (along([2, 0, 3, 1]) + along([1, 3, 0, 2])) / 2
    palindrome = along([2, 0, 3, 1, 3, 0, 2])
    ordered = along([0, 1, 2, 3])
    return {"random": random, "pair": pair, "palindrome": palindrome, "ordered": ordered}


def test_a_visit_is_the_conditional_law(tiny):
    states, codes, bath, _, (S_1, _, _) = tiny
    pi = (-S_1).softmax(-1).view(6, 6, 6, 6)
    for i in range(4):
        conditional = pi / pi.sum(i, keepdim=True)
        P = visit_matrix(bath, i)
        x = torch.randint(1296, (50,), generator=generator(i))
        for k in range(6):
            there = codes[x].clone()
            there[:, i] = k
            column = (there * torch.tensor([216, 36, 6, 1])).sum(-1)
            assert torch.allclose(
                P[x, column], conditional[tuple(there.T)], rtol=1e-10, atol=0
            )
        assert (P > 0).sum(-1).eq(6).all()


def test_sweeps_and_their_corrections_are_balanced(tiny, sweeps):
    S_1, S_2, S = tiny[-1]
    for name in ("random", "pair", "palindrome"):
        M = sweeps[name]
        assert imbalance(M, S_1) < 1e-15
        once = filtered(M, S - S_1)
        assert imbalance(once, S) < 1e-15
        assert torch.allclose(once.sum(-1), torch.ones(1296, dtype=torch.float64))
        assert imbalance(once, S_1) > 1e-8  # it is the law of the other weight
    nested = filtered(torch.linalg.matrix_power(filtered(M, S_2 - S_1), 3), S - S_2)
    assert imbalance(nested, S) < 1e-15
    assert (torch.diag(nested) < 0.9).any()


def test_an_ordered_sweep_is_invariant_but_not_balanced(tiny, sweeps):
    S_1, _, S = tiny[-1]
    M, pi_1, pi = sweeps["ordered"], (-S_1).softmax(-1), (-S).softmax(-1)
    assert (pi_1 @ M - pi_1).abs().max() < 1e-16
    assert imbalance(M, S_1) > 1e-8
    wrong = filtered(M, S - S_1)
    assert imbalance(wrong, S) > 1e-8
    assert (pi @ wrong - pi).abs().max() > 1e-8


def test_the_sampler_visits_in_the_orders_of_the_matrices():
    rng = generator(0)
    seen = {name: [visits(name, 4, rng) for _ in range(2000)] for name in ORDERS}
    assert all(s == s[::-1] and len(s) == 7 for s in seen["palindrome"])
    assert all(sorted(s) == [0, 1, 2, 3] for s in seen["shuffled"])
    for name in ("shuffled", "random"):
        there = sum(s[0] < s[-1] for s in seen[name])
        back = sum(s[0] > s[-1] for s in seen[name])
        assert abs(there - back) < 4 * math.sqrt(2000)
    with pytest.raises(ValueError, match="reversible"):
        visits("ordered", 4, rng)


def test_sweeps_go_where_the_order_sends_them(monkeypatch):
    seen = []

    def some(order, n_sites, rng):
        seen.append(order)
        return [2, 0, 2]

    monkeypatch.setattr(sampling, "visits", some)
    S = random_spins(5, 2, generator(0))
    for order in ORDERS:
        for first in (
            HeatBath(model_of(2), order),
            LocalProposals(model_of(2), None, order),
        ):
            moved = (first.sweep(S, generator(1), 2) != S).any(-1).any(0)
            assert moved.tolist() == [True, False, True, False]
            assert seen[-3:] == 3 * [order]  # one call checks the name, two are sweeps


@pytest.mark.parametrize("kappa", [0.0, 1e-9, 0.3, 2.0, 30.0, 500.0])
def test_von_mises_fisher_inverts_its_distribution(kappa):
    axis = torch.tensor([0.48, -0.6, 0.64], dtype=torch.float64)
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    around = torch.randn(1000, 3, generator=generator(1), dtype=torch.float64)
    S = von_mises_fisher((kappa * axis).expand(1000, 3), u, around)
    assert torch.allclose(S.norm(dim=-1), torch.ones_like(u), atol=1e-14)
    if kappa:
        w = S @ axis
        above = torch.expm1(kappa * (w - 1)) / torch.expm1(torch.tensor(-2 * kappa))
        assert torch.allclose(above, u, atol=2e-7 if kappa < 1e-6 else 1e-9)
    side = S - (S @ axis)[:, None] * axis
    assert side[S @ axis < 0.99].mean(0).norm() < 0.1


def test_the_heat_bath_samples_the_effective_model():
    model = model_of(3, seed=2)
    start = random_spins(400, 3, generator(0))
    found = {}
    for name, first in {
        **{order: HeatBath(model, order) for order in ORDERS},
        "local": LocalProposals(model),
        "network": LocalProposals(model.append("c"), step=0.8),
    }.items():
        rng, x = generator(3), []
        S = first.sweep(start, rng, 20)
        for _ in range(25):
            S = first.sweep(S, rng, 2)
            x.append(model.features(S))
        x = torch.stack(x).mean(0)  # one number for each of 400 independent chains
        found[name] = x.mean(0).detach(), (x.std(0) / 20).detach()
    mean, error = found.pop("shuffled")
    for name, (other, its) in found.items():
        assert ((other - mean).abs() < 4 * torch.hypot(error, its)).all(), name
    assert (mean.abs() > 20 * error).any()


SYSTEM = DoubleExchange(2, T=0.1)


def exact_averages():
    "Averages at 2 x 2, by reweighting uniform spins; 60,000 samples are plenty at this T."
    S = random_spins(60000, 2, generator(9))
    w = (-SYSTEM.action(S)).softmax(-1)
    out = {}
    for name in ("mQ2", "neighbour"):
        x = observables(S)[name]
        mean = (w * x).sum()
        out[name] = mean, ((w * (x - mean)).square().sum()).sqrt()
    return out


@pytest.mark.parametrize(
    "stages, options",
    [
        ([model_of(2)], {}),
        ([model_of(2), model_of(2, "ac", size=0.9)], {"repeats": 3}),
        ([model_of(2), model_of(2, "c"), model_of(2, "a")], {"sweeps": 1, "repeats": 2}),
        ([HeatBath(model_of(2), "palindrome")], {}),
        ([LocalProposals(model_of(2, "a"))], {"sweeps": 2}),
    ],
)
def test_bad_models_give_exact_averages(stages, options):
    chain = SLMC(SYSTEM, stages, chains=200, seed=1, **options)
    chain.run(60, warmup=10)
    assert chain.acceptances[-1].value < 0.95
    for name, (mean, error) in exact_averages().items():
        e = chain.estimate(name)
        assert abs(e.value - mean) < 4 * math.hypot(e.error, error), name


def test_actions_and_records_belong_to_the_spins():
    stages = [model_of(2), model_of(2, "a")]
    keep = lambda S: {"S": S} | moments(S)  # noqa: E731
    chain = SLMC(SYSTEM, stages, chains=6, record=keep, every=3)
    run = chain.run(12, warmup=2)
    series = chain.series
    S = series["S"]
    assert S.shape == (6, 4, 4, 3) and series["acceptance"].shape == (6, 10)
    assert torch.allclose(series["action"], SYSTEM.action(S))
    with torch.no_grad():
        assert torch.allclose(series["residual"], SYSTEM.action(S) - stages[1](S))
    assert torch.equal(series["mQ2"], observables(S)["mQ2"])
    assert set(run.history) == {"acceptance 1", "acceptance"} == set(chain.tests)
    assert run.history["acceptance"][-1][1] == pytest.approx(
        series["acceptance"][:, -1].mean().item()
    )


def test_each_test_compares_what_it_should(monkeypatch):
    moves, compared, plain = [], [], acceptance_probability

    class Watched(HeatBath):
        def sweep(self, S, rng, n=1):
            moves.append((S, super().sweep(S, rng, n)))
            return moves[-1][1]

    def watched(d, d_new):
        compared.append((d, d_new))
        return plain(d, d_new)

    linear, network = model_of(2), model_of(2, "ac", size=0.9)
    chain = SLMC(SYSTEM, [Watched(linear), network], chains=20, repeats=3)
    moves.clear()
    monkeypatch.setattr(sampling, "acceptance_probability", watched)
    chain.run(5)
    by_network = [pair for k, pair in enumerate(compared) if k % 4 < 3]
    with torch.no_grad():
        for spins, pair in zip(moves, by_network, strict=True):
            for S, d in zip(spins, pair):
                assert torch.allclose(d, network(S) - linear(S), rtol=0, atol=1e-10)
        for (S, _), (d, _) in zip(moves[::3], compared[3::4], strict=True):
            assert torch.allclose(d, SYSTEM.action(S) - network(S), rtol=0, atol=1e-10)


def test_acceptance_probability_is_metropolis():
    d, new = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([1.0, 0.0, -2.0])
    assert torch.allclose(
        acceptance_probability(d, new), torch.tensor([math.exp(-1), 1, 1])
    )


def resumable(record=moments, seed=2, stages=None, system=SYSTEM, chains=6):
    return SLMC(
        system, stages or [model_of(2), model_of(2, "a")], chains, seed=seed, record=record
    )


def test_resumes_to_the_same_bits(tmp_path):
    whole, calls = resumable(), []
    whole.run(9)

    def cut(S):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return moments(S)

    with pytest.raises(KeyboardInterrupt):
        resumable(cut).run(9, tmp_path / "chains", seconds=0.0)
    again = resumable()
    run = again.run(9, tmp_path / "chains")
    assert torch.equal(again.S, whole.S) and len(run.history["acceptance"]) == 9
    for name, x in whole.series.items():
        assert torch.equal(x, again.series[name])


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "chains"
    resumable().run(2, path)
    larger = DoubleExchange(3), [model_of(3), model_of(3, "a")]
    for other, why in (
        (resumable(system=larger[0], stages=larger[1]), "DoubleExchange"),
        (resumable(system=DoubleExchange(2, T=0.2)), "DoubleExchange"),
        (resumable(chains=4), "6 chains"),
        (resumable(stages=[model_of(2)]), "stages"),
        (resumable(stages=[model_of(2), model_of(2, "a", seed=5)]), "other weights"),
    ):
        with pytest.raises(ValueError, match=why) as error:
            other.run(2, path)
        assert "delete it, or give another path" in str(error.value)


def test_bad_input_is_refused():
    linear, network = model_of(2), model_of(2, "a")
    trained = model_of(2)
    trained.about["trained"] = {"T": 0.05}
    for bad, why in (
        (lambda: SLMC(SYSTEM, []), "stages is empty"),
        (lambda: SLMC(SYSTEM, [model_of(4)]), "L = 4"),
        (lambda: SLMC(SYSTEM, [linear, model_of(3, "a")]), "stage 1 has L = 3"),
        (lambda: SLMC(SYSTEM, [network]), "linear model"),
        (lambda: SLMC(SYSTEM, [trained]), "trained at T = 0.05"),
        (lambda: SLMC(SYSTEM, [linear], chains=0), "chains = 0"),
        (lambda: SLMC(SYSTEM, [linear], sweeps=0), "sweeps = 0"),
        (
            lambda: SLMC(SYSTEM, [linear], chains=3, S=random_spins(2, 2, generator(0))),
            "3 chains",
        ),
        (lambda: SLMC(SYSTEM, [linear], 1, S=torch.ones(1, 4, 3).double()), "length"),
        (lambda: HeatBath(Effective(Effective.Config(2, degree=2))), "degree = 2"),
        (lambda: HeatBath(linear, "ordered"), "'ordered'"),
        (lambda: LocalProposals(network, step=-1.0), "step = -1"),
        (lambda: six_directions(9), "n_sites = 9"),
        (lambda: SLMC(SYSTEM, [linear]).estimate("m2"), "before a run"),
    ):
        with pytest.raises(ValueError, match=why):
            bad()


def test_actions_that_are_not_finite_stop_the_run():
    broken = model_of(2)
    broken.E0.data += float("nan")
    with pytest.raises(ArithmeticError, match="acceptance"):
        SLMC(SYSTEM, [broken], 2).run(1)


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    chain = resumable(chains=200)
    chain.run(40, f"{folder}/chains")
    torch.save({"series": chain.series, "mine": chain.S}, f"{folder}/found-{rank}")
    with pytest.raises(ValueError, match="over 2 processes"):
        resumable(chains=3)
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_chains(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"found-{i}") for i in range(2))
    for name, x in first["series"].items():
        assert torch.equal(x, second["series"][name]) and x.shape[:2] == (200, 40)
    assert not torch.equal(first["mine"], second["mine"])
    assert (tmp_path / "chains").exists() and (tmp_path / "chains-1").exists()
    alone = resumable(chains=200)
    alone.run(40)
    for name in ("action", "mQ2", "acceptance"):
        together = sampling.Estimate.from_samples(first["series"][name][:, 10:].numpy())
        one = sampling.Estimate.from_samples(alone.series[name][:, 10:].numpy())
        assert abs(together.sigma(one)) < 4
