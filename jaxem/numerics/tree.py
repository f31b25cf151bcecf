"""Small helpers on pytrees: casting, selecting, counting rows."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._typing import Array, PyTree
from .arguments import as_int

T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Registers a frozen dataclass as a pytree: fields with metadata static=True are structure, the rest are leaves.

    `jax.tree_util.register_dataclass` leaves the class out of the comparison of two tree structures, so that two
    look-alikes, such as two families without fields of their own, can be taken for each other in jit's cache.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    leaves = tuple(f.name for f in fields if not f.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in leaves)

    def flatten(spec: Any) -> tuple[tuple, tuple]:
        return tuple(getattr(spec, name) for name in leaves), (cls, *(getattr(spec, name) for name in static))

    def flatten_with_keys(spec: Any) -> tuple[tuple, tuple]:
        values, structure = flatten(spec)
        return tuple(zip(keys, values, strict=True)), structure

    def unflatten(structure: tuple, values: Iterable) -> Any:
        spec = object.__new__(cls)
        for name, value in (*zip(static, structure[1:], strict=True), *zip(leaves, values, strict=True)):
            object.__setattr__(spec, name, value)
        return spec

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    if static:
        _take_whole_numbers(cls, static)
    return cls


def _take_whole_numbers(cls: Any, static: tuple[str, ...]) -> None:
    """Lets whole numbers of NumPy pass for ints in fields that are structure, alone and in tuples."""
    init = cls.__init__

    @functools.wraps(init)
    def with_ints(self: Any, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **keywords)
        for name in static:
            value = getattr(self, name)
            whole = tuple(map(as_int, value)) if type(value) is tuple else as_int(value)
            if whole is not value:
                object.__setattr__(self, name, whole)

    cls.__init__ = with_ints


def tree_where(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """Selects whole trees by one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def is_finite(tree: PyTree) -> Array:
    """Whether all numbers of all floating leaves are finite: ()."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.asarray([True, *[jnp.all(jnp.isfinite(leaf)) for leaf in leaves]]))


def sizes(leaf: Array) -> Array:
    """The sizes of an array's entries: root mean squares over the leading axis, or of all where that is zero."""
    rms = jnp.sqrt(jnp.mean(jnp.square(leaf), 0, keepdims=True)) if leaf.ndim else jnp.abs(leaf)
    overall = jnp.sqrt(jnp.mean(jnp.square(leaf)))
    size = jnp.where(rms > 0, rms, jnp.where(overall > 0, overall, 1))
    return jnp.broadcast_to(size, leaf.shape)


