"""Accelerated EM beside plain EM: E steps, time and the objective reached.

    python -m benchmarks.acceleration

Float64. Every E step counts: those of refused points and of likelihoods looked at, and two for a product with the
Hessian. The death notices of The London Times are the problem on which R's packages are measured (Hasselblad 1969;
Varadhan & Roland 2008, section 7): until the residual of EM's map in (weight of the first component, two rates) has a
norm of at most 1e-7, R needs 2055, 2113, 1968 evaluations of EM, 66, 60, 36 of SQUAREM and 38, 39, 37 of DAAREM from
three starts; likelihoods, 21 to 42 more, not counted.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import interleaved, limit, machine, medians, table, without_blas_overrides, x64

ALGORITHMS = {
    "EM": jaxem.EM(),
    "SQUAREM": jaxem.SQUAREM(),
    "ParabolicEM": jaxem.ParabolicEM(),
    "Anderson": jaxem.Anderson(),
    "NewtonCG": jaxem.NewtonCG(),
}
REPEATS = 3
NOTICES = np.array([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1])  # days with 0, 1, … 9 of them
STARTS = [(0.3, 1.0, 2.5), (0.5, 1.0, 3.0), (0.45, 0.5, 4.5)]
OPTIMUM = 1989.945859883
TIMES_FEWER = {"SQUAREM": 25, "NewtonCG": 40, "Anderson": 60}
EVALUATIONS_OF_EM = (2055, 2113, 1968)


def three_numbers(params: jaxem.MixtureParams) -> Any:
    return params.weights[:1], params.components


def main() -> None:
    without_blas_overrides()
    with x64():
        print(machine())
        death_notices()
        overlapping_normals()
        weights_at_zero()
        a_thousand_lanes()


def timed(runs: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, float]]:
    results = {name: run() for name, run in runs.items()}
    return results, medians(interleaved(runs, REPEATS))


def fits(
    model: Any, start: Any, data: Any, algorithms: Any = ALGORITHMS, **options: Any
) -> dict[str, Callable[[], Any]]:
    def run(algorithm: Any) -> Any:
        return jax.block_until_ready(jaxem.fit(model, start, data, algorithm=algorithm, **options))

    return {name: functools.partial(run, algorithm) for name, algorithm in algorithms.items()}


# --- the death notices


def death_notices() -> None:
    model = jaxem.Mixture(jaxem.Poisson(), 2)
    x = np.arange(10.0)[:, None]
    stop = jaxem.Residual(1e-7, of=three_numbers)
    print("\nDeath notices, two Poisson components: E steps from three starts, until the residual is at most 1e-7")
    rows = [["algorithm", *(str(start) for start in STARTS), "ms (first start)", "-log-lik - 1989.945859883, worst"]]
    columns, worst, times = [], dict.fromkeys(ALGORITHMS, 0.0), {}
    for i, (weight, *rates) in enumerate(STARTS):
        start = jaxem.MixtureParams(np.array([weight, 1 - weight]), jaxem.PoissonParams(np.array(rates)[:, None]))
        results, seconds = timed(fits(model, start, x, sample_weight=NOTICES, stop=stop, max_iter=3000))
        times = times or seconds
        evaluations = {name: int(result.n_evals) for name, result in results.items()}
        cells = {}
        for name, result in results.items():
            result.check()
            gap = -float(result.objective) - OPTIMUM
            worst[name] = max(worst[name], gap, key=abs)
            fewer = TIMES_FEWER.get(name)
            at_most = None if fewer is None else EVALUATIONS_OF_EM[i] / fewer
            cells[name] = limit(evaluations[name], at_most=at_most, form=".0f")
        columns.append(cells)
    for name in ALGORITHMS:
        gap = limit(abs(worst[name]), at_most=1e-8, form=".1e")
        rows.append([name, *(cells[name] for cells in columns), f"{1e3 * times[name]:.2f}", gap])
    print(table(rows))


# --- normals that overlap


def overlapping(seed: int = 0, n: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [2.2, 0.0], [1.1, 2.0]])
    return centres[rng.integers(3, size=n)] + rng.normal(size=(n, 2)) * [1.0, 0.8]


def overlapping_normals() -> None:
    model, x = jaxem.Mixture(jaxem.FullNormal(), 3), overlapping()
    start = model.init(jax.random.key(0), x)
    best = jaxem.fit(model, start, x, algorithm=jaxem.Anderson(), tol=1e-15, max_iter=5000)
    rate = float(jaxem.em_rate(model, best.params, x))
    print(
        f"\nThree normals that overlap, n = {len(x):,}, d = 2: to the default tolerance, and until the residual is 1e-8"
    )
    print(f"rate of EM at the optimum: {limit(rate, at_least=0.99, form='.4f')}")
    rows = [["algorithm", "E steps", "ms", "log-lik below the optimum", "E steps to 1e-8", "ms", "log-lik below"]]
    cells: dict[str, list[str]] = {name: [] for name in ALGORITHMS}
    for stop in (jaxem.Objective(1e-6), jaxem.Residual(1e-8)):
        results, times = timed(fits(model, start, x, stop=stop, max_iter=20_000))
        for name, result in results.items():
            gap = float(best.objective - result.objective)
            cells[name] += [str(int(result.n_evals)), f"{1e3 * times[name]:.1f}", f"{gap:.1e}"]
    print(table([*rows, *([name, *cells[name]] for name in ALGORITHMS)]))


# --- weights that go to zero


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """Weights (k,) of components whose densities are known; data are their logarithms, (n, k)."""

    def log_joint(self, params: Any, data: Any) -> Any:
        positive = params > 0
        return jnp.where(positive, jnp.log(jnp.where(positive, params, 1)), -jnp.inf)[None] + data

    def statistics(self, params: Any, data: Any, responsibilities: Any) -> Any:
        return jnp.sum(responsibilities, 0)

    def m_step(self, params: Any, stats: Any) -> Any:
        return stats / jnp.sum(stats)

    def expected_log_joint(self, params: Any, stats: Any) -> Any:
        positive = params > 0
        return jnp.sum(jnp.where(positive, stats * jnp.log(jnp.where(positive, params, 1)), 0))

    def feasible(self, params: Any) -> Any:
        return jnp.all(params >= 0)

    def projected(self, params: Any, near: Any) -> Any:
        weights = jnp.maximum(params, 0.01 * near)
        return weights / jnp.sum(weights)

    def unconstrain(self, params: Any) -> Any:
        return jaxem.bijections.simplex.to_free(params)

    def constrain(self, free: Any) -> Any:
        return jaxem.bijections.simplex.from_free(free)


RATES = np.arange(1.0, 8.0)
BUDGETS = (30, 100, 300, 1000)


def known_rates() -> np.ndarray:
    """log densities (n, 7) of the days with death notices."""
    from scipy.stats import poisson

    return np.repeat(poisson.logpmf(np.arange(10)[:, None], RATES[None]), NOTICES.astype(int), 0)


@jax.jit
def one_more(state: Any, model: Any, data: Any, algorithm: Any) -> Any:
    return jaxem.advance(state, model, data, None, algorithm=algorithm, stop=jaxem.Objective(-1.0), n_iter=1)


def objectives(model: Any, start: Any, data: Any, algorithm: Any) -> list[float]:
    """The objective that each budget of E steps reaches."""
    state = jaxem.start(model, start, data, None, algorithm=algorithm, max_iter=BUDGETS[-1])
    spent, reached = [], []
    while int(state.n_evals) < BUDGETS[-1]:
        state = one_more(state, model, data, algorithm)
        spent.append(int(state.n_evals))
        reached.append(float(state.objective))
        if int(state.status) != jaxem.Status.RUNNING:
            raise RuntimeError(f"{algorithm}: {jaxem.Status(int(state.status)).explanation}")
    return [reached[max(0, int(np.searchsorted(spent, budget, "right")) - 1)] for budget in BUDGETS]


def weights_at_zero() -> None:
    data, model, start = jnp.asarray(known_rates()), Weights(), jnp.full(7, 1 / 7)
    best = jaxem.fit(model, start, data, algorithm=jaxem.Anderson(), tol=-1.0, max_iter=2000)
    zero = int(np.sum(np.asarray(best.params) < 1e-6))
    print(f"\nWeights of seven known rates, n = {len(data)}: log-likelihood below the optimum at equal E steps")
    print(f"weights that go to zero: {zero}; no further from the optimum than EM, up to 1e-9:")
    rows = [["algorithm", *(f"{budget} E steps" for budget in BUDGETS), "ms to 1e-9 a row"]]
    gaps: dict[str, list[float]] = {}
    for name, algorithm in ALGORITHMS.items():
        algorithm = jax.tree.map(jnp.asarray, algorithm)
        gaps[name] = [float(best.objective) - value for value in objectives(model, start, data, algorithm)]
    _, times = timed(fits(model, start, data, tol=1e-9, max_iter=5000))
    for name, found in gaps.items():
        cells = []
        for gap, of_em in zip(found, gaps["EM"], strict=True):
            verdict = "" if name == "EM" else " holds" if gap <= of_em + 1e-9 else " MISSED"
            cells.append(f"{gap:.1e}{verdict}")
        rows.append([name, *cells, f"{1e3 * times[name]:.1f}"])
    print(table(rows))


# --- a thousand lanes


def a_thousand_lanes(n_lanes: int = 1000) -> None:
    model = jaxem.Mixture(jaxem.FullNormal(), 2)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n_lanes, 200, 1)) + 2.5 * (rng.uniform(size=(n_lanes, 200, 1)) < 0.4)
    keys = jax.random.split(jax.random.key(1), n_lanes)
    start = jax.jit(jax.vmap(lambda key, x: model.init(key, x)))(keys, jnp.asarray(x))

    def run(algorithm: Any) -> Any:
        stop = jaxem.Residual(1e-6)
        return jax.block_until_ready(jaxem.fit_batch(model, start, x, algorithm=algorithm, stop=stop, max_iter=20_000))

    results, times = timed({name: functools.partial(run, algorithm) for name, algorithm in ALGORITHMS.items()})
    best = np.max([np.asarray(result.objective) for result in results.values()], 0)
    print(f"\n{n_lanes:,} lanes at once (fit_batch): two normals, n = 200, d = 1, until the residual is 1e-6")
    rows = [["algorithm", "E steps, all", "median", "most", "ms", "lanes converged", "within 1e-6 of the best"]]
    for name, result in results.items():
        evaluations = np.asarray(result.n_evals)
        near = int(np.sum(np.asarray(result.objective) >= best - 1e-6))
        numbers = [int(evaluations.sum()), int(np.median(evaluations)), int(evaluations.max())]
        converged = int(np.sum(np.asarray(result.converged)))
        rows.append([name, *(f"{n:,}" for n in numbers), f"{1e3 * times[name]:.0f}", f"{converged}", f"{near}"])
    print(table(rows))


if __name__ == "__main__":
    main()
