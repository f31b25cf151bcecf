"""Peak memory of one large fit: n = 2,000,000, d = 16, k = 32, float32.

    python -m benchmarks.memory

Measured in a process of its own: the data lie on the device and one small fit has run; by how much does the fit of
three iterations raise the peak resident size? The data are written in pieces, and the kernel's peak mark is set back
once they are in place (Linux, /proc/self/clear_refs), so that making them does not hide what the fit adds.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

import jaxem
from benchmarks import limit, machine

AT_MOST_MB = 64.0
N, D, K, N_ITER = 2_000_000, 16, 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    if parser.parse_args().here:
        print(json.dumps(measure()))
        return
    command = [sys.executable, "-m", "benchmarks.memory", "--here"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures = json.loads(output.splitlines()[-1])
    print(machine())
    print(
        f"one fit, (n, d, k) = ({N:,}, {D}, {K}), float32, {N_ITER} iterations, the call in {figures['seconds']:.1f} s"
    )
    print(f"data on the device                  {figures['data']:8.1f} MB")
    print(f"resident before the fit             {figures['resident']:8.1f} MB")
    print(f"peak before the fit                 {figures['before']:8.1f} MB")
    print(f"peak after the fit                  {figures['after']:8.1f} MB")
    added = limit(figures["after"] - figures["before"], at_most=AT_MOST_MB, form="8.1f")
    print(f"the fit adds to the peak, MB        {added}")
    print(f"peak above what was resident, MB    {figures['after'] - figures['resident']:8.1f}")
    if not figures["reset"]:
        print("the peak mark could not be set back: making the data may hide a part of what the fit adds")


def measure() -> dict[str, float]:
    data, params = jax.block_until_ready(problem())
    gc.collect()
    reset = reset_peak()
    fit(data[:1000], params, 2)
    gc.collect()
    before, resident = peak(), resident_now()
    started = time.perf_counter()
    fit(data, params, N_ITER)
    spent = time.perf_counter() - started
    size = data.nbytes / 1e6
    return {"data": size, "resident": resident, "before": before, "after": peak(), "reset": reset, "seconds": spent}


def problem() -> tuple[jax.Array, jaxem.MixtureParams]:
    """Rows from K unit normals, and a start near them; the host's copy is gone when this returns."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(K, D)).astype(np.float32)
    host = np.empty((N, D), np.float32)
    for rows in np.array_split(host, 100):
        rows[...] = rng.standard_normal(rows.shape, np.float32)
        rows += centres[rng.integers(K, size=len(rows))]
    weights = np.full(K, 1 / K, np.float32)
    covariances = np.tile(4 * np.eye(D, dtype=np.float32), (K, 1, 1))
    params = jaxem.MixtureParams(weights, jaxem.NormalParams(host[:K].copy(), covariances))
    return jax.device_put(host), jax.device_put(params)


def fit(data: jax.Array, params: jaxem.MixtureParams, n_iter: int) -> None:
    model = jaxem.Mixture(jaxem.FullNormal(), n_components=K)
    jax.block_until_ready(jaxem.fit(model, params, data, tol=-1.0, max_iter=n_iter))


def reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak() -> float:
    """Peak resident size in MB: the mark that can be set back where there is one, else that of getrusage."""
    return status_field("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def resident_now() -> float:
    return status_field("VmRSS") or float("nan")


def status_field(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name)), None)


if __name__ == "__main__":
    main()
