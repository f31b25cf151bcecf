"""Directions: Bessel functions, Newton, digits, edges."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers import first, made

import jaxem
from jaxem import Status
from jaxem.numerics.bessel import N_NEWTON, bessel_ratio, bessel_ratio_slope, inverse_bessel_ratio, log_bessel

KEY = jax.random.key(0)
DIMENSIONS = [2, 3, 10, 51, 100]


def draws(d: int, kappa: Any, n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows by scipy, and the direction that they are about."""
    mean = np.random.default_rng(seed).normal(size=d)
    mean /= np.linalg.norm(mean)
    return np.asarray(scipy.stats.vonmises_fisher(mean, kappa).rvs(n, random_state=seed)).reshape(n, d), mean


def params_of(mean: Any, kappa: Any, dtype: Any = np.float64) -> jaxem.MixtureParams:
    mean, kappa = np.atleast_2d(np.asarray(mean, dtype)), np.atleast_1d(np.asarray(kappa, dtype))
    bank = made(jaxem.VonMisesFisherParams, mean, kappa)
    return made(jaxem.MixtureParams, np.full(len(kappa), 1 / len(kappa), dtype), bank)


# --- the functions of Bessel


@pytest.mark.slow
@first("d", DIMENSIONS)
def test_bessel_functions_keep_their_digits(d):
    order = d / 2 - 1
    x = np.concatenate([np.logspace(-3, 4, 30), [23.9, 24.1]])
    scaled = scipy.special.ive(order, x)
    known = scaled > 1e-200  # scipy underflows
    want = np.log(scaled[known]) - order * np.log(x[known])
    np.testing.assert_allclose(log_bessel(order, True, jnp.asarray(x[known])), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_bessel(order, False, jnp.asarray(x[known])), want + x[known], rtol=1e-12, atol=1e-12)
    ratio, rest = map(np.asarray, bessel_ratio(order, jnp.asarray(x)))
    np.testing.assert_allclose(ratio[known], scipy.special.ive(order + 1, x[known]) / scaled[known], rtol=1e-11)
    np.testing.assert_allclose(ratio + rest, 1, rtol=1e-14)
    slope = np.asarray(bessel_ratio_slope(order, jnp.asarray(x)))
    identity = 1 - ratio**2 - (d - 1) * ratio / x  # cancels for large x
    np.testing.assert_allclose(slope, identity, rtol=1e-9, atol=1e-12)
    large = np.logspace(5, 10, 6)  # B = (d − 1) / 2x + (d − 1)(d − 3) / 8x² + …
    rest = np.asarray(bessel_ratio(order, jnp.asarray(large))[1])
    want = (d - 1) / (2 * large) * (1 - (d - 3) / (4 * large))
    np.testing.assert_allclose(rest, want, rtol=1e-6)
    np.testing.assert_allclose(rest[3:], want[3:], rtol=1e-11)
    single = [np.asarray(leaf, float) for leaf in bessel_ratio(order, jnp.asarray(x, jnp.float32))]
    double = bessel_ratio(order, jnp.asarray(x.astype(np.float32), jnp.float64))
    for a, b in zip(single, double, strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-5)  # 1 − A is 1/50 where the series ends


@pytest.mark.slow
@first("d", DIMENSIONS)
def test_newton_finds_the_concentration_of_every_statistic(d):
    """10⁴ statistics of concentrations from 1e-3 to 1e4, and beyond, in one call of four iterations."""
    kappa = np.exp(np.random.default_rng(d).uniform(np.log(1e-3), np.log(1e4), 10_000))
    kappa = jnp.asarray(np.concatenate([kappa, [1e-8, 1e6, 1e9]]))
    solve = jax.jit(partial(inverse_bessel_ratio, d / 2 - 1))
    ratio, rest = bessel_ratio(d / 2 - 1, kappa)
    odds = jnp.log(ratio) - jnp.log(rest)
    error = np.abs(np.asarray(solve(odds) / kappa) - 1)
    single = odds.astype(jnp.float32)
    in_float32 = np.abs(np.asarray(solve(single), float) / np.asarray(solve(single.astype(jnp.float64))) - 1)
    print(f"d = {d}: error {error.max():.1e} after {N_NEWTON} iterations, in float32 {in_float32.max():.1e}")
    assert error.max() < 1e-12 and N_NEWTON <= 10
    assert in_float32.max() < 5e-5  # as 1 − A


