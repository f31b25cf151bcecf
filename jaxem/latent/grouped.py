"""Rows that share one latent state: `grouped`, and what has to be alike within an id. Host code where it has values."""

from typing import Any

import numpy as np

from .._typing import Array, Data
from ..numerics import tree as _tree
from ..numerics.arguments import as_rows
from ..numerics.labels import as_labels, factorize
from ..numerics.processes import everywhere
from .finite import Gated, ungrouped, without_labels
from .series import Sequences
from .units import Grouped, Labelled, units_of, with_units


def grouped(data: Data, ids: Any) -> Data:
    """Attaches ids to rows: all rows of an id share one latent state, such as the class of a subject.

    p(rows of an id) = Σ_j p(z = j) Π_i p(x_i | z = j): log densities are summed over the rows of an id before its
    posterior is taken, which then belongs to each of its rows. The unit is the id: `tol`, log n of BIC, the number of
    rows a fit needs, starts, bootstrap, influence, sandwich errors and folds of cross-validation go by ids. What
    belongs to the state has one value in all rows of an id: labels, covariates of a gate, and sample weights, but that
    a row of weight zero does not exist. An id without rows of positive weight does not exist either.

    Results stand by row, in the order of the rows, and `per_id` takes them by id; `log_prob` of a mixture is by id.

    Args:
        data: pytree, leading axis n, as the model takes it; `gated` and `labelled` rows as well.
        ids: (n,) of any hashable kind, in any order: a list, an array, a column of pandas or polars. Those that are
            missing are one id, the last.

    Returns:
        Data that every driver takes in the place of `data`: `Grouped`, with labels around it where there are some.

    Raises:
        ValueError: if there is not one id a row, ids are traced, or rows are series or grouped already.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[1.0], [9.0], [0.0], [2.0], [12.0], [0.0], [1.0]])
        >>> data = jaxem.grouped(x, ["a", "b", "a", "c", "b", "c", "c"])
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> jnp.sort(result.params.weights).round(2)  # of two ids in three
        Array([0.33, 0.67], dtype=...)
        >>> model.responsibilities(result.params, data).shape, model.log_prob(result.params, data).shape
        ((7, 2), (3,))
    """
    rows = as_rows(without_labels(data))
    if isinstance(rows, (Grouped, Sequences)):
        got = "grouped already" if isinstance(rows, Grouped) else "series, whose steps share a chain of states"
        raise ValueError(f"data: expected rows, got such as are {got}; group rows once.")
    n = _tree.n_rows(rows)
    if _tree.is_tracing(ids):
        raise ValueError("ids: expected concrete ids, got a traced array; group the rows outside of jit.")
    known, code = _codes(ids, n)
    own = Grouped(rows, code, max(len(known), 1))
    object.__setattr__(own, "labels", known)
    found = with_units(data, own)
    check_alike_within(found, None)
    return found


def _codes(ids: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The sorted ids, and the position of each row's among them."""
    try:
        labels = as_labels(ids)
        if len(labels) != n:
            raise ValueError(f"ids: expected one id a row, shape ({n},), got {len(labels)}.")
        known, code = factorize(labels) if n else (labels, np.zeros(0, np.int64))
    except ValueError as error:  # of labels, which names them as other functions do
        raise ValueError(str(error).replace("group_ids", "ids")) from None
    return known, np.asarray(code, np.int32).reshape(-1)


def regrouped(ids: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Ids counted anew from 0 within each owner, such as the group of a table that a row belongs to: (n,)."""
    order = np.lexsort((ids, owners))
    new_owner = np.concatenate([[True], owners[order][1:] != owners[order][:-1]])
    new = new_owner | np.concatenate([[True], ids[order][1:] != ids[order][:-1]])
    count = np.cumsum(new)
    starts = np.maximum.accumulate(np.where(new_owner, count, 0))
    out = np.empty(len(ids), np.int32)
    out[order] = count - starts
    return out


def check_alike_within(data: Data, sample_weight: Array | None) -> None:
    """Raises a ValueError if concrete labels, covariates of a gate or weights differ within an id."""
    units = units_of(data)
    if units is None:
        return
    rows = ungrouped(units)
    each = {"known": data.allowed} if isinstance(data, Labelled) else {}
    if isinstance(rows, Gated):
        each["covariates"] = rows.covariates
    if sample_weight is not None:
        each["sample_weight"] = sample_weight
    if not each or _tree.is_tracing(units.ids, each):
        return

    def check(ids: Any, each: dict) -> None:
        ids = np.asarray(ids)
        there = np.ones(len(ids), bool) if sample_weight is None else np.asarray(each["sample_weight"]) != 0
        rows = np.flatnonzero(there)[::-1]
        first = np.zeros(units.n_units, np.int64)
        first[ids[rows]] = rows  # of several the last one stays, which is the first row
        for name, values in each.items():
            values = np.asarray(values)
            other = values[first[ids]]
            differ = (values != other) & ~((values != values) & (other != other))  # NaN has an error of its own
            bad = np.flatnonzero(differ.reshape(len(ids), -1).any(1) & there)
            if len(bad):
                row, before = int(bad[0]), int(first[ids[bad[0]]])
                raise ValueError(
                    f"{name}: expected one value in all rows of an id, whose state they share, got {values[row]} in "
                    f"row {row} and {values[before]} in row {before} of one id; a row of weight zero does not exist."
                )

    everywhere(check, units.ids, each)
