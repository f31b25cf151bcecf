"""`fit_batch`: many problems of one shape. `fit_restarts`: one problem from many starts."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _tree, protocols
from ._typing import Array, Data, Key, Params, PyTree
from .algorithms.em import EM
from .chunks import HOLD_BYTES, FoldPlan, on_auto_axes, plan_fold
from .derivative import Derivative, Implicit, differentiable
from .fitting import (
    Options,
    check_model,
    make_options,
    prepare_inputs,
    solve,
    solve_differentiable,
    warn_if_rounded,
)
from .initialize import Initializer, KMeans, as_initializer
from .lanes import Lanes, lane_efficiency, over, resolve_plan, run_lanes
from .protocols import Algorithm, StoppingRule
from .result import FitResult, is_failure
from .rules import Labelled, unlabelled


class _Split(NamedTuple):
    """The leaves of a tree, sorted into those that lanes own and those that they share; None holds the place."""

    leaves: tuple


def split_by_axes(tree: PyTree, axes: Any, name: str, n_lanes: int) -> tuple[_Split, _Split, Any]:
    """Splits a tree by a prefix of 0 (a leaf leads with the lanes) and None (shared).

    Raises:
        ValueError: if the prefix does not fit, or a leaf does not lead with n_lanes.
    """
    leaves, structure = jax.tree.flatten(tree)
    try:
        flags = jax.tree.leaves(_flags(axes, tree), is_leaf=_is_none)
    except ValueError as error:
        raise ValueError(f"{name}: expected 0, None, or a prefix tree of them that fits the model; {error}") from error
    for leaf, flag in zip(leaves, flags, strict=True):
        if flag not in (0, None):
            raise ValueError(f"{name}: expected 0 or None, got {flag!r}; put the lanes first.")
        if flag == 0 and (np.ndim(leaf) == 0 or np.shape(leaf)[0] != n_lanes):
            raise ValueError(f"{name}: expected leaves leading with {n_lanes} lanes, got shape {np.shape(leaf)}.")
    own = tuple(leaf if flag == 0 else None for leaf, flag in zip(leaves, flags, strict=True))
    common = tuple(leaf if flag is None else None for leaf, flag in zip(leaves, flags, strict=True))
    return _Split(own), _Split(common), structure


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _flags(axes: Any, tree: PyTree) -> PyTree:
    """The prefix broadcast to the leaves of the tree; a field that is None in the tree has no leaf and no flag."""
    if axes is None or axes == 0:
        return [axes] * len(jax.tree.leaves(tree))
    spread = lambda flag, subtree: [flag] * len(jax.tree.leaves(subtree))  # noqa: E731
    return jax.tree.map(spread, axes, tree, is_leaf=_is_none)


def join(own: _Split, common: _Split, structure: Any) -> PyTree:
    """Inverse of `split_by_axes`, for one lane."""
    both = zip(own.leaves, common.leaves, strict=True)
    return jax.tree.unflatten(structure, [a if a is not None else b for a, b in both])


class _BatchLane(NamedTuple):
    model: _Split
    params: Params
    data: Data
    sample_weight: Any
    number: Any


def _fit_lane(structure: Any, lane: _BatchLane, shared: tuple[_Split, Options]) -> FitResult:
    common, options = shared
    options = options.for_lane(lane.number)
    model = join(lane.model, common, structure)
    return solve_differentiable(model, lane.params, lane.data, lane.sample_weight, options)


def fit_batch(
    model: Any,
    params: Params,
    data: Data,
    *,
    sample_weight: Any = None,
    model_axes: Any = None,
    plan: str = "auto",
    progress: bool = False,
    algorithm: Algorithm = EM(),
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
    derivative: Derivative = Implicit(),
    stop: StoppingRule | None = None,
) -> FitResult:
    """Fits many problems of one shape in one call; each lane ends by itself and with its own status.

    Args:
        model: as in `fit`.
        params: starts, every leaf leading with the b lanes.
        data: (b, n, …), every leaf.
        sample_weight: (b, n) or None; weight 0 pads short problems.
        model_axes: None if all lanes share the model; 0, or a prefix tree of 0 and None over the model, where its
            leaves lead with the lanes: per-lane hyper-parameters.
        plan: "lanes" side by side, "sequential" one after another, "auto" by the backend. The answer is the same.
        progress: shows a bar (tqdm) where blocks run from the host.
        algorithm: as in `fit`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.
        derivative: as in `fit`.
        stop: as in `fit`.

    Returns:
        A `FitResult` whose leaves lead with the lanes, and its `lane_efficiency`.

    Raises:
        ValueError: on shapes or options that do not fit. Never for data values: NaN data or weights make that lane
            NONFINITE.
        TypeError: as in `fit`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (5, 100, 2))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=1)
        >>> params = jax.vmap(lambda x: model.init(jax.random.key(1), x))(x)
        >>> jaxem.fit_batch(model, params, x).params.components.mean.shape
        (5, 1, 2)
    """
    check_model(model)
    plan = resolve_plan(plan)
    n_lanes = _tree.n_rows(data)
    if n_lanes == 0:
        raise ValueError("data: expected at least one lane, got leading axis 0.")
    fold = plan_fold_of_lanes(chunk_size, plan, n_lanes)
    options = make_options(algorithm, tol, max_iter, derivative, stop, fold)
    warn_if_rounded(data)
    if _tree.n_rows(params, "params") != n_lanes:
        raise ValueError(
            f"params: expected leaves leading with {n_lanes} lanes as the data do, got "
            f"{_tree.n_rows(params, 'params')}; stack the starts of the lanes."
        )
    if sample_weight is not None and np.shape(sample_weight)[:1] != (n_lanes,):
        raise ValueError(f"sample_weight: expected ({n_lanes}, n), got {np.shape(sample_weight)}.")
    dtype = _check_one_lane(model, model_axes, params, data, sample_weight, n_lanes)
    own, common, structure = split_by_axes(_tree.cast_floats(model, dtype), model_axes, "model_axes", n_lanes)
    data = _cast_rows(data, dtype)
    weight = None if sample_weight is None else jnp.asarray(sample_weight, dtype)
    lane = _BatchLane(own, _tree.cast_data(params, dtype), data, weight, np.arange(n_lanes, dtype=np.uint32))
    shared = (common, _tree.cast_floats(options, dtype))
    (result,) = run_lanes(_fit_lane, structure, [Lanes(lane, shared)], plan, progress)
    return replace(_on_device(result), lane_efficiency=lane_efficiency(result.n_evals, plan))


def plan_fold_of_lanes(chunk_size: int | None, plan: str, n_lanes: int) -> FoldPlan:
    """Lanes lie on one device each, and share its memory where they run side by side."""
    at_once = n_lanes if plan == "lanes" else 1
    return replace(plan_fold(jnp.zeros(1), chunk_size), hold_bytes=HOLD_BYTES // at_once)


def _cast_rows(data: Data, dtype: Any) -> Data:
    rows = _tree.cast_data(unlabelled(data), dtype)
    return Labelled(rows, data.allowed) if isinstance(data, Labelled) else rows


def _check_one_lane(model: Any, axes: Any, params: Params, data: Data, weight: Any, n_lanes: int) -> Any:
    """Checks the shapes of one lane without computing it; returns the dtype."""
    own, common, structure = split_by_axes(_tree.cast_floats(model, np.dtype(np.float32)), axes, "model_axes", n_lanes)
    rows = unlabelled(data)
    dtype = _tree.float_dtype(rows)

    def one(own: _Split, params: Params, rows: Data, weight: Any) -> Array:
        lane_model = join(own, common, structure)
        lane_model, rows, weight, _ = prepare_inputs(lane_model, rows, weight)
        if hasattr(lane_model, "validate"):
            lane_model.validate(params, rows)
        return jnp.zeros(())

    jax.eval_shape(jax.vmap(one), own, params, rows, weight)
    return dtype


def _on_device(result: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, result)


# --- restarts


class Restarts(NamedTuple):
    """One problem and the keys of its starts (r,); `start` (params) instead of keys where it is given."""

    keys: Any
    start: Any
    data: Data
    sample_weight: Any


def best_of_starts(
    plan: str, problem: Restarts, model: Any, init: Initializer | None, options: Options
) -> tuple[FitResult, Array]:
    """The best fit of one problem from its starts, and the E steps of all of them; a failed one never wins."""
    frozen = lax.stop_gradient((model, problem.data, problem.sample_weight))

    def one(key: Key) -> FitResult:
        model, data, weight = frozen
        own = options.for_lane(protocols.number_of(key))
        return solve(model, protocols.init(model, key, data, weight, init), data, weight, own)

    if problem.start is not None:
        result = solve(model, problem.start, problem.data, problem.sample_weight, options)
        n_evals = result.n_evals[None]
    else:
        every = over(one, problem.keys, plan)
        result, n_evals = take_best(every), every.n_evals
    result = differentiable(
        result, options.derivative, options.algorithm, model, problem.data, problem.sample_weight, options.plan
    )
    return result, n_evals


_restarts_program = jax.jit(best_of_starts, static_argnums=0)


def take_best(every: FitResult) -> FitResult:
    """The fit with the highest objective among those that did not fail; the first if all failed."""
    score = jnp.where(is_failure(every.status) | jnp.isnan(every.objective), -jnp.inf, every.objective)
    return _tree.take(every, jnp.argmax(score))


def _restart_lane(static: None, key: Key, shared: tuple) -> FitResult:
    model, init, data, sample_weight, options = shared
    options = options.for_lane(protocols.number_of(key))
    return solve(model, protocols.init(model, key, data, sample_weight, init), data, sample_weight, options)


def fit_restarts(
    model: Any,
    key: Key,
    data: Data,
    *,
    n_restarts: int = 8,
    init: Initializer = KMeans(),
    sample_weight: Any = None,
    plan: str = "auto",
    progress: bool = False,
    algorithm: Algorithm = EM(),
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
    derivative: Derivative = Implicit(),
    stop: StoppingRule | None = None,
) -> FitResult:
    """Fits one problem from several random starts and returns the best fit.

    Args:
        model: with an `init` method.
        key: of `jax.random`; the same key gives the same starts, whatever the plan.
        data: as in `fit`.
        n_restarts: number of starts.
        init: how each start is drawn.
        sample_weight: as in `fit`.
        plan: as in `fit_batch`.
        progress: as in `fit_batch`.
        algorithm: as in `fit`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.
        derivative: as in `fit`.
        stop: as in `fit`.

    Returns:
        The `FitResult` of the highest objective. Failed fits never win; if all fail, the first of them.
        `lane_efficiency` as in `fit_batch`.

    Raises:
        ValueError: on options or shapes that do not fit, and never for data values: the status is then NONFINITE.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> best = jaxem.fit_restarts(jaxem.Mixture(jaxem.FullNormal(), 2), jax.random.key(0), x, n_restarts=4)
        >>> best.check().params.weights.round(2)
        Array([0.5, 0.5], dtype=...)
    """
    check_model(model)
    plan = resolve_plan(plan)
    check_count("n_restarts", n_restarts)
    data, sample_weight = on_auto_axes((data, sample_weight))
    options = make_options(algorithm, tol, max_iter, derivative, stop, plan_fold(unlabelled(data), chunk_size))
    warn_if_rounded(data)
    model, data, sample_weight, dtype = prepare_inputs(model, data, sample_weight)
    if hasattr(model, "validate_data"):
        model.validate_data(data)
    check_initializer(init, _tree.n_rows(data), getattr(model, "n_components", None))
    options = _tree.cast_floats(options, dtype)
    keys = jax.random.split(key, n_restarts)
    if _tree.is_tracing(keys, data, sample_weight, model, options):
        problem = Restarts(keys, None, data, sample_weight)
        result, n_evals = _restarts_program(plan, problem, model, as_initializer(init), options)
        return replace(result, lane_efficiency=lane_efficiency(n_evals, plan))
    shared = (model, as_initializer(init), data, sample_weight, options)
    (every,) = run_lanes(_restart_lane, None, [Lanes(keys, shared)], plan, progress)
    return replace(_on_device(take_best(_on_device(every))), lane_efficiency=lane_efficiency(every.n_evals, plan))


def check_initializer(init: Any, n: int, k: int | None) -> None:
    """Raises a ValueError unless `init` is an initialiser whose own values fit n rows and k components."""
    if not callable(init) or isinstance(init, type):
        raise ValueError(f"init: expected an initialiser, e.g. KMeans(), got {init!r}; start params go to fit.")
    if hasattr(init, "validate") and k is not None:
        init.validate(n, k)  # type: ignore[attr-defined]


def check_count(name: str, value: Any) -> None:
    """Raises a ValueError unless `value` is a positive int."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value!r}.")
