"""What every model and algorithm of `contract.py` must satisfy.

Tests of one case follow one another and share compiled functions: the weighted fit of MAX_ITER iterations in float64
serves most of them, because everything but shapes and max_iter is a leaf. Programs of the tests' own are compiled
quickly rather than well (`quick_jit`); the drivers as users meet them are compiled as users have them compiled, and
give the same numbers.
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ALGORITHMS, CASES, MODELS, Case, N
from jax import export
from jax.flatten_util import ravel_pytree

import jaxem
from jaxem import fitting, loop, protocols
from jaxem.fold import Folded, plan_fold
from jaxem.result import permute_components

MAX_ITER = 300
EPS = np.finfo(np.float64).eps
# One iteration in two orders of summation differs by some 100 eps, 2e-14; a fixed point divides that by 1 - rate,
# 10 at most. The rest is room for other libms.
ROUNDING = 1e-11

_rng = np.random.default_rng(0)
UNEVEN = _rng.uniform(0.5, 1.5, N)
INTEGER = _rng.permutation(np.repeat([0, 1, 2], [N // 4, N // 2, N // 4])).astype(float)  # they sum to N


def for_cases(slow: Callable[[Case], bool] = lambda case: False, algorithms: bool = True) -> pytest.MarkDecorator:
    """Parametrises by case; session scope, so that pytest keeps the tests of one case together.

    Args:
        slow: cases to mark as slow, besides those of the full cross.
        algorithms: False for properties of the model alone.
    """
    cases = CASES if algorithms else [case for case in CASES if case.algorithm is ALGORITHMS[0]]
    marked = [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow or slow(case) else []) for case in cases
    ]
    return pytest.mark.parametrize("case", marked, scope="session")


def is_variant(case: Case) -> bool:
    return case.model.variant


def is_not(*names: str) -> Callable[[Case], bool]:
    return lambda case: case.model.name not in names


def need(model: Any, *methods: str) -> None:
    for method in methods:
        if not hasattr(model, method):
            pytest.skip(f"{type(model).__name__} has no {method}")


# --- shared by the tests


def _quick_options() -> dict[str, Any]:
    """XLA options that compile three times faster, as far as this version has them."""
    options = {}
    for name, value in (("xla_backend_optimization_level", 0), ("xla_cpu_use_fusion_emitters", False)):
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value})(0.0)
        except RuntimeError:
            continue
        options[name] = value
    return options


quick_jit = functools.partial(jax.jit, compiler_options=_quick_options())


@functools.partial(quick_jit, static_argnames=("max_iter", "chunk_size"))
def _fit(model: Any, start: Any, data: Any, weight: Any, algorithm: Any, tol: Any, max_iter: int, chunk_size: Any):
    return jaxem.fit(
        model, start, data, sample_weight=weight, algorithm=algorithm, tol=tol, max_iter=max_iter, chunk_size=chunk_size
    )


def fit(
    case: Case,
    data: Any = None,
    weight: Any = UNEVEN,
    *,
    model: Any = None,
    start: Any = None,
    tol: float = -1.0,
    chunk_size: int | None = None,
) -> jaxem.FitResult:
    """MAX_ITER iterations, unless `tol` says otherwise; quickly compiled."""
    model = case.model.build() if model is None else model
    start = case.model.start() if start is None else start
    data = case.model.data if data is None else data
    return _fit(model, start, data, weight, case.algorithm.build(), tol, MAX_ITER, chunk_size)


def fit_as_users(case: Case, data: Any = None, weight: Any = UNEVEN, **options: Any) -> jaxem.FitResult:
    """A plain call of `jaxem.fit`, with the default rule."""
    options = {"tol": 1e-6, "max_iter": MAX_ITER, "algorithm": case.algorithm.build()} | options
    model, start = options.pop("model", case.model.build()), options.pop("start", case.model.start())
    return jaxem.fit(model, start, case.model.data if data is None else data, sample_weight=weight, **options)


@functools.cache
def fitted(case: Case) -> jaxem.FitResult:
    """At the fixed point, to rounding."""
    return fit(case)


@functools.cache
def stopped(case: Case) -> jaxem.FitResult:
    """By the default rule."""
    return fit(case, tol=1e-6)


def arrays(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def assert_close(actual: Any, expected: Any, tolerance: float = ROUNDING) -> None:
    """Leaf by leaf, relative to the largest element of the leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e), err_msg=jax.tree_util.keystr(path))
        size = np.max(np.abs(e), initial=0, where=np.isfinite(e))
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * size, err_msg=jax.tree_util.keystr(path))


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_same_fit(actual: jaxem.FitResult, expected: jaxem.FitResult, tolerance: float = ROUNDING) -> None:
    """Params, objectives and the number of iterations."""
    assert int(actual.status) == int(expected.status)
    assert int(actual.n_iter) == int(expected.n_iter)
    fields = lambda result: (result.params, result.objective, result.log_lik, result.history)  # noqa: E731
    assert_close(fields(actual), fields(expected), tolerance)


# --- the registry


def test_everything_public_is_registered():
    public = [cls for cls in vars(jaxem).values() if inspect.isclass(cls) and not getattr(cls, "_is_protocol", False)]
    has = lambda cls, *names: all(hasattr(cls, name) for name in names)  # noqa: E731
    models = {cls for cls in public if has(cls, "m_step") and (has(cls, "e_step") or has(cls, "log_joint"))}
    algorithms = {cls for cls in public if has(cls, "step", "monotone")}
    families = {cls for cls in public if has(cls, "estimate", "log_prob", "statistics")}
    built = [entry.build() for entry in MODELS]
    assert models == {type(model) for model in built}
    assert algorithms == {type(entry.build()) for entry in ALGORITHMS}
    assert families == {type(model.family) for model in built if hasattr(model, "family")}
    assert len({case.name for case in CASES}) == len(CASES) == len(MODELS) * len(ALGORITHMS)


# --- the model alone


