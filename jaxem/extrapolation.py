"""What algorithms that jump ahead of EM share: an EM step as a vector, the sizes of params, points that are allowed.

A jump is made in the params' own coordinates. It is put back on constraints by `projected`, and proposed only if it is
`feasible`, and has zeros exactly where the EM point has them: a weight of zero stays zero, and no other becomes it.
Otherwise the EM point is proposed.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from . import _tree
from ._typing import Array, Data, Params, Stats
from .arguments import as_int
from .protocols import StepInfo, evaluated_with_size

_ROUNDING = 32  # times eps: a step of this relative size is rounding, and nothing is extrapolated from it


def em_step(model: Any, params: Params, data: Data, sample_weight: Array | None) -> tuple[Params, Stats, Array, Array]:
    """M(θ), the statistics at θ, the objective at θ and the size of its terms, see `StepInfo`: one E step."""
    stats, objective, size = evaluated_with_size(model, params, data, sample_weight)
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


def is_feasible(owner: Any, params: Params) -> Array:
    """Whether params are finite, and allowed by the model's or family's `feasible`, if it has one: ()."""
    finite = _tree.is_finite(params)
    return finite & owner.feasible(params) if hasattr(owner, "feasible") else finite


def knows_space(owner: Any) -> bool:
    """Whether a model or family says which params are allowed, so that a jump stays among them."""
    return hasattr(owner, "feasible") or hasattr(owner, "unconstrain")


def project(owner: Any, params: Params, near: Params) -> Params:
    """Params put back on constraints, by `projected` of the model or family.

    Of one without this and without `feasible`, by way of its free coordinates, where what is not allowed becomes NaN.
    """
    if hasattr(owner, "projected"):
        return owner.projected(params, near)
    if hasattr(owner, "feasible") or not hasattr(owner, "unconstrain"):
        return params
    return owner.constrain(owner.unconstrain(params))


def onto_simplex(values: Array, near: Array) -> Array:
    """Points (…, k) from elsewhere put back on the simplex, beside points of it.

    An entry goes at most 99 of 100 parts of the way from `near` to zero, an entry of zero stays, and they sum to one.
    So those that tend to zero do not hold back the others.
    """
    kept = jnp.where(near > 0, jnp.maximum(values, 0.01 * near), 0)
    return kept / jnp.sum(kept, -1, keepdims=True)


def allowed(model: Any, candidate: Params, image: Params) -> tuple[Params, Array]:
    """The candidate, or the EM point where the candidate is not allowed; and whether it is the candidate: ()."""
    candidate = project(model, candidate, image)
    same_zeros = jax.tree.map(lambda a, b: jnp.all((a == 0) == (b == 0)), candidate, image)
    good = is_feasible(model, candidate) & jnp.all(jnp.stack(jax.tree.leaves(same_zeros)))
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
    value = as_int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an int ≥ {least}, got {value!r}; it is static.")
