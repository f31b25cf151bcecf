"""The mode of a first state that is a param and no random vector: its variance is 0.

Then x_1 = m, of which E[x_1 − m] says nothing; but x_2 − A m and y_1 − C m do, a regression on m (Holmes 2013). It goes
by the new A, C, Q and R, so that Q + log prior rises by both: an ECM step (Meng & Rubin 1993).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .._typing import Array
from ..numerics.linalg import dot, gram, whitening
from ._state_space_params import FirstStep, LGSSMParams, LGSSMStats, join
from ._state_space_regression import divided


class _Surface(NamedTuple):
    """Slope (s,) and minus the curvature (s, s) of Q in m, and which m have a constraint that has no noise (s,)."""

    slope: Array
    curvature: Array
    bound: Array


def shift_of_known(before: LGSSMParams, after: LGSSMParams, stats: LGSSMStats, free: np.ndarray) -> Array:
    """By how much the free entries of variance 0 of m move (s,); those that something without noise follows stay."""
    move = _surface(
        stats.first_move,
        join(before.transition, before.transition_input),
        join(after.transition, after.transition_input),
        after.transition_covariance,
        len(free),
    )
    see = _surface(
        stats.first_seen,
        join(before.emission, before.emission_input),
        join(after.emission, after.emission_input),
        after.emission_covariance,
        len(free),
    )
    known = free & (jnp.diagonal(before.initial.covariance) == 0) & ~move.bound & ~see.bound
    slope = jnp.where(known, move.slope + see.slope, 0)
    curvature = jnp.where(known[:, None] & known[None], move.curvature + see.curvature, 0)
    return divided(slope[None], curvature)[0]


def _surface(stats: FirstStep, before: Array, after: Array, covariance: Array, s: int) -> _Surface:
    noisy = jnp.diagonal(covariance) > 0
    both = noisy[:, None] & noisy[None]
    inverse = gram(whitening(jnp.where(both, covariance, jnp.eye(len(noisy), dtype=covariance.dtype)))[0])
    columns = after[:, :s]
    weighed = dot(columns.T, jnp.where(both, inverse, 0))
    residual = stats.residual - dot(after - before, stats.design)
    bound = jnp.any((columns != 0) & ~noisy[:, None], 0) & (stats.count > 0)
    return _Surface(dot(weighed, residual), stats.count * dot(weighed, columns), bound)
