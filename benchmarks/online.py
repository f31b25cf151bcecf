"""One pass of online EM over ten million rows, beside EM on the same rows.

    python -m benchmarks.online

A mixture of three normals in two columns, float32. EM runs until its mean log-likelihood rises by less than 1e-7; one
pass of online EM, with minibatches of its default size, must come within 1e-3 of it; larger ones take fewer steps and
do not get as far from this start. Times are steady, the second of two runs; that of EM is also given until
it is first as high as online EM after its pass.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import Normals, limit, machine, mean_log_lik, table

AT_MOST = 1e-3
TRUTH = Normals(
    np.array([0.5, 0.3, 0.2]),
    np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.5]]),
    np.stack([np.eye(2), [[1.0, 0.6], [0.6, 1.5]], 0.5 * np.eye(2)]),
)
CHECKED_ROWS = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1_000, 10_000])
    options = parser.parse_args()
    print(machine())
    x = draw(options.rows)
    on_device = jnp.asarray(x)
    model = jaxem.Mixture(jaxem.FullNormal(), 3)
    start = model.init(jax.random.key(0), on_device[:2000], method=jaxem.RandomPoints())
    exact, _, em_time = timed(lambda: jaxem.fit(model, start, on_device, tol=1e-7, max_iter=300))
    per_iteration = em_time / float(exact.n_evals)
    highest = float(jnp.nanmax(exact.history)) / options.rows
    rows = [["", "E steps", "seconds", "mean log-lik", "below EM", "EM so high after", "check, float64"]]
    rows.append(
        [
            f"EM, status {jaxem.Status(int(exact.status)).name}", f"{int(exact.n_evals)}", f"{em_time:.2f}",
            f"{highest:.6f}", "", "", check(x, exact),
        ]
    )  # fmt: skip
    gaps = []
    for size in options.batch_sizes:
        n_steps = -(-options.rows // size)
        for average_from in (None, n_steps / 2):
            algorithm = jaxem.OnlineEM(jax.random.key(1), size, average_from=average_from)
            run = lambda a=algorithm, n=n_steps: jaxem.fit(model, start, on_device, algorithm=a, max_iter=n)  # noqa: E731
            result, _, seconds = timed(run)
            reached = float(result.log_lik) / options.rows
            if size == jaxem.OnlineEM(jax.random.key(1)).batch_size:
                gaps.append(highest - reached)
            as_high = np.asarray(exact.history) / options.rows >= reached
            when = f"{per_iteration * (int(np.argmax(as_high)) + 1):.2f} s" if as_high.any() else "never"
            name = f"one pass by {size:,}" + ("" if average_from is None else ", averaged from its middle")
            rows.append(
                [name, f"{int(result.n_evals)}", f"{seconds:.2f}", f"{reached:.6f}", f"{highest - reached:.1e}", when,
                 check(x, result)]
            )  # fmt: skip
    print(f"\n{options.rows:,} rows, {per_iteration:.2f} s an iteration of EM")
    print(table(rows))
    if gaps:
        print(f"below EM after one pass by the default: {limit(max(gaps), at_most=AT_MOST, form='.1e')}")


def draw(n: int) -> np.ndarray:
    """Rows of the truth, float32, made a million at a time."""
    rng = np.random.default_rng(0)
    factors = np.linalg.cholesky(TRUTH.covariances)
    x = np.empty((n, 2), np.float32)
    for first in range(0, n, 10**6):
        part = x[first : first + 10**6]
        z = rng.choice(3, len(part), p=TRUTH.weights)
        part[:] = TRUTH.means[z] + np.einsum("nij,nj->ni", factors[z], rng.normal(size=part.shape))
    return x


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the time of the first call and that of the second."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return result, *times  # type: ignore[return-value]


def check(x: np.ndarray, result: Any) -> str:
    """Mean log-likelihood of the first rows by NumPy in float64."""
    weights, (means, covariances) = jax.tree.map(np.asarray, result.params)
    return f"{mean_log_lik(x[:CHECKED_ROWS], Normals(weights, means, covariances)):.6f}"


if __name__ == "__main__":
    main()
