"""A folder of a checkpoint belongs to one fit at a time, and what the disk refuses is said of the checkpoint."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same, blobs, mixture, two_starts

import jaxem
from jaxem.storage.checkpoint import Checkpoint, open_store

pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra io")

HOLD = """
import sys
from jaxem.storage.checkpoint import Checkpoint, open_store
with open_store(Checkpoint(sys.argv[1]), "fit", lambda: "same"):
    print("open", flush=True)
    sys.stdin.read()
"""


def _fit(path: Path) -> jaxem.FitResult:
    options: dict[str, Any] = {"max_iter": 3, "tol": -1, "checkpoint": Checkpoint(path)}
    return jaxem.fit(mixture("full", 2), two_starts("full"), blobs(40), **options)


def test_a_checkpoint_that_another_process_uses_is_an_error_until_that_ends_however_it_does(tmp_path: Path) -> None:
    path = tmp_path / "fit"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match=rf"checkpoint: .* got {path}, which another process \(pid {other.pid}\)"):
            _fit(path)
        other.kill()
    assert_same(_fit(path), _fit(path))


def test_a_checkpoint_is_used_by_one_fit_of_a_process_at_a_time(tmp_path: Path) -> None:
    with open_store(Checkpoint(tmp_path), "fit", lambda: "same"):
        with pytest.raises(
            ValueError, match="another process .*, or another fit of this one, uses now; wait for its end"
        ):
            _fit(tmp_path)
    _fit(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "fit"
    with open_store(Checkpoint(path), "fit", lambda: "same") as store:
        store.save([blobs(3)], {})
        shutil.rmtree(path)
        path.touch()  # a file
        with pytest.raises(OSError, match=rf"checkpoint: {path} cannot be written: .*deleted or moved"):
            store.save([blobs(4)], {})
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"checkpoint: .*file cannot be made"):
        _fit(tmp_path / "file")
