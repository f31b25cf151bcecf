"""Text tables: polars reads those that are neat; the `csv` module, which knows its lines, reads all others again."""

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .failure import Failure, first_line, listed

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


class Text(NamedTuple):
    """A text table: its bytes from the header on, its separator, the names in its header, blank lines before it."""

    content: bytes
    separator: str
    header: list[str]
    n_blank: int


class Records(NamedTuple):
    """Some columns of a table as they were found.

    Attributes:
        columns: by name, polars Series of text or of numbers, None where a field is missing.
        places: (n,) the line or row of each, counted from 1.
        too_long: (n,) whether a line has more fields than the header; None if none has.
    """

    columns: dict[str, Any]
    places: np.ndarray
    too_long: np.ndarray | None


def read_text(path: Path, separator: str | None, needed: list[str]) -> Text:
    """The content of a text file, checked for what no table can be.

    Args:
        path: of the file.
        separator: between fields; None finds it in the header.
        needed: names of columns that tell which separator it is.

    Raises:
        Failure: on an empty file, bytes that are no UTF-8 text, or no header.
    """
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Failure(f"{path}: expected UTF-8 text, got UTF-16; save it as CSV UTF-8")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise Failure(f"{path}: expected a header line and rows, got an empty file")
    _check_characters(path, content)
    if b"\r" in content and b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    body = content.lstrip(b"\r\n")
    n_blank = content.count(b"\n", 0, len(content) - len(body))
    content = body
    separator = separator or _separator(content, needed)
    first = next(records_of(path, Text(content, separator, [], n_blank)))
    stripped = [name.strip() for name in first.fields]
    header = stripped if len(set(stripped)) == len(set(first.fields)) else first.fields
    return Text(content, separator, header, n_blank)


def _check_characters(path: Path, content: bytes) -> None:
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise Failure(f"{path}: line {line}: expected text, got a NUL byte; the file is binary")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise Failure(f"{path}: line {line}: expected UTF-8 text, got byte 0x{byte:02x}; save it as UTF-8") from error


def _separator(content: bytes, needed: list[str]) -> str:
    """The one at which the header falls into the most columns that are asked for, then into the most fields."""
    head = content.split(b"\n", 1)[0].decode().rstrip("\r")

    def rank(separator: str) -> tuple[int, int]:
        try:
            with fields_of_any_length():
                names = next(csv.reader([head], delimiter=separator), [])
        except csv.Error:
            return (0, 0)
        return sum(find(names, name) is not None for name in set(needed)), len(names)

    return max(SEPARATORS, key=rank)


def read_neat(text: Text, names: list[str]) -> Records | None:
    """The columns by polars, in a fraction of a second for a million rows; None if the text is not that simple."""
    frame = neat_frame(text)
    if frame is None:
        return None
    position = {name: str(i) for i, name in enumerate(text.header)}
    columns = {name: frame[position[name]] for name in names}
    return Records(columns, np.arange(2, frame.height + 2) + text.n_blank, None)


def neat_frame(text: Text) -> Any | None:
    """All columns as text, named by their number; None where a line is not one record of as many fields."""
    import polars as pl

    try:
        frame = pl.read_csv(
            io.BytesIO(text.content),
            separator=text.separator,
            infer_schema=False,
            new_columns=[str(i) for i in range(len(text.header))],
        )
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    n_lines = text.content.count(b"\n") + (not text.content.endswith(b"\n"))
    return frame if frame.width == len(text.header) and n_lines == frame.height + 1 else None


def read_carefully(path: Path, text: Text, names: list[str]) -> Records:
    """The columns by the `csv` module, with the line on which each record begins; blank lines are passed over.

    Raises:
        Failure: where a quoted field does not end.
    """
    import polars as pl

    position = {name: i for i, name in enumerate(text.header)}
    width, index = len(text.header), [position[name] for name in names]
    fields: list[list[str | None]] = [[] for _ in names]
    places: list[int] = []
    too_long: list[bool] = []
    records = records_of(path, text)
    next(records)
    for record in records:
        places.append(record.line)
        too_long.append(len(record.fields) > width)
        for column, i in zip(fields, index, strict=True):
            column.append(record.fields[i] if i < len(record.fields) else None)
    columns = {name: pl.Series(name, column, pl.String) for name, column in zip(names, fields, strict=True)}
    return Records(columns, np.asarray(places, np.int64), np.asarray(too_long, bool))


class _Record(NamedTuple):
    line: int
    fields: list[str]


def records_of(path: Path, text: Text) -> Iterator[_Record]:
    """The records that are not blank, and the line on which each begins.

    Raises:
        Failure: where a quoted field does not end on its line and not on any other: it would swallow the rest.
    """
    lines: list[str] = []

    def remembered() -> Iterator[str]:
        for line in io.StringIO(text.content.decode(), newline=""):
            lines.append(line)
            yield line

    reader = csv.reader(remembered(), delimiter=text.separator)
    line = 1 + text.n_blank
    while True:
        try:
            with fields_of_any_length():
                fields = next(reader, None)
        except csv.Error as error:
            raise Failure(f"{path}: line {line}: {first_line(error)}") from error
        if fields is None:
            return
        if len(lines) > 1 and _is_open(lines, text.separator):
            raise Failure(f"{path}: line {line}: a quoted field begins here that does not end")
        lines.clear()
        if fields:
            yield _Record(line, fields)
        line = reader.line_num + 1 + text.n_blank


@contextlib.contextmanager
def fields_of_any_length() -> Iterator[None]:
    """The `csv` module's own limit, of 131,072 characters, is one of the process: it is put back."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_open(lines: list[str], separator: str) -> bool:
    """Whether a record of these lines ends within quotes."""
    try:
        with fields_of_any_length():
            list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def find(header: list[str], name: str) -> str | None:
    """The name in the header: as it is written or, if there is none, the one that differs by outer blanks alone."""
    if name in header:
        return name
    alike = {other for other in header if other.strip() == name.strip()}
    return alike.pop() if len(alike) == 1 else None


def resolved(path: Path, header: list[str], names: list[str]) -> list[str]:
    """The names as they are in the header, where each must be once.

    Raises:
        Failure: naming the first that is not.
    """
    counts, found = Counter(header), []
    for name in names:
        known = find(header, name)
        if known is None:
            hint = "; is the first line a header?" if all(map(is_number, header)) else ""
            if any("," in other for other in header):
                hint = "; a name with a comma goes in quotes of its own: --columns '\"a, b\",c'"
            raise Failure(f"{path}: no column {name!r}; it has {listed(header)}{hint}")
        if counts[known] > 1:
            fields = [str(i + 1) for i, other in enumerate(header) if other == known]
            raise Failure(
                f"{path}: column {known!r} is in the header {counts[known]} times, as fields {', '.join(fields[:5])}"
            )
        if known in found:
            raise Failure(f"{path}: column {known!r} is asked for twice")
        found.append(known)
    return found


def is_number(text: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
