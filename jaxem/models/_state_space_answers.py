"""What a fitted state space model says of series: states, residuals, forecasts, draws."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Key
from ..latent.gaussian_chain import (
    GaussianChain,
    applied,
    drawn_states,
    factor,
    independent_entries,
    log_likelihoods,
)
from ..latent.gaussian_start import Passed, passed, smoothed_states
from ..latent.series import Sequences, present_steps
from ..numerics.linalg import dot
from ._state_space_params import GaussianState, LGSSMParams
from ._state_space_steps import StateSteps, chain_of, inputs_of, observed_entries, outcomes, raw_steps


class Forecast(NamedTuple):
    """Distribution of the steps after the end of each series.

    Attributes:
        mean: (n, horizon, d).
        covariance: (n, horizon, d, d), noise of the steps included.
        lower: (n, horizon, d), the lower end of the interval of each number.
        upper: (n, horizon, d).
        states: of the hidden states, mean (n, horizon, s) and covariance (n, horizon, s, s).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> one = jnp.ones((1, 1))
        >>> params = jaxem.LGSSMParams(jaxem.GaussianState(jnp.zeros(1), one), one, one, one, one)
        >>> data = jaxem.sequences([jnp.array([[0.0], [3.0]])])
        >>> ahead = jaxem.LinearGaussianStateSpace(1).forecast(params, data, horizon=2)
        >>> ahead.mean[0, :, 0].round(2), ahead.covariance[0, :, 0, 0].round(2)
        (Array([1.8, 1.8], dtype=...), Array([2.6, 3.6], dtype=...))
    """

    mean: Array
    covariance: Array
    lower: Array
    upper: Array
    states: GaussianState


def _filter(params: LGSSMParams, data: Sequences, diffuse: bool) -> tuple[GaussianChain, Passed]:
    chain = chain_of(params, raw_steps(data))
    return chain, passed(chain, independent_entries(chain, chain.observed), diffuse)


def _where_present(data: Sequences, mean: Array, covariance: Array) -> GaussianState:
    """Series first; NaN in absent steps."""
    here = present_steps(data)
    mean, covariance = jnp.transpose(mean, (2, 0, 1)), jnp.transpose(covariance, (3, 0, 1, 2))
    return GaussianState(
        jnp.where(here[:, :, None], mean, jnp.nan), jnp.where(here[:, :, None, None], covariance, jnp.nan)
    )


@partial(jax.jit, static_argnums=2)
def log_prob(params: LGSSMParams, data: Sequences, diffuse: bool) -> Array:
    """See `LinearGaussianStateSpace.log_prob`."""
    chain, forward = _filter(params, data, diffuse)
    return log_likelihoods(forward.known, chain.observed)


@partial(jax.jit, static_argnums=2)
def filtered(params: LGSSMParams, data: Sequences, diffuse: bool) -> GaussianState:
    """See `LinearGaussianStateSpace.filtered`."""
    _, forward = _filter(params, data, diffuse)
    return _where_present(data, forward.known.mean, forward.known.covariance)


@partial(jax.jit, static_argnums=2)
def smoothed(params: LGSSMParams, data: Sequences, diffuse: bool) -> GaussianState:
    """See `LinearGaussianStateSpace.smoothed`."""
    found = smoothed_states(*_filter(params, data, diffuse))
    return _where_present(data, found.mean, found.covariance)


@partial(jax.jit, static_argnums=2)
def residuals(params: LGSSMParams, data: Sequences, diffuse: bool) -> Array:
    """See `LinearGaussianStateSpace.residuals`."""
    chain, forward = _filter(params, data, diffuse)
    unit = forward.known.residuals * lax.rsqrt(forward.known.variances)
    return jnp.transpose(jnp.where(chain.observed, unit, jnp.nan), (2, 0, 1))


@partial(jax.jit, static_argnums=(2, 5))
def forecast(
    params: LGSSMParams, data: Sequences, horizon: int, level: Any, inputs: Array | None, diffuse: bool
) -> Forecast:
    """See `LinearGaussianStateSpace.forecast`."""
    _, forward = _filter(params, data, diffuse)
    mean, covariance = forward.known.ahead[0].T, jnp.transpose(forward.known.ahead[1], (2, 0, 1))
    n, s = mean.shape
    move, see = params.transition, params.emission
    added, seen = jnp.zeros((horizon, n, s), mean.dtype), jnp.zeros((horizon, n, len(see)), mean.dtype)
    if inputs is not None:
        later = jnp.swapaxes(jnp.asarray(inputs, mean.dtype), 0, 1)
        added, seen = dot(later, params.transition_input.T), dot(later, params.emission_input.T)

    def step(ahead: tuple[Array, Array], added: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        mean, covariance = ahead[0] + added, ahead[1]
        spread = dot(dot(move[None], covariance), move.T[None]) + params.transition_covariance[None]
        return (dot(mean, move.T), spread), (mean, covariance)

    _, (means, covariances) = lax.scan(step, (mean, covariance), added)
    out = dot(means, see.T) + seen
    spread = dot(dot(see[None, None], covariances), see.T[None, None]) + params.emission_covariance[None, None]
    width = jax.scipy.special.ndtri((1 + jnp.asarray(level, mean.dtype)) / 2)
    half = width * jnp.sqrt(jnp.diagonal(spread, axis1=-2, axis2=-1))
    by_series = lambda leaf: jnp.swapaxes(leaf, 0, 1)  # noqa: E731
    states = GaussianState(by_series(means), by_series(covariances))
    ends = by_series(out - half), by_series(out + half)
    return Forecast(by_series(out), by_series(spread), *ends, states=states)


@jax.jit
def _draw(params: LGSSMParams, key: Key, steps: StateSteps) -> tuple[Array, Array]:
    """Values without what inputs add to them, and states: (n, t, d) and (n, t, s)."""
    key_x, key_y = jax.random.split(key)
    chain = chain_of(params, steps)
    states = drawn_states(chain, key_x)
    noise = jax.random.normal(key_y, chain.values.shape, chain.values.dtype)
    values = applied(params.emission[:, :, None], states)
    values = values + applied(factor(params.emission_covariance)[:, :, None], noise)
    if steps.inputs is not None:
        values = values + applied(params.emission_input[:, :, None], steps.inputs)
    return jnp.transpose(values, (2, 0, 1)), jnp.transpose(states, (2, 0, 1))


def draw(params: LGSSMParams, key: Key, n: int, t: int, inputs: Array | None) -> tuple[Sequences, Array]:
    """See `LinearGaussianStateSpace.sample`."""
    params = jax.tree.map(jnp.asarray, params)
    dtype, d = params.emission.dtype, params.emission.shape[0]
    zeros = jnp.zeros((t, d, n), dtype)
    later = None if inputs is None else jnp.transpose(jnp.asarray(inputs, dtype), (1, 2, 0))
    values, states = _draw(params, key, StateSteps(zeros, zeros == 0, jnp.ones((t, n), bool), later))
    length = jnp.full(n, t, jnp.int32)
    return Sequences(values if inputs is None else (jnp.asarray(inputs, dtype), values), length), states


def draw_like(params: LGSSMParams, key: Key, data: Sequences) -> Sequences:
    """See `LinearGaussianStateSpace.sample_like`."""
    values, _ = _draw(params, key, raw_steps(data))
    kept = jnp.where(observed_entries(data), values, outcomes(data))
    inputs = inputs_of(data)
    return data._replace(values=kept if inputs is None else (inputs, kept))
