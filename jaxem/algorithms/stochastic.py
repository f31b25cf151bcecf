"""Stochastic EM: latent states are drawn."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key, Params
from ..contracts import capabilities as ask
from ..contracts.protocols import StepInfo
from ..latent.finite import Sampled
from ..numerics import tree as _tree
from ._averages import RunningMean, add_to_mean, check_average_from, mean_or, no_mean


class StochasticState(NamedTuple):
    """Evaluations so far, and the mean of the params."""

    n_steps: Array
    average: RunningMean | None


@_tree.register
@dataclass(frozen=True)
class StochasticEM:
    """Stochastic EM (Celeux & Diebolt 1985): the M step sees states drawn from the posterior, one a row.

    The params make a Markov chain about the maximum and never converge, so the fit runs `max_iter` iterations,
    whatever `tol`, and ends as CONVERGED; the noise lets it leave saddles and poor maxima. `average_from` returns the
    mean of the chain, in the params' own coordinates. A component that loses all its rows does not come back. The
    history holds the objectives of all rows; its last entry, and the result, are at the params returned, which takes
    one more E step in `n_evals`.

    The same key gives the same draws. Lanes of `fit_batch`, `fit_restarts`, `fit_groups`, `bootstrap` and `select`
    draw from keys of their own, made from this one, whatever the plan. Under a `vmap` of yours they share it, unless
    you map the key: `jax.vmap(lambda x, key: fit(…, x, algorithm=StochasticEM(key)))(x, keys)`. Chunks and shards draw
    from keys of their own, so another `chunk_size` gives other draws.

    Attributes:
        key: of `jax.random`.
        average_from: M steps from which on params are averaged; None returns the last params.

    Raises:
        ValueError: while tracing, on options out of range, or if the model's E step has no responsibilities.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> algorithm = jaxem.StochasticEM(jax.random.key(1), average_from=10)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, algorithm=algorithm, max_iter=50)
        >>> jnp.sort(result.check().params.components.mean[:, 0]).round(2)
        Array([-2.5,  2.5], dtype=...)
    """

    key: Key
    average_from: Any = None

    monotone: ClassVar[bool] = False
    ends_at_em_fixed_point: ClassVar[bool] = False

    def validate(self) -> None:
        """Raises a ValueError if an option is out of range."""
        check_average_from(self.average_from)

    def for_lane(self, number: Array) -> Self:
        """The same with a key of its own for this lane."""
        return type(self)(jax.random.fold_in(self.key, number), self.average_from)

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> StochasticState:
        """See `Algorithm`."""
        self.validate()
        return StochasticState(jnp.zeros((), jnp.int32), no_mean(params, self.average_from))

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: StochasticState
    ) -> tuple[Params, StochasticState, StepInfo]:
        """See `Algorithm`."""
        key = jax.random.fold_in(self.key, state.n_steps)
        stats, log_lik = model.e_step(params, data, sample_weight, Sampled(), key)
        info = StepInfo(
            objective=log_lik + ask.log_prior(model, params),
            n_evals=jnp.ones((), jnp.int32),
            done=jnp.zeros((), bool),
            may_stop=False,
        )
        average = add_to_mean(state.average, params, state.n_steps, self.average_from)
        return model.m_step(params, stats), StochasticState(state.n_steps + 1, average), info

    def final(self, model: Any, params: Params, state: StochasticState) -> Params:
        """The mean, or the last params."""
        return mean_or(state.average, params)
