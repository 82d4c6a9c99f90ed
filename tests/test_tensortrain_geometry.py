"The manifold of fixed TT-rank against its dense projector, finite differences, dense least squares."

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from physattn.foundations.experiments import reproduce
from physattn.foundations.runs import generator
from physattn.tensortrain import geometry as g
from physattn.tensortrain.layers import TTLinear
from physattn.tensortrain.trains import TensorTrain


def random_train(shapes, seed=0):
    rng = generator(seed, "train")
    return TensorTrain([torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes])


STATE = [(1, 3, 2), (2, 4, 3), (3, 3, 2), (2, 3, 1)]
OPERATOR = [(1, 2, 3, 2), (2, 3, 2, 3), (3, 2, 2, 1)]


def dense_projector(train):
    "Orthogonal projector onto the span of all derivatives of the tensor, by brute force."
    cores = [core.clone() for core in train.cores]
    J = torch.autograd.functional.jacobian(
        lambda *cs: TensorTrain(list(cs)).full().flatten(), tuple(cores)
    )
    U, s, _ = torch.linalg.svd(torch.cat([j.flatten(1) for j in J], 1), full_matrices=False)
    U = U[:, s > 1e-10 * s[0]]
    return U @ U.T


@pytest.mark.parametrize("shapes", [STATE, OPERATOR, [(1, 5, 2), (2, 6, 1)]])
def test_projection_is_the_orthogonal_projector_of_the_right_rank(shapes):
    train = random_train(shapes)
    frame, size = g.Frame(train), train.full().numel()
    units = torch.eye(size, dtype=torch.float64).reshape(size, *train.full().shape)
    P = torch.stack([frame.project(u).train().full().flatten() for u in units])
    assert (P @ P - P).abs().max() < 1e-13 and (P - P.T).abs().max() < 1e-13
    assert (P - dense_projector(train)).abs().max() < 1e-10
    sizes = [math.prod(s[1:-1]) for s in shapes]
    assert round(float(P.trace())) == g.dimension(sizes, train.ranks[1:-1])
    assert int((torch.linalg.svdvals(P) > 0.5).sum()) == round(float(P.trace()))


@pytest.mark.parametrize("shapes", [STATE, OPERATOR])
def test_every_route_to_a_tangent_vector_agrees(shapes):
    train, other = random_train(shapes), random_train(shapes, 1)
    frame = g.Frame(train)
    a, b = frame.project(other), frame.project(other.full())
    assert (a - b).norm() < 1e-12 * a.norm()
    cores = [c.clone().requires_grad_() for c in g.regauged(train, 10.0).cores]
    (TensorTrain(cores).full() * other.full()).sum().backward()
    detached = g.Frame(TensorTrain([c.detach() for c in cores]))
    c = detached.gradient_from_cores([core.grad for core in cores])
    assert (c.train().full() - a.train().full()).norm() < 1e-11 * a.norm()
    # The inner product of the variations is that of the tensors, and they are gauged.
    assert (
        abs(
            a.inner(c := frame.project(random_train(shapes, 2)))
            - (a.train().inner(c.train()))
        )
        < 1e-11
    )
    for U, delta in zip(frame.left[:-1], a.deltas):
        assert (U.flatten(0, 1).T @ delta.flatten(0, 1)).abs().max() < 1e-12
    assert (
        frame.project(train).train().full() - train.full()
    ).norm() < 1e-12 * train.norm()


def test_gradient_is_that_of_finite_differences():
    train, Z = random_train(STATE), random_train(STATE, 1).full()
    loss = lambda X: (X.full() * Z).sin().sum()  # noqa: E731
    frame = g.Frame(train)
    xi, gradient = frame.project(random_train(STATE, 2)), frame.gradient(loss)
    h = 1e-5
    slope = (loss((h * xi).retract()) - loss((-h * xi).retract())) / (2 * h)
    assert abs(slope - gradient.inner(xi)) < 1e-6 * abs(slope)


def test_retraction_is_of_first_order_and_keeps_ranks():
    train = random_train(STATE)
    xi = g.Frame(train).project(random_train(STATE, 1))
    scaled = []
    for t in (1e-2, 1e-3, 1e-4):
        X = (t * xi).retract()
        assert X.ranks == train.ranks
        scaled.append(
            float((X.full() - train.full() - t * xi.train().full()).norm() / t**2)
        )
    assert abs(scaled[1] / scaled[0] - 1) < 0.2 and abs(scaled[2] / scaled[1] - 1) < 0.02
    assert scaled[2] > 1e-3


def test_a_rotation_keeps_the_norm_and_turns_by_the_angle():
    train = random_train(STATE)
    xi = g.Frame(train).project(random_train(STATE, 1))
    for angle in (1e-3, 1e-2):
        X = xi.rotate(angle)
        assert abs(X.norm() / train.norm() - 1) < 1e-12
        cosine = X.inner(train) / train.norm() ** 2
        assert abs(torch.arccos(cosine) / angle - 1) < 20 * angle
        assert X.inner(xi.train()) > train.inner(xi.train())
        tilted = xi + 3.0 * xi.frame.radial()
        assert (tilted.rotate(angle).full() - X.full()).norm() < 1e-10
    frame = g.Frame(train)
    assert (frame.radial().rotate(0.3).full() - train.full()).norm() < 1e-10 * train.norm()


@pytest.mark.parametrize("conjugate", [True, False])
def test_descent_finds_the_operator_whatever_the_gauge(conjugate):
    problem = g.Sensing.random(1)
    good, bad = (
        g.descend(problem, problem.y, X, 60, conjugate)
        for X in (problem.start, g.regauged(problem.start, 1e3))
    )
    assert good[1][-1] < (1e-20 if conjugate else 1e-10)
    assert all(abs(a / b - 1) < 1e-6 for a, b in zip(good[1][:12], bad[1][:12]))
    assert good[1][0] > 0.5 and len(good[1]) == 61


