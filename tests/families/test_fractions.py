"""Betas, Dirichlets and log-normals: Newton in the space of the statistics, external numbers, extremes."""

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
from jaxem.numerics.concentration import digamma_rise, inverse_dirichlet, log_of_shares, shares_and_gap
from jaxem.numerics.special import log_minus_digamma

KEY = jax.random.key(0)


# --- the equations of the shapes


@jax.jit
def statistics_of(alpha: Any) -> Any:
    """E[log x_a], as log shares and a gap."""
    total = jnp.sum(alpha, -1, keepdims=True)
    return shares_and_gap(log_of_shares(alpha / total), log_minus_digamma(total) - log_minus_digamma(alpha))


@pytest.mark.slow
@first("d", [2, 3, 10, 100])
def test_newton_finds_the_concentration_of_every_statistic(d):
    """10⁴ statistics of concentrations from 1e-3 to 1e4, the extremes among them, in one call: six steps and two."""
    rng, low, high = np.random.default_rng(0), 1e-3, 1e4
    n = 10_000 if d < 100 else 1000
    alpha = np.exp(rng.uniform(np.log(low), np.log(high), (n, d)))
    alpha[0], alpha[1], alpha[2:4] = low, high, np.where(np.arange(d) == 0, low, high)
    alpha[3] = alpha[3, ::-1]
    solve = jax.jit(inverse_dirichlet, static_argnums=2)
    log_share, gap = statistics_of(jnp.asarray(alpha))
    found = np.asarray(solve(log_share, gap))
    error = np.abs(found / np.asarray(solve(log_share, gap, 30)) - 1).max()
    print(f"d = {d}: off by {error:.1e} after eight steps, {np.abs(found / alpha - 1).max():.1e} from the truth")
    assert error < 1e-10
    assert np.abs(found / alpha - 1).max() < 2e-8  # a share of 1 − 1e-7 has lost as many digits in its statistics
    single = [leaf.astype(jnp.float32) for leaf in (log_share, gap)]
    error = np.abs(np.asarray(solve(*single)) / solve(*[leaf.astype(float) for leaf in single]) - 1).max()
    print(f"d = {d}: float32 off by {error:.1e}")
    assert error < 1e-4


@pytest.mark.slow
def test_the_derivative_of_the_concentration_is_that_of_its_equation():
    alpha = jnp.array([[0.3, 2.0, 9.0], [1e3, 4e3, 20.0]])
    statistics = lambda alpha: statistics_of(alpha)  # noqa: E731
    moved = jnp.array([[1.0, -0.5, 2.0], [0.3, 1.0, -1.0]]) * alpha
    back = jax.jvp(lambda a: inverse_dirichlet(*statistics(a)), (alpha,), (moved,))[1]
    np.testing.assert_allclose(back, moved, rtol=1e-9)


def test_the_rise_of_the_digamma_function_keeps_its_digits():
    x = np.array([1e-3, 0.2, 3.0, 40.0, 1e4])[:, None]
    for step in (1e-9, 1e-3, 1.0, 100.0):
        want = scipy.special.digamma(x + step) - scipy.special.digamma(x)
        if step == 1e-9:
            want = step * scipy.special.polygamma(1, x + step / 2)
        np.testing.assert_allclose(digamma_rise(jnp.asarray(x), jnp.asarray(step)), want, rtol=1e-9, atol=1e-14)


# --- densities


def beta(a: Any, b: Any, dtype: Any = np.float64) -> jaxem.BetaParams:
    a, b = np.broadcast_arrays(np.asarray(a, dtype), np.asarray(b, dtype))
    return made(jaxem.BetaParams, a.reshape(-1, 1), b.reshape(-1, 1))


def test_densities_are_those_of_scipy():
    x = np.array([1e-12, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-6])[:, None]
    a, b = (np.ravel(v) for v in np.meshgrid([1e-3, 0.5, 3.0, 1e4], [1e-3, 1.0, 40.0, 1e4]))
    log_prob = jax.jit(jaxem.Beta().log_prob)
    got = log_prob(beta(a, b), jnp.asarray(x))
    np.testing.assert_allclose(got, scipy.stats.beta.logpdf(x, a[None], b[None]), rtol=1e-9, atol=1e-9)
    single = x[:5].astype(np.float32)
    got = log_prob(beta(a, b, np.float32), jnp.asarray(single))
    want = log_prob(beta(np.float32(a), np.float32(b)), jnp.asarray(single, jnp.float64))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-4)
    alpha = np.array([[0.2, 3.0, 1.0, 5.0], [2e3, 1e3, 4e3, 3e3]])
    shares = np.random.default_rng(0).dirichlet(np.array([2.0, 1.0, 4.0, 3.0]), 20)
    bank = made(jaxem.DirichletParams, alpha)
    got = jaxem.Dirichlet().log_prob(bank, jnp.asarray(shares))
    want = np.stack([[scipy.stats.dirichlet.logpdf(row, each) for each in alpha] for row in shares])
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-9)
    sizes = np.exp(np.random.default_rng(1).normal(size=(20, 1)))
    bank = made(jaxem.NormalParams, np.array([[0.3]]), np.array([[0.49]]))
    got = jaxem.LogNormal().log_prob(bank, jnp.asarray(sizes))
    np.testing.assert_allclose(got, scipy.stats.lognorm.logpdf(sizes, 0.7, scale=np.exp(0.3)), rtol=1e-12)


