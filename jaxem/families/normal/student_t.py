"""Components with heavy tails: the multivariate Student t as a scale mixture of normals."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from ..._typing import Array, Key
from ...contracts.domains import POSITIVE, check_leaves
from ...fold.features import Features
from ...numerics import tree as _tree
from ...numerics.special import deviation, inverse_log_minus_digamma, log_gamma_ratio, log_minus_digamma
from .._around import Around
from ._normal import Moments, NormalParams
from .full import FullNormal


class StudentTParams(NamedTuple):
    """Means (k, d), scatter matrices in the form of the normal's covariances, degrees of freedom (k,).

    The covariance is dof / (dof − 2) times the scatter, where dof > 2.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> dof = jnp.array([4.0, 6.0])
        >>> bank = jaxem.StudentTParams(jnp.array([[0.0], [9.0]]), scatter=jnp.ones((2, 1, 1)), dof=dof)
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.StudentT(), n_components=2).predict(start, jnp.array([[1.0], [7.0]]))
        Array([0, 1], dtype=...)
        >>> (dof / (dof - 2))[:, None, None] * bank.scatter  # covariances
        Array([[[2. ]],
               [[1.5]]], dtype=...)
    """

    mean: Array
    scatter: Array
    dof: Array


class ScaledMoments(NamedTuple):
    """Σ r (k,); moments weighted with r·E[λ]; Σ r (E[λ] − E[log λ] − 1) (k,), of the precision λ of each row."""

    count: Array
    moments: Moments
    gap: Array


@_tree.register
@dataclass(frozen=True)
class StudentT(Around):
    """x | λ ~ N(mean, scatter / λ), λ ~ Gamma(dof/2, dof/2): rows far away count less.

    The M step is closed form given the expected precisions E[λ] = (dof + d) / (dof + distance²) at the current params
    (Liu & Rubin 1995); for the degrees of freedom it solves log(dof/2) − ψ(dof/2) = E[λ] − E[log λ] − 1.

    Attributes:
        dof: degrees of freedom, () or (k,), fixed; None estimates them for each component, up to 1/√eps.
        normal: the normal family that gives the scatter its form and its floor: `FullNormal`, `DiagonalNormal` or
            `SphericalNormal`, without a prior.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.append(jnp.linspace(-1.0, 1.0, 101), 500.0)[:, None]
        >>> model = jaxem.Mixture(jaxem.StudentT(dof=3.0), n_components=1)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> bool(jnp.abs(result.params.components.mean[0, 0]) < 0.05)
        True
    """

    dof: Any = None
    normal: Any = FullNormal()

    additive: ClassVar[bool] = True
    reads_floats: ClassVar[bool] = True
    _inside: ClassVar[str] = "normal"
    _moved: ClassVar[str] = "mean"

    # --- the normal inside

    def _bank(self, bank: StudentTParams) -> NormalParams:
        return NormalParams(bank.mean, bank.scatter)

    def trusted(self, bank: StudentTParams) -> Array:
        """Whether the fast path keeps its digits."""
        return self.normal.trusted(self._bank(bank))

    def prepare(self, x: Array, n_components: int | None) -> Features:
        """The features of the normal."""
        return self.normal.prepare(x, n_components)

    # --- densities

    def _distance(self, bank: StudentTParams, x: Array | Features) -> tuple[Array, Array]:
        """Squared distances in units of the scatter (n, k), and half its log-determinant (k,)."""
        normal_bank = self._bank(bank)
        _, half_log_det = self.normal._whitening(normal_bank)
        constant = half_log_det + 0.5 * bank.mean.shape[1] * math.log(2 * math.pi)
        squared = -2 * (self.normal.log_prob(normal_bank, x) + constant[None])
        return jnp.where(squared < 0, 0, squared), half_log_det

    def log_prob(self, bank: StudentTParams, x: Array | Features) -> Array:
        """log t(x_i | mean_j, scatter_j, dof_j): (n, k)."""
        bank = jax.tree.map(jnp.asarray, bank)
        squared, half_log_det = self._distance(bank, x)
        d, dof = bank.mean.shape[1], bank.dof
        constant = log_gamma_ratio(dof / 2, d / 2) - 0.5 * d * math.log(2 * math.pi) - half_log_det
        return constant[None] - 0.5 * (dof + d)[None] * jnp.log1p(squared / dof[None])

    def statistics(self, bank: StudentTParams | None, x: Array | Features, responsibilities: Array) -> ScaledMoments:
        """Moments under responsibilities (n, k) and the expected precisions at `bank`; all 1 without it."""
        if bank is None:
            moments = self.normal.statistics(None, x, responsibilities)
            count = jnp.sum(responsibilities, 0)
            return ScaledMoments(count, moments, 0.25 * count)  # of 3 to 4 degrees of freedom
        squared, _ = self._distance(bank, x)
        dof, d = bank.dof[None], bank.mean.shape[1]
        precision = (dof + d) / (dof + squared)
        count = jnp.sum(responsibilities, 0)
        gap = jnp.sum(responsibilities * deviation(precision), 0) + count * log_minus_digamma((bank.dof + d) / 2)
        return ScaledMoments(count, self.normal.statistics(None, x, responsibilities * precision), gap)

    def estimate(
        self, bank: StudentTParams | None, stats: ScaledMoments, active: Array | None = None
    ) -> StudentTParams:
        """mean = Σrλx / Σrλ, scatter = (Σrλ(x − mean)(x − mean)ᵀ + Λ) / Σr, Λ of the normal's floor."""
        mean, scatter = replace(self.normal, max_ratio=None).estimate(None, stats.moments, active)
        present = stats.count > 0
        count = jnp.where(present, stats.count, 1)
        scatter = scatter * self.normal._expand(jnp.where(present, stats.moments.count / count, 1))
        scatter = self.normal._within_ratio(scatter, stats.count)
        if self.dof is not None:
            return StudentTParams(mean, scatter, jnp.broadcast_to(jnp.asarray(self.dof, mean.dtype), count.shape))
        gap = stats.gap / count
        least = math.sqrt(jnp.finfo(mean.dtype).eps)
        usable = present & ~(gap < least)  # NaN stays to be seen
        half = inverse_log_minus_digamma(jnp.where(usable, gap, jnp.where(present, least, 0.25)))
        return StudentTParams(mean, scatter, 2 * half)

    def expected_log_prob(self, bank: StudentTParams, stats: ScaledMoments) -> Array:
        """Σ_ij r_ij E[log N(x_i | mean_j, scatter_j / λ) + log Gamma(λ | dof_j/2, dof_j/2)]: ()."""
        normal_bank, moments, count = self._bank(bank), stats.moments, stats.count
        _, half_log_det = self.normal._whitening(normal_bank)
        d = bank.mean.shape[1]
        # the normal counts rows by Σrλ
        normal = self.normal.expected_log_prob(normal_bank, moments) + jnp.sum(
            (moments.count - count) * (half_log_det + 0.5 * d * math.log(2 * math.pi))
        )
        log_precision = moments.count - stats.gap - count
        half = bank.dof / 2
        prior = count * (half * jnp.log(half) - jax.scipy.special.gammaln(half)) + (half - 1) * log_precision
        return normal + jnp.sum(0.5 * d * log_precision + prior - half * moments.count)

    def log_prior(self, bank: StudentTParams, active: Array | None = None) -> Array:
        """The floor of the normal: ()."""
        return self.normal.log_prior(self._bank(bank), active)

    def sample(self, bank: StudentTParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        key_precision, key_normal = jax.random.split(key)
        half = bank.dof[z] / 2
        precision = jax.random.gamma(key_precision, half, dtype=bank.mean.dtype) / half
        draw = self.normal.sample(self._bank(bank), key_normal, z)
        return bank.mean[z] + (draw - bank.mean[z]) / jnp.sqrt(precision)[:, None]

    # --- bookkeeping

    def eigenvalues(self, bank: StudentTParams) -> Array:
        """Eigenvalues of the scatters, ascending: (k, d)."""
        return self.normal.eigenvalues(self._bank(bank))

    def at_floor(self, bank: StudentTParams, count: Array) -> Array:
        """Which components lie at the floor of the normal, given the weights of their rows (k,): (k,) booleans."""
        return self.normal.at_floor(self._bank(bank), count)

    def imposed(self, bank: StudentTParams, weights: Array) -> StudentTParams:
        """The bank put within `max_ratio` of the normal, where it is not."""
        return bank._replace(scatter=self.normal.imposed(self._bank(bank), weights).covariance)

    def health(self, bank: StudentTParams, active: Array) -> Array:
        """DEGENERATE if an active component's scatter is not positive definite, else RUNNING."""
        return self.normal.health(self._bank(bank), active)

    def feasible(self, bank: StudentTParams) -> Array:
        """Whether every scatter is positive definite and the degrees of freedom are positive: ()."""
        return self.normal.feasible(self._bank(bank)) & jnp.all((bank.dof > 0) & jnp.isfinite(bank.dof))

    def component_axes(self) -> StudentTParams:
        """Every leaf leads with the components."""
        return StudentTParams(0, 0, 0)  # type: ignore[arg-type]

    def points(self, x: Array) -> Array:
        """Rows as points of a Euclidean space, for k-means: themselves."""
        return x

    def unconstrain(self, bank: StudentTParams) -> StudentTParams:
        """The normal's free coordinates, and log dof (k, 1); (k, 0) where it is fixed."""
        mean, scatter = self.normal.unconstrain(self._bank(bank))
        log_dof = jnp.log(bank.dof)[:, None]
        return StudentTParams(mean, scatter, log_dof if self.dof is None else log_dof[:, :0])

    def constrain(self, free: StudentTParams) -> StudentTParams:
        """Inverse of `unconstrain`."""
        mean, scatter = self.normal.constrain(NormalParams(free.mean, free.scatter))
        fixed = jnp.broadcast_to(jnp.asarray(1.0 if self.dof is None else self.dof, mean.dtype), mean.shape[:1])
        return StudentTParams(mean, scatter, jnp.exp(free.dof[:, 0]) if self.dof is None else fixed)

    def relabelled(self, order: Array) -> Self:
        """The family of components that were taken in this order."""
        own = self.dof is not None and jnp.ndim(self.dof) == 1
        return replace(self, dof=jnp.asarray(self.dof)[order]) if own else self

    def n_parameters(self, bank: StudentTParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        own = self.normal.n_parameters(self._bank(bank), n_components)
        return own + n_components if self.dof is None else own

    def validate(self, bank: StudentTParams, x: Any, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        if not isinstance(bank, StudentTParams):
            raise TypeError(f"params.components: expected StudentTParams, got {type(bank).__name__}.")
        d = self.validate_data(x)
        wanted = (*self.normal._shapes(n_components, d), (n_components,))
        for name, leaf, want in zip(bank._fields, bank, wanted, strict=True):
            if tuple(jnp.shape(leaf)) != want:
                raise ValueError(
                    f"params.components.{name}: expected shape {want} for {type(self).__name__} with {n_components} "
                    f"components and {d} columns, got {tuple(jnp.shape(leaf))}."
                )
        if self.dof is not None and jnp.shape(self.dof) not in ((), (n_components,)):
            raise ValueError(f"dof: expected shape () or ({n_components},), got {jnp.shape(self.dof)}.")

    def check_params(self, bank: StudentTParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of a concrete bank lies outside of the parameter space."""
        check_leaves("params.components", bank, (*self.normal._domains, POSITIVE), lanes=lanes)

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d) and the normal is one that has a scatter for each component."""
        if None in self.normal.component_axes() or self.normal.prior is not None:
            raise ValueError(
                "normal: expected FullNormal, DiagonalNormal or SphericalNormal without a prior, got "
                f"{type(self.normal).__name__}{'' if self.normal.prior is None else ' with a prior'}."
            )
        if getattr(self.normal, "missing", False):
            raise ValueError(
                "normal: expected a normal of complete rows, got missing=True; leave out rows with missing entries, "
                "or fit FullNormal(missing=True)."
            )
        return self.normal.validate_data(x)
