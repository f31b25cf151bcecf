"""Lanes side by side: rounds, races, room. Whatever they do, a lane ends as a fit of its own would."""

import time
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver_cases import MAX_ITER, MODEL, N, assert_close, assert_same_fit, begin
from helpers import KEY, D, assert_same, blobs, first, take

import jaxem
from jaxem import Race, Status
from jaxem.running import lanes, rounds
from jaxem.running.rounds import ladder

PLANS = ["lanes", "sequential"]
B = 20


@cache
def batch_data() -> np.ndarray:
    """Lanes of which one holds a NaN and one has all rows equal."""
    x = np.stack([blobs(N, seed) for seed in range(B)])
    x[3, 5, 1], x[7] = np.nan, 0.1
    return x


def fits(result: jaxem.FitResult) -> jaxem.FitResult:
    return replace(result, lane_efficiency=None)


@cache
def one_program() -> jaxem.FitResult:
    """All lanes in one program, side by side to the end."""
    run = jax.jit(lambda x: fits(jaxem.fit_batch(MODEL, begin(B), x, plan="lanes", max_iter=MAX_ITER)))
    return run(batch_data())


def assert_same_lanes(got: jaxem.FitResult, want: jaxem.FitResult) -> None:
    """NaN where the other has NaN."""
    assert_same((got.status, got.n_iter, got.n_evals), (want.status, want.n_iter, want.n_evals))
    assert_close((got.params, got.objective, got.history), (want.params, want.objective, want.history))


# --- rounds


def test_the_ladder_has_three_sizes_an_octave_in_multiples_of_eight():
    assert ladder(1024)[-10:] == [128, 168, 208, 256, 328, 408, 512, 648, 816, 1024]
    for most in (1, 5, 8, 9, 100, 1000):
        sizes = ladder(most)
        assert sizes[-1] == most and sizes == sorted(set(sizes)) and all(size % 8 == 0 for size in sizes[:-1])


@pytest.mark.parametrize(("trips", "growth"), [(1, 16), (7, 1)])
def test_any_rounds_give_the_fits_of_one_program(trips, growth, monkeypatch):
    monkeypatch.setattr(rounds, "_FIRST_TRIPS", trips)
    monkeypatch.setattr(rounds, "_GROWTH", growth)
    got = jaxem.fit_batch(MODEL, begin(B), batch_data(), plan="lanes", max_iter=MAX_ITER)
    assert_same_lanes(fits(got), one_program())
    assert Status(int(got.status[3])) == Status.NONFINITE and Status(int(got.status[7])) == Status.DEGENERATE
    assert 0 < float(got.lane_efficiency) <= 1


@pytest.mark.slow
@first("max_lanes", [5, 1, 8, 19, 1000])
def test_a_bound_on_lanes_changes_no_fit(max_lanes):
    for plan in PLANS:
        got = jaxem.fit_batch(MODEL, begin(B), batch_data(), plan=plan, max_lanes=max_lanes, max_iter=MAX_ITER)
        assert_same_lanes(fits(got), one_program())
    run = jax.jit(
        lambda x: fits(jaxem.fit_batch(MODEL, begin(B), x, plan="lanes", max_lanes=max_lanes, max_iter=MAX_ITER))
    )
    assert_same_lanes(run(batch_data()), one_program())


def test_no_round_holds_more_lanes_than_allowed(monkeypatch):
    widths = []
    original: Any = rounds._round
    monkeypatch.setattr(rounds, "_round", lambda *args: (widths.append(len(args[-1][0])), original(*args))[1])
    jaxem.fit_batch(MODEL, begin(B), batch_data(), plan="lanes", max_lanes=5, max_iter=MAX_ITER)
    assert 4 <= max(widths) <= 5  # two devices, equally


def test_a_batch_takes_one_program_for_each_size_of_the_ladder(monkeypatch):
    keys = set()
    original: Any = rounds._round
    monkeypatch.setattr(
        rounds, "_round", lambda *args: (keys.add((args[2], len(args[-1][0]))), original(*args))[1]
    )  # path and width
    run = partial(jaxem.fit_batch, MODEL, begin(B), plan="lanes", max_lanes=B, max_iter=MAX_ITER)
    run(batch_data())
    before = original._cache_size()
    run(batch_data()[::-1].copy(), tol=1e-4)
    assert original._cache_size() - before <= len(keys)
    before = original._cache_size()
    run(batch_data()[::-1].copy(), tol=1e-4)
    assert original._cache_size() == before
    assert len({width for _, width in keys}) <= 2 * len(ladder(B))


