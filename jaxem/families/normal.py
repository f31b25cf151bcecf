"""Normal components with full, diagonal, spherical or tied covariance: the algebra of each covariance.

What they share, and the two paths through it, is in `_normal`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln

from .. import _linalg, _tree
from .._linalg import dot
from .._typing import Array
from ..domains import NOT_NEGATIVE, REAL, Domain
from ..features import Features
from ._full import FullNormal
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
        return jnp.sum(_log_inverse_gamma(jnp.square(factor), prior.dof, prior.scale[None]), -1)

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

    def unconstrain(self, bank: NormalParams) -> NormalParams:
        """Means as they are, logarithms of the variances."""
        return NormalParams(bank.mean, jnp.log(bank.covariance))

    def constrain(self, free: NormalParams) -> NormalParams:
        """Inverse of `unconstrain`."""
        return NormalParams(free.mean, jnp.exp(free.covariance))

    def n_parameters(self, bank: NormalParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * 2 * bank.mean.shape[-1]


@_tree.register
@dataclass(frozen=True)
class SphericalNormal(DiagonalNormal):
    """One variance a component: (k,).

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 6.0], [2.0, 6.0]])
        >>> model = jaxem.Mixture(jaxem.SphericalNormal(), n_components=1)
        >>> model.init(jax.random.key(0), x).components.covariance.round(2)
        Array([5.], dtype=...)
    """

    def _quadratic(self, y: Array, axis: int) -> list[Array]:
        return [jnp.sum(jnp.square(y), axis, keepdims=True)]

    def _whitening(self, bank: NormalParams) -> tuple[Array, Array]:
        d = bank.mean.shape[-1]
        return lax.rsqrt(bank.covariance), 0.5 * d * jnp.log(bank.covariance)

    def _whiten(self, y: Array, factor: Array) -> Array:
        return y * (factor if factor.ndim == 0 else factor[:, None])

    def _natural_terms(self, covariance: Array, mean: Array) -> tuple[Array, list[Array], Array]:
        precision = 1 / covariance[:, None]
        return precision * mean, [-0.5 * precision], 0.5 * mean.shape[-1] * jnp.log(covariance)

    def _precision_diagonal(self, bank: NormalParams) -> Array:
        return 1 / bank.covariance[:, None]

    def _moments(self, sums: Array, d: int) -> Moments:
        return Moments(sums[:, 0], sums[:, 1:-1], sums[:, -1])

    def _scatter(self, r: Array, y: Array) -> Array:
        return dot(r, jnp.sum(jnp.square(y), -1))

    def _outer(self, offset: Array, count: Array) -> Array:
        return count * jnp.sum(jnp.square(offset), -1)

    def _cross(self, first: Array, offset: Array) -> Array:
        return 2 * jnp.sum(first * offset, -1)

    def _diagonal(self, variance: Array) -> Array:
        # the floor is added to a scatter, the sum of d columns, and so is its scale; see `_divisor`
        return jnp.sum(variance)[None]

    def _expand(self, values: Array) -> Array:
        return values

    def _divisor(self, count: Array, prior: Any, d: int, active: Array | None) -> Array:
        return d * count if prior is None else d * (count + 1) + prior.dof + 2

    def _log_inverse_wishart(self, factor: Array, half_log_det: Array, prior: Any, d: int) -> Array:
        return _log_inverse_gamma(jnp.square(factor), prior.dof, prior.scale)

    def _colour(self, covariance: Array, z: Array, noise: Array) -> Array:
        return jnp.sqrt(covariance)[z][:, None] * noise

    def _proper(self, covariance: Array) -> Array:
        return (covariance > 0) & jnp.isfinite(covariance)

    def _spreads(self, covariance: Array, d: int) -> tuple[Array, Array]:
        return covariance[:, None], 2 * jnp.square(covariance) / d

    def _least_multiple(self, covariance: Array, floor: Array) -> Array:
        return covariance / jnp.sum(floor)

    def _eigenvalues(self, covariance: Array) -> Array:
        return covariance[:, None]

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (k, d), (k,)

    def _scale_shape(self, d: int) -> tuple[int, ...]:
        return ()

    def n_parameters(self, bank: NormalParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * (bank.mean.shape[-1] + 1)


@_tree.register
@dataclass(frozen=True)
class TiedSphericalNormal(SphericalNormal):
    """One variance () for all components and columns.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x, groups = jnp.array([[0.0], [2.0], [10.0], [14.0]]), jaxem.Labels(jnp.array([0, 0, 1, 1]))
        >>> model = jaxem.Mixture(jaxem.TiedSphericalNormal(), n_components=2)
        >>> model.init(jax.random.key(0), x, method=groups).components.covariance.round(2)  # of groups with 1 and 4
        Array(2.5, dtype=...)
    """

    def _whiten(self, y: Array, factor: Array) -> Array:
        return y * factor

    def _natural_terms(self, covariance: Array, mean: Array) -> tuple[Array, list[Array], Array]:
        precision = jnp.broadcast_to(1 / covariance, (mean.shape[0], 1))
        return precision * mean, [-0.5 * precision], 0.5 * mean.shape[-1] * jnp.log(covariance)

    def _precision_diagonal(self, bank: NormalParams) -> Array:
        return 1 / bank.covariance[None]

    def _moments(self, sums: Array, d: int) -> Moments:
        return self._pool(super()._moments(sums, d))

    def _pool(self, moments: Moments) -> Moments:
        return moments._replace(second=jnp.sum(moments.second))

    def _outer(self, offset: Array, count: Array) -> Array:
        return jnp.sum(super()._outer(offset, count))

    def _cross(self, first: Array, offset: Array) -> Array:
        return jnp.sum(super()._cross(first, offset))

    def _diagonal(self, variance: Array) -> Array:
        return jnp.sum(variance)

    def _divisor(self, count: Array, prior: Any, d: int, active: Array | None) -> Array:
        total = jnp.sum(count)
        if prior is None:
            return d * total
        k = count.shape[0] if active is None else jnp.sum(active)
        return d * (total + k) + prior.dof + 2

    def component_axes(self) -> NormalParams:
        """The variance is shared."""
        return NormalParams(0, None)  # type: ignore[arg-type]

    def _colour(self, covariance: Array, z: Array, noise: Array) -> Array:
        return jnp.sqrt(covariance) * noise

    def _spreads(self, covariance: Array, d: int) -> tuple[Array, Array]:
        return covariance, 2 * jnp.square(covariance) / d

    def _eigenvalues(self, covariance: Array) -> Array:
        return covariance[None, None]

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (k, d), ()

    def n_parameters(self, bank: NormalParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * bank.mean.shape[-1] + 1


@_tree.register
@dataclass(frozen=True)
class TiedNormal(FullNormal):
    """One covariance matrix (d, d) for all components.

    Its quadratic form is the same for every component, so a row needs it once: T(x) = (1, y).

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x, groups = jnp.array([[0.0], [2.0], [10.0], [14.0]]), jaxem.Labels(jnp.array([0, 0, 1, 1]))
        >>> model = jaxem.Mixture(jaxem.TiedNormal(), n_components=2)
        >>> model.init(jax.random.key(0), x, method=groups).components.covariance.round(2)  # of groups with 1 and 4
        Array([[2.5]], dtype=...)
    """

    def _quadratic(self, y: Array, axis: int) -> list[Array]:
        return []

    def _log_prob_fast(self, bank: NormalParams, x: Features, log_weights: Array | float = 0.0) -> Array:
        factor, _ = self._whitening(bank)
        if x.features_first:
            common = jnp.sum(jnp.square(dot(factor, x.values[1:])), 0)
            return (x.logits(self.natural(bank, log_weights)).T - 0.5 * common[None]).T
        common = jnp.sum(jnp.square(dot(x.values[:, 1:], factor.T)), 1)
        return x.logits(self.natural(bank, log_weights)) - 0.5 * common[:, None]

    def _natural_terms(self, covariance: Array, mean: Array) -> tuple[Array, list[Array], Array]:
        factor, half_log_det = _linalg.whitening(covariance)
        return dot(mean, _linalg.gram(factor)), [], half_log_det

    def _precision_diagonal(self, bank: NormalParams) -> Array:
        return jnp.sum(jnp.square(_linalg.whitening(bank.covariance)[0]), -2)

    def _unpack(self, x: Features, responsibilities: Array) -> Moments:
        sums = x.weighted_sums(responsibilities)
        y = x.values[1:].T if x.features_first else x.values[:, 1:]
        return Moments(sums[:, 0], sums[:, 1:], self._scatter(jnp.sum(responsibilities, 1), y))

    def _pool(self, moments: Moments) -> Moments:
        return moments._replace(second=jnp.sum(moments.second, 0))

    def _outer(self, offset: Array, count: Array) -> Array:
        return dot((count[:, None] * offset).T, offset)

    def _cross(self, first: Array, offset: Array) -> Array:
        product = dot(first.T, offset)
        return product + product.T

    def _diagonal(self, variance: Array) -> Array:
        return jnp.diag(variance)

    def _expand(self, values: Array) -> Array:
        return values

    def _divisor(self, count: Array, prior: Any, d: int, active: Array | None) -> Array:
        total = jnp.sum(count)
        if prior is None:
            return total
        k = count.shape[0] if active is None else jnp.sum(active)
        return total + prior.dof + d + k + 1

    def component_axes(self) -> NormalParams:
        """The covariance is shared."""
        return NormalParams(0, None)  # type: ignore[arg-type]

    def _colour(self, covariance: Array, z: Array, noise: Array) -> Array:
        return dot(noise, _linalg.cholesky(covariance).T)

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (k, d), (d, d)

    def n_parameters(self, bank: NormalParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        d = bank.mean.shape[-1]
        return n_components * d + d * (d + 1) // 2


def _log_inverse_gamma(precision: Array, dof: Array, scale: Array) -> Array:
    """log density of 1/precision under an inverse gamma(dof/2, scale/2)."""
    shape, rate = 0.5 * dof, 0.5 * scale
    return shape * jnp.log(rate) - gammaln(shape) + (shape + 1) * jnp.log(precision) - rate * precision
