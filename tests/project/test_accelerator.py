"""The command that measures an accelerator: its table, its time, and every part at toy size on a CPU."""

import pytest

from benchmarks import accelerator


def test_all_parts_together_end_in_time():
    assert sum(accelerator.PARTS.values()) <= accelerator.MOST_SECONDS


def test_a_part_that_takes_too_long_says_so():
    found = accelerator.run("roofline", 0.1, toy=True)
    assert found == accelerator.Found("", [["roofline", "did not finish", "stopped after its 0 s", ""]])


def test_the_table_is_markdown():
    assert accelerator.markdown([["lanes", "fits a second", "3", "a|b"]]).splitlines() == [
        "| part | figure | value | beside |",
        "| --- | --- | --- | --- |",
        "| lanes | fits a second | 3 | a/b |",
    ]


@pytest.mark.slow
def test_a_cpu_is_refused_where_sizes_are_not_those_of_a_toy(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(SystemExit, match="expected a GPU or a TPU"):
        accelerator.run("roofline", 300, toy=False)


@pytest.mark.slow
@pytest.mark.parametrize("part", accelerator.PARTS)
def test_a_part_finishes_at_toy_size(part, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = accelerator.run(part, accelerator.TOY_SECONDS, toy=True)
    assert "cpu" in found.machine and found.rows
    assert not [row for row in found.rows if row[1] == "did not finish"]
    assert all(len(row) == len(accelerator.HEADER) for row in found.rows)
