"""The layout of the library: which module may import which, and what no file may contain."""

import ast
import os
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "jaxem"

# A folder imports only folders on the floors below its own, and its own modules: this is the tree of the library. A
# module at the root stands alone. Highest first.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("__init__", "plots", "sklearn", "testing"),
    ("inference",),
    ("drivers",),
    ("running",),
    ("loop",),
    ("algorithms", "families", "models", "sources"),
    ("fold", "storage"),
    ("latent",),
    ("contracts",),
    ("bijections",),
    ("numerics",),
    ("_typing",),
)
FLOOR = {name: -floor for floor, names in enumerate(FLOORS) for name in names}
MAX_LINES = 500
MOST_AT_THE_ROOT = 5
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".ipynb", ".csv", ".txt", ".cfg", ".sh", ""}


def module_name(path: Path) -> str:
    """`jaxem/families/normal.py` -> `families.normal`, its `__init__.py` -> `families`, the root -> `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, source: str, is_package: bool, modules) -> set[str]:
    """The modules of the library that a source imports anywhere, in functions and type-checking blocks too."""
    package = ["jaxem"] if name == "__init__" else ["jaxem", *name.split(".")][: None if is_package else -1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{target}.{alias.name}" for alias in node.names}
    resolved = set()
    for full in found:
        if full.split(".")[0] != "jaxem":
            continue
        parts = full.split(".")[1:]
        while parts and ".".join(parts) not in modules:
            parts.pop()  # the last part was a name inside a module
        resolved.add(".".join(parts) or "__init__")
    return resolved - {name}


def floor_error(importer: str, imported: str) -> str | None:
    """Says why this import is not allowed; None if it is."""
    top, bottom = importer.split(".")[0], imported.split(".")[0]
    if top == bottom or FLOOR[bottom] < FLOOR[top]:
        return None
    return f"{importer} imports {imported}, but {bottom} does not stand below {top}"


def import_graph() -> dict[str, set[str]]:
    return {
        name: imports_of(name, path.read_text("utf-8"), path.name == "__init__.py", MODULES)
        for name, path in MODULES.items()
    }


def repository_files() -> list[Path]:
    """Text files of the repository, without build products and hidden folders other than the project's own."""
    found = []
    for folder, folders, names in os.walk(REPOSITORY):
        folders[:] = [
            f
            for f in folders
            if f in (".github", ".ci") or not (f.startswith((".", "__pycache__")) or f in ("build", "dist", "out"))
        ]
        found += [Path(folder) / name for name in names if Path(name).suffix in TEXT_SUFFIXES]
    return sorted(found)


def test_every_folder_has_a_floor_and_the_root_is_small():
    assert {name.split(".")[0] for name in MODULES} == set(FLOOR)
    at_the_root = [path.name for path in sorted(PACKAGE.glob("*.py"))]
    assert len(at_the_root) <= MOST_AT_THE_ROOT, at_the_root


def test_the_contributing_guide_shows_these_floors():
    """The root's modules apart, which it says in words."""
    text = (REPOSITORY / ".github/CONTRIBUTING.md").read_text("utf-8")
    table = re.findall(r"^\| ((?:`[a-z_.]+`(?:, )?)+) \|", text, flags=re.M)
    shown = [tuple(name.removesuffix(".py") for name in re.findall(r"`([a-z_.]+)`", row)) for row in table]
    floors = [tuple(name for name in names if not name.startswith("_")) for names in FLOORS]
    assert shown == [names for names in floors if names]


def test_the_page_on_a_fit_names_files_that_there_are():
    text = (REPOSITORY / "docs/how_a_fit_runs.md").read_text("utf-8")
    folders = "|".join(name for names in FLOORS for name in names)
    named = set(re.findall(rf"\b((?:{folders})/[a-z_]+)\b", text))
    assert len(named) > 5
    assert not [name for name in named if not (PACKAGE / f"{name}.py").exists()]


def test_modules_import_only_from_floors_below():
    errors = [floor_error(name, target) for name, targets in import_graph().items() for target in targets]
    assert not any(errors), "\n".join(sorted(filter(None, errors)))


def test_imports_have_no_cycle():
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("models.mixture", "fold.folded", True),
        ("families.normal.full", "families.normal._normal", True),
        ("loop.run", "loop.loop", True),
        ("sklearn._mixture", "drivers.single", True),
        ("__main__", "__init__", True),
        ("models.mixture", "families.normal.full", False),
        ("algorithms.em", "models.mixture", False),
        ("models.mixture", "algorithms.em", False),
        ("fold.folded", "loop.loop", False),
        ("numerics.tree", "__init__", False),
        ("drivers.single", "inference.selection", False),
        ("__init__", "__main__", False),
    ],
)
def test_floor_rules(importer, imported, allowed):
    assert (floor_error(importer, imported) is None) == allowed


def test_imports_are_read_in_every_form():
    modules = {"__init__", "_tree", "fold", "families", "families.normal", "families.discrete"}
    source = (
        "import jaxem, jax.numpy, jaxem.fold\nfrom . import discrete\nfrom .. import _tree as t\n"
        "def f():\n    from jaxem.families.normal import FullNormal\n"
    )
    expected = {"__init__", "fold", "_tree", "families.discrete"}
    assert imports_of("families.normal", source, False, modules) == expected
    assert imports_of("families", "from .normal import FullNormal", True, modules) == {"families.normal"}
    assert imports_of("__init__", "from .fold import total\nfrom jaxem._tree import add", True, modules) == {
        "fold",
        "_tree",
    }


def test_no_file_reaches_the_line_limit():
    counted = [
        path
        for path in repository_files()
        if path.suffix in (".py", ".md", ".toml", ".yml") or path.parent.name == ".ci"
    ]
    lines = {str(path.relative_to(REPOSITORY)): len(path.read_text("utf-8").splitlines()) for path in counted}
    long = {name: count for name, count in lines.items() if count >= MAX_LINES}
    assert lines and not long, f"files of {MAX_LINES} lines or more: {long}"


def test_one_module_imports_by_a_name_that_is_computed():
    """It carries out statements that stand in the sources, so that the tests above see them."""
    importing = [
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if getattr(node, "id", None) == "__import__"
        or getattr(node, "attr", None) == "import_module"
        or "import_module" in [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
    ]
    assert set(importing) == {"numerics.on_demand"}


def test_the_library_does_not_print():
    errors = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if name != "__main__" and not name.startswith("cli.") and isinstance(node, ast.Call):
                called = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
                if called == "print":
                    errors.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert not errors, f"print in the library: {errors}"


def test_the_repository_names_no_path_outside_itself():
    forbidden = ("/wo" + "rk/", "../sha" + "red")
    errors = [
        f"{path.relative_to(REPOSITORY)}: {word}"
        for path in repository_files()
        for word in forbidden
        if word in path.read_text("utf-8")
    ]
    assert not errors, "\n".join(errors)
