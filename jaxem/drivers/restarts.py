"""`fit_restarts`: one problem from many starts, and the race among them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..contracts import protocols
from ..contracts.admissible import Admissible, check_admissible
from ..contracts.checks import check_max_lanes
from ..contracts.protocols import Algorithm, StoppingRule
from ..contracts.result import FitResult
from ..contracts.status import Status
from ..fold.chunks import HOLD_BYTES, plan_fold
from ..latent.finite import check_known, unlabelled
from ..latent.starts import Initializer, KMeans, as_initializer
from ..loop.derivative import Derivative, Implicit
from ..loop.loop import STABLE_PATH, first_path
from ..loop.run import Options, Run, are_on_other_path, solve
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ..numerics.processes import jointly
from ..numerics.programs import Program
from ..running.lanes import Lanes, lane_efficiency, over, resolve_plan, run_lanes, share
from ..running.rounds import (
    Problem,
    Work,
    can_go_in_rounds,
    most_lanes,
    run_in_rounds,
    size_of_fit,
    standing,
    standing_of,
)
from ..storage.checkpoint import Checkpoint, check_concrete
from .asked import algorithm_for, make_options, take_in
from .batch import on_device

_ENOUGH_STARTS = 4  # of fewer, that one reached the best says nothing


@_tree.register
@dataclass(frozen=True)
class Race:
    """All starts of a problem run `n_iter` iterations; the `keep` best go on to their end, the others are dropped.

    The best are those of the highest objective. A start that has failed, or whose components have lost their density,
    goes on only where no other is left, and before it one that is not admissible, where that is asked for. With `keep`
    the number of starts a race changes nothing. It saves iterations and errs where a start that is behind at first
    would have ended ahead: where components part slowly, as they do if they overlap, objectives of all starts lie close
    together for a while. The more such, the larger `n_iter` and `keep` should be. If all that went on fail, the first
    of them is the result.

    Attributes:
        n_iter: M steps before the choice; static.
        keep: how many go on; static.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model, key = jaxem.Mixture(jaxem.FullNormal(), 2), jax.random.key(0)
        >>> best = jaxem.fit_restarts(model, key, x, n_restarts=16, race=jaxem.Race(n_iter=5, keep=2))
        >>> best.check().params.weights.round(2)
        Array([0.5, 0.5], dtype=...)
    """

    n_iter: int = field(metadata={"static": True})
    keep: int = field(metadata={"static": True})

    def winners(self, ranks: Array) -> Array:
        """(keep,) of the starts with the highest ranks (r,), in their own order."""
        return jnp.sort(lax.top_k(ranks, self.keep)[1])


def check_race(race: Any, n_restarts: int) -> None:
    """Raises a ValueError unless `race` is None or a `Race` that fits the number of starts."""
    if race is None:
        return
    if not isinstance(race, Race):
        raise ValueError(f"race: expected Race(n_iter, keep) or None, got {race!r}.")
    as_count("race.n_iter", race.n_iter)
    as_count("race.keep", race.keep)
    if race.keep > n_restarts:
        raise ValueError(f"race: expected to keep at most the {n_restarts} starts, got keep={race.keep}.")


class How(NamedTuple):
    """How the starts of one problem run inside a program; static."""

    plan: str
    at_once: int | None = None
    race: Race | None = None


class Restarts(NamedTuple):
    """One problem and the keys of its starts (r,); `start` (params) instead of keys where it is given."""

    keys: Any
    start: Any
    data: Data
    sample_weight: Any


def _problem(static: None, key: Key, shared: tuple) -> Problem:
    bound, init, data, sample_weight, options = shared
    start = lambda: ask.init_bound(bound, key, data, sample_weight, init)  # noqa: E731
    return Problem(bound, start, data, sample_weight, options.for_lane(protocols.number_of(key)), is_bound=True)


def _whole_lane(static: None, key: Key, shared: tuple) -> FitResult:
    one = _problem(static, key, shared)
    return one.end(one.go_on(one.begin(), one.options.max_iter))


def _lane_at_first(static: None, key: Key, shared: tuple) -> tuple[Run, FitResult]:
    """As far as the path that it begins on leads."""
    one = _problem(static, key, shared)
    run = one.go_on(one.begin(), one.options.max_iter, first_path(one.model, one.options.algorithm))
    return run, one.end(run)


def _lane_from_there(static: None, lane: tuple[Key, Run], shared: tuple) -> FitResult:
    """One that has ended stays as it is."""
    key, run = lane
    one = _problem(static, key, shared)
    return one.end(one.go_on(run, one.options.max_iter, STABLE_PATH))


def _first_lane(n_iter: int, key: Key, shared: tuple) -> tuple[Run, Array]:
    one = _problem(None, key, shared)
    run = one.go_on(one.begin(), n_iter)
    return run, standing(run, one)


def _last_lane(static: None, lane: tuple[Key, Run], shared: tuple) -> FitResult:
    key, run = lane
    one = _problem(static, key, shared)
    return one.end(one.go_on(run, one.options.max_iter))


def best_of_starts(
    how: How, problem: Restarts, model: Any, init: Initializer | None, options: Options
) -> tuple[FitResult, tuple[Array, ...]]:
    """The best fit of one problem from its starts; a failed one never wins. And the E steps of all, by phase."""
    if problem.start is not None:
        result = solve(model, problem.start, problem.data, problem.sample_weight, options)
        phases = (result.n_evals[None],)
    else:
        still, data, weight = lax.stop_gradient((model, problem.data, problem.sample_weight))
        bound = ask.bind(still, data, weight)  # once for all starts
        shared = (bound, *lax.stop_gradient((init, data, weight, options)))
        if how.race is None:
            every = over(lambda key: _whole_lane(None, key, shared), problem.keys, how.plan, how.at_once)
            phases = (every.n_evals,)
        else:
            first = lambda key: _first_lane(how.race.n_iter, key, shared)  # noqa: E731 # type: ignore
            runs, ranks = over(first, problem.keys, how.plan, how.at_once)
            chosen = how.race.winners(ranks)
            left = _tree.take((problem.keys, runs), chosen)
            every = over(lambda lane: _last_lane(None, lane, shared), left, how.plan, how.at_once)
            phases = (runs.state.n_evals, every.n_evals - left[1].state.n_evals)
        result = take_best(every, options.tol)
    return options.differentiable(result, model, problem.data, problem.sample_weight), phases


_restarts_program = jax.jit(best_of_starts, static_argnums=0)
_bind = Program(ask.bind, at_most=2**17)


def take_best(every: FitResult, tol: Any = 0.0) -> FitResult:
    """The fit with the highest objective among those that did not fail; the first if all failed.

    Fits that are not admissible come before those that failed otherwise. `n_best` counts those that came within 10·tol
    per unit of the best, or within rounding.
    """
    ranks, spikes = standing_of(every), every.status == Status.INADMISSIBLE
    best = _tree.take(every, jnp.argmax(ranks))
    n_starts = ranks.shape[0]
    if n_starts == 1:
        return best
    dtype, total = best.objective.dtype, best.total_weight
    rounding = 16 * jnp.finfo(dtype).eps * jnp.maximum(jnp.abs(best.objective), total)
    margin = jnp.maximum(10 * jnp.maximum(jnp.asarray(tol, dtype), 0) * total, rounding)
    alike = spikes == (best.status == Status.INADMISSIBLE)
    near = (ranks > -jnp.inf) & alike & (every.objective >= best.objective - margin)
    n_best = jnp.sum(near).astype(jnp.int32)
    return replace(best, n_best=n_best, n_starts=jnp.full_like(n_best, n_starts))


_take_best = Program(take_best, at_most=2**17)


def warn_if_alone(result: FitResult) -> FitResult:
    """Returns the fit; warns if of four starts or more it alone reached its objective."""
    n_starts = 1 if result.n_starts is None else int(result.n_starts)
    if n_starts >= _ENOUGH_STARTS and int(result.n_best) == 1 and bool(result.converged):
        warnings.warn(
            f"fit_restarts: 1 of {n_starts} starts reached the best objective, {float(result.objective):.6g}; more may "
            "find a better one: raise n_restarts (FitResult.n_best counts them).",
            UserWarning,
            stacklevel=3,
        )
    return result


def fit_restarts(
    model: Any,
    key: Key,
    data: Data,
    *,
    n_restarts: int = 8,
    init: Initializer = KMeans(),
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
) -> FitResult:
    """Fits one problem from several random starts and returns the best fit.

    On concrete values one of four starts or more that alone reached the best objective is a UserWarning.

    Args:
        model: with an `init` method.
        key: of `jax.random`; the same key gives the same starts, whatever the plan.
        data: as in `fit`.
        n_restarts: number of starts.
        init: how each start is drawn.
        sample_weight: as in `fit`.
        race: `Race(n_iter, keep)`: all starts run n_iter iterations, the best `keep` go on; None: all go on.
        plan: as in `fit_batch`.
        max_lanes: as in `fit_batch`, of starts.
        progress: as in `fit_batch`.
        algorithm: as in `fit`; None is `SQUAREM()` where the model has a closed M step and says which params are
            allowed, else `EM()`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.
        derivative: as in `fit`.
        stop: as in `fit`.
        checkpoint: as in `fit_batch`, of starts.
        admissible: `Admissible(…)`: only such maxima win; None: any, as by maximum likelihood.

    Returns:
        The `FitResult` of the highest objective, and how many starts reached it (`n_best`). Failed fits never win; if
        all fail, the first of them. If none is admissible, the best of the others, with status INADMISSIBLE.
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
    plan = resolve_plan(plan)
    n_restarts, max_lanes = as_count("n_restarts", n_restarts), check_max_lanes(max_lanes)
    check_race(race, n_restarts)
    model, data, sample_weight, dtype = take_in(model, data, sample_weight)
    check_admissible(admissible, model)
    fold = plan_fold(unlabelled(data), chunk_size)
    at_once = most_lanes(max_lanes, n_restarts, size_of_fit(data, ask.n_components(model, 1)))
    if plan == "lanes":
        fold = replace(fold, hold_bytes=HOLD_BYTES // at_once)
    algorithm = algorithm_for([model], algorithm)
    options = replace(make_options(algorithm, tol, max_iter, derivative, stop, fold), admissible=admissible)
    ask.validate_data(model, data)
    check_known(data, ask.n_components(model), sample_weight)
    check_initializer(init, _tree.n_rows(data), ask.n_components(model))
    shared = (model, as_initializer(init), data, sample_weight, _tree.cast_floats(options, dtype))
    keys = jax.random.split(key, n_restarts)
    check_concrete(checkpoint, keys, shared)
    if _tree.is_tracing(keys, shared):
        problem, asked = Restarts(keys, None, data, sample_weight), (model, shared[1], shared[-1])
        result, phases = _restarts_program(How(plan, max_lanes, race), problem, *asked)
        return replace(result, lane_efficiency=lane_efficiency(phases, plan))
    shared = (jointly(_bind, model, data, sample_weight), *shared[1:])
    if can_go_in_rounds(plan, keys, shared):
        done, kept = run_in_rounds(
            Work(_problem, None), Lanes(keys, shared), max_iter, at_once,
            race=race, shape=(1, n_restarts), progress=progress, checkpoint=checkpoint,
        )  # fmt: skip
        best = _take_best(_tree.take(done.fits, np.flatnonzero(kept)), options.tol)
        return warn_if_alone(replace(best, lane_efficiency=share(done.needed, done.run)))
    run = partial(run_lanes, plan=plan, progress=progress, max_lanes=max_lanes, in_haste=True)
    every, phases = _in_turn(run, Lanes(keys, shared), race, checkpoint)
    best = _take_best(on_device(every), options.tol)
    return warn_if_alone(replace(best, lane_efficiency=lane_efficiency(phases, plan)))


def _in_turn(
    run: Callable, starts: Lanes, race: Race | None, checkpoint: Checkpoint | None
) -> tuple[FitResult, list[Array]]:
    """The fits from all starts, or from those that won the race; and E steps by phase."""
    if race is None and checkpoint is not None:
        (every,) = run(_whole_lane, None, [starts], checkpoint=checkpoint)
        return every, [every.n_evals]
    if race is None:  # starts that never leave their first path wait for no compilation of the other
        ((runs, every),) = run(_lane_at_first, None, [starts])
        if np.any(are_on_other_path(runs)):
            (every,) = run(_lane_from_there, None, [Lanes((starts.batched, runs), starts.shared)])
        return every, [every.n_evals]
    first, last = (None, None) if checkpoint is None else (checkpoint.part("all"), checkpoint.part("best"))
    ((runs, ranks),) = run(_first_lane, race.n_iter, [starts], checkpoint=first)
    chosen = race.winners(jnp.asarray(ranks))
    left = Lanes((starts.batched[chosen], _tree.take(on_device(runs), chosen)), starts.shared)
    (every,) = run(_last_lane, None, [left], checkpoint=last)
    return every, [runs.state.n_evals, every.n_evals - left.batched[1].state.n_evals]


def check_initializer(init: Any, n: int, k: int | None) -> None:
    """Raises a ValueError unless `init` is an initialiser whose own values fit n rows and k components."""
    if not callable(init) or isinstance(init, type):
        raise ValueError(f"init: expected an initialiser, e.g. KMeans(), got {init!r}; start params go to fit.")
    if ask.offers(init, "validate") and k is not None:
        init.validate(n, k)  # type: ignore[attr-defined]
