"""A table from a file: text, Parquet, npy or npz."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from .failure import Failure, first_line, listed
from .rows import Table, checked, no_label, numbers
from .text import Records, is_number, read_carefully, read_neat, read_text, resolved

KINDS = {
    ".csv": "text",
    ".tsv": "text",
    ".txt": "text",
    ".parquet": "Parquet",
    ".npy": "npy",
    ".npz": "npz",
}
_MAGIC = {b"PAR1": "Parquet", b"\x93NUM": "npy", b"PK\x03\x04": "npz", b"\x1f\x8b": "gzip"}


def read_table(path: Path, columns: list[str] | None, by: str | None, separator: str | None = None) -> Table:
    """Reads the columns to fit and the column of groups.

    Args:
        path: of a CSV (`.csv`, `.tsv`, `.txt`), Parquet, npy or npz file.
        columns: names of the columns to fit; None takes all but `by`.
        by: name of the column whose values tell the groups apart; None is no groups.
        separator: of a text file; None finds it.

    Raises:
        Failure: if the file cannot be read, lacks a column, or has not one row of finite numbers.
    """
    kind = kind_of(path)
    try:
        import polars  # noqa: F401
    except ImportError as error:
        raise Failure("tables are read by polars: pip install 'jaxem[cli]'") from error
    try:
        if kind == "text":
            place, read = "line", _text_reader(path, columns, by, separator)
        else:
            place, read = "row", _frame_reader(path, kind, columns, by)
    except OSError as error:
        raise Failure(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error
    except MemoryError as error:
        raise Failure(f"{path}: cannot be read: it does not fit the memory") from error
    names, by, records = read
    return checked(path, names, by, records, place)


def kind_of(path: Path) -> str:
    """What the suffix says, which the first bytes must not contradict."""
    try:
        if path.is_dir():
            raise Failure(f"{path}: expected a file, got a folder")
        if not path.exists():
            raise Failure(f"{path}: no such file")
        with path.open("rb") as file:
            head = file.read(4)
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from error
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise Failure(f"{path}: expected a file ending in {', '.join(KINDS)}, got {suffix or 'no suffix'!r}")
    kind = KINDS[suffix]
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if found is not None and found != kind:
        raise Failure(f"{path}: expected {kind} as its suffix says, got {found}; rename it, or unpack it")
    return kind


def _names(path: Path, header: list[str], columns: list[str] | None, by: str | None) -> tuple[list[str], str | None]:
    """The names of the columns to fit, and of groups, checked, as they are in the header."""
    numbers = bool(header) and all(map(is_number, header))
    if columns is None and numbers and header != [str(i) for i in range(len(header))]:
        raise Failure(f"{path}: expected a header line of names, got numbers, {listed(header, 3)}; add a header")
    if by is not None:
        by = resolved(path, header, [by])[0]
    if columns is not None:
        return resolved(path, header, columns), by
    if "" in header:
        raise Failure(
            f"{path}: field {header.index('') + 1} of the header has no name; name it, or choose with --columns"
        )
    columns = [name for name in header if name != by]
    if not columns:
        raise Failure(f"{path}: no column to fit beside {listed(header)}")
    return resolved(path, header, columns), by


def _text_reader(path: Path, columns: list[str] | None, by: str | None, separator: str | None) -> tuple:
    text = read_text(path, separator, [*(columns or []), *([by] if by else [])])
    names, by = _names(path, text.header, columns, by)
    needed = [*names, *([by] if by is not None and by not in names else [])]
    records = read_neat(text, needed)
    if records is None or _has_bad(path, records, names, by):
        records = read_carefully(path, text, needed)
    return names, by, records


def _has_bad(path: Path, records: Records, names: list[str], by: str | None) -> bool:
    for name in names:
        value = numbers(path, records.columns[name], name)
        if value.null_count() or not value.is_finite().all():
            return True
    return by is not None and bool(no_label(records.columns[by]).any())


def _frame_reader(path: Path, kind: str, columns: list[str] | None, by: str | None) -> tuple:
    """The columns of a Parquet, npy or npz file."""
    import polars as pl

    if kind == "Parquet":
        try:
            with path.open("rb") as file:  # polars takes a path for a pattern
                header = list(pl.read_parquet_schema(file))
            names, by = _names(path, header, columns, by)
            needed = names + ([by] if by is not None and by not in names else [])
            frame = pl.read_parquet(path, columns=needed, glob=False)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise Failure(f"{path}: cannot be read as Parquet: {first_line(error)}") from error
        series = {name: frame[name] for name in frame.columns}
        height = frame.height
    else:
        arrays = arrays_of(path, kind)
        header = [name for name, _ in arrays]
        names, by = _names(path, header, columns, by)
        needed = {*names, *([by] if by is not None else [])}
        series = {name: pl.Series(name, np.ascontiguousarray(array)) for name, array in arrays if name in needed}
        lengths = {len(one) for one in series.values()}
        if len(lengths) > 1:
            sizes = ", ".join(f"{name!r} {len(one):,}" for name, one in list(series.items())[:4])
            raise Failure(f"{path}: expected columns of one length, got {sizes}")
        height = lengths.pop() if lengths else 0
    return names, by, Records(series, np.arange(1, height + 1), None)


def arrays_of(path: Path, kind: str) -> list[tuple[str, np.ndarray]]:
    """Named columns: fields of a record array, those of a matrix by their number, arrays of an archive by name."""
    try:
        loaded: Any = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        items = [("", loaded)] if kind == "npy" else [(name, loaded[name]) for name in loaded.files]
    except (MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or error.errno:
            raise
        raise Failure(f"{path}: cannot be read as {kind}: {first_line(error)}") from error
    except Exception as error:  # damaged files raise anything
        raise Failure(f"{path}: cannot be read as {kind}: {first_line(error)}") from error
    found: list[tuple[str, np.ndarray]] = []
    for name, array in items:
        if array.dtype.names is not None and array.ndim == 1:
            found += [(f"{name}_{field}" if name else field, array[field]) for field in array.dtype.names]
        elif array.ndim == 2:
            found += [(f"{name}_{i}" if name else str(i), array[:, i]) for i in range(array.shape[1])]
        elif array.ndim == 1:
            found.append((name or "0", array))
        elif name == "":
            raise Failure(f"{path}: expected an array of shape (n, d), got shape {array.shape}")
    if not found:
        raise Failure(f"{path}: expected arrays of shape (n,) or (n, d), got none")
    for name, array in found:
        if array.ndim != 1 or array.dtype.kind not in "biufSUmM":
            raise Failure(f"{path}: column {name!r}: expected numbers or text, got {array.dtype}")
    return [(name, _plain(array)) for name, array in found]


def _plain(array: np.ndarray) -> np.ndarray:
    """In the machine's byte order, and text as such."""
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8", "replace")
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
