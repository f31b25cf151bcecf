"""Regressions as components: densities, optima and extremes, against scipy and normal equations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from contract_cases import quick_jit
from helpers import made, once_a_week, slow
from jax.flatten_util import ravel_pytree

import jaxem
from jaxem import Status
from jaxem.numerics.scales import robust_variance

KEY = jax.random.key(0)
N = 60
_rng = np.random.default_rng(0)


def _in_single(values: np.ndarray) -> np.ndarray:
    """Numbers that float32 has, so that both precisions see the same data."""
    return values.astype(np.float32).astype(float)


YEARS = np.stack([np.ones(N), 1900.0 + _rng.integers(0, 107, N)], 1)
OFFSET = _in_single(0.2 * _rng.normal(size=N))
ETA = 0.8 + 0.02 * (YEARS[:, 1] - 1950) + OFFSET
COUNTS = _rng.poisson(np.exp(ETA) * _rng.gamma(1.5, 1 / 1.5, N)).astype(float)
SUCCESSES = _rng.binomial(9, 1 / (1 + np.exp(-ETA))).astype(float)
TRIALS = np.stack([SUCCESSES, 9 - SUCCESSES], 1)
RESPONSE = _in_single(1e4 + 3 * ETA + _rng.normal(size=N))
RIDGE = jaxem.GaussianPrior(np.array([0.0, 0.5]), np.array([0.0, 0.1]))


@quick_jit
def _fit(model: Any, data: Any, tol: Any = 1e-12) -> jaxem.FitResult:
    """One component, from its own start."""
    return jaxem.fit(model, model.init(KEY, data), data, tol=tol, max_iter=400)


def fit(family: Any, data: Any, **options: Any) -> jaxem.FitResult:
    return _fit(jaxem.Mixture(family, 1), data, **options)


def statuses(result: Any) -> list[Status]:
    return [Status(int(code)) for code in np.ravel(result.status)]


# --- densities


def _mean(bank: Any, inverse_link: Callable = np.exp) -> np.ndarray:
    return inverse_link(YEARS @ np.asarray(bank.coefficients).T + OFFSET[:, None])


def _logistic(eta: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-eta))


BETA = np.array([[-38.2, 0.02], [19.5, -0.01]])


@slow
@pytest.mark.parametrize(
    ("family", "bank", "response", "want"),
    [
        (
            jaxem.LinearRegression(),
            made(jaxem.LinearRegressionParams, 1e4 * BETA, np.array([2.0, 9.0])),
            RESPONSE,
            lambda b: scipy.stats.norm.logpdf(RESPONSE[:, None], _mean(b, lambda eta: eta), np.sqrt(b.variance)),
        ),
        (
            jaxem.StudentTRegression(),
            made(jaxem.StudentTRegressionParams, 1e4 * BETA, np.array([2.0, 9.0]), np.array([1.5, 40.0])),
            RESPONSE,
            lambda b: scipy.stats.t.logpdf(RESPONSE[:, None], b.dof, _mean(b, lambda eta: eta), b.scale),
        ),
        (
            jaxem.PoissonRegression(),
            made(jaxem.PoissonRegressionParams, BETA),
            COUNTS,
            lambda b: scipy.stats.poisson.logpmf(COUNTS[:, None], _mean(b)),
        ),
        (
            jaxem.LogisticRegression(),
            made(jaxem.LogisticRegressionParams, BETA),
            TRIALS,
            lambda b: scipy.stats.binom.logpmf(SUCCESSES[:, None], 9, _mean(b, _logistic)),
        ),
        (
            jaxem.LogisticRegression(),
            made(jaxem.LogisticRegressionParams, BETA),
            (SUCCESSES > 4).astype(float),
            lambda b: scipy.stats.bernoulli.logpmf((SUCCESSES > 4)[:, None], _mean(b, _logistic)),
        ),
        (
            jaxem.NegativeBinomialRegression(),
            made(jaxem.NegativeBinomialRegressionParams, BETA, np.array([0.4, 300.0])),
            COUNTS,
            lambda b: scipy.stats.nbinom.logpmf(COUNTS[:, None], b.size, b.size / (b.size + _mean(b))),
        ),
    ],
    ids=["linear", "student_t", "poisson", "binomial", "logistic", "negative_binomial"],
)
def test_the_density_is_that_of_scipy(family, bank, response, want):
    data = jax.tree.map(jnp.asarray, (YEARS, response, OFFSET))
    bound = family.bind(data, None)
    expected = want(bank)
    np.testing.assert_allclose(family.log_prob(bank, data), expected, rtol=1e-10)
    np.testing.assert_allclose(bound.log_prob(bank, data), expected, rtol=1e-10)
    np.testing.assert_allclose(bound.localised().log_prob(bound.to_local(bank), data), expected, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), bound.to_global(bound.to_local(bank)), bank)


# --- optima, of covariates that are years, with an offset


def _assert_optimum(family: Any, data: Any, dof: int) -> jaxem.FitResult:
    """No other params are better: the gradient of the likelihood by scipy's optimiser ends there, too."""
    result = fit(family, data).check()
    model = jaxem.Mixture(family, 1)
    single = fit(family, jax.tree.map(np.float32, data), tol=1e-7)
    assert single.status <= Status.RESOLUTION
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4)  # noqa: E731
    jax.tree.map(same, single.params, result.params)
    assert int(model.n_parameters(result.params)) == dof
    return result


