"""Dirichlet: shares that sum to one."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from ... import bijections
from ..._typing import Array, Key
from ...contracts.domains import POSITIVE, Domain
from ...fold.features import Features
from ...fold.present import present_rows
from ...numerics import tree as _tree
from ...numerics.concentration import log_of_shares
from ...numerics.linalg import dot
from ...numerics.special import (
    deviation,
    log_ratio,
)
from ._columns import ColumnSums, LinearFamily
from ._concentration import concentration_of, floor_of, is_sharp, log_density, status_of
from ._recentred import merged_spread, spread_of


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
    space: ClassVar[Any] = DirichletParams(bijections.positive)  # type: ignore[arg-type]
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
        at_place = log_density(alpha, jnp.broadcast_to(self._place(alpha), alpha.shape))
        # one number for the row, in the form of one for each column
        return [alpha - 1], at_place[:, None]

    def _log_prob_rows(self, bank: DirichletParams, x: Array, present: Array | None) -> Array:
        share = x / jnp.sum(x, 1, keepdims=True)
        return lax.map(lambda alpha: log_density(jnp.broadcast_to(alpha[None], x.shape), share), bank.concentration).T

    def trusted(self, bank: DirichletParams) -> Array:
        """Whether the fast path keeps the digits that the concentrations need: ()."""
        alpha = bank.concentration
        mean = alpha / jnp.sum(alpha, 1, keepdims=True)
        spread = 0 if self.spread is None else self.spread[None]
        return is_sharp(alpha, jnp.sum(mean * (1 + spread + jnp.abs(jnp.log(mean / self._place(alpha)))), 1))

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
        return DirichletParams(
            concentration_of(log_of_shares(place), log_ratio, loss, floor, present, d * centre[None])
        )

    def expected_log_prob(self, bank: DirichletParams, stats: ColumnSums) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        if not self._is_recentred:
            return super().expected_log_prob(bank, stats)
        (natural,), constant = self._natural(bank)
        first, loss = stats.totals
        return jnp.sum(stats.count[:, None] * constant) + jnp.sum(natural * (first - loss))

    def log_prior(self, bank: DirichletParams, active: Array | None = None) -> Array:
        """−floor · Σ α over the active components: ()."""
        return floor_of(bank.concentration, self.floor, active)

    def sample(self, bank: DirichletParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        alpha = bank.concentration[z]
        draw = jax.nn.softmax(jax.random.loggamma(key, alpha, dtype=alpha.dtype), -1)
        return jnp.maximum(draw, jnp.finfo(draw.dtype).tiny)

    def health(self, bank: DirichletParams, active: Array) -> Array:
        """DEGENERATE if an active component lies at one point, to rounding, else RUNNING."""
        return status_of(jnp.sum(bank.concentration, 1, keepdims=True), active)

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