@pytest.mark.slow
def test_lanes_spread_over_devices_end_as_on_one():
    """Two devices with unequal parts: 17 lanes are nine a device, one of them twice."""
    n = 17
    x = np.stack([blobs(N, seed % 11) for seed in range(n)])
    x[3, 5, 1] = np.nan
    everywhere = jaxem.fit_batch(MODEL, begin(n), x, plan="lanes", max_iter=MAX_ITER)
    assert len(everywhere.status.devices()) == 2
    assert_same_lanes(fits(everywhere), fits(jaxem.fit_batch(MODEL, begin(n), x, plan="sequential", max_iter=MAX_ITER)))
    assert 0 < float(everywhere.lane_efficiency) <= 1


@pytest.mark.slow
def test_a_device_that_the_user_chose_takes_all_lanes():
    with jax.default_device(jax.devices()[1]):
        alone = jaxem.fit_batch(MODEL, begin(B), batch_data(), plan="lanes", max_iter=MAX_ITER)
    assert alone.status.devices() == {jax.devices()[1]}
    there = jax.device_put(batch_data(), jax.devices()[2])
    committed = jaxem.fit_batch(MODEL, begin(B), there, plan="lanes", max_iter=MAX_ITER)
    assert committed.status.devices() == {jax.devices()[2]}
    for got in (alone, committed):
        assert_same_lanes(fits(got), one_program())


@pytest.mark.slow
@pytest.mark.parametrize("max_iter", [0, 1, 2, 7])
def test_rounds_end_at_the_last_iteration(max_iter):
    got = jaxem.fit_batch(MODEL, begin(B), batch_data(), plan="lanes", tol=-1.0, max_iter=max_iter)
    want = jax.jit(lambda x: fits(jaxem.fit_batch(MODEL, begin(B), x, plan="lanes", tol=-1.0, max_iter=max_iter)))
    assert_same_lanes(fits(got), want(batch_data()))


@pytest.mark.slow
@first("algorithm", [jaxem.SQUAREM(), jaxem.StochasticEM(KEY), jaxem.Anderson()])
def test_every_algorithm_goes_in_rounds(algorithm):
    x = batch_data()[8:12]
    run = lambda x: fits(  # noqa: E731
        jaxem.fit_batch(MODEL, begin(4), x, plan="lanes", algorithm=algorithm, max_iter=12)
    )
    got, want = run(x), jax.jit(run)(x)
    assert_same((got.status, got.n_iter, got.n_evals), (want.status, want.n_iter, want.n_evals))
    assert_close(got.params, want.params, rtol=1e-6, atol=1e-8)


# --- races


@cache
def hard() -> np.ndarray:
    """Three overlapping blobs, on which starts end apart."""
    rng = np.random.default_rng(4)
    return np.concatenate([rng.normal(centre, 1.0, size=(25, D)) for centre in ((0, 0), (2.5, 0), (0, 3), (4, 4))])


THREE = jaxem.Mixture(jaxem.FullNormal(), 3)
R = 9
OPTIONS: dict[str, Any] = {"n_restarts": R, "init": jaxem.RandomPoints(), "algorithm": jaxem.EM(), "max_iter": MAX_ITER}


def restarts(plan: str, race: Any, **options: Any) -> jaxem.FitResult:
    if plan != "traced":
        return jaxem.fit_restarts(THREE, KEY, hard(), plan=plan, race=race, **{**OPTIONS, **options})
    run = jax.jit(lambda x: jaxem.fit_restarts(THREE, KEY, x, plan="lanes", race=race, **{**OPTIONS, **options}))
    return run(hard())


@pytest.mark.filterwarnings("ignore:fit_restarts")  # so they do
@first("plan", ["sequential", "lanes", "traced"])
def test_a_race_that_keeps_all_is_none(plan):
    assert_same_fit(fits(restarts(plan, Race(3, R))), fits(restarts("sequential", None)))


