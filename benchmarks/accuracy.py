"""Float32 against float64 on the same float32-rounded data.

    python -m benchmarks.accuracy                 # both tables
    python -m benchmarks.accuracy --only Poisson  # one family of the first

First, for every family and regression and one to three components, at the extremes of `benchmarks.extremes`: `log_lik`
of a float32 fit against the float64 sum of `log_prob` at the same params, which is to lie within 1e-6 of its size or
1e-4 a row, unless the status says that the fit failed.

Then, 20 iterations of four families on a grid of offsets (of all data, in component standard deviations) and spreads
(of the component means, in the same unit). Both sides get the same float32-rounded rows and the same start: a row of
each component as means, and the variances of the columns as covariances, so that the fit has to walk the whole way.
Printed for every family and spread, over the offsets: the largest difference of the mean log-likelihood, and the
largest difference of a covariance entry relative to sqrt(C_ii C_jj).
"""

import argparse
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import limit, machine, table, x64
from benchmarks.extremes import CASES, Case, single, stacked

AT_MOST_LOG_LIK, AT_MOST_COVARIANCE = 1e-4, 1e-3
OFFSETS, SPREADS = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4), (1.0, 1e1, 1e2, 1e3)
FAMILIES = {
    "full": jaxem.FullNormal,
    "diagonal": jaxem.DiagonalNormal,
    "spherical": jaxem.SphericalNormal,
    "tied": jaxem.TiedNormal,
}
N_ITER = 20


class Problem(NamedTuple):
    x: np.ndarray  # (n, d) float32
    means: np.ndarray  # (k, d)
    variances: np.ndarray  # (d,)


class Fit(NamedTuple):
    log_lik: float  # per row
    covariance: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=10_000, help="rows")
    parser.add_argument("--d", type=int, default=4, help="features")
    parser.add_argument("--k", type=int, default=3, help="components")
    parser.add_argument("--only", default=None, help="cases of the first table whose name has this, and no other table")
    options = parser.parse_args()
    print(machine())
    held = log_lik_at_extremes(options.only)
    if options.only is not None:
        sys.exit(not held)
    print(f"(n, d, k) = ({options.n:,}, {options.d}, {options.k}), {N_ITER} iterations, offsets {OFFSETS}")
    rows = [["family, spread", "log-lik of a row", "at offset", "covariance", "at offset"]]
    worst = np.zeros(2)
    for name, family in FAMILIES.items():
        for spread in SPREADS:
            problems = [problem(options, offset, spread) for offset in OFFSETS]
            errors = np.array([difference(name, family(), one) for one in problems])
            errors = np.nan_to_num(errors, nan=np.inf)
            worst = np.maximum(worst, errors.max(axis=0))
            at = [f"{OFFSETS[row]:g}" for row in errors.argmax(axis=0)]
            rows.append([f"{name}, {spread:g}", f"{errors[:, 0].max():.1e}", at[0], f"{errors[:, 1].max():.1e}", at[1]])
    print(table(rows))
    print(f"largest difference of the mean log-likelihood: {limit(worst[0], at_most=AT_MOST_LOG_LIK, form='.1e')}")
    print(f"largest relative error of a covariance:        {limit(worst[1], at_most=AT_MOST_COVARIANCE, form='.1e')}")
    sys.exit(not held or bool(worst[0] > AT_MOST_LOG_LIK or worst[1] > AT_MOST_COVARIANCE))


class Worst(NamedTuple):
    """Over the lanes of a case: the error of log_lik over what is allowed, where, and how the lanes ended."""

    ratio: float
    per_row: float
    relative: float
    level: float
    failed: str


def log_lik_at_extremes(only: str | None) -> bool:
    """Prints the table; returns whether all is within what is allowed."""
    rows = [["family, components", "error / allowed", "a row", "relative", "at level", "failed"]]
    largest = 0.0
    for name, case in CASES.items():
        if only is not None and only not in name:
            continue
        for k in (1, 2, 3):
            found = error_of_log_lik(case, k)
            largest = max(largest, found.ratio)
            figures = f"{found.ratio:.2f}", f"{found.per_row:.1e}", f"{found.relative:.1e}", f"{found.level:g}"
            rows.append([f"{name}, {k}", *figures, found.failed])
            print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    print(table(rows))
    print(f"largest error of log_lik over what is allowed: {limit(largest, at_most=1.0)}")
    return largest <= 1


