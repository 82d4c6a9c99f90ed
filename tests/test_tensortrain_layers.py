"Tensor-train layers: every plan is the dense layer, gradients, initial variance, bad input."

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from physattn.foundations.runs import generator
from physattn.tensortrain.layers import (
    Plan,
    TTConv2d,
    TTLinear,
    choose_plan,
    initial_cores,
    plans,
    steps,
    timings,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


CASES = [
    ((2, 3, 4), (4, 1, 3), 3),
    ((2, 2, 3, 2), (3, 2, 2, 2), (4, 9, 4)),
    ((6,), (5,), 1),
]


@pytest.mark.parametrize("n, m, ranks", CASES)
def test_every_plan_is_the_dense_layer_and_has_its_gradients(n, m, ranks):
    layer = TTLinear(n, m, ranks).double()
    x = normal(2, 3, math.prod(n)).requires_grad_()
    wanted = [x, layer.bias, *layer.cores]
    y = F.linear(x, layer.tensor_train().full(), layer.bias)
    gradients = torch.autograd.grad(y.square().sum(), wanted)
    for plan in [*plans(len(n)), "model", "tuned"]:
        layer.plan = plan
        z = layer(x)
        assert z.shape == y.shape and torch.allclose(z, y), plan
        for a, b in zip(torch.autograd.grad(z.square().sum(), wanted), gradients):
            assert torch.allclose(a, b), plan
    assert torch.allclose(layer.weight(), layer.tensor_train().full())


@pytest.mark.parametrize("plan", plans(3))
def test_first_and_second_derivatives(plan):
    layer = TTLinear((2, 1, 2), (1, 2, 2), 2, plan=plan).double()
    names = [name for name, _ in layer.named_parameters()]

    def f(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,))

    inputs = (normal(2, 4).requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(f, inputs) and torch.autograd.gradgradcheck(f, inputs)


def test_all_plans_are_listed_once():
    for d in range(1, 6):
        listed = plans(d)
        assert len(set(listed)) == len(listed) == 4 * (2 ** (d - 1) - 1) + 1
        assert all(sum(p.groups) == d for p in listed)


def test_steps_count_what_is_multiplied():
    "By hand, core by core from either end: outputs made, times what is summed."
    n, m, r = (2, 3, 4), (4, 5, 2), (1, 3, 6, 1)
    count = sum(
        left * a * b * right for left, a, b, right in steps(n, m, r, Plan((1, 1, 1)))
    )
    assert count == 2 * 3 * 4 * 2 * 6 + 2 * 3 * 2 * 6 * 5 * 3 + 2 * 5 * 2 * 3 * 4
    turned = sum(
        left * a * b * right for left, a, b, right in steps(n, m, r, Plan((1, 1, 1), False))
    )
    assert turned == 4 * 3 * 2 * 12 + 4 * 5 * 6 * 9 * 4 + 4 * 5 * 2 * 6 * 4
    dense = sum(left * a * b * right for left, a, b, right in steps(n, m, r, Plan((3,))))
    assert dense == 24 * 40


@pytest.mark.parametrize("ranks", [1, 4, (8, 32)])
def test_weights_start_with_the_variance_of_a_dense_layer(ranks):
    layer, linear = TTLinear((4, 8, 8), (8, 4, 8), ranks, seed=3), nn.Linear(256, 256)
    mean_square = layer.weight().square().mean().item()
    assert abs(mean_square * 3 * 256 - 1) < 1e-4
    assert abs(mean_square / linear.weight.square().mean().item() - 1) < 0.05
    x = torch.randn(4000, 256, generator=generator(0))
    # A random input keeps its size up to the fluctuation of a norm.
    assert abs((layer(x) - layer.bias).square().mean().item() * 3 - 1) < 0.1


def test_initial_cores_are_seeded_and_follow_the_formula():
    given = (4, 8, 8), (8, 4, 8), (1, 4, 4, 1), 1.0
    a, b, c = (initial_cores(*given, seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a[0], c[0])
    v = torch.stack(
        [
            torch.stack([x.square().mean() for x in initial_cores(*given, s)])
            for s in range(40)
        ]
    ).mean(0)
    assert torch.allclose(v, torch.full((3,), 16 ** (-1 / 3)), rtol=0.15)


def test_from_linear_is_exact_at_full_rank_and_best_below():
    linear = nn.Linear(24, 30).double()
    x = normal(5, 24)
    exact = TTLinear.from_linear(linear, (2, 3, 4), (5, 3, 2), 1000)
    assert exact.ranks == (1, 10, 8, 1) and torch.allclose(exact(x), linear(x))
    errors = []
    for rank in (1, 2, 4, 8):
        layer = TTLinear.from_linear(linear, (2, 3, 4), (5, 3, 2), rank)
        errors.append((layer.weight() - linear.weight).norm().item())
    assert errors == sorted(errors, reverse=True) and errors[0] < linear.weight.norm()
    assert (
        TTLinear.from_linear(nn.Linear(24, 30, bias=False), (4, 6), (5, 6), 2).bias is None
    )


@pytest.mark.parametrize("groups", [(2,), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": "same"}])
def test_convolution(groups, options):
    conv = nn.Conv2d(6, 8, (3, 1), **options).double()
    x = normal(2, 6, 7, 5)
    exact = TTConv2d.from_conv(conv, (2, 3), (4, 2), 100, plan=Plan(groups))
    assert torch.allclose(exact(x), conv(x)) and torch.allclose(exact.weight(), conv.weight)
    fresh = TTConv2d((2, 3), (4, 2), (3, 1), (4, 3), **options, plan=Plan(groups)).double()
    dense = F.conv2d(x, fresh.weight(), fresh.bias, fresh.stride, fresh.padding)
    assert torch.allclose(fresh(x), dense)
    assert abs(fresh.weight().square().mean().item() * 3 * 18 - 1) < 1e-4
    parameters = [p for p in fresh.parameters() if p is not fresh.bias]
    a, b = (torch.autograd.grad(y.square().sum(), parameters) for y in (fresh(x), dense))
    assert all(torch.allclose(g, h) for g, h in zip(a, b))


def test_a_layer_learns_a_train():
    target = TTLinear((3, 4), (4, 3), 2, seed=1)
    layer = TTLinear((3, 4), (4, 3), 2, seed=2)
    x, optimizer = (
        torch.randn(64, 12, generator=generator(0)),
        torch.optim.Adam(layer.parameters(), 0.02),
    )
    y = target(x).detach()
    for _ in range(600):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 1e-3 * y.var()


def test_the_model_chooses_always_the_same_and_dense_for_full_ranks():
    layer = TTLinear((8, 8), (8, 8), 64, plan="model")
    x = torch.zeros(128, 64)
    assert choose_plan(x, list(layer.cores), "model", layer._shape) == Plan((2,))
    thin = TTLinear((16, 16, 16), (16, 16, 16), 1)
    plan = choose_plan(torch.zeros(128, 4096), list(thin.cores), "model", thin._shape)
    assert len(plan.groups) > 1


def test_the_state_is_the_cores_and_bias():
    layer, other = TTLinear((4, 4), (4, 4), 3, seed=0), TTLinear((4, 4), (4, 4), 3, seed=1)
    x = torch.randn(3, 16, generator=generator(0))
    other.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(x), other(x), atol=1e-6)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 16 * 3 + 16


@pytest.mark.parametrize(
    "call, word",
    [
        (
            lambda: TTLinear.from_linear(nn.Linear(24, 30), (2, 3), (5, 6), 2),
            "multiply to 6",
        ),
        (lambda: TTLinear((2, 3), (5, 6, 1), 2), "paired"),
        (lambda: TTLinear((2, 3), (2, 2), (5,)), "bounds"),
        (lambda: TTLinear((2, 3), (2, 2), 2, plan="fast"), "plan = 'fast'"),
        (lambda: TTLinear((2, 3), (2, 2), 2, plan=Plan((3,))), "add up to 2"),
        (lambda: TTLinear((2, 3), (2, 2), 2)(torch.zeros(4, 5)), "6 inputs"),
        (lambda: TTConv2d((2,), (2,), 3, 2, plan=Plan((1,), False)), "leftward=True"),
        (lambda: TTConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2), (4,), (4,), 2), "groups"),
        (
            lambda: TTConv2d.from_conv(nn.Conv2d(4, 4, 3), (2, 3), (2, 2), 2),
            "multiply to 6",
        ),
    ],
)
def test_bad_input_is_said_in_a_sentence(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_tensorly_torch_agrees():
    tltorch = pytest.importorskip("tltorch")
    n, m = (2, 3, 4), (4, 3, 2)
    layer = TTLinear(n, m, 4)
    peer = tltorch.FactorizedLinear(n, m, factorization="blocktt", rank=layer.ranks)
    with torch.no_grad():
        for theirs, ours in zip(peer.weight.factors, layer.cores):
            theirs.copy_(ours)
        peer.bias.copy_(layer.bias)
    x = torch.randn(5, 24, generator=generator(0))
    assert torch.allclose(layer(x), peer(x), atol=1e-5)


@pytest.mark.slow
def test_timings_run():
    out = timings((((4, 4), (4, 4)),), (2,), 0.1, ("naive",))["4x4-4x4-2"]
    assert out["tuned"] > 0 and out["dense"] > 0 and sum(out["plan"][0]) == 2


def test_tuning_leaves_the_random_state_alone_and_is_remembered():
    from physattn.tensortrain import layers

    layer, x = TTLinear((4, 4), (4, 4), 2), torch.ones(5, 16)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        first = layer(x)
        known = layers._by_time.cache_info().misses
        assert torch.equal(layer(x), first)
    assert layers._by_time.cache_info().misses == known
    assert torch.equal(torch.random.get_rng_state(), state)
    layer(x)
    assert layers._by_time.cache_info().misses == known + 1


def test_function_transforms_pass_through_a_layer_that_tunes():
    layer, x = TTLinear((2, 5), (5, 2), 2).double(), normal(7, 10)
    rows = torch.func.vmap(torch.func.jacrev(layer))(x)
    assert torch.allclose(rows, layer.weight().expand(7, 10, 10))


def test_tuning_tries_no_plan_that_cannot_fit():
    # One of the ways through these factors wants a tensor of more than a hundred gigabytes.
    layer = TTLinear((1, 2048), (128, 1), ranks=16)
    with torch.no_grad():
        x = torch.ones(10_000, 2048)
        assert layer(x).shape == (10_000, 128)
