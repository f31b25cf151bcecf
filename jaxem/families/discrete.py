"""Counts and categories: Poisson."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from .. import _tree
from .._typing import Array, Key
from ..priors import GammaPrior, gamma_log_prob
from ._columns import ColumnSums, IndependentColumns, log_or_low

_LOG_2PI = math.log(2 * math.pi)


class PoissonParams(NamedTuple):
    """Rates (k, d)."""

    rate: Array


@_tree.register
@dataclass(frozen=True)
class Poisson(IndependentColumns):
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
    _support: ClassVar[str] = "non-negative integers"
    _legal: ClassVar[float] = 0.0

    def _is_valid(self, x: Array) -> Array:
        return is_count(x)

    def _terms(self, x: Array) -> list[Array]:
        return [x]

    def _base(self, x: Array, axis: int) -> Array:
        # relative to the density at the column's own mean, the products are of numbers that keep their digits
        d = x.shape[axis]
        return poisson_log_prob(x, self._place(d, x.dtype).reshape((1, d) if axis == 1 else (d, 1)))

    def _natural(self, bank: PoissonParams) -> tuple[list[Array], Array]:
        place = self._place(bank.rate.shape[1], bank.rate.dtype)[None]
        return [log_or_low(bank.rate / place)], place - bank.rate

    def _place(self, d: int, dtype: Any) -> Array:
        return jnp.ones(d, dtype) if self.pivot is None else jnp.where(self.pivot == 0, 1, self.pivot)

    def _entry(self, bank: PoissonParams, x: Array) -> Array:
        return poisson_log_prob(x, bank.rate)

    def trusted(self, bank: PoissonParams) -> Array:
        """Whether the fast path keeps its digits in the rows of each component: ().

        Its error there is eps · Σ_a (rate·|log(rate/pivot)| + |rate − pivot|), which is to stay below 0.3·√eps: rates
        to about 1000 in float32, where components differ by their own size.
        """
        (log_ratio,), difference = self._natural(bank)
        size = jnp.max(jnp.sum(jnp.abs(bank.rate * log_ratio) + jnp.abs(difference), 1))
        return size <= 0.3 / math.sqrt(jnp.finfo(size.dtype).eps)

    def estimate(self, bank: PoissonParams | None, stats: ColumnSums, active: Array | None = None) -> PoissonParams:
        """rate = (Σrx + shape − 1) / (N + prior rate), not below 0; a component without any weight takes the mean."""
        (total,), seen = stats.totals, jnp.broadcast_to(stats.observed, stats.totals[0].shape)
        if self.prior is not None:
            prior = jax.tree.map(lambda leaf: jnp.asarray(leaf, total.dtype), self.prior)
            d = total.shape[1]
            total = total + jnp.broadcast_to(prior.shape - 1, (d,))[None]
            seen = seen + jnp.broadcast_to(prior.rate, (d,))[None]
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
        return PoissonParams(bank.rate == 0)  # type: ignore[arg-type]

    def points(self, x: Array) -> Array:
        """Square roots of the counts, whose variance does not grow with their size."""
        return jnp.sqrt(jnp.maximum(super().points(x), 0))

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d) and the prior fits; returns d."""
        d = super().validate_data(x)
        for name in () if self.prior is None else ("shape", "rate"):
            if jnp.shape(getattr(self.prior, name)) not in ((), (d,)):
                raise ValueError(
                    f"prior.{name}: expected shape () or ({d},), got {jnp.shape(getattr(self.prior, name))}."
                )
        return d


def smallest(dtype: Any) -> float:
    """A number next to 0 whose powers to −3 are finite: those of second derivatives of its logarithm."""
    return float(jnp.finfo(dtype).tiny) ** (1 / 3)


def is_count(x: Array) -> Array:
    """Whether an entry is a finite non-negative integer."""
    return (x >= 0) & (x == jnp.floor(x)) & (x < jnp.inf)


def poisson_log_prob(x: Array, rate: Array) -> Array:
    """log Poisson(x | rate) to rounding, whatever the size of the count (Loader 2000, eq. 4).

    −stirling(x) − D(x, rate) − ½ log 2πx, with the deviance D = x·log(x/rate) + rate − x. A rate of 0 explains 0 alone.
    """
    none = x == 0
    safe = jnp.where(none, 1, x)
    nil = rate == 0
    mean = jnp.where(nil, 1, rate)
    counted = -_stirling_error(safe) - _deviance(safe, mean) - 0.5 * (_LOG_2PI + jnp.log(safe))
    return jnp.where(none, -rate, jnp.where(nil, -jnp.inf, counted))


def _deviance(x: Array, mean: Array) -> Array:
    """x·log(x/mean) + mean − x of positive numbers, by a series where they are close (Loader 2000, section 3)."""
    gap = x - mean
    v = gap / (x + mean)
    near = jnp.abs(v) < 0.1
    w = jnp.where(near, v, 0)
    square = jnp.square(w)
    series = jnp.zeros_like(w)
    for odd in range(17, 1, -2):  # v¹⁹/19 is 1e-20
        series = (series + 1 / odd) * square
    far = x * (jnp.log(x) - jnp.log(mean)) - gap
    return jnp.where(near, gap * w + 2 * x * w * series, far)


def _stirling_error(x: Array) -> Array:
    """log x! − [(x + ½) log x − x + ½ log 2π] of x > 0."""
    large = x >= 16
    big, small = jnp.where(large, x, 16), jnp.where(large, 1, x)
    inverse = 1 / big
    square = jnp.square(inverse)
    series = jnp.zeros_like(x)
    for term in (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * square + term
    direct = gammaln(small + 1) - ((small + 0.5) * jnp.log(small) - small + 0.5 * _LOG_2PI)
    return jnp.where(large, series * inverse, direct)
