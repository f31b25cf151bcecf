"""Where the params of a state space model live, and its M step, with any part of them held."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._typing import Array
from ..bijections import positive_definite
from ..contracts.holding import all_held
from ..latent.gaussian_chain import factor
from ..numerics import tree as _tree
from ..numerics.linalg import dot, gram, symmetric_eigen, whitening
from ._state_space_first import shift_of_known
from ._state_space_params import (
    GaussianState,
    LGSSMParams,
    LGSSMStats,
    StateSpaceFields,
    join,
    split,
)
from ._state_space_regression import Block, blocks_of, covariance_mode

_SMALL_ANGLE = 1e-5  # a square, beyond the rounding of a sum of squares in float32


class StateSpaceSpace(StateSpaceFields):
    """Free coordinates, priors and the M step."""

    # --- coordinates

    def unconstrain(self, params: LGSSMParams) -> LGSSMParams:
        """Free coordinates: log-Cholesky factors of the covariances, 0 for the logarithm of a pivot that is 0."""
        return _map(_to_free, params)

    def constrain(self, free: LGSSMParams) -> LGSSMParams:
        """Inverse of `unconstrain`."""
        return _map(positive_definite.from_free, free)

    def feasible(self, params: LGSSMParams) -> Array:
        """Whether the covariances are symmetric and positive semidefinite: ()."""
        return jnp.all(jnp.stack([_is_covariance(each) for each in _covariances(params)]))

    def held(self, params: LGSSMParams) -> LGSSMParams:
        """Which free coordinates are of a variance that is 0, given those before."""

        def flat(covariance: Array) -> Array:
            zero = jnp.diagonal(factor(covariance)) == 0
            rows, columns = np.tril_indices(len(zero), -1)
            return jnp.concatenate([zero, zero[rows] | zero[columns]])

        free = jax.eval_shape(self.unconstrain, params)
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), free)
        return _put(none, [flat(each) for each in _covariances(params)])

    def frozen_coordinates(self, params: LGSSMParams, held: LGSSMParams) -> LGSSMParams:
        """Which free coordinates are held, shaped as `unconstrain(params)`.

        Raises:
            ValueError: where a part of a covariance is held that its coordinates cannot hold.
        """
        self._check_held(params, held)

        def flat(name: str, flags: np.ndarray) -> np.ndarray:
            own = np.zeros(flags.shape, bool)
            for block in blocks_of(name, flags):
                own[np.ix_(block, block)] = not flags[block[0], block[0]]
            rows, columns = np.tril_indices(len(flags), -1)
            return ~np.concatenate([np.diagonal(own), own[rows, columns]])

        return _put(held, [flat(name, each) for name, each in zip(_NAMES, _covariances(held), strict=True)])

    def _check_held(self, params: LGSSMParams, held: LGSSMParams) -> None:
        """Raises a ValueError where a covariance between a free and another part is held at a number that is not 0."""
        for name, value, flags in zip(_NAMES, _covariances(params), _covariances(held), strict=True):
            if _tree.is_tracing(value) or all_held(flags):
                continue
            apart = np.ones(flags.shape, bool)
            for block in blocks_of(name, flags):
                apart[np.ix_(block, block)] = False
            if np.any(np.asarray(value)[apart] != 0):
                raise ValueError(
                    f"mask.{name}: expected covariances of 0 held beside others that are fitted, got another number; "
                    "hold the whole matrix, or set them to 0."
                )

    def n_parameters(self, params: LGSSMParams) -> Any:
        """Free parameters: s² coordinates less, which only choose the axes of the state."""
        return self.n_parameters_held(params, jax.tree.map(lambda leaf: np.zeros(np.shape(leaf), bool), params))

    def n_parameters_held(self, params: LGSSMParams, held: LGSSMParams) -> Any:
        """Free parameters beside those that are held; changes of axes that move none of these count as none."""
        frozen = jax.tree.leaves(self.frozen_coordinates(params, held))
        own = ravel_pytree(self.held(params))[0] & ~np.concatenate([np.ravel(leaf) for leaf in frozen])
        return sum(np.sum(~leaf) for leaf in frozen) - jnp.sum(own) - self._n_axes(params, held)

    def _n_axes(self, params: LGSSMParams, held: LGSSMParams) -> Any:
        """The dimension of the changes x → (1 + G) x, G small, by which no entry that is held moves."""
        s = self.n_states
        index = np.flatnonzero(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(held)]))
        if not len(index):
            return s * s

        def moved(g: Array) -> Array:
            g = g.reshape(s, s)
            both = lambda v: dot(g, v) + dot(v, g.T)  # noqa: E731
            inputs = None if params.transition_input is None else dot(g, params.transition_input)
            after = LGSSMParams(
                GaussianState(dot(g, params.initial.mean), both(params.initial.covariance)),
                dot(g, params.transition) - dot(params.transition, g),
                both(params.transition_covariance),
                -dot(params.emission, g),
                jnp.zeros_like(params.emission_covariance),
                inputs,
                None if params.emission_input is None else jnp.zeros_like(params.emission_input),
            )
            return ravel_pytree(after)[0][index]

        rows = jax.jacfwd(moved)(jnp.zeros(s * s, params.transition.dtype))
        size = jnp.sqrt(jnp.sum(jnp.square(rows), 1, keepdims=True))
        unit = rows / jnp.where(size > 0, size, 1)
        values = symmetric_eigen(dot(unit.T, unit))[0]
        return jnp.sum(values <= _SMALL_ANGLE * jnp.maximum(values[-1], 1))

    # --- prior and mode

    def log_prior(self, params: LGSSMParams) -> Array:
        """−½ tr(Λ Σ⁻¹) of each covariance, over the part of it that is not 0: ()."""
        scales = self._scales(params.emission.shape[0], params.emission.dtype)
        each = [_minus_half_trace(scale, own) for scale, own in zip(scales, _covariances(params), strict=True)]
        return each[0] + each[1] + each[2]

    def m_step(self, params: LGSSMParams | None, stats: LGSSMStats) -> LGSSMParams:
        """Mode of Q + log prior: regressions of the disturbances, and what is left of them.

        Without params the statistics are about zero.
        """
        params = _zero(self.n_states, stats) if params is None else params
        return self.m_step_held(params, stats, jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), params))

    def m_step_held(self, params: LGSSMParams, stats: LGSSMStats, held: LGSSMParams) -> LGSSMParams:
        """`m_step` over what is not held; `held` are booleans shaped as the params.

        Raises:
            ValueError: where the mode is no formula: a part of a block of a covariance is held, or rows of a matrix
                whose noise is correlated are held in different places.
        """
        self._check_held(params, held)
        scales = self._scales(params.emission.shape[0], params.emission.dtype)
        s = self.n_states
        move = Block("transition", join(params.transition, params.transition_input), params.transition_covariance)
        see = Block("emission", join(params.emission, params.emission_input), params.emission_covariance)
        transition = move.mode(
            stats.transition, scales[1], join_flags(held.transition, held.transition_input), held.transition_covariance
        )
        emission = see.mode(
            stats.emission, scales[2], join_flags(held.emission, held.emission_input), held.emission_covariance
        )
        a, b = split(transition[0], s, params.transition_input)
        c, d = split(emission[0], s, params.emission_input)
        initial = _initial_mode(params.initial, stats, scales[0], held.initial)
        after = LGSSMParams(initial, a, transition[1], c, emission[1], b, d)
        if all_held(held.initial.mean):
            return after
        shift = shift_of_known(params, after, stats, ~np.asarray(held.initial.mean))
        return after._replace(initial=initial._replace(mean=initial.mean + shift))


_NAMES = "initial.covariance", "transition_covariance", "emission_covariance"


def _covariances(params: LGSSMParams) -> list[Any]:
    return [params.initial.covariance, params.transition_covariance, params.emission_covariance]


def _put(params: LGSSMParams, covariances: list[Any]) -> LGSSMParams:
    first, transition, emission = covariances
    initial = GaussianState(params.initial.mean, first)
    return params._replace(initial=initial, transition_covariance=transition, emission_covariance=emission)


def _map(fn: Any, params: LGSSMParams) -> LGSSMParams:
    return _put(params, [fn(each) for each in _covariances(params)])


def _to_free(covariance: Array) -> Array:
    low = factor(covariance)
    diagonal = jnp.diagonal(low)
    rows, columns = np.tril_indices(len(diagonal), -1)
    logarithms = jnp.log(jnp.where(diagonal > 0, diagonal, 1))
    return jnp.concatenate([logarithms, low[rows, columns]])


def _is_covariance(matrix: Array) -> Array:
    low = factor(matrix)
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 0))
    slack = 64 * jnp.finfo(matrix.dtype).eps * size[:, None] * size[None]
    gap = jnp.abs(matrix - dot(low, low.T))
    return jnp.all(gap <= slack) & jnp.all(jnp.isfinite(matrix))


def _minus_half_trace(scale: Array, covariance: Array) -> Array:
    """−½ tr(Λ Σ⁻¹) over the rows of Σ that are not 0; 0 where Λ is."""
    here = jnp.diagonal(covariance) > 0
    both = here[:, None] & here[None]
    sound = jnp.where(both, covariance, jnp.eye(len(here), dtype=covariance.dtype))
    inverse = gram(whitening(sound)[0])
    return -jnp.sum(jnp.where(both & (scale != 0), scale * inverse, 0)) / 2


def join_flags(state: np.ndarray, inputs: np.ndarray | None) -> np.ndarray:
    """`join` of booleans."""
    return state if inputs is None else np.concatenate([state, inputs], 1)


def _zero(s: int, stats: LGSSMStats) -> LGSSMParams:
    d, q = stats.emission.cross.shape[0], stats.emission.cross.shape[1] - s
    zero = lambda *shape: jnp.zeros(shape, stats.first.dtype)  # noqa: E731
    inputs = (zero(s, q), zero(d, q)) if q else (None, None)
    return LGSSMParams(GaussianState(zero(s), zero(s, s)), zero(s, s), zero(s, s), zero(d, s), zero(d, d), *inputs)


def _initial_mode(initial: GaussianState, stats: LGSSMStats, scale: Array, held: GaussianState) -> GaussianState:
    free = ~np.asarray(held.mean)
    count = jnp.where(stats.count > 0, stats.count, 1)
    shift = jnp.where(free & (stats.count > 0), stats.first / count, 0)
    if all_held(held.covariance):
        return GaussianState(initial.mean + shift, initial.covariance)
    about = shift[:, None] * stats.first[None]
    square = stats.first_square - about - about.T + stats.count * shift[:, None] * shift[None]
    covariance = covariance_mode(initial.covariance, square, scale, stats.count, held.covariance)
    return GaussianState(initial.mean + shift, covariance)
