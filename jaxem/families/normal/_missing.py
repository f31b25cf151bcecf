"""Rows of a normal distribution of which only some entries were observed.

For observed entries o and missing ones m of a row, the marginal likelihood is that of N(μ_o, Σ_oo), and

    E[x_m | x_o] = μ_m + Σ_mo Σ_oo⁻¹ (x_o − μ_o),      C = cov(x_m | x_o) = Σ_mm − Σ_mo Σ_oo⁻¹ Σ_om

are what the M step sees (Ghahramani & Jordan 1994, section 4). One elimination gives all of it: the columns of a
Cholesky factorisation in which only observed entries are pivots, F = Σ_:o L_oo⁻ᵀ. Its shape is that of the row,
whatever is missing. Arrays end with the rows, (…, n), along which vector units run.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ..._typing import Array
from ...numerics.linalg import einsum, sum_terms

_UNROLLED = 10  # up to so many columns the densities and the statistics are compiled into one elimination


class Completion(NamedTuple):
    """Rows completed under each of k normals.

    Attributes:
        log_prob: log N(x_o | μ_o, Σ_oo) without the constant, (k, n); 0 for a row without an entry.
        deviation: x − μ, expected where x is missing: (k, d, n).
        factor: F restricted to the missing entries, (c, d, d, n) by column, entry and row: C = Σ_mm − F Fᵀ. c is k, or
            1 where components share the covariance.
        missing: ones where an entry is missing, (d, n).
    """

    log_prob: Array
    deviation: Array
    factor: Array
    missing: Array


def complete(mean: Array, covariance: Array, x: Array) -> Completion:
    """Eliminates what was observed.

    Args:
        mean: (k, d).
        covariance: (c, d, d) with c = k, or 1 where shared. Not positive definite gives NaN or inf, never an error.
        x: (n, d), NaN where missing.
    """
    observed = ~jnp.isnan(x).T
    rows = jnp.where(observed, x.T, 0)
    deviation = jnp.where(observed[None], rows[None] - mean[:, :, None], 0)
    eliminate = _eliminated if x.shape[1] <= _UNROLLED else _eliminated_by_loop
    columns, scores, half_log_det = eliminate(covariance, deviation, observed)
    missing = (~observed).astype(x.dtype)
    expected = sum_terms([column * score[:, None] for column, score in zip(columns, scores, strict=True)])
    return Completion(
        -half_log_det - 0.5 * sum_terms([jnp.square(score) for score in scores]),
        jnp.where(observed[None], deviation, expected),
        jnp.stack([column * missing[None] for column in columns], 1),
        missing,
    )


def _pivot(rest: Array, here: Array) -> tuple[Array, Array]:
    """1 / √pivot, 0 where the entry is missing, and log √pivot."""
    safe = jnp.where(here, rest, 1)
    return jnp.where(here, lax.rsqrt(safe), 0), 0.5 * jnp.log(safe)


def _eliminated(covariance: Array, deviation: Array, observed: Array) -> tuple[list[Array], list[Array], Array]:
    """Columns of F, each (c, d, n); L_oo⁻¹(x_o − μ_o), each (k, n); half log-determinants (c, n)."""
    columns: list[Array] = []
    scores: list[Array] = []
    logs: list[Array] = []
    for a in range(covariance.shape[-1]):
        rest, score = covariance[:, :, a, None], deviation[:, a]
        for column, earlier in zip(columns, scores, strict=True):
            rest = rest - column * column[:, a, None]
            score = score - column[:, a] * earlier
        inverse, log_root = _pivot(rest[:, a], observed[a][None])
        columns.append(rest * inverse[:, None])
        scores.append(score * inverse)
        logs.append(log_root)
    return columns, scores, sum_terms(logs)


def _eliminated_by_loop(covariance: Array, deviation: Array, observed: Array) -> tuple[Array, Array, Array]:
    """The same in a loop, columns (d, c, d, n) and scores (d, k, n): for many columns it compiles sooner."""
    c, d, _ = covariance.shape
    k, _, n = deviation.shape
    zeros = lambda *shape: jnp.zeros(shape, covariance.dtype)  # noqa: E731

    def step(carry: tuple, a: Array) -> tuple:
        columns, scores, half_log_det = carry
        at = lambda array, axis: lax.dynamic_index_in_dim(array, a, axis, keepdims=False)  # noqa: E731
        own = at(columns, 2)  # entry a of the columns so far, 0 elsewhere
        rest = at(covariance, 2)[:, :, None] - jnp.sum(columns * own[:, :, None], 0)
        score = at(deviation, 1) - jnp.sum(own * scores, 0)
        inverse, log_root = _pivot(at(rest, 1), at(observed, 0)[None])
        columns = lax.dynamic_update_index_in_dim(columns, rest * inverse[:, None], a, 0)
        scores = lax.dynamic_update_index_in_dim(scores, score * inverse, a, 0)
        return (columns, scores, half_log_det + log_root), None

    return lax.scan(step, (zeros(d, c, d, n), zeros(d, k, n), zeros(c, n)), jnp.arange(d))[0]


def moments(done: Completion, covariance: Array, responsibilities: Array, offset: Array) -> tuple[Array, Array, Array]:
    """Σ r (k,), Σ r·E[y] (k, d) and Σ r·E[y yᵀ] (k, d, d) of y = x − μ + offset.

    Args:
        done: of the same covariance (c, d, d).
        covariance: as `complete` took it.
        responsibilities: (n, k).
        offset: (k, d).
    """
    r = responsibilities.T
    y = done.deviation + offset[:, :, None]
    factor = jnp.broadcast_to(done.factor, (r.shape[0], *done.factor.shape[1:]))
    explained = jnp.sum(einsum("kbin,kbjn->kbij", factor * r[:, None, None], factor), 1)
    both = einsum("kin,jn->kij", done.missing[None] * r[:, None], done.missing)  # rows in which both are missing
    second = einsum("kin,kjn->kij", y * r[:, None], y) + covariance * both - explained
    return jnp.sum(r, 1), einsum("kin,kn->ki", y, r), second
