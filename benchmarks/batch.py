"""Thousands of fits: jaxem beside loops over scikit-learn and over jitted gmmx.

    python -m benchmarks.batch

1. Flights, one given start for each aircraft: from the flat NumPy table to results on the host, warm. Same starts, same
   stopping rule (mean log-likelihood rises by less than 1e-3, at most 100 iterations) on both sides. scikit-learn runs
   float64, its BLAS on one thread (faster for problems this small), on a random sample of aircraft; its time is scaled
   to all of them by aircraft and by rows, and the smaller of the two figures is used.
2. The same with k-means starts and 4 restarts on both sides.
3. 1000 problems of n = 500, d = 2, k = 3 at 30 iterations: jaxem, gmmx, and scikit-learn on a sample.

The process starts itself anew without OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE, which slow scikit-learn down where set.
scikit-learn counts an iteration more than jaxem at the same stopping point: it makes one further M step after the last
objective it looked at. Compared here are its `n_iter_` with jaxem's `n_evals`, and its `lower_bound_` with jaxem's
`log_lik` per row, which belong to the same params.
"""

import argparse
import functools
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import jaxem
from benchmarks import Normals, interleaved, limit, machine, mean_log_lik, medians, table, without_blas_overrides
from jaxem.sources.flights import load_flights

AT_LEAST_SKLEARN, AIM_SKLEARN, AT_LEAST_GMMX = 100.0, 200.0, 5.0
TOL, MAX_ITER, N_RESTARTS = 1e-3, 100, 4
RIDGE = 1.0  # minutes squared, on the covariances of the starts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=300, help="aircraft that scikit-learn is timed on")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    options = parser.parse_args()
    without_blas_overrides()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(machine("scikit-learn", "gmmx"))
    flights = flight_table(options.sample)
    given_starts(flights, options.repeats)
    restarts(flights, options.repeats)
    many_problems(options.repeats)


class FlightTable(NamedTuple):
    """The flat table, its groups, and the rows of `x` that belong to the sampled aircraft."""

    x: np.ndarray  # (n, 2) float32
    ids: np.ndarray  # (n,) int32, ascending
    tailnum: np.ndarray  # (n,) str
    offsets: np.ndarray  # (groups + 1,)
    sample: np.ndarray  # groups that scikit-learn fits


def flight_table(sample: int) -> FlightTable:
    flights = load_flights()
    labels, ids, counts = np.unique(flights.tailnum, return_inverse=True, return_counts=True)
    chosen = np.random.default_rng(0).choice(len(labels), size=min(sample, len(labels)), replace=False)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return FlightTable(flights.delays.astype(np.float32), ids.astype(np.int32), flights.tailnum, offsets, chosen)


def given_starts(flights: FlightTable, repeats: int) -> None:
    """Part 1: the start of an aircraft is the moments of both halves of its rows, cut at the median summed delay."""
    starts = [half_split(flights.x[a:b]) for a, b in zip(flights.offsets[:-1], flights.offsets[1:], strict=True)]
    weights, means, covariances = (np.stack(arrays).astype(np.float32) for arrays in zip(*starts, strict=True))
    init = jaxem.MixtureParams(jnp.asarray(weights), jaxem.NormalParams(jnp.asarray(means), jnp.asarray(covariances)))
    shuffle = np.random.default_rng(1).permutation(len(flights.x))
    tables = {
        "jaxem": (flights.x, flights.ids),
        "jaxem, tail numbers as labels": (flights.x, flights.tailnum),
        "jaxem, rows shuffled": (flights.x[shuffle], flights.ids[shuffle]),
    }
    jobs = {name: functools.partial(jaxem_groups, x, ids, init=init) for name, (x, ids) in tables.items()}
    results = {name: job() for name, job in jobs.items()}
    loop = SklearnLoop(flights, [starts[group] for group in flights.sample])
    loop()
    times = interleaved({**jobs, "scikit-learn": loop}, repeats)
    print(f"\n1. flights, one given start for each of {len(starts):,} aircraft")
    report_flights(flights, times, loop, results["jaxem"])
    ratio = loop.scaled() / statistics.median(times["jaxem"])
    print(f"scikit-learn / jaxem: {limit(ratio, at_least=AT_LEAST_SKLEARN, form='.0f')}, aim {AIM_SKLEARN:g}")


