"""Which entries of params are held: a tree of booleans in a form that can be static."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .._typing import Params, PyTree
from ..numerics import tree as _tree


@dataclass(frozen=True)
class HeldEntries:
    """A tree of booleans, hashable.

    Attributes:
        structure: of the tree.
        shapes: of its leaves.
        flags: of its leaves, flattened.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    flags: tuple[tuple[bool, ...], ...]

    @classmethod
    def of(cls, mask: PyTree) -> "HeldEntries":
        """Of a tree of booleans and boolean arrays, concrete.

        Raises:
            ValueError: if a leaf is something else.
        """
        leaves, structure = jax.tree.flatten(mask)
        if _tree.is_tracing(leaves):
            raise ValueError("mask: expected concrete booleans, got traced ones; which entries are held is structure.")
        arrays = [np.asarray(leaf) for leaf in leaves]
        wrong = next((array.dtype for array in arrays if array.dtype != bool), None)
        if wrong is not None or not arrays:
            raise ValueError(f"mask: expected a tree of booleans, True where held, got {wrong or 'an empty tree'}.")
        return cls(structure, tuple(a.shape for a in arrays), tuple(tuple(a.ravel().tolist()) for a in arrays))

    def spread(self, params: Params) -> PyTree:
        """Booleans for every entry, shaped as the params.

        Raises:
            ValueError: if the mask names a leaf or an entry that the params do not have.
        """
        arrays = [np.asarray(flags, bool).reshape(shape) for flags, shape in zip(self.flags, self.shapes, strict=True)]
        mask = jax.tree.unflatten(self.structure, arrays)
        try:
            return jax.tree_util.tree_map_with_path(_spread, mask, params)
        except ValueError as error:
            if str(error).startswith("mask"):
                raise
            raise ValueError(
                f"mask: expected booleans shaped as the params, {_shape_of(params)}, got {_shape_of(mask)}, which "
                "names leaves that do not exist; give True or False for a whole subtree, or one a leaf or entry."
            ) from error


def _shape_of(tree: PyTree) -> str:
    return str(jax.tree.map(lambda leaf: np.shape(leaf), tree))


def _spread(path: Any, flag: np.ndarray, subtree: Params) -> PyTree:
    def one(own_path: Any, leaf: Any) -> np.ndarray:
        shape = np.shape(leaf)
        if flag.shape != shape[: flag.ndim] or (flag.ndim and own_path):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"mask{name}: expected a boolean or booleans {shape}, or of its leading axes, as params{name}, got "
                f"shape {flag.shape}."
            )
        return np.broadcast_to(flag.reshape(flag.shape + (1,) * (len(shape) - flag.ndim)), shape).copy()

    return jax.tree_util.tree_map_with_path(one, subtree)


def any_held(held: PyTree) -> bool:
    """Whether an entry is held."""
    return any(bool(np.any(leaf)) for leaf in jax.tree.leaves(held))


def all_held(held: PyTree) -> bool:
    """Whether every entry is held."""
    return all(bool(np.all(leaf)) for leaf in jax.tree.leaves(held))


def held_leafwise(held: PyTree, free: PyTree, owner: Any, entries: bool) -> PyTree:
    """Which free coordinates are held, where each leaf of the params has its own.

    Args:
        held: booleans shaped as the params.
        free: the free coordinates, or their shapes.
        owner: for the message.
        entries: whether entries have coordinates of their own in leaves whose shape stays.

    Raises:
        ValueError: if a leaf is held in part, and its coordinates mix its entries.
    """

    def one(path: Any, flags: np.ndarray, coordinates: Any) -> np.ndarray:
        shape = np.shape(coordinates)
        if entries and flags.shape == shape:
            return flags
        if np.any(flags) and not np.all(flags):
            raise ValueError(
                f"mask{jax.tree_util.keystr(path)}: {type(owner).__name__} can hold all of this leaf or nothing, got a "
                "part of it."
            )
        return np.full(shape, bool(np.any(flags)))

    if jax.tree.structure(held) != jax.tree.structure(free):
        if any_held(held) and not all_held(held):
            raise ValueError(f"mask: {type(owner).__name__} can hold all of its params or none, got a part of them.")
        return jax.tree.map(lambda leaf: np.full(np.shape(leaf), all_held(held)), free)
    return jax.tree_util.tree_map_with_path(one, held, free)
