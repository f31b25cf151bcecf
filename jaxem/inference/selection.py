"""`select`: the best of several models, by an information criterion or by cross-validation. Host code.

models ── same structure ──▶ groups ── pad k ──▶ lanes (starts × folds × models) ── best start ──▶ un-pad ──▶ table
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Key, PyTree
from ..contracts import capabilities as ask
from ..contracts import protocols
from ..contracts.admissible import Admissible, check_admissible
from ..contracts.checks import warn_if_rounded
from ..contracts.protocols import Algorithm
from ..contracts.result import FitResult, check_status
from ..contracts.status import Status
from ..drivers.asked import algorithm_for, check_model, make_options, prepare_inputs
from ..drivers.restarts import check_initializer, take_best
from ..fold.chunks import HOLD_BYTES, FoldPlan, on_auto_axes, plan_fold
from ..fold.criteria import BY_STATE, NAMES, criterion_of
from ..fold.folded import Folded
from ..latent.finite import as_read, unlabelled
from ..latent.informative import informed_weight
from ..latent.starts import Initializer, KMeans, as_initializer
from ..latent.units import unit_weight, units_of
from ..loop.derivative import Stop
from ..loop.run import Options, solve
from ..models._padding import alike, padded, unpadded
from ..models.mixture import Mixture
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_rows
from ..running.lanes import Lanes, resolve_plan, run_lanes
from .candidates import ADMISSIBLE, Asked, Table, select_by_group

_FOLDS_KEY = 2**31 - 1  # folded into the key, beyond the numbers of restarts: the starts stay those of `fit_restarts`


@_tree.register
@dataclass(frozen=True)
class CrossValidation:
    """Scores a model by −2 Σ_folds log p(rows of the fold | params fitted to the other rows): lower is better.

    On the scale of AIC, which leaving out single rows approaches (Stone 1977). The rows of a fold have weight 0 in its
    fit, which therefore never looks at them; each counts with its sample weight.

    Attributes:
        n_folds: number of folds, at least 2.

    Example:
        >>> import jax, jaxem
        >>> folds = jaxem.CrossValidation(5).assign(jax.random.key(0), 12)  # as select(…, criterion=…)
        >>> sorted(folds.tolist())
        [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    n_folds: int = field(default=5, metadata={"static": True})

    def __post_init__(self) -> None:
        as_count("n_folds", self.n_folds, 2, hint="; 5 and 10 are usual")

    def assign(self, key: Key, n: int, sample_weight: Any = None) -> np.ndarray:
        """Draws the fold of each row: (n,) integers, −1 for rows of weight zero. Sizes differ by at most one row.

        Raises:
            ValueError: if there are fewer rows of positive weight than folds.
        """
        present = np.ones(n, bool) if sample_weight is None else np.asarray(sample_weight) > 0
        n_present = int(present.sum())
        if n_present < self.n_folds:
            raise ValueError(f"n_folds: expected at most one fold a row, {n_present}, got {self.n_folds}; use fewer.")
        folds = np.full(n, -1, np.int32)
        folds[present] = np.asarray(jax.random.permutation(key, n_present)) % self.n_folds
        return folds


@dataclass(frozen=True, repr=False)
class Selection:
    """What `select` found.

    Attributes:
        index: position of the winner.
        names: of the models, in the order given.
        results: the best `FitResult` of each model on all rows, with its bound model.
        table: name → column, one entry a model: name, n_components (None where there is none), criterion (lower is
            better; NaN if a fit failed), log_lik, objective, n_parameters, status (the worst of the fit and those of
            its folds), n_iter. `pandas.DataFrame(selection.table)` reads it.
        criterion: what was asked for.
        folds: (n,) the fold of each row, −1 for rows of weight zero; None without cross-validation.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> models = [jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2)]
        >>> selection = jaxem.select(models, jax.random.key(0), x, n_restarts=2).check()  # print it for the table
        >>> selection.index, selection.table["n_parameters"], selection.best.params.components.mean.shape
        (1, [2, 5], (2, 1))
    """

    index: int
    names: list[str]
    results: list[FitResult]
    table: dict[str, list]
    criterion: Any
    folds: np.ndarray | None

    @property
    def best(self) -> FitResult:
        """The fit of the winner; of the first model if all failed."""
        return self.results[self.index]

    @property
    def best_name(self) -> str:
        """The name of the winner."""
        return self.names[self.index]

    def check(self) -> "Selection":
        """Returns the selection, or raises with the reason.

        Raises:
            RuntimeError: if a fit of the winner did not converge, which includes that all models failed.
        """
        if np.all(np.isnan(self.table["criterion"])):
            check_status(np.asarray([Status[name] for name in self.table["status"]]), self.names, noun="models")
        check_status(np.asarray(Status[self.table["status"][self.index]]), noun=f"the winner, {self.best_name}")
        return self

    def __str__(self) -> str:
        text = lambda value: "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)  # noqa: E731
        title = self.criterion if isinstance(self.criterion, str) else f"{self.criterion.n_folds}-fold deviance"
        columns = [[" ", *("*" if row == self.index else " " for row in range(len(self.names)))]]
        for name, values in self.table.items():
            cells = [title if name == "criterion" else name, *map(text, values)]
            width = max(map(len, cells))
            columns.append([f"{cell:{'<' if name in ('name', 'status') else '>'}{width}}" for cell in cells])
        return "\n".join("  ".join(row) for row in zip(*columns, strict=True))

    __repr__ = __str__


class _Lane(NamedTuple):
    """Numbers of the model in its group, of the fold that is left out, and of the start."""

    model: Any
    fold: Any
    start: Any


class _Shared(NamedTuple):
    """What the lanes read: keys (folds + 1, starts), folds (n,) or None, models stacked."""

    keys: Key
    init: Any
    data: Data
    sample_weight: Array | None
    folds: Any
    options: Options
    models: PyTree = None


class _Scored(NamedTuple):
    """Takes the place of the model in a result, so that the best start brings its score along."""

    model: Any
    score: Array


def _scored_lane(criterion: str | None, lane: _Lane, shared: _Shared) -> FitResult:
    """The fit from one start, scored by a criterion, or (None) by the rows of the fold that is left out."""
    model, data, weight = _tree.take(shared.models, lane.model), shared.data, shared.sample_weight
    held_out = None
    if shared.folds is not None:
        weight = jnp.ones(_tree.n_rows(data), _tree.float_dtype(unlabelled(data))) if weight is None else weight
        is_held_out = shared.folds == lane.fold
        held_out, weight = jnp.where(is_held_out, weight, 0), jnp.where(is_held_out, 0, weight)
    key = shared.keys[lane.fold, lane.start]
    start = ask.init(model, key, data, weight, shared.init)
    result = solve(model, start, data, weight, shared.options.for_lane(protocols.number_of(key)))
    if criterion is None:
        score = -2 * Folded(result.model, shared.options.plan, fast=False).e_step(result.params, data, held_out)[1]
    else:
        score = criterion_of(
            criterion, result.model, result.params, data, weight, log_lik=result.log_lik, plan=shared.options.plan
        )
    return replace(result, model=_Scored(result.model, jnp.asarray(score)))


def select(
    models: Sequence[Any] | Mapping[str, Any],
    key: Key,
    data: Data,
    *,
    criterion: str | CrossValidation = "bic",
    n_restarts: int = 8,
    init: Initializer = KMeans(),
    sample_weight: Any = None,
    plan: str = "auto",
    progress: bool = False,
    algorithm: Algorithm | None = None,
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
    admissible: Admissible | str | None = "auto",
    group_ids: Any = None,
) -> Any:
    """Fits several models to the same data, each from several starts, and returns the best by a criterion.

    Mixtures of one kind of family are padded to the largest number of components and run as lanes of one compiled
    program: k = 1, …, K compile once. All models start from the keys of `fit_restarts`, so that a result depends on
    neither the order nor the other models (but `RandomResponsibilities` draws for the largest mixture).

    Args:
        models: a sequence of models, which are then named, or a dict from names to models; with `init` methods.
        key: of `jax.random`.
        data: as in `fit`, concrete.
        criterion: "bic" (Schwarz 1978), "aic" (Akaike 1974), "icl" (Biernacki, Celeux & Govaert 2000: at the most
            probable components, as mclust and flexmix) or "icl_entropy" (with the entropy of the responsibilities in
            their place), for models with `n_parameters`; or `CrossValidation(n_folds)` (Smyth 2000). The lowest wins.
        n_restarts: number of starts of each model; of each fold as well.
        init: how each start is drawn.
        sample_weight: as in `fit`, concrete.
        plan: as in `fit_batch`.
        progress: as in `fit_batch`.
        algorithm: as in `fit`; None is `SQUAREM()` where the model has a closed M step and says which params are
            allowed, else `EM()`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.
        admissible: as in `fit_restarts`; a model without an admissible maximum counts as failed. "auto" is None, and
            with groups `Admissible(min_count=5)`: there, on many small tables, BIC alone mistakes a few rows, or a
            value that repeats, for a component.
        group_ids: (n,) labels of any hashable kind, in any order: the best model of every group, whose fits are those
            of `fit_groups`. The criterion is then "bic", "aic" or "icl".

    Returns:
        A `Selection`; with groups a `GroupsSelection`. A model that failed, in its fit or in a fold, never wins; if
        all failed, `best` is the first. One that ended as MAX_ITER may win: see the table, or `check()`.

    Raises:
        ValueError: on options or shapes that do not fit, traced values, a model without the methods that the criterion
            needs; never for data values: the status is then NONFINITE.
        TypeError: as in `fit`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> models = [jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2)]
        >>> selection = jaxem.select(models, jax.random.key(0), x, n_restarts=2)
        >>> selection.best_name, selection.best.params.weights.round(2)
        ('FullNormal, k=2', Array([0.5, 0.5], dtype=...))
    """
    names, candidates = _named(models)
    plan = resolve_plan(plan)
    n_restarts = as_count("n_restarts", n_restarts)
    _check_criterion(criterion, candidates, names)
    admissible = _what_may_win(admissible, candidates, by_group=group_ids is not None)
    if group_ids is not None and not isinstance(criterion, str):
        raise ValueError(f"criterion: expected one of {NAMES} where group_ids are given, got {criterion!r}.")
    keys = jax.random.split(key, n_restarts)
    if _tree.is_tracing(keys, data, sample_weight, candidates, init, algorithm, tol):
        raise ValueError("select: expected concrete values, got traced ones; call it outside jit, grad and vmap.")
    algorithm = algorithm_for(candidates, algorithm)
    options = replace(make_options(algorithm, tol, max_iter, Stop(), None, FoldPlan()), admissible=admissible)
    if group_ids is not None:
        warn_if_rounded(data)
        asked = Asked(str(criterion), n_restarts, as_initializer(init), plan, progress, chunk_size, options)
        return select_by_group(names, candidates, key, Table(as_rows(data), group_ids, sample_weight), asked)
    data, sample_weight = on_auto_axes((as_rows(data), sample_weight))
    warn_if_rounded(data)
    _, data, sample_weight, dtype = prepare_inputs(None, data, sample_weight)
    candidates = [_tree.cast_floats(model, dtype) for model in candidates]
    for model in candidates:
        ask.validate_data(model, data)
        check_initializer(init, _tree.n_rows(data), ask.n_components(model))
    groups = alike(candidates)
    weights = [informed_weight(candidates[group[0]], data, sample_weight) for group in groups]
    folds, n_folds = None, 0
    if isinstance(criterion, CrossValidation):
        n_folds = criterion.n_folds
        folds, keys = _folds(criterion, key, data, _largest(weights), keys)
    keys = keys.reshape(n_folds + 1, n_restarts, *keys.shape[1:])
    n_lanes = (n_folds + 1) * n_restarts * max(map(len, groups)) if plan == "lanes" else 1
    fold_plan = replace(plan_fold(unlabelled(data), chunk_size), hold_bytes=HOLD_BYTES // n_lanes)  # they share it
    options = _tree.cast_floats(replace(options, plan=fold_plan), dtype)
    shared = _Shared(keys, as_initializer(init), data, sample_weight, folds, options)
    lanes = []
    for group, weight in zip(groups, weights, strict=True):
        own = as_read(candidates[group[0]], data, dtype)
        lanes.append(_lanes([candidates[i] for i in group], shared._replace(data=own, sample_weight=weight)))
    outcomes = run_lanes(_scored_lane, None if n_folds else str(criterion), lanes, plan, progress=progress)
    shape = (n_restarts, n_folds + 1)
    return _ranked(names, candidates, _best_starts(groups, outcomes, shape, options.tol), criterion, folds)


def _what_may_win(admissible: Any, candidates: list[Any], *, by_group: bool) -> Admissible | None:
    """What was asked for; "auto" is `ADMISSIBLE` where many groups are chosen for, whose spikes nobody looks at."""
    asked = admissible
    if isinstance(admissible, str) and admissible == "auto":
        hold_rows = all(ask.offers(model, "component_counts") for model in candidates)
        asked = ADMISSIBLE if by_group and hold_rows else None
    check_admissible(asked, *candidates)
    return asked


def _folds(criterion: CrossValidation, key: Key, data: Data, weight: Any, keys: Key) -> tuple[np.ndarray, Key]:
    """The fold of each row, and the keys of the starts by fold, those of the whole data last."""
    key_assign, key_folds = jax.random.split(jax.random.fold_in(key, _FOLDS_KEY))
    every = jax.random.split(key_folds, criterion.n_folds * len(keys))
    units, n = units_of(data), _tree.n_rows(data)
    if units is not None:
        own = None if weight is None else np.asarray(unit_weight(units, weight))
        return criterion.assign(key_assign, units.n_units, own)[np.asarray(units.ids)], jnp.concatenate([every, keys])
    return criterion.assign(key_assign, n, weight), jnp.concatenate([every, keys])


def _largest(weights: list[Any]) -> Any:
    """Of the weights that rows have for different models: a row that says something to one of them is one."""
    return None if any(weight is None for weight in weights) else np.max(np.stack(weights), 0)


def _named(models: Any) -> tuple[list[str], list[Any]]:
    """Names and models, checked."""
    if not isinstance(models, (Mapping, Sequence)) or len(models) == 0:
        got = "none" if hasattr(models, "__len__") else type(models).__name__
        raise ValueError(
            f"models: expected a sequence of models or a dict from names to models, got {got}; pass [model]."
        )
    candidates = list(models.values() if isinstance(models, Mapping) else models)
    for model in candidates:
        check_model(model)
    if isinstance(models, Mapping):
        names = [str(name) for name in models]
        twice, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise ValueError(f"models: expected names that differ, got {twice!r} {count} times; rename them.")
        return names, candidates
    names, seen = [], Counter()
    for model in candidates:
        mixture = isinstance(model, Mixture)
        name = f"{type(model.family).__name__}, k={model.n_components}" if mixture else type(model).__name__
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names, candidates


def _check_criterion(criterion: Any, candidates: list[Any], names: list[str]) -> None:
    if isinstance(criterion, CrossValidation):
        return
    if not isinstance(criterion, str) or criterion not in NAMES:
        names_of_all = ", ".join(map(repr, NAMES))
        raise ValueError(f"criterion: expected one of {names_of_all} or CrossValidation(n_folds), got {criterion!r}.")
    for model, name in zip(candidates, names, strict=True):
        lacks = [] if ask.counts_parameters(model) else ["n_parameters"]
        lacks += ["log_joint"] if criterion in BY_STATE and not ask.offers(model, "log_joint") else []
        if lacks:
            raise ValueError(
                f"criterion: expected models with a method {lacks[0]}, which {criterion!r} needs, got {name!r}, a "
                f"{type(model).__name__} without; write the method, or use CrossValidation()."
            )


def _lanes(models: list[Any], shared: _Shared) -> Lanes:
    """Lanes of one group: starts outermost, so that every block of lanes holds models small and large."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded(models))
    n_fits, n_restarts = shared.keys.shape[:2]
    start, fold, model = np.indices((n_restarts, n_fits, len(models)), np.int32).reshape(3, -1)
    return Lanes(_Lane(model, fold, start), shared._replace(models=stacked))


def _best_starts(groups: list[list[int]], outcomes: list[FitResult], shape: tuple[int, int], tol: Any) -> dict:
    """Number of the model → its best fit to the rows outside each fold, the fit to all rows last."""
    best = {}
    for group, every in zip(groups, outcomes, strict=True):
        n_lanes = (*shape, len(group))
        every = jax.tree.map(lambda leaf: leaf.reshape(*n_lanes, *leaf.shape[1:]), jax.device_get(every))  # noqa: B023
        for j, i in enumerate(group):
            best[i] = [take_best(_tree.take(every, (slice(None), fold, j)), tol) for fold in range(shape[1])]
    return best


def _ranked(names: list[str], models: list[Any], fits: dict, criterion: Any, folds: np.ndarray | None) -> Selection:
    """The fits to all rows, un-padded; the table; and the lowest criterion of those that did not fail."""
    results, rows = [], []
    for i, model in enumerate(models):
        whole = fits[i][-1]
        bound, params = unpadded(model, whole.model.model, whole.params)
        results.append(jax.tree.map(jnp.asarray, replace(whole, params=params, model=bound)))
        # beside folds the fit to all rows leaves out none, and its own score is zero
        failed, score = any(fit.failed for fit in fits[i]), sum(float(fit.model.score) for fit in fits[i])
        rows.append(
            {
                "name": names[i],
                "n_components": ask.n_components(model),
                "criterion": np.nan if failed else score,
                "log_lik": float(whole.log_lik),
                "objective": float(whole.objective),
                "n_parameters": int(ask.n_parameters(bound, params)) if ask.counts_parameters(bound) else None,
                "status": Status(max(int(fit.status) for fit in fits[i])).name,
                "n_iter": int(whole.n_iter),
            }
        )
    table = {column: [row[column] for row in rows] for column in rows[0]}
    index = min(range(len(rows)), key=lambda i: (np.isnan(rows[i]["criterion"]), rows[i]["criterion"]))
    return Selection(index, names, results, table, criterion, folds)