@quick_jit
def two_arrows(model: Any, params: Any, data: Any, repeated: Any, draws: Any, noise: Any) -> dict[str, Any]:
    """What the model's two arrows say at params, and one iteration later."""
    weight = jnp.asarray(UNEVEN)
    bound = protocols.bind(model, data, weight)
    fold = Folded(bound).e_step
    parts = [jax.tree.map(lambda leaf, s=s: leaf[s], (data, weight)) for s in (slice(13), slice(13, N))]
    stats, log_lik = fold(params, data, weight)
    mode = bound.m_step(params, stats)
    out: dict[str, Any] = {
        "whole": (stats, log_lik),
        "parts": [fold(params, *part) for part in parts],
        "bound_by_weight": protocols.bind(model, data, jnp.asarray(INTEGER)),
        "bound_to_rows": protocols.bind(model, repeated, None),
        "by_weight": fold(params, data, jnp.asarray(INTEGER)),
        "by_rows": fold(params, repeated, None),
        "mode": mode,
    }
    if hasattr(bound, "log_joint"):
        out |= _decomposition(bound, params, mode, data, draws)
    if hasattr(bound, "unconstrain") and hasattr(bound, "expected_log_joint"):
        out |= _surface_at_mode(bound, params, mode, stats, noise)
    return out


def _decomposition(bound: Any, params: Any, other: Any, data: Any, draws: Any) -> dict[str, Any]:
    """Q, and the bound of given responsibilities; states that are switched off take no rows."""
    posterior = jaxem.Soft()(bound.log_joint(params, data))[0]
    log_joint = bound.log_joint(other, data)
    fold = functools.partial(Folded(bound).e_step, params, data, jnp.asarray(UNEVEN))

    def one(draw: Any) -> Any:
        r = jnp.where(posterior > 0, draw, 0)
        r = r / jnp.sum(r, 1, keepdims=True)
        kl = jnp.sum(jax.scipy.special.xlogy(r, r) - jnp.where(r > 0, r * jnp.log(posterior), 0), 1)
        stats, lower_bound = fold(rule=jaxem.Given(r))
        direct = jnp.sum(UNEVEN * jnp.sum(jnp.where(r > 0, r * log_joint, 0), 1))
        q = bound.expected_log_joint(other, stats) if hasattr(bound, "expected_log_joint") else direct
        return {"bound": lower_bound, "gap": jnp.sum(UNEVEN * kl), "q": q, "q_by_rows": direct}

    return {"at_posterior": fold(rule=jaxem.Given(posterior)), **jax.vmap(one)(draws)}


def _surface_at_mode(bound: Any, params: Any, mode: Any, stats: Any, noise: Any) -> dict[str, Any]:
    """Q + log prior in free coordinates, at the M step's output."""
    free = bound.unconstrain(mode)
    flat, unravel = ravel_pytree(free)
    flat_start = ravel_pytree(bound.unconstrain(params))[0]

    def surface(flat: Any) -> Any:
        params = bound.constrain(unravel(flat))
        return bound.expected_log_joint(params, stats) + protocols.log_prior(bound, params)

    return {
        "round_trip": bound.constrain(free),
        "gradient": jax.grad(surface)(flat),
        "gradient_at_start": jax.grad(surface)(flat_start),
        "at_mode": surface(flat),
        "nearby": jax.vmap(lambda step: surface(flat + 1e-3 * step[: flat.size]))(noise),
    }


def repeated_rows(case: Case) -> Any:
    return jax.tree.map(lambda leaf: np.repeat(leaf, INTEGER.astype(int), 0), case.model.data)


@functools.cache
def facts(case: Case) -> dict[str, Any]:
    entry, rng = case.model, np.random.default_rng(1)
    model, params, data, repeated = arrays((entry.build(), entry.start(), entry.data, repeated_rows(case)))
    k = jax.eval_shape(model.log_joint, params, data).shape[1] if hasattr(model, "log_joint") else 1
    draws = rng.dirichlet(np.full(k, 0.5), (20, N))
    return jax.device_get(two_arrows(model, params, data, repeated, draws, rng.normal(size=(8, 1000))))


def fact(case: Case, name: str) -> Any:
    if name not in facts(case):
        pytest.skip("the model lacks the methods for this")
    return facts(case)[name]


@for_cases(algorithms=False)
def test_stats_add_over_chunks(case):
    # two orders of summation of N terms of either sign
    assert_close(jax.tree.map(np.add, *fact(case, "parts")), fact(case, "whole"), 1e-13)


@for_cases(algorithms=False)
def test_integer_weights_are_repeated_rows(case):
    assert_close(fact(case, "bound_by_weight"), fact(case, "bound_to_rows"), 1e-13)
    assert_close(fact(case, "by_weight"), fact(case, "by_rows"), 1e-13)
    by_rows = fit(case, repeated_rows(case), np.ones(N), tol=1e-6)
    assert_same_fit(fit(case, weight=INTEGER, tol=1e-6), by_rows)


@for_cases(algorithms=False)
def test_the_gradient_of_q_plus_log_prior_vanishes_at_the_m_step(case):
    assert_close(fact(case, "round_trip"), fact(case, "mode"), 1e-13)
    # the gradient is a difference of sums over N rows of terms of order 10
    assert np.max(np.abs(fact(case, "gradient"))) < 1e-13 * N * 10
    assert np.max(np.abs(fact(case, "gradient_at_start"))) > 0.1
    # and it is a maximum: steps of 1e-3 cost some N·1e-6
    assert np.max(fact(case, "nearby")) < fact(case, "at_mode") - 1e-8


@for_cases(algorithms=False)
def test_q_of_the_statistics_is_the_sum_over_rows(case):
    np.testing.assert_allclose(fact(case, "q"), fact(case, "q_by_rows"), rtol=1e-13)


@for_cases(algorithms=False)
def test_any_responsibilities_give_a_lower_bound(case):
    """log p(x) = bound(r) + KL(r ‖ posterior), for every r."""
    stats, log_lik = fact(case, "whole")
    assert np.all(fact(case, "bound") < log_lik)
    np.testing.assert_allclose(fact(case, "bound") + fact(case, "gap"), np.full(20, log_lik), rtol=1e-12)
    assert_close(fact(case, "at_posterior"), (stats, log_lik), 1e-13)


