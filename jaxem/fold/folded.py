"""The fold: expected statistics as a sum over observations, in chunks, over shards, with sample weights.

    chunk ── prepare ── log_joint ── rule ── statistics ──▶ + (compensated) ──▶ psum over shards ──▶ stats

The same E step covers data in memory, in chunks that fit the cache, and sharded over a mesh.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from .._typing import Array, Data, Key, Params, PyTree, Stats
from ..contracts import capabilities as ask
from ..latent.finite import Given, Labelled, Rule, Soft, WithSize, in_place_of, restrict, unlabelled
from ..numerics import tree as _tree
from ..numerics.linalg import LANE_ROWS, components_first
from .chunks import CURVATURE_ROWS, Chunks, FoldPlan, Rows, compensated_sum, sum_over_chunks, with_plan
from .climb import Full, Truncated, climb
from .features import FUSED_WORK

_HOLD_ROWS = 2**18  # more rows in one sum lose digits in float32: beyond, chunks are added with compensation
_HOLD_WIDTH = 3  # more rows are read anew in prepared form only if that is costly to make, and not much wider
_CHUNK_BYTES = 4 * 2**20
_CHUNK_ROWS = (1024, 16384)


@_tree.register
@dataclass(frozen=True)
class Held:
    """Data prepared for the E step once, before the loop. Only `Folded.e_step` reads it.

    Attributes:
        data: prepared rows; every leaf leads with the chunks, where there are `chunks`.
        sample_weight: (n,) or None; (chunks, rows).
        chunks: how the rows are cut; None keeps them in one piece.
    """

    data: Data
    sample_weight: Array | None
    chunks: Chunks | None = field(metadata={"static": True}, default=None)


@_tree.register
@dataclass(frozen=True)
class Summed:
    """The outcome of one E step over data that are not here, in the place of data. Only `Folded.e_step` reads it.

    Attributes:
        stats, objective: as `Folded.e_step` returns them, for `Soft`.
        total: weight of all rows, ().
        n_present: rows of positive weight, ().
        params: at which they were taken.
    """

    stats: Stats
    objective: Any
    total: Array
    n_present: Array
    params: Any = None


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
        return self.fast and ask.offers(self.model, "prepare")

    def hold(self, params: Params, data: Data, sample_weight: Array | None) -> Data:
        """Prepares the data once if that takes little memory; otherwise returns them, to be folded in chunks."""
        if not self.can_prepare or self.plan.chunk_size is not None:
            return data
        n = self.local_rows(data)
        _, width = self._widths(params, data)
        itemsize = _tree.float_dtype(unlabelled(data)).itemsize
        if n * width * itemsize > self.plan.hold_bytes:
            return data
        costly = ask.told(self.model, "costly_features", False) and width <= _HOLD_WIDTH * _row_width(data)
        if n > _HOLD_ROWS and (self.plan.mesh is not None or not costly):
            return data
        if sample_weight is not None:
            data = without_absent_rows(data, sample_weight, some_present_row(data, sample_weight))
        if n <= _HOLD_ROWS:
            return Held(_prepare(self.model, data, columns_first=self.plan.mesh is None), sample_weight)
        chunks, dtype = Chunks(n, self._chunk_rows(params, data)), _tree.float_dtype(unlabelled(data))

        def one(i: Array) -> tuple[Data, Array]:
            prepared = _prepare(self.model, chunks.cut(data, i), columns_first=True)
            return prepared, chunks.weight(sample_weight, i, dtype)

        prepared, weight = lax.map(one, jnp.arange(chunks.number, dtype=jnp.int32))
        return Held(prepared, weight, chunks)

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
        if isinstance(data, Summed):
            return _given_sums(params, data, rule)
        if not is_additive(self.model):
            return self._keep_rows(params, data, sample_weight, rule, key)
        if isinstance(data, Held) and data.chunks is not None:
            return self._sum_held(params, data, data.chunks, rule, key)
        if isinstance(data, Held):
            return self._shard(lambda m, p, d, w, _, s, r: _e_step(m, p, d, w, r, s), params, data.data,
                               data.sample_weight, None, key, rule)  # fmt: skip

        def one_chunk(
            model: Any, params: Params, data: Data, weight: Any, key: Key | None, rule: Rule
        ) -> tuple[Stats, Array]:
            if self.can_prepare:
                data = _prepare(model, data, columns_first=True)
            return _e_step(model, params, data, weight, rule, key)

        return self._sum(one_chunk, params, data, sample_weight, self._chunk_rows(params, data), key, rule)

    def e_step_and_size(self, params: Params, data: Data, sample_weight: Array | None) -> tuple[Stats, Array, Array]:
        """`e_step`, and Σ |log p(x_i)|: rows may cancel in the log-likelihood, their rounding does not.

        |log-likelihood| of a model with an `e_step` of its own, which shows its rows to nobody, and of a stream.
        """
        if isinstance(data, Summed) or ask.offers(self.model, "e_step"):
            stats, log_lik = self.e_step(params, data, sample_weight)
            return stats, log_lik, jnp.abs(log_lik)
        stats, (log_lik, size) = self.e_step(params, data, sample_weight, WithSize())
        return stats, log_lik, size

    def _sum_held(self, params: Params, held: Held, chunks: Chunks, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        def one(i: Array) -> tuple[Stats, Array]:
            rows, weight = jax.tree.map(lambda leaf: leaf[i], (held.data, held.sample_weight))
            own_key = None if key is None else jax.random.fold_in(key, i)
            return _e_step(self.model, params, rows, weight, chunks.rule(rule, i), own_key)

        return compensated_sum(one, chunks.number)

    def sum_rows(
        self, fn: Callable, params: Params, data: Data, sample_weight: Array | None, chunk_rows: int
    ) -> PyTree:
        """Σ over the rows of fn(model, params, rows, weight), which returns sums; chunked and sharded as the E step."""
        one_chunk = lambda model, params, data, weight, key, rule: fn(model, params, data, weight)  # noqa: E731
        rows = min(chunk_rows, self.plan.chunk_size or chunk_rows, self.local_rows(data))
        return self._sum(one_chunk, params, data, sample_weight, rows, None, Soft())

    def _sum(
        self, fn: Callable, params: Params, data: Data, weight: Any, rows: int, key: Key | None, rule: Rule
    ) -> PyTree:
        """Σ over chunks of `rows` rows, and over shards; rows of weight zero are replaced before fn sees them."""
        absent = None if weight is None else some_present_row(data, weight)

        def local(model: Any, params: Params, data: Data, weight: Any, absent: Any, key: Any, rule: Rule) -> PyTree:
            def one_chunk(data: Data, weight: Array | None, rule: Rule, key: Key | None) -> PyTree:
                if weight is not None and absent is not None:
                    data = without_absent_rows(data, weight, absent)
                return fn(model, params, data, weight, key, rule)

            return sum_over_chunks(one_chunk, data, weight, rows, rule, key)

        return self._shard(local, params, data, weight, absent, key, rule)

    def m_step(self, params: Params | None, stats: Stats) -> Params:
        """The model's own M step; without one, Q + log prior is climbed as the model's `Full` or `Truncated` says."""
        own = ask.told(self.model, "m_step", Full())
        if not isinstance(own, (Full, Truncated)):
            return own(params, stats)
        q, size = expected_log_joint(self.model, stats)
        plus_prior = lambda q: lambda params: q(params) + ask.log_prior(self.model, params)  # noqa: E731
        few = stats.sample(CURVATURE_ROWS) if isinstance(stats, Rows) else stats
        return climb(
            own,
            plus_prior(q),
            params,
            size=size(params),
            sample=plus_prior(expected_log_joint(self.model, few)[0]),
            to_free=partial(ask.free, self.model),
            from_free=partial(ask.from_free, self.model),
            forward=isinstance(stats, Rows),
        )

    def _keep_rows(
        self, params: Params, data: Data, sample_weight: Array | None, rule: Rule, key: Key | None
    ) -> tuple[Stats, Array]:
        """The E step of a model whose statistics are the rows themselves."""
        if sample_weight is not None:
            data = without_absent_rows(data, sample_weight, some_present_row(data, sample_weight))
        inner = unlabelled(data)
        log_joint = self.log_joint_of_all(params, inner)
        # the density of an impossible state has no slope that anybody may ask for
        log_joint = restrict(jnp.where(log_joint == -jnp.inf, -jnp.inf, log_joint), data)
        responsibilities, objective = _weighted(*rule(log_joint, key), sample_weight)
        return keep_rows(self.model, params, inner, responsibilities, self.plan), objective

    def log_joint_of_all(self, params: Params, data: Data) -> Array:
        """(n, k), made chunk by chunk."""
        n = _tree.n_rows(data)
        rows = n if self.plan.mesh is not None else self._chunk_rows(params, data)
        if rows >= n:
            return self.model.log_joint(params, data)

        def chunk(first: Any) -> Array:
            cut = lambda leaf: lax.dynamic_slice_in_dim(leaf, first, rows)  # noqa: E731
            return self.model.log_joint(params, jax.tree.map(cut, data))

        n_whole = n // rows
        whole = lax.map(chunk, rows * jnp.arange(n_whole, dtype=jnp.int32))
        whole = whole.reshape(n_whole * rows, -1)
        return whole if n_whole * rows == n else jnp.concatenate([whole, chunk(n - rows)[n_whole * rows - n :]])

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

    def rows_at(self, tree: PyTree, index: Array) -> PyTree:
        """The rows of these numbers (b,); of sharded data, those of every shard, by their numbers within it."""
        pick = lambda tree, index: jax.tree.map(  # noqa: E731
            lambda leaf: jnp.asarray(leaf).at[index].get(mode="promise_in_bounds"), tree
        )
        if self.plan.mesh is None:
            return pick(tree, index)
        by_row, everywhere = PartitionSpec(self.plan.axes), PartitionSpec()
        specs = (by_row, everywhere)
        return jax.shard_map(pick, mesh=self.plan.mesh, in_specs=specs, out_specs=by_row, check_vma=False)(tree, index)

    def local_rows(self, data: Data) -> int:
        """Rows in one shard."""
        n = _tree.n_rows(data)
        if self.plan.mesh is None:
            return n
        names = self.plan.axes if isinstance(self.plan.axes, tuple) else (self.plan.axes,)
        return n // math.prod(self.plan.mesh.shape[name] for name in names)

    def _chunk_rows(self, params: Params, data: Data) -> int:
        n = self.local_rows(data)
        if self.plan.chunk_size is not None:
            return min(self.plan.chunk_size, n)
        if ask.offers(self.model, "e_step"):
            return n
        k, width = self._widths(params, data)
        rows = _rows_in_cache(unlabelled(data), max(width, ask.elements_per_row(self.model, unlabelled(data))) + 2 * k)
        # a few products a row are made features first, which pays off within the cache
        most = LANE_ROWS if k * width <= FUSED_WORK else _CHUNK_ROWS[1]
        rows = max(_CHUNK_ROWS[0], min(most, rows))
        return n if n <= 2 * rows else rows

    def _widths(self, params: Params, data: Data) -> tuple[int, int]:
        """The number of latent states, and of elements that a prepared row takes."""
        inner = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), unlabelled(data))
        k = jax.eval_shape(self.model.log_joint, params, inner).shape[1]
        if self.can_prepare:
            inner = jax.eval_shape(lambda d: self.model.prepare(d, columns_first=False), inner)
        return k, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(inner))


def _rows_in_cache(data: Data, width: int) -> int:
    return _CHUNK_BYTES // (_tree.float_dtype(data).itemsize * width)


def _row_width(data: Data) -> int:
    return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(unlabelled(data)))


def is_additive(model: Any) -> bool:
    """Whether the statistics of two chunks add; otherwise they are `Rows`."""
    return ask.told(model, "additive", ask.offers(model, "e_step") or ask.offers(model, "statistics"))


def has_closed_m_step(model: Any) -> bool:
    """Whether the M step is a formula, which has a derivative; a climb has none."""
    own = ask.told(model, "m_step", None)
    return own is not None and not isinstance(own, (Full, Truncated)) and ask.told(model, "closed_m_step", True)


def keep_rows(model: Any, params: Params | None, data: Data, responsibilities: Array, plan: FoldPlan) -> Stats:
    """The statistics of a model that is not additive."""
    if ask.offers(model, "statistics"):
        return with_plan(model.statistics(params, data, responsibilities), plan)
    return Rows(data, responsibilities, plan)


def expected_log_joint(model: Any, stats: Stats) -> tuple[Callable[[Params], Array], Callable[[Params], Array]]:
    """Q(·; stats), and its size: the number of observations in it where that is known, else |Q|, at given params."""
    if ask.offers(model, "expected_log_joint"):
        q = lambda params: model.expected_log_joint(params, stats)  # noqa: E731
        return q, lambda params: jnp.abs(q(params))
    total = jnp.sum(stats.responsibilities)
    return lambda params: jnp.sum(stats.expectation(lambda rows: model.log_joint(params, rows))), lambda params: total


def _prepare(model: Any, data: Data, columns_first: bool) -> Data:
    prepared = model.prepare(unlabelled(data), columns_first=columns_first)
    return in_place_of(data, prepared)


def _e_step(
    model: Any, params: Params, data: Data, weight: Array | None, rule: Rule, key: Key | None
) -> tuple[Stats, Array]:
    """The E step of rows that are all at hand."""
    if ask.offers(model, "e_step"):
        if not isinstance(rule, Soft) or isinstance(data, Labelled):
            raise ValueError(
                f"{type(model).__name__}: rules other than Soft() and labelled data need log_joint and statistics, "
                "got a model with an e_step of its own; write those two methods instead of e_step."
            )
        ones = lambda: jnp.ones(_tree.n_rows(data), _tree.float_dtype(data))  # noqa: E731
        return model.e_step(params, data, ones() if weight is None else weight)
    inner = unlabelled(data)
    log_joint = restrict(model.log_joint(params, inner), data)
    responsibilities, objective = _weighted(*rule(log_joint, key), weight)
    return model.statistics(params, inner, responsibilities), objective


def _given_sums(params: Params, summed: Summed, rule: Rule) -> tuple[Stats, Array]:
    if params is not summed.params or not isinstance(rule, Soft):
        raise ValueError(
            "algorithm: expected one that takes one E step an iteration, with Soft() responsibilities, as the data are "
            "read once an iteration; got one that takes others. Use EM(), SQUAREM(), Anderson() or ParabolicEM()."
        )
    return summed.stats, summed.objective


def _weighted(responsibilities: Array, objective: Any, weight: Array | None) -> tuple[Array, Any]:
    """Responsibilities times the sample weights, and the weighted sum of the rows' objectives."""
    if weight is None:
        return responsibilities, jax.tree.map(jnp.sum, objective)
    total = lambda rows: jnp.sum(jnp.where(weight > 0, weight * rows, 0))  # noqa: E731
    return weigh_rows(responsibilities, weight), jax.tree.map(total, objective)


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
    absent = None if sample_weight is None else some_present_row(data, sample_weight)

    def one_chunk(both: PyTree, weight: Array | None, rule: Any, key: Any) -> Stats:
        rows, assigned = both
        if weight is not None and absent is not None:
            rows = without_absent_rows(rows, weight, absent)
        dtype = _tree.float_dtype(rows)
        r = jax.nn.one_hot(assigned, k, dtype=dtype) if assigned.ndim == 1 else assigned.astype(dtype)
        r = r if weight is None else weigh_rows(jnp.where(weight[:, None] > 0, r, 0), weight)
        return keep_rows(folded.model, None, rows, r, folded.plan)

    data = unlabelled(data)
    n = _tree.n_rows(data)
    if not is_additive(folded.model):
        return one_chunk((data, assigned), sample_weight, None, None)
    most = min(_CHUNK_ROWS[1], _rows_in_cache(data, ask.elements_per_row(folded.model, data) + 1))
    most = max(_CHUNK_ROWS[0], most)
    rows = folded.plan.chunk_size or (n if n <= 2 * most else most)
    return sum_over_chunks(one_chunk, (data, assigned), sample_weight, min(rows, n), Soft(), None)


