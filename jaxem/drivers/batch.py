"""`fit_batch`: many problems of one shape."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Params, PyTree
from ..algorithms.em import EM
from ..contracts import capabilities as ask
from ..contracts.checks import check_max_lanes, warn_if_rounded
from ..contracts.domains import check_params
from ..contracts.protocols import Algorithm, StoppingRule
from ..contracts.result import FitResult
from ..fold.chunks import HOLD_BYTES, FoldPlan, on_auto_axes, plan_fold
from ..latent.finite import as_read, unlabelled
from ..latent.informative import informative_rows, informed_weight, masked_weight
from ..loop.derivative import Derivative, Implicit
from ..loop.run import Options, solve_differentiable
from ..numerics import tree as _tree
from ..numerics.arguments import as_rows
from ..numerics.processes import axes_of, check_alike, is_here
from ..running.lanes import Lanes, lane_efficiency, resolve_plan, run_lanes, share
from ..running.rounds import Problem, Work, can_go_in_rounds, most_lanes, run_in_rounds, size_of_fit
from ..storage.checkpoint import Checkpoint
from .asked import check_model, make_options, prepare_inputs


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


def _problem(structure: Any, lane: _BatchLane, shared: tuple[_Split, Options]) -> Problem:
    common, options = shared
    model = join(lane.model, common, structure)
    return Problem(model, lambda: lane.params, lane.data, lane.sample_weight, options.for_lane(lane.number))


def _fit_lane(structure: Any, lane: _BatchLane, shared: tuple[_Split, Options]) -> FitResult:
    one = _problem(structure, lane, shared)
    return solve_differentiable(one.model, one.start(), one.data, one.sample_weight, one.options)


def fit_batch(
    model: Any,
    params: Params,
    data: Data,
    *,
    sample_weight: Any = None,
    model_axes: Any = None,
    plan: str = "auto",
    max_lanes: int | None = None,
    progress: bool = False,
    algorithm: Algorithm = EM(),
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
    derivative: Derivative = Implicit(),
    stop: StoppingRule | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Fits many problems of one shape in one call; each lane ends by itself and with its own status.

    Args:
        model: as in `fit`.
        params: starts, every leaf leading with the b lanes.
        data: (b, n, …), every leaf; lanes and rows may be cut over two axes of a mesh.
        sample_weight: (b, n) or None; weight 0 pads short problems.
        model_axes: None if all lanes share the model; 0, or a prefix tree of 0 and None over the model, where its
            leaves lead with the lanes: per-lane hyper-parameters.
        plan: "lanes" side by side, "sequential" one after another, "auto" by the backend. The answer is the same.
        max_lanes: the most problems that are worked on at once, which bounds memory; None for as many as have room,
            by the size of the data. The answer is the same.
        progress: shows a bar (tqdm) where lanes run from the host.
        algorithm: as in `fit`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.
        derivative: as in `fit`.
        stop: as in `fit`.
        checkpoint: `Checkpoint(path)`: lanes of concrete values are kept there, and go on from there. The result then
            has no derivative.

    Returns:
        A `FitResult` whose leaves lead with the lanes, and its `lane_efficiency`. Side by side, lanes with
        concrete values run in rounds of a few iterations, after each of which those that have ended make room.

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
    data, sample_weight = on_auto_axes((as_rows(data), sample_weight))
    plan = resolve_plan(plan, data)
    n_lanes = _tree.n_rows(data)
    if n_lanes == 0:
        raise ValueError("data: expected at least one lane, got leading axis 0.")
    max_lanes = check_max_lanes(max_lanes)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], np.float32), unlabelled(data))
    at_once = most_lanes(max_lanes, n_lanes, size_of_fit(one, ask.n_components(model, 1)))
    fold = _over_devices(plan_fold_of_lanes(chunk_size, plan, at_once), plan, unlabelled(data))
    options = make_options(algorithm, tol, max_iter, derivative, stop, fold)
    warn_if_rounded(data)
    if _tree.n_rows(params, "params") != n_lanes:
        raise ValueError(
            f"params: expected leaves leading with {n_lanes} lanes as the data do, got "
            f"{_tree.n_rows(params, 'params')}; stack the starts of the lanes."
        )
    if sample_weight is not None and np.shape(sample_weight)[:1] != (n_lanes,):
        raise ValueError(f"sample_weight: expected ({n_lanes}, n), got {np.shape(sample_weight)}.")
    if not is_here(data):
        check_alike(model=model, params=params)
    check_params(model, params, lanes=True)
    dtype = _check_one_lane(model, model_axes, params, data, sample_weight, n_lanes)
    own, common, structure = split_by_axes(_tree.cast_floats(model, dtype), model_axes, "model_axes", n_lanes)
    data = as_read(model, data, dtype)
    weight = _informed(model, data, None if sample_weight is None else jnp.asarray(sample_weight, dtype))
    lane = _BatchLane(own, _tree.cast_data(params, dtype), data, weight, np.arange(n_lanes, dtype=np.uint32))
    shared = (common, _tree.cast_floats(options, dtype))
    lanes = Lanes(lane, shared)
    if can_go_in_rounds(plan, lanes):
        done, _ = run_in_rounds(
            Work(_problem, structure), lanes, max_iter, at_once, progress=progress, checkpoint=checkpoint
        )
        return replace(done.fits, lane_efficiency=share(done.needed, done.run))
    (result,) = run_lanes(
        _fit_lane, structure, [lanes], plan, progress=progress, max_lanes=max_lanes, checkpoint=checkpoint
    )
    return replace(on_device(result), lane_efficiency=lane_efficiency([result.n_evals], plan))


def plan_fold_of_lanes(chunk_size: int | None, plan: str, n_lanes: int) -> FoldPlan:
    """Lanes lie on one device each, and share its memory where they run side by side."""
    at_once = n_lanes if plan == "lanes" else 1
    return replace(plan_fold(jnp.zeros(1), chunk_size), hold_bytes=HOLD_BYTES // at_once)


def _over_devices(fold: FoldPlan, plan: str, data: Data) -> FoldPlan:
    """The fold of a lane whose own rows are cut over devices too."""
    axes = axes_of(data, 1) if plan == "lanes" else None
    if axes is None:
        return fold
    return replace(fold, mesh=jax.tree.leaves(data)[0].sharding.mesh, axes=axes)


def _informed(model: Any, data: Data, sample_weight: Array | None) -> Array | None:
    """Weights (b, n) that are zero in rows that say nothing; as they are where all rows of all lanes say something."""
    one = lambda rows: informative_rows(model, rows)  # noqa: E731
    if jax.eval_shape(jax.vmap(one), data) is None:
        return sample_weight
    if _tree.is_tracing(data, sample_weight):
        return jax.vmap(lambda rows, weight: informed_weight(model, rows, weight))(data, sample_weight)
    with jax.ensure_compile_time_eval():
        rows: Any = jax.vmap(one)(data)
        return sample_weight if bool(jnp.all(rows)) else masked_weight(rows, unlabelled(data), sample_weight)


def _check_one_lane(model: Any, axes: Any, params: Params, data: Data, weight: Any, n_lanes: int) -> Any:
    """Checks the shapes of one lane without computing it; returns the dtype."""
    own, common, structure = split_by_axes(_tree.cast_floats(model, np.dtype(np.float32)), axes, "model_axes", n_lanes)
    rows = unlabelled(data)
    dtype = _tree.float_dtype(rows)

    def one(own: _Split, params: Params, rows: Data, weight: Any) -> Array:
        lane_model = join(own, common, structure)
        lane_model, rows, weight, _ = prepare_inputs(lane_model, rows, weight)
        ask.validate(lane_model, params, rows)
        return jnp.zeros(())

    jax.eval_shape(jax.vmap(one), own, params, rows, weight)
    return dtype


def on_device(result: PyTree) -> PyTree:
    """Arrays of jax, where they were NumPy's."""
    return jax.tree.map(jnp.asarray, result)
