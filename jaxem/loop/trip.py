"""One trip of the loop: a candidate is evaluated, judged, accepted or refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.protocols import Progress, StepInfo, StoppingRule
from ..contracts.status import Status
from ..fold.folded import Folded
from ..fold.sources import Summed
from ..numerics import tree as _tree
from ..numerics.tree import is_rounding
from .state import LoopState


class Fixed(NamedTuple):
    """What every trip of a loop reads, and none changes.

    Attributes:
        folded: the bound model.
        data: as the E step takes them.
        sample_weight: (n,) or None.
        total: Σ sample weights.
        algorithm: see `Algorithm`.
        stop: see `StoppingRule`.
        path: 0 the fast one, 1 the stable one.
        unravel: params of a vector.
    """

    folded: Folded
    data: Data
    sample_weight: Array | None
    total: Array
    algorithm: Any
    stop: StoppingRule
    path: int
    unravel: Callable[[Array], Params]


class _Verdict(NamedTuple):
    """What there is to say of a candidate.

    Attributes:
        good: whether it is accepted.
        finite: whether its objective is.
        passing: whether it was only looked at, see `StepInfo`.
        objective: at the candidate.
        criterion: what the next objective is compared with.
        status: of the fit, if the candidate is accepted.
        sizes: of its entries.
        steps: see `LoopState`.
    """

    good: Array
    finite: Array
    passing: Array
    objective: Array
    criterion: Array
    status: Array
    sizes: Params
    steps: Array


def evaluate(fixed: Fixed, s: LoopState) -> LoopState:
    """One trip: evaluates the candidate, accepts or refuses it, and takes the next. Params in `s` are flat."""
    params, algorithm = fixed.unravel(s.params), fixed.algorithm
    folded = on_path(fixed.folded, params, fixed.path, recentre=not ask.by_rows(algorithm))
    data = replace(fixed.data, params=params) if isinstance(fixed.data, Summed) else fixed.data
    proposal, algorithm_state, info = algorithm.step(folded, params, data, fixed.sample_weight, s.algorithm_state)
    verdict = _judged(fixed, s, folded, proposal, info)
    seen = jnp.where(verdict.good & ~verdict.passing, verdict.objective, jnp.nan)
    history, n_evals = s.history.at[s.n_iter].set(seen), s.n_evals + info.n_evals
    s = s._replace(history=())
    accepted = _accepted(s, verdict, proposal, algorithm_state, can_pass=info.passing is not None)
    if fixed.path == 0:
        refused = _step_back(s, _started_anew(fixed._replace(folded=folded, data=data), s))
    else:
        refused = s._replace(status=_status_of_refusal(s, verdict.sizes, verdict.finite))
    if ask.offers(algorithm, "refused"):
        refused = _retreat(s, refused, folded, algorithm)
    return _tree.tree_where(verdict.good, accepted, refused)._replace(history=history, n_evals=n_evals)


def _judged(fixed: Fixed, s: LoopState, folded: Folded, proposal: Params, info: StepInfo) -> _Verdict:
    """Whether the candidate is finite and high enough, and whether the fit ends with it."""
    params, total = fixed.unravel(s.params), fixed.total
    objective = info.objective.astype(s.objective.dtype)
    criterion = objective if info.criterion is None else info.criterion.astype(objective.dtype)
    finite = jnp.isfinite(objective)
    passing = jnp.zeros((), bool) if info.passing is None else info.passing
    # of what was summed: terms of either sign may cancel in the objective, their rounding does not
    size = total + (jnp.abs(objective) if info.size is None else info.size.astype(objective.dtype))
    rounding = jnp.finfo(objective.dtype).eps * size
    good = finite
    if fixed.algorithm.monotone:
        good = finite & (passing | (objective >= s.previous - 16 * rounding))
    if fixed.path == 0:
        good = good & ask.trusted(folded.model, params)
    sizes = ask.sizes(folded.model, params)
    steps = None
    if info.image is None:
        step = (ravel_pytree(proposal)[0] - s.params) / ravel_pytree(sizes)[0]
        steps = jnp.concatenate([jnp.sum(jnp.square(step), keepdims=True), s.steps])
    progress = Progress(
        objective=criterion / total,
        previous_objective=s.previous / total,
        params=params,
        previous=fixed.unravel(s.best),
        proposal=proposal,
        n_iter=s.n_iter,
        image=info.image,
        earlier_objectives=_earlier(s) / total,
        sizes=sizes,
        rate=info.rate,
        plain=info.plain,
        resolution=8 * rounding / total,
        steps=steps,
    )
    done, unresolved = fixed.stop.converged(progress)
    ended = jnp.where(unresolved & ~info.done, Status.RESOLUTION, Status.CONVERGED)
    status = jnp.where((done & info.may_stop) | info.done, ended, Status.RUNNING).astype(jnp.int32)
    steps = s.steps if steps is None else steps[:-1]
    return _Verdict(good, finite, passing, objective, criterion, status, sizes, steps)


def _accepted(s: LoopState, verdict: _Verdict, proposal: Params, algorithm_state: Any, *, can_pass: bool) -> LoopState:
    """With the proposal to evaluate next; a candidate that was only passed leaves no trace."""
    flat = ravel_pytree(proposal)[0]
    accepted = s._replace(
        params=flat,
        best=s.params,
        objective=verdict.objective,
        previous=verdict.criterion,
        algorithm_state=algorithm_state,
        n_iter=s.n_iter + 1,
        status=verdict.status,
        steps=verdict.steps,
    )
    if not can_pass:
        return accepted
    passed = s._replace(params=flat, algorithm_state=algorithm_state)
    return _tree.tree_where(verdict.passing, passed, accepted)


def _status_of_refusal(s: LoopState, sizes: Params, finite: Array) -> Array:
    """Of a candidate that is refused on the stable path, where nothing is left to try.

    Where a component is nearly singular, the objective's rounding is more than the allowance.
    """
    still = is_rounding(s.params - s.best, s.best, ravel_pytree(sizes)[0])
    fallen = jnp.where(still, Status.RESOLUTION, Status.DECREASED)
    return jnp.where(finite, fallen, Status.NONFINITE).astype(jnp.int32)


def _retreat(s: LoopState, otherwise: LoopState, folded: Folded, algorithm: Any) -> LoopState:
    """To the safer params of an algorithm that jumped, if it has any left."""
    safer, safer_state, possible = algorithm.refused(folded, s.algorithm_state)
    retreat = s._replace(params=ravel_pytree(safer)[0], algorithm_state=safer_state)
    return _tree.tree_where(possible, retreat, otherwise)


def _earlier(s: LoopState) -> Array:
    """(3,): the objectives accepted before the last one; NaN where there is none."""
    index = s.n_iter - jnp.arange(2, 5)
    return jnp.where(index >= 0, s.history[jnp.maximum(index, 0)], jnp.nan)


def _started_anew(fixed: Fixed, s: LoopState) -> Any:
    """The algorithm's state at the last good params; one that jumps begins again there, another goes on."""
    if not ask.offers(fixed.algorithm, "refused"):
        return s.algorithm_state
    params = fixed.unravel(jnp.where(s.n_iter == 0, s.params, s.best))
    return fixed.algorithm.init(fixed.folded, params, fixed.data, fixed.sample_weight)


def _step_back(s: LoopState, algorithm_state: Any) -> LoopState:
    """To the last good params, which are evaluated again on the stable path: rounding made the candidate."""
    fresh = s.n_iter == 0
    return s._replace(
        algorithm_state=algorithm_state,
        params=jnp.where(fresh, s.params, s.best),
        previous=jnp.full_like(s.previous, -jnp.inf),
        n_iter=jnp.maximum(s.n_iter - 1, 0),
        path=jnp.ones_like(s.path),
        steps=jnp.full_like(s.steps, jnp.nan),
    )


def on_path(folded: Folded, params: Params, path: int, recentre: bool = True) -> Folded:
    """The model whose E step is taken at these params on this path."""
    if path == 0:
        return folded
    return replace(folded, model=ask.recentred(folded.model, params) if recentre else folded.model, fast=False)
