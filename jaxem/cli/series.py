"""Hidden Markov models of the series of a table: `--sequence id [--time t] --states 1:4`."""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

from ..contracts.columns import param_columns
from .failure import Failure, first_line
from .fits import Job, make_models, outside
from .rows import Table, in_float32, without
from .tables import read_table
from .text import resolved
from .writing import new_folder, write_bad_rows, write_csv, write_summary


class Read(NamedTuple):
    """The series of a table.

    Attributes:
        table: the rows that are fitted; those left out are missing steps.
        index: (n,) the step of each row within its series, from 0.
        series: (n,) the number of its series, in the order of the file.
        data: all of them.
        time: (n,) of each row; None without such a column.
    """

    table: Table
    index: np.ndarray
    series: np.ndarray
    data: jaxem.Sequences
    time: np.ndarray | None


class Chosen(NamedTuple):
    """Fits for every number of states, and which is best.

    Attributes:
        n_states: (K,).
        models, results: (K,) as asked for, and `FitResult`s with the state first that most steps are in.
        columns: name → (K,) status, criterion, log_lik, n_parameters, n_iter.
        index: of the best.
    """

    n_states: list[int]
    models: list[Any]
    results: list[Any]
    columns: dict[str, Any]
    index: int


def fit_series(options: argparse.Namespace, job: Job, summary: dict[str, Any]) -> int:
    """Reads, fits, writes and tells.

    Args:
        options: of the command.
        job: with states in the place of components.
        summary: what is known before, to be written and told.

    Returns:
        The exit code: 1 where no fit is usable.

    Raises:
        Failure: on a table or options that cannot be fitted.
    """
    clock = [time.perf_counter()]
    read = _read(options, job)
    clock.append(time.perf_counter())
    chosen = _fit(read, job)
    clock.append(time.perf_counter())
    lengths = np.asarray(read.data.length)
    summary |= {
        "columns": read.table.names, "series": len(lengths), "steps": int(lengths.sum()),
        "rows_fitted": len(read.table.values), "bad_rows": read.table.bad.counts(),
        "states": chosen.n_states, "chosen": chosen.n_states[chosen.index],
        "status": chosen.columns["status"][chosen.index],
        "seconds": {"read": clock[1] - clock[0], "fit": clock[2] - clock[1]},
    }  # fmt: skip
    if options.out is not None:
        _write(options.out, read, chosen, summary)
    _tell(options, read, chosen, summary)
    return 1 if np.isnan(chosen.columns[job.criterion][chosen.index]) else 0


def _read(options: argparse.Namespace, job: Job) -> Read:
    columns = options.columns
    if columns is not None and options.time is not None and options.time not in columns:
        columns = [*columns, options.time]
    table = read_table(options.table, columns, options.sequence, options.separator)
    time_of = None
    if options.time is not None:
        at = table.names.index(resolved(options.table, table.names, [options.time])[0])
        time_of = table.values[:, at]
        names = [name for i, name in enumerate(table.names) if i != at]
        table = table._replace(names=names, values=np.delete(table.values, at, 1))
        if not table.names:
            raise Failure(f"{options.table}: no column to fit beside {options.sequence!r} and {options.time!r}")
    make_models(job, len(table.names))
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        table, time_of = _kept(table, time_of, in_float32(table, options.table))
    bad, column = outside(table, job.family)
    if bad.any():
        table, time_of = _kept(table, time_of, without(table, bad, column, options.table))
    if options.strict and len(table.bad.places):
        raise Failure(
            f"{options.table}: --strict: {len(table.bad.places):,} bad rows; {table.bad.line(0, table.place)}"
        )
    assert table.codes is not None and table.labels is not None
    ids = table.labels[table.codes]
    steps = _steps(table) if time_of is None else time_of
    try:
        dtype = np.float64 if jax.config.jax_enable_x64 else np.float32  # type: ignore[attr-defined]
        data = jaxem.sequences(table.values.astype(dtype), ids, steps)
    except ValueError as error:
        raise Failure(f"{options.table}: {_in_words(error)}") from error
    first = np.concatenate([[True], ids[1:] != ids[:-1]])
    series = np.cumsum(first) - 1
    index = (steps - steps[np.flatnonzero(first)[series]]).astype(int)
    return Read(table, index, series, data, time_of)


def _kept(table: Table, time_of: np.ndarray | None, left: Table) -> tuple[Table, np.ndarray | None]:
    """The table that is left, and the times of its rows."""
    return left, None if time_of is None else time_of[np.isin(table.places, left.places)]


def _steps(table: Table) -> np.ndarray:
    """Rows counted, with those that were left out, which are then missing steps and not joined over."""
    every = np.sort(np.concatenate([table.places, table.bad.places]))
    return np.searchsorted(every, table.places)


def _in_words(error: ValueError) -> str:
    """What `sequences` says, in the names of the options."""
    message = first_line(error, 300)
    for name, option in (("ids", "--sequence"), ("time", "--time")):
        if message.startswith(f"{name}: "):
            return option + message[len(name) :]
    return message


