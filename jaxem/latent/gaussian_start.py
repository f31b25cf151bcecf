"""Linear-Gaussian chains whose first state is hardly known: it is estimated beside the filter, and not inside.

A covariance of 10⁷ that meets noise near 1 loses the digits of float32 in P − P cᵀ(c P cᵀ + R)⁻¹ c P, as soon as
several states are learnt one after the other. So x_1 = m + ξ + δ: ξ ~ N(0, f P), as wide as the noise, is the filter's,
and δ ~ N(0, (1 − f) P) is a regression on how each step depends on it (Rosenberg 1973; de Jong 1991). Its posterior
N(δ̂, U Uᵀ) is kept by the factor U, so that nothing large is taken from another. Any f gives the same answer.

A column of U is a direction in which δ may be off. What it moves is carried along as one more series would be, and its
square is added to the covariances that the passes have for δ̂.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array
from .gaussian_chain import (
    Entries,
    FilteredStates,
    GaussianChain,
    applied,
    factor,
    filtered_states,
    nothing_behind,
    over_entries,
    product,
    step_back,
    what_goes_back,
)


class Deviations(NamedTuple):
    """How far the passes are off if δ is, along each of k directions of size one.

    Attributes:
        states: of the filtered mean (t, s, k, m).
        residuals: (t, d, k, m).
    """

    states: Array
    residuals: Array


class Passed(NamedTuple):
    """The pass forwards.

    Attributes:
        entries: what it looked at.
        known: what is known after each step.
        given: the same at the first state as the whole series has it; what goes backwards begins with this.
        deviations: of `given`, or None where the filter knows the first state well enough.
    """

    entries: Entries
    known: FilteredStates
    given: FilteredStates
    deviations: Deviations | None


class SmoothedStates(NamedTuple):
    """What the pass backwards finds.

    Attributes:
        mean: (t, s, n) of x_t given the whole series.
        covariance: (t, s, s, m).
        score: r (t, s, n), the slope of the log-likelihood in the state predicted for the step.
        information: N (t, s, s, m), the variance of r.
    """

    mean: Array
    covariance: Array
    score: Array
    information: Array


def passed(chain: GaussianChain, entries: Entries, diffuse: bool) -> Passed:
    """`filtered_states`, with the first state estimated beside it if it is diffuse."""
    if not diffuse:
        forward = filtered_states(chain, entries)
        return Passed(entries, forward, forward, None)
    inside, root = _split(chain)
    forward = filtered_states(inside, entries)
    found = _estimated(inside, entries, forward, root)
    mean, root = found.mean[-1], found.root[-1]
    ahead = forward.ahead[0] + applied(found.after, mean), forward.ahead[1] + _of_root(product(found.after, root))
    known = FilteredStates(
        forward.mean + applied(found.effects, found.mean),
        forward.covariance + _of_root(product(found.effects, found.root)),
        found.residuals, found.variances, forward.gains, ahead,
    )  # fmt: skip
    given = forward._replace(
        mean=forward.mean + applied(found.effects, mean),
        residuals=forward.residuals - applied(found.seen, mean),
    )
    return Passed(entries, known, given, Deviations(product(found.effects, root), -product(found.seen, root)))


def smoothed_states(chain: GaussianChain, forward: Passed) -> SmoothedStates:
    """The pass backwards (de Jong 1989; Durbin & Koopman 2012, section 4.4, entry by entry as in section 6.4)."""

    def step(carry: tuple[Any, ...], now: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Array, ...]]:
        behind, off = carry
        each, deviations = now
        behind, states, spread, _ = step_back(chain, behind, each)
        score, information = behind
        if deviations is not None:
            off, moved = deviation_back(chain, off, deviations, each)
            spread, information = spread + square(moved, moved), information - square(off, off)
        return (behind, off), (states, spread, score, information)

    now = what_goes_back(forward.entries, forward.given), forward.deviations
    _, found = lax.scan(step, (nothing_behind(chain, forward.entries), no_deviation(forward)), now, reverse=True)
    return SmoothedStates(*found)


def no_deviation(forward: Passed) -> Array | None:
    """By how much r is off after the end."""
    return None if forward.deviations is None else jnp.zeros_like(forward.deviations.states[0])


def deviation_back(
    chain: GaussianChain, behind: Array, deviations: Deviations, now: tuple[Array, ...]
) -> tuple[Array, Array]:
    """How far r (s, k, m) and the smoothed states (s, k, m) of a step are off; `behind` is that of r after it."""
    rows, gains, _, inverses, _, covariance = now
    score = product(jnp.swapaxes(chain.transition[:, :, None], 0, 1), behind)
    states = deviations.states + product(covariance, score)

    def entry(score: Array, now: tuple[Array, ...]) -> tuple[Array, None]:
        row, gain, inverse, residual = now
        weighed = residual * inverse[None] - jnp.sum(gain[:, None] * score, 0)
        return score + row[:, None] * weighed[None], None

    each = rows, gains, inverses, deviations.residuals
    return over_entries(entry, score, each, chain.emission.shape[0], reverse=True)[0], states


def square(a: Array, b: Array) -> Array:
    """Σ_k a_k b_kᵀ of directions (…, s, k, m)."""
    return product(a, jnp.swapaxes(b, -2, -3))


def _of_root(root: Array) -> Array:
    return square(root, root)


class _Estimated(NamedTuple):
    """The regression on δ, step by step.

    Attributes:
        effects: by how much δ moves the filtered mean (t, s, k, m); `after` the last prediction (s, k, m).
        seen: by how much it moves what is seen of each entry (t, d, k, m).
        mean: δ̂ after each step (t, k, n).
        root: U after each step (t, k, k, m).
        residuals: one step ahead, (t, d, n), with their variances (t, d, m).
    """

    effects: Array
    seen: Array
    mean: Array
    root: Array
    residuals: Array
    variances: Array
    after: Array


def _split(chain: GaussianChain) -> tuple[GaussianChain, Array]:
    """The chain that begins as wide as its noise, and the factor of the rest of the first covariance."""
    widest = jnp.max(jnp.diagonal(chain.initial_covariance))
    row = jnp.max(jnp.square(chain.emission), 1)
    noise = jnp.diagonal(chain.emission_covariance) / jnp.where(row > 0, row, 1)
    size = jnp.max(jnp.diagonal(chain.transition_covariance)) + jnp.max(noise)
    share = jnp.minimum(size / jnp.where(widest > 0, widest, 1), 1)
    share = lax.stop_gradient(jnp.where(widest > 0, share, 1))
    root = factor((1 - share) * chain.initial_covariance)
    return chain._replace(initial_covariance=share * chain.initial_covariance), root


def _estimated(chain: GaussianChain, entries: Entries, forward: FilteredStates, root: Array) -> _Estimated:
    (d, s), n, m = chain.emission.shape, chain.values.shape[2], entries.seen.shape[-1]
    move = chain.transition[:, :, None]

    def entry(carry: tuple[Array, ...], now: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        effect, mean, root = carry
        row, gain, residual, noise, observed = now
        seen = jnp.sum(row[:, None] * effect, 0)
        residual = jnp.where(observed, residual - jnp.sum(seen * mean, 0), 0)
        part, variance, root = _learnt(root, seen, noise)
        return (effect - gain[:, None] * seen[None], mean + part * residual[None], root), (seen, residual, variance)

    def step(carry: tuple[Array, ...], now: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
        before, mean, root = carry
        *each, here = now
        (effect, mean, root), found = over_entries(entry, (before, mean, root), tuple(each), d)
        after = jnp.where(here[None, None] if m == n else here[None, None, :1], product(move, effect), before)
        return (after, mean, root), ((effect, mean, root), found)

    first = (
        jnp.broadcast_to(jnp.eye(s, dtype=root.dtype)[:, :, None], (s, s, m)),
        jnp.zeros((s, n), root.dtype),
        jnp.broadcast_to(root[:, :, None], (s, s, m)),
    )
    each = entries.rows, forward.gains, forward.residuals, forward.variances, entries.seen, chain.present
    (after, _, _), (states, found) = lax.scan(step, first, each)
    if isinstance(found, list):
        found = jax.tree.map(lambda *each: jnp.stack(each, 1), *found)
    seen, residuals, variances = found
    return _Estimated(states[0], seen, states[1], states[2], residuals, variances, after)


def _learnt(root: Array, seen: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Gain, variance and U after one number, seen·δ + noise (Carlson 1973): sums of squares, and no difference."""
    turned = jnp.sum(root * seen[:, None], 0)
    variance = noise[None] + jnp.cumsum(jnp.square(turned), 0)
    before = jnp.concatenate([noise[None], variance[:-1]])
    reach = jnp.cumsum(root * turned[None], 1)
    behind = jnp.concatenate([jnp.zeros_like(reach[:, :1]), reach[:, :-1]], 1)
    sound = before > 0
    own, old = jnp.where(variance > 0, variance, 1), jnp.where(sound, before, 1)
    scale = jnp.where(sound, jnp.sqrt(old / own), jnp.where(variance > 0, 0, 1))
    mixed = jnp.where(sound, turned * lax.rsqrt(old * own), 0)
    last = jnp.where(variance[-1] > 0, variance[-1], 1)
    return reach[:, -1] / last[None], variance[-1], root * scale[None] - behind * mixed[None]
