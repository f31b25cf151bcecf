"""Batches for `fit_stream` from files, read by the libraries that own the formats. Host code."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..numerics.arguments import as_count

_ROWS = 2**17


@dataclass(frozen=True)
class TableBatches:
    """Columns of numbers of a table in Parquet, Arrow (Feather) or CSV files, read by pyarrow.

    Calling it starts a pass: an iterator over (rows (n, d), sample_weight), in the order of the table. No more than a
    few batches are in memory. A missing entry is NaN. Whole numbers, decimals and booleans are numbers too, and files
    of one table may differ in which they hold.

    Attributes:
        source: a file, or a folder of files of one table.
        columns: the d names.
        weight: the name of the column of sample weights, which may be one of `columns` too; or None.
        format: "parquet", "feather" (or "arrow", "ipc"), "csv"; None goes by the suffix of the file.
        batch_rows: the most rows of a batch.
        dtype: of the rows.

    Example:
        >>> import jaxem, numpy as np, pyarrow, pyarrow.parquet, tempfile
        >>> table = pyarrow.table({"x": np.arange(5.0), "y": np.arange(5), "w": np.ones(5)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pyarrow.parquet.write_table(table, folder + "/table.parquet")
        ...     batches = jaxem.TableBatches(folder + "/table.parquet", ["x", "y"], weight="w", batch_rows=3)
        ...     [rows.shape for rows, weight in batches()]
        [(3, 2), (2, 2)]
    """

    source: str | Path
    columns: Sequence[str]
    weight: str | None = None
    format: str | None = None
    batch_rows: int = _ROWS
    dtype: Any = np.float32

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """One pass.

        Raises:
            ValueError: on columns that are not there or hold no numbers; from a later file or batch, where it comes.
            ImportError: where pyarrow is not installed.
        """
        as_count("TableBatches.batch_rows", self.batch_rows)
        if isinstance(self.columns, str):
            raise ValueError(
                f"columns: expected a list of names, got the text {self.columns!r}; write [{self.columns!r}]."
            )
        try:
            import pyarrow.dataset
        except ImportError as error:
            raise ImportError("TableBatches needs pyarrow: pip install 'jaxem[io]'.") from error
        names: list[str] = list(self.columns)
        if self.weight is not None and self.weight not in names:
            names.append(self.weight)
        form = self.format or _FORMATS.get(Path(self.source).suffix.lower(), "parquet")
        try:
            table = pyarrow.dataset.dataset(str(self.source), format=form)
        except ValueError as error:  # of pyarrow
            raise ValueError(
                f"source: expected a table in {form} with names that differ, got {self.source}: {error}"
            ) from error
        first = next(iter(table.get_fragments()), None)
        if first is not None:
            self._check(first, names)
        return (self._pair(batch) for fragment in table.get_fragments() for batch in self._batches(fragment, names))

    def _check(self, fragment: Any, names: list[str]) -> None:
        schema = fragment.physical_schema
        for name in names:
            if name not in schema.names:
                raise ValueError(f"columns: expected names among {schema.names} of {fragment.path}, got {name!r}.")
            kind = schema.field(name).type
            if not _is_number(kind):
                raise ValueError(
                    f"columns: expected numbers in {name!r} of {fragment.path}, got {kind}; encode it as numbers first."
                )

    def _batches(self, fragment: Any, names: list[str]) -> Iterator[Any]:
        """Of one file, in its own types: those of another may be others."""
        import pyarrow.dataset

        self._check(fragment, names)
        options = {}
        if fragment.format.default_extname == "csv":  # whose types are guessed from the first megabyte
            numbers = _csv_of_numbers(fragment.physical_schema, names)
            fragment = numbers.make_fragment(fragment.path, fragment.filesystem)
        if fragment.format.default_extname == "parquet":  # what it reads ahead would be all that it can reach
            options["fragment_scan_options"] = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
        batches = fragment.to_batches(
            schema=fragment.physical_schema, columns=names, batch_size=self.batch_rows, batch_readahead=1,
            use_threads=True, **options,
        )  # fmt: skip
        try:
            yield from batches
        except (ValueError, OSError) as error:  # of pyarrow: a word among numbers, a file that is damaged
            raise ValueError(
                f"columns: expected numbers in {names} of {fragment.path}, got what cannot be read as such: {error}"
            ) from error

    def _pair(self, batch: Any) -> tuple[np.ndarray, np.ndarray | None]:
        rows = np.empty((batch.num_rows, len(self.columns)), self.dtype)
        for j, name in enumerate(self.columns):
            rows[:, j] = _numbers(batch.column(name))
        return rows, None if self.weight is None else _numbers(batch.column(self.weight)).astype(self.dtype)


_FORMATS = {".feather": "feather", ".arrow": "ipc", ".csv": "csv"}


def _csv_of_numbers(schema: Any, names: list[str]) -> Any:
    """The format in which these columns are read as numbers, but for those of the words true and false."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.dataset

    words = pyarrow.types.is_boolean
    types = {name: pyarrow.float64() for name in names if not words(schema.field(name).type)}
    return pyarrow.dataset.CsvFileFormat(convert_options=pyarrow.csv.ConvertOptions(column_types=types))


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_number(kind.value_type)
    return any(
        is_kind(kind)
        for is_kind in (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    )


def _numbers(column: Any) -> np.ndarray:
    """(n,) floats, NaN where there is nothing."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pyarrow.types.is_floating(column.type):
        column = column.cast(pyarrow.float64(), safe=False)  # beyond 2⁵³ they are rounded
    return column.to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class ArrayBatches:
    """Rows of an .npy file that stays on disk, mapped into memory by NumPy, or of an array.

    Calling it starts a pass: an iterator over (rows (n, …), sample_weight).

    Attributes:
        data: path of an .npy file, or an array; rows lead.
        sample_weight: the same of weights (n,), or None.
        batch_rows: the most rows of a batch.

    Example:
        >>> import jaxem, numpy as np
        >>> [len(rows) for rows, weight in jaxem.ArrayBatches(np.zeros((10, 2), np.float32), batch_rows=4)()]
        [4, 4, 2]
    """

    data: Any
    sample_weight: Any = None
    batch_rows: int = _ROWS

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """One pass.

        Raises:
            ValueError: if rows and weights are not equally many, or a file holds no array of numbers.
        """
        as_count("ArrayBatches.batch_rows", self.batch_rows)
        data = _mapped(self.data)
        weight = None if self.sample_weight is None else _mapped(self.sample_weight)
        if weight is not None and weight.shape != data.shape[:1]:
            raise ValueError(f"sample_weight: expected shape {data.shape[:1]}, one weight a row, got {weight.shape}.")

        def pair(first: int) -> tuple[np.ndarray, np.ndarray | None]:
            part = slice(first, first + self.batch_rows)
            return np.array(data[part]), None if weight is None else np.array(weight[part])

        return (pair(first) for first in range(0, data.shape[0], self.batch_rows))


def _mapped(data: Any) -> np.ndarray:
    if not isinstance(data, (str, Path)):
        return np.asarray(data)
    return np.load(data, mmap_mode="r", allow_pickle=False)
