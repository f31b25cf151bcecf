"""Counts and categories: the edges of their spaces, what is missing, and data outside of the support."""

import math
from decimal import Decimal, localcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxem
from jaxem import Status
from jaxem.families.discrete import poisson_log_prob

KEY = jax.random.key(0)


def mixture_params(bank: Any) -> jaxem.MixtureParams:
    k = jax.tree.leaves(bank)[0].shape[0]
    return jaxem.MixtureParams(np.full(k, 1 / k, jax.tree.leaves(bank)[0].dtype), bank)


def poisson_start(rates: Any, dtype: Any = np.float64) -> jaxem.MixtureParams:
    return mixture_params(jaxem.PoissonParams(np.asarray(rates, dtype)))


# --- Poisson


def _log_poisson(x: int, rate: float) -> float:
    """To forty digits."""
    with localcontext() as context:
        context.prec = 40
        n, mean = Decimal(x), Decimal(rate)
        if x <= 2000:
            log_factorial = Decimal(math.factorial(x)).ln()
        else:  # the next term of Stirling's series is below 1e-45
            series = 1 / (12 * n) - 1 / (360 * n**3) + 1 / (1260 * n**5) - 1 / (1680 * n**7)
            two_pi = 2 * Decimal("3.1415926535897932384626433832795028841972")
            log_factorial = n * n.ln() - n + (two_pi * n).ln() / 2 + series
        return float((n * mean.ln() if x else 0) - mean - log_factorial)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_poisson_density_keeps_its_digits_for_counts_of_any_size(dtype):
    pairs = [
        (0, 0.7),
        (1, 2),
        (3, 3),
        (15, 14),
        (16, 16.5),
        (17, 40),
        (7, 1e-5),
        (100, 100),
        (1000, 1003),
        (10**6, 1000128),
    ]
    pairs += [(10**6, 999936.0), (10**6, 5e5), (2**24, 2.0**24 + 4096)]
    x = np.array([pair[0] for pair in pairs])
    rate = np.array([pair[1] for pair in pairs], dtype)
    got = jax.jit(poisson_log_prob)(jnp.asarray(x, dtype), rate)
    want = [_log_poisson(int(a), float(b)) for a, b in zip(x, rate, strict=True)]
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(got, want, rtol=20 * eps, atol=20 * eps)
    np.testing.assert_array_equal(poisson_log_prob(jnp.array([0.0, 3.0]), jnp.zeros(2)), [0, -np.inf])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_counts_are_fitted_as_well_as_small_ones(dtype):
    """On the stable path in float32: rates of 10⁶ that differ by three of their standard deviations."""
    x = np.random.default_rng(0).poisson(np.where(np.arange(400) % 2, 1.003e6, 1e6))[:, None]
    start = poisson_start([[0.999e6], [1.004e6]], dtype)
    fit = lambda x, start: jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), start, x, tol=1e-5).check()  # noqa: E731
    double = fit(x.astype(np.float64), poisson_start([[0.999e6], [1.004e6]]))
    got = fit(x.astype(dtype), start)
    log_joint = scipy.stats.poisson.logpmf(x, np.asarray(double.params.components.rate)[:, 0])
    peer = scipy.special.logsumexp(log_joint, b=np.asarray(double.params.weights)[None], axis=1).sum()
    # scipy's own terms are of size 1e7, so it keeps 9 digits
    np.testing.assert_allclose(double.log_lik, peer, rtol=1e-9)
    np.testing.assert_allclose(got.log_lik, double.log_lik, rtol=1e-5)
    np.testing.assert_allclose(got.params.components.rate, double.params.components.rate, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rate_of_zero_is_a_legal_boundary(dtype):
    rng = np.random.default_rng(1)
    far = np.arange(60) % 2 == 1
    x = np.stack([rng.poisson(np.where(far, 30, 0)), rng.poisson(np.where(far, 25, 3))], 1).astype(dtype)
    model, start = jaxem.Mixture(jaxem.Poisson(), 2), poisson_start([[0.5, 2.0], [20.0, 20.0]], dtype)
    result = jaxem.fit(model, start, x, tol=1e-5).check()
    rate = np.asarray(result.params.components.rate)
    assert rate[0, 0] < 1e-10
    exact = result.params._replace(components=jaxem.PoissonParams(jnp.asarray(rate).at[0, 0].set(0)))
    want = scipy.special.logsumexp(
        scipy.stats.poisson.logpmf(x[:, None], np.asarray(exact.components.rate)[None]).sum(2),
        b=np.asarray(exact.weights)[None],
        axis=1,
    )
    np.testing.assert_allclose(model.log_prob(exact, jnp.asarray(x)), want, rtol=1e-5 if dtype == np.float32 else 1e-13)
    # the boundary is a fixed point, and the derivative there is finite
    again = jaxem.fit(model, exact, x, tol=1e-5).check()
    assert float(again.params.components.rate[0, 0]) == 0
    weight = jnp.ones(60, dtype)
    slope = jax.grad(lambda w: jnp.sum(jaxem.fit(model, exact, x, sample_weight=w).params.components.rate))(weight)
    assert np.all(np.isfinite(slope)) and np.max(np.abs(slope)) > 0
    errors = jaxem.standard_errors(model, exact, x)
    assert int(errors.status) == Status.CONVERGED
    assert float(errors.standard_errors.components.rate[0, 0]) == 0
    assert np.all(np.asarray(errors.standard_errors.components.rate).ravel()[1:] > 0)
    with pytest.raises(RuntimeError, match="NONFINITE"):  # counts that no component explains
        jaxem.fit(model, poisson_start(np.zeros((2, 2)), dtype), x).check()


def test_counts_that_are_none_are_named():
    model, start = jaxem.Mixture(jaxem.Poisson(), 2), poisson_start([[1.0, 1.0], [4.0, 4.0]])
    x = np.random.default_rng(2).poisson(3.0, (20, 2)).astype(float)
    for value in (-1.0, 2.5):
        bad = x.copy()
        bad[3, 1] = value
        with pytest.raises(ValueError, match=rf"non-negative integers for Poisson, got {value} in row 3, column 1"):
            jaxem.fit(model, start, bad)
        assert model.log_prob(start, jnp.asarray(bad))[3] == -np.inf
        weight = np.where(np.arange(20) == 3, 0.0, 1.0)
        jaxem.fit(model, start, bad, sample_weight=weight).check()
        both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), start)
        lanes = jaxem.fit_batch(model, both, np.stack([bad, x]))
        assert [int(status) for status in lanes.status] == [Status.NONFINITE, Status.CONVERGED]


