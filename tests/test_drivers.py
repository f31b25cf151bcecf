"""The drivers: each lane or group ends as a fit of its own would, whatever the plan, the padding and its neighbours."""

import datetime
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status

KEY = jax.random.key(0)
N, D, K, MAX_ITER = 30, 2, 2, 150
SIZES = (12, 10, 16)  # of the groups of most tables here: all are padded to 16, which is one program
LARGE = 10_000

slow = pytest.mark.slow
every_plan = pytest.mark.parametrize("plan", ["lanes", "sequential"])
one_plan = pytest.mark.parametrize("plan", ["sequential", pytest.param("lanes", marks=slow)])
MODEL = jaxem.Mixture(jaxem.FullNormal(), K)


def blobs(n: int, seed: int = 0) -> np.ndarray:
    """Two clouds, a third of the rows around 4, the others around 0."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)) + 4.0 * (np.arange(n) % 3 == 0)[:, None]


def begin(n_lanes: int | None = None) -> jaxem.MixtureParams:
    """One start, or the same for every lane."""
    components = jaxem.NormalParams(jnp.array([[0.5, 0.0], [3.0, 3.5]]), jnp.stack([2.0 * jnp.eye(D)] * K))
    params = jaxem.MixtureParams(jnp.full(K, 0.5), components)
    return params if n_lanes is None else jax.tree.map(lambda leaf: jnp.stack([leaf] * n_lanes), params)


def take(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def assert_same(got: Any, want: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def assert_close(got: Any, want: Any, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def assert_same_fit(got: Any, want: Any) -> None:
    """Up to the order of additions."""
    assert_same((got.status, got.n_iter, got.n_evals), (want.status, want.n_iter, want.n_evals))
    assert_close((got.params, got.objective, got.log_lik), (want.params, want.objective, want.log_lik))


def alone(x: np.ndarray, weight: np.ndarray | None = None, size: int = 150) -> jaxem.FitResult:
    """The fit of one group; its rows are followed by rows of weight zero so that all sizes share one program."""
    n = len(x)
    padded = np.full((max(n, size), D), np.nan)
    padded[:n] = x
    weights = np.zeros(len(padded))
    weights[:n] = 1.0 if weight is None else weight
    return jaxem.fit(MODEL, begin(), padded, sample_weight=weights, max_iter=MAX_ITER)


def x64(on: bool) -> AbstractContextManager:
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import disable_x64, enable_x64  # type: ignore[attr-defined]

    return enable_x64() if on else disable_x64()


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


# --- groups


@cache
def ragged() -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A shuffled table of groups from 1 row to 10⁴."""
    sizes = [1, 2, 7, 8, 9, 40, 150, LARGE]
    ids = np.repeat(np.arange(len(sizes)), sizes)
    x = np.concatenate([blobs(size, seed) for seed, size in enumerate(sizes)])
    order = np.random.default_rng(0).permutation(len(ids))
    return x[order], ids[order], sizes


@cache
def ragged_fit() -> jaxem.GroupsResult:
    x, ids, sizes = ragged()
    return jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(len(sizes)), max_iter=MAX_ITER)


def test_every_group_of_a_ragged_table_ends_as_a_fit_of_its_own():
    x, ids, sizes = ragged()
    groups = ragged_fit()
    assert_same(groups.n_rows, np.array(sizes))
    for label in range(len(sizes)):
        want = alone(x[ids == label])
        assert_same_fit(groups.fit_of(label), want)
    assert groups.fit_of(0).status == Status.TOO_FEW
    assert groups.fit_of(7).converged
    assert 0 <= groups.padding < 0.5


def test_a_group_alone_in_the_table_ends_as_a_fit_without_weights():
    x = blobs(N)
    groups = jaxem.fit_groups(MODEL, KEY, x, ["only"] * N, init=begin(1), max_iter=MAX_ITER)
    assert_same_fit(groups.fit_of("only"), jaxem.fit(MODEL, begin(), x, max_iter=MAX_ITER))