# --- the fit


@for_cases()
def test_the_objective_never_falls(case):
    if not case.algorithm.build().monotone:
        pytest.skip("the algorithm does not promise it")
    result = fitted(case)
    history = np.asarray(result.history)
    allowance = 16 * EPS * (UNEVEN.sum() + np.abs(history[:-1]))  # of the status DECREASED
    assert int(result.status) == jaxem.Status.MAX_ITER and np.all(np.isfinite(history))
    assert np.all(np.diff(history) >= -allowance)
    assert history[-1] > history[0] + 1


@for_cases()
def test_the_objective_is_that_of_the_params_returned(case):
    result = stopped(case)
    history, n_iter = np.asarray(result.history), int(result.n_iter)
    assert int(result.status) == jaxem.Status.CONVERGED and 2 < n_iter < MAX_ITER
    assert history.shape == (MAX_ITER + 1,)
    np.testing.assert_array_equal(np.isnan(history), np.arange(MAX_ITER + 1) > n_iter)
    assert history[n_iter] == result.objective
    again = fit(case, start=result.params, tol=-1.0)
    np.testing.assert_allclose(again.history[0], result.objective, rtol=1e-14)
    prior = protocols.log_prior(result.model, result.params)
    np.testing.assert_allclose(result.log_lik + prior, result.objective, rtol=1e-14)
    if hasattr(result.model, "log_prob"):
        rows = np.asarray(result.model.log_prob(result.params, arrays(case.model.data)))
        np.testing.assert_allclose(result.log_lik, rows @ UNEVEN, rtol=1e-13)
    if isinstance(case.algorithm.build(), jaxem.EM):
        assert int(result.n_evals) == n_iter + 1
        rises = np.diff(history[: n_iter + 1]) / UNEVEN.sum()
        assert rises[-1] <= 1e-6 and np.all(rises[:-1] > 1e-6)
        np.testing.assert_array_equal(fitted(case).history[: n_iter + 1], history[: n_iter + 1])


@for_cases()
def test_too_few_iterations_give_max_iter(case):
    result = after(case, 2, max_iter=2)
    assert int(result.status) == jaxem.Status.MAX_ITER
    assert int(result.n_iter) == 2 and result.history.shape == (3,)
    assert not bool(result.converged) and not bool(result.failed)
    with pytest.raises(RuntimeError, match="MAX_ITER"):
        result.check()
    assert_close(result.history, fitted(case).history[:3])


@for_cases(slow=is_not("full"))
def test_jit_equals_eager(case):
    with jax.disable_jit():
        eager = fit_as_users(case, tol=0.0, max_iter=2)
    assert_same_fit(eager, after(case, 2, max_iter=2))


def bootstraps(case: Case, n_lanes: int) -> Any:
    """Data of the case resampled, leading axis of lanes."""
    rows = np.random.default_rng(4).integers(0, N, (n_lanes, N))
    return jax.tree.map(lambda leaf: leaf[rows], case.model.data)


def stacked(tree: Any, n_lanes: int) -> Any:
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (n_lanes, *np.shape(leaf))), tree)


@functools.cache
def lanes(case: Case) -> tuple[Any, list[jaxem.FitResult]]:
    """Four problems, the third with a NaN, and each of the others fitted by itself."""
    data = bootstraps(case, 4)
    alone = [fit(case, jax.tree.map(lambda leaf, i=i: leaf[i], data), tol=1e-6) for i in range(4)]
    jax.tree.leaves(data)[0][2, 5] = np.nan
    return data, alone


def assert_lanes(case: Case, result: jaxem.FitResult) -> None:
    data, alone = lanes(case)
    for i, expected in enumerate(alone):
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], replace(result, lane_efficiency=None))
        if i == 2:
            assert int(lane.status) == jaxem.Status.NONFINITE and bool(lane.failed) and not bool(lane.converged)
            assert int(lane.n_iter) == 0 and np.isnan(lane.objective)
            assert_close(lane.params, arrays(case.model.start()))
        else:
            assert_same_fit(lane, expected)


@for_cases(slow=is_variant)
def test_vmap_equals_a_loop_and_nan_stays_in_its_lane(case):
    data, _ = lanes(case)

    @quick_jit
    @jax.vmap
    def fit_lane(start: Any, data: Any, weight: Any) -> jaxem.FitResult:
        return fit_as_users(case, data, weight, start=start)

    assert_lanes(case, fit_lane(stacked(case.model.start(), 4), data, stacked(UNEVEN, 4)))


@for_cases(slow=is_not("full"))
@pytest.mark.parametrize("plan", ["sequential", "lanes"])
def test_a_batch_equals_a_loop_and_nan_stays_in_its_lane(case, plan):
    data, _ = lanes(case)
    result = jaxem.fit_batch(
        case.model.build(), stacked(case.model.start(), 4), data, sample_weight=stacked(UNEVEN, 4),
        algorithm=case.algorithm.build(), tol=1e-6, max_iter=MAX_ITER, plan=plan,
    )  # fmt: skip
    assert_lanes(case, result)
    with pytest.raises(RuntimeError, match="NONFINITE"):
        result.check()
    if hasattr(result.model, "component_axes") and hasattr(result.params, "weights"):
        weights = np.asarray(result.ordered().params.weights)
        np.testing.assert_array_equal(weights, -np.sort(-np.asarray(result.params.weights), 1))


# --- traces

_events: list[str] = []


def _note(event: str, duration_secs: float, **about: Any) -> None:
    _events.append(f"{event.rsplit('/', 1)[-1]} of {about.get('fun_name')}")


jax.monitoring.register_event_duration_secs_listener(_note)


def compiler_events(run: Callable[[], Any], kinds: str = "jaxpr_trace|backend_compile") -> list[str]:
    """Traces and compilations, of any function, while `run` runs."""
    _events.clear()
    jax.block_until_ready(run())
    return [event for event in _events if re.match(kinds, event)]


