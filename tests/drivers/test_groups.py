"""`fit_groups`: each group ends as a fit of its own would, whatever its label, its padding and its neighbours."""

import datetime
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver_cases import MAX_ITER, MODEL, SIZES, N, alone, assert_close, assert_same_fit, begin, three_groups
from helpers import KEY, K, assert_same, blobs, first, sequential_first

import jaxem
from jaxem import Status
from jaxem.running import padding as ragged_tables


@cache
def ragged(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, jaxem.GroupsResult]:
    """A shuffled table of groups of these sizes, the group of each row, and the fits."""
    ids = np.repeat(np.arange(len(sizes)), sizes)
    x = np.concatenate([blobs(size, seed) for seed, size in enumerate(sizes)])
    order = np.random.default_rng(0).permutation(len(ids))
    x, ids = x[order], ids[order]
    return x, ids, jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(len(sizes)), algorithm=jaxem.EM(), max_iter=MAX_ITER)


ragged_sizes = first("sizes", [(1, 2, 7, 8, 9, 16), (1, 2, 7, 8, 9, 40, 150, 10_000)], ids=["few", "many"])


@ragged_sizes
def test_every_group_of_a_ragged_table_ends_as_a_fit_of_its_own(sizes):
    x, ids, groups = ragged(sizes)
    assert_same(groups.n_rows, np.array(sizes))
    for label in range(len(sizes)):
        want = alone(x[ids == label])
        assert_same_fit(groups.fit_of(label), want)
    assert groups.fit_of(0).status == Status.TOO_FEW
    assert groups.fit_of(len(sizes) - 1).converged
    assert 0 <= groups.padding < 0.5


def test_a_group_alone_in_the_table_ends_as_a_fit_without_weights():
    x = blobs(N)
    groups = jaxem.fit_groups(MODEL, KEY, x, ["only"] * N, init=begin(1), algorithm=jaxem.EM(), max_iter=MAX_ITER)
    assert_same_fit(groups.fit_of("only"), jaxem.fit(MODEL, begin(), x, max_iter=MAX_ITER))


@ragged_sizes
def test_what_a_group_says_of_rows_comes_in_the_order_of_the_table(sizes):
    x, ids, groups = ragged(sizes)
    last = len(sizes) - 2
    ask = jax.jit(lambda model, params, x: (model.responsibilities(params, x), model.log_prob(params, x)))
    r, z, log_prob = groups.responsibilities(x, ids), groups.predict(x, ids), groups.log_prob(x, ids)
    assert r.shape == (len(x), K) and z.shape == log_prob.shape == (len(x),)
    for label in (2, last):
        fit, rows = groups.fit_of(label), ids == label
        want_r, want_log_prob = ask(fit.model, fit.params, x[rows])
        assert_close(r[rows], want_r)
        assert_close(log_prob[rows], want_log_prob)
        assert_same(z[rows], np.argmax(r[rows], 1))
    some = np.flatnonzero((ids == 2) | (ids == last))[::-1]  # another table: two of the groups, in another order
    assert_close(groups.responsibilities(x[some], ids[some]), r[some])


def day(i: int) -> np.datetime64:
    return np.datetime64("2013-01-01") + np.timedelta64(i, "D")


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


ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blocks": lambda code: np.arange(len(code)),
    "blocks reversed": lambda code: np.argsort(-code, kind="stable"),
    "shuffled": lambda code: np.random.default_rng(1).permutation(len(code)),
}


@pytest.mark.slow
@first("kind", LABELS)
def test_labels_of_every_kind_find_their_group(kind):
    x, fits = three_groups()
    labels, code = LABELS[kind], np.repeat(np.arange(3), SIZES)
    for order in ORDERS.values():
        rows = order(code)
        ids = [labels[i] for i in code[rows]]
        groups = jaxem.fit_groups(MODEL, KEY, x[rows], ids, init=begin(3), algorithm=jaxem.EM(), max_iter=MAX_ITER)
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
    groups = jaxem.fit_groups(
        MODEL, KEY, x[rows], [LABELS[kind][i] for i in code], init=begin(3), algorithm=jaxem.EM(), max_iter=MAX_ITER
    )
    assert groups.labels.tolist() == sorted(LABELS[kind])


