"""Lanes side by side: iterations needed over run, in rounds and in one program to the end.

    python -m benchmarks.scale.lanes

1024 mixtures of n = 200, d = 2, k = 3, from k-means starts. An accelerator would go in rounds; here they run on the
CPU, beside what a CPU does by itself, one lane after another on a thread for each core, and beside several host
devices, each with its part of the lanes (in a process of its own). First calls include all compilation.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import limit, machine, table, without_blas_overrides, x64

AT_LEAST, TOLS = 0.85, (1e-3, 1e-5, 1e-7)
MODEL = jaxem.Mixture(jaxem.FullNormal(), 3)


def main() -> None:
    without_blas_overrides()
    print(machine())
    x, params = problems()
    rows = [
        ["tol", "mean E steps", "most", "efficiency, rounds", "one program", "first call / s", "warm", "one program"]
    ]
    for tol in TOLS:
        first, warm, found = timed(lambda tol=tol: jaxem.fit_batch(MODEL, params, x, tol=tol, plan="lanes"))
        _, plain_warm, plain = timed(lambda tol=tol: plain_vmap(params, x, tol))
        efficiency = limit(float(found.lane_efficiency), at_least=AT_LEAST, form=".3f")
        evals = np.asarray(found.n_evals)
        steps = [f"{tol:g}", f"{evals.mean():.1f}", f"{evals.max()}"]
        times = [f"{first:.1f}", f"{warm:.3f}", f"{plain_warm:.3f}"]
        rows.append([*steps, efficiency, f"{float(plain.lane_efficiency):.3f}", *times])
    print("\n1024 mixtures, n = 200, d = 2, k = 3, float32")
    print(table(rows))
    same_answers()
    host_devices()


def problems(dtype: Any = np.float32, b: int = 1024, n: int = 200, d: int = 2, k: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    centres, z = 2 * rng.normal(size=(b, k, d)), rng.integers(k, size=(b, n, 1))
    x = jnp.asarray((np.take_along_axis(centres, z, 1) + rng.normal(size=(b, n, d))).astype(dtype))
    keys = jax.random.split(jax.random.key(0), b)
    return x, jax.jit(jax.vmap(lambda key, x: MODEL.init(key, x)))(keys, x)


@jax.jit
def plain_vmap(params: Any, x: Any, tol: float) -> jaxem.FitResult:
    """Traced values make one program, in which all lanes wait for the slowest."""
    return jaxem.fit_batch(MODEL, params, x, tol=tol, plan="lanes")


def timed(call: Callable[[], Any], repeats: int = 3) -> tuple[float, float, Any]:
    """Seconds of the first call, of the fastest later one, and the result."""
    seconds, found = [], None
    for _ in range(repeats + 1):
        started = time.perf_counter()
        found = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return seconds[0], min(seconds[1:]), found


def same_answers() -> None:
    """In float64, where rounding does not decide about an iteration more."""
    with x64():
        x, params = problems(np.float64, b=256)
        rows = [["tol", "lanes of 256 with equal n_iter", "equal status", "largest gap of their params"]]
        for tol in TOLS:
            found, plain = jaxem.fit_batch(MODEL, params, x, tol=tol, plan="lanes"), plain_vmap(params, x, tol)
            same = np.asarray(found.n_iter == plain.n_iter)
            gaps = jax.tree.map(lambda a, b: jnp.abs(a - b)[same].max(), found.params, plain.params)  # noqa: B023
            status = int(np.sum(np.asarray(found.status == plain.status)))
            gap = limit(float(max(jax.tree.leaves(gaps))), at_most=1e-8, form=".1e")
            rows.append([f"{tol:g}", f"{same.sum()}", f"{status}", gap])
    print("\nrounds beside one program, float64")
    print(table(rows))


def host_devices() -> None:
    cores = os.cpu_count() or 1
    rows = [["tol", "threads, one lane after another / s", "rounds, 1 host device", f"rounds, {cores} host devices"]]
    found = [json.loads(subprocess.check_output([sys.executable, __file__, str(n)], text=True)) for n in (1, cores)]
    for tol, one, many in zip(TOLS, *found, strict=True):
        rows.append([f"{tol:g}", f"{one[0]:.3f}", f"{one[1]:.3f}", f"{many[1]:.3f}"])
    print("\nthe plans of a CPU, warm: `plan='auto'` is the first column")
    print(table(rows))


def child(n_devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", n_devices)
    x, params = problems()
    x, params = np.asarray(x), jax.tree.map(np.asarray, params)
    call = lambda tol, plan: timed(lambda: jaxem.fit_batch(MODEL, params, x, tol=tol, plan=plan))[1]  # noqa: E731
    print(json.dumps([[call(tol, "sequential"), call(tol, "lanes")] for tol in TOLS]))


if __name__ == "__main__":
    child(int(sys.argv[1])) if len(sys.argv) > 1 else main()
