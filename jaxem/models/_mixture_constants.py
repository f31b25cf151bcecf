"""A mixture's constants of the data, and the faster and the stable form of its densities: its family's."""

from dataclasses import replace
from typing import Any, Self

import jax
import jax.numpy as jnp

from .._typing import Array, Data
from ..contracts import capabilities as ask
from ..fold import constants as merging
from ..latent.finite import ungated, unlabelled
from ._mixture_params import MixtureFields, MixtureParams, MixtureStats
from .gate import covariates_of


class MixtureConstants(MixtureFields):
    """What `bind` takes from the data, and what follows from it."""

    def bind(self, data: Data, sample_weight: Array | None = None) -> Self:
        """The model with its family's constants of these data."""
        data = unlabelled(data)
        bound = self
        if self.gate is not None:
            bound = replace(bound, gate=self.gate.bind(covariates_of(data), sample_weight))
        family = ask.among(self.family, self.n_components if self.active is None else jnp.sum(jnp.asarray(self.active)))
        return replace(bound, family=ask.bind(family, ungated(data), sample_weight))

    def weigh(self, data: Data, sample_weight: Array | None) -> Any:
        """The weight behind the family's constants."""
        return merging.weigh(self.family, ungated(data), sample_weight)

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The mixture bound to the rows of both."""
        return replace(self, family=merging.merged(self.family, seen, other.family, other_seen))

    def merged_weight(self, seen: Any, other_seen: Any) -> Any:
        """The weight of both."""
        return merging.merged_weight(self.family, seen, other_seen)

    def recentred(self, params: MixtureParams) -> Self:
        """The model on its family's stable path, moments about these params."""
        return replace(self, family=ask.recentred(self.family, params.components))

    def localised(self) -> Self:
        """The bound model for params relative to the data's own place, in which the loop works."""
        local = self if self.gate is None else replace(self, gate=self.gate.localised())
        return replace(local, family=ask.localised(self.family))

    def to_local(self, params: MixtureParams) -> MixtureParams:
        """Params as `localised` takes them."""
        weights = params.weights if self.gate is None else self.gate.to_local(params.weights)
        return MixtureParams(weights, ask.to_local(self.family, params.components))

    def to_global(self, params: MixtureParams) -> MixtureParams:
        """Inverse of `to_local`."""
        weights = params.weights if self.gate is None else self.gate.to_global(params.weights)
        return MixtureParams(weights, ask.to_global(self.family, params.components))

    @property
    def additive(self) -> bool:
        """Whether the statistics of two chunks add."""
        return self.gate is None and ask.told(self.family, "additive", True)

    @property
    def has_fast_path(self) -> bool:
        """Whether the family has one, and knows its limit."""
        return self.gate is None and ask.has_fast_path(self.family)

    def trusted(self, params: MixtureParams) -> Array:
        """Whether the family's fast path keeps its digits at these params."""
        return ask.trusted(self.family, params.components)

    @property
    def rows_add(self) -> bool:
        """Whether the densities are linear in prepared rows, so that those of an id may be added."""
        return self.gate is None and ask.told(self.family, "rows_add", False)

    @property
    def costly_features(self) -> bool:
        """Whether `prepare` takes much longer than to read the data."""
        return ask.told(self.family, "costly_features", False)

    def prepare(self, data: Data, columns_first: bool = False) -> Data:
        """The form of the data in which the family's two products are fastest; the data where there is none."""
        return data if self.gate else ask.prepare(self.family, data, self.n_components if columns_first else None)

    def elements_per_row(self, data: Data) -> int:
        """Of the largest array that the E step makes of the data, where that is more than prepared rows; else 0."""
        return ask.elements_per_row(self.family, ungated(data), self.n_components)

    def n_features(self, data: Data) -> int | None:
        """f of the features T in which the family is exponential; None if it says nothing, or components share params.

        About a place that components share, products of features would lose digits far from it.
        """
        axes = jax.tree.leaves(ask.component_axes(self.family), is_leaf=lambda axis: axis is None)
        apart = self.gate is None and all(axis is not None for axis in axes)
        return ask.n_features(self.family, data) if apart else None

    def linearised(self, params: MixtureParams) -> Self:
        """The bound model with moments about a place where products of features keep their digits."""
        return replace(self, family=self.family.linearised(params.components))

    def features(self, data: Data) -> Array:
        """T(x_i) as component j sees it, the first entry one: (k, f, n)."""
        return self.family.features(data)

    def natural(self, params: MixtureParams) -> Array:
        """Natural parameters of the features, with log w_j in the first: (k, f)."""
        return self.family.natural(params.components, self._mixing.log_weights(params.weights))

    def stats_of_products(self, products: Array) -> MixtureStats:
        """The statistics in Σ_i r_ij T_ij T_ijᵀ, (k, f, f)."""
        return MixtureStats(products[:, 0, 0], self.family.stats_of_products(products))
