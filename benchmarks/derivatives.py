"""The gradient of a fit in its data, beside the fit and beside unrolled iterations.

    python -m benchmarks.derivatives

n = 20 000, d = 4, k = 8, and 1000 lanes of n = 200: full covariances, data seeded, gradient of a function of means and
covariances. The time of the gradient is that of value and gradient less that of the fit, both compiled.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import interleaved, limit, machine, medians, seconds, table, x64

N_ROWS, N_LANES, LANE_ROWS, N_COLUMNS, N_COMPONENTS = 20_000, 1000, 200, 4, 8
REPEATS, UNROLLED = 7, 500
MODEL = jaxem.Mixture(jaxem.FullNormal(), N_COMPONENTS)
SEPARATIONS = {"far": 9.0, "near": 3.0, "overlapping": 2.0}


def draw(separation: float, n: int, dtype: type, seed: int = 0) -> tuple[np.ndarray, Any]:
    """Rows, and a start at the centres that they were drawn around, with wide covariances."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(N_COMPONENTS, N_COLUMNS)) * separation
    x = centres[rng.integers(N_COMPONENTS, size=n)] + rng.normal(size=(n, N_COLUMNS))
    covariance = np.stack([3.0 * np.eye(N_COLUMNS)] * N_COMPONENTS)
    start = jaxem.MixtureParams(
        np.full(N_COMPONENTS, 1 / N_COMPONENTS), jaxem.NormalParams(centres + 0.3 * separation / 3, covariance)
    )
    return x.astype(dtype), jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), start)


def loss(params: Any) -> jax.Array:
    return jnp.sum(jnp.square(params.components.mean)) + jnp.sum(jnp.log1p(jnp.square(params.components.covariance)))


def value_of(derivative: Any, fit: Callable = jaxem.fit, max_iter: int = 1000) -> Callable[[Any, Any], jax.Array]:
    return lambda start, x: loss(fit(MODEL, start, x, derivative=derivative, max_iter=max_iter).params)


def compiled(fn: Callable, *arguments: Any) -> tuple[Callable[[], Any], float, Any]:
    """A call that waits, the seconds of its first run, and the program."""
    program: list[Any] = []
    took = seconds(lambda: program.append(jax.jit(fn).lower(*arguments).compile()))
    return lambda: jax.block_until_ready(program[0](*arguments)), took, program[0]


def one_fit(dtype: type) -> None:
    rows = [["data", "EM rate", "iterations", "fit ms", "corrections", "gradient ms", "/ fit", "in EM iterations"]]
    for name, separation in SEPARATIONS.items():
        x, start = draw(separation, N_ROWS, dtype)
        x = jnp.asarray(x)
        result = jaxem.fit(MODEL, start, x, max_iter=1000).check()
        rate = float(jaxem.em_rate(MODEL, jaxem.newton_correction(MODEL, result.params, x), x))
        runs, _, _ = compiled(value_of(jaxem.Stop()), start, x)
        calls = {"fit": runs, "ten": compiled(functools.partial(ten_more), start, x)[0]}
        for polish in (0, 3):
            gradient = jax.value_and_grad(value_of(jaxem.Implicit(polish=polish)), argnums=1)
            calls[str(polish)] = compiled(gradient, start, x)[0]
        times = medians(interleaved(calls, REPEATS))
        n_iter, iteration = int(result.n_iter), times["ten"] / 100
        for polish in ("0", "3"):
            gradient = times[polish] - times["fit"]
            of_fit = limit(gradient / times["fit"], at_most=3.0 if polish == "0" and 30 <= n_iter <= 150 else None)
            in_steps = limit(gradient / iteration, at_most=25.0 if polish == "0" and n_iter < 30 else None, form=".1f")
            numbers = [f"{rate:.4f}", str(n_iter), f"{1e3 * times['fit']:.1f}", polish, f"{1e3 * gradient:.1f}"]
            rows.append([name, *numbers, of_fit, in_steps])
    print(f"\n{np.dtype(dtype).name}, n = {N_ROWS:,}, d = {N_COLUMNS}, k = {N_COMPONENTS}")
    print(table(rows))


def ten_more(start: Any, x: Any) -> Any:
    """A hundred iterations without an end, for the time of one."""
    return jaxem.fit(MODEL, start, x, tol=-1.0, max_iter=100, derivative=jaxem.Stop()).params


def lanes(dtype: type) -> None:
    drawn = [draw(4.0, LANE_ROWS, dtype, seed) for seed in range(N_LANES)]
    x = jnp.stack([rows for rows, _ in drawn])
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[start for _, start in drawn])
    result = jaxem.fit_batch(MODEL, start, x, max_iter=1000)
    calls = {"fit": compiled(value_of(jaxem.Stop(), jaxem.fit_batch), start, x)[0]}
    for polish in (0, 3):
        gradient = jax.value_and_grad(value_of(jaxem.Implicit(polish=polish), jaxem.fit_batch), argnums=1)
        calls[str(polish)] = compiled(gradient, start, x)[0]
    times = medians(interleaved(calls, 3))
    rows = [["corrections", "iterations (median)", "fit s", "gradient s", "gradient / fit"]]
    for polish in ("0", "3"):
        gradient = times[polish] - times["fit"]
        ratio = limit(gradient / times["fit"], at_most=3.0 if polish == "0" else None)
        median = str(int(np.median(result.n_iter)))
        rows.append([polish, median, f"{times['fit']:.2f}", f"{gradient:.2f}", ratio])
    print(f"\n{np.dtype(dtype).name}, {N_LANES} lanes of n = {LANE_ROWS}, {int(result.converged.sum())} converged")
    print(table(rows))


def beside_unrolling(dtype: type) -> None:
    x, start = draw(SEPARATIONS["near"], N_ROWS, dtype)
    x = jnp.asarray(x)
    rows = [["gradient", "iterations allowed", "seconds", "temporary MB"]]
    times = {}
    for name, derivative, max_iter in (
        ("implicit", jaxem.Implicit(), 10),
        ("implicit", jaxem.Implicit(), 1000),
        (f"{UNROLLED} unrolled", jaxem.Unrolled(UNROLLED), 1000),
    ):
        gradient = jax.value_and_grad(value_of(derivative, max_iter=max_iter), argnums=1)
        call, _, program = compiled(gradient, start, x)
        times[name] = medians(interleaved({name: call}, 3))[name]
        memory = program.memory_analysis().temp_size_in_bytes / 2**20
        rows.append([name, str(max_iter), f"{times[name]:.3f}", f"{memory:.2f}"])
    print(f"\n{np.dtype(dtype).name}, fit and gradient, n = {N_ROWS:,}, {SEPARATIONS['near']:g} apart")
    print(table(rows))
    print("unrolled / implicit: " + limit(times[f"{UNROLLED} unrolled"] / times["implicit"], at_least=20.0, form=".1f"))


def main() -> None:
    print(machine())
    for dtype in (np.float32, np.float64):
        if dtype is np.float64:
            with x64():
                one_fit(dtype), lanes(dtype), beside_unrolling(dtype)
        else:
            one_fit(dtype), lanes(dtype), beside_unrolling(dtype)


if __name__ == "__main__":
    main()
