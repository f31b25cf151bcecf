"""Priors as records of hyper-parameters; every value is a leaf, so it can be batched and differentiated."""

from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from .._typing import Array
from ..numerics import tree as _tree


@_tree.register
@dataclass(frozen=True)
class NormalInverseWishart:
    """μ | Σ ~ N(mean, Σ / shrinkage), Σ ~ inverse Wishart(dof, scale); the conjugate prior of a normal.

    The same record serves every normal family, with the relative of the inverse Wishart that fits its covariance
    (Fraley & Raftery 2007): full and tied take a scale (d, d); diagonal takes (d,), σ_a² ~ inverse gamma(dof/2,
    scale_a/2); spherical takes (), σ² ~ inverse gamma(dof/2, scale/2).

    Attributes:
        mean: (d,), in units of the data.
        shrinkage: κ > 0, in observations.
        dof: ν, degrees of freedom; ν > d − 1 for a proper inverse Wishart.
        scale: see above, in squared units of the data.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> prior = jaxem.NormalInverseWishart(mean=jnp.zeros(1), shrinkage=2.0, dof=3.0, scale=jnp.eye(1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(prior=prior), n_components=1)
        >>> model.init(jax.random.key(0), jnp.array([[1.0], [3.0]])).components.mean  # 4 / (2 rows + 2)
        Array([[1.]], dtype=...)
    """

    mean: Any
    shrinkage: Any
    dof: Any
    scale: Any

    @staticmethod
    def default(*, shrinkage: Any = 0.01, dof: Any = None) -> "DefaultPrior":
        """The prior that follows from the data and the number of components (Fraley & Raftery 2007, section 3).

        Args:
            shrinkage: in observations.
            dof: None is d + 2.
        """
        return DefaultPrior(shrinkage, dof)


@_tree.register
@dataclass(frozen=True)
class DefaultPrior:
    """A `NormalInverseWishart` that `bind` makes of the data, for every problem its own; as mclust's `priorControl()`.

    Its mean is that of the columns, its dof d + 2, its scale S / k^(2/d), S the covariance of all rows with divisor
    n − 1: full and tied; its mean variance over the columns: diagonal and spherical, where the units of the columns
    matter. k counts the components that are active. Like S it follows outliers, as the floor does not.

    Attributes:
        shrinkage: κ > 0, in observations.
        dof: ν; None is d + 2.
        n_components: set by `bind`, k.
        mean: set by `bind`, (d,).
        covariance: set by `bind`, (d, d), S.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.zeros(10), jnp.linspace(4.0, 6.0, 10)])[:, None]  # half of the rows are equal
        >>> prior = jaxem.NormalInverseWishart.default()  # a DefaultPrior
        >>> model = jaxem.Mixture(jaxem.FullNormal(prior=prior), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> [f"{variance:.2f}" for variance in jnp.sort(result.params.components.covariance.ravel())]
        ['0.11', '0.36']
    """

    shrinkage: Any = 0.01
    dof: Any = None
    n_components: Any = None
    mean: Any = None
    covariance: Any = None

    def bound(self, x: Array, weight: Array | None) -> Self:
        """The prior of these rows (n, d), of weights (n,) or, of entries, (n, d)."""
        ones = jnp.ones((1, 1), x.dtype) if weight is None else weight.reshape(x.shape[0], -1)
        weight = jnp.broadcast_to(ones, x.shape)
        total = jnp.sum(weight, 0)
        safe = jnp.where(total > 0, total, 1)
        origin = jax.lax.stop_gradient(x[0])
        mean = origin + jnp.sum(weight * (x - origin[None]), 0) / safe
        y = jnp.sqrt(weight) * (x - mean[None])
        # where entries are missing the product has their column's mean, and each column its own variance
        cross = jnp.matmul(y.T, y, precision=jax.lax.Precision.HIGHEST)
        root = jax.lax.rsqrt(jnp.where(total > 1, total - 1, jnp.inf))
        return replace(self, mean=mean, covariance=cross * (root[:, None] * root[None]))

    def merged(self, seen: Array, other: Self, other_seen: Array) -> Self:
        """The prior of the rows of both, of weights (d,)."""
        total = seen + other_seen
        between = jnp.sqrt(seen * other_seen / jnp.where(total > 0, total, 1)) * (other.mean - self.mean)
        root = lambda weight: jnp.sqrt(jnp.maximum(weight - 1, 0))  # noqa: E731
        scatter = between[:, None] * between[None]
        for side, weight in ((self, seen), (other, other_seen)):
            scatter = scatter + side.covariance * (root(weight)[:, None] * root(weight)[None])
        inverse = jax.lax.rsqrt(jnp.where(total > 1, total - 1, jnp.inf))
        mean = self.mean + other_seen / jnp.where(total > 0, total, 1) * (other.mean - self.mean)
        return replace(self, mean=mean, covariance=scatter * (inverse[:, None] * inverse[None]))

    def known(self, scale_shape: tuple[int, ...], dtype: Any) -> NormalInverseWishart:
        """The record, for a family whose scale has this shape.

        Raises:
            ValueError: if the model is not bound.
        """
        if self.covariance is None:
            raise ValueError(
                "prior: expected a model that is bound to its data, which the default prior is made of, got none; use "
                "result.model, or bind(model, data, None)."
            )
        d = self.covariance.shape[0]
        k = jnp.asarray(1 if self.n_components is None else self.n_components, dtype)
        scale = self.covariance if len(scale_shape) == 2 else jnp.trace(self.covariance) / d
        scale = jnp.broadcast_to(scale * k ** (-2 / d), scale_shape)
        return NormalInverseWishart(self.mean, self.shrinkage, d + 2 if self.dof is None else self.dof, scale)


