"""Special functions that keep their digits, and their inverses; all derivatives exist."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array

_LOG_2PI = math.log(2 * math.pi)
_SHIFT = 8  # from where the asymptotic series below hold to 1e-16


def poisson_log_prob(x: Array, rate: Array) -> Array:
    """log Poisson(x | rate) to rounding, whatever the size of the count (Loader 2000, eq. 4); x need not be whole.

    −stirling(x) − D(x, rate) − ½ log 2πx, with the deviance D = x·log(x/rate) + rate − x. A rate of 0 explains 0 alone.
    """
    none = x == 0
    safe = jnp.where(none, 1, x)
    nil = rate == 0
    mean = jnp.where(nil, 1, rate)
    counted = -stirling_error(safe) - deviance(safe, mean) - 0.5 * (_LOG_2PI + jnp.log(safe))
    return jnp.where(none, -rate, jnp.where(nil, -jnp.inf, counted))


def negative_binomial_log_prob(x: Array, size: Array, mean: Array, size_error: Array | None = None) -> Array:
    """log NB(x | size, mean) to rounding, whatever the size of count and params (Loader 2000).

    −D(x, mean·t) − size·(t − 1 − log t) with t = (size + x)/(size + mean), and Stirling errors. A mean of 0 explains 0
    alone. `size_error` is the `stirling_error` of the size, where the caller has it for many counts.
    """
    size_error = stirling_error(size) if size_error is None else size_error
    none, nil = x == 0, mean == 0
    safe_mean, safe = jnp.where(nil, 1, mean), jnp.where(none, 1, x)
    step, both = (safe - safe_mean) / (size + safe_mean), size + safe
    counted = (
        stirling_error(both) - stirling_error(safe) - size_error
        - deviance(safe, safe_mean * (1 + step)) - size * deviation_from(step, both / (size + safe_mean))
        + 0.5 * (jnp.log(size / both) - jnp.log(safe) - _LOG_2PI)
    )  # fmt: skip
    return jnp.where(none, -size * jnp.log1p(mean / size), jnp.where(nil, -jnp.inf, counted))


def deviance(x: Array, mean: Array) -> Array:
    """x·log(x/mean) + mean − x of positive numbers, by a series where they are close (Loader 2000, section 3)."""
    gap = x - mean
    v = gap / (x + mean)
    near = jnp.abs(v) < 0.1
    w = jnp.where(near, v, 0)
    square = jnp.square(w)
    series = jnp.zeros_like(w)
    for odd in range(17, 1, -2):  # v¹⁹/19 is 1e-20
        series = (series + 1 / odd) * square
    far = -x * jnp.log(mean / x) - gap
    return jnp.where(near, gap * w + 2 * x * w * series, far)


def stirling_error(x: Array) -> Array:
    """log Γ(x + 1) − [(x + ½) log x − x + ½ log 2π] of x > 0, by its asymptotic series, moved up to x ≥ 8.

    1/12x − 1/360x³ + 1/1260x⁵ − … (Abramowitz & Stegun 1964, 6.1.41); from x + 1 to x it rises by (x + ½)·log(1 + 1/x)
    − 1, which a difference of logarithms of gamma functions would lose to their size.
    """
    small = x < _SHIFT
    low = jnp.where(small, x, 1)
    inverse = 1 / jnp.where(small, x + _SHIFT, x)
    square = jnp.square(inverse)
    series = jnp.zeros_like(x)
    for term in (-3617 / 122400, 1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * square + term
    steps = sum((low + i + 0.5) * jnp.log1p(1 / (low + i)) - 1 for i in range(_SHIFT))
    return series * inverse + jnp.where(small, steps, 0)


def log_ratio(x: Array, place: Array) -> Array:
    """log(x / place) of positive numbers, to its own digits where they are close, and where their ratio underflows."""
    ratio = x / place
    near = (ratio > 1e-3) & (ratio < 1e3)
    return jnp.where(near, jnp.log(jnp.where(near, ratio, 1)), jnp.log(x) - jnp.log(place))


def hardly(dtype: Any) -> float:
    """A number so small that it can be multiplied by another before it underflows."""
    return float(jnp.finfo(dtype).tiny) ** (2 / 3)


def log_minus_digamma(x: Array) -> Array:
    """log x − ψ(x) of x > 0, without the cancellation of large x: by its asymptotic series, moved up to x ≥ 8.

    1/2x + 1/12x² − 1/120x⁴ + … (Abramowitz & Stegun 1964, 6.3.18), and ψ(x + 1) = ψ(x) + 1/x.
    """
    small = x < _SHIFT
    low = jnp.where(small, x, 1)
    inverse = 1 / jnp.where(small, x + _SHIFT, x)
    square = jnp.square(inverse)
    series = jnp.zeros_like(x)
    for term in (-1 / 12, 691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12):
        series = series * square + term
    series = inverse / 2 - series * square
    steps = sum(1 / (low + i) for i in range(_SHIFT)) + jnp.log(low / (low + _SHIFT))
    return series + jnp.where(small, steps, 0)


@jax.custom_jvp
def inverse_log_minus_digamma(s: Array) -> Array:
    """x > 0 with log x − ψ(x) = s, for s > 0: the shape of a gamma with log E[x] − E[log x] = s.

    Newton in log x for log(log x − ψ(x)) = log s, whose slope lies between −1 and −1.2; six iterations from the start
    of Minka (2002, eq. 15 rearranged) reach rounding for every s.
    """
    gap, root = s - 3, jnp.sqrt(jnp.square(s - 3) + 24 * s)
    start = jnp.where(s > 3, 2 / jnp.where(s > 3, gap + root, 1), (root - gap) / (12 * s))
    log_s = jnp.log(s)

    def step(_: int, log_x: Array) -> Array:
        value, slope = jax.jvp(lambda y: jnp.log(log_minus_digamma(jnp.exp(y))), (log_x,), (jnp.ones_like(log_x),))
        return log_x - (value - log_s) / slope

    return jnp.exp(lax.fori_loop(0, 6, step, jnp.log(start)))


@inverse_log_minus_digamma.defjvp
def _inverse_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x = inverse_log_minus_digamma(primals[0])
    slope = jax.jvp(log_minus_digamma, (x,), (jnp.ones_like(x),))[1]
    return x, tangents[0] / slope


def log_gamma_ratio(x: Array, step: float) -> Array:
    """log Γ(x + step) − log Γ(x) − step·log x of x > 0, without the cancellation of large x."""
    return (x + step - 0.5) * jnp.log1p(step / x) - step + stirling_error(x + step) - stirling_error(x)


def deviation(ratio: Array) -> Array:
    """ratio − 1 − log ratio ≥ 0, by a series where the ratio is near 1."""
    return deviation_from(ratio - 1, ratio)


def deviation_from(difference: Array, ratio: Array | None = None) -> Array:
    """u − log(1 + u) ≥ 0 of u > −1, by a series where u is near 0; `ratio` is 1 + u, where that has more digits.

    With v = u / (2 + u), log(1 + u) = 2(v + v³/3 + v⁵/5 + …), so that it is u·v − 2(v³/3 + …).
    """
    near = jnp.abs(difference) < 0.2
    u = jnp.where(near, difference, 0)
    v = u / (2 + u)
    square = jnp.square(v)
    series = jnp.zeros_like(u)
    for odd in range(17, 1, -2):
        series = (series + 1 / odd) * square
    far = jnp.where(near, 1, 1 + difference if ratio is None else ratio)
    return jnp.where(near, u * v - 2 * v * series, far - 1 - jnp.log(far))


def onto_simplex(values: Array, near: Array) -> Array:
    """Points (…, k) from elsewhere put back on the simplex, beside points of it.

    An entry goes at most 99 of 100 parts of the way from `near` to zero, an entry of zero stays, and they sum to one.
    So those that tend to zero do not hold back the others.
    """
    kept = jnp.where(near > 0, jnp.maximum(values, 0.01 * near), 0)
    return kept / jnp.sum(kept, -1, keepdims=True)