def test_line_search_is_exact_on_the_tangent_space():
    "On the whole space, ranks at their bounds, conjugate gradients end after as many steps as dimensions."
    shapes = [(1, 3, 3), (3, 3, 1)]
    start = random_train(shapes)
    A = torch.randn(20, 9, generator=generator(3), dtype=torch.float64)
    y = A @ random_train(shapes, 1).full().flatten()
    losses = g.descend(lambda X: A @ X.full().flatten(), y, start, 9)[1]
    assert losses[-1] < 1e-20 and losses[5] > 1e-12
    # The first step of steepest descent, against the formula for the quadratic loss.
    one = g.descend(lambda X: A @ X.full().flatten(), y, start, 1, False)[1]
    r = A @ start.full().flatten() - y
    d = A.T @ r
    t = (d @ d) / (A @ d).square().sum()
    expected = (r - t * (A @ d)).square().sum() / y.square().sum()
    assert abs(one[-1] / expected - 1) < 1e-9


def test_sweeps_find_operator_and_ranks():
    problem = g.Sensing.random(2)
    update = g.solve(problem, problem.y)
    X = problem.start
    losses = []
    for _ in range(12):
        X = g.sweep(X, update)
        losses.append(float((problem(X) - problem.y).square().sum()))
    assert losses[-1] < 1e-6 * losses[0]
    assert (
        all(b <= a * (1 + 1e-9) for a, b in zip(losses, losses[1:])) or losses[-1] < 1e-20
    )
    X = problem.start.rounded(1)
    for _ in range(6):
        X = g.sweep(X, update, 2, rank=4, eps=1e-3)
    assert X.ranks == (1, 3, 3, 1)
    assert (problem(X) - problem.y).norm() < 1e-3 * problem.y.norm()


def test_one_update_is_the_dense_least_squares_solution():
    "Two cores of full size make the sweep one linear problem."
    shapes = [(1, 3, 3), (3, 4, 1)]
    train = random_train(shapes)
    A = torch.randn(30, 12, generator=generator(5), dtype=torch.float64)
    y = torch.randn(30, generator=generator(6), dtype=torch.float64)
    operator = lambda X: A @ X.full().flatten()  # noqa: E731
    best = torch.linalg.lstsq(A, y).solution
    for sites in (1, 2):
        found = g.sweep(train, g.solve(operator, y), sites, rank=3)
        assert (found.full().flatten() - best).norm() < 1e-10 * best.norm()


@pytest.mark.parametrize("sites", [1, 2])
def test_every_update_sees_isometries(sites):
    def update(train, k):
        assert abs(train.cores[k].norm() / train.norm() - 1) < 1e-12
        return train.cores[k]

    train = random_train(OPERATOR)
    assert (g.sweep(train, update, sites).full() - train.full()).norm() < 1e-11


def layer_with(train):
    layer = TTLinear((4, 4, 4), (4, 4, 4), 3, bias=False, plan="model").double()
    layer.cores = nn.ParameterList(c.clone() for c in train.cores)
    return layer


@pytest.mark.parametrize("kind", [g.RiemannianSGD, g.TangentSpaceGradient])
def test_optimisers_are_blind_to_the_gauge(kind):
    start, ends = g.Sensing.random(0).start, []
    x = torch.randn(32, 64, generator=generator(1), dtype=torch.float64)
    for train in (start, g.regauged(start, 1e2)):
        layer = layer_with(train)
        optimizer = kind([layer], 0.1, 0.5)
        assert (layer.weight() - start.full()).norm() < 1e-10
        for _ in range(4):
            optimizer.zero_grad()
            layer(x).sin().square().mean().backward()
            optimizer.step()
        ends.append(layer.weight().detach())
    moved = (ends[0] - start.full()).norm()
    assert moved > 1e-3 and (ends[0] - ends[1]).norm() < 1e-8 * moved


def test_riemannian_step_is_the_projected_gradient():
    layer = layer_with(g.Sensing.random(0).start)
    optimizer = g.RiemannianSGD([layer], 1e-4)
    W = layer.weight().detach().clone().requires_grad_()
    x = torch.randn(32, 64, generator=generator(1), dtype=torch.float64)
    F.linear(x, W).sin().square().mean().backward()
    layer(x).sin().square().mean().backward()
    frame = g.Frame(TensorTrain([c.detach().clone() for c in layer.cores]))
    optimizer.step()
    # An operator's full() is a matrix, of which the projection takes the gradient as it is.
    expected = W.detach() - 1e-4 * frame.project(W.grad).train().full()
    step = (W.detach() - expected).norm()
    assert (layer.weight() - expected).norm() < 1e-2 * step


def test_head_learns_by_every_method():
    for method, rate in (
        ("Adam", 0.01), ("Riemannian", 1.0), ("angle", 0.1), ("one site", None), ("two sites", None),
    ):  # fmt: skip
        out = g.train_head(method, rate, 0.7, 0, n=400)
        assert out["loss"] < 1.5 and out["accuracy"] > 0.3, (method, out)
        assert max(out["ranks"]) <= 4 and out["steps"] > 3


def test_bad_input_is_one_sentence():
    fat = TensorTrain([torch.randn(1, 2, 3), torch.randn(3, 4, 1)])
    for call, words in (
        (lambda: g.Frame(fat), "bond of 3"),
        (lambda: g.sweep(random_train(STATE), None, 3), "sites = 3"),
        (lambda: g.RiemannianSGD([], -1.0), "lr = -1.0"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_experiment():
    values = reproduce("tensortrain/geometry").values
    assert max(values["sensing"]["conjugate, good gauge"]["loss"]) < 1