def some_present_row(data: Data, sample_weight: Array) -> PyTree:
    """A row that exists, to stand in for those that do not: it lies in the support of any density."""
    return jax.tree.map(lambda leaf: lax.stop_gradient(first_row(leaf, sample_weight)), data)


def first_row(leaf: Array, sample_weight: Array | None) -> Array:
    """The first row of positive weight.

    Under weights as a sum over rows: a dynamic index into sharded rows would gather them all.
    """
    if sample_weight is None:
        return leaf[0]
    number = lax.broadcasted_iota(jnp.int32, leaf.shape, 0) + 0 * (leaf != leaf).astype(jnp.int32)
    index = jnp.arange(leaf.shape[0], dtype=jnp.int32) + 0 * (sample_weight != sample_weight).astype(jnp.int32)
    first = jnp.min(jnp.where(sample_weight > 0, index, leaf.shape[0] - 1))
    return jnp.sum(jnp.where(number == first, leaf, 0), 0, dtype=leaf.dtype)


def without_absent_rows(data: Data, sample_weight: Array, stand_in: PyTree) -> Data:
    """Replaces rows of weight zero before anything looks at them, so that NaN there reaches no value or gradient."""

    def replace(leaf: Array, row: Array) -> Array:
        present = (sample_weight > 0).reshape(-1, *([1] * (leaf.ndim - 1)))
        return jnp.where(present, leaf, row[None])

    return jax.tree.map(replace, data, stand_in)


def present_rows(data: Data, sample_weight: Array | None) -> Data:
    """The data with rows of weight zero replaced by one that exists; for methods that read all rows at once."""
    if sample_weight is None:
        return data
    return without_absent_rows(data, sample_weight, some_present_row(data, sample_weight))
