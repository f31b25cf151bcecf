"""Linear regression with heavy tails: a scale mixture over `LinearRegression`."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from ..._typing import Array, Data, Key
from ...contracts.domains import NOT_NEGATIVE, POSITIVE, REAL, check_leaves
from ...contracts.priors import GaussianPrior
from ...numerics import tree as _tree
from ...numerics.special import deviation, inverse_log_minus_digamma, log_gamma_ratio, log_minus_digamma
from .._around import Around
from ._regression import given_of
from .linear import CrossMoments, LinearRegression, LinearRegressionParams, predictors


class StudentTRegressionParams(NamedTuple):
    """Coefficients (k, p), scales (k,), degrees of freedom (k,).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> data = (jnp.ones((2, 1)), jnp.array([1.0, 4.0]))  # an intercept alone
        >>> bank = jaxem.StudentTRegressionParams(jnp.array([[0.0], [5.0]]), scale=jnp.ones(2), dof=jnp.full(2, 4.0))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.StudentTRegression(), n_components=2).predict(start, data)
        Array([0, 1], dtype=...)
    """

    coefficients: Array
    scale: Array
    dof: Array


class ScaledCrossMoments(NamedTuple):
    """Σ r (k,); moments weighted with r·E[λ]; Σ r (E[λ] − E[log λ] − 1) (k,), of the precision λ of each row."""

    count: Array
    moments: CrossMoments
    gap: Array


@_tree.register
@dataclass(frozen=True)
class StudentTRegression(Around):
    """y | x, λ ~ N(offset + xᵀ coefficients, scale² / λ), λ ~ Gamma(dof/2, dof/2): outlying responses count less.

    Data as of `LinearRegression`: (x (n, p), y (n,)[, offset (n,)]), a tuple; a column of ones is the intercept. The M
    step is closed form given E[λ] = (dof + 1) / (dof + residual²/scale²) at the current params (Lange, Little & Taylor
    1989), as in `StudentT`. With few degrees of freedom the likelihood has several modes.

    Attributes:
        dof: degrees of freedom, () or (k,), fixed; None estimates them for each component, up to 1/√eps.
        prior: as of `LinearRegression`, in units of scale².
        floor: as of `LinearRegression`, on scale².
        linear: set by `bind`: the linear regression inside.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> t = jnp.linspace(-1.0, 1.0, 41)
        >>> data = (jnp.stack([jnp.ones(41), t], 1), (1 + 2 * t + 0.1 * jnp.cos(40 * t)).at[40].set(100.0))
        >>> model = jaxem.Mixture(jaxem.StudentTRegression(dof=3.0), n_components=1)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> result.params.components.coefficients.round(1)
        Array([[1., 2.]], dtype=...)
    """

    dof: Any = None
    prior: GaussianPrior | None = None
    floor: Any = 1e-6
    linear: Any = field(default=None, kw_only=True)

    additive: ClassVar[bool] = True
    reads_floats: ClassVar[bool] = True
    conditional: ClassVar[bool] = True
    has_proper_prior: ClassVar[bool] = False
    _inside: ClassVar[str] = "linear"
    _moved: ClassVar[str] = "coefficients"

    # --- the linear regression inside

    @property
    def _inner(self) -> LinearRegression:
        return LinearRegression(self.prior, floor=self.floor) if self.linear is None else self.linear

    def _bank(self, bank: StudentTRegressionParams) -> LinearRegressionParams:
        return LinearRegressionParams(bank.coefficients, jnp.square(bank.scale))

    def _with(self, bank: LinearRegressionParams, dof: Array) -> StudentTRegressionParams:
        return StudentTRegressionParams(bank.coefficients, jnp.sqrt(bank.variance), dof)

    def bind(self, x: Data, sample_weight: Array | None) -> Self:
        """The family with the linear regression's constants of the data."""
        unbound = LinearRegression(self.prior, floor=self.floor)
        return replace(self, linear=unbound.bind(x, sample_weight))

    # --- densities

    def _squared(self, bank: StudentTRegressionParams, x: Data) -> Array:
        """Squared residuals in units of the scale (n, k); NaN without a scale."""
        scale = jnp.where(bank.scale > 0, bank.scale, jnp.nan)
        return jnp.square(self._inner.residuals(bank, x) / scale[None])

    def log_prob(self, bank: StudentTRegressionParams, x: Data) -> Array:
        """log t(y_i | offset_i + x_iᵀ β_j, scale_j, dof_j): (n, k)."""
        bank = jax.tree.map(jnp.asarray, bank)
        squared, dof = self._squared(bank, x), bank.dof
        constant = log_gamma_ratio(dof / 2, 0.5) - 0.5 * math.log(2 * math.pi) - jnp.log(bank.scale)
        return constant[None] - 0.5 * (dof + 1)[None] * jnp.log1p(squared / dof[None])

    # --- statistics and their mode

    def statistics(self, bank: StudentTRegressionParams | None, x: Data, responsibilities: Array) -> ScaledCrossMoments:
        """Moments under responsibilities (n, k) and the expected precisions at `bank`; all 1 without it."""
        count = jnp.sum(responsibilities, 0)
        if bank is None:
            moments = self._inner.statistics(None, x, responsibilities)
            return ScaledCrossMoments(count, moments, 0.25 * count)  # of 3 to 4 degrees of freedom
        dof = bank.dof[None]
        precision = (dof + 1) / (dof + self._squared(bank, x))
        gap = jnp.sum(responsibilities * deviation(precision), 0) + count * log_minus_digamma((bank.dof + 1) / 2)
        return ScaledCrossMoments(count, self._inner.statistics(None, x, responsibilities * precision), gap)

    def estimate(
        self, bank: StudentTRegressionParams | None, stats: ScaledCrossMoments, active: Array | None = None
    ) -> StudentTRegressionParams:
        """Least squares weighted with r·λ; scale² is Σ r λ ε² / Σ r, with the prior's and the floor's parts."""
        inner = None if bank is None else self._bank(bank)
        present = stats.count > 0
        count = jnp.where(present, stats.count, 1)
        # the linear regression divides by Σ r λ and the prior's number, for Σ r and this
        shared = self._inner.shared(stats.moments.cross.shape[1], count.dtype)
        ratio = (stats.moments.count + shared) / (count + shared)
        linear = self._inner.estimate(inner, stats.moments, active)
        linear = linear._replace(variance=linear.variance * jnp.where(present, ratio, 1))
        if self.dof is not None:
            return self._with(linear, jnp.broadcast_to(jnp.asarray(self.dof, count.dtype), count.shape))
        gap = stats.gap / count
        least = math.sqrt(jnp.finfo(gap.dtype).eps)
        usable = present & ~(gap < least)  # NaN stays to be seen
        dof = 2 * inverse_log_minus_digamma(jnp.where(usable, gap, jnp.where(present, least, 0.25)))
        return self._with(linear, dof if bank is None else jnp.where(present, dof, bank.dof))

    def expected_log_prob(self, bank: StudentTRegressionParams, stats: ScaledCrossMoments) -> Array:
        """Σ_ij r_ij E[log N(y_i | …, scale² / λ) + log Gamma(λ | dof/2, dof/2)]: ()."""
        moments, count = stats.moments, stats.count
        # the linear regression counts rows by Σ r λ
        normal = self._inner.expected_log_prob(self._bank(bank), moments) + jnp.sum(
            (moments.count - count) * (jnp.log(bank.scale) + 0.5 * math.log(2 * math.pi))
        )
        log_precision = moments.count - stats.gap - count
        half = bank.dof / 2
        prior = count * (half * jnp.log(half) - gammaln(half)) + (half - 1) * log_precision
        return normal + jnp.sum(0.5 * log_precision + prior - half * moments.count)

    def log_prior(self, bank: StudentTRegressionParams, active: Array | None = None) -> Array:
        """That of the linear regression: ()."""
        return self._inner.log_prior(self._bank(bank), active)

    def sample(self, bank: StudentTRegressionParams, key: Key, z: Array, given: Data) -> tuple:
        """Responses of components z (n,), given covariates (n, p), or (covariates, offset): data."""
        mean, data = predictors(bank.coefficients, z, given)
        return data(mean + bank.scale[z] * jax.random.t(key, bank.dof[z], dtype=mean.dtype))

    def sample_like(self, bank: StudentTRegressionParams, key: Key, z: Array, x: Data) -> tuple:
        """Responses of components z (n,) in the place of those of x, given its covariates and offset: data."""
        return self.sample(bank, key, z, given_of(x))

    # --- bookkeeping

    def health(self, bank: StudentTRegressionParams, active: Array) -> Array:
        """DEGENERATE if an active component has no scale but rounding, else RUNNING."""
        return self._inner.health(self._bank(bank), active)

    def eigenvalues(self, bank: StudentTRegressionParams) -> Array:
        """The squared scales: (k, 1)."""
        return self._inner.eigenvalues(self._bank(bank))

    def at_floor(self, bank: StudentTRegressionParams, count: Array) -> Array:
        """Which components lie at the floor, given the weights of their rows (k,): (k,) booleans."""
        return self._inner.at_floor(self._bank(bank), count)

    def feasible(self, bank: StudentTRegressionParams) -> Array:
        """Whether scales and degrees of freedom are positive: ()."""
        return jnp.all((bank.scale > 0) & jnp.isfinite(bank.scale)) & jnp.all((bank.dof > 0) & jnp.isfinite(bank.dof))

    def component_axes(self) -> StudentTRegressionParams:
        """Every leaf leads with the components."""
        return StudentTRegressionParams(0, 0, 0)  # type: ignore[arg-type]

    def points(self, x: Data) -> Array:
        """Covariates and response side by side."""
        return self._inner.points(x)

    def unconstrain(self, bank: StudentTRegressionParams) -> StudentTRegressionParams:
        """Coefficients, log scales, and log dof (k, 1); (k, 0) where it is fixed."""
        log_dof = jnp.log(bank.dof)[:, None]
        log_dof = log_dof if self.dof is None else log_dof[:, :0]
        return StudentTRegressionParams(bank.coefficients, jnp.log(bank.scale), log_dof)

    def constrain(self, free: StudentTRegressionParams) -> StudentTRegressionParams:
        """Inverse of `unconstrain`."""
        scale = jnp.exp(free.scale)
        fixed = jnp.broadcast_to(jnp.asarray(1.0 if self.dof is None else self.dof, scale.dtype), scale.shape)
        return StudentTRegressionParams(
            free.coefficients, scale, jnp.exp(free.dof[:, 0]) if self.dof is None else fixed
        )

    def relabelled(self, order: Array) -> Self:
        """The family of components that were taken in this order."""
        own = self.dof is not None and jnp.ndim(self.dof) == 1
        return replace(self, dof=jnp.asarray(self.dof)[order]) if own else self

    def n_parameters(self, bank: StudentTRegressionParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * (bank.coefficients.shape[1] + (2 if self.dof is None else 1))

    def validate(self, bank: StudentTRegressionParams, x: Any, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        if not isinstance(bank, StudentTRegressionParams):
            raise TypeError(f"params.components: expected StudentTRegressionParams, got {type(bank).__name__}.")
        self._inner.validate(LinearRegressionParams(bank.coefficients, bank.scale), x, n_components)
        for name, leaf in (("scale", bank.scale), ("dof", bank.dof)):
            if jnp.shape(leaf) != (n_components,):
                raise ValueError(f"params.components.{name}: expected shape ({n_components},), got {jnp.shape(leaf)}.")
        if self.dof is not None and jnp.shape(self.dof) not in ((), (n_components,)):
            raise ValueError(f"dof: expected shape () or ({n_components},), got {jnp.shape(self.dof)}.")

    def check_params(self, bank: StudentTRegressionParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of a concrete bank lies outside of the parameter space."""
        check_leaves("params.components", bank, (REAL, NOT_NEGATIVE, POSITIVE), lanes=lanes)

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (covariates, response[, offset]); returns p."""
        return self._inner.validate_data(x)

    def check_data(self, x: Any, sample_weight: Array | None) -> None:
        """As of `LinearRegression`."""
        self._inner.check_data(x, sample_weight)

    def check_table(self, x: Any, sample_weight: Array | None) -> None:
        """As of `LinearRegression`."""
        self._inner.check_table(x, sample_weight)
