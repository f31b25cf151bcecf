"""Positive columns whose shape says how far a component is from one point."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from ..._typing import Array
from ...contracts.status import Status
from ._columns import ColumnFamily


@dataclass(frozen=True)
class PositiveColumns(ColumnFamily):
    """What gammas and Weibulls share.

    Attributes:
        floor: regularisation, whatever the unit of the data: the log prior −floor · Σ shape. 0 is pure maximum
            likelihood.
    """

    floor: Any = 1e-6

    _support: ClassVar[str] = "finite positive numbers"
    _legal: ClassVar[float] = 1.0
    _vague: ClassVar[float] = 1.0

    def _is_valid(self, x: Array, axis: int) -> Array:
        return (x > 0) & (x < jnp.inf)

    def log_prior(self, bank: Any, active: Array | None = None) -> Array:
        """−floor · Σ shape over the active components: ()."""
        terms = jnp.sum(bank.shape, 1)
        terms = terms if active is None else jnp.where(active, terms, 0)
        return -jnp.asarray(self.floor, terms.dtype) * jnp.sum(terms)

    def health(self, bank: Any, active: Array) -> Array:
        """DEGENERATE if an active component lies at one point, to rounding, else RUNNING."""
        point = bank.shape > 0.5 / jnp.finfo(bank.shape.dtype).eps
        degenerate = jnp.any(point & active[:, None])
        return jnp.where(degenerate, Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)

    def points(self, x: Array) -> Array:
        """Logarithms, for k-means."""
        return jnp.log(super().points(x))
