"""How far from its limit a fit is that says CONVERGED, and what getting there costs.

    python -m benchmarks.limit

Two sets of problems in float64: 1024 mixtures of three overlapping normals (n = 200, d = 2), and a mixture of two
normals for each of the 3,146 aircraft. Compared are EM under `Objective(1e-6)`, which looks at the last rise alone; EM
under the default rule, which foretells the limit; the default of the drivers of many fits; and scikit-learn at its own
defaults, from the same starts, on a sample. Near is what lies within 20·tol·n of the objective that EM reaches from
there, in up to 10⁵ more iterations, or until its rises are below what float64 resolves.

Last: the three plans, side by side, one after another and under plain `vmap`, in both precisions.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import jaxem
from benchmarks import limit, machine, table, without_blas_overrides, x64
from jaxem.sources.flights import load_flights

TOL, NEAR, MORE = 1e-6, 20, 100_000
AT_LEAST_NEAR, AT_MOST_MAX_ITER, AT_MOST_DIFFERENCE = 0.99, 0.005, 1e-9
N_LANES, N, D, K = 1024, 200, 2, 3


class Problems(NamedTuple):
    """Many fits from given starts: `fit(options) -> FitResult`, their rows and weights of these."""

    name: str
    model: Any
    starts: Any
    n_rows: np.ndarray
    fit: Callable[..., jaxem.FitResult]
    rows_of: Callable[[int], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=200, help="fits of scikit-learn")
    parser.add_argument("--lanes", type=int, default=N_LANES, help="overlapping mixtures")
    options = parser.parse_args()
    without_blas_overrides()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(machine("scikit-learn"))
    with x64():
        lanes = overlapping(options.lanes)
        for problems in (lanes, aircraft()):
            report(problems, options.sample)
        plans(lanes)


def overlapping(n_lanes: int) -> Problems:
    """Three normals of standard deviation 1 whose means are 1.5 apart."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [1.5, 0], [0, 1.5]])
    x = jnp.asarray(centres[rng.integers(0, K, (n_lanes, N))] + rng.normal(size=(n_lanes, N, D)))
    model = jaxem.Mixture(jaxem.FullNormal(), K)
    keys = jax.random.split(jax.random.key(0), n_lanes)
    starts = jax.jit(jax.vmap(model.init))(keys, x)

    def fit(starts: Any, **options: Any) -> jaxem.FitResult:
        return jaxem.fit_batch(model, starts, x, **options)

    return Problems(
        f"{n_lanes} overlapping mixtures", model, starts, np.full(n_lanes, N), fit, lambda i: np.asarray(x[i])
    )


def aircraft() -> Problems:
    """The starts are those that `fit_groups` draws."""
    flights = load_flights()
    delays = flights.delays.astype(float)
    model = jaxem.Mixture(jaxem.FullNormal(), 2)

    def fit(starts: Any, **options: Any) -> jaxem.FitResult:
        options.setdefault("algorithm", jaxem.EM())
        return jaxem.fit_groups(model, jax.random.key(0), delays, flights.tailnum, init=starts, **options).fits

    begun = jaxem.fit_groups(model, jax.random.key(0), delays, flights.tailnum, max_iter=0)
    ends = np.cumsum(begun.n_rows)
    order = np.argsort(flights.tailnum, kind="stable")
    rows_of = lambda i: delays[order[ends[i] - begun.n_rows[i] : ends[i]]]  # noqa: E731
    return Problems(f"{len(ends):,} aircraft", model, begun.params, np.asarray(begun.n_rows), fit, rows_of)


def report(problems: Problems, sample: int) -> None:
    runs = {
        "EM, Objective(1e-6)": {"stop": jaxem.Objective(TOL)},
        "EM, default rule (fit)": {},
        "SQUAREM (drivers)": {"algorithm": jaxem.SQUAREM()},
    }
    rows, found = [["", "E steps", "MAX_ITER", "converged", "of these near", "worst a row"]], {}
    for name, options in runs.items():
        result = problems.fit(problems.starts, tol=TOL, **options)
        gap = gaps(problems, result.params, result.objective)
        converged = np.asarray(result.converged)
        found[name] = Ended(
            converged, np.asarray(result.status) == jaxem.Status.MAX_ITER, gap, int(np.sum(result.n_evals))
        )
        rows.append(found[name].row(name))
    rows.append(sklearn_loop(problems, result.params, sample).row(f"scikit-learn, its defaults ({sample} fits)"))
    print(f"\n{problems.name}")
    print(table(rows))
    plain, default, drivers = found.values()
    for name, ended in (("fit", default), ("drivers", drivers)):
        print(f"near, {name}: {limit(ended.near, at_least=AT_LEAST_NEAR, form='.4f')}")
    print(f"MAX_ITER, drivers: {limit(float(np.mean(drivers.spent)), at_most=AT_MOST_MAX_ITER, form='.4f')}")
    print(f"E steps, drivers / EM under Objective: {limit(drivers.n_evals / plain.n_evals, at_most=1.0)}")


