"""Models of one structure: mixtures of different sizes are padded with components that are switched off."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Params, PyTree
from ..contracts import capabilities as ask
from .mixture import Mixture


def alike(models: Sequence[Any]) -> list[list[int]]:
    """Positions of the models, grouped by what `padded` can give one structure; all leaves are arrays."""
    groups: dict[Any, list[int]] = {}
    for i, model in enumerate(models):
        kind: tuple = _structure(model)
        if type(model) is Mixture and ask.component_axes(model) is not None:
            kind = (Mixture, model.concentration is None, _structure(model.family))
        groups.setdefault(kind, []).append(i)
    return list(groups.values())


def _structure(tree: PyTree) -> tuple:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)


def padded(models: Sequence[Any]) -> list[Any]:
    """Models that are `alike`, the mixtures among them with as many components as the largest."""
    if len({_structure(model) for model in models}) == 1:
        return list(models)
    k = max(model.n_components for model in models)
    return [_pad(model, k) for model in models]


def _pad(model: Mixture, k: int) -> Mixture:
    own, extra = model.n_components, k - model.n_components
    active = np.ones(own, bool) if model.active is None else np.asarray(model.active)
    concentration = model.concentration
    if concentration is not None:  # 1 is flat, and components switched off are left out of the prior
        concentration = np.pad(np.broadcast_to(concentration, (own,)), (0, extra), constant_values=1)
    return replace(model, n_components=k, concentration=concentration, active=np.pad(active, (0, extra)))


def unpadded(model: Any, bound: Any, params: Params) -> tuple[Any, Params]:
    """A bound model and its params, on the host, with the components of the model before it was padded."""
    if type(model) is not Mixture or not ask.offers(model, "component_axes"):  # it was not padded
        return bound, params
    own = np.arange(model.n_components)

    def cut(axis: int | None, subtree: PyTree) -> PyTree:
        return subtree if axis is None else jax.tree.map(lambda leaf: np.take(leaf, own, axis), subtree)

    params = jax.tree.map(cut, model.component_axes(), params, is_leaf=lambda leaf: leaf is None)
    return replace(model, family=bound.family), params


def unpadded_lanes(model: Any, bound: Any, params: Params) -> tuple[Any, Params]:
    """`unpadded` of many lanes, whose leaves lead with them, as those of the result do."""
    if type(model) is not Mixture or not ask.offers(model, "component_axes"):
        return bound, params
    own, n_lanes = np.arange(model.n_components), jax.tree.leaves(params)[0].shape[0]

    def cut(axis: int | None, subtree: PyTree) -> PyTree:
        return subtree if axis is None else jax.tree.map(lambda leaf: jnp.take(leaf, own, axis + 1), subtree)

    params = jax.tree.map(cut, model.component_axes(), params, is_leaf=lambda leaf: leaf is None)
    spread = lambda leaf: jnp.broadcast_to(leaf, (n_lanes, *np.shape(leaf)))  # noqa: E731
    concentration, active = jax.tree.map(spread, (model.concentration, model.active))
    lanes = replace(bound, n_components=model.n_components, concentration=concentration, active=active)
    return lanes, params
