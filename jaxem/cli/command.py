"""What `python -m jaxem` does."""

import argparse
import importlib.util
import shlex
import sys
import time
from typing import Any

import jax

import jaxem

from . import demonstration
from .arguments import parse
from .classes import classes_of
from .compiled import keep_compiled
from .failure import Failure, first_line
from .fits import Fits, Job, fit_table, make_models, outside
from .pictures import draw
from .report import sentences, write_report
from .row_files import write_rows
from .rows import Table, in_float32, without
from .series import fit_series
from .tables import read_table
from .writing import check_folder, new_folder, write_results, write_summary


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: its arguments; None takes those of the process, which then keeps what it compiles.

    Returns:
        The exit code: 0; 1 where a fit failed; 2 on bad input or output, after one line on stderr. Options that do not
        parse end the process with 2.
    """
    own_process = argv is None
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    if own_process and not options.no_cache:
        keep_compiled()
    try:
        if options.table is None:
            demonstration.main(options)
            return 0
        with jax.enable_x64(bool(options.float64 or jax.config.jax_enable_x64)):  # type: ignore[attr-defined]
            return _fit(options, argv)
    except Failure as failure:
        reason = str(failure)
    except KeyboardInterrupt:
        reason = "interrupted"
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = f"the fit needs more than there is, or broke off: {first_line(error)}"
    print(f"python -m jaxem: error: {reason}", file=sys.stderr)
    return 2


def _fit(options: argparse.Namespace, argv: list[str]) -> int:
    """Reads, fits, writes and tells."""
    job = Job(
        family=options.family,
        n_components=options.components,
        criterion=options.criterion,
        n_restarts=options.restarts,
        tol=options.tol,
        max_iter=options.max_iter,
        seed=options.seed,
        floor=options.floor,
        min_count=options.min_count,
        progress=not options.no_progress and importlib.util.find_spec("tqdm") is not None,
    )
    if options.out is not None:
        check_folder(options.out, bool(options.force))
    elif options.rows:
        raise Failure("--rows: the table goes into a folder; name it with --out")
    if options.sequence is not None:
        return fit_series(options, job, _settings(options, argv))
    clock = [time.perf_counter()]
    table = _read(options, job)
    clock.append(time.perf_counter())
    fits = fit_table(table, job)
    clock.append(time.perf_counter())
    seconds = {"read": clock[1] - clock[0], "fit": clock[2] - clock[1]}
    summary = _summary(options, argv, table, fits) | {"seconds": seconds}
    if options.out is not None:
        _write(options, table, fits, summary)
    _tell(options, table, fits, summary)
    return 1 if fits.n_failed else 0


def _read(options: argparse.Namespace, job: Job) -> Table:
    table = read_table(options.table, options.columns, options.by, options.separator)
    make_models(job, len(table.names))
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        table = in_float32(table, options.table)
    bad, column = outside(table, job.family)
    if bad.any():
        table = without(table, bad, column, options.table)
    if options.strict and len(table.bad.places):
        raise Failure(
            f"{options.table}: --strict: {len(table.bad.places):,} bad rows; {table.bad.line(0, table.place)}"
        )
    return table


def _summary(options: argparse.Namespace, argv: list[str], table: Table, fits: Fits) -> dict[str, Any]:
    codes = fits.best("status").tolist()
    return _settings(options, argv) | {
        "columns": table.names,
        "by": options.by,
        "components": fits.n_components,
        "min_count": options.min_count,
        "rows_read": len(table.values) + len(table.bad.places),
        "rows_fitted": len(table.values),
        "bad_rows": table.bad.counts(),
        "groups": len(fits.labels),
        "status": {status.name: codes.count(status) for status in jaxem.Status if status in codes},
    }


def _settings(options: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """What is known before a table is read."""
    return {
        "command": shlex.join(["python", "-m", "jaxem", *map(str, argv)]),
        "table": str(options.table),
        "family": options.family,
        "criterion": options.criterion,
        "restarts": options.restarts,
        "seed": options.seed,
        "jaxem": getattr(jaxem, "__version__", "0.1"),
        "jax": jax.__version__,
        "device": jax.devices()[0].platform,
    }


def _write(options: argparse.Namespace, table: Table, fits: Fits, summary: dict[str, Any]) -> None:
    started = time.perf_counter()
    with new_folder(options.out) as folder:
        notes = write_results(folder, table, fits, options.criterion)
        if options.rows:
            source = options.separator, [*(options.columns or []), *([options.by] if options.by else [])]
            write_rows(folder, options.table, source, classes_of(table, fits), every=options.rows == "all")
        written = time.perf_counter()
        pictures, missing = draw(table, fits, options.family)
        notes += missing
        summary["seconds"] |= {"write": written - started, "draw": time.perf_counter() - written}
        page = write_report(table, fits, summary, pictures, notes, options.top)
        (folder / "report.html").write_text(page, "utf-8")
        write_summary(folder / "summary.json", summary)


def _tell(options: argparse.Namespace, table: Table, fits: Fits, summary: dict[str, Any]) -> None:
    for line in sentences(table, fits, summary):
        print(line)
    if len(fits.n_components) > 1:
        counts = {k: int((fits.chosen == i).sum()) for i, k in enumerate(fits.n_components)}
        chosen = ", ".join(f"{k}: {count:,}" for k, count in counts.items() if count)
        print(f"Components chosen by {options.criterion.upper()} (components: fits): {chosen}.")
    print("Fits by status: " + ", ".join(f"{name} {count:,}" for name, count in summary["status"].items()) + ".")
    if fits.labels[0] is None:
        for j, weight in enumerate(fits.params_of(0).weights.tolist()):
            print(f"  component {j + 1}: weight {weight:.4f}")
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in summary["seconds"].items()))
    if options.out is not None:
        print(f"wrote {options.out / 'report.html'}, and tables and params beside it")
