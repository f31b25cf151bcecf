"""`python -m jaxem TABLE --sequence id`: hidden Markov models of the series of a table."""

import csv
import json

import numpy as np
import pytest

import jaxem
from jaxem.cli import command


@pytest.fixture(scope="module")
def table() -> list[list[str]]:
    """Ten series of a calm and a busy state, of which one day is not there and one value is missing."""
    rng = np.random.default_rng(0)
    rows = []
    for name in "jihgfedcba":
        z = 0
        for day in range(15):
            z = z if rng.random() < 0.85 else 1 - z
            rows.append([name, str(100 + day), str(rng.poisson(1 + 9 * z))])
    rows[20][2] = ""
    del rows[3]
    return rows


def _write(path, rows, header="who,day,count"):
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return str(path)


def _read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_states_are_chosen_and_written_row_by_row(table, tmp_path, capsys):
    """The same as in Python: a day left out, and a bad row, are missing steps."""
    path, out = _write(tmp_path / "t.csv", table), tmp_path / "out"
    argv = [path, "--sequence", "who", "--time", "day", "--states", "1:2", "--family", "poisson", "--restarts", "2"]
    assert command.main([*argv, "--out", str(out), "--no-progress"]) == 0
    fits = _read(out / "fits.csv")
    assert [row["n_states"] for row in fits] == ["1", "2"] and [row["chosen"] for row in fits] == ["false", "true"]
    states = _read(out / "states.csv")
    assert len(states) == 148 and states[0]["sequence"] == "j" and states[3]["time"] == "104"
    good = [row for row in table if row[2]]
    counts = np.array([float(row[2]) for row in good], np.float32)[:, None]
    data = jaxem.sequences(counts, [row[0] for row in good], [int(row[1]) for row in good])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["series"] == 10 and summary["steps"] == data.length.sum() == 150
    model, params = jaxem.load(out / "models" / "k=2.npz")
    np.testing.assert_allclose(model.bic(params, data), float(fits[1]["bic"]), rtol=1e-5)
    path_of = np.asarray(model.predict(params, data))
    np.testing.assert_array_equal(path_of[0][[0, 1, 2, 4]] + 1, [int(row["state"]) for row in states[:4]])
    np.testing.assert_allclose([float(row["p1"]) + float(row["p2"]) for row in states], 1, atol=1e-5)
    named = {row["name"]: float(row["value"]) for row in _read(out / "params.csv")}
    np.testing.assert_allclose(named["transition[0,1]"], params.transition[0, 1], rtol=1e-6)
    assert (out / "series.png").stat().st_size > 0 and (out / "transitions.png").stat().st_size > 0
    said = capsys.readouterr().out
    assert "10 series of 15 to 15 steps, 150 in all; 1 bad rows are missing steps." in said and "* 2 states" in said


def test_a_bad_row_does_not_join_its_neighbours(table, tmp_path):
    """Without times rows are counted, with those that are left out."""
    from jaxem.cli.arguments import parse
    from jaxem.cli.fits import Job
    from jaxem.cli.series import _read as read

    job = Job("poisson", [2], "bic", 1, 1e-6, 5, 0, None, False)
    rows = [[name, count] for name, _, count in table]
    found = read(parse([_write(tmp_path / "t.csv", rows, "who,count"), "--sequence", "who"]), job)
    assert np.isnan(found.data.values[1, 5, 0]) and found.data.length.tolist() == [14, *[15] * 9]


BAD = {
    "--time: expected times that rise within a series": ([["a", "2", "1"], ["a", "1", "2"]], ["--time", "day"]),
    "--sequence: expected the rows of a series to follow each other": (
        [["a", "1", "1"], ["b", "1", "2"], ["a", "2", "2"]],
        [],
    ),
    "no column 'hour'": ([["a", "1", "1"]], ["--time", "hour"]),
}


@pytest.mark.parametrize("said", BAD)
def test_what_is_no_table_of_series_is_said_in_one_line(said, tmp_path, capsys):
    rows, more = BAD[said]
    path = _write(tmp_path / "t.csv", rows)
    assert command.main([path, "--sequence", "who", "--family", "poisson", *more]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["t.csv", "--states", "2"], "--states goes with --sequence"),
        (["t.csv", "--sequence", "a", "--by", "b"], "--by does not go with --sequence"),
        (["t.csv", "--sequence", "a", "--components", "2"], "--components does not go with --sequence"),
        (["t.csv", "--sequence", "a", "--rows"], "--rows does not go with --sequence: states.csv has the state"),
        (["t.csv", "--sequence", "a", "--criterion", "icl"], "--criterion icl does not go with --sequence"),
        (["--sequence", "a"], "--sequence goes with a TABLE"),
    ],
)
def test_options_that_do_not_go_together_end_the_process(argv, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(argv)
    assert said in capsys.readouterr().err
