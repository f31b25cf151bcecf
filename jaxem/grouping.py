"""`fit_groups`: a ragged table, one fit per group. Host code.

labels ── runs ──▶ groups ── sizes ──▶ buckets ── pad ──▶ lanes ── fit ──▶ home, in the order of the labels
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _tree
from ._typing import Array, Data, Key, Params
from .algorithms.em import EM
from .batch import check_count, check_max_lanes, plan_fold_of_lanes
from .derivative import Derivative, Implicit
from .fitting import Options, check_model, make_options, prepare_inputs, warn_if_rounded
from .initialize import KMeans, as_initializer
from .lanes import Lanes, lane_efficiency, resolve_plan, run_lanes, share
from .protocols import Algorithm, StoppingRule, number_of
from .protocols import init as draw_start
from .restarts import How, Race, Restarts, best_of_starts, check_race, take_best
from .result import FitResult, Status, check_status
from .rounds import Problem, Work, can_go_in_rounds, most_lanes, run_in_rounds, size_of_fit
from .rules import Labelled, unlabelled

_MOST_BUCKETS, _MANY_ROWS, _MORE_BUCKETS = 6, 2_000_000, 10  # of large tables more, whose padding takes longer
_BUCKET_COST = 0.02  # of all rows: what one more compiled shape must save to be worth its compilation


class Bucket(NamedTuple):
    """Groups padded to one size: `rows` (g, size) indexes the table, `present` marks what is not padding."""

    groups: np.ndarray
    rows: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class Grouping:
    """Which rows belong to which group.

    Attributes:
        labels: (G,) sorted unique labels.
        order: (n,) rows sorted by group, in table order within a group.
        offsets: (G + 1,) where each group starts in `order`.
        in_order: whether `order` is 0, 1, 2, …
    """

    labels: np.ndarray
    order: np.ndarray
    offsets: np.ndarray
    in_order: bool = False

    @property
    def sizes(self) -> np.ndarray:
        """(G,) rows per group."""
        return np.diff(self.offsets)

    def buckets(self) -> list[Bucket]:
        """Groups in a few padded sizes, chosen from the histogram of sizes to waste few rows."""
        sizes = self.sizes
        tops = np.asarray(_bucket_sizes(sizes))
        which = np.searchsorted(tops, sizes)
        buckets = []
        for bucket in range(len(tops)):
            groups = np.flatnonzero(which == bucket)
            if len(groups):
                column = np.arange(tops[bucket], dtype=self.order.dtype)
                present = column < sizes[groups][:, None]
                # padding is a row of the group, its last
                position = np.minimum(column, np.maximum(sizes[groups] - 1, 0)[:, None])
                position += np.minimum(self.offsets[groups], len(self.order) - 1)[:, None]
                buckets.append(Bucket(groups, position if self.in_order else self.order[position], present))
        return buckets


def group_rows(group_ids: Any, labels: np.ndarray | None = None) -> Grouping:
    """Groups the rows of a table by label.

    Runs of equal labels are found first, so a table that is already sorted, by whatever label, costs one comparison
    a row.

    Args:
        group_ids: (n,) labels of any hashable kind.
        labels: the labels known already; None takes those that occur, sorted.

    Raises:
        ValueError: on labels that are not one-dimensional, or not among `labels`.
    """
    ids = _label_array(group_ids)
    if len(ids) == 0:
        known = np.asarray([] if labels is None else labels)
        return Grouping(known, np.zeros(0, np.int64), np.zeros(len(known) + 1, np.int64))
    heads = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    head_labels = ids[heads]
    known, code = _factorize(head_labels) if labels is None else (labels, _lookup(head_labels, labels))
    lengths = np.diff(np.append(heads, len(ids)))
    if len(heads) == len(known) and np.all(code[1:] > code[:-1]):
        return Grouping(known, np.arange(len(ids)), np.append(heads, len(ids)), in_order=True)
    row_code = np.repeat(code, lengths)
    order = np.argsort(row_code, kind="stable")
    counts = np.bincount(row_code, minlength=len(known))
    return Grouping(known, order, np.concatenate([[0], np.cumsum(counts)]))


def _label_array(group_ids: Any) -> np.ndarray:
    if _tree.is_tracing(group_ids):
        raise ValueError("group_ids: expected concrete labels, got a traced array; pass NumPy labels from outside jit.")
    ids = group_ids if isinstance(group_ids, np.ndarray) else None
    if ids is None:
        sequence = list(group_ids) if not hasattr(group_ids, "__array__") else group_ids
        plain = not isinstance(sequence, list) or not any(isinstance(label, tuple) for label in sequence)
        kinds = {type(label) for label in sequence} if isinstance(sequence, list) else set()
        # NumPy drops trailing NULs of bytes and strings: labels that end with one stay objects
        nul = any(isinstance(x, (bytes, str)) and x[-1:] in (b"\0", "\0") for x in sequence) if kinds else False
        if plain and len(kinds) <= 1 and not nul:
            ids = np.asarray(sequence)
        else:  # tuples or mixed types: one object each, never broadcast or turned into strings
            ids = np.empty(len(sequence), object)
            ids[:] = sequence
    if ids.ndim != 1:
        raise ValueError(f"group_ids: expected one label a row, shape (n,), got shape {ids.shape}.")
    return ids


def _factorize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted unique labels, or in order of appearance where they have no order, and the code of each value."""
    if values.dtype != object:
        return np.unique(values, return_inverse=True)
    codes: dict[Hashable, int] = {}
    code = np.fromiter((codes.setdefault(value, len(codes)) for value in values), np.int64, len(values))
    labels = np.empty(len(codes), object)
    labels[:] = list(codes)
    try:
        rank = sorted(range(len(labels)), key=labels.__getitem__)
    except TypeError:
        return labels, code
    position = np.empty(len(labels), np.int64)
    position[rank] = np.arange(len(labels))
    return labels[rank], position[code]


