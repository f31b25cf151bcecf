"""Linear regressions: the components of a mixture of regressions (Quandt & Ramsey 1978; DeSarbo & Cron 1988)."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from ... import bijections
from ..._typing import Array, Data, Key
from ...contracts.domains import NOT_NEGATIVE, REAL, Domain
from ...contracts.space import InSpace
from ...contracts.status import Status
from ...fold.covariates import rows_alike
from ...fold.present import present_rows
from ...numerics import tree as _tree
from ...numerics.linalg import dot, einsum
from ...numerics.newton_bank import solve
from ...numerics.scales import Weighed, clumps_of, robust_variance
from ._regression import Observed, Regression, constant, weighted_mean

_LOG_2PI = math.log(2 * math.pi)


class LinearRegressionParams(NamedTuple):
    """Coefficients (k, p) and the variances of the residuals (k,).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data = (jnp.ones((2, 1)), jnp.array([1.0, 4.0]))  # an intercept alone
        >>> bank = jaxem.LinearRegressionParams(coefficients=jnp.array([[0.0], [5.0]]), variance=jnp.ones(2))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.LinearRegression(), n_components=2).predict(start, data)
        Array([0, 1], dtype=...)
    """

    coefficients: Array
    variance: Array


class CrossMoments(NamedTuple):
    """Σ r (k,); Σ r z zᵀ (k, p, p), Σ r z e (k, p), Σ r e² (k,) of columns z and residuals e about a pivot."""

    count: Array
    gram: Array
    cross: Array
    square: Array


@_tree.register
@dataclass(frozen=True)
class LinearRegression(Regression, InSpace):
    """y | x ~ N(offset + xᵀ coefficients, variance). Data are (x (n, p), y (n,)) or (x, y, offset (n,)), a tuple.

    No intercept is added: a column of ones in x is one. The M step is weighted least squares, with the maximum
    likelihood divisor Σr. A component whose rows do not determine its coefficients, such as one with fewer rows than
    covariates, ends the fit as DEGENERATE; with a prior it does not. Concrete covariates without full rank are a
    `ValueError`, over lanes DEGENERATE.

    Attributes:
        prior: a `GaussianPrior`: coefficients ~ N(mean, variance / precision), ridge regression; None is flat.
        floor: regularisation, in units of the robust variance of the response, as of `FullNormal`: the log prior
            −½ floor·var(y) Σ_j 1 / variance_j. 0 is pure maximum likelihood.
        variance, robust_variance: set by `bind`, (): of the response, less its offset.
        centre: set by `bind`, (p,): the pooled fit, where a component without weight is put.
        pivot: set by `recentred`, (k, p): coefficients about which moments are taken.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> t = jnp.tile(jnp.linspace(-1.0, 1.0, 40), 2)
        >>> first = jnp.arange(80) < 40
        >>> y = jnp.where(first, 3 + 2 * t, 1 - t) + 0.05 * jnp.cos(50 * t)
        >>> data = (jnp.stack([jnp.ones(80), t], 1), y)
        >>> model = jaxem.Mixture(jaxem.LinearRegression(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> jnp.sort(result.params.components.coefficients[:, 1]).round(1)
        Array([-1.,  2.], dtype=...)
    """

    floor: Any = 1e-6
    variance: Any = field(default=None, kw_only=True)
    robust_variance: Any = field(default=None, kw_only=True)
    centre: Any = field(default=None, kw_only=True)
    pivot: Any = field(default=None, kw_only=True)

    additive: ClassVar[bool] = True
    conditional: ClassVar[bool] = True
    _bank: ClassVar[type] = LinearRegressionParams
    space: ClassVar[Any] = LinearRegressionParams(bijections.real, bijections.positive)  # type: ignore[arg-type]
    _domains: ClassVar[tuple[Domain, ...]] = (REAL, NOT_NEGATIVE)
    _response: ClassVar[str] = "finite numbers"

    # --- constants of the data, and coordinates about the pooled fit

    def bind(self, x: Data, sample_weight: Array | None) -> Self:
        """The family with the basis of the covariates, the pooled fit in it, and the variance of the response."""
        bound = super().bind(x, sample_weight)
        z, y, offset = bound._observed(present_rows(x, sample_weight))
        y = y if offset is None else y - offset
        mean = weighted_mean(y, sample_weight)
        gap = y - constant(mean)
        variance = weighted_mean(jnp.square(gap), sample_weight)
        variance = variance - jnp.square(weighted_mean(gap, sample_weight))
        centre = weighted_mean(z * y[:, None], sample_weight)
        # once more: of a response far from zero the first has lost digits
        centre = centre + weighted_mean(z * (y - dot(z, centre))[:, None], sample_weight)
        robust = robust_variance(y[:, None], sample_weight)[0]
        return replace(bound, variance=variance, centre=constant(centre), robust_variance=robust)

    def weigh(self, x: Data, sample_weight: Array | None) -> Any:
        """What stands behind the constants of the response less the offset: its rows, and their sum."""
        _, y, *offset = present_rows(x, sample_weight)
        y = y - offset[0] if offset else y
        weight = jnp.ones_like(y) if sample_weight is None else sample_weight
        sums = jnp.stack([jnp.sum(weight), jnp.sum(weight * y)])
        return Weighed(sums, clumps_of(y[:, None], sample_weight))

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The family bound to the rows of both, which a few rows with the same moments stand for."""
        alike = lambda side, weight, total: rows_alike(side.basis, side.variance, side.centre, total / weight)  # noqa: E731
        sides = (alike(self, *seen.weight), alike(other, *other_seen.weight))
        x, y = (jnp.concatenate(parts) for parts in zip(*sides, strict=True))
        weight = jnp.repeat(jnp.stack([seen.weight[0], other_seen.weight[0]]), x.shape[0] // 2)
        unbound = replace(self, basis=None, variance=None, centre=None, robust_variance=None)
        return replace(unbound.bind((x, y), weight), robust_variance=seen.robust_variance(other_seen)[0])

    def merged_weight(self, seen: Any, other_seen: Any) -> Any:
        """What stands behind the constants of both."""
        return seen.merged(other_seen)

    def _to_local(self, coefficients: Array) -> Array:
        local = super()._to_local(coefficients)
        return local if self.centre is None else local - self.centre[(None,) * (local.ndim - 1)]

    def _to_global(self, coefficients: Array) -> Array:
        centre = 0 if self.centre is None else self.centre[(None,) * (coefficients.ndim - 1)]
        return super()._to_global(coefficients + centre)

    def recentred(self, bank: LinearRegressionParams) -> Self:
        """The same family with moments about these coefficients, where they keep their digits."""
        return replace(self, pivot=constant(self._inside(bank)))

    def _observed(self, x: Data) -> Observed:
        """With the residuals of the pooled fit in the place of the response, and no offset."""
        z, y, offset = super()._observed(x)
        y = y if offset is None else y - offset
        return Observed(z, y if self.centre is None else y - dot(z, self.centre), None)

    # --- densities

    def residuals(self, bank: Any, x: Data) -> Array:
        """y − offset − xᵀ coefficients: (n, k)."""
        z, y, _ = self._observed(x)
        return y[:, None] - dot(z, self._inside(bank).T)

    def log_prob(self, bank: LinearRegressionParams, x: Data) -> Array:
        """log N(y_i | offset_i + x_iᵀ β_j, σ_j²): (n, k); NaN without a variance."""
        bank = jax.tree.map(jnp.asarray, bank)
        variance = jnp.where(bank.variance > 0, bank.variance, jnp.nan)[None]
        return -0.5 * (jnp.square(self.residuals(bank, x)) / variance + jnp.log(variance) + _LOG_2PI)

    # --- statistics and their mode

    def statistics(self, bank: Any, x: Data, responsibilities: Array) -> CrossMoments:
        """Moments about the pivot, summed with responsibilities (n, k). `bank` is not used."""
        z, y, _ = self._observed(x)

        def one(both: tuple[Array, Array]) -> CrossMoments:
            r, pivot = both
            e = y - dot(z, pivot)
            return CrossMoments(jnp.sum(r), dot((z * r[:, None]).T, z), dot(r * e, z), dot(r, jnp.square(e)))

        return lax.map(one, (responsibilities.T, self._pivot(responsibilities.shape[1], z)))

    def _pivot(self, k: int, like: Array) -> Array:
        return jnp.zeros((k, like.shape[-1]), like.dtype) if self.pivot is None else self.pivot

    def estimate(
        self, bank: LinearRegressionParams | None, stats: CrossMoments, active: Array | None = None
    ) -> LinearRegressionParams:
        """Weighted least squares and Σr e² / Σr, with the prior's and the floor's pseudo-observations.

        β = (G + P)⁻¹(Σrzy + P m), σ² = (Σrε² + (β − m)ᵀP(β − m) + floor·var(y)) / (Σr + q), of the q coefficients that
        have a prior. Where G + P is singular the variance is 0, which is no density; at initialisation the smallest
        ridge is added. A component without any weight stays where it is, or takes the pooled fit.
        """
        coefficients, square, shared = self._solved(stats, singular_is_fatal=bank is not None)
        present = stats.count > 0
        variance = (square + self._floor_scale(square.dtype)) / jnp.where(present, stats.count + shared, 1)
        if bank is None:
            spread = jnp.ones((), square.dtype) if self.robust_variance is None else self.robust_variance
            rest = LinearRegressionParams(jnp.zeros_like(coefficients), jnp.where(spread > 0, spread, 1))
        else:
            rest = LinearRegressionParams(self._inside(bank), bank.variance)
        variance = jnp.where(jnp.isnan(coefficients[:, 0]), 0, variance)
        coefficients = jnp.where(jnp.isnan(coefficients), 0, coefficients)
        return LinearRegressionParams(
            self._outside(jnp.where(present[:, None], coefficients, rest.coefficients)),
            jnp.where(present, variance, rest.variance),
        )

    def _solved(self, stats: CrossMoments, singular_is_fatal: bool) -> tuple[Array, Array, Array]:
        """Coefficients (k, p) of the basis, NaN where singular; Σrε² with the prior's part (k,); the prior's q."""
        k, p = stats.cross.shape
        pivot = self._pivot(k, stats.cross)
        precision, mean, shared = self._prior_inside(p, stats.cross.dtype)
        gap = mean[None] - pivot
        matrix = stats.gram + precision[None]
        right = stats.cross + dot(gap, precision)
        step, _, proper = solve(matrix, right)
        if not singular_is_fatal:
            ridge = 1e-3 * jnp.max(jnp.diagonal(matrix, axis1=-2, axis2=-1), -1)
            ridge = jnp.where(ridge > 0, ridge, 1)[:, None, None] * jnp.eye(p, dtype=ridge.dtype)[None]
            step = jnp.where(proper[:, None], step, solve(matrix + ridge, right)[0])
            proper = jnp.ones_like(proper)
        square = self._square(stats, step) + self._quadratic(precision, step - gap)
        # NaN stays to be seen
        step = jnp.where(proper[:, None] | jnp.isnan(stats.count)[:, None], step, jnp.nan)
        return pivot + step, jnp.where(square < 0, 0, square), shared

    def shared(self, p: int, dtype: Any) -> Array:
        """How many of p coefficients have a prior, which shares the variance: ()."""
        return self._prior_inside(p, dtype)[2]

    def _square(self, stats: CrossMoments, step: Array) -> Array:
        """Σ r e² about coefficients that are a step (k, p) from the pivot."""
        return stats.square - 2 * jnp.sum(step * stats.cross, 1) + einsum("kij,ki,kj->k", stats.gram, step, step)

    def _quadratic(self, matrix: Array, vectors: Array) -> Array:
        return jnp.sum(dot(vectors, matrix) * vectors, 1)

    def _floor_scale(self, dtype: Any) -> Array:
        variance = jnp.ones((), dtype) if self.robust_variance is None else self.robust_variance
        return jnp.asarray(self.floor, dtype) * variance

    # --- Q, priors, bookkeeping

    def expected_log_prob(self, bank: LinearRegressionParams, stats: CrossMoments) -> Array:
        """Σ_ij r_ij log N(y_i | …) from moments about the pivot: ()."""
        square = self._square(stats, self._inside(bank) - self._pivot(stats.cross.shape[0], stats.cross))
        return -0.5 * jnp.sum(square / bank.variance + stats.count * (jnp.log(bank.variance) + _LOG_2PI))

    def log_prior(self, bank: LinearRegressionParams, active: Array | None = None) -> Array:
        """Log density of `prior` given the variances plus the floor's −½ floor·var(y) / σ², over active ones: ()."""
        square, log_constant, shared = self._log_prior_terms(bank)
        terms = -0.5 * (self._floor_scale(square.dtype) + square) / bank.variance
        terms = terms + log_constant - 0.5 * shared * jnp.log(bank.variance)
        return jnp.sum(terms if active is None else jnp.where(active, terms, 0))

    def sample(self, bank: LinearRegressionParams, key: Key, z: Array, given: Data) -> tuple:
        """Responses of components z (n,), given covariates (n, p), or (covariates, offset): data."""
        mean, data = predictors(bank.coefficients, z, given)
        noise = jax.random.normal(key, z.shape, mean.dtype)
        return data(mean + jnp.sqrt(bank.variance[z]) * noise)

    def health(self, bank: LinearRegressionParams, active: Array) -> Array:
        """DEGENERATE if an active component has no variance but rounding, else RUNNING."""
        spread = 0 if self.robust_variance is None else self.robust_variance
        spread = jnp.square(16 * jnp.finfo(bank.variance.dtype).eps) * spread
        degenerate = jnp.any(active & ~(jnp.isfinite(bank.variance) & (bank.variance > spread)))
        return jnp.where(degenerate, Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)

    def eigenvalues(self, bank: LinearRegressionParams) -> Array:
        """The variances: (k, 1)."""
        return bank.variance[:, None]

    def at_floor(self, bank: LinearRegressionParams, count: Array) -> Array:
        """Where at least half of the variance is the floor's, given the weights of the rows (k,): (k,) booleans."""
        dtype = bank.variance.dtype
        divisor = count + self.shared(bank.coefficients.shape[-1], dtype)
        return (2 * self._floor_scale(dtype) >= bank.variance * divisor) & (count > 0) & (self._floor_scale(dtype) > 0)

    def sizes(self, bank: LinearRegressionParams) -> LinearRegressionParams:
        """Standard deviations of the estimates from one row: σ of a coefficient of the basis, √2·σ² of a variance."""
        variance = jnp.where(bank.variance > 0, bank.variance, 1)
        return LinearRegressionParams(self._coefficient_sizes(bank, jnp.sqrt(variance)), math.sqrt(2) * variance)


def predictors(coefficients: Array, z: Array, given: Data) -> tuple[Array, Any]:
    """Linear predictors (n,) of components z (n,) given covariates or (covariates, offset), and what makes data."""
    covariates, *offset = given if isinstance(given, tuple) else (given,)
    covariates = jnp.asarray(covariates, coefficients.dtype)
    predictor = einsum("ip,ip->i", covariates, coefficients[z])
    if offset:
        predictor = predictor + jnp.asarray(offset[0], coefficients.dtype)
    return predictor, lambda response: (covariates, response, *offset)
