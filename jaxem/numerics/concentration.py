"""The concentration of a Dirichlet from its sufficient statistics; all derivatives exist."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array
from .special import log_minus_digamma

_EULER = 0.5772156649015329
_STEPS = 6
_SHIFT = 8  # as in `log_minus_digamma`


def _with_slope(x: Array) -> tuple[Array, Array]:
    """log x − ψ(x), and −x times its slope: x·ψ′(x) − 1 > 0."""
    value, slope = jax.jvp(log_minus_digamma, (x,), (x,))
    return value, -slope


def inverse_digamma(t: Array) -> Array:
    """x > 0 with ψ(x) = t: Newton from the start of Minka (2000, appendix C), five steps to rounding."""
    high = t >= -2.22
    x = jnp.where(high, jnp.exp(jnp.where(high, t, 0)) + 0.5, -1 / (jnp.where(high, -1, t) + _EULER))

    def step(_: int, x: Array) -> Array:
        gap, bend = _with_slope(x)
        return x - x * (jnp.log(x) - gap - t) / (1 + bend)  # from below after the first: ψ is concave

    return lax.fori_loop(0, 5, step, x)


def digamma_rise(x: Array, step: Array) -> Array:
    """ψ(x + step) − ψ(x) of x, step > 0, without the cancellation of a small step."""
    near = sum(step / ((x + i) * (x + step + i)) for i in range(_SHIFT))
    low, high = x + _SHIFT, x + step + _SHIFT
    # ψ = log y − 1/2y − 1/12y² + 1/120y⁴ − …, as in `log_minus_digamma`
    tail = lambda y: sum(c / y**p for c, p in ((1 / 120, 4), (-1 / 252, 6), (1 / 240, 8), (-1 / 132, 10)))  # noqa: E731
    far = jnp.log1p(step / low) + step / (2 * low * high) + step * (low + high) / (12 * jnp.square(low * high))
    return near + far + tail(high) - tail(low)


def _third(x: Array) -> Array:
    """x²·ψ″(x) < 0."""
    slope = lambda y: (1 + _with_slope(y)[1]) / y  # noqa: E731
    return x * jax.jvp(slope, (x,), (x,))[1]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def inverse_dirichlet(log_share: Array, gap: Array, n_steps: int = _STEPS) -> Array:
    """α > 0 with ψ(α_a) − ψ(Σα) = log_share_a − gap: the concentration of a Dirichlet with E[log x_a] of this size.

    The statistics come apart into shares that sum to 1 and gap = −log Σ_a exp E[log x_a] > 0, because at large α all
    that is known of Σα is in the gap, about (d − 1) / (2 Σα), of which the other would leave no digits.

    Newton in log Σα for log G(Σα) = log gap, G = gap + log(Σ_a α_a(Σα) / Σα), where every α_a solves its own equation
    given ψ(Σα): at their derivatives this is Newton with the Hessian of Minka (2000, eq. 17), diagonal plus rank one,
    in coordinates in which it is nearly linear. Six steps and two from Σα = (d − 1) / (2 gap) reach rounding.

    Args:
        log_share: (…, d), log-sum-exp 0.
        gap: (…,), positive.
        n_steps: of Newton.

    Returns:
        (…, d).
    """
    d, gap = log_share.shape[-1], gap[..., None]
    share = jnp.exp(log_share)

    def parts(log_total: Array) -> tuple[Array, Array, Array, Array]:
        """α; Σα over the total, less 1; x·ψ′(x) − 1 of α and of the total."""
        total = jnp.exp(log_total)
        own, bend = _with_slope(total)
        alpha = inverse_digamma(log_share + (log_total - own - gap))
        each, bends = _with_slope(alpha)
        change = each - gap - own  # log of α over total·share
        near = jnp.abs(change) < 1
        beyond = jnp.where(near, share * jnp.expm1(jnp.where(near, change, 0)), alpha / total - share)
        return alpha, jnp.sum(beyond, -1, keepdims=True), bends, bend

    def step(_: Any, log_total: Array) -> Array:
        alpha, beyond, bends, bend = parts(log_total)
        shares = alpha / jnp.sum(alpha, -1, keepdims=True)
        slope = jnp.sum(shares * (bend - bends) / (1 + bends), -1, keepdims=True)
        excess = jnp.log1p(beyond)
        return log_total - jnp.log1p(excess / gap) * (excess + gap) / slope

    log_total = lax.fori_loop(0, n_steps, step, jnp.log((d - 1) / (2 * gap)))
    alpha, total = parts(log_total)[0], jnp.exp(log_total)
    largest = is_largest(alpha)
    others = jnp.sum(jnp.where(largest, 0, alpha), -1, keepdims=True)
    alone = (others < 0.1 * total) & (others < total * _with_slope(total)[0])
    fall = gap - jnp.sum(jnp.where(largest, log_share, 0), -1, keepdims=True)

    def polish(_: Any, log_total: Array) -> Array:
        """The same for ψ(Σα) − ψ(α_m) = gap − log_share_m, where one share is nearly 1 and the sum loses digits."""
        total = jnp.exp(log_total)
        alpha, _, bends, bend = parts(log_total)
        beside = jnp.where(alone, jnp.sum(jnp.where(largest, 0, alpha), -1, keepdims=True), 0.01 * total)
        rise = digamma_rise(total - beside, beside)
        moved = jnp.sum(jnp.where(largest, 0, alpha * (1 + bend) / (1 + bends)), -1, keepdims=True)
        slope = jnp.square(1 / total) * beside * _third(total) + (1 + _with_slope(total - beside)[1]) * moved / (
            total * (total - beside)
        )
        change = jnp.log(rise / fall) * rise / (total * slope)
        return jnp.where(alone, log_total - change, log_total)

    log_total = lax.fori_loop(0, 2, polish, log_total)
    return parts(log_total)[0]


@inverse_dirichlet.defjvp
def _inverse_jvp(n_steps: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """(1 + bend_a) dlog α_a = ds_a + (1 + bend) dlog Σα, and Σ α_a dlog α_a = Σα dlog Σα; see `_with_slope`."""
    alpha = inverse_dirichlet(*primals, n_steps)
    total = jnp.sum(alpha, -1, keepdims=True)
    share, bends, bend = alpha / total, _with_slope(alpha)[1], _with_slope(total)[1]
    right = (tangents[0] - tangents[1][..., None]) / (1 + bends)
    ratio = (bend - bends) / (1 + bends)
    log_total = -jnp.sum(share * right, -1, keepdims=True) / jnp.sum(share * ratio, -1, keepdims=True)
    return alpha, alpha * (right + (1 + ratio) * log_total)


def shares_and_gap(log_place: Array, log_ratio: Array, loss: Array | None = None) -> tuple[Array, Array]:
    """What `inverse_dirichlet` takes, of E[log x_a] = log_place_a + log_ratio_a; places sum to 1.

    Args:
        log_place: (…, d).
        log_ratio: (…, d), E[log(x_a / place_a)].
        loss: (…, d), E[u_a − log(1 + u_a)] with u_a = x_a / place_a − 1, where it is known for itself: u has no part
            in the gap, as Σ_a place_a u_a = 0.

    Returns:
        (…, d) log shares and (…,) gaps.
    """
    place = jnp.exp(log_place)
    near = jnp.all(jnp.abs(log_ratio) < 0.5, -1, keepdims=True)
    small = jnp.where(near, log_ratio, 0)
    rise = jnp.expm1(small) if loss is None else _exp_beyond_linear(small) - jnp.where(near, loss, 0)
    moved = jnp.log1p(jnp.sum(place * rise, -1, keepdims=True))
    # far from the place: the largest apart, which is near 0 where one share is near 1
    log_mean = log_place + log_ratio
    first = jnp.max(log_mean, -1, keepdims=True)
    rest = jnp.sum(jnp.where(is_largest(log_mean), 0, jnp.exp(log_mean - first)), -1, keepdims=True)
    log_sum = jnp.where(near, moved, first + jnp.log1p(rest))
    return log_mean - log_sum, -log_sum[..., 0]


def _exp_beyond_linear(c: Array) -> Array:
    """exp(c) − 1 − c of |c| < 0.5, by its series."""
    series = jnp.zeros_like(c)
    for i in range(13, 1, -1):
        series = (1 + series) * c / i
    return series * c


def log_of_shares(share: Array) -> Array:
    """log of shares (…, d) that sum to 1, to all digits where one is near 1."""
    largest = is_largest(share)
    others = jnp.sum(jnp.where(largest, 0, share), -1, keepdims=True)
    return jnp.where(largest, jnp.log1p(-others), jnp.log(jnp.where(largest, 1, share)))


def is_largest(values: Array) -> Array:
    """Which entry along the last axis is the largest, the first of equals."""
    index = jnp.arange(values.shape[-1]).reshape((1,) * (values.ndim - 1) + (-1,))
    return jnp.argmax(values, -1, keepdims=True) == index
