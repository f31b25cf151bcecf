"""`fit_groups`: a ragged table, one fit per group. Host code.

labels ── runs ──▶ groups ── sizes ──▶ buckets ── pad ──▶ lanes ── fit ──▶ home, in the order of the labels
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Key, Params
from ..contracts import capabilities as ask
from ..contracts.admissible import Admissible, check_admissible
from ..contracts.checks import check_max_lanes, warn_if_rounded
from ..contracts.columns import as_column
from ..contracts.domains import check_params
from ..contracts.protocols import Algorithm, StoppingRule, number_of
from ..contracts.result import FitResult, check_status
from ..contracts.status import Status
from ..fold.criteria import criterion_of
from ..latent.finite import as_read, unlabelled
from ..latent.starts import KMeans, as_initializer
from ..latent.units import by_row
from ..loop.derivative import Derivative, Implicit
from ..loop.run import Options
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_rows
from ..numerics.labels import find, positions
from ..running.lanes import HostKeys, Lanes, lane_efficiency, resolve_plan, run_lanes, share
from ..running.padding import Bucket, Grouping, group_rows
from ..running.rounds import Problem, Work, can_go_in_rounds, most_lanes, run_in_rounds, size_of_fit
from ..storage.checkpoint import Checkpoint
from ._group_lanes import (
    GroupLane,
    check_labels_fit,
    lane_of_groups,
    read_groups,
    weight_of,
    with_own_ids,
    without_padded_ids,
    work_of_row,
)
from .asked import algorithm_for, check_model, make_options
from .batch import plan_fold_of_lanes
from .restarts import How, Race, Restarts, best_of_starts, check_race, take_best


@dataclass(frozen=True)
class GroupsResult:
    """One fit per group, stacked in the order of `labels`.

    Attributes:
        labels: (G,) sorted unique labels. Rows whose label is missing (None, NaN, NaT, NA) are one group, the last.
        n_rows: (G,) rows of each group.
        fits: a `FitResult` whose leaves lead with the groups.
        padding: wasted share of the rows that were computed on.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (90, 2))
        >>> ids = ["a"] * 50 + ["b"] * 39 + ["c"]
        >>> groups = jaxem.fit_groups(jaxem.Mixture(jaxem.FullNormal(), 2), jax.random.key(1), x, ids)
        >>> groups.fit_of("b").params.components.mean.shape, groups.params.components.mean.shape
        ((2, 2), (3, 2, 2))
        >>> groups.labels[groups.failed].tolist()
        ['c']
    """

    labels: np.ndarray
    n_rows: np.ndarray
    fits: FitResult
    padding: float

    def __getattr__(self, name: str) -> Any:
        if name in FitResult.__dataclass_fields__ or name in ("converged", "failed", "holdings"):
            return getattr(self.fits, name)
        raise AttributeError(f"GroupsResult has no attribute {name!r}")

    def index(self, label: Hashable) -> int:
        """Position of a label in `labels` and in every stacked leaf.

        Raises:
            KeyError: if the label was not fitted.
        """
        position = find(label, self._positions)
        if position < 0:
            raise KeyError(f"label {label!r} was not fitted; labels lists those that were.")
        return position

    @cached_property
    def _positions(self) -> dict[Hashable, int]:
        return positions(self.labels)

    def fit_of(self, label: Hashable) -> FitResult:
        """The fit of one group."""
        fits = replace(self.fits, lane_efficiency=None)
        return replace(_tree.take(fits, self.index(label)), lane_efficiency=None)

    def responsibilities(self, data: Data, group_ids: Any) -> Array:
        """p(z = j | x, its group's params): (n, k), in the table's own row order; NaN where no component explains it.

        Raises:
            ValueError: on a label that was not fitted.
        """
        return self._per_row("responsibilities", data, group_ids)

    def predict(self, data: Data, group_ids: Any) -> Array:
        """The most probable component of each row: (n,); −1 where no component explains it."""
        return self._per_row("predict", data, group_ids)

    def log_prob(self, data: Data, group_ids: Any) -> Array:
        """log p(x | its group's params): (n,); of grouped rows that of all rows of their id."""
        return self._per_row("log_prob", data, group_ids)

    def _per_row(self, method: str, data: Data, group_ids: Any) -> Array:
        dtype = jnp.result_type(*jax.tree.leaves(self.fits.params))
        rows = as_read(self.fits.model, as_rows(data), dtype)
        grouping = group_rows(group_ids, self.labels)
        n = _tree.n_rows(unlabelled(rows))
        check_labels_fit(len(grouping.order), n)
        rows, out = with_own_ids(rows, grouping), None
        for bucket in grouping.buckets(work_of_row(self.fits.model, rows)):
            part = jax.tree.map(lambda leaf: leaf[bucket.rows], rows)  # noqa: B023
            part = without_padded_ids(part, bucket.present)
            model, params = _tree.take((self.fits.model, self.fits.params), bucket.groups)
            values = _apply(method, model, params, part)
            out = jnp.zeros((n, *values.shape[2:]), values.dtype) if out is None else out
            out = out.at[bucket.rows[bucket.present]].set(values[bucket.present])
        if out is None:
            raise ValueError("data: expected at least one row, got n = 0.")
        return out

    def bic(self) -> Array:
        """−2 log-likelihood + p·log(total weight) of each group: (G,), lower is better."""
        return self._penalised(jnp.log(self.fits.total_weight))

    def aic(self) -> Array:
        """−2 log-likelihood + 2p of each group: (G,), lower is better."""
        return self._penalised(jnp.asarray(2.0))

    def icl(self, data: Data, group_ids: Any, sample_weight: Any = None) -> Array:
        """ICL of each group, as the model's own, from the group's own rows: (G,), lower is better.

        Args:
            data: the table that was fitted.
            group_ids: (n,) its labels.
            sample_weight: (n,) or None, as they were.
        """
        return self.criterion("icl", data, group_ids, sample_weight)

    def criterion(self, name: str, data: Data, group_ids: Any, sample_weight: Any = None) -> Array:
        """An information criterion of each group by its name, as `select` takes it: (G,), lower is better."""
        dtype = jnp.result_type(*jax.tree.leaves(self.fits.params))
        table = jax.tree.map(np.asarray, as_read(self.fits.model, as_rows(data), dtype))
        weight = None if sample_weight is None else np.asarray(sample_weight, dtype)
        grouping, out = group_rows(group_ids, self.labels), np.full(len(self.labels), np.nan, dtype)
        check_labels_fit(len(grouping.order), _tree.n_rows(unlabelled(table)))
        table = with_own_ids(table, grouping)
        for bucket in grouping.buckets(work_of_row(self.fits.model, unlabelled(table))):
            lane = lane_of_groups(bucket, table, weight, None, None)
            fits = _tree.take((self.fits.model, self.fits.params, self.fits.log_lik), bucket.groups)
            out[bucket.groups] = np.asarray(_criteria(name, *fits, lane))
        return jnp.asarray(out)

    def _penalised(self, penalty: Array) -> Array:
        p = count_parameters(self.fits.model, self.fits.params)
        return -2 * self.fits.log_lik + p * penalty

    def ordered(self, by: str | Callable = "weight") -> "GroupsResult":
        """Every group's components sorted, as `FitResult.ordered`."""
        return replace(self, fits=self.fits.ordered(by))

    def check(self) -> "GroupsResult":
        """Returns the result, or raises with counts per status and the first groups that did not converge.

        Raises:
            RuntimeError: if a group did not converge.
        """
        check_status(np.asarray(self.fits.status), self.labels, "groups")
        return self

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a group: `group`, `n_rows`, then the columns of `FitResult.to_frame`.

        Raises:
            ImportError: without pandas.
        """
        frame = self.fits.to_frame().drop(columns="lane")
        frame.insert(0, "group", as_column(self.labels))
        frame.insert(1, "n_rows", np.asarray(self.n_rows))
        return frame

    def counts(self) -> dict[Status, int]:
        """Groups per status, those that occur."""
        codes, counts = np.unique(np.asarray(self.fits.status), return_counts=True)
        return {Status(int(code)): int(count) for code, count in zip(codes, counts, strict=True)}


@partial(jax.jit, static_argnums=0)
def _apply(method: str, model: Any, params: Params, data: Data) -> Array:
    """A method of the model, group by group."""

    def one(model: Any, params: Params, data: Data) -> Array:
        values = getattr(model, method)(params, data)
        return by_row(values, data) if method == "log_prob" else values

    return jax.vmap(one)(model, params, data)


@jax.jit
def count_parameters(models: Any, params: Params) -> Array:
    """Free parameters of every lane: (b,)."""
    return jax.vmap(lambda model, params: jnp.asarray(ask.n_parameters(model, params)))(models, params)


@partial(jax.jit, static_argnums=0)
def _criteria(name: str, models: Any, params: Params, log_lik: Array, lanes: GroupLane) -> Array:
    def one(model: Any, params: Params, log_lik: Array, lane: GroupLane) -> Array:
        return criterion_of(name, model, params, lane.data, weight_of(lane), log_lik=log_lik)

    return jax.vmap(one)(models, params, log_lik, lanes)


def _group_lane(how: How, lane: GroupLane, shared: tuple[Any, Any, Options]) -> tuple[FitResult, tuple[Array, ...]]:
    """A group, and in it its starts."""
    model, init, options = shared
    problem = Restarts(lane.keys, lane.start, lane.data, weight_of(lane))
    return best_of_starts(how, problem, model, init, options.for_lane(lane.number))


def _start_of_group(static: None, both: tuple[Any, GroupLane], shared: tuple[Any, Any, Options]) -> Problem:
    """One start of a group: a lane of its own, so that a slow start holds nobody up."""
    key, lane = both[0], both[1]
    model, init, options = shared
    options, weight = options.for_lane(lane.number), weight_of(lane)
    if lane.start is not None:
        return Problem(model, lambda: lane.start, lane.data, weight, options)
    start = lambda: ask.init(model, key, lane.data, weight, init)  # noqa: E731
    return Problem(model, start, lane.data, weight, options.for_lane(number_of(key)))


def _groups_in_rounds(
    lanes: Lanes,
    n_restarts: int,
    max_iter: int,
    *,
    max_lanes: int | None,
    race: Race | None,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> tuple[FitResult, int, int]:
    """The best fit of each group of a bucket, and the E steps needed and run."""
    group: GroupLane = lanes.batched
    n_groups = len(group.number)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], np.float32), unlabelled(group.data))
    at_once = most_lanes(max_lanes, n_groups * n_restarts, size_of_fit(one, ask.n_components(lanes.shared[0], 1)))
    keys = np.zeros(n_groups) if group.keys is None else group.keys.reshape(-1)
    lanes = Lanes(keys, lanes.shared, group._replace(keys=None))
    done, kept = run_in_rounds(
        Work(_start_of_group, None), lanes, max_iter, at_once,
        race=race, shape=(n_groups, n_restarts), progress=progress, checkpoint=checkpoint,
    )  # fmt: skip
    if n_restarts == 1:
        return done.fits, done.needed, done.run
    tol = lanes.shared[2].tol
    return best_by_problem(n_groups, _tree.take(done.fits, np.flatnonzero(kept)), tol), done.needed, done.run


@partial(jax.jit, static_argnums=0)
def best_by_problem(n_problems: int, every: FitResult, tol: Any) -> FitResult:
    """The best of the starts of each problem, problems first."""
    by_problem = jax.tree.map(lambda leaf: leaf.reshape(n_problems, -1, *leaf.shape[1:]), every)
    return jax.vmap(take_best, (0, None))(by_problem, tol)


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
    algorithm: Algorithm | None = None,
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
    derivative: Derivative = Implicit(),
    stop: StoppingRule | None = None,
    checkpoint: Checkpoint | None = None,
    admissible: Admissible | None = None,
) -> GroupsResult:
    """Fits one model per group of a flat table, all in one call.

    Groups of like size are padded together, with weight zero. A group that is too small ends as TOO_FEW, one with NaN
    as NONFINITE, and stops nothing.

    Args:
        model: with an `init` method, unless starts are given.
        key: of `jax.random`; each group's starts depend on its position among the sorted labels alone.
        data: flat table, every leaf (n, …). May be traced; labels may not.
        group_ids: (n,) labels of any hashable kind, in any order: a list, an array, a column of pandas or polars. The
            rows whose label is missing are one group.
        n_restarts: starts per group; the best fit is kept.
        init: an initialiser as in `fit_restarts`; or start params stacked by group, in the order of the sorted labels.
        sample_weight: (n,) or None.
        race: as in `fit_restarts`, among the starts of each group.
        plan: as in `fit_batch`.
        max_lanes: as in `fit_batch`, of starts of groups.
        progress: as in `fit_batch`.
        algorithm: as in `fit`; None is `SQUAREM()` where the model has a closed M step and says which params are
            allowed, else `EM()`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.
        derivative: as in `fit`.
        stop: as in `fit`.
        checkpoint: as in `fit_batch`, of groups.
        admissible: as in `fit_restarts`; a group without an admissible maximum ends as INADMISSIBLE.

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
    n_restarts, max_lanes = as_count("n_restarts", n_restarts), check_max_lanes(max_lanes)
    data = as_rows(data)
    check_race(race, n_restarts)
    check_admissible(admissible, model)
    algorithm = algorithm_for([model], algorithm)
    options = make_options(algorithm, tol, max_iter, derivative, stop, plan_fold_of_lanes(chunk_size, plan, 1))
    warn_if_rounded(data)
    model, table, weight, dtype, grouping = read_groups(model, data, group_ids, sample_weight)
    n_groups = len(grouping.labels)
    at_once = min(n_groups * n_restarts, max_lanes or n_groups * n_restarts)
    options = replace(options, plan=plan_fold_of_lanes(chunk_size, plan, at_once), admissible=admissible)
    starts = None if callable(init) else _check_starts(model, init, unlabelled(table), n_groups, n_restarts, dtype)
    keys = None if starts is not None else jax.random.split(key, (n_groups, n_restarts))
    keys = keys if keys is None or _tree.is_tracing(keys) else HostKeys(keys)
    buckets = grouping.buckets(n_restarts * work_of_row(model, unlabelled(table)))
    shared = (model, as_initializer(init) if starts is None else None, _tree.cast_floats(options, dtype))

    def lanes_of(bucket: Bucket) -> Lanes:
        start = None if starts is None else jax.tree.map(lambda leaf: leaf[bucket.groups], starts)
        return Lanes(lane_of_groups(bucket, table, weight, keys, start), shared)

    lanes = [lanes_of(bucket) for bucket in buckets]
    if can_go_in_rounds(plan, lanes):
        run = partial(_groups_in_rounds, max_lanes=max_lanes, race=race, progress=progress)
        part = lambda i: None if checkpoint is None else checkpoint.part(f"size{i}")  # noqa: E731
        done = [run(one, n_restarts, options.max_iter, checkpoint=part(i)) for i, one in enumerate(lanes)]
        efficiency = share(sum(needed for _, needed, _ in done), sum(run for _, _, run in done))
        return gather_home(grouping, buckets, [fits for fits, _, _ in done], efficiency)
    side_by_side = plan == "lanes" and max_lanes is not None
    groups_at_once = max(1, max_lanes // n_restarts) if side_by_side else max_lanes  # type: ignore[operator]
    results = run_lanes(
        _group_lane, How(plan, max_lanes, race), lanes, plan,
        progress=progress, max_lanes=groups_at_once, checkpoint=checkpoint,
    )  # fmt: skip
    phases = [n_evals for _, phases in results for n_evals in phases]
    return gather_home(grouping, buckets, [fits for fits, _ in results], lane_efficiency(phases, plan))


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
    if ask.offers(model, "validate"):
        jax.eval_shape(lambda start: model.validate(start, table), _tree.take(starts, 0))
    check_params(model, starts, lanes=True)
    return starts


def gather_home(grouping: Grouping, buckets: list[Bucket], results: list[Any], efficiency: Array) -> GroupsResult:
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