# --- fits


@first("shapes", [(2.0, 5.0), (0.05, 0.3), (3000.0, 800.0)], ids=str)
def test_one_beta_is_that_of_scipy(shapes):
    x = np.random.default_rng(0).beta(*shapes, size=(400, 1))
    x = np.clip(x, 1e-300, 1 - 1e-16)
    result = jaxem.fit(jaxem.Mixture(jaxem.Beta(floor=0.0), 1), mixture_params(beta(1.0, 1.0)), x, tol=1e-13).check()
    got = [float(leaf[0, 0]) for leaf in result.params.components]
    loss = lambda u: -scipy.stats.beta.logpdf(x, *np.exp(u)).sum()  # noqa: E731
    best = scipy.optimize.minimize(
        loss, np.log(got) + 0.05, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9}
    )
    np.testing.assert_allclose(got, np.exp(best.x), rtol=1e-5)
    assert float(result.log_lik) == pytest.approx(-best.fun, rel=1e-9)
    if shapes == (2.0, 5.0):
        np.testing.assert_allclose(got, np.array(scipy.stats.beta.fit(x, floc=0, fscale=1)[:2], float), rtol=1e-6)


@pytest.mark.slow
def test_one_dirichlet_solves_the_equation_of_minka():
    x = np.random.default_rng(1).dirichlet([0.4, 3.0, 20.0, 1.0], 300)
    result = jaxem.fit(
        jaxem.Mixture(jaxem.Dirichlet(floor=0.0), 1),
        mixture_params(made(jaxem.DirichletParams, np.ones((1, 4)))),
        x,
        tol=1e-13,
    ).check()
    alpha = np.asarray(result.params.components.concentration)[0]
    left = scipy.special.digamma(alpha) - scipy.special.digamma(alpha.sum())
    np.testing.assert_allclose(left, np.log(x).mean(0), rtol=1e-10)
    want = sum(scipy.stats.dirichlet.logpdf(row, alpha) for row in x)
    np.testing.assert_allclose(result.log_lik, want, rtol=1e-11)


@pytest.mark.slow
def test_a_log_normal_is_the_normal_of_the_logarithms():
    x = np.exp(np.random.default_rng(2).normal(size=(60, 2)) + 3.0 * (np.arange(60) % 2)[:, None])
    start = mixture_params(made(jaxem.NormalParams, np.array([[0.5, 0.0], [2.0, 2.5]]), np.ones((2, 2))))
    one = jaxem.fit(jaxem.Mixture(jaxem.LogNormal(), 2), start, x).check()
    other = jaxem.fit(jaxem.Mixture(jaxem.DiagonalNormal(), 2), start, np.log(x)).check()
    assert int(one.n_iter) == int(other.n_iter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), one.params, other.params)
    np.testing.assert_allclose(one.log_lik, other.log_lik - np.log(x).sum(), rtol=1e-11)
    # narrow and far from 1 in float32
    narrow = (1e20 * (1 + 1e-4 * np.random.default_rng(3).normal(size=(200, 1)))).astype(np.float32)
    model = jaxem.Mixture(jaxem.LogNormal(), 1)
    bank = jaxem.fit(model, model.init(KEY, narrow), narrow).check().params.components
    np.testing.assert_allclose(bank.covariance[0, 0], np.log(narrow.astype(float)).var(), rtol=1e-3)


@pytest.mark.slow
@first("shapes", [((2.0, 40.0), (6.0, 9.0)), ((0.05, 9e3), (0.4, 2e3)), ((1e4, 30.0), (1e4, 1e-2))], ids=str)
def test_beta_mixtures_in_float32_are_those_of_float64(shapes):
    a, b = map(np.asarray, shapes)
    z = np.arange(400) % 2
    x = np.clip(np.random.default_rng(0).beta(a[z], b[z]), 1e-30, 1 - 2.0**-24).astype(np.float32)[:, None]
    model = jaxem.Mixture(jaxem.Beta(), 2)
    one = lambda dtype, k: jaxem.fit(  # noqa: E731
        model, jax.tree.map(dtype, mixture_params(beta(a, b))), x.astype(dtype), tol=-1.0, max_iter=k
    )
    single, double = one(np.float32, 1), one(np.float64, 1)
    for got, want in zip(single.params.components, double.params.components, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3)  # shapes alike, but a few eps of the rows times the shapes
    np.testing.assert_allclose(single.history, double.history, rtol=2e-5, atol=0.02)


