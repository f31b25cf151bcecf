"""Series as the E step of a state space model reads them, its expected statistics, and the constants of the data."""

from dataclasses import replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from .._typing import Array, Data
from ..latent.gaussian_chain import (
    GaussianChain,
    applied,
    independent_entries,
    log_likelihoods,
    sum_over_time,
)
from ..latent.gaussian_moments import Moments, moments
from ..latent.gaussian_start import passed
from ..latent.series import Sequences, flat_steps, present_steps
from ..numerics import tree as _tree
from ..numerics.linalg import dot
from ..numerics.scales import robust_variance
from ._state_space_params import Disturbances, FirstStep, LGSSMParams, LGSSMStats, StateSpaceFields

_LANES = 512  # series side by side: the arrays of one step stay in the cache
_MOST_ELEMENTS = 2**24  # of an array over all steps


class StateSteps(NamedTuple):
    """Series, step by step, lanes last.

    Attributes:
        values: (t, d, n), 0 where nothing is observed.
        observed: (t, d, n).
        present: (t, n).
        inputs: (t, q, n), 0 in absent steps; None without.
    """

    values: Array
    observed: Array
    present: Array
    inputs: Array | None


def outcomes(data: Sequences) -> Any:
    """The y of the steps, (n, t, d): the values, or the second of inputs and values."""
    return data.values[1] if isinstance(data.values, (tuple, list)) else data.values


def inputs_of(data: Sequences) -> Any:
    """The u of the steps, (n, t, q), or None."""
    return data.values[0] if isinstance(data.values, (tuple, list)) else None


def observed_entries(data: Sequences) -> Array:
    """Which entries there are: (n, t, d)."""
    return ~jnp.isnan(outcomes(data)) & present_steps(data)[:, :, None]


def raw_steps(data: Sequences) -> StateSteps:
    """The steps, lanes last."""
    observed, present = observed_entries(data), present_steps(data)
    values = jnp.where(observed, outcomes(data), 0)
    last = lambda leaf: jnp.transpose(leaf, (1, 2, 0))  # noqa: E731
    inputs = inputs_of(data)
    if inputs is not None:
        inputs = last(jnp.where(present[:, :, None], inputs, 0))
    return StateSteps(last(values), last(observed), present.T, inputs)


def chain_of(params: LGSSMParams, steps: StateSteps) -> GaussianChain:
    """The chain of these series, with what inputs add taken off the values."""
    values, drift = steps.values, None
    if steps.inputs is not None:
        values = values - applied(params.emission_input[:, :, None], steps.inputs)
        later = jnp.concatenate([steps.inputs[1:], jnp.zeros_like(steps.inputs[:1])])
        drift = applied(params.transition_input[:, :, None], later)
    return GaussianChain(
        params.initial.mean,
        params.initial.covariance,
        params.transition,
        params.transition_covariance,
        params.emission,
        params.emission_covariance,
        values,
        steps.observed,
        steps.present,
        drift,
    )


def expected_statistics(
    chain: GaussianChain, observed: Array, inputs: Array | None, weight: Array, *, diffuse: bool
) -> tuple[LGSSMStats, Array]:
    """Statistics and log-likelihood, sums over the series.

    Args:
        chain: the series.
        observed: (t, d, m), one pattern for all series or one each.
        inputs: (t, q, n) or None.
        weight: (n,) of each series.
        diffuse: whether the first state is estimated beside the filter.
    """
    forward = passed(chain, independent_entries(chain, observed), diffuse)
    found = moments(chain, forward, inputs)
    total = lambda leaf: jnp.sum(jnp.where(weight[None, None] > 0, leaf * weight[None, None], 0), -1)  # noqa: E731
    moves, steps = jax.tree.map(total, (found.moves, found.steps))
    count = lambda here: jnp.sum(jnp.where(weight > 0, sum_over_time(here.astype(weight.dtype)) * weight, 0))  # noqa: E731
    moved, noise = count(chain.present[1:]), chain.transition_covariance
    square = moved * noise + dot(dot(noise, moves.square), noise)
    transition = Disturbances(moved, square, dot(noise, moves.cross), moves.design)
    emission = Disturbances(count(jnp.any(chain.observed, 1)), steps.square, steps.cross, steps.design)
    started, shift = chain.present[0] & (weight > 0), found.first[0] - chain.initial_mean[:, None]
    each = jnp.where(started, weight, 0)[None]
    second = shift[:, None] * shift[None] + found.first[1]
    first = jnp.where(started[None], shift * each, 0), jnp.where(started[None, None], second * each[None], 0)
    shifted, squared = (jnp.sum(leaf, -1) for leaf in first)
    stats = LGSSMStats(
        jnp.sum(each), shifted, squared, transition, emission, *_first_steps(chain, found, inputs, weight)
    )
    log_lik = log_likelihoods(forward.known, chain.observed)
    return stats, jnp.sum(jnp.where(weight > 0, weight * log_lik, 0))


def _first_steps(
    chain: GaussianChain, found: Moments, inputs: Array | None, weight: Array
) -> tuple[FirstStep, FirstStep]:
    """What moves, and what is seen, in the first step."""
    t, noise = chain.present.shape[0], chain.transition_covariance[:, :, None]
    moves = chain.present[1] if t > 1 else jnp.zeros_like(chain.present[0])

    def summed(here: Array, residual: Array, inputs: Array | None) -> FirstStep:
        each = jnp.where(here & (weight > 0), weight, 0)
        design = found.first[0] if inputs is None else jnp.concatenate([found.first[0], inputs])
        total = lambda leaf: jnp.sum(jnp.where(each[None] > 0, leaf * each[None], 0), -1)  # noqa: E731
        return FirstStep(jnp.sum(each), total(residual), total(design))

    after, now = (None, None) if inputs is None else (inputs[min(1, t - 1)], inputs[0])
    seen = jnp.any(chain.observed[0], 0)
    return summed(moves, applied(noise, found.second), after), summed(seen, found.seen, now)


class StateSpaceConstants(StateSpaceFields):
    """What `bind` takes from the data, and how they are read."""

    def bind(self, data: Data, sample_weight: Array | None = None) -> Self:
        """The model with the scale of each column, which the floor is a share of."""
        observed = observed_entries(data)
        weight = observed.astype(_tree.float_dtype(data.values))
        if sample_weight is not None:
            weight = weight * sample_weight[:, None, None]
        rows = flat_steps(jnp.where(weight > 0, outcomes(data), 0))
        return replace(self, column_variance=robust_variance(rows, flat_steps(weight)))

    def prepare(self, data: Data, columns_first: bool = False) -> StateSteps:
        """The steps as the E step reads them."""
        return raw_steps(data)

    def rows_at_once(self, data: Data) -> int:
        """How many series an E step works on at a time."""
        _, t, d = outcomes(data).shape
        return max(1, min(_LANES, _MOST_ELEMENTS // (t * max(self.n_states, d) ** 2)))

    def units(self, data: Data) -> Array:
        """Steps of each series in which something is observed: (n,)."""
        observed = jnp.any(observed_entries(data), 2)
        return jnp.sum(observed, 1).astype(_tree.float_dtype(data.values))

    def informative(self, data: Data) -> Array | None:
        """Which series have a step in which something is observed: (n,)."""
        if not isinstance(data, Sequences) or isinstance(data.values, dict) or jnp.ndim(outcomes(data)) != 3:
            return None  # what are no series is refused soon
        return jnp.any(observed_entries(data), (1, 2))
