"""A stream of 2·10⁷ rows × 8 from a Parquet file: memory, and rows a second beside the same fit in memory.

    python -m benchmarks.scale.streams [--rows N] [--kill TIMES]

Full covariance, float32, iterations of a fixed number, each measured between two calls of the reader (a stream), and as
the slope over the number of iterations (in memory), in processes of their own; resident memory is the process's peak.
With k = 8 the reader is the limit, so its own rate stands beside it. `--kill` kills a checkpointed stream at random
moments (kill -9) and lets it go on: the params at the end must be those of a stream that was never killed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import limit, machine, table, without_blas_overrides

MOST_GB, LEAST_SHARE = 1.5, 0.7
D = 8
COLUMNS = [f"x{j}" for j in range(D)]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--kill", type=int, default=20)
    options = parser.parse_args(arguments)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write(path, options.rows)
        rows = [["k", "stream, rows/s", "in memory, rows/s", "share", "resident / GB", "reader alone, rows/s"]]
        for k in (64, 8):
            stream, memory = (child(what, path, k) for what in ("stream", "memory"))
            share = stream["rate"] / memory["rate"]
            judged = limit(share, at_least=LEAST_SHARE) if k == 64 else f"{share:.2f}"
            resident = limit(stream["gb"], at_most=MOST_GB) if k == 64 else f"{stream['gb']:.2f}"
            rate = child("reader", path, k)["rate"]
            rows.append([str(k), f"{stream['rate']:.3g}", f"{memory['rate']:.3g}", judged, resident, f"{rate:.3g}"])
        print(table(rows))
        if options.kill:
            print(killed(Path(folder), options.kill))


def write(path: Path, n: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.float32()) for name in COLUMNS])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, n, 2**20):
            rng = np.random.default_rng(first)
            m = min(2**20, n - first)
            x = (rng.normal(size=(m, D)) + 6 * rng.integers(0, 3, (m, 1)) * np.arange(1, D + 1) / D).astype(np.float32)
            writer.write_table(pa.table(dict(zip(COLUMNS, x.T, strict=True)), schema=schema), row_group_size=2**20)


def child(what: str, path: Path, k: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.scale.streams", "--child"]
    done = subprocess.run(
        [*command, what, str(path), str(k)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(what: str, path: Path, k: int) -> dict:
    import jax

    import jaxem

    batches = jaxem.TableBatches(path, COLUMNS)
    if what == "reader":
        started = time.perf_counter()
        n = sum(len(rows) for rows, _ in batches())
        return {"rate": n / (time.perf_counter() - started)}
    model = jaxem.Mixture(jaxem.FullNormal(), n_components=k)
    sample = next(batches())[0][:20_000]
    params = model.init(jax.random.key(0), sample)
    if what == "stream":
        starts = []

        def passes():
            starts.append(time.perf_counter())
            return batches()

        jaxem.fit_stream(model, params, passes, tol=-1, max_iter=3)
        n = sum(len(rows) for rows, _ in batches())
        seconds = float(np.median(np.diff(starts[2:])))  # the first two: pass 0, and one that compiles
        return {"rate": n / seconds, "gb": peak_gb()}
    x = jax.device_put(np.concatenate([rows for rows, _ in batches()]))
    times = {}
    for n_iter in (1, 3):
        run = lambda n_iter=n_iter: jax.block_until_ready(  # noqa: E731
            jaxem.fit(model, params, x, tol=-1, max_iter=n_iter)
        )
        run()
        started = time.perf_counter()
        run()
        times[n_iter] = time.perf_counter() - started
    return {"rate": len(x) / ((times[3] - times[1]) / 2), "gb": peak_gb()}


def peak_gb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def killed(folder: Path, times: int) -> str:
    """Kills a stream at random moments, until it has been killed so often; then compares the params."""
    path = folder / "killed.parquet"
    write(path, 2_000_000)
    run = lambda name: subprocess.Popen(  # noqa: E731
        [sys.executable, "-W", "ignore", "-m", "benchmarks.scale.streams", "--child", "kept", str(path), name],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    whole = json.loads(run(str(folder / "whole")).communicate()[0].splitlines()[-1])["params"]
    rng, ended, equal = np.random.default_rng(0), 0, 0
    for attempt in range(times):
        place = str(folder / f"killed{attempt}")
        process = run(place)
        time.sleep(rng.uniform(2, 14))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed = run(place).communicate()[0].splitlines()
        ended += bool(resumed)
        equal += bool(resumed) and json.loads(resumed[-1])["params"] == whole
    return f"killed {times} times: {ended} resumed and completed, {equal} with the same bits"


def kept(path: Path, place: str) -> dict:
    import jax

    import jaxem

    batches = jaxem.TableBatches(path, COLUMNS)
    model = jaxem.Mixture(jaxem.FullNormal(), n_components=8)
    params = model.init(jax.random.key(0), next(batches())[0][:20_000])
    checkpoint = jaxem.Checkpoint(place, every=0.1)
    result = jaxem.fit_stream(model, params, batches, tol=-1, max_iter=20, checkpoint=checkpoint)
    return {"params": [float(x).hex() for leaf in jax.tree.leaves(result.params) for x in np.ravel(leaf)]}


if __name__ == "__main__":
    if "--child" in sys.argv:
        what, path, last = sys.argv[2:]
        print(json.dumps(kept(Path(path), last) if what == "kept" else measured(what, Path(path), int(last))))
    else:
        without_blas_overrides()
        main(sys.argv[1:])
