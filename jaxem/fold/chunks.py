"""How a sum over observations is cut: into chunks that fit the cache, and over the devices where the data lie."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding

from .._typing import Array, Data, PyTree
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from .part import Part, sum_over_chunks

_ELEMENTS_AT_ONCE = 2**20  # of (n, k), in a sum that is differentiated
CURVATURE_ROWS = 1024  # of a sample from which an M step takes the curvature
HOLD_BYTES = 5 * 2**28  # of T, for all lanes that run side by side; making T anew costs more than both products


@dataclass(frozen=True)
class FoldPlan:
    """How a fold runs; static. `chunk_size` None chooses; `mesh` None means that the data are not sharded.

    `hold_bytes` is what prepared rows may take in memory; more are prepared chunk by chunk, every time. `is_brief`:
    what is compiled counts, not what is run, so that derivatives know the stable path alone.
    """

    chunk_size: int | None = None
    mesh: Mesh | None = None
    axes: Any = None
    hold_bytes: int = field(default=HOLD_BYTES, repr=False)
    is_brief: bool = field(default=False, repr=False)


def on_auto_axes(tree: PyTree) -> PyTree:
    """Arrays sharded over a mesh of explicit axes, on the same devices over automatic ones; nothing is moved.

    Sharding in types would ask for a sharding of every sum over rows; inside, the compiler finds it.
    """

    def convert(leaf: Any) -> Any:
        sharding = None if _tree.is_tracing(leaf) else getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or all(t == AxisType.Auto for t in sharding.mesh.axis_types):
            return leaf
        mesh = Mesh(np.asarray(sharding.mesh.devices), sharding.mesh.axis_names)
        return jax.device_put(leaf, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(convert, tree)


def plan_fold(data: Data, chunk_size: int | None) -> FoldPlan:
    """Reads the sharding of the leading axis of the data.

    Raises:
        ValueError: if `chunk_size` is not a positive integer.
    """
    chunk_size = None if chunk_size is None else as_count("chunk_size", chunk_size, other=" or None")
    leaf = next(iter(jax.tree.leaves(data)), None)
    # a traced value knows its sharding only on a mesh of explicit axes; elsewhere the compiler partitions the sums
    sharding = getattr(jax.typeof(leaf) if _tree.is_tracing(leaf) else leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and len(sharding.spec) > 0 and sharding.spec[0] is not None:
        if sharding.mesh.size > 1:
            return FoldPlan(chunk_size, sharding.mesh, sharding.spec[0])  # type: ignore[arg-type]
    return FoldPlan(chunk_size)


@_tree.register
@dataclass(frozen=True)
class Rows:
    """Statistics of a model that has no smaller ones: all rows, and what states they are in.

    Attributes:
        data: pytree, leading axis n.
        responsibilities: (n, k), times the sample weights.
        plan: how sums over the rows are cut.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> r = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
        >>> rows = jaxem.Rows(jnp.array([1.0, 2.0, 6.0]), responsibilities=r)  # what an M step is given
        >>> rows.total(lambda x, r: jnp.sum(r * x[:, None], 0))  # sums over rows, one a state
        Array([2., 7.], dtype=...)
        >>> rows.expectation(lambda x: jnp.stack([-x, -2 * x], 1))  # of log densities (n, k)
        Array([ -2., -14.], dtype=...)
    """

    data: Data
    responsibilities: Array
    plan: FoldPlan = field(metadata={"static": True}, default=FoldPlan())

    def expectation(self, log_density: Callable[[Data], Array]) -> Array:
        """Σ_ij r_ij log_density(rows)_ij, of a function rows → (n, k): (k,), chunk by chunk.

        A state of responsibility zero may be impossible, −inf; one of positive responsibility makes the sum −inf.
        """

        def masked(rows: Data, r: Array) -> Array:
            return jnp.sum(jnp.where(r > 0, r * jnp.where(r > 0, log_density(rows), 0), 0), 0)

        return self.total(masked)

    def total(self, fn: Callable[[Data, Array], PyTree]) -> PyTree:
        """Σ over chunks of fn(rows, responsibilities), which returns sums over the rows that it is given."""

        def one_chunk(part: Part) -> PyTree:
            (rows, r), weight = part.data, part.sample_weight
            # weight is zero in the rows that the last chunk shares with its neighbour
            return fn(rows, r if weight is None else r * weight[:, None])

        n, k = self.responsibilities.shape
        rows = n if self.plan.mesh is not None else min(n, self.plan.chunk_size or max(1024, _ELEMENTS_AT_ONCE // k))
        # a chunk is computed again for the derivative: nothing of size n is kept but the data
        chunk = jax.checkpoint(one_chunk) if rows < n else one_chunk
        return sum_over_chunks(chunk, Part((self.data, self.responsibilities)), rows)

    def by_state(self, fn: Callable[..., PyTree], *own: Array) -> PyTree:
        """`total` of fn(rows, r_j (n,), own_j…), one state after the other: no array has n·k·d elements. (k, …)."""
        one = lambda rows, r: lax.map(lambda mine: fn(rows, *mine), (r.T, *own))  # noqa: E731
        return self.total(one)

    def sample(self, n_rows: int) -> "Rows":
        """About so many rows, evenly spaced, with responsibilities that make up for the others."""
        stride = self.responsibilities.shape[0] // n_rows
        if stride < 2 or self.plan.mesh is not None:
            return self
        few = jax.tree.map(lambda leaf: leaf[::stride], self.data)
        return Rows(few, stride * self.responsibilities[::stride])


def with_plan(stats: PyTree, plan: FoldPlan) -> PyTree:
    """The statistics, their sums over rows cut by this plan."""
    is_rows = lambda leaf: isinstance(leaf, Rows)  # noqa: E731
    return jax.tree.map(lambda leaf: replace(leaf, plan=plan) if is_rows(leaf) else leaf, stats, is_leaf=is_rows)
