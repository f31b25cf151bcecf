"""A CSV of 10⁶ rows and 5000 groups from the command line: how long, and how much of it is not the fit.

    python -m benchmarks.table [--rows N] [--groups N]

`python -m jaxem TABLE --columns x,y --by group --out DIR` in a process of its own, from start to end: importing,
compiling, tables, pictures and page. The seconds of its parts are those that it writes into summary.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import limit, machine, table

MOST_SECONDS, MOST_OUTSIDE = 20.0, 0.5
JOBS = {"defaults": [], "components 1:3, four restarts": ["--components", "1:3", "--restarts", "4"]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(machine("polars"))
    rows = [["command", "wall / s", "outside of the fit", "reading / s", "fit / s", "writing / s", "drawing / s"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "table.csv", options.rows, options.groups)
        for job, arguments in JOBS.items():
            runs = [run(folder, arguments) for _ in range(options.repeats)]
            wall, read, fit, wrote, drew = (statistics.median(values) for values in zip(*runs, strict=True))
            outside = statistics.median(1 - run[2] / run[0] for run in runs)
            judged = [f"{wall:.1f}", f"{outside:.2f}"]
            if job == "defaults":
                judged = [limit(wall, at_most=MOST_SECONDS, form=".1f"), limit(outside, at_most=MOST_OUTSIDE)]
            rows.append([job, *judged, *(f"{seconds:.2f}" for seconds in (read, fit, wrote, drew))])
    print(table(rows))


def write(path: Path, n: int, n_groups: int) -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(n_groups, size=n)
    centres = rng.normal(scale=3, size=(n_groups, 2, 2))
    x = centres[groups, rng.integers(2, size=n)] + rng.normal(size=(n, 2))
    lines = (f"{a:.4f},{b:.4f},group {g}\n" for (a, b), g in zip(x, groups, strict=True))
    path.write_text("x,y,group\n" + "".join(lines))


def run(folder: Path, arguments: list[str]) -> tuple[float, ...]:
    out = folder / "out"
    command = [sys.executable, "-m", "jaxem", str(folder / "table.csv"), "--columns", "x,y", "--by", "group"]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--out", str(out), "--force", "--no-progress", *arguments], check=True, stdout=subprocess.DEVNULL
    )
    wall = time.perf_counter() - started
    seconds = json.loads((out / "summary.json").read_text("utf-8"))["seconds"]
    return wall, seconds["read"], seconds["fit"], seconds["write"], seconds["draw"]


if __name__ == "__main__":
    main()
