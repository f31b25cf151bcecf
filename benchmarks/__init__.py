"""Measurements of jaxem beside named peers; each module is a command, `python -m benchmarks.<name>`.

What they share: interleaved repetitions, aligned tables, limits printed beside the figures, and an objective computed
independently of every contestant. Peers: scikit-learn, gmmx, hmmlearn (`pip install jaxem[bench]`).
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.linalg import solve_triangular


class Normals(NamedTuple):
    """A full-covariance normal mixture as plain arrays, the currency between contestants."""

    weights: np.ndarray  # (k,)
    means: np.ndarray  # (k, d)
    covariances: np.ndarray  # (k, d, d)


def without_blas_overrides() -> None:
    """Starts the program again without environment variables that would slow NumPy-based peers down."""
    unset = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    if any(name in os.environ for name in unset):
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        os.execve(sys.executable, sys.orig_argv, environment)


def seconds(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Wall time of one call, or that of another clock; the call itself waits for its result."""
    started = clock()
    call()
    return clock() - started


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time every call `repeats` times, in turn, so that a slow minute of the machine hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, clock))
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def x64() -> AbstractContextManager:
    """64-bit types inside the context, under the name that the installed jax has for it."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def mean_log_lik(x: np.ndarray, normals: Normals) -> float:
    """Mean log-likelihood in float64 by whitening, for checking that contestants arrived at the same place."""
    x = np.asarray(x, np.float64)
    weights, means, covariances = (np.asarray(array, np.float64) for array in normals)
    log_joint = np.empty((len(x), len(weights)))
    for j, factor in enumerate(np.linalg.cholesky(covariances)):
        white = solve_triangular(factor, (x - means[j]).T, lower=True)
        log_joint[:, j] = np.log(weights[j]) - np.log(np.diag(factor)).sum() - 0.5 * np.einsum("dn,dn->n", white, white)
    log_norm = np.logaddexp.reduce(log_joint, axis=1) - 0.5 * x.shape[1] * np.log(2 * np.pi)
    return float(log_norm.mean())


def limit(value: float, *, at_least: float | None = None, at_most: float | None = None, form: str = ".2f") -> str:
    """The figure, its limit and whether it holds: '17.3 (limit >= 15: holds)'."""
    if at_least is not None:
        return f"{value:{form}} (limit >= {at_least:g}: {'holds' if value >= at_least else 'MISSED'})"
    if at_most is not None:
        return f"{value:{form}} (limit <= {at_most:g}: {'holds' if value <= at_most else 'MISSED'})"
    return f"{value:{form}}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is the header, the first column is flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if c == 0 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def machine(*packages: str) -> str:
    """One line that says where the figures come from."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "numpy", *packages))
    device = jax.devices()[0]
    devices = f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPUs"
    return f"Python {platform.python_version()}, {versions}; {devices}"
