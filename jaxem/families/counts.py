"""Regressions of counts: Poisson, binomial, negative binomial."""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid, sigmoid

from .. import _tree
from .._linalg import dot
from .._special import negative_binomial_log_prob, poisson_log_prob
from .._typing import Array, Data, Key
from ..design import solve
from ..domains import POSITIVE, REAL, Domain
from ._glm import GeneralizedRegression, Slopes
from ._regression import Observed, given_of
from .regression import predictors


class PoissonRegressionParams(NamedTuple):
    """Coefficients (k, p) of the log mean.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data = (jnp.ones((2, 1)), jnp.array([1.0, 10.0]))  # an intercept alone
        >>> bank = jaxem.PoissonRegressionParams(coefficients=jnp.log(jnp.array([[2.0], [9.0]])))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.PoissonRegression(), n_components=2).predict(start, data)
        Array([0, 1], dtype=...)
    """

    coefficients: Array


class LogisticRegressionParams(NamedTuple):
    """Coefficients (k, p) of the log odds.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data = (jnp.ones((2, 1)), jnp.array([0.0, 1.0]))  # an intercept alone
        >>> bank = jaxem.LogisticRegressionParams(coefficients=jnp.array([[-2.0], [2.0]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.LogisticRegression(), n_components=2).predict(start, data)
        Array([0, 1], dtype=...)
    """

    coefficients: Array


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


@dataclass(frozen=True)
class _CountRegression(GeneralizedRegression):
    """A regression of counts on the logarithm of their mean."""

    _response: ClassVar[str] = "counts (non-negative integers)"

    def _link(self, coefficients: Array, x: Data, rows: Observed) -> Array:
        """Means, as a product of exponentials of what all rows share, the offset, and the rest.

        Rounding of η, 1e-6 of 18 in float32, is a relative error of the mean: 100 of 1e8, a hundredth of its standard
        deviation. What all rows share does no harm to a mode.
        """
        eta = self._predictor(coefficients, rows)
        if self.basis is None:
            return jnp.exp(eta)
        shared = dot(coefficients, self.basis.mean)[None]
        own = dot(self.basis.rows(x[0]) - self.basis.mean[None], coefficients.T)
        parts = [shared, own] if rows.offset is None else [shared, own, rows.offset[:, None]]
        most = 0.3 * math.log(float(jnp.finfo(eta.dtype).max))
        inside = functools.reduce(jnp.logical_and, [jnp.abs(part) < most for part in parts])
        # behind a barrier: XLA makes exp(a)·exp(b) exp(a + b)
        factors = [lax.optimization_barrier(jnp.exp(jnp.where(inside, part, 0))) for part in parts]
        product = functools.reduce(jnp.multiply, factors)
        return jnp.where(inside, product, jnp.exp(eta))

    def _start(self, y: Array) -> Array:
        return jnp.log(y + 0.5)

    def _in_support(self, response: Any) -> Any:
        return _are_counts(response)


@_tree.register
@dataclass(frozen=True)
class PoissonRegression(_CountRegression):
    """Counts y ~ Poisson(exp(offset + xᵀ coefficients)). Data are (x (n, p), y (n,)) or (x, y, offset (n,)), a tuple.

    No intercept is added: a column of ones in x is one. The offset is the logarithm of the exposure. A component whose
    counts are all zero has no mode, nor one whose rows do not determine its coefficients: the fit ends as DEGENERATE,
    unless there is a prior. The M step is Newton's method over all rows, so that streams cannot be fitted.

    Attributes:
        prior: a `GaussianPrior` on the coefficients, or None.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.stack([jnp.ones(6), jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])], 1)
        >>> data = (x, jnp.array([1, 2, 3, 6, 8, 10]))
        >>> model = jaxem.Mixture(jaxem.PoissonRegression(), n_components=1)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> jnp.exp(result.params.components.coefficients).round(3)
        Array([[2., 4.]], dtype=...)
    """

    _bank: ClassVar[type] = PoissonRegressionParams
    _domains: ClassVar[tuple[Domain, ...]] = (REAL,)

    def _log_density(self, mean: Array, shape: None, y: Array) -> Array:
        return poisson_log_prob(y[:, None], mean)

    def _slopes(self, eta: Array, shape: None, y: Array) -> Slopes:
        mean = jnp.exp(eta)
        return Slopes(y[:, None] * eta - mean, y[:, None] - mean, -mean)

    def sample(self, bank: PoissonRegressionParams, key: Key, z: Array, given: Data) -> tuple:
        """Responses of components z (n,), given covariates (n, p), or (covariates, offset): data."""
        eta, data = predictors(bank.coefficients, z, given)
        return data(jax.random.poisson(key, jnp.exp(eta)).astype(eta.dtype))