def other_values(tree: Any, kind: Callable[[Any], Any]) -> Any:
    """Every leaf with a new value, as an array or number of this kind; booleans rotated."""

    def change(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return np.roll(leaf, 1) if leaf.dtype == bool else kind(leaf * 1.03125)

    return jax.tree.map(change, tree)


def rebuilt(case: Case, kind: Callable[[Any], Any], tol: Any, valid_below: Any) -> Callable[[], jaxem.FitResult]:
    """A call of `fit` in which every object is new and every leaf has a new value, of this kind."""
    model, start, data, weight, algorithm = (
        other_values(tree, kind)
        for tree in (case.model.build(), case.model.start(), case.model.data, UNEVEN, case.algorithm.build())
    )
    options = {"tol": tol, "algorithm": algorithm, "derivative": jaxem.Implicit(valid_below=valid_below)}
    return lambda: fit_as_users(case, data, weight, model=model, start=start, **options)


@for_cases()
def test_rebuilt_objects_and_new_values_are_not_traced_again(case):
    assert_same_fit(fit_as_users(case), stopped(case))
    in_numpy = rebuilt(case, np.asarray, 1e-5, 0.1)
    in_jax = rebuilt(case, jnp.asarray, np.float64(1e-4), jnp.asarray(0.2, np.float64))
    assert compiler_events(in_numpy) == []
    assert compiler_events(in_jax) == []


def count_traces(case: Case, run: Callable[[], Any]) -> int:
    """How often the driver is traced while `run` runs: each trace calls the algorithm's step."""
    kind = type(case.algorithm.build())
    with mock.patch.object(kind, "step", autospec=True, side_effect=kind.step) as step:
        run()
    return step.call_count


@for_cases(slow=is_not("full", "full_prior"))
def test_leaves_of_another_precision_or_weak_type_are_not_traced_again(case):
    fit_as_users(case)
    one = lambda leaf: leaf.ndim == 0  # noqa: E731
    in_python = rebuilt(case, lambda leaf: leaf.item() if one(leaf) else leaf, 1e-5, 0.1)
    weak = lambda leaf: jnp.asarray(leaf.item()) if one(leaf) else leaf  # noqa: E731
    in_weak_types = rebuilt(case, weak, jnp.asarray(1e-3), jnp.asarray(0.1))
    single = lambda leaf: leaf if leaf.shape[:1] == (N,) else leaf.astype(np.float32)  # noqa: E731
    in_single = rebuilt(case, single, np.float32(1e-3), jnp.float32(0.1))
    for run in (in_python, in_weak_types, in_single):
        assert count_traces(case, run) == 0


@for_cases(slow=is_not("full", "full_prior"))
def test_whole_numbers_are_not_traced_again(case):
    fit_as_users(case)
    assert count_traces(case, lambda: fit_as_users(case, tol=0)) == 0
    whole = lambda leaf: 5 + int(leaf) if np.ndim(leaf) == 0 else leaf  # noqa: E731
    model = jax.tree.map(whole, case.model.build())
    assert count_traces(case, lambda: fit_as_users(case, model=model)) == 0


@for_cases(slow=is_not("full_1d"))
def test_a_second_gradient_is_not_traced_again(case):
    need_fixed_point(case)

    def run(factor: float) -> Any:
        def loss(data: Any) -> Any:
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(fit_as_users(case, data, tol=factor * 1e-6).params))

        return jax.grad(loss)(jax.tree.map(lambda leaf: factor * leaf, case.model.data))

    run(1.0)
    assert compiler_events(lambda: run(1.25), "backend_compile") == []


# --- dtypes


def assert_all_floats(tree: Any, dtype: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == dtype, jax.tree_util.keystr(path)
        assert not getattr(leaf, "weak_type", False), jax.tree_util.keystr(path)


@for_cases()
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(case, dtype):
    data = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), case.model.data)

    def everything(data: Any, key: Any) -> Any:
        result = fit_as_users(case, data)
        model, params = result.model, result.params
        answers = [case.model.build().init(key, data)] if hasattr(model, "init") else []
        answers += [model.sample(params, key, 5)] if hasattr(model, "sample") else []
        names = ("log_joint", "log_prob", "responsibilities", "predict", "aic", "bic", "icl")
        return result, answers + [getattr(model, name)(params, data) for name in names if hasattr(model, name)]

    result, answers = jax.eval_shape(everything, data, jax.random.key(0))
    assert_all_floats((result, answers), dtype)
    assert result.status.dtype == result.n_iter.dtype == result.n_evals.dtype == jnp.int32
    if dtype == np.float32:
        slope = jax.grad(lambda data: jnp.sum(fit_as_users(case, data).params[0]))
        assert_all_floats(jax.eval_shape(slope, data), dtype)


@for_cases(slow=is_variant)
def test_integers_are_fitted_in_the_default_float(case):
    data = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.int16), case.model.data)
    assert_all_floats(jax.eval_shape(functools.partial(fit_as_users, case), data), np.float64)


@for_cases(slow=is_variant)
def test_float32_agrees_with_float64(case):
    data = jax.tree.map(lambda leaf: leaf.astype(np.float32), case.model.data)
    # rises are rounded by 2 eps·|objective per unit|, 1e-6: a coarser tol stops both at the same iteration or the next
    single, double = fit(case, data, tol=1e-4), fit(case, tol=1e-4)
    assert_all_floats(single, np.float32)
    assert int(single.status) == jaxem.Status.CONVERGED
    assert abs(int(single.n_iter) - int(double.n_iter)) <= 1
    both = min(int(single.n_iter), int(double.n_iter)) + 1
    # histories per unit: rounding of N terms of order 10 in float32
    error = np.abs(np.asarray(single.history) - np.asarray(double.history))[:both]
    assert np.max(error) < 20 * np.finfo(np.float32).eps * np.abs(double.objective)
    assert_close(single.params, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), double.params), 1e-2)


# --- symmetries


@for_cases()
def test_a_relabelled_start_gives_the_relabelled_answer(case):
    model, start, result = case.model.build(), case.model.start(), stopped(case)
    need(model, "component_axes", "n_components")
    order = np.roll(np.arange(model.n_components), 1)  # not its own inverse
    relabel = lambda params: permute_components(params, model.component_axes(), order)  # noqa: E731
    model = model.relabelled(order) if hasattr(model, "relabelled") else model
    other = fit(case, model=model, start=relabel(start), tol=1e-6)
    assert_same_fit(replace(other, model=None), replace(result, model=None, params=relabel(result.params)))


