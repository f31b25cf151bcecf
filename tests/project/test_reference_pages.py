"""Every public name is documented with an example, and the reference pages hold all of them."""

import html
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import jaxem
import jaxem.plots
import jaxem.sklearn
import jaxem.testing
from jaxem import bijections

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = (jaxem, bijections, jaxem.plots, jaxem.sklearn, jaxem.testing)
PUBLIC = [(module, name) for module in MODULES for name in module.__all__]


@pytest.mark.parametrize("module, name", PUBLIC, ids=[f"{module.__name__}.{name}" for module, name in PUBLIC])
def test_a_public_name_has_an_example(module, name):
    item = getattr(module, name)
    if isinstance(item, bijections.Bijection):  # constants: the example of the module has them all
        assert f"bijections.{name}:" in (module.__doc__ or "")
        return
    own = item.__doc__ if inspect.isclass(item) or inspect.ismodule(item) else inspect.getdoc(item)
    assert re.search(r"^ *Example:\n +>>> ", own or "", flags=re.M)


def test_the_contents_name_everything():
    named = re.findall(r"`(?:jaxem\.)?(\w+)`", jaxem.__doc__ or "")
    assert sorted(set(named) - {"plots", "sklearn", "testing"}) == sorted(jaxem.__all__)
    assert len(named) == len(set(named))


@pytest.mark.slow
def test_the_pages_of_the_readme_have_every_name_once(tmp_path):
    (line,) = re.findall(r"python -m (pdoc .+)", (REPOSITORY / "README.md").read_text("utf-8"))
    assert f"- run: python -m {line}\n" in (REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8")
    command = [str(tmp_path) if word == "reference" else word for word in shlex.split(line)]
    done = subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    pages = {path.relative_to(tmp_path).with_suffix("").as_posix() for path in tmp_path.rglob("*.html")}
    assert pages == {"index", "jaxem", "jaxem/bijections", "jaxem/plots", "jaxem/sklearn", "jaxem/testing"}
    for module in MODULES:
        page = (tmp_path / module.__name__.replace(".", "/")).with_suffix(".html").read_text("utf-8")
        anchors = re.findall(r'<section id="(\w+)">', page)
        assert sorted(anchors) == sorted(set(module.__all__) - {"bijections"})
        text = html.unescape(re.sub(r"<[^>]+>", "", page))
        assert not re.search(r"\b0x[0-9a-f]{6}", text)  # an address in memory
        inner = re.findall(r"\bjaxem\.[a-z_.]+\.\w+", text)  # where the code lies is nobody's business
        assert not [path for path in inner if not path.startswith(("jaxem.bijections.", "jaxem.testing."))]