@_tree.register
@dataclass(frozen=True)
class GammaPrior:
    """Gamma(shape, rate), the conjugate prior of a rate: shape − 1 events counted in `rate` observations.

    Attributes:
        shape: ≥ 1 for a mode inside.
        rate: in observations.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> model = jaxem.Mixture(jaxem.Poisson(prior=jaxem.GammaPrior(shape=2.0, rate=1.0)), n_components=1)
        >>> model.init(jax.random.key(0), jnp.zeros((3, 1))).components.rate  # 1 event in 3 + 1 observations
        Array([[0.25]], dtype=...)
    """

    shape: Any
    rate: Any


@_tree.register
@dataclass(frozen=True)
class BetaPrior:
    """Beta(a, b), the conjugate prior of a probability: a − 1 successes and b − 1 failures.

    Attributes:
        a: ≥ 1 for a mode inside.
        b: ≥ 1 for a mode inside.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> model = jaxem.Mixture(jaxem.Bernoulli(prior=jaxem.BetaPrior(a=2.0, b=2.0)), n_components=1)
        >>> model.init(jax.random.key(0), jnp.ones((3, 1))).components.prob  # 3 + 1 successes in 3 + 2
        Array([[0.8]], dtype=...)
    """

    a: Any
    b: Any


@_tree.register
@dataclass(frozen=True)
class DirichletPrior:
    """Dirichlet(concentration), the conjugate prior of category probabilities: concentration − 1 counts of each.

    Attributes:
        concentration: ≥ 1 for a mode inside.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> model = jaxem.Mixture(jaxem.Categorical(3, prior=jaxem.DirichletPrior(2.0)), n_components=1)
        >>> model.init(jax.random.key(0), jnp.array([[0.0], [0.0]])).components.prob  # counts 2 + 1, 1 and 1
        Array([[[0.6, 0.2, 0.2]]], dtype=...)
    """

    concentration: Any


@_tree.register
@dataclass(frozen=True)
class GaussianPrior:
    """Coefficients β ~ N(mean, 1/precision), independent of each other; a ridge penalty.

    In `LinearRegression` and `StudentTRegression` N(mean, variance of the component / precision): the precision counts
    squared units of the covariate, as XᵀX does.

    Attributes:
        precision: () or (p,), ≥ 0; 0 leaves a coefficient, such as the intercept, without a prior.
        mean: () or (p,).

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> data = (jnp.ones((3, 1)), jnp.array([2.0, 4.0, 6.0]))
        >>> model = jaxem.Mixture(jaxem.LinearRegression(prior=jaxem.GaussianPrior(precision=3.0)), n_components=1)
        >>> model.init(jax.random.key(0), data).components.coefficients.round(3)  # 12 / (3 rows + 3)
        Array([[2.]], dtype=...)
    """

    precision: Any
    mean: Any = 0.0


def log_power(exponent: Array, x: Array) -> Array:
    """exponent·log x, with 0·log 0 = 0, and no NaN in its gradient."""
    zero = x == 0
    power = exponent * jnp.log(jnp.where(zero, 1, x))
    at_zero = jnp.where(exponent == 0, 0, jnp.where(exponent > 0, -jnp.inf, jnp.inf))
    return jnp.where(zero, at_zero, power)


def gamma_log_prob(prior: GammaPrior, x: Array) -> Array:
    """log Gamma(x | shape, rate) elementwise, with its constant; shape and rate are (d,) or () along the last axis."""
    along_last = (1,) * (x.ndim - 1) + x.shape[-1:]
    shape, rate = (
        jnp.broadcast_to(jnp.asarray(leaf, x.dtype), x.shape[-1:]).reshape(along_last)
        for leaf in (prior.shape, prior.rate)
    )
    return shape * jnp.log(rate) - gammaln(shape) + log_power(shape - 1, x) - rate * x


def dirichlet_log_prob(concentration: Array, weights: Array, active: Array | None) -> Array:
    """log Dirichlet(weights | concentration) over the active components.

    Args:
        concentration: (k,) or ().
        weights: (k,), on the simplex.
        active: (k,) booleans, or None for all.

    Returns:
        (): the log density with its constant.
    """
    alpha = jnp.broadcast_to(concentration, weights.shape).astype(weights.dtype)
    mask = jnp.ones(weights.shape, bool) if active is None else active
    alpha = jnp.where(mask, alpha, 1)
    total = jnp.sum(jnp.where(mask, alpha, 0))
    safe = jnp.where(mask, weights, 1)
    terms = jax.scipy.special.xlogy(alpha - 1, safe) - gammaln(alpha)
    return gammaln(total) + jnp.sum(jnp.where(mask, terms, 0))


def gaussian_log_constant(precision: Array) -> Array:
    """Σ ½ log(precision / 2π) over the coefficients that have a prior, of precisions (p,): ()."""
    proper = precision > 0
    return 0.5 * jnp.sum(jnp.where(proper, jnp.log(jnp.where(proper, precision, 1) / (2 * jnp.pi)), 0))
