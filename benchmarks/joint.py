"""A Gaussian mixture written as a log joint, fitted by autodiff, beside jaxem's own closed form.

    python -m benchmarks.joint

n = 100 000, d = 2, k = 4, float64 and float32, both to the default tolerance from the same start. The joint is written
with one inverse Cholesky factor a component, and once as most people would, with `multivariate_normal.logpdf`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import interleaved, limit, machine, medians, seconds, table, x64
from jaxem import bijections
from jaxem.numerics import linalg as _linalg

N_ROWS, REPEATS = 100_000, 3
AT_MOST = {"Truncated(3)": 10.0, "Full()": 60.0}


def whitened(params: jaxem.MixtureParams, x: jax.Array) -> jax.Array:
    factor, half_log_det = _linalg.whitening(params.components.covariance)
    y = jnp.einsum("kab,kb->ka", factor, x[None] - params.components.mean)
    constant = half_log_det + jnp.log(2 * jnp.pi).astype(x.dtype)
    return jnp.log(params.weights) - 0.5 * jnp.sum(jnp.square(y), 1) - constant


def by_the_book(params: jaxem.MixtureParams, x: jax.Array) -> jax.Array:
    mean, covariance = params.components
    return jnp.log(params.weights) + jax.scipy.stats.multivariate_normal.logpdf(x[None], mean, covariance)


def main() -> None:
    print(machine())
    for dtype in (np.float64, np.float32):
        if dtype is np.float64:
            with x64():
                compare(dtype)
        else:
            compare(dtype)


def compare(dtype: type) -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [3, 1], [0, 4], [5, 5.0]])
    x = (centres[rng.integers(4, size=N_ROWS)] + rng.normal(size=(N_ROWS, 2)) * [1, 0.7]).astype(dtype)
    closed = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 4)
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), closed.init(jax.random.key(1), x))
    constraints: Any = jaxem.MixtureParams(bijections.simplex, jaxem.NormalParams(None, bijections.positive_definite))
    models: dict[str, Any] = {"closed form": closed}
    for name, m_step in (("Truncated(3)", jaxem.Truncated(3)), ("Full()", jaxem.Full())):
        for joint in (whitened, by_the_book):
            models[f"{name}, {joint.__name__}"] = jaxem.LogJoint(joint, 4, constraints, m_step=m_step)
    runs = {
        name: functools.partial(lambda model: jax.block_until_ready(jaxem.fit(model, start, x)), model)
        for name, model in models.items()
    }
    first = {name: seconds(run) for name, run in runs.items()}
    times = medians(interleaved(runs, REPEATS))
    results = {name: run() for name, run in runs.items()}
    best = float(results["closed form"].objective) / N_ROWS
    rows = [["M step, joint", "first call s", "fit s", "iterations", "objective/n, above", "time / closed form"]]
    for name, result in results.items():
        at_most = AT_MOST.get(name.split(",")[0])
        ratio = limit(times[name] / times["closed form"], at_most=at_most)
        gap = float(result.objective) / N_ROWS - best
        numbers = [f"{first[name]:.1f}", f"{times[name]:.3f}", str(int(result.n_iter)), f"{gap:+.1e}"]
        rows.append([name, *numbers, ratio])
    print(f"\n{np.dtype(dtype).name}, n = {N_ROWS:,}, d = 2, k = 4")
    print(table(rows))


if __name__ == "__main__":
    main()
