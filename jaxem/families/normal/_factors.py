"""Factor analysers: x = mean + W z + noise, z ~ N(0, I) of q entries, noise ~ N(0, diag(ψ)).

Banks of k of them: W (k, d, q), ψ (k, d). Rows are met one component after another, in arrays (n, d) and (n, q); no
d × d matrix is made. Sums are of v = x − place − slope·z: with the params themselves for place and slope these are
residuals, which keep their digits where the noise is small.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ..._typing import Array
from ...numerics import linalg as _linalg
from ...numerics.linalg import dot, einsum


class FactorMoments(NamedTuple):
    """Expected sums over rows and their factors z, of v = x − place − slope·z.

    Attributes:
        count: Σ r (k,).
        first: Σ r E[v] (k, d).
        second: Σ r E[v²] (k, d).
        factor: Σ r E[z] (k, q).
        cross: Σ r E[v zᵀ] (k, d, q).
        factor_second: Σ r E[z zᵀ] (k, q, q).
    """

    count: Array
    first: Array
    second: Array
    factor: Array
    cross: Array
    factor_second: Array


def precision(loadings: Array, noise: Array) -> Array:
    """I + Wᵀ Ψ⁻¹ W, the precision of z given x: (k, q, q)."""
    eye = jnp.eye(loadings.shape[-1], dtype=noise.dtype)[None]
    return eye + einsum("kdi,kdj->kij", loadings / noise[:, :, None], loadings)


def posterior(loadings: Array, noise: Array) -> tuple[Array, Array, Array]:
    """cov(z | x) (k, q, q), the β of E[z | x] = β(x − mean) (k, q, d), and half log-determinants of x (k,)."""
    factor, half_log_det = _linalg.whitening(precision(loadings, noise))
    covariance = einsum("kmi,kmj->kij", factor, factor)
    beta = einsum("kij,kdj->kid", covariance, loadings / noise[:, :, None])
    return covariance, beta, half_log_det + 0.5 * jnp.sum(jnp.log(noise), 1)


def distances(x: Array, mean: Array, loadings: Array, noise: Array) -> tuple[Array, Array]:
    """Squared distances of rows x (n, d) in units of W Wᵀ + Ψ (n, k), and half its log-determinants (k,).

    The distance is min_z |Ψ^-½ (x − mean − W z)|² + |z|², at z = E[z | x]: Woodbury's without its difference.
    """
    _, beta, half_log_det = posterior(loadings, noise)

    def one(j: Array) -> Array:
        deviation = x - mean[j][None]
        z = dot(deviation, beta[j].T)
        residual = deviation - dot(z, loadings[j].T)
        return jnp.sum(jnp.square(residual) / noise[j][None], 1) + jnp.sum(jnp.square(z), 1)

    return lax.map(one, jnp.arange(mean.shape[0])).T, half_log_det


def sums(
    x: Array, responsibilities: Array, bank: tuple[Array, Array, Array], place: Array, slope: Array | None
) -> FactorMoments:
    """Sums with responsibilities (n, k), factors expected at the bank (mean, W, ψ), about place (k, d) and slope."""
    mean, loadings, noise = bank
    covariance, beta, _ = posterior(loadings, noise)

    def one(j: Array) -> FactorMoments:
        r = lax.dynamic_index_in_dim(responsibilities, j, 1, keepdims=False)
        z = dot(x - mean[j][None], beta[j].T)
        v = x - place[j][None]
        v = v if slope is None else v - dot(z, slope[j].T)
        rz = z * r[:, None]
        return FactorMoments(jnp.sum(r), dot(r, v), dot(r, jnp.square(v)), dot(r, z), dot(v.T, rz), dot(rz.T, z))

    stats = lax.map(one, jnp.arange(mean.shape[0]))
    spread = stats.count[:, None, None] * covariance
    stats = stats._replace(factor_second=stats.factor_second + spread)
    if slope is None:
        return stats
    tilted = einsum("kdi,kij->kdj", slope, spread)
    return stats._replace(second=stats.second + jnp.sum(tilted * slope, 2), cross=stats.cross - tilted)


def _design(stats: FactorMoments) -> tuple[Array, Array]:
    """Σ r E[v (z, 1)ᵀ] (k, d, q + 1) and Σ r E[(z, 1)(z, 1)ᵀ] (k, q + 1, q + 1)."""
    cross = jnp.concatenate([stats.cross, stats.first[:, :, None]], 2)
    top = jnp.concatenate([stats.factor_second, stats.factor[:, :, None]], 2)
    bottom = jnp.concatenate([stats.factor, stats.count[:, None]], 1)
    return cross, jnp.concatenate([top, bottom[:, None, :]], 1)


def regression(stats: FactorMoments) -> tuple[Array, Array]:
    """Coefficients of v on (z, 1), (k, d, q + 1), and mean squares of what is left (k, d); 0 for a count of 0."""
    present = stats.count > 0
    count = jnp.where(present, stats.count, 1)
    cross, design = (part / count[:, None, None] for part in _design(stats))
    eye = jnp.eye(design.shape[-1], dtype=design.dtype)[None]
    factor, _ = _linalg.whitening(jnp.where(present[:, None, None], design, eye))
    explained = einsum("kdi,kji->kdj", cross, factor)
    return einsum("kdj,kji->kdi", explained, factor), stats.second / count[:, None] - jnp.sum(jnp.square(explained), 2)


def squares(stats: FactorMoments, coefficients: Array) -> Array:
    """Σ r E[(v − coefficients (z, 1))²]: (k, d)."""
    cross, design = _design(stats)
    return stats.second + jnp.sum(coefficients * (einsum("kdi,kij->kdj", coefficients, design) - 2 * cross), 2)
