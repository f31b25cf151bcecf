"""Files such as people and broken disks make: one line and exit code 2, or results and rows that fit them."""

import csv
import json
from pathlib import Path

import fuzzed_tables
import polars as pl
import pytest
from command_runs import moments, rows_of, run, write

from jaxem.cli import command


def check_fuzzed(folder: Path, suffix: str, content: bytes, capfd, *options: str) -> int:
    path, out = write(folder, content, f"t{suffix}"), folder / "out"
    code = run(path, "--family", "diagonal", "--components", "1", "--out", out, *options)
    said = capfd.readouterr()
    if code == 2:
        assert said.err.count("\n") == 1 and str(path) in said.err, said.err
        assert not said.out and sorted(p.name for p in folder.iterdir()) == [path.name]
    else:
        assert code in (0, 1) and not said.err
        summary = json.loads((out / "summary.json").read_text("utf-8"))
        n_bad = len(rows_of(out / "bad_rows.csv")) if (out / "bad_rows.csv").exists() else 0
        assert summary["rows_read"] == summary["rows_fitted"] + n_bad
        if "--rows" in options:
            (file,) = out.glob("rows.*")
            check_rows(file, path, n_bad, summary)
    return code


def check_rows(file: Path, path: Path, n_bad: int, summary: dict) -> None:
    """A row for each of the table's, which has a cluster or a reason why not."""
    if file.suffix == ".parquet":
        rows = pl.read_parquet(file)
        assert rows.select(rows.columns[:-3]).equals(pl.read_parquet(path, glob=False), null_equal=True)
        left_out, cluster = rows[:, -1], rows[:, -3]
        assert len(rows) == summary["rows_read"] and left_out.null_count() == summary["rows_fitted"]
        assert (left_out.is_null() == cluster.is_not_null()).all()
        return
    separators = [max(",;\t|", key=file.read_text("utf-8").split("\n", 1)[0].count)]
    with file.open(newline="", encoding="utf-8") as opened:
        head, *rows = csv.reader(opened, delimiter=separators[0])
    last = max(i for i, name in enumerate(head) if name.startswith("left_out"))
    assert len(rows) == summary["rows_read"]
    reasons = [row[last] for row in rows]
    assert sum(map(bool, reasons)) == n_bad
    assert all(bool(row[last - 2]) != bool(reason) for row, reason in zip(rows, reasons, strict=True))


def run_seeds(seeds, folder, monkeypatch, capfd):
    monkeypatch.setattr(command, "fit_table", moments)
    codes = []
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        suffix, content = fuzzed_tables.make(seed)
        options = ["--by", "b"] if seed % 5 == 0 else []
        options += ["--rows"] if seed % 2 else []
        codes.append(check_fuzzed(place, suffix, content, capfd, *options))
    return codes


def test_fuzzed_files(tmp_path, monkeypatch, no_pictures, capfd):
    codes = run_seeds(range(40), tmp_path, monkeypatch, capfd)
    assert 5 < codes.count(2) < 35


@pytest.mark.slow
def test_many_fuzzed_files(tmp_path, monkeypatch, no_pictures, capfd):
    codes = run_seeds(range(40, 840), tmp_path, monkeypatch, capfd)
    assert 100 < codes.count(2) < 700


@pytest.mark.slow
def test_fuzzed_files_that_are_fitted(tmp_path, no_pictures, capfd):
    for seed in range(1000, 1030):
        place = tmp_path / str(seed)
        place.mkdir()
        check_fuzzed(place, *fuzzed_tables.make(seed), capfd, "--restarts", "1", "--max-iter", "3")


@pytest.mark.parametrize("d", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_columns(tmp_path, monkeypatch, no_pictures, capfd, d):
    import random

    monkeypatch.setattr(command, "fit_table", moments)
    content = fuzzed_tables.wide(random.Random(0), d)
    assert check_fuzzed(tmp_path, ".csv", content, capfd) == 0
    assert run(tmp_path / "t.csv", "--family", "full") == 2
    assert f"{d:,} columns make {2 * d**2:,} covariances a fit" in capfd.readouterr().err
