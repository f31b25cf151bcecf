"""Start params of a Gaussian mixture: given ones, which are checked, and others from responsibilities."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_array

from ..families.normal._normal import NormalParams
from ..models.mixture import MixtureParams
from ._float64 import Rows, estimate

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical covariance (for instance "
    "caused by singleton or collapsed samples). Try to decrease the number of components, increase reg_covar, or "
    "scale the input data."
)


class Given(NamedTuple):
    """What the user gives of the start; None where it is to be found."""

    weights: np.ndarray | None
    means: np.ndarray | None
    covariances: np.ndarray | None

    @property
    def complete(self) -> bool:
        """Whether nothing is to be found."""
        return all(part is not None for part in self)


def check_given(weights: Any, means: Any, precisions: Any, covariance_type: str, k: int, d: int) -> Given:
    """The given start with covariances for precisions.

    Raises:
        ValueError: on shapes, weights that are not a distribution, or precisions that are not positive definite.
    """
    if weights is not None:
        weights = _array(weights, (k,), "weights")
        if (weights < 0).any() or (weights > 1).any():
            raise ValueError(
                "The parameter 'weights' should be in the range [0, 1], but got max value "
                f"{weights.max():.5f}, min value {weights.min():.5f}"
            )
        if abs(weights.sum() - 1) > (1e-6 if weights.dtype == np.float32 else 1e-8):
            raise ValueError(
                f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}"
            )
    if means is not None:
        means = _array(means, (k, d), "means")
    covariances = None
    if precisions is not None:
        shape = covariance_shape(covariance_type, k, d)
        covariances = _inverse(_array(precisions, shape, f"{covariance_type} precision"), covariance_type)
    return Given(weights, means, covariances)


def covariance_shape(covariance_type: str, k: int, d: int) -> tuple[int, ...]:
    """Of the covariances of k components in d columns."""
    return {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[covariance_type]


def _array(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    dtypes: Any = [np.float64, np.float32]
    values = check_array(values, dtype=dtypes, ensure_2d=False, allow_nd=True)
    if values.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {values.shape}")
    return values


def _inverse(precisions: np.ndarray, covariance_type: str) -> np.ndarray:
    precisions = precisions.astype(np.float64)
    if covariance_type in ("diag", "spherical"):
        if (precisions <= 0).any():
            raise ValueError(f"'{covariance_type} precision' should be positive")
        return 1 / precisions
    transposed = np.swapaxes(precisions, -1, -2)
    if not np.allclose(precisions, transposed) or (np.linalg.eigvalsh(precisions) <= 0).any():
        raise ValueError(f"'{covariance_type} precision' should be symmetric, positive-definite")
    covariances = np.linalg.inv(precisions)
    return 0.5 * (covariances + np.swapaxes(covariances, -1, -2))


def precisions_cholesky(covariances: np.ndarray, covariance_type: str) -> np.ndarray:
    """Upper triangular U with Σ⁻¹ = U Uᵀ; of variances 1/σ.

    Raises:
        ValueError: if a covariance is not positive definite.
    """
    if covariance_type in ("diag", "spherical"):
        if not (covariances > 0).all():
            raise ValueError(ILL_DEFINED)
        return 1 / np.sqrt(covariances)
    try:
        lower = np.linalg.cholesky(covariances)
    except np.linalg.LinAlgError as error:
        raise ValueError(ILL_DEFINED) from error
    identity = np.broadcast_to(np.eye(lower.shape[-1]), lower.shape)
    return np.triu(np.swapaxes(np.linalg.solve(lower, identity), -1, -2))


def start(
    rows: Rows, given: Given, covariance_type: str, reg_covar: float, responsibilities: np.ndarray | None
) -> MixtureParams:
    """What is given, and the rest by one M step from responsibilities (n, k), `reg_covar` added on the diagonal."""
    weights, means, covariances = given
    if responsibilities is not None:
        found = estimate(covariance_type, rows, responsibilities)
        ridge = reg_covar * (np.eye(rows.x.shape[1]) if covariance_type in ("full", "tied") else 1)
        weights = found.weights if weights is None else weights
        means = found.components.mean if means is None else means
        covariances = found.components.covariance + ridge if covariances is None else covariances
    assert weights is not None and means is not None and covariances is not None
    return mixture_params(weights, means, covariances)


def mixture_params(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> MixtureParams:
    """Params of NumPy arrays, float64."""
    parts: Any = [np.asarray(part, np.float64) for part in (weights, means, covariances)]
    return MixtureParams(parts[0], NormalParams(parts[1], parts[2]))


def has_collapsed(covariances: np.ndarray, covariance_type: str, rows: Rows) -> np.ndarray:
    """Whether a variance is what rounding leaves of zero, in each of r fits: (r,). Of matrices a fit itself says it."""
    if covariance_type in ("full", "tied"):
        return np.zeros(len(covariances), bool)
    spread = rows.x.var(0) if covariance_type == "diag" else rows.x.var(0).mean()
    resolved = covariances > (32 * np.finfo(np.float64).eps) ** 2 * spread
    return ~resolved.reshape(len(covariances), -1).all(1)
