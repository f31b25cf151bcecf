"""The yardstick: EM for a full-covariance normal mixture as two matrix products, and nothing else.

    logits = T eta' ;  responsibilities = softmax(logits) ;  stats = responsibilities' T

A fixed number of iterations, T(x) = (1, x, products) held in memory: no status, no history, no safeguards, no pivot.
The products stand in circulant order, x * roll(x, s): whole-width copies, the fastest features on a CPU at large d.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

HIGHEST = lax.Precision.HIGHEST


def pairs(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns (i, j) of the d(d + 1)/2 products, in the order of `features`."""
    first = [np.arange(d if s == 0 or 2 * s < d else d // 2) for s in range(d // 2 + 1)]
    return np.concatenate(first), np.concatenate([(i - s) % d for s, i in enumerate(first)])


def features(x: jax.Array) -> jax.Array:
    """T(x) (n, 1 + d + d(d + 1)/2); for even d the last roll repeats itself, so only half of it is kept."""
    n, d = x.shape
    products = [(x * jnp.roll(x, s, axis=1))[:, : d if s == 0 or 2 * s < d else d // 2] for s in range(d // 2 + 1)]
    return jnp.concatenate([jnp.ones((n, 1), x.dtype), x, *products], axis=1)


@jax.jit
def fit(x: jax.Array, weights: jax.Array, means: jax.Array, covariances: jax.Array, n_iter: int):
    """`n_iter` EM iterations; x (n, d), weights (k,), means (k, d), covariances (k, d, d); returns the last three."""
    d = x.shape[1]
    i, j = pairs(d)
    unpack = np.zeros((d, d), np.int32)
    unpack[i, j] = unpack[j, i] = np.arange(len(i))
    eye, held = jnp.eye(d, dtype=x.dtype), features(x)

    def iteration(_, params):
        weights, means, covariances = params
        factor = jnp.linalg.cholesky(covariances)
        inverse = jax.scipy.linalg.solve_triangular(factor, jnp.broadcast_to(eye, factor.shape), lower=True)
        precision = jnp.einsum("kai,kaj->kij", inverse, inverse, precision=HIGHEST)
        linear = jnp.einsum("kij,kj->ki", precision, means, precision=HIGHEST)
        log_det = jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(1)
        constant = jnp.log(weights) - log_det - 0.5 * (linear * means).sum(1)
        eta = jnp.concatenate([constant[:, None], linear, np.where(i == j, -0.5, -1.0) * precision[:, i, j]], axis=1)
        responsibilities = jax.nn.softmax(jnp.dot(held, eta.T.astype(x.dtype), precision=HIGHEST), axis=1)
        stats = jnp.dot(responsibilities.T, held, precision=HIGHEST)
        count, mean = stats[:, 0], stats[:, 1 : 1 + d] / stats[:, :1]
        second = stats[:, 1 + d :][:, unpack] / count[:, None, None]
        return count / count.sum(), mean, second - mean[:, :, None] * mean[:, None, :] + 1e-6 * eye

    return lax.fori_loop(0, n_iter, iteration, (weights, means, covariances))
