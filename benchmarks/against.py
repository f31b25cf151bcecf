"""Another revision's first answers beside this one's: what `python -m benchmarks.startup --against REV` prints.

Every figure is of new processes, this revision and the other in turn, without jax's cache of compiled programs. Both
have their byte code, as an installed package has; it is made by processes that do not count.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import limit, table

ROOT = Path(__file__).resolve().parents[1]
JOBS = ("fit", "init", "fit_restarts", "grad of a fit", "standard_errors", "LogJoint fit")
COMMAND, KEPT, IMPORT, IMPORT_JAX = "python -m jaxem", "python -m jaxem, 2nd process", "import jaxem", "import jax"
AT_MOST = {
    "fit": 0.5, "init": 0.5, "fit_restarts": 0.45, "grad of a fit": 0.35, "standard_errors": 0.5, "LogJoint fit": 0.4,
    COMMAND: 0.4, KEPT: 0.2,
}  # fmt: skip
AT_MOST_OF_JAX = 1.2
NAMES = (IMPORT, *JOBS, COMMAND, KEPT)
IMPORTS = {  # of jaxem with what a first fit asks of it, as its modules are imported when their names are asked for
    IMPORT: "import jaxem; jaxem.fit, jaxem.Mixture, jaxem.MixtureParams, jaxem.FullNormal, jaxem.NormalParams",
    IMPORT_JAX: "import jax",
}


def compare(revision: str, names: tuple[str, ...], repeats: int) -> str:
    """A table of medians in seconds, and ratios to the other revision.

    Raises:
        SystemExit: if git does not know the revision, or a name is none of `NAMES`.
    """
    if unknown := sorted(set(names) - set(NAMES)):
        raise SystemExit(f"--only: expected some of {', '.join(NAMES)}, got {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="jaxem-against-") as scratch, built(revision, Path(scratch)) as theirs:
        trees = {"this": Tree(ROOT, Path(scratch) / "this"), revision: Tree(theirs, Path(scratch) / "other")}
        for tree in trees.values():
            tree.folder.mkdir()
            tree.run(IMPORT)
        times = {name: in_turn(trees, name, repeats) for name in names}
        jax_alone = in_turn({"jax": trees["this"]}, IMPORT_JAX, repeats)["jax"] if IMPORT in names else None
    rows = [["a new process", "this, s", f"{revision}, s", "ratio"]]
    for name, by_tree in times.items():
        ours, other = by_tree.values()
        ratio = limit(ours / other, at_most=AT_MOST.get(name))
        rows.append([name, f"{ours:.2f}", f"{other:.2f}", ratio])
    if jax_alone is not None:
        ours = times[IMPORT]["this"]
        ratio = limit(ours / jax_alone, at_most=AT_MOST_OF_JAX)
        rows.append([f"{IMPORT} / {IMPORT_JAX}", f"{ours:.2f}", f"({IMPORT_JAX}) {jax_alone:.2f}", ratio])
    return table(rows)


@contextmanager
def built(revision: str, scratch: Path) -> Iterator[Path]:
    """A work tree of the revision inside of the folder."""
    folder = scratch / "tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run([*git, "add", "--detach", str(folder), revision], capture_output=True, text=True)
    if added.returncode:
        raise SystemExit(f"--against {revision}: {added.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


class Tree(NamedTuple):
    """A revision's files, and a folder for what its processes write."""

    root: Path
    folder: Path

    def run(self, name: str) -> float:
        """Seconds that a new process takes for this."""
        timed: dict[str, Callable[[], float]] = {
            COMMAND: lambda: self._command(kept=False),
            KEPT: lambda: self._command(kept=True),
            IMPORT: lambda: self._import(IMPORT),
            IMPORT_JAX: lambda: self._import(IMPORT_JAX),
        }
        return timed[name]() if name in timed else float(self._python(str(ROOT / "benchmarks" / "cold.py"), name))

    def _import(self, name: str) -> float:
        code = f"import time; started = time.perf_counter(); {IMPORTS[name]}; print(time.perf_counter() - started)"
        return float(self._python("-c", code))

    def _command(self, *, kept: bool) -> float:
        started = time.perf_counter()
        self._python("-m", "jaxem", kept=kept)
        return time.perf_counter() - started

    def _python(self, *arguments: str, kept: bool = False) -> str:
        """The last line that a process says."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment |= {
            "PYTHONPATH": str(self.root),
            "PYTHONPYCACHEPREFIX": str(self.folder / "bytes"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "JAX_ENABLE_COMPILATION_CACHE": str(kept).lower(),
        }
        command = [sys.executable, *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder, env=environment)
        return done.stdout.splitlines()[-1]


def in_turn(trees: dict[str, Tree], name: str, repeats: int) -> dict[str, float]:
    """Median seconds of each tree; a first process of each does not count where it makes what is kept."""
    if name == KEPT:
        for tree in trees.values():
            tree.run(name)
    times: dict[str, list[float]] = {label: [] for label in trees}
    for _ in range(repeats):
        for label, tree in trees.items():
            times[label].append(tree.run(name))
    return {label: statistics.median(values) for label, values in times.items()}
