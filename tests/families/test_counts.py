"""Negative binomials: external numbers, extremes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from helpers import first, made, mixture_params

import jaxem
from jaxem import Status
from jaxem.families.columns._sizes import largest_size, log_step, tilt
from jaxem.numerics.special import log_minus_digamma

KEY = jax.random.key(0)
LOG_PROB = jax.jit(jaxem.NegativeBinomial().log_prob)

# European red mites on 150 apple leaves (Bliss & Fisher 1953, Biometrics 9, table 1)
MITES, LEAVES = np.arange(8.0)[:, None], np.array([70.0, 38, 17, 10, 9, 3, 2, 1])


def bank(size, mean):
    size, mean = np.broadcast_arrays(np.asarray(size, float), np.asarray(mean, float))
    return made(jaxem.NegativeBinomialParams, size.reshape(-1, 1), mean.reshape(-1, 1))


def test_mites_on_apple_leaves_are_those_of_bliss_and_fisher():
    model = jaxem.Mixture(jaxem.NegativeBinomial(), 1)
    start = model.init(KEY, MITES, sample_weight=jnp.asarray(LEAVES))
    result = jaxem.fit(model, start, MITES, sample_weight=LEAVES, tol=1e-13, max_iter=3000).check()
    size, mean = (float(leaf[0, 0]) for leaf in result.params.components)
    print(f"size {size:.5f}, mean {mean:.5f}")
    assert size == pytest.approx(1.02459, abs=6e-6)
    assert mean == pytest.approx(172 / 150, rel=1e-12)
    loss = lambda u: -LEAVES @ scipy.stats.nbinom.logpmf(MITES[:, 0], np.exp(u), np.exp(u) / (np.exp(u) + mean))  # noqa: E731
    best: Any = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), options={"xatol": 1e-10})
    assert size == pytest.approx(np.exp(best.x), rel=1e-5)  # where the likelihood no longer tells
    assert float(result.log_lik) == pytest.approx(-best.fun, rel=1e-12)
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert np.all(np.diff(history) > -1e-11)


def test_the_density_is_that_of_scipy_and_keeps_its_digits():
    x = np.array([0.0, 1, 2, 7, 50, 1000, 12345])[:, None]
    sizes, means = (np.ravel(a) for a in np.meshgrid([1e-3, 0.3, 2.0, 50.0, 1e4], [1e-3, 0.7, 30.0, 5e3]))
    got = LOG_PROB(bank(sizes, means), jnp.asarray(x))
    # scipy subtracts logarithms of gamma functions of x + size
    want = scipy.stats.nbinom.logpmf(x, sizes[None], (sizes / (sizes + means))[None])
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    single = LOG_PROB(jax.tree.map(np.float32, bank(sizes, means)), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(single, got, rtol=1e-5, atol=1e-5)
    far = LOG_PROB(bank(1e15, 30.0), jnp.asarray(x[:5]))
    np.testing.assert_allclose(far, scipy.stats.poisson.logpmf(x[:5], 30.0), rtol=1e-11)
    huge = np.array([[2.0**30 * 3], [2.0**31]], np.float32)
    one = jax.tree.map(np.float32, bank(1e7, 3e9))
    got = LOG_PROB(one, jnp.asarray(huge))
    want = LOG_PROB(jax.tree.map(lambda a: a.astype(float), one), jnp.asarray(huge, float))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_array_equal(LOG_PROB(bank(2.0, 0.0), jnp.asarray(x[:2]))[:, 0], [0, -np.inf])


def test_counts_of_a_poisson_law_send_the_size_to_its_limit():
    x = scipy.stats.poisson.ppf((np.arange(100) + 0.5) / 100, 4.0)[:, None]
    model = jaxem.Mixture(jaxem.NegativeBinomial(), 1)
    for dtype in (np.float64, np.float32):
        start = mixture_params(jax.tree.map(dtype, bank(1e3, 3.0)))
        result = jaxem.fit(model, jax.tree.map(dtype, start), x.astype(dtype), tol=-1.0, max_iter=300)
        history = np.asarray(result.history, float)
        assert np.all(np.diff(history) > -16 * np.finfo(dtype).eps * (100 + abs(history[0])))
        assert 1e3 < float(result.params.components.size[0, 0]) <= 1 / np.sqrt(np.finfo(dtype).eps)
        np.testing.assert_allclose(result.log_lik, scipy.stats.poisson.logpmf(x, x.mean()).sum(), rtol=1e-4)
    # underdispersed to the end: all counts alike
    same = jaxem.fit(model, mixture_params(bank(5.0, 3.0)), np.full((50, 1), 4.0), tol=-1.0, max_iter=50)
    assert np.all(np.diff(np.asarray(same.history)) > -1e-12) and float(same.params.components.mean[0, 0]) == 4.0


def test_a_component_that_counts_nothing_and_one_without_weight():
    x = np.concatenate([np.zeros((30, 1)), 20.0 + 8 * np.arange(20.0)[:, None]])
    model = jaxem.Mixture(jaxem.NegativeBinomial(), 3, active=np.array([True, True, False]))
    start = mixture_params(bank([2.0, 2.0, 2.0], [0.1, 75.0, 9.0]))._replace(weights=np.array([0.5, 0.5, 0.0]))
    result = jaxem.fit(model, start, x).check()
    got = result.params.components
    # which explains a zero with 3e-5; the other mean goes to 0, and is below 1e-20 when the objective stands still
    np.testing.assert_allclose(got.mean[:, 0], [0.0, 96.0, x.mean()], rtol=1e-4, atol=1e-20)
    assert np.all(np.isfinite(got.size))
    slope = jax.grad(lambda bank: jnp.sum(jnp.where(x == 0, LOG_PROB(bank, jnp.asarray(x)), 0)))(got)
    assert np.all(np.isfinite(np.asarray(slope.size))) and np.all(np.isfinite(np.asarray(slope.mean)))


def test_counts_in_float32_are_those_of_float64():
    rng = np.random.default_rng(1)
    size, mean = np.array([0.3, 40.0]), np.array([20.0, 5e6])
    z = np.arange(400) % 2
    x = rng.poisson(rng.gamma(size[z]) / size[z] * mean[z]).astype(float)[:, None]
    model = jaxem.Mixture(jaxem.NegativeBinomial(), 2)
    fit = lambda dtype: jaxem.fit(  # noqa: E731
        model, jax.tree.map(dtype, mixture_params(bank(2 * size, mean * 1.1))), x.astype(dtype), tol=-1.0, max_iter=200
    )
    x = x.astype(np.float32).astype(float)
    single, double = fit(np.float32), fit(np.float64)
    for a, b in zip(single.params.components, double.params.components, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    np.testing.assert_allclose(single.log_lik, double.log_lik, rtol=1e-5)


def test_missing_counts_are_left_out_exactly():
    rng = np.random.default_rng(2)
    x = rng.poisson(rng.gamma(2.0, size=(60, 2)) * np.array([3.0, 20.0])).astype(float)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[7] = np.nan
    model = jaxem.Mixture(jaxem.NegativeBinomial(missing=True), 1)
    start = model.init(KEY, x)
    result = jaxem.fit(model, start, x, tol=1e-13, max_iter=3000).check()
    size, mean = (np.asarray(leaf)[0] for leaf in result.params.components)
    np.testing.assert_allclose(mean, np.nanmean(x, 0), rtol=1e-12)
    logs = scipy.stats.nbinom.logpmf(np.nan_to_num(x), size, size / (size + mean))
    np.testing.assert_allclose(result.log_lik, np.sum(logs[~np.isnan(x)]), rtol=1e-12)
    for a in range(2):
        own = x[~np.isnan(x[:, a]), a]
        prob = lambda size, m=mean[a]: size / (size + m)  # noqa: E731
        loss = lambda u, own=own, prob=prob: -scipy.stats.nbinom.logpmf(own, np.exp(u), prob(np.exp(u))).sum()  # noqa: E731
        best: Any = scipy.optimize.minimize_scalar(loss, bounds=(-3, 5), options={"xatol": 1e-10})
        assert size[a] == pytest.approx(np.exp(best.x), rel=1e-4)


def test_a_fixed_size_stays_and_its_shape_is_checked():
    x = np.arange(12.0)[:, None]
    start = mixture_params(bank([2.5, 2.5], [2.0, 9.0]))
    result = jaxem.fit(jaxem.Mixture(jaxem.NegativeBinomial(2.5), 2), start, x).check()
    np.testing.assert_array_equal(result.params.components.size, 2.5)
    assert int(result.model.n_parameters(result.params)) == 3
    with pytest.raises(ValueError, match=r"size: expected shape \(\) or \(2, 1\), got \(2,\)"):
        jaxem.fit(jaxem.Mixture(jaxem.NegativeBinomial(np.ones(2)), 2), start, x)
    for value in (0.5, -1.0):
        bad = x.copy()
        bad[4] = value
        with pytest.raises(ValueError, match=f"non-negative integers for NegativeBinomial, got {value} in row 4"):
            jaxem.fit(jaxem.Mixture(jaxem.NegativeBinomial(2.5), 2), start, bad)
        both = jax.tree.map(lambda leaf: np.stack([leaf] * 2), start)
        lanes = jaxem.fit_batch(jaxem.Mixture(jaxem.NegativeBinomial(2.5), 2), both, np.stack([bad, x]), max_iter=3)
        assert int(lanes.status[0]) == Status.NONFINITE and int(lanes.status[1]) != Status.NONFINITE


def test_samples_are_those_of_scipy():
    draws = np.asarray(
        jaxem.NegativeBinomial().sample(jax.tree.map(jnp.asarray, bank(0.7, 3.0)), KEY, jnp.zeros(20_000, int))
    )
    share = np.bincount(draws[:, 0].astype(int), minlength=6)[:6]
    want = 20_000 * scipy.stats.nbinom.pmf(np.arange(6), 0.7, 0.7 / 3.7)
    assert np.all(np.abs(share - want) < 5 * np.sqrt(want))


def test_the_gap_is_that_of_the_expected_rates():
    """E[λ] and E[log λ] of Gamma(size + x, size + mean)."""
    x, size, mean = np.array([[0.0], [3.0], [40.0]]), 1.7, 5.0
    stats = jaxem.NegativeBinomial().statistics(
        jax.tree.map(jnp.asarray, bank(size, mean)), jnp.asarray(x), jnp.ones((3, 1))
    )
    rate = (size + x) / (size + mean)
    log_rate = np.log(rate) - np.asarray(log_minus_digamma(jnp.asarray(size + x)))
    without = 3 * float(log_minus_digamma(jnp.asarray(size)))
    np.testing.assert_allclose(stats.excess[0, 0], np.sum(rate - 1), rtol=1e-13)
    np.testing.assert_allclose(stats.gap[0, 0] + without, np.sum(rate - 1 - log_rate), rtol=1e-13)
    np.testing.assert_allclose(np.exp(stats.log_size[0, 0] / 3), size, rtol=1e-14)


@first("size", [1e-6, 0.02, 3.0, 400.0])
def test_the_curvature_is_that_of_the_sum_over_each_count(size):
    x = np.array([0.0, 1, 2, 3, 250])
    terms = [size * t / (size + t) ** 2 for count in x for t in range(1, int(count))]
    for dtype, rtol in ((np.float64, 1e-10), (np.float32, 3e-4)):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), bank(size, 0.3))  # noqa: B023
        stats = jaxem.NegativeBinomial().statistics(params, jnp.asarray(x[:, None], dtype), jnp.ones((5, 1), dtype))
        np.testing.assert_allclose(stats.curvature[0, 0], sum(terms), rtol=rtol)


# --- the step of the size

SIZES, MEANS = (jnp.asarray(np.ravel(a)) for a in np.meshgrid(np.logspace(-4, 6, 21), np.logspace(-3, 5, 9)))


def own_information(size, mean):
    return jax.jvp(lambda log_size: tilt(jnp.exp(log_size), mean), (jnp.log(size),), (jnp.ones_like(size),))[1]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("slope", [-0.9, -0.1, -1e-6, 1e-6, 0.1, 0.9])
def test_a_step_of_the_size_ends_where_its_bound_is_flat(share, slope):
    """`slope` as a share of the most that a size of zero, or an endless one, would leave of it."""
    curvature = share * own_information(SIZES, MEANS)
    up, down = MEANS - tilt(SIZES, MEANS) - curvature, tilt(SIZES, MEANS) - curvature
    slopes = slope * jnp.where(slope > 0, up, down)
    step = log_step(slopes, curvature, SIZES, MEANS)
    assert np.all(np.sign(step) == np.sign(slope))
    largest = jnp.abs(jnp.log(largest_size(step.dtype) / SIZES))
    free = np.asarray((jnp.abs(step) < np.log(999)) & (step < largest - 1e-3))
    u = MEANS / SIZES
    change = jnp.expm1(step) * jnp.log1p(u * jnp.exp(-step)) + jnp.log1p(u * jnp.expm1(-step) / (1 + u))
    left = slopes + curvature * jnp.sign(step) * -jnp.expm1(-jnp.abs(step)) - SIZES * change
    share_left = np.asarray(left / slopes)[free]
    assert np.all(share_left > -1e-3)  # never beyond; digits of what is left are lost as those of 1 + mean/size
    moderate = np.asarray((u > 1e-5) & (u < 1e5))[free]  # elsewhere some are still on their way
    assert moderate.any() and np.all(np.abs(share_left[moderate]) < 1e-6)


def test_the_derivative_of_a_step_is_that_of_finite_differences():
    point = (0.3, 1.1, 4.0, 9.0)
    for slope in (0.3, -0.3, 1e-3):
        at = tuple(jnp.asarray(v) for v in (slope, *point[1:]))
        got = jax.grad(log_step, (0, 1, 2, 3))(*at)
        for i in range(4):
            ahead, behind = (log_step(*(v + h * (i == j) for j, v in enumerate(at))) for h in (1e-6, -1e-6))
            np.testing.assert_allclose(got[i], (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


def test_the_size_is_nearly_that_of_one_component_after_a_few_steps():
    rng = np.random.default_rng(5)
    for size, mean in ((0.3, 2.0), (4.0, 30.0), (40.0, 100.0)):
        x = rng.poisson(rng.gamma(size, size=(400, 1)) * mean / size).astype(float)
        model = jaxem.Mixture(jaxem.NegativeBinomial(), 1)
        history = np.asarray(jaxem.fit(model, mixture_params(bank(1.0, mean)), x, tol=-1.0, max_iter=40).history)
        assert history[-1] - history[9] < 1e-6 * len(x)


def test_counts_of_a_rare_gene_do_not_crawl():
    y = np.r_[np.zeros(4990), [1, 1, 2, 1, 3, 1, 40, 2, 1, 250]]
    model = jaxem.Mixture(jaxem.NegativeBinomial(), 1)
    result = jaxem.fit(model, model.init(KEY, y[:, None]), y[:, None]).check()
    loss = lambda u: -scipy.stats.nbinom.logpmf(y, np.exp(u), np.exp(u) / (np.exp(u) + y.mean())).sum()  # noqa: E731
    best: Any = scipy.optimize.minimize_scalar(loss, bounds=(-20, 15), method="bounded")
    assert float(result.log_lik) > -best.fun - 1e-3 and int(result.n_iter) < 10


@pytest.mark.parametrize(("size", "mean"), [(0.05, 0.1), (1.0, 0.3), (3.0, 2.0), (0.5, 40.0)])
def test_the_objective_rises_whichever_variable_is_hidden(size, mean):
    rng = np.random.default_rng(3)
    x = rng.poisson(rng.gamma(size, size=(300, 1)) * mean / size).astype(float)
    model = jaxem.Mixture(jaxem.NegativeBinomial(), 2)
    start = mixture_params(bank([4 * size, size / 5], [2 * mean, 0.4 * mean]))
    history = np.asarray(jaxem.fit(model, start, x, tol=-1.0, max_iter=60).history)
    assert np.all(np.diff(history) > -1e-10)
