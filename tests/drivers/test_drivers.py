"""The drivers: each lane ends as a fit of its own would, whatever the plan and its neighbours."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver_cases import MAX_ITER, MODEL, SIZES, N, assert_close, assert_same_fit, begin, three_groups
from helpers import KEY, D, K, assert_same, blobs, first, once_a_week, sequential_first, slow, take, two_starts, x64

import jaxem
from jaxem import Status
from jaxem.numerics.scales import robust_variance

# --- specifications


def test_no_two_specifications_have_the_same_tree_structure():
    """Compiled programs are found by tree structure: jax takes two dataclasses of like fields for the same one."""
    specifications = [
        jaxem.FullNormal(), jaxem.DiagonalNormal(), jaxem.SphericalNormal(), jaxem.TiedNormal(),
        jaxem.KMeans(), jaxem.RandomPoints(), jaxem.RandomResponsibilities(), jaxem.Labels(0),
        jaxem.Responsibilities(0), jaxem.Soft(), jaxem.Tempered(), jaxem.Hard(), jaxem.Sampled(), jaxem.Given(0),  # type: ignore[arg-type]
        jaxem.EM(), jaxem.Implicit(), jaxem.Stop(), jaxem.Objective(),
    ]  # fmt: skip
    clashes = [
        (type(a).__name__, type(b).__name__)
        for i, a in enumerate(specifications)
        for b in specifications[:i]
        if jax.tree.structure(a) == jax.tree.structure(b)
    ]
    assert not clashes


# --- restarts


@pytest.fixture(scope="module")
def starts_that_fail():
    """A problem without a floor on which some starts end on a spike; the fit of every start, and how they are made."""
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 3)
    x = jnp.asarray(np.concatenate([blobs(N), np.tile([[1.5, 1.5]], (4, 1))]))  # a start on the repeated row is a spike
    keys = jax.random.split(KEY, 12)

    @jax.jit
    def every(keys, x):
        start = lambda key: model.init(key, x, method=jaxem.RandomPoints())  # noqa: E731
        return jax.vmap(lambda key: jaxem.fit(model, start(key), x, max_iter=MAX_ITER))(keys)

    result = every(keys, x)
    assert result.failed.any() and not result.failed.all()
    return model, x, result, every


@slow
@sequential_first
def test_restarts_return_the_best_and_a_failed_one_never_wins(starts_that_fail, plan):
    model, x, every, _ = starts_that_fail
    options: dict[str, Any] = {"init": jaxem.RandomPoints(), "plan": plan, "max_iter": MAX_ITER}
    best = jaxem.fit_restarts(model, KEY, x, n_restarts=12, **options)
    score = np.where(every.failed, -np.inf, every.objective)
    assert not best.failed
    sound = score[score < 0].max()  # on a spike the objective is positive, and rounding decides whether it fails
    assert float(best.objective) >= sound - 1e-6
    assert float(np.max(np.where(np.isnan(every.objective), -np.inf, every.objective))) >= float(best.objective)
    assert 0 < float(best.lane_efficiency) <= 1


@slow
def test_restarts_in_groups_return_the_best_of_each_group(starts_that_fail):
    model, x, _, fit_all = starts_that_fail
    groups = jaxem.fit_groups(
        model, KEY, jnp.concatenate([x, x]), np.repeat([0, 1], len(x)), n_restarts=12, init=jaxem.RandomPoints(),
        max_iter=MAX_ITER,
    )  # fmt: skip
    keys = jax.random.split(KEY, (2, 12))
    for group in range(2):
        every = fit_all(keys[group], x)
        assert every.failed.any()
        score = np.where(every.failed, -np.inf, every.objective)
        sound = score[score < 0].max()  # on a spike the objective is positive, and rounding decides whether it fails
        assert not groups.fit_of(group).failed
        assert float(groups.fit_of(group).objective) >= sound - 1e-6


def test_the_same_key_gives_the_same_restarts():
    x = blobs(N)
    run = lambda key: jaxem.fit_restarts(MODEL, key, x, n_restarts=2, max_iter=MAX_ITER)  # noqa: E731
    assert_same(run(KEY).params, run(KEY).params)


# --- plans


@first("driver", ["batch", "restarts", "groups"])
def test_the_plan_never_changes_the_answer(driver):
    x = np.stack([blobs(N, seed) for seed in range(5)])
    batch = lambda plan: jaxem.fit_batch(MODEL, begin(5), x, plan=plan, max_iter=MAX_ITER)  # noqa: E731
    restarts = lambda plan: jaxem.fit_restarts(  # noqa: E731
        MODEL, KEY, x[0], n_restarts=3, plan=plan, max_iter=MAX_ITER
    )
    groups = lambda plan: jaxem.fit_groups(  # noqa: E731
        MODEL, KEY, x.reshape(-1, D), np.repeat(np.arange(5), N), n_restarts=2, plan=plan, max_iter=MAX_ITER
    )
    run = {"batch": batch, "restarts": restarts, "groups": groups}[driver]
    lanes, sequential, auto = run("lanes"), run("sequential"), run("auto")
    assert_same_fit(lanes, sequential)
    assert_same_fit(auto, sequential)
    assert 0 < float(lanes.lane_efficiency) <= 1
    assert float(sequential.lane_efficiency) == 1


# --- batches


@slow
@pytest.mark.parametrize("plan", ["lanes", "sequential"])
@pytest.mark.parametrize("n_lanes", [pytest.param(1, marks=once_a_week), 5, pytest.param(19, marks=once_a_week)])
def test_every_lane_of_a_batch_ends_as_a_fit_of_its_own(plan, n_lanes):
    x = np.stack([blobs(N, seed) for seed in range(n_lanes)])
    batch = jaxem.fit_batch(MODEL, begin(n_lanes), x, plan=plan, max_iter=MAX_ITER)
    assert batch.history.shape == (n_lanes, MAX_ITER + 1)
    for lane in range(n_lanes):
        want = jaxem.fit(MODEL, begin(), x[lane], max_iter=MAX_ITER)
        assert_same_fit(take(without_efficiency(batch), lane), want)
        assert_close(batch.history[lane], want.history)


@sequential_first
def test_the_first_lanes_of_a_batch_do_not_depend_on_a_last_one_that_fails(plan):
    x = np.stack([blobs(N, seed) for seed in range(4)])
    x[3] = np.nan
    four = jaxem.fit_batch(MODEL, begin(4), x, plan=plan, max_iter=MAX_ITER)
    three = jaxem.fit_batch(MODEL, begin(3), x[:3], plan=plan, max_iter=MAX_ITER)
    assert [Status(int(code)) for code in four.status] == [Status.CONVERGED] * 3 + [Status.NONFINITE]
    assert_same((four.n_iter[:3], four.status[:3]), (three.n_iter, three.status))
    assert_close(take(four.params, slice(3)), three.params, rtol=1e-12, atol=1e-13)
    with pytest.raises(RuntimeError, match=r"1 of 4 lanes did not converge:\s+NONFINITE \(1: 3\)"):
        four.check()
    assert three.check() is three


@sequential_first
@first("axes", ["every leaf", "prefix", "full prefix"])
def test_hyper_parameters_of_lanes_are_those_of_a_loop_of_fits(plan, axes):
    x = np.stack([blobs(N, seed) for seed in range(3)])
    floors, concentration = np.array([1e-6, 1e-2, 1.0]), np.array([[1.0, 1.0], [5.0, 1.0], [2.0, 20.0]])

    def model(floor, concentration):
        return jaxem.Mixture(jaxem.FullNormal(floor=floor), K, concentration=concentration)

    run = lambda model, axes: without_efficiency(  # noqa: E731
        jaxem.fit_batch(model, begin(3), x, model_axes=axes, plan=plan, max_iter=MAX_ITER)
    )
    if axes == "every leaf":
        own, got = concentration, run(model(floors, concentration), 0)
        assert_same(got.model.family.floor, floors)
    else:
        own = np.stack([concentration[1]] * 3)
        family = 0 if axes == "prefix" else jaxem.FullNormal(floor=0)
        got = run(model(floors, concentration[1]), jaxem.Mixture(family, K, concentration=None))
    for lane in range(3):
        want = jaxem.fit(model(floors[lane], own[lane]), begin(), x[lane], max_iter=MAX_ITER)
        assert_same_fit(take(got, lane), want)


def test_hyper_parameters_that_do_not_lead_with_the_lanes_name_the_argument():
    x = np.stack([blobs(N, seed) for seed in range(3)])
    run = lambda model, axes: jaxem.fit_batch(model, begin(3), x, model_axes=axes)  # noqa: E731
    with pytest.raises(ValueError, match=r"model_axes: expected leaves leading with 3 lanes, got shape \(\)"):
        run(MODEL, 0)
    with pytest.raises(ValueError, match=r"model_axes: expected leaves leading with 3 lanes, got shape \(2,\)"):
        run(jaxem.Mixture(jaxem.FullNormal(floor=np.ones(2)), K), 0)
    with pytest.raises(ValueError, match="model_axes: expected 0 or None, got 1"):
        run(MODEL, 1)
    with pytest.raises(ValueError, match="model_axes: expected 0, None, or a prefix tree"):
        run(MODEL, (0, None))
    with pytest.raises(ValueError, match="concentration: expected shape"):
        run(
            jaxem.Mixture(jaxem.FullNormal(), K, concentration=np.ones((3, 3))), jaxem.Mixture(None, K, concentration=0)
        )
    with pytest.raises(ValueError, match="floor|model_axes|shape"):
        run(jaxem.Mixture(jaxem.FullNormal(floor=np.ones(3)), K), None)  # not said to be per lane


# --- inside transformations


@first("array", [jnp.asarray, np.asarray])
def test_fit_works_inside_jit_on_rows_that_are_a_constant_of_the_program(array):
    """The params alone are traced: the rows can be checked, but no branch may be taken on a traced array."""
    x = array(blobs(N))
    got = jax.jit(lambda params: jaxem.fit(MODEL, params, x, max_iter=MAX_ITER))(begin())
    assert_same_fit(got, jaxem.fit(MODEL, begin(), x, max_iter=MAX_ITER))


@slow
def test_restarts_work_inside_jit_on_rows_that_are_a_constant_of_the_program():
    x = blobs(N)
    run = lambda key: jaxem.fit_restarts(  # noqa: E731
        MODEL, key, x, n_restarts=3, max_iter=MAX_ITER
    )
    assert_same_fit(jax.jit(run)(KEY), run(KEY))


@slow
@first("driver", ["restarts", "batch"])
def test_fit_batch_and_fit_restarts_work_inside_jit(driver):
    x = jnp.stack([jnp.asarray(blobs(N, seed)) for seed in range(3)])
    batch = lambda x: jaxem.fit_batch(MODEL, begin(3), x, max_iter=MAX_ITER)  # noqa: E731
    restarts = lambda x: jaxem.fit_restarts(MODEL, KEY, x[0], n_restarts=3, max_iter=MAX_ITER)  # noqa: E731
    run = batch if driver == "batch" else restarts
    got, want = jax.jit(run)(x), run(x)
    assert_same_fit(got, want)
    assert_close(got.lane_efficiency, want.lane_efficiency)


@pytest.mark.slow
def test_fit_groups_works_inside_jit_with_traced_data_weights_and_key():
    x, _ = three_groups()
    ids = np.repeat(["c", "a", "b"], SIZES)
    weight = np.linspace(0.5, 1.5, len(x))

    def run(x, weight, key):
        groups = jaxem.fit_groups(
            MODEL, key, x, ids, sample_weight=weight, init=jaxem.RandomPoints(), max_iter=MAX_ITER
        )
        return groups.fits, groups.responsibilities(x, ids)

    (got, got_r), (want, want_r) = jax.jit(run)(x, weight, KEY), run(x, weight, KEY)
    assert_same_fit(got, want)
    assert_close(got_r, want_r)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_fit_works_on_constants_inside_a_trace(transform):
    x, start, model = blobs(), two_starts("full"), jaxem.Mixture(jaxem.FullNormal(), 2)
    want = jaxem.fit(model, start, x).objective
    got = transform(lambda s: s * jaxem.fit(model, start, x).objective)(1.0)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.slow
def test_fit_batch_works_inside_vmap():
    x = jnp.stack([jnp.asarray(blobs(N, seed)) for seed in range(4)]).reshape(2, 2, N, D)
    got = jax.vmap(lambda x: jaxem.fit_batch(MODEL, begin(2), x, max_iter=MAX_ITER))(x)
    for i in range(2):
        want = jaxem.fit_batch(MODEL, begin(2), x[i], max_iter=MAX_ITER)
        assert_same_fit(take(without_efficiency(got), i), without_efficiency(want))


@slow
def test_fit_restarts_works_inside_vmap():
    x = jnp.stack([jnp.asarray(blobs(N, seed)) for seed in range(2)])
    run = lambda x: jaxem.fit_restarts(MODEL, KEY, x, n_restarts=3, max_iter=MAX_ITER)  # noqa: E731
    got = jax.vmap(run)(x)
    for i in range(2):
        assert_same_fit(take(without_efficiency(got), i), run(x[i]))


@slow
@first("driver", ["fit_restarts", "fit_batch", "fit_groups"])
def test_the_derivative_of_every_driver_agrees_with_finite_differences(driver):
    x = jnp.stack([jnp.asarray(blobs(N, seed)) for seed in range(2)])
    direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
    options: dict[str, Any] = {"stop": jaxem.Objective(1e-13), "max_iter": 500}

    def loss(x):
        match driver:
            case "fit_batch":
                fits = jaxem.fit_batch(MODEL, begin(2), x, **options)
            case "fit_restarts":
                fits = jaxem.fit_restarts(MODEL, KEY, x[0], n_restarts=2, **options).ordered()
            case _:
                ids = np.repeat(["a", "b"], N)
                fits = jaxem.fit_groups(MODEL, KEY, x.reshape(-1, D), ids, init=begin(2), **options).fits
        return jnp.sum(jnp.sin(fits.params.components.mean)) + jnp.sum(fits.params.weights[..., 0])

    value = jax.jit(loss)
    slope = jnp.vdot(jax.jit(jax.grad(loss))(x), direction)
    step = 1e-5
    difference = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-5)


@slow
def test_eager_grad_through_fit_restarts_is_that_under_jit():
    x = jnp.asarray(blobs(N))
    loss = lambda x: jaxem.fit_restarts(MODEL, KEY, x, n_restarts=2, tol=1e-10).log_lik  # noqa: E731
    assert_close(jax.grad(loss)(x), jax.jit(jax.grad(loss))(x))


def test_the_precision_set_by_a_context_holds_in_every_thread():
    """Lanes run on threads of their own, to which jax's contexts do not reach by themselves."""
    jax.config.update("jax_enable_x64", False)
    try:
        with x64(True):
            x = np.stack([blobs(N, seed) for seed in range(3)])
            got = jaxem.fit_batch(MODEL, begin(3), x, plan="sequential", max_iter=MAX_ITER)
            want = jaxem.fit(MODEL, begin(), x[0], max_iter=MAX_ITER)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert got.objective.dtype == np.float64
    np.testing.assert_allclose(got.objective[0], want.objective, rtol=1e-12)


