"""The table written back with what the fit says of each row, in its own order and format."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from .classes import Classes
from .failure import Failure, first_line
from .tables import arrays_of, kind_of
from .text import Text, neat_frame, read_text, records_of

FILES = ("rows.csv", "rows.tsv", "rows.txt", "rows.parquet")


def write_rows(
    folder: Path, path: Path, source: tuple[str | None, list[str]], classes: Classes, *, every: bool
) -> Path:
    """Writes the table with its new columns, `cluster`, `probability` and `left_out`, behind its own.

    Columns of these names in the table stay; the new one has an underscore more.

    Args:
        folder: into which.
        path: of the table that was read.
        source: its separator, if it was given, and the names asked for, by which it is found.
        classes: of all of its rows.
        every: whether the probabilities of all components are written beside that of the cluster.

    Returns:
        The file: with the suffix of the table; CSV for npy and npz.

    Raises:
        Failure: if the table cannot be read again, or has changed.
    """
    kind = kind_of(path)
    file = folder / ("rows" + (path.suffix.lower() if kind in ("text", "Parquet") else ".csv"))
    try:
        if kind == "text":
            _write_text(file, path, read_text(path, *source), classes, every)
        elif kind == "Parquet":
            _write_parquet(file, path, classes, every)
        else:
            _write_arrays(file, path, kind, classes, every)
    except OSError as error:
        raise Failure(f"--rows {path}: {error.strerror or first_line(error)}") from error
    return file


def _new_columns(classes: Classes, header: list[str], every: bool) -> Any:
    """The new columns as a polars DataFrame, null where there is nothing to say."""
    import polars as pl

    found = {"cluster": pl.Series([number or None for number in classes.cluster.tolist()], dtype=pl.Int32)}
    found["probability"] = pl.Series(classes.probability).fill_nan(None)
    if every:
        for j, column in enumerate(classes.probabilities.T):
            found[f"probability_{j + 1}"] = pl.Series(column).fill_nan(None)
    found["left_out"] = pl.Series([reason or None for reason in classes.left_out.tolist()], dtype=pl.String)
    named: dict[str, Any] = {}
    for name, series in found.items():
        while name in header or name in named:
            name += "_"
        named[name] = series
    return pl.DataFrame(named)


def _write_text(file: Path, path: Path, text: Text, classes: Classes, every: bool) -> None:
    """By polars where the text is neat; else record by record, so that no field of any is lost."""
    new = _new_columns(classes, text.header, every)
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, delimiter=text.separator, lineterminator="\n").writerow([*text.header, *new.columns])
    frame = neat_frame(text)
    if frame is None:
        _write_carefully(file, path, text, new)
        return
    _check_height(path, frame.height, new.height)
    new.columns = [str(frame.width + i) for i in range(new.width)]  # those of the frame are numbers, too
    with file.open("ab") as out:
        frame.hstack(new).write_csv(out, include_header=False, separator=text.separator)


def _write_carefully(file: Path, path: Path, text: Text, new: Any) -> None:
    """Fields beyond the header stand behind the new ones, which stay in their columns."""
    width, records = len(text.header), list(records_of(path, text))[1:]
    _check_height(path, len(records), new.height)
    with file.open("a", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, delimiter=text.separator, lineterminator="\n")
        for record, added in zip(records, new.iter_rows(), strict=True):
            own = record.fields[:width] + [""] * (width - len(record.fields))
            writer.writerow([*own, *added, *record.fields[width:]])


def _write_parquet(file: Path, path: Path, classes: Classes, every: bool) -> None:
    """Streamed: the columns that were not fitted need not fit the memory."""
    import polars as pl

    table = pl.scan_parquet(path, glob=False)
    _check_height(path, table.select(pl.len()).collect().item(), len(classes.cluster))
    new = _new_columns(classes, table.collect_schema().names(), every)
    pl.concat([table, new.lazy()], how="horizontal").sink_parquet(file)


def _write_arrays(file: Path, path: Path, kind: str, classes: Classes, every: bool) -> None:
    import polars as pl

    m = len(classes.cluster)
    arrays = {name: array for name, array in arrays_of(path, kind) if len(array) == m}
    _check_height(path, m if arrays else 0, m)
    frame = pl.DataFrame({name: pl.Series(np.ascontiguousarray(array)) for name, array in arrays.items()})
    frame.hstack(_new_columns(classes, frame.columns, every)).write_csv(file)


def _check_height(path: Path, now: int, before: int) -> None:
    if now != before:
        raise Failure(f"{path}: changed while it was fitted: {before:,} rows were read, now it has {now:,}")
