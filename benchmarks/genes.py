"""One or two normal components for each of 5,000 genes: how often a second one is seen where there is none.

    python -m benchmarks.genes [--groups G] [--thyroid FILE]

Counts of 100 cells are negative binomial; a third of the genes have two regimes whose means are 4 to 10 times apart.
Normal components on log1p counts are wrong about discreteness, above all of the zeros: a spike on the cells that have
none wins every criterion. Printed are the shares of genes of one regime that get two components (false positives) and
of genes of two that do (sensitivity): by BIC alone, by `select(…, group_ids=…)` as it is, by the command, and with
negative binomial components on the counts themselves.

With `--thyroid`, the data of that name in R's mclust (`write.csv(mclust::thyroid, FILE, row.names = FALSE)`), k = 1 to
4 by BIC from 50 starts.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import jaxem
from benchmarks import limit, machine, table

N_CELLS, MEDIAN, SPREAD, SIZE = 100, 5.0, 1.2, 4.0  # cells a gene; means are log-normal; size of the negative binomial
MOST_FALSE, LEAST_SEEN, MOST_FALSE_COUNTS = 0.10, 0.55, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.genes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--groups", type=int, default=5000)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--thyroid", type=Path)
    options = parser.parse_args()
    print(machine())
    counts, has_two = draw_genes(options.groups)
    print(f"{options.groups:,} genes x {N_CELLS} cells, {np.mean(counts == 0):.0%} zeros, seed 0")
    print(table(compare(counts, has_two, options.restarts)))
    if options.thyroid is not None:
        print(table(thyroid(options.thyroid)))


def draw_genes(n_genes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts (genes, cells), and which genes have two regimes."""
    rng = np.random.default_rng(seed)
    has_two = np.arange(n_genes) < n_genes // 3
    mean = np.exp(rng.normal(np.log(MEDIAN), SPREAD, n_genes))
    fold, share = rng.uniform(4, 10, n_genes), rng.uniform(0.3, 0.7, n_genes)
    high = (rng.random((n_genes, N_CELLS)) < share[:, None]) & has_two[:, None]
    mean_of_cell = mean[:, None] * np.where(high, fold[:, None], 1)
    return rng.poisson(rng.gamma(SIZE, mean_of_cell / SIZE)), has_two


def compare(counts: np.ndarray, has_two: np.ndarray, n_restarts: int) -> list[list[str]]:
    """Rows of the table, one a way to choose."""
    n_genes = len(counts)
    ids, log_counts = np.repeat(np.arange(n_genes), N_CELLS), np.log1p(counts).astype(np.float32).reshape(-1, 1)

    def choose(family, x, **options) -> tuple[np.ndarray, np.ndarray, float]:
        models = [jaxem.Mixture(family, k) for k in (1, 2)]
        started = time.perf_counter()
        found = jaxem.select(models, jax.random.key(0), x, group_ids=ids, n_restarts=n_restarts, **options)
        at_floor = found.table.get("n_at_floor", np.zeros(2 * n_genes))
        return found.index == 1, at_floor.reshape(n_genes, 2)[:, 1] > 0, time.perf_counter() - started

    rows = [["chosen by", "two components", "of them at the floor", "false positives", "sensitivity", "s"]]

    def add(name: str, two: np.ndarray, low: np.ndarray | None, seconds: float, most: float | None, seen: bool) -> None:
        false, found = float(np.mean(two[~has_two])), float(np.mean(two[has_two]))
        rows.append([
            name, f"{two.sum():,}", "" if low is None else f"{np.mean(low[two]) if two.any() else 0:.2f}",
            f"{false:.3f}" if most is None else limit(false, at_most=most, form=".3f"),
            limit(found, at_least=LEAST_SEEN) if seen else f"{found:.2f}", f"{seconds:.1f}",
        ])  # fmt: skip

    add("BIC alone", *choose(jaxem.FullNormal(), log_counts, admissible=None), None, False)
    add("select", *choose(jaxem.FullNormal(), log_counts), MOST_FALSE, True)
    started = time.perf_counter()
    two = by_command(log_counts[:, 0], ids, n_restarts)
    add("command", two, None, time.perf_counter() - started, MOST_FALSE, True)
    x = counts.astype(np.float32).reshape(-1, 1)
    add("select, NegativeBinomial", *choose(jaxem.NegativeBinomial(), x), MOST_FALSE_COUNTS, False)
    return rows


def by_command(values: np.ndarray, ids: np.ndarray, n_restarts: int) -> np.ndarray:
    """Which genes get two components from `python -m jaxem`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "genes.npz", log_count=values, gene=ids)
        command = [sys.executable, "-m", "jaxem", str(folder / "genes.npz"), "--columns", "log_count", "--by", "gene"]
        options = ["--components", "1:2", "--restarts", str(n_restarts), "--out", str(folder / "out"), "--no-progress"]
        done = subprocess.run([*command, *options], stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 1):
            raise SystemExit(done.returncode)
        with (folder / "out" / "fits.csv").open(newline="") as file:
            chosen = {int(row["group"]): int(row["n_components"]) for row in csv.DictReader(file)}
    return np.array([chosen[gene] == 2 for gene in range(len(chosen))])


def thyroid(file: Path) -> list[list[str]]:
    """k = 1 to 4 normal components, the best of 50 starts that has none of fewer than d + 1 rows."""
    with file.open(newline="") as opened:
        x = np.array([[float(v) for name, v in row.items() if name != "Diagnosis"] for row in csv.DictReader(opened)])
    models = [jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2, 3, 4)]
    rows = [["thyroid", "k", "criterion", "status", "fewest rows"]]
    for name, admissible in (("BIC alone", None), ("admissible", jaxem.Admissible(min_count=x.shape[1] + 1))):
        found = jaxem.select(
            models, jax.random.key(0), x.astype(np.float32), n_restarts=50, admissible=admissible, max_iter=2000
        )  # fmt: skip
        for i, result in enumerate(found.results):
            fewest = float(result.holdings().smallest_count)
            mark = " (chosen)" if i == found.index else ""
            judged = limit(fewest, at_least=x.shape[1] + 1, form=".1f") if admissible and mark else f"{fewest:.1f}"
            status = found.table["status"][i]
            rows.append([name, f"{i + 1}{mark}", f"{found.table['criterion'][i]:.1f}", status, judged])
    return rows


if __name__ == "__main__":
    main()
