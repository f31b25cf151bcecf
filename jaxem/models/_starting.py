"""Starts of a mixture."""

from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key, Params
from ..contracts import capabilities as ask
from ..fold.folded import Folded, posterior_statistics
from ..fold.present import present_rows
from ..latent.finite import ungated, unlabelled
from ..latent.starts import Initializer, OfUnits
from ..latent.units import units_of
from ..numerics import tree as _tree
from ..numerics.programs import program


@program(at_most=2**17)
def start(model: Any, key: Key, data: Data, weight: Array | None, method: Initializer) -> Params:
    """One M step on responsibilities of the method; see `Mixture.init`."""
    return start_bound(model.bind(data, weight), key, data, weight, method)


def start_bound(model: Any, key: Key, data: Data, weight: Array | None, method: Initializer) -> Params:
    """`start` of a model that is bound to these data."""
    rows = present_rows(ungated(unlabelled(data)), weight)
    units = units_of(data)
    if units is not None:
        method = OfUnits(method, units)
    assigned = assigned_states(
        model.family, method, key, rows, n_components=model.n_components, weight=weight, active=model.active
    )
    params = model.m_step(None, posterior_statistics(Folded(model), data, weight, assigned))
    if not ask.offers(model.family, "recentred"):
        return params
    # moments about the pivot lose digits where components are narrow: once more about their own means
    model = model.recentred(params)
    return model.m_step(None, posterior_statistics(Folded(model), data, weight, assigned))


def assigned_states(
    family: Any,
    method: Initializer,
    key: Key,
    rows: Data,
    *,
    n_components: int,
    weight: Array | None,
    active: Array | None = None,
) -> Array:
    """States (n,) or responsibilities (n, k) of the method, none of a component that is off."""
    points = ask.points(family, rows)
    if not jnp.issubdtype(jnp.result_type(*jax.tree.leaves(points)), jnp.floating):
        points = _tree.side_by_side(points)
    draw = lambda k, weight, active: method(key, points, k, weight, active)  # noqa: E731
    if ask.offers(family, "assigned"):  # a family that knows which of its components may explain a row
        assigned = family.assigned(draw, rows, weight, active, getattr(method, "groups", False))
    else:
        assigned = draw(n_components, weight, active)
    if active is not None and assigned.ndim == 2:
        assigned = jnp.where(jnp.asarray(active)[None], assigned, 0)
    return assigned
