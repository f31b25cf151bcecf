"""`fit`: one problem."""

import numbers
import time
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _tree
from ._typing import Array, Data, Params
from .algorithms.em import EM
from .algorithms.squarem import SQUAREM
from .arguments import as_count, as_rows, check_weight_shape
from .checkpoint import Checkpoint, check_concrete, open_store, rebuilt
from .chunks import FoldPlan, on_auto_axes, plan_fold
from .components import Admissible
from .derivative import Derivative, Implicit, differentiable
from .domains import check_params
from .extrapolation import knows_space
from .fold import has_closed_m_step, is_additive, present_rows
from .hosts import check_alike, everywhere, is_here, jointly, lying_as, together
from .identity import fingerprint, identity_of
from .informative import informed_weight
from .loop import LoopState, advance, conclude, finish, start, total_weight
from .protocols import Algorithm, StoppingRule, bind, for_lane, has_fixed_length, holding, imposed
from .result import FitResult, Status
from .rules import Labelled, as_read, check_known, unlabelled
from .stopping import Aitken


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
        return getattr(self.stop, "tol", 0.0)

    def for_lane(self, number: Array) -> "Options":
        """The options of one of many lanes."""
        return replace(self, algorithm=for_lane(self.algorithm, number))


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
    model = bind(holding(model, params), data, sample_weight)
    params = imposed(model, params)
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
    found = imposed(model, result.params)  # to the bit, too
    params = _tree.tree_where(result.n_iter == 0, run.start, found)
    total = total_weight(unlabelled(data), sample_weight, result.objective.dtype)
    status = result.status
    if options.admissible is not None:
        allowed = options.admissible.allows(model, params, total, data, sample_weight)
        status = jnp.where((status >= 0) & (status <= Status.MAX_ITER) & ~allowed, Status.INADMISSIBLE, status)
    result = replace(result, params=params, status=status.astype(jnp.int32), total_weight=total)
    return looked_at(result, data, sample_weight, options.plan) if hasattr(model, "unresolved") else result


def looked_at(result: FitResult, data: Data, sample_weight: Array | None, plan: FoldPlan) -> FitResult:
    """The result, UNRESOLVED where its model does not resolve rows of more than a twentieth of the weight."""
    bad = result.model.unresolved(result.params, data, plan)
    weight = jnp.ones(bad.shape, result.objective.dtype) if sample_weight is None else sample_weight
    bad = bad & (weight > 0)
    many = jnp.sum(jnp.where(bad, weight, 0)) > _UNRESOLVED_SHARE * jnp.sum(weight)
    ended = (result.status >= Status.CONVERGED) & (result.status <= Status.MAX_ITER)
    status = jnp.where(ended & many, Status.UNRESOLVED, result.status).astype(jnp.int32)
    return replace(result, status=status, unresolved=jnp.nonzero(bad, size=5, fill_value=-1)[0])


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
    result = solve(model, params, data, sample_weight, options)
    return differentiable(result, options.derivative, options.algorithm, model, data, sample_weight, options.plan)


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
    check_model(model)
    data, sample_weight = on_auto_axes((as_rows(data), sample_weight))
    options = make_options(algorithm, tol, max_iter, derivative, stop, plan_fold(unlabelled(data), chunk_size))
    warn_if_rounded(data)
    model, data, sample_weight, dtype = prepare_inputs(model, data, sample_weight)
    params = _tree.cast_data(params, dtype)
    options = _tree.cast_floats(options, dtype)
    with together():
        if not is_here(data):
            check_alike(options=options)
        check_arguments(model, params, data, sample_weight)
        if not is_additive(model) and not _tree.is_tracing(model, params, data, sample_weight):
            everywhere(partial(check_support, model, params), unlabelled(data), sample_weight)
        if checkpoint is None:
            return jointly(_fit, model, params, data, sample_weight, options)
        return _fit_kept(checkpoint, model, params, data, sample_weight, options)


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


