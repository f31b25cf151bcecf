"""The fold: expected statistics as a sum over observations, in chunks, over shards, with sample weights.

    chunk ── prepare ── log_joint ── rule ── statistics ──▶ + (compensated) ──▶ psum over shards ──▶ stats

The same E step covers data in memory, in chunks that fit the cache, and sharded over a mesh.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from .._typing import Array, Data, Key, Params, PyTree, Stats
from ..contracts import capabilities as ask
from ..latent.finite import Rule, Soft, WithSize, unlabelled
from ..latent.units import units_of
from ..numerics import tree as _tree
from ..numerics.linalg import LANE_ROWS
from . import units
from .chunks import CURVATURE_ROWS, FoldPlan, Rows
from .climb import Full, Truncated, climb
from .closed import blocks_of, closed_part
from .features import FUSED_WORK
from .part import Part, key_of_part, sum_over_chunks
from .present import present_rows, some_present_row
from .sources import InMemory, Prepared, Source, Summed, is_additive, keep_rows, prepare, prepared_chunks, weigh_rows

_HOLD_ROWS = 2**18  # more rows in one sum lose digits in float32: beyond, chunks are added with compensation
_HOLD_WIDTH = 3  # more rows are read anew in prepared form only if that is costly to make, and not much wider
_CHUNK_BYTES = 4 * 2**20
_CHUNK_ROWS = (1024, 16384)


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
        if units_of(data) is not None:
            return units.summed_units(self, params, data, sample_weight)
        if ask.offers(self.model, "e_step"):
            return self._hold_own(params, data, sample_weight)
        n = self.local_rows(data)
        _, width = self._widths(params, data)
        itemsize = _tree.float_dtype(unlabelled(data)).itemsize
        if n * width * itemsize > self.plan.hold_bytes:
            return data
        costly = ask.told(self.model, "costly_features", False) and width <= _HOLD_WIDTH * _row_width(data)
        if n > _HOLD_ROWS and (self.plan.mesh is not None or not costly):
            return data
        data = present_rows(data, sample_weight)
        if n <= _HOLD_ROWS:
            return Prepared(prepare(self.model, data, columns_first=self.plan.mesh is None), sample_weight)
        return prepared_chunks(self.model, Part(data, sample_weight), self.chunk_rows(params, data))

    def _hold_own(self, params: Params, data: Data, sample_weight: Array | None) -> Data:
        """`hold` for an E step of the model's own: in the chunks that it works on, if all of them have room."""
        prepared = jax.eval_shape(lambda d: prepare(self.model, d, columns_first=True), data)
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(prepared))
        if self.plan.mesh is not None or size > self.plan.hold_bytes:
            return data
        data, rows = present_rows(data, sample_weight), self.chunk_rows(params, data)
        if rows >= self.local_rows(data) or not is_additive(self.model):
            if sample_weight is None:  # prepared rows need not lead with their number, by which ones are made
                sample_weight = jnp.ones(self.local_rows(data), _tree.float_dtype(data))
            return Prepared(prepare(self.model, data, columns_first=True), sample_weight)
        return prepared_chunks(self.model, Part(data, sample_weight), rows)

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
        if isinstance(data, Source):
            source = data
        else:
            rows = InMemory if units_of(data) is None else units.GroupedRows
            source = rows(data, sample_weight)
        return source.e_step(self, params, rule, key)

    def e_step_and_size(self, params: Params, data: Data, sample_weight: Array | None) -> tuple[Stats, Array, Array]:
        """`e_step`, and Σ |log p(x_i)|: rows may cancel in the log-likelihood, their rounding does not.

        |log-likelihood| of a model with an `e_step` of its own, which shows its rows to nobody, and of a stream.
        """
        shows_rows = ask.offers(self.model, "e_step_by_rule") or not ask.offers(self.model, "e_step")
        if isinstance(data, Summed) or not shows_rows:
            stats, log_lik = self.e_step(params, data, sample_weight)
            return stats, log_lik, jnp.abs(log_lik)
        stats, (log_lik, size) = self.e_step(params, data, sample_weight, WithSize())
        return stats, log_lik, size

    def sum_rows(
        self, fn: Callable, params: Params, data: Data, sample_weight: Array | None, chunk_rows: int
    ) -> PyTree:
        """Σ over the rows of fn(model, params, rows, weight), which returns sums; chunked and sharded as the E step."""
        one_chunk = lambda model, params, part: fn(model, params, part.data, part.sample_weight)  # noqa: E731
        rows = min(chunk_rows, self.plan.chunk_size or chunk_rows, self.local_rows(data))
        return self.total(one_chunk, params, Part(data, sample_weight), rows)

    def total(self, fn: Callable[[Any, Params, Part], PyTree], params: Params, whole: Part, rows: int) -> PyTree:
        """Σ of fn over chunks of so many rows, and over shards; fn sees no row of weight zero."""

        def local(model: Any, params: Params, part: Part) -> PyTree:
            return sum_over_chunks(lambda chunk: fn(model, params, chunk.present()), part, rows)

        return self.over_shards(local, params, whole.with_stand_in())

    def over_shards(self, local: Callable[[Any, Params, Part], PyTree], params: Params, whole: Part) -> PyTree:
        """Σ over the shards of local(model, params, part); of rows in one place its value."""
        if self.plan.mesh is None:
            return local(self.model, params, whole)
        axes = self.plan.axes
        by_row, everywhere = PartitionSpec(axes), PartitionSpec()

        def one_shard(model: Any, params: Params, part: Part) -> PyTree:
            if part.key is not None:
                part = replace(part, key=key_of_part(part.key, lax.axis_index(axes)))
            return lax.psum(local(model, params, part), axes)

        specs = (everywhere, everywhere, whole.specs(by_row, everywhere))
        sharded = jax.shard_map(one_shard, mesh=self.plan.mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
        return sharded(self.model, params, whole)

    def m_step(self, params: Params | None, stats: Stats) -> Params:
        """The model's own M step; without one, Q + log prior is climbed as the model's `Full` or `Truncated` says.

        What has a closed form is set first, given the rest, and then held: either raises Q.
        """
        own = ask.told(self.model, "m_step", Full())
        if not isinstance(own, (Full, Truncated)):
            return own(params, stats)
        if isinstance(stats, Rows) and ask.offers(self.model, "condensed"):
            stats = self.model.condensed(params, stats)
        q, size = expected_log_joint(self.model, stats)
        plus_prior = lambda q: lambda params: q(params) + ask.log_prior(self.model, params)  # noqa: E731
        params, stays = closed_part(self.model, ask.imposed(self.model, params), stats, plus_prior(q))
        if stays is not None and all(stays):
            return params
        items = _n_items(self.model, params, stats, stays)
        few = stats.sample(CURVATURE_ROWS) if isinstance(stats, Rows) else stats
        to_free, from_free = _free_but(self.model, params, stays)
        return climb(
            own,
            plus_prior(q),
            params,
            size=size(params),
            sample=plus_prior(expected_log_joint(self.model, few)[0]),
            to_free=to_free,
            from_free=from_free,
            forward=isinstance(stats, Rows),
            items=items,
        )

    def log_joint_of_all(self, params: Params, data: Data) -> Array:
        """(n, k), made chunk by chunk."""
        n = _tree.n_rows(data)
        rows = n if self.plan.mesh is not None else self.chunk_rows(params, data)
        if rows >= n:
            return self.model.log_joint(params, data)

        return units.in_chunks(lambda chunk: self.model.log_joint(params, chunk), data, rows)

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

    def chunk_rows(self, params: Params, data: Data) -> int:
        """Rows of one chunk of the E step."""
        n = self.local_rows(data)
        if self.plan.chunk_size is not None:
            return min(self.plan.chunk_size, n)
        if ask.offers(self.model, "e_step"):
            return ask.rows_at_once(self.model, unlabelled(data), n)
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


def _n_items(model: Any, params: Params, stats: Stats, stays: tuple[bool, ...] | None) -> int:
    """Of how many items that do not touch each other the leaves that climb are made; 1 where it is not known."""
    if not isinstance(stats, Rows) or not ask.offers(model, "items_of"):
        return 1
    stays = stays or (False,) * len(jax.tree.leaves(params))
    return model.items_of(params, unlabelled(stats.data), stays)


def _free_but(model: Any, params: Params, stays: tuple[bool, ...] | None) -> tuple[Callable, Callable]:
    """Free coordinates of all leaves but those that stay as they are, and the way back."""
    if stays is None:
        return partial(ask.free, model), partial(ask.from_free, model)
    model = ask.told(model, "leafwise", model)
    leaves, structure = jax.tree.flatten(params)
    held, all_free = jax.tree.flatten(ask.free(model, params))

    def to_free(params: Params) -> list[Array]:
        return [leaf for leaf, c in zip(jax.tree.leaves(ask.free(model, params)), stays, strict=True) if not c]

    def from_free(free: list[Array]) -> Params:
        rest = iter(free)
        whole = jax.tree.unflatten(all_free, [h if c else next(rest) for h, c in zip(held, stays, strict=True)])
        found = jax.tree.leaves(ask.from_free(model, whole))
        return jax.tree.unflatten(structure, [p if c else new for p, new, c in zip(leaves, found, stays, strict=True)])

    return to_free, from_free


def has_closed_m_step(model: Any, params: Params | None = None, data: Data | None = None) -> bool:
    """Whether the M step is a formula, which has a derivative; a climb has none.

    Of a written joint it takes its params and data to know.
    """
    own = ask.told(model, "m_step", None)
    if own is None or not isinstance(own, (Full, Truncated)):
        return own is not None and ask.told(model, "closed_m_step", True)
    blocks = None if params is None else blocks_of(model, params, data)
    return blocks is not None and all(block.stays for block in blocks)


def expected_log_joint(model: Any, stats: Stats) -> tuple[Callable[[Params], Array], Callable[[Params], Array]]:
    """Q(·; stats), and its size: the number of observations in it where that is known, else |Q|, at given params."""
    if ask.offers(model, "expected_log_joint"):
        q = lambda params: model.expected_log_joint(params, stats)  # noqa: E731
        return q, lambda params: jnp.abs(q(params))
    total = jnp.sum(stats.responsibilities)
    return lambda params: jnp.sum(stats.expectation(lambda rows: model.log_joint(params, rows))), lambda params: total


def posterior_statistics(folded: Folded, data: Data, sample_weight: Array | None, assigned: Array) -> Stats:
    """Statistics under given responsibilities (n, k), or given states (n,) of a model with k states, without params.

    Chunked as the E step; used to start a fit.
    """
    k = folded.model.n_components
    own, data = units_of(data), unlabelled(data)
    stand_in = None if sample_weight is None else some_present_row(data, sample_weight)

    def one_chunk(part: Part) -> Stats:
        (rows, assigned), weight = part.data, part.sample_weight
        rows = Part(rows, weight, stand_in=stand_in).present().data
        dtype = _tree.float_dtype(rows)
        r = jax.nn.one_hot(assigned, k, dtype=dtype) if assigned.ndim == 1 else assigned.astype(dtype)
        r = r if weight is None else weigh_rows(jnp.where(weight[:, None] > 0, r, 0), weight)
        return keep_rows(folded.model, None, rows, r, folded.plan)

    n, whole = _tree.n_rows(data), Part((data, assigned), sample_weight)
    if own is None and not is_additive(folded.model):
        return one_chunk(whole)
    most = min(_CHUNK_ROWS[1], _rows_in_cache(data, ask.elements_per_row(folded.model, data) + 1))
    most = max(_CHUNK_ROWS[0], most)
    rows = min(folded.plan.chunk_size or (n if n <= 2 * most else most), n)
    if own is not None:
        return units.assigned_statistics(replace(folded, fast=False), own, sample_weight, assigned, rows)
    return sum_over_chunks(one_chunk, whole, rows)