@for_cases()
@pytest.mark.parametrize("powers", [(-6, 6), (6, -6), (-6, -6), (6, 6), (0, -3)], ids=str)
def test_the_fit_scales_with_the_columns(case, powers):
    if case.model.moved is None:
        pytest.skip("the model has no scale symmetry")
    d = jax.tree.leaves(case.model.data)[0].shape[1]
    if case.model.one_scale:
        powers = (powers[1],) * d
    scale, none = 10.0 ** np.array(powers[:d]), np.zeros(d)
    model, start, data = case.model.moved(case.model.build(), case.model.start(), case.model.data, scale, none)
    moved, plain = fit(case, data, model=model, start=start, tol=1e-6), stopped(case)
    assert int(moved.n_iter) == int(plain.n_iter) and int(moved.status) == int(plain.status)
    back = case.model.moved(case.model.build(), moved.params, case.model.data, 1 / scale, none)[1]
    assert_close(back, plain.params)
    rises = [np.diff(result.history[: int(plain.n_iter) + 1]) for result in (moved, plain)]
    np.testing.assert_allclose(*rises, rtol=0, atol=1e-13 * N * 20)  # the objectives are of order 20 a row at most


@for_cases()
def test_the_fit_moves_with_the_data(case):
    if case.model.moved is None:
        pytest.skip("the model has no shift symmetry")
    d = jax.tree.leaves(case.model.data)[0].shape[1]
    one, shift = np.ones(d), np.array([1e4, -3e4])[:d]
    model, start, data = case.model.moved(case.model.build(), case.model.start(), case.model.data, one, shift)
    moved, plain = fit(case, data, model=model, start=start, tol=1e-6), stopped(case)
    assert int(moved.n_iter) == int(plain.n_iter)
    back = case.model.moved(case.model.build(), moved.params, case.model.data, one, -shift)[1]
    assert_close(back, plain.params, 1e-10)  # the data were rounded at 3e4: by 4e-12


# --- derivatives


def need_fixed_point(case: Case) -> None:
    if not case.algorithm.build().ends_at_em_fixed_point:
        pytest.skip("the algorithm does not end at a fixed point of EM")


def is_float(leaf: Any) -> bool:
    return np.issubdtype(np.asarray(leaf).dtype, np.floating)


