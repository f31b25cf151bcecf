"""The layout of the library: which module may import which, and what no file may contain."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "jaxem"

# A new module is added here, on the lowest floor with everything it imports below it. A folder stands for its modules.
FLOORS = {
    0: ("_tree", "arguments", "_bessel", "_concentration", "_linalg", "_special", "_typing"),
    1: (
        "protocols",
        "result",
        "priors",
        "informative",
        "initialize",
        "chunks",
        "components",
        "criteria",
        "design",
        "domains",
        "fold",
        "hosts",
        "identity",
        "ascent",
        "averages",
        "joint",
        "extrapolation",
        "stopping",
        "rules",
        "maximize",
        "merging",
        "bijections",
        "features",
        "frames",
        "labels",
        "ragged",
        "scales",
        "parts",
        "solvers",
    ),
    2: ("models", "families"),
    3: ("algorithms",),
    4: (
        "loop",
        "fitting",
        "batch",
        "group_lanes",
        "grouping",
        "derivative",
        "equations",
        "feeding",
        "sharding",
        "lanes",
        "rounds",
        "restarts",
        "streams",
        "checkpoint",
        "readers",
    ),
    5: ("candidates", "diagnostics", "uncertainty", "resampling", "likelihood_ratio", "selection"),
    6: ("__main__", "plots", "sklearn", "io", "structure", "flights"),
    7: ("__init__",),
    8: ("cli",),
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
FOLDERS = ("models", "families", "algorithms")  # these never import each other, whatever their floors
MAX_LINES = 500
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
    if top == bottom and top in FOLDERS:
        return None
    if top in FOLDERS and bottom in FOLDERS:
        return f"{importer} imports {imported}: {top}/ and {bottom}/ do not import each other"
    if bottom == "__main__":
        return f"{importer} imports __main__, which is for the command line only"
    if top == "__main__" or FLOOR[bottom] <= FLOOR[top]:
        return None  # __main__ stands on top of everything, as a user does
    return (
        f"{importer} (floor {FLOOR[top]}) imports {imported} (floor {FLOOR[bottom]}): only floors below may be imported"
    )


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


def test_every_module_has_a_floor():
    unknown = sorted({name for name in MODULES if name.split(".")[0] not in FLOOR})
    assert not unknown, f"add to FLOORS in tests/test_floors.py, each on its floor: {unknown}"


def test_folders_are_two_levels_deep():
    deep = sorted(name for name in MODULES if name.count(".") > 1)
    assert not deep, f"folders of the library are two levels deep at most: {deep}"


def test_modules_import_only_from_floors_below():
    known = {name: imported for name, imported in import_graph().items() if name.split(".")[0] in FLOOR}
    errors = [
        floor_error(name, target)
        for name, targets in known.items()
        for target in targets
        if target.split(".")[0] in FLOOR
    ]
    assert not any(errors), "\n".join(sorted(filter(None, errors)))


def test_imports_have_no_cycle():
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("models.mixture", "fold", True),
        ("families.normal", "families._gaussian", True),
        ("loop", "fitting", True),
        ("sklearn", "fitting", True),
        ("__main__", "__init__", True),
        ("models.mixture", "families.normal", False),
        ("algorithms.em", "models.mixture", False),
        ("algorithms.em", "families", False),
        ("fold", "loop", False),
        ("_tree", "__init__", False),
        ("fitting", "io", False),
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


def run_python(code: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_library_imports_nothing_heavy():
    heavy = {"optax", "chex", "tqdm", "matplotlib", "sklearn"}
    assert run_python(f"import sys, jaxem; print(sorted({heavy!r} & set(sys.modules)))") == "[]"


def test_importing_the_library_neither_starts_a_backend_nor_changes_the_configuration():
    code = (
        "import jax; before = dict(jax.config.values); import jaxem; assert before == jax.config.values; "
        "jax.config.update('jax_num_cpu_devices', 3); print(len(jax.devices()))"  # an error once a backend is up
    )
    assert run_python(code) == "3"