@_tree.register
@dataclass(frozen=True)
class LogisticRegression(GeneralizedRegression):
    """Successes s of s + f trials ~ Binomial(sigmoid(offset + xᵀ coefficients)).

    Data are a tuple (x (n, p), y[, offset (n,)]): y (n,) of zeros and ones, or y (n, 2), the columns successes and
    failures; the binomial coefficient is part of the likelihood. No intercept is added: a column of ones in x is one.
    Where covariates separate the successes of a component from its failures it has no mode: the fit ends as
    DEGENERATE, unless there is a prior. The M step is Newton's method over all rows.

    Attributes:
        prior: a `GaussianPrior` on the coefficients, or None.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> data = (jnp.ones((2, 1)), jnp.array([[3, 7], [5, 5]]))
        >>> model = jaxem.Mixture(jaxem.LogisticRegression(), n_components=1)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> jax.nn.sigmoid(result.params.components.coefficients).round(3)
        Array([[0.4]], dtype=...)
    """

    _bank: ClassVar[type] = LogisticRegressionParams
    _domains: ClassVar[tuple[Domain, ...]] = (REAL,)
    _response: ClassVar[str] = "zeros and ones, or counts of successes and failures,"
    _response_shapes: ClassVar[tuple[str, ...]] = ("(n,)", "(n, 2)")

    def _counts(self, y: Array) -> tuple[Array, Array]:
        """Successes and failures (n, 1)."""
        return (y[:, None], 1 - y[:, None]) if y.ndim == 1 else (y[:, :1], y[:, 1:])

    def _log_density(self, eta: Array, shape: None, y: Array) -> Array:
        s, f = self._counts(y)
        if y.ndim == 1:
            return s * log_sigmoid(eta) + f * log_sigmoid(-eta)
        # Poisson counts given their total: digits do not go with the size of the trials (Loader 2000)
        total = s + f
        each = poisson_log_prob(s, total * sigmoid(eta)) + poisson_log_prob(f, total * sigmoid(-eta))
        return each - poisson_log_prob(total, total)

    def _slopes(self, eta: Array, shape: None, y: Array) -> Slopes:
        s, f = self._counts(y)
        up, down = sigmoid(eta), sigmoid(-eta)
        return Slopes(s * log_sigmoid(eta) + f * log_sigmoid(-eta), s * down - f * up, -(s + f) * up * down)

    def informative(self, x: Data) -> Array | None:
        """Which rows have a trial: (n,); None of zeros and ones."""
        response = x[1] if isinstance(x, tuple) and len(x) > 1 else None
        if response is None or jnp.ndim(response) != 2:
            return None
        return jnp.any(response != 0, 1)  # NaN stays to be seen

    def _start(self, y: Array) -> Array:
        s, f = self._counts(y)
        return jnp.log((s + 0.5) / (f + 0.5))[:, 0]

    def _in_support(self, response: Any) -> Any:
        return (response == 0) | (response == 1) if response.ndim == 1 else _are_counts(response)

    def sample(self, bank: LogisticRegressionParams, key: Key, z: Array, given: Data) -> tuple:
        """Zeros and ones of components z (n,), given covariates (n, p), or (covariates, offset): data."""
        eta, data = predictors(bank.coefficients, z, given)
        return data(jax.random.bernoulli(key, sigmoid(eta)).astype(eta.dtype))

    def sample_like(self, bank: LogisticRegressionParams, key: Key, z: Array, x: Data) -> tuple:
        """Responses of components z (n,) in the place of those of x, of as many trials: data."""
        if x[1].ndim == 1:
            return super().sample_like(bank, key, z, x)
        eta, data = predictors(bank.coefficients, z, given_of(x))
        trials = jnp.sum(x[1], 1)
        successes = jax.random.binomial(key, trials, sigmoid(eta), dtype=eta.dtype)
        return data(jnp.stack([successes, trials - successes], 1))


@_tree.register
@dataclass(frozen=True)
class NegativeBinomialRegression(_CountRegression):
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


def _are_counts(response: Any) -> Any:
    return (response >= 0) & (response == jnp.floor(response)) & (response < jnp.inf)