# --- progress


def progress_calls() -> list[Callable[[], Any]]:
    x = np.stack([blobs(N, seed) for seed in range(3)])
    options: dict[str, Any] = {"progress": True, "plan": "sequential", "max_iter": MAX_ITER}
    return [
        lambda: jaxem.fit_batch(MODEL, begin(3), x, **options),
        lambda: jaxem.fit_restarts(MODEL, KEY, x[0], n_restarts=3, **options),
        lambda: jaxem.fit_groups(MODEL, KEY, x.reshape(-1, D), np.repeat([0, 1, 2], N), init=begin(3), **options),
    ]


def test_progress_shows_a_bar_and_without_it_nothing_is_written(capsys):
    pytest.importorskip("tqdm")
    for call in progress_calls():
        call()
        out, err = capsys.readouterr()
        assert out == "" and "%" in err
    jaxem.fit_batch(MODEL, begin(3), np.stack([blobs(N)] * 3), plan="sequential", max_iter=MAX_ITER)
    assert capsys.readouterr() == ("", "")


def test_progress_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for call in progress_calls():
        with pytest.raises(ImportError, match=r"progress=True needs tqdm: pip install .*progress=False"):
            call()


# --- results


@pytest.mark.parametrize("status", list(Status))
def test_check_says_what_the_status_means_and_what_to_do(status):
    result = jaxem.fit(MODEL, begin(), blobs(N), max_iter=MAX_ITER)
    result = replace(result, status=jnp.asarray(int(status), jnp.int32))
    if status in (Status.CONVERGED, Status.RESOLUTION):
        assert result.check() is result and result.converged
        return
    assert not result.converged
    with pytest.raises(RuntimeError, match=f"the fit ended with status {status.name}: .{{20,}}"):
        result.check()


