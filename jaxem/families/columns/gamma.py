"""Positive columns: gamma."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from ..._typing import Array, Key
from ...contracts.domains import POSITIVE, Domain
from ...fold.present import present_rows
from ...numerics import tree as _tree
from ...numerics.special import deviation, hardly, inverse_log_minus_digamma, log_ratio, poisson_log_prob
from ._columns import ColumnSums
from ._positive import PositiveColumns
from ._recentred import RecentredColumns, spread_of, weights_of


class GammaParams(NamedTuple):
    """Shapes and rates (k, d): the means are shape / rate.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.GammaParams(shape=jnp.array([[2.0], [9.0]]), rate=jnp.array([[2.0], [1.0]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Gamma(), n_components=2).predict(start, jnp.array([[0.5], [8.0]]))
        Array([0, 1], dtype=...)
        >>> (bank.shape / bank.rate).ravel()  # means
        Array([1., 9.], dtype=...)
    """

    shape: Array
    rate: Array


@_tree.register
@dataclass(frozen=True)
class Gamma(PositiveColumns, RecentredColumns):
    """Positive columns, independent: density rate^shape x^(shape−1) exp(−rate·x) / Γ(shape).

    The M step solves log shape − ψ(shape) = log E[x] − E[log x] by Newton, in the space of the statistics. Data that
    are constant within a component make the likelihood unbounded, which the floor prevents.

    Attributes:
        floor: regularisation, whatever the unit of the data: the log prior −floor · Σ shape. 0 is pure maximum
            likelihood.
        missing: whether NaN marks an entry that was not observed; it is then left out of the likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jax.random.gamma(jax.random.key(1), 4.0, (1000, 1)) / 2.0
        >>> model = jaxem.Mixture(jaxem.Gamma(), n_components=1)
        >>> params = jaxem.fit(model, model.init(jax.random.key(0), x), x).params.components
        >>> bool(jnp.abs(params.shape[0, 0] / 4 - 1) < 0.2)
        True
    """

    _bank: ClassVar[type] = GammaParams
    _domains: ClassVar[tuple[Domain, ...]] = (POSITIVE, POSITIVE)

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets pivot and centre, weighted column means, and the spread of log x."""
        bound = super().bind(x, sample_weight)
        x, present = self._filled(present_rows(x, sample_weight))
        spread = spread_of(log_ratio(x, bound.pivot[None]), weights_of(x, present, sample_weight))
        return replace(bound, centre=bound.pivot, spread=lax.stop_gradient(spread))

    def recentred(self, bank: GammaParams) -> Self:
        """The same family with statistics about these means: its stable path."""
        return replace(self, pivot=lax.stop_gradient(bank.shape / bank.rate))

    def _place(self, like: Array) -> Array:
        """The pivot, (1, d) or (k, d)."""
        return jnp.ones((1, like.shape[1]), like.dtype) if self.pivot is None else jnp.atleast_2d(self.pivot)

    def _terms_along(self, x: Array, axis: int) -> list[Array]:
        place = self._place(x if axis == 1 else x.T)[0]
        place = place[None] if axis == 1 else place[:, None]
        return [x / place - 1, log_ratio(x, place)]

    def _natural(self, bank: GammaParams) -> tuple[list[Array], Array]:
        place = self._place(bank.shape)
        scaled = bank.rate * place
        # shape·log t − t − log Γ(shape), of t the rate times the pivot, is log Poisson(shape | t) + log shape
        constant = poisson_log_prob(bank.shape, scaled) + jnp.log(bank.shape) - jnp.log(place)
        return [-scaled, bank.shape - 1], constant

    def _entry(self, bank: GammaParams, x: Array) -> Array:
        scaled = bank.rate * x
        least = hardly(scaled.dtype)
        small = scaled < least  # perhaps to underflow: as much as at the least, times a power
        far = jnp.where(small, jnp.log(bank.rate) + jnp.log(x) - math.log(least), 0)
        log_prob = poisson_log_prob(bank.shape, jnp.where(small, least, scaled)) + bank.shape * far
        return log_prob + jnp.log(bank.shape) - jnp.log(x)

    def trusted(self, bank: GammaParams) -> Array:
        """Whether the fast path keeps its digits in the rows of each component: ().

        Its error is eps · shape · (spread of log x + distance of the mean from the pivot), to stay below 0.3·√eps.
        """
        ratio = bank.shape / (bank.rate * self._place(bank.shape))
        spread = 0 if self.spread is None else self.spread[None]
        size = jnp.max(jnp.sum(bank.shape * (spread + jnp.abs(jnp.log(ratio)) + jnp.abs(1 / ratio - 1)), 1))
        return size <= 0.3 / math.sqrt(jnp.finfo(size.dtype).eps)

    # --- statistics: sums of u = x/pivot − 1 and log(1 + u); about each component's own mean, of u and u − log(1 + u)

    def _terms_about(self, x: Array, place: Array) -> list[Array]:
        u = x / place - 1
        return [u, jnp.where(jnp.abs(u) < 0.2, deviation(x / place), u - log_ratio(x, place))]

    def estimate(self, bank: GammaParams | None, stats: ColumnSums, active: Array | None = None) -> GammaParams:
        """Mode of the expected log density plus log prior: log shape − ψ(shape) = log E[x] − E[log x] + floor / N.

        A component without any weight takes the mean of the column, and a shape of 1.
        """
        total, other = stats.totals
        seen = jnp.broadcast_to(stats.observed, total.shape)
        present = seen > 0
        safe = jnp.where(present, seen, 1)
        eps = jnp.finfo(total.dtype).eps
        # a mean that is rounding beside the pivot is taken as that, and found about itself; NaN stays to be seen
        u = jnp.where(present, total / safe, 0)
        u = jnp.where(u < 4 * eps - 1, 4 * eps - 1, u)
        if self._is_recentred:
            gap = other / safe - deviation(1 + u)
        else:
            gap = jnp.log1p(u) - other / safe
        gap = gap + jnp.asarray(self.floor, total.dtype) / safe
        # of a component at one point: a shape that is finite, and no density; about a mean that is not its own, one
        # that the sums resolve, so that the likelihood rises
        least = jnp.maximum(eps**2, 8 * eps * jnp.abs(other / safe) if self._is_recentred else 0)
        usable = present & ~(gap < least)  # NaN stays to be seen
        shape = inverse_log_minus_digamma(jnp.where(usable, gap, jnp.where(present, least, 0.5)))
        mean = self._place(total) * (1 + u)
        centre = jnp.ones(total.shape[1], total.dtype) if self.centre is None else self.centre
        shape = jnp.where(present, shape, 1)
        return GammaParams(shape, jnp.where(present, shape / mean, 1 / centre[None]))

    def expected_log_prob(self, bank: GammaParams, stats: ColumnSums) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        if not self._is_recentred:
            return super().expected_log_prob(bank, stats)
        (linear, log_term), constant = self._natural(bank)
        total, gap = stats.totals
        return jnp.sum(stats.observed * constant) + jnp.sum((linear + log_term) * total) - jnp.sum(log_term * gap)

    def sample(self, bank: GammaParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        log_draw = jax.random.loggamma(key, bank.shape[z], dtype=bank.shape.dtype)
        return jnp.maximum(jnp.exp(log_draw) / bank.rate[z], jnp.finfo(bank.rate.dtype).tiny)

    def unconstrain(self, bank: GammaParams) -> GammaParams:
        """Logarithms of shapes and of means, which are orthogonal."""
        return GammaParams(jnp.log(bank.shape), jnp.log(bank.shape / bank.rate))

    def constrain(self, free: GammaParams) -> GammaParams:
        """Inverse of `unconstrain`."""
        return GammaParams(jnp.exp(free.shape), jnp.exp(free.shape - free.rate))
