"""What travels with the rows: labels of their states, and ids of which all rows share one state, their units."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Data, PyTree
from ..contracts import capabilities as ask
from ..numerics import tree as _tree

_ROWS_A_PART, _MOST_PARTS = 16, 1024  # see `parts_of_units`


class Labelled(NamedTuple):
    """Data with partly known latent states; made by `labelled`.

    Attributes:
        data: as the model takes it, or `Grouped`.
        allowed: (n,) the known state, −1 where unknown; or (n, k) which states are possible. Of `Sequences` (n, t) or
            (n, t, k).
    """

    data: Data
    allowed: Array


@_tree.register
@dataclass(frozen=True)
class Grouped:
    """Data whose rows share a latent state with all others of their id; made by `grouped`.

    Attributes:
        data: as the model takes it, rows in the user's order.
        ids: (n,) integers, the position of each row's id among the sorted ones.
        n_units: of ids, u; static.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data = jaxem.grouped(jnp.array([[0.0], [1.0], [9.0]]), ["b", "a", "b"])
        >>> data.ids.tolist(), data.n_units
        ([1, 0, 1], 2)
    """

    data: Any
    ids: Any
    n_units: int = field(metadata={"static": True})

    labels: ClassVar[Any] = None  # the sorted ids, (u,), of what `grouped` returns; nothing that jax passes on

    def per_id(self, values: PyTree) -> PyTree:
        """Of values that the rows of an id share, such as responsibilities, those of each id: (u, …).

        Args:
            values: leaves (n, …), in the order of the rows.

        Returns:
            Leaves (u, …), in the order of the sorted ids, that of `numpy.unique(ids)`.

        Example:
            >>> import jax.numpy as jnp, jaxem
            >>> data = jaxem.grouped(jnp.zeros((3, 1)), ["b", "a", "b"])
            >>> data.per_id(jnp.array([5, 7, 5]))
            Array([7, 5], dtype=...)
        """
        first = first_rows(self, None)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[first], values)


def first_rows(units: Grouped, sample_weight: Array | None) -> Array:
    """The first row of positive weight of each unit: (u,); any row where there is none."""
    ids = jnp.asarray(units.ids)
    n = ids.shape[0]
    index = jnp.arange(n, dtype=jnp.int32)
    if sample_weight is not None:
        index = jnp.where(sample_weight > 0, index, n - 1)
    return jnp.minimum(jax.ops.segment_min(index, ids, units.n_units), n - 1)


def unit_weight(units: Grouped, sample_weight: Array | None) -> Array:
    """The sample weight of each unit, that of its rows which exist: (u,); 0 where none does."""
    ids = jnp.asarray(units.ids)
    if sample_weight is None:
        dtype = _tree.float_dtype(units.data)
        return (jax.ops.segment_sum(jnp.ones_like(ids), ids, units.n_units) > 0).astype(dtype)
    # a weight that is no number has to be seen: it counts as there
    there = jax.ops.segment_max((~(sample_weight <= 0)).astype(jnp.int32), ids, units.n_units) > 0
    return jnp.where(there, sample_weight[first_rows(units, sample_weight)], 0)


def row_weight(units: Grouped, weights: Array, sample_weight: Array | None) -> Array:
    """Weights of units (u,) as those of their rows (n,): 0 where `sample_weight` is."""
    rows = weights[jnp.asarray(units.ids)]
    return rows if sample_weight is None else jnp.where(sample_weight == 0, 0, rows)


def by_row(values: Array, data: Data) -> Array:
    """Values of units (u, …) as those of their rows (n, …); as they are where every row is a unit."""
    units = units_of(data)
    return values if units is None else values[jnp.asarray(units.ids)]


def sum_by_unit(values: Array, ids: Array, n_units: int) -> Array:
    """Σ over the rows of each unit: (n, …) to (u, …)."""
    part, n_parts = parts_of_units(ids, jnp.arange(ids.shape[0], dtype=jnp.int32), ids.shape[0], n_units)
    return sum_of_parts(jax.ops.segment_sum(values, part, n_units * n_parts), n_parts)


def parts_of_units(ids: Array, rows: Array, n: int, n_units: int) -> tuple[Array, int]:
    """Which partial sum of its unit each of these rows goes to, and of how many parts each unit is.

    Rows are added one after the other, and a hundred thousand in float32 would keep five digits. With 16 rows a part on
    average, and at most 1024 parts, either sum is short; parts take a sixteenth of what the rows take.
    """
    n_parts = max(1, min(_MOST_PARTS, n // (_ROWS_A_PART * n_units)))
    return (ids if n_parts == 1 else ids * n_parts + rows % n_parts), n_parts


def sum_of_parts(sums: Array, n_parts: int) -> Array:
    """The sum of each unit of those of its parts."""
    return sums if n_parts == 1 else jnp.sum(sums.reshape(-1, n_parts, *sums.shape[1:]), 1)


def mean_by_unit(values: Array, units: Grouped, sample_weight: Array | None) -> Array:
    """The mean over the rows of positive weight of each unit: (n, …) to (u, …); 0 without any."""
    ids = jnp.asarray(units.ids)
    present = jnp.ones(ids.shape, values.dtype) if sample_weight is None else (sample_weight > 0).astype(values.dtype)
    shape = (-1,) + (1,) * (values.ndim - 1)
    count = sum_by_unit(present, ids, units.n_units)
    sums = sum_by_unit(jnp.where(present.reshape(shape) > 0, values, 0), ids, units.n_units)
    return sums / jnp.maximum(count, 1).reshape(shape)


def draw_by_unit(draw: Any, data: Data, n: int, sample_weight: Array | None) -> Array:
    """What `draw(n, sample_weight)` gives to each row; drawn for units where the data have them."""
    units = units_of(data)
    if units is None:
        return draw(n, sample_weight)
    own = None if sample_weight is None else unit_weight(units, sample_weight)
    return row_weight(units, draw(units.n_units, own), sample_weight)


def units_of(data: Data) -> Grouped | None:
    """The grouping of the data, within their labels too; None where every row is a unit."""
    inner = data.data if isinstance(data, Labelled) else data
    return inner if isinstance(inner, Grouped) else None


def with_units(data: Data, units: Grouped) -> Data:
    """The data, grouped already, with this grouping."""
    return data._replace(data=units) if isinstance(data, Labelled) else units


def n_units_present(data: Data, sample_weight: Array | None) -> Array:
    """How many units have rows of positive weight; rows, where every one is a unit: ()."""
    units = units_of(data)
    if units is not None:
        return jnp.sum(unit_weight(units, sample_weight) > 0)
    return jnp.asarray(_tree.n_rows(data)) if sample_weight is None else jnp.sum(sample_weight > 0)


def total_units(model: Any, data: Data, rows: Data, sample_weight: Array | None) -> Array:
    """Σ sample weights of units, see `capabilities.total_units`; `rows` are the data as the model takes them: ()."""
    units = units_of(data)
    return ask.total_units(model, rows, sample_weight) if units is None else jnp.sum(unit_weight(units, sample_weight))