def half_split(x: np.ndarray) -> Normals:
    rank = np.argsort(x.sum(axis=1), kind="stable")
    halves = [x[rank[: len(x) // 2]].astype(float), x[rank[len(x) // 2 :]].astype(float)]
    return Normals(
        np.array([len(half) / len(x) for half in halves]),
        np.stack([half.mean(axis=0) for half in halves]),
        np.stack([np.cov(half.T, bias=True) + RIDGE * np.eye(2) for half in halves]),
    )


def restarts(flights: FlightTable, repeats: int) -> None:
    """Part 2: k-means starts, 4 restarts, the best kept."""
    job = functools.partial(jaxem_groups, flights.x, flights.ids, n_restarts=N_RESTARTS)
    result = job()
    loops = {
        "scikit-learn, kmeans (k-means++, then Lloyd)": SklearnLoop(flights, None, init_params="kmeans"),
        "scikit-learn, k-means++ (a row each, no Lloyd)": SklearnLoop(flights, None, init_params="k-means++"),
    }
    for loop in loops.values():
        loop()
    times = interleaved({"jaxem": job, **loops}, min(repeats, 3))
    print(f"\n2. flights, {N_RESTARTS} restarts from k-means starts")
    for name, loop in loops.items():
        report_flights(flights, {"jaxem": times["jaxem"], name: times[name]}, loop, result)
        ratio = loop.scaled() / statistics.median(times["jaxem"])
        print(f"scikit-learn / jaxem: {limit(ratio)} (no limit set)")


def jaxem_groups(x: np.ndarray, ids: np.ndarray, **options: Any) -> jaxem.GroupsResult:
    """From the flat NumPy table to params on the host."""
    model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
    groups = jaxem.fit_groups(model, jax.random.key(0), x, ids, tol=TOL, max_iter=MAX_ITER, **options)
    jax.tree.map(np.asarray, (groups.params, groups.log_lik, groups.n_iter, groups.status))
    return groups


class SklearnLoop:
    """A loop of scikit-learn fits over the sampled aircraft; every call adds the time of every fit to `times`."""

    def __init__(self, flights: FlightTable, starts: list[Normals] | None, **options: Any):
        x = flights.x.astype(np.float64)
        self.rows = [x[flights.offsets[group] : flights.offsets[group + 1]] for group in flights.sample]
        self.n_groups, self.n_rows = len(flights.offsets) - 1, len(x)
        options = {"tol": TOL, "max_iter": MAX_ITER, "reg_covar": 1e-6, "random_state": 0, **options}
        if starts is None:
            self.mixtures = [GaussianMixture(2, n_init=N_RESTARTS, **options) for _ in self.rows]
        else:
            self.mixtures = [GaussianMixture(2, **sklearn_start(start), **options) for start in starts]
        self.times: list[list[float]] = []

    def __call__(self) -> None:
        spent = []
        with threadpool_limits(1):
            for mixture, rows in zip(self.mixtures, self.rows, strict=True):
                started = time.perf_counter()
                mixture.fit(rows)
                spent.append(time.perf_counter() - started)
        self.times.append(spent)

    def scaled(self) -> float:
        """Seconds for all aircraft: the sample scaled by aircraft or by rows, whichever is less; call 1 is warm-up."""
        total = statistics.median(map(sum, self.times[1:]))
        return total * min(self.n_groups / len(self.rows), self.n_rows / sum(map(len, self.rows)))


def sklearn_start(start: Normals) -> dict[str, np.ndarray]:
    return {
        "weights_init": start.weights / start.weights.sum(),
        "means_init": start.means,
        "precisions_init": np.linalg.inv(start.covariances),
    }


def report_flights(
    flights: FlightTable, times: dict[str, list[float]], loop: SklearnLoop, groups: jaxem.GroupsResult
) -> None:
    log_lik = np.asarray(groups.log_lik)[flights.sample] / np.asarray(groups.n_rows)[flights.sample]
    theirs = np.array([mixture.lower_bound_ for mixture in loop.mixtures])
    n_evals = np.asarray(groups.n_evals)
    rows = [["unit", "seconds", "mean E steps", "mean log-lik of the sample"]]
    for name, seconds in medians(times).items():
        if "scikit-learn" in name:
            n_iter = statistics.mean(mixture.n_iter_ for mixture in loop.mixtures)
            name, seconds = f"{name}, scaled from {len(loop.rows)}", loop.scaled()
            rows.append([name, f"{seconds:.3f}", f"{n_iter:.1f}", f"{theirs.mean():.5f}"])
        else:
            rows.append([name, f"{seconds:.4f}", f"{n_evals[flights.sample].mean():.1f}", f"{log_lik.mean():.5f}"])
    print(table(rows))
    gap = log_lik - theirs
    statuses = np.asarray(groups.status)
    counts = {status.name: int((statuses == status).sum()) for status in jaxem.Status}
    print(
        f"jaxem less scikit-learn, mean log-lik of an aircraft: median {np.median(gap):+.1e}, "
        f"within 1e-3: {np.mean(abs(gap) < 1e-3):.0%}, higher by more: {np.mean(gap >= 1e-3):.0%}, "
        f"lower by more: {np.mean(gap <= -1e-3):.0%}"
    )
    print(
        f"status: {', '.join(f'{name} {count}' for name, count in counts.items() if count)}; lane efficiency "
        f"{float(groups.lane_efficiency):.0%}; padding {float(groups.padding):.0%}"
    )


def many_problems(repeats: int, b: int = 1000, n_iter: int = 30) -> None:
    """Part 3: no ragged groups, no stopping: the bare cost of many small fits."""
    n, d, k, sample = 500, 2, 3, 100
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(b, k, d))
    x = np.take_along_axis(centres, rng.integers(k, size=(b, n, 1)), axis=1) + rng.normal(size=(b, n, d))
    x = x.astype(np.float32)
    start = Normals(
        np.full((b, k), 1 / k, np.float32), x[:, :k], np.tile(4 * np.eye(d, dtype=np.float32), (b, k, 1, 1))
    )
    units = {
        "jaxem": jaxem_batch(x, start, n_iter),
        "gmmx, loop over jitted fits": gmmx_loop(x, start, n_iter),
        f"scikit-learn, scaled from {sample}": sklearn_loop(x[:sample], start, n_iter),
    }
    fitted = {name: unit() for name, unit in units.items()}
    times = medians(interleaved(units, repeats))
    names = list(units)
    times[names[2]] *= b / sample
    rows = [["unit", "seconds", "/ jaxem", "mean log-lik of 20 problems"]]
    for name in names:
        objective = statistics.mean(mean_log_lik(x[i], fitted[name](i)) for i in range(20))
        rows.append([name, f"{times[name]:.3f}", f"{times[name] / times['jaxem']:.1f}", f"{objective:.6f}"])
    print(f"\n3. {b:,} problems of n = {n}, d = {d}, k = {k} at {n_iter} iterations, data on the device")
    print(table(rows))
    print(f"gmmx / jaxem: {limit(times[names[1]] / times['jaxem'], at_least=AT_LEAST_GMMX, form='.1f')}")


Unit = Callable[[], Callable[[int], Normals]]  # a call that fits everything and returns how to read problem i


def jaxem_batch(x: np.ndarray, start: Normals, n_iter: int) -> Unit:
    model = jaxem.Mixture(jaxem.FullNormal(), n_components=start.weights.shape[1])
    data, weights, means, covariances = map(jnp.asarray, (x, *start))
    params = jaxem.MixtureParams(weights, jaxem.NormalParams(means, covariances))

    def call() -> Callable[[int], Normals]:
        result = jax.block_until_ready(jaxem.fit_batch(model, params, data, tol=-1.0, max_iter=n_iter))
        weights, (means, covariances) = result.params.weights, result.params.components
        return lambda i: Normals(np.asarray(weights[i]), np.asarray(means[i]), np.asarray(covariances[i]))

    return call


def gmmx_loop(x: np.ndarray, start: Normals, n_iter: int) -> Unit:
    from gmmx import EMFitter, GaussianMixtureModelJax

    data = [jax.block_until_ready(jnp.asarray(rows)) for rows in x]
    mixtures = [
        GaussianMixtureModelJax.from_squeezed(means=means, covariances=covariances, weights=weights)
        for weights, means, covariances in zip(*start, strict=True)
    ]
    fitter = EMFitter(max_iter=n_iter, tol=-1.0)

    def call() -> Callable[[int], Normals]:
        fitted = [fitter.fit(rows, mixture).gmm for rows, mixture in zip(data, mixtures, strict=True)]
        jax.block_until_ready(fitted)
        return lambda i: Normals(fitted[i].weights_numpy, fitted[i].means_numpy, fitted[i].covariances.values_numpy)

    return call


def sklearn_loop(x: np.ndarray, start: Normals, n_iter: int) -> Unit:
    rows = x.astype(np.float64)
    starts = [Normals(*(array[i].astype(np.float64) for array in start)) for i in range(len(rows))]
    mixtures = [GaussianMixture(len(s.weights), tol=0.0, max_iter=n_iter, **sklearn_start(s)) for s in starts]

    def call() -> Callable[[int], Normals]:
        with threadpool_limits(1):
            for mixture, data in zip(mixtures, rows, strict=True):
                mixture.fit(data)
        return lambda i: Normals(mixtures[i].weights_, mixtures[i].means_, mixtures[i].covariances_)

    return call


if __name__ == "__main__":
    main()
