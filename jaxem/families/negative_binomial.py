"""Counts whose variance exceeds their mean: the negative binomial as a gamma mixture of Poisson laws."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln, xlogy

from .. import _tree
from .._linalg import dot
from .._special import deviance, deviation_from, inverse_log_minus_digamma, log_minus_digamma, stirling_error
from .._typing import Array, Key
from ..domains import NOT_NEGATIVE, POSITIVE, Domain
from ._columns import SeparateColumns, is_count, is_nil, smallest

_LOG_2PI = math.log(2 * math.pi)


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
    """Sums over rows, weighted with responsibilities, of counts x and their relative rates λ ~ Gamma(size, size).

    Attributes:
        observed: (k, d), of the rows in which the column was seen; (k, 1) where none is missing.
        total: of x, (k, d).
        excess: of E[λ] − 1 given x, (k, d).
        gap: of E[λ] − E[log λ] − 1 ≥ 0, (k, d).
    """

    observed: Array
    total: Array
    excess: Array
    gap: Array


@_tree.register
@dataclass(frozen=True)
class NegativeBinomial(SeparateColumns):
    """Counts, independent between columns: x | λ ~ Poisson(mean · λ), λ ~ Gamma(size, size).

    The mean of a component is that of its counts. The size solves log size − ψ(size) = log E[λ] − E[log λ], λ expected
    at the current params, λ | x ~ Gamma(size + x, size + mean): EM of the model in which the scale of λ is free too
    (parameter expansion, Liu, Rubin & Wu 1998), which does not leave the mean to crawl. Where counts vary no more than
    Poisson counts the likelihood rises with the size, which stops at 1/√eps.

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
        """To rounding, whatever the size of count and params, by the saddle point expansion of Loader (2000).

        −D(x, mean·t) − size·(t − 1 − log t) with t = (size + x)/(size + mean), and Stirling errors.
        """
        size, none, nil = bank.size, x == 0, bank.mean == 0
        mean = jnp.where(nil, 1, bank.mean)
        safe = jnp.where(none, 1, x)
        step = (safe - mean) / (size + mean)
        both = size + safe
        counted = (
            stirling_error(both) - stirling_error(safe) - stirling_error(size)
            - deviance(safe, mean * (1 + step)) - size * deviation_from(step, both / (size + mean))
            + 0.5 * (jnp.log(size / both) - jnp.log(safe) - _LOG_2PI)
        )  # fmt: skip
        at_zero = -size * jnp.log1p(bank.mean / size)
        return jnp.where(none, at_zero, jnp.where(nil, -jnp.inf, counted))

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

        def one(j: Array) -> MixedCounts:
            r = lax.dynamic_index_in_dim(responsibilities, j, 1, keepdims=False)
            scale = (size[j] + mean[j])[None]
            step, both = (x - mean[j][None]) / scale, size[j][None] + x
            terms = [x, step]
            if self.size is None:
                terms.append(deviation_from(step, both / scale) + log_minus_digamma(both))
            if present is not None:
                terms = [jnp.where(present, term, 0) for term in terms]
            seen = jnp.sum(r)[None] if present is None else dot(r, present.astype(x.dtype))
            sums = [dot(r, term) for term in terms]
            return MixedCounts(seen, *sums, *[jnp.zeros_like(sums[0])] * (3 - len(sums)))

        return lax.map(one, jnp.arange(responsibilities.shape[1]))

    def estimate(
        self, bank: NegativeBinomialParams | None, stats: MixedCounts, active: Array | None = None
    ) -> NegativeBinomialParams:
        """mean = Σrx / N; log size − ψ(size) = gap / N − (u − log(1 + u)), u = excess / N.

        A component without any weight takes the mean of the column, and a size of 1.
        """
        total = stats.total
        seen = jnp.broadcast_to(stats.observed, total.shape)
        present = seen > 0
        safe = jnp.where(present, seen, 1)
        centre = jnp.ones(total.shape[1], total.dtype) if self.pivot is None else self.pivot
        mean = jnp.where(present, total / safe, centre[None])
        if self.size is not None:
            return NegativeBinomialParams(self._fixed(total), mean)
        gap = jnp.where(present, stats.gap / safe - deviation_from(jnp.where(present, stats.excess / safe, 0)), 1)
        least = log_minus_digamma(jnp.asarray(1 / math.sqrt(jnp.finfo(total.dtype).eps), total.dtype))
        usable = present & ~(gap < least)  # NaN stays to be seen
        size = inverse_log_minus_digamma(jnp.where(usable, gap, least))
        return NegativeBinomialParams(jnp.where(present, size, 1), mean)

    def _fixed(self, like: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.size, like.dtype), like.shape)

    def expected_log_prob(self, bank: NegativeBinomialParams, stats: MixedCounts) -> Array:
        """Σ_ij r_ij E[log Poisson(x | m λ) + log Gamma(λ | size, size/μ)], m μ = mean, at its largest over μ: ().

        Up to Σ r log x!. In the mean it is the log-likelihood; it touches that from below where λ was expected.
        """
        size, total, seen = bank.size, stats.total, jnp.broadcast_to(stats.observed, stats.total.shape)
        events = total + seen * size
        in_mean = xlogy(total, bank.mean) - events * jnp.log(bank.mean + size) + seen * size * jnp.log(size)
        if self.size is not None:
            return jnp.sum(in_mean)
        scale = jnp.where(seen > 0, (seen + stats.excess) / jnp.where(seen > 0, events, 1), 1)
        in_size = -events * (jnp.log(scale) + 1) - seen * gammaln(size) + (size - 1) * (stats.excess - stats.gap)
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
        """Standard deviation of a count, of its mean; the size itself. Means below 1e-4 of all count as that."""
        least = 1e-4 * (1.0 if self.pivot is None else jnp.where(self.pivot == 0, 1, self.pivot)[None])
        mean = jnp.maximum(bank.mean, least)
        return NegativeBinomialParams(bank.size, jnp.sqrt(mean + jnp.square(mean) / bank.size))

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