def split_model(case: Case) -> tuple[list[np.ndarray], Callable[[Any], Any], list[str]]:
    """Floating hyper-parameters, a function that puts them back, and their names."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(case.model.build())
    floats = [np.asarray(leaf) for _, leaf in leaves if is_float(leaf)]
    names = [jax.tree_util.keystr(path) for path, leaf in leaves if is_float(leaf)]

    def join(values: Any) -> Any:
        rest = iter(values)
        return jax.tree.unflatten(tree, [next(rest) if is_float(leaf) else leaf for _, leaf in leaves])

    return floats, join, names


def answer(case: Case, arguments: Any, run: Callable[..., jaxem.FitResult] = fit_as_users, **options: Any) -> Any:
    """What is differentiated: (hyper-parameters, start, data, weights) -> params, objective, log_lik."""
    floats, start, data, weight = arguments
    result = run(case, data, weight, model=split_model(case)[1](floats), start=start, tol=-1.0, **options)
    return result.params, result.objective, result.log_lik


def directions(case: Case) -> list[tuple[str, Any]]:
    """Two directions for the data, one for the weights, one for each hyper-parameter, in relative size."""
    floats, _, names = split_model(case)
    rng = np.random.default_rng(5)
    zero = jax.tree.map(np.zeros_like, (floats, case.model.start(), case.model.data, UNEVEN))
    found = []
    for i in range(2):
        step = jax.tree.map(lambda leaf: leaf.std(0) * rng.normal(size=leaf.shape), case.model.data)
        found.append((f"data {i}", (zero[0], zero[1], step, zero[3])))
    found.append(("sample_weight", (*zero[:3], rng.normal(size=N))))
    for i, name in enumerate(names):
        step = [leaf * rng.uniform(0.5, 1.5, leaf.shape) if i == j else zero[0][j] for j, leaf in enumerate(floats)]
        found.append((name, (step, *zero[1:])))
    return found


@functools.cache
def derivative_program(case: Case) -> Callable[[Any, Any, Any], Any]:
    """(arguments, tangents, cotangent) -> J·tangent for each, and Jᵀ·cotangent: one compilation for both modes."""

    @quick_jit
    def both(arguments: Any, tangents: Any, cotangent: Any) -> Any:
        _, push = jax.linearize(functools.partial(answer, case), arguments)
        pull = jax.linear_transpose(push, arguments)
        return jax.vmap(push)(tangents), pull(cotangent)[0]

    return both


def derivatives(case: Case, data: Any, weight: Any) -> tuple[Any, Any, Any, Any]:
    """Tangents, cotangent, J·tangents, Jᵀ·cotangent."""
    arguments = arrays((split_model(case)[0], case.model.start(), data, weight))
    tangents = jax.tree.map(lambda *leaves: np.stack(leaves), *[step for _, step in directions(case)])
    shapes = jax.eval_shape(functools.partial(answer, case), arguments)
    rng = np.random.default_rng(6)
    cotangent = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape)), shapes)
    pushed, pulled = derivative_program(case)(arguments, tangents, cotangent)
    return tangents, cotangent, pushed, pulled


def inner(a: Any, b: Any) -> float:
    return sum(float(np.sum(np.asarray(x) * np.asarray(y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@for_cases()
def test_the_derivative_is_that_of_finite_differences(case):
    need_fixed_point(case)
    arguments = (split_model(case)[0], case.model.start(), case.model.data, UNEVEN)
    _, _, pushed, _ = derivatives(case, case.model.data, UNEVEN)
    value = answer(case, arguments, run=fit)
    h = 1e-3

    def at(step: Any, multiple: int) -> Any:
        moved = jax.tree.map(lambda leaf, part: leaf + multiple * h * part, arguments, step)
        return answer(case, moved, run=fit)

    for i, (name, step) in enumerate(directions(case)):
        differences = jax.tree.map(
            lambda a, b, c, d: (8 * (np.asarray(b) - np.asarray(c)) - (np.asarray(a) - np.asarray(d))) / (12 * h),
            *[at(step, multiple) for multiple in (2, 1, -1, -2)],
        )
        tangent = jax.tree.map(lambda leaf, i=i: leaf[i], pushed)
        for t, fd, v in zip(*map(jax.tree.leaves, (tangent, differences, value)), strict=True):
            # Truncation h⁴ = 1e-12 times a fifth derivative; rounding of the fixed points, 10·ROUNDING, over h.
            scale, size = np.max(np.abs(fd)), np.max(np.abs(v))
            np.testing.assert_allclose(t, fd, rtol=0, atol=1e-6 * scale + 1e-10 * size, err_msg=name)
        assert np.max(np.abs(jax.tree.leaves(differences)[0])) > 0 or name.endswith("floor"), name


@for_cases()
def test_forward_and_reverse_derivatives_agree(case):
    need_fixed_point(case)
    tangents, cotangent, pushed, pulled = derivatives(case, case.model.data, UNEVEN)
    for i, (name, _) in enumerate(directions(case)):
        tangent, image = (jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (tangents, pushed))
        np.testing.assert_allclose(inner(pulled, tangent), inner(cotangent, image), rtol=1e-9, err_msg=name)
    for leaf in jax.tree.leaves(pulled[1]):
        np.testing.assert_array_equal(leaf, 0)  # the start has no influence


# --- rows that do not exist


def with_absent_rows(case: Case, *fill: float) -> Any:
    """The data with rows of weight zero overwritten."""
    absent = INTEGER == 0

    def overwrite(leaf: np.ndarray) -> np.ndarray:
        leaf = leaf.copy()
        leaf[absent] = np.resize(fill, leaf[absent].shape)
        return leaf

    return jax.tree.map(overwrite, case.model.data)


@for_cases()
def test_rows_of_weight_zero_are_never_looked_at(case):
    plain, unreadable = fit(case, weight=INTEGER), fit(case, with_absent_rows(case, np.nan, np.inf, -np.inf), INTEGER)
    assert_same_bits(unreadable, plain)
    assert np.isfinite(plain.objective)
    assert_same_fit(fit(case, with_absent_rows(case, np.nan), INTEGER, chunk_size=7), plain)
    assert bool(fit_as_users(case, with_absent_rows(case, np.inf), INTEGER).converged)  # no complaint about the data


@for_cases()
def test_rows_of_weight_zero_have_no_derivative(case):
    need_fixed_point(case)
    _, _, pushed, pulled = derivatives(case, case.model.data, INTEGER)
    _, _, pushed_unreadable, pulled_unreadable = derivatives(case, with_absent_rows(case, np.nan, np.inf), INTEGER)
    assert_same_bits(pushed_unreadable, pushed)
    assert_same_bits(pulled_unreadable, pulled)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((pushed, pulled)))
    for leaf in jax.tree.leaves(pulled[2]):
        np.testing.assert_array_equal(leaf[INTEGER == 0], 0)


@for_cases(slow=is_variant)
def test_nothing_depends_on_the_weight_of_a_row_that_is_never_looked_at(case):
    need_fixed_point(case)
    _, _, _, pulled = derivatives(case, with_absent_rows(case, np.nan), INTEGER)
    np.testing.assert_array_equal(pulled[3][INTEGER == 0], 0)


# --- how the work is cut


@for_cases()
def test_chunks_do_not_change_the_answer(case):
    assert_same_fit(fit(case, chunk_size=7, tol=1e-6), stopped(case))


@for_cases(slow=is_variant)
def test_chunks_without_weights_do_not_change_the_answer(case):
    whole = fit(case, weight=np.ones(N), tol=1e-6)
    assert_same_fit(fit(case, weight=None, tol=1e-6), whole)
    assert_same_fit(fit(case, weight=None, chunk_size=5, tol=1e-6), whole)


def on_four_devices(tree: Any, kind: str = "auto") -> Any:
    """Rows cut in four; "one of two": cut in two, each half on two devices."""
    axis_type = jax.sharding.AxisType.Explicit if kind == "explicit" else jax.sharding.AxisType.Auto
    shape, names = ((4,), ("rows",)) if kind in ("auto", "explicit") else ((2, 2), ("rows", "more"))
    mesh = jax.make_mesh(shape, names, axis_types=(axis_type,) * len(names))
    rows = jax.NamedSharding(mesh, jax.P(names) if kind == "both of two" else jax.P("rows"))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, rows), tree)


@for_cases(slow=is_variant)
def test_four_devices_equal_one(case):
    data, weight = on_four_devices((case.model.data, UNEVEN))
    assert len(jax.tree.leaves(data)[0].sharding.device_set) == 4
    assert_same_fit(fit_as_users(case, data, weight, chunk_size=3), stopped(case))


@for_cases(slow=is_not("full"))
@pytest.mark.parametrize(
    ("mesh", "weight", "chunk_size"),
    [
        ("auto", None, None),
        ("auto", "host", None),
        ("explicit", None, None),
        ("explicit", "sharded", 3),
        pytest.param("auto", None, 3, marks=pytest.mark.slow),
        pytest.param("one of two", "sharded", 3, marks=pytest.mark.slow),
        pytest.param("both of two", "sharded", None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_four_devices_equal_one_however_the_data_lie(case, mesh, weight, chunk_size):
    data = on_four_devices(case.model.data, mesh)
    weights = {None: None, "host": UNEVEN, "sharded": on_four_devices(UNEVEN, mesh)}[weight]
    expected = fit(case, weight=np.ones(N), tol=1e-6) if weights is None else stopped(case)
    assert_same_fit(fit_as_users(case, data, weights, chunk_size=chunk_size), expected)


@for_cases(slow=is_not("diagonal"))
@pytest.mark.parametrize("cut", ["chunks", "auto", "explicit"])
def test_the_gradient_does_not_depend_on_how_the_work_is_cut(case, cut):
    need_fixed_point(case)
    _, cotangent, _, pulled = derivatives(case, case.model.data, UNEVEN)
    floats, start, data, weight = arrays((split_model(case)[0], case.model.start(), case.model.data, UNEVEN))
    chunk_size = 7 if cut == "chunks" else None

    def loss(data: Any, weight: Any) -> Any:
        found = answer(case, (floats, start, data, weight), chunk_size=chunk_size)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, cotangent, found)))

    if cut != "chunks":
        data, weight = on_four_devices((case.model.data, UNEVEN), cut)
    slope = jax.grad(loss, (0, 1))
    slope = slope if cut == "auto" else quick_jit(slope)  # eager gradients on explicit axes need jax.set_mesh
    assert_close(slope(data, weight), pulled[2:], 1e-9)


@for_cases(slow=is_not("full"))
def test_sharded_data_are_not_gathered(case):
    data, weight = on_four_devices((case.model.data, UNEVEN))
    plan = plan_fold(data, None)
    options = fitting.make_options(case.algorithm.build(), 1e-6, MAX_ITER, jaxem.Implicit(), None, plan)
    model, start, options = arrays((case.model.build(), case.model.start(), options))
    text = str(fitting._fit.lower(model, start, data, weight, options).compile().as_text())
    shapes = re.findall(r"\w+\[([\d,]*)\]\S* all-gather\(", text)
    gathered = [np.prod([int(size) for size in shape.split(",") if size]) for shape in shapes]
    assert "all-reduce" in text and all(size < N for size in gathered), gathered


# --- platforms, paths, splits


@for_cases(slow=is_variant)
def test_the_fit_lowers_for_cuda_and_tpu(case):
    floats, join, _ = split_model(case)

    def both(floats: Any, start: Any, data: Any, weight: Any) -> Any:
        def objective(floats: Any, data: Any, weight: Any) -> Any:
            result = fit_as_users(case, data, weight, model=join(floats), start=start)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(result.params)), result

        return jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(floats, data, weight)

    in_float32 = lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.float32)  # noqa: E731
    arguments = jax.tree.map(in_float32, (floats, case.model.start(), case.model.data, UNEVEN))
    exported = export.export(jax.jit(both), platforms=("cuda", "tpu"))(*arguments)
    assert set(exported.platforms) == {"cuda", "tpu"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watched:
    """A model whose fast path is trusted outside a radius about some params: −1 everywhere, inf nowhere."""

    model: Any
    centre: Any
    radius: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        found = getattr(self.model, name)
        return self._localised if name == "localised" else found

    def _localised(self) -> "Watched":
        return replace(self, model=self.model.localised(), centre=self.model.to_local(self.centre))

    def bind(self, data: Any, sample_weight: Any) -> "Watched":
        return replace(self, model=protocols.bind(self.model, data, sample_weight))

    def trusted(self, params: Any) -> Any:
        return distance(params, self.centre) > self.radius


def distance(a: Any, b: Any) -> Any:
    parts = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), a, b)
    return functools.reduce(jnp.maximum, jax.tree.leaves(parts))


TOTAL = 60  # iterations to split


@quick_jit
def _advance(state: Any, model: Any, data: Any, weight: Any, algorithm: Any, n_iter: Any, tol: Any) -> loop.LoopState:
    return loop.advance(state, model, data, weight, algorithm=algorithm, stop=loop.Objective(tol), n_iter=n_iter)


@functools.partial(quick_jit, static_argnames="max_iter")
def _begin(model: Any, params: Any, data: Any, weight: Any, algorithm: Any, max_iter: int) -> Any:
    bound = protocols.bind(model, data, weight)
    return loop.start(bound, params, data, weight, algorithm=algorithm, max_iter=max_iter), bound


def steps(case: Case, radius: float, split: list[int], tol: float, max_iter: int = TOTAL) -> Any:
    """The state after calls of `advance` with these numbers of iterations, and the bound model."""
    model = Watched(case.model.build(), case.model.start() if radius < 0 else fitted(case).params, radius)
    start, data, weight = arrays((case.model.start(), case.model.data, UNEVEN))
    state, bound = _begin(model, start, data, weight, case.algorithm.build(), max_iter)
    for n_iter in split:
        state = _advance(state, bound, data, weight, case.algorithm.build(), n_iter, tol)
    return state, bound


def after(case: Case, n_iter: int, max_iter: int = TOTAL) -> jaxem.FitResult:
    return loop.finish(*steps(case, -1.0, [n_iter], 0.0, max_iter))


def radius_of(case: Case, path: str) -> float:
    """ "midway" is crossed after the second iteration, or a little later."""
    if path != "midway":
        return {"fast": -1.0, "stable": np.inf}[path]
    return 0.99 * float(distance(after(case, 2).params, fitted(case).params))


@for_cases()
def test_the_stable_path_gives_the_answer_of_the_fast_path(case):
    need(case.model.build(), "trusted", "recentred")
    plain = stopped(case)
    assert int(plain.n_iter) < TOTAL
    for path in ("fast", "stable", "midway"):
        state, bound = steps(case, radius_of(case, path), [TOTAL], 1e-6)
        result = loop.finish(state, bound)
        assert int(state.path) == (path != "fast")
        if isinstance(case.algorithm.build(), jaxem.EM):  # refused candidates, and the one stepped back to
            again = {"fast": 0, "stable": 1, "midway": 2}[path]
            assert int(result.n_evals) == int(result.n_iter) + 1 + again
        history = jnp.full(MAX_ITER + 1, jnp.nan).at[: TOTAL + 1].set(result.history)
        assert_same_fit(replace(result, history=history), plain)


@for_cases()
@pytest.mark.parametrize("tol", [-1.0, 1e-6])
@pytest.mark.parametrize("path", ["fast", "stable", "midway"])
def test_any_split_of_the_iterations_gives_the_same_bits(case, path, tol):
    radius = radius_of(case, path)
    whole = steps(case, radius, [TOTAL], tol)[0]
    if tol < 0:
        assert int(whole.n_iter) == TOTAL + 1
    else:
        assert int(whole.status) == jaxem.Status.CONVERGED
    for split in ([1] * TOTAL, [7, 13, TOTAL - 20], [0, 5, 0, 0, TOTAL - 5], [TOTAL, 3]):
        assert_same_bits(steps(case, radius, split, tol)[0], whole)


# --- what users ask of a fitted model


@for_cases(algorithms=False)
def test_ordered_relabels_params_and_model(case):
    result = stopped(case)
    need(result.model, "component_axes", "n_components", "log_prob")
    k, data = result.model.n_components, arrays(case.model.data)
    weights = np.asarray(result.params.weights)
    by_weight = result.ordered()
    np.testing.assert_array_equal(by_weight.params.weights, -np.sort(-weights))
    assert_same_bits(result.ordered("weight"), by_weight)
    order = np.roll(np.arange(k), 1)
    by_rank = result.ordered(by=lambda params: jnp.argsort(order))
    assert_same_bits(by_rank.params, permute_components(result.params, result.model.component_axes(), order))
    assert_same_bits(result.ordered(by=lambda params: params.weights).params.weights, np.sort(weights))
    for other in (by_weight, by_rank):
        np.testing.assert_allclose(other.model.log_prob(other.params, data), result.model.log_prob(result.params, data))
        prior = protocols.log_prior(result.model, result.params)
        np.testing.assert_allclose(protocols.log_prior(other.model, other.params), prior, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(other.history, result.history)
    with pytest.raises(ValueError, match="by"):
        result.ordered("size")


@quick_jit
def _ask(model: Any, params: Any, data: Any, unreadable: Any, repeated: Any) -> dict[str, Any]:
    have = lambda *names: [name for name in names if hasattr(model, name)]  # noqa: E731
    criteria = have("aic", "bic", "icl")
    found = {name: getattr(model, name)(params, data) for name in criteria}
    found |= {name: getattr(model, name)(params, data) for name in have("log_prob", "responsibilities", "predict")}
    weight = jnp.asarray(INTEGER)
    by_weight = {name: getattr(model, name)(params, unreadable, sample_weight=weight) for name in criteria}
    by_rows = {name: getattr(model, name)(params, repeated) for name in criteria}
    return found | {"by_weight": by_weight, "by_rows": by_rows}


@functools.cache
def answers(case: Case) -> dict[str, Any]:
    """What the fitted model says of its data."""
    result = stopped(case)
    return jax.device_get(
        _ask(result.model, result.params, case.model.data, with_absent_rows(case, np.nan), repeated_rows(case))
    )


@for_cases(algorithms=False)
def test_responsibilities_are_a_distribution(case):
    result = stopped(case)
    need(result.model, "responsibilities", "predict")
    r, labels = answers(case)["responsibilities"], answers(case)["predict"]
    assert r.shape == (N, result.model.n_components) and np.all(r >= 0)
    np.testing.assert_allclose(r.sum(1), 1, rtol=1e-14)
    np.testing.assert_array_equal(labels, r.argmax(1))
    assert np.issubdtype(labels.dtype, np.integer)
    active = result.model.active
    if active is not None:
        np.testing.assert_array_equal(r[:, ~np.asarray(active)], 0)
        np.testing.assert_array_equal(np.asarray(result.params.weights)[~np.asarray(active)], 0)


@for_cases(algorithms=False)
def test_scores_are_those_of_scikit_learn(case):
    if case.model.reference is None:
        pytest.skip("scikit-learn has no such model")
    result, x, found = stopped(case), case.model.data, answers(case)
    other = case.model.reference(result.model, result.params)
    np.testing.assert_allclose(found["log_prob"], other.score_samples(x), rtol=1e-11)
    proba = other.predict_proba(x)
    active = np.ones(proba.shape[1], bool) if result.model.active is None else np.asarray(result.model.active)
    np.testing.assert_allclose(found["responsibilities"][:, active], proba, atol=1e-12)
    np.testing.assert_allclose(found["aic"], other.aic(x), rtol=1e-12)
    np.testing.assert_allclose(found["bic"], other.bic(x), rtol=1e-12)
    entropy = -np.sum(np.where(proba > 0, proba * np.log(np.where(proba > 0, proba, 1)), 0))
    np.testing.assert_allclose(found["icl"], other.bic(x) + 2 * entropy, rtol=1e-12)
    assert int(result.model.n_parameters(result.params)) == other._n_parameters()


@for_cases(algorithms=False)
def test_weighted_criteria_are_those_of_repeated_rows(case):
    need(case.model.build(), "aic", "bic", "icl")
    found = answers(case)
    for name, by_rows in found["by_rows"].items():
        np.testing.assert_allclose(found["by_weight"][name], by_rows, rtol=1e-13)


@for_cases(algorithms=False)
def test_samples_have_the_moments_of_the_model(case):
    if case.model.moments is None:
        pytest.skip("no moments in closed form")
    result, n = stopped(case), 20_000
    x, z = map(np.asarray, result.model.sample(result.params, jax.random.key(0), n))
    mean, covariance = case.model.moments(result.params)
    d, k = len(mean), result.model.n_components
    assert x.shape == (n, d) and z.shape == (n,)
    # five standard errors; that of a covariance is at most √(kurtosis/n)·σσ, with the kurtosis of mixtures below 3
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x.mean(0) - mean) < 5 * sd / np.sqrt(n))
    assert np.all(np.abs(np.cov(x.T).reshape(d, d) - covariance) < 5 * np.sqrt(3 / n) * np.outer(sd, sd))
    weights = np.asarray(result.params.weights)
    share = np.bincount(z, minlength=k) / n
    assert np.all(np.abs(share - weights) <= 5 * np.sqrt(weights * (1 - weights) / n))
    for j in np.flatnonzero(weights):
        own = x[z == j]
        gap = np.abs(own.mean(0) - np.asarray(result.params.components.mean)[j])
        assert np.all(gap < 5 * own.std(0) / np.sqrt(len(own)))