def _lookup(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    position = {label: i for i, label in enumerate(labels.tolist())}
    code = np.asarray([position.get(value, -1) for value in values.tolist()], np.int64)
    if (code < 0).any():
        unknown = values[code < 0]
        raise ValueError(
            f"group_ids: expected labels that were fitted, got {unknown[0]!r}"
            f"{' and others' if len(set(unknown.tolist())) > 1 else ''}; result.labels lists them."
        )
    return code


def _bucket_sizes(sizes: np.ndarray) -> list[int]:
    """Padded sizes that waste the fewest rows, by dynamic programming over the histogram of rounded sizes."""
    tops, counts = np.unique([_round_up(int(size)) for size in np.unique(sizes)], return_counts=True)
    counts = np.bincount(np.searchsorted(tops, sizes), minlength=len(tops))
    total = max(int(sizes.sum()), 1)
    before = np.concatenate([[0], np.cumsum(counts)])
    best = np.full(len(tops) + 1, np.inf)
    best[0] = 0
    choice: list[list[int]] = [[] for _ in range(len(tops) + 1)]
    answer, answer_cost = [int(tops[-1])], np.inf
    most = _MORE_BUCKETS if sizes.sum() > _MANY_ROWS else _MOST_BUCKETS
    for n_buckets in range(1, min(most, len(tops)) + 1):
        new_best, new_choice = np.full_like(best, np.inf), [[] for _ in choice]
        for j in range(1, len(tops) + 1):
            costs = best[:j] + (before[j] - before[:j]) * tops[j - 1]
            i = int(np.argmin(costs))
            new_best[j], new_choice[j] = costs[i], [*choice[i], int(tops[j - 1])]
        best, choice = new_best, new_choice
        cost = best[-1] + n_buckets * _BUCKET_COST * total
        if cost < answer_cost:
            answer, answer_cost = choice[-1], cost
    return answer


def _round_up(size: int) -> int:
    """Up to a multiple of 8, and to three significant bits."""
    step = max(8, 2 ** max(size.bit_length() - 4, 0))
    return max(-(-size // step) * step, 8)


@dataclass(frozen=True)
class GroupsResult:
    """One fit per group, stacked in the order of `labels`.

    Attributes:
        labels: (G,) sorted unique labels.
        n_rows: (G,) rows of each group.
        fits: a `FitResult` whose leaves lead with the groups.
        padding: wasted share of the rows that were computed on.
    """

    labels: np.ndarray
    n_rows: np.ndarray
    fits: FitResult
    padding: float

    def __getattr__(self, name: str) -> Any:
        if name in FitResult.__dataclass_fields__ or name in ("converged", "failed"):
            return getattr(self.fits, name)
        raise AttributeError(f"GroupsResult has no attribute {name!r}")

    def index(self, label: Hashable) -> int:
        """Position of a label in `labels` and in every stacked leaf.

        Raises:
            KeyError: if the label was not fitted.
        """
        for position, known in enumerate(self.labels.tolist()):
            if known == label:
                return position
        raise KeyError(f"label {label!r} was not fitted; labels lists those that were.")

    def fit_of(self, label: Hashable) -> FitResult:
        """The fit of one group."""
        fits = replace(self.fits, lane_efficiency=None)
        return replace(_tree.take(fits, self.index(label)), lane_efficiency=None)

    def responsibilities(self, data: Data, group_ids: Any) -> Array:
        """p(z = j | x, its group's params): (n, k), in the table's own row order.

        Raises:
            ValueError: on a label that was not fitted.
        """
        return self._per_row("responsibilities", data, group_ids)

    def predict(self, data: Data, group_ids: Any) -> Array:
        """The most probable component of each row: (n,)."""
        return self._per_row("predict", data, group_ids)

    def log_prob(self, data: Data, group_ids: Any) -> Array:
        """log p(x | its group's params): (n,)."""
        return self._per_row("log_prob", data, group_ids)

    def _per_row(self, method: str, data: Data, group_ids: Any) -> Array:
        dtype = jnp.result_type(*jax.tree.leaves(self.fits.params))
        rows = _tree.cast_data(data, dtype)
        grouping = group_rows(group_ids, self.labels)
        n = _tree.n_rows(rows)
        _check_labels_fit(len(grouping.order), n)
        out = None
        for bucket in grouping.buckets():
            part = jax.tree.map(lambda leaf: leaf[bucket.rows], rows)  # noqa: B023
            model, params = _tree.take((self.fits.model, self.fits.params), bucket.groups)
            values = _apply(method, model, params, part)
            out = jnp.zeros((n, *values.shape[2:]), values.dtype) if out is None else out
            out = out.at[bucket.rows[bucket.present]].set(values[bucket.present])
        if out is None:
            raise ValueError("data: expected at least one row, got n = 0.")
        return out

    def ordered(self, by: str | Callable = "weight") -> "GroupsResult":
        """Every group's components sorted, as `FitResult.ordered`."""
        return replace(self, fits=self.fits.ordered(by))

    def check(self) -> "GroupsResult":
        """Returns the result, or raises with counts per status and the first groups that did not converge.

        Raises:
            RuntimeError: if a group did not converge.
        """
        check_status(np.asarray(self.fits.status), self.labels)
        return self

    def counts(self) -> dict[Status, int]:
        """Groups per status, those that occur."""
        codes, counts = np.unique(np.asarray(self.fits.status), return_counts=True)
        return {Status(int(code)): int(count) for code, count in zip(codes, counts, strict=True)}


@partial(jax.jit, static_argnums=0)
def _apply(method: str, model: Any, params: Params, data: Data) -> Array:
    """A method of the model, group by group."""
    return jax.vmap(lambda m, p, d: getattr(m, method)(p, d))(model, params, data)


class _GroupLane(NamedTuple):
    keys: Any
    start: Any
    data: Data
    present: Any
    sample_weight: Any
    number: Any


def _weight(lane: _GroupLane) -> Array:
    weight = lane.present.astype(_tree.float_dtype(unlabelled(lane.data)))
    return weight if lane.sample_weight is None else jnp.where(lane.present, lane.sample_weight, 0)


def _group_lane(how: How, lane: _GroupLane, shared: tuple[Any, Any, Options]) -> tuple[FitResult, tuple[Array, ...]]:
    """A group, and in it its starts."""
    model, init, options = shared
    problem = Restarts(lane.keys, lane.start, lane.data, _weight(lane))
    return best_of_starts(how, problem, model, init, options.for_lane(lane.number))


def _start_of_group(static: None, both: tuple[Any, _GroupLane], shared: tuple[Any, Any, Options]) -> Problem:
    """One start of a group: a lane of its own, so that a slow start holds nobody up."""
    key, lane = both[0], both[1]
    model, init, options = shared
    options, weight = options.for_lane(lane.number), _weight(lane)
    if lane.start is not None:
        return Problem(model, lambda: lane.start, lane.data, weight, options)
    start = lambda: draw_start(model, key, lane.data, weight, init)  # noqa: E731
    return Problem(model, start, lane.data, weight, options.for_lane(number_of(key)))


def _groups_in_rounds(
    lanes: Lanes, n_restarts: int, max_iter: int, max_lanes: int | None, race: Race | None, progress: bool
) -> tuple[FitResult, int, int]:
    """The best fit of each group of a bucket, and the E steps needed and run."""
    group: _GroupLane = lanes.batched
    n_groups = len(group.number)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], np.float32), unlabelled(group.data))
    at_once = most_lanes(
        max_lanes, n_groups * n_restarts, size_of_fit(one, getattr(lanes.shared[0], "n_components", 1))
    )
    keys = np.zeros(n_groups) if group.keys is None else group.keys.reshape(-1)
    lanes = Lanes(keys, lanes.shared, group._replace(keys=None))
    done, kept = run_in_rounds(
        Work(_start_of_group, None), lanes, max_iter, at_once,
        race=race, shape=(n_groups, n_restarts), progress=progress,
    )  # fmt: skip
    if n_restarts == 1:
        return done.fits, done.needed, done.run
    return _best_by_group(n_groups, _tree.take(done.fits, np.flatnonzero(kept))), done.needed, done.run


