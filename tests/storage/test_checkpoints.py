"""Fits that are interrupted and go on: the same bits as without, and damage that is refused."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_close, assert_same, blobs, mixture, once_a_week, two_starts

import jaxem
from jaxem.running import lanes
from jaxem.storage import checkpoint as checkpoints
from jaxem.storage.checkpoint import Store
from jaxem.storage.identity import identity_of

pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra io")


class _Stopped(Exception):
    pass


def _batches(stop_after: float = np.inf) -> Callable[[], Iterator]:
    """Five batches of three sizes; after so many the reader fails, as if the process had been killed."""
    x, read = blobs(80, d=2), [0]

    def batches() -> Iterator:
        for first, last in ((0, 20), (20, 40), (40, 50), (50, 70), (70, 80)):
            read[0] += 1
            if read[0] > stop_after:
                raise _Stopped
            yield x[first:last], None

    return batches


def _stream(batches: Any, path: Any = None, **options: Any) -> jaxem.FitResult:
    checkpoint = None if path is None else jaxem.Checkpoint(path, every=0)
    return jaxem.fit_stream(
        mixture("full", 2), two_starts("full"), batches, max_iter=6, tol=-1, checkpoint=checkpoint, **options
    )


@pytest.mark.parametrize("stop_after", [3, 5, 7, 13, 20, 34])
def test_a_stream_goes_on_where_it_was_interrupted_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    whole = _stream(_batches())
    with pytest.raises(_Stopped):
        _stream(_batches(stop_after), tmp_path / "fit")
    assert_same(_stream(_batches(), tmp_path / "fit"), whole)


def test_a_stream_that_has_ended_is_not_read_again_but_for_one_batch_nor_written(tmp_path: Path) -> None:
    whole, kept = _stream(_batches(), tmp_path), sorted(tmp_path.iterdir())
    assert_same(_stream(_batches(4), tmp_path), whole)
    assert sorted(tmp_path.iterdir()) == kept


@pytest.mark.parametrize("change", [lambda x: x + 1e-9, lambda x: x[:-1], lambda x: x.astype(np.float32)])
def test_an_ended_stream_is_not_that_of_other_rows(tmp_path: Path, change: Any) -> None:
    _stream(_batches(), tmp_path)
    with pytest.raises(ValueError, match="first batch|are others"):
        _stream(lambda: ((change(x), weight) for x, weight in _batches()()), tmp_path)


@pytest.mark.slow
def test_accelerated_streams_resume_too(tmp_path: Path) -> None:
    whole = _stream(_batches(), algorithm=jaxem.Anderson())
    with pytest.raises(_Stopped):
        _stream(_batches(17), tmp_path, algorithm=jaxem.Anderson())
    assert_same(_stream(_batches(), tmp_path, algorithm=jaxem.Anderson()), whole)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [jaxem.EM(), jaxem.StochasticEM(jax.random.key(0))])
def test_a_fit_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: Any, algorithm: Any) -> None:
    x, model, start = blobs(60), mixture("diagonal", 2), two_starts("diagonal")
    options = {"algorithm": algorithm, "tol": -1, "max_iter": 9}
    whole = jaxem.fit(model, start, x, **options)
    saved = _stop_after(3, monkeypatch)
    with pytest.raises(_Stopped):
        jaxem.fit(model, start, x, checkpoint=jaxem.Checkpoint(tmp_path, every=0), **options)
    resumed = jaxem.fit(model, start, x, checkpoint=jaxem.Checkpoint(tmp_path, every=0), **options)
    assert saved[3] > saved[2]  # it has gone on, not begun anew
    assert_same(resumed, whole)


def _work(_: Any, tree: Any, notes: dict) -> int:
    """Iterations or blocks inside a state that is kept."""
    if "ended" in notes:
        return len(notes["ended"])
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, jaxem.LoopState))
    (state,) = (leaf for leaf in leaves if isinstance(leaf, jaxem.LoopState))
    return int(np.sum(state.n_iter))


def _stop_after(n: int, monkeypatch: Any) -> list[int]:
    """The fit is interrupted after so many states; returns the work inside each, as they come."""
    save, saved = Store.save, []

    def save_and_stop(*args: Any) -> None:
        save(*args)
        saved.append(_work(*args))
        if len(saved) == n:
            raise _Stopped

    monkeypatch.setattr(Store, "save", save_and_stop)
    return saved


def _many(driver: str, plan: str, checkpoint: Any) -> jaxem.FitResult:
    """Many fits in one call."""
    model, key, x = mixture("diagonal", 2), jax.random.key(0), np.stack([blobs(40, seed=i) for i in range(16)])
    options: Any = {"plan": plan, "checkpoint": checkpoint, "tol": 1e-9}
    if driver == "batch":
        starts = jax.tree.map(lambda leaf: np.stack([leaf] * 16), two_starts("diagonal"))
        return jaxem.fit_batch(model, starts, x, **options)
    if driver == "groups":
        table, ids = x.reshape(-1, 2), np.repeat(np.arange(12), [20, 30, 90] * 3 + [60, 70, 90])
        return jaxem.fit_groups(model, key, table, ids, n_restarts=2, **options).fits
    race = jaxem.Race(n_iter=2, keep=4) if driver == "race" else None
    return jaxem.fit_restarts(model, key, x[0], n_restarts=20, race=race, **options)


@pytest.mark.parametrize("plan", ["sequential", "lanes"])
@pytest.mark.parametrize(
    ("driver", "states"),
    [("batch", (2, 4)), *[pytest.param(*case, marks=once_a_week) for case in (
        ("groups", (3, 9)), ("restarts", (2, 4)), ("race", (3, 4)),
    )]],
)  # fmt: skip
def test_many_fits_go_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: Any, driver: str, states: tuple[int, int], plan: str
) -> None:
    whole, checkpoint = _many(driver, plan, None), jaxem.Checkpoint(tmp_path, every=0)
    n = states[plan == "lanes"]
    saved = _stop_after(n, monkeypatch)
    with pytest.raises(_Stopped):
        _many(driver, plan, checkpoint)
    assert_same(_many(driver, plan, checkpoint), whole)
    if (driver, plan) not in (
        ("groups", "lanes"),
        ("race", "sequential"),
    ):  # which have parts, with states of their own
        assert saved[n] >= saved[n - 1]
    assert_same(_many(driver, plan, checkpoint), whole)  # which has ended


def test_blocks_that_have_ended_are_not_computed_again(tmp_path: Path, monkeypatch: Any) -> None:
    program, begun, again = lanes._one_thread_program, [], []

    def fifth_fails(*args: Any) -> Any:
        begun.append(args)
        if len(begun) == 5:
            raise _Stopped
        return program(*args)

    monkeypatch.setattr(lanes, "_n_cores", lambda: 1)
    whole = _many("batch", "sequential", None)
    monkeypatch.setattr(lanes, "_one_thread_program", fifth_fails)
    with pytest.raises(_Stopped):
        _many("batch", "sequential", jaxem.Checkpoint(tmp_path, every=0))
    monkeypatch.setattr(lanes, "_one_thread_program", lambda *args: (again.append(args), program(*args))[1])
    monkeypatch.setattr(lanes, "_n_cores", lambda: 3)  # the blocks are those of the first call
    assert_same(_many("batch", "sequential", jaxem.Checkpoint(tmp_path, every=0)), whole)
    assert 1 <= len(again) <= lanes._BLOCKS_PER_THREAD - 4


def test_lanes_that_fill_the_cores_are_kept_one_by_one():
    large = lanes.Lanes(jax.ShapeDtypeStruct((5, lanes._THREADED_ELEMENTS + 1), np.float32), ())
    small = lanes.Lanes(jax.ShapeDtypeStruct((64, 100), np.float32), ())
    blocks = lanes._cut([large, small], 2)
    assert sorted((b.first, b.size) for b in blocks if b.group == 0) == [(i, 1) for i in range(5)]
    assert all(b.small == (b.group == 1) for b in blocks)


@pytest.mark.slow
def test_lanes_go_on_on_other_devices(tmp_path: Path, monkeypatch: Any) -> None:
    whole, checkpoint = _many("batch", "lanes", None), jaxem.Checkpoint(tmp_path, every=0)
    saved = _stop_after(4, monkeypatch)
    with pytest.raises(_Stopped):
        _many("batch", "lanes", checkpoint)
    with jax.default_device(jax.devices()[1]):
        found = _many("batch", "lanes", checkpoint)
    assert saved[4] > saved[3]
    assert_close(found.params, whole.params, rtol=1e-12)  # devices have other numbers of lanes, which round otherwise


def test_a_model_whose_functions_do_something_else_is_another(tmp_path: Path) -> None:
    def model_of(slope: float, power: int = 2) -> jaxem.LogJoint:
        if power == 2:

            def log_joint(theta: Any, x: Any) -> Any:
                return -((x - slope * jax.numpy.stack([theta, theta + 1])) ** 2)
        else:

            def log_joint(theta: Any, x: Any) -> Any:
                return -(abs(x - slope * jax.numpy.stack([theta, theta + 1])) ** 4)

        return jaxem.LogJoint(log_joint, 2, m_step=jaxem.Full())

    def fit(*how: Any) -> jaxem.FitResult:
        x, checkpoint = blobs(9)[:, 0], jaxem.Checkpoint(tmp_path)
        return jaxem.fit(model_of(*how), np.asarray(0.3), x, max_iter=2, checkpoint=checkpoint)

    structures = [jax.tree.structure(model_of(*how)) for how in ((1.0, 2), (1.0, 2), (2.0, 2), (1.0, 4))]
    same, again, *others = map(identity_of, structures)
    assert same == again and len({same, *others}) == 3
    first = fit(1.0)
    assert_same(fit(1.0).params, first.params)
    for other in ((2.0, 2), (1.0, 4)):
        with pytest.raises(ValueError, match="model, start, options or data are others"):
            fit(*other)


def test_a_state_that_cannot_be_read_now_is_left_where_it_is(tmp_path: Path, monkeypatch: Any) -> None:
    whole = _stream(_batches(), tmp_path)
    states = sorted(path.name for path in tmp_path.iterdir())

    def fails(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "_read", fails)
        with pytest.warns(UserWarning, match="Too many open files"), pytest.raises(ValueError, match="cannot be read"):
            _stream(_batches(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == states
    assert_same(_stream(_batches(4), tmp_path), whole)


def _damage(folder: Path, how: str) -> None:
    """Of the newest state."""
    newest = max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    files = [p for p in newest.rglob("*") if p.is_file() and p.stat().st_size > 20]
    largest = max(files, key=lambda p: p.stat().st_size)
    if how == "truncated":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif how == "missing file":
        largest.unlink()
    elif how == "empty folder":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        for path in newest.rglob("d/*"):
            data = bytearray(path.read_bytes())
            for i in range(0, len(data), 7):
                data[i] ^= 0x55
            path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["truncated", "missing file", "empty folder", "flipped bits"])
def test_a_damaged_state_is_refused_and_the_one_before_it_used(tmp_path: Path, how: str) -> None:
    whole = _stream(_batches())
    with pytest.raises(_Stopped):
        _stream(_batches(24), tmp_path)
    _damage(tmp_path, how)
    with pytest.warns(UserWarning, match="is damaged and is not used"):
        resumed = _stream(_batches(), tmp_path)
    assert_same(resumed, whole)


def test_where_all_states_are_damaged_the_fit_does_not_begin_in_silence(tmp_path: Path) -> None:
    with pytest.raises(_Stopped):
        _stream(_batches(24), tmp_path)
    for state in (p for p in tmp_path.iterdir() if p.name.isdigit()):
        shutil.rmtree(state)
        state.mkdir()
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(ValueError, match="got 2 that cannot be read"):
        _stream(_batches(), tmp_path)


@pytest.mark.slow
def test_another_fit_in_the_folder_is_an_error(tmp_path: Path) -> None:
    _stream(_batches(), tmp_path)
    with pytest.raises(ValueError, match="checkpoint: expected a state of this fit .* model, start, options or data"):
        _stream(_batches(), tmp_path, algorithm=jaxem.SQUAREM())
    with pytest.raises(ValueError, match="it is of another driver"):
        jaxem.fit(mixture("full", 2), two_starts("full"), blobs(9), checkpoint=jaxem.Checkpoint(tmp_path))


@pytest.mark.slow
def test_other_data_in_the_second_call_is_an_error(tmp_path: Path) -> None:
    x, other, read = blobs(80), blobs(80, seed=5), [0]

    def stopped() -> Iterator:
        for i in range(0, 80, 10):
            read[0] += 1
            if read[0] > 30:
                raise _Stopped
            yield x[i : i + 10], None

    with pytest.raises(_Stopped):
        _stream(stopped, tmp_path)
    for rows, said in (
        (other, "rows of the fit that the checkpoint keeps, got others in the first batch"),
        (np.concatenate([x[:10], other[10:]]), "expected the same rows in each pass"),
    ):
        with pytest.raises(ValueError, match=said):
            _stream(lambda rows=rows: ((rows[i : i + 10], None) for i in range(0, 80, 10)), tmp_path)
    x, model, start = blobs(30), mixture("full", 2), two_starts("full")
    jaxem.fit(model, start, x, checkpoint=jaxem.Checkpoint(tmp_path / "fit"))
    with pytest.raises(ValueError, match="model, start, options or data are others"):
        jaxem.fit(model, start, x + 1, checkpoint=jaxem.Checkpoint(tmp_path / "fit"))


def test_a_state_of_another_version_says_who_wrote_it(tmp_path: Path, monkeypatch: Any) -> None:
    fit = lambda: jaxem.fit(  # noqa: E731
        mixture("full", 2), two_starts("full"), blobs(30), checkpoint=jaxem.Checkpoint(tmp_path)
    )
    monkeypatch.setattr(checkpoints, "_FORMAT", 2)
    monkeypatch.setattr(checkpoints, "written_by", lambda: "0.0.9")
    fit()
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"was written by jaxem 0.0.9, as format 2; this one reads 3; pass another path"
    ):
        fit()


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint: expected Checkpoint\(path\) or None, got 'here'"):
        jaxem.fit_stream(mixture("full", 2), two_starts("full"), _batches(), checkpoint="here")  # type: ignore
    with pytest.raises(ValueError, match="every: expected seconds of at least 0, got -1"):
        jaxem.fit_stream(
            mixture("full", 2), two_starts("full"), _batches(), checkpoint=jaxem.Checkpoint(tmp_path, every=-1)
        )
    fit = lambda x: jaxem.fit(  # noqa: E731
        mixture("full", 2), two_starts("full"), x, checkpoint=jaxem.Checkpoint(tmp_path)
    )
    with pytest.raises(ValueError, match="checkpoint: expected concrete values"):
        jax.jit(fit)(blobs(9))
    with pytest.raises(ValueError, match="checkpoint: expected concrete values"):
        jax.grad(lambda x: jaxem.fit_restarts(
            mixture("full", 2), jax.random.key(0), x, checkpoint=jaxem.Checkpoint(tmp_path)
        ).objective)(blobs(9))  # fmt: skip
    sharded, _ = jaxem.shard(blobs(80))
    with pytest.raises(ValueError, match="others are one program, of which nothing can be kept"):
        jaxem.fit_restarts(
            mixture("full", 2), jax.random.key(0), sharded, plan="lanes", checkpoint=jaxem.Checkpoint(tmp_path)
        )


_KILLED = """
import sys, numpy as np, jax
jax.config.update("jax_enable_x64", True)
import jaxem
from jaxem.storage.identity import identity_of
def batches():
    for i in range(6):
        rng = np.random.default_rng(i)
        yield rng.normal(size=(4000, 2)) + 3 * rng.integers(0, 2, (4000, 1)), None
model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
start = model.init(jax.random.key(0), next(batches())[0])
checkpoint = jaxem.Checkpoint(sys.argv[1], every=0.02)
print("ready", flush=True)
result = jaxem.fit_stream(model, start, batches, tol=-1, max_iter=40, checkpoint=checkpoint)
print(*(float(leaf).hex() for leaf in np.concatenate([np.ravel(x) for x in jax.tree.leaves(result.params)])))
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_at_the_next_call(tmp_path: Path) -> None:
    def run(folder: str, seconds: float | None) -> str | None:
        command = [sys.executable, "-W", "ignore", "-c", _KILLED, str(tmp_path / folder)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return None

    whole = run("whole", None)
    rng = np.random.default_rng(0)
    for _ in range(3):
        killed = run("killed", rng.uniform(1, 4))
        if killed is not None:
            break
    resumed = run("killed", None)
    assert resumed == whole
    assert whole is not None and len(whole.split()) == 14
