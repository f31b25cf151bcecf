"""What the flights job compiles: programs, and what jax's persistent compilation cache saves the next process.

    python -m benchmarks.scale.programs

The job of `python -m jaxem`, called once in a fresh interpreter: without a cache, with an empty cache, and with the one
that the run before has filled. Compilation is counted by jax's own monitoring.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import limit, machine, table

AT_MOST_PROGRAMS, LONG_COMPILATION = 12, 0.05
AT_MOST_SHARE = 1 / 3


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.programs", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="pairs of processes that share a cache")
    parser.add_argument("--here", action="store_true", help="run the job in this process and print JSON")
    options = parser.parse_args(argv)
    if options.here:
        print(json.dumps(first_call()))
        return
    pairs = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            pairs.append((fresh(cache), fresh(cache)))
    rows = [["median of pairs", "first call", "compiling", "programs", f"over {1000 * LONG_COMPILATION:.0f} ms"]]
    for name, runs in zip(("empty cache", "filled cache"), zip(*pairs, strict=True), strict=True):
        figure = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append([name, f"{figure['seconds']:.2f} s", f"{figure['compiling']:.2f} s"])
        rows[-1] += [f"{figure['programs']:.0f}", f"{figure['long']:.0f}"]
    # what is left of compiling: tracing, lowering and reading the cache; the fits themselves take `steady`
    waits = [[run["seconds"] - run["steady"] for run in pair] for pair in pairs]
    share = statistics.median(second / first for first, second in waits)
    print(machine())
    print(table(rows))
    print(f"programs over 50 ms                    {limit(pairs[0][0]['long'], at_most=AT_MOST_PROGRAMS, form='6.0f')}")
    print(f"second process / first, first less steady call {limit(share, at_most=AT_MOST_SHARE, form='.2f')}")


def fresh(cache: str) -> dict[str, float]:
    """The figures of a fresh interpreter with this folder as compilation cache."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "benchmarks.scale.programs", "--here"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def first_call() -> dict[str, float]:
    import jax

    from jaxem.cli import arguments, demonstration
    from jaxem.sources.flights import load_flights

    durations: list[float] = []

    def note(event: str, duration: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            durations.append(duration)

    job = demonstration.fit_every_aircraft(load_flights(), arguments.parse(["--no-progress"]))
    jax.block_until_ready(jax.device_put(0.0))  # the backend is up
    jax.monitoring.register_event_duration_secs_listener(note)
    started = time.perf_counter()
    job()
    seconds = time.perf_counter() - started
    n_programs = len(durations)
    started = time.perf_counter()
    job()
    long = sum(duration > LONG_COMPILATION for duration in durations)
    steady = time.perf_counter() - started
    return {"seconds": seconds, "steady": steady, "compiling": sum(durations), "programs": n_programs, "long": long}


if __name__ == "__main__":
    main()