@pytest.mark.slow
def test_a_race_has_the_same_winner_under_every_plan():
    want = restarts("sequential", Race(3, 2))
    for plan in ("lanes", "traced"):
        assert_same_fit(fits(restarts(plan, Race(3, 2))), fits(want))
    keys = jax.random.split(KEY, R)
    start = lambda key: THREE.init(key, jnp.asarray(hard()), method=jaxem.RandomPoints())  # noqa: E731
    after = jax.vmap(lambda key: jaxem.fit(THREE, start(key), hard(), max_iter=3))(keys)
    lead = np.argsort(-np.asarray(after.objective))[:2]
    full = jax.vmap(lambda key: jaxem.fit(THREE, start(key), hard(), max_iter=MAX_ITER))(keys)
    assert_close(want.objective, np.asarray(full.objective)[lead].max())
    raced = restarts("lanes", Race(3, 1), max_lanes=4)
    assert_close(raced.objective, np.asarray(full.objective)[lead[0]])
    assert 0 < float(raced.lane_efficiency) <= 1


@pytest.mark.slow
@first("plan", ["sequential", "lanes", "traced"])
def test_a_start_that_has_failed_does_not_go_on(plan):
    """Starts on a repeated row are spikes, with the highest objective of all."""
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 3)
    x = jnp.asarray(np.concatenate([blobs(N), np.tile([[1.5, 1.5]], (4, 1))]))
    run = lambda x: jaxem.fit_restarts(  # noqa: E731
        model, KEY, x, n_restarts=12, init=jaxem.RandomPoints(), race=Race(20, 1), max_iter=MAX_ITER,
        plan="lanes" if plan == "traced" else plan,
    )  # fmt: skip
    best = jax.jit(run)(x) if plan == "traced" else run(x)
    assert not best.failed


def test_a_race_that_makes_no_sense_names_the_argument():
    for race, message in [
        (3, r"race: expected Race\(n_iter, keep\) or None"),
        (Race(0, 1), "race.n_iter: expected a positive int"),
        (Race(1, 0), "race.keep: expected a positive int"),
        (Race(1, R + 1), "race: expected to keep at most the 9 starts, got keep=10"),
    ]:
        with pytest.raises(ValueError, match=message):
            restarts("lanes", race)
    with pytest.raises(ValueError, match="race: expected to keep at most"):
        jaxem.fit_groups(MODEL, KEY, blobs(N), [0] * N, race=Race(1, 2))
    with pytest.raises(ValueError, match="max_lanes: expected a positive int"):
        restarts("lanes", None, max_lanes=0)
    with pytest.raises(ValueError, match="max_lanes: expected a positive int"):
        jaxem.fit_batch(MODEL, begin(B), batch_data(), max_lanes=1.5)  # type: ignore[arg-type]


# --- groups


@pytest.mark.slow
@first("race", [None, Race(3, 2)])
def test_restarts_in_groups_are_those_of_fits_to_each_group(race):
    """Whatever the plan, and however many lanes have room."""
    x, ids = np.concatenate([hard(), hard()[:97]]), np.repeat(["a", "b"], [100, 97])
    run = lambda plan, **more: jaxem.fit_groups(THREE, KEY, x, ids, plan=plan, race=race, **OPTIONS, **more)  # noqa: E731
    want = run("sequential")
    for got in (run("lanes"), run("lanes", max_lanes=8)) if race is None else (run("lanes"),):
        assert_same_fit(fits(got.fits), fits(want.fits))
        assert 0 < float(got.lane_efficiency) <= 1
    keys = jax.random.split(KEY, (2, R))
    rows = jnp.asarray(x[ids == "b"])
    start = lambda key: THREE.init(key, rows, method=jaxem.RandomPoints())  # noqa: E731
    every = jax.vmap(lambda key: jaxem.fit(THREE, start(key), rows, max_iter=MAX_ITER))(keys[1])
    best = take(every, int(np.argmax(every.objective)))
    if race is None:
        assert_close(want.fit_of("b").objective, best.objective)
    else:
        assert float(want.fit_of("b").objective) <= float(best.objective) + 1e-9


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_the_lanes_that_wait_do_not_run(monkeypatch, error):
    program, calls = lanes._one_thread_program, []

    def fails(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise error("broken off")
        if len(calls) > 3:
            time.sleep(2)  # so that the error is seen before the next would begin
        return program(*args)

    monkeypatch.setattr(lanes, "_one_thread_program", fails)
    monkeypatch.setattr(lanes, "_n_cores", lambda: 1)
    with pytest.raises(error, match="broken off"):
        jaxem.fit_batch(MODEL, begin(B), batch_data(), plan="sequential", max_iter=2)
    assert len(calls) <= 4  # of the 16 blocks one may have begun before the error was seen