def test_statuses_of_a_fit():
    x = blobs(N)
    run = lambda **options: jaxem.fit(MODEL, begin(), x, **options)  # noqa: E731
    converged = run(max_iter=MAX_ITER)
    assert converged.status == Status.CONVERGED and converged.converged and not converged.failed
    n = int(converged.n_iter)
    assert int(converged.n_evals) == n + 1
    assert np.isfinite(converged.history[: n + 1]).all() and np.isnan(converged.history[n + 1 :]).all()
    assert converged.history[n] == converged.objective
    few = run(max_iter=2)
    assert few.status == Status.MAX_ITER and int(few.n_iter) == 2 and not few.failed
    resolution = run(max_iter=MAX_ITER, tol=0.0)
    assert resolution.status in (Status.RESOLUTION, Status.MAX_ITER, Status.CONVERGED)
    none = run(max_iter=0)
    assert none.status == Status.MAX_ITER and int(none.n_iter) == 0
    assert_same(none.params, begin())
    assert none.objective == none.history[0]
    exact = run(max_iter=MAX_ITER, tol=-1.0)
    assert exact.status == Status.MAX_ITER and int(exact.n_iter) == MAX_ITER


def test_check_of_a_batch_counts_the_lanes_per_status():
    x = np.stack([blobs(N, seed) for seed in range(3)])
    batch = jaxem.fit_batch(MODEL, begin(3), x, max_iter=MAX_ITER)
    codes = [Status.CONVERGED] * 2 + [Status.MAX_ITER] * 7 + [Status.DEGENERATE]
    many = replace(batch, status=jnp.asarray([int(code) for code in codes], jnp.int32))
    with pytest.raises(RuntimeError) as error:
        many.check()
    text = str(error.value)
    assert "8 of 10 lanes did not converge" in text
    assert "MAX_ITER (7: 2, 3, 4, 5, 6, …)" in text and "DEGENERATE (1: 9)" in text
    assert "raise max_iter" in text


