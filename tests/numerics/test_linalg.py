"""Banks of small matrices: whitening by formulas, by blocks and by LAPACK is one function."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem.numerics import linalg as _linalg


def covariances(d: int, k: int = 3) -> jax.Array:
    x = np.random.default_rng(d).normal(size=(k, 4 * d, d))
    return jnp.asarray(np.einsum("kni,knj->kij", x, x) / (4 * d))


@pytest.mark.parametrize("d", [1, 4, 5, 8, 9])
def test_whitening_is_the_inverse_cholesky_factor(d):
    covariance = covariances(d)
    inverse, half_log_det = jax.jit(_linalg.whitening)(covariance)
    np.testing.assert_allclose(inverse, np.linalg.inv(np.linalg.cholesky(covariance)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(half_log_det, np.linalg.slogdet(covariance)[1] / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("d", [3, 9])
def test_cholesky_is_the_library_s_with_its_derivatives(d):
    covariance, direction = covariances(d), covariances(d + 1)[:, 1:, 1:]
    factors = lambda fn: jax.jit(lambda c: jax.jvp(fn, (c,), (direction,)))(covariance)  # noqa: E731
    for got, want in zip(factors(_linalg.cholesky), factors(jnp.linalg.cholesky), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
    pull = lambda fn: jax.jit(jax.vmap(jax.grad(lambda c: jnp.sum(jnp.sin(fn(c))))))(covariance)  # noqa: E731
    np.testing.assert_allclose(pull(_linalg.cholesky), pull(jnp.linalg.cholesky), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("d", [3, 5, 9])
def test_whitening_has_the_derivatives_of_the_library_s_cholesky(d):
    covariance = covariances(d, 2)
    probe = lambda fn: lambda c: sum(jnp.sum(jnp.sin(leaf)) for leaf in fn(c))  # noqa: E731
    ours, theirs = probe(_linalg.whitening), probe(_linalg._factor)
    slope = jax.jit(jax.vmap(jax.grad(ours)))
    np.testing.assert_allclose(slope(covariance), jax.jit(jax.grad(theirs))(covariance), rtol=1e-8, atol=1e-10)
    direction = covariances(d + 1, 2)[:, 1:, 1:]
    curve = lambda fn: jax.jit(lambda c: jax.jvp(jax.grad(probe(fn)), (c,), (direction,))[1])(covariance)  # noqa: E731
    np.testing.assert_allclose(curve(_linalg.whitening), curve(_linalg._factor), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("d", [3, 5, 9])
def test_what_is_not_positive_definite_is_not_finite(d):
    _, half_log_det = _linalg.whitening(-covariances(d))
    assert not np.isfinite(half_log_det).any()


@pytest.mark.parametrize("lanes", [False, True])
def test_no_lapack_call_on_a_cpu_takes_a_batch(lanes):
    """In jaxlib 0.10 a batched call waits for threads of the pool that it occupies; two at once wait forever."""
    fn, covariance = _linalg.whitening, covariances(12)
    if lanes:
        fn, covariance = jax.vmap(fn), jnp.stack([covariance] * 2)
    text = jax.jit(fn).lower(covariance).as_text()
    shapes = re.findall(r"@lapack_\w+\(.*?: \((tensor<[^)]*)\)", text)
    assert shapes and all(shape.startswith("tensor<12x12x") for shape in shapes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_spectral_radius_is_that_of_the_eigenvalues(dtype):
    rng = np.random.default_rng(0)
    basis, values = rng.normal(size=(9, 9)), np.r_[0.9995, 0.9994, np.linspace(-0.3, 0.7, 7)]
    for matrix in (basis, np.linalg.inv(basis) @ np.diag(values) @ basis):
        want = np.max(np.abs(np.linalg.eigvals(matrix)))
        np.testing.assert_allclose(_linalg.spectral_radius(jnp.asarray(matrix, dtype)), want, rtol=2e-6)
    assert _linalg.spectral_radius(jnp.zeros((2, 2), dtype)) == 0
