"""Rows that say nothing: whatever the params, their density is 1. No entry was observed, a total is 0.

They count nowhere: not in the number of rows of BIC, nor in `tol` per unit, nor among the rows that starts are drawn
from, nor do they hold EM back as rows of an unknown state would. To every driver they are rows of weight zero.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Data
from ..contracts import capabilities as ask
from ..numerics import tree as _tree
from .finite import Labelled, tells_something, unlabelled


def informative_rows(model: Any, data: Data) -> Array | None:
    """Which rows say something: (n,) booleans, or None for all. A row without entries whose state is known does."""
    rows = ask.informative(model, unlabelled(data))
    if rows is None or not isinstance(data, Labelled):
        return rows
    return rows | tells_something(data)


def informed_weight(model: Any, data: Data, sample_weight: Array | None) -> Array | None:
    """The sample weights, zero in rows that say nothing; as they are where all rows say something.

    Args:
        model: with `informative(data) -> (n,) booleans or None`, or without: then all rows do.
        data: raw or `Labelled`.
        sample_weight: (n,) or None.
    """
    if _tree.is_tracing(data, sample_weight):
        return masked_weight(informative_rows(model, data), data, sample_weight)
    with jax.ensure_compile_time_eval():  # the params may be traced
        rows = informative_rows(model, data)
        if rows is None or bool(jnp.all(rows)):
            return sample_weight
        return masked_weight(rows, data, sample_weight)


def masked_weight(rows: Array | None, data: Data, sample_weight: Array | None) -> Array | None:
    """The weights where `rows`, else zero; shaped as `rows`."""
    if rows is None:
        return sample_weight
    weight = jnp.ones(rows.shape, _tree.float_dtype(unlabelled(data))) if sample_weight is None else sample_weight
    return jnp.where(rows, weight, 0)
