"""What is known of the states of series, in the chain."""

import jax.numpy as jnp

from .._typing import Array, Data
from ..latent.chain import Chain
from ..latent.finite import Labelled, series_of
from ..latent.recursion import in_blocks
from ..latent.series import present_steps
from ..numerics.linalg import dot


def restricted(chain: Chain, data: Data) -> Chain:
    """The chain without the states that labels rule out in a step; what stands in absent steps says nothing."""
    if not isinstance(data, Labelled):
        return chain
    allowed = jnp.transpose(_allowed(data, chain.initial.shape[0]), (1, 2, 0))
    fill = chain.n_blocks * chain.log_emission.shape[0] - allowed.shape[0]
    allowed = in_blocks(jnp.pad(allowed, ((0, fill), (0, 0), (0, 0))), chain.n_blocks) | ~chain.present[:, None]
    return chain._replace(log_emission=jnp.where(allowed, chain.log_emission, -jnp.inf))


def _allowed(data: Labelled, k: int) -> Array:
    """(n, t, k)."""
    allowed = jnp.asarray(data.allowed)
    if allowed.ndim == 3:
        return allowed
    return (allowed[:, :, None] == jnp.arange(k, dtype=allowed.dtype)[None, None]) | (allowed == -1)[:, :, None]


def led(states: Array, data: Data) -> Array:
    """States of a start (n·t, k), named so that they fit the labels best, and where labels rule them out as these say.

    A start whose states have other names may explain no labelled step at all.
    """
    if not isinstance(data, Labelled):
        return states
    from optax.assignment import hungarian_algorithm

    k = states.shape[1]
    allowed = _allowed(data, k).reshape(-1, k) & present_steps(series_of(data)).reshape(-1, 1)
    allowed = allowed.astype(states.dtype)
    told = jnp.where(jnp.sum(allowed, 1, keepdims=True) < k, allowed, 0)
    overlap = dot(told.T, states)
    ours, theirs = hungarian_algorithm(-overlap / jnp.maximum(jnp.sum(overlap), 1))
    states = states[:, theirs[jnp.argsort(ours)]]
    inside = states * allowed
    size, choice = (jnp.sum(leaf, 1, keepdims=True) for leaf in (inside, allowed))
    even = allowed / jnp.maximum(choice, 1)
    return jnp.where(size > 0, inside / jnp.where(size > 0, size, 1), even)


def check_mask(data: Data, n_states: int) -> None:
    """Raises a ValueError unless labels are of the steps of series, a mask over the states of the model."""
    if not isinstance(data, Labelled):
        return
    shape, is_mask = jnp.shape(data.allowed), jnp.issubdtype(jnp.result_type(data.allowed), jnp.bool_)
    if len(shape) != 2 + is_mask or (is_mask and shape[2] != n_states):
        raise ValueError(
            f"known: expected labels (n, t) of all steps, or a mask (n, t, {n_states}) over the states, got "
            f"{jnp.result_type(data.allowed)}{shape}."
        )
