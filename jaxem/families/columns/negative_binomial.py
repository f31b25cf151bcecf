"""Counts whose variance exceeds their mean: the negative binomial as a gamma mixture of Poisson laws."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln, xlogy

from ..._typing import Array, Key
from ...contracts.domains import NOT_NEGATIVE, POSITIVE, Domain
from ...numerics import tree as _tree
from ...numerics.linalg import dot
from ...numerics.special import (
    deviation_from,
    inverse_log_minus_digamma,
    log_minus_digamma,
    negative_binomial_log_prob,
    stirling_error,
)
from ._columns import SeparateColumns, is_nil, smallest
from ._count_columns import Counts
from ._sizes import at_size, gap_and_bend, largest_size, log_step, tilt


class NegativeBinomialParams(NamedTuple):
    """Sizes and means (k, d): the variances are mean + mean² / size.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.NegativeBinomialParams(size=jnp.array([[2.0], [2.0]]), mean=jnp.array([[1.0], [8.0]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.NegativeBinomial(), n_components=2).predict(start, jnp.array([[0.0], [7.0]]))
        Array([0, 1], dtype=...)
        >>> (bank.mean + bank.mean**2 / bank.size).ravel()  # variances
        Array([ 1.5, 40. ], dtype=...)
    """

    size: Array
    mean: Array


class MixedCounts(NamedTuple):
    """Sums over rows, weighted with responsibilities, of counts x and of what these say of the size.

    The relative rate is λ ~ Gamma(size, size). Where the size is fixed all but the first three are zero.

    Attributes:
        observed: (k, d), of the rows in which the column was seen; (k, 1) where none is missing.
        total: of x, (k, d).
        excess: of E[λ] − 1 given x, (k, d).
        gap: of E[λ] − E[log λ] − 1 given x, less log size − ψ(size), which that is without x: (k, d).
        curvature: of size·m/(size + m)², m = 1 … x − 1, the second derivative in log size of log Γ(size + x) − log
            Γ(size): (k, d).
        log_size: of the logarithm of the size that the others were taken at, (k, d).
    """

    observed: Array
    total: Array
    excess: Array
    gap: Array
    curvature: Array
    log_size: Array


class _WithError(NamedTuple):
    """A bank with the `stirling_error` of its sizes: a loop over components would take that again for every row."""

    size: Array
    mean: Array
    size_error: Array


class _Sizes(NamedTuple):
    """Steps of the size, and what they come from, on average: (k, d).

    Attributes:
        before: the size that the statistics were taken at.
        slope: of the log-likelihood in log size there.
        curvature: see `MixedCounts`.
        by_clusters: whether the size after is that of `log_step`, else that of the relative rates.
        after: the size.
    """

    before: Array
    slope: Array
    curvature: Array
    by_clusters: Array
    after: Array


@_tree.register
@dataclass(frozen=True)
class NegativeBinomial(Counts, SeparateColumns):
    """Counts, independent between columns: x | λ ~ Poisson(mean · λ), λ ~ Gamma(size, size).

    The mean of a component is that of its counts. The size goes where one of two functions is largest that lie below
    the log-likelihood and touch it at the current params, so that either raises it; the one that goes farther:

    - what EM knows of λ, λ | x ~ Gamma(size + x, size + mean): log size − ψ(size) = log E[λ] − E[log λ], the scale of λ
      being free too (parameter expansion, Liu, Rubin & Wu 1998). It goes far where counts are large.
    - the log-likelihood to the second order in log size, its curvature fading as it may at most: Newton's step near the
      limit (`_sizes.log_step`). Without the curvature this were EM of the number of clusters that counts come in
      (Quenouille 1949; Zhou & Carin 2015, section 2).

    Where counts vary no more than Poisson counts the likelihood rises with the size, which stops at 1/√eps.

    A mean of exactly 0 is legal: a component in which nothing was counted; it says nothing about the size, which stays.

    Attributes:
        size: () or (k, d), fixed; None estimates it for each component and column.
        missing: whether NaN marks an entry that was not observed; it is then left out of the likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> mites = jnp.arange(8.0)[:, None]  # on 150 apple leaves, Bliss & Fisher (1953)
        >>> leaves = jnp.array([70.0, 38, 17, 10, 9, 3, 2, 1])
        >>> model = jaxem.Mixture(jaxem.NegativeBinomial(), n_components=1)
        >>> start = model.init(jax.random.key(0), mites, leaves)
        >>> bank = jaxem.fit(model, start, mites, sample_weight=leaves, tol=1e-9).params.components
        >>> bank.size.round(2), bank.mean.round(3)
        (Array([[1.02]], dtype=...), Array([[1.147]], dtype=...))
    """

    size: Any = None

    _bank: ClassVar[type] = NegativeBinomialParams
    _domains: ClassVar[tuple[Domain, ...]] = (POSITIVE, NOT_NEGATIVE)

    # --- densities

    def _log_prob_rows(self, bank: NegativeBinomialParams, x: Array, present: Array | None) -> Array:
        return super()._log_prob_rows(_WithError(*bank, stirling_error(bank.size)), x, present)

    def _entry(self, bank: "_WithError", x: Array) -> Array:
        return negative_binomial_log_prob(x, *bank)

    # --- statistics and their mode

    def statistics(self, bank: NegativeBinomialParams | None, x: Array, responsibilities: Array) -> MixedCounts:
        """Sums weighted with responsibilities (n, k), λ expected at `bank`; of size 1 and the column means without."""
        x, present = self._filled(x)
        x = jnp.where(self._is_valid(x, 1), x, jnp.nan)
        if bank is None:
            centre = jnp.ones(x.shape[1:], x.dtype) if self.pivot is None else self.pivot
            mean = jnp.broadcast_to(centre, (responsibilities.shape[1], x.shape[1]))
            bank = NegativeBinomialParams(jnp.ones_like(mean), mean)
        size, mean = bank
        at = at_size(size) if self.size is None else None

        def one(j: Array) -> MixedCounts:
            r = lax.dynamic_index_in_dim(responsibilities, j, 1, keepdims=False)
            scale, both = (size[j] + mean[j])[None], size[j][None] + x
            step = (x - mean[j][None]) / scale
            terms = [x, step]
            if at is not None:
                less, bent = gap_and_bend(x, size[j][None], jax.tree.map(lambda leaf: leaf[j][None], at))
                terms += [deviation_from(step, both / scale) + less, bent]
            if present is not None:
                terms = [jnp.where(present, term, 0) for term in terms]
            seen = jnp.sum(r)[None] if present is None else dot(r, present.astype(x.dtype))
            total, excess, *own = [dot(r, term) for term in terms]
            nothing = jnp.zeros_like(total)
            gap, curvature, log_size = (*own, seen * jnp.log(size[j])) if own else (nothing,) * 3
            return MixedCounts(seen, total, excess, gap, curvature, log_size)

        return lax.map(one, jnp.arange(responsibilities.shape[1]))

    def estimate(
        self, bank: NegativeBinomialParams | None, stats: MixedCounts, active: Array | None = None
    ) -> NegativeBinomialParams:
        """mean = Σrx / N, and the size that goes farther, by the relative rates or by `log_step`.

        Statistics taken at different sizes, as averages over iterations may be, count as taken at the geometric mean of
        these. A component that counted nothing keeps its size; one without any weight takes the mean of the column, and
        a size of 1.
        """
        total = stats.total
        seen = jnp.broadcast_to(stats.observed, total.shape)
        present = seen > 0
        centre = jnp.ones(total.shape[1], total.dtype) if self.pivot is None else self.pivot
        mean = jnp.where(present, total / jnp.where(present, seen, 1), centre[None])
        size = self._fixed(total) if self.size is not None else self._sizes(stats).after
        return NegativeBinomialParams(size, mean)

    def _sizes(self, stats: MixedCounts) -> _Sizes:
        seen = jnp.broadcast_to(stats.observed, stats.total.shape)
        present = seen > 0
        safe = jnp.where(present, seen, 1)
        before = jnp.exp(jnp.where(present, stats.log_size / safe, 0))
        some = present & ~(stats.total == 0)  # NaN stays to be seen
        mean, curvature = (jnp.where(some, sums / safe, 1) for sums in (stats.total, stats.curvature))
        slope = jnp.where(some, before * (deviation_from(stats.excess / safe) - stats.gap / safe), 0)
        largest = largest_size(before.dtype)
        gap, least = log_minus_digamma(before) - slope / before, log_minus_digamma(jnp.asarray(largest, before.dtype))
        by_rates = jnp.where(gap < least, largest, inverse_log_minus_digamma(jnp.where(gap < least, least, gap)))
        step = log_step(slope, curvature, before, mean)
        by_clusters = jnp.abs(step) >= jnp.abs(jnp.log(by_rates / before))
        after = jnp.where(by_clusters, before * jnp.exp(step), by_rates)
        at_end = after > largest * (1 - 1e-6)
        after = jnp.where(at_end, largest, after)
        return _Sizes(before, slope, curvature, by_clusters, jnp.where(some, after, before))

    def _fixed(self, like: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.size, like.dtype), like.shape)

    def expected_log_prob(self, bank: NegativeBinomialParams, stats: MixedCounts) -> Array:
        """What lies below Σ_ij r_ij log f(x_i | j), up to what is constant in the params, and touches it: ().

        In the mean it is that itself. In the size it is Σ_ij r_ij E[log Poisson(x | m λ) + log Gamma(λ | size, size/μ)]
        with m μ = mean, at its largest over μ; or that of `log_step`; whichever `estimate` goes by.
        """
        size, total, seen = bank.size, stats.total, jnp.broadcast_to(stats.observed, stats.total.shape)
        events = total + seen * size
        in_mean = xlogy(total, bank.mean) - events * jnp.log(bank.mean + size) + seen * size * jnp.log(size)
        if self.size is not None:
            return jnp.sum(in_mean)
        at = self._sizes(stats)
        mean = total / jnp.where(seen > 0, seen, 1)
        log_step = jnp.log(size / at.before)
        bent = at.curvature * (jnp.expm1(-jnp.abs(log_step)) + jnp.abs(log_step))
        by_clusters = seen * ((at.slope + tilt(at.before, mean)) * log_step + bent)
        scale = jnp.where(seen > 0, (seen + stats.excess) / jnp.where(seen > 0, events, 1), 1)
        gap = stats.gap + seen * log_minus_digamma(at.before)
        by_rates = -events * (jnp.log(scale) + 1) - seen * gammaln(size) + (size - 1) * (stats.excess - gap)
        return jnp.sum(in_mean + jnp.where(at.by_clusters, by_clusters, by_rates))

    def sample(self, bank: NegativeBinomialParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        key_rate, key_count = jax.random.split(key)
        relative = jax.random.gamma(key_rate, bank.size[z], dtype=bank.mean.dtype) / bank.size[z]
        return jax.random.poisson(key_count, bank.mean[z] * relative).astype(bank.mean.dtype)

    # --- bookkeeping

    def feasible(self, bank: NegativeBinomialParams) -> Array:
        """Whether means are not negative and sizes positive, and all are finite: ()."""
        right = (bank.mean >= 0) & jnp.isfinite(bank.mean) & (bank.size > 0) & jnp.isfinite(bank.size)
        return jnp.all(right)

    def sizes(self, bank: NegativeBinomialParams) -> NegativeBinomialParams:
        """Standard deviation of a count, of its mean; the size itself.

        Means below 1e-4 of all count as that, and sizes below 1e-6, which explain nothing but zeros.
        """
        least = 1e-4 * (1.0 if self.pivot is None else jnp.where(self.pivot == 0, 1, self.pivot)[None])
        mean = jnp.maximum(bank.mean, least)
        return NegativeBinomialParams(jnp.maximum(bank.size, 1e-6), jnp.sqrt(mean + jnp.square(mean) / bank.size))

    def unconstrain(self, bank: NegativeBinomialParams) -> NegativeBinomialParams:
        """Logarithms; sizes (k, 0) where they are fixed. A mean of 0 comes back as a very small number."""
        size = jnp.log(bank.size)
        log_mean = jnp.log(jnp.maximum(bank.mean, smallest(bank.mean.dtype)))
        return NegativeBinomialParams(size if self.size is None else size[:, :0], log_mean)

    def constrain(self, free: NegativeBinomialParams) -> NegativeBinomialParams:
        """Inverse of `unconstrain`."""
        return NegativeBinomialParams(
            jnp.exp(free.size) if self.size is None else self._fixed(free.mean), jnp.exp(free.mean)
        )

    def held(self, bank: NegativeBinomialParams) -> NegativeBinomialParams:
        """Which free coordinates lie on the boundary: means of 0, and the sizes that these leave open."""
        nil: Any = is_nil(bank.mean)
        return NegativeBinomialParams(nil if self.size is None else nil[:, :0], nil)

    def frozen_coordinates(self, bank: NegativeBinomialParams, held: NegativeBinomialParams) -> NegativeBinomialParams:
        """Which free coordinates are held, shaped as `unconstrain(bank)`."""
        held = super().frozen_coordinates(bank, held)
        return held if self.size is None else held._replace(size=np.asarray(held.size)[:, :0])  # type: ignore[arg-type]

    def relabelled(self, order: Array) -> Self:
        """The family of components that were taken in this order."""
        own = self.size is not None and jnp.ndim(self.size) == 2
        return replace(self, size=jnp.asarray(self.size)[order]) if own else self

    def n_parameters(self, bank: NegativeBinomialParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * bank.mean.shape[1] * (2 if self.size is None else 1)

    def validate(self, bank: Any, x: Any, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        super().validate(bank, x, n_components)
        if self.size is not None and jnp.shape(self.size) not in ((), jnp.shape(bank.size)):
            raise ValueError(f"size: expected shape () or {jnp.shape(bank.size)}, got {jnp.shape(self.size)}.")

    def points(self, x: Array) -> Array:
        """Logarithms of 1 + count, for k-means: the standard deviation grows with the mean."""
        return jnp.log1p(jnp.maximum(super().points(x), 0))
