"""The contracts of every model and algorithm: traces; dtypes; symmetries."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import Case, N
from contract_cases import (
    UNEVEN,
    arrays,
    assert_close,
    assert_same_fit,
    em_first,
    fit,
    fit_as_users,
    for_cases,
    is_not,
    is_variant,
    need,
    need_fixed_point,
    stopped,
    with_floats,
)

import jaxem
from jaxem.contracts import capabilities as ask
from jaxem.contracts.result import permute_components

# --- traces


_events: list[str] = []


def _note(event: str, duration_secs: float, **about: Any) -> None:
    _events.append(f"{event.rsplit('/', 1)[-1]} of {about.get('fun_name')}")


jax.monitoring.register_event_duration_secs_listener(_note)


def compilations(run: Callable[[], Any]) -> list[str]:
    """What is compiled, of any function, while `run` runs; a helper that fell out of jax's caches may be retraced."""
    _events.clear()
    jax.block_until_ready(run())
    return [event for event in _events if event.startswith("backend_compile")]


def other_values(tree: Any, kind: Callable[[Any], Any]) -> Any:
    """Every leaf with a new value, as an array or number of this kind; booleans rotated."""

    def change(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return np.roll(leaf, 1) if leaf.dtype == bool else kind(leaf * 1.03125)

    return jax.tree.map(change, tree)


def other_start(case: Case, model: Any, kind: Callable[[Any], Any]) -> Any:
    """A start with new values that this model allows: of the free coordinates."""
    start = case.model.start()
    model = ask.holding(arrays(model), arrays(start))
    if not hasattr(model, "constrain"):
        return other_values(start, kind)
    free = jax.tree.map(lambda leaf: leaf * 1.03125, model.unconstrain(arrays(start)))
    return jax.tree.map(lambda leaf: kind(np.asarray(leaf)), model.constrain(free))


def rebuilt(case: Case, kind: Callable[[Any], Any], tol: Any, valid_below: Any) -> Callable[[], jaxem.FitResult]:
    """A call of `fit` in which every object is new and every leaf has a new value, of this kind."""
    model, weight = (other_values(tree, kind) for tree in (case.model.build(), UNEVEN))
    start = other_start(case, model, kind)
    if case.algorithm.changed is None:
        algorithm = other_values(case.algorithm.build(), kind)
    else:
        is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
        algorithm = jax.tree.map(lambda leaf: leaf if is_key(leaf) else kind(leaf), case.algorithm.changed())
    rolled = lambda leaf: kind(np.roll(leaf, 1, 0))  # noqa: E731
    if case.model.discrete:
        data = jax.tree.map(rolled, case.model.data)
    else:
        data = jax.tree.map(kind, with_floats(lambda leaf: leaf * 1.03125, case.model.data))
    options = {"tol": tol, "algorithm": algorithm, "derivative": jaxem.Implicit(valid_below=valid_below)}
    return lambda: fit_as_users(case, data, weight, model=model, start=start, **options)


@for_cases()
def test_rebuilt_objects_and_new_values_are_not_traced_again(case):
    assert_same_fit(fit_as_users(case), stopped(case))
    in_numpy = rebuilt(case, np.asarray, 1e-5, 0.1)
    in_jax = rebuilt(case, jnp.asarray, np.float64(1e-4), jnp.asarray(0.2, np.float64))
    compiled: list[str] = []
    for run in (in_numpy, in_jax):
        assert count_traces(case, lambda run=run: compiled.extend(compilations(run))) == 0
    assert compiled == []


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

        return jax.grad(loss, allow_int=True)(with_floats(lambda leaf: factor * leaf, case.model.data))

    run(1.0)
    assert compilations(lambda: run(1.25)) == []


# --- dtypes


def assert_all_floats(tree: Any, dtype: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == dtype, jax.tree_util.keystr(path)
        assert not getattr(leaf, "weak_type", False), jax.tree_util.keystr(path)


@for_cases()
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(case, dtype):
    data = with_floats(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), case.model.data)

    def everything(data: Any, key: Any) -> Any:
        result = fit_as_users(case, data)
        model, params = result.model, result.params
        answers = [case.model.build().init(key, data)] if hasattr(model, "init") else []
        given = () if case.model.given is None else (jax.tree.map(lambda leaf: leaf.astype(dtype), case.model.given),)
        answers += [model.sample(params, key, 5, *case.model.sampled, *given)] if hasattr(model, "sample") else []
        names = ("log_joint", "log_prob", "responsibilities", "predict", "aic", "bic", "icl")
        return result, answers + [getattr(model, name)(params, data) for name in names if hasattr(model, name)]

    result, answers = jax.eval_shape(everything, data, jax.random.key(0))
    assert_all_floats((result, answers), dtype)
    assert result.status.dtype == result.n_iter.dtype == result.n_evals.dtype == jnp.int32
    if dtype == np.float32 and case.algorithm.build().ends_at_em_fixed_point:
        slope = jax.grad(lambda data: jnp.sum(jax.tree.leaves(fit_as_users(case, data).params)[0]), allow_int=True)
        assert_all_floats(jax.eval_shape(slope, data), dtype)


@for_cases(slow=em_first(is_variant))
def test_integers_are_fitted_in_the_default_float(case):
    data = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.int16), case.model.data)
    assert_all_floats(jax.eval_shape(functools.partial(fit_as_users, case), data), np.float64)


