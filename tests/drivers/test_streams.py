"""Fits of data that are read batch by batch: those of `fit`, and what they refuse."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ALGORITHMS, MODELS
from helpers import assert_close, blobs, mixture, once_a_week, two_starts

import jaxem
from jaxem import Status
from jaxem.fold.sources import is_additive
from jaxem.sources.feed import Feed

_STREAMED = [entry for entry in MODELS if is_additive(entry.build()) and hasattr(entry.build(), "log_joint")]
_DEFAULT = ("full", "one_of", "product", "linear_regression", "full_missing", "full_frozen")
_ONE_READING = ("em", "squarem", "anderson", "parabolic")


def _cut(tree: Any, weight: Any, ends: tuple[int, ...]) -> Callable[[], Iterator]:
    """Batches that end at these rows."""

    def batches() -> Iterator:
        for first, last in zip((0, *ends[:-1]), ends, strict=True):
            rows = jax.tree.map(lambda leaf: np.asarray(leaf)[first:last], tree)  # noqa: B023
            yield rows, None if weight is None else weight[first:last]

    return batches


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, marks=() if e.name in _DEFAULT else once_a_week, id=e.name) for e in _STREAMED],
)
def test_a_stream_ends_where_the_fit_of_all_rows_does(entry: Any) -> None:
    model, start = entry.build(), entry.start()
    n = len(jax.tree.leaves(entry.data)[0])
    whole = jaxem.fit(model, start, entry.data, max_iter=7, tol=-1)
    stream = jaxem.fit_stream(model, start, _cut(entry.data, None, (9, 9, 18, n - 3, n)), max_iter=7, tol=-1)
    assert int(stream.status) == int(whole.status)
    assert int(stream.n_iter) == int(whole.n_iter) == 7
    assert_close(stream.history, whole.history, rtol=1e-9)
    assert_close(stream.log_lik, whole.log_lik, rtol=1e-9)
    for got, want in zip(jax.tree.leaves(stream.params), jax.tree.leaves(whole.params), strict=True):
        assert_close(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", _ONE_READING)
def test_accelerators_work_on_streams(name: str) -> None:
    (entry,) = (a for a in ALGORITHMS if a.name == name)
    x = blobs(90)
    # without a floor, whose scale of batches is not to the last digit that of all rows
    model, start = jaxem.Mixture(jaxem.SphericalNormal(floor=0.0), 2), two_starts("spherical")
    whole = jaxem.fit(model, start, x, algorithm=entry.build(), tol=1e-9)
    stream = jaxem.fit_stream(model, start, _cut(x, None, (40, 80, 90)), algorithm=entry.build(), tol=1e-9)
    assert Status(int(stream.status)) in (Status.CONVERGED, Status.RESOLUTION)
    assert int(stream.n_evals) == int(whole.n_evals)
    assert_close(stream.objective, whole.objective, rtol=1e-11)


def test_weights_count_as_in_memory_and_rows_of_weight_zero_are_not_there() -> None:
    x = blobs(60)
    weight = np.random.default_rng(0).uniform(0, 2, 60)
    weight[[3, 50]] = 0
    weight[20:40] = 0  # a whole batch
    x[3] = np.nan
    model, start = mixture("full", 2), two_starts("full")
    whole = jaxem.fit(model, start, x, sample_weight=weight, max_iter=5, tol=-1)
    stream = jaxem.fit_stream(model, start, _cut(x, weight, (20, 40, 60)), max_iter=5, tol=-1)
    assert_close(stream.history, whole.history, rtol=1e-10)


@pytest.mark.slow
def test_float32_leaves_the_fast_path_where_a_fit_in_memory_does() -> None:
    x = np.concatenate([blobs(60) * 1e-4, blobs(60) * 1e-4 + 50]).astype(np.float32)
    model = mixture("full", 2)
    start = model.init(jax.random.key(0), x)
    whole = jaxem.fit(model, start, x)
    stream = jaxem.fit_stream(model, start, _cut(x, None, (50, 120)))
    for result in (stream, whole):  # which of the two depends on the last bit
        assert Status(int(result.status)) in (Status.CONVERGED, Status.RESOLUTION)
    assert_close(stream.objective, whole.objective, rtol=1e-5)


def test_labels_travel_with_the_batches() -> None:
    x = blobs(40)
    known = np.where(np.arange(40) % 3, -1, np.arange(40) % 2)
    model, start = mixture("diagonal", 2), two_starts("diagonal")
    whole = jaxem.fit(model, start, jaxem.labelled(x, known), max_iter=4, tol=-1)

    def batches() -> Iterator:
        for first in (0, 15, 30):
            yield jaxem.labelled(x[first : first + 15], known[first : first + 15]), None

    stream = jaxem.fit_stream(model, start, batches, max_iter=4, tol=-1)
    assert_close(stream.history, whole.history, rtol=1e-10)


def test_many_sizes_of_batches_become_few() -> None:
    feed = Feed(lambda: ((np.ones((n, 2)), None) for n in range(1, 200)))
    shapes = {batch.data.shape[0] for batch in feed.one_pass()}
    assert len(shapes) <= 12
    again = [(batch.data.shape[0], batch.n_rows) for batch in feed.one_pass()]
    assert {size for size, _ in again} <= shapes
    assert all(size >= n for size, n in again)


def test_a_start_that_has_converged_and_one_without_iterations() -> None:
    x, model, start = blobs(40), mixture("full", 2), two_starts("full")
    none = jaxem.fit_stream(model, start, _cut(x, None, (40,)), max_iter=0)
    whole = jaxem.fit(model, start, x, max_iter=0)
    assert Status(int(none.status)) == Status.MAX_ITER
    assert_close(none.objective, whole.objective, rtol=1e-12)
    for got, want in zip(jax.tree.leaves(none.params), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(got, want)


def test_too_few_rows_are_a_status() -> None:
    stream = jaxem.fit_stream(mixture("full", 2), two_starts("full"), _cut(blobs(1), None, (1,)))
    assert Status(int(stream.status)) == Status.TOO_FEW


def _fit(batches: Any, **options: Any) -> Any:
    return jaxem.fit_stream(mixture("full", 2), two_starts("full"), batches, **options)


def test_an_iterator_in_the_place_of_a_function_is_an_error() -> None:
    with pytest.raises(ValueError, match="batches: expected a function .* used up after one pass"):
        _fit(iter([(blobs(9), None)]))


def test_an_iterator_that_is_used_up_is_an_error() -> None:
    used = iter([(blobs(9), None), (blobs(9), None)])
    with pytest.raises(ValueError, match=r"expected the 18 rows of the first pass in each, got 0"):
        _fit(lambda: used)


def test_other_rows_in_the_second_pass_are_an_error() -> None:
    seeds = iter(range(99))
    with pytest.raises(ValueError, match="expected the same rows in each pass"):
        _fit(lambda: [(blobs(30, seed=next(seeds)), None)])


def test_rows_in_another_order_are_the_same_rows() -> None:
    x, order = blobs(40), iter([1, -1] * 50)
    result = _fit(lambda: [(x[:: next(order)], None)], max_iter=3, tol=-1)
    assert_close(
        result.objective, jaxem.fit(mixture("full", 2), two_starts("full"), x, max_iter=3, tol=-1).objective, 1e-9
    )


def test_bad_batches_are_named() -> None:
    x = blobs(30)
    with pytest.raises(ValueError, match="got ndarray as batch 0"):
        _fit(lambda: [x])
    with pytest.raises(ValueError, match=r"one weight a row, shape \(30,\), or None, got \(3,\) in batch 1"):
        _fit(lambda: [(x, None), (x, np.ones(3))])
    with pytest.raises(ValueError, match=r"got \[\(1,\)\] in batch 1"):
        _fit(lambda: [(x, None), (x[:, :1], None)])
    hole = x.copy()
    hole[7, 0] = np.nan
    with pytest.raises(ValueError, match="batch 1: data: expected finite values, got NaN or inf in row 7"):
        _fit(lambda: [(x, None), (hole, None)])
    with pytest.raises(ValueError, match=r"batch 0: sample_weight: .* got -1.0 in rows 0, 1"):
        _fit(lambda: [(x, -np.ones(30))])
    with pytest.raises(ValueError, match="expected at least one row, got none"):
        _fit(list)


def test_an_error_of_the_reader_is_the_users_to_see() -> None:
    def batches() -> Iterator:
        yield blobs(30), None
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        _fit(batches)


_KEY = jax.random.key(0)
_ANNEALED = jaxem.AnnealedEM(np.array([2.0, 1.0]))


@pytest.mark.parametrize(
    "algorithm", [jaxem.NewtonCG(), jaxem.HardEM(), _ANNEALED, jaxem.OnlineEM(_KEY), jaxem.StochasticEM(_KEY)]
)
def test_algorithms_that_read_the_data_otherwise_are_refused_before_the_rest_is_read(algorithm: Any) -> None:
    def batches() -> Iterator:
        yield blobs(30), None
        yield blobs(30), None
        yield blobs(30), None
        yield blobs(30), None
        raise AssertionError("read on")

    with pytest.raises(ValueError, match="algorithm: expected one that takes one E step"):
        _fit(batches, algorithm=algorithm)


def test_a_model_that_keeps_rows_is_refused() -> None:
    model = jaxem.Mixture(jaxem.PoissonRegression(), n_components=2)
    with pytest.raises(ValueError, match="Mixture, whose statistics are the rows themselves"):
        jaxem.fit_stream(model, {}, lambda: [])


@pytest.mark.slow
def test_reading_runs_ahead_by_two_batches_and_no_more() -> None:
    read = []

    def batches() -> Iterator:
        for i in range(8):
            read.append(i)
            yield blobs(5), None

    feed = Feed(batches).one_pass()
    next(feed)
    feed.close()
    assert 1 <= len(read) <= 4


@pytest.mark.slow
def test_sharded_batches_are_folded_where_they_lie() -> None:
    x = blobs(64)
    mesh = jax.make_mesh((4,), ("rows",))
    place = lambda rows: jax.device_put(jnp.asarray(rows), jax.NamedSharding(mesh, jax.P("rows")))  # noqa: E731
    result = _fit(lambda: [(place(x[:32]), None), (place(x[32:]), None)], max_iter=4, tol=-1)
    whole = jaxem.fit(mixture("full", 2), two_starts("full"), x, max_iter=4, tol=-1)
    assert_close(result.history, whole.history, rtol=1e-10)
