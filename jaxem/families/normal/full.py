"""Normal components with full covariance matrices; the scatter of other families too."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import multigammaln

from ... import bijections
from ..._typing import Array, Key
from ...contracts.domains import COVARIANCE, REAL, Domain
from ...fold.present import present_rows
from ...numerics import linalg as _linalg
from ...numerics import tree as _tree
from ...numerics.linalg import dot, einsum
from ...numerics.scales import robust_variance
from . import _ratio
from ._missing import Completion, complete, moments
from ._normal import LOG_2PI, Moments, Normal, NormalParams


@_tree.register
@dataclass(frozen=True)
class FullNormal(Normal):
    """Every component with a covariance matrix of its own, (k, d, d).

    Attributes:
        missing: whether NaN marks an entry that was not observed (missing at random); static. The likelihood is that of
            the entries observed, and the M step sees the expected ones (Ghahramani & Jordan 1994).

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 6.0], [2.0, 6.0]])
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=1)
        >>> model.init(jax.random.key(0), x).components.covariance.round(2)
        Array([[[1., 0.],
                [0., 9.]]], dtype=...)
    """

    missing: bool = field(metadata={"static": True}, default=False, kw_only=True)

    space: ClassVar[Any] = NormalParams(bijections.real, bijections.positive_definite)  # type: ignore[arg-type]
    _domains: ClassVar[tuple[Domain, ...]] = (REAL, COVARIANCE)

    # --- rows with missing entries

    @property
    def has_fast_path(self) -> bool:
        """Whether rows become features; those with missing entries do not."""
        return not self.missing

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets pivot and variance: weighted means and variances of the entries observed, rows (n, d)."""
        if not self.missing:
            return super().bind(x, sample_weight)
        x = present_rows(x, sample_weight)
        observed = ~jnp.isnan(x)
        weight = observed.astype(x.dtype) if sample_weight is None else observed * sample_weight[:, None]
        total = jnp.sum(weight, 0)
        seen = total > 0
        # differences from an entry first: a constant column gets variance exactly 0, a far offset costs no digits
        highest = jnp.max(jnp.where(weight > 0, x, -jnp.inf), 0)
        origin = lax.stop_gradient(jnp.where(seen, highest, 0))
        average = lambda values: jnp.sum(values * weight, 0) / jnp.where(seen, total, 1)  # noqa: E731
        rows = jnp.where(observed, x, origin[None])
        shift = average(rows - origin[None])
        mean = origin + shift
        bound = self._bound(mean, average(jnp.square(rows - mean[None])), robust_variance(rows, weight))
        return bound._with_prior_of(rows, weight)

    def prepare(self, x: Array, n_components: int | None) -> Any:
        """T(x) of the fast path, about the pivot; the rows themselves where entries may be missing."""
        return x if self.missing else super().prepare(x, n_components)

    def elements_per_row(self, x: Array, n_components: int) -> int:
        """Those of the eliminations, one a component, where entries may be missing."""
        return n_components * x.shape[1] ** 2 if self.missing else 0

    def n_features(self, x: Array) -> int | None:
        """f; None where entries may be missing."""
        return None if self.missing else super().n_features(x)

    def _completed(self, bank: NormalParams, x: Array) -> tuple[Completion, Array]:
        covariance = bank.covariance if bank.covariance.ndim == 3 else bank.covariance[None]
        return complete(bank.mean, covariance, self._rows(x)), covariance

    def log_prob(self, bank: NormalParams, x: Any) -> Array:
        """log N(x_i | μ_j, Σ_j) of the entries observed: (n, k). Raw rows are whitened, prepared ones multiplied."""
        if not self.missing:
            return super().log_prob(bank, x)
        done, _ = self._completed(bank, x)
        n_observed = jnp.sum(1 - done.missing, 0)
        return (done.log_prob - 0.5 * LOG_2PI * n_observed[None]).T

    def statistics(self, bank: NormalParams | None, x: Any, responsibilities: Array) -> Moments:
        """Moments about the pivot, summed with responsibilities (n, k), expected at `bank` where entries are missing.

        Without a bank, missing entries have the moments of their column.
        """
        if not self.missing:
            return super().statistics(bank, x, responsibilities)
        k, d = responsibilities.shape[1], x.shape[1]
        if bank is None:
            centre = jnp.zeros(d, x.dtype) if self.centre is None else self.centre
            variance = jnp.ones(d, x.dtype) if self.robust_variance is None else self.robust_variance
            variance = jnp.where(variance > 0, variance, 1)
            bank = NormalParams(jnp.broadcast_to(centre, (k, d)), jnp.diag(variance))
        done, covariance = self._completed(bank, x)
        return self._pool(Moments(*moments(done, covariance, responsibilities, self._offset(bank.mean))))

    def points(self, x: Array) -> Array:
        """Rows as points of a Euclidean space, for k-means; a missing entry lies at the mean of its column."""
        return jnp.where(jnp.isnan(x), self.centre[None], x) if self.missing else x

    def readable(self, x: Array) -> Array:
        """The rows with a number where NaN is no fault."""
        return jnp.where(jnp.isnan(x), 0, x) if self.missing else x

    def informative(self, x: Array) -> Array | None:
        """Which rows have an entry: (n,); None where none may be missing."""
        return ~jnp.all(jnp.isnan(x), 1) if self.missing and jnp.ndim(x) == 2 else None

    def sample_like(self, bank: Any, key: Key, z: Array, x: Array) -> Array:
        """One row of component z_i for each row of x (n, d), with its missing entries: (n, d)."""
        drawn = self.sample(bank, key, z)
        return jnp.where(jnp.isnan(x), jnp.nan, drawn) if self.missing else drawn

    def check_table(self, x: Any, sample_weight: Array | None) -> None:
        """Raises a ValueError on a column of concrete data in which nothing was observed."""
        if not self.missing:
            return
        with jax.ensure_compile_time_eval():
            columns = np.flatnonzero(np.asarray(_unseen_columns(jnp.asarray(x), sample_weight)))
        if len(columns):
            raise ValueError(
                f"data: expected observed entries in every column, got none in column {columns[0]}; drop it."
            )

    # --- the algebra of its covariance

    def _quadratic(self, y: Array, axis: int) -> list[Array]:
        return [_linalg.pair_products(y, transposed=axis == 0)]

    def _whitening(self, bank: NormalParams) -> tuple[Array, Array]:
        return _linalg.whitening(bank.covariance)

    def _whiten(self, y: Array, factor: Array) -> Array:
        if factor.ndim == 2:
            return dot(y, factor.T)
        return _linalg.matvec(factor, y)

    def _natural_terms(self, covariance: Array, mean: Array) -> tuple[Array, list[Array], Array]:
        linear, packed, half_log_det = _linalg.precision_terms(covariance, mean)
        first, second = _linalg.pair_indices(mean.shape[-1])
        multiplicity = jnp.asarray(np.where(first == second, -0.5, -1.0), mean.dtype)
        return linear, [multiplicity[None] * packed], half_log_det

    def _precision_diagonal(self, bank: NormalParams) -> Array:
        d = bank.mean.shape[-1]
        return _linalg.precision_terms(bank.covariance, bank.mean)[1][..., :d]

    def _moments(self, sums: Array, d: int) -> Moments:
        return Moments(sums[:, 0], sums[:, 1 : 1 + d], _linalg.unpack_pairs(sums[:, 1 + d :], d))

    def _scatter(self, r: Array, y: Array) -> Array:
        return dot((y * r[:, None]).T, y)

    def _outer(self, offset: Array, count: Array) -> Array:
        return count[:, None, None] * (offset[:, :, None] * offset[:, None, :])

    def _cross(self, first: Array, offset: Array) -> Array:
        product = first[:, :, None] * offset[:, None, :]
        return product + jnp.swapaxes(product, 1, 2)

    def _diagonal(self, variance: Array) -> Array:
        return jnp.diag(variance)[None]

    def _expand(self, values: Array) -> Array:
        return values[:, None, None]

    def _divisor(self, count: Array, prior: Any, d: int, active: Array | None) -> Array:
        return count if prior is None else count + prior.dof + d + 2

    def _trace(self, factor: Array, scatter: Array) -> Array:
        return jnp.sum(_linalg.gram(factor) * scatter)

    def _log_inverse_wishart(self, factor: Array, half_log_det: Array, prior: Any, d: int) -> Array:
        nu, scale = prior.dof, prior.scale
        log_det_scale = 2 * _linalg.whitening(scale)[1]
        constant = 0.5 * nu * (log_det_scale - d * math.log(2)) - multigammaln(0.5 * nu, d)
        return (
            constant
            - (nu + d + 1) * half_log_det
            - 0.5 * jnp.sum(_linalg.gram(factor) * scale.reshape((1,) * (factor.ndim - 2) + (d, d)), (-2, -1))
        )

    def _colour(self, covariance: Array, z: Array, noise: Array) -> Array:
        return einsum("nij,nj->ni", _linalg.cholesky(covariance)[z], noise)

    def _proper(self, covariance: Array) -> Array:
        return _linalg.is_positive_definite(covariance)

    def _spreads(self, covariance: Array, d: int) -> tuple[Array, Array]:
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        return variance, variance[..., :, None] * variance[..., None, :] + jnp.square(covariance)

    def _least_multiple(self, covariance: Array, floor: Array) -> Array:
        scale = lax.rsqrt(floor)
        both = jnp.broadcast_to(scale[:, None] * scale[None], covariance.shape)
        return jnp.linalg.eigvalsh(covariance * both)[..., 0]

    def _eigenvalues(self, covariance: Array) -> Array:
        return jnp.linalg.eigvalsh(covariance.reshape(-1, *covariance.shape[-2:]))

    def _clip(self, covariance: Array, low: Array, high: Array) -> Array:
        return _ratio.clipped(covariance, low, high)

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (k, d), (k, d, d)

    def _scale_shape(self, d: int) -> tuple[int, ...]:
        return (d, d)

    def n_parameters(self, bank: NormalParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        d = bank.mean.shape[-1]
        return n_components * (d + d * (d + 1) // 2)


@jax.jit
def _unseen_columns(x: Array, sample_weight: Array | None) -> Array:
    present = jnp.ones(x.shape[0], bool) if sample_weight is None else sample_weight > 0
    return jnp.any(present) & ~jnp.any(~jnp.isnan(x) & present[:, None], 0)
