"""The recursion of hidden Markov chains, many side by side: forwards, backwards, and pairs of neighbours.

The same in either system of `numbers`. Both passes normalise what they carry by its own sum at each step, so that
rounding does not add up along the chain, and leave the log-likelihood to a sum outside of the recursion.

Layout. Chains come last, (t, k, n). Of a few long chains blocks of time lie side by side as well: B blocks of t steps,
(t, k, B·n), step s of block b of chain i at [s, :, b·n + i]. A pass of k times the work finds what each block makes of
every state before it, a pass over blocks with what each begins, and what follows it; then all of them run at once.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from .._typing import Array
from .numbers import LOG, Numbers

_SUM_BLOCK = 32


class Chain(NamedTuple):
    """What there is to know of n chains of at most t steps over k states.

    Attributes:
        initial: (k,) probabilities of the first state.
        transition: (k, k) probabilities, rows summing to 1; a zero never happens. Or (t, k, k, n) where every step has
            its own, those by which it is come to; such chains do not lie in blocks.
        log_emission: (t, k, n) log p(x_t | state), 0 in every state where a step says nothing; (t, k, B·n) in blocks.
        length: (n,) steps of each chain, those after it are absent: they change nothing.
    """

    initial: Array
    transition: Array
    log_emission: Array
    length: Array

    @property
    def n_blocks(self) -> int:
        """B, one unless the steps are in blocks."""
        return self.log_emission.shape[2] // max(self.length.shape[0], 1)

    @property
    def varies(self) -> bool:
        """Whether every step has transitions of its own."""
        return self.transition.ndim > 2

    @property
    def onwards(self) -> Array:
        """The transitions by which each step is left, where they vary; of the last one nothing of use."""
        return jnp.roll(self.transition, -1, 0) if self.varies else self.transition

    @property
    def present(self) -> Array:
        """Which steps are: (t, B·n)."""
        return self.reach(0)

    def reach(self, ahead: int) -> Array:
        """Which steps have one that is so many steps ahead: (t, B·n)."""
        t, n_blocks = self.log_emission.shape[0], self.n_blocks
        time = jnp.arange(t, dtype=self.length.dtype)[:, None] + t * jnp.arange(n_blocks, dtype=self.length.dtype)[None]
        return (time[:, :, None] + ahead < self.length[None, None]).reshape(t, -1)

    def in_order(self) -> "Chain":
        """The chain in one block."""
        return self._replace(log_emission=in_order(self.log_emission, self.n_blocks))


def in_order(values: Array, n_blocks: int) -> Array:
    """(t, …, B·n) in blocks as (B·t, …, n)."""
    if n_blocks == 1:
        return values
    t, n = values.shape[0], values.shape[-1] // n_blocks
    apart = jnp.moveaxis(values.reshape(*values.shape[:-1], n_blocks, n), -2, 0)
    return apart.reshape(n_blocks * t, *values.shape[1:-1], n)


def in_blocks(values: Array, n_blocks: int) -> Array:
    """Inverse of `in_order`."""
    if n_blocks == 1:
        return values
    apart = jnp.moveaxis(values.reshape(n_blocks, -1, *values.shape[1:]), 0, -2)
    return apart.reshape(*apart.shape[:-2], -1)


class Smoothed(NamedTuple):
    """Posterior of the states.

    Attributes:
        states: (t, k, n), in blocks where the chain is, summing to the weight of the chain over the states, 0 in
            absent steps.
        pairs: (k, k), expected transitions from one state to another, times the chains' weights, summed over them;
            (t, k, k, n), not summed, of chains whose transitions vary, each in the step that it leads to.
    """

    states: Array
    pairs: Array


class Filtered(NamedTuple):
    """What a pass forwards finds.

    Attributes:
        states: (t, k, n) p(state_t | x_1 … x_t) in the numbers of the recursion; beyond the length, nothing of use.
        log_evidence: (t, n) log p(x_t | x_1 … x_{t−1}), 0 in absent steps; in order where the chain lies in blocks.
        joint: as `states`, before it is divided by its sum; what the pass backwards reads.
        emission: as `states`, for the pass backwards.
        between: of blocks, what they do and the states at their ends.
    """

    states: Array
    log_evidence: Array
    joint: Array
    emission: Array
    between: "Between | None" = None


def filtered(chain: Chain, numbers: Numbers = LOG) -> Filtered:
    """The pass forwards (Baum et al. 1970; scaled as Rabiner 1989, eq. 91 to 93)."""
    transition, present = numbers.of(chain.transition), chain.present
    # a NaN of absent steps would have a slope
    log_emission = jnp.where(present[:, None], chain.log_emission, 0)
    emission, shift = numbers.emission(log_emission)
    t, k, lanes = emission.shape
    initial = jnp.broadcast_to(numbers.of(chain.initial)[:, None], (k, lanes // chain.n_blocks))
    between = None
    if chain.n_blocks == 1:
        first = initial
    else:
        between, first = _between(chain, transition, emission, initial, numbers)

    def step(joint: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        here, is_first, *own = now
        predicted = numbers.over(numbers.across(own[0] if own else transition, joint), numbers.total(joint))
        joint = numbers.times(here, jnp.where(is_first, first, predicted))
        return joint, joint

    own = (transition,) if chain.varies else ()
    _, joint = lax.scan(step, first, (emission, jnp.arange(t) == 0, *own))
    total = numbers.total(joint)
    states = numbers.over(joint, total)
    evidence = jnp.where(present, jnp.squeeze(numbers.log(total) + shift, 1), 0)
    evidence = jnp.where(_lost(chain, states, numbers), jnp.nan, evidence)
    return Filtered(states, in_order(evidence, chain.n_blocks), joint, emission, between)


def _lost(chain: Chain, states: Array, numbers: Numbers) -> Array:
    """Whether a state is too improbable for the numbers while none of the probable ones leads to it: (B·n,).

    Step by step such a state fades away. What it would have been later, when the steps speak for it, is missing then,
    and nothing tells: the others go on. Where every state follows every other one, all are soon back.
    """
    faint, (t, _, lanes) = numbers.faint(states), states.shape
    if faint is None:
        return jnp.zeros(lanes, bool)

    def look() -> Array:
        time = jnp.arange(t)[:, None] + t * jnp.arange(chain.n_blocks)[None]
        reached = jnp.moveaxis(_reached(chain)[jnp.minimum(time, chain.initial.shape[0] - 1)], 1, 2)
        possible = jnp.repeat(reached, lanes // chain.n_blocks, 2) & (chain.log_emission > -jnp.inf)
        return jnp.any(possible & faint & chain.present[:, None], (0, 1))

    improbable = chain.transition <= jnp.finfo(states.dtype).tiny ** 0.5
    return lax.cond(jnp.any(improbable), look, lambda: jnp.zeros(lanes, bool))


def _reached(chain: Chain) -> Array:
    """Which states a chain may have been in by step 0, 1, … k − 1, after which none is added: (k, k)."""
    follows = chain.transition > 0
    follows = jnp.any(follows, (0, 3)) if chain.varies else follows

    def step(before: Array, _: None) -> tuple[Array, Array]:
        return before | jnp.any(before[:, None] & follows, 0), before

    return lax.scan(step, chain.initial > 0, None, chain.initial.shape[0])[1]


def smoothed(chain: Chain, forward: Filtered, numbers: Numbers = LOG, weight: Array | None = None) -> Smoothed:
    """The pass backwards.

    With m_t = b_t ∘ β_t and u = A m_{t+1}, β_t = u / Σm_{t+1} and p(i, j at t, t+1) = α_t(i) A_ij m_{t+1}(j) / Σ α_t u:
    what of it follows the transition is `ahead`, and pair counts are one product afterwards.

    Args:
        chain: the chains.
        forward: what `filtered` finds in the same numbers.
        numbers: `LINEAR` or `LOG`.
        weight: (n,) of each chain; None for ones.
    """
    backwards = numbers.of(jnp.swapaxes(chain.onwards, 1, 2) if chain.varies else chain.transition.T)
    t, k, lanes = forward.joint.shape
    dtype = forward.joint.dtype
    flat = numbers.of(jnp.full((1, 1), 1 / k, dtype))
    present, followed = chain.present, chain.reach(1)
    at_ends = None if forward.between is None else forward.between.backwards(chain, numbers)

    def step(message: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        emission, goes_on, is_last, *own = now
        later = numbers.over(numbers.across(own[0] if own else backwards, message), numbers.total(message))
        later = later if at_ends is None else jnp.where(is_last, at_ends, later)
        return numbers.times(emission, jnp.where(goes_on[None], later, flat)), message

    every = forward.emission, followed, jnp.arange(t) == t - 1, *((backwards,) if chain.varies else ())
    start = jnp.broadcast_to(flat, (k, lanes))
    begin, message = lax.scan(step, start, every, reverse=True)
    if forward.between is not None:
        n = chain.length.shape[0]
        message = message.at[-1].set(jnp.concatenate([begin[:, n:], start[:, :n]], 1))
    later = jnp.where(followed[:, None], numbers.across(backwards, message), flat[None])
    joint = numbers.times(forward.joint, later)
    total = numbers.total(joint)
    weights = jnp.ones(lanes, dtype) if weight is None else jnp.tile(weight, chain.n_blocks)
    states = jnp.where(present[:, None], numbers.probabilities(numbers.over(joint, total)) * weights[None, None], 0)
    ahead = numbers.times(numbers.over(message, total), numbers.of(weights)[None, None])
    ahead = jnp.where(followed[:, None], ahead, numbers.of(jnp.zeros((), dtype)))
    if not chain.varies:
        return Smoothed(states, numbers.pairs(forward.joint, numbers.of(chain.transition), ahead))
    pairs = numbers.times(forward.joint[:, :, None], numbers.times(numbers.of(chain.onwards), ahead[:, None]))
    return Smoothed(states, jnp.roll(numbers.probabilities(pairs), 1, 0))


def log_likelihood(forward: Filtered) -> Array:
    """log p(x) of each chain: (n,)."""
    return sum_over_time(forward.log_evidence)


def sum_over_time(values: Array) -> Array:
    """Σ_t of (t, n) in blocks of blocks: one sum over 10⁶ steps would lose the last three digits of float32."""
    while values.shape[0] > 1:
        t, n = values.shape
        values = jnp.concatenate([values, jnp.zeros((-t % _SUM_BLOCK, n), values.dtype)])
        values = jnp.sum(values.reshape(-1, _SUM_BLOCK, n), 1)
    return values[0]


# --- from block to block


class Between(NamedTuple):
    """What is known of blocks before they run.

    Attributes:
        moves: (B, k, k, n) from the state before a block to the one at its end, with all that its steps say, over a
            number of each block; of the first block from its first state.
        ends: (B, k, n) states at the end of each, given all that came before.
    """

    moves: Array
    ends: Array

    def backwards(self, chain: Chain, numbers: Numbers) -> Array:
        """What follows a block says of each state at its end: (k, B·n)."""
        _, k, n = self.ends.shape
        flat = jnp.broadcast_to(numbers.of(jnp.full((1, 1), 1 / k, self.ends.dtype)), (k, n))

        def block(later: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
            moves, ends, goes_on = now  # of the block that follows, the states before it, and whether it has a step
            before = jnp.squeeze(numbers.total(numbers.times(moves, later[None])), 1)
            total = numbers.total(before)
            seen = numbers.kept(numbers.over(numbers.total(numbers.times(ends, before)), total))
            before = numbers.over(before, jnp.where(seen == seen, total, seen))
            before = jnp.where(goes_on[None], before, flat)
            return before, before

        goes_on = chain.reach(1)[-1].reshape(-1, n)[:-1]
        _, later = lax.scan(block, flat, (self.moves[1:], self.ends[:-1], goes_on), reverse=True)
        return jnp.moveaxis(jnp.concatenate([later, flat[None]]), 0, 1).reshape(k, -1)


def _between(
    chain: Chain, transition: Array, emission: Array, initial: Array, numbers: Numbers
) -> tuple[Between, Array]:
    """What blocks do, and the first states of each that are foreseen: (k, B·n)."""
    t, k, lanes = emission.shape
    n, n_blocks = lanes // chain.n_blocks, chain.n_blocks
    one = jnp.broadcast_to(numbers.of(jnp.eye(k, dtype=emission.dtype))[:, :, None], (k, k, n))
    move = jnp.broadcast_to(transition[:, :, None], (k, k, lanes - n))
    first = jnp.concatenate([one, move], 2)

    def step(moves: Array, now: tuple[Array, ...]) -> tuple[Array, None]:
        here, is_present, is_first = now
        after = numbers.over(numbers.across(transition, moves), _total_of_moves(moves, numbers))
        after = numbers.times(here[None], jnp.where(is_first, first, after))
        return jnp.where(is_present[None, None], after, moves), None

    start = jnp.tile(one, (1, 1, n_blocks))
    moves, _ = lax.scan(step, start, (emission, chain.present, jnp.arange(t) == 0))
    moves = numbers.over(moves, _total_of_moves(moves, numbers))
    moves = jnp.moveaxis(moves.reshape(k, k, n_blocks, n), 2, 0)

    def block(before: Array, moves: Array) -> tuple[Array, Array]:
        after = numbers.times(moves, before[:, None])
        after = jnp.squeeze(numbers.total(jnp.swapaxes(after, 0, 1)), 1)
        after = numbers.over(after, numbers.kept(numbers.total(after)))
        return after, after

    _, ends = lax.scan(block, initial, moves)
    foreseen = numbers.across(transition, ends[:-1])
    foreseen = jnp.moveaxis(jnp.concatenate([initial[None], foreseen]), 0, 1).reshape(k, -1)
    return Between(moves, ends), foreseen


def _total_of_moves(moves: Array, numbers: Numbers) -> Array:
    """Over both states: (1, 1, B·n)."""
    return numbers.total(jnp.swapaxes(numbers.total(moves), 0, 1))
