"""A bound on the ratio of the largest to the smallest eigenvalue of all covariances (Hathaway 1985).

Under it the likelihood is bounded: no component can shrink onto a few rows beside wide ones. Given the modes C_k that
the covariances have without the bound, and the weights n_k that they have in Q + log prior,

    −½ Σ_k n_k (log|Σ_k| + tr Σ_k⁻¹ C_k)

is maximal where Σ_k has the eigenvectors of C_k, and its eigenvalues clipped to [m, c·m] for one m, which is found in
closed form (Fritz, García-Escudero & Mayo-Iscar 2013, proposition 3.2).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..._typing import Array
from ...numerics.linalg import dot


def obeys(eigenvalues: Array, max_ratio: Any) -> Array:
    """Whether all eigenvalues (k, d) obey the bound: ()."""
    bound = jnp.asarray(max_ratio, eigenvalues.dtype)
    largest, smallest = jnp.max(eigenvalues), jnp.min(eigenvalues)
    # those of a matrix are known up to the rounding of its largest
    slack = 64 * jnp.finfo(eigenvalues.dtype).eps * largest
    return jnp.isinf(bound) | (largest <= bound * (smallest + slack))


def limits(eigenvalues: Array, weight: Array, max_ratio: Any) -> tuple[Array, Array]:
    """The interval [m, c·m] to which eigenvalues are clipped; [0, ∞) where they obey the bound.

    Args:
        eigenvalues: (k, d), d_kl.
        weight: (k,), n_k.
        max_ratio: c ≥ 1.
    """
    dtype = eigenvalues.dtype
    c = jnp.maximum(jnp.asarray(max_ratio, dtype), 1)
    d, n = lax.stop_gradient((eigenvalues, weight))
    # m changes its formula where it passes some d or d / c; between two such places it is a constant
    edges = jnp.sort(jnp.concatenate([d.ravel(), (d / lax.stop_gradient(c)).ravel()]))
    places = jnp.concatenate([edges[:1] / 2, (edges[1:] + edges[:-1]) / 2, 2 * edges[-1:]])

    def at(place: Array, d: Array, n: Array, c: Array) -> Array:
        below, above = lax.stop_gradient((d < place, d > c * place))
        number = jnp.sum(n[:, None] * (below | above))
        total = jnp.sum(n[:, None] * (jnp.where(below, d, 0) + jnp.where(above, d / c, 0)))
        return total / jnp.where(number > 0, number, 1)

    def loss(place: Array) -> Array:
        m = at(place, d, n, lax.stop_gradient(c))
        clipped = jnp.clip(d, m, lax.stop_gradient(c) * m)
        terms = n[:, None] * (jnp.log(clipped) + d / clipped)
        return jnp.where(m > 0, jnp.sum(jnp.where(n[:, None] > 0, terms, 0)), jnp.inf)

    losses = lax.map(loss, places)
    best = places[jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))]
    m = at(best, eigenvalues, weight, c)
    counted = jnp.where(weight > 0, 1, jnp.nan)[:, None] * d
    inside = jnp.nanmax(counted) <= c * jnp.nanmin(counted)
    free = inside | jnp.isinf(c) | ~(m > 0)
    return jnp.where(free, 0, m), jnp.where(free, jnp.inf, jnp.where(free, 1, c) * m)


@jax.custom_jvp
def clipped(matrix: Array, low: Array, high: Array) -> Array:
    """Symmetric matrices (k, d, d) with their eigenvalues clipped to [low, high]."""
    return _clipped(matrix, low, high)[0]


def _clipped(matrix: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    kept = jnp.all((values >= low) & (values <= high), -1)[..., None, None]
    made = dot(vectors * jnp.clip(values, low, high)[..., None, :], jnp.swapaxes(vectors, -1, -2))
    return jnp.where(kept, matrix, made), values, vectors


@clipped.defjvp
def _clipped_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """By divided differences (Daleckii & Krein 1965), which equal eigenvalues do not upset."""
    (matrix, low, high), (change, low_change, high_change) = primals, tangents
    out, values, vectors = _clipped(matrix, low, high)
    new = jnp.clip(values, low, high)
    inside = ((values >= low) & (values <= high)).astype(values.dtype)
    gap = values[..., :, None] - values[..., None, :]
    close = jnp.abs(gap) <= 1e-9 * jnp.max(jnp.abs(values), -1)[..., None, None]
    slope = (new[..., :, None] - new[..., None, :]) / jnp.where(close, 1, gap)
    slope = jnp.where(close, jnp.sqrt(inside[..., :, None] * inside[..., None, :]), slope)
    back = jnp.swapaxes(vectors, -1, -2)
    turned = slope * dot(dot(back, change), vectors)
    moved = jnp.where(values < low, low_change, 0) + jnp.where(values > high, high_change, 0)
    diagonal = moved[..., :, None] * jnp.eye(values.shape[-1], dtype=values.dtype).reshape(
        (1,) * (values.ndim - 1) + (values.shape[-1],) * 2
    )
    return out, dot(dot(vectors, turned + diagonal), back)
