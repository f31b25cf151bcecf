"""What is ahead of series: states and steps that have not been, and how long a state lasts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Data, Key, PyTree
from ..contracts import capabilities as ask
from ..contracts.domains import check_params
from ..latent.chain import LOG, Chain, filtered
from ..latent.finite import series_of
from ..numerics.arguments import as_count
from ..numerics.linalg import dot
from ._markov_checks import covariates_for
from ._markov_drawing import of_state
from ._markov_params import HMMParams, MarkovFields


class MarkovForecast(MarkovFields):
    """Forecasts of a fitted model."""

    def forecast(self, params: HMMParams, data: Data, horizon: int, *, covariates: Any = None) -> Array:
        """p(z = j) one to `horizon` steps after the end of each series: (n, horizon, k).

        A step is then distributed as a `Mixture` of the emissions with these weights.

        Args:
            params: of the model.
            data: `Sequences`, gated, labelled or neither.
            horizon: how many steps.
            covariates: of the transitions into these steps, (n, horizon, q), where they depend on some.

        Raises:
            ValueError: if `horizon` is not a positive int, or covariates do not fit.

        Example:
            >>> import jax.numpy as jnp, jaxem
            >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2)
            >>> move, bank = jnp.array([[0.75, 0.25], [0.5, 0.5]]), jaxem.PoissonParams(jnp.array([[1.0], [99.0]]))
            >>> params = jaxem.HMMParams(jnp.array([0.5, 0.5]), move, bank)
            >>> data = jaxem.sequences([jnp.array([[99.0]])])
            >>> [f"{p:.3f}" for p in model.forecast(params, data, horizon=2)[0, :, 0]]  # of the first state
            ['0.500', '0.625']
        """
        horizon = as_count("horizon", horizon)
        asked = self._asked(params, data)  # type: ignore[attr-defined]
        return _forecast(*asked, horizon, self._ahead(covariates, data, horizon, params))

    def _ahead(self, covariates: Any, data: Data, horizon: int, params: HMMParams) -> Array | None:
        n = jnp.shape(jnp.asarray(series_of(data).length))[0]
        return covariates_for(self, covariates, (n, horizon), params, whole=True)

    def sample_ahead(
        self,
        params: HMMParams,
        key: Key,
        data: Data,
        horizon: int,
        n_draws: int = 1000,
        *,
        covariates: Any = None,
    ) -> PyTree:
        """Draws of what follows each series, whole paths of `horizon` steps: (n_draws, n, horizon, …).

        Means and quantiles of steps, of their sums, of whatever a path decides, are those over the draws.

        Args:
            params: of the model.
            key: of `jax.random`.
            data: `Sequences`, labelled or not.
            horizon: how many steps.
            n_draws: how many paths for each series.
            covariates: as of `forecast`.

        Raises:
            ValueError: if a number is not a positive int, or of a regression, whose covariates ahead are not known.

        Example:
            >>> import jax, jax.numpy as jnp, jaxem
            >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2)
            >>> move, bank = jnp.array([[0.75, 0.25], [0.5, 0.5]]), jaxem.PoissonParams(jnp.array([[1.0], [99.0]]))
            >>> params = jaxem.HMMParams(jnp.array([0.5, 0.5]), move, bank)
            >>> data = jaxem.sequences([jnp.array([[99.0]])])
            >>> ahead = model.sample_ahead(params, jax.random.key(0), data, horizon=2)
            >>> ahead.shape, (jnp.median(ahead[:, 0, 1]) < 50)  # five in eight are of the first state
            ((1000, 1, 2, 1), Array(True, dtype=bool))
        """
        horizon, n_draws = as_count("horizon", horizon), as_count("n_draws", n_draws)
        if ask.told(self.family, "conditional", False):
            raise ValueError(
                f"sample_ahead: expected emissions that follow from the state alone, got {type(self.family).__name__}, "
                "whose covariates ahead are not known; draw from `forecast` and the covariates that you have."
            )
        ahead = self._ahead(covariates, data, horizon, params)
        model, params, data = self._asked(params, data)  # type: ignore[attr-defined]
        return _draw_ahead(model, params, key, data, ahead, horizon=horizon, n_draws=n_draws)

    def dwell_times(self, params: HMMParams) -> Array:
        """Expected steps from entering a state to leaving it, 1 / (1 − A_ii): (k,); inf of one that is never left.

        A dwell time is geometric: it is d with probability A_ii^(d − 1) (1 − A_ii).

        Raises:
            ValueError: where transitions depend on covariates.

        Example:
            >>> import jax.numpy as jnp, jaxem
            >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2)
            >>> move, bank = jnp.array([[0.75, 0.25], [0.5, 0.5]]), jaxem.PoissonParams(jnp.array([[1.0], [9.0]]))
            >>> model.dwell_times(jaxem.HMMParams(jnp.array([0.5, 0.5]), move, bank))
            Array([4., 2.], dtype=...)
        """
        check_params(self, params)
        if self.transitions is not None:
            raise ValueError(
                "dwell_times: expected constant transitions, got transitions that depend on covariates, as dwell times "
                "then do; transition_matrix(params, covariates) has the probabilities of staying."
            )
        moves = self._moves.masked(jnp.asarray(params.transition))
        away = jnp.sum(jnp.where(jnp.eye(self.n_states, dtype=bool), 0, moves), 1)  # 1 − A_ii has no digits near 1
        return jnp.where(away > 0, 1 / jnp.where(away > 0, away, 1), jnp.inf)


def states_so_far(chain: Chain) -> Array:
    """p(z_t = j | x_1 … x_t): (n, t, k); 0 in absent steps."""
    states = LOG.probabilities(filtered(chain).states)
    return jnp.where(chain.present.T[:, :, None], jnp.transpose(states, (2, 0, 1)), 0)


@partial(jax.jit, static_argnums=3)
def _forecast(model: Any, params: HMMParams, data: Data, horizon: int, covariates: Array | None) -> Array:
    states = states_so_far(model.chain(params, data))
    length, moves = jnp.asarray(series_of(data).length)[:, None], _moves_ahead(model, params, covariates)
    last = jnp.take_along_axis(states, jnp.maximum(length - 1, 0)[:, :, None], 1)[:, 0]
    first = model._first.masked(params.initial)[None]

    def step(state: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        at_first, *own = now
        after = jnp.sum(state.T[:, None] * own[0], 0).T if own else dot(state, moves)
        after = jnp.where(at_first & (length == 0), first, after)
        return after, after

    every = (jnp.arange(horizon) == 0, *(() if covariates is None else (moves,)))
    return jnp.swapaxes(lax.scan(step, last, every)[1], 0, 1)


def _moves_ahead(model: Any, params: HMMParams, covariates: Array | None) -> Array:
    """(k, k), or those of covariates (n, horizon, q): (horizon, k, k, n)."""
    by_step = None if covariates is None else jnp.swapaxes(covariates, 0, 1)
    return model._moves.of_steps(params.transition, by_step)


@partial(jax.jit, static_argnames=("horizon", "n_draws"))
def _draw_ahead(
    model: Any, params: HMMParams, key: Key, data: Data, covariates: Array | None, *, horizon: int, n_draws: int
) -> PyTree:
    key_z, key_x = jax.random.split(key)
    at_once = None if covariates is None else covariates[:, :1]
    first = LOG.of(_forecast(model, params, data, 1, at_once)[:, 0])
    move = LOG.of(_moves_ahead(model, params, covariates))
    noise = jax.random.gumbel(key_z, (horizon, n_draws, *first.shape), first.dtype)
    start = jnp.argmax(first[None] + noise[0], -1)

    def step(state: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        noise, *own = now
        rows = jax.vmap(of_state, (None, 0))(own[0], state) if own else move[state]
        after = jnp.argmax(rows + noise, -1)
        return after, after

    _, later = lax.scan(step, start, (noise[1:], *(() if covariates is None else (move[1:],))))
    states = jnp.moveaxis(jnp.concatenate([start[None], later]), 0, 2)
    rows = ask.needed(model.family, "sample")(params.emissions, key_x, states.reshape(-1))
    return jax.tree.map(lambda leaf: leaf.reshape(*states.shape, *leaf.shape[1:]), rows)
