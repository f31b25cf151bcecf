"""Positive columns: Weibull."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ... import bijections
from ..._typing import Array, Key
from ...contracts.domains import POSITIVE, Domain
from ...contracts.priors import GammaPrior, gamma_log_prob
from ...fold.chunks import Rows
from ...numerics import tree as _tree
from ...numerics.newton_bank import climb_entries
from .._of_rows import OfRows
from ._columns import SeparateColumns
from ._positive import PositiveColumns


class WeibullParams(NamedTuple):
    """Shapes and scales (k, d): the medians are scale · (log 2)^(1 / shape).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.WeibullParams(shape=jnp.array([[1.0], [3.0]]), scale=jnp.array([[1.0], [9.0]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Weibull(), n_components=2).predict(start, jnp.array([[0.5], [8.0]]))
        Array([0, 1], dtype=...)
    """

    shape: Array
    scale: Array


@_tree.register
@dataclass(frozen=True)
class Weibull(OfRows, PositiveColumns, SeparateColumns):
    """Positive columns, independent: density (shape/scale) (x/scale)^(shape−1) exp(−(x/scale)^shape).

    Given the shape, scale^shape is the mean of x^shape; Newton finds the one maximum in the shape that is left (Farnum
    & Booth 1997). Where a component is constant the likelihood is unbounded, which the floor prevents.

    Attributes:
        floor: regularisation, whatever the unit of the data: the log prior −floor · Σ shape. 0 is pure maximum
            likelihood.
        prior: a `GammaPrior` on every shape, its leaves () or (d,); None is flat.
        missing: whether NaN marks an entry that was not observed; it is then left out of the likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jax.random.weibull_min(jax.random.key(1), 5.0, 2.0, (1000, 1))
        >>> model = jaxem.Mixture(jaxem.Weibull(), n_components=1)
        >>> params = jaxem.fit(model, model.init(jax.random.key(0), x), x).params.components
        >>> bool(jnp.abs(params.shape[0, 0] - 2) < 0.2)
        True
    """

    prior: GammaPrior | None = None

    space: ClassVar[Any] = WeibullParams(bijections.positive, bijections.positive)  # type: ignore[arg-type]
    _bank: ClassVar[type] = WeibullParams
    _domains: ClassVar[tuple[Domain, ...]] = (POSITIVE, POSITIVE)

    def _entry(self, bank: WeibullParams, x: Array) -> Array:
        power = bank.shape * jnp.log(x / bank.scale)
        return jnp.log(bank.shape) - jnp.log(x) + power - jnp.exp(power)

    def estimate(self, bank: WeibullParams | None, stats: Rows, active: Array | None = None) -> WeibullParams:
        """Mode of Σ r log f plus log prior; without any weight a component takes the column's mean, and shape 1."""
        count, mean, square = self._sums(stats, jnp.zeros((stats.responsibilities.shape[1], self.pivot.size)), 3)
        present, count = count > 0, jnp.where(count > 0, count, 1)
        mean, square = mean / count, square / count
        spread = jnp.sqrt(jnp.maximum(square - mean**2, jnp.finfo(mean.dtype).eps))
        start = math.pi / math.sqrt(6) / spread if bank is None else bank.shape  # log x has this spread
        a, b = (0.0, 0.0) if self.prior is None else (jnp.asarray(self.prior.shape) - 1, self.prior.rate)
        a, b = self._spread(a, mean), self._spread(b + self.floor, mean)

        def profile(point: Array) -> Array:  # of log shapes
            shape, mean_power = jnp.exp(point), self._sums(stats, jnp.exp(point), 1)[0] / count
            value = count * (point + shape * mean - jnp.log(mean_power)) + a * point - b * shape
            return jnp.where(present, value, 0)

        size = lambda point: count * (1 + jnp.abs(point) + 2 * jnp.exp(point) * (jnp.abs(mean) + spread))  # noqa: E731
        shape = jnp.exp(climb_entries(profile, jnp.log(jnp.where(present, start, 1)), size))
        scale = self.pivot[None] * (self._sums(stats, shape, 1)[0] / count) ** (1 / shape)
        return WeibullParams(shape, jnp.where(present, scale, self.pivot[None]))

    def _sums(self, stats: Rows, shape: Array, n: int) -> list[Array]:
        """Σ r u^shape (log u)^m for m = 0 … n − 1, of u = x / pivot: (k, d) each."""

        def one(x: Array, weight: Array, own: Array) -> list[Array]:
            x, present = self._filled(x)
            taken = (weight[:, None] > 0) & (True if present is None else present)
            log_u = jnp.where(taken, jnp.log(x / self.pivot[None]), 0)
            weight = jnp.where(taken, weight[:, None] * jnp.exp(own[None] * log_u), 0)
            return [jnp.sum(weight * log_u**power, 0) for power in range(n)]

        return stats.by_state(one, shape.astype(self.pivot.dtype))

    def log_prior(self, bank: WeibullParams, active: Array | None = None) -> Array:
        """−floor · Σ shape and the log density of `prior` over the active components: ()."""
        terms = jnp.zeros_like(bank.shape) if self.prior is None else gamma_log_prob(self.prior, bank.shape)
        terms = terms if active is None else jnp.where(jnp.asarray(active)[:, None], terms, 0)
        return super().log_prior(bank, active) + jnp.sum(terms)

    def sample(self, bank: WeibullParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        return jax.random.weibull_min(key, bank.scale[z], bank.shape[z], bank.scale[z].shape, bank.scale.dtype)
