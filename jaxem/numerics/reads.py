"""Reads of arrays by an index that lies beyond them, which XLA moves to the edge in silence: found, row by row.

Bounds of whole numbers in the data are followed through the operations of a function, on the host. Where they do not
settle it, the function is evaluated with NaN in the place of what lies beyond: a row whose answer then becomes NaN has
used it. What is read beyond and masked away afterwards, such as padding, is no fault.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from .._typing import Array, PyTree
from . import tree as _tree
from .traced import called, traced

_Bounds = tuple[np.ndarray, np.ndarray] | None  # the least and largest value of every entry; None where not known


def rows_beyond(fn: Callable, fixed: PyTree, data: PyTree, present: np.ndarray | None = None) -> np.ndarray:
    """Which rows make fn(fixed, row) use an entry beyond the end of an array: booleans (n,).

    Reads inside of loops are not looked at.

    Args:
        fn: of `fixed` and one row.
        fixed: arrays, concrete.
        data: rows, concrete.
        present: which rows count, (n,), or None for all.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem.numerics.reads import rows_beyond
        >>> rows_beyond(lambda p, i: p[i], jnp.ones(3), jnp.array([0, 2, 3, -1])).tolist()
        [False, False, True, False]
    """
    n, rows = _tree.n_rows(data), jax.tree.leaves(data)
    present = np.ones(n, bool) if present is None else present
    if not present.any() or all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in rows):
        return np.zeros(n, bool)
    closed = traced(fn, fixed, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data))
    known: list[_Bounds] = [None] * len(closed.jaxpr.invars)
    first = len(jax.tree.leaves(fixed))
    known[first : first + len(rows)] = [_of_rows(leaf, present) for leaf in rows]
    if _within(closed, known)[1]:
        return np.zeros(n, bool)
    own = None if jax.tree_util.treedef_is_leaf(jax.tree.structure(fn)) else fn
    return np.asarray(_used_beyond(_Static(closed), (fixed, own), data)) & present


# --- bounds, on the host


def _of_rows(leaf: Any, present: np.ndarray) -> _Bounds:
    if not jnp.issubdtype(leaf.dtype, jnp.integer):
        return None
    rows = np.asarray(leaf)
    rows = rows if present.all() else rows[present]
    return rows.min(0), rows.max(0)


def _of(value: Any) -> _Bounds:
    if _tree.is_tracing(value) or jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):
        return None
    array = np.asarray(value)
    return (array, array) if array.dtype.kind in "iub" else None


def _within(closed: Any, arguments: Sequence[_Bounds]) -> tuple[list[_Bounds], bool]:
    """Bounds of what comes out, and whether every read is certain to lie within its array."""
    jaxpr, certain = closed.jaxpr, True
    seen = dict(zip(jaxpr.constvars, map(_of, closed.consts), strict=True))
    seen.update(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: _of(atom.val) if isinstance(atom, Literal) else seen[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        values, inner = [read(atom) for atom in eqn.invars], called(eqn)
        if inner is not None:
            outs, fine = _within(inner, values)
            certain = certain and fine
        else:
            certain = certain and _reads_within(eqn, values)
            rule = _BOUNDS.get(eqn.primitive.name)
            known = rule is not None and all(value is not None for value in values)
            outs = [rule(eqn, *values) if known else None] * len(eqn.outvars)  # type: ignore[misc]
        seen.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], certain


def _reads_within(eqn: Any, values: list[_Bounds]) -> bool:
    """Whether this is no read by an index, or one that is certain to lie within its array."""
    if not _is_read(eqn):
        return True
    starts = values[1:]
    if any(start is None for start in starts):
        return False
    low, high = (np.stack([start[i] for start in starts], -1) if len(starts) != 1 else starts[0][i] for i in (0, 1))  # type: ignore[index]
    return bool(np.all(low >= 0) and np.all(high <= _room(eqn)))


def _is_read(eqn: Any) -> bool:
    """Whether this is a read by an index, with no value asked for where that lies beyond."""
    if eqn.primitive.name == "dynamic_slice":
        return True
    return eqn.primitive.name == "gather" and (eqn.params["fill_value"] is None or np.isnan(eqn.params["fill_value"]))


def _room(eqn: Any) -> np.ndarray:
    """The largest start of a read along each axis that has an index."""
    room = np.subtract(eqn.invars[0].aval.shape, eqn.params["slice_sizes"])
    numbers = eqn.params.get("dimension_numbers")
    return room if numbers is None else room[list(numbers.start_index_map)]


def _structural(move: Callable[[Any, np.ndarray], np.ndarray]) -> Callable:
    return lambda eqn, value: tuple(move(eqn, np.asarray(bound)) for bound in value)


def _broadcast(eqn: Any, bound: np.ndarray) -> np.ndarray:
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    place = [1] * len(shape)
    for axis, size in zip(axes, bound.shape, strict=True):
        place[axis] = size
    return np.broadcast_to(bound.reshape(place), shape)


def _less(eqn: Any, a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    return a[1] < b[0], a[0] < b[1]


def _selected(eqn: Any, which: Any, *cases: Any) -> tuple[np.ndarray, np.ndarray] | None:
    if len(cases) != 2:
        return None
    (a, b), (no, yes) = cases, (~np.asarray(which[1], bool), np.asarray(which[0], bool))
    either = lambda i, of: np.where(no, a[i], np.where(yes, b[i], of(a[i], b[i])))  # noqa: E731
    return either(0, np.minimum), either(1, np.maximum)


_BOUNDS: dict[str, Callable] = {
    "lt": _less,
    "select_n": _selected,
    "add": lambda eqn, a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda eqn, a, b: (a[0] - b[1], a[1] - b[0]),
    "max": lambda eqn, a, b: (np.maximum(a[0], b[0]), np.maximum(a[1], b[1])),
    "min": lambda eqn, a, b: (np.minimum(a[0], b[0]), np.minimum(a[1], b[1])),
    "clamp": lambda eqn, low, x, high: tuple(np.clip(x[i], low[i], high[i]) for i in (0, 1)),
    "convert_element_type": lambda eqn, a: a if jnp.issubdtype(eqn.params["new_dtype"], jnp.integer) else None,
    "broadcast_in_dim": _structural(_broadcast),
    "reshape": _structural(lambda eqn, bound: bound.reshape(eqn.params["new_sizes"])),
    "squeeze": _structural(lambda eqn, bound: np.squeeze(bound, tuple(eqn.params["dimensions"]))),
    "slice": _structural(lambda eqn, bound: bound[_places(eqn)]),
    "transpose": _structural(lambda eqn, bound: np.transpose(bound, eqn.params["permutation"])),
    "concatenate": lambda eqn, *parts: tuple(
        np.concatenate([part[i] for part in parts], eqn.params["dimension"]) for i in (0, 1)
    ),
    "iota": lambda eqn: (np.asarray(_iota(eqn)),) * 2,
}


def _places(eqn: Any) -> tuple[slice, ...]:
    start, stop = eqn.params["start_indices"], eqn.params["limit_indices"]
    return tuple(map(slice, start, stop, eqn.params["strides"] or [1] * len(start)))


def _iota(eqn: Any) -> np.ndarray:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    return np.broadcast_to(np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


# --- NaN beyond, on the device


class _Static:
    """A jaxpr by its identity: the one of a function is traced once."""

    def __init__(self, closed: Any) -> None:
        self.closed = closed

    def __hash__(self) -> int:
        return id(self.closed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and other.closed is self.closed


@partial(jax.jit, static_argnums=0)
def _used_beyond(static: _Static, around: tuple, data: PyTree) -> Array:
    fixed, own = around

    def one(row: PyTree) -> Array:
        leaves = jax.tree.leaves((fixed, row, own))
        plain, marked = (_evaluated(static.closed, leaves, mark) for mark in (False, True))
        pairs = [jnp.any(jnp.isnan(b) & ~jnp.isnan(a)) for a, b in zip(plain, marked, strict=True)]
        return jnp.any(jnp.stack(pairs))

    return jax.vmap(one)(data)


def _evaluated(closed: Any, arguments: Sequence[Any], mark: bool) -> list[Any]:
    jaxpr = closed.jaxpr
    seen = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else seen[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        values, inner = [read(atom) for atom in eqn.invars], called(eqn)
        if inner is not None:
            outs = _evaluated(inner, values, mark)
        else:
            bound = eqn.primitive.get_bind_params(eqn.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair before jax 0.10
            if eqn.primitive.name == "gather" and _is_read(eqn):
                params = {**params, "mode": lax.GatherScatterMode.CLIP}
            outs = eqn.primitive.bind(*functions, *values, **params)
            outs = outs if eqn.primitive.multiple_results else [outs]
            if mark and _is_read(eqn):
                outs = [_marked(eqn, values, outs[0])]
        seen.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _marked(eqn: Any, values: list[Any], out: Array) -> Array:
    """What is read, with NaN, or a number that is beyond again, where it lies beyond."""
    if jnp.issubdtype(out.dtype, jnp.bool_):
        return out
    lost = jnp.nan if jnp.issubdtype(out.dtype, jnp.inexact) else jnp.iinfo(out.dtype).max
    starts = values[1] if eqn.primitive.name == "gather" else jnp.stack(values[1:])
    inside = jnp.all((starts >= 0) & (starts <= np.broadcast_to(_room(eqn), starts.shape)), -1)
    if eqn.primitive.name == "gather":
        offset = eqn.params["dimension_numbers"].offset_dims
        inside = lax.expand_dims(inside, sorted(offset))
    return jnp.where(inside, out, jnp.asarray(lost, out.dtype))
