"""Normal components of rows with missing entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import KEY, first, made

import jaxem

log_prob = jax.jit(lambda family, bank, x: family.log_prob(bank, x))
statistics = jax.jit(lambda family, bank, x, r: family.statistics(bank, x, r))


def _bank(k: int, d: int) -> jaxem.NormalParams:
    rng = np.random.default_rng(d)
    root = rng.normal(size=(k, d, d))
    return made(jaxem.NormalParams, rng.normal(size=(k, d)), root @ root.transpose(0, 2, 1) / d + 0.5 * np.eye(d))


def _rows(n: int, d: int, share: float) -> np.ndarray:
    """Rows with entries missing at random; the first complete, the second without any."""
    rng = np.random.default_rng(n + d)
    x = rng.normal(size=(n, d)) + np.arange(d)
    x[rng.random((n, d)) < share] = np.nan
    x[0], x[1] = np.arange(d), np.nan
    return x


def _by_hand(bank: jaxem.NormalParams, x: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log densities of what was observed (n, k), Σ r E[x] and Σ r E[x xᵀ], row by row."""
    (n, d), k = x.shape, len(bank.mean)
    density, one, two = np.zeros((n, k)), np.zeros((k, d)), np.zeros((k, d, d))
    for i in range(n):
        o, m = np.flatnonzero(~np.isnan(x[i])), np.flatnonzero(np.isnan(x[i]))
        for j in range(k):
            mean, cov = np.asarray(bank.mean[j]), np.asarray(bank.covariance[j])
            row, spread = mean.copy(), np.zeros((d, d))
            weights = np.linalg.solve(cov[np.ix_(o, o)], cov[np.ix_(o, m)])
            row[o], row[m] = x[i, o], mean[m] + (x[i, o] - mean[o]) @ weights
            spread[np.ix_(m, m)] = cov[np.ix_(m, m)] - cov[np.ix_(m, o)] @ weights
            if len(o):
                density[i, j] = scipy.stats.multivariate_normal(mean[o], cov[np.ix_(o, o)]).logpdf(x[i, o])
            one[j] += r[i, j] * row
            two[j] += r[i, j] * (np.outer(row, row) + spread)
    return density, one, two


@first("d", [3, 12])  # the second by a loop over columns
def test_densities_and_expected_moments_are_those_of_the_formulas_row_by_row(d):
    bank, x = _bank(2, d), _rows(20, d, 0.3)
    r = np.random.default_rng(1).random((20, 2))
    family = jaxem.FullNormal(missing=True)
    density, one, two = _by_hand(bank, x, r)
    np.testing.assert_allclose(log_prob(family, bank, x), density, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(log_prob(family, bank, x)[1], 0)
    stats = statistics(family, bank, x, r)
    np.testing.assert_allclose(stats.count, r.sum(0), rtol=1e-14)
    np.testing.assert_allclose(stats.first, one, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(stats.second, two, rtol=1e-10, atol=1e-10)
    single = jax.tree.map(np.float32, bank)
    np.testing.assert_allclose(log_prob(family, single, np.float32(x)), density, rtol=3e-5, atol=3e-5)


def test_tied_components_pool_their_expected_moments():
    bank, x = _bank(2, 3), _rows(20, 3, 0.3)
    r = np.random.default_rng(1).random((20, 2))
    cov = bank.covariance[:1]
    tied = made(jaxem.NormalParams, bank.mean, cov[0])
    density, one, two = _by_hand(bank._replace(covariance=np.concatenate([cov, cov])), x, r)
    family = jaxem.TiedNormal(missing=True)
    stats = statistics(family, tied, x, r)
    np.testing.assert_allclose(log_prob(family, tied, x), density, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(stats.first, one, rtol=1e-10)
    np.testing.assert_allclose(stats.second, two.sum(0), rtol=1e-10)


def _murray() -> np.ndarray:
    nan = np.nan
    return np.array(
        [[1, 1], [1, -1], [-1, 1], [-1, -1], [2, nan], [2, nan], [-2, nan], [-2, nan], [nan, 2], [nan, 2], [nan, -2],
         [nan, -2]]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("start", "variance", "correlation"), [(0.1, 8 / 3, 0.5), (-0.1, 8 / 3, -0.5), (0.0, 5 / 2, 0.0)]
)
def test_the_two_maxima_and_the_saddle_of_murray_are_found(start, variance, correlation):
    """Murray (1977, J. R. Stat. Soc. B 39, 27): twelve rows, two maxima at ±1/2, and a saddle where EM may stay."""
    x = _murray()
    bank = made(jaxem.NormalParams, np.zeros((1, 2)), np.array([[[2.0, 2 * start], [2 * start, 2.0]]]))
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0, missing=True), 1)
    result = jaxem.fit(model, made(jaxem.MixtureParams, np.ones(1), bank), x, tol=-1.0, max_iter=300)
    mean, covariance = result.params.components
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    want = variance * np.array([[1, correlation], [correlation, 1]])
    np.testing.assert_allclose(covariance[0], want, atol=2e-6)
    assert np.all(np.diff(np.asarray(result.history)[: int(result.n_iter) + 1]) > -1e-12)


def test_monotone_gaps_have_the_closed_form_of_anderson():
    """Anderson (1957, J. Am. Stat. Assoc. 52, 200): the regression of the second column is that of complete rows."""
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([1.0, 5.0], [[2.0, 1.2], [1.2, 3.0]], 40)
    x[25:, 1] = np.nan
    slope = np.cov(x[:25].T)[0, 1] / np.var(x[:25, 0], ddof=1)
    rest = np.var(x[:25, 1] - slope * x[:25, 0])
    mean = [x[:, 0].mean(), x[:25, 1].mean() + slope * (x[:, 0].mean() - x[:25, 0].mean())]
    var = x[:, 0].var()
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0, missing=True), 1)
    result = jaxem.fit(model, model.init(KEY, x), x, tol=1e-15, max_iter=3000).check()
    np.testing.assert_allclose(result.params.components.mean[0], mean, rtol=1e-7)
    want = [[var, slope * var], [slope * var, rest + slope**2 * var]]
    np.testing.assert_allclose(result.params.components.covariance[0], want, rtol=1e-6)