# --- labelled data


def by_class(x: np.ndarray, z: np.ndarray, floor: float = 1e-6) -> jaxem.MixtureParams:
    """The closed form for rows whose components are all known."""
    count = np.bincount(z, minlength=K)
    mean = np.stack([x[z == j].mean(0) for j in range(K)])
    scatter = np.stack([(x[z == j] - mean[j]).T @ (x[z == j] - mean[j]) for j in range(K)])
    covariance = (scatter + floor * np.diag(robust_variance(jnp.asarray(x), None))) / count[:, None, None]
    return jaxem.MixtureParams(count / len(x), jaxem.NormalParams(mean, covariance))  # type: ignore[arg-type]


@first("driver", ["fit", "fit of a mask", "fit_batch", "fit_restarts", "fit_groups", "fit_groups, drawn"])
def test_labels_of_every_row_give_the_closed_form_in_every_driver(driver):
    x = np.stack([blobs(N, seed) for seed in range(3)])
    z = np.stack([np.random.default_rng(seed).integers(K, size=N) for seed in range(3)])
    table, ids = jaxem.labelled(x.reshape(-1, D), z.ravel()), np.repeat(["a", "b", "c"], N)
    options: dict[str, Any] = {"max_iter": MAX_ITER}
    match driver:
        case "fit":
            result = jaxem.fit(MODEL, begin(), jaxem.labelled(x[0], z[0]), **options)
        case "fit of a mask":
            result = jaxem.fit(MODEL, begin(), jaxem.labelled(x[0], np.eye(K, dtype=bool)[z[0]]), **options)
        case "fit_restarts":
            result = jaxem.fit_restarts(MODEL, KEY, take(table, slice(N)), n_restarts=2, **options)
        case "fit_batch":
            result = jaxem.fit_batch(MODEL, begin(3), jax.vmap(jaxem.labelled)(x, z), **options)
        case "fit_groups":
            result = jaxem.fit_groups(MODEL, KEY, table, ids, init=begin(3), **options)
        case _:
            result = jaxem.fit_groups(MODEL, KEY, table, ids, n_restarts=2, **options)
    params = result.check().params
    if params.weights.ndim == 1:
        assert_close(params, by_class(x[0], z[0]))
    else:
        for i in range(3):
            assert_close(take(params, i), by_class(x[i], z[i]))


