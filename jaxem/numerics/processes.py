"""Arrays of which this process holds a part only, as under `jax.distributed`. Host code."""

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .._typing import PyTree
from . import tree as _tree


def is_here(*trees: PyTree) -> bool:
    """Whether this process holds all values, those that are traced left aside."""
    arrays = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array) and not _tree.is_tracing(leaf)]
    return all(leaf.is_fully_addressable for leaf in arrays)


def own_rows(tree: PyTree) -> PyTree:
    """The rows that lie on this process's devices, where they lie; what it holds whole as it is.

    Raises:
        ValueError: if an array lies on several hosts without a mesh.
    """

    def own(leaf: Any) -> Any:
        if is_here(leaf):
            return leaf
        sharding = leaf.sharding
        if not isinstance(sharding, NamedSharding):
            raise ValueError(
                f"data: expected an array of several hosts to lie on a mesh, got {sharding}; use jaxem.shard."
            )
        mesh: Any = sharding.mesh.local_mesh
        size = [int(np.prod([mesh.shape[name] for name in _names(axes)])) for axes in sharding.spec]
        shape = sharding.shard_shape(leaf.shape)
        shape = tuple(n * m for n, m in zip(shape, size + [1] * (len(shape) - len(size)), strict=True))
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, sharding.spec), parts)

    return jax.tree.map(own, tree)


def _names(axes: Any) -> tuple:
    return () if axes is None else axes if isinstance(axes, tuple) else (axes,)


def lying_as(rows: PyTree, leaf: Any) -> Any:
    """A host's (n,) array, the same on all hosts, cut as the rows of the data are that lie on several hosts."""
    if is_here(rows) or not is_here(leaf):
        return leaf
    sharding = next(row.sharding for row in jax.tree.leaves(rows) if not is_here(row))
    values, by_row = np.asarray(leaf), NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    return jax.make_array_from_callback(values.shape, by_row, lambda index: values[index])


def first_has(values: Any) -> np.ndarray:
    """Process 0's array, on every process; all must call, with arrays of one shape."""
    if jax.process_count() == 1:
        return np.asarray(values)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(values)))


def first_has_bytes(data: bytes) -> bytes:
    """Process 0's bytes, on every process; all must call."""
    high, low = first_has(np.asarray(divmod(len(data), 2**30), np.int32)).tolist()
    size = high * 2**30 + low
    return first_has(np.resize(np.frombuffer(data, np.uint8), size)).astype(np.uint8).tobytes()


def check_alike(**given: PyTree) -> None:
    """Raises a ValueError unless what processes hold whole is the same in all; they would go different ways in silence.

    All must call, with trees of one structure.
    """
    from jax.experimental import multihost_utils

    digests = np.asarray([divmod(_digest(tree), 2**16) for tree in given.values()], np.int32)
    differ = np.any(np.asarray(multihost_utils.process_allgather(digests)) != digests, axis=(0, 2))
    if differ.any():
        raise ValueError(
            f"{list(given)[int(np.argmax(differ))]}: expected the same values in all processes, as they fit one model "
            "together, got others in some; use one key, and draw a start from the sharded rows, as in "
            "model.init(key, data, sample_weight)."
        )


def _digest(tree: PyTree) -> int:
    crc = 0
    for leaf in jax.tree.leaves(tree):
        if is_here(leaf) and hasattr(leaf, "dtype"):
            crc = zlib.crc32(np.asarray(_tree.key_data(leaf)).tobytes(), crc)
    return crc


def everywhere(check: Callable[..., None], *trees: PyTree) -> None:
    """check(*trees), on every host of its own rows; all raise if one does, as those that did not would wait for it.

    Raises:
        ValueError: of the check; on hosts whose own rows are fine, one that names the host whose are not.
    """
    if is_here(*trees):
        return check(*trees)
    from jax.experimental import multihost_utils

    error = None
    try:
        check(*own_rows(trees))
    except Exception as found:  # of a user's model, any
        error = found
    failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(error is not None)))
    if isinstance(error, ValueError):
        raise ValueError(f"{error} (Rows are counted within process {jax.process_index()}.)") from error
    if error is not None:
        raise error
    if len(failed):
        raise ValueError(f"data: the rows of process {failed[0]} cannot be fitted; its own error says why.")
    return None


def jointly(program: Callable, *args: Any) -> Any:
    """program(*args), waited for where args lie on several processes, so that the error of a lost one is raised here.

    Raises:
        RuntimeError: if another process has ended or cannot be reached.
    """
    if is_here(*args):
        return program(*args)
    with together():
        return jax.block_until_ready(program(*args))


# jaxlib raises either of two classes, with the code of the status first
_BROKEN = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): ")
_LOST = re.compile("gloo|nccl|peer|connection|heartbeat|barrier|unavailable|deadline", re.I)


@contextmanager
def together() -> Iterator[None]:
    """For what several processes do in one step: where one of them is gone, the error of the others says so.

    Raises:
        RuntimeError: if another process has ended or cannot be reached.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not (_BROKEN.match(str(error)) and _LOST.search(str(error))):
            raise
        raise RuntimeError(
            f"process {jax.process_index()} of {jax.process_count()}: another process has ended or cannot be reached; "
            "its own output says why. Start all of them again: a fit with checkpoint= goes on from its last state. "
            f"({str(error).splitlines()[0]})"
        ) from error


def is_sharded(tree: PyTree) -> bool:
    """Whether an array lies on several devices; one that is traced lies nowhere yet."""
    placed = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and not _tree.is_tracing(leaf)]
    return any(len(leaf.devices()) > 1 for leaf in placed)


def axes_of(tree: PyTree, dimension: int = 0) -> Any:
    """The mesh axes over which this dimension of a concrete tree is cut; None: it is whole."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree) if not _tree.is_tracing(leaf)]
    specs = [tuple(sharding.spec) for sharding in shardings if isinstance(sharding, NamedSharding)]
    return next((spec[dimension] for spec in specs if len(spec) > dimension and spec[dimension] is not None), None)
