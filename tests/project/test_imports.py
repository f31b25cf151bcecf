"""What `import jaxem` and a first fit import: nothing that they do not need, and every name when it is asked for."""

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxem
from jaxem.numerics.on_demand import class_named, on_demand

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES_OF = "[name for name in sys.modules if name.split('.')[0] == 'jaxem']"
HEAVY = {"optax", "chex", "scipy.stats", "tqdm", "matplotlib", "pandas", "polars", "pyarrow", "sklearn", "orbax"}


def run_python(code: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_library_imports_what_says_what_there_is():
    imported = run_python(f"import sys, jaxem; print(*{MODULES_OF}, 'jax' in sys.modules)").split()
    packages = {"jaxem", "jaxem.algorithms", "jaxem.families", "jaxem.models"}
    assert set(imported) == packages | {"jaxem.numerics", "jaxem.numerics.on_demand", "False"}


def test_the_first_fit_imports_no_other_family_algorithm_or_model_and_nothing_heavy():
    fit = (
        "import sys, numpy as np, jaxem; x = np.random.default_rng(0).normal(size=(20, 1)); "
        "model = jaxem.Mixture(jaxem.FullNormal(), 2); "
        "start = jaxem.MixtureParams(np.full(2, 0.5), jaxem.NormalParams(x[:2], np.ones((2, 1, 1)))); "
        "jaxem.fit(model, start, x, max_iter=1)"
    )
    imported = set(run_python(f"{fit}; print(*sys.modules)").split())
    assert not HEAVY & imported
    ours = {name.removeprefix("jaxem.") for name in imported if name.startswith("jaxem.")}
    folders = ("inference", "plots", "sklearn", "cli", "families.columns", "families.regression", "families.composed")
    assert not [name for name in ours if name.startswith(folders)]
    public = {name for name in ours if name.startswith(("models.", "algorithms.")) and "._" not in name}
    assert public == {"models.gate", "models.mixture", "algorithms.em", "algorithms.squarem"}


def test_all_names_together_start_no_backend_and_change_no_configuration():
    """So that a name which is first asked for inside of a trace makes no array of it."""
    code = (
        "import sys, jax; before = dict(jax.config.values); from jaxem import *; import jaxem; "
        f"assert not {HEAVY!r} & set(sys.modules); assert before == jax.config.values; "
        "assert all(name in vars(jaxem) for name in jaxem.__all__); "
        "jax.config.update('jax_num_cpu_devices', 3); print(len(jax.devices()))"  # an error once a backend is up
    )
    assert run_python(code) == "3"


def test_every_name_is_offered_is_itself_and_stays():
    for name in jaxem.__all__:
        assert getattr(jaxem, name) is getattr(jaxem, name)
        assert getattr(getattr(jaxem, name), "__name__", name) in (name, f"jaxem.{name}")
    assert set(jaxem.__all__) <= set(dir(jaxem))
    for folder in (jaxem.algorithms, jaxem.families, jaxem.models):
        assert all(getattr(jaxem, name) is getattr(folder, name) for name in folder.__all__)


def test_names_that_there_are_not_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'jaxem' has no attribute 'Fullnormal'"):
        print(jaxem.Fullnormal)  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'Fullnormal' from 'jaxem'"):
        from jaxem import Fullnormal  # type: ignore[attr-defined]  # noqa: F401
    assert class_named("Fullnormal") is None and class_named("FullNormal") is jaxem.FullNormal


def test_a_block_refuses_what_is_not_below_its_package_and_leaves_imports_as_they_were():
    before = builtins.__import__
    with pytest.raises(ImportError, match="this: expected `from .module import Name` on demand, got 'math'"):
        exec("with on_demand(globals()):\n    import math", {"__name__": "this", "on_demand": on_demand})
    assert builtins.__import__ is before
