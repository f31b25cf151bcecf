"""Normal components that share one covariance matrix."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from ..._typing import Array
from ...fold.features import Features
from ...numerics import linalg as _linalg
from ...numerics import tree as _tree
from ...numerics.linalg import dot
from ._normal import Moments, NormalParams
from .full import FullNormal


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

    rows_add: ClassVar[bool] = False  # what components share is taken from squares of a row  # type: ignore

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
