"""Logistic regressions, of zeros and ones or of successes and failures."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from ..._typing import Array, Data, Key
from ...contracts.domains import REAL, Domain
from ...numerics import tree as _tree
from ...numerics.special import poisson_log_prob
from ._counts import are_counts
from ._generalized import GeneralizedRegression, Slopes
from ._regression import given_of
from .linear import predictors


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
        return (response == 0) | (response == 1) if response.ndim == 1 else are_counts(response)

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