def test_labels_may_be_arrays():
    x, _ = three_groups()
    code = np.repeat(np.arange(3), SIZES)
    run = lambda ids: jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(3), algorithm=jaxem.EM(), max_iter=MAX_ITER)  # noqa: E731
    want = run(code.tolist())
    for ids in (code, jnp.asarray(code), code.astype(np.int16), np.array(["a", "b", "c"])[code]):
        assert_same(run(ids).params, want.params)


@pytest.mark.parametrize("labels", [[(1, "b"), (0, "a")], ["a", "b"], [b"a", b"b"], [1, 2]], ids=str)
def test_a_label_that_was_not_fitted_is_an_error(labels):
    x = blobs(2 * N)
    ids = [labels[i] for i in np.repeat([0, 1], N)]
    groups = jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(2), algorithm=jaxem.EM(), max_iter=MAX_ITER)
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


def test_padding_is_worth_the_compilations_that_it_saves(monkeypatch):
    monkeypatch.setattr(ragged_tables, "_BUCKET_WORK", 600_000)
    ids = np.repeat(np.arange(400), np.arange(10, 4010, 10))  # 802,000 rows
    padded = lambda work: [bucket.present.size for bucket in ragged_tables.group_rows(ids).buckets(work)]  # noqa: E731
    few, many = padded(1), padded(4000)
    assert len(few) < len(many) and sum(few) - sum(many) < 600_000 * (len(many) - len(few))
    assert len(ids) / sum(many) > 0.8
    assert len(ragged_tables.group_rows(np.repeat([0, 1, 2], [5, 50, 1000])).buckets(4)) == 1


@pytest.mark.slow
@first("method", [jaxem.KMeans(), jaxem.RandomPoints(), jaxem.RandomResponsibilities()], ids=repr)
def test_the_size_that_a_group_is_padded_to_changes_no_answer(method, monkeypatch):
    """Neither the padding nor what else is in the table reaches a group: not even its random start."""
    x = blobs(54)
    few, more = np.repeat(["a", "b"], [6, 8]), np.repeat(["a", "b", "c"], [6, 8, 40])
    options: dict[str, Any] = {"init": method, "max_iter": MAX_ITER}
    tight = jaxem.fit_groups(MODEL, KEY, x[: len(few)], few, **options)
    monkeypatch.setattr("jaxem.running.padding._MOST_BUCKETS", 1)
    wide = jaxem.fit_groups(MODEL, KEY, x, more, **options)
    assert tight.padding < 0.2 < 0.5 < wide.padding
    for label in ("a", "b"):
        assert_same_fit(wide.fit_of(label), tight.fit_of(label))


@sequential_first
def test_weights_of_rows_in_groups_are_repetitions(plan):
    x, _ = three_groups()
    code = np.repeat(np.arange(3), SIZES)
    weight = np.random.default_rng(0).integers(0, 4, len(x))
    options: dict[str, Any] = {"init": begin(3), "plan": plan, "algorithm": jaxem.EM(), "max_iter": MAX_ITER}
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
    groups = jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(3), algorithm=jaxem.EM(), max_iter=MAX_ITER)
    assert groups.counts() == {Status.CONVERGED: 1, Status.NONFINITE: 1, Status.TOO_FEW: 1}
    assert_same(groups.converged, np.array([False, True, False]))
    assert_same(groups.failed, np.array([True, False, True]))
    with pytest.raises(RuntimeError, match="(?s)2 of 3 groups.*NONFINITE .1: bad.*TOO_FEW .1: tiny") as error:
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
    groups = jaxem.fit_groups(
        MODEL, KEY, blobs(2 * N), np.repeat([0, 1], N), init=begin(2), algorithm=jaxem.EM(), max_iter=MAX_ITER
    )
    assert groups.check() is groups


@sequential_first
def test_groups_that_are_all_too_small_still_have_a_result(plan):
    groups = jaxem.fit_groups(MODEL, KEY, blobs(3), [0, 1, 2], plan=plan, max_iter=MAX_ITER)
    assert groups.counts() == {Status.TOO_FEW: 3}
    assert 0 <= float(groups.lane_efficiency) <= 1
    mixed = jaxem.fit_groups(MODEL, KEY, blobs(N + 3), [0, 1, 2, *([3] * N)], plan=plan, max_iter=MAX_ITER)
    assert mixed.fit_of(3).converged
    assert 0 < float(mixed.lane_efficiency) <= 1
