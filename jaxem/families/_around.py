"""Families around another one, whose constants of the data are the inner one's."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from .._typing import Array, Data


@dataclass(frozen=True)
class Around:
    """A family with another inside, in the field that `_inside` names.

    Its bank has the leaf of the inner one's that the place of the data moves, `_moved`.
    """

    _inside: ClassVar[str]
    _moved: ClassVar[str]

    @property
    def _inner(self) -> Any:
        return getattr(self, self._inside)

    def _bank(self, bank: Any) -> Any:
        """The inner family's bank."""
        raise NotImplementedError

    def _around(self, inner: Any) -> Self:
        return replace(self, **{self._inside: inner})

    def bind(self, x: Data, sample_weight: Array | None) -> Self:
        """The family with the inner one's constants of the data."""
        return self._around(self._inner.bind(x, sample_weight))

    def weigh(self, x: Data, sample_weight: Array | None) -> Any:
        """What stands behind the inner family's constants."""
        return self._inner.weigh(x, sample_weight)

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The family bound to the rows of both."""
        return self._around(self._inner.merged(seen, other._inner, other_seen))

    def merged_weight(self, seen: Any, other_seen: Any) -> Any:
        """What stands behind the constants of both."""
        return self._inner.merged_weight(seen, other_seen)

    def localised(self) -> Self:
        """The bound family for params relative to the data's own place."""
        return self._around(self._inner.localised())

    def to_local(self, bank: Any) -> Any:
        """The bank as `localised` takes it."""
        return self._with_moved(bank, self._inner.to_local(self._bank(bank)))

    def to_global(self, bank: Any) -> Any:
        """Inverse of `to_local`."""
        return self._with_moved(bank, self._inner.to_global(self._bank(bank)))

    def _with_moved(self, bank: Any, inner: Any) -> Any:
        return bank._replace(**{self._moved: getattr(inner, self._moved)})

    def recentred(self, bank: Any) -> Self:
        """The same family with moments about this bank's own place: its stable path."""
        return self._around(self._inner.recentred(self._bank(bank)))
