"""Counts whose variance exceeds their mean: the negative binomial as a gamma mixture of Poisson laws."""

import math
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
    inverse_log_odds,
    log_minus_digamma,
    negative_binomial_log_prob,
)
from ._columns import SeparateColumns, is_count, is_nil, smallest


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
    """Sums over rows, weighted with responsibilities, of counts x and of what is expected of the hidden variable.

    That is a relative rate λ ~ Gamma(size, size), or the number l of clusters; of one all sums are zero.

    Attributes:
        observed: (k, d), of the rows in which the column was seen; (k, 1) where none is missing.
        total: of x, (k, d).
        excess: of E[λ] − 1 given x, (k, d).
        gap: of E[λ] − E[log λ] − 1 ≥ 0, (k, d).
        clustered: of the rows in which counts are taken for clusters, (k, d).
        surplus: of x − E[l] ≥ 0 given x, (k, d).
    """

    observed: Array
    total: Array
    excess: Array
    gap: Array
    clustered: Array
    surplus: Array


@_tree.register
@dataclass(frozen=True)
class NegativeBinomial(SeparateColumns):
    """Counts, independent between columns: x | λ ~ Poisson(mean · λ), λ ~ Gamma(size, size).

    The mean of a component is that of its counts. The size is found by EM, of either of two hidden variables, whichever
    knows more of it at the current params; both raise the likelihood, and their fixed points are the same.

    - λ itself, λ | x ~ Gamma(size + x, size + mean): log size − ψ(size) = log E[λ] − E[log λ], the scale of λ being
      free too (parameter expansion, Liu, Rubin & Wu 1998). It is nearly known where counts are large.
    - the number l of clusters that counts come in (Quenouille 1949; Zhou & Carin 2015, section 2): l ~ Poisson(size ·
      log(1 + mean/size)), of logarithmic sizes, E[l | x] = size · (ψ(size + x) − ψ(size)), which is to be size ·
      log(1 + mean/size). It is nearly known where counts are rare, or the size is small.

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
    _support: ClassVar[str] = "non-negative integers"
    _legal: ClassVar[float] = 0.0
    _vague: ClassVar[float] = 1.0

    def _is_valid(self, x: Array, axis: int) -> Array:
        return is_count(x)

    # --- densities

    def _entry(self, bank: NegativeBinomialParams, x: Array) -> Array:
        return negative_binomial_log_prob(x, bank.size, bank.mean)

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
        by_cluster = self._by_cluster(bank)

        def one(j: Array) -> MixedCounts:
            r = lax.dynamic_index_in_dim(responsibilities, j, 1, keepdims=False)
            in_clusters = by_cluster[j]
            # of a rate about the mean, of clusters about zero: the same function of either
            scale = jnp.where(in_clusters, size[j], size[j] + mean[j])[None]
            step, both = (x - jnp.where(in_clusters, 0, mean[j])[None]) / scale, size[j][None] + x
            terms = [x, step]
            if self.size is None:
                base = jnp.where(in_clusters, log_minus_digamma(size[j]), 0)
                terms.append(deviation_from(step, both / scale) + (log_minus_digamma(both) - base[None]))
            if present is not None:
                terms = [jnp.where(present, term, 0) for term in terms]
            seen = jnp.sum(r)[None] if present is None else dot(r, present.astype(x.dtype))
            total, excess, *gap = [dot(r, term) for term in terms]
            gap = gap[0] if gap else jnp.zeros_like(total)
            own = lambda values: jnp.where(in_clusters, 0, values)  # noqa: E731
            clusters = lambda values: jnp.where(in_clusters, values, 0)  # noqa: E731
            clustered = clusters(jnp.broadcast_to(seen, total.shape))
            return MixedCounts(seen, total, own(excess), own(gap), clustered, clusters(size[j] * gap))

        return lax.map(one, jnp.arange(responsibilities.shape[1]))

    def _by_cluster(self, bank: NegativeBinomialParams) -> Array:
        """Whether the number of clusters knows more of the size than the relative rates do: (k, d).

        The complete-data information on the size is n/size · (log(1 + u) − u/(1 + u)), u = mean/size, of the first, and
        n/size · (size·ψ'(size) − 1), about n/size · (size + 1)/(size·(2 size + 1)), of the second: the less, the larger
        the step. The M step stays that of one of them, so that the choice need not be exact.
        """
        u = lax.stop_gradient(bank.mean / bank.size)
        size = lax.stop_gradient(bank.size)
        less = jnp.log1p(u) - u / (1 + u) < (size + 1) / (size * (2 * size + 1))
        return less & (bank.mean > 0) if self.size is None else jnp.zeros(bank.mean.shape, bool)

    def estimate(
        self, bank: NegativeBinomialParams | None, stats: MixedCounts, active: Array | None = None
    ) -> NegativeBinomialParams:
        """mean = Σrx / N, and the size by the relative rates or the clusters.

        log size − ψ(size) = gap / N − (u − log(1 + u)), u = excess / N; or size = mean / u, (u − log(1 + u)) / log(1 +
        u) = surplus / (total − surplus). Statistics that are partly of one kind and partly of the other, as averages
        over iterations may be, are given the geometric mean. A component without any weight takes the mean of the
        column, and a size of 1.
        """
        total = stats.total
        seen = jnp.broadcast_to(stats.observed, total.shape)
        present = seen > 0
        safe = jnp.where(present, seen, 1)
        centre = jnp.ones(total.shape[1], total.dtype) if self.pivot is None else self.pivot
        mean = jnp.where(present, total / safe, centre[None])
        if self.size is not None:
            return NegativeBinomialParams(self._fixed(total), mean)
        share = stats.clustered / safe
        of_rates, of_clusters = self._size_of_rates(stats, seen - stats.clustered), self._size_of_clusters(stats, mean)
        between = of_rates * (of_clusters / of_rates) ** share
        size = jnp.where(share == 0, of_rates, jnp.where(share == 1, of_clusters, between))
        nothing = (total == 0) & (share > 0)  # counted: any size explains it as well
        size = jnp.where(nothing, 1 if bank is None else bank.size, size)
        return NegativeBinomialParams(jnp.where(present, size, 1), mean)

    def _size_of_rates(self, stats: MixedCounts, seen: Array) -> Array:
        """By rows with relative rates, so many of which were seen (k, d)."""
        present = seen > 0
        safe = jnp.where(present, seen, 1)
        gap = jnp.where(present, stats.gap / safe - deviation_from(jnp.where(present, stats.excess / safe, 0)), 1)
        least = log_minus_digamma(jnp.asarray(1 / math.sqrt(jnp.finfo(gap.dtype).eps), gap.dtype))
        usable = present & ~(gap < least)  # NaN stays to be seen
        return inverse_log_minus_digamma(jnp.where(usable, gap, least))

    def _size_of_clusters(self, stats: MixedCounts, mean: Array) -> Array:
        """By rows with clusters, whose counts have this mean."""
        some = (stats.clustered > 0) & ~(stats.total == 0)
        clusters = jnp.where(some, stats.total - stats.surplus, 1)
        ratio = stats.surplus / jnp.where(clusters == 0, 1, clusters)
        safe = jnp.where(some, mean, 1)
        least = 0.5 * safe * math.sqrt(jnp.finfo(mean.dtype).eps)
        usable = some & ~(ratio < least)  # NaN stays to be seen
        return safe / inverse_log_odds(jnp.where(usable, ratio, least))

    def _fixed(self, like: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.size, like.dtype), like.shape)

    def expected_log_prob(self, bank: NegativeBinomialParams, stats: MixedCounts) -> Array:
        """Σ_ij r_ij E[log Poisson(x | m λ) + log Gamma(λ | size, size/μ)], m μ = mean, at its largest over μ: ().

        Or Σ_ij r_ij E[log p(x, l)], l clusters. Up to what is constant in the params. In the mean either is the
        log-likelihood; it touches that from below where λ or l was expected.
        """
        size, total, seen = bank.size, stats.total, jnp.broadcast_to(stats.observed, stats.total.shape)
        events = total + seen * size
        in_mean = xlogy(total, bank.mean) - events * jnp.log(bank.mean + size) + seen * size * jnp.log(size)
        if self.size is not None:
            return jnp.sum(in_mean)
        share = stats.clustered / jnp.where(seen > 0, seen, 1)
        in_mean = in_mean + (total * share - stats.surplus) * jnp.log(size)
        rates, events = seen - stats.clustered, events * (1 - share)
        scale = jnp.where(rates > 0, (rates + stats.excess) / jnp.where(rates > 0, events, 1), 1)
        in_size = -events * (jnp.log(scale) + 1) - rates * gammaln(size) + (size - 1) * (stats.excess - stats.gap)
        return jnp.sum(in_mean + in_size)

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
