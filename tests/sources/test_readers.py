"""Batches from files are the rows of the files, in their order."""

import datetime
import decimal
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


def _long_csv(path: Path, last: str) -> Path:
    """Whole numbers for more than the megabyte that types are guessed from, then something else."""
    path.write_text("x,y\n" + "".join(f"{i % 7},\n" for i in range(400_000)) + last)
    return path


def test_a_csv_column_holds_numbers_whatever_its_first_megabyte_looks_like(tmp_path: Path) -> None:
    parts = list(jaxem.TableBatches(_long_csv(tmp_path / "a.csv", "1.5,2\n"), ["x", "y"])())
    assert sum(len(rows) for rows, _ in parts) == 400_001 and parts[-1][0][-1].tolist() == [1.5, 2]
    assert np.isnan(parts[0][0][:, 1]).all()
    path = _long_csv(tmp_path / "b.csv", "word,2\n")
    with pytest.raises(ValueError, match=rf"columns: expected numbers in \['x'\] of {path}, got .*'word'"):
        list(jaxem.TableBatches(path, ["x"])())


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather"])
def test_files_of_one_table_may_hold_other_types_of_numbers(tmp_path: Path, suffix: str) -> None:
    parts: list[dict] = [{"x": [1, 2], "y": [None, 3]}, {"y": [0.5, None], "x": [1.5, None]}, {"x": [True], "y": [7]}]
    for i, part in enumerate(parts):
        _write(pyarrow.table(part), tmp_path / f"{i}{suffix}")
    form = {".feather": "feather", ".csv": "csv"}.get(suffix)
    rows = np.concatenate([rows for rows, _ in jaxem.TableBatches(tmp_path, ["x", "y"], format=form)()])
    want = [[1, np.nan], [2, 3], [1.5, 0.5], [np.nan, np.nan], [1, 7]]
    np.testing.assert_array_equal(rows, np.array(want, np.float32))
    _write(pyarrow.table({"x": [1.0], "z": [2.0]}), tmp_path / f"3{suffix}")
    with pytest.raises(ValueError, match=rf"columns: expected names among \['x', 'z'\] of .*3{suffix}, got 'y'"):
        list(jaxem.TableBatches(tmp_path, ["x", "y"], format=form)())


def test_decimals_booleans_and_categories_of_numbers_are_numbers(tmp_path: Path) -> None:
    columns = {
        "price": pyarrow.array([decimal.Decimal("1.50"), None]),
        "large": pyarrow.array([decimal.Decimal("2.25"), None], pyarrow.decimal256(60, 2)),
        "sold": [True, None],
        "none": pyarrow.nulls(2),
        "code": pyarrow.array([3.5, None]).dictionary_encode(),
        "id": pyarrow.array([2**60 + 1, None]),
    }
    path = _write(pyarrow.table(columns), tmp_path / "t.parquet")
    ((rows, _),) = jaxem.TableBatches(path, list(columns), dtype=np.float64)()
    np.testing.assert_array_equal(rows, [[1.5, 2.25, 1, np.nan, 3.5, 2**60], [np.nan] * 6])


def test_the_weight_may_be_a_column_of_the_rows(tmp_path: Path) -> None:
    path = _write(pyarrow.table({"x": [1.0, 2.0], "exposure": [3, 4]}), tmp_path / "t.parquet")
    ((rows, weight),) = jaxem.TableBatches(path, ["x", "exposure"], weight="exposure")()
    assert weight is not None and rows.tolist() == [[1, 3], [2, 4]] and weight.tolist() == [3, 4]


def test_a_column_of_times_or_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    zoned = pyarrow.array([datetime.datetime(2020, 1, 1), None], pyarrow.timestamp("us", "UTC"))
    columns = {"when": zoned, "day": [datetime.date(2020, 1, 1), None], "took": [datetime.timedelta(1), None]}
    columns |= {"list": [[1.0], None], "kind": pyarrow.array(["a", "b"]).dictionary_encode()}
    path = _write(pyarrow.table(columns), tmp_path / "t.parquet")
    for name in columns:
        with pytest.raises(ValueError, match=f"columns: expected numbers in '{name}' of .*t.parquet, got "):
            jaxem.TableBatches(path, [name])()
    with pytest.raises(ValueError, match=r"columns: expected a list of names, got the text 'when'; write \['when'\]"):
        jaxem.TableBatches(path, "when")()  # type: ignore
    _write(pyarrow.Table.from_arrays([pyarrow.array([1.0])] * 2, ["x", "x"]), tmp_path / "twice.arrow")
    with pytest.raises(ValueError, match="source: expected a table in ipc .* got .*twice.arrow"):
        jaxem.TableBatches(tmp_path / "twice.arrow", ["x"])()


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
