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
from ..latent.series import Sequences, flat_steps, observed_steps, present_steps
from ._markov_params import HMMParams


@partial(jax.jit, static_argnames=("n", "t"))
def draw_states(model: Any, params: HMMParams, key: Key, *, n: int, t: int) -> Array:
    """Paths of n chains: (n, t)."""
    first = LOG.of(model._first.masked(params.initial))
    move = LOG.of(model._moves.masked(params.transition))
    noise = jax.random.gumbel(key, (t, n, model.n_states), first.dtype)
    start = jnp.argmax(first[None] + noise[0], 1)

    def step(state: Array, noise: Array) -> tuple[Array, Array]:
        after = jnp.argmax(move[state] + noise, 1)
        return after, after

    _, later = lax.scan(step, start, noise[1:])
    return jnp.concatenate([start[None], later]).T


def draw(model: Any, params: HMMParams, key: Key, *, n: int, t: int, given: Data | None) -> tuple[Sequences, Array]:
    """n series of t steps and the paths behind them; see `HiddenMarkovModel.sample`."""
    key_z, key_x = jax.random.split(key)
    z = draw_states(model, params, key_z, n=n, t=t)
    sample = ask.needed(model.family, "sample")
    if ask.told(model.family, "conditional", False):
        rows = sample(params.emissions, key_x, z.reshape(-1), flat_steps(given))
    else:
        rows = sample(params.emissions, key_x, z.reshape(-1))
    return Sequences(_in_series(rows, n), jnp.full(n, t, jnp.int32)), z


def draw_like(model: Any, params: HMMParams, key: Key, data: Sequences) -> Sequences:
    """Series in the place of the data's, with their missing and absent steps; see `HiddenMarkovModel.sample_like`."""
    key_z, key_x = jax.random.split(key)
    n, t = present_steps(data).shape
    z = draw_states(model, params, key_z, n=n, t=t)
    drawn = parts.sample_like(model.family, params.emissions, key_x, z.reshape(-1), flat_steps(data.values))
    observed = observed_steps(data)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(observed.reshape(n, t, *[1] * (old.ndim - 2)), new, old)

    return data._replace(values=jax.tree.map(keep, _in_series(drawn, n), data.values))


def _in_series(rows: PyTree, n: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(n, -1, *leaf.shape[1:]), rows)
