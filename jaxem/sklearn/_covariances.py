"""Shapes of the covariances of hidden states: hmmlearn's, and those of the families. NumPy arrays."""

from typing import Any

import numpy as np

TYPES = ("spherical", "diag", "full", "tied")


def compressed(covars: Any, covariance_type: str, k: int) -> np.ndarray:
    """Covariances in the covariance type's own shape, checked: (k,), (k, d), (k, d, d) or (d, d).

    Raises:
        ValueError: on another shape, or covariances that are not positive definite.
    """
    values = np.array(covars, np.float64)
    if covariance_type == "spherical" and values.size and len(values) == k:
        values = values.reshape(k, -1)
        values = values[:, 0] if (values == values[:, :1]).all() else values
    n_axes = {"spherical": 1, "diag": 2, "full": 3, "tied": 2}.get(covariance_type)
    if n_axes is None:
        raise ValueError(f"covariance_type: expected one of {TYPES}, got {covariance_type!r}.")
    square = covariance_type in ("full", "tied")
    leads = values.ndim == n_axes and (covariance_type == "tied" or len(values) == k)
    if not leads or (square and values.shape[-1] != values.shape[-2]):
        shape = {"spherical": f"({k},)", "diag": f"({k}, d)", "full": f"({k}, d, d)", "tied": "(d, d)"}[covariance_type]
        raise ValueError(f"covars_: expected shape {shape} of {covariance_type!r}, got {values.shape}.")
    if square and not np.allclose(values, np.swapaxes(values, -1, -2)):
        raise ValueError("covars_: expected symmetric matrices.")
    if not (np.linalg.eigvalsh(values) if square else values).min() > 0:
        raise ValueError("covars_: expected positive definite covariances.")
    return values


def filled(values: np.ndarray, covariance_type: str, k: int, d: int) -> np.ndarray:
    """Full matrices (k, d, d)."""
    if covariance_type == "full":
        return np.array(values)
    if covariance_type == "tied":
        return np.array(np.broadcast_to(values, (k, d, d)))
    variances = values[:, None] if covariance_type == "spherical" else values
    return np.broadcast_to(variances, (k, d))[:, :, None] * np.eye(d)[None]


def spread_over(whole: np.ndarray, covariance_type: str, k: int) -> np.ndarray:
    """One covariance matrix (d, d) for all states."""
    variances = np.diag(whole)
    every = {
        "spherical": np.full(k, variances.mean()),
        "diag": np.tile(variances, (k, 1)),
        "full": np.tile(whole, (k, 1, 1)),
        "tied": np.array(whole),
    }
    return every.get(covariance_type, whole)  # another type is refused soon


def prior_scatter(scale: Any, covariance_type: str, k: int, d: int) -> np.ndarray:
    """A prior's scale, broadcast to what it is added to: of spheres the sum over the columns."""
    scale = np.asarray(scale, np.float64)
    if covariance_type == "full":
        return np.broadcast_to(scale, (k, d, d))
    if covariance_type == "tied":
        return np.broadcast_to(scale, (d, d))
    if covariance_type == "spherical" and scale.shape == (k,):
        return scale * d
    each = np.broadcast_to(scale, (k, d))
    return each.sum(1) if covariance_type == "spherical" else each
