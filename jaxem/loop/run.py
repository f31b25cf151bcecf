"""A run: options, a bound model and the state of the loop; begun, advanced and ended."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array, Data, Params, PyTree
from ..contracts import capabilities as ask
from ..contracts.admissible import Admissible
from ..contracts.protocols import Algorithm, StoppingRule
from ..contracts.result import FitResult
from ..contracts.status import Status
from ..fold.chunks import FoldPlan
from ..numerics import tree as _tree
from ..numerics.programs import n_numbers, program
from .derivative import Derivative, differentiable
from .loop import STABLE_PATH, advance, conclude, finish, start
from .state import LoopState, total_weight


@_tree.register
@dataclass(frozen=True)
class Options:
    """What a fit is asked for, apart from model and data. `max_iter` and `plan` are static, the rest are leaves."""

    algorithm: Algorithm
    stop: StoppingRule
    derivative: Derivative
    max_iter: int = field(metadata={"static": True})
    plan: FoldPlan = field(metadata={"static": True})
    admissible: Admissible | None = None

    @property
    def tol(self) -> Any:
        """Per unit, as far as the stopping rule has one."""
        return ask.told(self.stop, "tol", 0.0)

    def for_lane(self, number: Array) -> "Options":
        """The options of one of many lanes."""
        return replace(self, algorithm=ask.for_lane(self.algorithm, number))

    def differentiable(self, result: FitResult, model: Any, data: Data, sample_weight: Array | None) -> FitResult:
        """The result with the derivative asked for, see `loop.derivative.differentiable`."""
        return differentiable(
            result, model, data, sample_weight,
            derivative=self.derivative, algorithm=self.algorithm, plan=self.plan,
        )  # fmt: skip


_UNRESOLVED_SHARE = 0.05  # measured on random intercepts: with fewer such units the objective is off by 0.005 a unit


class Run(NamedTuple):
    """A fit under way.

    Attributes:
        model: bound to the data.
        start: the params that it began with.
        state: of the loop.
    """

    model: Any
    start: Params
    state: LoopState


def begin(model: Any, params: Params, data: Data, sample_weight: Array | None, options: Options) -> Run:
    """Binds the model; no E step yet. Traceable."""
    return begin_bound(ask.bind(model, data, sample_weight), params, data, sample_weight, options)


def begin_bound(model: Any, params: Params, data: Data, sample_weight: Array | None, options: Options) -> Run:
    """`begin` of a model that is bound to these data."""
    model = ask.holding(model, params)
    params = ask.imposed(model, params)
    state = start(
        model, params, data, sample_weight,
        algorithm=options.algorithm, max_iter=options.max_iter, plan=options.plan,
    )  # fmt: skip
    return Run(model, params, state)


def go_on(
    run: Run, data: Data, sample_weight: Array | None, options: Options, n_iter: Any, paths: tuple[int, ...] = (0, 1)
) -> Run:
    """Up to `n_iter` more M steps; any split of the iterations into calls gives the same bits. Traceable."""
    state = advance(
        run.state, run.model, data, sample_weight,
        algorithm=options.algorithm, stop=options.stop, n_iter=n_iter, plan=options.plan, paths=paths,
    )  # fmt: skip
    return run._replace(state=state)


def end(run: Run, data: Data, sample_weight: Array | None, options: Options) -> FitResult:
    """The result of a run that has stopped or used up its iterations. Traceable."""
    model = run.model
    state = conclude(run.state, model, data, sample_weight, algorithm=options.algorithm, plan=options.plan)
    result = finish(state, model)
    # a start that nothing has improved is returned to the bit
    found = ask.imposed(model, result.params)  # to the bit, too
    params = _tree.tree_where(result.n_iter == 0, run.start, found)
    total = total_weight(model, data, sample_weight, result.objective.dtype)
    status = result.status
    if options.admissible is not None:
        allowed = options.admissible.allows(model, params, total, data, sample_weight)
        ended = (status >= 0) & (status <= Status.MAX_ITER)
        # rounding ends many a way to a spike, where the density of two rows is beyond the dtype
        at_spike = (status == Status.DEGENERATE) | (status == Status.DECREASED)
        status = jnp.where((ended | at_spike) & ~allowed, Status.INADMISSIBLE, status)
    result = replace(result, params=params, status=status.astype(jnp.int32), total_weight=total)
    return looked_at(result, data, sample_weight, options.plan)


def looked_at(result: FitResult, data: Data, sample_weight: Array | None, plan: FoldPlan) -> FitResult:
    """The result, UNRESOLVED where its model does not resolve rows of more than a twentieth of the weight."""
    bad = ask.unresolved(result.model, result.params, data, plan)
    if bad is None:
        return result
    weight = jnp.ones(bad.shape, result.objective.dtype) if sample_weight is None else sample_weight
    bad = bad & (weight > 0)
    many = jnp.sum(jnp.where(bad, weight, 0)) > _UNRESOLVED_SHARE * jnp.sum(weight)
    ended = (result.status >= Status.CONVERGED) & (result.status <= Status.MAX_ITER)
    status = jnp.where(ended & many, Status.UNRESOLVED, result.status).astype(jnp.int32)
    return replace(result, status=status, unresolved=jnp.nonzero(bad, size=5, fill_value=-1)[0])


def are_on_other_path(runs: Run) -> np.ndarray:
    """Of one concrete run, or of lanes: which have left their fast path and are not at their end."""
    status, path, n_iter = jax.device_get((runs.state.status, runs.state.path, runs.state.n_iter))
    return (status == Status.RUNNING) & (path == STABLE_PATH[0]) & (n_iter < runs.state.history.shape[-1])


def solve(model: Any, params: Params, data: Data, sample_weight: Array | None, options: Options) -> FitResult:
    """Runs a fit; its values carry no derivative. Traceable."""
    model, params, data, sample_weight = lax.stop_gradient((model, params, data, sample_weight))
    run = begin(model, params, data, sample_weight, options)
    run = go_on(run, data, sample_weight, options, options.max_iter)
    return end(run, data, sample_weight, options)


def solve_differentiable(
    model: Any, params: Params, data: Data, sample_weight: Array | None, options: Options
) -> FitResult:
    """`solve` with the derivative asked for."""
    return options.differentiable(solve(model, params, data, sample_weight, options), model, data, sample_weight)


# --- a fit that is differentiated from Python


@jax.custom_jvp
def differentiable_values(options: Options, result: FitResult, arguments: PyTree) -> tuple[Params, Array, Array]:
    """params, log_lik and objective of a result that is known, with the derivative asked for.

    Where they are differentiated from Python, and once, all that follows from values is known too, and one program
    works it out; what is left is linear.

    Args:
        options: of the fit.
        result: its values; their own tangents are not looked at.
        arguments: the model, its data and their weights.
    """
    return result.params, result.log_lik, result.objective


@differentiable_values.defjvp
def _differentiable_values_jvp(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    options, result, arguments = primals
    floats, merge = _tree.floating(arguments)
    dots = _tree.floating(tangents[2])[0]
    if _tree.is_tracing(primals):
        return jax.jvp(lambda floats: _values(options, result, merge(floats)), (floats,), (dots,))
    return differentiable_values(*primals), _pushed(_push.outside(options, result, arguments), dots)


def _values_with_derivative(options: Options, result: FitResult, arguments: PyTree) -> tuple[Params, Array, Array]:
    found = options.differentiable(result, *arguments)
    return found.params, found.log_lik, found.objective


_values = jax.jit(_values_with_derivative)


@program(at_most=2**14)
def _push(options: Options, result: FitResult, arguments: PyTree) -> Callable[[list], PyTree]:
    if n_numbers(arguments) <= _push.at_most:
        options = replace(options, plan=replace(options.plan, is_brief=True))
    floats, merge = _tree.floating(arguments)
    return jax.linearize(lambda floats: _values_with_derivative(options, result, merge(floats)), floats)[1]


_pushed = jax.jit(lambda push, dots: push(dots))
