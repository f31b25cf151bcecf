"""`select` with groups: the best of several models for every group of a ragged table. Host code.

models ── same structure ──▶ pad k ──▶ lanes (starts × models × groups) ── best start ──▶ un-pad ──▶ table of candidates
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..contracts.admissible import Admissible
from ..contracts.columns import as_column, import_pandas
from ..contracts.protocols import number_of
from ..contracts.result import FitResult, check_status
from ..contracts.status import Status, is_failure
from ..drivers._group_lanes import GroupLane, lane_of_groups, read_groups, weight_of, work_of_row
from ..drivers.batch import plan_fold_of_lanes
from ..drivers.groups import GroupsResult, best_by_problem, count_parameters, gather_home
from ..drivers.restarts import How, Restarts, best_of_starts
from ..latent.finite import unlabelled
from ..latent.starts import Initializer
from ..loop.run import Options
from ..models._padding import alike, padded, unpadded_lanes
from ..numerics import tree as _tree
from ..running.lanes import HostKeys, Lanes, lane_efficiency, over, run_lanes, share
from ..running.padding import Bucket, Grouping
from ..running.rounds import Problem, Work, can_go_in_rounds, most_lanes, run_in_rounds, size_of_fit

# of `select` with groups: a component of fewer rows says nothing about its variance, and one at the floor is a value
# that repeats (`python -m benchmarks.genes`)
ADMISSIBLE = Admissible(min_count=5.0)


@dataclass(frozen=True, repr=False)
class GroupsSelection:
    """What `select` found for every group.

    Attributes:
        labels: (G,) sorted unique labels.
        n_rows: (G,) rows of each group.
        names: of the models, in the order given.
        index: (G,) position of each group's winner in `names`; 0 where all models failed.
        results: a `GroupsResult` for each model, of all groups.
        table: name → column (G · models,), groups outermost: group, n_rows, name, n_components, chosen, criterion
            (lower is better; NaN if the fit failed or is not admissible), log_lik, objective, n_parameters, status,
            n_iter, smallest_count, largest_ratio, n_at_floor (see `diagnose`), n_best (starts that reached the best);
            what no model has is left out.
        criterion: what was asked for.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> a = jax.random.normal(jax.random.key(0), (100, 1))
        >>> x = jnp.concatenate([a, a.at[:40].add(9.0)])
        >>> ids = ["one"] * 100 + ["two"] * 100
        >>> models = [jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2, 3)]
        >>> selection = jaxem.select(models, jax.random.key(1), x, group_ids=ids, n_restarts=4).check()
        >>> dict(zip(selection.labels.tolist(), selection.best_name.tolist()))
        {'one': 'FullNormal, k=1', 'two': 'FullNormal, k=2'}
        >>> selection.fit_of("two").params.components.mean.shape, selection.counts()["FullNormal, k=3"]
        ((2, 1), 0)
    """

    labels: np.ndarray
    n_rows: np.ndarray
    names: list[str]
    index: np.ndarray
    results: list[GroupsResult]
    table: dict[str, np.ndarray]
    criterion: str

    @property
    def best_name(self) -> np.ndarray:
        """(G,) names of the winners."""
        return np.asarray(self.names)[self.index]

    def fit_of(self, label: Hashable) -> FitResult:
        """The winner's fit of one group.

        Raises:
            KeyError: if the label was not fitted.
        """
        position = self.results[0].index(label)
        return self.results[self.index[position]].fit_of(label)

    def counts(self) -> dict[str, int]:
        """How many groups chose each model."""
        counts = np.bincount(self.index, minlength=len(self.names)).tolist()
        return dict(zip(self.names, counts, strict=True))

    @property
    def status(self) -> np.ndarray:
        """(G,) of the winners' fits."""
        every = np.stack([np.asarray(result.status) for result in self.results])
        return every[self.index, np.arange(len(self.index))]

    def check(self) -> "GroupsSelection":
        """Returns the selection, or raises with counts per status and the first groups.

        Raises:
            RuntimeError: if a winner's fit did not converge, which includes that all models failed for a group.
        """
        check_status(self.status, self.labels, "groups")
        return self

    def to_frame(self) -> Any:
        """`table` as a pandas DataFrame, a row for each group and model.

        Raises:
            ImportError: without pandas.
        """
        columns = {name: as_column(values) if name == "group" else values for name, values in self.table.items()}
        return import_pandas("to_frame").DataFrame(columns)

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}: {count:,}" for name, count in self.counts().items())
        n_failed = int(np.sum(is_failure(jnp.asarray(self.status))))
        failed = f"; no usable fit in {n_failed:,}" if n_failed else ""
        return f"GroupsSelection of {len(self.labels):,} groups by {self.criterion} ({chosen}{failed})"


