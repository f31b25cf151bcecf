"""Batches from files are the rows of the files, in their order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_close, blobs, mixture, two_starts

import jaxem

pyarrow = pytest.importorskip("pyarrow", reason="tables need the extra io")


def _table(n: int = 50) -> Any:
    rng = np.random.default_rng(0)
    columns = {"x": rng.normal(size=n), "y": rng.integers(0, 9, n), "w": rng.uniform(0, 2, n), "name": ["a"] * n}
    return pyarrow.table(columns)


def _write(table: Any, path: Path) -> Path:
    import pyarrow.csv
    import pyarrow.feather
    import pyarrow.parquet

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=13)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.feather.write_feather(table, str(path))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather", ".arrow"])
def test_batches_are_the_rows_of_the_table_in_order(tmp_path: Path, suffix: str) -> None:
    table = _table()
    path = _write(table, tmp_path / f"table{suffix}")
    batches = jaxem.TableBatches(path, ["y", "x"], weight="w", batch_rows=8, dtype=np.float64)
    for _ in range(2):
        parts = list(batches())
        assert all(len(rows) <= 8 for rows, _ in parts)
        rows, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
        assert_close(rows, np.stack([table["y"].to_numpy(), table["x"].to_numpy()], 1), rtol=1e-12)
        assert_close(weight, table["w"].to_numpy(), rtol=1e-12)


def test_a_missing_entry_is_nan_and_text_is_an_error(tmp_path: Path) -> None:
    table = pyarrow.table({"x": [1.0, None, 3.0], "k": [1, 2, None], "name": ["a", "b", "c"]})
    path = _write(table, tmp_path / "table.parquet")
    ((rows, weight),) = jaxem.TableBatches(path, ["x", "k"])()
    assert weight is None
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.array([[1, 1], [np.nan, 2], [3, np.nan]], np.float32))
    with pytest.raises(ValueError, match="columns: expected numbers in 'name'"):
        jaxem.TableBatches(path, ["name"])()
    with pytest.raises(ValueError, match=r"columns: expected names among \['x', 'k', 'name'\] .* got 'z'"):
        jaxem.TableBatches(path, ["z"])()


def test_npy_files_stay_on_disk_and_give_their_rows(tmp_path: Path) -> None:
    x, weight = blobs(23), np.arange(23.0)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", weight)
    parts = list(jaxem.ArrayBatches(tmp_path / "x.npy", tmp_path / "w.npy", batch_rows=10)())
    assert [len(rows) for rows, _ in parts] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in parts]), x)
    np.testing.assert_array_equal(np.concatenate([w for _, w in parts if w is not None]), weight)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(23,\)"):
        jaxem.ArrayBatches(x, np.ones(3))()
    with pytest.raises(ValueError, match="batch_rows: expected a positive int, got 0"):
        jaxem.ArrayBatches(x, batch_rows=0)()


def test_a_fit_of_a_file_is_the_fit_of_its_rows(tmp_path: Path) -> None:
    x = blobs(60)
    path = _write(pyarrow.table({"a": x[:, 0], "b": x[:, 1]}), tmp_path / "x.parquet")
    batches = jaxem.TableBatches(path, ["a", "b"], batch_rows=25, dtype=np.float64)
    stream = jaxem.fit_stream(mixture("full", 2), two_starts("full"), batches, max_iter=4, tol=-1)
    whole = jaxem.fit(mixture("full", 2), two_starts("full"), x, max_iter=4, tol=-1)
    assert_close(stream.history, whole.history, rtol=1e-10)
