"""Counts of categories, of rows with any total."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln

from ..._typing import Array, Key
from ...contracts.domains import SIMPLEX, Domain
from ...contracts.priors import DirichletPrior, log_power
from ...numerics import tree as _tree
from ...numerics.special import deviation, onto_simplex, poisson_log_prob
from ._columns import (
    ColumnSums,
    LinearFamily,
    from_log_ratios,
    is_nil,
    log_ratio_or_low,
    log_ratios,
    others_of,
)
from ._count_columns import LinearCounts


class MultinomialParams(NamedTuple):
    """Probabilities of the cells (k, d).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.MultinomialParams(jnp.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Multinomial(), n_components=2).predict(start, jnp.array([[7, 1, 2], [1, 0, 3]]))
        Array([0, 1], dtype=...)
    """

    prob: Array


@_tree.register
@dataclass(frozen=True)
class Multinomial(LinearCounts, LinearFamily):
    """A row of counts over d cells: x ~ Multinomial(Σ_a x_a, prob), with its coefficient; totals may differ by row.

    Probabilities of exactly 0 are legal.

    Attributes:
        prior: a `DirichletPrior` on the probabilities, its concentration () or (d,); None is pure maximum likelihood.
        total: the row total that `sample` draws; None is the mean total of the data, rounded.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.repeat(jnp.array([[8, 1, 1], [7, 2, 1], [0, 1, 9], [1, 0, 9]]), 5, 0)
        >>> model = jaxem.Mixture(jaxem.Multinomial(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> jnp.sort(result.params.components.prob[:, 0]).round(2)
        Array([0.05, 0.75], dtype=...)
    """

    prior: DirichletPrior | None = None
    total: Any = None
    # set by `restricted`, (k,): the cell that free coordinates are relative to; None is the last
    reference: Any = field(default=None, kw_only=True)

    _bank: ClassVar[type] = MultinomialParams
    _domains: ClassVar[tuple[Domain, ...]] = (SIMPLEX,)
    _simplex_axes: ClassVar[int] = 1

    def _base(self, x: Array, present: Array | None, axis: int) -> Array:
        shares = self._shares(x.shape[axis], x.dtype).reshape((1, -1) if axis == 1 else (-1, 1))
        total = jnp.sum(x, axis, keepdims=True)
        nil = shares == 0  # cells that nobody used; a count there, of rows that are not the data, is for `natural`
        entries = poisson_log_prob(x, total * jnp.where(nil, 1, shares)) + jnp.where(nil, total, 0)
        return jnp.sum(entries, axis, keepdims=True) - poisson_log_prob(total, total)

    def _natural(self, bank: MultinomialParams) -> tuple[list[Array], None]:
        shares = self._shares(bank.prob.shape[1], bank.prob.dtype)[None]
        # the density is that of probabilities divided by their sum, which is 1 only to rounding: at a total of a
        # million a tenth of a nat. The sum of the differences has digits of its own
        excess = jnp.log1p(jnp.sum(bank.prob - shares, 1, keepdims=True))
        return [log_ratio_or_low(bank.prob, jnp.where(shares == 0, 1, shares)) - excess], None

    def _shares(self, d: int, dtype: Any) -> Array:
        if self.pivot is None:
            return jnp.full(d, 1 / d, dtype)
        total = jnp.sum(self.pivot)
        return self.pivot / jnp.where(total == 0, 1, total)

    def _log_prob_rows(self, bank: MultinomialParams, x: Array, present: Array | None) -> Array:
        total = jnp.sum(x, 1, keepdims=True)
        each = lambda prob: jnp.sum(poisson_log_prob(x, total * prob[None]), 1)  # noqa: E731
        # of probabilities divided by their sum: to rounding 0, and so is its derivative
        beyond = total * deviation(jnp.sum(bank.prob, 1))[None]
        return lax.map(each, bank.prob).T + beyond - poisson_log_prob(total, total)

    def trusted(self, bank: MultinomialParams) -> Array:
        """Whether the fast path keeps its digits in the rows of each component: ().

        Its error there is eps · total · Σ_a (prob·|log(prob / share)| + |prob − share|), which is to stay below
        0.3·√eps.
        """
        (log_ratio,), _ = self._natural(bank)
        mean_total = 1.0 if self.pivot is None else jnp.sum(self.pivot)
        shares = self._shares(bank.prob.shape[1], bank.prob.dtype)[None]
        size = jnp.max(jnp.sum(jnp.abs(bank.prob * log_ratio) + jnp.abs(bank.prob - shares), 1)) * mean_total
        return size <= 0.3 / math.sqrt(jnp.finfo(size.dtype).eps)

    def estimate(
        self, bank: MultinomialParams | None, stats: ColumnSums, active: Array | None = None
    ) -> MultinomialParams:
        """prob ∝ Σrx + concentration − 1, not below 0; without any weight the shares of all rows."""
        (count,) = stats.totals
        if self.prior is not None:
            count = count + (self._spread(self.prior.concentration, count) - 1)
            count = jnp.where(count < 0, 0, count)
        total = jnp.sum(count, 1, keepdims=True)
        d = count.shape[1]
        if self.pivot is None:
            centre = jnp.full(d, 1 / d, count.dtype)
        else:
            whole = jnp.sum(self.pivot)
            centre = jnp.where(whole > 0, self.pivot / jnp.where(whole > 0, whole, 1), 1 / d)
        return MultinomialParams(jnp.where(total > 0, count / jnp.where(total > 0, total, 1), centre[None]))

    def log_prior(self, bank: MultinomialParams, active: Array | None = None) -> Array:
        """Log density of `prior` at the probabilities of the active components: ()."""
        if self.prior is None:
            return jnp.zeros((), bank.prob.dtype)
        alpha = self._spread(self.prior.concentration, bank.prob)
        terms = jnp.sum(log_power(alpha - 1, bank.prob) - gammaln(alpha), 1) + gammaln(jnp.sum(alpha))
        return jnp.sum(terms if active is None else jnp.where(active, terms, 0))

    def sample(self, bank: MultinomialParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        if self.total is None and self.pivot is None:
            raise ValueError(
                "total: expected the row total to draw, got None; write Multinomial(total=…), or sample from "
                "result.model, which knows the data."
            )
        dtype = bank.prob.dtype
        total = jnp.round(jnp.sum(self.pivot)) if self.total is None else jnp.asarray(self.total, dtype)
        return jax.random.multinomial(key, jnp.broadcast_to(total, z.shape), bank.prob[z], dtype=dtype)

    def sample_like(self, bank: MultinomialParams, key: Key, z: Array, x: Array) -> Array:
        """One row of component z_i for each row of x (n, d), with its total: (n, d)."""
        return jax.random.multinomial(key, jnp.sum(x, 1), bank.prob[z], dtype=bank.prob.dtype)

    def feasible(self, bank: MultinomialParams) -> Array:
        """Whether the probabilities lie on the simplex, to rounding: ()."""
        slack = 8 * bank.prob.shape[1] * jnp.finfo(bank.prob.dtype).eps
        return jnp.all(bank.prob >= 0) & jnp.all(jnp.abs(jnp.sum(bank.prob, 1) - 1) <= slack)

    def projected(self, bank: MultinomialParams, near: MultinomialParams) -> MultinomialParams:
        """A bank from elsewhere put back on the simplex, beside one on it."""
        return MultinomialParams(onto_simplex(bank.prob, near.prob))

    def n_parameters(self, bank: MultinomialParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * (bank.prob.shape[1] - 1)

    def restricted(self, bank: MultinomialParams) -> Self:
        """The family with free coordinates relative to the most probable cell, which is on no boundary."""
        return replace(self, reference=jnp.argmax(bank.prob, -1))

    def _reference(self, k: int, d: int) -> Array:
        return jnp.full(k, d - 1) if self.reference is None else jnp.asarray(self.reference)

    def unconstrain(self, bank: MultinomialParams) -> MultinomialParams:
        """Log-ratios (k, d − 1); a probability of 0 has no free coordinate, and comes back as a very small number."""
        return MultinomialParams(log_ratios(bank.prob, self._reference(*bank.prob.shape)))

    def constrain(self, free: MultinomialParams) -> MultinomialParams:
        """Inverse of `unconstrain`."""
        return MultinomialParams(
            from_log_ratios(free.prob, self._reference(free.prob.shape[0], free.prob.shape[1] + 1))
        )

    def held(self, bank: MultinomialParams) -> MultinomialParams:
        """Which free coordinates lie on the boundary: probabilities of 0."""
        return MultinomialParams(others_of(is_nil(bank.prob), self._reference(*bank.prob.shape)))

    def frozen_coordinates(self, bank: MultinomialParams, held: MultinomialParams) -> MultinomialParams:
        """Which free coordinates are held, shaped as `unconstrain(bank)`."""
        self._check_held(held)
        return MultinomialParams(held.prob[:, 1:])

    def informative(self, x: Array) -> Array | None:
        """Which rows count anything: (n,)."""
        return jnp.any(x != 0, 1) if jnp.ndim(x) == 2 else None  # NaN stays to be seen

    def points(self, x: Array) -> Array:
        """The shares of the cells, for k-means."""
        total = jnp.sum(x, 1, keepdims=True)
        return jnp.sqrt(jnp.maximum(x / jnp.where(total > 0, total, 1), 0))
