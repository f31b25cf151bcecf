"""The fold: expected statistics as a sum over observations, in chunks, over shards, with sample weights.

    chunk ── prepare ── log_joint ── rule ── statistics ──▶ + (compensated) ──▶ psum over shards ──▶ stats

The same E step covers data in memory, in chunks that fit the cache, and sharded over a mesh.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from . import _tree
from ._linalg import components_first
from ._typing import Array, Data, Key, Params, PyTree, Stats
from .rules import Given, Labelled, Rule, Soft, restrict, unlabelled

HOLD_BYTES = 5 * 2**28  # of T, for all lanes that run side by side; making T anew costs more than both products
_HOLD_ROWS = 2**18  # more rows in one sum lose digits in float32: beyond, chunks are added with compensation
_CHUNK_BYTES = 4 * 2**20
_CHUNK_ROWS = (1024, 16384)


@dataclass(frozen=True)
class FoldPlan:
    """How a fold runs; static. `chunk_size` None chooses; `mesh` None means that the data are not sharded.

    `hold_bytes` is what prepared rows may take in memory; more are prepared chunk by chunk, every time.
    """

    chunk_size: int | None = None
    mesh: Mesh | None = None
    axes: Any = None
    hold_bytes: int = HOLD_BYTES


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
    if chunk_size is not None and (not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1):
        raise ValueError(f"chunk_size: expected a positive int or None, got {chunk_size!r}.")
    leaf = next(iter(jax.tree.leaves(data)), None)
    # a traced value knows its sharding only on a mesh of explicit axes; elsewhere the compiler partitions the sums
    sharding = getattr(jax.typeof(leaf) if _tree.is_tracing(leaf) else leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and len(sharding.spec) > 0 and sharding.spec[0] is not None:
        if sharding.mesh.size > 1:
            return FoldPlan(chunk_size, sharding.mesh, sharding.spec[0])  # type: ignore[arg-type]
    return FoldPlan(chunk_size)


@_tree.register
@dataclass(frozen=True)
class Held:
    """Data prepared for the E step once, before the loop. Only `Folded.e_step` reads it."""

    data: Data
    sample_weight: Array | None


@_tree.register
@dataclass(frozen=True)
class Folded:
    """A bound model whose `e_step` covers the whole data; all else is the model's own.

    `fast` False leaves out the model's `prepare`, which is its stable path.
    """

    model: Any
    plan: FoldPlan = field(metadata={"static": True}, default=FoldPlan())
    fast: bool = field(metadata={"static": True}, default=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def can_prepare(self) -> bool:
        """Whether the model has a faster form of the data, and it is wanted."""
        return self.fast and hasattr(self.model, "prepare")

    def hold(self, params: Params, data: Data, sample_weight: Array | None) -> Data:
        """Prepares the data once if that takes little memory; otherwise returns them, to be folded in chunks."""
        if not self.can_prepare or self.plan.chunk_size is not None:
            return data
        n = self._local_rows(data)
        _, width = self._widths(params, data)
        itemsize = _tree.float_dtype(unlabelled(data)).itemsize
        if n > _HOLD_ROWS or n * width * itemsize > self.plan.hold_bytes:
            return data
        if sample_weight is not None:
            data = _without_absent_rows(data, sample_weight, _some_present_row(data, sample_weight))
        prepared = _prepare(self.model, data, columns_first=self.plan.mesh is None)
        return Held(prepared, sample_weight)

    def e_step(
        self, params: Params, data: Data, sample_weight: Array | None, rule: Rule = Soft(), key: Key | None = None
    ) -> tuple[Stats, Array]:
        """Expected statistics and the objective of the rule (the log-likelihood, for `Soft`), over all rows.

        Args:
            params: at which the posterior is taken.
            data: raw, `Labelled`, or what `hold` made of them.
            sample_weight: (n,), or None for ones.
            rule: log joint → responsibilities.
            key: for rules that draw; chunks and shards draw from keys of their own.
        """
        if isinstance(data, Held):
            return self._shard(lambda m, p, d, w, _, s, r: _e_step(m, p, d, w, r, s), params, data.data,
                               data.sample_weight, None, key, rule)  # fmt: skip
        absent = None if sample_weight is None else _some_present_row(data, sample_weight)
        rows = self._chunk_rows(params, data)

        def local(
            model: Any, params: Params, data: Data, weight: Any, absent: Any, key: Any, rule: Rule
        ) -> tuple[Stats, Array]:
            def one_chunk(data: Data, weight: Array | None, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
                if weight is not None and absent is not None:
                    data = _without_absent_rows(data, weight, absent)
                if self.can_prepare:
                    data = _prepare(model, data, columns_first=True)
                return _e_step(model, params, data, weight, rule, key)

            return sum_over_chunks(one_chunk, data, weight, rows, rule, key)

        return self._shard(local, params, data, sample_weight, absent, key, rule)

    def _shard(
        self, local: Callable, params: Params, data: Data, weight: Any, absent: Any, key: Any, rule: Rule
    ) -> Any:
        if self.plan.mesh is None:
            return local(self.model, params, data, weight, absent, key, rule)
        axes = self.plan.axes
        by_row, everywhere = PartitionSpec(axes), PartitionSpec()

        def one_shard(model: Any, params: Params, data: Data, weight: Any, absent: Any, key: Any, rule: Rule) -> Any:
            if key is not None:
                key = jax.random.fold_in(key, lax.axis_index(axes))
            return lax.psum(local(model, params, data, weight, absent, key, rule), axes)

        of_rule = by_row if isinstance(rule, Given) else everywhere
        specs = (everywhere, everywhere, by_row, by_row, everywhere, everywhere, of_rule)
        sharded = jax.shard_map(one_shard, mesh=self.plan.mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
        return sharded(self.model, params, data, weight, absent, key, rule)

    def _local_rows(self, data: Data) -> int:
        n = _tree.n_rows(data)
        if self.plan.mesh is None:
            return n
        names = self.plan.axes if isinstance(self.plan.axes, tuple) else (self.plan.axes,)
        return n // math.prod(self.plan.mesh.shape[name] for name in names)

    def _chunk_rows(self, params: Params, data: Data) -> int:
        n = self._local_rows(data)
        if self.plan.chunk_size is not None:
            return min(self.plan.chunk_size, n)
        if hasattr(self.model, "e_step"):
            return n
        k, width = self._widths(params, data)
        itemsize = _tree.float_dtype(unlabelled(data)).itemsize
        rows = _CHUNK_BYTES // (itemsize * (width + 2 * k))
        rows = max(_CHUNK_ROWS[0], min(_CHUNK_ROWS[1], rows))
        return n if n <= 2 * rows else rows

    def _widths(self, params: Params, data: Data) -> tuple[int, int]:
        """The number of latent states, and of elements that a prepared row takes."""
        inner = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), unlabelled(data))
        k = jax.eval_shape(self.model.log_joint, params, inner).shape[1]
        if self.can_prepare:
            inner = jax.eval_shape(lambda d: self.model.prepare(d, columns_first=False), inner)
        return k, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(inner))


def _prepare(model: Any, data: Data, columns_first: bool) -> Data:
    prepared = model.prepare(unlabelled(data), columns_first=columns_first)
    return Labelled(prepared, data.allowed) if isinstance(data, Labelled) else prepared


def _e_step(
    model: Any, params: Params, data: Data, weight: Array | None, rule: Rule, key: Key | None
) -> tuple[Stats, Array]:
    """The E step of rows that are all at hand."""
    if hasattr(model, "e_step"):
        if not isinstance(rule, Soft) or isinstance(data, Labelled):
            raise ValueError(
                f"{type(model).__name__}: rules other than Soft() and labelled data need log_joint and statistics, "
                "got a model with an e_step of its own; write those two methods instead of e_step."
            )
        return model.e_step(params, data, jnp.ones(_tree.n_rows(data)) if weight is None else weight)
    inner = unlabelled(data)
    log_joint = restrict(model.log_joint(params, inner), data)
    responsibilities, objective = rule(log_joint, key)
    if weight is not None:
        responsibilities = weigh_rows(responsibilities, weight)
        objective = jnp.where(weight > 0, weight * objective, 0)
    return model.statistics(params, inner, responsibilities), jnp.sum(objective)


def weigh_rows(responsibilities: Array, weight: Array) -> Array:
    """(n, k) times (n, 1), in the layout that the neighbours use."""
    if components_first(weight.shape[0]):
        return (responsibilities.T * weight[None]).T
    return responsibilities * weight[:, None]


def posterior_statistics(folded: Folded, data: Data, sample_weight: Array | None, assigned: Array) -> Stats:
    """Statistics under given responsibilities (n, k), or given states (n,) of a model with k states, without params.

    Chunked as the E step; used to start a fit.
    """
    k = folded.model.n_components
    absent = None if sample_weight is None else _some_present_row(data, sample_weight)

    def one_chunk(both: PyTree, weight: Array | None, rule: Any, key: Any) -> Stats:
        rows, assigned = both
        if weight is not None and absent is not None:
            rows = _without_absent_rows(rows, weight, absent)
        dtype = _tree.float_dtype(rows)
        r = jax.nn.one_hot(assigned, k, dtype=dtype) if assigned.ndim == 1 else assigned.astype(dtype)
        r = r if weight is None else weigh_rows(jnp.where(weight[:, None] > 0, r, 0), weight)
        return folded.model.statistics(None, rows, r)

    data = unlabelled(data)
    n = _tree.n_rows(data)
    rows = folded.plan.chunk_size or (n if n <= 2 * _CHUNK_ROWS[1] else _CHUNK_ROWS[1])
    return sum_over_chunks(one_chunk, (data, assigned), sample_weight, min(rows, n), Soft(), None)


def sum_over_chunks(fn: Callable, data: Data, weight: Array | None, rows: int, rule: Rule, key: Key | None) -> PyTree:
    """Σ over chunks of fn(chunk, weight, rule, key), with compensated addition (Kahan 1965).

    The last chunk overlaps the one before it, with weight zero where they share rows: no padded copy is made.
    """
    n = _tree.n_rows(data)
    if rows >= n:
        return fn(data, weight, rule, key)
    n_chunks = -(-n // rows)
    dtype = _tree.float_dtype(unlabelled(data))
    given = isinstance(rule, Given)

    def chunk(i: Array) -> PyTree:
        start = jnp.minimum(i * rows, n - rows)
        cut = lambda leaf: lax.dynamic_slice_in_dim(leaf, start, rows)  # noqa: E731
        fresh = start + jnp.arange(rows) >= i * rows
        part_weight = jnp.where(fresh, 1 if weight is None else cut(weight), 0).astype(dtype)
        part_rule = jax.tree.map(cut, rule) if given else rule
        part_key = None if key is None else jax.random.fold_in(key, i)
        return fn(jax.tree.map(cut, data), part_weight, part_rule, part_key)

    def add(carry: tuple[PyTree, PyTree], i: Array) -> tuple[tuple[PyTree, PyTree], None]:
        total, lost = carry
        term = jax.tree.map(jnp.subtract, chunk(i), lost)
        new_total = jax.tree.map(jnp.add, total, term)
        new_lost = jax.tree.map(lambda new, old, part: (new - old) - part, new_total, total, term)
        return (new_total, new_lost), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(chunk, jnp.zeros((), jnp.int32)))
    (total, _), _ = lax.scan(add, (zero, zero), jnp.arange(n_chunks, dtype=jnp.int32))
    return total


def _some_present_row(data: Data, sample_weight: Array) -> PyTree:
    """A row that exists, to stand in for those that do not: it lies in the support of any density."""
    return jax.tree.map(lambda leaf: lax.stop_gradient(first_row(leaf, sample_weight)), data)


def first_row(leaf: Array, sample_weight: Array | None) -> Array:
    """The first row of positive weight, as a sum over rows: an index into sharded rows would gather them all."""
    number = lax.broadcasted_iota(jnp.int32, leaf.shape, 0) + 0 * (leaf != leaf).astype(jnp.int32)
    first: Any = 0
    if sample_weight is not None:
        index = jnp.arange(leaf.shape[0], dtype=jnp.int32) + 0 * (sample_weight != sample_weight).astype(jnp.int32)
        first = jnp.min(jnp.where(sample_weight > 0, index, leaf.shape[0] - 1))
    return jnp.sum(jnp.where(number == first, leaf, 0), 0, dtype=leaf.dtype)


def _without_absent_rows(data: Data, sample_weight: Array, stand_in: PyTree) -> Data:
    """Replaces rows of weight zero before anything looks at them, so that NaN there reaches no value or gradient."""

    def replace(leaf: Array, row: Array) -> Array:
        present = (sample_weight > 0).reshape(-1, *([1] * (leaf.ndim - 1)))
        return jnp.where(present, leaf, row[None])

    return jax.tree.map(replace, data, stand_in)


def present_rows(data: Data, sample_weight: Array | None) -> Data:
    """The data with rows of weight zero replaced by one that exists; for methods that read all rows at once."""
    if sample_weight is None:
        return data
    return _without_absent_rows(data, sample_weight, _some_present_row(data, sample_weight))
