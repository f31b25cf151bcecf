"""Hidden Markov chains, many side by side: smoothing, pair counts, the most probable path, draws of paths.

The recursion is in `recursion`, its two number systems in `numbers`; here are paths, and what a rule makes of a chain.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Key
from ..numerics.linalg import einsum
from .finite import Hard, Rule, Sampled, Soft, Tempered, WithEvidence, WithSize
from .numbers import LINEAR, LOG, Log, Numbers, top_of
from .recursion import Chain, Filtered, Smoothed, filtered, in_blocks, log_likelihood, smoothed, sum_over_time

__all__ = [
    "LINEAR",
    "LOG",
    "Chain",
    "Filtered",
    "Numbers",
    "Smoothed",
    "best_path",
    "drawn_path",
    "filtered",
    "log_likelihood",
    "posterior_of",
    "smoothed",
]


# --- paths


def best_path(chain: Chain) -> tuple[Array, Array]:
    """The most probable path (Viterbi 1967): states (t, n), −1 in absent steps, and log p(x, path): (n,)."""
    transition, emission = LOG.of(chain.transition), chain.log_emission
    moves = (transition[1:],) if chain.varies else ()
    k, n = emission.shape[1:]
    same = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[:, None], (k, n))

    def forwards(best: Array, now: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        here, is_present, *own = now
        each = (own[0] if own else transition[:, :, None]) + best[:, None, :]
        joint = jnp.max(each, 0) + here
        top = top_of(joint)
        came_from = jnp.where(is_present[None], jnp.argmax(each, 0).astype(jnp.int32), same)
        return jnp.where(is_present[None], joint - top, best), (came_from, top[0])

    start = LOG.of(chain.initial)[:, None] + emission[0]
    top = top_of(start)
    present = chain.present
    best, (came_from, tops) = lax.scan(forwards, start - top, (emission[1:], present[1:], *moves))
    last = jnp.argmax(best, 0).astype(jnp.int32)

    def back(state: Array, pointers: Array) -> tuple[Array, Array]:
        before = jnp.take_along_axis(pointers, state[None], 0)[0]
        return before, before

    _, before = lax.scan(back, last, came_from, reverse=True)
    # the last best is 0 but for a path that nothing explains
    log_joint = sum_over_time(jnp.where(present, jnp.concatenate([top, tops]), 0)) + jnp.max(best, 0)
    log_joint = jnp.where(log_joint > jnp.finfo(log_joint.dtype).min / 8, log_joint, -jnp.inf + 0 * log_joint)
    possible = (log_joint > -jnp.inf)[None]
    return jnp.where(present & possible, jnp.concatenate([before, last[None]]), -1), log_joint


def drawn_path(chain: Chain, forward: Filtered, key: Key) -> Array:
    """A path from the posterior, drawn from its end to its start (Carter & Kohn 1994): states (t, n), −1 where absent.

    `forward` is of `LOG`.
    """
    transition, present = LOG.of(chain.onwards), chain.present
    noise = jax.random.gumbel(key, forward.states.shape, forward.states.dtype)
    n, moves = present.shape[1], ((transition,) if chain.varies else ())
    followed = jnp.concatenate([present[1:], jnp.zeros((1, n), bool)])

    def back(later: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        states, noise, has_next, *own = now
        towards = jnp.take_along_axis(own[0], later[None, None], 1)[:, 0] if own else transition[:, later]
        logits = states + jnp.where(has_next[None], towards, 0)
        state = jnp.argmax(logits + noise, 0).astype(jnp.int32)
        return state, state

    _, path = lax.scan(back, jnp.zeros(n, jnp.int32), (forward.states, noise, followed, *moves), reverse=True)
    return jnp.where(present, path, -1)


def _along(chain: Chain, path: Array, weight: Array | None) -> Smoothed:
    """The path, in order, as a posterior that is sure."""
    k, dtype = chain.initial.shape[0], chain.log_emission.dtype
    states = (path[:, None] == jnp.arange(k, dtype=path.dtype)[None, :, None]).astype(dtype)
    weighted = states if weight is None else states * weight[None, None]
    if chain.varies:
        pairs = states[:-1, :, None] * weighted[1:, None]
        return Smoothed(weighted, jnp.concatenate([jnp.zeros_like(pairs[:1]), pairs]))
    return Smoothed(in_blocks(weighted, chain.n_blocks), einsum("tin,tjn->ij", states[:-1], weighted[1:]))


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
            log_lik = log_lik, sum_over_time(jnp.abs(lax.stop_gradient(forward.log_evidence)))
        return smoothed(chain, forward, numbers, weight), log_lik
    if isinstance(rule, WithEvidence):
        found, objective = posterior_of(chain, rule.rule, key, weight=weight)
        return found, (objective, log_likelihood(filtered(chain)))
    if isinstance(rule, Tempered):
        temperature = jnp.asarray(rule.temperature, chain.log_emission.dtype)
        tempered = chain._replace(log_emission=chain.log_emission / temperature)
        found, log_lik = posterior_of(tempered, Soft(), key, numbers=Log(temperature), weight=weight)
        return found, temperature * log_lik
    if isinstance(rule, Hard):
        path, log_joint = best_path(chain.in_order())
        return _along(chain, path, weight), log_joint
    if isinstance(rule, Sampled) and key is not None:
        whole = chain.in_order()
        forward = filtered(whole)
        return _along(chain, drawn_path(whole, forward, key), weight), log_likelihood(forward)
    raise ValueError(
        f"rule: expected Soft(), Tempered(…), Hard() or Sampled() with a key, got {rule!r}; of hidden chains pairs of "
        "states count as well, which other rules do not tell."
    )
