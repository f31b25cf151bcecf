"""`python -m jaxem`: a mixture of two delay regimes for every aircraft of the embedded data set, all in one call."""

import argparse
import contextlib
import csv
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

from ..sources.flights import Flights, load_flights
from .failure import Failure

MIN_REGIME_WEIGHT = 0.05
MIN_FLIGHTS = 5  # of a regime; the best maximum of the likelihood is often a spike on two or three
COLUMNS = ("departure", "arrival")


def main(options: argparse.Namespace) -> None:
    """Fits twice, prints the report, and writes tables and a picture where `--out` names a folder.

    Raises:
        Failure: if the folder cannot be written.
    """
    if options.out is not None:
        check_writable(options.out)
    table = run(options)
    if options.out is not None:
        write(table, options.out)


def check_writable(folder: Path) -> None:
    """Make the folder and write into it before the work begins, so that a bad name costs no waiting."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".jaxem-probe"
        probe.touch()
        probe.unlink()


@contextlib.contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Errors of the file system as a `Failure` that names the folder."""
    try:
        yield
    except OSError as error:
        raise Failure(f"cannot write results to --out {folder}: {error.strerror or error}") from error


def run(options: argparse.Namespace) -> "Table":
    """Fit twice, print the report, return the second result."""
    flights = load_flights()
    fit = fit_every_aircraft(flights, options)
    started = time.perf_counter()
    fit()
    first = time.perf_counter() - started
    started = time.perf_counter()
    table = fit()
    steady = time.perf_counter() - started
    report(table, options, times=(max(first - steady, 0.0), steady))
    return table


class Table(NamedTuple):
    """A row for each aircraft, on the host; component 1 is the delay regime: it departs later on average.

    Where the aircraft has one regime only, that of component 1 has weight 0 and is NaN.
    """

    tailnum: np.ndarray
    n_flights: np.ndarray
    status: np.ndarray
    n_iter: np.ndarray
    log_lik: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    lane_efficiency: float


def fit_every_aircraft(flights: Flights, options: argparse.Namespace) -> Callable[[], Table]:
    """The whole job as a call without arguments, from the flat NumPy table to results on the host."""
    models = [jaxem.Mixture(jaxem.FullNormal(), n_components=k) for k in (1, 2)]
    delays = flights.delays.astype(np.float32)
    progress = not options.no_progress and importlib.util.find_spec("tqdm") is not None

    def call() -> Table:
        # starts at random flights: those of k-means++ lie far out, where spikes are
        found = jaxem.select(
            models,
            jax.random.key(options.seed),
            delays,
            group_ids=flights.tailnum,
            n_restarts=options.n_restarts,
            init=jaxem.RandomPoints(),
            algorithm=jaxem.EM(),  # small fits: cheaper here than steps that are extrapolated
            tol=options.tol,
            max_iter=options.max_iter,
            progress=progress,
            admissible=jaxem.Admissible(MIN_FLIGHTS),
        )
        return tabulate(*found.results)

    return call


def tabulate(one: jaxem.GroupsResult, two: jaxem.GroupsResult) -> Table:
    """The result on the host, each aircraft's regimes in the order of their mean departure delay.

    Two regimes, or one where no mixture of two is admissible.
    """
    single = (np.asarray(two.status) == jaxem.Status.INADMISSIBLE) & ~np.asarray(one.failed)

    def pick(name: str) -> np.ndarray:
        return np.where(single, np.asarray(getattr(one, name)), np.asarray(getattr(two, name)))

    def either(leaf_one: Any, leaf_two: Any, nothing: float) -> np.ndarray:
        leaf_one, leaf_two = np.asarray(leaf_one), np.asarray(leaf_two)
        padded = np.concatenate([leaf_one, np.full_like(leaf_one, nothing)], 1)
        return np.where(single.reshape(-1, *[1] * (leaf_two.ndim - 1)), padded, leaf_two)

    weights = either(one.params.weights, two.params.weights, 0.0)
    means = either(one.params.components.mean, two.params.components.mean, np.nan)
    covariances = either(one.params.components.covariance, two.params.components.covariance, np.nan)
    order = np.argsort(means[:, :, 0], axis=1)
    return Table(
        tailnum=np.asarray(two.labels),
        n_flights=np.asarray(two.n_rows),
        status=pick("status"),
        n_iter=pick("n_iter"),
        log_lik=pick("log_lik"),
        weights=np.take_along_axis(weights, order, axis=1),
        means=np.take_along_axis(means, order[:, :, None], axis=1),
        covariances=np.take_along_axis(covariances, order[:, :, None, None], axis=1),
        lane_efficiency=float(two.lane_efficiency),
    )


