"""Rows on several hosts: two processes of `jax.distributed` on this machine, each with the rows that it has."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import host_script
import jax
import numpy as np
import pytest
from helpers import assert_close, assert_same
from host_script import MODEL, start, table

import jaxem

SCRIPT = Path(host_script.__file__)
RUNS_FOR = 240


def begin(tasks: str, folder: Path, n_devices: int = 2, **more: str) -> list[subprocess.Popen]:
    """Two processes of so many devices each, under way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(n_devices), "PYTHONPATH": str(SCRIPT.parents[1]), **more}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # one may read what the other is writing
    command = [sys.executable, str(SCRIPT), tasks]
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return [subprocess.Popen([*command, str(rank), "2", str(port), str(folder)], **pipes) for rank in (0, 1)]


def errors_of(processes: list[subprocess.Popen]) -> list[str]:
    """What they write on standard error, when all have ended."""
    try:
        return [process.communicate(timeout=RUNS_FOR)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


def end(processes: list[subprocess.Popen], folder: Path) -> list[dict[str, np.ndarray]]:
    """What each of them has found."""
    errors = errors_of(processes)
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:] + errors[1][-3000:]
    return [dict(np.load(folder / f"found{rank}.npz")) for rank in (0, 1)]


def fit_of(found: dict[str, np.ndarray], task: str, like: jaxem.FitResult) -> jaxem.FitResult:
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [found[f"{task}.{i}"] for i in range(structure.num_leaves)])


def assert_same_fit(found: list[dict[str, np.ndarray]], task: str, want: jaxem.FitResult) -> None:
    first, second = (fit_of(one, task, want) for one in found)
    assert_same(first, second)  # every process has the whole answer
    np.testing.assert_array_equal(first.n_iter, want.n_iter)
    np.testing.assert_array_equal(first.status, want.status)
    assert_close(first.objective, want.objective, rtol=1e-12)
    assert_close(first.params, want.params, rtol=1e-9, atol=1e-10)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("hosts")
    return end(begin("weighted,bad_row,other_columns,other_start", folder), folder)


def test_weights_labels_and_chunks_go_with_the_rows(found):
    x, weight = table()
    known = np.full(102, -1)
    known[[0, 61]] = 0, 1
    want = jaxem.fit(MODEL, start(), jaxem.labelled(x, known), sample_weight=weight, chunk_size=20)
    assert_same_fit(found, "weighted", want)


def test_a_bad_row_on_one_host_is_an_error_on_all(found):
    there, here = (str(one["bad_row.0"]) for one in found)
    assert "NaN or inf in row 3" in here and "within process 1" in here
    assert there == "data: the rows of process 1 cannot be fitted; its own error says why."


def test_rows_of_another_kind_are_an_error_on_all(found):
    for one in found:
        assert "rows of one structure, shape and dtype in all processes" in str(one["other_columns.0"])


def test_starts_that_differ_are_an_error_on_all(found):
    assert [str(one["other_start.0"])[:46] for one in found] == [
        "params: expected the same values in all processes"[:46]
    ] * 2


@pytest.mark.slow
def test_fits_restarts_lanes_and_streams_on_two_hosts_are_those_of_the_table(tmp_path):
    found = end(begin("plain,restarts,lanes,stream", tmp_path), tmp_path)
    x, weight = table()
    assert_same_fit(found, "plain", jaxem.fit(MODEL, start(), x, sample_weight=np.ones(102)))
    padded = np.concatenate([x[:61], x[60:61], x[61:], x[[-1] * 21]])  # to 31 rows on each of four devices
    there = np.concatenate([np.ones(61), np.zeros(1), np.ones(41), np.zeros(21)])
    want = jaxem.fit_restarts(MODEL, jax.random.key(3), padded, sample_weight=there, n_restarts=3)
    assert_same_fit(found, "restarts", want)
    starts = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), start())
    both = np.stack([x[:100], x[:100] * [2, 0.5]])
    assert_same_fit(found, "lanes", jaxem.fit_batch(MODEL, starts, both, plan="lanes"))
    want = jaxem.fit(MODEL, start(), x, sample_weight=weight, max_iter=8, tol=-1)
    assert_same_fit(found, "stream", want)


@pytest.mark.slow
def test_a_disk_that_is_full_on_the_first_host_is_an_error_on_all(tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra io")
    found = end(begin("full_disk", tmp_path), tmp_path)
    assert [str(one["full_disk.0"]) for one in found] == ["No space left on device"] * 2


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_an_error_and_the_last_checkpoint_goes_on(tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra io")
    (tmp_path / "whole").mkdir()
    # one device each: of several, XLA's CPU runtime leaves the others waiting, until jax.distributed ends the process
    whole = end(begin("kept", tmp_path / "whole", 1), tmp_path / "whole")
    processes = begin("kept", tmp_path, 1, JAXEM_TEST_LOSES="1")
    error, _ = errors_of(processes)
    assert processes[0].returncode != 0
    assert "RuntimeError: process 0 of 2: another process has ended or cannot be reached" in error, error[-3000:]
    assert not (tmp_path / "found0.npz").exists()
    resumed = end(begin("kept", tmp_path, 1), tmp_path)
    for one, other in zip(resumed, whole, strict=True):
        n_iter = f"kept.{len(one) - 1}"
        assert int(one.pop(n_iter)) > 5 > int(other.pop(n_iter))  # it has gone on, not begun anew
        assert_same(one, other)