class Table(NamedTuple):
    """Rows, their labels (n,), and their weights (n,) or None."""

    data: Data
    group_ids: Any
    sample_weight: Any


class Asked(NamedTuple):
    """What `select` is asked for, beside models, key and table."""

    criterion: str
    n_restarts: int
    init: Initializer
    plan: str
    progress: bool
    chunk_size: int | None
    options: Options


def select_by_group(names: list[str], models: list[Any], key: Key, table: Table, asked: Asked) -> GroupsSelection:
    """The best of the models for every group."""
    results: dict[int, GroupsResult] = {}
    for group in alike([jax.tree.map(np.asarray, model) for model in models]):
        fits = _fit_alike([models[i] for i in group], key, table, asked)
        results |= dict(zip(group, fits, strict=True))
    every = [results[i] for i in range(len(models))]
    return _chosen(names, models, every, table, asked.criterion)


# --- fits


def _candidates_of_group(how: How, lane: GroupLane, shared: tuple) -> tuple[FitResult, tuple[Array, ...]]:
    """The best fit of each model to one group: models first."""
    models, init, options = shared
    problem = Restarts(lane.keys, lane.start, lane.data, weight_of(lane))

    def of_model(i: Array) -> tuple[FitResult, tuple[Array, ...]]:
        return best_of_starts(how, problem, _tree.take(models, i), init, options.for_lane(lane.number))

    return over(of_model, jnp.arange(_tree.n_rows(models)), how.plan)


def _start_of_candidate(static: None, both: tuple[Any, GroupLane], shared: tuple) -> Problem:
    """One start of one model of a group."""
    (key, i), lane = both
    models, init, options = shared
    model, weight = _tree.take(models, i), weight_of(lane)
    start = lambda: ask.init(model, key, lane.data, weight, init)  # noqa: E731
    options = options.for_lane(lane.number).for_lane(number_of(key))
    return Problem(model, start, lane.data, weight, options)


def _fit_alike(models: list[Any], key: Key, table: Table, asked: Asked) -> list[GroupsResult]:
    """The fits of all groups by each of some models of one structure."""
    largest = max(models, key=lambda model: ask.n_components(model, 1))
    _, rows, weight, dtype, grouping = read_groups(largest, *table)
    for model in models:
        ask.validate_data(model, unlabelled(rows))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded([_tree.cast_floats(m, dtype) for m in models]))
    n_groups, n_fits = len(grouping.labels), len(models) * asked.n_restarts
    keys = HostKeys(jax.random.split(key, (n_groups, asked.n_restarts)))
    fold = plan_fold_of_lanes(asked.chunk_size, asked.plan, n_groups * n_fits)
    options = _tree.cast_floats(replace(asked.options, plan=fold), dtype)
    # a mixture of one component is a step or two, whatever its size
    work = sum(work_of_row(model, unlabelled(rows)) for model in models if ask.n_components(model, 2) > 1)
    buckets = grouping.buckets(asked.n_restarts * max(work, 1))
    shared = (stacked, asked.init, options)
    lanes = [Lanes(lane_of_groups(bucket, rows, weight, keys, None), shared) for bucket in buckets]
    if can_go_in_rounds(asked.plan, lanes):
        done = [_in_rounds(one, len(models), asked) for one in lanes]
        efficiency = share(sum(needed for _, needed, _ in done), sum(run for _, _, run in done))
        every = [fits for fits, _, _ in done]
    else:
        found = run_lanes(_candidates_of_group, How(asked.plan), lanes, asked.plan, progress=asked.progress)
        phases = [n_evals for _, phases in found for n_evals in phases]
        efficiency, every = lane_efficiency(phases, asked.plan), [fits for fits, _ in found]
    return [_of_model(j, model, grouping, buckets, every, efficiency) for j, model in enumerate(models)]


