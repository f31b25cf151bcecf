"""What families made of other families share: everything that their parts offer, part by part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax.numpy as jnp

from ..._typing import Array, Data, Stats
from ...contracts import capabilities as ask
from ...contracts import components as of_family
from ...contracts.domains import check_params
from ...fold import constants as merging
from ._parts_space import PartsSpace


@dataclass(frozen=True, init=False)
class Composite(PartsSpace):
    """A family of parts; banks, statistics and free coordinates are containers shaped as `parts`.

    Attributes:
        parts: the families, in a dict or a tuple.
    """

    # --- constants of the data, paths

    @property
    def additive(self) -> bool:
        """Whether the statistics of two chunks add: those of all parts."""
        return all(ask.told(part, "additive", True) for part in self._families)

    @property
    def closed_m_step(self) -> bool:
        """Whether the M step is a formula: that of all parts."""
        return all(ask.told(part, "closed_m_step", True) for part in self._families)

    def among(self, n_components: Any) -> Self:
        """The family of one of so many components, for the parts whose prior asks for it."""
        one = lambda name, part: ask.among(part, n_components)  # noqa: E731
        return self._of(self._map(one))

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The family bound to the rows of both."""
        one = lambda name, part, own, theirs, more: merging.merged(part, own, theirs, more)  # noqa: E731
        return self._of(self._map(one, seen, other.parts, other_seen))

    def merged_weight(self, seen: Any, other_seen: Any) -> Any:
        """The weight of both, by part."""
        return self._map(lambda name, part, own, more: merging.merged_weight(part, own, more), seen, other_seen)

    def localised(self) -> Self:
        """The bound family for params relative to the data's own place, for the parts that know it."""
        return self._of(self._map(lambda name, part: ask.localised(part)))

    def to_local(self, bank: Any) -> Any:
        """The bank as `localised` takes it."""
        return self._map(lambda name, part, own: ask.to_local(part, own), bank)

    def to_global(self, bank: Any) -> Any:
        """Inverse of `to_local`."""
        return self._map(lambda name, part, own: ask.to_global(part, own), bank)

    def recentred(self, bank: Any) -> Self:
        """The family with its parts on their stable paths."""
        move = lambda name, part, own: ask.recentred(part, own)  # noqa: E731
        return self._of(self._map(move, bank))

    @property
    def has_fast_path(self) -> bool:
        """Whether some part has one, and statistics are no rows."""
        return self.additive and any(ask.has_fast_path(part) for part in self._families)

    def trusted(self, bank: Any) -> Array:
        """Whether all parts trust their fast paths: ()."""
        return jnp.all(jnp.stack(self._list(lambda name, part, own: ask.trusted(part, own), bank)))

    # --- statistics and their mode

    def statistics(self, bank: Any, x: Data, responsibilities: Array) -> Stats:
        """Those of every part."""

        def one(name: Any, part: Any, rows: Any, own: Any) -> Stats:
            return part.statistics(own, rows, self._last(responsibilities, name))

        return self._map(one, self._rows_of_parts(x), bank)

    def estimate(self, bank: Any, stats: Stats, active: Array | None = None) -> Any:
        """The mode of every part."""
        return self._map(lambda name, part, own, s: part.estimate(own, s, self._leading(active, name)), bank, stats)

    def expected_log_prob(self, bank: Any, stats: Stats) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        return _sum(self._list(lambda name, part, own, s: part.expected_log_prob(own, s), bank, stats))

    def log_prior(self, bank: Any, active: Array | None = None) -> Array:
        """The sum of the parts' log priors: ()."""
        return self.log_prior_where(bank, active, None)

    def log_prior_where(self, bank: Any, active: Array | None, alive: Array | None) -> Array:
        """`log_prior`, where a prior that is not proper counts only in components that are alive: ()."""

        def one(name: Any, part: Any, own: Any) -> Array:
            on, up = self._leading(active, name), self._leading(alive, name)
            if up is None and ask.offers(part, "log_prior"):
                return part.log_prior(own, on)
            return of_family.log_prior(part, own, on, up)

        return _sum(self._list(one, bank))

    # --- bookkeeping

    def at_floor(self, bank: Any, count: Array) -> Array | None:
        """Which components lie at the floor of some part, given the weights of their rows (k,): (k,) booleans.

        None where no part has one.
        """
        counts = self._list(lambda name, part: self._leading(count, name))
        flags = self._list(lambda name, part, own: ask.at_floor(part, own, self._leading(count, name)), bank)
        if all(own is None for own in flags):
            return None
        pairs = zip(counts, flags, strict=True)
        return self._join([jnp.zeros(jnp.shape(of), bool) if own is None else own for of, own in pairs])

    def health(self, bank: Any, active: Array) -> Array:
        """The worst of the parts."""
        one = lambda name, part, own: ask.health(part, own, self._leading(active, name))  # noqa: E731
        return jnp.max(jnp.stack(self._list(one, bank)))

    def validate(self, bank: Any, x: Data, n_components: int) -> None:
        """Raises a ValueError or TypeError, naming the part, if bank and data do not fit the parts."""
        self.validate_data(x)
        same = isinstance(bank, type(self.parts)) and len(bank) == len(self.parts)
        if not same or (isinstance(bank, dict) and set(bank) != set(self.parts)):
            raise ValueError(
                f"params.components: expected {self._described()}, a bank for each part of {type(self).__name__}, got "
                f"{type(bank).__name__}{_keys(bank)}."
            )

        def one(name: Any, part: Any, own: Any, rows: Any) -> None:
            self._naming(name, lambda: ask.validate(part, own, rows, self._count(n_components)))

        self._map(one, bank, self._raw_rows(x))

    def check_params(self, bank: Any, *, lanes: bool = False) -> None:
        """Raises a ValueError that names part and leaf of concrete params outside of the parameter space."""

        def one(name: Any, part: Any, own: Any) -> None:
            self._naming(name, lambda: check_params(part, own, lanes=lanes))

        self._map(one, bank)

    def elements_per_row(self, x: Data, n_components: int) -> int:
        """Of the largest arrays that the parts make."""
        count = self._count(n_components)
        one = lambda name, part, rows: ask.elements_per_row(part, rows, count)  # noqa: E731
        return sum(self._list(one, self._raw_rows(x)))

    def informative(self, x: Data) -> Array | None:
        """Which rows say something to some part: (n,); None where all do."""
        one = lambda name, part, rows: ask.informative(part, rows)  # noqa: E731
        each = self._list(one, self._raw_rows(x))
        return None if any(rows is None for rows in each) else jnp.any(jnp.stack(each), 0)

    def validate_data(self, x: Data) -> None:
        """Raises a ValueError, naming the part, if the data do not fit the parts."""

        def one(name: Any, part: Any, rows: Any) -> None:
            self._naming(name, lambda: ask.validate_data(part, rows))

        self._map(one, self._raw_rows(x))

    _raw_rows: ClassVar[Callable[..., Any]]
    _join: ClassVar[Callable[[list], Array]]  # booleans over the components of every part -> (k,)
    _count: ClassVar[Callable[[int], int]]

    def _naming(self, name: Any, check: Callable[[], Any]) -> None:
        try:
            check()
        except (ValueError, TypeError) as error:
            raise type(error)(f"{self._named(name)}: {error}") from error

    def _described(self) -> str:
        if isinstance(self.parts, dict):
            return f"a dict with the keys {sorted(self.parts)}"
        return f"a tuple of {len(self.parts)}"


def _keys(tree: Any) -> str:
    if isinstance(tree, dict):
        return f" with the keys {sorted(tree)}"
    return f" of {len(tree)}" if isinstance(tree, tuple) and not hasattr(tree, "_fields") else ""


def _sum(terms: list[Array]) -> Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
