"""Params inside of their space: where a jump ahead of EM is put back, and where an objective has slopes."""

from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Params
from ..bijections import constraints_of, drawn_back
from ..numerics import tree as _tree
from . import capabilities as ask


def project(owner: Any, params: Params, near: Params) -> Params:
    """Params put back on constraints, beside allowed ones, by `projected` of the model or family.

    Of one with a `space` by that. Of one with free coordinates alone by way of these, where what is not allowed becomes
    NaN. Of a model that says nothing of the kind, entries of arrays that are nowhere negative in `near` stay so: EM's
    points are inside, and an array of rates, counts or shares is never negative there.
    """
    if ask.offers(owner, "projected"):
        return owner.projected(params, near)
    if ask.offers(owner, "feasible"):
        return params
    if ask.offers(owner, "space"):
        return constraints_of(owner.space).projected(params, near)
    if ask.knows_coordinates(owner):
        return ask.constrain(owner, ask.unconstrain(owner, params))

    def one(leaf: Array, beside: Array) -> Array:
        return jnp.where(jnp.all(beside >= 0), drawn_back(leaf, beside), leaf)

    return jax.tree.map(one, params, near)


def allowed(model: Any, candidate: Params, image: Params) -> tuple[Params, Array]:
    """The candidate, or the EM point where the candidate is not allowed; and whether it is the candidate: ()."""
    candidate = project(model, candidate, image)
    same_zeros = jax.tree.map(lambda a, b: jnp.all((a == 0) == (b == 0)), candidate, image)
    good = ask.is_feasible(model, candidate) & jnp.all(jnp.stack(jax.tree.leaves(same_zeros)))
    return _tree.tree_where(good, candidate, image), good


def refuses_jumps(model: Any, params: Params) -> Array:
    """Whether finite params of a fit are not allowed themselves, so that no jump ahead of EM ever is: ()."""
    return _tree.is_finite(params) & ~allowed(model, params, params)[1]


def with_slopes(owner: Any, params: Params) -> Params:
    """The params, off the boundary where the objective has no slope."""
    return owner.with_slopes(params) if ask.offers(owner, "with_slopes") else params