def _minimum(negative_log_lik: Callable, start: np.ndarray) -> tuple[float, np.ndarray]:
    with np.errstate(all="ignore"):  # far away
        found = scipy.optimize.minimize(negative_log_lik, start, method="BFGS", options={"gtol": 1e-6})
    return found.fun, found.x


CENTRED = YEARS - [[0.0, 1950.0]]


@slow
def test_linear_regression_is_least_squares():
    """Years beside ones, a response far from zero: in float32, too."""
    result = _assert_optimum(jaxem.LinearRegression(floor=0.0), (YEARS, RESPONSE, OFFSET), 3)
    beta, (ss,), _, _ = np.linalg.lstsq(YEARS, RESPONSE - OFFSET, rcond=None)
    np.testing.assert_allclose(result.params.components.coefficients[0], beta, rtol=1e-10)
    np.testing.assert_allclose(result.params.components.variance[0], ss / N, rtol=1e-10)


def test_a_prior_on_the_coefficients_is_ridge_regression():
    y = RESPONSE - 1e4
    precision, mean = np.diag(RIDGE.precision), RIDGE.mean
    result = fit(jaxem.LinearRegression(RIDGE, 0.25), (CENTRED, y))
    beta = np.linalg.solve(CENTRED.T @ CENTRED + precision, CENTRED.T @ y + precision @ mean)
    gap = beta - mean
    floor = 0.25 * float(robust_variance(jnp.asarray(y)[:, None], None)[0])
    variance = (np.sum((y - CENTRED @ beta) ** 2) + gap @ precision @ gap + floor) / (N + 1)
    np.testing.assert_allclose(result.params.components.coefficients[0], beta, rtol=1e-10)
    np.testing.assert_allclose(result.params.components.variance[0], variance, rtol=1e-10)
    own = scipy.stats.norm.logpdf(beta[1], 0.1, np.sqrt(variance / 0.5)) - 0.5 * floor / variance
    np.testing.assert_allclose(result.objective - result.log_lik, own, rtol=1e-10)


def test_poisson_regression_is_the_maximum_of_scipys_likelihood():
    result = _assert_optimum(jaxem.PoissonRegression(), (YEARS, COUNTS, OFFSET), 2)
    value, at = _minimum(lambda b: -scipy.stats.poisson.logpmf(COUNTS, np.exp(CENTRED @ b + OFFSET)).sum(), np.zeros(2))
    np.testing.assert_allclose(result.log_lik, -value, rtol=1e-10)
    np.testing.assert_allclose(np.asarray(result.params.components.coefficients[0]) @ [1, 1950], at[0], rtol=1e-4)


@slow
def test_logistic_regression_is_the_maximum_of_scipys_likelihood():
    result = _assert_optimum(jaxem.LogisticRegression(), (YEARS, TRIALS, OFFSET), 2)
    value, at = _minimum(
        lambda b: -scipy.stats.binom.logpmf(SUCCESSES, 9, _logistic(CENTRED @ b + OFFSET)).sum(), np.zeros(2)
    )
    np.testing.assert_allclose(result.log_lik, -value, rtol=1e-10)
    np.testing.assert_allclose(result.params.components.coefficients[0, 1], at[1], rtol=1e-4)


@slow
def test_negative_binomial_regression_is_the_maximum_of_scipys_likelihood():
    result = _assert_optimum(jaxem.NegativeBinomialRegression(), (YEARS, COUNTS, OFFSET), 3)

    def negative_log_lik(b: np.ndarray) -> float:
        size, mean = np.exp(b[2]), np.exp(CENTRED @ b[:2] + OFFSET)
        return -scipy.stats.nbinom.logpmf(COUNTS, size, size / (size + mean)).sum()

    value, at = _minimum(negative_log_lik, np.zeros(3))
    np.testing.assert_allclose(result.log_lik, -value, rtol=1e-10)
    np.testing.assert_allclose(result.params.components.size[0], np.exp(at[2]), rtol=1e-4)


