"""What the beta and the Dirichlet share: density, mode and limits of concentrations."""

import math
from typing import Any

import jax.numpy as jnp

from ..._typing import Array
from ...contracts.status import Status
from ...numerics.concentration import inverse_dirichlet, log_of_shares, shares_and_gap
from ...numerics.special import (
    deviance,
    hardly,
    log_minus_digamma,
    stirling_error,
)

_LOG_2PI = math.log(2 * math.pi)


def log_density(alpha: Array, x: Array) -> Array:
    """log Dirichlet(x | α) over the last axis, by Stirling errors and deviances D(α_a, x_a Σα) (Loader 2000).

    NaN where α is at one point, to rounding: there is no density.
    """
    total = jnp.sum(alpha, -1, keepdims=True)
    total = jnp.where(_is_point(total), jnp.nan, total)
    log_x, least = jnp.log(x), hardly(x.dtype)
    far = alpha * jnp.where(x < least, log_x - math.log(least), 0)  # total · x may underflow
    counted = far - deviance(alpha, total * jnp.where(x < least, least, x))
    each = 0.5 * jnp.log(alpha) - stirling_error(alpha) + counted - log_x
    whole = (stirling_error(total) - 0.5 * jnp.log(total))[..., 0]
    return whole + jnp.sum(each, -1) - 0.5 * (x.shape[-1] - 1) * _LOG_2PI


def concentration_of(
    log_place: Array, log_ratio: Array, loss: Array | None, floor: Array, present: Array, otherwise: Array
) -> Array:
    """Concentrations (…, d) of these statistics; `floor` (…,) is that of one row, `otherwise` where none is present."""
    log_share, gap = shares_and_gap(log_place, jnp.where(present[..., None], log_ratio, 0), loss)
    gap = gap + floor
    eps = jnp.finfo(gap.dtype).eps
    # of a component at one point: finite, and no density; about a mean that is not its own, one that the sums resolve,
    # so that the likelihood rises
    lost = 0 if loss is None else 8 * eps * jnp.sum(jnp.exp(log_place) * jnp.abs(loss), -1)
    least = jnp.maximum(eps**2, lost)
    usable = present & ~(gap < least)  # NaN stays to be seen
    alpha = inverse_dirichlet(log_share, jnp.where(usable, gap, jnp.where(present, least, 0.5)))
    return jnp.where(present[..., None], alpha, otherwise)


def is_sharp(alpha: Array, scatter: Array) -> Array:
    """Whether rounding of E[log x], eps · scatter (…,), stays below 0.3·√eps of the gap of α (…, d)."""
    total = jnp.sum(alpha, -1, keepdims=True)
    ratio = log_minus_digamma(total) - log_minus_digamma(alpha)
    _, gap = shares_and_gap(log_of_shares(alpha / total), ratio)
    return jnp.all(scatter <= gap * 0.3 / math.sqrt(jnp.finfo(alpha.dtype).eps))


def _is_point(total: Array) -> Array:
    return total > 0.5 / jnp.finfo(total.dtype).eps


def status_of(total: Array, active: Array) -> Array:
    degenerate = jnp.any(jnp.any(_is_point(total), 1) & active)
    return jnp.where(degenerate, Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)


def floor_of(total: Array, floor: Any, active: Array | None) -> Array:
    terms = jnp.sum(total, 1)
    terms = terms if active is None else jnp.where(active, terms, 0)
    return -jnp.asarray(floor, terms.dtype) * jnp.sum(terms)


def inside_simplex(x: Array) -> Array:
    """x, not at 0 nor at 1 by rounding."""
    return jnp.clip(x, jnp.finfo(x.dtype).tiny, 1 - jnp.finfo(x.dtype).eps / 2)