def test_what_a_group_says_of_rows_comes_in_the_order_of_the_table():
    x, ids, sizes = ragged()
    groups = ragged_fit()
    r, z, log_prob = groups.responsibilities(x, ids), groups.predict(x, ids), groups.log_prob(x, ids)
    assert r.shape == (len(x), K) and z.shape == log_prob.shape == (len(x),)
    for label in (2, 6):
        fit, rows = groups.fit_of(label), ids == label
        assert_close(r[rows], fit.model.responsibilities(fit.params, x[rows]))
        assert_close(log_prob[rows], fit.model.log_prob(fit.params, x[rows]))
        assert_same(z[rows], np.argmax(r[rows], 1))
    some = np.flatnonzero((ids == 2) | (ids == 6))[::-1]  # another table: two of the groups, in another order
    assert_close(groups.responsibilities(x[some], ids[some]), r[some])


def day(i: int) -> np.datetime64:
    return np.datetime64("2013-01-01") + i


LABELS: dict[str, list[Any]] = {
    "int": [3, -1, 20],
    "float": [0.5, -1.5, 1e300],
    "str": ["b", "a", "longer than the others"],
    "empty str": ["", "a", "A"],
    "bytes": [b"b", b"a", b"\xff"],
    "np.str_": [np.str_("x"), np.str_("z"), np.str_("y")],
    "tuple of 2": [(1, "b"), (1, "a"), (0, "z")],
    "tuple of 3": [(1, 2, 3), (1, 2, 4), (3, 2, 1)],
    "tuple of ragged": [(), (1,), (1, 2)],
    "mixed": [1, "a", (2, "b")],
    "int and str": [1, "1", 2],
    "none": [None, "a", 1.5],
    "frozenset": [frozenset({1}), frozenset({2}), frozenset()],
    "date": [datetime.date(2013, 1, 2), datetime.date(2013, 1, 1), datetime.date(2012, 1, 1)],
    "datetime64": [day(3), day(1), day(2)],
    "trailing nul": [b"a", b"a\x00", b"b"],
}


@cache
def three_groups() -> tuple[np.ndarray, list[jaxem.FitResult]]:
    """A table sorted by group, SIZES rows each, and the fit of each group by itself."""
    parts = [blobs(size, seed) for seed, size in enumerate(SIZES)]
    return np.concatenate(parts), [alone(part) for part in parts]


ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blocks": lambda code: np.arange(len(code)),
    "blocks reversed": lambda code: np.argsort(-code, kind="stable"),
    "shuffled": lambda code: np.random.default_rng(1).permutation(len(code)),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_kind_find_their_group(kind):
    x, fits = three_groups()
    labels, code = LABELS[kind], np.repeat(np.arange(3), SIZES)
    for order in ORDERS.values():
        rows = order(code)
        ids = [labels[i] for i in code[rows]]
        groups = jaxem.fit_groups(MODEL, KEY, x[rows], ids, init=begin(3), max_iter=MAX_ITER)
        assert set(groups.labels.tolist()) == set(np.array(labels).tolist() if kind == "datetime64" else labels)
        for i, label in enumerate(labels):
            assert groups.n_rows[groups.index(label)] == SIZES[i]
            assert_same_fit(groups.fit_of(label), fits[i])
        r = groups.responsibilities(x[rows], ids)
        for i, label in enumerate(labels):
            fit = groups.fit_of(label)
            first = np.flatnonzero(code[rows] == i)[:1]
            density = fit.model.log_joint(fit.params, x[rows][first])
            assert_close(r[first], jax.nn.softmax(density, 1))


@pytest.mark.parametrize("kind", ["int", "float", "str", "bytes", "tuple of 2", "tuple of 3", "date"])
def test_labels_that_have_an_order_are_sorted(kind):
    x, _ = three_groups()
    rows = np.random.default_rng(2).permutation(len(x))
    code = np.repeat(np.arange(3), SIZES)[rows]
    groups = jaxem.fit_groups(MODEL, KEY, x[rows], [LABELS[kind][i] for i in code], init=begin(3), max_iter=MAX_ITER)
    assert groups.labels.tolist() == sorted(LABELS[kind])


