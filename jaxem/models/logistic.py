"""Bayesian logistic regression by a local variational bound, and the bound itself.

σ(a) ≥ σ(ξ) exp((a − ξ)/2 − λ(ξ)(a² − ξ²)), λ(ξ) = tanh(ξ/2)/(4ξ), tight at a = ±ξ (Jaakkola & Jordan 2000; Bishop 2006,
eq. 10.144). The bound is Gaussian in the weights, so EM has both steps in closed form: E fits ξ, M is q(w).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid
from jax.scipy.special import gammaln

from .. import bijections
from .._typing import Array, Data, Key
from ..contracts.domains import COVARIANCE, REAL, check_leaves
from ..contracts.space import Coordinates
from ..latent.starts import Initializer
from ..numerics import linalg as _linalg
from ..numerics import tree as _tree
from ..numerics.linalg import dot, einsum
from ..numerics.maximize import newton


class LogisticParams(NamedTuple):
    """q(w) = N(mean (d,), covariance (d, d)).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> params = jaxem.LogisticParams(mean=jnp.array([0.0, 2.0]), covariance=jnp.eye(2))
        >>> model = jaxem.VariationalLogisticRegression()
        >>> model.predict_proba(params, jnp.array([[1.0, 0.0], [1.0, 1.0]])).round(2)
        Array([0.5 , 0.82], dtype=...)
    """

    mean: Array
    covariance: Array


class LogisticStats(NamedTuple):
    """Σ λ(ξ) x xᵀ (d, d), Σ (t − ½) x (d,), and Σ log σ(ξ) − ξ/2 + λ(ξ) ξ² ()."""

    curvature: Array
    linear: Array
    constant: Array


@_tree.register
@dataclass(frozen=True)
class FixedPrecision:
    """w ~ N(0, 1/precision). `precision` is () or (d,).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> params = jaxem.LogisticParams(mean=jnp.array([0.0, 2.0]), covariance=jnp.eye(2))
        >>> prior = jaxem.FixedPrecision(jnp.array([1e-4, 1.0]))  # of an intercept and a slope
        >>> model = jaxem.VariationalLogisticRegression(prior)
        >>> model.expected_precision(params)
        Array([1.e-04, 1.e+00], dtype=...)
    """

    precision: Any = 1.0

    def expected(self, params: LogisticParams | None, d: int, dtype: Any) -> Array:
        """E[precision], (d,)."""
        return jnp.broadcast_to(jnp.asarray(self.precision, dtype), (d,))

    def bound(self, square: Array) -> Array:
        """E_q(w)[log p(w)] + d/2 log 2π, of E[w²] (d,)."""
        precision = self.expected(None, square.shape[0], square.dtype)
        return 0.5 * jnp.sum(jnp.log(precision) - precision * square)


@_tree.register
@dataclass(frozen=True)
class GammaPrecision:
    """w ~ N(0, 1/α) with one α ~ Gamma(shape, rate), whose q(α) is always the best (Drugowitsch 2013, section 3).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> params = jaxem.LogisticParams(mean=jnp.array([0.0, 2.0]), covariance=jnp.eye(2))
        >>> model = jaxem.VariationalLogisticRegression(jaxem.GammaPrecision(shape=1e-2, rate=1e-4))
        >>> model.expected_precision(params).round(3)  # (shape + 1) / (rate + ½ E[wᵀw])
        Array([0.337, 0.337], dtype=...)
    """

    shape: Any = 1e-2
    rate: Any = 1e-4

    def _posterior(self, square: Array) -> tuple[Array, Array]:
        shape, rate = jnp.asarray(self.shape, square.dtype), jnp.asarray(self.rate, square.dtype)
        return shape + 0.5 * square.shape[0], rate + 0.5 * jnp.sum(square)

    def expected(self, params: LogisticParams | None, d: int, dtype: Any) -> Array:
        """E[α], (d,)."""
        if params is None:
            return jnp.broadcast_to(jnp.asarray(self.shape, dtype) / jnp.asarray(self.rate, dtype), (d,))
        shape, rate = self._posterior(_second_moment(params))
        return jnp.broadcast_to(shape / rate, (d,))

    def bound(self, square: Array) -> Array:
        """E[log p(w | α)] + d/2 log 2π − KL(q(α) ‖ p(α)) at the best q(α)."""
        shape, rate = jnp.asarray(self.shape, square.dtype), jnp.asarray(self.rate, square.dtype)
        post_shape, post_rate = self._posterior(square)
        prior = shape * jnp.log(rate) - gammaln(shape)
        return prior + gammaln(post_shape) - post_shape * jnp.log(post_rate)


@_tree.register
@dataclass(frozen=True)
class EstimatedPrecision:
    """w ~ N(0, 1/α) with one α chosen to raise the bound (type-II maximum likelihood).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> params = jaxem.LogisticParams(mean=jnp.array([0.0, 2.0]), covariance=jnp.eye(2))
        >>> model = jaxem.VariationalLogisticRegression(jaxem.EstimatedPrecision())
        >>> model.expected_precision(params).round(3)  # 2 / E[wᵀw]
        Array([0.333, 0.333], dtype=...)
    """

    start: Any = 1.0

    def expected(self, params: LogisticParams | None, d: int, dtype: Any) -> Array:
        """The best α for q(w), (d,)."""
        if params is None:
            return jnp.broadcast_to(jnp.asarray(self.start, dtype), (d,))
        return jnp.broadcast_to(d / jnp.sum(_second_moment(params)), (d,))

    def bound(self, square: Array) -> Array:
        """E_q(w)[log p(w | α)] + d/2 log 2π at the best α."""
        d = square.shape[0]
        return 0.5 * d * (jnp.log(d / jnp.sum(square)) - 1)


def _second_moment(params: LogisticParams) -> Array:
    return jnp.square(params.mean) + jnp.diagonal(params.covariance)


@_tree.register
@dataclass(frozen=True)
class VariationalLogisticRegression(Coordinates):
    """log p(t | x, w) = log σ((2t − 1) wᵀx), q(w) normal; the objective is a lower bound on log p(t | x).

    Data are (x (n, d), t (n,)), t 0 or 1, or between them for soft labels; a constant column of x is the intercept.
    `log_lik` of a fit is the expected bound of the rows, log prior is −KL(q(w) ‖ p(w)); their sum, the objective, never
    falls.

    Attributes:
        prior: `FixedPrecision(α)`, `GammaPrecision(shape, rate)` or `EstimatedPrecision()`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.stack([jnp.ones(40), jnp.linspace(-2.0, 2.0, 40)], 1)
        >>> t = (x[:, 1] > 0.3).astype(float)
        >>> model = jaxem.VariationalLogisticRegression()
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), (x, t)), (x, t)).check()
        >>> model.predict_proba(result.params, jnp.array([[1.0, -1.0], [1.0, 1.5]])).round(1)
        Array([0., 1.], dtype=...)
    """

    prior: Any = FixedPrecision()

    space: ClassVar[Any] = LogisticParams(bijections.real, bijections.positive_definite)  # type: ignore[arg-type]
    reads_floats: ClassVar[bool] = True

    def e_step(self, params: LogisticParams, data: Data, sample_weight: Array) -> tuple[LogisticStats, Array]:
        """ξ² = xᵀ(S + m mᵀ)x, the best for q(w) (Bishop 2006, eq. 10.163), and the sums that follow."""
        x, _ = data
        mean = dot(x, params.mean)
        variance = einsum("ni,ij,nj->n", x, params.covariance, x)
        stats = self._statistics(data, sample_weight, jnp.sqrt(jnp.maximum(variance, 0) + jnp.square(mean)))
        # at this ξ the quadratic terms of the rows cancel: −λ(E[a²] − ξ²) = 0
        return stats, self.expected_log_joint(params, stats)

    def _statistics(self, data: Data, sample_weight: Array, xi: Array) -> LogisticStats:
        x, t = data
        curve = _curvature(xi)
        rows = log_sigmoid(xi) - 0.5 * xi + curve * jnp.square(xi)
        return LogisticStats(
            dot((x * (sample_weight * curve)[:, None]).T, x),
            dot(sample_weight * (t - 0.5), x),
            jnp.sum(sample_weight * rows),
        )

    def m_step(self, params: LogisticParams | None, stats: LogisticStats) -> LogisticParams:
        """q(w): S⁻¹ = E[α] + 2 Σ λ x xᵀ, m = S Σ (t − ½) x (Bishop 2006, eq. 10.156 and 10.157)."""
        d = stats.linear.shape[0]
        precision = jnp.diag(self.prior.expected(params, d, stats.linear.dtype)) + 2 * stats.curvature
        whitening, _ = _linalg.whitening(precision)
        covariance = dot(whitening.T, whitening)
        return LogisticParams(dot(covariance, stats.linear), covariance)

    def expected_log_joint(self, params: LogisticParams, stats: LogisticStats) -> Array:
        """E_q of the rows' bound at the ξ of the statistics: ()."""
        second = params.covariance + params.mean[:, None] * params.mean[None]
        return stats.constant + dot(stats.linear, params.mean) - jnp.sum(stats.curvature * second)

    def log_prior(self, params: LogisticParams) -> Array:
        """−KL(q(w) ‖ p(w)), with the divergence of q(α) where α has a prior: ()."""
        half_log_det = _linalg.whitening(params.covariance)[1]
        return self.prior.bound(_second_moment(params)) + half_log_det + 0.5 * params.mean.shape[0]

    def init(
        self,
        key: Key,
        data: Data,
        sample_weight: Array | None = None,
        method: Initializer | None = None,
    ) -> LogisticParams:
        """q(w) for ξ = 1 everywhere. The bound has one maximum: `key` and `method` change nothing."""
        dtype = _tree.float_dtype(data)
        x, t = _tree.cast_data(data, dtype)
        weight = jnp.ones(x.shape[0], dtype) if sample_weight is None else jnp.asarray(sample_weight, dtype)
        present = weight > 0
        rows = (jnp.where(present[:, None], x, 0), jnp.where(present, t, 0))
        return self.m_step(None, self._statistics(rows, weight, jnp.ones(x.shape[0], dtype)))

    def expected_precision(self, params: LogisticParams) -> Array:
        """E[α] under the prior's own posterior: (d,)."""
        return self.prior.expected(params, params.mean.shape[0], params.mean.dtype)

    def predict_proba(self, params: LogisticParams, x: Data) -> Array:
        """∫ σ(wᵀx) q(w) dw of rows (n, d): (n,), by Gauss–Hermite quadrature with 32 nodes."""
        mean = dot(x, params.mean)
        spread = jnp.sqrt(jnp.maximum(einsum("ni,ij,nj->n", x, params.covariance, x), 0))
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)
        nodes, weights = (jnp.asarray(values, mean.dtype) for values in (nodes, weights / weights.sum()))
        return dot(jax.nn.sigmoid(mean[:, None] + spread[:, None] * nodes[None]), weights)

    def validate(self, params: LogisticParams, data: Any) -> None:
        """Raises a ValueError or TypeError if shapes do not fit."""
        if not isinstance(data, tuple) or len(data) != 2 or jnp.ndim(data[0]) != 2 or jnp.ndim(data[1]) != 1:
            raise ValueError("data: expected a tuple (x, t) of shapes (n, d) and (n,), labels t in [0, 1].")
        d = data[0].shape[1]
        if not isinstance(params, LogisticParams):
            raise TypeError(f"params: expected LogisticParams, got {type(params).__name__}; model.init makes them.")
        for name, leaf, want in zip(params._fields, params, ((d,), (d, d)), strict=True):
            if jnp.shape(leaf) != want:
                raise ValueError(f"params.{name}: expected shape {want} for {d} columns, got {jnp.shape(leaf)}.")

    def check_params(self, params: LogisticParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of concrete params lies outside of the parameter space."""
        check_leaves("params", params, (REAL, COVARIANCE), lanes=lanes)

    def check_data(self, data: Any, sample_weight: Array | None) -> None:
        """Raises a ValueError if a concrete label is not within [0, 1]."""
        t = np.asarray(data[1])
        bad = np.flatnonzero(
            ~((t >= 0) & (t <= 1)) & (True if sample_weight is None else np.asarray(sample_weight) > 0)
        )
        if len(bad):
            raise ValueError(f"data: expected labels t in [0, 1], got {t[bad[0]]} in row {bad[0]}.")


def _curvature(xi: Array) -> Array:
    """λ(ξ) = (σ(ξ) − ½) / (2ξ) (Bishop 2006, eq. 10.141); 1/8 at 0."""
    small = jnp.abs(xi) < 1e-2
    safe = jnp.where(small, 1, xi)
    return jnp.where(small, 0.125 - jnp.square(xi) / 96 + xi**4 / 960, jnp.tanh(0.5 * safe) / (4 * safe))


def sigmoid_bound(a: Any, xi: Any) -> Array:
    """σ(ξ) exp((a − ξ)/2 − λ(ξ)(a² − ξ²)) ≤ σ(a), with equality at a = ±ξ (Bishop 2006, eq. 10.144).

    Example:
        >>> import jax, jaxem
        >>> jaxem.sigmoid_bound(0.0, 1.0).round(3), jax.nn.sigmoid(0.0).round(3)
        (Array(0.498, dtype=...), Array(0.5, dtype=...))
    """
    a, xi = jnp.asarray(a, jnp.result_type(float, a, xi)), jnp.asarray(xi, jnp.result_type(float, a, xi))
    return jnp.exp(log_sigmoid(xi) + 0.5 * (a - xi) - _curvature(xi) * (jnp.square(a) - jnp.square(xi)))


def _log_expected_bound(xi: Array, mean: Array, var: Array) -> Array:
    curve = _curvature(xi)
    shrink = 1 + 2 * curve * var
    tilt = 0.5 * (mean + 0.25 * var - 2 * curve * jnp.square(mean)) / shrink
    return log_sigmoid(xi) - 0.5 * xi + curve * jnp.square(xi) - 0.5 * jnp.log(shrink) + tilt


@jax.jit
def expected_sigmoid_bound(mean: Any, var: Any) -> tuple[Array, Array]:
    """The bound of ∫ σ(a) N(a; mean, var) da, maximised over ξ.

    Args:
        mean: any shape.
        var: ≥ 0, broadcast against `mean`.

    Returns:
        The bound, and the ξ ≥ 0 that it was found at: ξ² is the second moment of σ's bound times the normal.

    Example:
        >>> import jaxem
        >>> bound, xi = jaxem.expected_sigmoid_bound(0.0, 1.0)  # of ∫ σ(a) N(a; 0, 1) da = ½
        >>> bound.round(3), xi.round(2)
        (Array(0.497, dtype=...), Array(0.99, dtype=...))
    """
    dtype = jnp.result_type(float, mean, var)
    mean, var = jnp.broadcast_arrays(jnp.asarray(mean, dtype), jnp.asarray(var, dtype))

    def one(mean: Array, var: Array) -> tuple[Array, Array]:
        start = jnp.sqrt(jnp.square(mean) + var)
        found = newton(lambda xi: _log_expected_bound(xi, mean, var), start)
        return jnp.exp(found.objective), jnp.abs(found.params)

    bound, xi = jax.vmap(one)(mean.ravel(), var.ravel())
    return bound.reshape(mean.shape), xi.reshape(mean.shape)