def test_labels_of_a_few_rows_decide_which_component_is_which():
    x = blobs(N)
    known = np.full(N, -1)
    known[:6] = np.where(np.arange(6) % 3 == 0, 0, 1)  # against the order of the start
    flipped = jaxem.MixtureParams(
        begin().weights, jaxem.NormalParams(begin().components.mean[::-1], begin().components.covariance)
    )
    got = jaxem.fit(MODEL, flipped, jaxem.labelled(x, known), max_iter=MAX_ITER).check()
    assert got.params.components.mean[0, 0] > 2 > got.params.components.mean[1, 0]
    unknown = jaxem.fit(MODEL, begin(), jaxem.labelled(x, np.full(N, -1)), max_iter=MAX_ITER)
    assert_same_fit(unknown, jaxem.fit(MODEL, begin(), x, max_iter=MAX_ITER))


def test_labels_follow_their_rows_through_a_shuffled_table():
    x, _ = three_groups()
    z = np.arange(len(x)) % K
    code = np.repeat(np.arange(3), SIZES)
    rows = np.random.default_rng(1).permutation(len(x))
    groups = jaxem.fit_groups(
        MODEL, KEY, jaxem.labelled(x[rows], z[rows]), code[rows], init=begin(3), max_iter=MAX_ITER
    )
    for label in range(3):
        mine = code == label
        assert_close(groups.fit_of(label).params, by_class(x[mine], z[mine]))


def without_efficiency(batch: jaxem.FitResult) -> jaxem.FitResult:
    return replace(batch, lane_efficiency=None)
