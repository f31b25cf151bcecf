"""What users pass: whole numbers of any kind, tables of any library, weights. Host code, but for traced leaves."""

import operator
from typing import Any

import jax
import numpy as np

from .._typing import PyTree


def as_count(name: str, value: Any, least: int = 1, *, other: str = "", hint: str = "") -> int:
    """A whole number, NumPy's and arrays of one number too, as an int.

    Raises:
        ValueError: naming the argument, if it is none or less than `least`; booleans are none.
    """
    number = as_int(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        kind = {0: "a non-negative int", 1: "a positive int"}.get(least, f"an int of at least {least}")
        raise ValueError(f"{name}: expected {kind}{other}, got {value!r}{hint}.")
    return number


def as_int(value: Any) -> Any:
    """The int that a whole number of any kind is; anything else, booleans too, as it is."""
    if isinstance(value, (bool, int)):
        return value
    try:
        return operator.index(value)
    except TypeError:  # no whole number, or one that is traced
        return value


def as_rows(data: PyTree, name: str = "data") -> PyTree:
    """The data with arrays for the tables of pandas, polars and pyarrow, of which missing numbers are NaN.

    Raises:
        ValueError: naming the argument, on sparse matrices, or where rows have no columns.
    """
    rows = jax.tree.map(lambda leaf: _as_array(leaf, name), data, is_leaf=_is_sparse)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(rows)]
    if shapes and all(len(shape) > 1 and shape[-1] == 0 for shape in shapes):
        raise ValueError(
            f"{name}: expected at least one column, got shape {shapes[0]}; look at how columns were selected."
        )
    return rows


def _is_sparse(leaf: Any) -> bool:
    return hasattr(leaf, "todense") and not isinstance(leaf, type)


def _as_array(leaf: Any, name: str) -> Any:
    if _is_sparse(leaf):
        raise ValueError(
            f"{name}: expected dense rows (n, d), got a sparse {type(leaf).__name__} of shape {np.shape(leaf)}; pass "
            "data.toarray() (of jax: data.todense()), or fewer columns, such as a projection of them."
        )
    if isinstance(leaf, (int, float, complex, str)):
        raise ValueError(
            f"{name}: expected arrays with a leading axis of observations, got the scalar leaf {leaf!r}; lists are "
            "trees: pass arrays."
        )
    if isinstance(leaf, np.ma.MaskedArray):
        return np.ma.filled(leaf.astype(float), np.nan) if np.ma.getmaskarray(leaf).any() else leaf.data
    if isinstance(leaf, (np.ndarray, jax.Array)) or not hasattr(leaf, "__array__"):
        return leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    array = np.asarray(leaf)
    if array.dtype == object and hasattr(leaf, "to_numpy"):  # columns of pandas that may have gaps
        try:
            kinds = {getattr(kind, "numpy_dtype", None) for kind in getattr(leaf, "dtypes", ())}
            single = kinds == {np.dtype(np.float32)}
            return leaf.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan)
        except (TypeError, ValueError):  # they hold no numbers, and the caller says so
            return array
    return array


def as_weighted_rows(data: PyTree, sample_weight: Any) -> tuple[PyTree, Any]:
    """`as_rows`, and the weights as an array with one a row, or None.

    Raises:
        ValueError: as `as_rows`, and on weights of another shape.
    """
    data = as_rows(data)
    if sample_weight is None:
        return data, None
    check_weight_shape(sample_weight, np.shape(jax.tree.leaves(data)[0])[0])
    is_array = isinstance(sample_weight, (np.ndarray, jax.Array))
    return data, sample_weight if is_array else np.asarray(sample_weight)


def check_weight_shape(sample_weight: Any, n: int) -> None:
    """Raises a ValueError unless there is one weight a row."""
    shape = np.shape(sample_weight)
    if shape != (n,):
        hint = "; pass sample_weight.ravel()" if int(np.prod(shape)) == n and len(shape) > 1 else ""
        raise ValueError(f"sample_weight: expected shape ({n},), one weight a row, got {shape}{hint}.")