def error_of_log_lik(case: Case, k: int, n: int = 1000, seeds: int = 2) -> Worst:
    """One fit for each level and seed, all in one call."""
    levels = [level for level in case.levels for _ in range(seeds)]
    draws = [case.draw(np.random.default_rng([7, i, k]), n, k, level) for i, level in enumerate(levels)]
    data = jax.tree.map(jnp.asarray, single(stacked(draws)))
    model = jaxem.Mixture(case.family, k)
    starts = jax.jit(jax.vmap(lambda rows: model.init(jax.random.key(0), rows)))(data)
    result = jaxem.fit_batch(model, starts, data, max_iter=100)
    with x64():
        exact = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), (result.params, data))
        if isinstance(case.family, jaxem.Dirichlet):  # rows sum to 1 to the rounding of float32, and are divided by it
            exact = exact[0], exact[1] / exact[1].sum(-1, keepdims=True)
        log_prob = np.asarray(jax.jit(jax.vmap(model.log_prob))(*exact))
    want, failed = log_prob.sum(1), np.asarray(result.failed)
    error = np.abs(np.asarray(result.log_lik, np.float64) - want)
    error = np.where(failed, 0, np.where(np.isfinite(error), error, np.inf))
    allowed = np.where(failed, 1, np.maximum(1e-6 * np.abs(want), 1e-4 * n))
    want = np.where(failed, 1, want)
    at = int(np.argmax(error / allowed))
    names = [jaxem.Status(int(code)).name for code in np.asarray(result.status)[failed]]
    which = ", ".join(f"{levels[i]:g} {name}" for i, name in zip(np.flatnonzero(failed), names, strict=True))
    return Worst(error[at] / allowed[at], error[at] / n, error[at] / abs(want[at]), levels[at], which)


def problem(options: argparse.Namespace, offset: float, spread: float) -> Problem:
    """Rows from k normals with correlated unit-variance columns; float32, as both sides see them."""
    rng = np.random.default_rng(0)
    n, d, k = options.n, options.d, options.k
    centres = offset + spread * rng.normal(size=(k, d))
    factors = np.linalg.cholesky(0.5 * np.eye(d) + 0.5 * np.ones((d, d)))
    z = rng.integers(k, size=n)
    z[:k] = np.arange(k)
    x = (centres[z] + rng.normal(size=(n, d)) @ factors.T).astype(np.float32)
    return Problem(x, x[:k], x.astype(np.float64).var(axis=0).astype(np.float32))


def difference(name: str, family: Any, problem: Problem) -> tuple[float, float]:
    """(|difference of the mean log-likelihood|, largest relative error of a covariance entry)."""
    single = fit(name, family, problem, np.float32)
    with x64():
        double = fit(name, family, problem, np.float64)
    truth = double.covariance
    if name in ("full", "tied"):
        scale = np.sqrt(np.diagonal(truth, axis1=-2, axis2=-1))
        size = scale[..., :, None] * scale[..., None, :]
    else:
        size = truth
    return abs(single.log_lik - double.log_lik), float(np.max(abs(single.covariance - truth) / size))


def fit(name: str, family: Any, problem: Problem, dtype: type) -> Fit:
    k = len(problem.means)
    covariance = {
        "full": np.tile(np.diag(problem.variances), (k, 1, 1)),
        "diagonal": np.tile(problem.variances, (k, 1)),
        "spherical": np.full(k, problem.variances.mean()),
        "tied": np.diag(problem.variances),
    }[name]
    components = jaxem.NormalParams(jnp.asarray(problem.means, dtype), jnp.asarray(covariance, dtype))
    params = jaxem.MixtureParams(jnp.full(k, 1 / k, dtype), components)
    model = jaxem.Mixture(family, n_components=k)
    result = jaxem.fit(model, params, jnp.asarray(problem.x, dtype), tol=-1.0, max_iter=N_ITER)
    result = jax.block_until_ready(result)
    return Fit(float(result.log_lik) / len(problem.x), np.asarray(result.params.components.covariance, np.float64))


if __name__ == "__main__":
    main()
