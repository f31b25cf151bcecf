"""Rows of weight zero do not exist: nobody looks at them."""

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Data, PyTree


def some_present_row(data: Data, sample_weight: Array) -> PyTree:
    """A row that exists, to stand in for those that do not: it lies in the support of any density."""
    return jax.tree.map(lambda leaf: lax.stop_gradient(first_row(leaf, sample_weight)), data)


def first_row(leaf: Array, sample_weight: Array | None) -> Array:
    """The first row of positive weight.

    Under weights as a sum over rows: a dynamic index into sharded rows would gather them all.
    """
    if sample_weight is None:
        return leaf[0]
    number = lax.broadcasted_iota(jnp.int32, leaf.shape, 0) + 0 * (leaf != leaf).astype(jnp.int32)
    index = jnp.arange(leaf.shape[0], dtype=jnp.int32) + 0 * (sample_weight != sample_weight).astype(jnp.int32)
    first = jnp.min(jnp.where(sample_weight > 0, index, leaf.shape[0] - 1))
    return jnp.sum(jnp.where(number == first, leaf, 0), 0, dtype=leaf.dtype)


def without_absent_rows(data: Data, sample_weight: Array, stand_in: PyTree) -> Data:
    """Replaces rows of weight zero before anything looks at them, so that NaN there reaches no value or gradient."""

    def replace(leaf: Array, row: Array) -> Array:
        present = (sample_weight > 0).reshape(-1, *([1] * (leaf.ndim - 1)))
        return jnp.where(present, leaf, row[None])

    return jax.tree.map(replace, data, stand_in)


def present_rows(data: Data, sample_weight: Array | None) -> Data:
    """The data with rows of weight zero replaced by one that exists; for methods that read all rows at once."""
    if sample_weight is None:
        return data
    return without_absent_rows(data, sample_weight, some_present_row(data, sample_weight))