class Ended(NamedTuple):
    """How many fits ended: booleans (b,), the distance to the limit a row (b,), and E steps in all."""

    converged: np.ndarray
    spent: np.ndarray
    gap: np.ndarray
    n_evals: int

    @property
    def near(self) -> float:
        """The share of what says CONVERGED that is."""
        return float(np.mean(self.gap[self.converged] <= NEAR * TOL))

    def row(self, name: str) -> list[str]:
        shares = [f"{share:.2%}" for share in (np.mean(self.spent), np.mean(self.converged), self.near)]
        return [name, f"{self.n_evals:,}", *shares, f"{np.max(self.gap[self.converged], initial=0):.1e}"]


def gaps(problems: Problems, params: Any, objective: Any) -> np.ndarray:
    """The distance of the objective to the limit from there, a row."""
    further = problems.fit(params, algorithm=jaxem.EM(), stop=jaxem.Objective(0.0), max_iter=1000)
    for _ in range(MORE // 1000 - 1):
        if not np.any(np.asarray(further.status) == jaxem.Status.MAX_ITER):
            break
        further = problems.fit(further.params, algorithm=jaxem.EM(), stop=jaxem.Objective(0.0), max_iter=1000)
    return (np.asarray(further.objective) - np.asarray(objective)) / problems.n_rows


def sklearn_loop(problems: Problems, settled: Any, sample: int) -> Ended:
    """scikit-learn from the same starts; jaxem evaluates its params, among others that have settled already."""
    chosen = np.random.default_rng(1).choice(len(problems.n_rows), min(sample, len(problems.n_rows)), replace=False)
    converged, n_evals, params = [], 0, jax.tree.map(np.array, settled)
    for i in chosen:
        start = jax.tree.map(lambda leaf: np.asarray(leaf[i]), problems.starts)  # noqa: B023
        bank = start.components
        mixture = GaussianMixture(
            len(start.weights), weights_init=start.weights, means_init=bank.mean,
            precisions_init=np.linalg.inv(bank.covariance),
        ).fit(problems.rows_of(i))  # fmt: skip
        params.weights[i], params.components.mean[i] = mixture.weights_, mixture.means_
        params.components.covariance[i] = mixture.covariances_
        converged.append(mixture.converged_)
        n_evals += mixture.n_iter_
    params = jax.tree.map(jnp.asarray, params)
    gap = gaps(problems, params, problems.fit(params, max_iter=0).objective)[chosen]
    return Ended(np.asarray(converged), ~np.asarray(converged), gap, n_evals)


def plans(problems: Problems) -> None:
    """The same 1024 fits by the three plans."""
    x = jnp.stack([problems.rows_of(i) for i in range(len(problems.n_rows))])
    for dtype, algorithm in ((np.float64, jaxem.EM()), (np.float64, jaxem.SQUAREM()), (np.float32, jaxem.SQUAREM())):
        starts, rows = jax.tree.map(lambda leaf: leaf.astype(dtype), (problems.starts, x))  # noqa: B023
        one = lambda start, x: jaxem.fit(problems.model, start, x, algorithm=algorithm)  # noqa: B023, E731
        results = {
            plan: jaxem.fit_batch(problems.model, starts, rows, plan=plan, algorithm=algorithm)
            for plan in ("sequential", "lanes")
        }
        results["vmap"] = jax.jit(jax.vmap(one))(starts, rows)
        name = f"{np.dtype(dtype).name}, {type(algorithm).__name__}"
        compare(name, results, AT_MOST_DIFFERENCE if dtype == np.float64 else None)


def compare(name: str, results: dict[str, jaxem.FitResult], at_most: float | None) -> None:
    first = results.pop("sequential")
    for plan, other in results.items():
        change = np.abs(np.asarray(other.objective - first.objective) / np.asarray(first.objective))
        other_end = int(np.sum(np.asarray(other.status) != np.asarray(first.status)))
        worst = limit(float(change.max()), at_most=at_most, form=".1e") if at_most else f"{change.max():.1e}"
        far = int(np.sum(change > 1e-5))
        print(
            f"{name}: {plan} against sequential: {other_end} other statuses, objective {worst} apart, {far} beyond 1e-5"
        )


if __name__ == "__main__":
    main()
