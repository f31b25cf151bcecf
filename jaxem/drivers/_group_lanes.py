"""The rows of a table by group, as lanes: what `fit_groups` and `select` with groups have in common. Host code."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..latent.finite import in_place_of, unlabelled
from ..latent.grouped import regrouped
from ..latent.units import units_of, with_units
from ..numerics import tree as _tree
from ..running.padding import Bucket, Grouping, group_rows
from .asked import prepare_inputs


class GroupLane(NamedTuple):
    """The groups of a bucket, or one of them; `present` marks the rows that are not padding."""

    keys: Any
    start: Any
    data: Data
    present: Any
    sample_weight: Any
    number: Any


def weight_of(lane: GroupLane) -> Array:
    """Sample weights of a group's rows, 0 of padding: (n,)."""
    weight = lane.present.astype(_tree.float_dtype(unlabelled(lane.data)))
    return weight if lane.sample_weight is None else jnp.where(lane.present, lane.sample_weight, 0)


def read_groups(
    model: Any, data: Data, group_ids: Any, sample_weight: Any
) -> tuple[Any, Data, Array | None, Any, Grouping]:
    """Model, table, weights and dtype as `prepare_inputs` makes them, the table on the host; and its groups.

    Raises:
        ValueError: on shapes or labels that do not fit.
    """
    table = in_place_of(data, _host_table(unlabelled(data)))
    model, table, weight, dtype = prepare_inputs(model, table, sample_weight)
    ask.validate_data(model, unlabelled(table))
    grouping = group_rows(group_ids)
    check_labels_fit(len(grouping.order), _tree.n_rows(table))
    table = with_own_ids(table, grouping)
    return model, table, weight, dtype, grouping


def with_own_ids(table: Data, grouping: Grouping) -> Data:
    """Grouped rows with ids that count from 0 in each group of the table, where one id is one of its own."""
    units = units_of(table)
    if units is None:
        return table
    owner = np.empty(len(grouping.order), np.int64)
    owner[grouping.order] = np.repeat(np.arange(len(grouping.labels)), grouping.sizes)
    ids = regrouped(np.asarray(units.ids), owner)
    own = replace(units, ids=ids, n_units=int(ids.max(initial=0)) + 1)
    return with_units(table, own)


def without_padded_ids(part: Data, present: np.ndarray) -> Data:
    """Rows (g, m) of groups, those that are padding with an id of their own, where they have ids."""
    units = units_of(part)
    if units is None:
        return part
    ids = np.where(present, np.asarray(units.ids), units.n_units)
    return with_units(part, replace(units, ids=ids, n_units=units.n_units + 1))


def lane_of_groups(bucket: Bucket, table: Data, weight: Any, keys: Any, start: Params) -> GroupLane:
    """The rows of a bucket's groups, their weights and keys: (g, …)."""
    rows = jax.tree.map(lambda leaf: _take_rows(leaf, bucket.rows), table)
    own_weight = None if weight is None else _take_rows(weight, bucket.rows)
    own_keys = None if keys is None else keys[bucket.groups]
    return GroupLane(own_keys, start, rows, bucket.present, own_weight, bucket.groups.astype(np.uint32))


def _host_table(data: Data) -> Data:
    """NumPy views of concrete tables on the host: rows are gathered there without a device copy."""
    on_host = lambda leaf: isinstance(leaf, jax.Array) and not _tree.is_tracing(leaf)  # noqa: E731
    return jax.tree.map(lambda leaf: np.asarray(leaf) if on_host(leaf) else leaf, data)


def work_of_row(model: Any, table: Data) -> int:
    """Entries of a row, times components."""
    entries = sum(int(np.prod(np.shape(leaf)[1:])) for leaf in jax.tree.leaves(table))
    return entries * ask.n_components(model, 1)


def _take_rows(leaf: Any, rows: np.ndarray) -> Any:
    if _tree.is_tracing(leaf):
        return leaf[rows]
    return np.take(np.asarray(leaf), rows, axis=0)


def check_labels_fit(n_labels: int, n: int) -> None:
    """Raises a ValueError unless there is a label for each of n rows."""
    if n_labels != n:
        raise ValueError(f"group_ids: expected one label for each of {n} rows, got {n_labels}.")
