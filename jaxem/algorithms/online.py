"""Online EM on minibatches."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Key, Params, Stats
from ..contracts import capabilities as ask
from ..contracts.protocols import StepInfo
from ..fold.present import some_present_row, without_absent_rows
from ..fold.sources import is_additive
from ..latent.units import units_of
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ._averages import RunningMean, add_to_mean, check_average_from, mean_or, no_mean


class OnlineState(NamedTuple):
    """What online EM carries from one minibatch to the next.

    Attributes:
        stats: running average of the statistics, per row.
        weight: running average of the sample weight, per row.
        first: the row that the next minibatch begins with.
        n_steps: minibatches so far.
        total: Σ sample weights of all rows.
        stand_in: a row that exists, to be looked at in the place of those that do not; None without weights.
        average: the mean of the params.
    """

    stats: Stats
    weight: Array
    first: Array
    n_steps: Array
    total: Array
    stand_in: Data
    average: RunningMean | None


@_tree.register
@dataclass(frozen=True)
class OnlineEM:
    """Stepwise EM (Cappé & Moulines 2009): one M step a minibatch, on a running average of the statistics.

    ŝ ← (1 − γ_t) ŝ + γ_t s̄, with s̄ the statistics of the minibatch per row, γ_t = (t + delay)^−decay, γ_0 = 1; the M
    step sees ŝ times the size of the data, so that priors weigh what they weigh in EM. An average of the sample weights
    runs along: statistics count per unit of weight.

    Every pass visits every row once: rows are taken i·a mod n apart, a next to n / golden ratio and prime to n, from a
    row that the key draws. Each minibatch is so spread evenly over the whole table, whatever its order, unless rows
    repeat with a period that is close to a multiple of a. Nothing of size n is made. On data sharded over devices each
    takes its own share of every minibatch from its own rows.

    The fit runs `max_iter` iterations, one minibatch each, whatever `tol`, and ends as CONVERGED: a pass is n /
    batch_size iterations. `n_iter` counts M steps and `n_evals` E steps, of minibatches; one over all rows at the end
    gives the objective at the params returned. The entries of `history` before the last are estimates, each from its
    minibatch. Moments are taken about the column means throughout: in float32 keep components wider than a thirtieth
    of the spread of the data.

    Attributes:
        key: of `jax.random`; lanes as in `StochasticEM`.
        batch_size: rows in a minibatch, over all devices; static.
        decay: κ in (0.5, 1].
        delay: t0 ≥ 0, which makes the first steps smaller.
        average_from: M steps from which on params are averaged (Polyak & Juditsky 1992); None returns the last params.

    Raises:
        ValueError: while tracing, on options out of range, a minibatch larger than the data or not divisible by the
            number of devices, or a model whose statistics do not add.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 500), jnp.linspace(2.0, 3.0, 500)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> algorithm = jaxem.OnlineEM(jax.random.key(1), batch_size=50)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, algorithm=algorithm, max_iter=20)
        >>> jnp.sort(result.check().params.components.mean[:, 0]).round(1)
        Array([-2.5,  2.5], dtype=...)
    """

    key: Key
    batch_size: int = field(metadata={"static": True}, default=1000)
    decay: Any = 0.6
    delay: Any = 1.0
    average_from: Any = None

    monotone: ClassVar[bool] = False
    ends_at_em_fixed_point: ClassVar[bool] = False
    by_rows: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises a ValueError if an option is out of range."""
        as_count("batch_size", self.batch_size)
        if not _tree.is_tracing(self.decay) and not 0.5 < np.asarray(self.decay) <= 1:
            raise ValueError(
                f"decay: expected a number in (0.5, 1], got {self.decay!r}; outside it steps (t + delay)^−decay do not "
                "both reach any distance and let the noise die out."
            )
        if not _tree.is_tracing(self.delay) and not np.asarray(self.delay) >= 0:
            raise ValueError(f"delay: expected a number ≥ 0, got {self.delay!r}.")
        check_average_from(self.average_from)

    def for_lane(self, number: Array) -> Self:
        """The same with a key of its own for this lane."""
        return replace(self, key=jax.random.fold_in(self.key, number))

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> OnlineState:
        """See `Algorithm`."""
        self.validate()
        self._check(model, data)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        n_rows = model.local_rows(data)
        stand_in = None if sample_weight is None else some_present_row(data, sample_weight)
        zero = jnp.zeros((), jnp.int32)
        state = OnlineState(
            stats=None,
            weight=jnp.zeros((), dtype),
            first=jax.random.randint(self.key, (), 0, n_rows, jnp.int32),
            n_steps=zero,
            total=jnp.asarray(_tree.n_rows(data) if sample_weight is None else jnp.sum(sample_weight), dtype),
            stand_in=stand_in,
            average=no_mean(params, self.average_from),
        )
        shapes = jax.eval_shape(lambda: self._minibatch(model, params, data, sample_weight, state)[0])
        return state._replace(stats=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: OnlineState
    ) -> tuple[Params, OnlineState, StepInfo]:
        """See `Algorithm`."""
        sums, log_lik, mass = self._minibatch(model, params, data, sample_weight, state)
        t = state.n_steps.astype(mass.dtype)
        later = jnp.where(t > 0, t + jnp.asarray(self.delay, mass.dtype), 1)
        step_size = jnp.where(t > 0, later ** -jnp.asarray(self.decay, mass.dtype), 1)
        blend = lambda old, new: old + step_size.astype(old.dtype) * (new / self.batch_size - old)  # noqa: E731
        stats, weight = jax.tree.map(blend, (state.stats, state.weight), (sums, mass))
        seen = weight > 0
        whole = jnp.where(seen, state.total / jnp.where(seen, weight, 1), 1)
        proposal = model.m_step(params, jax.tree.map(lambda leaf: leaf * whole.astype(leaf.dtype), stats))
        share = jnp.where(mass > 0, state.total / jnp.where(mass > 0, mass, 1), 0)
        info = StepInfo(
            objective=share * log_lik + ask.log_prior(model, params),
            n_evals=jnp.ones((), jnp.int32),
            done=jnp.zeros((), bool),
            may_stop=False,
        )
        new_state = state._replace(
            stats=stats,
            weight=weight,
            first=self._later(state.first, model.local_rows(data), self._local_size(model, data)),
            n_steps=state.n_steps + 1,
            average=add_to_mean(state.average, params, state.n_steps, self.average_from),
        )
        return _tree.tree_where(seen, proposal, params), new_state, info

    def final(self, model: Any, params: Params, state: OnlineState) -> Params:
        """The mean, or the last params."""
        return mean_or(state.average, params)

    def _minibatch(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: OnlineState
    ) -> tuple[Stats, Array, Array]:
        """Statistics, log-likelihood and weight of the next rows, all sums."""
        n_rows, size = model.local_rows(data), self._local_size(model, data)
        offsets = np.arange(size, dtype=np.int64) * _stride(n_rows) % n_rows
        index = state.first + offsets.astype(np.int32)
        index = jnp.where(index >= n_rows, index - n_rows, index)
        rows, weight = model.rows_at((data, sample_weight), index)
        if weight is not None:
            rows = without_absent_rows(rows, weight, state.stand_in)
        stats, log_lik = model.e_step(params, rows, weight)
        mass = jnp.asarray(self.batch_size if weight is None else jnp.sum(weight), state.weight.dtype)
        return stats, log_lik, mass

    def _later(self, first: Array, n_rows: int, size: int) -> Array:
        moved = first + size * _stride(n_rows) % n_rows
        return jnp.where(moved >= n_rows, moved - n_rows, moved).astype(jnp.int32)

    def _local_size(self, model: Any, data: Data) -> int:
        """Rows that each shard gives to a minibatch."""
        return int(self.batch_size) * model.local_rows(data) // _tree.n_rows(data)

    def _check(self, model: Any, data: Data) -> None:
        n, own = _tree.n_rows(data), ask.told(model, "model", model)
        if units_of(data) is not None:
            raise ValueError(
                "algorithm: expected one that takes all rows of an id together, as rows are grouped, got OnlineEM, "
                "whose minibatches are rows; use EM(), SQUAREM() or StochasticEM(key)."
            )
        n_shards = n // model.local_rows(data)
        if not is_additive(own):
            raise ValueError(
                f"{type(own).__name__}: online EM needs statistics that are sums over rows, got a model whose "
                "statistics are the rows themselves; write statistics(), or fit with EM()."
            )
        if self.batch_size > n:
            raise ValueError(f"batch_size: expected at most the number of rows, {n}, got {self.batch_size}.")
        if self.batch_size % n_shards:
            raise ValueError(
                f"batch_size: expected a multiple of the number of devices that share the rows, {n_shards}, got "
                f"{self.batch_size}."
            )


def _stride(n_rows: int) -> int:
    """The number next to n / golden ratio that is prime to n: its multiples visit every row, far from one another."""
    wanted = round(n_rows * (math.sqrt(5) - 1) / 2)
    steps = (wanted + side * distance for distance in range(n_rows) for side in (1, -1))
    return next((step for step in steps if 0 < step and math.gcd(step, n_rows) == 1), 1)
