"""Where params live, boundary included, and the check of concrete ones before they are used. Host code.

A weight or a rate of exactly 0 is legal, and so is a variance of 0: the fit says what it makes of it. Weights that sum
to 100, or a negative rate, no model allows. What is not finite is not refused: it has a status, NONFINITE.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..numerics import tree as _tree
from . import capabilities as ask


@dataclass(frozen=True)
class Domain:
    """A set of arrays; of a bank, or of lanes of banks, every entry of the leading axes.

    Attributes:
        described: what is expected.
        contains: array (…, *trailing) -> booleans (…, *ones or trailing).
        remedy: what to do about it.
    """

    described: str
    contains: Callable[[np.ndarray], np.ndarray]
    remedy: str


def _sums_to_one(p: np.ndarray) -> np.ndarray:
    slack = p.shape[-1] * max(64 * float(np.finfo(p.dtype).eps), 1e-6)
    return np.all(p >= 0, -1, keepdims=True) & (np.abs(p.sum(-1, keepdims=True, dtype=float) - 1) <= slack)


def _has_length_one(v: np.ndarray) -> np.ndarray:
    return np.abs(np.linalg.norm(v.astype(float), axis=-1, keepdims=True) - 1) <= 1e-3


def _is_covariance(matrix: np.ndarray) -> np.ndarray:
    """Symmetric and positive semidefinite to rounding, in units of the variances: (…, 1, 1)."""
    slack = np.sqrt(float(np.finfo(matrix.dtype).eps)) * matrix.shape[-1]
    wide = matrix.astype(float)
    variance = np.diagonal(wide, axis1=-2, axis2=-1)
    scale = np.sqrt(np.where(variance > 0, variance, 1))
    unit = wide / scale[..., :, None] / scale[..., None, :]
    both = np.swapaxes(unit, -1, -2)
    sound = np.all(variance >= 0, -1) & np.all(np.abs(unit - both) <= max(slack, 1e-4), (-1, -2))
    flat = ((unit + both) / 2 + slack * np.eye(unit.shape[-1])).reshape(-1, *unit.shape[-2:])
    return (sound & _have_factors(flat).reshape(sound.shape))[..., None, None]


def _have_factors(matrices: np.ndarray) -> np.ndarray:
    """Which of the matrices (n, d, d) are positive definite: (n,). All at once, as most often all are."""
    try:
        np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        halves = np.array_split(matrices, 2) if len(matrices) > 1 else []
        return np.concatenate([_have_factors(half) for half in halves]) if halves else np.zeros(1, bool)
    return np.ones(len(matrices), bool)


REAL = Domain("numbers", np.isfinite, "look for NaN or inf where it comes from")
NOT_NEGATIVE = Domain("numbers ≥ 0", lambda x: x >= 0, "model.init makes a start")
POSITIVE = Domain("numbers > 0", lambda x: x > 0, "model.init makes a start")
UNIT_INTERVAL = Domain("probabilities from 0 to 1", lambda x: (x >= 0) & (x <= 1), "give shares rather than counts")
SIMPLEX = Domain("numbers ≥ 0 that sum to 1", _sums_to_one, "divide them by their sum")
DIRECTION = Domain("vectors of length 1", _has_length_one, "divide each by its length")
COVARIANCE = Domain(
    "symmetric positive definite matrices",
    _is_covariance,
    "a covariance is at most the product of the standard deviations",
)


def check_leaves(where: str, leaves: Sequence[Any], domains: Sequence[Domain], *, lanes: bool = False) -> None:
    """Raises a ValueError that names the first leaf outside of its domain, if the leaves have values.

    Args:
        where: name of the record that the leaves are of, such as "params.components".
        leaves: a NamedTuple, of which each leaf has a domain.
        domains: of the leaves.
        lanes: the leaves lead with lanes, and those in which something is not finite are left to their status.
    """
    names = getattr(leaves, "_fields", None) or [""] * len(leaves)
    for name, leaf, domain in zip(names, leaves, domains, strict=True):
        check_array(f"{where}.{name}" if name else where, leaf, domain, lanes=lanes)


def check_array(where: str, leaf: Any, domain: Domain, *, lanes: bool = False) -> None:
    """`check_leaves` of one array."""
    if _tree.is_tracing(leaf) or not np.size(leaf) or not getattr(leaf, "is_fully_addressable", True):
        return
    values = np.asarray(leaf)
    values = values if np.issubdtype(values.dtype, np.floating) else values.astype(float)
    values = values if lanes else values[None]
    by_lane = values.reshape(len(values), -1)
    finite = np.all(np.isfinite(by_lane), 1)
    if domain is REAL or not finite.any():
        return
    legal = np.where(finite.reshape(-1, *[1] * (values.ndim - 1)), values, 0)
    inside = np.broadcast_to(domain.contains(legal), values.shape)
    outside = ~inside.reshape(by_lane.shape).all(1) & finite
    if outside.any():
        lane = int(np.argmax(outside))
        more = f" in lane {lane} ({int(outside.sum())} such lanes)" if lanes else ""
        _refuse(where, values[lane], ~inside[lane], domain, more)


def _refuse(where: str, values: np.ndarray, bad: np.ndarray, domain: Domain, more: str) -> None:
    if values.size <= 9:
        got = values.tolist()
    else:
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        got = f"{values[place]} at {place}"
    raise ValueError(f"{where}: expected {domain.described}, got {got}{more}; {domain.remedy}.")


def check_params(model: Any, params: Any, *, lanes: bool = False) -> None:
    """Raises a ValueError that names what of concrete params lies outside of the model's parameter space.

    Of a model without `check_params(params, *, lanes)` nothing is known. Under tracing there is nothing to look at.
    """
    if ask.offers(model, "check_params") and not _tree.is_tracing(*jax.tree.leaves(params)):
        model.check_params(params, lanes=lanes)
