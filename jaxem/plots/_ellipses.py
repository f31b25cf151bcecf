"""The ellipses of normal and Student-t components, and the marginals of both."""

import math
from typing import Any, NamedTuple

import numpy as np

from ..families.normal.diagonal import NormalParams
from ..families.normal.low_rank import LowRankNormalParams
from ..families.normal.student_t import StudentTParams


class Elliptical(NamedTuple):
    """Components whose density is a function of (x − mean)ᵀ scatter⁻¹ (x − mean), on the host.

    Attributes:
        mean: (k, d).
        scatter: (k, d, d), the covariance of a normal.
        dof: (k,), degrees of freedom; infinite for a normal.
    """

    mean: np.ndarray
    scatter: np.ndarray
    dof: np.ndarray

    def radius(self, j: int, level: float) -> float:
        """Within how many scatter radii of its mean a share `level` of component j lies in the plane.

        Of a normal the squared distance is χ² with 2 degrees of freedom, of a Student-t twice F(2, dof).
        """
        dof = float(self.dof[j])
        if math.isinf(dof):
            return math.sqrt(-2 * math.log1p(-level))
        return math.sqrt(dof * ((1 - level) ** (-2 / dof) - 1))

    def marginal(self, j: int, column: int, x: np.ndarray) -> np.ndarray:
        """Density of one column of component j at points x."""
        scale, dof = math.sqrt(self.scatter[j, column, column]), float(self.dof[j])
        square = ((x - self.mean[j, column]) / scale) ** 2
        if math.isinf(dof):
            return np.exp(-0.5 * square) / (scale * math.sqrt(2 * math.pi))
        log_constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
        return np.exp(log_constant - (dof + 1) / 2 * np.log1p(square / dof)) / scale


def elliptical(model: Any, params: Any) -> Elliptical | None:
    """The components' means and scatter matrices, whatever form the family keeps them in; None if it has none."""
    bank = params.components
    if isinstance(bank, LowRankNormalParams):
        loadings = np.asarray(bank.loadings)
        scatter = loadings @ np.swapaxes(loadings, 1, 2) + _matrices(bank.noise, bank.mean, shared=False)
    elif isinstance(bank, NormalParams):
        shared = hasattr(model, "component_axes") and model.component_axes().components.covariance is None
        scatter = _matrices(bank.covariance, bank.mean, shared)
    elif isinstance(bank, StudentTParams):
        scatter = _matrices(bank.scatter, bank.mean, shared=False)
    else:
        return None
    dof = np.asarray(bank.dof) if isinstance(bank, StudentTParams) else np.full(len(scatter), np.inf)
    return Elliptical(np.asarray(bank.mean), scatter, dof)


def _matrices(values: Any, mean: Any, shared: bool) -> np.ndarray:
    """(k, d, d), of covariances in any of their forms."""
    values, (k, d) = np.asarray(values), np.shape(mean)
    if values.ndim == 3:
        return values
    if shared:
        return np.broadcast_to(values, (k, d, d))
    diagonal = values if values.ndim == 2 else np.broadcast_to(values[:, None], (k, d))
    return diagonal[:, :, None] * np.eye(d)


def ellipse(mean: np.ndarray, scatter: np.ndarray, radius: float, **style: Any) -> Any:
    """The matplotlib Ellipse of points at one distance from a mean (2,)."""
    from matplotlib.patches import Ellipse

    values, vectors = np.linalg.eigh(scatter)
    width, height = 2 * radius * np.sqrt(np.maximum(values[::-1], 0))
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    return Ellipse((float(mean[0]), float(mean[1])), float(width), float(height), angle=angle, fill=False, **style)
