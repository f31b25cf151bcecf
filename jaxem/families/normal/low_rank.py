"""Mixtures of factor analysers: normal components whose covariance is of low rank plus a diagonal."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ... import bijections
from ..._typing import Array, Key
from ...contracts.domains import NOT_NEGATIVE, REAL, check_leaves
from ...contracts.space import BankCoordinates
from ...contracts.status import Status
from ...numerics import linalg as _linalg
from ...numerics import tree as _tree
from ...numerics.linalg import einsum
from . import _factors
from ._factors import FactorMoments
from ._normal import LOG_2PI, Normal
from ._placed import Placed

_LEAST_NOISE = 1e-4  # of a variance; less counts as that where changes are measured


class LowRankNormalParams(NamedTuple):
    """Means (k, d), loadings (k, d, q), noise variances (k, d): Σ_j = W_j W_jᵀ + diag(ψ_j).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> loadings = jnp.array([[[1.0], [2.0], [0.0]]])  # of one component and one factor
        >>> bank = jaxem.LowRankNormalParams(jnp.zeros((1, 3)), loadings, noise=jnp.full((1, 3), 0.5))
        >>> bank.loadings[0] @ bank.loadings[0].T + jnp.diag(bank.noise[0])  # the covariance of component 0
        Array([[1.5, 2. , 0. ],
               [2. , 4.5, 0. ],
               [0. , 0. , 0.5]], dtype=...)
    """

    mean: Array
    loadings: Array
    noise: Array


@_tree.register
@dataclass(frozen=True)
class LowRankNormal(Placed, BankCoordinates):
    """x | z ~ N(mean + W z, diag(ψ)), z ~ N(0, I) of `rank` entries: covariances W Wᵀ + diag(ψ) for many columns.

    A mixture of factor analysers (Ghahramani & Hinton 1996): a component costs O(n·d·rank), and no d × d matrix is
    made. Loadings W are identified only up to a rotation W R, and their sign: compare W Wᵀ, or see `canonical`.
    Standard errors need isolated params, which loadings of rank 2 or more are not.
    Without a floor a noise variance may go to zero at a finite likelihood (a Heywood case), where EM is slow.

    Attributes:
        rank: q, the number of factors, 1 ≤ q ≤ d; static.
        floor: regularisation of the noise, in units of the robust column variances of the data, as of `FullNormal`: the
            log prior −½ Σ_ka floor · variance_a / ψ_ka. 0 is pure maximum likelihood.
        pivot: set by `bind`, (d,): moments are taken about it; or by `recentred`, (k, d).
        slope: set by `recentred`, (k, d, q): loadings that moments are taken about; None is 0.
        variance, robust_variance: set by `bind`, (d,): of the columns.
        origin: set by `localised`, (d,): means are relative to it.
        centre: set by `bind`, (d,): the column means, where a component without weight is put.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> z = jnp.linspace(-1.0, 1.0, 60)
        >>> x = jnp.stack([z, 2 * z, -z], 1) + 0.1 * jax.random.normal(jax.random.key(0), (60, 3))
        >>> model = jaxem.Mixture(jaxem.LowRankNormal(1), n_components=1)
        >>> result = jaxem.fit(model, model.init(jax.random.key(1), x), x)
        >>> loadings = result.params.components.loadings[0, :, 0]
        >>> bool(abs(loadings[1] / loadings[0] - 2) < 0.2)
        True
    """

    rank: int = field(metadata={"static": True})
    floor: Any = 1e-6
    pivot: Any = None
    slope: Any = None
    variance: Any = None
    origin: Any = None
    centre: Any = None
    robust_variance: Any = None

    space: ClassVar[Any] = LowRankNormalParams(bijections.real, bijections.real, bijections.positive)  # type: ignore
    additive: ClassVar[bool] = True
    reads_floats: ClassVar[bool] = True

    # --- constants of the data

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets pivot and variances: weighted column means and variances of rows (n, d)."""
        return self._with(Normal().bind(x, sample_weight))

    def _with(self, bound: Normal) -> Self:
        constants = {name: getattr(bound, name) for name in ("pivot", "variance", "centre", "robust_variance")}
        return replace(self, **constants)

    def weigh(self, x: Array, sample_weight: Array | None) -> Any:
        """What stands behind the constants."""
        return Normal().weigh(x, sample_weight)

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The family bound to the rows of both."""
        ours, theirs = (Normal(pivot=side.pivot, variance=side.variance) for side in (self, other))
        return self._with(ours.merged(seen, theirs, other_seen))

    def recentred(self, bank: LowRankNormalParams) -> Self:
        """The same family with moments of residuals from this bank: small noise keeps its digits."""
        return replace(self, pivot=lax.stop_gradient(bank.mean), slope=lax.stop_gradient(bank.loadings))

    def _pivots(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return jnp.broadcast_to(jnp.zeros((1, 1), dtype) if self.pivot is None else jnp.atleast_2d(self.pivot), shape)

    def _default(self, mean: Array) -> LowRankNormalParams:
        """A bank at means (k, d): half of each column's variance is noise, half loadings without any symmetry.

        Loadings of zero, or along an eigenvector of the covariance, would be a fixed point of EM.
        """
        k, d = mean.shape
        variance = jnp.ones(d, mean.dtype) if self.robust_variance is None else self.robust_variance
        spread = jnp.where(variance > 0, variance, 1)
        column, factor = np.arange(1, d + 1)[:, None], np.arange(1, self.rank + 1)[None]
        pattern = jnp.asarray(np.cos(math.sqrt(2) * column**2 + math.sqrt(3) * column * factor), mean.dtype)
        loadings = jnp.sqrt(spread / self.rank)[:, None] * pattern
        return LowRankNormalParams(
            mean, jnp.broadcast_to(loadings[None], (k, d, self.rank)), jnp.broadcast_to(spread[None] / 2, (k, d))
        )

    # --- densities and the E step

    def log_prob(self, bank: LowRankNormalParams, x: Array) -> Array:
        """log N(x_i | μ_j, W_j W_jᵀ + Ψ_j): (n, k)."""
        squared, half_log_det = _factors.distances(self._rows(x), *bank)
        return -0.5 * squared - (half_log_det + 0.5 * x.shape[1] * LOG_2PI)[None]

    def statistics(self, bank: LowRankNormalParams | None, x: Array, responsibilities: Array) -> FactorMoments:
        """Sums with responsibilities (n, k), factors expected at `bank`; without it at the pivot and fixed W and ψ."""
        place = self._pivots((responsibilities.shape[1], x.shape[1]), x.dtype)
        bank = self._default(place) if bank is None else bank
        return _factors.sums(self._rows(x), responsibilities, bank, place, self.slope)

    # --- the M step

    def estimate(
        self, bank: LowRankNormalParams | None, stats: FactorMoments, active: Array | None = None
    ) -> LowRankNormalParams:
        """[W μ] by regression of x on (z, 1); ψ the mean square of what is left, plus floor · variance / Σ r.

        Ghahramani & Hinton (1996, eqs. 15 and 16), with a noise of its own for each component. A component without any
        weight takes the data's mean and variances. `bank` is not used.
        """
        (k, d), dtype = stats.first.shape, stats.first.dtype
        present = stats.count > 0
        change, rest = _factors.regression(stats)
        floor = self._floor_scale(d, dtype)[None] / jnp.where(present, stats.count, 1)[:, None]
        mean = self._pivots((k, d), dtype) + change[:, :, -1]
        loadings = change[:, :, :-1] if self.slope is None else self.slope + change[:, :, :-1]
        centre = jnp.zeros(d, dtype) if self.centre is None else self.centre
        absent = self._default(jnp.broadcast_to(centre[None], (k, d)))
        keep = lambda new, old: jnp.where(present.reshape(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
        return LowRankNormalParams(*map(keep, (mean, loadings, rest + floor), absent))

    def _floor_scale(self, d: int, dtype: Any) -> Array:
        variance = jnp.ones(d, dtype) if self.robust_variance is None else self.robust_variance
        return jnp.asarray(self.floor, dtype) * variance

    def expected_log_prob(self, bank: LowRankNormalParams, stats: FactorMoments) -> Array:
        """Σ_ij r_ij E[log N(x_i | μ_j + W_j z, Ψ_j) + log N(z | 0, I)]: ()."""
        offset = bank.mean - self._pivots(bank.mean.shape, bank.mean.dtype)
        slopes = bank.loadings if self.slope is None else bank.loadings - self.slope
        residual = _factors.squares(stats, jnp.concatenate([slopes, offset[:, :, None]], 2))
        rows = jnp.sum(stats.count[:, None] * (jnp.log(bank.noise) + LOG_2PI) + residual / bank.noise)
        factors = jnp.sum(stats.count) * self.rank * LOG_2PI + jnp.sum(einsum("kii->k", stats.factor_second))
        return -0.5 * (rows + factors)

    def log_prior(self, bank: LowRankNormalParams, active: Array | None = None) -> Array:
        """The floor's −½ Σ floor · variance_a / ψ_ka, over the active components: ()."""
        k, d = bank.mean.shape
        active = jnp.ones(k, bool) if active is None else active
        terms = -0.5 * jnp.sum(self._floor_scale(d, bank.mean.dtype)[None] / bank.noise, 1)
        return jnp.sum(jnp.where(active, terms, 0))

    def sample(self, bank: LowRankNormalParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        key_factors, key_noise = jax.random.split(key)
        n, d, dtype = z.shape[0], bank.mean.shape[1], bank.mean.dtype
        factors = jax.random.normal(key_factors, (n, self.rank), dtype)
        noise = jax.random.normal(key_noise, (n, d), dtype) * jnp.sqrt(bank.noise)[z]
        return bank.mean[z] + einsum("ndq,nq->nd", bank.loadings[z], factors) + noise

    def canonical(self, bank: LowRankNormalParams) -> LowRankNormalParams:
        """The same densities with Wᵀ Ψ⁻¹ W diagonal, descending, and loadings that sum to 0 or more over the columns.

        Unique if that diagonal has no ties (Lawley & Maxwell 1971, section 2.3). Eager or under `jit`, not in a fit.
        """
        product = _factors.precision(bank.loadings, bank.noise) - jnp.eye(self.rank, dtype=bank.mean.dtype)[None]
        rotation = lax.map(lambda one: jnp.linalg.eigh(one)[1][:, ::-1], product)
        loadings = einsum("kdi,kij->kdj", bank.loadings, rotation)
        sign = jnp.where(jnp.sum(loadings, 1, keepdims=True) < 0, -1, 1)
        return bank._replace(loadings=loadings * sign)

    # --- bookkeeping

    def _variances(self, bank: LowRankNormalParams) -> Array:
        return bank.noise + jnp.sum(jnp.square(bank.loadings), 2)

    def _proper(self, bank: LowRankNormalParams) -> Array:
        """Whether noise is positive, and so is I + Wᵀ Ψ⁻¹ W, beyond rounding: (k,).

        With noise of less than eps^1.5 of a column's variance its residuals have no digits left.
        """
        limit = jnp.finfo(bank.mean.dtype).eps ** 1.5
        positive = jnp.all((bank.noise > limit * self._variances(bank)) & jnp.isfinite(bank.noise), 1)
        noise = jnp.where(positive[:, None], bank.noise, 1)
        return positive & _linalg.is_positive_definite(_factors.precision(bank.loadings, noise))

    def health(self, bank: LowRankNormalParams, active: Array) -> Array:
        """DEGENERATE if an active component's noise is not positive beyond rounding, else RUNNING."""
        degenerate = jnp.any(~self._proper(bank) & active)
        return jnp.where(degenerate, Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)

    def eigenvalues(self, bank: LowRankNormalParams) -> Array:
        """Eigenvalues of the covariances, ascending: (k, d). Makes the matrices (k, d, d)."""
        product = einsum("kaq,kbq->kab", bank.loadings, bank.loadings)
        return jnp.linalg.eigvalsh(
            product + bank.noise[:, :, None] * jnp.eye(product.shape[-1], dtype=product.dtype)[None]
        )

    def at_floor(self, bank: LowRankNormalParams, count: Array) -> Array:
        """Where at least half of some noise is the floor's, given the weights of the rows (k,): (k,) booleans."""
        floor = self._floor_scale(bank.mean.shape[-1], bank.mean.dtype)
        at = (2 * floor[None] >= bank.noise * count[:, None]) & (floor > 0)[None]
        return jnp.any(at, 1) & (count > 0)

    def feasible(self, bank: LowRankNormalParams) -> Array:
        """Whether all covariances are positive definite: ()."""
        return jnp.all(self._proper(bank))

    def sizes(self, bank: LowRankNormalParams) -> LowRankNormalParams:
        """Standard deviations of the estimates from one row whose factors are known: √ψ, √ψ and √2·ψ."""
        noise = jnp.maximum(bank.noise, _LEAST_NOISE * self._variances(bank))
        noise = jnp.where((noise > 0) & jnp.isfinite(noise), noise, 1)
        root = jnp.sqrt(noise)
        return LowRankNormalParams(root, jnp.broadcast_to(root[:, :, None], bank.loadings.shape), math.sqrt(2) * noise)

    def component_axes(self) -> LowRankNormalParams:
        """Every leaf leads with the components."""
        return LowRankNormalParams(0, 0, 0)  # type: ignore[arg-type]

    def points(self, x: Array) -> Array:
        """Rows as points of a Euclidean space, for k-means: themselves."""
        return x

    def n_parameters(self, bank: LowRankNormalParams, n_components: Any) -> Any:
        """Free parameters of so many components: a rotation of the loadings is none."""
        d, q = bank.loadings.shape[-2:]
        return n_components * (2 * d + d * q - q * (q - 1) // 2)

    def validate(self, bank: LowRankNormalParams, x: Any, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        if not isinstance(bank, LowRankNormalParams):
            raise TypeError(f"params.components: expected LowRankNormalParams, got {type(bank).__name__}.")
        d = self.validate_data(x)
        shape = n_components, d
        for name, leaf, want in zip(bank._fields, bank, (shape, (*shape, self.rank), shape), strict=True):
            if tuple(jnp.shape(leaf)) != want:
                raise ValueError(
                    f"params.components.{name}: expected shape {want} for {type(self).__name__}({self.rank}) with "
                    f"{n_components} components and {d} columns, got {tuple(jnp.shape(leaf))}."
                )

    def check_params(self, bank: LowRankNormalParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of a concrete bank lies outside of the parameter space."""
        check_leaves("params.components", bank, (REAL, REAL, NOT_NEGATIVE), lanes=lanes)

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d) with at least `rank` columns; returns d."""
        d = Normal(self.floor).validate_data(x)
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or not 1 <= self.rank <= d:
            raise ValueError(f"rank: expected an int from 1 to the number of columns, {d}, got {self.rank!r}.")
        return d
