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
from ..latent.finite import unlabelled
from ..numerics.arguments import as_count
from ..numerics.linalg import dot
from ._markov_params import HMMParams, MarkovFields


class MarkovForecast(MarkovFields):
    """Forecasts of a fitted model."""

    def forecast(self, params: HMMParams, data: Data, horizon: int) -> Array:
        """p(z = j) one to `horizon` steps after the end of each series: (n, horizon, k).

        A step is then distributed as a `Mixture` of the emissions with these weights.

        Raises:
            ValueError: if `horizon` is not a positive int.

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
        return _forecast(*self._asked(params, data), horizon)  # type: ignore[attr-defined]

    def sample_ahead(self, params: HMMParams, key: Key, data: Data, horizon: int, n_draws: int = 1000) -> PyTree:
        """Draws of what follows each series, whole paths of `horizon` steps: (n_draws, n, horizon, …).

        Means and quantiles of steps, of their sums, of whatever a path decides, are those over the draws.

        Args:
            params: of the model.
            key: of `jax.random`.
            data: `Sequences`, labelled or not.
            horizon: how many steps.
            n_draws: how many paths for each series.

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
        model, params, data = self._asked(params, data)  # type: ignore[attr-defined]
        return _draw_ahead(model, params, key, data, horizon=horizon, n_draws=n_draws)

    def dwell_times(self, params: HMMParams) -> Array:
        """Expected steps from entering a state to leaving it, 1 / (1 − A_ii): (k,); inf of one that is never left.

        A dwell time is geometric: it is d with probability A_ii^(d − 1) (1 − A_ii).

        Example:
            >>> import jax.numpy as jnp, jaxem
            >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2)
            >>> move, bank = jnp.array([[0.75, 0.25], [0.5, 0.5]]), jaxem.PoissonParams(jnp.array([[1.0], [9.0]]))
            >>> model.dwell_times(jaxem.HMMParams(jnp.array([0.5, 0.5]), move, bank))
            Array([4., 2.], dtype=...)
        """
        check_params(self, params)
        moves = self._moves.masked(jnp.asarray(params.transition))
        away = jnp.sum(jnp.where(jnp.eye(self.n_states, dtype=bool), 0, moves), 1)  # 1 − A_ii has no digits near 1
        return jnp.where(away > 0, 1 / jnp.where(away > 0, away, 1), jnp.inf)


def states_so_far(chain: Chain) -> Array:
    """p(z_t = j | x_1 … x_t): (n, t, k); 0 in absent steps."""
    states = LOG.probabilities(filtered(chain).states)
    return jnp.where(chain.present.T[:, :, None], jnp.transpose(states, (2, 0, 1)), 0)


@partial(jax.jit, static_argnums=3)
def _forecast(model: Any, params: HMMParams, data: Data, horizon: int) -> Array:
    states = states_so_far(model.chain(params, data))
    length, transition = jnp.asarray(unlabelled(data).length)[:, None], model._moves.masked(params.transition)
    last = jnp.take_along_axis(states, jnp.maximum(length - 1, 0)[:, :, None], 1)[:, 0]
    following = jnp.where(length > 0, dot(last, transition), model._first.masked(params.initial)[None])
    step = lambda state, _: (dot(state, transition), state)  # noqa: E731
    return jnp.swapaxes(lax.scan(step, following, None, length=horizon)[1], 0, 1)


@partial(jax.jit, static_argnames=("horizon", "n_draws"))
def _draw_ahead(model: Any, params: HMMParams, key: Key, data: Data, *, horizon: int, n_draws: int) -> PyTree:
    key_z, key_x = jax.random.split(key)
    first = LOG.of(_forecast(model, params, data, 1)[:, 0])
    move = LOG.of(model._moves.masked(params.transition))
    noise = jax.random.gumbel(key_z, (horizon, n_draws, *first.shape), first.dtype)
    start = jnp.argmax(first[None] + noise[0], -1)

    def step(state: Array, noise: Array) -> tuple[Array, Array]:
        after = jnp.argmax(move[state] + noise, -1)
        return after, after

    _, later = lax.scan(step, start, noise[1:])
    states = jnp.moveaxis(jnp.concatenate([start[None], later]), 0, 2)
    rows = ask.needed(model.family, "sample")(params.emissions, key_x, states.reshape(-1))
    return jax.tree.map(lambda leaf: leaf.reshape(*states.shape, *leaf.shape[1:]), rows)
