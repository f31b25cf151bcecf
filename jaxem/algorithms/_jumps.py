"""What algorithms that jump ahead of EM share: an EM step as a vector, the sizes of params, points that are allowed.

A jump is made in the params' own coordinates. It is put back on constraints by `projected`, and proposed only if it is
`feasible`, and has zeros exactly where the EM point has them: a weight of zero stays zero, and no other becomes it.
Otherwise the EM point is proposed.
"""

from typing import Any

import jax.numpy as jnp

from .._typing import Array, Data, Params, Stats
from ..contracts import capabilities as ask
from ..contracts.protocols import StepInfo


def em_step(model: Any, params: Params, data: Data, sample_weight: Array | None) -> tuple[Params, Stats, Array, Array]:
    """M(θ), the statistics at θ, the objective at θ and the size of its terms, see `StepInfo`: one E step."""
    stats, objective, size = ask.evaluated_with_size(model, params, data, sample_weight)
    return model.m_step(params, stats), stats, objective, size


def step_info(objective: Array, image: Params, n_evals: Any = 1, **more: Any) -> StepInfo:
    """What such an algorithm reports, with its EM point."""
    n_evals = jnp.asarray(n_evals, jnp.int32)
    return StepInfo(objective, n_evals, jnp.zeros((), bool), image=image, **more)


def rate_of(moved: Array, change: Array, size: Array) -> Array:
    """By how much EM shrinks what is left, along a step, ρ: (…).

    With residuals f = M(θ) − θ, f before − f after a step is (I − ∂M) · step, whose Rayleigh quotient in the metric of
    the sizes is 1 − ρ. NaN without a step.

    Args:
        moved: the step, (…, p).
        change: f before less f after, (…, p).
        size: (p,), with leading axes of one as needed.
    """
    along = moved / size
    return 1 - jnp.sum(along * change / size, -1) / jnp.sum(jnp.square(along), -1)
