"""`--rows`: the table comes back with what the fit says of each of its rows."""

from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
from command_runs import run

import jaxem
from jaxem.cli import row_files
from jaxem.cli.classes import classes_of
from jaxem.cli.failure import Failure
from jaxem.cli.fits import Job, fit_table
from jaxem.cli.tables import read_table

pytestmark = pytest.mark.usefixtures("no_pictures")


def table_of(n: int = 90, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    far = rng.random(n) < 0.3
    x = rng.normal(size=(n, 2)).round(3) + 6 * far[:, None]
    names = [f'a "{i}", b' for i in range(n)]
    return pl.DataFrame({"name": names, "x": x[:, 0], "g": ["u", "w", "v"] * (n // 3), "y": x[:, 1]})


def test_rows_have_the_classes_of_the_library_in_the_order_of_the_table(tmp_path):
    frame, out = table_of(), tmp_path / "out"
    frame.write_csv(tmp_path / "t.csv")
    common = ("--columns", "x,y", "--by", "g", "--components", "1:2", "--float64", "--restarts", 2)
    assert run(tmp_path / "t.csv", *common, "--out", out, "--rows", "all") == 0
    rows = pl.read_csv(out / "rows.csv")
    assert rows.columns == [*frame.columns, "cluster", "probability", "probability_1", "probability_2", "left_out"]
    assert rows.select(frame.columns).equals(frame) and rows["left_out"].null_count() == len(frame)
    model, params = jaxem.load(out / "models" / "k=2.npz")
    for g, group in enumerate("uvw"):
        own = rows.filter(pl.col("g") == group)
        expected = model.responsibilities(jax.tree.map(lambda leaf: leaf[g], params), own.select("x", "y").to_numpy())  # noqa: B023
        np.testing.assert_allclose(own.select("probability_1", "probability_2").to_numpy(), expected, atol=1e-9)
        np.testing.assert_array_equal(own["cluster"].to_numpy(), np.argmax(expected, 1) + 1)
        np.testing.assert_allclose(own["probability"].to_numpy(), np.max(expected, 1), atol=1e-9)
    heaviest = pl.read_csv(out / "components.csv").filter(pl.col("component") == 1)
    assert (heaviest["weight"] > 0.5).all()


def test_a_parquet_table_keeps_its_types_and_gains_columns(tmp_path):
    frame = table_of().with_columns(pl.col("x").cast(pl.Float32), day=pl.date(2013, 1, 31), cluster=pl.lit(True))
    frame = frame.with_columns(y=pl.when(pl.int_range(90) == 7).then(None).otherwise(pl.col("y")))
    frame.write_parquet(tmp_path / "t.parquet", row_group_size=13)
    out = tmp_path / "out"
    assert run(tmp_path / "t.parquet", "--columns", "x,y", "--out", out, "--rows", "--restarts", 1) == 0
    rows = pl.read_parquet(out / "rows.parquet")
    assert rows.columns == [*frame.columns, "cluster_", "probability", "left_out"]
    assert rows.select(frame.columns).equals(frame)
    assert rows["left_out"].to_list() == [None] * 7 + ["missing"] + [None] * 82
    assert rows["cluster_"].null_count() == 1 and set(rows["cluster_"].drop_nulls()) == {1, 2}
    assert (rows["probability"].drop_nulls() >= 0.5).all()  # of two components


def test_rows_that_were_left_out_keep_their_place_and_all_of_their_fields(tmp_path):
    head = [f"{x};k" for x in (0, 1, 0, 1, 0, 10, 11, 10, 11, 10) * 2]
    content = "x;id\n" + "\n".join(head) + '\n\noops;l\n-3;m;more;"still;more"\n5\n10;"two\nlines"\n'
    (tmp_path / "t.txt").write_text(content)
    out = tmp_path / "out"
    assert run(tmp_path / "t.txt", "--columns", "x", "--family", "poisson", "--out", out, "--rows") == 0
    lines = (out / "rows.txt").read_text().split("\n")
    assert lines[0] == "x;id;cluster;probability;left_out"
    assert lines[21:] == [
        "oops;l;;;not a number",
        '-3;m;;;more fields than the header;more;"still;more"',
        "5;;" + lines[23].split(";", 2)[2],
        '10;"two',
        'lines";' + lines[25].split(";", 1)[1],
        "",
    ]
    assert lines[23].split(";")[2] in "12" and lines[25].split(";")[1] == lines[6].split(";")[2]


def test_a_group_without_a_fit_says_so_in_its_rows(tmp_path):
    table = pl.concat([table_of(), pl.DataFrame({"name": ["z"], "x": [1.0], "g": ["z"], "y": [1.0]})])
    table.write_csv(tmp_path / "t.csv")
    out = tmp_path / "out"
    assert run(tmp_path / "t.csv", "--columns", "x,y", "--by", "g", "--restarts", 1, "--out", out, "--rows") == 1
    rows = pl.read_csv(out / "rows.csv")
    assert rows["left_out"].to_list()[-1] == "no fit: TOO_FEW" and rows["left_out"].null_count() == 90
    assert rows["cluster"].null_count() == 1 == rows["probability"].null_count()


def test_arrays_come_back_as_csv(tmp_path):
    np.save(tmp_path / "t.npy", table_of().select("x", "y").to_numpy())
    out = tmp_path / "out"
    assert run(tmp_path / "t.npy", "--out", out, "--rows", "--restarts", 1) == 0
    rows = pl.read_csv(out / "rows.csv")
    assert rows.columns == ["0", "1", "cluster", "probability", "left_out"] and len(rows) == 90


def test_rows_need_a_folder_and_replace_each_other(tmp_path, capsys):
    table_of().write_csv(tmp_path / "t.csv")
    assert run(tmp_path / "t.csv", "--columns", "x", "--rows") == 2
    assert "--rows: the table goes into a folder; name it with --out" in capsys.readouterr().err
    common = (tmp_path / "t.csv", "--columns", "x", "--out", tmp_path / "out", "--restarts", 1)
    assert run(*common, "--rows") == 0 and run(*common, "--force") == 0
    assert not (tmp_path / "out" / "rows.csv").exists()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_a_table_that_changed_meanwhile_is_an_error(tmp_path, suffix):
    def write(n: int) -> Path:
        frame, path = table_of(n).select("x", "y"), tmp_path / f"t{suffix}"
        {".csv": frame.write_csv, ".parquet": frame.write_parquet}.get(
            suffix, lambda path: np.save(path, frame.to_numpy())
        )(path)
        return path

    path = write(90)
    table = read_table(path, None, None)
    job = Job("full", [2], "bic", 1, 1e-6, 500, 0, None, False)
    classes = classes_of(table, fit_table(table, job))
    write(60)
    with pytest.raises(Failure, match="changed while it was fitted"):
        row_files.write_rows(tmp_path, path, (None, []), classes, every=False)
