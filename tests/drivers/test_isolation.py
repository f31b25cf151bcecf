"""What is ill stays where it is: one problem among others, and NaN in rows of weight zero."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    KEY,
    MAX_ITER,
    D,
    N,
    assert_close,
    assert_finite,
    assert_same,
    blobs,
    first,
    fit,
    float64_first,
    init,
    lanes_first,
    mixture,
    one_family,
    one_family_and_method,
    sequential_first,
    stacked,
    statuses,
    take,
    two_starts,
)

import jaxem
from jaxem import Status

# --- one problem that is ill, among others that are not


class Case(NamedTuple):
    """Rows (N, D) and weights (N,) of one problem."""

    x: np.ndarray
    weight: np.ndarray


def with_value(value: float, row: Any = 7, column: Any = 1) -> Callable[[Case], None]:
    return lambda case: case.x.__setitem__((row, column), value)


def with_weight(value: float, row: Any = 7) -> Callable[[Case], None]:
    return lambda case: case.weight.__setitem__(row, value)


EVERYWHERE = slice(None)
ILLNESSES = {
    "nan": (with_value(np.nan), Status.NONFINITE),
    "nan in the first row": (with_value(np.nan, row=0, column=EVERYWHERE), Status.NONFINITE),
    "nan everywhere": (with_value(np.nan, row=EVERYWHERE, column=EVERYWHERE), Status.NONFINITE),
    "inf": (with_value(np.inf), Status.NONFINITE),
    "-inf": (with_value(-np.inf), Status.NONFINITE),
    "weight nan": (with_weight(np.nan), Status.NONFINITE),
    "weight negative": (with_weight(-1.0), Status.NONFINITE),
    "weight inf": (with_weight(np.inf), Status.NONFINITE),
    "no weight": (with_weight(0.0, row=EVERYWHERE), Status.TOO_FEW),
    "one row of weight": (with_weight(0.0, row=slice(1, None)), Status.TOO_FEW),
    "rows equal 0.1": (with_value(0.1, row=EVERYWHERE, column=EVERYWHERE), Status.DEGENERATE),
    "rows equal 1e4 + 0.3": (with_value(1e4 + 0.3, row=EVERYWHERE, column=EVERYWHERE), Status.DEGENERATE),
    "column equal 0.1": (with_value(0.1, row=EVERYWHERE), Status.DEGENERATE),
    "column equal 1e4 + 0.3": (with_value(1e4 + 0.3, row=EVERYWHERE), Status.DEGENERATE),
}


def healthy(seed: int, dtype: Any = np.float64) -> Case:
    return Case(blobs(seed=seed, dtype=dtype), np.linspace(0.5, 1.5, N).astype(dtype))


def wards(dtype: Any = np.float64) -> tuple[Case, Case, list[Status | None]]:
    """As many problems twice: all healthy, and every second one ill; with the statuses that are due (None: healthy)."""
    well = [healthy(seed, dtype) for seed in range(2 * len(ILLNESSES) + 1)]
    mixed = [Case(case.x.copy(), case.weight.copy()) for case in well]
    due: list[Status | None] = [None] * len(mixed)
    for i, (infect, status) in enumerate(ILLNESSES.values()):
        infect(mixed[2 * i + 1])
        due[2 * i + 1] = status
    stack = lambda cases: Case(*(np.stack(leaves) for leaves in zip(*cases, strict=True)))  # noqa: E731
    return stack(well), stack(mixed), due


def assert_only_the_ill_suffer(got: jaxem.FitResult, want: jaxem.FitResult, due: list[Status | None]) -> None:
    names = [None if i % 2 == 0 else list(ILLNESSES)[i // 2] for i in range(len(due))]
    wrong = {
        name: status.name
        for name, status, expected in zip(names, statuses(got), due, strict=True)
        if expected is not None and status != expected
    }
    assert not wrong
    keep = np.array([i for i, status in enumerate(due) if status is None])
    assert np.asarray(want.converged)[keep].all()
    for field in ("status", "params", "objective", "log_lik", "n_iter", "n_evals", "history"):
        assert_same(take(getattr(got, field), keep), take(getattr(want, field), keep))
    degenerate = np.array([i for i, status in enumerate(due) if status == Status.DEGENERATE])
    assert_finite(take(got.params, degenerate))


@lanes_first
@one_family
def test_ill_lanes_of_a_batch_end_with_their_status_and_disturb_no_neighbour(name, plan):
    if name == "spherical":
        pytest.skip("a constant column is legal under one variance for all columns")
    well, mixed, due = wards()
    params = stacked([two_starts(name)] * len(due))
    run = lambda x, w: jaxem.fit_batch(  # noqa: E731
        mixture(name), params, x, sample_weight=w, plan=plan, max_iter=MAX_ITER
    )
    got, want = run(*mixed), run(*well)
    assert_only_the_ill_suffer(got, want, due)
    ill = np.array([i for i, status in enumerate(due) if status in (Status.NONFINITE, Status.TOO_FEW)])
    assert_same(take(got.params, ill), take(params, ill))  # the last good ones are the start
    assert np.isnan(np.asarray(got.objective)[ill]).all()
    assert 0 < float(got.lane_efficiency) <= 1


@sequential_first
@one_family
def test_ill_groups_end_with_their_status_and_disturb_no_neighbour(name, plan):
    if name == "spherical":
        pytest.skip("a constant column is legal under one variance for all columns")
    well, mixed, due = wards()
    ids = np.repeat(np.arange(len(due)), N)
    run = lambda x, w: jaxem.fit_groups(  # noqa: E731
        mixture(name), KEY, x.reshape(-1, D), ids, sample_weight=w.ravel(), plan=plan, max_iter=MAX_ITER
    )
    got, want = run(*mixed), run(*well)
    assert_only_the_ill_suffer(got.fits, want.fits, due)
    assert sum(got.counts().values()) == len(due)
    assert 0 < float(got.lane_efficiency) <= 1


@sequential_first
def test_restarts_on_ill_data_return_their_status(plan):
    _, mixed, due = wards()
    wrong = {}
    for i, name in enumerate(ILLNESSES):
        x, weight = take(mixed, 2 * i + 1)
        result = jaxem.fit_restarts(
            mixture("full"), KEY, x, n_restarts=3, sample_weight=weight, plan=plan, max_iter=MAX_ITER
        )
        if statuses(result) != [due[2 * i + 1]]:
            wrong[name] = statuses(result)
    assert not wrong


@one_family
def test_traced_ill_data_return_their_status(name):
    """Inside jit there is no exception to raise."""
    run = jax.jit(lambda x, w: fit(name, two_starts(name), x, w))
    for label, (infect, status) in ILLNESSES.items():
        case = healthy(0)
        infect(case)
        result = run(*case)
        if name == "spherical" and label.startswith("column"):
            assert result.converged
        else:
            assert (label, statuses(result)) == (label, [status])
            assert result.failed and not result.converged


@pytest.mark.slow
@lanes_first
def test_the_gradient_of_a_good_lane_is_not_touched_by_a_bad_one(plan):
    clean = np.stack([blobs(seed=seed) for seed in range(2)])
    dirty = clean.copy()
    dirty[1, 0] = np.nan
    params = stacked([two_starts("full")] * 2)

    @jax.jit
    @jax.grad
    def slope(x):
        result = jaxem.fit_batch(mixture("full"), params, x, plan=plan, max_iter=MAX_ITER, tol=1e-9)
        return jnp.sum(result.params.components.mean[0])

    want, got = slope(jnp.asarray(clean)), slope(jnp.asarray(dirty))
    assert_finite(got)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], 0)


# --- NaN in a row of weight zero


class Absent(NamedTuple):
    """Rows, some of weight zero with garbage in them; the same with harmless values there; which rows are present."""

    x: np.ndarray
    harmless: np.ndarray
    weight: np.ndarray
    present: np.ndarray


def with_absent_rows(dtype: Any = np.float64) -> Absent:
    harmless, weight = blobs(dtype=dtype), np.linspace(0.5, 1.5, N).astype(dtype)
    x, rows = harmless.copy(), [0, 5, 6, N - 1]
    x[rows] = np.array([[np.nan, 1.0], [np.inf, np.nan], [1e30, -1e30], [np.nan, np.nan]], dtype)
    weight[rows] = 0
    return Absent(x, harmless, weight, np.flatnonzero(weight))


@one_family
@float64_first
def test_nan_in_a_row_of_weight_zero_is_never_looked_at(name, dtype):
    x, harmless, weight, _ = with_absent_rows(dtype)
    params = two_starts(name, dtype=dtype)
    got, want = fit(name, params, x, weight), fit(name, params, harmless, weight)
    assert got.converged
    # the origin of the pivot is the first row present, so even the last bits agree
    assert_same((got.params, got.history, got.model), (want.params, want.history, want.model))


@one_family
@first("chunk_size", [16, None])
def test_nan_in_a_row_of_weight_zero_is_as_if_the_row_were_absent(name, chunk_size):
    x, _, weight, rows = with_absent_rows()
    got = fit(name, two_starts(name), x, weight, chunk_size=chunk_size)
    want = fit(name, two_starts(name), x[rows], weight[rows])
    assert got.status == want.status and got.n_iter == want.n_iter
    assert_close((got.params, got.objective), (want.params, want.objective), 1e-9, atol=1e-12)


@pytest.mark.slow
@one_family
def test_nan_in_a_row_of_weight_zero_reaches_no_gradient(name):
    x, _, weight, rows = with_absent_rows()

    @jax.jit
    def slopes(x, w):
        def loss(x, w):
            result = fit(name, two_starts(name), x, w, tol=1e-10)
            return jnp.sum(jnp.sin(result.params.components.mean)) + result.log_lik + result.params.weights[0]

        return jax.grad(loss, (0, 1))(x, w)

    got_x, got_w = slopes(x, weight)
    want_x, want_w = slopes(x[rows], weight[rows])
    assert_finite((got_x, got_w))
    np.testing.assert_allclose(got_x[rows], want_x, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got_w[rows], want_w, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(np.delete(np.asarray(got_x), rows, 0), 0)


def test_nan_in_a_row_of_weight_zero_is_absent_for_every_driver():
    x, harmless, weight, _ = with_absent_rows()
    model, params = mixture("full"), stacked([two_starts("full")])
    batch = lambda x: jaxem.fit_batch(  # noqa: E731
        model, params, x[None], sample_weight=weight[None], max_iter=MAX_ITER
    )
    groups = lambda x: jaxem.fit_groups(  # noqa: E731
        model, KEY, x, np.zeros(N, int), sample_weight=weight, max_iter=MAX_ITER
    )
    restarts = lambda x: jaxem.fit_restarts(  # noqa: E731
        model, KEY, x, n_restarts=3, sample_weight=weight, max_iter=MAX_ITER
    )
    for run in (batch, groups, restarts):
        got, want = run(x), run(harmless)
        assert np.all(got.converged)
        assert_same(got.params, want.params)


@one_family_and_method
def test_nan_in_a_row_of_weight_zero_reaches_no_start(name, method):
    x, harmless, weight, _ = with_absent_rows()
    got = init(mixture(name), KEY, jnp.asarray(x), weight, method)
    assert_finite(got)
    assert_same(got, init(mixture(name), KEY, jnp.asarray(harmless), weight, method))
