"""What a user waits for before the first result: import, compilation, and whether a second call compiles anything.

    python -m benchmarks.startup [--against REV [--only NAME …]]

Import times are medians over fresh interpreters, `import jax` and `import jaxem` in turn, the latter with the names
that a first fit asks for. The first small fit
(n = 500, d = 2, k = 3) and the second call, with new values of everything and every object rebuilt, run in a fresh
interpreter too, with the persistent compilation cache off; compilations and traces are counted by jax's own monitoring.

With `--against`, another revision is checked out beside this one, and new processes of both do the same jobs in turn:
see `benchmarks.against`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks import against, limit, machine

AT_MOST_IMPORT, AT_MOST_COMPILE, AT_MOST_COMPILATIONS = 1.2, 2.0, 0.0
N, D, K = 500, 2, 3
TIMED_IMPORT = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="new processes for each import and job")
    parser.add_argument("--here", action="store_true", help="measure the first fit in this process and print JSON")
    parser.add_argument("--against", metavar="REV", help="compare with this revision of the repository, job by job")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="jobs of --against: " + ", ".join(against.NAMES))
    options = parser.parse_args()
    if options.only and options.against is None:
        parser.error("--only: expected with --against REV")
    if options.against is not None:
        print(machine())
        print(against.compare(options.against, tuple(options.only or against.NAMES), options.repeats))
        return
    if options.here:
        print(json.dumps(first_fit()))
        return
    for statement in against.IMPORTS.values():  # byte code and disk cache
        fresh("-c", TIMED_IMPORT.format(statement))
    times: dict[str, list[float]] = {name: [] for name in (against.IMPORT_JAX, against.IMPORT)}
    for _ in range(options.repeats):
        for name, values in times.items():
            values.append(float(fresh("-c", TIMED_IMPORT.format(against.IMPORTS[name]))))
    jax_time, jaxem_time = (statistics.median(times[name]) for name in times)
    figures = [json.loads(fresh("-m", "benchmarks.startup", "--here")) for _ in range(3)]
    figure = {name: statistics.median(one[name] for one in figures) for name in figures[0]}
    print(machine())
    print(f"import jax                                {jax_time:6.3f} s")
    print(f"import jaxem                              {jaxem_time:6.3f} s")
    print(
        f"import jaxem / import jax                 {limit(jaxem_time / jax_time, at_most=AT_MOST_IMPORT, form='6.2f')}"
    )
    print(f"first fit, n = {N}, d = {D}, k = {K}          {figure['first']:6.3f} s")
    print(f"second fit                                {1e3 * figure['second']:6.2f} ms")
    compile_time = figure["first"] - figure["second"]
    print(f"compile time (first less second), s       {limit(compile_time, at_most=AT_MOST_COMPILE, form='6.3f')}")
    print(f"compilations in the first call            {figure['first_compilations']:6.0f}")
    for kind in ("compilations", "traces"):
        text = limit(figure[f"second_{kind}"], at_most=AT_MOST_COMPILATIONS, form="6.0f")
        print(f"{kind} in the second call".ljust(42) + text)


def fresh(*arguments: str) -> str:
    """Standard output of a fresh interpreter, its last line."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout.splitlines()[-1]


def first_fit() -> dict[str, float]:
    import jax

    from jaxem import FullNormal, Mixture, MixtureParams, NormalParams, fit  # noqa: F401  (before the clock runs)

    events = {"compilations": 0, "traces": 0}

    def count(event: str, duration: float, **_: object) -> None:
        events["compilations"] += event.endswith("backend_compile_duration")
        events["traces"] += event.endswith("jaxpr_trace_duration")

    jax.block_until_ready(jax.device_put(0.0))  # the backend is up
    jax.monitoring.register_event_duration_secs_listener(count)
    figures = {}
    for seed, name in enumerate(("first", "second")):
        before = dict(events)
        started = time.perf_counter()
        jax.block_until_ready(small_fit(seed))
        figures[name] = time.perf_counter() - started
        figures |= {f"{name}_{kind}": events[kind] - before[kind] for kind in events}
    return figures


def small_fit(seed: int):
    """Everything is made anew from the seed: data, weights, start, model, prior, floor, algorithm, tolerance."""
    import numpy as np

    import jaxem

    rng = np.random.default_rng(seed)
    x = (3 * rng.integers(K, size=(N, 1)) + rng.normal(size=(N, D))).astype(np.float32)
    covariances = np.tile(np.eye(D, dtype=np.float32), (K, 1, 1)) * np.float32(4 + seed)
    params = jaxem.MixtureParams(
        np.full(K, 1 / K, np.float32), jaxem.NormalParams(x[rng.choice(N, K, replace=False)], covariances)
    )
    family = jaxem.FullNormal(floor=1e-6 * (1 + seed))
    model = jaxem.Mixture(family, n_components=K, concentration=1.0 + 0.1 * seed)
    sample_weight = rng.uniform(0.5, 1.5, size=N).astype(np.float32)
    options = {"sample_weight": sample_weight, "algorithm": jaxem.EM(), "tol": 1e-6 * (1 + seed), "max_iter": 100}
    return jaxem.fit(model, params, x, **options)


if __name__ == "__main__":
    main()
