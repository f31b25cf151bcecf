"""Time of one EM iteration of a normal mixture: jaxem, a bare prototype, scikit-learn, gmmx; then the four families.

    python -m benchmarks.mixture

Same data, same starts, same run. Time of an iteration = (time of m2 iterations - time of m1) / (m2 - m1), the median of
interleaved repetitions: what is paid once a call (validation of the data, dispatch, the features T) cancels, and so
does compilation, which stands in its own column. jaxem runs with status, history and safeguards on (`tol=-1.`, so that
it makes every iteration asked for). scikit-learn runs its own `_e_step` and `_m_step` with its threads on, and float64
also on one thread, since its threads stand in each other's way on small problems and on a busy machine: the ratio takes
the faster of the two. The column "objective" is the mean log-likelihood of the params after three iterations, computed
for everyone by the same float64 code outside of the contestants.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import Normals, interleaved, limit, machine, mean_log_lik, medians, prototype, seconds, table, x64

SHAPES = ((20_000, 8, 8), (131_072, 16, 16), (131_072, 16, 64), (65_536, 64, 16))
AT_LEAST_SKLEARN = dict(zip(SHAPES, (15.0, 12.0, 15.0, 4.0), strict=True))
AT_LEAST_GMMX = 5.0
GMMX_SHAPES = SHAPES[:2]
AT_MOST_PROTOTYPE = 1.15
AT_LEAST_FULL = {"diagonal": 2.0, "spherical": 2.0, "tied": 1.0}
COMPARED_AT = 3


class Unit(NamedTuple):
    """A contestant: `run(m)` makes m iterations, waits, and returns the params; timed at `low` and at `high`."""

    run: Callable[[int], Any]
    low: int
    high: int
    repeats: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixture", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the first shape only, two repetitions")
    parser.add_argument("--repeats", type=int, default=7, help="repetitions of the fast units; the slow ones get 3")
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats
    print(machine("scikit-learn", "gmmx"))
    for shape in SHAPES[:1] if options.quick else SHAPES:
        compare_libraries(shape, repeats)
    for shape in SHAPES:
        if shape[1] >= 16 and not options.quick:
            compare_families(shape, repeats)


def compare_libraries(shape: tuple[int, int, int], repeats: int) -> None:
    x, start = problem(*shape)
    high, slow = (23 if x.nbytes * shape[2] < 2e8 else 13), min(repeats, 3)
    units = {
        "jaxem f32": Unit(jaxem_full(x, start, np.float32), COMPARED_AT, high, repeats),
        "jaxem f64": Unit(jaxem_full(x, start, np.float64), COMPARED_AT, high, repeats),
        "prototype f32": Unit(bare(x, start, np.float32), COMPARED_AT, high, repeats),
        "prototype f64": Unit(bare(x, start, np.float64), COMPARED_AT, high, repeats),
        "scikit-learn f32": Unit(sklearn_full(x, start, np.float32), 1, COMPARED_AT, slow),
        "scikit-learn f64": Unit(sklearn_full(x, start, np.float64), 1, COMPARED_AT, slow),
        "scikit-learn f64, 1 thread": Unit(one_thread(sklearn_full(x, start, np.float64)), 1, COMPARED_AT, slow),
    }
    if shape in GMMX_SHAPES:
        units["gmmx f32"] = Unit(gmmx_full(x, start), 1, COMPARED_AT, slow)
    compile_times, iteration_times = measure(units)
    mine = iteration_times["jaxem f32"]
    rows = [["unit", "compile s", "iteration ms", "/ jaxem f32", "objective"]]
    for name, unit in units.items():
        time = iteration_times[name]
        objective = mean_log_lik(x, unit.run(COMPARED_AT))
        rows.append([name, f"{compile_times[name]:.2f}", f"{1e3 * time:.2f}", f"{time / mine:.2f}", f"{objective:.6f}"])
    print("\n(n, d, k) = ({:,}, {}, {}), full covariance".format(*shape))
    print(table(rows))
    for kind in ("f32", "f64"):
        ratio = iteration_times[f"jaxem {kind}"] / iteration_times[f"prototype {kind}"]
        print(f"jaxem {kind} / prototype {kind}:         {limit(ratio, at_most=AT_MOST_PROTOTYPE)}")
    ratio = min(iteration_times["scikit-learn f64"], iteration_times["scikit-learn f64, 1 thread"]) / mine
    print(f"scikit-learn f64 / jaxem f32:      {limit(ratio, at_least=AT_LEAST_SKLEARN[shape], form='.1f')}")
    if "gmmx f32" in units:
        ratio = iteration_times["gmmx f32"] / mine
        print(f"gmmx f32 / jaxem f32:              {limit(ratio, at_least=AT_LEAST_GMMX, form='.1f')}")
    else:
        print("gmmx is not run here: it holds arrays of n * d * k elements, several at a time")


def compare_families(shape: tuple[int, int, int], repeats: int) -> None:
    x, start = problem(*shape)
    high = 23 if x.nbytes * shape[2] < 2e8 else 13
    families = {
        "full": (jaxem.FullNormal(), start.covariances),
        "diagonal": (jaxem.DiagonalNormal(), np.diagonal(start.covariances, axis1=1, axis2=2)),
        "spherical": (jaxem.SphericalNormal(), start.covariances[:, 0, 0]),
        "tied": (jaxem.TiedNormal(), start.covariances[0]),
    }
    units = {  # the others are so fast that more iterations must be timed
        name: Unit(jaxem_family(x, start, family, cov), COMPARED_AT, high * (1 if name == "full" else 5), repeats)
        for name, (family, cov) in families.items()
    }
    compile_times, times = measure(units)
    rows = [["jaxem f32", "compile s", "iteration ms", "full / it", "objective after 3"]]
    for name, unit in units.items():
        speed_up = times["full"] / times[name]
        text = limit(speed_up, at_least=AT_LEAST_FULL.get(name))
        objective = float(unit.run(COMPARED_AT).log_lik) / len(x)
        rows.append([name, f"{compile_times[name]:.2f}", f"{1e3 * times[name]:.2f}", text, f"{objective:.6f}"])
    print("\n(n, d, k) = ({:,}, {}, {}), the four families".format(*shape))
    print(table(rows))


def problem(n: int, d: int, k: int) -> tuple[np.ndarray, Normals]:
    """Float32 rows from k unit normals three apart, and the start: k rows as means, covariances 4 I, equal weights."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(k, d))
    x = (centres[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)
    return x, Normals(np.full(k, 1 / k), x[:k].astype(np.float64), np.tile(4 * np.eye(d), (k, 1, 1)))


def measure(units: dict[str, Unit]) -> tuple[dict[str, float], dict[str, float]]:
    """Compile time and time of an iteration of every unit, in seconds."""
    compile_times = {}
    for name, unit in units.items():
        first = seconds(functools.partial(unit.run, unit.low))
        compile_times[name] = max(first - seconds(functools.partial(unit.run, unit.low)), 0.0)
        unit.run(unit.high)
    times: dict[str, list[float]] = {name: [] for name in units}
    for repeat in range(max(unit.repeats for unit in units.values())):
        for name, unit in units.items():
            if repeat < unit.repeats:
                ends = {"low": functools.partial(unit.run, unit.low), "high": functools.partial(unit.run, unit.high)}
                spent = medians(interleaved(ends, 1))
                times[name].append((spent["high"] - spent["low"]) / (unit.high - unit.low))
    return compile_times, medians(times)


def jaxem_full(x: np.ndarray, start: Normals, dtype: type) -> Callable[[int], Normals]:
    with precision(dtype):
        run = jaxem_family(x, start, jaxem.FullNormal(), start.covariances, dtype)

    def call(n_iter: int) -> Normals:
        with precision(dtype):
            params = run(n_iter).params
            return Normals(*map(np.asarray, (params.weights, params.components.mean, params.components.covariance)))

    return call


def jaxem_family(
    x: np.ndarray, start: Normals, family: Any, covariance: np.ndarray, dtype: type = np.float32
) -> Callable[[int], Any]:
    model = jaxem.Mixture(family, n_components=len(start.weights))
    weights, means, covariance = (jnp.asarray(array, dtype) for array in (start.weights, start.means, covariance))
    params = jaxem.MixtureParams(weights, jaxem.NormalParams(means, covariance))
    data = jnp.asarray(x, dtype)
    return lambda n_iter: jax.block_until_ready(jaxem.fit(model, params, data, tol=-1.0, max_iter=n_iter))


def bare(x: np.ndarray, start: Normals, dtype: type) -> Callable[[int], Normals]:
    with precision(dtype):
        data = jnp.asarray(x, dtype)
        params = tuple(jnp.asarray(array, dtype) for array in start)

    def call(n_iter: int) -> Normals:
        with precision(dtype):
            return Normals(*map(np.asarray, prototype.fit(data, *params, n_iter)))

    return call


def precision(dtype: type) -> contextlib.AbstractContextManager:
    return x64() if dtype is np.float64 else contextlib.nullcontext()


def sklearn_full(x: np.ndarray, start: Normals, dtype: type) -> Callable[[int], Normals]:
    from sklearn.mixture import GaussianMixture
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

    data = x.astype(dtype)

    def call(n_iter: int) -> Normals:
        mixture = GaussianMixture(len(start.weights))
        mixture.weights_, mixture.means_, mixture.covariances_ = (array.astype(dtype) for array in start)
        mixture.precisions_cholesky_ = _compute_precision_cholesky(mixture.covariances_, "full")
        for _ in range(n_iter):
            _, log_responsibilities = mixture._e_step(data)
            mixture._m_step(data, log_responsibilities)
        return Normals(mixture.weights_, mixture.means_, mixture.covariances_)

    return call


def one_thread(run: Callable[[int], Normals]) -> Callable[[int], Normals]:
    from threadpoolctl import threadpool_limits

    def call(n_iter: int) -> Normals:
        with threadpool_limits(1):
            return run(n_iter)

    return call


def gmmx_full(x: np.ndarray, start: Normals) -> Callable[[int], Normals]:
    from gmmx import EMFitter, GaussianMixtureModelJax

    weights, means, covariances = (array.astype(np.float32) for array in start)
    mixture = GaussianMixtureModelJax.from_squeezed(means=means, covariances=covariances, weights=weights)
    data = jnp.asarray(x)

    def call(n_iter: int) -> Normals:
        fitted = EMFitter(max_iter=n_iter, tol=-1.0).fit(data, mixture).gmm
        return Normals(fitted.weights_numpy, fitted.means_numpy, fitted.covariances.values_numpy)

    return call


if __name__ == "__main__":
    main()
