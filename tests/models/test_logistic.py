"""Bayesian logistic regression by the Jaakkola–Jordan bound, against VBLinLogit and Bishop's formulas."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import jaxem

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = {case["id"]: case for case in json.loads((REFERENCE / "joint_cases.json").read_text("utf-8"))["cases"]}


def birth_weights(n_columns):
    with (REFERENCE / "data" / "birthwt.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = lambda name: np.array([float(row[name]) for row in rows])  # noqa: E731
    standard = lambda x: (x - x.mean()) / x.std()  # noqa: E731
    intercept, age, lwt, race = np.ones(len(rows)), standard(column("age")), standard(column("lwt")), column("race")
    full = [intercept, age, lwt, race == 2, race == 3, column("smoke"), column("ht"), column("ui")]
    return np.column_stack(full if n_columns == 8 else [intercept, lwt]).astype(float), column("low")


def prior_of(name):
    if "gamma_0.01" in name:
        return jaxem.GammaPrecision(0.01, 0.0001)
    return jaxem.GammaPrecision(1.0, 1.0) if "gamma_1" in name else jaxem.FixedPrecision(1.0)


def bound_of_bishop(x, t, xi):
    """Bishop (2006), eq. 10.159, with m_0 = 0 and S_0 = I."""
    curve = np.tanh(xi / 2) / (4 * xi)
    precision = np.eye(x.shape[1]) + 2 * (x * curve[:, None]).T @ x
    mean = np.linalg.solve(precision, x.T @ (t - 0.5))
    rows = -np.logaddexp(0, -xi) - xi / 2 + curve * xi**2
    return -0.5 * np.linalg.slogdet(precision)[1] + 0.5 * mean @ precision @ mean + rows.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("vblogit")])
def test_posterior_and_bound_agree_with_the_reference(name):
    case = CASES[name]
    data = birth_weights(len(case["expected"]["params"]["mean"]))
    model = jaxem.VariationalLogisticRegression(prior_of(name))
    result = jaxem.fit(model, model.init(jax.random.key(0), data), data, tol=1e-15, max_iter=500)
    assert abs(float(result.objective) - case["expected"]["bound"]) < case["tolerance"]["bound_abs"]
    want = case["expected"]["params"]
    np.testing.assert_allclose(result.params.mean, want["mean"], rtol=case["tolerance"]["params_rel"], atol=1e-7)
    np.testing.assert_allclose(result.params.covariance, want["cov"], rtol=case["tolerance"]["params_rel"], atol=1e-7)
    if "E_alpha" in case["expected"]:
        np.testing.assert_allclose(model.expected_precision(result.params)[0], case["expected"]["E_alpha"], rtol=1e-5)
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert (np.diff(history) >= -1e-11).all()
    if "alpha1" in name:
        x, t = data
        second = np.asarray(result.params.covariance) + np.outer(result.params.mean, result.params.mean)
        xi = np.sqrt(np.einsum("ni,ij,nj->n", x, second, x))
        assert abs(bound_of_bishop(x, t, xi) - float(result.objective)) < 1e-10
        np.testing.assert_allclose(xi[:5], case["expected"]["xi_first5"], rtol=1e-5)
    if "exact_log_evidence" in case["expected"]:
        assert float(result.objective) < case["expected"]["exact_log_evidence"]


def test_every_iterate_follows_the_published_trace():
    """The reference alternates from ξ = 1; our params after i M steps are its posterior at ξ_i."""
    case = CASES["vblogit_birthwt8_alpha1"]
    data = birth_weights(8)
    model = jaxem.VariationalLogisticRegression()
    params, xi = model.init(jax.random.key(0), data), np.ones(len(data[1]))
    for published in case["em_trace"]["bound"][:8]:
        assert abs(bound_of_bishop(*data, xi) - published) < 1e-9
        second = np.asarray(params.covariance) + np.outer(params.mean, params.mean)
        xi = np.sqrt(np.einsum("ni,ij,nj->n", data[0], second, data[0]))
        params = jaxem.fit(model, params, data, tol=-1.0, max_iter=1).params


@pytest.mark.slow
def test_the_estimated_precision_raises_the_bound_to_a_stationary_point():
    data = birth_weights(8)
    fit = lambda prior: jaxem.fit(  # noqa: E731
        jaxem.VariationalLogisticRegression(prior),
        jaxem.VariationalLogisticRegression().init(jax.random.key(0), data),
        data,
        tol=1e-14,
        max_iter=1000,
    )
    best = fit(jaxem.EstimatedPrecision())
    alpha = jaxem.VariationalLogisticRegression(jaxem.EstimatedPrecision()).expected_precision(best.params)[0]
    np.testing.assert_allclose(fit(jaxem.FixedPrecision(alpha)).objective, best.objective, rtol=1e-10)
    for factor in (0.9, 1.1):
        assert fit(jaxem.FixedPrecision(alpha * factor)).objective < best.objective


def test_predictive_probabilities_are_the_integral():
    data = birth_weights(8)
    model = jaxem.VariationalLogisticRegression()
    params = jaxem.fit(model, model.init(jax.random.key(0), data), data).params
    got = model.predict_proba(params, data[0][:3])
    for row, value in zip(data[0][:3], got, strict=True):
        mean, sd = row @ np.asarray(params.mean), np.sqrt(row @ np.asarray(params.covariance) @ row)
        integral = quad(lambda a, mean=mean, sd=sd: norm.pdf(a, mean, sd) / (1 + np.exp(-a)), -30, 30, points=[mean])[0]
        np.testing.assert_allclose(value, integral, rtol=1e-7)


def test_the_bound_of_the_sigmoid_lies_below_and_touches():
    a, xi = np.meshgrid(np.linspace(-12, 12, 49), np.array([0.0, 1e-4, 0.5, 2.0, 9.0]))
    bound, sigmoid = np.asarray(jaxem.sigmoid_bound(a, xi)), 1 / (1 + np.exp(-a))
    assert (bound <= sigmoid * (1 + 1e-12)).all()
    for sign in (-1, 1):
        np.testing.assert_allclose(jaxem.sigmoid_bound(sign * xi, xi), 1 / (1 + np.exp(-sign * xi)), rtol=1e-12)


@pytest.mark.slow
def test_the_expected_bound_is_maximised_over_xi():
    mean, var = np.array([-2.0, 0.0, 0.3, 4.0]), np.array([0.5, 1.0, 9.0, 1e-6])
    bound, xi = jaxem.expected_sigmoid_bound(mean, var)

    def expected(fn, m, v):
        return quad(lambda z: norm.pdf(z) * fn(m + np.sqrt(v) * z), -10, 10, epsabs=1e-13)[0]

    def at(xi, m, v):
        return expected(lambda a: float(np.asarray(jaxem.sigmoid_bound(a, xi))), m, v)

    for m, v, b, x in zip(mean, var, bound, xi, strict=True):
        np.testing.assert_allclose(b, at(x, m, v), rtol=1e-8)
        assert b <= expected(lambda a: 1 / (1 + np.exp(-a)), m, v) + 1e-12
        assert at(x, m, v) >= max(at(0.9 * x, m, v), at(1.1 * x + 1e-3, m, v)) - 1e-12
    slope = jax.grad(lambda m: jnp.sum(jaxem.expected_sigmoid_bound(m, var)[0]))(jnp.asarray(mean))
    step = 1e-5
    up, down = (jaxem.expected_sigmoid_bound(mean + s, var)[0] for s in (step, -step))
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-5)


def test_bad_labels_and_shapes_say_so():
    x, t = birth_weights(2)
    model = jaxem.VariationalLogisticRegression()
    params = model.init(jax.random.key(0), (x, t))
    with pytest.raises(ValueError, match=r"labels t in \[0, 1\], got 2\.0 in row 0"):
        jaxem.fit(model, params, (x, np.where(np.arange(len(t)) == 0, 2, t)))
    with pytest.raises(ValueError, match=r"data: expected a tuple \(x, t\)"):
        jaxem.fit(model, params, x)
    with pytest.raises(ValueError, match=r"params.mean: expected shape \(1,\)"):
        jaxem.fit(model, params, (x[:, :1], t))
