"""What README.md and the page of tasks show runs, and prints what they say."""

import contextlib
import csv
import importlib.util
import io
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from helpers import x64

import jaxem

REPOSITORY = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e[-+]?\d+)?")


class Block(NamedTuple):
    heading: str
    code: str
    output: str  # what the document says it prints; empty if it says nothing


def blocks(document: str) -> list[Block]:
    """The Python blocks of a document in order."""
    found = []
    for section in re.split(r"^## ", (REPOSITORY / document).read_text("utf-8"), flags=re.M):
        pattern = r"```python\n(.*?)```(?:\s*(?:prints\s*)?```\n(.*?)```)?"
        found += [Block(section.split("\n")[0], code, out) for code, out in re.findall(pattern, section, flags=re.S)]
    return found


def printed(code: str, names: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "<block>", "exec"), names)
    return out.getvalue()


def assert_says(text: str, document: str) -> None:
    """The words are the same; numbers, which other machines round otherwise, to two per cent."""
    words = [re.sub(r"[\s\[\]]+", " ", NUMBER.sub("#", part)).strip() for part in (text, document)]
    assert words[0] == words[1], text
    got, said = (np.array(NUMBER.findall(part), float) for part in (text, document))
    np.testing.assert_allclose(got, said, rtol=0.02, atol=0.011)


@pytest.fixture(autouse=True)
def as_users_have_it(tmp_path, monkeypatch):
    """jax's own precision, a folder to write in, and no screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with x64(False), jax.numpy_rank_promotion("allow"):
        yield


# --- the page of ten tasks

PREAMBLE, *TASKS = blocks("notebooks/ten_tasks.md")


def test_there_are_ten_tasks_of_at_most_ten_lines_with_what_they_print():
    assert [block.heading.split(".")[0] for block in TASKS] == [str(i) for i in range(1, 11)]
    assert all(len(block.code.splitlines()) <= 10 and block.output for block in TASKS)


QUICK = ("1", "3", "6", "8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, id=task.heading, marks=[pytest.mark.slow] * (task.heading.split(".")[0] not in QUICK))
        for task in TASKS
    ],
)
def test_a_task_runs_after_the_first_lines_and_prints_what_it_says(task):
    names: dict[str, Any] = {"__name__": "tasks"}
    printed(PREAMBLE.code, names)
    assert_says(printed(task.code, names), task.output)


# --- the first page

README = blocks("README.md")
# what a section speaks of without making it, in terms of what the sections before it have made
GIVEN = """
import numpy as np
model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
params = model.init(key, x)
result = other = jaxem.fit(model, params, x, algorithm=jaxem.SQUAREM())
params_b, x_b = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (params, x))
group_ids, ids = np.arange(500) % 3, np.arange(500) // 5
known = jnp.full(500, -1).at[0].set(1)
smaller, larger = jaxem.Mixture(jaxem.FullNormal(), 1), model
parts = ["first.npy", "second.npy"]
for part, rows in zip(parts, np.split(np.asarray(x), 2)):
    np.save(part, rows)
"""
# work that is more than a test needs
LESS = {
    "n_replicates=1000": "n_replicates=20",
    "range(1, 10)": "range(1, 3)",
    "key, x).p_value": "key, x, n_replicates=20).p_value",
}
SAID = {
    "Write the joint, get EM": r"prints `(0\.62\d+ 0\.13\d+)`",
    "A fit inside a larger model": r"# (-3\.\d+ and 0\.\d+)",
}


def test_the_first_block_prints_what_it_says():
    assert README[0].heading == "Example"
    text, said = printed(README[0].code, {"__name__": "readme"}), README[0].output
    gradient = said.index("[[-0.000")  # of a fit stopped by rounding: its last digits are the machine's
    assert_says(text[: text.rindex("[[")], said[:gradient])
    got, expected = (np.array(NUMBER.findall(part), float) for part in (text[text.rindex("[[") :], said[gradient:]))
    np.testing.assert_allclose(got, expected, rtol=0.05, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("block", README[1:], ids=lambda block: block.heading)
def test_every_block_of_the_readme_runs(block):
    if block.heading == "Pictures":
        pytest.importorskip("matplotlib")
    names: dict[str, Any] = {"__name__": "readme"}
    printed(README[0].code, names)
    printed(GIVEN, names)
    code = block.code
    for much, little in LESS.items():
        code = code.replace(much, little)
    text = printed(code, names)
    if block.heading in SAID:
        said = re.search(SAID[block.heading], (REPOSITORY / "README.md").read_text("utf-8"))
        assert said is not None
        got, expected = (np.array(NUMBER.findall(part), float) for part in (text, said[1]))
        np.testing.assert_allclose(got, expected, rtol=0.01)


# --- commands and names. What installs is run by .ci/run, from these very lines


@pytest.mark.parametrize("document", ["README.md", "notebooks/ten_tasks.md"])
def test_commands_extras_and_names_exist(document):
    text = (REPOSITORY / document).read_text("utf-8")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = [name for group in re.findall(r"(?:jaxem|\.)\[([a-z\d,]+)\]", text) for name in group.split(",")]
    assert named and not set(named) - set(extras)
    modules = re.findall(r"python -m ((?:benchmarks|jaxem)[\w.]*)", text)
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    public = re.findall(r"jaxem\.(\w+)", re.sub(r"jaxem\.(sklearn|plots|testing|\w+\.py)\b|github\S+", "", text))
    assert not [name for name in public if not hasattr(jaxem, name)]
    files = [path for path in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in path]
    assert not [path for path in files if not ((REPOSITORY / document).parent / path).exists()]


@pytest.mark.slow
def test_the_main_command_runs(capsys, tmp_path):
    from jaxem.__main__ import main

    assert main(["--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "3,146 aircraft" in said and "starts whose regimes hold 5 flights or more each, none at the floor" in said
    with (tmp_path / "out" / "flights.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    weights = np.array([[float(row["weight_0"]), float(row["weight_1"])] for row in rows])
    held = weights * np.array([float(row["n_flights"]) for row in rows])[:, None]
    assert np.mean(((held > 0) & (held < 4.99)).any(1)) <= 0.01  # no aircraft rests on two or three flights


# --- the pages on adding a family, a model, an algorithm


@pytest.mark.slow
@pytest.mark.parametrize("page", ["add_a_family", "add_a_model", "add_an_algorithm"])
def test_what_a_page_builds_works_and_prints_what_it_says(page):
    names: dict[str, Any] = {}
    shown = blocks(f"docs/{page}.md")
    assert any(block.output for block in shown)
    for block in shown:
        assert_says(printed(block.code, names), block.output)
