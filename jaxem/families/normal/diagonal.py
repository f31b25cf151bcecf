"""Normal components with diagonal covariance; what normal families share, and their two paths, is in `_normal`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln

from ... import bijections
from ..._typing import Array
from ...contracts.domains import NOT_NEGATIVE, REAL, Domain
from ...numerics import tree as _tree
from ...numerics.linalg import dot
from ._normal import Moments, Normal, NormalParams


@_tree.register
@dataclass(frozen=True)
class DiagonalNormal(Normal):
    """Independent columns within a component: variances (k, d).

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 6.0], [2.0, 6.0]])
        >>> model = jaxem.Mixture(jaxem.DiagonalNormal(), n_components=1)
        >>> model.init(jax.random.key(0), x).components.covariance.round(2)
        Array([[1., 9.]], dtype=...)
    """

    _joins_columns: ClassVar[bool] = False
    space: ClassVar[Any] = NormalParams(bijections.real, bijections.positive)  # type: ignore[arg-type]
    _domains: ClassVar[tuple[Domain, ...]] = (REAL, NOT_NEGATIVE)

    def _quadratic(self, y: Array, axis: int) -> list[Array]:
        return [jnp.square(y)]

    def _whitening(self, bank: NormalParams) -> tuple[Array, Array]:
        return lax.rsqrt(bank.covariance), 0.5 * jnp.sum(jnp.log(bank.covariance), -1)

    def _whiten(self, y: Array, factor: Array) -> Array:
        return y * (factor if factor.ndim == y.ndim else factor[None])

    def _natural_terms(self, covariance: Array, mean: Array) -> tuple[Array, list[Array], Array]:
        precision = 1 / covariance
        return precision * mean, [-0.5 * precision], 0.5 * jnp.sum(jnp.log(covariance), -1)

    def _precision_diagonal(self, bank: NormalParams) -> Array:
        return 1 / bank.covariance

    def _moments(self, sums: Array, d: int) -> Moments:
        return Moments(sums[:, 0], sums[:, 1 : 1 + d], sums[:, 1 + d :])

    def _scatter(self, r: Array, y: Array) -> Array:
        return dot(r, jnp.square(y))

    def _outer(self, offset: Array, count: Array) -> Array:
        return count[:, None] * jnp.square(offset)

    def _cross(self, first: Array, offset: Array) -> Array:
        return 2 * first * offset

    def _diagonal(self, variance: Array) -> Array:
        return variance[None]

    def _expand(self, values: Array) -> Array:
        return values[:, None]

    def _divisor(self, count: Array, prior: Any, d: int, active: Array | None) -> Array:
        return count if prior is None else count + prior.dof + 3

    def _trace(self, factor: Array, scatter: Array) -> Array:
        return jnp.sum(jnp.square(factor) * scatter)

    def _log_inverse_wishart(self, factor: Array, half_log_det: Array, prior: Any, d: int) -> Array:
        return jnp.sum(log_inverse_gamma(jnp.square(factor), prior.dof, prior.scale[None]), -1)

    def _colour(self, covariance: Array, z: Array, noise: Array) -> Array:
        return jnp.sqrt(covariance)[z] * noise

    def _proper(self, covariance: Array) -> Array:
        return jnp.all((covariance > 0) & jnp.isfinite(covariance), -1)

    def _spreads(self, covariance: Array, d: int) -> tuple[Array, Array]:
        return covariance, 2 * jnp.square(covariance)

    def _least_multiple(self, covariance: Array, floor: Array) -> Array:
        return jnp.min(covariance / floor[None], -1)

    def _eigenvalues(self, covariance: Array) -> Array:
        return jnp.sort(covariance, -1)

    def _clip(self, covariance: Array, low: Array, high: Array) -> Array:
        return jnp.clip(covariance, low, high)

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (k, d), (k, d)

    def _scale_shape(self, d: int) -> tuple[int, ...]:
        return (d,)

    def n_parameters(self, bank: NormalParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * 2 * bank.mean.shape[-1]


def log_inverse_gamma(precision: Array, dof: Array, scale: Array) -> Array:
    """log density of 1/precision under an inverse gamma(dof/2, scale/2)."""
    shape, rate = 0.5 * dof, 0.5 * scale
    return shape * jnp.log(rate) - gammaln(shape) + (shape + 1) * jnp.log(precision) - rate * precision
