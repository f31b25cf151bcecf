"""Poisson regressions."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..._typing import Array, Data, Key
from ...contracts.domains import REAL, Domain
from ...numerics import tree as _tree
from ...numerics.special import poisson_log_prob
from ._counts import CountRegression
from ._generalized import Slopes
from .linear import predictors


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


@_tree.register
@dataclass(frozen=True)
class PoissonRegression(CountRegression):
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
