"""Starts of a state space model: principal components of steps and those before them, as if they were the states."""

from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Key
from ..latent.gaussian_chain import sum_over_time
from ..latent.series import Sequences
from ..numerics.linalg import symmetric_eigen
from ._state_space_params import Disturbances, FirstStep, LGSSMParams, LGSSMStats
from ._state_space_steps import StateSteps, raw_steps

_NOISE = 0.3  # of a state of size one, by which starts differ
_SHARE = 0.1  # of the size of a column, or of a state, that is noise at the least


@jax.jit
def start(model: Any, key: Key, data: Sequences, weight: Array | None) -> LGSSMParams:
    """One M step on states of size one; see `LinearGaussianStateSpace.init`."""
    steps = raw_steps(data)
    weight = jnp.ones(steps.present.shape[1], steps.values.dtype) if weight is None else weight
    weight = jnp.where(weight > 0, weight, 0)[None] * steps.present
    states = _components(model.n_states, key, steps, weight)
    stats = _known(states, steps, weight)
    params = model.m_step(None, stats)
    size = jnp.diag(_mean_square(steps.values, jnp.where(jnp.any(steps.observed, 1), weight, 0)))
    identity = jnp.eye(model.n_states, dtype=size.dtype)
    initial = params.initial._replace(covariance=params.initial.covariance + identity)
    return params._replace(
        initial=initial,
        transition_covariance=params.transition_covariance + _SHARE * identity,
        emission_covariance=params.emission_covariance + _SHARE * size,
    )


def _total(values: Array) -> Array:
    return jnp.sum(sum_over_time(values), -1)


def _moments(a: Array, b: Array, weight: Array) -> Array:
    return _total(a[:, :, None] * b[:, None] * weight[:, None, None])


def _mean_square(values: Array, weight: Array) -> Array:
    total = jnp.sum(weight)
    square = _total(jnp.square(values) * weight[:, None]) / jnp.where(total > 0, total, 1)
    return jnp.where(square > 0, square, 1)


def _components(n_states: int, key: Key, steps: StateSteps, weight: Array) -> Array:
    """The first principal components, about zero, of steps and enough of those before them: (t, s, n)."""
    t, d, n = steps.values.shape
    size = jnp.sqrt(_mean_square(steps.values, weight))
    unit = steps.values / size[None, :, None]
    lags = -(-n_states // d)
    shifted = [jnp.concatenate([jnp.zeros((min(i, t), d, n), unit.dtype), unit[: max(t - i, 0)]]) for i in range(lags)]
    rows = jnp.concatenate(shifted, 1)
    count = jnp.sum(weight)
    values, vectors = symmetric_eigen(_moments(rows, rows, weight) / jnp.where(count > 0, count, 1))
    values, vectors = values[::-1][:n_states], vectors[:, ::-1][:, :n_states]
    states = jnp.sum(vectors.T[None, :, :, None] * rows[:, None], 2)
    states = states * jnp.where(values > 0, jax.lax.rsqrt(jnp.where(values > 0, values, 1)), 0)[None, :, None]
    return states + _NOISE * jax.random.normal(key, states.shape, states.dtype)


def _known(states: Array, steps: StateSteps, weight: Array) -> LGSSMStats:
    """Statistics about zero of states that are known."""

    def regression(outcome: Array, given: Array, weight: Array) -> Disturbances:
        moments = (_moments(a, b, weight) for a, b in ((outcome, outcome), (outcome, given), (given, given)))
        return Disturbances(jnp.sum(weight), *moments)

    seen = jnp.where(jnp.any(steps.observed, 1), weight, 0)
    before, beside = states[:-1], states
    if steps.inputs is not None:
        before = jnp.concatenate([before, steps.inputs[1:]], 1)
        beside = jnp.concatenate([beside, steps.inputs], 1)
    first = states[:1]
    transition = regression(states[1:], before, weight[1:])
    emission = regression(steps.values, beside, seen)
    return LGSSMStats(
        jnp.sum(weight[0]),
        _total(first * weight[:1, None]),
        _moments(first, first, weight[:1]),
        transition,
        emission,
        _nothing(transition),
        _nothing(emission),
    )


def _nothing(like: Disturbances) -> FirstStep:
    """Of states that are known, the first is no param."""
    return FirstStep(*map(jnp.zeros_like, (like.count, like.square[0], like.design[0])))
