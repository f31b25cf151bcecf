"""The parts of `python -m benchmarks.accelerator`; each tells its figures as it finds them.

Time of a loop's trip = (time of many trips - time of few) / (their difference), the median of interleaved repetitions,
by one program: what is paid once a call cancels, and nothing is compiled twice.
"""

import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxem
from benchmarks import derivatives, interleaved, machine, mean_log_lik, medians, mixture, x64
from benchmarks.roofline import Device, needed
from benchmarks.scale import lanes as side_by_side


class Sizes(NamedTuple):
    """What a figure is measured at."""

    shapes: tuple[tuple[int, int, int], ...]  # (n, d, k)
    trips: int
    elements: int  # of the array that bandwidth is measured on
    side: int  # of the square matrices that flops are measured on
    aircraft: int
    lanes: tuple[int, ...]
    gradient_rows: int
    gradient_lanes: int
    repeats: int


FULL = Sizes(mixture.SHAPES, 200, 2**28, 8192, 10_000, (10_000, 100_000), derivatives.N_ROWS, derivatives.N_LANES, 5)
TOY = Sizes(((300, 2, 2), (200, 3, 2)), 20, 2**12, 32, 5, (6, 9), 200, 2, 1)


def run(part: str, *, toy: bool) -> None:
    say(machine=machine(), platform=jax.devices()[0].platform)
    if jax.devices()[0].platform == "cpu" and not toy:
        return
    functions[part](TOY if toy else FULL)


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


def row(figure: str, value: str, beside: str = "") -> None:
    say(row=[figure, value, beside])


# --- the device, and EM iterations on it


def roofline(sizes: Sizes) -> None:
    device = measured_device(sizes)
    row("bandwidth, one array read and written", f"{device.bandwidth / 1e9:.0f} GB/s")
    row("flops, float32 as likelihoods ask for it", f"{device.flops / 1e12:.2f} Tflop/s")
    row("flops, float32 by default", f"{product_flops(sizes, lax.Precision.DEFAULT) / 1e12:.2f} Tflop/s")
    for shape in sizes.shapes:
        fit, _ = mixture_fit(shape, np.float32, sizes.trips)
        took, least = trip_seconds(fit, sizes.repeats), needed("full", *shape)
        limit = f"least {1e3 * least.seconds(device):.4f} ms ({least.bound(device)})"
        share = f"{limit}: {least.seconds(device) / took:.0%} of the roofline"
        row("EM iteration, (n, d, k) = ({:,}, {}, {})".format(*shape), f"{1e3 * took:.4f} ms", share)


def measured_device(sizes: Sizes) -> Device:
    """Bytes a second of a scaled copy, and flops a second of a product at full float32 precision."""
    x = jnp.ones(sizes.elements, jnp.float32)
    copying = loop_seconds(lambda x: 0.999 * x + 1e-3, x, sizes.repeats)
    return Device("measured", product_flops(sizes, lax.Precision.HIGHEST), 2 * x.nbytes / copying)


def product_flops(sizes: Sizes, precision: lax.Precision) -> float:
    matrix = jax.random.normal(jax.random.key(0), (sizes.side, sizes.side)) / np.sqrt(sizes.side)
    took = loop_seconds(functools.partial(jnp.dot, matrix, precision=precision), matrix, sizes.repeats)
    return 2 * sizes.side**3 / took


def loop_seconds(step: Callable[[Any], Any], x: Any, repeats: int, few: int = 2, many: int = 22) -> float:
    """Of a step of a loop whose trips depend on each other."""
    loop = jax.jit(lambda x, n: lax.fori_loop(0, n, lambda _, x: step(x), x))
    calls = {n: (lambda n=n: jax.block_until_ready(loop(x, n))) for n in (few, many)}
    return slope(calls, repeats)  # type: ignore[arg-type]


