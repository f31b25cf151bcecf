"""The notebooks: committed as executed, and executed again at reduced size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import first

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_000_000
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
"""


def test_there_are_notebooks():
    assert NOTEBOOKS and all(path.stem[:2].isdigit() for path in NOTEBOOKS)


@every_notebook
def test_a_notebook_is_committed_as_it_ran(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))  # once, from top to bottom
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < MAX_BYTES


@every_notebook
def test_a_notebook_opens_with_what_its_reader_will_be_able_to_do(path):
    first = json.loads(path.read_text("utf-8"))["cells"][0]
    text = "".join(first["source"])
    assert first["cell_type"] == "markdown" and text.startswith("# ")
    assert "you will be able to" in text


@pytest.mark.slow
@first("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "XLA_FLAGS")}
    own = {"JAXEM_NOTEBOOKS_SMALL": "1", "PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(path.parent)],
        capture_output=True, text=True, env={**kept, **own}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
