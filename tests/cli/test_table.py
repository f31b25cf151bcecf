"""`python -m jaxem TABLE`: what is read, what is left out and where, what is written, and how it ends."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from command_runs import moments, rows_of, run, write

import jaxem
from jaxem.cli import command, writing
from jaxem.cli.failure import Failure
from jaxem.cli.fits import outside
from jaxem.cli.tables import read_table

REPOSITORY = Path(__file__).resolve().parents[2]


def lines_of(table) -> list[str]:
    return [table.bad.line(i, table.place) for i in range(len(table.bad.places))]


# --- reading


def test_bad_rows_are_left_out_and_named_by_line(tmp_path):
    path = write(tmp_path, "a,b\n1,2\n3,x\n\n5,\n6,7,8\n9,inf\n1,nan\n4\n2,3\n")
    table = read_table(path, None, None)
    np.testing.assert_array_equal(table.values, [[1, 2], [2, 3]])
    np.testing.assert_array_equal(table.places, [2, 10])
    assert lines_of(table) == [
        "line 3: column 'b': 'x' is not a number",
        "line 5: column 'b' is missing",
        "line 6: more fields than the header",
        "line 7: column 'b': 'inf' is not finite",
        "line 8: column 'b' is missing",
        "line 9: column 'b' is missing",
    ]
    assert table.bad.counts() == {"missing": 3, "not a number": 1, "not finite": 1, "more fields than the header": 1}


def test_lines_are_those_of_the_file_after_quoted_line_ends_and_blank_lines(tmp_path):
    table = read_table(write(tmp_path, '\n\na,g\n1,"x\ny"\n3,z\nq,z\n'), ["a"], "g")
    assert lines_of(table) == ["line 7: column 'a': 'q' is not a number"]
    np.testing.assert_array_equal(table.places, [4, 6])


@pytest.mark.parametrize("content", ["a;b\r\n1; 2\r\n3;4\r\n", "a\tb\r1\t2\r3\t4\r", "\ufeff a |b\n1|2\n3|4"])
def test_separators_line_ends_and_marks_are_found(tmp_path, content):
    table = read_table(write(tmp_path, content), ["a", "b"], None)
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])
    assert table.names == ["a", "b"] and not lines_of(table)


def test_groups_are_sorted_as_numbers_where_they_are_and_need_a_label(tmp_path):
    table = read_table(write(tmp_path, "g,a\n10,1\n9,2\n,5\n10,3\nNA,4\n"), None, "g")
    assert np.asarray(table.labels).tolist() == ["10", "9", "NA"] and np.asarray(table.codes).tolist() == [0, 1, 0, 2]
    assert lines_of(table) == ["line 4: column 'g' is missing"]
    assert np.asarray(read_table(write(tmp_path, "g,a\n10,1\n9,2\n"), None, "g").labels).tolist() == ["9", "10"]


def test_all_formats_hold_the_same_table(tmp_path):
    x = np.array([[1.0, 2.0], [3.0, 4.5]])
    np.save(tmp_path / "t.npy", x)
    np.savez(tmp_path / "t.npz", x=x, g=np.array(["u", "v"]))
    pl.DataFrame({"x_0": x[:, 0], "x_1": x[:, 1], "g": ["u", "v"]}).write_parquet(tmp_path / "t.parquet")
    np.testing.assert_array_equal(read_table(tmp_path / "t.npy", ["1", "0"], None).values, x[:, ::-1])
    for name in ("t.npz", "t.parquet"):
        table = read_table(tmp_path / name, None, "g")
        np.testing.assert_array_equal(table.values, x)
        assert np.asarray(table.labels).tolist() == ["u", "v"] and table.place == "row"


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("", {}, "empty file"),
        ("a,b\n", {}, "got none"),
        ("1,2\n3,4\n", {}, "header line of names"),
        ("a,a\n1,2\n", {}, "2 times, as fields 1, 2"),
        ("a,b\n1,2\n", {"columns": ["c"]}, "no column 'c'; it has 'a', 'b'"),
        ("a,b\nx,2\n", {}, "not one row can be fitted: line 2: column 'a': 'x' is not a number"),
        (b"a,b\n1,2\n\xff,3\n", {}, "line 3: expected UTF-8 text, got byte 0xff"),
        (b"a,b\n1,\0\n", {}, "line 2: expected text, got a NUL byte"),
        ("a,b\n1,2\n".encode("utf-16"), {}, "got UTF-16"),
        (b"PAR1", {}, "got Parquet"),
        ('a,b\n1,2\n"' + "3,4\n" * 40_000, {}, "line 3: a quoted field begins here that does not end"),
    ],
)
def test_a_file_that_is_no_table_is_said_to_be_none_and_where(tmp_path, content, options, said):
    with pytest.raises(Failure, match=re.escape(said)):
        read_table(write(tmp_path, content), options.get("columns"), None)


def test_rows_outside_of_the_support_are_bad_rows(tmp_path):
    from jaxem.cli.rows import without

    table = read_table(write(tmp_path, "a,g\n3,u\n-1,u\n2.5,v\n4,w\n"), ["a"], "g")
    table = without(table, *outside(table, "poisson"), Path("t.csv"))
    assert lines_of(table) == [
        "line 3: column 'a': '-1.0' is outside of the support",
        "line 4: column 'a': '2.5' is outside of the support",
    ]
    assert np.asarray(table.labels).tolist() == ["u", "w"] and np.asarray(table.codes).tolist() == [0, 1]


# --- the whole command


def mixture_csv(seed: int = 0, n: int = 240) -> str:
    rng = np.random.default_rng(seed)
    z = rng.random(n) < 0.4
    x = rng.normal(size=(n, 2)) + 5 * z[:, None]
    rows = [f"{a:.4f},{b:.4f},{'uvw'[i % 3]}" for i, (a, b) in enumerate(x)]
    return "a,b,g\n" + "\n".join(rows) + "\n"


def test_groups_and_a_range_of_components_end_in_the_fits_of_the_library(tmp_path, capsys):
    path, out = write(tmp_path, mixture_csv() + "x,1,u\n"), tmp_path / "out"
    assert run(path, "--by", "g", "--components", "1:2", "--restarts", 2, "--out", out) == 0
    assert "line 242: column 'a': 'x' is not a number" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == sorted(writing.FILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "t.csv"]

    table = read_table(path, ["a", "b"], "g")
    assert table.codes is not None
    values = table.values.astype(np.float64)
    model = jaxem.Mixture(jaxem.FullNormal(), 2)
    groups = jaxem.fit_groups(model, jax.random.key(0), values, table.codes, n_restarts=2).ordered()
    fits = rows_of(out / "fits.csv")
    assert [row["group"] for row in fits] == ["u", "v", "w"] and {row["n_components"] for row in fits} == {"2"}
    bic = [float(m.bic(p, jnp.asarray(values[table.codes == g]))) for g, m, p in each(groups)]
    np.testing.assert_allclose([float(row["bic"]) for row in fits], bic, rtol=1e-9)
    components = rows_of(out / "components.csv")
    np.testing.assert_allclose(
        [float(row["mean b"]) for row in components], np.asarray(groups.params.components.mean)[:, :, 1].ravel()
    )
    assert len(rows_of(out / "candidates.csv")) == 6
    holdings = groups.fits.holdings()
    for name in ("smallest_count", "largest_ratio", "n_at_floor"):
        np.testing.assert_allclose([float(row[name]) for row in fits], getattr(holdings, name), rtol=1e-6)
    loaded, params = jaxem.load(out / "models" / "k=2.npz")
    assert loaded == model
    np.testing.assert_array_equal(params.weights, groups.params.weights)
    page = (out / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 2 and "column &#x27;a&#x27;" in page
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows_fitted"] == 240 and summary["bad_rows"] == {"not a number": 1} and summary["groups"] == 3


def each(groups):
    for g in range(len(groups.labels)):
        yield g, *jax.tree.map(lambda leaf: leaf[g], (groups.fits.model, groups.params))  # noqa: B023


def test_without_groups_select_chooses(tmp_path, no_pictures, capsys):
    path, out = write(tmp_path, mixture_csv()), tmp_path / "deep" / "out"
    assert run(path, "--columns", "b", "--family", "diagonal", "--components", "1:2", "--out", out) == 0
    (fit,) = rows_of(out / "fits.csv")
    assert fit["n_components"] == "2" and fit["group"] == "all"
    assert "component 1: weight 0." in capsys.readouterr().out
    assert "pip install" in (out / "report.html").read_text()


def test_a_table_without_groups_loads_as_one_fit(tmp_path, no_pictures):
    path, out = write(tmp_path, mixture_csv()), tmp_path / "out"
    assert run(path, "--columns", "a,b", "--components", "2", "--restarts", 1, "--out", out) == 0
    model, params = jaxem.load(out / "models" / "k=2.npz")
    assert params.weights.shape == (2,) and params.components.covariance.shape == (2, 2, 2)
    assert model.predict(params, read_table(path, ["a", "b"], None).values).shape == (240,)
    assert float(jaxem.diagnose(model, params).smallest_weight) > 0.2


@pytest.mark.slow
def test_icl_of_a_group_is_that_of_its_model(tmp_path, no_pictures):
    path, out = write(tmp_path, mixture_csv(n=60)), tmp_path / "out"
    assert run(path, "--by", "g", "--criterion", "icl", "--components", "2", "--restarts", 1, "--out", out) == 0
    model, params = jaxem.load(out / "models" / "k=2.npz")
    table = read_table(path, ["a", "b"], "g")
    for g, row in enumerate(rows_of(out / "fits.csv")):
        one = jax.tree.map(lambda leaf: leaf[g], params)  # noqa: B023
        icl = model.icl(one, jnp.asarray(table.values[table.codes == g]))
        np.testing.assert_allclose(float(row["icl"]), float(icl), rtol=1e-6)


def test_a_spike_is_no_answer_unless_it_is_asked_for(tmp_path, no_pictures, capsys):
    rng = np.random.default_rng(0)
    x = np.where(np.arange(80) < 25, -4.0, rng.normal(size=80))  # a value that repeats
    path, out = write(tmp_path, "a,g\n" + "".join(f"{v},{i % 2}\n" for i, v in enumerate(x))), tmp_path / "out"
    options = ("--by", "g", "--family", "diagonal", "--components", "1:2", "--restarts", 2, "--out", out)
    assert run(path, *options) == 0
    assert [row["n_components"] for row in rows_of(out / "fits.csv")] == ["1", "1"]
    assert [row["status"] for row in rows_of(out / "candidates.csv")] == ["CONVERGED", "INADMISSIBLE"] * 2
    assert "every component holds at least 5 rows and none lies at the floor" in capsys.readouterr().out
    assert "at the floor" in (out / "report.html").read_text("utf-8")
    assert run(path, *options, "--min-count", 0, "--force") == 0
    fits = rows_of(out / "fits.csv")
    assert [(row["n_components"], row["n_at_floor"]) for row in fits] == [("2", "1.0")] * 2


def test_a_group_that_cannot_be_fitted_ends_with_1_and_disturbs_nobody(tmp_path, no_pictures, capsys):
    path, out = write(tmp_path, mixture_csv(n=60) + "1,2,alone\n"), tmp_path / "out"
    assert run(path, "--by", "g", "--restarts", 1, "--out", out) == 1
    status = {row["group"]: row["status"] for row in rows_of(out / "fits.csv")}
    assert status["alone"] == "TOO_FEW" and len(status) == 4
    assert "1 of 4 fits failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "id"], "no column 'id'"),
        (["--by", "a", "--components", "3"], "is the column an identifier?"),
        (["--family", "poisson"], "not one row can be fitted"),
        (["--family", "gamma", "--floor", "0.1"], "--floor: expected a normal family"),
        (["--strict"], "--strict: 1 bad rows; line 32"),
        (["--out", "FILE"], "expected a folder, got a file"),
        (["--out", "FILE/sub"], "cannot be made"),
        (["--out", "FULL"], "already holds"),
        (["--out", "FOREIGN", "--force"], "there is also 'mine.txt'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys, options, said):
    path = write(tmp_path, mixture_csv(n=30) + "x,1,u\n")
    if "poisson" in options:
        path = write(tmp_path, "a,b\n0.5,1\n1,-3\n")
    write(tmp_path, "", "FILE")
    for folder, file in (("FULL", "fits.csv"), ("FOREIGN", "mine.txt")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "kept", file)
    before = sorted(map(str, tmp_path.rglob("*")))
    columns = [] if "poisson" in options else ["--columns", "b,a" if "id" in options or "a" not in options else "b"]
    options = [str(tmp_path / option) if option[0] in "F" else option for option in options]
    assert run(path, *columns, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error, error
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize(
    "argv",
    [
        ["--by", "g"],
        *(["t.csv", *option] for option in (["--components", "3:1"], ["--columns", "a,a"], ["--floor", "-1"])),
        *(["t.csv", *option] for option in (["--tol", "nan"], ["--seed", str(2**63)])),
    ],
)
def test_options_that_do_not_parse_end_the_process_with_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err


def test_force_replaces_results_and_an_error_on_the_way_leaves_the_old_ones(tmp_path, no_pictures, monkeypatch, capsys):
    path, out = write(tmp_path, mixture_csv(n=60)), tmp_path / "out"
    argv = [path, "--columns", "a,b", "--components", "1", "--restarts", 1, "--out", out]
    assert run(*argv) == 0 and run(*argv) == 2
    old = (out / "summary.json").read_text()
    assert run(*argv, "--force", "--seed", 1) == 0 and (out / "summary.json").read_text() != old
    old = (out / "summary.json").read_text()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_summary", full)
        assert run(*argv, "--force") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (out / "summary.json").read_text() == old and len(list(tmp_path.iterdir())) == 2


def test_a_link_stays_one_and_a_place_that_cannot_be_replaced_is_refused_at_once(tmp_path, no_pictures, monkeypatch):
    monkeypatch.setattr(command, "fit_table", moments)
    path, link, target = write(tmp_path, "a\n1\n2\n"), tmp_path / "link", tmp_path / "target"
    target.mkdir()
    link.symlink_to(target)
    assert run(path, "--components", 1, "--out", link) == 0
    assert link.is_symlink() and (target / "report.html").exists() and len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(command, "fit_table", None)
    monkeypatch.setattr(Path, "is_mount", lambda self: True)
    assert run(path, "--components", 1, "--out", target, "--force") == 2


def test_a_picture_that_fails_costs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "fit_table", moments)
    path, out = write(tmp_path, "$\\price$,b\n1,2\n3,5\n2,2\n"), tmp_path / "out"
    assert run(path, "--components", 1, "--out", out) == 0 and b"image/png" in (out / "report.html").read_bytes()
    monkeypatch.setattr("jaxem.plots.mixture_2d", lambda *_, **__: 1 / 0)
    assert run(path, "--components", 1, "--out", out, "--force") == 0
    assert "A picture could not be drawn: division by zero" in (out / "report.html").read_text()


def test_what_32_bits_do_to_numbers_is_said(tmp_path, no_pictures, monkeypatch, capsys):
    monkeypatch.setattr(command, "fit_table", moments)
    seconds = write(tmp_path, "t\n" + "".join(f"{1_700_000_000 + 7 * i}\n" for i in range(50)))
    with jax.enable_x64(False):
        assert run(seconds, "--components", 1) == 2
        assert "32 bits round its values by up to 63" in capsys.readouterr().err
        assert run(seconds, "--components", 1, "--float64") == 0
        large = write(tmp_path, "t\n1\n1e39\n2\n", "large.csv")
        assert run(large, "--components", 1) == 0
        assert "line 3: column 't': '1e+39' is too large without --float64" in capsys.readouterr().out
        near = write(tmp_path, "t\n0.5\n0.99999999999\n0.25\n", "near.csv")
        assert run(near, "--components", 1, "--family", "beta") == 0
        assert "line 3: column 't': '1.0' is outside of the support" in capsys.readouterr().out


def test_labels_that_are_floats_are_whole_numbers_or_missing(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    labels = [1.0, 2.0, 10.0, np.nan, 1.0, 2.0]
    np.savez(tmp_path / "t.npz", x=np.arange(6.0), g=np.array(labels))
    pq.write_table(pa.table({"x": np.arange(6.0), "g": labels}), tmp_path / "t[1].parquet")
    for name in ("t.npz", "t[1].parquet"):
        table = read_table(tmp_path / name, ["x"], "g")
        assert table.labels is not None and table.labels.tolist() == ["1", "2", "10"]
        assert table.bad.places.tolist() == [4]


def test_a_column_without_a_name_is_not_fitted_unasked(tmp_path, capsys):
    path = write(tmp_path, ",x\n0,1.5\n1,2.5\n")
    assert run(path, "--components", 1) == 2
    assert "field 1 of the header has no name" in capsys.readouterr().err
    assert read_table(path, ["x"], None).values.tolist() == [[1.5], [2.5]]


def test_labels_and_names_cannot_write_html(tmp_path, no_pictures, monkeypatch):
    monkeypatch.setattr(command, "fit_table", moments)
    path, out = write(tmp_path, "<b>x</b>,g\n1,<script>\n2,<script>\n"), tmp_path / "out"
    assert run(path, "--by", "g", "--components", 1, "--out", out) == 0
    page = (out / "report.html").read_text()
    assert "<script>" not in page and "<b>" not in page and "&lt;script&gt;" in page


@pytest.mark.slow
def test_as_a_process_it_helps_and_fails_without_a_traceback(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    call = lambda *argv: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "jaxem", *argv], capture_output=True, text=True, env=environment, check=False
    )
    assert "examples:" in call("--help").stdout
    done = call(str(tmp_path / "none.csv"))
    assert done.returncode == 2 and done.stderr.endswith("none.csv: no such file\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["none.csv", "folder.csv", "t.xlsx", "t", "x\0.csv", "n" * 300 + ".csv"])
def test_a_path_that_is_no_table(tmp_path, capsys, name):
    (tmp_path / "folder.csv").mkdir()
    write(tmp_path, "a\n1\n", "t.xlsx")
    write(tmp_path, "a\n1\n", "t")
    assert run(tmp_path / name) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_same_numbers_are_read_with_and_without_a_bad_row(tmp_path):
    """The quick reader and the careful one."""
    text = mixture_csv(n=500)
    neat, careful = (read_table(write(tmp_path, text + more), ["a", "b"], "g") for more in ("", "x,1,u\n"))
    np.testing.assert_array_equal(neat.values, careful.values)
    np.testing.assert_array_equal(neat.places, careful.places)
    np.testing.assert_array_equal(neat.codes, careful.codes)
    np.testing.assert_array_equal(neat.values, np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1, usecols=(0, 1)))
