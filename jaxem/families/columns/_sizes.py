"""One step towards the most likely size of negative binomial counts, from sums over the rows at the size before."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..._typing import Array
from ...numerics.special import deviation_from, log_minus_digamma

_LEAST_FACTOR = 1e-3  # by which a step may change a size, or one over it
_NEWTON_STEPS = 8


def largest_size(dtype: jnp.dtype) -> float:
    """Where sizes stop if counts vary no more than Poisson counts: beyond, a variance is the same to rounding."""
    return 1 / math.sqrt(jnp.finfo(dtype).eps)


class AtSize(NamedTuple):
    """What sums over rows need of a size, (d,) or (k, d): log − ψ at it, and at 1 + size with its derivative."""

    at_size: Array
    at_next: Array
    slope_at_next: Array


def at_size(size: Array) -> AtSize:
    """Taken before the loop over components: inside of it the compiler would do it again for every row."""
    return AtSize(log_minus_digamma(size), *jax.jvp(log_minus_digamma, (size + 1,), (jnp.ones_like(size),)))


def gap_and_bend(x: Array, size: Array, at: AtSize) -> tuple[Array, Array]:
    """log − ψ at size + x less at the size; and how Σ_m log(size + m), m < x, bends in log size: (n, d) each.

    That is Σ_m p(1 − p), p = size/(size + m), m = 1 … x − 1, here by ψ and ψ' at size + x and at size + 1, so that
    nothing cancels where the size is small.

    Args:
        x: counts (n, d).
        size: (1, d).
        at: of the size, leaves (1, d).
    """
    both = size + x
    value, slope = jax.jvp(log_minus_digamma, (both,), (jnp.ones_like(both),))
    first = jnp.log1p((x - 1) / (size + 1)) + at.at_next - value
    second = (x - 1) / ((size + 1) * both) - at.slope_at_next + slope
    return value - at.at_size, jnp.where(x >= 1, jnp.maximum(size * (first - size * second), 0), 0)


def tilt(size: Array, mean: Array) -> Array:
    """size · log(1 + mean/size): minus the slope in log size of size·log size − (size + mean)·log(size + mean)."""
    return size * jnp.log1p(mean / size)


@jax.custom_jvp
def log_step(slope: Array, curvature: Array, size: Array, mean: Array) -> Array:
    """The step τ of log size that is best for a function below the log-likelihood of a count, and equal to it at τ = 0.

    In log size the likelihood is G − F: F' is `tilt`, and G = Σ_m log(size + m) over m < x has G'' = Σ_m p(1 − p), p =
    size/(size + m), whose logarithm has a slope 1 − 2p between −1 and 1. So G'' is at least e^{−|τ|} times what it is
    at τ = 0, and with its value there, the curvature,

        G(τ) ≥ G(0) + G'(0) τ + curvature · (e^{−|τ|} − 1 + |τ|).

    The right side less F is smooth to the second order: near the limit the step is Newton's, and far from it it still
    never lowers the likelihood. It is best where, with y = 1 − e^{−|τ|},

        |slope| + curvature · y = |tilt(size · e^τ) − tilt(size)|.

    The right side has only positive derivatives in y (tilt is ∫ size/(size + z) dz over 0 < z < mean). So there is one
    solution; that of the quadratic expansion lies beyond it, and Newton's method comes down to it from there.

    Args:
        slope: of the log-likelihood in log size, for each count on average: as all that follows, (k, d).
        curvature: the second of `gap_and_bend`, on average.
        size: where both were taken; positive.
        mean: of the counts.

    Returns:
        τ, at most such that the size is `largest_size`, and changes by `_LEAST_FACTOR` or one over it; (k, d).
    """
    up, rise, u = slope > 0, jnp.abs(slope), mean / size
    own = _information(size, u)
    least = jnp.where(up, jnp.clip(size / largest_size(size.dtype), _LEAST_FACTOR, 1), _LEAST_FACTOR)
    information, cubic = own - curvature, size * jnp.square(u / (1 + u))
    cubic = jnp.where(up, 2 * own - cubic, cubic)
    root = jnp.sqrt(jnp.square(information) + 2 * cubic * rise)
    beyond = jnp.where(
        information > 0, 2 * rise / _not_zero(information + root), (root - information) / _not_zero(cubic)
    )

    def left(y: Array) -> tuple[Array, Array]:
        """The left side less the right one, and its derivative."""
        q = 1 - y
        near = jnp.where(up, q, 1 / q)
        change = jnp.where(up, y / q, -y) * jnp.log1p(u * near) + jnp.log1p(jnp.where(up, -y, y / q) * u / (1 + u))
        right = size * jnp.where(up, change, -change)
        return rise + curvature * y - right, curvature - _information(size / near, u * near) / q

    def newton(_: int, y: Array) -> Array:
        value, derivative = left(y)
        return jnp.where(derivative < 0, jnp.clip(y - value / derivative, 0, 1 - least), y)

    y = lax.fori_loop(0, _NEWTON_STEPS, newton, jnp.clip(beyond, 0, 1 - least))
    y = y * rise / _not_zero(rise - jnp.minimum(left(y)[0], 0))  # a chord: from wherever it is, not beyond the best
    size_of_step = -jnp.log1p(-jnp.where(rise > 0, y, 0))
    return jnp.where(up, size_of_step, -size_of_step)


def _not_zero(values: Array) -> Array:
    return jnp.where(values == 0, 1, values)


def _information(size: Array, u: Array) -> Array:
    """The derivative of `tilt` in log size, size · (log(1 + u) − u/(1 + u)) with u = mean/size."""
    return size * deviation_from(-u / (1 + u))


@log_step.defjvp
def _log_step_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """By the implicit function theorem."""
    step = log_step(*primals)

    def equation(slope: Array, curvature: Array, size: Array, mean: Array) -> Array:
        change = tilt(size * jnp.exp(step), mean) - tilt(size, mean)
        return slope - curvature * jnp.sign(step) * jnp.expm1(-jnp.abs(step)) - change

    _, curvature, size, mean = primals
    ahead = size * jnp.exp(step)
    steepness = _information(ahead, mean / ahead) - curvature * jnp.exp(-jnp.abs(step))
    change = jax.jvp(equation, primals, tangents)[1]
    return step, jnp.where(steepness > 0, change / jnp.where(steepness > 0, steepness, 1), 0)