def test_labels_may_be_arrays():
    x, _ = three_groups()
    code = np.repeat(np.arange(3), SIZES)
    run = lambda ids: jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(3), max_iter=MAX_ITER)  # noqa: E731
    want = run(code.tolist())
    for ids in (code, jnp.asarray(code), code.astype(np.int16), np.array(["a", "b", "c"])[code]):
        assert_same(run(ids).params, want.params)


@pytest.mark.parametrize("labels", [[(1, "b"), (0, "a")], ["a", "b"], [b"a", b"b"], [1, 2]], ids=str)
def test_a_label_that_was_not_fitted_is_an_error(labels):
    x = blobs(2 * N)
    ids = [labels[i] for i in np.repeat([0, 1], N)]
    groups = jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(2), max_iter=MAX_ITER)
    assert {groups.index(label) for label in labels} == {0, 1}
    for unknown in ("c", b"c", 3, (1, "c"), None, 1.5, ("a", "b")):
        with pytest.raises(KeyError, match="was not fitted"):
            groups.fit_of(unknown)
        strange = list(ids)
        strange[4] = unknown
        with pytest.raises(ValueError, match="group_ids: expected labels that were fitted, got"):
            groups.responsibilities(x, strange)


def test_labels_of_a_wrong_shape_are_a_value_error():
    x = blobs(N)
    with pytest.raises(ValueError, match="group_ids: expected one label for each of 30 rows, got 29"):
        jaxem.fit_groups(MODEL, KEY, x, np.zeros(N - 1, int))
    with pytest.raises(ValueError, match=r"group_ids: expected one label a row, shape \(n,\), got shape \(30, 1\)"):
        jaxem.fit_groups(MODEL, KEY, x, np.zeros((N, 1), int))
    with pytest.raises(ValueError, match="group_ids: expected concrete labels, got a traced array"):
        jax.jit(lambda ids: jaxem.fit_groups(MODEL, KEY, x, ids).params)(np.zeros(N, int))
    with pytest.raises(ValueError, match="n_rows|group_ids|data"):
        jaxem.fit_groups(MODEL, KEY, {"a": x, "b": x[:-1]}, np.zeros(N, int))


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(jaxem.KMeans(), marks=slow),
        jaxem.RandomPoints(),
        pytest.param(jaxem.RandomResponsibilities(), marks=slow),
    ],
    ids=repr,
)
def test_the_size_that_a_group_is_padded_to_changes_no_answer(method, monkeypatch):
    """Neither the padding nor what else is in the table reaches a group: not even its random start."""
    x = blobs(54)
    few, more = np.repeat(["a", "b"], [6, 8]), np.repeat(["a", "b", "c"], [6, 8, 40])
    options: dict[str, Any] = {"init": method, "max_iter": MAX_ITER}
    tight = jaxem.fit_groups(MODEL, KEY, x[: len(few)], few, **options)
    monkeypatch.setattr("jaxem.grouping._MOST_BUCKETS", 1)
    wide = jaxem.fit_groups(MODEL, KEY, x, more, **options)
    assert tight.padding < 0.2 < 0.5 < wide.padding
    for label in ("a", "b"):
        assert_same_fit(wide.fit_of(label), tight.fit_of(label))


@one_plan
def test_weights_of_rows_in_groups_are_repetitions(plan):
    x, _ = three_groups()
    code = np.repeat(np.arange(3), SIZES)
    weight = np.random.default_rng(0).integers(0, 4, len(x))
    options: dict[str, Any] = {"init": begin(3), "plan": plan, "max_iter": MAX_ITER}
    got = jaxem.fit_groups(MODEL, KEY, x, code, sample_weight=weight, **options)
    for label, size in enumerate(SIZES):
        rows = code == label
        assert_same_fit(got.fit_of(label), alone(np.repeat(x[rows], weight[rows], 0)))
        assert got.n_rows[label] == size


