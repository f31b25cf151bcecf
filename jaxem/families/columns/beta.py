"""Fractions: beta columns. A beta is a Dirichlet of two shares."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from ..._typing import Array, Key
from ...contracts.domains import POSITIVE, Domain
from ...fold.present import present_rows
from ...numerics import tree as _tree
from ...numerics.special import deviation, deviation_from, log_ratio
from ._columns import ColumnSums
from ._concentration import concentration_of, floor_of, inside_simplex, is_sharp, log_density, status_of
from ._recentred import RecentredColumns, spread_of, weights_of


class BetaParams(NamedTuple):
    """Shapes a and b (k, d): the means are a / (a + b).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.BetaParams(a=jnp.array([[2.0], [6.0]]), b=jnp.array([[6.0], [2.0]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Beta(), n_components=2).predict(start, jnp.array([[0.3], [0.8]]))
        Array([0, 1], dtype=...)
        >>> bank.a / (bank.a + bank.b)
        Array([[0.25],
               [0.75]], dtype=...)
    """

    a: Array
    b: Array


@_tree.register
@dataclass(frozen=True)
class Beta(RecentredColumns):
    """Columns between 0 and 1, both excluded, independent: density x^(a−1) (1 − x)^(b−1) / B(a, b).

    The M step solves ψ(a) − ψ(a + b) = E[log x], ψ(b) − ψ(a + b) = E[log(1 − x)] by Newton, in the space of the
    statistics. Data that are constant within a component make the likelihood unbounded, which the floor prevents.

    Attributes:
        floor: regularisation: the log prior −floor · Σ (a + b). 0 is pure maximum likelihood.
        missing: whether NaN marks an entry that was not observed; it is then left out of the likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jax.random.beta(jax.random.key(1), 2.0, 6.0, (1000, 1))
        >>> model = jaxem.Mixture(jaxem.Beta(), n_components=1)
        >>> bank = jaxem.fit(model, model.init(jax.random.key(0), x), x).params.components
        >>> bool(jnp.abs(bank.a[0, 0] / 2 - 1) < 0.2) and bool(jnp.abs(bank.b[0, 0] / 6 - 1) < 0.2)
        True
    """

    floor: Any = 1e-6

    _bank: ClassVar[type] = BetaParams
    _domains: ClassVar[tuple[Domain, ...]] = (POSITIVE, POSITIVE)
    _support: ClassVar[str] = "numbers above 0 and below 1"
    _legal: ClassVar[float] = 0.5
    _vague: ClassVar[float] = 0.5

    def _is_valid(self, x: Array, axis: int) -> Array:
        return (x > 0) & (x < 1)

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets pivot and centre, weighted column means, and the spread of the logarithms."""
        bound = super().bind(x, sample_weight)
        centre = inside_simplex(bound.pivot)
        x, present = self._filled(present_rows(x, sample_weight))
        weight = weights_of(x, present, sample_weight)
        spread = spread_of(jnp.log(x), weight) + spread_of(jnp.log1p(-x), weight)
        return replace(bound, pivot=centre, centre=centre, spread=lax.stop_gradient(spread))

    def recentred(self, bank: BetaParams) -> Self:
        """The same family with statistics about these means: its stable path."""
        return replace(self, pivot=inside_simplex(lax.stop_gradient(bank.a / (bank.a + bank.b))))

    def _place(self, like: Array) -> Array:
        """The pivot, (1, d) or (k, d)."""
        return jnp.full((1, like.shape[1]), 0.5, like.dtype) if self.pivot is None else jnp.atleast_2d(self.pivot)

    def _terms_along(self, x: Array, axis: int) -> list[Array]:
        place = self._place(x if axis == 1 else x.T)[0]
        place = place[None] if axis == 1 else place[:, None]
        return [log_ratio(x, place), jnp.log((1 - x) / (1 - place))]

    def _natural(self, bank: BetaParams) -> tuple[list[Array], Array]:
        place = jnp.broadcast_to(self._place(bank.a), bank.a.shape)
        return [bank.a - 1, bank.b - 1], self._entry(bank, place)

    def _entry(self, bank: BetaParams, x: Array) -> Array:
        alpha = jnp.stack(jnp.broadcast_arrays(bank.a, bank.b), -1)
        return log_density(alpha, jnp.stack([x, 1 - x], -1))

    def trusted(self, bank: BetaParams) -> Array:
        """Whether the fast path keeps the digits that the shapes need: ()."""
        place, mean = self._place(bank.a), bank.a / (bank.a + bank.b)
        spread = 0 if self.spread is None else self.spread[None]
        moved = jnp.abs(jnp.log(mean / place)) + jnp.abs(jnp.log1p(-mean) - jnp.log1p(-place))
        return is_sharp(jnp.stack(bank, -1), 1 + spread + moved)

    # --- statistics: sums of the logarithms; about each component's own mean, of u = x/pivot − 1 and of u − log(1 + u)
    #     of x and of 1 − x

    def _terms_about(self, x: Array, place: Array) -> list[Array]:
        rest = (1 - x) / (1 - place)
        return [x / place - 1, deviation(x / place), deviation_from((place - x) / (1 - place), rest)]

    def _linear(self, first: Array) -> Array:
        """Sums of u of x and of 1 − x, (k, d, 2)."""
        return jnp.stack([first, -first * self.pivot / (1 - self.pivot)], -1)

    def estimate(self, bank: BetaParams | None, stats: ColumnSums, active: Array | None = None) -> BetaParams:
        """Mode of the expected log density plus log prior; without any weight, the column's mean and a sum of 2."""
        shape = stats.totals[0].shape
        seen = jnp.broadcast_to(stats.observed, shape)
        present = seen > 0
        safe = jnp.where(present, seen, 1)
        place = self._place(stats.totals[0])
        if self._is_recentred:
            loss = jnp.stack(stats.totals[1:], -1) / safe[..., None]
            log_ratio = self._linear(stats.totals[0]) / safe[..., None] - loss
        else:
            log_ratio, loss = jnp.stack(stats.totals, -1) / safe[..., None], None
        log_place = jnp.broadcast_to(jnp.stack([jnp.log(place), jnp.log1p(-place)], -1), (*shape, 2))
        centre = jnp.full(shape[1], 0.5, safe.dtype) if self.centre is None else self.centre
        otherwise = 2 * jnp.stack([centre, 1 - centre], -1)[None]
        alpha = concentration_of(
            log_place, log_ratio, loss, jnp.asarray(self.floor, safe.dtype) / safe, present, otherwise
        )
        return BetaParams(alpha[..., 0], alpha[..., 1])

    def expected_log_prob(self, bank: BetaParams, stats: ColumnSums) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        if not self._is_recentred:
            return super().expected_log_prob(bank, stats)
        natural, constant = self._natural(bank)
        first, *losses = stats.totals
        gained = jnp.stack(natural, -1) * (self._linear(first) - jnp.stack(losses, -1))
        return jnp.sum(stats.observed * constant) + jnp.sum(gained)

    def log_prior(self, bank: BetaParams, active: Array | None = None) -> Array:
        """−floor · Σ (a + b) over the active components: ()."""
        return floor_of(bank.a + bank.b, self.floor, active)

    def sample(self, bank: BetaParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        alpha = jnp.stack(bank, -1)[z]
        draw = jax.random.loggamma(key, alpha, dtype=alpha.dtype)
        return inside_simplex(jax.nn.sigmoid(draw[..., 0] - draw[..., 1]))

    def health(self, bank: BetaParams, active: Array) -> Array:
        """DEGENERATE if an active component lies at one point, to rounding, else RUNNING."""
        return status_of(bank.a + bank.b, active)

    def unconstrain(self, bank: BetaParams) -> BetaParams:
        """log(a / b) and log(a + b)."""
        return BetaParams(jnp.log(bank.a / bank.b), jnp.log(bank.a + bank.b))

    def constrain(self, free: BetaParams) -> BetaParams:
        """Inverse of `unconstrain`."""
        total = jnp.exp(free.b)
        return BetaParams(total * jax.nn.sigmoid(free.a), total * jax.nn.sigmoid(-free.a))

    def points(self, x: Array) -> Array:
        """Log-odds, for k-means."""
        x = super().points(x)
        return jnp.log(x) - jnp.log1p(-x)
