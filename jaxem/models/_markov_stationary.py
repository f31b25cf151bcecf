"""Chains that begin in their stationary law, π = πA: the law, and an M step of the transitions that knows of it."""

import jax.numpy as jnp
from jax import lax

from .._typing import Array
from ..numerics.maximize import newton
from ._markov_params import Simplex

_STEPS = 20
_SHARE_BEFORE = 1e-3  # of the old probabilities in the start of the climb, for counts that are zero


def stationary_law(transition: Array) -> Array:
    """π with π = πA: (k,), by state reduction (Grassmann, Taksar & Heyman 1985), which subtracts nothing.

    What is left of 1 − A_ii in float32 says little of a chain that stays with probability 1 − 1e-7; its other entries
    say all. NaN of a chain with two sets of states that are never left, or of which the last states are never left.
    """
    k = transition.shape[0]
    index = jnp.arange(k)

    def reduce(moves: Array, last: Array) -> tuple[Array, Array]:
        row = jnp.where(index < last, moves[last], 0)
        column = jnp.where(index < last, moves[:, last], 0) / jnp.sum(row)
        return moves + column[:, None] * row[None], column

    _, columns = lax.scan(reduce, transition, jnp.arange(k - 1, 0, -1))

    def expand(law: Array, own: tuple[Array, Array]) -> tuple[Array, None]:
        state, column = own
        return jnp.where(index == state, jnp.sum(law * column), law), None

    first = (index == 0).astype(transition.dtype)
    law, _ = lax.scan(expand, first, (jnp.arange(1, k), columns[::-1]))
    return law / jnp.sum(law)


def climbed(moves: Simplex, before: Array, first: Array, count: Array) -> Array:
    """Transitions (k, k) that maximise Σ_i n_i log π_i(A) + Σ_ij N_ij log A_ij + log prior, never lower than before.

    There is no closed form. Newton's method in log-ratios, from the rows that would be it without the first term, or
    from those of before, whichever is better. A probability that is zero stays so, as it does under plain EM.

    Args:
        moves: shape, prior and structural zeros of the rows.
        before: (k, k).
        first: (k,) expected first states.
        count: (k, k) expected transitions.
    """
    inside = moves._replace(allowed=before > 0)
    size = jnp.maximum(jnp.sum(count) + jnp.sum(first), 1)

    def objective(transition: Array) -> Array:
        law = stationary_law(transition)
        begins = jnp.sum(jnp.where(first > 0, first * jnp.log(jnp.where(first > 0, law, 1)), 0))
        q = begins + inside.expected_log_prob(transition, count) + moves.log_prior(transition)
        return q / size

    mode = moves.mode(before, count)
    mixed = jnp.where(before > 0, mode + _SHARE_BEFORE * before, 0)
    mixed = mixed / jnp.sum(mixed, 1, keepdims=True)
    at_first = objective(before)
    start = jnp.where(objective(mixed) > at_first, mixed, before)
    tol = 64 * jnp.finfo(before.dtype).eps
    free = lambda free: objective(inside.constrain(free))  # noqa: E731
    found = newton(free, inside.unconstrain(start), n_steps=_STEPS, tol=tol)
    after = inside.constrain(found.params)
    # coordinates that went there and back are not the probabilities to the bit: take them only for something better
    return jnp.where(objective(after) > at_first, after, before)