@partial(jax.jit, static_argnums=0)
def _best_by_group(n_groups: int, every: FitResult) -> FitResult:
    by_group = jax.tree.map(lambda leaf: leaf.reshape(n_groups, -1, *leaf.shape[1:]), every)
    return jax.vmap(take_best)(by_group)


def fit_groups(
    model: Any,
    key: Key,
    data: Data,
    group_ids: Any,
    *,
    n_restarts: int = 1,
    init: Any = KMeans(),
    sample_weight: Any = None,
    race: Race | None = None,
    plan: str = "auto",
    max_lanes: int | None = None,
    progress: bool = False,
    algorithm: Algorithm = EM(),
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
    derivative: Derivative = Implicit(),
    stop: StoppingRule | None = None,
) -> GroupsResult:
    """Fits one model per group of a flat table, all in one call.

    Groups of like size are padded together, with weight zero. A group that is too small ends as TOO_FEW, one with NaN
    as NONFINITE, and stops nothing.

    Args:
        model: with an `init` method, unless starts are given.
        key: of `jax.random`; each group's starts depend on its position among the sorted labels alone.
        data: flat table, every leaf (n, …). May be traced; labels may not.
        group_ids: (n,) labels of any hashable kind, in any order.
        n_restarts: starts per group; the best fit is kept.
        init: an initialiser as in `fit_restarts`; or start params stacked by group, in the order of the sorted labels.
        sample_weight: (n,) or None.
        race: as in `fit_restarts`, among the starts of each group.
        plan: as in `fit_batch`.
        max_lanes: as in `fit_batch`, of starts of groups.
        progress: as in `fit_batch`.
        algorithm: as in `fit`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.
        derivative: as in `fit`.
        stop: as in `fit`.

    Returns:
        A `GroupsResult`.

    Raises:
        ValueError: on shapes, labels or options that do not fit. Never for data values.
        TypeError: as in `fit`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (90, 2))
        >>> ids = ["a"] * 50 + ["b"] * 39 + ["c"]
        >>> groups = jaxem.fit_groups(jaxem.Mixture(jaxem.FullNormal(), 2), jax.random.key(1), x, ids)
        >>> groups.converged.tolist(), jaxem.Status(int(groups.status[2])).name
        ([True, True, False], 'TOO_FEW')
        >>> groups.responsibilities(x, ids).shape
        (90, 2)
    """
    check_model(model)
    plan = resolve_plan(plan)
    check_count("n_restarts", n_restarts)
    check_max_lanes(max_lanes)
    check_race(race, n_restarts)
    options = make_options(algorithm, tol, max_iter, derivative, stop, plan_fold_of_lanes(chunk_size, plan, 1))
    warn_if_rounded(data)
    if isinstance(data, Labelled):
        data, allowed = data
    else:
        allowed = None
    model, table, weight, dtype = prepare_inputs(model, _host_table(data), sample_weight)
    if hasattr(model, "validate_data"):
        model.validate_data(table)
    grouping = group_rows(group_ids)
    _check_labels_fit(len(grouping.order), _tree.n_rows(table))
    n_groups = len(grouping.labels)
    at_once = min(n_groups * n_restarts, max_lanes or n_groups * n_restarts)
    options = replace(options, plan=plan_fold_of_lanes(chunk_size, plan, at_once))
    starts = None if callable(init) else _check_starts(model, init, table, n_groups, n_restarts, dtype)
    keys = None if starts is not None else jax.random.split(key, (n_groups, n_restarts))
    table = table if allowed is None else Labelled(table, allowed)
    buckets = grouping.buckets()

    def lanes_of(bucket: Bucket) -> Lanes:
        rows = jax.tree.map(lambda leaf: _take_rows(leaf, bucket.rows), table)
        start = None if starts is None else jax.tree.map(lambda leaf: leaf[bucket.groups], starts)
        own_weight = None if weight is None else _take_rows(weight, bucket.rows)
        own_keys = None if keys is None else keys[bucket.groups]
        lane = _GroupLane(own_keys, start, rows, bucket.present, own_weight, bucket.groups.astype(np.uint32))
        return Lanes(lane, (model, as_initializer(init) if starts is None else None, _tree.cast_floats(options, dtype)))

    lanes = [lanes_of(bucket) for bucket in buckets]
    if can_go_in_rounds(plan, lanes):
        done = [_groups_in_rounds(one, n_restarts, options.max_iter, max_lanes, race, progress) for one in lanes]
        efficiency = share(sum(needed for _, needed, _ in done), sum(run for _, _, run in done))
        return _gather_home(grouping, buckets, [fits for fits, _, _ in done], efficiency)
    side_by_side = plan == "lanes" and max_lanes is not None
    groups_at_once = max(1, max_lanes // n_restarts) if side_by_side else max_lanes  # type: ignore[operator]
    results = run_lanes(_group_lane, How(plan, max_lanes, race), lanes, plan, progress, groups_at_once)
    phases = [n_evals for _, phases in results for n_evals in phases]
    return _gather_home(grouping, buckets, [fits for fits, _ in results], lane_efficiency(phases, plan))


def _check_starts(model: Any, init: Params, table: Data, n_groups: int, n_restarts: int, dtype: Any) -> Params:
    """Start params stacked by group, on the host.

    Raises:
        ValueError: if they do not lead with the groups or do not fit the model, or several restarts are asked for.
    """
    if n_restarts != 1:
        raise ValueError(f"n_restarts: expected 1 where init gives the starts, got {n_restarts}.")
    starts = jax.tree.map(lambda leaf: leaf if _tree.is_tracing(leaf) else np.asarray(leaf, dtype), init)
    if _tree.n_rows(starts, "init") != n_groups:
        raise ValueError(
            f"init: expected start params leading with {n_groups} groups, in the order of the sorted labels, got "
            f"{_tree.n_rows(starts, 'init')}."
        )
    if hasattr(model, "validate"):
        model.validate(_tree.take(starts, 0), table)
    return starts


def _host_table(data: Data) -> Data:
    """NumPy views of concrete tables on the host: rows are gathered there without a device copy."""
    on_host = lambda leaf: isinstance(leaf, jax.Array) and not _tree.is_tracing(leaf)  # noqa: E731
    return jax.tree.map(lambda leaf: np.asarray(leaf) if on_host(leaf) else leaf, data)


def _take_rows(leaf: Any, rows: np.ndarray) -> Any:
    if _tree.is_tracing(leaf):
        return leaf[rows]
    return np.take(np.asarray(leaf), rows, axis=0)


def _check_labels_fit(n_labels: int, n: int) -> None:
    if n_labels != n:
        raise ValueError(f"group_ids: expected one label for each of {n} rows, got {n_labels}.")


def _gather_home(grouping: Grouping, buckets: list[Bucket], results: list[Any], efficiency: Array) -> GroupsResult:
    """Stacks the results of all buckets in the order of the labels."""
    order = np.argsort(np.concatenate([bucket.groups for bucket in buckets]), kind="stable")
    traced = _tree.is_tracing(results)
    join = (lambda *parts: jnp.concatenate(parts)[order]) if traced else (
        lambda *parts: jnp.asarray(np.concatenate([np.asarray(part) for part in parts])[order])
    )  # fmt: skip
    fits = jax.tree.map(join, *results)
    padded = sum(bucket.present.size for bucket in buckets)
    waste = 1 - len(grouping.order) / max(padded, 1)
    return GroupsResult(grouping.labels, grouping.sizes, replace(fits, lane_efficiency=efficiency), waste)
