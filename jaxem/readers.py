"""Batches for `fit_stream` from files, read by the libraries that own the formats. Host code."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .batch import check_count

_ROWS = 2**17


@dataclass(frozen=True)
class TableBatches:
    """Columns of numbers of a table in Parquet, Arrow (Feather) or CSV files, read by pyarrow.

    Calling it starts a pass: an iterator over (rows (n, d), sample_weight), in the order of the table. No more than a
    few batches are in memory. A missing entry is NaN.

    Attributes:
        source: a file, or a folder of files of one table.
        columns: the d names.
        weight: the name of the column of sample weights, or None.
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
            ValueError: on columns that are not there or hold no numbers.
            ImportError: where pyarrow is not installed.
        """
        check_count("TableBatches.batch_rows", self.batch_rows)
        try:
            import pyarrow.dataset
        except ImportError as error:
            raise ImportError("TableBatches needs pyarrow: pip install 'jaxem[io]'.") from error
        form = self.format or {".feather": "feather", ".arrow": "ipc", ".csv": "csv"}.get(Path(self.source).suffix)
        table = pyarrow.dataset.dataset(str(self.source), format=form or "parquet")
        names = [*self.columns, *([] if self.weight is None else [self.weight])]
        self._check(table.schema, names)
        options = {}
        if table.format.default_extname == "parquet":  # what it reads ahead would be all that it can reach
            options["fragment_scan_options"] = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
        scanned = table.to_batches(
            columns=names, batch_size=self.batch_rows, batch_readahead=1, fragment_readahead=1, use_threads=True,
            **options,
        )  # fmt: skip
        return (self._pair(batch) for batch in scanned)

    def _check(self, schema: Any, names: list[str]) -> None:
        for name in names:
            if name not in schema.names:
                raise ValueError(f"columns: expected names among {schema.names} of {self.source}, got {name!r}.")
            kind = np.dtype(schema.field(name).type.to_pandas_dtype()).kind
            if kind not in "fiub":
                raise ValueError(
                    f"columns: expected numbers in {name!r} of {self.source}, got {schema.field(name).type}; encode it "
                    "as numbers first."
                )

    def _pair(self, batch: Any) -> tuple[np.ndarray, np.ndarray | None]:
        rows = np.empty((batch.num_rows, len(self.columns)), self.dtype)
        for j, name in enumerate(self.columns):
            rows[:, j] = batch.column(name).to_numpy(zero_copy_only=False)
        if self.weight is None:
            return rows, None
        return rows, batch.column(self.weight).to_numpy(zero_copy_only=False).astype(self.dtype)


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
        check_count("ArrayBatches.batch_rows", self.batch_rows)
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