def _in_rounds(lanes: Lanes, n_models: int, asked: Asked) -> tuple[FitResult, int, int]:
    """The best fits (groups, models) of a bucket, and the E steps needed and run."""
    group: GroupLane = lanes.batched
    n_groups, n_restarts = group.keys.shape
    models, _, options = lanes.shared
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], np.float32), unlabelled(group.data))
    k = ask.n_components(models, 1)
    at_once = most_lanes(None, n_groups * n_models * n_restarts, size_of_fit(one, k))
    keys = jnp.broadcast_to(group.keys[:, None], (n_groups, n_models, n_restarts)).reshape(-1)
    own = (keys, np.tile(np.repeat(np.arange(n_models), n_restarts), n_groups))
    lanes = Lanes(own, lanes.shared, group._replace(keys=None))
    done, _ = run_in_rounds(
        Work(_start_of_candidate, None), lanes, options.max_iter, at_once, progress=asked.progress
    )  # fmt: skip
    best = done.fits if n_restarts == 1 else best_by_problem(n_groups * n_models, done.fits, options.tol)
    by_group = jax.tree.map(lambda leaf: leaf.reshape(n_groups, n_models, *leaf.shape[1:]), best)
    return by_group, done.needed, done.run


def _of_model(
    j: int, model: Any, grouping: Grouping, buckets: list[Bucket], every: list[FitResult], efficiency: Array
) -> GroupsResult:
    """The fits of all groups by the j-th model, un-padded, in the order of the labels."""
    own = [jax.tree.map(lambda leaf: np.asarray(leaf)[:, j], fits) for fits in every]
    groups = gather_home(grouping, buckets, own, efficiency)
    bound, params = unpadded_lanes(model, groups.fits.model, groups.fits.params)
    return replace(groups, fits=replace(groups.fits, model=bound, params=params))


# --- choice


def _chosen(
    names: list[str], models: list[Any], results: list[GroupsResult], table: Table, criterion: str
) -> GroupsSelection:
    """The lowest criterion of those that did not fail, and the table."""
    labels, n_rows = results[0].labels, np.asarray(results[0].n_rows)
    score_of = {"bic": lambda result: result.bic(), "aic": lambda result: result.aic()}
    scores = []
    for result in results:
        score = score_of[criterion](result) if criterion in score_of else result.criterion(criterion, *table)
        scores.append(np.where(np.asarray(result.failed), np.nan, np.asarray(score, float)))
    score = np.stack(scores, 1)
    index = np.argmin(np.where(np.isnan(score), np.inf, score), 1)
    column = lambda read: np.stack([np.asarray(read(result)) for result in results], 1).ravel()  # noqa: E731
    n_models = len(models)
    codes = column(lambda result: result.status)
    status = np.full(codes.shape, "", object)
    for code in np.unique(codes).tolist():
        status[codes == code] = Status(code).name
    columns = {
        "group": np.repeat(labels, n_models),
        "n_rows": np.repeat(n_rows, n_models),
        "name": np.tile(np.asarray(names, object), len(labels)),
        "n_components": np.tile(np.asarray([ask.n_components(m) for m in models]), len(labels)),
        "chosen": (np.arange(n_models) == index[:, None]).ravel(),
        "criterion": score.ravel(),
        "log_lik": column(lambda result: result.log_lik),
        "objective": column(lambda result: result.objective),
        "n_parameters": column(lambda result: count_parameters(result.fits.model, result.fits.params)),
        "status": status,
        "n_iter": column(lambda result: result.n_iter),
    }
    found = [result.fits.holdings() for result in results]
    for name in ("smallest_count", "largest_ratio", "n_at_floor"):
        if all(getattr(one, name) is not None for one in found):
            columns[name] = np.stack([np.asarray(getattr(one, name)) for one in found], 1).ravel()
    if results[0].n_best is not None:
        columns["n_best"] = column(lambda result: result.n_best)
    return GroupsSelection(labels, n_rows, names, index, results, columns, criterion)
