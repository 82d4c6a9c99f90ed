"""Acceptance theory, against double sums, Gaussian integrals and spreads over replicas."""

import numpy as np
import pytest
from scipy import stats

from physattn.foundations.estimates import Estimate
from physattn.slmc.acceptance import (
    gaussian_acceptance,
    predicted_acceptance,
    slide_acceptance,
)


def by_pairs(d):
    e = np.exp(np.ravel(d))
    return np.minimum(e[:, None], e)[~np.eye(len(e), dtype=bool)].mean() / e.mean()


@pytest.mark.parametrize("shape", [(50,), (4, 30), (7, 4)])
def test_one_sort_is_the_sum_over_pairs(shape):
    d = np.random.default_rng(1).gumbel(size=shape)
    assert predicted_acceptance(d).value == pytest.approx(by_pairs(d), abs=1e-13)
    assert predicted_acceptance(np.round(d)).value == pytest.approx(
        by_pairs(np.round(d)), abs=1e-13
    )
    assert predicted_acceptance(d - 1e4).value == pytest.approx(by_pairs(d), abs=1e-10)


@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.5])
def test_erfc_is_the_gaussian_integral(sigma):
    # proposals drawn from exp(d) times the Gaussian of d have the mean sigma^2
    x = sigma * np.linspace(-8, 8, 2001)
    y = x + sigma**2
    p, q = stats.norm.pdf(x, 0, sigma), stats.norm.pdf(y, sigma**2, sigma)
    exact = p @ np.exp(np.minimum(x[:, None] - y, 0)) @ q * (x[1] - x[0]) ** 2
    assert gaussian_acceptance(sigma**2) == pytest.approx(exact, abs=1e-4)


def test_slopes_at_small_residuals():
    step = 1e-5
    assert (1 - gaussian_acceptance(step**2)) / step == pytest.approx(np.pi**-0.5, rel=1e-5)
    assert (1 - slide_acceptance(step**2)) / step == pytest.approx(1, rel=1e-4)
    assert gaussian_acceptance(0.0) == slide_acceptance(0.0) == 1


def test_skewed_residuals_and_their_sign():
    # d = -log(gamma variable): W_1/W = e^d, both averages known by quadrature
    rng, law = np.random.default_rng(2), stats.gamma(6.0)
    w = law.rvs((8, 20000), random_state=rng)

    def expected(f):
        u = (np.arange(4000) + 0.5) / 4000
        v = np.sort(f(law.ppf(u)))
        return 2 * (v * (4000 - np.arange(4000) - 0.5)).sum() / 4000**2 / v.mean()

    up, down = predicted_acceptance(np.log(w)), predicted_acceptance(-np.log(w))
    assert abs(up.sigma(expected(lambda x: x))) < 4
    assert abs(down.sigma(expected(lambda x: 1 / x))) < 4
    assert abs((up - down).sigma(0)) > 10


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_error_is_the_spread_over_replicas(rho):
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(150, 4, 500)) * np.sqrt(1 - rho**2)
    noise[..., 0] /= np.sqrt(1 - rho**2)
    for t in range(1, 500):
        noise[..., t] += rho * noise[..., t - 1]
    found = [predicted_acceptance(d) for d in noise]
    spread = np.std([e.value for e in found], ddof=1)
    assert np.mean([e.error for e in found]) == pytest.approx(spread, rel=0.2)


def test_errors_go_through_the_formulas():
    for formula in (gaussian_acceptance, slide_acceptance):
        low, high = formula(0.49), formula(0.51)
        e = formula(Estimate(0.5, 0.01, 10))
        assert e.value == formula(0.5)
        assert e.error == pytest.approx((low - high) / 2, rel=1e-3)
    assert np.allclose(gaussian_acceptance(np.array([0.0, 1.0])), [1, 0.4795001])


@pytest.mark.parametrize("formula", [gaussian_acceptance, slide_acceptance])
def test_a_negative_variance_is_refused(formula):
    with pytest.raises(ValueError, match="mse = -1"):
        formula(-1.0)
    with pytest.raises(ValueError, match="not negative"):
        formula(np.array([1.0, -0.5]))


@pytest.mark.parametrize("bad", [[], [1.0, np.nan, 0.0, 0.0], [1.0, 2.0]])
def test_bad_residuals_are_refused(bad):
    with pytest.raises(ValueError, match=r"residuals|samples"):
        predicted_acceptance(bad)
