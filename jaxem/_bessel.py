"""Modified Bessel functions of the first kind, of any order and argument, as the von Mises–Fisher density needs them.

    L(ν, κ) = log I_ν(κ) − ν log κ,        A(κ) = ∂L/∂κ = I_{ν+1}(κ) / I_ν(κ),        B = 1 − A.

With w = √(ν² + κ²), log I_ν(κ) = w + ν log(κ / (ν + w)) − ½ log 2πw + log Σ_m u_m(ν/w) / ν^m, uniformly in the order
(Abramowitz & Stegun 1964, 9.7.7). As u_m(p) = p^m q_m(p²), the sum is one in 1/w, and holds at order 0 too. Where w is
small, the order is moved up by ρ_m = I_{m+1} / (κ I_m) = 1 / (2(m + 1) + κ² ρ_{m+1}). Nothing depends on log κ, and
nothing cancels where κ is large: derivatives of any order keep their digits.
"""

import math
from fractions import Fraction
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax

from ._typing import Array

_TERMS = 12
_NEAR = 24.0  # from this w on the sum holds to 1e-15
_SHIFT = 24
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


def log_bessel(order: float, x: Array, *, scaled: bool = False) -> Array:
    """L(order, x) of order ≥ 0 and x ≥ 0; L(order, x) − x if `scaled`."""
    large = x >= _NEAR
    far, near = jnp.where(large, x, _NEAR), jnp.where(large, 1, x)
    direct = _uniform(jnp.full_like(x, order), far, scaled)
    if order >= _NEAR:
        return jnp.where(large, direct, _uniform(jnp.full_like(x, order), near, scaled))
    square = jnp.square(near)
    rho, logs = jnp.zeros_like(x), jnp.zeros_like(x)
    for m in range(2 * _SHIFT, -1, -1):  # what was neglected at the top shrinks by more than 10 at every step
        rho = 1 / (2 * (order + m + 1) + square * rho)
        if m < _SHIFT:
            logs = logs + jnp.log(rho)
    return jnp.where(large, direct, _uniform(jnp.full_like(x, order + _SHIFT), near, scaled) - logs)


def bessel_ratio(order: float, x: Array) -> tuple[Array, Array]:
    """A = I_{order+1}(x) / I_order(x), and 1 − A, each with its own digits."""
    ones = jnp.ones_like(x)
    ratio = jax.jvp(lambda x: log_bessel(order, x), (x,), (ones,))[1]
    return ratio, -jax.jvp(lambda x: log_bessel(order, x, scaled=True), (x,), (ones,))[1]


def _log_odds(order: float, log_x: Array) -> Array:
    ratio, rest = bessel_ratio(order, jnp.exp(log_x))
    return jnp.log(ratio) - jnp.log(rest)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def inverse_bessel_ratio(order: float, log_odds: Array) -> Array:
    """x > 0 with log A(x) − log(1 − A(x)) = `log_odds`, of order ≥ 0.

    Newton in log x, in which the log odds are close to straight: their slope is 1 at both ends. From the start of
    Banerjee et al. (2005, eq. 4.4), x = R(d − R²) / (1 − R²) with d = 2·order + 2, four iterations reach rounding.
    """
    r, rest = jax.nn.sigmoid(log_odds), jax.nn.sigmoid(-log_odds)
    start = jnp.log(r) - jnp.log(rest) - jnp.log1p(r) + jnp.log(2 * order + 2 - jnp.square(r))

    def step(_: int, log_x: Array) -> Array:
        value, slope = jax.jvp(partial(_log_odds, order), (log_x,), (jnp.ones_like(log_x),))
        return log_x - (value - log_odds) / slope

    return jnp.exp(lax.fori_loop(0, N_NEWTON, step, start))


@inverse_bessel_ratio.defjvp
def _inverse_jvp(order: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x = inverse_bessel_ratio(order, *primals)
    slope = jax.jvp(partial(_log_odds, order), (jnp.log(x),), (jnp.ones_like(x),))[1]
    return x, x * tangents[0] / slope
