"""Columns of counts."""

from typing import ClassVar

from ..._typing import Array
from ._columns import is_count


class Counts:
    """What families of counts share: whole numbers from 0 are legal, and enter linearly."""

    _support: ClassVar[str] = "non-negative integers"
    _legal: ClassVar[float] = 0.0
    _vague: ClassVar[float] = 1.0

    def _is_valid(self, x: Array, axis: int) -> Array:
        return is_count(x)


class LinearCounts(Counts):
    """Counts that are their own sufficient statistic, with a base measure."""

    costly_features: ClassVar[bool] = True
    _has_base: ClassVar[bool] = True

    def _terms(self, x: Array) -> list[Array]:
        return [x]