@slow
def test_counts_without_overdispersion_end_at_the_largest_size():
    counts = np.round(np.exp(ETA))
    result = fit(jaxem.NegativeBinomialRegression(), (YEARS, counts, OFFSET)).check()
    poisson = fit(jaxem.PoissonRegression(), (YEARS, counts, OFFSET))
    np.testing.assert_allclose(result.params.components.size, np.finfo(float).eps ** -0.5, rtol=1e-9)
    np.testing.assert_allclose(result.log_lik, poisson.log_lik, rtol=1e-6)


@slow
def test_the_fit_has_a_derivative_in_covariates_and_offset():
    """Through the score equation, as the M step is Newton's method."""
    weight = np.array([1.0, -0.3])

    def answer(covariates: Any, offset: Any, precision: Any) -> Any:
        model = jaxem.Mixture(jaxem.PoissonRegression(jaxem.GaussianPrior(precision)), 1)
        data = (covariates, COUNTS, offset)
        result = jaxem.fit(model, model.init(KEY, data), data, tol=1e-13, max_iter=50)
        return result.params.components.coefficients[0] @ weight

    arguments = (CENTRED / 30, OFFSET, np.asarray(0.7))
    slope = ravel_pytree(quick_jit(jax.grad(answer, (0, 1, 2)))(*arguments))[0]
    step, back = ravel_pytree(jax.tree.map(lambda leaf: _rng.normal(size=leaf.shape), arguments))
    value = quick_jit(answer)
    at = lambda h: float(value(*jax.tree.map(lambda a, s: a + h * s, arguments, back(step))))  # noqa: E731
    np.testing.assert_allclose(slope @ step, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6)


# --- extremes

ZEROS = np.zeros(N)
SEPARATED = (YEARS[:, 1] > 1950).astype(float)
GLMS = {
    "separated": (jaxem.LogisticRegression, SEPARATED),
    "all zero": (jaxem.PoissonRegression, ZEROS),
    "all zero, negative binomial": (jaxem.NegativeBinomialRegression, ZEROS),
}


@slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("separated", np.float64),
        ("all zero", np.float32),
        *(
            pytest.param(name, dtype, marks=once_a_week)
            for name in GLMS
            for dtype in (np.float32, np.float64)
            if (name, dtype) not in (("separated", np.float64), ("all zero", np.float32))
        ),
    ],
)
def test_without_a_mode_a_regression_is_degenerate_and_finite_under_a_prior(name, dtype):
    family, response = GLMS[name]
    data = jax.tree.map(dtype, (CENTRED, response))
    assert statuses(fit(family(), data, tol=1e-7)) == [Status.DEGENERATE]
    result = fit(family(jaxem.GaussianPrior(np.asarray(0.1, dtype))), data, tol=1e-7).check()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    assert np.isfinite(result.objective)
    if name == "separated":
        value, at = _minimum(
            lambda b: -np.sum(response * -np.logaddexp(0, -CENTRED @ b) - (1 - response) * np.logaddexp(0, CENTRED @ b))
            + 0.05 * b @ b - np.log(0.1 / (2 * np.pi)),
            np.zeros(2),
        )  # fmt: skip
        np.testing.assert_allclose(result.objective, -value, rtol=1e-6)
        np.testing.assert_allclose(result.params.components.coefficients[0], at, rtol=1e-3)


@slow
@pytest.mark.parametrize(
    "family",
    [jaxem.LinearRegression, pytest.param(jaxem.PoissonRegression, marks=once_a_week)],
)
def test_a_component_with_fewer_rows_than_covariates_is_degenerate(family):
    states = np.zeros(N, int)
    states[3] = 1
    known = np.where(np.arange(N) == 3, 1, 0)
    data = (CENTRED, COUNTS)

    @quick_jit
    def run(model: Any) -> jaxem.FitResult:
        start = model.init(KEY, data, method=jaxem.Labels(states))
        return jaxem.fit(model, start, jaxem.labelled(data, known), max_iter=50)

    assert statuses(run(jaxem.Mixture(family(), 2))) == [Status.DEGENERATE]
    result = run(jaxem.Mixture(family(jaxem.GaussianPrior(0.1)), 2))
    assert statuses(result) == [Status.CONVERGED] and np.isfinite(result.params.components.coefficients).all()


