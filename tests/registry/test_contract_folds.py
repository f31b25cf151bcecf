"""The contracts of every model and algorithm: how the work is cut; paths, splits."""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import Case, N
from contract_cases import (
    MAX_ITER,
    TOTAL,
    UNEVEN,
    after,
    answer,
    arrays,
    assert_close,
    assert_same_bits,
    assert_same_fit,
    derivatives,
    distance,
    em_first,
    fit,
    fit_as_users,
    fitted,
    floats_of,
    for_cases,
    has_fixed_length,
    is_not,
    is_variant,
    need,
    need_fixed_point,
    quick_jit,
    split_model,
    steps,
    stopped,
)
from helpers import once_a_week

import jaxem
from jaxem.drivers import single as fitting
from jaxem.fold.chunks import plan_fold
from jaxem.loop import loop

# --- how the work is cut


@for_cases(slow=em_first())
def test_chunks_do_not_change_the_answer(case):
    assert_same_fit(fit(case, chunk_size=7, tol=1e-6), stopped(case))


@for_cases(slow=em_first(is_variant))
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


@for_cases(slow=em_first(is_variant))
def test_four_devices_equal_one(case):
    data, weight = on_four_devices((case.model.data, UNEVEN))
    assert len(jax.tree.leaves(data)[0].sharding.device_set) == 4
    assert_same_fit(fit_as_users(case, data, weight, chunk_size=3), stopped(case))


@for_cases(
    slow=em_first(is_not("full")),
    weekly=em_first(),
    only=("full", "diagonal", "full_prior", "tied", "logistic", "gamma", "product", "one_of", "student_t"),
)
@pytest.mark.parametrize(
    ("mesh", "weight", "chunk_size"),
    [
        ("auto", None, None),
        ("auto", "host", None),
        ("explicit", None, None),
        ("explicit", "sharded", 3),
        pytest.param("auto", None, 3, marks=once_a_week),
        pytest.param("one of two", "sharded", 3, marks=once_a_week),
        pytest.param("both of two", "sharded", None, marks=once_a_week),
    ],
    ids=str,
)
def test_four_devices_equal_one_however_the_data_lie(case, mesh, weight, chunk_size):
    data = on_four_devices(case.model.data, mesh)
    weights = {None: None, "host": UNEVEN, "sharded": on_four_devices(UNEVEN, mesh)}[weight]
    expected = fit(case, weight=np.ones(N), tol=1e-6) if weights is None else stopped(case)
    assert_same_fit(fit_as_users(case, data, weights, chunk_size=chunk_size), expected)


@for_cases(
    slow=is_not("diagonal"),
    weekly=is_not("full", "diagonal", "product"),
    algorithms=False,
    only=("full", "diagonal", "tied_prior_active", "poisson", "product", "student_t"),
)
@pytest.mark.parametrize("cut", ["chunks", *(pytest.param(cut, marks=once_a_week) for cut in ("auto", "explicit"))])
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
    assert_close(slope(floats_of(data), weight), pulled[2:], 1e-9)


@for_cases(slow=em_first(is_not("full")))
def test_sharded_data_are_not_gathered(case):
    data, weight = on_four_devices((case.model.data, UNEVEN))
    plan = plan_fold(data, None)
    options = fitting.make_options(case.algorithm.build(), 1e-6, MAX_ITER, jaxem.Implicit(), None, plan)
    model, start, options = arrays((case.model.build(), case.model.start(), options))
    text = str(fitting._fit.lower(model, start, data, weight, options).compile().as_text())
    shapes = re.findall(r"\w+\[([\d,]*)\]\S* all-gather\(", text)
    gathered = [np.prod([int(size) for size in shape.split(",") if size]) for shape in shapes]
    assert "all-reduce" in text and all(size < N for size in gathered), gathered


# --- paths, splits


def radius_of(case: Case, path: str) -> float:
    """ "midway" is crossed after the second iteration, or a little later."""
    if path != "midway":
        return {"fast": -1.0, "stable": np.inf}[path]
    return 0.99 * float(distance(after(case, 2).params, fitted(case).params))


@for_cases(slow=em_first())
def test_the_stable_path_gives_the_answer_of_the_fast_path(case):
    need(case.model.build(), "trusted", "recentred")
    if not getattr(case.model.build(), "has_fast_path", True):
        pytest.skip("the model has no fast path")
    plain = stopped(case)
    assert int(plain.n_iter) < TOTAL
    for path in ("fast", "stable", "midway"):
        state, bound = steps(case, radius_of(case, path), [TOTAL], 1e-6)
        result = loop.finish(state, bound)
        assert int(state.path) == (path != "fast")
        if isinstance(case.algorithm.build(), jaxem.EM):  # refused candidates, and the one stepped back to
            again = {"fast": 0, "stable": 1, "midway": 2}[path]
            assert int(result.n_evals) == int(result.n_iter) + 1 + again
        if path == "midway" and hasattr(case.algorithm.build(), "refused"):  # it is started anew on the stable path
            end = loop.finish(*steps(case, radius_of(case, path), [TOTAL], -1.0))
            assert_close(end.params, fitted(case).params, 1e-9)  # Anderson's EM rate of 0.9 leaves that after TOTAL
            continue
        history = jnp.full(MAX_ITER + 1, jnp.nan).at[: TOTAL + 1].set(result.history)
        assert_same_fit(replace(result, history=history), plain)


@for_cases()
@pytest.mark.parametrize("tol", [-1.0, 1e-6])
@pytest.mark.parametrize("path", ["fast", "stable", "midway"])
def test_any_split_of_the_iterations_gives_the_same_bits(case, path, tol):
    radius = radius_of(case, path)
    whole = steps(case, radius, [TOTAL], tol)[0]
    if tol < 0 or has_fixed_length(case):
        assert int(whole.n_iter) == TOTAL + 1
    else:
        assert int(whole.status) == jaxem.Status.CONVERGED
    for split in ([1] * TOTAL, [7, 13, TOTAL - 20], [0, 5, 0, 0, TOTAL - 5], [TOTAL, 3]):
        assert_same_bits(steps(case, radius, split, tol)[0], whole)
