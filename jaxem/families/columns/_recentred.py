"""Independent columns whose M step is solved in the space of the statistics, which a narrow component takes exactly.

On the stable path the statistics are taken about each component's own mean, where their differences keep their digits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import lax

from ..._typing import Array
from ...fold.constants import merged_variance
from ...fold.features import Features
from ...numerics.linalg import dot
from ._columns import ColumnSums, IndependentColumns


@dataclass(frozen=True)
class RecentredColumns(IndependentColumns):
    """What gammas and betas share.

    Attributes:
        centre: set by `bind`, (d,): column means, where a component without weight is put. The pivot is the same, or by
            `recentred` (k, d), the components' own.
        spread: set by `bind`, (d,): standard deviations of the logarithms.
    """

    centre: Any = field(default=None, kw_only=True)
    spread: Any = field(default=None, kw_only=True)

    costly_features: ClassVar[bool] = True
    _terms_about: ClassVar[Callable[..., list[Array]]]  # legal entries (n, d), a component's mean (1, d) -> t_s

    @property
    def _is_recentred(self) -> bool:
        return self.pivot is not None and jnp.ndim(self.pivot) == 2

    def merged(self, seen: Array, other: Self, other_seen: Array) -> Self:
        """The family bound to the rows of both."""
        bound = super().merged(seen, other, other_seen)
        return replace(bound, centre=bound.pivot, spread=merged_spread(self, seen, other, other_seen))

    def statistics(self, bank: Any, x: Array | Features, responsibilities: Array) -> ColumnSums:
        """Sums weighted with responsibilities (n, k). `bank` is not used."""
        if not self._is_recentred or isinstance(x, Features):
            return super().statistics(bank, x, responsibilities)
        x, present = self._filled(x)
        x = jnp.where(self._is_valid(x, 1), x, jnp.nan)

        def one(j: Array) -> tuple[Array, ...]:
            r = lax.dynamic_index_in_dim(responsibilities, j, 1, keepdims=False)
            terms = self._terms_about(x, self.pivot[j][None])
            if present is None:
                return jnp.sum(r), jnp.sum(r)[None], *(dot(r, term) for term in terms)
            terms = [jnp.where(present, term, 0) for term in terms]
            return jnp.sum(r), dot(r, present.astype(x.dtype)), *(dot(r, term) for term in terms)

        count, observed, *totals = lax.map(one, jnp.arange(responsibilities.shape[1]))
        return ColumnSums(count, observed, tuple(totals), jnp.zeros_like(count))

    def feasible(self, bank: Any) -> Array:
        """Whether all params are finite and positive: ()."""
        return jnp.all(jnp.stack([jnp.all((leaf > 0) & jnp.isfinite(leaf)) for leaf in jax.tree.leaves(bank)]))


def weights_of(x: Array, present: Array | None, sample_weight: Array | None) -> Array:
    """Sample weights of the entries, 0 where missing: shaped as x."""
    weight = jnp.ones((x.shape[0], 1), x.dtype) if sample_weight is None else sample_weight[:, None]
    return jnp.broadcast_to(weight, x.shape) if present is None else jnp.where(present, weight, 0)


def spread_of(values: Array, weight: Array) -> Array:
    """Weighted standard deviations of the columns, 0 without any weight: (d,)."""
    total = jnp.sum(weight, 0)
    safe = jnp.where(total > 0, total, 1)
    mean = jnp.sum(weight * values, 0) / safe
    return jnp.sqrt(jnp.sum(weight * jnp.square(values - mean[None]), 0) / safe)


def merged_spread(family: Any, seen: Array, other: Any, other_seen: Array) -> Array:
    """The spread of both. Only `trusted` asks for it: logarithms of the means stand in for means of the logarithms."""
    ours, theirs = (
        (jnp.log(family.centre), jnp.square(family.spread)),
        (jnp.log(other.centre), jnp.square(other.spread)),
    )
    return jnp.sqrt(merged_variance(ours, seen, theirs, other_seen))
