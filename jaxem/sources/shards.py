"""`shard`: the rows of a table over devices, and over hosts. Host code."""

import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._typing import Array, Data
from ..contracts.checks import warn_if_rounded
from ..latent.finite import unlabelled
from ..latent.units import units_of
from ..numerics import tree as _tree
from ..numerics.arguments import as_weighted_rows
from ..numerics.processes import is_here

_AXIS = "observations"
_HALF = 2**30  # counts travel as two int32, with 64-bit types off, too


class Sharded(NamedTuple):
    """Data over devices; made by `shard`.

    Attributes:
        data: as given, its rows cut over the devices; padding is behind the rows of every process.
        sample_weight: (n,), 0 for padding; None where every row counts as one.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data, weight = jaxem.shard(jnp.zeros((120, 1)), sample_weight=jnp.ones(120))
        >>> data.shape, float(weight.sum())  # for fit(model, params, data, sample_weight=weight)
        ((120, 1), 120.0)
    """

    data: Data
    sample_weight: Array | None


def shard(data: Data, mesh: Mesh | None = None, *, sample_weight: Any = None) -> Sharded:
    """Puts rows on devices, in equal parts; every driver then works where they lie, with one exchange an iteration.

    Where the devices cannot have equal parts, rows of weight zero are added behind. Under `jax.distributed` every
    process passes the rows that it has, as many as it likes, and all must call.

    Args:
        data: pytree of arrays (n, …), `labelled` and `gated` data too; of several processes the rows of this one.
        mesh: over whose axis "observations", or only axis, the rows are cut; None: all devices.
        sample_weight: (n,), non-negative, or None for ones.

    Returns:
        Data and weights for `fit(model, params, data, sample_weight=…)`.

    Raises:
        ValueError: if shapes do not fit, there is no row at all, the mesh has several axes and none of this name, a
            part of its axis belongs to several processes, or the processes' rows are not of one kind.
        TypeError: as `fit`, on a dtype that cannot be fitted.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data, weight = jaxem.shard(jnp.linspace(-3.0, 3.0, 120)[:, None])
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=1)
        >>> params = model.init(jax.random.key(0), data, sample_weight=weight)
        >>> jaxem.fit(model, params, data, sample_weight=weight).n_iter
        Array(1, dtype=int32)
    """
    data, sample_weight = as_weighted_rows(data, sample_weight)
    if _tree.is_tracing(data, sample_weight):
        raise ValueError("data: expected arrays with values, got traced ones; shard before jit.")
    if not is_here(data, sample_weight):
        raise ValueError("data: expected the rows of this process, got an array of several; it is sharded already.")
    if units_of(data) is not None and jax.process_count() > 1:
        raise ValueError(
            "data: expected rows that are units, as ids count within one process, got grouped rows of several; fit "
            "them on the devices of one process."
        )
    n, dtype = _tree.n_rows(data), _tree.float_dtype(unlabelled(data))
    warn_if_rounded(data)
    mesh = Mesh(np.asarray(jax.devices()), (_AXIS,)) if mesh is None else mesh
    axis = _axis_of(mesh)
    own, n_shards = _own_shards(mesh, axis), mesh.shape[axis]
    rows, weighted = _agree(data, n, len(own), sample_weight is not None)
    by_row = NamedSharding(mesh, PartitionSpec(axis))

    def put(leaf: Any) -> Array:
        def part(index: Any) -> Any:
            first = own[(index[0].start or 0) // rows] * rows
            return _padded(leaf[first : first + rows], rows)

        return jax.make_array_from_callback((n_shards * rows, *leaf.shape[1:]), by_row, part)

    if not weighted:
        return Sharded(jax.tree.map(put, data), None)
    weight = np.ones(n, dtype) if sample_weight is None else np.asarray(sample_weight, dtype)
    weight = np.concatenate([weight, np.zeros(len(own) * rows - n, dtype)])
    return Sharded(jax.tree.map(put, data), put(weight))


def _axis_of(mesh: Mesh) -> str:
    names = mesh.axis_names
    if _AXIS in names or len(names) == 1:
        return _AXIS if _AXIS in names else names[0]
    raise ValueError(f"mesh: expected one axis, or one named {_AXIS!r} among several, got {names}; name it so.")


def _own_shards(mesh: Mesh, axis: str) -> dict[int, int]:
    """Which parts of the axis lie on this process's devices, and as the how manyth of its own."""
    parts = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)
    processes = [{device.process_index for device in part} for part in parts]
    if any(len(part) > 1 for part in processes):
        raise ValueError(
            f"mesh: expected each part of the axis {axis!r} within one process, as the processes have different rows, "
            f"got parts on processes {sorted(next(part for part in processes if len(part) > 1))}; let the other axes "
            "run over the devices of a process."
        )
    mine = [number for number, part in enumerate(processes) if jax.process_index() in part]
    return {number: place for place, number in enumerate(mine)}


def _agree(data: Data, n: int, n_own: int, weighted: bool) -> tuple[int, bool]:
    """Rows of each part, and whether there are weights, as all processes have it."""
    leaves, structure = jax.tree.flatten(data)
    kind = zlib.crc32(str((structure, [(leaf.shape[1:], str(leaf.dtype)) for leaf in leaves])).encode())
    known = np.asarray([[*divmod(n, _HALF), n_own, weighted, kind >> 16, kind & 0xFFFF]], np.int32)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        known = np.asarray(multihost_utils.process_allgather(known[0]))
    known = known.astype(np.int64)
    counts, parts = known[:, 0] * _HALF + known[:, 1], known[:, 2]
    if np.any(known[:, 4:] != known[0, 4:]):
        raise ValueError("data: expected rows of one structure, shape and dtype in all processes, got different ones.")
    if counts.sum() == 0:
        raise ValueError("data: expected at least one row, got n = 0.")
    if np.any((parts == 0) & (counts > 0)):
        idle = np.flatnonzero((parts == 0) & (counts > 0))[0]
        raise ValueError(f"mesh: expected devices of process {idle}, which has rows, got none; add them, or pass none.")
    rows = int(max(-(-count // part) for count, part in zip(counts, parts, strict=True) if part))
    return rows, bool(known[:, 3].any() or np.any(counts != parts * rows))


def _padded(part: Any, rows: int) -> Any:
    """Rows behind that repeat the last; zeros where there is none, as nobody looks at them."""
    missing = rows - part.shape[0]
    if not missing:
        return part
    more = np.zeros((missing, *part.shape[1:]), part.dtype) if missing == rows else np.asarray(part[-1:])
    return np.concatenate([np.asarray(part), np.broadcast_to(more, (missing, *part.shape[1:]))])
