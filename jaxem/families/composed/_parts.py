"""Families in a container, and functions over them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ..._typing import Array


@dataclass(frozen=True, init=False)
class Parts:
    """A container of families, and of what belongs to each.

    Attributes:
        parts: the families, in a dict or a tuple.
    """

    parts: Any

    # what a part sees of an array over the components, its leading or its last axis
    _leading: ClassVar[Callable[..., Any]]
    _last: ClassVar[Callable[..., Array]]
    _rows_of_parts: ClassVar[Callable[..., Any]]  # data -> what each part sees, shaped as `parts`
    _named: ClassVar[Callable[..., str]]

    def _of(self, parts: Any) -> Self:
        """The composite of other parts."""
        made = object.__new__(type(self))
        object.__setattr__(made, "parts", parts)
        return made

    def _map(self, fn: Callable, *trees: Any) -> Any:
        """fn(name, part, its entry of every tree) over the parts; None is None to every part."""
        pick = lambda name: (None if tree is None else tree[name] for tree in trees)  # noqa: E731
        if isinstance(self.parts, dict):
            return {name: fn(name, part, *pick(name)) for name, part in self.parts.items()}
        return tuple(fn(j, part, *pick(j)) for j, part in enumerate(self.parts))

    def _list(self, fn: Callable, *trees: Any) -> list:
        mapped = self._map(fn, *trees)
        return list(mapped.values()) if isinstance(mapped, dict) else list(mapped)

    @property
    def _families(self) -> list:
        return self._list(lambda name, part: part)
