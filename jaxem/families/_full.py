"""Normal components with full covariance matrices; the scatter of other families too."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import multigammaln

from .. import _linalg, _tree, bijections
from .._linalg import dot, einsum
from .._typing import Array
from ._normal import Moments, Normal, NormalParams


@_tree.register
@dataclass(frozen=True)
class FullNormal(Normal):
    """Every component with a covariance matrix of its own, (k, d, d)."""

    def _quadratic(self, y: Array, axis: int) -> list[Array]:
        return [_linalg.pair_products(y, transposed=axis == 0)]

    def _whitening(self, bank: NormalParams) -> tuple[Array, Array]:
        return _linalg.whitening(bank.covariance)

    def _whiten(self, y: Array, factor: Array) -> Array:
        if factor.ndim == 2:
            return dot(y, factor.T)
        return _linalg.matvec(factor, y)

    def _natural_terms(self, covariance: Array, mean: Array) -> tuple[Array, list[Array], Array]:
        linear, packed, half_log_det = _linalg.precision_terms(covariance, mean)
        first, second = _linalg.pair_indices(mean.shape[-1])
        multiplicity = jnp.asarray(np.where(first == second, -0.5, -1.0), mean.dtype)
        return linear, [multiplicity[None] * packed], half_log_det

    def _precision_diagonal(self, bank: NormalParams) -> Array:
        d = bank.mean.shape[-1]
        return _linalg.precision_terms(bank.covariance, bank.mean)[1][..., :d]

    def _moments(self, sums: Array, d: int) -> Moments:
        return Moments(sums[:, 0], sums[:, 1 : 1 + d], _linalg.unpack_pairs(sums[:, 1 + d :], d))

    def _scatter(self, r: Array, y: Array) -> Array:
        return dot((y * r[:, None]).T, y)

    def _outer(self, offset: Array, count: Array) -> Array:
        return count[:, None, None] * (offset[:, :, None] * offset[:, None, :])

    def _cross(self, first: Array, offset: Array) -> Array:
        product = first[:, :, None] * offset[:, None, :]
        return product + jnp.swapaxes(product, 1, 2)

    def _diagonal(self, variance: Array) -> Array:
        return jnp.diag(variance)[None]

    def _expand(self, values: Array) -> Array:
        return values[:, None, None]

    def _divisor(self, count: Array, prior: Any, d: int, active: Array | None) -> Array:
        return count if prior is None else count + prior.dof + d + 2

    def _trace(self, factor: Array, scatter: Array) -> Array:
        return jnp.sum(_linalg.gram(factor) * scatter)

    def _log_inverse_wishart(self, factor: Array, half_log_det: Array, prior: Any, d: int) -> Array:
        nu, scale = prior.dof, prior.scale
        log_det_scale = 2 * _linalg.whitening(scale)[1]
        constant = 0.5 * nu * (log_det_scale - d * math.log(2)) - multigammaln(0.5 * nu, d)
        return (
            constant
            - (nu + d + 1) * half_log_det
            - 0.5 * jnp.sum(_linalg.gram(factor) * scale.reshape((1,) * (factor.ndim - 2) + (d, d)), (-2, -1))
        )

    def _colour(self, covariance: Array, z: Array, noise: Array) -> Array:
        return einsum("nij,nj->ni", _linalg.cholesky(covariance)[z], noise)

    def _proper(self, covariance: Array) -> Array:
        return _linalg.is_positive_definite(covariance)

    def _spreads(self, covariance: Array, d: int) -> tuple[Array, Array]:
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        return variance, variance[..., :, None] * variance[..., None, :] + jnp.square(covariance)

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (k, d), (k, d, d)

    def _scale_shape(self, d: int) -> tuple[int, ...]:
        return (d, d)

    def unconstrain(self, bank: NormalParams) -> NormalParams:
        """Means as they are, covariances as log-Cholesky factors (k, d(d+1)/2)."""
        return NormalParams(bank.mean, bijections.positive_definite.to_free(bank.covariance))

    def constrain(self, free: NormalParams) -> NormalParams:
        """Inverse of `unconstrain`."""
        return NormalParams(free.mean, bijections.positive_definite.from_free(free.covariance))

    def n_parameters(self, bank: NormalParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        d = bank.mean.shape[-1]
        return n_components * (d + d * (d + 1) // 2)
