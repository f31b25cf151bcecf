"""Counts: Poisson columns."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..._typing import Array, Key
from ...contracts.domains import NOT_NEGATIVE, Domain
from ...contracts.priors import GammaPrior, gamma_log_prob
from ...numerics import tree as _tree
from ...numerics.special import poisson_log_prob
from ._columns import (
    ColumnSums,
    IndependentColumns,
    is_nil,
    log_ratio_or_low,
    smallest,
)
from ._count_columns import LinearCounts


class PoissonParams(NamedTuple):
    """Rates (k, d).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.PoissonParams(rate=jnp.array([[1.0], [9.0]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Poisson(), n_components=2).predict(start, jnp.array([[2.0], [7.0]]))
        Array([0, 1], dtype=...)
    """

    rate: Array


@_tree.register
@dataclass(frozen=True)
class Poisson(LinearCounts, IndependentColumns):
    """Counts, independent between columns: x_a ~ Poisson(rate_a).

    A rate of exactly 0 is legal: a component in which nothing was counted.

    Attributes:
        prior: a `GammaPrior` on every rate, its leaves () or (d,); None is pure maximum likelihood.
        missing: whether NaN marks an entry that was not observed; it is then left out of the likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> jnp.sort(result.params.components.rate[:, 0]).round(2)
        Array([ 1.5, 21.5], dtype=...)
    """

    prior: GammaPrior | None = None

    _bank: ClassVar[type] = PoissonParams
    _domains: ClassVar[tuple[Domain, ...]] = (NOT_NEGATIVE,)

    def _base(self, x: Array, present: Array | None, axis: int) -> Array:
        # relative to the density at the column's own mean, the products are of numbers that keep their digits
        d = x.shape[axis]
        entries = poisson_log_prob(x, self._place(d, x.dtype).reshape((1, d) if axis == 1 else (d, 1)))
        return jnp.sum(entries if present is None else jnp.where(present, entries, 0), axis, keepdims=True)

    def _natural(self, bank: PoissonParams) -> tuple[list[Array], Array]:
        place = self._place(bank.rate.shape[1], bank.rate.dtype)[None]
        return [log_ratio_or_low(bank.rate, place)], place - bank.rate

    def _place(self, d: int, dtype: Any) -> Array:
        return jnp.ones(d, dtype) if self.pivot is None else jnp.where(self.pivot == 0, 1, self.pivot)

    def _entry(self, bank: PoissonParams, x: Array) -> Array:
        return poisson_log_prob(x, bank.rate)

    def trusted(self, bank: PoissonParams) -> Array:
        """Whether the fast path keeps its digits in the rows of each component: ().

        Its error there is eps · Σ_a (rate·|log(rate/pivot)| + |rate − pivot|), which is to stay below 0.3·√eps: rates
        to about 1000 in float32, where components differ by their own size; any, where they lie close together, as the
        logarithm and the difference have digits of their own there.
        """
        (log_ratio,), difference = self._natural(bank)
        size = jnp.max(jnp.sum(jnp.abs(bank.rate * log_ratio) + jnp.abs(difference), 1))
        return size <= 0.3 / math.sqrt(jnp.finfo(size.dtype).eps)

    def estimate(self, bank: PoissonParams | None, stats: ColumnSums, active: Array | None = None) -> PoissonParams:
        """rate = (Σrx + shape − 1) / (N + prior rate), not below 0; a component without any weight takes the mean."""
        (total,), seen = stats.totals, jnp.broadcast_to(stats.observed, stats.totals[0].shape)
        if self.prior is not None:
            prior = jax.tree.map(lambda leaf: jnp.asarray(leaf, total.dtype), self.prior)
            total = total + self._spread(prior.shape - 1, total)
            seen = seen + self._spread(prior.rate, total)
            total = jnp.where(total < 0, 0, total)
        present = seen > 0
        centre = jnp.ones(total.shape[1], total.dtype) if self.pivot is None else self.pivot
        return PoissonParams(jnp.where(present, total / jnp.where(present, seen, 1), centre[None]))

    def log_prior(self, bank: PoissonParams, active: Array | None = None) -> Array:
        """Log density of `prior` at the rates of the active components: ()."""
        if self.prior is None:
            return jnp.zeros((), bank.rate.dtype)
        terms = gamma_log_prob(self.prior, bank.rate)
        return jnp.sum(terms if active is None else jnp.where(jnp.asarray(active)[:, None], terms, 0))

    def sample(self, bank: PoissonParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        return jax.random.poisson(key, bank.rate[z]).astype(bank.rate.dtype)

    def feasible(self, bank: PoissonParams) -> Array:
        """Whether every rate is finite and not negative: ()."""
        return jnp.all((bank.rate >= 0) & jnp.isfinite(bank.rate))

    def sizes(self, bank: PoissonParams) -> PoissonParams:
        """Standard deviations of the estimates from one row: √rate; rates below 1e-4 of the mean count as that."""
        least = 1e-4 * self._place(bank.rate.shape[1], bank.rate.dtype)[None]
        return PoissonParams(jnp.sqrt(jnp.maximum(bank.rate, least)))

    def unconstrain(self, bank: PoissonParams) -> PoissonParams:
        """Logarithms of the rates; a rate of 0 has no free coordinate, and comes back as a very small number."""
        return PoissonParams(jnp.log(jnp.maximum(bank.rate, smallest(bank.rate.dtype))))

    def constrain(self, free: PoissonParams) -> PoissonParams:
        """Inverse of `unconstrain`."""
        return PoissonParams(jnp.exp(free.rate))

    def held(self, bank: PoissonParams) -> PoissonParams:
        """Which free coordinates lie on the boundary: rates of 0."""
        return PoissonParams(is_nil(bank.rate))  # type: ignore[arg-type]

    def points(self, x: Array) -> Array:
        """Square roots of the counts, whose variance does not grow with their size."""
        return jnp.sqrt(jnp.maximum(super().points(x), 0))