@pytest.mark.slow
def test_a_component_at_one_point_is_degenerate_without_a_floor():
    x = np.concatenate([np.full(20, 0.3), np.linspace(0.5, 0.9, 20)])[:, None]
    for family, rows, start in (
        (jaxem.Beta, x, beta([15.0, 14.0], [35.0, 6.0])),
        (jaxem.Dirichlet, np.concatenate([x, 1 - x], 1), made(jaxem.DirichletParams, np.array([[15.0, 35], [14, 6]]))),
    ):
        bare = jaxem.fit(jaxem.Mixture(family(floor=0.0), 2), mixture_params(start), rows)
        assert int(bare.status) == Status.DEGENERATE
        kept = jaxem.fit(jaxem.Mixture(family(), 2), mixture_params(start), rows).check()
        assert np.all(np.diff(np.asarray(kept.history)[: int(kept.n_iter) + 1]) > -1e-9)
        # at the bound of the prior: 1 / (2·Σα) = floor / N
        total = sum(float(leaf[0].sum()) for leaf in kept.params.components)
        assert total == pytest.approx(20 / 2e-6, rel=1e-2)


@pytest.mark.slow
def test_missing_fractions_are_left_out_exactly():
    rng = np.random.default_rng(4)
    x = rng.beta([2.0, 6.0], [3.0, 0.7], (80, 2))
    x[rng.random(x.shape) < 0.2] = np.nan
    x[7] = np.nan
    model = jaxem.Mixture(jaxem.Beta(floor=0.0, missing=True), 1)
    result = jaxem.fit(model, model.init(KEY, x), x, tol=1e-13).check()
    a, b = (np.asarray(leaf)[0] for leaf in result.params.components)
    np.testing.assert_allclose(result.log_lik, np.nansum(scipy.stats.beta.logpdf(x, a, b)), rtol=1e-11)
    np.testing.assert_allclose(
        scipy.special.digamma(a) - scipy.special.digamma(a + b), np.nanmean(np.log(x), 0), rtol=1e-9
    )


def test_data_outside_of_the_support_are_named():
    x = np.linspace(0.2, 0.8, 10)[:, None]
    normal = made(jaxem.NormalParams, np.zeros((2, 1)), np.ones((2, 1)))
    for family, rows, start, value in (
        (jaxem.Beta(), x, beta([1.0, 2.0], [1.0, 3.0]), 0.0),
        (jaxem.Beta(), x, beta([1.0, 2.0], [1.0, 3.0]), 1.0),
        (jaxem.LogNormal(), x, normal, -1.0),
        (jaxem.LogNormal(), x, normal, 0.0),
        (jaxem.Dirichlet(), np.concatenate([x, 1 - x], 1), made(jaxem.DirichletParams, np.ones((2, 2))), 0.9),
    ):
        bad = rows.copy()
        bad[4, 0] = value
        model, params = jaxem.Mixture(family, 2), mixture_params(start)
        with pytest.raises(ValueError, match=f"for {type(family).__name__}, got {value} in row 4, column 0"):
            jaxem.fit(model, params, bad)
        assert model.log_prob(params, jnp.asarray(bad))[4] == -np.inf
    with pytest.raises(ValueError, match="two or more parts for Dirichlet, got 1 column"):
        jaxem.fit(jaxem.Mixture(jaxem.Dirichlet(), 2), mixture_params(made(jaxem.DirichletParams, np.ones((2, 1)))), x)


@pytest.mark.slow
def test_samples_are_those_of_scipy():
    z = jnp.zeros(20_000, int)
    draws = np.asarray(jaxem.Beta().sample(jax.tree.map(jnp.asarray, beta(0.4, 3.0)), KEY, z))[:, 0]
    assert scipy.stats.kstest(draws, scipy.stats.beta(0.4, 3.0).cdf).pvalue > 0.01
    rows = jaxem.Dirichlet().sample(made(jaxem.DirichletParams, jnp.array([[0.4, 1.0, 2.0]])), KEY, z)
    assert scipy.stats.kstest(np.asarray(rows)[:, 0], scipy.stats.beta(0.4, 3.0).cdf).pvalue > 0.01
    bank = made(jaxem.NormalParams, jnp.full((1, 1), 0.3), jnp.full((1, 1), 0.49))
    sizes = np.asarray(jaxem.LogNormal().sample(bank, KEY, z))[:, 0]
    assert scipy.stats.kstest(sizes, scipy.stats.lognorm(0.7, scale=np.exp(0.3)).cdf).pvalue > 0.01
