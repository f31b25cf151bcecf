"""Negative binomial regressions: counts that spread more than Poisson."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..._typing import Array, Data, Key
from ...contracts.domains import POSITIVE, REAL, Domain
from ...numerics import tree as _tree
from ...numerics.newton_bank import solve
from ...numerics.special import negative_binomial_log_prob
from ._counts import CountRegression
from ._generalized import Slopes
from .linear import predictors


class NegativeBinomialRegressionParams(NamedTuple):
    """Coefficients (k, p) of the log mean and sizes (k,): the variance is mean + mean²/size.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.NegativeBinomialRegressionParams(jnp.log(jnp.array([[2.0], [8.0]])), size=jnp.full(2, 4.0))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)  # of two components and an intercept alone
        >>> mean = jnp.exp(bank.coefficients[:, 0])
        >>> mean + mean**2 / bank.size
        Array([ 3., 24.], dtype=...)
    """

    coefficients: Array
    size: Array


@_tree.register
@dataclass(frozen=True)
class NegativeBinomialRegression(CountRegression):
    """Counts y of mean μ = exp(offset + xᵀ coefficients) and variance μ + μ²/size, a size for each component.

    Data as of `PoissonRegression`, which is the limit of large sizes: data without overdispersion end at the largest,
    1/√eps. Coefficients and size are estimated together, by Newton's method over all rows (Lawless 1987). Without a
    mode a component ends the fit as DEGENERATE, as there.

    Attributes:
        prior: a `GaussianPrior` on the coefficients, or None.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> data = (jnp.ones((8, 1)), jnp.array([0, 0, 1, 1, 2, 4, 9, 15]))
        >>> model = jaxem.Mixture(jaxem.NegativeBinomialRegression(), n_components=1)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> jnp.exp(result.params.components.coefficients).round(3), result.params.components.size.round(1)
        (Array([[4.]], dtype=...), Array([0.6], dtype=...))
    """

    _has_shape: ClassVar[bool] = True
    _bank: ClassVar[type] = NegativeBinomialRegressionParams
    _domains: ClassVar[tuple[Domain, ...]] = (REAL, POSITIVE)

    def _shape(self, bank: Any) -> Array:
        return bank.size

    def _with(self, coefficients: Array, shape: Array | None) -> Any:
        size = jnp.ones_like(coefficients[:, 0]) if shape is None else shape
        return NegativeBinomialRegressionParams(coefficients, size)

    def _log_density(self, mean: Array, shape: Array, y: Array) -> Array:
        return negative_binomial_log_prob(y[:, None], shape[None], mean)

    def _slopes(self, eta: Array, shape: Array, y: Array) -> Slopes:
        y, mean = y[:, None], jnp.exp(eta)
        size = jnp.broadcast_to(jnp.exp(shape)[None], eta.shape)
        ones = jnp.ones_like(size)
        of_size = lambda size: negative_binomial_log_prob(y, size, mean)  # noqa: E731
        slope = lambda size: jax.jvp(of_size, (size,), (ones,))  # noqa: E731
        (value, first), (_, second) = jax.jvp(slope, (size,), (ones,))
        total = 1 + mean / size
        return Slopes(
            value,
            (y - mean) / total,
            -mean * (1 + y / size) / jnp.square(total),
            size * first,
            (y - mean) * (mean / size) / jnp.square(total),
            size * first + jnp.square(size) * second,
        )

    # sizes are kept where they are more than rounding

    def _limit(self, dtype: Any) -> float:
        return -0.5 * math.log(float(jnp.finfo(dtype).eps))

    def _clipped(self, point: Array) -> Array:
        limit = self._limit(point.dtype)
        return point.at[:, -1].set(jnp.clip(point[:, -1], -limit, limit))

    def _within_bounds(self, point: Array, gradient: Array, information: Array) -> tuple[Array, Array]:
        limit, slope = self._limit(point.dtype), gradient[:, -1]
        stays = ((point[:, -1] >= limit) & (slope > 0)) | ((point[:, -1] <= -limit) & (slope < 0))
        last = jnp.arange(point.shape[1]) == point.shape[1] - 1
        either = stays[:, None, None] & (last[None, :, None] | last[None, None])
        corner = (last[:, None] & last[None]).astype(point.dtype)[None]
        return jnp.where(stays[:, None] & last[None], 0, gradient), jnp.where(either, corner, information)

    def _uphill(self, surface: Any) -> Array:
        """Coefficients and size by themselves: of the first the information is positive definite."""
        information, gradient = surface.information, surface.gradient
        p = gradient.shape[1] - 1
        step, _, proper = solve(information[:, :p, :p], gradient[:, :p])
        size = jnp.sum(jnp.abs(information[:, :p, :p]), 2)
        step = jnp.where(proper[:, None], step, gradient[:, :p] / jnp.where(size > 0, size, 1))
        curvature = jnp.maximum(jnp.abs(information[:, p, p]), jnp.abs(gradient[:, p]))
        along = gradient[:, p] / jnp.where(curvature > 0, curvature, 1)
        return jnp.concatenate([step, along[:, None]], 1)

    def _started(self, stats: Any) -> Array:
        coefficients = super()._started(stats)
        return jnp.concatenate([coefficients, jnp.zeros_like(coefficients[:, :1])], 1)

    def sample(self, bank: NegativeBinomialRegressionParams, key: Key, z: Array, given: Data) -> tuple:
        """Responses of components z (n,), given covariates (n, p), or (covariates, offset): data."""
        eta, data = predictors(bank.coefficients, z, given)
        key_rate, key_count = jax.random.split(key)
        size = bank.size[z]
        rate = jnp.exp(eta) * jax.random.gamma(key_rate, size, dtype=eta.dtype) / size
        return data(jax.random.poisson(key_count, rate).astype(eta.dtype))
