"""Categories: Bernoulli and categorical columns. Mixtures of them are latent class models."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from ..._typing import Array, Key
from ...contracts.domains import SIMPLEX, UNIT_INTERVAL, Domain
from ...contracts.priors import BetaPrior, DirichletPrior, log_power
from ...fold.present import present_rows
from ...numerics import tree as _tree
from ...numerics.linalg import dot, sum_terms
from ...numerics.special import onto_simplex
from ._columns import (
    ColumnSums,
    IndependentColumns,
    from_log_ratios,
    is_nil,
    log_or_low,
    log_ratios,
    low_to_minus_inf,
    others_of,
    smallest,
)


class BernoulliParams(NamedTuple):
    """Probabilities of a one (k, d).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.BernoulliParams(jnp.array([[0.9, 0.8], [0.1, 0.3]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Bernoulli(), n_components=2).predict(start, jnp.array([[1.0, 1.0], [0.0, 0.0]]))
        Array([0, 1], dtype=...)
    """

    prob: Array


class CategoricalParams(NamedTuple):
    """Probabilities of the categories (k, d, c); 0 beyond the categories of a column.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.CategoricalParams(jnp.array([[[0.8, 0.1, 0.1]], [[0.1, 0.1, 0.8]]]))  # of one column
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Categorical(3), n_components=2).predict(start, jnp.array([[0.0], [2.0]]))
        Array([0, 1], dtype=...)
    """

    prob: Array


@_tree.register
@dataclass(frozen=True)
class Bernoulli(IndependentColumns):
    """Zeros and ones, independent between columns: x_a ~ Bernoulli(prob_a). A mixture is a latent class model.

    Probabilities of exactly 0 and 1 are legal.

    Attributes:
        prior: a `BetaPrior` on every probability, its leaves () or (d,); None is pure maximum likelihood.
        missing: whether NaN marks an entry that was not observed; it is then left out of the likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.repeat(jnp.array([[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 1, 0]]), 10, 0)
        >>> model = jaxem.Mixture(jaxem.Bernoulli(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> jnp.sort(result.params.components.prob[:, 1]).round(2) + 0.0
        Array([0., 1.], dtype=...)
    """

    prior: BetaPrior | None = None

    _bank: ClassVar[type] = BernoulliParams
    _domains: ClassVar[tuple[Domain, ...]] = (UNIT_INTERVAL,)
    _support: ClassVar[str] = "zeros and ones"
    _legal: ClassVar[float] = 0.0
    _vague: ClassVar[float] = 0.5

    @property
    def _counts_seen(self) -> bool:
        return False  # with entries missing, zeros are counted beside ones

    def _is_valid(self, x: Array, axis: int) -> Array:
        return (x == 0) | (x == 1)

    def _terms(self, x: Array) -> list[Array]:
        return [x, 1 - x] if self.missing else [x]

    def _natural(self, bank: BernoulliParams) -> tuple[list[Array], Array | None]:
        one, none = log_or_low(bank.prob), log_or_low(1 - bank.prob)
        return ([one, none], None) if self.missing else ([one - none], none)

    def trusted(self, bank: BernoulliParams) -> Array:
        """Whether the fast path keeps its digits: ().

        Its error is eps · Σ_a |log(1 − prob)|, which is to stay below 0.3·√eps; a probability of 1 is for the stable
        path. With entries missing the fast path always keeps them.
        """
        if self.missing:
            return jnp.ones((), bool)
        size = jnp.max(jnp.sum(jnp.abs(log_or_low(1 - bank.prob)), 1))
        return size <= 0.3 / math.sqrt(jnp.finfo(size.dtype).eps)

    def _log_prob_rows(self, bank: BernoulliParams, x: Array, present: Array | None) -> Array:
        zeros = 1 - x if present is None else jnp.where(present, 1 - x, 0)
        return low_to_minus_inf(dot(x, log_or_low(bank.prob).T) + dot(zeros, log_or_low(1 - bank.prob).T))

    def estimate(self, bank: BernoulliParams | None, stats: ColumnSums, active: Array | None = None) -> BernoulliParams:
        """prob = (Σrx + a − 1) / (N + a + b − 2), within 0 and 1; a component without weight takes the column mean."""
        ones, seen = stats.totals[0], jnp.broadcast_to(stats.observed, stats.totals[0].shape)
        if self.prior is not None:
            a, b = self._spread(self.prior.a, ones), self._spread(self.prior.b, ones)
            zeros = seen - ones + (b - 1)
            ones = ones + (a - 1)
            ones, zeros = jnp.where(ones < 0, 0, ones), jnp.where(zeros < 0, 0, zeros)
            seen = ones + zeros
        present = seen > 0
        ones = jnp.where(ones > seen, seen, ones)  # by rounding
        centre = jnp.full(ones.shape[1], 0.5, ones.dtype) if self.pivot is None else self.pivot
        return BernoulliParams(jnp.where(present, ones / jnp.where(present, seen, 1), centre[None]))

    def log_prior(self, bank: BernoulliParams, active: Array | None = None) -> Array:
        """Log density of `prior` at the probabilities of the active components: ()."""
        if self.prior is None:
            return jnp.zeros((), bank.prob.dtype)
        a, b = self._spread(self.prior.a, bank.prob), self._spread(self.prior.b, bank.prob)
        terms = gammaln(a + b) - gammaln(a) - gammaln(b) + log_power(a - 1, bank.prob) + log_power(b - 1, 1 - bank.prob)
        return jnp.sum(terms if active is None else jnp.where(jnp.asarray(active)[:, None], terms, 0))

    def sample(self, bank: BernoulliParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        return jax.random.bernoulli(key, bank.prob[z]).astype(bank.prob.dtype)

    def feasible(self, bank: BernoulliParams) -> Array:
        """Whether every probability lies within 0 and 1: ()."""
        return jnp.all((bank.prob >= 0) & (bank.prob <= 1))

    def unconstrain(self, bank: BernoulliParams) -> BernoulliParams:
        """Log-odds; 0 and 1 have no free coordinate, and come back as numbers next to them."""
        least = smallest(bank.prob.dtype)
        return BernoulliParams(jnp.log(jnp.maximum(bank.prob, least)) - jnp.log(jnp.maximum(1 - bank.prob, least)))

    def constrain(self, free: BernoulliParams) -> BernoulliParams:
        """Inverse of `unconstrain`."""
        return BernoulliParams(jax.nn.sigmoid(free.prob))

    def held(self, bank: BernoulliParams) -> BernoulliParams:
        """Which free coordinates lie on the boundary: probabilities of 0 and 1."""
        return BernoulliParams(is_nil(bank.prob) | is_nil(1 - bank.prob))  # type: ignore[arg-type]


@_tree.register
@dataclass(frozen=True)
class Categorical(IndependentColumns):
    """Categories as codes 0 … c − 1, independent between columns: P(x_a = code) = prob_{a, code}.

    Probabilities of exactly 0 are legal: a category that a component never shows. Every category is a column of 0 and
    1 in two matrix products, so a column of very many categories is better recoded.

    Attributes:
        n_categories: c, of every column; or a tuple with the number of each column. Static.
        prior: a `DirichletPrior` on the probabilities of every column, (), (c,) or (d, c); None is pure maximum
            likelihood.
        missing: whether NaN marks an entry that was not observed; it is then left out of the likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.repeat(jnp.array([[0, 0], [0, 1], [2, 2], [1, 2]]), 10, 0)
        >>> model = jaxem.Mixture(jaxem.Categorical(3), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> jnp.sort(result.params.components.prob[:, 1, 2]).round(2) + 0.0
        Array([0., 1.], dtype=...)
    """

    n_categories: int | tuple[int, ...] = field(metadata={"static": True})
    prior: DirichletPrior | None = None
    # set by `restricted`, (k, d): the category that free coordinates are relative to; None is the last
    reference: Any = field(default=None, kw_only=True)

    _bank: ClassVar[type] = CategoricalParams
    _domains: ClassVar[tuple[Domain, ...]] = (SIMPLEX,)
    _simplex_axes: ClassVar[int] = 1
    _legal: ClassVar[float] = 0.0

    @property
    def _support(self) -> str:  # type: ignore[override]
        return f"category codes below n_categories = {self.n_categories}"

    @property
    def _counts_seen(self) -> bool:
        return False

    @property
    def _width(self) -> int:
        return self.n_categories if isinstance(self.n_categories, int) else max(self.n_categories)

    def _sizes(self, d: int) -> np.ndarray:
        return np.broadcast_to(np.asarray(self.n_categories), (d,))

    def _codes(self, d: int) -> np.ndarray:
        """Which codes each column has: (d, c)."""
        return np.arange(self._width)[None] < self._sizes(d)[:, None]

    def _is_valid(self, x: Array, axis: int) -> Array:
        limit = jnp.asarray(self._sizes(x.shape[axis]), x.dtype).reshape((1, -1) if axis == 1 else (-1, 1))
        return (x >= 0) & (x == jnp.floor(x)) & (x < limit)

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets the pivot: weighted shares of the categories, (d, c)."""
        x = present_rows(x, sample_weight)
        weight = jnp.ones(x.shape[0], x.dtype) if sample_weight is None else sample_weight
        shares = jnp.stack([jnp.sum(jnp.where(x == code, weight[:, None], 0), 0) for code in range(self._width)], 1)
        total = jnp.sum(shares, 1, keepdims=True)
        even = jnp.asarray(self._codes(x.shape[1]) / self._sizes(x.shape[1])[:, None], x.dtype)
        return replace(self, pivot=jnp.where(total > 0, shares / jnp.where(total > 0, total, 1), even))

    def _terms(self, x: Array) -> list[Array]:
        poison = jnp.where(jnp.isnan(x), jnp.nan, 0)  # of what is no category
        return [(x == code).astype(x.dtype) + poison for code in range(self._width)]

    def _natural(self, bank: CategoricalParams) -> tuple[list[Array], None]:
        log_prob = log_or_low(bank.prob)
        return [log_prob[:, :, code] for code in range(self._width)], None

    def _log_prob_rows(self, bank: CategoricalParams, x: Array, present: Array | None) -> Array:
        terms = self._terms(x)
        terms = terms if present is None else [jnp.where(present, term, 0) for term in terms]
        natural, _ = self._natural(bank)
        return low_to_minus_inf(sum_terms([dot(term, eta.T) for term, eta in zip(terms, natural, strict=True)]))

    def estimate(
        self, bank: CategoricalParams | None, stats: ColumnSums, active: Array | None = None
    ) -> CategoricalParams:
        """prob ∝ Σr[x = code] + concentration − 1, not below 0; without weight the column's shares."""
        count = jnp.stack(stats.totals, -1)
        codes = self._codes(count.shape[1])
        if self.prior is not None:
            count = count + jnp.where(codes, self._concentration(count.dtype, count.shape[1:]) - 1, 0)[None]
            count = jnp.where(count < 0, 0, count)
        total = jnp.sum(count, -1, keepdims=True)
        even = jnp.asarray(codes / codes.sum(1, keepdims=True), count.dtype)
        centre = even if self.pivot is None else self.pivot
        return CategoricalParams(jnp.where(total > 0, count / jnp.where(total > 0, total, 1), centre[None]))

    def _concentration(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        leaf = jnp.asarray(self.prior.concentration, dtype)  # type: ignore[union-attr]
        return jnp.broadcast_to(leaf.reshape((1,) * (2 - leaf.ndim) + leaf.shape), shape)

    def log_prior(self, bank: CategoricalParams, active: Array | None = None) -> Array:
        """Log density of `prior` at the probabilities of the active components: ()."""
        if self.prior is None:
            return jnp.zeros((), bank.prob.dtype)
        codes = self._codes(bank.prob.shape[1])
        alpha = jnp.where(codes, self._concentration(bank.prob.dtype, bank.prob.shape[1:]), 1)
        constant = gammaln(jnp.sum(jnp.where(codes, alpha, 0), 1)) - jnp.sum(gammaln(alpha), 1)
        terms = constant[None] + jnp.sum(jnp.where(codes[None], log_power((alpha - 1)[None], bank.prob), 0), 2)
        return jnp.sum(terms if active is None else jnp.where(jnp.asarray(active)[:, None], terms, 0))

    def sample(self, bank: CategoricalParams, key: Key, z: Array) -> Array:
        """One row of codes of component z_i for each entry of z (n,): (n, d)."""
        log_prob = jnp.where(bank.prob > 0, jnp.log(jnp.where(bank.prob > 0, bank.prob, 1)), -jnp.inf)
        return jax.random.categorical(key, log_prob[z], axis=-1).astype(bank.prob.dtype)

    def feasible(self, bank: CategoricalParams) -> Array:
        """Whether the probabilities of every column lie on the simplex, to rounding: ()."""
        slack = 8 * self._width * jnp.finfo(bank.prob.dtype).eps
        beyond = jnp.where(self._codes(bank.prob.shape[1])[None], 0, bank.prob)
        total = jnp.sum(bank.prob, -1)
        return jnp.all(bank.prob >= 0) & jnp.all(beyond == 0) & jnp.all(jnp.abs(total - 1) <= slack)

    def projected(self, bank: CategoricalParams, near: CategoricalParams) -> CategoricalParams:
        """A bank from elsewhere put back on the simplices, beside one on them."""
        return CategoricalParams(onto_simplex(bank.prob, near.prob))

    def n_parameters(self, bank: CategoricalParams, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * int(np.sum(self._sizes(bank.prob.shape[1]) - 1))

    # --- free coordinates: log-ratios to one category of each column, (k, Σ_a (c_a − 1))

    def restricted(self, bank: CategoricalParams) -> Self:
        """The family with free coordinates relative to the most probable category, which is on no boundary."""
        return replace(self, reference=jnp.argmax(bank.prob, -1))

    def _reference(self, k: int, d: int) -> Array:
        last = jnp.broadcast_to(jnp.asarray(self._sizes(d) - 1), (k, d))
        return last if self.reference is None else jnp.asarray(self.reference)

    def _places(self, d: int) -> tuple[np.ndarray, ...]:
        """Columns and positions of the others that exist; codes beyond a column's own come last."""
        return np.nonzero(np.arange(self._width - 1)[None] < self._sizes(d)[:, None] - 1)

    def unconstrain(self, bank: CategoricalParams) -> CategoricalParams:
        """Log-ratios; a probability of 0 has no free coordinate, and comes back as a very small number."""
        k, d, _ = bank.prob.shape
        return CategoricalParams(log_ratios(bank.prob, self._reference(k, d))[:, *self._places(d)])

    def constrain(self, free: CategoricalParams) -> CategoricalParams:
        """Inverse of `unconstrain`."""
        k, f = free.prob.shape
        d = f // (self.n_categories - 1) if isinstance(self.n_categories, int) else len(self.n_categories)
        nowhere = jnp.full((k, d, self._width - 1), -jnp.inf, free.prob.dtype)
        return CategoricalParams(from_log_ratios(nowhere.at[:, *self._places(d)].set(free.prob), self._reference(k, d)))

    def held(self, bank: CategoricalParams) -> CategoricalParams:
        """Which free coordinates lie on the boundary: probabilities of 0."""
        k, d, _ = bank.prob.shape
        return CategoricalParams(others_of(is_nil(bank.prob), self._reference(k, d))[:, *self._places(d)])

    def frozen_coordinates(self, bank: CategoricalParams, held: CategoricalParams) -> CategoricalParams:
        """Which free coordinates are held, shaped as `unconstrain(bank)`."""
        self._check_held(held)
        return CategoricalParams(held.prob[:, self._places(bank.prob.shape[1])[0], 0])

    # --- bookkeeping

    def points(self, x: Array) -> Array:
        """Each category a column of 0 and 1, for k-means; a missing entry lies at the shares of its column."""
        points = jnp.stack([(x == code).astype(x.dtype) for code in range(self._width)], -1)
        if self.missing:
            points = jnp.where(jnp.isnan(x)[..., None], self.pivot[None], points)
        return points.reshape(x.shape[0], -1)

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], ...]:
        return ((k, d, self._width),)

    def _prior_shapes(self, d: int) -> tuple[tuple[int, ...], ...]:
        return (), (self._width,), (d, self._width)

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d), and the numbers of categories and the prior fit; returns d."""
        sizes = self.n_categories if isinstance(self.n_categories, tuple) else (self.n_categories,)
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 2 for size in sizes):
            raise ValueError(f"n_categories: expected an int ≥ 2, or a tuple of them, got {self.n_categories!r}.")
        d = super().validate_data(x)
        if isinstance(self.n_categories, tuple) and len(sizes) != d:
            raise ValueError(f"n_categories: expected one number for each of {d} columns, got {len(sizes)}.")
        return d