@pytest.mark.slow
def test_the_solve_has_both_derivatives():
    grad = jax.jit(jax.grad(partial(inverse_bessel_ratio, 0.5)))
    value = jax.jit(partial(inverse_bessel_ratio, 0.5))
    at, h = jnp.asarray(0.7), 1e-4
    assert float(grad(at)) == pytest.approx(float(value(at + h) - value(at - h)) / (2 * h), rel=1e-7)
    second = jax.jit(jax.grad(jax.grad(partial(inverse_bessel_ratio, 0.5))))(at)
    assert float(second) == pytest.approx(float(grad(at + h) - grad(at - h)) / (2 * h), rel=1e-7)


# --- fits


@first(("d", "kappa"), [(3, 40.0), (3, 0.1), (3, 1e4), (2, 3.0), (10, 5.0), (2, 1e4)])
def test_one_component_is_that_of_scipy(d, kappa):
    x, _ = draws(d, kappa)
    model = jaxem.Mixture(jaxem.VonMisesFisher(floor=0.0), 1)
    result = jaxem.fit(model, model.init(KEY, x), x).check()
    direction, concentration = scipy.stats.vonmises_fisher.fit(x)
    bank = result.params.components
    np.testing.assert_allclose(bank.mean_direction[0], direction, atol=1e-9)
    np.testing.assert_allclose(bank.concentration[0], concentration, rtol=1e-7)
    got_kappa: Any = float(bank.concentration[0])
    got = scipy.stats.vonmises_fisher(np.asarray(bank.mean_direction[0]), got_kappa)
    np.testing.assert_allclose(result.log_lik, got.logpdf(x).sum(), rtol=1e-10)
    assert int(model.n_parameters(result.params)) == d


@pytest.mark.slow
@first(("d", "kappa"), [(100, 1e6), (100, 1e4), (100, 1.0), (2, 1e6)])
def test_float32_agrees_with_float64(d, kappa):
    mean = np.eye(d)[:1]
    exact = made(jaxem.VonMisesFisherParams, jnp.asarray(mean), jnp.array([kappa]))
    x = np.asarray(jaxem.VonMisesFisher().sample(exact, KEY, jnp.zeros(600, int))).astype(np.float32)
    model = jaxem.Mixture(jaxem.VonMisesFisher(floor=0.0), 1)
    single, double = (jaxem.fit(model, model.init(KEY, rows), rows).check() for rows in (x, x.astype(np.float64)))
    np.testing.assert_allclose(
        single.params.components.concentration, double.params.components.concentration, rtol=1e-4
    )
    np.testing.assert_allclose(single.log_lik, double.log_lik, rtol=1e-5)
    if d == 100 and kappa < 1e5:  # beyond, scipy's normaliser underflows
        rows = x.astype(np.float64)
        want = scipy.stats.vonmises_fisher(mean[0], kappa).logpdf(rows / np.linalg.norm(rows, axis=1)[:, None])
        got = model.family.log_prob(exact, jnp.asarray(rows))[:, 0]
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.slow
def test_a_mixture_is_a_fixed_point_of_the_textbook_map():
    """Banerjee et al. (2005), with scipy's densities and a root by brentq."""
    x = np.concatenate([draws(3, 20.0, 60, 1)[0], draws(3, 5.0, 40, 2)[0]])
    model = jaxem.Mixture(jaxem.VonMisesFisher(floor=0.0), 2)
    result = jaxem.fit(model, model.init(KEY, x), x, tol=1e-13, max_iter=2000).check()
    w, (mean, kappa) = jax.tree.map(np.asarray, result.params)
    joint = np.stack([np.log(w[j]) + scipy.stats.vonmises_fisher(mean[j], kappa[j]).logpdf(x) for j in range(2)], 1)
    np.testing.assert_allclose(result.log_lik, np.sum(np.asarray(scipy.special.logsumexp(joint, axis=1))), rtol=1e-12)
    r = scipy.special.softmax(joint, axis=1)
    total = r.T @ x
    length = np.linalg.norm(total, axis=1)
    np.testing.assert_allclose(mean, total / length[:, None], atol=1e-5)
    np.testing.assert_allclose(1 / np.tanh(kappa) - 1 / kappa, length / r.sum(0), rtol=1e-5)
    errors = jaxem.standard_errors(model, result.params, x)
    assert int(errors.status) == Status.CONVERGED


