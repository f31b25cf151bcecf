"""Starts of a hidden Markov model: states of all steps as if they were independent, then how long they last."""

from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..fold.present import present_rows
from ..latent.finite import series_of
from ..latent.series import Sequences, flat_steps, present_steps
from ..latent.starts import Initializer
from ..numerics.linalg import einsum
from ._markov_labels import led
from ._markov_params import HMMParams, HMMStats
from ._markov_steps import covariates_by_step, step_weight
from ._starting import assigned_states


@jax.jit
def start(model: Any, key: Key, data: Data, weight: Array | None, method: Initializer) -> HMMParams:
    """One M step on states of the method, with one step more from each state to all that may follow it."""
    return start_bound(model.bind(data, weight), key, data, weight, method)


def start_bound(model: Any, key: Key, data: Data, weight: Array | None, method: Initializer) -> HMMParams:
    """`start` of a model that is bound to these data."""
    known, covariates, data = data, covariates_by_step(data), series_of(data)
    k, each = model.n_states, step_weight(data, weight)
    rows = present_rows(flat_steps(data.values), each)
    states = assigned_states(model.family, method, key, rows, n_components=k, weight=each)
    states = jax.nn.one_hot(states, k, dtype=each.dtype) if states.ndim == 1 else states.astype(each.dtype)
    states = led(states, known)
    responsibilities = jnp.where((each > 0)[:, None], states, 0) * each[:, None]
    initial, transition = _moves(states, each > 0, data, weight, covariates is not None)
    # what never happens among these states could never happen again; coefficients begin under a prior of their own
    transition = transition + 1 / k if covariates is None else model._moves.counted(transition, covariates)
    stats = HMMStats(initial + 1 / k, transition, model.family.statistics(None, rows, responsibilities))
    params = model.m_step(None, stats)
    if not ask.offers(model.family, "recentred"):
        return params
    # moments about the pivot lose digits where states are narrow: once more about their own means
    model = model.recentred(params)
    again = model.family.statistics(params.emissions, rows, responsibilities)
    return params._replace(emissions=model.m_step(None, stats._replace(emissions=again)).emissions)


def _moves(states: Array, observed: Array, data: Sequences, weight: Array | None, by_step: bool) -> tuple[Array, Array]:
    """First states (k,) and pairs of neighbours (k, k), where both are observed; `by_step` (t, k, k, n)."""
    n, t = present_steps(data).shape
    seen = observed.reshape(n, t, 1)
    states = jnp.where(seen, states.reshape(n, t, -1), 0)
    later = states if weight is None else states * weight[:, None, None]
    if by_step:
        pairs = jnp.transpose(states[:, :-1, :, None] * later[:, 1:, None], (1, 2, 3, 0))
        return jnp.sum(later[:, 0], 0), jnp.concatenate([jnp.zeros_like(pairs[:1]), pairs])
    return jnp.sum(later[:, 0], 0), einsum("nti,ntj->ij", states[:, :-1], later[:, 1:])