def make_options(
    algorithm: Algorithm, tol: Any, max_iter: int, derivative: Derivative, stop: StoppingRule | None, plan: FoldPlan
) -> Options:
    """Options, checked.

    Raises:
        ValueError: if an option is out of range, or a derivative is asked of an algorithm that cannot give it.
    """
    max_iter = as_count("max_iter", max_iter, 0)
    if isinstance(tol, numbers.Real) and np.isnan(float(tol)):
        raise ValueError("tol: expected a number, got NaN; pass a negative number to run max_iter iterations.")
    for name, value, method in (("algorithm", algorithm, "step"), ("derivative", derivative, "attach")):
        if not hasattr(value, method) or isinstance(value, type):
            raise ValueError(f"{name}: expected an object with a method {method}, e.g. EM(), got {value!r}.")
    if stop is not None and has_fixed_length(algorithm):
        raise ValueError(
            f"stop: expected None, as {type(algorithm).__name__} runs max_iter iterations and no rule ends it; got "
            f"{stop!r}."
        )
    rule: StoppingRule = Aitken(tol) if stop is None else stop
    if not hasattr(rule, "converged"):
        raise ValueError(f"stop: expected a stopping rule, e.g. Aitken(1e-6), got {stop!r}.")
    for option in (algorithm, rule):
        if hasattr(option, "validate"):
            option.validate()  # type: ignore[attr-defined]
    return Options(algorithm, rule, derivative, max_iter, plan)


def algorithm_for(models: Any, algorithm: Algorithm | None) -> Algorithm:
    """The algorithm asked for, or, of the drivers of many fits, the default.

    SQUAREM where every model has a closed M step and says which params are allowed: to the limit it takes a third of
    EM's steps or less, and what ends as MAX_ITER under EM arrives (`python -m benchmarks.limit`). EM elsewhere.
    """
    if algorithm is not None:
        return algorithm
    jumps = all(has_closed_m_step(model) and knows_space(getattr(model, "family", model)) for model in models)
    return SQUAREM() if jumps else EM()


