"""The same fit by several processes of `jax.distributed` on this machine, each with its part of the rows and a core.

    python -m benchmarks.scale.hosts [--processes N] [--rows N] [--kill TIMES]

Full covariance, d = 16, k = 16; rows a second are the slope of a fit over its number of iterations. The objectives of
all are compared in float64. On a CPU the processes exchange statistics by gloo, over the loopback device. `--kill` ends
one process of a checkpointed fit at random moments (kill -9): the job must end with an error, and the next one go on
from the last state and end with the params of a fit that nobody disturbed.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import limit, machine, table, without_blas_overrides

LEAST_SPEED, MOST_GAP = 1.7, 1e-10
D = K = 16
BLOCK = 2**16  # rows of one seed, so that a row is the same whoever has it
ITERATIONS = (1, 4)
LONGEST = 1200  # seconds of a job


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.hosts", description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kill", type=int, default=5, metavar="TIMES")
    options = parser.parse_args(arguments)
    print(machine())
    rows = [["dtype", "processes", "rows/s, median", "times one process", "objective", "relative gap"]]
    for dtype in ("float32", "float64"):
        found = [
            [job(n, ["rate", dtype, str(options.rows)]) for n in (1, options.processes)] for _ in range(options.repeats)
        ]
        one, many = zip(*found, strict=True)
        speed = float(np.median([b["rate"] / a["rate"] for a, b in found]))
        gap = abs(many[0]["objective"] / one[0]["objective"] - 1)
        judged = limit(gap, at_most=MOST_GAP, form=".1e") if dtype == "float64" else f"{gap:.1e}"
        found_speed = limit(speed, at_least=LEAST_SPEED)
        for n, runs, times, gap in ((1, one, "", ""), (options.processes, many, found_speed, judged)):
            rate = np.median([run["rate"] for run in runs])
            rows.append([dtype, str(n), f"{rate:.3g}", times, f"{runs[0]['objective']:.12g}", gap])
    print(table(rows))
    if options.kill:
        print(killed(options.processes, options.kill))


def begin(n_processes: int, task: list[str]) -> list[subprocess.Popen]:
    """The processes of one job, each on a core of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "benchmarks.scale.hosts", "--child"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = range(n_processes)
    return [subprocess.Popen([*command, str(rank), str(n_processes), place, *task], **pipes) for rank in ranks]


def job(n_processes: int, task: list[str]) -> dict:
    """What the first process finds; all must agree."""
    processes = begin(n_processes, task)
    outputs = outputs_of(processes)
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(errors[-2000:] for _, errors in outputs))
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    if len({json.dumps(one.get("params", one["objective"])) for one in found}) > 1:
        raise RuntimeError("the processes have ended with different fits")
    return found[0]


def outputs_of(processes: list[subprocess.Popen]) -> list[tuple[str, str]]:
    """What each writes on its two outputs, when all have ended."""
    try:
        with ThreadPoolExecutor() as pool:  # one that waits for its reader would hold up the others
            return list(pool.map(lambda process: process.communicate(timeout=LONGEST), processes))
    finally:
        for process in processes:
            process.kill()


def child(rank: int, n_processes: int, place: str, task: list[str]) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    import jax

    jax.config.update("jax_enable_x64", task[1] == "float64")
    if n_processes > 1:
        jax.distributed.initialize(place, n_processes, rank, heartbeat_timeout_seconds=10)
    found = rate(*task[1:]) if task[0] == "rate" else kept(*task[1:])
    print(json.dumps(found), flush=True)


def rows_of(first: int, last: int, dtype: str) -> np.ndarray:
    """Rows of a table that is the same for all processes."""
    parts = []
    for number in range(first // BLOCK, -(-last // BLOCK)):
        rng = np.random.default_rng(number)
        x = rng.normal(size=(BLOCK, D)) + 2 * rng.integers(0, K, (BLOCK, 1)) * np.cos(np.arange(D))
        parts.append(x[max(first - number * BLOCK, 0) : last - number * BLOCK].astype(dtype))
    return np.concatenate(parts)


def problem(n: int, dtype: str):
    """Model, start, and this process's rows among those of all."""
    import jax

    import jaxem

    rank, size = jax.process_index(), jax.process_count()
    data, weight = jaxem.shard(rows_of(n * rank // size, n * (rank + 1) // size, dtype))
    centres = (2 * np.arange(K)[:, None] * np.cos(np.arange(D)) + 0.5).astype(dtype)
    components = jaxem.NormalParams(centres, np.tile(4 * np.eye(D, dtype=dtype), (K, 1, 1)))
    params = jaxem.MixtureParams(np.full(K, 1 / K, dtype), components)
    return jaxem.Mixture(jaxem.FullNormal(), K), params, data, weight


def rate(dtype: str, n: str) -> dict:
    import jax

    import jaxem

    model, params, data, weight = problem(int(n), dtype)
    times, objective = {}, 0.0
    for n_iter in ITERATIONS:
        fit = lambda n_iter=n_iter: jax.block_until_ready(  # noqa: E731
            jaxem.fit(model, params, data, sample_weight=weight, tol=-1, max_iter=n_iter)
        )
        fit()
        started = time.perf_counter()
        objective = float(fit().objective)
        times[n_iter] = time.perf_counter() - started
    few, many = ITERATIONS
    return {"rate": int(n) * (many - few) / (times[many] - times[few]), "objective": objective}


def kept(dtype: str, place: str) -> dict:
    import jax

    import jaxem

    model, params, data, weight = problem(200_000, dtype)
    checkpoint = jaxem.Checkpoint(place, every=0.2)
    result = jaxem.fit(model, params, data, sample_weight=weight, tol=-1, max_iter=60, checkpoint=checkpoint)
    bits = [float(x).hex() for leaf in jax.tree.leaves(result.params) for x in np.ravel(leaf)]
    return {"objective": float(result.objective), "params": bits}


def killed(n_processes: int, times: int) -> str:
    rng, ended, equal, errors = np.random.default_rng(0), 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        whole = job(n_processes, ["kept", "float32", str(Path(folder, "whole"))])
        seconds = time.perf_counter() - started
        for attempt in range(times):
            task = ["kept", "float32", str(Path(folder, f"killed{attempt}"))]
            processes = begin(n_processes, task)
            time.sleep(rng.uniform(0.4, 0.9) * seconds)
            processes[rng.integers(n_processes)].send_signal(signal.SIGKILL)
            outputs = [errors for _, errors in outputs_of(processes)]
            codes = [process.returncode for process in processes]
            ended += all(codes)
            others = [text for text, code in zip(outputs, codes, strict=True) if code != -signal.SIGKILL]
            errors += [line for text in others for line in re.findall(r"^(?:RuntimeError|F\d{4} ).*", text, re.M)[:1]]
            resumed = job(n_processes, task)
            equal += resumed["params"] == whole["params"]
    said = "\n".join(f"  {line[:160]}" for line in errors)
    return (
        f"killed one process {times} times: {ended} jobs ended with errors,\n{said}\n{equal} resumed to the same bits"
    )


if __name__ == "__main__":
    if "--child" in sys.argv:
        rank, n_processes, place, *task = sys.argv[2:]
        child(int(rank), int(n_processes), place, task)
    else:
        without_blas_overrides()
        main(sys.argv[1:])
