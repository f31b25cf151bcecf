"""What algorithms that jump ahead of EM share: an EM step as a vector, the sizes of params, points that are allowed.

A jump is made in the params' own coordinates. It is proposed only if it is `feasible`, and has zeros exactly where the
EM point has them: a weight of zero stays zero, and no other becomes it. Otherwise the EM point is proposed.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from . import _tree
from ._typing import Array, Data, Params, Stats
from .protocols import StepInfo, log_prior

_ROUNDING = 32  # times eps: a step of this relative size is rounding, and nothing is extrapolated from it
_ROUND_TRIP = 1e-3


def em_step(model: Any, params: Params, data: Data, sample_weight: Array | None) -> tuple[Params, Stats, Array]:
    """M(θ), the statistics at θ, and the objective at θ: one E step."""
    stats, log_lik = model.e_step(params, data, sample_weight)
    return model.m_step(params, stats), stats, log_lik + log_prior(model, params)


def step_info(objective: Array, image: Params, n_evals: Any = 1, passing: Array | None = None) -> StepInfo:
    """What such an algorithm reports, with its EM point."""
    n_evals = jnp.asarray(n_evals, jnp.int32)
    return StepInfo(objective, n_evals, jnp.zeros((), bool), image=image, passing=passing)


def sizes(model: Any, params: Params) -> Params:
    """By which changes of the params' entries are measured: `model.sizes`, or their root mean squares.

    Best the standard deviations of complete-data estimates: EM's derivative is self-adjoint in the metric of the
    complete-data information (Dempster, Laird & Rubin 1977, section 3), which is what extrapolations thrive on.
    """
    return model.sizes(params) if hasattr(model, "sizes") else jax.tree.map(_tree.sizes, params)


def flat_sizes(model: Any, params: Params) -> Array:
    """`sizes` as a vector (p,)."""
    return ravel_pytree(sizes(model, params))[0]


def is_rounding(step: Array, flat: Array, size: Array) -> Array:
    """Whether a step (p,) from `flat` is no more than the rounding of an EM step."""
    eps = jnp.finfo(flat.dtype).eps
    reach = jnp.max(jnp.maximum(jnp.abs(flat) / size, 1))
    return jnp.max(jnp.abs(step) / size) <= _ROUNDING * eps * reach


def retract(owner: Any, params: Params) -> tuple[Params, Array]:
    """Params put back on equality constraints that rounding has left, and whether they are allowed: ().

    By `normalised` and `feasible` of a model or family; of one without these, through its free coordinates.
    """
    if hasattr(owner, "feasible"):
        params = owner.normalised(params) if hasattr(owner, "normalised") else params
        return params, _tree.is_finite(params) & owner.feasible(params)
    if not hasattr(owner, "unconstrain"):
        return params, _tree.is_finite(params)
    again = owner.constrain(owner.unconstrain(params))
    near = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) <= _ROUND_TRIP * jnp.max(jnp.abs(b)), again, params)
    return again, _tree.is_finite(again) & jnp.all(jnp.stack(jax.tree.leaves(near)))


def allowed(model: Any, candidate: Params, image: Params) -> tuple[Params, Array]:
    """The candidate, or the EM point where the candidate is not allowed; and whether it is the candidate: ()."""
    candidate, feasible = retract(model, candidate)
    same_zeros = jax.tree.map(lambda a, b: jnp.all((a == 0) == (b == 0)), candidate, image)
    good = feasible & jnp.all(jnp.stack(jax.tree.leaves(same_zeros)))
    return _tree.tree_where(good, candidate, image), good


def check_option(name: str, value: Any, low: float, high: float = np.inf, *, open_low: bool = False) -> None:
    """Raises a ValueError unless a concrete option is a number in [low, high]; (low, high] if `open_low`."""
    if _tree.is_tracing(value):
        return
    number = np.asarray(value) if isinstance(value, (numbers.Real, np.ndarray, jax.Array)) else np.asarray(np.nan)
    inside = (number > low if open_low else number >= low) & (number <= high)
    if number.dtype == bool or not np.all(inside):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == np.inf else ']'}"
        raise ValueError(f"{name}: expected a number in {interval}, got {value!r}; leave it out for the default.")


def check_size(name: str, value: Any, least: int = 1) -> None:
    """Raises a ValueError unless a static option is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an int ≥ {least}, got {value!r}; it is static.")