def warn_if_rounded(data: Data) -> None:
    """One warning if float64 NumPy data are about to be rounded because x64 is off."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return
    if any(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in jax.tree.leaves(data)):
        warnings.warn(
            "float64 data are rounded to float32, because jax_enable_x64 is off; "
            "jax.config.update('jax_enable_x64', True) keeps them, .astype('float32') silences this.",
            UserWarning,
            stacklevel=3,
        )


def prepare_inputs(model: Any, data: Data, sample_weight: Any) -> tuple[Any, Data, Array | None, Any]:
    """Casts model leaves and weights to the data's dtype, checks the shapes; data as the model reads them.

    Rows that say nothing get no weight.

    Raises:
        ValueError: on empty data or weights of a wrong shape.
        TypeError: on a dtype that cannot be fitted.
    """
    rows = as_rows(unlabelled(data))
    n = _tree.n_rows(rows)
    dtype = _tree.float_dtype(rows)
    if n == 0:
        raise ValueError("data: expected at least one row, got n = 0.")
    data = as_read(model, data, dtype)
    if sample_weight is not None:
        check_weight_shape(sample_weight, n)
        sample_weight = jnp.asarray(lying_as(unlabelled(data), sample_weight), dtype)
    model = _tree.cast_floats(model, dtype)
    return model, data, informed_weight(model, data, sample_weight), dtype


def check_model(model: Any) -> None:
    """Raises a ValueError that says which methods to write, if the model cannot be fitted."""
    has = lambda name: hasattr(model, name)  # noqa: E731
    if isinstance(model, type):
        raise ValueError(f"model: expected an instance, got the class {model.__name__}; call it.")
    if not has("e_step") and not has("log_joint"):
        raise ValueError(
            f"model: {type(model).__name__} has no E step; write log_joint(params, data) -> (n, k), the log joint "
            "density of every row and latent state, or e_step(params, data, sample_weight) -> (stats, log_lik)."
        )
    needs_q = has("e_step") or has("statistics")  # else the statistics are the rows, of which Q is a sum
    if needs_q and not has("m_step") and not has("expected_log_joint"):
        raise ValueError(
            f"model: {type(model).__name__} has no M step; write m_step(params, stats) -> params, or "
            "expected_log_joint(params, stats) -> (), which is then climbed."
        )


def check_arguments(
    model: Any, params: Params, data: Data, sample_weight: Array | None, *, is_whole: bool = True
) -> None:
    """Raises if params do not fit model and data, or concrete data or weights hold what no model can use.

    `is_whole` False: a batch, of which only the rows are looked at.
    """
    if is_whole and not is_here(data):  # first: what only some processes refuse, the others would wait for
        check_alike(model=model, params=params)
    if hasattr(model, "validate"):
        model.validate(params, data)
    check_params(model, params)
    if isinstance(data, Labelled) and hasattr(model, "log_joint"):
        check_known(data, jax.eval_shape(model.log_joint, params, data.data).shape[1], sample_weight)
    if _tree.is_tracing(data, sample_weight):
        return

    def check_rows(rows: Data, sample_weight: Array | None) -> None:
        check_values(model.readable(rows) if hasattr(model, "readable") else rows, sample_weight)
        if hasattr(model, "check_data"):
            model.check_data(rows, sample_weight)

    everywhere(check_rows, unlabelled(data), sample_weight)
    if is_whole and hasattr(model, "check_table"):
        model.check_table(unlabelled(data), sample_weight)


@jax.jit
def _bad_rows(data: Data, sample_weight: Array | None) -> tuple[Array, Array]:
    n = _tree.n_rows(data)
    bad = jnp.zeros(n, bool)
    for leaf in jax.tree.leaves(data):
        bad = bad | jnp.any(~jnp.isfinite(leaf.reshape(n, -1)), 1)
    if sample_weight is not None:
        bad = bad & (sample_weight != 0)
    return jnp.any(bad), bad


def check_values(data: Data, sample_weight: Array | None) -> None:
    """Raises a ValueError that names the first rows with NaN or inf, or with an impossible weight."""
    if sample_weight is not None:
        weight = np.asarray(sample_weight)
        rows = np.flatnonzero(~((weight >= 0) & np.isfinite(weight)))
        if len(rows):
            raise ValueError(
                f"sample_weight: expected finite non-negative weights, got {weight[rows[0]]} in {_name_rows(rows)}."
            )
    with jax.ensure_compile_time_eval():  # the params may be traced
        found, bad = _bad_rows(unlabelled(data), sample_weight)
        found = bool(found)
    if found:
        rows = np.flatnonzero(np.asarray(bad))
        raise ValueError(
            f"data: expected finite values, got NaN or inf in {_name_rows(rows)}; "
            "drop these rows or give them sample_weight 0."
        )


@jax.jit
def _impossible_rows(model: Any, params: Params, data: Data, sample_weight: Array | None) -> Array:
    best = jnp.max(bind(model, data, sample_weight).log_joint(params, present_rows(data, sample_weight)), 1)
    bad = ~(best > -jnp.inf)
    return bad if sample_weight is None else bad & (sample_weight != 0)


def check_support(model: Any, params: Params, data: Data, sample_weight: Array | None) -> None:
    """Raises a ValueError that names the first rows that no state explains: outside the support of a user's density."""
    with jax.ensure_compile_time_eval():
        bad = np.asarray(_impossible_rows(model, params, data, sample_weight))
    if bad.any():
        rows = np.flatnonzero(bad)
        raise ValueError(
            f"data: expected rows that some latent state explains at the start params, got log density −inf or NaN in "
            f"{_name_rows(rows)}; data outside the support of a density cannot be fitted by it."
        )


def _name_rows(rows: np.ndarray) -> str:
    first = ", ".join(str(row) for row in rows[:5])
    return f"row{'s' if len(rows) > 1 else ''} {first}" + (f", … ({len(rows)} in all)" if len(rows) > 5 else "")