def is_tracing(*trees: PyTree) -> bool:
    """Whether any leaf is a tracer, that is, has no value yet."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def floating(tree: PyTree) -> tuple[list, Callable[[list], PyTree]]:
    """The leaves that have a derivative, and the tree of such leaves; of a tree of tangents, those of the same."""
    leaves, structure = jax.tree.flatten(tree)
    own = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

    def merge(floats: list) -> PyTree:
        new = iter(floats)
        merged = [next(new) if is_own else leaf for is_own, leaf in zip(own, leaves, strict=True)]
        return jax.tree.unflatten(structure, merged)

    return [leaf for is_own, leaf in zip(own, leaves, strict=True) if is_own], merge


def key_data(leaf: Any) -> Any:
    """The numbers of random keys; anything else as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def is_key(leaf: Any) -> bool:
    """Whether an array holds random keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def n_rows(data: PyTree, name: str = "data") -> int:
    """The size of the leading axis that all leaves of `data` share.

    Raises:
        ValueError: if there is no leaf, a leaf is a scalar, or the leading axes differ.
    """
    leaves = jax.tree.leaves(data)
    if not leaves:
        raise ValueError(f"{name}: expected at least one array, got an empty tree; pass an array of shape (n, ...).")
    shapes = [np.shape(leaf) for leaf in leaves]
    if any(len(shape) == 0 for shape in shapes):
        raise ValueError(
            f"{name}: expected arrays with a leading axis of observations, got a scalar leaf; lists are trees: pass "
            "arrays."
        )
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"{name}: expected leaves that share their leading axis of observations, got shapes {shapes}; "
            "put the observations first in every "
            "leaf; series of different lengths become data by jaxem.sequences([series, …])."
        )
    return shapes[0][0]


def float_dtype(data: PyTree, name: str = "data") -> np.dtype:
    """The floating dtype that a fit on `data` works in: the data's own, or the default for integers.

    Raises:
        TypeError: if a leaf is complex, half precision, or not numeric.
    """
    floats = set()
    for leaf in jax.tree.leaves(data):
        dtype = np.dtype(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
        if dtype.kind in "OSUMmV" and dtype.name != "bfloat16":
            raise TypeError(f"{name}: expected numbers, got dtype {dtype}; encode them as numbers first.")
        if dtype.kind == "c" or dtype.name in ("float16", "bfloat16") or dtype.name.startswith("float8"):
            raise TypeError(f"{name}: expected float32, float64 or integers, got {dtype}; use .astype('float32').")
        if dtype.kind == "f":
            floats.add(jax.dtypes.canonicalize_dtype(dtype))
    if not floats:
        return np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
    return np.dtype(jnp.result_type(*floats))


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Casts every leaf to an array; floating leaves and Python numbers to `dtype`, strongly typed."""

    def cast(leaf: Any) -> Any:
        if type(leaf) in (float, int) or isinstance(leaf, np.floating):
            return np.asarray(leaf, dtype)
        leaf_dtype = getattr(leaf, "dtype", None)
        if leaf_dtype is None:
            leaf = np.asarray(leaf)
            leaf_dtype = leaf.dtype
        if jnp.issubdtype(leaf_dtype, jax.dtypes.prng_key):
            return leaf
        if jnp.issubdtype(leaf_dtype, jnp.floating):
            return leaf if leaf_dtype == dtype and not getattr(leaf, "weak_type", False) else leaf.astype(dtype)
        return leaf

    return jax.tree.map(cast, tree)


def cast_data(tree: PyTree, dtype: Any) -> PyTree:
    """Casts all numeric leaves of `tree` to `dtype`, integers and booleans included."""
    return jax.tree.map(lambda leaf: leaf if getattr(leaf, "dtype", None) == dtype else jnp.asarray(leaf, dtype), tree)


def cast_floats_of(data: PyTree, dtype: Any) -> PyTree:
    """Arrays of the leaves: floats cast to `dtype`, whole numbers and booleans as they are.

    Raises:
        ValueError: if 32 bits do not hold a whole number and jax's 64-bit types are off.
    """

    def cast(leaf: Any) -> Any:
        kind = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if np.dtype(kind).kind not in "iub":
            return leaf if kind == dtype else jnp.asarray(leaf, dtype)
        narrow = jax.dtypes.canonicalize_dtype(kind)
        if narrow != kind and np.size(leaf) and not is_tracing(leaf):
            limits = np.iinfo(narrow)
            if not (limits.min <= np.min(leaf) and np.max(leaf) <= limits.max):
                raise ValueError(
                    f"data: expected integers that {narrow} holds, as jax_enable_x64 is off, got {np.min(leaf)} to "
                    f"{np.max(leaf)}; jax.config.update('jax_enable_x64', True), or pass them as floats."
                )
        return leaf if kind == narrow else jnp.asarray(leaf, narrow)

    return jax.tree.map(cast, data)


def side_by_side(tree: PyTree) -> Array:
    """All numbers of a row in one row, as floats: leaves (n, …) to (n, d)."""
    leaves, dtype = jax.tree.leaves(tree), float_dtype(tree)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in leaves], 1)


def take(tree: PyTree, index: Any) -> PyTree:
    """Indexes the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


_ROUNDING = 32  # times eps: a step of this relative size is rounding, and nothing is extrapolated from it


def is_rounding(step: Array, flat: Array, size: Array) -> Array:
    """Whether a step (p,) from `flat` is no more than the rounding of an EM step."""
    eps = jnp.finfo(flat.dtype).eps
    reach = jnp.max(jnp.maximum(jnp.abs(flat) / size, 1))
    return jnp.max(jnp.abs(step) / size) <= _ROUNDING * eps * reach
