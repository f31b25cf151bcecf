"""A tree of known classes as plain JSON and a list of arrays, and back. Host code.

Nothing is looked up but names: of the library's own classes, and of what the caller hands in. No code comes out of it.

    null, true, 3, 0.5, "a"                     themselves
    {"array": 2, "of": "jax" | "numpy" | "scalar"}
    {"tuple" | "list": [node, …]}, {"dict": [[key, node], …]}
    {"type" | "own": name, "fields": {field: node}}     NamedTuples and dataclasses
    {"constraints": node}, {"mask": node}, {"bijection": name}, {"value": name}     what a static field may hold
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import bijections
from ..bijections import Bijection, Constraints, constraints_of
from ..contracts.functions import Function, GaussHermite, PerRow, PerRowAndComponent
from ..contracts.holding import HeldEntries
from ..numerics import tree as _tree
from ..numerics.on_demand import class_named

_PLAIN = (type(None), bool, int, float, str)
_MAKERS = {"interval": bijections.interval, "greater_than": bijections.greater_than}


_INNER = {cls.__name__: cls for cls in (Function, GaussHermite, PerRow, PerRowAndComponent)}  # no user calls these


def _class_of_library(name: str) -> type | None:
    """The class that holds fields, of those that a file may name without the caller's help."""
    found = _INNER.get(name) or class_named(name)
    return found if isinstance(found, type) and _field_names(found) is not None else None


def named(own: Iterable[Any]) -> dict[str, Any]:
    """What the caller hands in, by name.

    Raises:
        ValueError: if two have the same name, or one has none.
    """
    found: dict[str, Any] = {}
    for item in own:
        name = _name_of(item)
        if name is None:
            raise ValueError(f"own: expected classes, functions and bijections, got {item!r}.")
        if name in found and found[name] is not item:
            raise ValueError(f"own: expected every name once, got {name!r} twice; rename one.")
        found[name] = item
    return found


def _name_of(item: Any) -> str | None:
    return item.name if isinstance(item, Bijection) else getattr(item, "__name__", None)


def _field_names(cls: type) -> tuple[str, ...] | None:
    """Of a NamedTuple or a dataclass."""
    if issubclass(cls, tuple):
        return getattr(cls, "_fields", None)
    return tuple(f.name for f in dataclasses.fields(cls)) if dataclasses.is_dataclass(cls) else None


# --- to JSON