@slow
@pytest.mark.parametrize(
    "family",
    [
        jaxem.LinearRegression,
        pytest.param(jaxem.PoissonRegression, marks=once_a_week),
        pytest.param(jaxem.StudentTRegression, marks=once_a_week),
    ],
)
def test_covariates_without_full_rank(family):
    """Concrete: an error that names the column; over lanes that lane alone; finite under a prior."""
    dependent = np.concatenate([YEARS, 2 * YEARS[:, 1:] - 1900], 1)
    prior = {"prior": jaxem.GaussianPrior(0.1)}
    model = jaxem.Mixture(family(), 1)
    full = np.concatenate([YEARS, OFFSET[:, None]], 1)
    start = model.init(KEY, (full, COUNTS))
    with pytest.raises(ValueError, match=r"expected columns of full rank, got column 2.*prior=GaussianPrior"):
        jaxem.fit(model, start, (dependent, COUNTS))
    lanes = (np.stack([full, dependent]), np.stack([COUNTS] * 2))
    starts = jax.tree.map(lambda leaf: np.stack([leaf] * 2), start)
    result = jaxem.fit_batch(model, starts, lanes, max_iter=30)
    assert statuses(result)[1] == Status.DEGENERATE and statuses(result)[0] <= Status.MAX_ITER
    under_prior = fit(family(**prior), (dependent - [0, 1950, 2000], COUNTS), tol=1e-8).check()
    assert np.isfinite(under_prior.params.components.coefficients).all()


@pytest.mark.parametrize(
    ("family", "data", "message"),
    [
        (
            jaxem.PoissonRegression(),
            (CENTRED, np.where(np.arange(N) == 7, 2.5, COUNTS)),
            r"expected counts \(non-negative integers\) as response of PoissonRegression, got 2.5 in row 7 \(1 such",
        ),
        (
            jaxem.NegativeBinomialRegression(),
            (CENTRED, np.where(np.arange(N) > 57, -1.0, COUNTS)),
            r"expected counts .* of NegativeBinomialRegression, got -1.0 in row 58 \(2 such rows in all\); leave",
        ),
        (jaxem.LogisticRegression(), (CENTRED, COUNTS), r"expected zeros and ones, .* of LogisticRegression, got"),
        (jaxem.LogisticRegression(), (CENTRED, TRIALS - 1.5), r"expected zeros and ones, or counts .* in row"),
        (
            jaxem.PoissonRegression(),
            (CENTRED, TRIALS),
            r"expected a response \(n,\) for PoissonRegression, n = 60, got",
        ),
        (jaxem.LinearRegression(), CENTRED, r"expected a tuple \(covariates \(n, p\), response .* got ndarray"),
        (jaxem.LinearRegression(), (OFFSET, OFFSET), r"expected an array of shape \(60, p\).*the intercept"),
        (jaxem.LinearRegression(), (CENTRED, OFFSET, CENTRED), r"expected an offset of shape \(60,\), got \(60, 2\)"),
        (
            jaxem.LinearRegression(jaxem.GaussianPrior(np.ones(3))),
            (CENTRED, OFFSET),
            r"prior.precision: expected shape",
        ),
    ],
    ids=str,
)
def test_data_that_do_not_fit_are_named(family, data, message):
    model = jaxem.Mixture(family, 1)
    good = jaxem.Mixture(type(family)(), 1)
    start = jax.eval_shape(lambda: good.init(KEY, (jnp.asarray(CENTRED), jnp.asarray(COUNTS > 0) * 1.0)))
    start = jax.tree.map(lambda leaf: np.ones(leaf.shape), start)
    with pytest.raises(ValueError, match=message):
        jaxem.fit(model, start, data)


def test_a_lane_with_a_response_outside_of_the_support_is_not_finite():
    bank = made(jaxem.PoissonRegressionParams, np.zeros((1, 2)))
    rows = jnp.array([1.0, 2.5, -1.0, jnp.nan])
    log_prob = np.asarray(jaxem.PoissonRegression().log_prob(bank, (jnp.ones((4, 2)), rows)))[:, 0]
    assert np.isfinite(log_prob[0]) and np.all(log_prob[1:3] == -np.inf) and np.isnan(log_prob[3])


def test_draws_need_covariates_and_follow_them():
    model = jaxem.Mixture(jaxem.PoissonRegression(), 2)
    bank = made(jaxem.PoissonRegressionParams, np.array([[0.0, 1.0], [3.0, 0.0]]))
    params = jax.tree.map(jnp.asarray, made(jaxem.MixtureParams, np.array([0.25, 0.75]), bank))
    given = (jnp.tile(jnp.array([[1.0, 0.0], [1.0, 1.0]]), (4000, 1)), jnp.full(8000, 0.5))
    (covariates, response, offset), states = model.sample(params, KEY, 8000, given)
    assert covariates.shape == (8000, 2) and offset.shape == (8000,)
    assert float(states.mean()) == pytest.approx(0.75, abs=0.02)
    for state, row, log_mean in ((0, 0, 0.5), (0, 1, 1.5), (1, 0, 3.5), (1, 1, 3.5)):
        chosen = response[(states == state) & (jnp.arange(8000) % 2 == row)]
        assert float(chosen.mean()) == pytest.approx(np.exp(log_mean), rel=0.06)
    with pytest.raises(ValueError, match=r"given: expected covariates \(n, p\) or \(covariates, offset\) with n = 5"):
        model.sample(params, KEY, 5)
