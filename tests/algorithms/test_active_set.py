"""Weights alone: the maximum of a concave function on the simplex, with its certificate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow

import jaxem
from jaxem.contracts.status import Status

K = 30
GRID = np.linspace(-4.0, 6.0, K)


def normal_means(row):
    x, scale = row
    return jax.scipy.stats.norm.logpdf(x, jnp.linspace(-4.0, 6.0, K, dtype=x.dtype), scale)


MODEL = jaxem.FixedComponents(normal_means, K)


def rows(n=150, seed=0, dtype: Any = np.float64):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 1.5, n)
    return (rng.choice([0.0, 3.0], n) + scale * rng.normal(size=n)).astype(dtype), scale.astype(dtype)


def densities(data):  # (n, k), in NumPy
    x, scale = (np.asarray(leaf, float)[:, None] for leaf in data)
    return np.exp(-0.5 * ((x - GRID) / scale) ** 2) / (np.sqrt(2 * np.pi) * scale)


def gap(weights, data, sample_weight=None):
    """max_j ∂log_lik/∂w_j − 1 per unit, which is at least what is left to gain (Lindsay 1983)."""
    slopes = densities(data)
    slopes = slopes / (slopes @ np.asarray(weights, float))[:, None]
    return np.average(slopes, axis=0, weights=sample_weight).max() - 1


def fit(data, algorithm: Any = jaxem.ActiveSet(), **options):
    return jaxem.fit(MODEL, MODEL.init(data=data), data, algorithm=algorithm, **options)


def test_the_maximum_has_its_certificate():
    data = rows()
    result = fit(data).check()
    assert -1e-12 < gap(result.params, data) < 1e-8 and result.n_iter < 40
    weights = np.asarray(result.params)
    assert (weights >= 0).all() and abs(weights.sum() - 1) < 1e-12 and (weights == 0).sum() > K / 2
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert (np.diff(history) >= -1e-12 * abs(history[0])).all()
    np.testing.assert_allclose(result.objective, np.log(densities(data) @ weights).sum(), rtol=1e-12)
    slow = fit(data, jaxem.EM(), max_iter=200)
    assert slow.objective < result.objective


def test_a_start_at_a_corner_comes_back():
    """A weight of zero is where EM stays."""
    data, corner = rows(), jnp.zeros(K).at[15].set(1.0)
    result = jaxem.fit(MODEL, corner, data, algorithm=jaxem.ActiveSet()).check()
    assert gap(result.params, data) < 1e-8


def test_sample_weights_absent_rows_and_lanes():
    data, weight = rows(), np.random.default_rng(3).integers(0, 4, 150).astype(float)
    data[0][np.flatnonzero(weight == 0)[:2]] = np.nan
    result = fit(data, sample_weight=weight).check()
    there = weight > 0
    assert gap(result.params, (data[0][there], data[1][there]), weight[there]) < 1e-8
    many = jax.tree.map(lambda *leaves: np.stack(leaves), rows(seed=1), rows(seed=2))
    lanes = jaxem.fit_batch(MODEL, jnp.full((2, K), 1 / K), many, algorithm=jaxem.ActiveSet())
    for lane in range(2):
        alone = fit(rows(seed=1 + lane))
        np.testing.assert_allclose(lanes.objective[lane], alone.objective, rtol=1e-11)


def test_float32():
    result = fit(rows(dtype=np.float32)).check()
    assert result.params.dtype == jnp.float32 and gap(result.params, rows()) < 1e-5


def two_columns(row):
    x, scale = row
    return jax.scipy.stats.norm.logpdf(x, jnp.array([0.0, 3.0]), scale)


@slow
def test_the_derivative_against_differences():
    data, model = rows(), jaxem.FixedComponents(two_columns, 2)
    first = lambda x: jaxem.fit(model, model.init(data=x), (x, data[1]), algorithm=jaxem.ActiveSet()).params[0]  # noqa: E731
    slope, x = jax.grad(first)(jnp.asarray(data[0])), jnp.asarray(data[0])
    for i in range(2):
        step = [first(x.at[i].add(e)) for e in (-1e-4, 1e-4)]
        np.testing.assert_allclose(slope[i], (step[1] - step[0]) / 2e-4, rtol=1e-6, atol=1e-9)


def test_other_algorithms_take_the_model_and_others_are_refused():
    data = rows()
    best = fit(data)
    near = fit(data, jaxem.SQUAREM(), tol=1e-9, max_iter=3000).check()
    assert 0 <= float(best.objective - near.objective) < 1e-3
    with pytest.raises(ValueError, match="ActiveSet: expected a model with row_slopes.* got Mixture"):
        mixture = jaxem.Mixture(jaxem.Poisson(), 2)
        x = np.arange(9.0)[:, None]
        jaxem.fit(mixture, mixture.init(jax.random.key(0), x), x, algorithm=jaxem.ActiveSet())
    with pytest.raises(ValueError, match=r"log_density: expected shape \(3,\)"):
        jaxem.fit(jaxem.FixedComponents(normal_means, 3), np.full(3, 1 / 3), data)
    with pytest.raises(ValueError, match="params: expected"):
        jaxem.fit(MODEL, np.full(K, 1.0), data)
    assert fit(data, max_iter=2).status == Status.MAX_ITER
