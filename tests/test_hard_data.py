"""Data and arguments that go wrong: what every driver does about each of them.

Compiling is what takes time here, so the tests share shapes: rows (N, D) with sample weights, MAX_ITER iterations.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status

FAMILIES = {
    "full": jaxem.FullNormal,
    "diagonal": jaxem.DiagonalNormal,
    "spherical": jaxem.SphericalNormal,
    "tied": jaxem.TiedNormal,
}
METHODS = {
    "k-means": jaxem.KMeans(),
    "points": jaxem.RandomPoints(),
    "responsibilities": jaxem.RandomResponsibilities(),
}
KEY = jax.random.key(0)
N, D, K, MAX_ITER = 40, 2, 2, 200

slow = pytest.mark.slow
every_family = pytest.mark.parametrize("name", FAMILIES)
one_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "full" else slow) for name in FAMILIES]
)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_plan = pytest.mark.parametrize("plan", ["lanes", "sequential"])
family_and_method = pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, id=f"{name}-{label}", marks=() if "full" == name or label == "k-means" else slow)
        for name in FAMILIES
        for label, method in METHODS.items()
    ],
)


def mixture(name: str, k: int = K, **options: Any) -> jaxem.Mixture:
    return jaxem.Mixture(FAMILIES[name](**options), n_components=k)


def blobs(n: int = N, d: int = D, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    """Two clouds, a third of the rows around 4, the others around 0."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 4.0 * (np.arange(n) % 3 == 0)[:, None]).astype(dtype)


def start(name: str, means: Any, variance: Any, dtype: Any = np.float64) -> jaxem.MixtureParams:
    """Equal weights, these means (k, d), and `variance` (d,) or () in every component."""
    means = np.asarray(means, dtype)
    k, d = means.shape
    variances = np.broadcast_to(np.asarray(variance, dtype), (d,))
    covariance = {
        "full": np.tile(np.diag(variances), (k, 1, 1)),
        "diagonal": np.tile(variances, (k, 1)),
        "spherical": np.full(k, variances.mean(), dtype),
        "tied": np.diag(variances),
    }[name]
    components = jaxem.NormalParams(jnp.asarray(means), jnp.asarray(covariance))
    return jaxem.MixtureParams(jnp.full(k, 1 / k, dtype), components)


def two_starts(name: str, d: int = D, dtype: Any = np.float64) -> jaxem.MixtureParams:
    return start(name, np.array([[0.5], [3.0]]) * np.ones((1, d)), 2.0, dtype)


def fit(name: str, params: Any, x: Any, weight: Any = None, **options: Any) -> jaxem.FitResult:
    """`jaxem.fit` in the shape that the tests share."""
    weight = np.ones(len(x), x.dtype) if weight is None else weight
    return jaxem.fit(mixture(name), params, x, sample_weight=weight, max_iter=MAX_ITER, **options)


@jax.jit
def init(model: jaxem.Mixture, key: Any, x: Any, weight: Any, method: Any) -> jaxem.MixtureParams:
    return model.init(key, x, sample_weight=weight, method=method)


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def assert_finite(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf)).all(), tree