def test_groups_report_their_statuses():
    x, _ = three_groups()
    x = x.copy()
    x[0] = np.nan
    ids = np.repeat(["bad", "good", "tiny"], [12, 25, 1])
    groups = jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(3), max_iter=MAX_ITER)
    assert groups.counts() == {Status.CONVERGED: 1, Status.NONFINITE: 1, Status.TOO_FEW: 1}
    assert_same(groups.converged, np.array([False, True, False]))
    assert_same(groups.failed, np.array([True, False, True]))
    with pytest.raises(RuntimeError, match="(?s)2 of 3 lanes.*NONFINITE .1: bad.*TOO_FEW .1: tiny") as error:
        groups.check()
    assert "look for NaN or inf in the data" in str(error.value)
    assert groups.fit_of("good").check().converged
    with pytest.raises(AttributeError, match="no_such_field"):
        groups.no_such_field  # noqa: B018
    ordered = groups.ordered()
    assert (np.diff(ordered.fit_of("good").params.weights) <= 0).all()
    r = ordered.responsibilities(x, ids)
    assert_close(r[ids == "good"], groups.ordered(lambda p: -p.weights).responsibilities(x, ids)[ids == "good"])


def test_groups_that_all_converge_pass_the_check():
    groups = jaxem.fit_groups(MODEL, KEY, blobs(2 * N), np.repeat([0, 1], N), init=begin(2), max_iter=MAX_ITER)
    assert groups.check() is groups


@every_plan
def test_groups_that_are_all_too_small_still_have_a_result(plan):
    groups = jaxem.fit_groups(MODEL, KEY, blobs(3), [0, 1, 2], plan=plan, max_iter=MAX_ITER)
    assert groups.counts() == {Status.TOO_FEW: 3}
    assert 0 <= float(groups.lane_efficiency) <= 1
    mixed = jaxem.fit_groups(MODEL, KEY, blobs(N + 3), [0, 1, 2, *([3] * N)], plan=plan, max_iter=MAX_ITER)
    assert mixed.fit_of(3).converged
    assert 0 < float(mixed.lane_efficiency) <= 1


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


@every_plan
def test_restarts_return_the_best_and_a_failed_one_never_wins(starts_that_fail, plan):
    model, x, every, _ = starts_that_fail
    options: dict[str, Any] = {"init": jaxem.RandomPoints(), "plan": plan, "max_iter": MAX_ITER}
    best = jaxem.fit_restarts(model, KEY, x, n_restarts=12, **options)
    score = np.where(every.failed, -np.inf, every.objective)
    assert not best.failed
    assert_same_fit(best, take(every, int(np.argmax(score))))
    assert float(np.max(np.where(np.isnan(every.objective), -np.inf, every.objective))) >= float(best.objective)
    assert 0 < float(best.lane_efficiency) <= 1


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
        best = take(every, int(np.argmax(np.where(every.failed, -np.inf, every.objective))))
        assert_same_fit(groups.fit_of(group), best)


def test_the_same_key_gives_the_same_restarts():
    x = blobs(N)
    run = lambda key: jaxem.fit_restarts(MODEL, key, x, n_restarts=2, max_iter=MAX_ITER)  # noqa: E731
    assert_same(run(KEY).params, run(KEY).params)


# --- plans


def test_the_plan_never_changes_the_answer():
    x = np.stack([blobs(N, seed) for seed in range(5)])
    batch = lambda plan: jaxem.fit_batch(MODEL, begin(5), x, plan=plan, max_iter=MAX_ITER)  # noqa: E731
    restarts = lambda plan: jaxem.fit_restarts(  # noqa: E731
        MODEL, KEY, x[0], n_restarts=3, init=jaxem.RandomPoints(), plan=plan, max_iter=MAX_ITER
    )
    groups = lambda plan: jaxem.fit_groups(  # noqa: E731
        MODEL, KEY, x.reshape(-1, D), np.repeat(np.arange(5), N), n_restarts=2, plan=plan, max_iter=MAX_ITER
    )
    for run in (batch, restarts, groups):
        lanes, sequential, auto = run("lanes"), run("sequential"), run("auto")
        assert_same_fit(lanes, sequential)
        assert_same_fit(auto, sequential)
        assert 0 < float(lanes.lane_efficiency) <= 1
        assert float(sequential.lane_efficiency) == 1