def test_every_driver_takes_counts():
    rng = np.random.default_rng(3)
    x = rng.poisson(np.where(np.arange(60) % 2, 12, 2))[:, None]  # integers
    model = jaxem.Mixture(jaxem.Poisson(), 2)
    best = jaxem.fit_restarts(model, KEY, x, n_restarts=4).check()
    rates = np.sort(np.asarray(best.params.components.rate)[:, 0])
    np.testing.assert_allclose(rates, [2, 12], rtol=0.25)
    groups = jaxem.fit_groups(model, KEY, x, np.repeat([5, 9], 30), n_restarts=2)
    assert np.asarray(groups.params.components.rate).shape == (2, 2, 1)
    replicates = jaxem.bootstrap(model, best.params, x, KEY, n_replicates=6)
    assert np.all(np.isfinite(jax.tree.leaves(replicates.params)[0]))
    assert int(jaxem.select([jaxem.Mixture(jaxem.Poisson(), k) for k in (1, 2, 3)], KEY, x, n_restarts=2).index) == 1
    draws, _ = model.sample(best.params, KEY, 50)
    assert draws.shape == (50, 1) and bool(jnp.all(draws == jnp.round(draws)))


def test_missing_counts_are_left_out_exactly():
    rng = np.random.default_rng(4)
    x = rng.poisson(np.array([[2.0, 9.0, 1.0], [8.0, 3.0, 6.0]])[np.arange(40) % 2]).astype(float)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[7] = np.nan
    model, start = jaxem.Mixture(jaxem.Poisson(missing=True), 2), poisson_start([[3.0, 6.0, 1.0], [6.0, 3.0, 4.0]])
    result = jaxem.fit(model, start, x, tol=1e-12).check()
    _assert_left_out(result, x, lambda x, rate: scipy.stats.poisson.logpmf(x, rate))
    assert float(model.log_prob(result.params, jnp.asarray(x))[7]) == pytest.approx(0, abs=1e-15)
    with pytest.raises(ValueError, match="NaN or inf in rows"):
        jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), start, x)


def _assert_left_out(result: jaxem.FitResult, x: np.ndarray, log_prob: Any) -> None:
    """The log-likelihood by a loop over the entries that were observed, and the fixed point of rates by hand."""
    weights, bank = np.asarray(result.params.weights), np.asarray(result.params.components[0])
    joint = np.log(weights)[None] + np.zeros((len(x), 1))
    for i, a in zip(*np.nonzero(~np.isnan(x)), strict=True):
        joint[i] += log_prob(x[i, a], bank[:, a])
    np.testing.assert_allclose(result.log_lik, scipy.special.logsumexp(joint, axis=1).sum(), rtol=1e-13)
    r = scipy.special.softmax(joint, axis=1)
    seen = ~np.isnan(x)
    np.testing.assert_allclose(bank, (r.T @ np.where(seen, x, 0)) / (r.T @ seen), rtol=1e-5)
