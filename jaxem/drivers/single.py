"""`fit`: one problem."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax

from .._typing import Array, Data, Params
from ..algorithms.em import EM
from ..contracts.protocols import Algorithm, StoppingRule
from ..contracts.result import FitResult
from ..contracts.status import Status
from ..fold.chunks import plan_fold
from ..fold.sources import is_additive
from ..latent.finite import unlabelled
from ..loop.derivative import Derivative, Implicit
from ..loop.loop import STABLE_PATH, first_path
from ..loop.run import Options, Run, are_on_other_path, begin, differentiable_values, end, go_on, solve_differentiable
from ..numerics import tree as _tree
from ..numerics.processes import check_alike, everywhere, is_here, jointly, together
from ..numerics.programs import is_inside_a_program, program
from ..storage.checkpoint import Checkpoint, check_concrete, open_store, rebuilt
from ..storage.identity import fingerprint, identity_of
from .asked import check_arguments, check_support, make_options, take_in

FEW_NUMBERS = 2**12  # 500 iterations over as many take 0.1 s longer, compiled in haste, and 2 s less to compile

_fit = jax.jit(solve_differentiable)


def fit(
    model: Any,
    params: Params,
    data: Data,
    *,
    sample_weight: Any = None,
    algorithm: Algorithm = EM(),
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
    derivative: Derivative = Implicit(),
    stop: StoppingRule | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Fits a model by EM from given start params.

    Pure and traceable: works inside jit, vmap, grad and shard_map. Data sharded along their leading axis are folded
    where they lie.

    Args:
        model: an `EMModel` or `FiniteLatent`, e.g. `Mixture(FullNormal(), 3)`.
        params: start, e.g. `model.init(key, data)`.
        data: pytree of arrays (n, …), or tables of pandas or polars. Integers are cast to the default float for the
            library's own families; your own model gets them as they are. `labelled(data, …)` for known states.
        sample_weight: (n,), non-negative. Weight zero: the row does not exist, NaN in it is legal.
        algorithm: `EM()` or a relative.
        tol: stop when the objective per unit of sample weight is foretold to lie within this of its limit, see
            `Aitken`; < 0 runs max_iter iterations, as `StochasticEM` and `OnlineEM` always do.
        max_iter: the most M steps; static.
        chunk_size: rows per chunk of the E step; None chooses.
        derivative: `Implicit()`, `OneStep()`, `Unrolled(n_iter)` or `Stop()`: how the result is differentiated.
        stop: another stopping rule, instead of `tol`; `Objective(tol)` looks at the last rise alone.
        checkpoint: `Checkpoint(path)`: a fit of concrete values is kept there, and goes on from there. Its result then
            has no derivative.

    Returns:
        A `FitResult`: params, objective, log_lik, n_iter, n_evals, status, history, model.

    Raises:
        ValueError: naming the argument, on shapes that do not fit, options out of range, NaN or inf in concrete data
            (with the first rows), or NaN, infinite or negative concrete weights.
        TypeError: on half precision, complex or non-numeric data.
        RuntimeError: of the other processes, if one of several that hold the data has ended.

    Status:
        Any of `Status`; see there.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> jnp.sort(result.params.components.mean[:, 0]).round(2)
        Array([-2.5,  2.5], dtype=...)
    """
    model, data, sample_weight, dtype = take_in(model, data, sample_weight)
    options = make_options(algorithm, tol, max_iter, derivative, stop, plan_fold(unlabelled(data), chunk_size))
    params = _tree.cast_data(params, dtype)
    options = _tree.cast_floats(options, dtype)
    with together():
        if not is_here(data):
            check_alike(options=options)
        check_arguments(model, params, data, sample_weight)
        if not is_additive(model) and not _tree.is_tracing(model, params, data, sample_weight):
            everywhere(partial(check_support, model, params), unlabelled(data), sample_weight)
        if checkpoint is None:
            asked = (model, params, data, sample_weight, options)
            if not is_here(data):
                return jointly(_fit, *asked)
            still = lax.stop_gradient(asked)  # where a fit is differentiated from Python, its values are known
            if _tree.is_tracing(still) or is_inside_a_program():
                return _fit(*asked)
            result = _fit_here(*still)
            if not _tree.is_tracing(asked):
                return result
            params, log_lik, objective = differentiable_values(options, result, asked[:1] + asked[2:4])
            return replace(result, params=params, log_lik=log_lik, objective=objective)
        return _fit_kept(checkpoint, model, params, data, sample_weight, options)


def _fit_here(model: Any, params: Params, data: Data, sample_weight: Array | None, options: Options) -> FitResult:
    """`solve` of concrete values: a fit that never leaves its fast path waits for no compilation of the other."""
    run, result = _fit_at_first.outside(model, params, data, sample_weight, options)
    if not are_on_other_path(run):
        return result
    return _fit_on.outside(model, run, data, sample_weight, options)


@program(at_most=FEW_NUMBERS)
def _fit_at_first(
    model: Any, params: Params, data: Data, sample_weight: Array | None, options: Options
) -> tuple[Run, FitResult]:
    run = begin(model, params, data, sample_weight, options)
    run = go_on(run, data, sample_weight, options, options.max_iter, first_path(run.model, options.algorithm))
    result = end(run, data, sample_weight, options)
    return run, options.differentiable(result, model, data, sample_weight)  # of values alone: options are checked


@program(at_most=FEW_NUMBERS)
def _fit_on(model: Any, run: Run, data: Data, sample_weight: Array | None, options: Options) -> FitResult:
    run = go_on(run, data, sample_weight, options, options.max_iter, STABLE_PATH)
    return options.differentiable(end(run, data, sample_weight, options), model, data, sample_weight)


_begin, _end, _fingerprint = jax.jit(begin), jax.jit(end), jax.jit(fingerprint)
_go_on = jax.jit(go_on, donate_argnums=0)


def _fit_kept(
    checkpoint: Checkpoint, model: Any, params: Params, data: Data, sample_weight: Array | None, options: Options
) -> FitResult:
    """`solve` from the host, a few iterations at a time."""
    check_concrete(checkpoint, model, params, data, sample_weight, options)
    identity = lambda: identity_of(  # noqa: E731
        model, params, options, _fingerprint(data, sample_weight), np.asarray(_tree.n_rows(unlabelled(data)))
    )
    with open_store(checkpoint, "fit", identity, shared=not is_here(data)) as store:
        run, found, n_iter = _begin(model, params, data, sample_weight, options), store.load(), 1
        run = run if found is None else rebuilt(run, found[0])
        while int(run.state.status) == Status.RUNNING and int(run.state.n_iter) < run.state.history.shape[0]:
            begun = time.monotonic()
            run = jax.block_until_ready(_go_on(run, data, sample_weight, options, n_iter))
            write, quick = store.agree(store.is_time(), time.monotonic() - begun < checkpoint.every / 4)
            if write:
                store.save(run, {})
            elif quick:
                n_iter = min(2 * n_iter, options.max_iter)
        store.save(run, {})
    return _end(run, data, sample_weight, options)