def _fit(read: Read, job: Job) -> Chosen:
    mixtures = make_models(job, len(read.table.names))
    pairs = zip(job.n_components, mixtures, strict=True)
    models = [jaxem.HiddenMarkovModel(mixture.family, k) if k > 1 else mixture for k, mixture in pairs]
    options = {"criterion": job.criterion, "n_restarts": job.n_restarts, "tol": job.tol, "max_iter": job.max_iter}
    key, found = jax.random.key(job.seed), []
    for alone in (True, False):  # one state is a distribution of rows that do not know of each other
        these = [model for model in models if isinstance(model, jaxem.Mixture) is alone]
        data: Any = jnp.asarray(read.data.values[read.series, read.index]) if alone else read.data
        if these:
            found.append(jaxem.select(these, key, data, **options))
    results = [result.ordered() for selection in found for result in selection.results]
    columns = {name: [v for selection in found for v in selection.table[name]] for name in found[0].table}
    numbers = {name: np.array(columns[name], float) for name in ("criterion", "log_lik", "n_parameters", "n_iter")}
    table = {"n_states": np.array(job.n_components), "status": columns["status"]}
    table |= {job.criterion if name == "criterion" else name: values for name, values in numbers.items()}
    scores = table[job.criterion]
    index = 0 if np.isnan(scores).all() else int(np.nanargmin(scores))
    return Chosen(job.n_components, models, results, table, index)


def _states(read: Read, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
    """The most probable state of each row (n,), and the probabilities of the states: (n, k)."""
    model, result = chosen.models[chosen.index], chosen.results[chosen.index]
    if isinstance(model, jaxem.Mixture):
        n = len(read.series)
        return np.zeros(n, int), np.ones((n, 1))
    at = read.series, read.index
    path = np.asarray(result.model.predict(result.params, read.data))[at]
    return path, np.asarray(result.model.responsibilities(result.params, read.data))[at]


def _write(folder: Path, read: Read, chosen: Chosen, summary: dict[str, Any]) -> None:
    table, result, model = read.table, chosen.results[chosen.index], chosen.models[chosen.index]
    assert table.codes is not None and table.labels is not None
    with new_folder(folder) as new:
        write_csv(new / "fits.csv", {**chosen.columns, "chosen": np.arange(len(chosen.models)) == chosen.index})
        path, states = _states(read, chosen)
        rows = {table.place: table.places, "sequence": list(map(str, table.labels[table.codes]))}
        rows |= {"step": read.index} if read.time is None else {"time": read.time.astype(np.int64)}
        rows |= {"state": path + 1}
        write_csv(new / "states.csv", rows | {f"p{j + 1}": states[:, j] for j in range(states.shape[1])})
        named = _by_name(result.params)
        write_csv(new / "params.csv", {"name": list(named), "value": np.array(list(named.values()), float)})
        write_bad_rows(new / "bad_rows.csv", table.bad, table.place)
        (new / "models").mkdir()
        for k, one, fit in zip(chosen.n_states, chosen.models, chosen.results, strict=True):
            jaxem.save(new / "models" / f"k={k}.npz", one, fit.params)
        if not isinstance(model, jaxem.Mixture):
            _draw(new, read, result)
        write_summary(new / "summary.json", summary)


def _by_name(params: Any) -> dict[str, float]:
    """Every number of the params by name."""
    columns = param_columns(jax.tree.map(lambda leaf: np.asarray(leaf)[None], params))
    return {name.removeprefix("emissions."): float(value[0]) for name, value in columns.items()}


def _draw(folder: Path, read: Read, result: Any) -> None:
    """Pictures, where matplotlib is installed: the longest series, and the transitions."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    from .. import plots

    longest = int(np.argmax(read.data.length))
    names = [str(j + 1) for j in range(len(result.params.initial))]
    wide = Figure(figsize=(9, 3.8), layout="constrained")
    plots.series_states(result.model, result.params, read.data, longest, wide.subplots(), names=names)
    wide.savefig(folder / "series.png", dpi=120)
    square = Figure(figsize=(3.8, 3.8), layout="constrained")
    if len(names) <= 20:
        plots.transitions(result.params, square.subplots(), names=names)
        square.savefig(folder / "transitions.png", dpi=120)


def _tell(options: argparse.Namespace, read: Read, chosen: Chosen, summary: dict[str, Any]) -> None:
    lengths, bad = np.asarray(read.data.length), len(read.table.bad.places)
    left = f"; {bad:,} bad rows are missing steps" if bad else ""
    print(f"{len(lengths):,} series of {lengths.min():,} to {lengths.max():,} steps, {lengths.sum():,} in all{left}.")
    print(f"Columns {', '.join(read.table.names)}; family {options.family}.")
    for i, k in enumerate(chosen.n_states):
        mark = "*" if i == chosen.index else " "
        value, status = chosen.columns[options.criterion][i], chosen.columns["status"][i]
        print(f"{mark} {k} state{'s' if k > 1 else ''}: {options.criterion.upper()} {value:.2f}, {status}")
    result, model = chosen.results[chosen.index], chosen.models[chosen.index]
    if not isinstance(model, jaxem.Mixture):
        shares, dwell = result.model.shares(result.params), result.model.dwell_times(result.params)
        for j, (share, steps) in enumerate(zip(shares.tolist(), dwell.tolist(), strict=True)):
            print(f"  state {j + 1}: {share:.4f} of the steps, {steps:.1f} at a time")
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in summary["seconds"].items()))
    if options.out is not None:
        print(f"wrote {options.out}: fits.csv, states.csv, params.csv, models")
