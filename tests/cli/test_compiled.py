"""What the command keeps for its next runs."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxem.cli import compiled
from jaxem.cli.command import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 2)) + 4 * (np.arange(200) % 2)[:, None]
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    return tmp_path / "x.npy"


COMMAND = """
import sys, jax
from jaxem.cli.command import main
events = []
jax.monitoring.register_event_listener(lambda event, **more: events.append(event))
code = main()
print(events.count("/jax/compilation_cache/cache_hits"))
sys.exit(code)
"""


def run(table: Path, cache: Path, *more: str) -> int:
    """The command in a process of its own; how many programs it found."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(table), "--no-progress", *more],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_a_second_run_compiles_nothing_of_what_the_first_compiled_for_long(table, tmp_path):
    cache = tmp_path / "cache"
    assert run(table, cache) == 0
    kept = set((cache / "jaxem" / "compiled").iterdir())
    assert run(table, cache) == len(kept) > 0
    assert set((cache / "jaxem" / "compiled").iterdir()) == kept
    assert (cache / "jaxem" / "compiled").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_nothing_is_kept_where_nobody_wants_or_can(table, tmp_path):
    run(table, tmp_path / "cache", "--no-cache")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("in the way of a folder")
    run(table, tmp_path / "file")


def test_a_call_from_python_leaves_jax_as_it_is(table, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    assert main([str(table), "--no-progress"]) == 0
    assert jax.config.jax_compilation_cache_dir == before  # type: ignore[attr-defined]
    assert not (tmp_path / "cache").exists()


def test_the_folder_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.cache_folder() == tmp_path / "jaxem" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert compiled.cache_folder().is_absolute()


def test_what_was_not_read_for_longest_goes_first(tmp_path):
    for i in range(5):
        path = tmp_path / f"program{i}"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + i, 1000))
    os.utime(tmp_path / "program0", (2000, 1000))  # read again
    compiled.remove_oldest(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program0", "program4"]
    compiled.remove_oldest(tmp_path, 250)
    assert len(list(tmp_path.iterdir())) == 2
