"""Columns of different kinds, independent within a component."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from ..._typing import Array, Data, Key
from ...contracts import capabilities as ask
from ...contracts import components as of_family
from ...fold import constants as merging
from ...numerics import tree as _tree
from ._composite import Composite


@_tree.register
@dataclass(frozen=True, init=False)
class Product(Composite):
    """Blocks of columns, each with a family of its own, independent given the component.

    log f(x | j) = Σ_name log f_name(x[name] | j). The data are a dict with the names of the parts, the params a dict of
    their banks. Whatever a part offers, such as entries that may be missing, priors, or a fast path, holds within it;
    where one part leaves its fast path, all do. The derivative of a fit takes the path of any family, without the one
    matrix product that a single exponential family has.

    Attributes:
        parts: the families by name, in the order of the names.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = {"size": jnp.array([1.0, 1.2, 0.8, 5.0, 5.5, 4.5])[:, None],
        ...      "count": jnp.array([0, 1, 0, 9, 8, 10])[:, None]}
        >>> model = jaxem.Mixture(jaxem.Product(size=jaxem.FullNormal(), count=jaxem.Poisson()), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> jnp.sort(result.params.components["count"].rate[:, 0]).round(2)
        Array([0.33, 9.  ], dtype=...)
    """

    def __init__(self, **parts: Any) -> None:
        if not parts:
            raise ValueError("Product: expected at least one family by name, got none; write Product(a=FullNormal()).")
        for name, part in parts.items():
            if not ask.offers(part, "log_prob") or isinstance(part, type):
                raise ValueError(f"Product: expected a family for {name!r}, got {part!r}.")
        object.__setattr__(self, "parts", dict(sorted(parts.items())))

    def _leading(self, values: Array | None, name: str) -> Array | None:
        return values

    def _last(self, values: Array, name: str) -> Array:
        return values

    def _join(self, flags: list) -> Array:
        return jnp.any(jnp.stack(flags), 0)

    def _rows_of_parts(self, x: Data) -> Data:
        return x

    def _raw_rows(self, x: Data) -> Data:
        if not isinstance(x, Mapping) or set(x) != set(self.parts):
            got = f"the names {sorted(x)}" if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(f"data: expected a dict with the names {sorted(self.parts)} of the parts, got {got}.")
        return x

    def cast_rows(self, x: Data, dtype: Any) -> Data:
        """The data as each part reads its own."""
        if not isinstance(x, Mapping) or set(x) != set(self.parts):
            return _tree.cast_data(x, dtype)  # an error soon
        return self._map(lambda name, part, rows: ask.cast_rows(part, rows, dtype), x)

    def _count(self, n_components: int) -> int:
        return n_components

    def _named(self, name: str) -> str:
        return f"part {name!r}"

    def bind(self, x: Data, sample_weight: Array | None) -> Self:
        """The family with the parts' constants of the data."""
        bound = lambda name, part, rows: ask.bind(part, rows, sample_weight)  # noqa: E731
        return self._of(self._map(bound, x))

    def weigh(self, x: Data, sample_weight: Array | None) -> dict:
        """The weight behind the parts' constants."""
        return self._map(lambda name, part, rows: merging.weigh(part, rows, sample_weight), x)

    def prepare(self, x: Data, n_components: int | None) -> Data:
        """The data with the columns of every part as its products like them."""
        return self._map(lambda name, part, rows: ask.prepare(part, rows, n_components), x)

    @property
    def rows_add(self) -> bool:
        """Whether the densities of all parts are linear in prepared rows."""
        return all(ask.told(part, "rows_add", False) for part in self._families)

    def log_prob(self, bank: dict, x: Data) -> Array:
        """Σ_name log f_name(x_i[name] | j): (n, k)."""
        terms = self._list(lambda name, part, own, rows: part.log_prob(own, rows), bank, x)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def sample(self, bank: dict, key: Key, z: Array) -> dict:
        """One row of component z_i for each entry of z (n,)."""
        keys = dict(zip(self.parts, jax.random.split(key, len(self.parts)), strict=True))
        return self._map(lambda name, part, own, key: part.sample(own, key, z), bank, keys)

    def sample_like(self, bank: dict, key: Key, z: Array, x: Data) -> dict:
        """One row of component z_i in the place of each row of x."""
        keys = dict(zip(self.parts, jax.random.split(key, len(self.parts)), strict=True))
        one = lambda name, part, own, key, rows: of_family.sample_like(part, own, key, z, rows)  # noqa: E731
        return self._map(one, bank, keys, self._raw_rows(x))

    # --- the components, which all parts share

    @property
    def component_axes(self) -> Callable[[], dict]:
        """Those of the parts; absent where the components of a part are not exchangeable."""
        own = self._map(lambda name, part: part.component_axes)
        return lambda: {name: axes() for name, axes in own.items()}

    def by_component(self, fn: Callable[[Any, Array], Array], values: Array, tree: dict) -> dict:
        """fn(values of its components, leaf) for every leaf."""
        return self._map(lambda name, part, own: of_family.by_component(part, fn, values, own), tree)

    def count_parameters(self, bank: dict, active: Array | None, n_components: int) -> Any:
        """Free parameters of the active components."""
        one = lambda name, part, own: of_family.count_parameters(part, own, active, n_components)  # noqa: E731
        return sum(self._list(one, bank))

    def n_parameters(self, bank: dict, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return sum(self._list(lambda name, part, own: ask.n_parameters(part, own, n_components), bank))

    def relabelled(self, order: Array) -> Self:
        """The family of components that were taken in this order."""
        one = lambda name, part: ask.relabelled(part, order)  # noqa: E731
        return self._of(self._map(one))

    # --- the data

    def points(self, x: Data) -> Array:
        """The points of the parts side by side, for k-means, which scales columns."""

        def one(name: str, part: Any, rows: Any) -> Array:
            return _tree.side_by_side(ask.points(part, rows))

        return jnp.concatenate(self._list(one, x), 1)

    @property
    def supported(self) -> Callable[[Data], tuple[dict, Array]]:
        """Rows legal in every part, and which rows were so in all of them: (n,); absent where every part takes any."""
        if not any(ask.offers(part, "supported") for part in self._families):
            raise AttributeError("supported")

        def of(x: Data) -> tuple[dict, Array]:
            limited = [name for name, part in self.parts.items() if ask.offers(part, "supported")]
            pairs = {name: self.parts[name].supported(x[name]) for name in limited}
            rows = {name: pairs[name][0] if name in pairs else x[name] for name in self.parts}
            return rows, jnp.all(jnp.stack([inside for _, inside in pairs.values()]), 0)

        return of

    def readable(self, x: Data) -> Data:
        """The data with a number where a part allows a missing entry."""
        return self._map(lambda name, part, rows: ask.readable(part, rows), x)

    def check_data(self, x: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError, naming the part, on concrete data outside of its support."""
        self._check("check_data", x, sample_weight)

    def check_table(self, x: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError, naming the part, on concrete data that as a whole do not determine it."""
        self._check("check_table", x, sample_weight)

    def _check(self, method: str, x: Data, sample_weight: Array | None) -> None:
        def one(name: str, part: Any, rows: Any) -> None:
            if hasattr(part, method):
                self._naming(name, lambda: getattr(part, method)(rows, sample_weight))

        self._map(one, x)