def encode(trees: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Trees as JSON, and the arrays that they name by number.

    Args:
        trees: of concrete values, by name.
        own: what `named` makes of the caller's classes and functions.

    Raises:
        ValueError: on a value that has no form in a file, naming its place.
    """
    arrays: list[np.ndarray] = []
    return {name: _encode(tree, name, own, arrays) for name, tree in trees.items()}, arrays


def _encode(value: Any, where: str, own: Mapping, arrays: list[np.ndarray]) -> Any:
    def inner(child: Any, suffix: str) -> Any:
        return _encode(child, where + suffix, own, arrays)

    cls = type(value)
    if cls in _PLAIN:
        return value
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _encode_array(value, where, arrays)
    if isinstance(value, HeldEntries):
        flags = zip(value.flags, value.shapes, strict=True)
        leaves = [np.asarray(entries, bool).reshape(shape) for entries, shape in flags]
        return {"mask": inner(jax.tree.unflatten(value.structure, leaves), "")}
    if isinstance(value, Constraints):
        return {"constraints": inner(jax.tree.unflatten(value.structure, value.bijections), "")}
    if cls is Bijection:
        return _encode_bijection(value, where, own)
    if cls in (tuple, list):
        return {cls.__name__: [inner(child, f"[{i}]") for i, child in enumerate(value)]}
    if cls is dict and all(isinstance(key, str) for key in value):
        return {"dict": [[key, inner(child, f"[{key!r}]")] for key, child in value.items()]}
    fields = _field_names(cls)
    is_library = fields is not None and _class_of_library(cls.__name__) is cls
    if fields is not None and (is_library or own.get(cls.__name__) is cls):
        kind = "type" if is_library else "own"
        return {kind: cls.__name__, "fields": {field: inner(getattr(value, field), f".{field}") for field in fields}}
    name = _name_of(value)
    if name is not None and own.get(name) is value:
        return {"value": name}
    raise ValueError(_no_form(value, where, fields is not None))


def _no_form(value: Any, where: str, has_fields: bool) -> str:
    expected = "expected numbers, arrays, tuples, lists, dicts with names, and classes of the library"
    if has_fields and not isinstance(value, type):
        kind = f"a {type(value).__name__}, a class that is not the library's"
        return f"{where}: {expected}, got {kind}; pass own=[{type(value).__name__}], here and when the file is loaded."
    name = _name_of(value)
    if name is not None:
        return f"{where}: {expected}, got {name!r}, code that no file holds; pass own=[…] with it, here and to load."
    return f"{where}: {expected}, got {type(value).__name__}; make it a frozen dataclass or a NamedTuple."


def _encode_bijection(value: Bijection, where: str, own: Mapping) -> dict[str, Any]:
    if _known_bijection(value.name) is value:
        return {"bijection": value.name}
    if own.get(value.name) is value:
        return {"value": value.name}
    raise ValueError(_no_form(value, where, False))


def _encode_array(value: Any, where: str, arrays: list[np.ndarray]) -> dict[str, Any]:
    if _tree.is_tracing(value):
        raise ValueError(f"{where}: expected a concrete array, got a traced one; save outside of jit and grad.")
    if getattr(value.dtype, "kind", None) not in ("b", "i", "u", "f"):
        raise ValueError(f"{where}: expected real numbers or booleans, got dtype {value.dtype}.")
    arrays.append(np.asarray(value))
    of = "scalar" if isinstance(value, np.generic) else "numpy" if isinstance(value, np.ndarray) else "jax"
    return {"array": len(arrays) - 1, "of": of}


# --- from JSON


def decode(node: Any, arrays: list[np.ndarray], own: Mapping[str, Any]) -> Any:
    """One of the trees that were encoded.

    Raises:
        ValueError: on a name that is neither the library's nor among `own`, or fields that its class does not have.
        KeyError, TypeError, IndexError: on what `encode` does not make.
    """
    return _decode(node, arrays, own)


def _decode(node: Any, arrays: list[np.ndarray], own: Mapping) -> Any:
    inner = lambda child: _decode(child, arrays, own)  # noqa: E731
    if type(node) in _PLAIN:
        return node
    if not isinstance(node, dict) or not node:
        raise TypeError("a node is null, a number, a text or an object")
    if "fields" in node:
        fields = {field: inner(child) for field, child in node["fields"].items()}
        return _made(_class_of(node, own), fields)
    ((kind, content), *rest) = node.items()
    if kind == "array":
        return _as_it_was(arrays[content], node["of"])
    if rest:
        raise KeyError(kind)
    if kind in ("tuple", "list"):
        children = [inner(child) for child in content]
        return tuple(children) if kind == "tuple" else children
    if kind == "dict":
        return {key: inner(child) for key, child in content}
    if kind == "mask":
        return HeldEntries.of(inner(content))
    if kind == "constraints":
        return constraints_of(inner(content))
    if kind == "bijection":
        return _bijection(content)
    if kind == "value":
        return _of_caller(content, own)
    raise KeyError(kind)


def _as_it_was(array: np.ndarray, of: str) -> Any:
    if of == "scalar":
        return array[()]
    if of == "numpy" or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array
    return jnp.asarray(array)


def _of_caller(name: str, own: Mapping) -> Any:
    if name not in own:
        raise ValueError(f"holds {name!r}, which is yours and not the library's; pass own=[{name}].")
    return own[name]


def _class_of(node: Mapping, own: Mapping) -> type:
    if "own" in node:
        cls = _of_caller(node["own"], own)
        if not isinstance(cls, type) or _field_names(cls) is None:
            raise ValueError(f"own: expected {node['own']} to be a dataclass or NamedTuple, got {cls!r}.")
        return cls
    found = _class_of_library(node["type"])
    if found is None:
        raise ValueError(
            f"holds a {node['type']}, which this version of the library does not have; install a newer one."
        )
    return found


def _made(cls: type, fields: dict[str, Any]) -> Any:
    """As pytrees are unflattened, without the checks of a constructor. Fields added since have their defaults."""
    names = _field_names(cls) or ()
    unknown = [field for field in fields if field not in names]
    if unknown:
        raise ValueError(f"holds a {cls.__name__} with fields {unknown}, which it does not have here.")
    values = _defaults(cls) | fields
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"holds a {cls.__name__} without the fields {missing}, which it needs here.")
    if issubclass(cls, tuple):
        return cls(**values)
    spec = object.__new__(cls)
    for name in names:
        object.__setattr__(spec, name, values[name])
    return spec


def _defaults(cls: type) -> dict[str, Any]:
    if issubclass(cls, tuple):
        return dict(getattr(cls, "_field_defaults", {}))
    plain = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}  # type: ignore[arg-type]
    made = [f for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING]  # type: ignore[arg-type]
    return plain | {f.name: f.default_factory() for f in made}  # type: ignore[misc]


def _known_bijection(name: str) -> Bijection | None:
    for value in vars(bijections).values():
        if isinstance(value, Bijection) and value.name == name:
            return value
    call = re.fullmatch(r"(\w+)\(([^()]*)\)", name)
    if call is None or call[1] not in _MAKERS:
        return None
    return _MAKERS[call[1]](*map(float, call[2].split(",")))


def _bijection(name: str) -> Bijection:
    found = _known_bijection(name)
    if found is None:
        raise ValueError(f"holds the bijection {name!r}, which this version of the library does not have.")
    return found
