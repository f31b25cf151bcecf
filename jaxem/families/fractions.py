"""Fractions: beta columns, and Dirichlet rows of shares that sum to 1. A beta is a Dirichlet of two shares."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tree
from .._concentration import inverse_dirichlet, log_of_shares, shares_and_gap
from .._linalg import dot
from .._special import deviance, deviation, deviation_from, hardly, log_minus_digamma, log_ratio, stirling_error
from .._typing import Array, Key
from ..domains import POSITIVE, Domain
from ..features import Features
from ..fold import present_rows
from ..result import Status
from ._columns import ColumnSums, LinearFamily
from ._recentred import RecentredColumns, merged_spread, spread_of, weights_of

_LOG_2PI = math.log(2 * math.pi)


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


class DirichletParams(NamedTuple):
    """Concentrations (k, d): the means are their shares in their sum.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.DirichletParams(jnp.array([[6.0, 3.0, 1.0], [1.0, 1.0, 8.0]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Dirichlet(), n_components=2).predict(start, jnp.array([[0.5, 0.25, 0.25]]))
        Array([0], dtype=...)
        >>> bank.concentration / bank.concentration.sum(1, keepdims=True)
        Array([[0.6, 0.3, 0.1],
               [0.1, 0.1, 0.8]], dtype=...)
    """

    concentration: Array


def _log_density(alpha: Array, x: Array) -> Array:
    """log Dirichlet(x | α) over the last axis, by Stirling errors and deviances D(α_a, x_a Σα) (Loader 2000).

    NaN where α is at one point, to rounding: there is no density.
    """
    total = jnp.sum(alpha, -1, keepdims=True)
    total = jnp.where(_is_point(total), jnp.nan, total)
    log_x, least = jnp.log(x), hardly(x.dtype)
    far = alpha * jnp.where(x < least, log_x - math.log(least), 0)  # total · x may underflow
    counted = far - deviance(alpha, total * jnp.where(x < least, least, x))
    each = 0.5 * jnp.log(alpha) - stirling_error(alpha) + counted - log_x
    whole = (stirling_error(total) - 0.5 * jnp.log(total))[..., 0]
    return whole + jnp.sum(each, -1) - 0.5 * (x.shape[-1] - 1) * _LOG_2PI


def _concentration(
    log_place: Array, log_ratio: Array, loss: Array | None, floor: Array, present: Array, otherwise: Array
) -> Array:
    """Concentrations (…, d) of these statistics; `floor` (…,) is that of one row, `otherwise` where none is present."""
    log_share, gap = shares_and_gap(log_place, jnp.where(present[..., None], log_ratio, 0), loss)
    gap = gap + floor
    eps = jnp.finfo(gap.dtype).eps
    # of a component at one point: finite, and no density; about a mean that is not its own, one that the sums resolve,
    # so that the likelihood rises
    lost = 0 if loss is None else 8 * eps * jnp.sum(jnp.exp(log_place) * jnp.abs(loss), -1)
    least = jnp.maximum(eps**2, lost)
    usable = present & ~(gap < least)  # NaN stays to be seen
    alpha = inverse_dirichlet(log_share, jnp.where(usable, gap, jnp.where(present, least, 0.5)))
    return jnp.where(present[..., None], alpha, otherwise)


def _is_sharp(alpha: Array, scatter: Array) -> Array:
    """Whether rounding of E[log x], eps · scatter (…,), stays below 0.3·√eps of the gap of α (…, d)."""
    total = jnp.sum(alpha, -1, keepdims=True)
    ratio = log_minus_digamma(total) - log_minus_digamma(alpha)
    _, gap = shares_and_gap(log_of_shares(alpha / total), ratio)
    return jnp.all(scatter <= gap * 0.3 / math.sqrt(jnp.finfo(alpha.dtype).eps))


def _is_point(total: Array) -> Array:
    return total > 0.5 / jnp.finfo(total.dtype).eps


def _status(total: Array, active: Array) -> Array:
    degenerate = jnp.any(jnp.any(_is_point(total), 1) & active)
    return jnp.where(degenerate, Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)


def _floor_of(total: Array, floor: Any, active: Array | None) -> Array:
    terms = jnp.sum(total, 1)
    terms = terms if active is None else jnp.where(active, terms, 0)
    return -jnp.asarray(floor, terms.dtype) * jnp.sum(terms)


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
        centre = _inside(bound.pivot)
        x, present = self._filled(present_rows(x, sample_weight))
        weight = weights_of(x, present, sample_weight)
        spread = spread_of(jnp.log(x), weight) + spread_of(jnp.log1p(-x), weight)
        return replace(bound, pivot=centre, centre=centre, spread=lax.stop_gradient(spread))

    def recentred(self, bank: BetaParams) -> Self:
        """The same family with statistics about these means: its stable path."""
        return replace(self, pivot=_inside(lax.stop_gradient(bank.a / (bank.a + bank.b))))

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
        return _log_density(alpha, jnp.stack([x, 1 - x], -1))

    def trusted(self, bank: BetaParams) -> Array:
        """Whether the fast path keeps the digits that the shapes need: ()."""
        place, mean = self._place(bank.a), bank.a / (bank.a + bank.b)
        spread = 0 if self.spread is None else self.spread[None]
        moved = jnp.abs(jnp.log(mean / place)) + jnp.abs(jnp.log1p(-mean) - jnp.log1p(-place))
        return _is_sharp(jnp.stack(bank, -1), 1 + spread + moved)

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
        alpha = _concentration(
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
        return _floor_of(bank.a + bank.b, self.floor, active)

    def sample(self, bank: BetaParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        alpha = jnp.stack(bank, -1)[z]
        draw = jax.random.loggamma(key, alpha, dtype=alpha.dtype)
        return _inside(jax.nn.sigmoid(draw[..., 0] - draw[..., 1]))

    def health(self, bank: BetaParams, active: Array) -> Array:
        """DEGENERATE if an active component lies at one point, to rounding, else RUNNING."""
        return _status(bank.a + bank.b, active)

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


@_tree.register
@dataclass(frozen=True)
class Dirichlet(LinearFamily):
    """Rows of positive shares that sum to 1: density Γ(Σα) Π x_a^(α_a − 1) / Γ(α_a), α the concentration.

    The M step solves ψ(α_a) − ψ(Σα) = E[log x_a] by Newton, whose Hessian is diagonal plus rank one (Minka 2000), in
    the space of the statistics. Rows are divided by their sum, which is to be 1 to √eps. Data that are constant within
    a component make the likelihood unbounded, which the floor prevents.

    Attributes:
        floor: regularisation: the log prior −floor · Σ α. 0 is pure maximum likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jax.random.dirichlet(jax.random.key(1), jnp.array([2.0, 5.0, 1.0]), (1000,))
        >>> model = jaxem.Mixture(jaxem.Dirichlet(), n_components=1)
        >>> bank = jaxem.fit(model, model.init(jax.random.key(0), x), x).params.components
        >>> bool(jnp.all(jnp.abs(bank.concentration[0] / jnp.array([2.0, 5.0, 1.0]) - 1) < 0.2))
        True
    """

    floor: Any = 1e-6
    # set by `bind`, (d,): mean shares, and standard deviations of log x; by `recentred`, the pivot (k, d)
    centre: Any = field(default=None, kw_only=True)
    spread: Any = field(default=None, kw_only=True)

    costly_features: ClassVar[bool] = True
    _bank: ClassVar[type] = DirichletParams
    _domains: ClassVar[tuple[Domain, ...]] = (POSITIVE,)
    _support: ClassVar[str] = "positive numbers that sum to 1 in each row"
    _legal: ClassVar[float] = 1.0
    _vague: ClassVar[float] = 1.0

    def _is_valid(self, x: Array, axis: int) -> Array:
        whole = jnp.abs(jnp.sum(x, axis, keepdims=True) - 1) <= math.sqrt(jnp.finfo(x.dtype).eps)
        return (x > 0) & whole

    def _legal_row(self, x: Array) -> Array:
        return jnp.full((1, x.shape[1]), 1 / x.shape[1], jnp.result_type(x.dtype, 1.0))

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets pivot and centre, weighted mean shares, and the spread of their logarithms."""
        bound = super().bind(x, sample_weight)
        centre = bound.pivot / jnp.sum(bound.pivot)
        x = present_rows(x, sample_weight)
        weight = jnp.ones((x.shape[0], 1), x.dtype) if sample_weight is None else sample_weight[:, None]
        spread = spread_of(jnp.log(x), jnp.broadcast_to(weight, x.shape))
        return replace(bound, pivot=centre, centre=centre, spread=lax.stop_gradient(spread))

    def merged(self, seen: Array, other: Self, other_seen: Array) -> Self:
        """The family bound to the rows of both."""
        bound = super().merged(seen, other, other_seen)
        return replace(bound, centre=bound.pivot, spread=merged_spread(self, seen, other, other_seen))

    def recentred(self, bank: DirichletParams) -> Self:
        """The same family with statistics about these means: its stable path."""
        alpha = lax.stop_gradient(bank.concentration)
        return replace(self, pivot=alpha / jnp.sum(alpha, 1, keepdims=True))

    @property
    def _is_recentred(self) -> bool:
        return self.pivot is not None and jnp.ndim(self.pivot) == 2

    def _place(self, like: Array) -> Array:
        """The pivot, (1, d) or (k, d)."""
        d = like.shape[1]
        return jnp.full((1, d), 1 / d, like.dtype) if self.pivot is None else jnp.atleast_2d(self.pivot)

    def _terms_along(self, x: Array, axis: int) -> list[Array]:
        place = self._place(x if axis == 1 else x.T)[0]
        share = x / jnp.sum(x, axis, keepdims=True)
        return [log_ratio(share, place[None] if axis == 1 else place[:, None])]

    def _natural(self, bank: DirichletParams) -> tuple[list[Array], Array]:
        alpha = bank.concentration
        at_place = _log_density(alpha, jnp.broadcast_to(self._place(alpha), alpha.shape))
        # one number for the row, in the form of one for each column
        return [alpha - 1], at_place[:, None]

    def _log_prob_rows(self, bank: DirichletParams, x: Array, present: Array | None) -> Array:
        share = x / jnp.sum(x, 1, keepdims=True)
        return lax.map(lambda alpha: _log_density(jnp.broadcast_to(alpha[None], x.shape), share), bank.concentration).T

    def trusted(self, bank: DirichletParams) -> Array:
        """Whether the fast path keeps the digits that the concentrations need: ()."""
        alpha = bank.concentration
        mean = alpha / jnp.sum(alpha, 1, keepdims=True)
        spread = 0 if self.spread is None else self.spread[None]
        return _is_sharp(alpha, jnp.sum(mean * (1 + spread + jnp.abs(jnp.log(mean / self._place(alpha)))), 1))

    # --- statistics: sums of log x; about each component's own mean, of u = x/pivot − 1 and u − log(1 + u)

    def statistics(self, bank: DirichletParams | None, x: Array | Features, responsibilities: Array) -> ColumnSums:
        """Sums weighted with responsibilities (n, k). `bank` is not used."""
        if not self._is_recentred or isinstance(x, Features):
            return super().statistics(bank, x, responsibilities)
        x = jnp.where(self._is_valid(x, 1), x, jnp.nan)
        share = x / jnp.sum(x, 1, keepdims=True)

        def one(j: Array) -> tuple[Array, ...]:
            r = lax.dynamic_index_in_dim(responsibilities, j, 1, keepdims=False)
            ratio = share / self.pivot[j][None]
            return jnp.sum(r), dot(r, ratio - 1), dot(r, deviation(ratio))

        count, *totals = lax.map(one, jnp.arange(responsibilities.shape[1]))
        return ColumnSums(count, count[:, None], tuple(totals), jnp.zeros_like(count))

    def estimate(self, bank: DirichletParams | None, stats: ColumnSums, active: Array | None = None) -> DirichletParams:
        """Mode of the expected log density plus log prior; without any weight, concentrations of mean 1."""
        k, d = stats.totals[0].shape
        present = stats.count > 0
        safe = jnp.where(present, stats.count, 1)
        place = jnp.broadcast_to(self._place(stats.totals[0]), (k, d))
        if self._is_recentred:
            first, loss = (total / safe[:, None] for total in stats.totals)
            log_ratio = first - loss
        else:
            log_ratio, loss = stats.totals[0] / safe[:, None], None
        centre = jnp.full(d, 1 / d, safe.dtype) if self.centre is None else self.centre
        floor = jnp.asarray(self.floor, safe.dtype) / safe
        return DirichletParams(_concentration(log_of_shares(place), log_ratio, loss, floor, present, d * centre[None]))

    def expected_log_prob(self, bank: DirichletParams, stats: ColumnSums) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        if not self._is_recentred:
            return super().expected_log_prob(bank, stats)
        (natural,), constant = self._natural(bank)
        first, loss = stats.totals
        return jnp.sum(stats.count[:, None] * constant) + jnp.sum(natural * (first - loss))

    def log_prior(self, bank: DirichletParams, active: Array | None = None) -> Array:
        """−floor · Σ α over the active components: ()."""
        return _floor_of(bank.concentration, self.floor, active)

    def sample(self, bank: DirichletParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        alpha = bank.concentration[z]
        draw = jax.nn.softmax(jax.random.loggamma(key, alpha, dtype=alpha.dtype), -1)
        return jnp.maximum(draw, jnp.finfo(draw.dtype).tiny)

    def health(self, bank: DirichletParams, active: Array) -> Array:
        """DEGENERATE if an active component lies at one point, to rounding, else RUNNING."""
        return _status(jnp.sum(bank.concentration, 1, keepdims=True), active)

    def feasible(self, bank: DirichletParams) -> Array:
        """Whether the concentrations are finite and positive: ()."""
        return jnp.all((bank.concentration > 0) & jnp.isfinite(bank.concentration))

    def unconstrain(self, bank: DirichletParams) -> DirichletParams:
        """Logarithms of the concentrations."""
        return DirichletParams(jnp.log(bank.concentration))

    def constrain(self, free: DirichletParams) -> DirichletParams:
        """Inverse of `unconstrain`."""
        return DirichletParams(jnp.exp(free.concentration))

    def points(self, x: Array) -> Array:
        """Logarithms less their mean, for k-means (Aitchison 1982)."""
        log_x = jnp.log(x)
        return log_x - jnp.mean(log_x, 1, keepdims=True)

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d) with at least two columns; returns d."""
        d = super().validate_data(x)
        if d < 2:
            raise ValueError(f"data: expected shares of two or more parts for Dirichlet, got {d} column.")
        return d


def _inside(x: Array) -> Array:
    """x, not at 0 nor at 1 by rounding."""
    return jnp.clip(x, jnp.finfo(x.dtype).tiny, 1 - jnp.finfo(x.dtype).eps / 2)
