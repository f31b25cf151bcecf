"""Time of a bootstrap of a mixture: jaxem beside a loop over scikit-learn.

    python -m benchmarks.bootstrap

1000 replicates of a two-component full-covariance fit to the eruptions of Old Faithful (n = 272, d = 2). Both sides fit
the same resampled data, which jaxem draws as weights inside its lanes (and is timed with it) and scikit-learn gets as
repeated rows made beforehand, every fit starting at the params of the parent fit. Same stopping rule, a rise of the
mean log-likelihood by less than 1e-6; scikit-learn runs float64, its BLAS on one thread (faster for problems this
small), on a sample of the replicates, and its time is scaled. The column "se / scikit-learn" is the standard error of a
mean from the sampled replicates, divided by scikit-learn's: the worst of the four.

The process starts itself anew without OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE, which slow scikit-learn down where set.
"""

import argparse
import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import jaxem
from benchmarks import interleaved, limit, machine, medians, seconds, table, without_blas_overrides, x64
from jaxem import Bootstrap, EfronBootstrap, bootstrap

AT_LEAST_SKLEARN = 50.0
N_REPLICATES, TOL, MAX_ITER = 1000, 1e-6, 500
DATA = Path(__file__).parents[1] / "tests/reference/data/faithful.csv"
MODEL = jaxem.Mixture(jaxem.FullNormal(), n_components=2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bootstrap", description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=200, help="replicates that scikit-learn is timed on")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    options = parser.parse_args()
    without_blas_overrides()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(machine("scikit-learn"))
    x = np.loadtxt(DATA, delimiter=",", skiprows=1)
    keys = jax.random.split(jax.random.key(1), N_REPLICATES)
    counts = np.asarray(jax.vmap(lambda key: EfronBootstrap().draw(key, len(x)))(keys)).astype(int)
    samples = [np.repeat(x, count, axis=0) for count in counts[: options.sample]]
    with x64():
        parent = jax.tree.map(np.asarray, jaxem.fit_restarts(MODEL, jax.random.key(0), x, tol=1e-10).check().params)
    units = {f"jaxem f{8 * dtype().itemsize}": jaxem_bootstrap(x, parent, dtype) for dtype in (np.float32, np.float64)}
    first = {name: seconds(unit) for name, unit in units.items()}
    found = {name: unit() for name, unit in units.items()}
    loop, mixtures = sklearn_loop(samples, parent)
    times = medians(interleaved({**units, "scikit-learn": loop}, options.repeats))
    times["scikit-learn"] *= N_REPLICATES / len(samples)
    report(first, times, found, mixtures)


def jaxem_bootstrap(x: np.ndarray, parent: Any, dtype: type) -> Callable[[], Bootstrap]:
    """From data on the device to standard errors."""
    with precision(dtype):
        data, start = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (x, parent))

    def call() -> Bootstrap:
        with precision(dtype):
            found = bootstrap(MODEL, start, data, jax.random.key(1), N_REPLICATES, tol=TOL, max_iter=MAX_ITER)
            return jax.block_until_ready((found, errors(found)))[0]

    errors = jax.jit(Bootstrap.standard_errors)
    return call


def precision(dtype: type) -> contextlib.AbstractContextManager:
    return x64() if dtype is np.float64 else contextlib.nullcontext()


def sklearn_loop(samples: list[np.ndarray], parent: Any) -> tuple[Callable[[], None], list[GaussianMixture]]:
    """A call that fits every sample from the parent's params, and the mixtures that it fits."""
    start = {
        "weights_init": np.asarray(parent.weights) / np.sum(parent.weights),
        "means_init": np.asarray(parent.components.mean),
        "precisions_init": np.linalg.inv(np.asarray(parent.components.covariance)),
    }
    mixtures = [GaussianMixture(2, tol=TOL, max_iter=MAX_ITER, **start) for _ in samples]

    def call() -> None:
        with threadpool_limits(1):
            for mixture, rows in zip(mixtures, samples, strict=True):
                mixture.fit(rows)

    call()
    return call, mixtures


def report(
    first: dict[str, float], times: dict[str, float], found: dict[str, Bootstrap], mixtures: list[GaussianMixture]
) -> None:
    means = np.stack([mixture.means_ for mixture in mixtures])
    log_lik = np.array([mixture.lower_bound_ for mixture in mixtures])
    n_iter = np.mean([mixture.n_iter_ for mixture in mixtures])
    rows = [["unit", "compile s", "steady s", "mean E steps", "mean log-lik", "se / scikit-learn"]]
    for name, replicates in found.items():
        chosen = np.asarray(replicates.params.components.mean)[: len(mixtures)]
        mine = np.asarray(replicates.log_lik)[: len(mixtures)] / 272
        ratio = (chosen.std(0) / means.std(0)).ravel()
        worst = ratio[np.argmax(abs(ratio - 1))]
        steps = np.mean(np.asarray(replicates.n_iter)[: len(mixtures)]) + 1
        compile_time = max(first[name] - times[name], 0.0)
        cells = [f"{compile_time:.2f}", f"{times[name]:.4f}", f"{steps:.1f}", f"{mine.mean():.6f}", f"{worst:.4f}"]
        rows.append([name, *cells])
        gap = mine - log_lik
        print(f"{name} less scikit-learn, mean log-lik of a replicate: from {gap.min():+.1e} to {gap.max():+.1e}")
    label = f"scikit-learn, scaled from {len(mixtures)}"
    rows.append([label, "", f"{times['scikit-learn']:.3f}", f"{n_iter:.1f}", f"{log_lik.mean():.6f}", ""])
    print(f"\n{N_REPLICATES} replicates, n = 272, d = 2, k = 2, full covariance")
    print(table(rows))
    for name in found:
        ratio = times["scikit-learn"] / times[name]
        print(f"scikit-learn / {name}: {limit(ratio, at_least=AT_LEAST_SKLEARN, form='.1f')}")


if __name__ == "__main__":
    main()
