"""Series as the E step of a state space model reads them, its expected statistics, and the constants of the data."""

from dataclasses import replace
from typing import Any, NamedTuple, Self

import jax.numpy as jnp

from .._typing import Array, Data
from ..latent.gaussian_chain import (
    Entries,
    GaussianChain,
    SmoothedStates,
    applied,
    filtered_states,
    independent_entries,
    log_likelihoods,
    product,
    smoothed_states,
    sum_over_time,
)
from ..latent.series import Sequences, flat_steps, present_steps
from ..numerics import tree as _tree
from ..numerics.scales import robust_variance
from ._state_space_params import Disturbances, LGSSMParams, LGSSMStats, StateSpaceFields

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
    chain: GaussianChain, observed: Array, inputs: Array | None, weight: Array
) -> tuple[LGSSMStats, Array]:
    """Statistics and log-likelihood, sums over the series.

    Args:
        chain: the series.
        observed: (t, d, m), one pattern for all series or one each.
        inputs: (t, q, n) or None.
        weight: (n,) of each series.
    """
    entries = independent_entries(chain, observed)
    forward = filtered_states(chain, entries)
    smooth = smoothed_states(chain, entries, forward)
    sums = _Sums(weight[None] * chain.present, observed.shape[-1])
    noise, move = chain.transition_covariance[:, :, None], chain.transition[:, :, None]
    # x_{t+1} − A x_t has mean Q r and covariance Q − Q N Q, and covariance −Q N A P_t with x_t
    score, information = smooth.score[1:], smooth.information[1:]
    before = applied(noise, score), smooth.mean[:-1]
    known = product(noise, information)
    moving = sums.later()
    square = moving.pairs(before[0], before[0]) + moving.count * chain.transition_covariance
    square = square - moving.total(product(known, noise))
    cross = moving.pairs(*before) - moving.total(product(product(known, move), forward.covariance[:-1]))
    design = moving.pairs(before[1], before[1]) + moving.total(smooth.covariance[:-1])
    transition = Disturbances(moving.count, square, cross, design)
    emission = _emission_statistics(chain, entries, smooth, sums)
    if inputs is not None:
        transition = _with_inputs(transition, moving, before, inputs[1:])
        emission = _with_inputs(emission[0], emission[1], emission[2], inputs)
    else:
        emission = emission[0]
    first = smooth.mean[0] - chain.initial_mean[:, None]
    own = sums.first()
    stats = LGSSMStats(
        own.count,
        jnp.sum(first * own.weight, -1),
        own.pairs(first[None], first[None]) + own.total(smooth.covariance[:1]),
        transition,
        emission,
    )
    log_lik = log_likelihoods(forward, chain.observed)
    return stats, jnp.sum(jnp.where(weight > 0, weight * log_lik, 0))


class _Sums(NamedTuple):
    """Weighted sums over steps and series, of arrays (t, …, n) or (t, …, m)."""

    weight: Array  # (t, n)
    m: int

    @property
    def count(self) -> Array:
        return jnp.sum(sum_over_time(self.weight))

    def later(self) -> "_Sums":
        return _Sums(self.weight[1:], self.m)

    def first(self) -> "_Sums":
        return _Sums(self.weight[:1], self.m)

    def where(self, steps: Array) -> "_Sums":
        return _Sums(jnp.where(steps, self.weight, 0), self.m)

    def pairs(self, a: Array, b: Array) -> Array:
        """Σ a bᵀ of (t, i, n) and (t, j, n)."""
        return self._sum(a[:, :, None] * b[:, None], self.weight)

    def total(self, matrices: Array) -> Array:
        """Σ of (t, i, j, m)."""
        weight = self.weight
        if self.m != weight.shape[1]:
            weight = jnp.sum(weight, 1, keepdims=True)
        return self._sum(matrices, weight)

    def _sum(self, values: Array, weight: Array) -> Array:
        counted = jnp.where(weight > 0, weight, 0)[:, None, None]
        return jnp.sum(sum_over_time(jnp.where(counted > 0, values * counted, 0)), -1)


def _emission_statistics(
    chain: GaussianChain, entries: Entries, smooth: SmoothedStates, sums: _Sums
) -> tuple[Disturbances, _Sums, tuple[Array, Array]]:
    """Of y_t − C x_t on x_t; what is missing of a step is expected given what is observed of it.

    v_m | v_o ~ N(H v_o, R_mm − R_mo R_oo⁻¹ R_om) (Shumway & Stoffer 1982, section 3; Holmes 2013).
    """
    seeing = sums.where(jnp.any(chain.observed, 1))
    emission = chain.emission[:, :, None]
    residual = jnp.where(chain.observed, chain.values - applied(emission, smooth.mean), 0)
    # numbers of entries that are not seen do not count: their columns of H are zero
    spread = product(emission, smooth.covariance)
    fill, unknown = _filling(chain, entries)
    residual = applied(fill, residual)
    spread = product(fill, spread)
    back = jnp.swapaxes(product(fill, emission), 1, 2)
    square = seeing.pairs(residual, residual) + seeing.total(product(spread, back) + unknown)
    cross = seeing.pairs(residual, smooth.mean) - seeing.total(spread)
    design = seeing.pairs(smooth.mean, smooth.mean) + seeing.total(smooth.covariance)
    return Disturbances(seeing.count, square, cross, design), seeing, (residual, smooth.mean)


def _filling(chain: GaussianChain, entries: Entries) -> tuple[Array, Array]:
    """H (t, d, d, m), the identity on what is observed, and the covariance of what is not, given it."""
    d = chain.emission.shape[0]
    seen = entries.seen
    if d == 1:
        fill = seen[:, :, None].astype(chain.values.dtype)
        return fill, jnp.where(seen[:, :, None], 0, chain.emission_covariance[None, :, :, None])
    sound = seen & (entries.noise > 0)
    inverse = jnp.where(sound, 1, 0) / jnp.where(sound, entries.noise, 1)
    noise = chain.emission_covariance[:, :, None]
    white = product(entries.mixing, noise)
    fill = product(jnp.swapaxes(white * inverse[:, :, None], 1, 2), entries.mixing)
    unknown = noise[None] - product(jnp.swapaxes(white * inverse[:, :, None], 1, 2), white)
    identity = jnp.eye(d, dtype=fill.dtype)[None, :, :, None]
    fill = jnp.where(seen[:, :, None], identity * seen[:, :, None], fill)
    return fill, jnp.where(seen[:, :, None] | seen[:, None], 0, unknown)


def _with_inputs(own: Disturbances, sums: _Sums, means: tuple[Array, Array], inputs: Array) -> Disturbances:
    """The statistics with inputs (t, q, n) beside the states."""
    disturbance, states = means
    cross = jnp.concatenate([own.cross, sums.pairs(disturbance, inputs)], 1)
    beside = sums.pairs(states, inputs)
    design = jnp.block([[own.design, beside], [beside.T, sums.pairs(inputs, inputs)]])
    return own._replace(cross=cross, design=design)


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
        if not isinstance(data, Sequences) or jnp.ndim(outcomes(data)) != 3:
            return None  # what are no series is refused soon
        return jnp.any(observed_entries(data), (1, 2))
