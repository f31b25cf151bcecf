"""Multivariate normal components with full, diagonal, spherical or tied covariance.

Fast path: `prepare` turns rows into T(x) = (1, y, quadratic terms of y), y = x − pivot, and both arrows of EM are
matrix products. Its rounding error grows with (spread / component standard deviation)², which `trusted` watches.
Stable path: whitened distances, and moments about each component's own mean (`recentred`), scanned over components.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._typing import Array, Key
from ...contracts import capabilities as ask
from ...contracts.domains import Domain, check_leaves
from ...contracts.priors import DefaultPrior
from ...contracts.space import InSpace
from ...contracts.status import Status
from ...fold.constants import merged_mean, merged_variance
from ...fold.features import Features, make_features
from ...fold.present import first_row, present_rows
from ...numerics.linalg import dot
from ...numerics.scales import robust_variance, weighed
from ._placed import Placed
from ._products import Products
from ._regularised import Regularised

LOG_2PI = math.log(2 * math.pi)


class NormalParams(NamedTuple):
    """Means (k, d) and covariances: (k, d, d) full, (k, d) diagonal, (k,) spherical, (d, d) tied, () both.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.NormalParams(mean=jnp.array([[-1.0], [2.0]]), covariance=jnp.ones((2, 1, 1)))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.FullNormal(), n_components=2).predict(start, jnp.array([[0.0], [3.0]]))
        Array([0, 1], dtype=...)
    """

    mean: Array
    covariance: Array


class Moments(NamedTuple):
    """Σ r, Σ r·y, Σ r·y² about a pivot; `second` has the shape of a covariance."""

    count: Array
    first: Array
    second: Array


@dataclass(frozen=True)
class Normal(Regularised, Placed, Products, InSpace):
    """What the four families share; each adds the algebra of its covariance.

    Attributes:
        floor: regularisation, in units of the robust column variances of the data: the log prior −½ Σ_k tr(Λ Σ_k⁻¹),
            Λ = floor · diag(robust variances), which a few rows far away do not move. 0 is pure maximum likelihood.
        prior: a `NormalInverseWishart`, `NormalInverseWishart.default()`, or None for a flat prior.
        max_ratio: c ≥ 1, a bound on the largest over the smallest eigenvalue of all covariances (Hathaway 1985), in the
            units of the data, so that columns should be alike; None is no bound. A start is put within it.
        pivot: set by `bind`, (d,): moments are taken about it; or by `recentred`, (k, d).
        origin: set by `localised`, (d,): means are relative to it.
        centre: set by `bind`, (d,): the column means, where a component without weight is put.
        variance: set by `bind`, (d,): weighted column variances.
        robust_variance: set by `bind`, (d,): those of normal columns of the same scale, see `jaxem.numerics.scales`.
    """

    pivot: Any = None
    variance: Any = None
    origin: Any = None
    centre: Any = None
    robust_variance: Any = field(default=None, kw_only=True)
    max_ratio: Any = field(default=None, kw_only=True)

    additive: ClassVar[bool] = True
    reads_floats: ClassVar[bool] = True
    _joins_columns: ClassVar[bool] = True
    _domains: ClassVar[tuple[Domain, ...]]  # of the leaves of a bank

    # the algebra of a covariance, which each family defines
    _whitening: ClassVar[Callable[..., tuple[Array, Array]]]
    _whiten: ClassVar[Callable[..., Array]]
    _quadratic: ClassVar[Callable[..., list[Array]]]
    _natural_terms: ClassVar[Callable[..., tuple[Array, list[Array], Array]]]
    _precision_diagonal: ClassVar[Callable[..., Array]]
    _moments: ClassVar[Callable[..., Moments]]
    _scatter: ClassVar[Callable[..., Array]]
    _outer: ClassVar[Callable[..., Array]]
    _cross: ClassVar[Callable[..., Array]]
    _diagonal: ClassVar[Callable[..., Array]]
    _expand: ClassVar[Callable[..., Array]]
    _divisor: ClassVar[Callable[..., Array]]
    _trace: ClassVar[Callable[..., Array]]
    _log_inverse_wishart: ClassVar[Callable[..., Array]]
    _colour: ClassVar[Callable[..., Array]]
    _proper: ClassVar[Callable[..., Array]]
    _spreads: ClassVar[Callable[..., tuple[Array, Array]]]
    _shapes: ClassVar[Callable[..., tuple[tuple[int, ...], tuple[int, ...]]]]
    _scale_shape: ClassVar[Callable[..., tuple[int, ...]]]

    # --- constants of the data

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets pivot and variances: weighted column means and variances of rows (n, d)."""
        x = present_rows(x, sample_weight)
        # differences from a row first: a constant column gets variance exactly 0, a far offset costs no digits
        origin = lax.stop_gradient(first_row(x, sample_weight))
        if sample_weight is None:
            average = lambda values: jnp.mean(values, 0)  # noqa: E731
        else:
            safe_total = jnp.where(jnp.sum(sample_weight) > 0, jnp.sum(sample_weight), 1)
            average = lambda values: jnp.sum(values * sample_weight[:, None], 0) / safe_total  # noqa: E731
        shift = average(x - origin[None])
        variance = average(jnp.square(x - (origin + shift)[None]))
        bound = self._bound(origin + shift, variance, robust_variance(x, sample_weight))
        return bound._with_prior_of(x, sample_weight)

    def _bound(self, mean: Array, variance: Array, robust: Array) -> Self:
        return replace(self, pivot=mean, variance=variance, centre=mean, robust_variance=robust)

    def weigh(self, x: Array, sample_weight: Array | None) -> Any:
        """What stands behind the constants."""
        return weighed(present_rows(x, sample_weight), sample_weight)

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The family bound to the rows of both."""
        ours, theirs = (self.pivot, self.variance), (other.pivot, other.variance)
        mean = merged_mean(self.pivot, seen.weight, other.pivot, other_seen.weight)
        variance = merged_variance(ours, seen.weight, theirs, other_seen.weight)
        bound = self._bound(mean, variance, seen.robust_variance(other_seen))
        if not isinstance(self.prior, DefaultPrior) or not isinstance(other.prior, DefaultPrior):
            return bound
        return replace(bound, prior=self.prior.merged(seen.weight, other.prior, other_seen.weight))

    def recentred(self, bank: NormalParams) -> Self:
        """The same family with moments about these means: its stable path."""
        return replace(self, pivot=lax.stop_gradient(bank.mean))

    def _offset(self, mean: Array) -> Array:
        return mean if self.pivot is None else mean - jnp.atleast_2d(self.pivot)

    # --- densities

    @property
    def rows_add(self) -> bool:
        """Whether the densities are linear in prepared rows: they are, in features."""
        return ask.has_fast_path(self)

    def prepare(self, x: Array, n_components: int | None) -> Features:
        """T(x) of the fast path, about the pivot."""
        y = self._rows(x)
        y = y if self.pivot is None else y - self.pivot[None]
        return make_features(y, self._columns, n_components)

    def _columns(self, y: Array, axis: int) -> list[Array]:
        ones = jnp.ones_like(lax.slice_in_dim(y, 0, 1, axis=axis))
        return [ones, y, *self._quadratic(y, axis)]

    def log_prob(self, bank: NormalParams, x: Array | Features) -> Array:
        """log N(x_i | μ_j, Σ_j): (n, k). Raw rows are whitened, prepared ones multiplied."""
        if isinstance(x, Features):
            return self._log_prob_fast(bank, x)
        factor, half_log_det = self._whitening(bank)
        k, d = bank.mean.shape
        x = self._rows(x)

        def distance(mean: Array, factor: Array) -> Array:
            return jnp.sum(jnp.square(self._whiten(x - mean[None], factor)), -1)

        shared = self.component_axes().covariance is None
        scan = lambda j: distance(bank.mean[j], factor if shared else factor[j])  # noqa: E731
        squared = lax.map(scan, jnp.arange(k)).T
        return -0.5 * squared - (half_log_det + 0.5 * d * LOG_2PI).reshape(1, -1)

    def log_joint(self, bank: NormalParams, log_weights: Array, x: Array | Features) -> Array:
        """log w_j + log N(x_i | μ_j, Σ_j): (n, k). Prepared rows find the weight in the log-normaliser."""
        if isinstance(x, Features):
            return self._log_prob_fast(bank, x, log_weights)
        return self.log_prob(bank, x) + log_weights[None]

    def _log_prob_fast(self, bank: NormalParams, x: Features, log_weights: Array | float = 0.0) -> Array:
        return x.logits(self.natural(bank, log_weights))

    def natural(self, bank: NormalParams, log_weights: Array | float = 0.0) -> Array:
        """Natural parameters of T about the pivot, the log-normaliser (plus log weights) first: (k, f).

        A log weight of −inf comes as a finite number that is as good: in a product with a tangent of T it meets zeros.
        """
        mean = self._offset(bank.mean)
        linear, quadratic, half_log_det = self._natural_terms(bank.covariance, mean)
        d = mean.shape[-1]
        log_weights = jnp.maximum(log_weights, jnp.finfo(mean.dtype).min / 4)
        constant = log_weights - half_log_det - 0.5 * d * LOG_2PI - 0.5 * jnp.sum(linear * mean, -1)
        return jnp.concatenate([jnp.reshape(constant, (-1, 1)), linear, *quadratic], 1)

    def trusted(self, bank: NormalParams) -> Array:
        """Whether the fast path keeps its digits: eps · (spread / standard deviation)² ≤ 0.3·√eps.

        The ratio is the largest of Σ⁻¹_aa · variance_a; its limit is about 30² in float32. A bank without a density
        is not trusted: rounding on the fast path may have made it.
        """
        ratio = jnp.max(jnp.atleast_2d(self._precision_diagonal(bank)) * self.variance[None])
        return ratio <= 0.3 / math.sqrt(jnp.finfo(ratio.dtype).eps)

    # --- statistics and their mode

    def statistics(self, bank: NormalParams | None, x: Array | Features, responsibilities: Array) -> Moments:
        """Moments about the pivot, summed with responsibilities (n, k). `bank` is not used."""
        if isinstance(x, Features):
            return self._unpack(x, responsibilities)
        k, d = responsibilities.shape[1], x.shape[1]
        pivot = jnp.zeros(d, x.dtype) if self.pivot is None else self.pivot
        x = self._rows(x)

        def one(j: Array) -> Moments:
            y = x - (pivot if pivot.ndim == 1 else pivot[j])[None]
            r = lax.dynamic_index_in_dim(responsibilities, j, 1, keepdims=False)
            return Moments(jnp.sum(r), dot(r, y), self._scatter(r, y))

        return self._pool(lax.map(one, jnp.arange(k)))

    def _unpack(self, x: Features, responsibilities: Array) -> Moments:
        return self._moments(x.weighted_sums(responsibilities), x.n_linear)

    def _pool(self, moments: Moments) -> Moments:
        return moments

    def estimate(self, bank: NormalParams | None, stats: Moments, active: Array | None = None) -> NormalParams:
        """Mode of the expected log-density plus log prior, of moments about the pivot; see `_mode`."""
        return self._mode(bank, stats, active, None)

    def estimate_held(
        self, bank: NormalParams, stats: Moments, held: NormalParams, active: Array | None = None
    ) -> NormalParams:
        """The mode with some entries as `bank` has them; `held` are booleans shaped as the bank.

        Raises:
            ValueError: where a part is held of what is estimated together.
        """
        self._check_held(held)
        return self._mode(bank, stats, active, held)

    def frozen_coordinates(self, bank: NormalParams, held: NormalParams) -> NormalParams:
        """Which free coordinates are held, shaped as `unconstrain(bank)`."""
        self._check_held(held)
        shape = jax.eval_shape(self.unconstrain, bank).covariance.shape
        whole: Any = held.covariance
        if whole.shape != shape:  # coordinates of a matrix are held together
            whole = whole.reshape(*shape[:-1], -1).all(-1, keepdims=True)
        return NormalParams(held.mean, np.broadcast_to(whole, shape))  # type: ignore[arg-type]

    def _check_held(self, held: NormalParams) -> None:
        """Columns that one matrix joins are held together; a diagonal covariance joins none."""
        if self.max_ratio is not None and np.any(held.covariance):
            raise ValueError(
                "mask.components.covariance: max_ratio estimates all covariances together, so that none can be held, "
                "got some; hold all of the components, or pass max_ratio=None."
            )
        if not self._joins_columns:
            return
        axes = {"mean": (1,), "covariance": (-2, -1)}
        for name, flags in held._asdict().items():
            part = np.any(flags, axes[name]) & ~np.all(flags, axes[name])
            if np.any(part):
                which = f" of component {int(np.argmax(part))}" if part.ndim else ""
                raise ValueError(
                    f"mask.components.{name}: {type(self).__name__} can hold all of the {name}{which} or nothing of "
                    "it, got a part, which the others depend on; hold all of it, or use DiagonalNormal."
                )

    def _mode(
        self, bank: NormalParams | None, stats: Moments, active: Array | None, held: NormalParams | None
    ) -> NormalParams:
        """Mode of the expected log-density plus log prior, of moments about the pivot.

        With prior pseudo-counts κ, ν and scale Ψ, and Λ of the floor:
        μ = pivot + δ, δ = (κ(m − pivot) + Σry) / (κ + N); Σ = (Ψ + Λ + scatter) / (N + ν + d + 2), as Fraley &
        Raftery (2007). Without a prior the divisor is N. A component without any weight takes the data's own mean
        and variances, so that it stays finite; its mixture weight is zero. About a mean that is held the scatter is
        that about it; the prior's pseudo-observations are in it, and the divisor is the same.
        """
        d, dtype = stats.first.shape[1], stats.first.dtype
        pivot = jnp.zeros((1, d), dtype) if self.pivot is None else jnp.atleast_2d(self.pivot)
        first, second, count = stats.first, stats.second, stats.count
        prior = self._pseudo_observations(dtype)
        if prior is not None:
            gap = prior.mean[None] - pivot
            count = count + prior.shrinkage
            first = first + prior.shrinkage * gap
            second = second + self._outer(
                jnp.broadcast_to(gap, first.shape), jnp.broadcast_to(prior.shrinkage, count.shape)
            )
        present = count > 0
        offset = first / jnp.where(present, count, 1)[:, None]
        if held is None or bank is None or not np.any(held.mean):
            scatter = second - self._outer(offset, count)
        else:
            offset = jnp.where(held.mean, bank.mean - pivot, offset)
            scatter = second - self._cross(first, offset) + self._outer(offset, count)
        scatter = scatter + self._diagonal(self._floor_scale(d, dtype))
        if prior is not None:
            scatter = scatter + jnp.reshape(
                prior.scale, (1,) * (scatter.ndim - jnp.ndim(prior.scale)) + jnp.shape(prior.scale)
            )
        divisor = self._divisor(stats.count, prior, d, active)
        proper = divisor > 0
        covariance = self._within_ratio(scatter / self._expand(jnp.where(proper, divisor, 1)), divisor)
        centre = jnp.zeros(d, dtype) if self.centre is None else self.centre
        spread = jnp.ones(d, dtype) if self.variance is None else jnp.where(self.variance > 0, self.variance, 1)
        mode = NormalParams(
            jnp.where(present[:, None], pivot + offset, centre[None]),
            jnp.where(self._expand(proper), covariance, self._diagonal(spread)),
        )
        if held is None or bank is None:
            return mode
        return NormalParams(*(jnp.where(f, old, new) for f, old, new in zip(held, bank, mode, strict=True)))

    # --- Q, priors, bookkeeping

    def expected_log_prob(self, bank: NormalParams, stats: Moments) -> Array:
        """Σ_ij r_ij log N(x_i | μ_j, Σ_j) from moments about the pivot: ()."""
        factor, half_log_det = self._whitening(bank)
        d = bank.mean.shape[-1]
        offset = self._offset(bank.mean)
        scatter = stats.second - self._cross(stats.first, offset) + self._outer(offset, stats.count)
        return -jnp.sum(stats.count * (half_log_det + 0.5 * d * LOG_2PI)) - 0.5 * self._trace(factor, scatter)

    @property
    def has_proper_prior(self) -> bool:
        """Whether a component without rows has a mode; under the floor alone it has none."""
        return self.prior is not None

    def log_prior(self, bank: NormalParams, active: Array | None = None) -> Array:
        """Log density of `prior` plus the floor's −½ tr(Λ Σ⁻¹), over the active components: ()."""
        k, d = bank.mean.shape
        dtype = bank.mean.dtype
        active = jnp.ones(k, bool) if active is None else active
        precision = self._precision_diagonal(bank)
        floor = self._floor_scale(d, dtype)
        terms = -0.5 * jnp.sum(precision * floor.reshape((1,) * (precision.ndim - 1) + (d,)), -1)
        prior = self._pseudo_observations(dtype)
        if prior is None:
            return self._sum_active(terms, active)
        factor, half_log_det = self._whitening(bank)
        terms = terms + self._log_inverse_wishart(factor, half_log_det, prior, d)
        deviation = jnp.sum(jnp.square(self._whiten(bank.mean - prior.mean[None], factor)), -1)
        normal = 0.5 * d * (jnp.log(prior.shrinkage) - LOG_2PI) - half_log_det - 0.5 * prior.shrinkage * deviation
        return self._sum_active(terms, active) + self._sum_active(normal, active)

    def _sum_active(self, values: Array, active: Array) -> Array:
        return jnp.sum(jnp.where(active, values, 0)) if values.ndim else values

    def sample(self, bank: NormalParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        noise = jax.random.normal(key, (z.shape[0], bank.mean.shape[1]), bank.mean.dtype)
        return bank.mean[z] + self._colour(bank.covariance, z, noise)

    def health(self, bank: NormalParams, active: Array) -> Array:
        """DEGENERATE if an active component's covariance is not positive definite, else RUNNING."""
        proper = self._proper(bank.covariance)
        degenerate = jnp.any(~proper & active) if proper.ndim else ~proper
        return jnp.where(degenerate, Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)

    def feasible(self, bank: NormalParams) -> Array:
        """Whether all covariances are positive definite, and within `max_ratio`."""
        proper = jnp.all(self._proper(bank.covariance))
        return proper if self.max_ratio is None else proper & self._obeys_ratio(bank)

    def sizes(self, bank: NormalParams) -> NormalParams:
        """Standard deviations of the estimates from one row: √Σ_aa of a mean, √(Σ_aa Σ_bb + Σ_ab²) of a covariance."""
        variances, spread = self._spreads(bank.covariance, bank.mean.shape[-1])
        real = lambda square: jnp.sqrt(jnp.where((square > 0) & jnp.isfinite(square), square, 1))  # noqa: E731
        return NormalParams(jnp.broadcast_to(real(variances), bank.mean.shape), real(spread))

    def component_axes(self) -> NormalParams:
        """Both leaves lead with the components."""
        return NormalParams(0, 0)  # type: ignore[arg-type]

    def points(self, x: Array) -> Array:
        """Rows as points of a Euclidean space, for k-means: themselves."""
        return x

    def validate(self, bank: NormalParams, x: Any, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        if not isinstance(bank, NormalParams):
            raise TypeError(f"params.components: expected NormalParams, got {type(bank).__name__}.")
        d = self.validate_data(x)
        for name, leaf, want in zip(bank._fields, bank, self._shapes(n_components, d), strict=True):
            if tuple(jnp.shape(leaf)) != want:
                raise ValueError(
                    f"params.components.{name}: expected shape {want} for {type(self).__name__} with "
                    f"{n_components} components and {d} columns, got {tuple(jnp.shape(leaf))}."
                )

    def check_params(self, bank: NormalParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of a concrete bank lies outside of the parameter space."""
        check_leaves("params.components", bank, self._domains, lanes=lanes)

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d) and the prior fits; returns d."""
        if not hasattr(x, "ndim") or x.ndim != 2:
            got = f"shape {tuple(x.shape)}" if hasattr(x, "ndim") else type(x).__name__
            raise ValueError(f"data: expected an array of shape (n, d), got {got}; a single column is x[:, None].")
        d = x.shape[1]
        self._check_regularisation(d)
        return d
