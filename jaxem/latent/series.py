"""Series of different lengths as observations: made from a flat table or a list, read step by step.

A step is absent after the end of its series, and missing where all of its numbers are NaN. Neither says anything.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, PyTree
from ..numerics import tree as _tree
from ..numerics.arguments import as_rows


class Sequences(NamedTuple):
    """Series side by side; made by `sequences`.

    Attributes:
        values: (n, t, …), or a tree of such arrays, as the family takes its rows. What stands after the end of a series
            is never looked at; a step whose numbers are all NaN is missing.
        length: (n,) integers, steps of each series.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data = jaxem.Sequences(jnp.array([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])[:, :, None], jnp.array([3, 1]))
        >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2)
        >>> bank = jaxem.PoissonParams(jnp.array([[1.0], [4.0]]))
        >>> start = jaxem.HMMParams(jnp.full(2, 0.5), jnp.full((2, 2), 0.5), bank)
        >>> model.predict(start, data)  # −1 where the series is over
        Array([[ 0,  0,  1],
               [ 1, -1, -1]], dtype=...)
    """

    values: Any
    length: Any


def sequences(table: Any, ids: Any = None, time: Any = None) -> Sequences:
    """Series of a flat table, or of a list with one array for each, padded to the longest. Host code.

    Args:
        table: rows (r, …), or a tree of arrays over them such as the dict of a `Product`; without `ids` a list of
            series (t_i, …), or of such trees.
        ids: (r,), the series of each row, of any kind. The rows of a series follow each other; series come in the
            order in which they appear.
        time: (r,), whole numbers that rise by one from step to step within a series. Where one is left out, a missing
            step takes its place. None: rows follow each other without a gap.

    Returns:
        `Sequences`, NumPy arrays.

    Raises:
        ValueError: naming the argument, if ids come back after another series, or a time is out of order, repeated or
            no whole number; if a series of the list is empty or shaped unlike the others.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data = jaxem.sequences(jnp.arange(5.0)[:, None], ids=["a", "a", "a", "b", "b"], time=[1, 2, 4, 1, 2])
        >>> data.length.tolist(), data.values[0, :, 0].tolist()  # the third step of a is missing
        ([4, 2], [0.0, 1.0, nan, 2.0])
    """
    if ids is None:
        return _of_list(table, time)
    rows = jax.tree.map(np.asarray, as_rows(table, "table"))
    n = _tree.n_rows(rows, "table")
    ids = _column("ids", ids, n)
    if n == 0:
        raise ValueError("table: expected at least one row, got none.")
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    _check_together(ids, starts)
    index = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
    if time is not None:
        time = _column("time", time, n)
        _check_time(time, ids, starts)
        index = time - np.repeat(time[starts], np.diff(np.append(starts, n)))
    return _padded(rows, starts, index.astype(np.int64))


def _of_list(series: Any, time: Any) -> Sequences:
    if not isinstance(series, (list, tuple)) or not series:
        raise ValueError(
            f"ids: expected the series of each row, as the table is one {type(series).__name__}, got None; or pass a "
            "list with an array (t, …) for each series."
        )
    if time is not None:
        raise ValueError("time: expected None beside a list of series, got a column; pass a table with ids and time.")
    trees = [jax.tree.map(np.asarray, as_rows(one, f"table[{i}]")) for i, one in enumerate(series)]
    kinds = [jax.tree.map(lambda leaf: leaf.shape[1:], tree) for tree in trees]
    lengths = [_tree.n_rows(tree, f"table[{i}]") for i, tree in enumerate(trees)]
    for i, (kind, length) in enumerate(zip(kinds, lengths, strict=True)):
        if kind != kinds[0]:
            raise ValueError(f"table: expected series of steps {kinds[0]}, as the first has, got {kind} in series {i}.")
        if length == 0:
            raise ValueError(f"table: expected series of at least one step, got none in series {i}; leave it out.")
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
    starts = np.cumsum([0, *lengths[:-1]])
    return _padded(rows, starts, np.concatenate([np.arange(length) for length in lengths]))


def _column(name: str, values: Any, n: int) -> np.ndarray:
    column = np.asarray(values)
    if column.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), one for each row of the table, got {column.shape}.")
    return column


def _check_together(ids: np.ndarray, starts: np.ndarray) -> None:
    seen: dict[Any, int] = {}
    for row in starts.tolist():
        label = ids[row].item() if hasattr(ids[row], "item") else ids[row]
        if label in seen:
            raise ValueError(
                f"ids: expected the rows of a series to follow each other, got {label!r} again in row {row}, after "
                f"another series (first in row {seen[label]}); sort the table by ids, and by time within them."
            )
        seen[label] = row


def _check_time(time: np.ndarray, ids: np.ndarray, starts: np.ndarray) -> None:
    if time.dtype.kind == "f" and np.all(np.isfinite(time)) and np.all(time == np.round(time)):
        time = time.astype(np.int64)
    if time.dtype.kind not in "iu":
        raise ValueError(
            f"time: expected whole numbers, one more at each step, got {time.dtype}; count the steps, as in "
            "(time − time.min()) // step."
        )
    gap = np.diff(time.astype(np.int64))
    within = np.ones(len(gap), bool)
    within[starts[1:] - 1] = False
    bad = np.flatnonzero(within & (gap <= 0))
    if len(bad):
        row = int(bad[0]) + 1
        what = "repeated" if gap[row - 1] == 0 else f"after {time[row - 1]}"
        raise ValueError(
            f"time: expected times that rise within a series, got {time[row]} {what} in row {row}, series "
            f"{ids[row]!s}; sort the table by ids and time, and keep one row for each step."
        )
    smallest = gap[within].min() if within.any() else 1
    if smallest > 1:
        raise ValueError(
            f"time: expected steps of 1, between which others are missing, got steps of {smallest} and more; divide "
            f"by it: time // {smallest}."
        )


def _padded(rows: PyTree, starts: np.ndarray, index: np.ndarray) -> Sequences:
    """Rows put into their places; what lies between them is missing, NaN, after them absent, 0."""
    n, total = len(starts), len(index)
    ends = np.append(starts[1:], total) - 1
    length = index[ends] + 1
    t = int(length.max())
    series = np.repeat(np.arange(n), np.diff(np.append(starts, total)))
    has_gaps = length.sum() > total

    def place(leaf: np.ndarray) -> np.ndarray:
        wide = leaf.dtype if leaf.dtype.kind == "f" or not has_gaps else np.dtype(float)
        out = np.zeros((n, t, *leaf.shape[1:]), wide)
        if has_gaps:
            out[np.arange(t)[None] < length[:, None]] = np.nan
        out[series, index] = leaf
        return out

    return Sequences(jax.tree.map(place, rows), length.astype(np.int32))


# --- inside of models


def flat_steps(values: PyTree) -> PyTree:
    """Steps as rows: (n, t, …) to (n·t, …), series by series."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), values)


