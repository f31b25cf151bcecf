"""What users call stays: `public_names.txt` has every public name with its parameters, and only grows.

After a name was added: `python tests/project/test_public_names.py` writes the list anew; look at its diff.
"""

import inspect
from pathlib import Path
from typing import Any

import jaxem
import jaxem.plots
import jaxem.sklearn

STORED = Path(__file__).parent / "public_names.txt"
MODULES = (jaxem, jaxem.bijections, jaxem.plots, jaxem.sklearn)


def _parameters(thing: Any) -> list[str]:
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return []
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name + ("" if p.default is p.empty else "=") for p in named]


def public_names() -> dict[str, list[str]]:
    """Names, of methods too, and their parameters: `*` before what goes by keyword, `=` behind what has a default."""
    found = {}
    for module in MODULES:
        for name in module.__all__:
            thing, full = getattr(module, name), f"{module.__name__}.{name}"
            found[full] = _parameters(thing) if callable(thing) else []
            if inspect.isclass(thing) and module is jaxem:
                methods = inspect.getmembers(thing, inspect.isfunction)
                found |= {f"{full}.{method}": _parameters(fn) for method, fn in methods if not method.startswith("_")}
    return found


def _stored() -> dict[str, list[str]]:
    lines = [line.partition(":") for line in STORED.read_text("utf-8").splitlines()]
    return {name: parameters.split() for name, _, parameters in lines}


def test_every_public_name_and_its_parameters_are_where_they_were():
    now, bare = public_names(), lambda parameter: parameter.strip("*=")
    for name, parameters in _stored().items():
        assert name in now, f"{name} is gone"
        before = [bare(one) for one in parameters]
        assert [bare(one) for one in now[name] if bare(one) in before] == before, name
        for one in now[name]:
            is_asked_for = bare(one) not in before or one + "=" in parameters
            assert one.endswith("=") or not is_asked_for, f"{name} asks for {one}"


def test_what_is_new_stands_in_the_list():
    assert not [name for name in public_names() if name not in _stored()]


if __name__ == "__main__":
    STORED.write_text(
        "".join(f"{name}: {' '.join(those)}\n" for name, those in sorted(public_names().items())), "utf-8"
    )