@pytest.mark.slow
@first("dtype", [np.float32, np.float64])
def test_complete_rows_give_the_fit_of_complete_rows_whatever_the_offset(dtype):
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(60, 3)) + 4 * (np.arange(60) % 2)[:, None]).astype(dtype)
    x = x + np.asarray([0, 300, -1000], dtype)
    fits = [
        jaxem.fit(model, model.init(KEY, x), x, tol=1e-5 if dtype == np.float32 else 1e-12).check().ordered()
        for model in (jaxem.Mixture(jaxem.FullNormal(missing=missing), 2) for missing in (False, True))
    ]
    tight = 2e-3 if dtype == np.float32 else 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tight, atol=tight), *[f.params for f in fits])
    np.testing.assert_allclose(fits[0].log_lik, fits[1].log_lik, rtol=1e-5 if dtype == np.float32 else 1e-10)


def test_a_column_without_an_entry_and_an_infinite_one_are_named():
    x = _rows(20, 3, 0.2)
    model = jaxem.Mixture(jaxem.FullNormal(missing=True), 2)
    params = made(jaxem.MixtureParams, np.full(2, 0.5), _bank(2, 3))
    with pytest.raises(ValueError, match="got none in column 2; drop it"):
        jaxem.fit(model, params, np.where(np.arange(3) == 2, np.nan, x))
    x[4, 0] = np.inf
    with pytest.raises(ValueError, match="row"):
        jaxem.fit(model, params, x)
    with pytest.raises(ValueError, match="normal: expected a normal of complete rows"):
        jaxem.Mixture(jaxem.StudentT(3.0, jaxem.FullNormal(missing=True)), 2).validate_data(x)


def test_a_spike_among_rows_with_gaps_is_degenerate():
    x = _rows(30, 2, 0.2)
    x[10:20] = x[10:11] * 0 + np.array([50.0, 50.0])
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0, missing=True), 2)
    bank = made(jaxem.NormalParams, np.array([[0.0, 1.0], [50.0, 50.0]]), np.tile(np.eye(2), (2, 1, 1)))
    result = jaxem.fit(model, made(jaxem.MixtureParams, np.full(2, 0.5), bank), x)
    assert jaxem.Status(int(result.status)) == jaxem.Status.DEGENERATE
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(result.params))
    floored = jaxem.Mixture(jaxem.FullNormal(missing=True), 2)
    jaxem.fit(floored, made(jaxem.MixtureParams, np.full(2, 0.5), bank), x).check()


@pytest.mark.slow
def test_rows_without_an_entry_tell_nothing():
    x = _rows(40, 2, 0.1)
    model = jaxem.Mixture(jaxem.FullNormal(missing=True), 2)
    params = model.init(KEY, x)
    some = jaxem.fit(model, params, x, tol=1e-10)
    more = jaxem.fit(model, params, jnp.concatenate([x, jnp.full((5, 2), jnp.nan)]), tol=1e-10)
    np.testing.assert_allclose(some.log_lik, more.log_lik, atol=1e-6)
    np.testing.assert_allclose(model.responsibilities(some.params, x)[1], some.params.weights, rtol=1e-12)
