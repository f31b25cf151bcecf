"""Where a mixture's params live: free coordinates, boundaries, what is held, in which order components come."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array
from ..contracts import capabilities as ask
from ..contracts import components as parts
from ..contracts.holding import all_held, any_held, held_leafwise
from ..contracts.inside import project
from ._mixture_params import MixtureFields, MixtureParams


class MixtureSpace(MixtureFields):
    """The weights on a simplex, or a gate's, beside the family's own space."""

    def unconstrain(self, params: MixtureParams) -> MixtureParams:
        """Free coordinates: log-ratios to the weight of the last active component (k − 1,) and the family's own."""
        own = ask.unconstrain(self.family, params.components)
        return MixtureParams(self._mixing.unconstrain(params.weights), own)

    def constrain(self, free: MixtureParams) -> MixtureParams:
        """Inverse of `unconstrain`; components switched off get weight 0."""
        own = ask.constrain(self.family, free.components)
        return MixtureParams(self._mixing.constrain(free.weights), own)

    def feasible(self, params: MixtureParams) -> Array:
        """Whether weights are not negative and components allowed by the family, wherever params came from: ()."""
        return self._mixing.feasible(params.weights) & ask.is_feasible(self.family, params.components)

    def projected(self, params: MixtureParams, near: MixtureParams) -> MixtureParams:
        """Params from elsewhere put back on the constraints, beside allowed ones."""
        components = project(self.family, params.components, near.components)
        return MixtureParams(self._mixing.projected(params.weights, near.weights), components)

    def sizes(self, params: MixtureParams) -> MixtureParams:
        """Standard deviations of the estimates from one row whose component is known: √w_j of a weight.

        Those of a component are its family's, over √w_j. In these units EM's derivative is about symmetric. Weights
        below 1e-4 count as that.
        """
        weights, root = self._mixing.sizes(params.weights)

        def spread(root: Array | None, leaf: Array) -> Array:
            return leaf if root is None else leaf / root.reshape(-1, *[1] * (leaf.ndim - 1))

        own = ask.sizes(self.family, params.components)
        return MixtureParams(weights, parts.by_component(self.family, spread, root, own))

    def restricted(self, params: MixtureParams) -> Self:
        """The model with components of weight zero switched off: it stays on the boundary that the params are on."""
        family = ask.on_its_boundary(self.family, params.components)
        if self.gate is not None:
            return replace(self, family=family)
        on = self._mixing.is_not_zero(params.weights)
        return replace(self, family=family, active=on if self.active is None else on & jnp.asarray(self.active))

    def held(self, params: MixtureParams) -> MixtureParams:
        """Which free coordinates are on a boundary, or of a component switched off; shaped as `unconstrain(params)`."""
        on = jnp.ones(self.n_components, bool) if self.active is None else jnp.asarray(self.active)
        free = jax.eval_shape(self.unconstrain, params)

        def off(on: Array | None, leaf: Any) -> Array:
            here = jnp.zeros((1,) * leaf.ndim, bool) if on is None else ~on.reshape(-1, *[1] * (leaf.ndim - 1))
            return jnp.broadcast_to(here, leaf.shape)

        components = parts.by_component(self.family, off, on, free.components)
        components = jax.tree.map(jnp.logical_or, components, ask.held(self.family, params.components))
        return MixtureParams(self._mixing.held(params.weights), components)

    def frozen_coordinates(self, params: MixtureParams, held: MixtureParams) -> MixtureParams:
        """Which free coordinates are held, shaped as `unconstrain(params)`."""
        hold = self._holds_weights(held)
        free_weights = jax.eval_shape(self._mixing.unconstrain, params.weights)
        weights: Any = jax.tree.map(lambda leaf: np.full(leaf.shape, hold), free_weights)
        if ask.offers(self.family, "frozen_coordinates"):
            return MixtureParams(weights, self.family.frozen_coordinates(params.components, held.components))
        free = jax.eval_shape(partial(ask.unconstrain, self.family), params.components)
        return MixtureParams(weights, held_leafwise(held.components, free, self.family, entries=False))

    def _holds_weights(self, held: MixtureParams) -> bool:
        if any_held(held.weights) and not all_held(held.weights):
            raise ValueError(
                "mask.weights: expected all weights held or none, as they sum to one, got a part; hold all of them."
            )
        return any_held(held.weights)

    def imposed(self, params: MixtureParams) -> MixtureParams:
        """Params as a fit starts from them: those that the family's own bounds allow."""
        if params is None:
            return params
        weights = jnp.ones(self.n_components) if self.gate is not None else params.weights
        return params._replace(components=ask.imposed(self.family, params.components, weights))

    def n_parameters(self, params: MixtureParams) -> Any:
        """Free parameters of the active components."""
        own = self._mixing.n_parameters(params.weights)
        return own + parts.count_parameters(self.family, params.components, self.active, self.n_components)

    @property
    def component_axes(self) -> Callable[[], MixtureParams]:
        """Where the components lead; absent where they are not exchangeable."""
        axes, of_weights = self.family.component_axes, self._mixing.component_axes()
        return lambda: MixtureParams(of_weights, axes())

    def relabelled(self, order: Array) -> Self:
        """The model of params whose components were taken in this order."""
        take = lambda leaf: leaf if leaf is None or jnp.ndim(leaf) == 0 else jnp.asarray(leaf)[order]  # noqa: E731
        family = ask.relabelled(self.family, order)
        return replace(self, family=family, concentration=take(self.concentration), active=take(self.active))
