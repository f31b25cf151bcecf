"""What tells a fit from every other: digests of data on the devices, of models, options and functions. Host code."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, PyTree
from ..numerics import tree as _tree


def fingerprint(data: PyTree, sample_weight: Array | None) -> Array:
    """A number that tells the rows of positive weight from others, whatever their order: () uint32, adds up."""
    leaves = jax.tree.leaves(data) + ([] if sample_weight is None else [sample_weight])
    row = jnp.zeros(leaves[0].shape[0], jnp.uint32)
    for leaf in leaves:
        bits = _bits(leaf.reshape(leaf.shape[0], -1))
        place = 2 * jnp.arange(bits.shape[1], dtype=jnp.uint32) + 1
        mixed = (bits ^ (bits >> 15)) * (place * jnp.uint32(0x9E3779B1))[None]  # odd numbers: nothing is lost
        row = (row ^ jnp.sum(mixed ^ (mixed >> 13), 1, dtype=jnp.uint32)) * jnp.uint32(0x01000193)
    row = row ^ (row >> 15)
    if sample_weight is not None:
        row = jnp.where(sample_weight > 0, row, 0)
    return jnp.sum(row, dtype=jnp.uint32)


def _bits(values: Array) -> Array:
    """Numbers as uint32, of the same shape."""
    if values.dtype.itemsize < 4:
        return values.astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return bits if bits.ndim == values.ndim else bits[..., 0] ^ (bits[..., 1] * jnp.uint32(31))


def identity_of(*trees: PyTree) -> str:
    """Tells what is given from anything else, in another process too; functions by what they do and close over."""
    digest = hashlib.sha256()
    _digest(trees, digest.update, set())
    return digest.hexdigest()


def _digest(given: Any, add: Callable[[bytes], None], seen: set[int]) -> None:
    """Adds types and values, leaf by leaf."""
    say = lambda text: add(re.sub(r" at 0x[0-9a-f]+", "", f"{text};").encode())  # noqa: E731
    if isinstance(given, (jax.Array, np.ndarray, np.generic)):
        array = np.ascontiguousarray(_tree.key_data(given))
        say(f"{array.dtype.str}{array.shape}{jax.random.key_impl(jnp.asarray(given)) if _tree.is_key(given) else ''}")
        return add(array.tobytes())
    if given is None or isinstance(given, (str, bytes, int, float, complex)):
        return say(f"{type(given).__name__}{given!r}")
    if id(given) in seen:  # functions may refer to themselves
        return say("again")
    seen = seen | {id(given)}
    say(type(given).__name__)
    if isinstance(given, (set, frozenset)):  # whose order differs from process to process
        parts = sorted(identity_of(member) for member in given)
    elif isinstance(given, dict):
        parts = [part for item in given.items() for part in item]
    elif isinstance(given, (tuple, list)):
        parts = list(given)
    elif isinstance(given, jax.tree_util.PyTreeDef):
        parts = [given.node_data(), *given.children()]
    elif isinstance(given, partial):
        parts = [given.func, given.args, given.keywords]
    elif isinstance(given, CodeType):
        parts = [given.co_code, given.co_names, given.co_consts]
    elif isinstance(given, FunctionType):
        cells = [cell.cell_contents for cell in given.__closure__ or ()]
        parts = [given.__qualname__, given.__code__, given.__defaults__, given.__kwdefaults__, cells]
    elif isinstance(given, MethodType):
        parts = [given.__func__, given.__self__]
    elif isinstance(given, type):
        parts = [repr(given), *_methods(given)]
    elif hasattr(given, "__wrapped__"):  # jax.jit, jax.custom_jvp, functools.cache
        parts = [given.__wrapped__]
    elif is_dataclass(given):
        parts = [type(given), *(getattr(given, field.name) for field in fields(given))]
    else:
        leaves, structure = jax.tree.flatten(given)
        is_leaf = len(leaves) == 1 and leaves[0] is given
        parts = _of_leaf(given) if is_leaf else [structure, *leaves]
    say(str(len(parts)))
    for part in parts:
        _digest(part, add, seen)


def _methods(cls: type) -> list:
    """The code of a class that is not the library's own."""
    if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return []
    own = sorted(vars(cls).items())
    return [each for name, each in own if isinstance(each, FunctionType) and (name[:2] != "__" or name == "__call__")]


def _of_leaf(given: Any) -> list:
    """What tells an object of another kind from others: its words; if those are an address, class and attributes."""
    words = repr(given)
    if " at 0x" not in words:
        return [words]
    slots = [name for cls in type(given).__mro__ for name in getattr(cls, "__slots__", ())]
    return [type(given), *sorted(getattr(given, "__dict__", {}).items()), *(getattr(given, s, None) for s in slots)]