def report(table: Table, options: argparse.Namespace, *, times: tuple[float, float]) -> None:
    """Prints times, statuses and the aircraft with the heaviest delay regime."""
    compile_time, steady = times
    device = jax.devices()[0]
    print(f"{len(table.tailnum):,} aircraft, {table.n_flights.sum():,} flights from New York City in 2013")
    print("for each a mixture of two full-covariance normals of (departure delay, arrival delay) in minutes,")
    print(
        f"the best of {options.n_restarts} starts whose regimes hold {MIN_FLIGHTS} flights or more each, none at the "
        "floor;"
    )
    print(
        f"{int(np.sum(table.weights[:, 1] == 0)):,} aircraft have no such mixture and end with one normal; "
        f"jax {jax.__version__} on {device.platform}"
    )
    print(f"\ncompile time     {compile_time:8.2f} s   (first call less second)")
    print(f"steady time      {steady:8.2f} s   (second call: flat NumPy table to results on the host)")
    print(f"lane efficiency  {100 * table.lane_efficiency:8.1f} %   (lane-iterations needed / run)")
    print("lanes by status")
    for status in jaxem.Status:
        count = int(np.sum(table.status == status))
        if count:
            print(f"    {status.name:<12s} {count:6,d}")
    print(f"\nThe {options.top} aircraft with the heaviest delay regime")
    print(
        "(the component that departs later on average, ranked by its mean arrival delay; converged fits, weight of at "
        f"least {MIN_REGIME_WEIGHT:.0%})\n"
    )
    print("                                 delay regime             otherwise")
    print("tail number  flights  weight  held  departure  arrival  departure  arrival")
    for row in heaviest(table, options.top):
        early, late = table.means[row]
        held = table.weights[row, 1] * table.n_flights[row]
        print(
            f"{table.tailnum[row]!s:<11s}  {table.n_flights[row]:7d}  {table.weights[row, 1]:6.2f}  {held:4.0f}"
            f"  {late[0]:9.1f}  {late[1]:7.1f}  {early[0]:9.1f}  {early[1]:7.1f}"
        )


def heaviest(table: Table, top: int) -> np.ndarray:
    """Rows of the converged aircraft whose delay regime arrives latest, latest first."""
    converged = np.isin(table.status, (jaxem.Status.CONVERGED, jaxem.Status.RESOLUTION))
    rows = np.flatnonzero(converged & (table.weights[:, 1] >= MIN_REGIME_WEIGHT))
    return rows[np.argsort(-table.means[rows, 1, 1], kind="stable")][:top]


def write(table: Table, folder: Path) -> None:
    """Write `flights.csv` (a row for each aircraft, minutes) and `params.npz` (the same as arrays)."""
    names = ["tailnum", "n_flights", "status", "n_iter", "log_lik", "weight_0", "weight_1"]
    names += [f"mean_{c}_{column}" for c in (0, 1) for column in COLUMNS]
    names += [f"covariance_{c}_{a}_{b}" for c in (0, 1) for a in COLUMNS for b in COLUMNS]
    arrays = {name: value for name, value in table._asdict().items() if name != "lane_efficiency"}
    with output_errors(folder):
        with (folder / "flights.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows(csv_row(table, row) for row in range(len(table.tailnum)))
        np.savez(folder / "params.npz", **arrays)
        written = [folder / "flights.csv", folder / "params.npz"]
        if importlib.util.find_spec("matplotlib") is not None:
            written.append(folder / "flights.png")
            draw(table, written[-1])
    print(f"\nwrote {', '.join(map(str, written))}")
    if len(written) == 2:
        print("for a picture too: pip install 'jaxem[plot]'")


def draw(table: Table, file: Path) -> None:
    """Write a picture: how the fits ended, and the two regimes of the aircraft with the most flights."""
    from matplotlib.figure import Figure  # without pyplot, which would choose a backend for the whole process

    from .. import plots

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    lanes, plane = figure.subplots(1, 2, width_ratios=(2, 3))
    plots.lanes(table, lanes)
    lanes.set(title="Every aircraft: how its fit ended", ylabel="aircraft")
    flights, row = load_flights(), int(np.argmax(table.n_flights))
    delays = flights.delays[flights.tailnum == table.tailnum[row]].astype(table.means.dtype)
    weights, means, covariances = (jnp.asarray(leaf[row]) for leaf in (table.weights, table.means, table.covariances))
    params = jaxem.MixtureParams(weights, jaxem.NormalParams(means, covariances))
    model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
    plots.mixture_2d(model, params, delays, plane, names=("departure delay (minutes)", "arrival delay (minutes)"))
    plane.set_title(f"{table.tailnum[row]}, the aircraft with the most flights: {len(delays):,}")
    figure.savefig(file, dpi=150)


def csv_row(table: Table, row: int) -> list[str]:
    """The fields of one aircraft."""
    head = [table.tailnum[row], table.n_flights[row], jaxem.Status(int(table.status[row])).name, table.n_iter[row]]
    numbers = [table.log_lik[row], *table.weights[row], *table.means[row].flat, *table.covariances[row].flat]
    return [*map(str, head), *(f"{number:.9g}" for number in numbers)]
