"""Ten thousand groups of 20 to 5000 rows in one call: what padding wastes, and what the call costs.

    python -m benchmarks.scale.groups

Sizes are log-uniform; d = 2, k = 3, starts given, tol 1e-4. The wall time of `fit_groups`, NumPy table in, results on
the host, is set beside Σ E steps × rows × (time of a row in one unpadded lane of the group's size) / cores. The time of
a row is the slope of a fit of one lane over its number of iterations, at sizes from 20 to 5000, straight lines between.
"""

import os
import time

import jax
import numpy as np

import jaxem
from benchmarks import limit, machine, seconds, table, without_blas_overrides

MOST_WASTE, MOST_TIME = 0.25, 1.3
N_GROUPS, D, K = 10_000, 2, 3
MODEL = jaxem.Mixture(jaxem.FullNormal(), K)
SIZES = (20, 48, 128, 320, 800, 2000, 5000)


def main() -> None:
    without_blas_overrides()
    print(machine())
    x, ids, sizes, starts = ragged_table()
    run = lambda: jax.block_until_ready(  # noqa: E731
        jaxem.fit_groups(MODEL, jax.random.key(0), x, ids, init=starts, tol=1e-4, max_iter=200)
    )
    started = time.perf_counter()
    groups = run()
    first = time.perf_counter() - started
    walls, bounds = [], []
    for _ in range(3):  # in turn, so that a slow minute hits both
        row_seconds = np.interp(sizes, SIZES, [seconds_per_row(n) for n in SIZES])
        bounds.append(float(np.sum(np.asarray(groups.n_evals) * sizes * row_seconds)) / len(os.sched_getaffinity(0)))
        walls.append(min(seconds(run) for _ in range(6)))  # the best of as many as the time of a row
    rows = [
        ["figure", "value"],
        ["groups, rows", f"{N_GROUPS:,}, {len(x):,}"],
        ["mean E steps", f"{np.asarray(groups.n_evals).mean():.1f}"],
        ["padding, share of rows computed on", limit(groups.padding, at_most=MOST_WASTE, form=".3f")],
        ["first call / s", f"{first:.1f}"],
        ["wall time, warm / s", f"{np.median(walls):.2f}"],
        ["sum of the unpadded lanes / cores / s", f"{np.median(bounds):.2f}"],
        ["ratio", limit(float(np.median(np.divide(walls, bounds))), at_most=MOST_TIME)],
        ["statuses", ", ".join(f"{status.name} {n}" for status, n in groups.counts().items())],
    ]
    print(table(rows))


def ragged_table() -> tuple[np.ndarray, np.ndarray, np.ndarray, jaxem.MixtureParams]:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(20), np.log(5000), N_GROUPS)).astype(int)
    ids = np.repeat(np.arange(N_GROUPS), sizes)
    centres = 2 * rng.normal(size=(N_GROUPS, K, D)).astype(np.float32)
    x = centres[ids, rng.integers(K, size=len(ids))] + rng.normal(size=(len(ids), D)).astype(np.float32)
    return x, ids, sizes, starts_at(centres)


def starts_at(centres: np.ndarray) -> jaxem.MixtureParams:
    b = len(centres)
    covariances = np.tile(np.eye(D, dtype=np.float32), (b, K, 1, 1))
    return jaxem.MixtureParams(np.full((b, K), 1 / K, np.float32), jaxem.NormalParams(centres, covariances))  # type: ignore


def seconds_per_row(n: int, short: int = 20, long: int = 220) -> float:
    """Of one E and M step of one lane of n rows."""
    rng = np.random.default_rng(n)
    centres = 2 * rng.normal(size=(1, K, D)).astype(np.float32)
    x = (centres[0, rng.integers(K, size=n)] + rng.normal(size=(n, D))).astype(np.float32)[None]
    weight = np.ones((1, n), np.float32)

    def best(n_iter: int) -> float:
        options = {"sample_weight": weight, "tol": -1.0, "max_iter": n_iter, "plan": "sequential"}
        fit = lambda: jax.block_until_ready(jaxem.fit_batch(MODEL, starts_at(centres), x, **options))  # noqa: E731
        return min(seconds(fit) for _ in range(6))

    return (best(long) - best(short)) / (long - short) / n


if __name__ == "__main__":
    main()