def slope(calls: dict[int, Callable[[], Any]], repeats: int) -> float:
    """Seconds a trip of calls by their number of trips, after a first call of each; NaN where noise is larger."""
    for call in calls.values():
        call()
    times = medians(interleaved(calls, repeats))  # type: ignore[arg-type]
    (few, many) = sorted(calls)
    spent = times[many] - times[few]  # type: ignore[index]
    return spent / (many - few) if spent > 0 else float("nan")


Fit = Callable[[float], jaxem.FitResult]  # by `tol`


def mixture_fit(shape: tuple[int, int, int], dtype: Any, max_iter: int) -> tuple[Fit, Any]:
    """The fit of `benchmarks.mixture` at this shape, and its rows."""
    x, start = mixture.problem(*shape)
    data, weights, means, covariances = (jnp.asarray(array, dtype) for array in (x, *start))
    params = jaxem.MixtureParams(weights, jaxem.NormalParams(means, covariances))
    model = jaxem.Mixture(jaxem.FullNormal(), n_components=shape[2])
    return lambda tol: jax.block_until_ready(jaxem.fit(model, params, data, tol=tol, max_iter=max_iter)), x


def trip_seconds(fit: Fit, repeats: int) -> float:
    """Of an iteration: a fit that makes all of them less one that stops as soon as it may, by the same program."""
    trips = {tol: int(fit(tol).n_iter) for tol in (1e30, -1.0)}
    return slope({n: functools.partial(fit, tol) for tol, n in trips.items()}, repeats)


# --- many problems


def flights(sizes: Sizes) -> None:
    """From the NumPy table to params on the host."""
    from jaxem.sources.flights import load_flights

    table = load_flights()
    chosen = np.isin(table.tailnum, np.unique(table.tailnum)[: sizes.aircraft])
    x, labels = table.delays[chosen].astype(np.float32), table.tailnum[chosen]
    model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
    for starts in (1, 4):
        call = lambda starts=starts: jaxem.fit_groups(  # noqa: E731
            model, jax.random.key(0), x, labels, tol=1e-3, max_iter=100, n_restarts=starts
        )
        first, warm, found = timed(lambda call=call: _on_host(call()), sizes.repeats)
        name = f"flights, {len(found.log_lik):,} aircraft, k-means++ starts: {starts}"
        efficiency = f"lane efficiency {float(found.lane_efficiency):.0%}, padding {float(found.padding):.0%}"
        row(f"{name}, first call", f"{first:.2f} s")
        row(f"{name}, warm", f"{warm:.4f} s", efficiency)


