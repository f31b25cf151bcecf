"""Exponential columns."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ... import bijections
from ..._typing import Array, Key
from ...contracts.domains import POSITIVE, Domain
from ...contracts.priors import GammaPrior, gamma_log_prob
from ...contracts.status import Status
from ...numerics import tree as _tree
from ._columns import ColumnSums, IndependentColumns


class ExponentialParams(NamedTuple):
    """Rates (k, d): the means are 1 / rate.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.ExponentialParams(rate=jnp.array([[2.0], [0.1]]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.Exponential(), n_components=2).predict(start, jnp.array([[0.5], [8.0]]))
        Array([0, 1], dtype=...)
    """

    rate: Array


@_tree.register
@dataclass(frozen=True)
class Exponential(IndependentColumns):
    """Non-negative columns, independent: density rate·exp(−rate·x).

    Attributes:
        prior: a `GammaPrior` on every rate, its leaves () or (d,), the prior's rate in units of the data; None is pure
            maximum likelihood.
        missing: whether NaN marks an entry that was not observed; it is then left out of the likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.5], [1.5], [4.0]])
        >>> model = jaxem.Mixture(jaxem.Exponential(), n_components=1)
        >>> jaxem.fit(model, model.init(jax.random.key(0), x), x).params.components.rate
        Array([[0.5]], dtype=...)
    """

    prior: GammaPrior | None = None

    space: ClassVar[Any] = ExponentialParams(bijections.positive)  # type: ignore[arg-type]
    _bank: ClassVar[type] = ExponentialParams
    _domains: ClassVar[tuple[Domain, ...]] = (POSITIVE,)
    _support: ClassVar[str] = "finite non-negative numbers"
    _legal: ClassVar[float] = 0.0
    _vague: ClassVar[float] = 1.0

    def _is_valid(self, x: Array, axis: int) -> Array:
        return (x >= 0) & (x < jnp.inf)

    def _terms(self, x: Array) -> list[Array]:
        return [x]

    def _natural(self, bank: ExponentialParams) -> tuple[list[Array], Array]:
        return [-bank.rate], jnp.log(bank.rate)

    def _entry(self, bank: ExponentialParams, x: Array) -> Array:
        return jnp.log(bank.rate) - bank.rate * x

    def estimate(
        self, bank: ExponentialParams | None, stats: ColumnSums, active: Array | None = None
    ) -> ExponentialParams:
        """rate = (N + shape − 1) / (Σrx + prior rate); a component without any weight takes the mean of the column."""
        (total,), seen = stats.totals, jnp.broadcast_to(stats.observed, stats.totals[0].shape)
        present = seen > 0
        if self.prior is not None:
            seen = seen + self._spread(jnp.asarray(self.prior.shape) - 1, total)
            total = total + self._spread(self.prior.rate, total)
        centre = jnp.ones(total.shape[1], total.dtype) if self.pivot is None else self.pivot
        rate = seen / jnp.where(present, total, 1)
        return ExponentialParams(jnp.where(present, rate, 1 / jnp.where(centre > 0, centre, 1)[None]))

    def log_prior(self, bank: ExponentialParams, active: Array | None = None) -> Array:
        """Log density of `prior` at the rates of the active components: ()."""
        if self.prior is None:
            return jnp.zeros((), bank.rate.dtype)
        terms = gamma_log_prob(self.prior, bank.rate)
        return jnp.sum(terms if active is None else jnp.where(jnp.asarray(active)[:, None], terms, 0))

    def sample(self, bank: ExponentialParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        return jax.random.exponential(key, (z.shape[0], bank.rate.shape[1]), bank.rate.dtype) / bank.rate[z]

    def health(self, bank: ExponentialParams, active: Array) -> Array:
        """DEGENERATE if an active component lies at zero alone, else RUNNING."""
        degenerate = jnp.any(~jnp.isfinite(bank.rate) & active[:, None])
        return jnp.where(degenerate, Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)