# --- batches


@every_plan
@pytest.mark.parametrize("n_lanes", [pytest.param(1, marks=slow), 5, pytest.param(19, marks=slow)])
def test_every_lane_of_a_batch_ends_as_a_fit_of_its_own(plan, n_lanes):
    x = np.stack([blobs(N, seed) for seed in range(n_lanes)])
    batch = jaxem.fit_batch(MODEL, begin(n_lanes), x, plan=plan, max_iter=MAX_ITER)
    assert batch.history.shape == (n_lanes, MAX_ITER + 1)
    for lane in range(n_lanes):
        want = jaxem.fit(MODEL, begin(), x[lane], max_iter=MAX_ITER)
        assert_same_fit(take(batch_without_efficiency(batch), lane), want)
        assert_close(batch.history[lane], want.history)


def batch_without_efficiency(batch: jaxem.FitResult) -> jaxem.FitResult:
    from dataclasses import replace

    return replace(batch, lane_efficiency=None)


@every_plan
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


@one_plan
def test_hyper_parameters_of_lanes_are_those_of_a_loop_of_fits(plan):
    x = np.stack([blobs(N, seed) for seed in range(3)])
    floors, concentration = np.array([1e-6, 1e-2, 1.0]), np.array([[1.0, 1.0], [5.0, 1.0], [2.0, 20.0]])

    def model(floor, concentration):
        return jaxem.Mixture(jaxem.FullNormal(floor=floor), K, concentration=concentration)

    want = [
        jaxem.fit(model(floors[i], concentration[i]), begin(), x[i], max_iter=MAX_ITER) for i in range(3)
    ]  # fmt: skip
    shared = [jaxem.fit(model(floors[i], concentration[1]), begin(), x[i], max_iter=MAX_ITER) for i in range(3)]
    run = lambda model, axes: batch_without_efficiency(  # noqa: E731
        jaxem.fit_batch(model, begin(3), x, model_axes=axes, plan=plan, max_iter=MAX_ITER)
    )
    every = run(model(floors, concentration), 0)
    prefix = run(model(floors, concentration[1]), jaxem.Mixture(0, K, concentration=None))
    full_prefix = run(model(floors, concentration[1]), jaxem.Mixture(jaxem.FullNormal(floor=0), K, concentration=None))
    for lane in range(3):
        assert_same_fit(take(every, lane), want[lane])
        assert_same_fit(take(prefix, lane), shared[lane])
        assert_same_fit(take(full_prefix, lane), shared[lane])
    assert_same(every.model.family.floor, floors)


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


def test_fit_works_inside_jit_on_rows_that_are_a_constant_of_the_program():
    """The params alone are traced: the rows can be checked, but no branch may be taken on a traced array."""
    for x in (blobs(N), jnp.asarray(blobs(N))):
        got = jax.jit(lambda params: jaxem.fit(MODEL, params, x, max_iter=MAX_ITER))(begin())  # noqa: B023
        assert_same_fit(got, jaxem.fit(MODEL, begin(), x, max_iter=MAX_ITER))


def test_restarts_work_inside_jit_on_rows_that_are_a_constant_of_the_program():
    x = blobs(N)
    run = lambda key: jaxem.fit_restarts(  # noqa: E731
        MODEL, key, x, n_restarts=3, init=jaxem.RandomPoints(), max_iter=MAX_ITER
    )
    assert_same_fit(jax.jit(run)(KEY), run(KEY))


