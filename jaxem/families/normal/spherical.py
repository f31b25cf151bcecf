"""Normal components with one variance, their own or shared."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..._typing import Array
from ...numerics import tree as _tree
from ...numerics.linalg import dot
from ._normal import Moments, NormalParams
from .diagonal import DiagonalNormal, log_inverse_gamma


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
        return log_inverse_gamma(jnp.square(factor), prior.dof, prior.scale)

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