@for_cases(slow=em_first(is_variant))
def test_float32_agrees_with_float64(case):
    data = with_floats(lambda leaf: leaf.astype(np.float32), case.model.data)
    # rises are rounded by 2 eps·|objective per unit|, 1e-6: a coarser tol stops both at the same iteration or the next
    single, double = fit(case, data, tol=1e-4), fit(case, tol=1e-4)
    assert_all_floats(single, np.float32)
    assert bool(single.converged)
    assert abs(int(single.n_iter) - int(double.n_iter)) <= 1
    both = min(int(single.n_iter), int(double.n_iter)) + 1
    # histories per unit: rounding of N terms of order 10 in float32
    error = np.abs(np.asarray(single.history) - np.asarray(double.history))[:both]
    assert np.max(error) < 20 * np.finfo(np.float32).eps * np.abs(double.objective)
    assert_close(single.params, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), double.params), 1e-2)


# --- symmetries


@for_cases(slow=em_first())
def test_a_relabelled_start_gives_the_relabelled_answer(case):
    model, start, result = case.model.build(), case.model.start(), stopped(case)
    need(model, "component_axes", "n_components")
    order = np.roll(np.arange(model.n_components), 1)  # not its own inverse
    relabel = lambda params: permute_components(params, model.component_axes(), order)  # noqa: E731
    model = model.relabelled(order) if hasattr(model, "relabelled") else model
    other = fit(case, model=model, start=relabel(start), tol=1e-6)
    assert_same_fit(replace(other, model=None), replace(result, model=None, params=relabel(result.params)))


@for_cases(slow=em_first())
@pytest.mark.parametrize("powers", [(-6, 6), (6, -6), (-6, -6), (6, 6), (0, -3)], ids=str)
def test_the_fit_scales_with_the_columns(case, powers):
    if case.model.moved is None:
        pytest.skip("the model has no scale symmetry")
    d = jax.tree.leaves(case.model.data)[0].shape[-1]
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


@for_cases(slow=em_first())
def test_the_fit_moves_with_the_data(case):
    if case.model.moved is None:
        pytest.skip("the model has no shift symmetry")
    d = jax.tree.leaves(case.model.data)[0].shape[-1]
    one, shift = np.ones(d), np.array([1e4, -3e4])[:d]
    model, start, data = case.model.moved(case.model.build(), case.model.start(), case.model.data, one, shift)
    moved, plain = fit(case, data, model=model, start=start, tol=1e-6), stopped(case)
    assert int(moved.n_iter) == int(plain.n_iter)
    back = case.model.moved(case.model.build(), moved.params, case.model.data, one, -shift)[1]
    assert_close(back, plain.params, 1e-10)  # the data were rounded at 3e4: by 4e-12
