"""Text tables: polars reads those that are neat; the `csv` module, which knows its lines, reads all others again."""

import csv
import io
from collections import Counter
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
    try:
        header = next(_csv(content.decode(), separator))
    except csv.Error as error:
        raise Failure(f"{path}: line {n_blank + 1}: {_reason(error)}") from error
    return Text(content, separator, [name.strip() for name in header], n_blank)


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
            names = [name.strip() for name in next(csv.reader([head], delimiter=separator), [])]
        except csv.Error:
            return (0, 0)
        return len(set(names) & set(needed)), len(names)

    return max(SEPARATORS, key=rank)


def read_neat(text: Text, names: list[str]) -> Records | None:
    """The columns by polars, in a fraction of a second for a million rows; None if the text is not that simple."""
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
    if frame.width != len(text.header) or n_lines != frame.height + 1:
        return None
    position = {name: str(i) for i, name in enumerate(text.header)}
    columns = {name: frame[position[name]] for name in names}
    return Records(columns, np.arange(2, frame.height + 2) + text.n_blank, None)


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
    reader = _csv(text.content.decode(), text.separator)
    next(reader)
    line = reader.line_num + 1 + text.n_blank
    try:
        for record in reader:
            if record:
                places.append(line)
                too_long.append(len(record) > width)
                for column, i in zip(fields, index, strict=True):
                    column.append(record[i] if i < len(record) else None)
            line = reader.line_num + 1 + text.n_blank
    except csv.Error as error:
        raise Failure(f"{path}: line {line}: {_reason(error)}") from error
    columns = {name: pl.Series(name, column, pl.String) for name, column in zip(names, fields, strict=True)}
    return Records(columns, np.asarray(places, np.int64), np.asarray(too_long, bool))


def positions(path: Path, header: list[str], names: list[str]) -> None:
    """Checks that each name is in the header, once.

    Raises:
        Failure: naming the first that is not.
    """
    counts = Counter(header)
    for name in names:
        count = counts[name]
        if count == 0:
            hint = "; is the first line a header?" if all(map(is_number, header)) else ""
            raise Failure(f"{path}: no column {name!r}; it has {listed(header)}{hint}")
        if count > 1:
            fields = [str(i + 1) for i, other in enumerate(header) if other == name]
            raise Failure(f"{path}: column {name!r} is in the header {count} times, as fields {', '.join(fields[:5])}")


def is_number(text: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv(text: str, separator: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator)


def _reason(error: csv.Error) -> str:
    if "field larger" in str(error):
        return "a quoted field begins here that does not end"
    return first_line(error)
