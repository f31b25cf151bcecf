"""Means relative to a place of the data: far from the origin these keep their digits."""

from dataclasses import replace
from typing import Any, Self

import jax.numpy as jnp

from ..._typing import Array


class Placed:
    """A family with means, that `bind` gives a `pivot` and a `centre`, (d,); of its bank only the means move."""

    pivot: Any
    origin: Any
    centre: Any

    def localised(self) -> Self:
        """The bound family for means relative to the data's own: far from the origin these keep their digits."""
        family: Any = self
        return replace(family, origin=self._place(), pivot=None, centre=jnp.zeros_like(self.pivot))

    def to_local(self, bank: Any) -> Any:
        """The bank as `localised` takes it."""
        return bank._replace(mean=bank.mean - self._place()[None])

    def to_global(self, bank: Any) -> Any:
        """Inverse of `to_local`."""
        return bank._replace(mean=bank.mean + self._place()[None])

    def merged_weight(self, seen: Any, other_seen: Any) -> Any:
        """What stands behind the constants of both."""
        return seen.merged(other_seen)

    def _place(self) -> Array:
        return jnp.where(jnp.isfinite(self.pivot), self.pivot, 0)  # params outlive data that are not finite

    def _rows(self, x: Array) -> Array:
        return x if self.origin is None else x - self.origin[None]