def test_fit_batch_and_fit_restarts_work_inside_jit():
    x = jnp.stack([jnp.asarray(blobs(N, seed)) for seed in range(3)])
    batch = lambda x: jaxem.fit_batch(MODEL, begin(3), x, max_iter=MAX_ITER)  # noqa: E731
    restarts = lambda x: jaxem.fit_restarts(MODEL, KEY, x[0], n_restarts=3, max_iter=MAX_ITER)  # noqa: E731
    for run in (batch, restarts):
        got, want = jax.jit(run)(x), run(x)
        assert_same_fit(got, want)
        assert_close(got.lane_efficiency, want.lane_efficiency)


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


def test_fit_batch_works_inside_vmap():
    x = jnp.stack([jnp.asarray(blobs(N, seed)) for seed in range(4)]).reshape(2, 2, N, D)
    got = jax.vmap(lambda x: jaxem.fit_batch(MODEL, begin(2), x, max_iter=MAX_ITER))(x)
    for i in range(2):
        want = jaxem.fit_batch(MODEL, begin(2), x[i], max_iter=MAX_ITER)
        assert_same_fit(take(batch_without_efficiency(got), i), batch_without_efficiency(want))


def test_fit_restarts_works_inside_vmap():
    x = jnp.stack([jnp.asarray(blobs(N, seed)) for seed in range(2)])
    run = lambda x: jaxem.fit_restarts(MODEL, KEY, x, n_restarts=3, max_iter=MAX_ITER)  # noqa: E731
    got = jax.vmap(run)(x)
    for i in range(2):
        assert_same_fit(take(batch_without_efficiency(got), i), run(x[i]))


@pytest.mark.parametrize("driver", [pytest.param("fit_batch", marks=slow), "fit_restarts", "fit_groups"])
def test_the_derivative_of_every_driver_agrees_with_finite_differences(driver):
    x = jnp.stack([jnp.asarray(blobs(N, seed)) for seed in range(2)])
    direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
    options: dict[str, Any] = {"tol": 1e-13, "max_iter": 500}

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
    from dataclasses import replace

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
    from dataclasses import replace

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
    covariance = (scatter + floor * np.diag(x.var(0))) / count[:, None, None]
    return jaxem.MixtureParams(count / len(x), jaxem.NormalParams(mean, covariance))  # type: ignore[arg-type]


def test_labels_of_every_row_give_the_closed_form_in_every_driver():
    x = np.stack([blobs(N, seed) for seed in range(3)])
    z = np.stack([np.random.default_rng(seed).integers(K, size=N) for seed in range(3)])
    want = [by_class(x[i], z[i]) for i in range(3)]
    one = jaxem.fit(MODEL, begin(), jaxem.labelled(x[0], z[0]), max_iter=MAX_ITER).check()
    assert_close(one.params, want[0])
    mask = jaxem.fit(MODEL, begin(), jaxem.labelled(x[0], np.eye(K, dtype=bool)[z[0]]), max_iter=MAX_ITER)
    assert_close(mask.params, want[0])
    batch = jaxem.fit_batch(MODEL, begin(3), jax.vmap(jaxem.labelled)(x, z), max_iter=MAX_ITER).check()
    table, ids = jaxem.labelled(x.reshape(-1, D), z.ravel()), np.repeat(["a", "b", "c"], N)
    groups = jaxem.fit_groups(MODEL, KEY, table, ids, init=begin(3), max_iter=MAX_ITER).check()
    drawn = jaxem.fit_groups(MODEL, KEY, table, ids, n_restarts=2, max_iter=MAX_ITER).check()
    for i in range(3):
        assert_close(take(batch.params, i), want[i])
        assert_close(take(groups.params, i), want[i])
        assert_close(take(drawn.params, i), want[i])
    best = jaxem.fit_restarts(MODEL, KEY, take(table, slice(N)), n_restarts=2, max_iter=MAX_ITER).check()
    assert_close(best.params, want[0])


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
