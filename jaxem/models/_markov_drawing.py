"""Draws from a hidden Markov model: alone, or in the place of series that are given."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Data, Key, PyTree
from ..contracts import capabilities as ask
from ..contracts import components as parts
from ..latent.chain import LOG
from ..latent.finite import Gated, ungated
from ..latent.series import Sequences, flat_steps, observed_steps, present_steps
from ._markov_params import HMMParams
from ._markov_steps import covariates_by_step


@partial(jax.jit, static_argnames=("n", "t"))
def draw_states(model: Any, params: HMMParams, key: Key, covariates: Array | None, *, n: int, t: int) -> Array:
    """Paths of n chains: (n, t); covariates (t, n, q) of moves, or None."""
    first = LOG.of(model._first.masked(params.initial))
    move = LOG.of(model._moves.of_steps(params.transition, covariates))
    noise = jax.random.gumbel(key, (t, n, model.n_states), first.dtype)
    start = jnp.argmax(first[None] + noise[0], 1)

    def step(state: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        noise, *own = now
        after = jnp.argmax((of_state(own[0], state) if own else move[state]) + noise, 1)
        return after, after

    _, later = lax.scan(step, start, (noise[1:], *(() if covariates is None else (move[1:],))))
    return jnp.concatenate([start[None], later]).T


def of_state(move: Array, state: Array) -> Array:
    """Rows (n, k) of matrices (k, k, n), those of states (n,)."""
    return jnp.take_along_axis(move, state[None, None], 0)[0].T


def draw(
    model: Any, params: HMMParams, key: Key, *, n: int, t: int, given: Data | None, covariates: Array | None
) -> tuple[Sequences, Array]:
    """n series of t steps and the paths behind them; see `HiddenMarkovModel.sample`."""
    key_z, key_x = jax.random.split(key)
    by_step = None if covariates is None else jnp.swapaxes(covariates, 0, 1).at[0].set(0)
    z = draw_states(model, params, key_z, by_step, n=n, t=t)
    sample = ask.needed(model.family, "sample")
    if ask.told(model.family, "conditional", False):
        rows = sample(params.emissions, key_x, z.reshape(-1), flat_steps(given))
    else:
        rows = sample(params.emissions, key_x, z.reshape(-1))
    return Sequences(_in_series(rows, n), jnp.full(n, t, jnp.int32)), z


def draw_like(model: Any, params: HMMParams, key: Key, data: Data) -> Data:
    """Series in the place of the data's, with their missing and absent steps; see `HiddenMarkovModel.sample_like`."""
    key_z, key_x = jax.random.split(key)
    covariates, whole, data = covariates_by_step(data), data, ungated(data)
    n, t = present_steps(data).shape
    z = draw_states(model, params, key_z, covariates, n=n, t=t)
    drawn = parts.sample_like(model.family, params.emissions, key_x, z.reshape(-1), flat_steps(data.values))
    observed = observed_steps(data)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(observed.reshape(n, t, *[1] * (old.ndim - 2)), new, old)

    series = data._replace(values=jax.tree.map(keep, _in_series(drawn, n), data.values))
    return whole._replace(data=series) if isinstance(whole, Gated) else series


def _in_series(rows: PyTree, n: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(n, -1, *leaf.shape[1:]), rows)