def present_steps(data: Sequences) -> Array:
    """Which steps there are: (n, t)."""
    t = jax.tree.leaves(data.values)[0].shape[1]
    return jnp.arange(t)[None] < jnp.asarray(data.length)[:, None]


def observed_steps(data: Sequences) -> Array:
    """Which steps say something, neither absent nor missing: (n, t)."""
    missing = jnp.ones(jax.tree.leaves(data.values)[0].shape[:2], bool)
    for leaf in jax.tree.leaves(data.values):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            missing = missing & jnp.all(jnp.isnan(leaf.reshape(*leaf.shape[:2], -1)), 2)
        else:
            missing = jnp.zeros_like(missing)
    return present_steps(data) & ~missing


def as_sequences(data: Data) -> Sequences:
    """The data, if they are series.

    Raises:
        ValueError: if not: says how to make them.
    """
    if not isinstance(data, Sequences):
        raise ValueError(
            f"data: expected Sequences, got {type(data).__name__}; make them by jaxem.sequences(table, ids), or "
            "jaxem.sequences([series, …])."
        )
    return data


def check_lengths(data: Sequences, n: int) -> None:
    """Raises a ValueError unless the lengths are whole numbers, one for each of n series."""
    dtype, shape = jnp.result_type(data.length), np.shape(data.length)
    if shape != (n,) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"data.length: expected integers ({n},), the steps of each series, got {dtype}{shape}.")
