"""Bijections: round trips, ranges, gradients, membership, batch shapes; in float32 and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem import bijections
from jaxem.bijections import (
    greater_than,
    interval,
    ordered,
    positive,
    positive_definite,
    real,
    simplex,
    softplus,
    unit_interval,
)

# name: bijection, trailing free shape, a rule that constrained values obey
CASES = {
    "real": (real, (3,), np.isfinite),
    "positive": (positive, (3,), lambda x: x > 0),
    "softplus": (softplus, (3,), lambda x: x > 0),
    "unit_interval": (unit_interval, (3,), lambda x: (x > 0) & (x < 1)),
    "interval": (interval(-2.0, 5.0), (3,), lambda x: (x > -2) & (x < 5)),
    "greater_than": (greater_than(-1.5), (3,), lambda x: x > -1.5),
    "simplex": (simplex, (3,), lambda x: (x > 0) & (np.abs(x.sum(-1, keepdims=True) - 1) < 1e-5)),
    "ordered": (ordered, (4,), lambda x: np.diff(x, axis=-1) > 0),
    "positive_definite": (positive_definite, (6,), lambda x: np.linalg.eigvalsh(x) > 0),
}
CASE = pytest.mark.parametrize("name", CASES)
DTYPES = [jnp.float32, jnp.float64]


def free_values(shape, dtype, scale=2.0):
    return jnp.asarray(scale * np.random.default_rng(0).normal(size=shape), dtype)


def test_every_bijection_of_the_module_is_tested():
    public = {name for name, value in vars(bijections).items() if isinstance(value, bijections.Bijection)}
    assert public | {"interval", "greater_than"} == set(CASES)


@CASE
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trips_and_gradients_over_batches(name, dtype):
    bijection, shape, rule = CASES[name]
    free = free_values((2, 3, *shape), dtype)

    @jax.jit
    def there_and_back(free):
        value = bijection.from_free(free)
        back = bijection.to_free(value)
        one = lambda fn, x: jax.jacobian(lambda x: fn(x).ravel())(x)  # noqa: E731
        jacobians = one(bijection.from_free, free[0, 0]), one(bijection.to_free, value[0, 0])
        items = jax.vmap(jax.vmap(bijection.from_free))(free)
        return value, back, bijection.from_free(back), bijection.contains(value), items, jacobians

    value, back, again, contained, items, (forward, backward) = there_and_back(free)
    assert value.dtype == back.dtype == dtype and value.shape[:2] == (2, 3) and back.shape == free.shape
    assert bool(np.all(rule(np.asarray(value))))
    assert contained and contained.shape == ()
    # a sigmoid at 5 keeps 2 digits less than its argument has, a Cholesky factor its condition's
    tolerance = 2e-3 if dtype == jnp.float32 else 1e-10
    np.testing.assert_allclose(back, free, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(again, value, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(items, value, rtol=tolerance / 100, atol=tolerance / 1000)
    assert np.isfinite(forward).all() and np.isfinite(backward).all()
    size = free[0, 0].size
    product = np.asarray(backward).reshape(size, -1) @ np.asarray(forward).reshape(-1, size)
    np.testing.assert_allclose(product, np.eye(size), atol=tolerance)


@CASE
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_free_values_stay_finite(name, dtype):
    """A line search asks for such values: the constrained ones may saturate, but not turn into NaN."""
    bijection, shape, _ = CASES[name]
    far = jnp.stack([jnp.full(shape, -40.0, dtype), jnp.full(shape, 40.0, dtype)])
    value, gradient = jax.jit(jax.value_and_grad(lambda u: jnp.sum(bijection.from_free(u))))(far)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_values_by_hand():
    np.testing.assert_allclose(positive.from_free(jnp.log(3.0)), 3)
    np.testing.assert_allclose(softplus.from_free(jnp.zeros(())), np.log(2))
    np.testing.assert_allclose(interval(1.0, 3.0).from_free(jnp.zeros(())), 2)
    np.testing.assert_allclose(simplex.from_free(jnp.log(jnp.asarray([2.0, 3.0]))), np.asarray([2, 3, 1]) / 6)
    np.testing.assert_allclose(ordered.from_free(jnp.asarray([1.0, 0.0, jnp.log(2.0)])), [1, 2, 4])
    factor = np.asarray([[2.0, 0.0], [3.0, 4.0]])
    free = jnp.asarray([np.log(2.0), np.log(4.0), 3.0])
    np.testing.assert_allclose(positive_definite.from_free(free), factor @ factor.T, rtol=1e-14)
    np.testing.assert_allclose(positive_definite.to_free(jnp.asarray(factor @ factor.T)), free, rtol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_positive_definite_of_every_size(d, dtype):
    free = 0.3 * free_values((2, d * (d + 1) // 2), dtype)
    matrix = positive_definite.from_free(free)
    assert matrix.shape == (2, d, d)
    rounding = 4 * float(jnp.finfo(dtype).eps) * float(jnp.max(jnp.abs(matrix)))
    np.testing.assert_allclose(matrix, np.swapaxes(matrix, -1, -2), rtol=0, atol=rounding)
    np.testing.assert_allclose(positive_definite.to_free(matrix), free, atol=1e-4 if dtype == jnp.float32 else 1e-12)


OUTSIDE = {
    "real": ([jnp.inf], [jnp.nan]),
    "positive": ([1.0, 0.0], [-1.0], [jnp.inf], [jnp.nan]),
    "softplus": ([1.0, 0.0], [-1.0], [jnp.inf], [jnp.nan]),
    "unit_interval": ([0.5, 1.0], [0.0], [-0.1], [1.1], [jnp.nan]),
    "interval": ([-2.0], [5.0], [6.0], [jnp.nan]),
    "simplex": ([0.5, 0.6], [1.5, -0.5], [jnp.nan, 1.0]),
    "ordered": ([1.0, 1.0], [2.0, 1.0], [0.0, jnp.nan], [jnp.nan, 1.0], [0.0, jnp.inf], [-jnp.inf, 0.0]),
    "positive_definite": ([[1.0, 2.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[jnp.nan, 0.0], [0.0, 1.0]]),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OUTSIDE.items() for value in values])
def test_contains_refuses_what_is_outside(name, value):
    assert not bool(jax.jit(CASES[name][0].contains)(jnp.asarray(value)))


def test_contains_refuses_an_asymmetric_matrix():
    assert not bool(positive_definite.contains(jnp.asarray([[2.0, 1.0], [0.0, 2.0]])))


def test_small_values_keep_their_digits():
    """to_free of a value near the bound, then back: what an M step does with a small variance or probability."""
    for dtype, small in ((jnp.float32, 1e-30), (jnp.float64, 1e-200)):
        value = jnp.asarray([small, 1.0], dtype)
        for bijection in (positive, softplus):
            np.testing.assert_allclose(bijection.from_free(bijection.to_free(value)), value, rtol=1e-4)
        probability = jnp.asarray([small, 0.25], dtype)
        np.testing.assert_allclose(unit_interval.from_free(unit_interval.to_free(probability)), probability, rtol=1e-4)
    large = jnp.asarray([200.0, 1e4], jnp.float32)
    np.testing.assert_allclose(softplus.from_free(softplus.to_free(large)), large, rtol=1e-6)


def test_the_boundary_of_the_simplex_survives_a_round_trip():
    """`simplex` contains weights of zero, so they must come back, also in the last place."""
    for corner in ([0.25, 0.75, 0.0], [0.0, 0.25, 0.75], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]):
        p = jnp.asarray(corner)
        if bool(simplex.contains(p)):
            np.testing.assert_allclose(simplex.from_free(simplex.to_free(p)), p, atol=1e-12)


def test_interval_needs_its_ends_in_order():
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="interval: expected low < high"):
            interval(low, high)