def _on_host(groups: jaxem.GroupsResult) -> jaxem.GroupsResult:
    jax.tree.map(np.asarray, (groups.params, groups.log_lik, groups.status))
    return groups


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Seconds of the first call, median seconds of later ones, and the result."""
    started = time.perf_counter()
    found = jax.block_until_ready(call())
    first = time.perf_counter() - started
    return first, medians(interleaved({"warm": lambda: jax.block_until_ready(call())}, repeats))["warm"], found


def lanes(sizes: Sizes) -> None:
    for b in sizes.lanes:
        x, params = jax.block_until_ready(side_by_side.problems(np.float32, b))
        call = functools.partial(jaxem.fit_batch, side_by_side.MODEL, params, x, tol=1e-5, plan="lanes")
        first, warm, found = timed(call, min(sizes.repeats, 3))
        name = f"{b:,} mixtures of n = 200, d = 2, k = 3 in rounds"
        row(f"{name}, first call", f"{first:.2f} s")
        steps = f"{np.asarray(found.n_evals).mean():.1f} E steps, efficiency {float(found.lane_efficiency):.0%}"
        row(f"{name}, warm", f"{warm:.4f} s", f"{b / warm:,.0f} fits a second; {steps}")


# --- one problem: the loop, its derivative, its precision


def loop(sizes: Sizes) -> None:
    fit, _ = mixture_fit((32, 1, 2), np.float32, 10 * sizes.trips)
    row("trips of the loop a second, 32 rows", f"{1 / trip_seconds(fit, sizes.repeats):,.0f}")
    gradient(sizes)
    gradient_of_lanes(sizes)


def gradient(sizes: Sizes) -> None:
    """In the data, without Newton corrections and with those of the default."""
    x, start = derivatives.draw(derivatives.SEPARATIONS["near"], sizes.gradient_rows, np.float32)
    x = jnp.asarray(x)
    fit = lambda tol: jax.block_until_ready(  # noqa: E731
        jaxem.fit(derivatives.MODEL, start, x, tol=tol, max_iter=sizes.trips)
    )
    iteration = trip_seconds(fit, sizes.repeats)
    kinds = {"no correction": jaxem.Implicit(polish=0), "default": jaxem.Implicit()}
    calls = {"fit": derivatives.compiled(derivatives.value_of(jaxem.Stop()), start, x)[0]}
    for name, kind in kinds.items():
        calls[name] = derivatives.compiled(jax.value_and_grad(derivatives.value_of(kind), argnums=1), start, x)[0]
        calls[name]()
    times = medians(interleaved(calls, sizes.repeats))
    shape = f"n = {len(x):,}, d = {x.shape[1]}, k = {derivatives.N_COMPONENTS}"
    for name in kinds:
        took = times[name] - times["fit"]
        row(f"gradient of a fit, {shape}, {name}", f"{1e3 * took:.2f} ms", f"{took / iteration:.1f} EM iterations")


def gradient_of_lanes(sizes: Sizes) -> None:
    drawn = [derivatives.draw(4.0, derivatives.LANE_ROWS, np.float32, seed) for seed in range(sizes.gradient_lanes)]
    x = jnp.asarray(np.stack([rows for rows, _ in drawn]))
    start = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *[start for _, start in drawn])
    of = functools.partial(derivatives.value_of, fit=jaxem.fit_batch)
    both = jax.value_and_grad(of(jaxem.Implicit(polish=0)), argnums=1)
    calls = {
        "fit": derivatives.compiled(of(jaxem.Stop()), start, x)[0],
        "both": derivatives.compiled(both, start, x)[0],
    }
    for call in calls.values():
        call()
    times = medians(interleaved(calls, min(sizes.repeats, 3)))
    took = times["both"] - times["fit"]
    beside = f"{took / times['fit']:.2f} times the fits"
    row(f"gradient of {len(x):,} fits of n = {x.shape[1]}", f"{took:.3f} s", beside)


def float64(sizes: Sizes) -> None:
    with x64():
        for shape in sizes.shapes[:2]:
            times, objectives = {}, {}
            for dtype in (np.float32, np.float64):
                fit, x = mixture_fit(shape, dtype, sizes.trips // 4)
                times[dtype] = trip_seconds(fit, min(sizes.repeats, 3))
                params = fit(-1.0).params
                objectives[dtype] = mean_log_lik(x, mixture.Normals(*map(np.asarray, jax.tree.leaves(params))))
            gap = abs(objectives[np.float32] - objectives[np.float64])
            name = "float64, EM iteration, (n, d, k) = ({:,}, {}, {})".format(*shape)
            ratio = f"{times[np.float64] / times[np.float32]:.1f} times float32"
            row(name, f"{1e3 * times[np.float64]:.4f} ms", f"{ratio}, whose objective a row is {gap:.0e} off")


# --- peers


def gmmx(sizes: Sizes) -> None:
    from benchmarks import accelerator_peers

    accelerator_peers.gmmx(sizes)


def torch(sizes: Sizes) -> None:
    from benchmarks import accelerator_peers

    accelerator_peers.torch(sizes)


functions: dict[str, Callable[[Sizes], None]] = {
    "roofline": roofline, "flights": flights, "lanes": lanes, "loop": loop, "float64": float64, "gmmx": gmmx,
    "torch": torch,
}  # fmt: skip
