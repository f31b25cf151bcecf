"""Second moments of the disturbances of linear-Gaussian chains, given their values, summed over time.

With r and N of the pass backwards, x_{t+1} − A x_t has mean Q r, covariance Q − Q N Q, and covariance −Q N A P_t with
x_t (Koopman 1993). Of y_t − C x_t what is missing is expected given what is observed, v_m | v_o ~ N(R_mo R_oo⁻¹ v_o,
R_mm − R_mo R_oo⁻¹ R_om) (Shumway & Stoffer 1982, section 3; Holmes 2013).

They are added up on the way back, step by step, where they are in the cache: faster than products afterwards.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array
from .gaussian_chain import (
    GaussianChain,
    applied,
    nothing_behind,
    product,
    step_back,
    what_goes_back,
)
from .gaussian_start import Passed, deviation_back, no_deviation, square

_FEW_STEPS = 1024  # whose sum keeps its digits in float32; more are added with compensation


class Products(NamedTuple):
    """Σ_t of E[e eᵀ] (a, a, n), E[e zᵀ] (a, b, n) and E[z zᵀ] (b, b, n), by series."""

    square: Array
    cross: Array
    design: Array


class Moments(NamedTuple):
    """What the statistics of a chain are made of.

    Attributes:
        moves: of Q⁻¹(x_{t+1} − A x_t) without its prior covariance, e = r with variance −N; z is the state before, and
            the inputs of the step after.
        steps: of y_t − C x_t where something is observed; z is the state, and the inputs.
        first: mean (s, n) and covariance (s, s, m) of the first state.
        second: r (s, n) of the second.
        seen: y_1 − C x_1 (d, n), 0 where nothing is observed.
    """

    moves: Products
    steps: Products
    first: tuple[Array, Array]
    second: Array
    seen: Array


def moments(chain: GaussianChain, forward: Passed, inputs: Array | None) -> Moments:
    """The pass backwards, with its sums; `inputs` (t, q, n) stand beside the states."""
    entries = forward.entries
    t = chain.present.shape[0]
    after = lambda leaf: jnp.concatenate([leaf[1:], jnp.zeros_like(leaf[:1])])  # noqa: E731
    beside = None if inputs is None else (inputs, after(inputs))
    emission = chain.emission[:, :, None]

    def step(carry: tuple[Any, ...], now: tuple[Any, ...]) -> tuple[tuple[Any, ...], None]:
        (behind, off), total, _ = carry
        each, entry, follows, values, observed, beside, deviations = now
        carry, mean, spread, moved = step_back(chain, behind, each)
        own, with_state = -behind[1], -product(moved, each[-1])
        if deviations is not None:
            before, (off, states) = off, deviation_back(chain, off, deviations, each)
            spread = spread + square(states, states)
            own, with_state = own + square(before, before), with_state + square(before, states)
        fill, unknown = _filling(chain, *entry)
        residual = applied(fill, jnp.where(observed, values - applied(emission, mean), 0))
        filled = product(fill, emission)
        across = product(filled, spread)
        noise = product(across, jnp.swapaxes(filled, 0, 1)) + unknown
        now_with, before_with = (None, None) if beside is None else beside
        moves = _products(behind[0], mean, before_with, (own, with_state, spread))
        steps = _products(residual, mean, now_with, (noise, -across, spread))
        seen = jnp.any(observed, 0)[None, None]
        terms = [
            jax.tree.map(lambda leaf: jnp.where(follows[None, None], leaf, 0), moves),
            jax.tree.map(lambda leaf: jnp.where(seen, leaf, 0), steps),
        ]
        return ((carry, off), _added(total, terms, t), (mean, spread, behind[0], residual)), None

    zero = _zeros(chain, 0 if inputs is None else inputs.shape[1])
    first = nothing_behind(chain, entries)
    now = (
        what_goes_back(entries, forward.given), (entries.mixing, entries.noise, entries.seen), after(chain.present),
        chain.values, chain.observed, beside, forward.deviations,
    )  # fmt: skip
    sums = (zero,) if t <= _FEW_STEPS else (zero, zero)
    start = (first, no_deviation(forward)), sums, (first[0], forward.given.covariance[0], first[0], chain.values[0])
    (_, total, states), _ = lax.scan(step, start, now, reverse=True)
    seen = jnp.where(jnp.any(chain.observed[0], 0), states[3], 0)
    return Moments(*total[0], first=states[:2], second=states[2], seen=seen)


def _products(e: Array, z: Array, inputs: Array | None, spreads: tuple[Array, Array, Array]) -> Products:
    """E[e eᵀ], E[e zᵀ], E[z zᵀ] of one step, of means (…, n) and covariances (…, …, m); inputs are known."""
    outer = lambda a, b: a[:, None] * b[None]  # noqa: E731
    own, cross, states = spreads
    products = Products(outer(e, e) + own, outer(e, z) + cross, outer(z, z) + states)
    if inputs is None:
        return products
    common = outer(z, inputs)
    top = jnp.concatenate([products.design, common], 1)
    bottom = jnp.concatenate([jnp.swapaxes(common, 0, 1), outer(inputs, inputs)], 1)
    cross = jnp.concatenate([products.cross, outer(e, inputs)], 1)
    return Products(products.square, cross, jnp.concatenate([top, bottom]))


def _zeros(chain: GaussianChain, q: int) -> list[Products]:
    (d, s), n = chain.emission.shape, chain.values.shape[2]
    zeros = lambda *shape: jnp.zeros((*shape, n), chain.values.dtype)  # noqa: E731
    return [Products(zeros(a, a), zeros(a, s + q), zeros(s + q, s + q)) for a in (s, d)]


def _added(total: tuple[Any, ...], terms: Any, t: int) -> tuple[Any, ...]:
    """The sum with these terms; of many, compensated (Kahan 1965)."""
    if t <= _FEW_STEPS:
        return (jax.tree.map(jnp.add, total[0], terms),)
    own, lost = total
    term = jax.tree.map(jnp.subtract, terms, lost)
    new = jax.tree.map(jnp.add, own, term)
    return new, jax.tree.map(lambda after, before, part: (after - before) - part, new, own, term)


def _filling(chain: GaussianChain, mixing: Array, noise: Array, seen: Array) -> tuple[Array, Array]:
    """H (d, d, m), the identity on what is observed, and the covariance of what is not, given it (d, d, m)."""
    d = chain.emission.shape[0]
    covariance = chain.emission_covariance[:, :, None]
    if d == 1:
        return seen[:, None].astype(noise.dtype), jnp.where(seen[:, None], 0, covariance)
    sound = seen & (noise > 0)
    inverse = jnp.where(sound, 1, 0) / jnp.where(sound, noise, 1)
    white = product(mixing, covariance)
    scaled = jnp.swapaxes(white * inverse[:, None], 0, 1)
    identity = jnp.eye(d, dtype=noise.dtype)[:, :, None] * seen[:, None]
    fill = jnp.where(seen[:, None], identity, product(scaled, mixing))
    return fill, jnp.where(seen[:, None] | seen[None], 0, covariance - product(scaled, white))