def assert_close(got: Any, want: Any, rtol: float, atol: float = 0.0) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def assert_same(got: Any, want: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def statuses(result: Any) -> list[Status]:
    return [Status(int(code)) for code in np.ravel(result.status)]


def x64(on: bool) -> AbstractContextManager:
    """64-bit types on or off inside the context, under the name that the installed jax has for it."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import disable_x64, enable_x64  # type: ignore[attr-defined]

    return enable_x64() if on else disable_x64()


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


@every_plan
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


@every_plan
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


@every_plan
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


@every_family
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


@every_plan
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


# --- fit names the rows


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fit_names_the_rows_with_nan_or_inf(bad):
    x = blobs()
    x[[3, 17], [0, 1]] = bad
    for name in FAMILIES:
        with pytest.raises(ValueError, match=r"data: .*rows 3, 17.*sample_weight 0"):
            jaxem.fit(mixture(name), two_starts(name), x)
    with pytest.raises(ValueError, match="rows 3, 17"):
        jaxem.fit(mixture("full"), two_starts("full"), jaxem.labelled(x, np.full(N, -1)))
    x[10:30] = bad
    with pytest.raises(ValueError, match=r"rows 3, 10, 11, 12, 13, … \(21 in all\)"):
        jaxem.fit(mixture("full"), two_starts("full"), x)


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf], ids=["nan", "negative", "inf"])
def test_fit_names_the_rows_with_impossible_weights(bad):
    weight = np.ones(N)
    weight[[4, 9]] = bad
    with pytest.raises(ValueError, match=f"sample_weight: .*{bad}.*rows 4, 9"):
        jaxem.fit(mixture("full"), two_starts("full"), blobs(), sample_weight=weight)


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


@every_family
@every_dtype
def test_nan_in_a_row_of_weight_zero_is_never_looked_at(name, dtype):
    x, harmless, weight, _ = with_absent_rows(dtype)
    params = two_starts(name, dtype=dtype)
    got, want = fit(name, params, x, weight), fit(name, params, harmless, weight)
    assert got.converged
    # the origin of the pivot is the first row present, so even the last bits agree
    assert_same((got.params, got.history, got.model), (want.params, want.history, want.model))


@one_family
@pytest.mark.parametrize("chunk_size", [None, 16])
def test_nan_in_a_row_of_weight_zero_is_as_if_the_row_were_absent(name, chunk_size):
    x, _, weight, rows = with_absent_rows()
    got = fit(name, two_starts(name), x, weight, chunk_size=chunk_size)
    want = fit(name, two_starts(name), x[rows], weight[rows])
    assert got.status == want.status and got.n_iter == want.n_iter
    assert_close((got.params, got.objective), (want.params, want.objective), 1e-9, atol=1e-12)


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


@family_and_method
def test_nan_in_a_row_of_weight_zero_reaches_no_start(name, method):
    x, harmless, weight, _ = with_absent_rows()
    got = init(mixture(name), KEY, jnp.asarray(x), weight, method)
    assert_finite(got)
    assert_same(got, init(mixture(name), KEY, jnp.asarray(harmless), weight, method))


# --- no spread


@family_and_method
@every_dtype
def test_rows_that_are_all_equal_are_degenerate_with_finite_params(name, method, dtype):
    for value in (0.0, 1.0, 0.1, 1e4 + 0.3, -1e-8):
        x = np.full((N, D), value, dtype) * np.array([1, 3], dtype)
        drawn = init(mixture(name), KEY, jnp.asarray(x), np.linspace(0.5, 1.5, N).astype(dtype), method)
        for params in (drawn, start(name, x[:K], 1.0, dtype), two_starts(name, dtype=dtype)):
            assert_finite(params)
            result = fit(name, params, x, np.linspace(0.5, 1.5, N).astype(dtype))
            assert (value, statuses(result)) == (value, [Status.DEGENERATE])
            assert_finite(result.params)


@family_and_method
@every_dtype
def test_a_constant_column_is_degenerate_with_finite_params(name, method, dtype):
    # the one variance of a sphere is the mean over the columns, positive as long as one of them varies
    allowed = {Status.CONVERGED, Status.RESOLUTION} if name == "spherical" else {Status.DEGENERATE}
    for value in (0.0, 0.1, 1e4 + 0.3):
        x = blobs(dtype=dtype)
        x[:, 1] = value
        drawn = init(mixture(name), KEY, jnp.asarray(x), np.linspace(0.5, 1.5, N).astype(dtype), method)
        for params in (drawn, start(name, x[[1, 0]], 2.0, dtype)):
            assert_finite(params)
            result = fit(name, params, x, np.linspace(0.5, 1.5, N).astype(dtype))
            assert set(statuses(result)) <= allowed, (value, statuses(result))
            assert_finite(result.params)


def test_a_constant_column_without_weights_is_degenerate():
    x = blobs()
    x[:, 1] = 0.1
    result = jaxem.fit(mixture("full"), start("full", x[[1, 0]], 2.0), x)
    assert statuses(result) == [Status.DEGENERATE]
    assert_finite(result.params)


@one_family
def test_a_prior_makes_a_constant_column_a_legal_fit(name):
    x = blobs()
    x[:, 1] = 0.1
    scale = {"full": np.eye(D), "tied": np.eye(D), "diagonal": np.ones(D), "spherical": 1.0}[name]
    prior = jaxem.NormalInverseWishart(mean=np.zeros(D), shrinkage=0.1, dof=4.0, scale=scale)
    result = jaxem.fit(mixture(name, prior=prior), two_starts(name), x)
    assert result.converged, statuses(result)
    assert_finite(result.params)


# --- few rows


@one_family
def test_fewer_rows_than_components_are_too_few(name):
    x = blobs(3)
    model, params = mixture(name, k=4), start(name, blobs(4, seed=1), 1.0)
    assert statuses(jaxem.fit(model, params, x)) == [Status.TOO_FEW]
    assert statuses(jaxem.fit_groups(model, KEY, x, ["a", "a", "b"])) == [Status.TOO_FEW] * 2


@pytest.mark.slow
@every_plan
def test_fewer_rows_than_components_are_too_few_in_every_driver(plan):
    x = blobs(3)
    model, params = mixture("full", k=4), start("full", blobs(4, seed=1), 1.0)
    assert statuses(jaxem.fit_batch(model, stacked([params]), x[None], plan=plan)) == [Status.TOO_FEW]
    assert statuses(jaxem.fit_restarts(model, KEY, x, n_restarts=2, plan=plan)) == [Status.TOO_FEW]


@every_family
def test_too_little_weight_is_too_few_and_returns_the_start(name):
    params = two_starts(name)
    for present in (0, 1):
        weight = np.where(np.arange(N) < present, 1.0, 0.0)
        result = fit(name, params, blobs(), weight)
        assert statuses(result) == [Status.TOO_FEW]
        assert_same(result.params, params)
        assert np.isnan(result.objective)


def test_no_rows_are_a_value_error():
    model, params, none = mixture("full"), two_starts("full"), np.zeros((0, D))
    with pytest.raises(ValueError, match="data: expected at least one row, got n = 0"):
        jaxem.fit(model, params, none)
    with pytest.raises(ValueError, match="n = 0"):
        jaxem.fit_restarts(model, KEY, none)
    with pytest.raises(ValueError, match="n = 0"):
        jaxem.fit_groups(model, KEY, none, [])
    with pytest.raises(ValueError, match="n = 0"):
        jaxem.fit_batch(model, stacked([params] * 2), np.zeros((2, 0, D)))
    with pytest.raises(ValueError, match="lane"):
        jaxem.fit_batch(model, params, np.zeros((0, 5, D)))
    with pytest.raises(ValueError, match="n = 0|at least one row"):
        model.init(KEY, none)


@every_family
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=slow)])
def test_one_component_in_one_dimension_has_the_closed_form(name, dtype):
    x = blobs(d=1, dtype=dtype)
    weight = np.linspace(0.5, 1.5, N).astype(dtype)
    floor = 1e-3
    model = mixture(name, k=1, floor=floor)
    result = jaxem.fit(model, start(name, [[10.0]], 0.5, dtype), x, sample_weight=weight).check()
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    mean = np.average(x, axis=0, weights=weight)
    variance = np.average((x - mean) ** 2, axis=0, weights=weight)
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    covariance = variance * (1 + floor / weight.sum())
    np.testing.assert_allclose(result.params.weights, [1.0], rtol=rtol)
    np.testing.assert_allclose(result.params.components.mean[0], mean, rtol=rtol)
    np.testing.assert_allclose(np.ravel(result.params.components.covariance), covariance, rtol=rtol)
    log_lik = -0.5 * np.sum(weight[:, None] * ((x - mean) ** 2 / covariance + np.log(2 * np.pi * covariance)))
    np.testing.assert_allclose(result.log_lik, log_lik, rtol=rtol)
    np.testing.assert_allclose(result.objective, log_lik - 0.5 * floor * variance[0] / covariance[0], rtol=rtol)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {np.dtype(dtype)}


# --- extreme shapes of the data


@pytest.mark.parametrize("name", ["full", "diagonal", "spherical"])
@every_dtype
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_point_repeated_under_its_own_component_converges_at_the_floor(name, dtype, offset):
    point = np.array([9.0, -7.0]) + offset
    x = blobs(seed=2) + offset
    x[:30] = point
    x = x.astype(dtype)
    result = fit(name, start(name, [[offset, offset], point], 2.0, dtype), x)
    assert result.converged, statuses(result)
    floor = 1e-6 * np.var(x.astype(np.float64), axis=0) / 30
    want = {"full": np.diag(floor), "diagonal": floor, "spherical": floor.mean()}[name]
    got = np.asarray(result.params.components.covariance[1], np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3 * floor.min())
    np.testing.assert_allclose(result.params.components.mean[1], point, rtol=1e-6)
    np.testing.assert_allclose(result.params.weights[1], 30 / N, rtol=1e-4)


@pytest.mark.parametrize("name", ["full", "diagonal", "spherical"])
@every_dtype
def test_a_point_repeated_is_found_by_k_means_and_converges_at_the_floor(name, dtype):
    x = blobs(seed=2)
    x[10:] = np.array([30.0, -30.0])
    x = x.astype(dtype)
    params = init(mixture(name), KEY, jnp.asarray(x), np.ones(N, dtype), METHODS["k-means"])
    result = fit(name, params, x).ordered()
    assert result.converged, statuses(result)
    floor = 1e-6 * np.var(x.astype(np.float64), axis=0) / 30
    want = {"full": np.diag(floor), "diagonal": floor, "spherical": floor.mean()}[name]
    got = np.asarray(result.params.components.covariance[0], np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3 * floor.min())


@every_family
@every_dtype
def test_identical_starts_converge_to_equal_components(name, dtype):
    x = blobs(dtype=dtype)
    result = fit(name, start(name, [[1.0, 1.0]] * 2, 2.0, dtype), x)
    assert result.converged, statuses(result)
    rtol = 1e-5 if dtype == np.float32 else 1e-10
    mean, covariance = result.params.components
    np.testing.assert_allclose(result.params.weights, 0.5, rtol=rtol)
    np.testing.assert_allclose(mean, np.tile(x.mean(0), (2, 1)), rtol=10 * rtol)
    if name != "tied":
        np.testing.assert_allclose(covariance[0], covariance[1], rtol=rtol)


@every_family
@every_dtype
def test_a_diagnostic_says_that_components_are_equal(name, dtype):
    x = blobs(dtype=dtype)
    equal = fit(name, start(name, [[1.0, 1.0]] * 2, 2.0, dtype), x)
    apart = fit(name, two_starts(name, dtype=dtype), x)
    assert jaxem.diagnose(equal.model, equal.params).equal_components
    report = jaxem.diagnose(apart.model, apart.params)
    assert not report.equal_components
    np.testing.assert_allclose(report.smallest_weight, np.min(apart.params.weights), rtol=1e-6)
    covariance = np.asarray(apart.params.components.covariance, np.float64)
    worst = {
        "full": lambda: np.linalg.cond(covariance).max(),
        "tied": lambda: np.linalg.cond(covariance),
        "diagonal": lambda: (covariance.max(1) / covariance.min(1)).max(),
        "spherical": lambda: 1.0,
    }[name]()
    np.testing.assert_allclose(report.worst_condition, worst, rtol=1e-2)


@every_family
@every_dtype
def test_an_outlier_at_a_million_leaves_everything_finite(name, dtype):
    x = blobs(dtype=dtype)
    x[3] = [1e6, -1e6]
    keys, weight = jax.random.split(KEY), np.ones(N, dtype)
    drawn = [init(mixture(name), key, jnp.asarray(x), weight, METHODS["k-means"]) for key in keys]
    for params in (*drawn, start(name, [[0.0, 0.0], [4.0, 4.0]], 1.0, dtype)):
        result = fit(name, params, x)
        assert_finite((params, result.params, result.objective, result.log_lik))
        # with the outlier the columns correlate to 1 - 1e-9: a covariance without a density in float32, at worst
        assert not result.failed or (dtype == np.float32 and result.status == Status.DEGENERATE), statuses(result)
        steps = np.asarray(result.history, np.float64)[: int(result.n_iter) + 1]
        assert np.isfinite(steps).all()
        assert (np.diff(steps) >= -16 * np.finfo(dtype).eps * (N + abs(steps[1:]))).all()


# --- dtypes


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.uint8, bool])
def test_integers_are_cast_to_the_default_float(dtype):
    x = np.clip(np.round(5 * blobs()), 0, 100)
    x = (x > 5).astype(float) if dtype is bool else x
    weight = np.ones(N)
    want = fit("full", two_starts("full"), x, weight)
    got = fit("full", two_starts("full"), x.astype(dtype), weight)
    assert got.objective.dtype == np.float64
    assert_same((got.params, got.objective, got.status), (want.params, want.objective, want.status))


def test_integers_are_cast_to_the_default_float_in_groups():
    x, ids = np.round(5 * blobs()).astype(np.int16), np.zeros(N, int)
    groups = jaxem.fit_groups(mixture("full"), KEY, x, ids, sample_weight=np.ones(N), max_iter=MAX_ITER)
    assert groups.objective.dtype == np.float64
    assert groups.responsibilities(x, ids).dtype == np.float64


def test_integers_are_cast_to_float32_while_x64_is_off():
    with x64(False):
        result = fit("full", two_starts("full", dtype=np.float32), np.round(5 * blobs()).astype(int))
    assert result.objective.dtype == np.float32


@pytest.mark.parametrize("part", ["weights", "mean", "covariance"])
def test_integer_start_params_are_cast(part):
    params = start("full", [[0.0, 0.0], [4.0, 4.0]], 1.0)
    whole = {
        "weights": params._replace(weights=jnp.array([1, 0])),
        "mean": replaced(params, mean=np.array([[0, 0], [4, 4]])),
        "covariance": replaced(params, covariance=np.array([np.eye(2, dtype=int)] * 2)),
    }[part]
    want = fit("full", jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), whole), blobs())
    assert_same(fit("full", whole, blobs()).params, want.params)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.complex64])
def test_half_precision_and_complex_numbers_are_a_type_error_that_names_float32(dtype):
    x = blobs().astype(dtype)
    model, params = mixture("full"), two_starts("full")
    calls = [
        lambda: jaxem.fit(model, params, x),
        lambda: jaxem.fit(model, params, jnp.asarray(x)),
        lambda: jaxem.fit_batch(model, stacked([params]), x[None]),
        lambda: jaxem.fit_restarts(model, KEY, x),
        lambda: jaxem.fit_groups(model, KEY, x, np.zeros(N, int)),
        lambda: model.init(KEY, x),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="float32"):
            call()


def test_data_that_are_not_numbers_are_a_type_error():
    with pytest.raises(TypeError, match="data: expected numbers"):
        jaxem.fit(mixture("full"), two_starts("full"), np.full((N, D), "a"))
    with pytest.raises(TypeError, match="data: expected numbers"):
        jaxem.fit(mixture("full"), two_starts("full"), blobs().astype(object))


@pytest.mark.parametrize(
    "driver", ["fit", "fit_groups", pytest.param("fit_batch", marks=slow), pytest.param("fit_restarts", marks=slow)]
)
def test_float64_numpy_data_while_x64_is_off_warn_once_and_name_the_setting(driver):
    x = blobs()

    def run(x):
        params = two_starts("full", dtype=np.float32)
        match driver:
            case "fit":
                return jaxem.fit(mixture("full"), params, x, max_iter=5)
            case "fit_batch":
                return jaxem.fit_batch(mixture("full"), stacked([params]), x[None], max_iter=5)
            case "fit_restarts":
                return jaxem.fit_restarts(mixture("full"), KEY, x, n_restarts=2, max_iter=5)
            case _:
                return jaxem.fit_groups(mixture("full"), KEY, x, np.zeros(N, int), init=stacked([params]), max_iter=5)

    with x64(False):
        with pytest.warns(UserWarning, match="jax_enable_x64") as caught:
            assert run(x).objective.dtype == np.float32
        assert len(caught) == 1
        assert caught[0].filename == __file__  # points at the user's line
        run(x.astype(np.float32))  # warnings are errors here: none
        run(jnp.asarray(x, np.float32))


# --- start params that cannot be


@every_family
def test_nan_in_the_start_is_nonfinite(name):
    params = two_starts(name)
    params = params._replace(weights=params.weights.at[0].set(jnp.nan))
    result = fit(name, params, blobs())
    assert statuses(result) == [Status.NONFINITE]
    assert np.isnan(result.objective) and int(result.n_iter) == 0


@every_family
def test_a_start_covariance_without_a_density_is_degenerate(name):
    result = fit(name, start(name, [[0.0, 0.0], [4.0, 4.0]], -1.0), blobs())
    assert statuses(result) == [Status.DEGENERATE]


# --- arguments that do not fit: argument, expected, got, remedy


def replaced(params: jaxem.MixtureParams, **components: Any) -> jaxem.MixtureParams:
    return params._replace(components=params.components._replace(**components))


def test_params_of_a_wrong_shape_name_the_leaf_and_both_shapes():
    x, params = blobs(), two_starts("full")
    with pytest.raises(ValueError, match=r"params\.weights: expected shape \(2,\), got \(3,\)"):
        jaxem.fit(mixture("full"), params._replace(weights=jnp.ones(3) / 3), x)
    with pytest.raises(ValueError, match=r"params\.components\.mean: expected shape \(2, 2\).*got \(2, 3\)"):
        jaxem.fit(mixture("full"), replaced(params, mean=jnp.zeros((2, 3))), x)
    with pytest.raises(ValueError, match=r"params\.components\.covariance: expected shape \(2, 2, 2\).*got \(2, 2\)"):
        jaxem.fit(mixture("full"), two_starts("diagonal"), x)
    with pytest.raises(ValueError, match=r"params\.components\.covariance: expected shape \(2,\).*got \(2, 2\)"):
        jaxem.fit(mixture("spherical"), two_starts("diagonal"), x)
    with pytest.raises(TypeError, match="params: expected MixtureParams, got tuple"):
        jaxem.fit(mixture("full"), (1, 2), x)
    with pytest.raises(TypeError, match=r"params\.components: expected NormalParams"):
        jaxem.fit(mixture("full"), params._replace(components=jnp.zeros(2)), x)
    with pytest.raises(ValueError, match=r"params\.weights: expected shape \(3,\), got \(2,\)"):
        jaxem.fit(mixture("full", k=3), params, x)


def test_start_params_of_lanes_and_groups_of_a_wrong_shape_name_the_argument():
    x, params = blobs(), two_starts("full")
    with pytest.raises(ValueError, match="params: expected leaves leading with 3 lanes"):
        jaxem.fit_batch(mixture("full"), stacked([params] * 2), np.stack([x] * 3))
    with pytest.raises(ValueError, match=r"params\.components\.covariance: expected shape \(2, 2, 2\)"):
        jaxem.fit_batch(mixture("full"), stacked([two_starts("diagonal")] * 3), np.stack([x] * 3))
    with pytest.raises(ValueError, match="init: expected start params leading with 1 groups"):
        jaxem.fit_groups(mixture("full"), KEY, x, np.zeros(N, int), init=stacked([params] * 2))
    with pytest.raises(ValueError, match=r"components\.covariance: expected shape \(2, 2, 2\)"):
        jaxem.fit_groups(mixture("full"), KEY, x, np.zeros(N, int), init=stacked([two_starts("diagonal")]))


def test_data_of_a_wrong_shape_say_which_is_expected():
    params = two_starts("full")
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\), got shape \(40,\).*x\[:, None\]"):
        jaxem.fit(mixture("full"), params, blobs()[:, 0])
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\)"):
        jaxem.fit_batch(mixture("full"), stacked([params] * N), blobs())
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\)"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs()[:, 0])
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\)"):
        jaxem.fit_groups(mixture("full"), KEY, blobs()[:, 0], np.zeros(N, int))
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\)"):
        mixture("full").init(KEY, blobs()[:, 0])
    with pytest.raises(ValueError, match="params.components.mean"):
        jaxem.fit(mixture("full"), params, blobs(d=3))
    with pytest.raises(ValueError, match="data: "):
        jaxem.fit(mixture("full"), params, [])
    with pytest.raises(ValueError, match="data: "):
        jaxem.fit(mixture("full"), params, np.float64(3))


def test_weights_of_a_wrong_shape_say_which_is_expected():
    x, params = blobs(), two_starts("full")
    model, short = mixture("full"), np.ones(N - 1)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(40,\).*got \(39,\)"):
        jaxem.fit(model, params, x, sample_weight=short)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(40,\).*got \(39,\)"):
        jaxem.fit_restarts(model, KEY, x, sample_weight=short)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(40,\).*got \(39,\)"):
        jaxem.fit_groups(model, KEY, x, np.zeros(N, int), sample_weight=short)
    with pytest.raises(ValueError, match="sample_weight: expected"):
        jaxem.fit_batch(model, stacked([params] * 2), np.stack([x] * 2), sample_weight=np.ones(N))
    with pytest.raises(ValueError, match="sample_weight: expected"):
        jaxem.fit_batch(model, stacked([params] * 2), np.stack([x] * 2), sample_weight=np.ones((2, N - 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": -1}, "max_iter: expected a non-negative int, got -1"),
        ({"max_iter": 2.5}, "max_iter: expected a non-negative int, got 2.5"),
        ({"max_iter": True}, "max_iter: expected a non-negative int, got True"),
        ({"tol": np.nan}, "tol: expected a number, got NaN"),
        ({"chunk_size": 0}, "chunk_size: expected a positive int or None, got 0"),
        ({"chunk_size": -3}, "chunk_size: expected a positive int or None, got -3"),
        ({"chunk_size": 1.5}, "chunk_size: expected a positive int or None, got 1.5"),
        ({"algorithm": "em"}, "algorithm: expected .*got 'em'"),
        ({"algorithm": jaxem.EM}, "algorithm: expected .*got <class"),
        ({"derivative": True}, "derivative: expected .*got True"),
        ({"stop": 1e-3}, "stop: expected .*got 0.001"),
    ],
)
def test_options_out_of_range_name_the_argument_in_every_driver(options, message):
    x, params, model = blobs(), two_starts("full"), mixture("full")
    calls = [
        lambda: jaxem.fit(model, params, x, **options),
        lambda: jaxem.fit_batch(model, stacked([params]), x[None], **options),
        lambda: jaxem.fit_restarts(model, KEY, x, **options),
        lambda: jaxem.fit_groups(model, KEY, x, np.zeros(N, int), **options),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_an_unknown_plan_names_those_there_are():
    x, params, model = blobs(), two_starts("full"), mixture("full")
    message = "plan: expected 'auto', 'lanes' or 'sequential', got 'vmap'"
    with pytest.raises(ValueError, match=message):
        jaxem.fit_batch(model, stacked([params]), x[None], plan="vmap")
    with pytest.raises(ValueError, match=message):
        jaxem.fit_restarts(model, KEY, x, plan="vmap")
    with pytest.raises(ValueError, match=message):
        jaxem.fit_groups(model, KEY, x, np.zeros(N, int), plan="vmap")


@pytest.mark.parametrize("n_restarts", [0, -1, 1.5, True])
def test_a_number_of_restarts_that_is_none_names_the_argument(n_restarts):
    with pytest.raises(ValueError, match="n_restarts: expected a positive int"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs(), n_restarts=n_restarts)
    with pytest.raises(ValueError, match="n_restarts: expected a positive int"):
        jaxem.fit_groups(mixture("full"), KEY, blobs(), np.zeros(N, int), n_restarts=n_restarts)


def test_restarts_of_given_starts_are_refused_not_ignored():
    params = stacked([two_starts("full")])
    with pytest.raises(ValueError, match="n_restarts"):
        jaxem.fit_groups(mixture("full"), KEY, blobs(), np.zeros(N, int), init=params, n_restarts=4)


def test_an_initialiser_that_is_none_names_the_argument():
    with pytest.raises((ValueError, TypeError), match="init"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs(), init=two_starts("full"))  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match="init|method"):
        mixture("full").init(KEY, blobs(), method="kmeans")  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match="init"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs(), init=jaxem.KMeans)  # type: ignore[arg-type]


class NoEStep(NamedTuple):
    """A model that forgot its E step."""

    def m_step(self, params, stats):
        return params


class NoMStep(NamedTuple):
    """A model that forgot its M step."""

    def e_step(self, params, data, sample_weight):
        return jnp.sum(data), jnp.zeros(())


def test_a_model_without_its_methods_says_which_to_write():
    x = blobs()
    with pytest.raises(ValueError, match="NoEStep has no E step; write e_step"):
        jaxem.fit(NoEStep(), jnp.zeros(2), x)
    with pytest.raises(ValueError, match="NoMStep has no M step; write m_step"):
        jaxem.fit(NoMStep(), jnp.zeros(2), x)
    with pytest.raises(ValueError, match="NoMStep has no M step"):
        jaxem.fit_batch(NoMStep(), jnp.zeros((1, 2)), x[None])
    with pytest.raises(ValueError, match="model: expected an instance, got the class Mixture"):
        jaxem.fit(jaxem.Mixture, two_starts("full"), x)
    with pytest.raises(ValueError, match="model: expected an instance|no E step"):
        jaxem.fit_groups(jaxem.Mixture, KEY, x, np.zeros(N, int))


def test_a_model_without_init_says_what_to_do_instead():
    class NoInit(NamedTuple):
        def e_step(self, params, data, sample_weight):
            return jnp.sum(data), jnp.zeros(())

        def m_step(self, params, stats):
            return params

    with pytest.raises(ValueError, match="init.*pass start params"):
        jaxem.fit_restarts(NoInit(), KEY, blobs())


def test_a_mixture_with_leaves_that_do_not_fit_names_them():
    x, params = blobs(), two_starts("full")
    for k in (0, -1, 2.0, None):
        with pytest.raises(ValueError, match="n_components: expected a positive int"):
            jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), k), params, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"concentration: expected shape \(2,\), got \(3,\)"):
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2, concentration=np.ones(3)), params, x)
    with pytest.raises(ValueError, match=r"active: expected shape \(2,\), got \(3,\)"):
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2, active=np.ones(3, bool)), params, x)
    with pytest.raises(ValueError, match=r"active: expected booleans"):
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2, active=np.ones(2)), params, x)
    prior = jaxem.NormalInverseWishart(mean=np.zeros(3), shrinkage=0.1, dof=4.0, scale=np.eye(2))
    with pytest.raises(ValueError, match=r"prior\.mean: expected shape \(2,\).*got \(3,\)"):
        jaxem.fit(mixture("full", prior=prior), params, x)


# --- labels


def test_labels_that_are_no_states_name_the_row():
    x = blobs()
    known = np.full(N, -1)
    known[6] = -2
    with pytest.raises(ValueError, match="known: .*row 6"):
        jaxem.labelled(x, known)
    mask = np.ones((N, K), bool)
    mask[9] = False
    with pytest.raises(ValueError, match="known: .*row 9"):
        jaxem.labelled(x, mask)
    for wrong in (np.zeros(N), np.zeros(N - 1, int), np.zeros((N, K)), np.zeros((N, K), int), np.zeros(N, bool)):
        with pytest.raises(ValueError, match="known: expected integer labels"):
            jaxem.labelled(x, wrong)


def test_a_label_beyond_the_last_state_never_passes_for_a_fit():
    data = jaxem.labelled(blobs(), np.where(np.arange(N) == 3, K, -1))
    try:
        result = jaxem.fit(mixture("full"), two_starts("full"), data)
    except ValueError as error:
        assert "known" in str(error)  # no less good
    else:
        assert statuses(result) == [Status.NONFINITE]


def test_a_mask_over_another_number_of_states_says_how_many():
    data = jaxem.labelled(blobs(), np.ones((N, 3), bool))
    with pytest.raises(ValueError, match=r"known: expected a mask over 2 states, got \(40, 3\)"):
        jaxem.fit(mixture("full"), two_starts("full"), data)


def test_start_labels_out_of_range_are_a_value_error():
    x, model = blobs(), mixture("full")
    for low, high in ((-1, 0), (0, K)):
        labels = np.where(np.arange(N) == 3, low, high)
        with pytest.raises(ValueError, match="Labels: expected states 0 to 1"):
            model.init(KEY, x, method=jaxem.Labels(labels))
    for wrong in (np.zeros(N), np.zeros(N - 1, int), np.zeros((N, 1), int)):
        with pytest.raises(ValueError, match=r"Labels: expected integers of shape \(40,\)"):
            model.init(KEY, x, method=jaxem.Labels(wrong))


def test_start_labels_out_of_range_are_a_value_error_in_the_drivers_too():
    with pytest.raises(ValueError, match="Labels: expected states 0 to 1"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs(), n_restarts=1, init=jaxem.Labels(np.full(N, K)))


def test_start_responsibilities_that_are_none_are_a_value_error():
    x, model = blobs(), mixture("full")
    for wrong in (np.ones((N, 3)) / 3, np.ones(N), np.ones((N - 1, K)) / K):
        with pytest.raises(ValueError, match=r"Responsibilities: expected shape \(40, 2\)"):
            model.init(KEY, x, method=jaxem.Responsibilities(wrong))
    for bad in (-0.5, np.nan):
        r = np.full((N, K), 0.5)
        r[7, 1] = bad
        with pytest.raises(ValueError, match="Responsibilities: .*row 7"):
            model.init(KEY, x, method=jaxem.Responsibilities(r))


# --- float32 keeps its digits: benchmarks/accuracy.py does the same at large n


@every_family
def test_float32_agrees_with_float64_whatever_the_offset_and_the_spread(name):
    n, d, k = 2000, 3, 4
    missed = []
    for spread in (1.0, 1e1, 1e2, 1e3):
        rng = np.random.default_rng(0)
        z = rng.integers(k, size=n)
        z[:k] = np.arange(k)
        factor = np.linalg.cholesky(0.5 * np.eye(d) + 0.5)
        rows = spread * rng.normal(size=(k, d))[z] + rng.normal(size=(n, d)) @ factor.T
        for offset in (0.0, 1.0, 1e1, 1e2, 1e3, 1e4):
            x = (rows + offset).astype(np.float32)
            single, double = (twenty_iterations(name, x, k, dtype) for dtype in (np.float32, np.float64))
            assert statuses(double) == [Status.MAX_ITER]
            difference = abs(float(single.log_lik) - float(double.log_lik)) / n
            truth = size = np.asarray(double.params.components.covariance)
            if name in ("full", "tied"):
                scale = np.sqrt(np.diagonal(truth, axis1=-2, axis2=-1))
                size = scale[..., :, None] * scale[..., None, :]
            error = np.max(abs(np.asarray(single.params.components.covariance, np.float64) - truth) / size)
            if statuses(single) != [Status.MAX_ITER] or not (difference <= 1e-4 and error <= 1e-3):
                missed.append((offset, spread, statuses(single), difference, error))
    assert not missed


def twenty_iterations(name: str, x: np.ndarray, k: int, dtype: Any) -> jaxem.FitResult:
    params = start(name, x[:k], x.astype(np.float64).var(axis=0), dtype)
    return jaxem.fit(mixture(name, k=k), params, x.astype(dtype), tol=-1.0, max_iter=20)
