"""Positive columns: M steps by Newton, digits, edges."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from helpers import first, made, mixture_params

import jaxem
from jaxem import Status
from jaxem.fold import folded as fold
from jaxem.numerics.special import deviation, inverse_log_minus_digamma, log_minus_digamma

KEY = jax.random.key(0)


# --- the equation of the shape


def test_log_minus_digamma_keeps_its_digits():
    x = np.logspace(-4, 1, 5001)
    got = np.asarray(log_minus_digamma(jnp.asarray(x)))
    np.testing.assert_allclose(got, np.log(x) - scipy.special.digamma(x), rtol=1e-13)
    slope = jax.vmap(jax.grad(log_minus_digamma))(jnp.asarray(x[::100]))
    np.testing.assert_allclose(slope, 1 / x[::100] - scipy.special.polygamma(1, x[::100]), rtol=1e-12)
    large = np.logspace(3, 12, 1001)  # where the difference of the two has lost them
    series = 1 / (2 * large) + 1 / (12 * large**2) - 1 / (120 * large**4)
    np.testing.assert_allclose(log_minus_digamma(jnp.asarray(large)), series, rtol=1e-15)
    single = log_minus_digamma(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(single, log_minus_digamma(jnp.asarray(np.float32(x), jnp.float64)), rtol=1e-5)


def test_newton_finds_the_shape_of_every_statistic():
    """10⁴ statistics of shapes from 1e-3 to 1e4, and beyond, in one call of six iterations."""
    shape = np.exp(np.random.default_rng(0).uniform(np.log(1e-3), np.log(1e4), 10_000))
    shape = np.concatenate([shape, [1e-6, 1e7, 1e10]])
    solve = jax.jit(inverse_log_minus_digamma)
    gap = log_minus_digamma(jnp.asarray(shape))
    error = np.abs(np.asarray(solve(gap)) / shape - 1)
    print(f"gamma shapes: largest relative error {error.max():.1e} in float64")
    assert error.max() < 1e-13
    single = np.asarray(solve(gap.astype(jnp.float32)))
    error = np.abs(single / np.asarray(solve(gap.astype(jnp.float32).astype(jnp.float64))) - 1)
    print(f"gamma shapes: largest relative error {error.max():.1e} in float32")
    assert error.max() < 1e-5
    second = jax.grad(jax.grad(inverse_log_minus_digamma))(jnp.asarray(0.4))
    h = 1e-4
    first = jax.grad(inverse_log_minus_digamma)
    want = (first(jnp.asarray(0.4 + h)) - first(jnp.asarray(0.4 - h))) / (2 * h)
    assert float(second) == pytest.approx(float(want), rel=1e-6)


def test_the_deviation_of_a_ratio_keeps_its_digits():
    u = np.concatenate([-np.logspace(-8, -0.001, 200), np.logspace(-8, 3, 200)])
    u = (1 + u) - 1  # exactly
    small = np.abs(u) < 1e-3
    want = np.where(small, u**2 / 2 - u**3 / 3 + u**4 / 4 - u**5 / 5, u - np.log1p(u))
    np.testing.assert_allclose(deviation(jnp.asarray(1 + u)), want, rtol=1e-12)
    assert deviation(jnp.asarray(1e-300)) == pytest.approx(300 * np.log(10) - 1)


# --- fits


def gamma_data(shapes: Any, means: Any, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = np.arange(n) % len(shapes)
    shapes, means = np.asarray(shapes, float)[z], np.asarray(means, float)[z]
    return (rng.gamma(shapes) * means / shapes)[:, None]


def gamma_start(shapes: Any, means: Any, dtype: Any = np.float64) -> jaxem.MixtureParams:
    shapes, means = np.asarray(shapes, dtype)[:, None], np.asarray(means, dtype)[:, None]
    return mixture_params(made(jaxem.GammaParams, shapes, shapes / means))


def test_one_gamma_is_that_of_scipy():
    for true_shape in (0.05, 1.0, 30.0, 2000.0):
        x = gamma_data([true_shape], [7.0], 400)
        model = jaxem.Mixture(jaxem.Gamma(floor=0.0), 1)
        result = jaxem.fit(model, gamma_start([1.0], [1.0]), x).check()
        shape, _, scale = scipy.stats.gamma.fit(x, floc=0)
        (got_shape, got_rate) = (float(leaf[0, 0]) for leaf in result.params.components)
        assert got_shape == pytest.approx(shape, rel=1e-6)  # scipy's root finder stops there
        assert got_rate == pytest.approx(1 / scale, rel=1e-6)
        want = np.sum(scipy.stats.gamma.logpdf(x, got_shape, scale=1 / got_rate))
        np.testing.assert_allclose(result.log_lik, want, rtol=1e-10)
        errors = jaxem.standard_errors(model, result.params, x)
        trigamma = scipy.special.polygamma(1, got_shape)
        want = np.sqrt(got_shape / (400 * (got_shape * trigamma - 1)))
        assert float(errors.standard_errors.components.shape[0, 0]) == pytest.approx(want, rel=1e-6)


@pytest.mark.slow
@first("shapes", [(3.0, 4e4), (0.2, 5.0), (9e3, 1e4)], ids=str)
def test_gamma_mixtures_in_float32_are_those_of_float64(shapes):
    x = gamma_data(shapes, (1.0, 1.06), 600)
    model = jaxem.Mixture(jaxem.Gamma(), 2)
    fit = lambda dtype: jaxem.fit(  # noqa: E731
        model, gamma_start(shapes, (1.0, 1.05), dtype), x.astype(np.float32).astype(dtype), tol=1e-5
    ).check()
    single, double = fit(np.float32), fit(np.float64)
    np.testing.assert_allclose(single.log_lik, double.log_lik, rtol=2e-5, atol=0.05)
    for a, b in zip(single.params.components, double.params.components, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2)  # the two stop an iteration apart
    again = jaxem.fit(model, jax.tree.map(np.float32, double.params), x.astype(np.float32), tol=-1.0, max_iter=1)
    step = jaxem.fit(model, double.params, x.astype(np.float32).astype(np.float64), tol=-1.0, max_iter=1)
    for a, b in zip(again.params.components, step.params.components, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)
    np.testing.assert_allclose(again.history[0], step.history[0], rtol=2e-5, atol=0.02)


@pytest.mark.slow
def test_the_unit_of_a_column_does_not_matter():
    x = np.concatenate([gamma_data((2.0, 9.0), (1.0, 8.0), 200), gamma_data((3.0, 4.0), (5.0, 1.0), 200, 1)], 1)
    for family, start in (
        (jaxem.Gamma(), made(jaxem.GammaParams, np.full((2, 2), 3.0), 3 / np.array([[1.0, 5.0], [6.0, 1.0]]))),
        (jaxem.Exponential(), made(jaxem.ExponentialParams, 1 / np.array([[1.0, 5.0], [6.0, 1.0]]))),
    ):
        model, unit = jaxem.Mixture(family, 2), np.array([1e-6, 1e9])
        plain = jaxem.fit(model, mixture_params(start), x).check()
        moved = jaxem.fit(model, mixture_params(start._replace(rate=start.rate / unit)), x * unit).check()
        assert int(plain.n_iter) == int(moved.n_iter)
        np.testing.assert_allclose(
            np.asarray(moved.params.components.rate) * unit, plain.params.components.rate, rtol=1e-9
        )
        np.testing.assert_allclose(moved.log_lik, plain.log_lik - 200 * np.log(unit).sum(), rtol=1e-10)


def test_a_component_at_one_point_is_degenerate_without_a_floor():
    x = np.concatenate([np.full(20, 3.0), np.linspace(5, 9, 20)])[:, None]
    start = gamma_start([50.0, 20.0], [3.0, 7.0])
    bare = jaxem.fit(jaxem.Mixture(jaxem.Gamma(floor=0.0), 2), start, x)
    assert int(bare.status) == Status.DEGENERATE
    kept = jaxem.fit(jaxem.Mixture(jaxem.Gamma(), 2), start, x).check()
    assert np.all(np.diff(np.asarray(kept.history)[: int(kept.n_iter) + 1]) > -1e-9)
    # at the bound of the prior: 1 / (2·shape) = floor / N
    assert float(kept.params.components.shape[0, 0]) == pytest.approx(20 / 2e-6, rel=1e-3)


@pytest.mark.slow
def test_missing_entries_are_left_out_exactly():
    rng = np.random.default_rng(4)
    x = np.concatenate([gamma_data((2.0, 9.0), (1.0, 8.0), 60), gamma_data((3.0, 4.0), (5.0, 1.0), 60, 1)], 1)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[7] = np.nan
    start = made(jaxem.GammaParams, np.full((2, 2), 3.0), 3 / np.array([[1.0, 5.0], [6.0, 1.0]]))
    result = jaxem.fit(
        jaxem.Mixture(jaxem.Gamma(floor=0.0, missing=True), 2), mixture_params(start), x, tol=1e-12
    ).check()
    shape, rate = (np.asarray(leaf) for leaf in result.params.components)
    entries = scipy.stats.gamma.logpdf(x[:, None], shape[None], scale=1 / rate[None])
    joint = np.log(np.asarray(result.params.weights))[None] + np.nansum(entries, 2)
    np.testing.assert_allclose(result.log_lik, np.sum(np.asarray(scipy.special.logsumexp(joint, axis=1))), rtol=1e-12)
    r, seen = scipy.special.softmax(joint, axis=1), ~np.isnan(x)
    count = r.T @ seen
    np.testing.assert_allclose(shape / rate, (r.T @ np.where(seen, x, 0)) / count, rtol=1e-5)
    gap = np.log(shape / rate) - (r.T @ np.log(np.where(seen, x, 1))) / count
    np.testing.assert_allclose(np.log(shape) - scipy.special.digamma(shape), gap, rtol=1e-4)


@pytest.mark.slow
def test_data_outside_of_the_support_are_named():
    x = np.linspace(0.5, 3.0, 10)[:, None]
    gamma, exponential = (
        gamma_start([1.0, 2.0], [1.0, 2.0]),
        mixture_params(made(jaxem.ExponentialParams, np.ones((2, 1)))),
    )
    for family, start, value in (
        (jaxem.Gamma(), gamma, 0.0),
        (jaxem.Gamma(), gamma, -1.0),
        (jaxem.Exponential(), exponential, -1.0),
    ):
        bad = x.copy()
        bad[4] = value
        model = jaxem.Mixture(family, 2)
        with pytest.raises(ValueError, match=f"for {type(family).__name__}, got {value} in row 4"):
            jaxem.fit(model, start, bad)
        assert model.log_prob(start, jnp.asarray(bad))[4] == -np.inf
        lanes = jaxem.fit_batch(
            model, jax.tree.map(lambda leaf: np.stack([leaf] * 2), start), np.stack([bad, x]), max_iter=3
        )
        assert int(lanes.status[0]) == Status.NONFINITE and int(lanes.status[1]) != Status.NONFINITE


def test_samples_are_those_of_scipy():
    z = jnp.zeros(20_000, int)
    gamma = np.asarray(
        jaxem.Gamma().sample(made(jaxem.GammaParams, jnp.full((1, 1), 0.3), jnp.full((1, 1), 2.0)), KEY, z)
    )
    assert scipy.stats.kstest(gamma[:, 0], scipy.stats.gamma(0.3, scale=0.5).cdf).pvalue > 0.01
    waits = np.asarray(jaxem.Exponential().sample(made(jaxem.ExponentialParams, jnp.full((1, 1), 4.0)), KEY, z))
    assert scipy.stats.kstest(waits[:, 0], scipy.stats.expon(scale=0.25).cdf).pvalue > 0.01


@pytest.mark.slow
def test_rows_prepared_once_in_chunks_give_the_fit_of_rows_prepared_anew(monkeypatch):
    monkeypatch.setattr(fold, "_HOLD_ROWS", 1000)
    rng, n = np.random.default_rng(0), 9001  # three chunks, the last of which overlaps the second
    x = rng.gamma(3.0, size=(n, 1)) * rng.choice([1.0, 9.0], size=(n, 1))
    weight = rng.choice([0.0, 1.0, 2.5], size=n)
    x[weight == 0] = np.nan
    model = jaxem.Mixture(jaxem.Gamma(), 2)
    bank = made(jaxem.GammaParams, np.full((2, 1), 2.0), np.array([[1.0], [0.1]]))
    params = made(jaxem.MixtureParams, np.full(2, 0.5), bank)
    data = jaxem.labelled(x, np.where(np.arange(n) < 20, np.arange(n) % 2, -1))
    bound = model.bind(data, jnp.asarray(weight))
    held = jax.eval_shape(lambda d, w: fold.Folded(bound).hold(params, d, w), data, jnp.asarray(weight))
    assert held.chunks.number == 3
    kept, anew = (
        jaxem.fit(model, params, data, sample_weight=weight, tol=-1.0, max_iter=5, chunk_size=size)
        for size in (None, held.chunks.rows)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), kept.params, anew.params)
    np.testing.assert_allclose(kept.history, anew.history, rtol=1e-13)


# --- Weibull


def test_a_weibull_fit_is_the_root_of_its_equation_and_that_of_scipy():
    """scipy's own params are good to 1e-5; the likelihood is flat there."""
    x: Any = scipy.stats.weibull_min.rvs(2.3, scale=7.0, size=400, random_state=0)
    gaps = np.insert(x, [0, 100, 300], np.nan)[:, None]
    shape, _, scale = scipy.stats.weibull_min.fit(x, floc=0)
    slope = lambda s: 1 / s + np.mean(np.log(x)) - np.sum(x**s * np.log(x)) / np.sum(x**s)  # noqa: E731
    root: Any = scipy.optimize.brentq(slope, 0.1, 20, xtol=1e-14)
    for data, missing in ((x[:, None], False), (gaps, True), (np.repeat(gaps, 2, 1), True)):
        model = jaxem.Mixture(jaxem.Weibull(floor=0.0, missing=missing), 1)
        result = jaxem.fit(model, model.init(KEY, data), data).check()
        params, d = result.params.components, data.shape[1]
        np.testing.assert_allclose(params.shape, np.full((1, d), root), rtol=1e-8)
        np.testing.assert_allclose(params.scale, np.full((1, d), np.mean(x**root) ** (1 / root)), rtol=1e-8)
        want = scipy.stats.weibull_min.logpdf(x, shape, 0, scale).sum()
        np.testing.assert_allclose(result.log_lik, d * want, rtol=0, atol=1e-7 * d)