@pytest.mark.slow
def test_rows_that_are_all_equal():
    x = np.tile([[0.6, 0.8]], (50, 1))
    model = jaxem.Mixture(jaxem.VonMisesFisher(), 1)
    kept = jaxem.fit(model, model.init(KEY, x), x).check()
    assert float(kept.params.components.concentration[0]) == pytest.approx(50 / 2e-6, rel=1e-6)  # of the floor
    bare = jaxem.Mixture(jaxem.VonMisesFisher(floor=0.0), 1)
    assert int(jaxem.fit(bare, bare.init(KEY, x), x).status) == Status.DEGENERATE


@pytest.mark.slow
def test_directions_that_cancel_are_uniform():
    x = np.concatenate([np.eye(3), -np.eye(3)])
    model = jaxem.Mixture(jaxem.VonMisesFisher(), 1)
    result = jaxem.fit(model, model.init(KEY, x), x).check()
    np.testing.assert_array_equal(result.params.components.concentration, [0])
    np.testing.assert_allclose(result.log_lik, -6 * np.log(4 * np.pi), rtol=1e-14)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


@pytest.mark.slow
def test_rows_that_are_no_directions_are_named():
    x, mean = draws(3, 10.0, 20)
    model, start = jaxem.Mixture(jaxem.VonMisesFisher(), 1), params_of(mean, 5.0)
    for factor in (0.0, 1.01):
        bad = x.copy()
        bad[4] *= factor
        with pytest.raises(ValueError, match="expected rows of length 1 .* in row 4"):
            jaxem.fit(model, start, bad)
        assert float(model.log_prob(start, jnp.asarray(bad))[4]) == -np.inf
        lanes = jaxem.fit_batch(
            model, jax.tree.map(lambda leaf: np.stack([leaf] * 2), start), np.stack([bad, x]), max_iter=3
        )
        assert int(lanes.status[0]) == Status.NONFINITE and int(lanes.status[1]) != Status.NONFINITE
    with pytest.raises(ValueError, match="expected unit vectors with d ≥ 2"):
        model.init(KEY, np.ones((5, 1)))
    np.testing.assert_allclose(  # a few digits are enough: what counts is the direction
        jaxem.fit(model, start, x.round(5)).log_lik, jaxem.fit(model, start, x).log_lik, rtol=1e-4
    )


@pytest.mark.slow
@first(("d", "kappa"), [(3, 2.0), (2, 300.0), (100, 30.0)])
def test_samples_have_the_law_of_their_cosine(d, kappa):
    bank = made(jaxem.VonMisesFisherParams, jnp.eye(d)[:1], jnp.array([kappa]))
    x = np.asarray(jaxem.VonMisesFisher().sample(bank, KEY, jnp.zeros(20_000, int)))
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-12)
    ratio, _ = bessel_ratio(d / 2 - 1, jnp.array([kappa]))
    error = np.std(x[:, 0]) / np.sqrt(20_000)
    assert abs(x[:, 0].mean() - float(ratio[0])) < 4 * error
    assert np.all(np.abs(x[:, 1:].mean(0)) < 5 * x[:, 1:].std(0) / np.sqrt(20_000))
    if d == 3:
        law = lambda t: (np.exp(kappa * t) - np.exp(-kappa)) / (np.exp(kappa) - np.exp(-kappa))  # noqa: E731
        assert scipy.stats.kstest(x[:, 0], law).pvalue > 0.01


@first(("dtype", "start"), [(np.float32, [1.0, 0.0, 0.0]), (np.float32, [-0.6, 0.0, -0.8]), (np.float64, [1.0, 0, 0])])
def test_a_start_far_from_a_narrow_beam_finds_its_concentration(dtype, start):
    """About a far direction the sums do not resolve 1 − R: the first step takes what they do, and does not fall."""
    x, mean = draws(3, 1e6, n=3000)
    turned = np.linalg.qr(np.stack([start, mean, [0.3, 0.5, 0.2]], 1))[0]
    x, mean = (x @ turned).astype(dtype), mean @ turned
    model = jaxem.Mixture(jaxem.VonMisesFisher(), 1)
    result = jaxem.fit(model, params_of(turned.T @ np.asarray(start), 10.0, dtype), x).check()
    exact = jaxem.fit(model, params_of(mean, 1e6), x.astype(np.float64)).check()
    got, want = (r.params.components.concentration for r in (result, exact))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_allclose(result.log_lik, exact.log_lik, rtol=1e-6)
