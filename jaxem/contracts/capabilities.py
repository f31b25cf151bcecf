"""What a model can do, asked of it: sizes of params, feasibility, projection back into the space."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._typing import Array, Params
from ..numerics import tree as _tree


def sizes(model: Any, params: Params) -> Params:
    """By which changes of the params' entries are measured: `model.sizes`, or their root mean squares.

    Best the standard deviations of complete-data estimates: EM's derivative is self-adjoint in the metric of the
    complete-data information (Dempster, Laird & Rubin 1977, section 3), which is what extrapolations thrive on.
    """
    return model.sizes(params) if hasattr(model, "sizes") else jax.tree.map(_tree.sizes, params)


def flat_sizes(model: Any, params: Params) -> Array:
    """`sizes` as a vector (p,)."""
    return ravel_pytree(sizes(model, params))[0]


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


def allowed(model: Any, candidate: Params, image: Params) -> tuple[Params, Array]:
    """The candidate, or the EM point where the candidate is not allowed; and whether it is the candidate: ()."""
    candidate = project(model, candidate, image)
    same_zeros = jax.tree.map(lambda a, b: jnp.all((a == 0) == (b == 0)), candidate, image)
    good = is_feasible(model, candidate) & jnp.all(jnp.stack(jax.tree.leaves(same_zeros)))
    return _tree.tree_where(good, candidate, image), good
