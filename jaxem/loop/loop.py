"""The loop over EM iterations: the only one.

    start ─▶ advance ─▶ … ─▶ advance ─▶ conclude ─▶ finish

`advance` is traceable and resumable: any split of the iterations into calls gives the same bits. Each trip evaluates
one candidate: the algorithm returns the objective at the params it received and proposes the next. A candidate that
is not finite, or lower though the algorithm is monotone, is refused: an algorithm that jumped ahead of EM is asked for
a safer one (`Algorithm.refused`), otherwise the last good one is the result.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.protocols import Algorithm, StoppingRule
from ..contracts.result import FitResult
from ..contracts.status import Status
from ..fold.chunks import FoldPlan
from ..fold.folded import Folded
from ..fold.sources import Summed
from ..latent.units import n_units_present
from ..numerics import tree as _tree
from .state import LoopState, total_weight
from .trip import Fixed, evaluate, on_path


def start(
    model: Any,
    params: Params,
    data: Data,
    sample_weight: Array | None,
    *,
    algorithm: Algorithm,
    max_iter: int,
    plan: FoldPlan = FoldPlan(),
) -> LoopState:
    """The state before the first evaluation.

    Args:
        model: bound to the data.
        params: start; floating leaves of one dtype.
        data: raw or `Labelled`, leading axis n.
        sample_weight: (n,) or None; `fit` has given rows that say nothing no weight.
        algorithm: see `Algorithm`.
        max_iter: the most M steps; static.
        plan: how the E step is folded.

    Status:
        - TOO_FEW: fewer rows of positive weight than `model.min_rows()`, or none.
        - NONFINITE: a weight is negative, NaN or infinite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> bound = jaxem.bind(model, x, None)
        >>> params = model.init(jax.random.key(0), x)
        >>> state = jaxem.start(bound, params, x, None, algorithm=jaxem.EM(), max_iter=100)
        >>> result = jaxem.finish(state, bound)  # after no iteration at all
        >>> bool(jnp.allclose(result.params.weights, params.weights)), int(result.n_iter)
        (True, 0)
    """
    params = ask.to_local(model, params)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    needed = ask.min_rows(model)
    if isinstance(data, Summed):
        present, valid = data.n_present, jnp.ones((), bool)
    elif sample_weight is None:
        present, valid = n_units_present(data, None), jnp.ones((), bool)
    else:
        present = n_units_present(data, sample_weight)
        valid = jnp.sum(~((sample_weight >= 0) & jnp.isfinite(sample_weight))) == 0
    too_few = present < jnp.maximum(needed, 1)
    status = jnp.where(valid, jnp.where(too_few, Status.TOO_FEW, Status.RUNNING), Status.NONFINITE)
    zero = jnp.zeros((), jnp.int32)
    nan = jnp.asarray(jnp.nan, dtype)
    return LoopState(
        params=params,
        best=params,
        objective=nan,
        previous=jnp.asarray(-jnp.inf, dtype),
        algorithm_state=algorithm.init(
            Folded(ask.localised(model), plan, fast=not ask.by_rows(algorithm)), params, data, sample_weight
        ),
        n_iter=zero,
        n_evals=zero,
        status=status.astype(jnp.int32),
        history=jnp.full(max_iter + 1, jnp.nan, dtype),
        path=zero if _has_fast_path(model, algorithm) else zero + 1,
        steps=jnp.full(3, jnp.nan, dtype),
    )


def advance(
    state: LoopState,
    model: Any,
    data: Data,
    sample_weight: Array | None,
    *,
    algorithm: Algorithm,
    stop: StoppingRule,
    n_iter: Any,
    plan: FoldPlan = FoldPlan(),
    paths: tuple[int, ...] = (0, 1),
) -> LoopState:
    """Runs until `n_iter` more M steps are inside the accepted params, or the fit ends.

    Two while loops in a row: the first on the model's fast path, the second on its stable path, entered where the
    first no longer keeps its digits and usually without a trip. (A `cond` inside one loop would run both under vmap.)
    With one of `paths` only, a fit that is on the other stays as it is.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> bound = jaxem.bind(model, x, None)
        >>> params = model.init(jax.random.key(0), x)
        >>> state = jaxem.start(bound, params, x, None, algorithm=jaxem.EM(), max_iter=100)
        >>> options = {"algorithm": jaxem.EM(), "stop": jaxem.Objective(1e-6), "n_iter": 2}
        >>> go_on = jax.jit(lambda state: jaxem.advance(state, bound, x, None, **options))
        >>> while state.status == jaxem.Status.RUNNING and state.n_iter < 100:
        ...     state = go_on(state)
        >>> jnp.sort(jaxem.finish(state, bound).params.components.rate[:, 0]).round(2)
        Array([ 1.5, 21.5], dtype=...)
    """
    end = jnp.minimum(jnp.maximum(state.n_iter, 1) + n_iter, state.history.shape[0])
    total = total_weight(model, data, sample_weight, state.objective.dtype)
    folded = Folded(ask.localised(model), plan)

    def loop(state: LoopState, path: int, data: Data) -> LoopState:
        def go_on(s: LoopState) -> Array:
            return (s.status == Status.RUNNING) & (s.path == path) & (s.n_iter < end)

        packed, unravel = _packed(state)

        fixed = Fixed(folded, data, sample_weight, total, algorithm, stop, path, unravel)
        return _unpacked(lax.while_loop(go_on, partial(evaluate, fixed), packed), unravel)

    if _has_fast_path(model, algorithm) and 0 in paths:
        state = loop(state, 0, folded.hold(state.params, data, sample_weight))
    return loop(state, 1, data) if 1 in paths else state


def advance_by_sums(
    state: LoopState,
    model: Any,
    summed: Summed,
    *,
    algorithm: Algorithm,
    stop: StoppingRule,
    path: int,
) -> LoopState:
    """One trip, on the outcome of an E step of `evaluated(model, …)` over data that are somewhere else."""
    packed, unravel = _packed(state)
    total = total_weight(model, summed, None, state.objective.dtype)
    fixed = Fixed(Folded(ask.localised(model)), summed, None, total, algorithm, stop, path, unravel)
    return _unpacked(evaluate(fixed, packed), unravel)


def evaluated(model: Any, params: Params, plan: FoldPlan, path: int) -> Folded:
    """The model whose E step the loop takes at these params, those of its state, on this path."""
    return on_path(Folded(ask.localised(model), plan), params, path)


def _packed(state: LoopState) -> tuple[LoopState, Callable]:
    """Params as one vector, so that every select and copy of the carry is one instead of one a leaf; and back."""
    flat, unravel = ravel_pytree(state.params)
    return state._replace(params=flat, best=ravel_pytree(state.best)[0]), unravel


def _unpacked(state: LoopState, unravel: Callable) -> LoopState:
    return state._replace(params=unravel(state.params), best=unravel(state.best))


STABLE_PATH = (1,)  # the paths that `advance` may be given; both are (0, 1)


def first_path(model: Any, algorithm: Algorithm) -> tuple[int, ...]:
    """The path that a fit begins on."""
    return (0,) if _has_fast_path(model, algorithm) else STABLE_PATH


def _has_fast_path(model: Any, algorithm: Algorithm) -> bool:
    return ask.has_fast_path(model) and not ask.by_rows(algorithm)


def conclude(
    state: LoopState,
    model: Any,
    data: Data,
    sample_weight: Array | None,
    *,
    algorithm: Algorithm,
    plan: FoldPlan = FoldPlan(),
) -> LoopState:
    """The state at the params that the algorithm ends with, evaluated by one E step over all rows, on the stable path.

    For algorithms with a `final`, see `Algorithm`, which may have looked at some rows only, or return an average; any
    other state is returned as it is. Called once, after the last `advance`.

    Status:
        - CONVERGED: max_iter M steps are done, as such an algorithm is meant to.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> bound = jaxem.bind(model, x, None)
        >>> params = model.init(jax.random.key(0), x)
        >>> algorithm = jaxem.StochasticEM(jax.random.key(1))
        >>> @jax.jit
        ... def run(state):
        ...     state = jaxem.advance(state, bound, x, None, algorithm=algorithm, stop=jaxem.Objective(), n_iter=10)
        ...     return jaxem.conclude(state, bound, x, None, algorithm=algorithm)
        >>> state = run(jaxem.start(bound, params, x, None, algorithm=algorithm, max_iter=10))
        >>> jaxem.Status(int(state.status)).name
        'CONVERGED'
    """
    if not ask.has_fixed_length(algorithm):
        return state
    folded = Folded(ask.localised(model), plan, fast=False)
    begun = state.n_iter > 0
    params = algorithm.final(folded, state.best, state.algorithm_state)  # type: ignore[attr-defined]
    params = _tree.tree_where(begun, params, state.best)
    here = ask.recentred(folded.model, params)
    objective = replace(folded, model=here).e_step(params, data, sample_weight)[1] + ask.log_prior(here, params)
    objective = jnp.where(begun, objective, jnp.nan).astype(state.objective.dtype)
    ended = (state.status == Status.RUNNING) & (state.n_iter >= state.history.shape[0])
    status = jnp.where(ended, Status.CONVERGED, state.status)
    lost = (status <= Status.MAX_ITER) & begun & ~jnp.isfinite(objective)
    return state._replace(
        best=params,
        objective=objective,
        n_evals=state.n_evals + 1,
        status=jnp.where(lost, Status.NONFINITE, status).astype(jnp.int32),
        history=state.history.at[jnp.maximum(state.n_iter - 1, 0)].set(objective),
    )


def finish(state: LoopState, model: Any) -> FitResult:
    """The result of a fit as far as it has come.

    Status:
        - MAX_ITER: still running with max_iter M steps done.
        - DEGENERATE: `model.health` finds a component without density, or with one that is rounding.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> bound = jaxem.bind(model, x, None)
        >>> params = model.init(jax.random.key(0), x)
        >>> state = jaxem.start(bound, params, x, None, algorithm=jaxem.EM(), max_iter=100)
        >>> options = {"algorithm": jaxem.EM(), "stop": jaxem.Objective(1e-6), "n_iter": 2}
        >>> go_on = jax.jit(lambda state: jaxem.advance(state, bound, x, None, **options))
        >>> result = jaxem.finish(go_on(state), bound)
        >>> bool(result.objective == result.history[result.n_iter])
        True
    """
    status = state.status
    spent = (status == Status.RUNNING) & (state.n_iter >= state.history.shape[0])
    status = jnp.where(spent, Status.MAX_ITER, status)
    if ask.offers(model, "health"):  # what every model without would compute is left out of its program
        # a candidate without density is why the objective was not finite; the best may have one by rounding alone
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), state.params, state.best)
        candidate, best = jax.vmap(ask.localised(model).health)(both) == Status.DEGENERATE
        sick = _tree.is_finite(state.params) & candidate
        spike = (status >= Status.CONVERGED) & (status <= Status.MAX_ITER) & best
        status = jnp.where(((status == Status.NONFINITE) & sick) | spike, Status.DEGENERATE, status)
    params = ask.to_global(model, state.best)
    prior = ask.log_prior(model, params).astype(state.objective.dtype)
    return FitResult(
        params=params,
        objective=state.objective,
        log_lik=state.objective - prior,
        n_iter=jnp.maximum(state.n_iter - 1, 0),
        n_evals=state.n_evals,
        status=status.astype(jnp.int32),
        history=state.history,
        model=model,
    )
