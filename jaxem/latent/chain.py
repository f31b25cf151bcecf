"""Hidden Markov chains, many side by side: smoothing, pair counts, the most probable path, draws of paths.

One recursion in two number systems. `LINEAR` scales probabilities by their sum at each step (Rabiner 1989, section V.A)
and is two to four times faster; a state whose probability underflows makes it NaN. `LOG` adds logarithms, and loses
nothing. Both normalise what they carry by its own sum at each step, so that rounding does not add up along the chain,
and leave the log-likelihood to a sum outside of the recursion.

Layout. Chains come last, (t, k, n): vector units run along them.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Key
from ..numerics.linalg import dot, einsum
from .finite import Hard, Rule, Sampled, Soft, Tempered, WithEvidence, WithSize

_FUSED_STATES = 16  # up to so many states a sum over them that fuses; more are a matrix product
_FEW_CHAINS = 32  # from so many on a product a step, along the chains, is up to five times faster than one of all steps
_SUM_BLOCK = 32


class Chain(NamedTuple):
    """What there is to know of n chains of at most t steps over k states.

    Attributes:
        initial: (k,) probabilities of the first state.
        transition: (k, k) probabilities, rows summing to 1; a zero never happens.
        log_emission: (t, k, n) log p(x_t | state); 0 in every state where a step says nothing.
        length: (n,) steps of each chain, those after it are absent: they change nothing.
    """

    initial: Array
    transition: Array
    log_emission: Array
    length: Array

    @property
    def present(self) -> Array:
        """Which steps are: (t, n)."""
        return jnp.arange(self.log_emission.shape[0], dtype=self.length.dtype)[:, None] < self.length[None]


class Smoothed(NamedTuple):
    """Posterior of the states.

    Attributes:
        states: (t, k, n), summing to the weight of the chain over the states, 0 in absent steps.
        pairs: (k, k), expected transitions from one state to another, times the chains' weights, summed over them.
    """

    states: Array
    pairs: Array


# --- two number systems


class Numbers(Protocol):
    """A semiring of probabilities, with what a recursion needs. Hashable."""

    def of(self, probabilities: Array) -> Array:
        """Probabilities in these numbers."""
        ...

    def emission(self, log_emission: Array) -> tuple[Array, Array]:
        """Emission probabilities (k, n) of one step, over the exponential of a shift (1, n)."""
        ...

    def times(self, a: Array, b: Array) -> Array:
        """Products."""
        ...

    def across(self, matrix: Array, vector: Array) -> Array:
        """Σ_i matrix_ij vector_i: (k, n)."""
        ...

    def over(self, vector: Array, total: Array) -> Array:
        """Quotients."""
        ...

    def total(self, vector: Array) -> Array:
        """The sum over the states: (1, n)."""
        ...

    def log(self, values: Array) -> Array:
        """Logarithms of the probabilities."""
        ...

    def probabilities(self, values: Array) -> Array:
        """The way back."""
        ...

    def pairs(self, filtered: Array, transition: Array, ahead: Array) -> Array:
        """Σ_tn filtered_tin transition_ij ahead_tjn: (k, k)."""
        ...


class _Linear:
    """Probabilities as they are."""

    def of(self, probabilities: Array) -> Array:
        """See `Numbers`."""
        return probabilities

    def emission(self, log_emission: Array) -> tuple[Array, Array]:
        """See `Numbers`."""
        top = _top(log_emission, 0)
        return jnp.exp(log_emission - top), top

    def times(self, a: Array, b: Array) -> Array:
        """See `Numbers`."""
        return a * b

    def across(self, matrix: Array, vector: Array) -> Array:
        """See `Numbers`."""
        if matrix.shape[0] > _FUSED_STATES:
            return dot(matrix.T, vector)
        return jnp.sum(matrix[:, :, None] * vector[:, None, :], 0)

    def over(self, vector: Array, total: Array) -> Array:
        """See `Numbers`."""
        return vector / total

    def total(self, vector: Array) -> Array:
        """See `Numbers`."""
        return jnp.sum(vector, 0, keepdims=True)

    def log(self, values: Array) -> Array:
        """See `Numbers`."""
        return jnp.log(values)

    def probabilities(self, values: Array) -> Array:
        """See `Numbers`."""
        return values

    def pairs(self, filtered: Array, transition: Array, ahead: Array) -> Array:
        """See `Numbers`."""
        if filtered.shape[2] < _FEW_CHAINS:
            return transition * einsum("tin,tjn->ij", filtered, ahead)
        return transition * jnp.sum(einsum("tin,tjn->tij", filtered, ahead), 0)


class _Log:
    """Logarithms of probabilities, over a temperature: as powers of probabilities low ones would be none."""

    def __init__(self, temperature: Any = None) -> None:
        self._temperature = temperature

    def of(self, probabilities: Array) -> Array:
        """See `Numbers`."""
        zero = probabilities <= 0  # a Newton correction may end below; NaN, which is not, must come through
        logarithm = jnp.log(jnp.where(zero, 1, probabilities))
        return jnp.where(zero, -jnp.inf, logarithm if self._temperature is None else logarithm / self._temperature)

    def emission(self, log_emission: Array) -> tuple[Array, Array]:
        """See `Numbers`."""
        top = _top(log_emission, 0)
        return log_emission - top, top

    def times(self, a: Array, b: Array) -> Array:
        """See `Numbers`."""
        return a + b

    def across(self, matrix: Array, vector: Array) -> Array:
        """See `Numbers`."""
        return jnp.squeeze(_log_sum(matrix[:, :, None] + vector[:, None, :], 0), 0)

    def over(self, vector: Array, total: Array) -> Array:
        """See `Numbers`. Zero over zero is zero: of a chain that no path explains nothing is expected."""
        return vector - jnp.where(total == -jnp.inf, 0, total)

    def total(self, vector: Array) -> Array:
        """See `Numbers`."""
        return _log_sum(vector, 0)

    def log(self, values: Array) -> Array:
        """See `Numbers`."""
        return values

    def probabilities(self, values: Array) -> Array:
        """See `Numbers`."""
        return jnp.exp(values)

    def pairs(self, filtered: Array, transition: Array, ahead: Array) -> Array:
        """See `Numbers`. A factor may be beyond all numbers while the product is not."""

        def of_state(own: tuple[Array, Array]) -> Array:
            before, row = own
            return jnp.sum(jnp.exp(before[:, None, :] + row[None, :, None] + ahead), (0, 2))

        return lax.map(of_state, (jnp.moveaxis(filtered, 1, 0), transition))


LINEAR, LOG = _Linear(), _Log()


def _top(values: Array, axis: int) -> Array:
    """The largest of each, a number even where all are −inf; a constant to derivatives."""
    return jnp.maximum(lax.stop_gradient(jnp.max(values, axis, keepdims=True)), jnp.finfo(values.dtype).min)


def _log_sum(values: Array, axis: int) -> Array:
    """log Σ exp, with the axis kept; −inf, and no slope, where all are −inf."""
    top = _top(values, axis)
    total = jnp.sum(jnp.exp(values - top), axis, keepdims=True)
    nothing = total == 0
    return jnp.where(nothing, -jnp.inf, top + jnp.log(jnp.where(nothing, 1, total)))


# --- the recursion


class Filtered(NamedTuple):
    """What a pass forwards finds.

    Attributes:
        states: (t, k, n) p(state_t | x_1 … x_t) in the numbers of the recursion; beyond the length, nothing of use.
        log_evidence: (t, n) log p(x_t | x_1 … x_{t−1}), 0 in absent steps.
        emission: (t, k, n), as the pass backwards needs it.
    """

    states: Array
    log_evidence: Array
    emission: Array


def filtered(chain: Chain, numbers: Numbers = LOG) -> Filtered:
    """The pass forwards (Baum et al. 1970; scaled as Rabiner 1989, eq. 91 to 93)."""
    transition = numbers.of(chain.transition)

    def step(predicted: Array, log_emission: Array) -> tuple[Array, tuple[Array, ...]]:
        emission, shift = numbers.emission(log_emission)
        joint = numbers.times(predicted, emission)
        total = numbers.total(joint)
        states = numbers.over(joint, total)
        return numbers.across(transition, states), (states, total, shift, emission)

    first = jnp.broadcast_to(numbers.of(chain.initial)[:, None], chain.log_emission.shape[1:])
    _, (states, total, shift, emission) = lax.scan(step, first, chain.log_emission)
    evidence = jnp.squeeze(numbers.log(total) + shift, 1)
    return Filtered(states, jnp.where(chain.present, evidence, 0), emission)


def smoothed(chain: Chain, forward: Filtered, numbers: Numbers = LOG, weight: Array | None = None) -> Smoothed:
    """The pass backwards.

    With u = A (b_{t+1} ∘ β_{t+1}) and β_t = u / Σu, p(i, j at t, t+1) = α_t(i) A_ij b_{t+1}(j) β_{t+1}(j) / (Σu · s_t),
    where s_t = Σ α_t β_t: `ahead` is what of it follows the transition, and pair counts are one product afterwards.

    Args:
        chain: the chains.
        forward: what `filtered` finds in the same numbers.
        numbers: `LINEAR` or `LOG`.
        weight: (n,) of each chain; None for ones.
    """
    backwards = numbers.of(chain.transition.T)
    k, n = chain.log_emission.shape[1:]
    dtype = forward.states.dtype
    weight = jnp.ones(n, dtype) if weight is None else weight
    flat, nothing = numbers.of(jnp.full((k, n), 1 / k, dtype)), numbers.of(jnp.zeros((k, n), dtype))

    def step(carry: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        later, behind = carry  # β_t, and b_{t+1} β_{t+1} / Σu; nothing is behind a last step
        states, emission, here = now
        joint = numbers.times(states, later)
        total = numbers.total(joint)
        posterior = numbers.probabilities(numbers.over(joint, total)) * weight[None]
        found = jnp.where(here[None], posterior, 0), numbers.over(behind, total)
        message = numbers.times(emission, later)
        u = numbers.across(backwards, message)
        size = numbers.total(u)
        later = jnp.where(here[None], numbers.over(u, size), flat)
        behind = jnp.where(here[None], numbers.times(numbers.over(message, size), numbers.of(weight)[None]), nothing)
        return (later, behind), found

    every = forward.states, forward.emission, chain.present
    _, (states, ahead) = lax.scan(step, (flat, nothing), every, reverse=True)
    return Smoothed(states, numbers.pairs(forward.states, numbers.of(chain.transition), ahead))


def log_likelihood(forward: Filtered) -> Array:
    """log p(x) of each chain: (n,)."""
    return _sum_over_time(forward.log_evidence)


def _sum_over_time(values: Array) -> Array:
    """Σ_t of (t, n) in blocks of blocks: one sum over 10⁶ steps would lose the last three digits of float32."""
    while values.shape[0] > 1:
        t, n = values.shape
        values = jnp.concatenate([values, jnp.zeros((-t % _SUM_BLOCK, n), values.dtype)])
        values = jnp.sum(values.reshape(-1, _SUM_BLOCK, n), 1)
    return values[0]


# --- paths


def best_path(chain: Chain) -> tuple[Array, Array]:
    """The most probable path (Viterbi 1967): states (t, n), −1 in absent steps, and log p(x, path): (n,)."""
    transition, emission = LOG.of(chain.transition), chain.log_emission
    k, n = emission.shape[1:]
    same = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[:, None], (k, n))

    def forwards(best: Array, now: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        here, is_present = now
        each = transition[:, :, None] + best[:, None, :]
        joint = jnp.max(each, 0) + here
        top = _top(joint, 0)
        came_from = jnp.where(is_present[None], jnp.argmax(each, 0).astype(jnp.int32), same)
        return jnp.where(is_present[None], joint - top, best), (came_from, top[0])

    start = LOG.of(chain.initial)[:, None] + emission[0]
    top = _top(start, 0)
    present = chain.present
    best, (came_from, tops) = lax.scan(forwards, start - top, (emission[1:], present[1:]))
    last = jnp.argmax(best, 0).astype(jnp.int32)

    def back(state: Array, pointers: Array) -> tuple[Array, Array]:
        before = jnp.take_along_axis(pointers, state[None], 0)[0]
        return before, before

    _, before = lax.scan(back, last, came_from, reverse=True)
    # the last best is 0 but for a path that nothing explains
    log_joint = _sum_over_time(jnp.where(present, jnp.concatenate([top, tops]), 0)) + jnp.max(best, 0)
    log_joint = jnp.where(log_joint > jnp.finfo(log_joint.dtype).min / 8, log_joint, -jnp.inf + 0 * log_joint)
    possible = (log_joint > -jnp.inf)[None]
    return jnp.where(present & possible, jnp.concatenate([before, last[None]]), -1), log_joint


def drawn_path(chain: Chain, forward: Filtered, key: Key) -> Array:
    """A path from the posterior, drawn from its end to its start (Carter & Kohn 1994): states (t, n), −1 where absent.

    `forward` is of `LOG`.
    """
    transition, present = LOG.of(chain.transition), chain.present
    noise = jax.random.gumbel(key, forward.states.shape, forward.states.dtype)
    n = present.shape[1]
    followed = jnp.concatenate([present[1:], jnp.zeros((1, n), bool)])

    def back(later: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        states, noise, has_next = now
        logits = states + jnp.where(has_next[None], transition[:, later], 0)
        state = jnp.argmax(logits + noise, 0).astype(jnp.int32)
        return state, state

    _, path = lax.scan(back, jnp.zeros(n, jnp.int32), (forward.states, noise, followed), reverse=True)
    return jnp.where(present, path, -1)


def _along(chain: Chain, path: Array, weight: Array | None) -> Smoothed:
    """The path as a posterior that is sure."""
    k, dtype = chain.initial.shape[0], chain.log_emission.dtype
    states = (path[:, None] == jnp.arange(k, dtype=path.dtype)[None, :, None]).astype(dtype)
    weighted = states if weight is None else states * weight[None, None]
    return Smoothed(weighted, einsum("tin,tjn->ij", states[:-1], weighted[1:]))


# --- rules


def posterior_of(
    chain: Chain, rule: Rule, key: Key | None, *, numbers: Numbers = LOG, weight: Array | None = None
) -> tuple[Smoothed, Any]:
    """What a rule makes of the chains, and the objective of each, (n,) or a tree of such: see `Rule`.

    `Soft` is forward–backward, `Tempered` the same of all probabilities to the power of 1/T, `Hard` the most probable
    path (Viterbi training), `Sampled` a drawn one. `numbers` matter to `Soft` alone; the others add logarithms.

    Raises:
        ValueError: for another rule; a posterior of states alone says nothing of their pairs.
    """
    if isinstance(rule, (Soft, WithSize)):
        forward = filtered(chain, numbers)
        log_lik = log_likelihood(forward)
        if isinstance(rule, WithSize):
            log_lik = log_lik, _sum_over_time(jnp.abs(lax.stop_gradient(forward.log_evidence)))
        return smoothed(chain, forward, numbers, weight), log_lik
    if isinstance(rule, WithEvidence):
        found, objective = posterior_of(chain, rule.rule, key, weight=weight)
        return found, (objective, log_likelihood(filtered(chain)))
    if isinstance(rule, Tempered):
        temperature = jnp.asarray(rule.temperature, chain.log_emission.dtype)
        tempered = chain._replace(log_emission=chain.log_emission / temperature)
        found, log_lik = posterior_of(tempered, Soft(), key, numbers=_Log(temperature), weight=weight)
        return found, temperature * log_lik
    if isinstance(rule, Hard):
        path, log_joint = best_path(chain)
        return _along(chain, path, weight), log_joint
    if isinstance(rule, Sampled) and key is not None:
        forward = filtered(chain)
        return _along(chain, drawn_path(chain, forward, key), weight), log_likelihood(forward)
    raise ValueError(
        f"rule: expected Soft(), Tempered(…), Hard() or Sampled() with a key, got {rule!r}; of hidden chains pairs of "
        "states count as well, which other rules do not tell."
    )
