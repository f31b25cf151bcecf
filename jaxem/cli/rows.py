"""The rows of a table that can be fitted, its groups, and the rows that are left out, by line."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .failure import Failure
from .text import Records

_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
REASONS = (
    "missing",
    "not a number",
    "not finite",
    "more fields than the header",
    "too large without --float64",
    "outside of the support",
)
_MOST_ROUNDED = 0.05  # standard deviations: by how much 32 bits may change a value
_NOISE = 1e-12  # of a value: what differs by less, such as 0.3 and 0.1 + 0.2, is one number to 64 bits too


class BadRows(NamedTuple):
    """Rows that are left out: (m,) each, in the order of the file. Of several reasons the first column's.

    Attributes:
        places: line or row, counted from 1.
        reasons: index into `REASONS`.
        columns: the name of the column, "" where it is the whole row.
        values: what stands there.
    """

    places: np.ndarray
    reasons: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def counts(self) -> dict[str, int]:
        """Rows by reason, of those that occur."""
        counts = np.bincount(self.reasons, minlength=len(REASONS))
        return {reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count}

    def line(self, i: int, place: str) -> str:
        """What is wrong with the i-th, in words."""
        where = f"{place} {self.places[i]:,}: "
        if not self.columns[i]:
            return where + REASONS[self.reasons[i]]
        value = "" if self.reasons[i] == 0 else f": {str(self.values[i])[:40]!r}"
        return f"{where}column {self.columns[i]!r}{value} is {REASONS[self.reasons[i]]}"


class Table(NamedTuple):
    """The rows that can be fitted.

    Attributes:
        names: of the d columns.
        values: (n, d) float64, finite.
        places: (n,) line or row of each in the file, counted from 1.
        codes: (n,) the group of each; None without groups.
        labels: (G,) text, sorted; None without groups.
        bad: the rows left out.
        place: "line" or "row".
    """

    names: list[str]
    values: np.ndarray
    places: np.ndarray
    codes: np.ndarray | None
    labels: np.ndarray | None
    bad: BadRows
    place: str


def checked(path: Path, names: list[str], by: str | None, records: Records, place: str) -> Table:
    """Parts the rows that can be fitted from those that cannot."""
    n = len(records.places)
    if n == 0:
        raise Failure(f"{path}: expected rows below the header, got none")
    values = np.empty((n, len(names)))
    reason, column = np.full(n, -1, np.int8), np.zeros(n, np.int32)

    def note(bad: np.ndarray, why: str, which: int) -> None:
        new = bad & (reason < 0)
        reason[new], column[new] = REASONS.index(why), which

    if records.too_long is not None:
        note(records.too_long, "more fields than the header", len(names) + 1)
    for i, name in enumerate(names):
        series = records.columns[name]
        number = numbers(path, series, name)
        values[:, i] = number.fill_null(np.nan).to_numpy()
        if np.isfinite(values[:, i]).all():
            continue
        missing = _is_missing(series) if series.dtype == _polars().String else series.is_null().to_numpy()
        note(missing, "missing", i)
        note(number.is_null().to_numpy(), "not a number", i)
        note(np.isnan(values[:, i]), "missing", i)
        note(np.isinf(values[:, i]), "not finite", i)
    text = None if by is None else _as_text(path, records.columns[by], by)
    if text is not None:
        note(no_label(text), "missing", len(names))
    bad = _bad_rows(names, by, records, reason, column)
    good = reason < 0
    if not good.any():
        raise Failure(f"{path}: not one row can be fitted: {bad.line(0, place)}")
    codes, labels = (None, None) if text is None else _groups(text, good)
    all_good = bool(good.all())
    return Table(names, values if all_good else values[good], records.places[good], codes, labels, bad, place)


def _bad_rows(names: list[str], by: str | None, records: Records, reason: np.ndarray, column: np.ndarray) -> BadRows:
    rows = np.flatnonzero(reason >= 0)
    titles = np.array([*names, by or "", ""], object)
    values = np.empty(len(rows), object)
    for i in np.unique(column[rows]).tolist():
        if titles[i]:
            here = np.flatnonzero(column[rows] == i)
            values[here] = records.columns[str(titles[i])].gather(rows[here]).to_list()
    return BadRows(records.places[rows], reason[rows].astype(np.int64), titles[column[rows]], values)


def in_float32(table: Table, path: Path) -> Table:
    """The table as it is fitted in 32 bits, without the rows that are too large for them.

    Raises:
        Failure: naming the first column whose values 32 bits do not tell apart, in one of the groups.
    """
    with np.errstate(over="ignore"):
        values = table.values.astype(np.float32).astype(float)
    large = np.isinf(values)
    if large.any():
        rows = np.asarray(large.any(1))
        table, values = without(table, rows, large.argmax(1), path, "too large without --float64"), values[~rows]
    _check_rounding(table, np.abs(values - table.values), path)
    return table._replace(values=values)


def _check_rounding(table: Table, change: np.ndarray, path: Path) -> None:
    """Raises a Failure if `change` (n, d) is not small beside the spread of the group in which a value is fitted."""
    n = len(table.values)
    codes = np.zeros(n, np.int64) if table.codes is None else table.codes
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    counts = np.diff(np.append(starts, n))
    for name, values, rounded in zip(table.names, table.values.T, change.T, strict=True):
        values, rounded = values[order], np.maximum.reduceat(rounded[order], starts)
        about = values - np.repeat(values[starts], counts)  # exact, where all values of a group are one
        about -= np.repeat(np.add.reduceat(about, starts) / counts, counts)
        spread = np.sqrt(np.add.reduceat(about**2, starts) / counts)
        told = spread > _NOISE * np.maximum.reduceat(np.abs(values), starts)
        bad = np.flatnonzero((rounded > _MOST_ROUNDED * spread) & told)
        if len(bad):
            group = "" if table.labels is None else f" of group {table.labels[codes[order[starts[bad[0]]]]]!r}"
            more = "" if len(bad) == 1 else f" (and {len(bad) - 1:,} other groups)"
            raise Failure(
                f"{path}: column {name!r}: 32 bits round its values{group} by up to {rounded[bad[0]]:.2g}, beside a "
                f"standard deviation of {spread[bad[0]]:.2g}{more}; pass --float64"
            )


def without(
    table: Table, bad: np.ndarray, column: np.ndarray, path: Path, reason: str = "outside of the support"
) -> Table:
    """The table without some rows.

    Args:
        table: as it was read.
        bad: (n,) booleans.
        column: (n,) which column is to blame.
        path: for the message.
        reason: one of `REASONS`.

    Raises:
        Failure: if no row is left.
    """
    rows = np.flatnonzero(bad)
    names = np.array(table.names, object)[column[rows]]
    values = table.values[rows, column[rows]].astype(object)
    new = BadRows(table.places[rows], np.full(len(rows), REASONS.index(reason)), names, values)
    joined = BadRows(*(np.concatenate(pair) for pair in zip(table.bad, new, strict=True)))
    order = np.argsort(joined.places, kind="stable")
    joined = BadRows(*(leaf[order] for leaf in joined))
    if bad.all():
        raise Failure(f"{path}: not one row can be fitted: {new.line(0, table.place)}")
    codes, labels = table.codes, table.labels
    if codes is not None and labels is not None:
        left, codes = np.unique(codes[~bad], return_inverse=True)
        labels = labels[left]
    return table._replace(values=table.values[~bad], places=table.places[~bad], codes=codes, labels=labels, bad=joined)


def numbers(path: Path, series: Any, name: str) -> Any:
    """The series as float64, null where it is no number."""
    pl = _polars()
    if series.dtype == pl.String:
        number = series.cast(pl.Float64, strict=False)
        if number.null_count() == series.null_count():
            return number
        return series.str.strip_chars().cast(pl.Float64, strict=False)
    if series.dtype.is_numeric() or series.dtype == pl.Boolean or series.dtype == pl.Null:
        return series.cast(pl.Float64, strict=False)
    raise Failure(f"{path}: column {name!r}: expected numbers, got {series.dtype}")


def _as_text(path: Path, series: Any, name: str) -> Any:
    pl = _polars()
    if series.dtype == pl.String:
        return series.str.strip_chars()
    try:
        if series.dtype.is_float():  # as they are held where one is missing: 3.0 is the label 3
            series = series.fill_nan(None)
            whole = series.cast(pl.Int64, strict=False)
            series = whole if (whole == series).all() and whole.null_count() == series.null_count() else series
        return series.cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise Failure(f"{path}: column {name!r}: expected text or numbers, got {series.dtype}") from error


def _is_missing(series: Any) -> np.ndarray:
    """(n,) whether a text says that there is nothing."""
    return (series.is_null() | series.str.strip_chars().is_in(list(_MISSING))).fill_null(True).to_numpy()


def no_label(text: Any) -> np.ndarray:
    """(n,) which labels are empty; any word is a label."""
    return (text.is_null() | (text.str.strip_chars() == "")).fill_null(True).to_numpy()


def _groups(text: Any, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and sorted labels; whole numbers in the order of their value."""
    pl = _polars()
    text = text.filter(pl.Series(good))
    unique = text.unique().sort()
    number = unique.cast(pl.Int64, strict=False)
    if number.null_count() == 0:
        unique = unique.gather(number.arg_sort())
    codes = text.cast(pl.Enum(unique)).to_physical().to_numpy().astype(np.int64)
    return codes, unique.to_numpy().astype(object)


def _polars() -> Any:
    import polars

    return polars
