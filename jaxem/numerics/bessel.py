"""Modified Bessel functions of the first kind, of any order and argument, as the von Mises–Fisher density needs them.

    L(ν, κ) = log I_ν(κ) − ν log κ,        A(κ) = ∂L/∂κ = I_{ν+1}(κ) / I_ν(κ),        B = 1 − A.

With w = √(ν² + κ²), log I_ν(κ) = w + ν log(κ / (ν + w)) − ½ log 2πw + log Σ_m u_m(ν/w) / ν^m, uniformly in the order
(Abramowitz & Stegun 1964, 9.7.7). As u_m(p) = p^m q_m(p²), the sum is one in 1/w, and holds at order 0 too. Where w is
small, the power series is summed (9.6.10). Nothing depends on log κ, and
nothing cancels where κ is large: B and A' keep their digits.
"""

import math
from fractions import Fraction
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array

_TERMS = 12
_NEAR = 24.0  # from this w on the sum holds to 1e-15
_SERIES = 50  # terms of the power series, below
N_NEWTON = 4
_LOG_2PI = math.log(2 * math.pi)


@cache
def _debye() -> list[list[float]]:
    """Coefficients of q_m, lowest first: u_{m+1} = ½ t²(1 − t²) u_m' + ⅛ ∫ (1 − 5t²) u_m (A & S 9.3.10)."""
    u = [Fraction(1)]  # by powers of t
    found = []
    for m in range(1, _TERMS + 1):
        new = [Fraction(0)] * (3 * m + 1)
        for power, c in enumerate(u):
            if c == 0:
                continue
            if power:
                new[power + 1] += Fraction(power, 2) * c
                new[power + 3] -= Fraction(power, 2) * c
            new[power + 1] += c / (8 * (power + 1))
            new[power + 3] -= 5 * c / (8 * (power + 3))
        u = new
        found.append([float(c) for c in u[m::2]])
    return found


def _uniform(order: Array, x: Array, scaled: bool) -> Array:
    """L(order, x), or L − x, by the uniform expansion."""
    w = jnp.sqrt(jnp.square(order) + jnp.square(x))
    inverse = 1 / w
    p2 = jnp.square(order * inverse)
    total = jnp.zeros_like(x)
    for coefficients in reversed(_debye()):
        q = jnp.zeros_like(x)
        for c in reversed(coefficients):
            q = q * p2 + c
        total = (total + q) * inverse
    start = jnp.square(order) / (w + x) if scaled else w
    return start - order * jnp.log(order + w) - 0.5 * (_LOG_2PI + jnp.log(w)) + jnp.log1p(total)


def _value(order: float, scaled: bool, x: Array) -> Array:
    large = x >= _NEAR
    far, near = jnp.where(large, x, _NEAR), jnp.where(large, 1, x)
    direct = _uniform(jnp.full_like(x, order), far, scaled)
    if order >= _NEAR:
        return jnp.where(large, direct, _uniform(jnp.full_like(x, order), near, scaled))
    quarter = jnp.square(near) / 4

    def add(carry: tuple[Array, Array], m: Array) -> tuple[tuple[Array, Array], None]:
        term, total = carry
        term = term * quarter / (m * (order + m))
        return (term, total + term), None

    # Σ (x²/4)^m / (m! (ν + 1)_m), all positive
    numbers = jnp.arange(1, _SERIES + 1, dtype=x.dtype)
    (_, rest), _ = lax.scan(add, (jnp.ones_like(x), jnp.zeros_like(x)), numbers)
    series = jnp.log1p(rest) - (order * math.log(2) + math.lgamma(order + 1))
    return jnp.where(large, direct, series - near if scaled else series)


def _slope(order: float, scaled: bool, x: Array) -> Array:
    return jax.jvp(partial(_value, order, scaled), (x,), (jnp.ones_like(x),))[1]


# Values by forward derivatives of one formula, derivatives of these by the identity A' = 1 − A² − (2ν + 1) A / x: taken
# to higher orders, the formula itself would take minutes to compile.


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def log_bessel(order: float, scaled: bool, x: Array) -> Array:
    """L(order, x) of order ≥ 0 and x ≥ 0; L(order, x) − x if `scaled`."""
    return _value(order, scaled, x)


@log_bessel.defjvp
def _log_bessel_jvp(order: float, scaled: bool, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    ratio, rest = bessel_ratio(order, *primals)
    return log_bessel(order, scaled, *primals), tangents[0] * (-rest if scaled else ratio)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def bessel_ratio(order: float, x: Array) -> tuple[Array, Array]:
    """A = I_{order+1}(x) / I_order(x), and 1 − A, each with its own digits."""
    return _slope(order, False, x), -_slope(order, True, x)


@bessel_ratio.defjvp
def _ratio_jvp(order: float, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    change = tangents[0] * bessel_ratio_slope(order, *primals)
    return bessel_ratio(order, *primals), (change, -change)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def bessel_ratio_slope(order: float, x: Array) -> Array:
    """A'(x) > 0."""
    return jax.jvp(partial(_slope, order, True), (x,), (jnp.ones_like(x),))[1]


@bessel_ratio_slope.defjvp
def _slope_jvp(order: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x = primals[0]
    slope, ratio = bessel_ratio_slope(order, x), bessel_ratio(order, x)[0]
    small = x < 1e-3  # A' is even
    safe = jnp.where(small, 1, x)
    change = -2 * ratio * slope - (2 * order + 1) * (slope - ratio / safe) / safe
    return slope, tangents[0] * jnp.where(small, 0, change)


def _log_odds(order: float, x: Array) -> tuple[Array, Array]:
    """log A − log(1 − A), and its slope in log x."""
    ratio, rest = bessel_ratio(order, x)
    return jnp.log(ratio) - jnp.log(rest), x * bessel_ratio_slope(order, x) / (ratio * rest)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def inverse_bessel_ratio(order: float, log_odds: Array) -> Array:
    """x > 0 with log A(x) − log(1 − A(x)) = `log_odds`, of order ≥ 0.

    Newton in log x, in which the log odds are close to straight: their slope is 1 at both ends. From the start of
    Banerjee et al. (2005, eq. 4.4), x = R(d − R²) / (1 − R²) with d = 2·order + 2, four iterations reach rounding.
    """
    r, rest = jax.nn.sigmoid(log_odds), jax.nn.sigmoid(-log_odds)
    start = jnp.log(r) - jnp.log(rest) - jnp.log1p(r) + jnp.log(2 * order + 2 - jnp.square(r))

    def step(_: int, log_x: Array) -> Array:
        value, slope = _log_odds(order, jnp.exp(log_x))
        return log_x - (value - log_odds) / slope

    return jnp.exp(lax.fori_loop(0, N_NEWTON, step, start))


@inverse_bessel_ratio.defjvp
def _inverse_jvp(order: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x = inverse_bessel_ratio(order, *primals)
    return x, x * tangents[0] / _log_odds(order, x)[1]
