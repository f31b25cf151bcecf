"""`python -m jaxem TABLE`: long texts, names of every kind, and what 32 bits tell apart, group by group."""

import csv
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxem.cli.arguments import names
from jaxem.cli.failure import Failure
from jaxem.cli.rows import in_float32
from jaxem.cli.tables import read_table


def write(folder: Path, content: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(content, "utf-8", newline="")
    return path


def test_a_text_of_any_length_beside_the_numbers_is_read(tmp_path):
    sequence = "ACGT" * 50_000
    rows = "".join(f'{i},{sequence},"{sequence}\n{sequence}",{"NA" if i == 3 else i}\n' for i in range(5))
    limit = csv.field_size_limit()
    table = read_table(write(tmp_path, f"id,sequence,quoted {sequence},length\n{rows}"), ["length"], None)
    assert table.values.ravel().tolist() == [0, 1, 2, 4] and csv.field_size_limit() == limit
    assert table.bad.line(0, table.place) == "line 8: column 'length' is missing"


def test_a_quoted_field_that_never_ends_swallows_no_rows(tmp_path):
    for content, line in (('a,b\n1,2\n"3,4\n5,6\n', 3), ('"a,b\n1,2\n3,4\n', 1), ('\na,b\n1,"2\n', 3)):
        path = write(tmp_path, content)
        if content.count("\n") == line:  # cut short within its last line: that row is bad
            assert read_table(path, ["a"], None).values.ravel().tolist() == [1]
            continue
        with pytest.raises(Failure, match=f"line {line}: a quoted field begins here that does not end"):
            read_table(path, None, None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b", ["a", "b"]),
        ("a, b", ["a", "b"]),
        ('"height, cm",age', ["height, cm", "age"]),
        (r"height\, cm,age", ["height, cm", "age"]),
        ('"a ""b"" c"', ['a "b" c']),
        (r"C:\x", [r"C:\x"]),
        ('" a","a"', [" a", "a"]),
    ],
)
def test_names_with_commas_are_written_as_in_a_csv_file(text, found):
    assert names(text) == found


HEADERS = ["height, cm", "age ", " name", "x", "x ", "say \"hi\""]  # fmt: skip


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_columns_are_found_as_they_are_written_or_else_without_outer_blanks(tmp_path, suffix):
    columns = {name: np.arange(4.0) + i for i, name in enumerate(HEADERS)}
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pl.DataFrame(columns).write_parquet(path)
    elif suffix == ".csv":
        pl.DataFrame(columns).write_csv(path)
    else:
        np.savez(path, **columns)  # type: ignore[arg-type]
    for asked, i in (("height, cm", 0), ("age ", 1), ("age", 1), ("name", 2), ("x", 3), ("x ", 4), ('say "hi"', 5)):
        table = read_table(path, [asked], None)
        assert table.values[0, 0] == i and table.names == [HEADERS[i]]
    assert np.asarray(read_table(path, ["x"], "age").labels).astype(float).tolist() == [1, 2, 3, 4]
    assert read_table(path, None, "age").names == [HEADERS[0], *HEADERS[2:]]
    with pytest.raises(Failure, match=re.escape("""goes in quotes of its own: --columns '"a, b",c'""")):
        read_table(path, ["height", "cm"], None)
    with pytest.raises(Failure, match="column 'age ' is asked for twice"):
        read_table(path, ["age", "age "], None)


def test_outer_blanks_of_a_text_header_are_no_part_of_its_names(tmp_path):
    path = write(tmp_path, "a , b\n1,2\n3,4\n")
    assert read_table(path, None, None).names == ["a", "b"]
    assert read_table(path, ["b"], "a ").names == ["b"]


def test_what_32_bits_round_is_compared_with_the_spread_of_the_group(tmp_path):
    rng = np.random.default_rng(0)
    far, near = 1.6e7 + rng.normal(0, 0.6, 50), rng.normal(0, 1, 50)
    rows = [f"{g},{v!r}\n" for g, values in (("far", far), ("near", near)) for v in values.tolist()]
    path = write(tmp_path, "run,x\n" + "".join(rows))
    assert in_float32(read_table(path, ["x"], None), path).values.shape == (100, 1)
    with pytest.raises(
        Failure, match=r"column 'x': 32 bits round its values of group 'far' by up to 0\.\d+, .*--float64"
    ):
        in_float32(read_table(path, ["x"], "run"), path)
    noise = "run,x\n" + "a,0.3\na,0.30000000000000004\n" + "b,0.1\n" * 7 + "".join(f"c,{v!r}\n" for v in near.tolist())
    path = write(tmp_path, noise)  # groups of one value, to 64 bits too
    assert in_float32(read_table(path, ["x"], "run"), path).values.shape == (59, 1)