@pytest.mark.parametrize("shape", [0.2, 1.0, 40.0, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weibulls_of_any_shape_and_scale_keep_their_digits(shape, dtype):
    rng = np.random.default_rng(0)
    x = (1e5 * rng.weibull(shape, (300, 1))).astype(dtype)
    model = jaxem.Mixture(jaxem.Weibull(), 1)
    result = jaxem.fit(model, model.init(KEY, x), x).check()
    bank = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64)[0, 0], result.params.components)
    want = scipy.stats.weibull_min.logpdf(x.astype(np.float64), bank.shape, 0, bank.scale).sum()
    # one rounding of x or of the scale is so much in the powers of each row
    np.testing.assert_allclose(result.log_lik, want, rtol=0, atol=300 * (1 + 8 * shape) * np.finfo(dtype).eps)
    np.testing.assert_allclose(bank.shape, shape, rtol=0.15)


def test_a_prior_on_the_shape_of_a_weibull_pulls_it():
    x = scipy.stats.weibull_min.rvs(2.3, scale=7.0, size=(50, 1), random_state=0)
    prior = jaxem.GammaPrior(shape=3.0, rate=2.0)
    model = jaxem.Mixture(jaxem.Weibull(floor=0.0, prior=prior), 1)
    result = jaxem.fit(model, model.init(KEY, x), x).check()
    shape = result.params.components.shape
    np.testing.assert_allclose(
        result.objective - result.log_lik, scipy.stats.gamma.logpdf(shape, 3, scale=1 / 2).item(), rtol=1e-12
    )

    def loss(s: float) -> float:
        log_lik = scipy.stats.weibull_min.logpdf(x, s, 0, np.mean(x**s) ** (1 / s)).sum()
        return -float(log_lik + scipy.stats.gamma.logpdf(s, 3, scale=1 / 2))

    best: Any = scipy.optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9})
    np.testing.assert_allclose(shape, [[best.x]], rtol=1e-6)
