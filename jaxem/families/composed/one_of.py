"""Components of different families: zero inflation, background noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..._typing import Array, Data, Key
from ...contracts import capabilities as ask
from ...contracts import components as of_family
from ...fold import constants as merging
from ...numerics import tree as _tree
from ._composite import Composite


class _Prepared(NamedTuple):
    """The rows as each component likes them, and which rows it may explain, (n,) or None for all."""

    rows: tuple
    supported: tuple


@_tree.register
@dataclass(frozen=True, init=False)
class OneOf(Composite):
    """Component j has the j-th family: `OneOf(PointMass(0.0), Poisson())`, `OneOf(Uniform(), FullNormal())`.

    All components see the same data, each with a density of its own kind; a row outside of the support of one of them
    is never counted there. The params are a tuple of banks of one component. Components are told apart by their
    families, so they are never relabelled: there is no `component_axes`, results are not `ordered`, replicates of a
    bootstrap are left as they are.

    `Mixture.init`: k-means groups the rows for the components that have parameters, which one gets which group is left
    to chance (`fit_restarts` tries several); rows that a `PointMass` explains go there, and a background without
    parameters takes an equal share of every other row. `Labels` and `Responsibilities` name the components; what they
    give to a component that cannot explain the row is not counted.

    Attributes:
        parts: the families, as many as the mixture has components.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.zeros(60), jnp.repeat(jnp.arange(1.0, 6.0), jnp.array([4, 8, 10, 8, 4]))])[:, None]
        >>> model = jaxem.Mixture(jaxem.OneOf(jaxem.PointMass(0.0), jaxem.Poisson()), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, tol=1e-9)
        >>> result.params.weights.round(2), result.params.components[1].rate.round(2)
        (Array([0.62, 0.38], dtype=...), Array([[2.81]], dtype=...))
    """

    def __init__(self, *parts: Any) -> None:
        if not parts:
            raise ValueError("OneOf: expected a family for each component, got none.")
        for part in parts:
            if not ask.offers(part, "log_prob") or isinstance(part, type):
                raise ValueError(f"OneOf: expected families, e.g. OneOf(PointMass(0.0), Poisson()), got {part!r}.")
            if ask.offers(part, "n_components"):
                raise ValueError(f"OneOf: expected families of one component, got {type(part).__name__}.")
        object.__setattr__(self, "parts", tuple(parts))

    @property
    def n_components(self) -> int:
        """k."""
        return len(self.parts)

    def _leading(self, values: Array | None, j: int) -> Array | None:
        return None if values is None else jnp.asarray(values)[j : j + 1]

    def _last(self, values: Array, j: int) -> Array:
        return values[:, j : j + 1]

    def _join(self, flags: list) -> Array:
        return jnp.concatenate(flags)

    def _raw_rows(self, x: Data) -> tuple:
        return (x,) * len(self.parts)

    def cast_rows(self, x: Data, dtype: Any) -> Data:
        """The data as all parts can read them: whole numbers stay such if every part takes them."""
        for part in self.parts:
            x = ask.cast_rows(part, x, dtype)
        return x

    def _count(self, n_components: int) -> int:
        return 1

    def _named(self, j: int) -> str:
        return f"component {j}, {type(self.parts[j]).__name__}"

    # --- rows that a component cannot explain

    def _supported(self, x: Data) -> _Prepared:
        """The rows, legal ones in the place of those that a component cannot explain, and which are not."""
        pairs = self._list(lambda j, part: ask.supported(part, x))
        return _Prepared(tuple(rows for rows, _ in pairs), tuple(inside for _, inside in pairs))

    def _rows_of_parts(self, x: Data) -> tuple:
        return (x if isinstance(x, _Prepared) else self._supported(x)).rows

    def bind(self, x: Data, sample_weight: Array | None) -> Self:
        """The family with the constants of the rows that each component may explain."""
        return self._of(self._of_own_rows(ask.bind, x, sample_weight))

    def weigh(self, x: Data, sample_weight: Array | None) -> tuple:
        """The weight behind the constants of each component, of the rows that it may explain."""
        return self._of_own_rows(merging.weigh, x, sample_weight)

    def _of_own_rows(self, make: Callable, x: Data, sample_weight: Array | None) -> tuple:
        """`make(part, rows, weights)` of each component, with weight 0 where it may not explain a row."""

        def one(j: int, part: Any, rows: Any, inside: Any) -> Any:
            if inside is None or _claims(part) is not None:
                return make(part, x, sample_weight)
            ones = jnp.ones(inside.shape, _tree.float_dtype(x)) if sample_weight is None else sample_weight
            return make(part, rows, jnp.where(inside, ones, 0))

        return self._map(one, *self._supported(x))

    def prepare(self, x: Data, n_components: int | None) -> _Prepared:
        """The rows as the products of each component like them."""
        rows, supported = self._supported(x)
        alone = None if n_components is None else 1

        return _Prepared(self._map(lambda j, part, own: ask.prepare(part, own, alone), rows), supported)

    def log_prob(self, bank: tuple, x: Data) -> Array:
        """log f_j(x_i): (n, k); −inf outside of the support."""
        prepared = x if isinstance(x, _Prepared) else self._supported(x)

        def one(j: int, part: Any, own: Any, rows: Any, inside: Any) -> Array:
            log_prob = part.log_prob(own, rows)
            return log_prob if inside is None else jnp.where(inside[:, None], log_prob, -jnp.inf)

        return jnp.concatenate(self._list(one, bank, *prepared), 1)

    def sample(self, bank: tuple, key: Key, z: Array) -> Data:
        """One row of component z_i for each entry of z (n,)."""
        keys = jax.random.split(key, len(self.parts))
        draws = self._list(lambda j, part, own, key: part.sample(own, key, jnp.zeros_like(z)), bank, keys)
        return _chosen(z, draws)

    def sample_like(self, bank: tuple, key: Key, z: Array, x: Data) -> Data:
        """One row of component z_i in the place of each row of x."""
        keys, alone = jax.random.split(key, len(self.parts)), jnp.zeros_like(z)
        one = lambda j, part, own, key: of_family.sample_like(part, own, key, alone, x)  # noqa: E731
        return _chosen(z, self._list(one, bank, keys))

    # --- the start

    def assigned(
        self, draw: Callable, x: Data, sample_weight: Array | None, active: Array | None, groups: bool
    ) -> Array:
        """Responsibilities (n, k) to start from.

        Args:
            draw: (k, sample_weight, active) -> states (n,) or responsibilities (n, k), of an initialiser.
            x: rows, all present.
            sample_weight: (n,) or None.
            active: (k,) or None.
            groups: whether the states that are drawn are groups of rows, rather than components.
        """
        k, dtype = len(self.parts), _tree.float_dtype(x)
        inside = [None if own is None else own.astype(dtype)[:, None] for own in self._supported(x).supported]
        n = _tree.n_rows(x)
        on = jnp.ones(k, dtype) if active is None else jnp.asarray(active).astype(dtype)
        claims = self._list(lambda j, part: _claims(part))
        if not groups:
            drawn = draw(k, sample_weight, active)
            r = jax.nn.one_hot(drawn, k, dtype=dtype) if drawn.ndim == 1 else drawn.astype(dtype)
        else:
            free = [j for j in range(k) if claims[j] is None]
            at_points = [own * on[j] for j, own in enumerate(inside) if claims[j] and own is not None]
            elsewhere = jnp.ones((n, 1), dtype)
            for own in at_points:
                elsewhere = elsewhere * (1 - own)
            columns: list[Any] = [None] * k
            if free:
                weight = elsewhere[:, 0] * (1 if sample_weight is None else sample_weight)
                states = draw(len(free), weight, None if active is None else jnp.asarray(active)[np.array(free)])
                states = jax.nn.one_hot(states, len(free), dtype=dtype) * elsewhere
                for i, j in enumerate(free):
                    columns[j] = states[:, i : i + 1] * ((k - 1) / k if False in claims else 1)
            for j in range(k):
                if claims[j] is not None:
                    columns[j] = jnp.ones((n, 1), dtype) if claims[j] else elsewhere / k
            r = jnp.concatenate(columns, 1)
        r = jnp.concatenate([r[:, j : j + 1] * (1 if own is None else own) for j, own in enumerate(inside)], 1)
        return r * on[None]

    def points(self, x: Data) -> Array:
        """The points of the first family that has parameters, for k-means."""
        free = [j for j, part in enumerate(self.parts) if _claims(part) is None]
        if not free:
            return _tree.side_by_side(x)
        return _tree.side_by_side(ask.points(self.parts[free[0]], self._supported(x).rows[free[0]]))

    # --- the components, which are not exchangeable

    def by_component(self, fn: Callable[[Any, Array], Array], values: Array, tree: tuple) -> tuple:
        """fn(values of its component, leaf) for every leaf."""
        return self._map(lambda j, part, own: jax.tree.map(lambda leaf: fn(values[j : j + 1], leaf), own), tree)

    def count_parameters(self, bank: tuple, active: Array | None, n_components: int) -> Any:
        """Free parameters of the active components."""

        def one(j: int, part: Any, own: Any) -> Any:
            return ask.n_parameters(part, own, 1 if active is None else jnp.asarray(active)[j].astype(int))

        return sum(self._list(one, bank))

    def n_parameters(self, bank: tuple, n_components: Any) -> Any:
        """Free parameters of all components."""
        return self.count_parameters(bank, None, n_components)

    def relabelled(self, order: Array) -> Self:
        """Raises a ValueError: the components are told apart by their families."""
        raise ValueError("OneOf: its components are told apart by their families and cannot be relabelled.")

    # --- the data

    def readable(self, x: Data) -> Data:
        """The rows with a number where every component allows a missing entry."""
        if not all(ask.offers(part, "readable") for part in self.parts):
            return x
        read = self._list(lambda j, part: part.readable(x))
        return jax.tree.map(lambda first, *others: _all_read(first, *others), *read)

    def check_data(self, x: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete rows that no component can explain."""
        if _tree.is_tracing(self):
            return
        with jax.ensure_compile_time_eval():
            none = _unexplained(self, jax.tree.map(jnp.asarray, x), sample_weight)
        if none is not None and np.asarray(none).any():
            rows = np.flatnonzero(np.asarray(none))
            names = ", ".join(type(part).__name__ for part in self.parts)
            values = [np.asarray(leaf)[rows[0]].tolist() for leaf in jax.tree.leaves(x)]
            raise ValueError(
                f"data: expected rows that one of {names} can explain, got {values[0] if len(values) == 1 else values} "
                f"in row {rows[0]} ({len(rows)} such rows in all); leave them out or give them sample_weight 0."
            )


@jax.jit
def _unexplained(family: OneOf, x: Data, sample_weight: Array | None) -> Array | None:
    supported = family._supported(x).supported
    if any(inside is None for inside in supported):
        return None
    none = ~jnp.any(jnp.stack(supported), 0)
    return none if sample_weight is None else none & (sample_weight > 0)


def _chosen(z: Array, draws: list) -> Data:
    """Row i of the draw of component z_i."""

    def choose(*leaves: Array) -> Array:
        chosen, *others = jnp.broadcast_arrays(*leaves)
        for j, leaf in enumerate(others, 1):
            chosen = jnp.where((z == j).reshape(-1, *[1] * (leaf.ndim - 1)), leaf, chosen)
        return chosen

    return jax.tree.map(choose, *draws)


def _all_read(first: Array, *others: Array) -> Array:
    for other in others:
        first = jnp.where(jnp.isnan(other), other, first)
    return first


def _claims(part: Any) -> bool | None:
    """Of a family without parameters, whether all rows that it explains are its own; None of others."""
    return ask.told(part, "claims", None)
