"""Components without parameters: a mass at a point, a uniform background."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..._typing import Array, Data, Key
from ...contracts.status import Status
from ...fold.present import present_rows
from ...numerics import tree as _tree


class NoParams(NamedTuple):
    """The bank of a family without parameters: an array (k, 0), which says how many components there are.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> model = jaxem.Mixture(jaxem.OneOf(jaxem.PointMass(0.0), jaxem.Poisson()), n_components=2)
        >>> banks = (jaxem.NoParams(), jaxem.PoissonParams(jnp.array([[3.0]])))
        >>> start = jaxem.MixtureParams(jnp.array([0.4, 0.6]), banks)
        >>> jnp.exp(model.log_prob(start, jnp.zeros((1, 1)))).round(2)  # 0.4 + 0.6 exp(−3)
        Array([0.43], dtype=...)
    """

    none: Any = np.zeros((1, 0))


class RowSums(NamedTuple):
    """Σ r (k,), and the part of the expected log density that no parameter enters (k,)."""

    count: Array
    base: Array


def response_of(x: Data) -> Array:
    """Rows (n, d); of regression data (covariates, response, …) the response, as a column."""
    x = x[1] if isinstance(x, tuple) else x
    return x[:, None] if x.ndim == 1 else x


@dataclass(frozen=True)
class Parameterless:
    """What the two families share."""

    additive: ClassVar[bool] = True
    reads_floats: ClassVar[bool] = True
    _log_density: ClassVar[Callable[..., Array]]  # rows (n, d) -> (n,)

    def log_prob(self, bank: NoParams, x: Data) -> Array:
        """log f(x_i): (n, k), the same for every component."""
        dtype = jnp.asarray(bank.none).dtype
        log_prob = self._log_density(response_of(x).astype(dtype))
        return jnp.broadcast_to(log_prob[:, None], (log_prob.shape[0], bank.none.shape[0]))

    def statistics(self, bank: NoParams | None, x: Data, responsibilities: Array) -> RowSums:
        """Sums weighted with responsibilities (n, k)."""
        log_prob = self._log_density(response_of(x).astype(responsibilities.dtype))[:, None]
        r = responsibilities
        return RowSums(jnp.sum(r, 0), jnp.sum(jnp.where(r > 0, r * jnp.where(r > 0, log_prob, 0), 0), 0))

    def estimate(self, bank: NoParams | None, stats: RowSums, active: Array | None = None) -> NoParams:
        """Nothing."""
        return NoParams(jnp.zeros((*stats.count.shape, 0), stats.count.dtype))

    def expected_log_prob(self, bank: NoParams, stats: RowSums) -> Array:
        """Σ_ij r_ij log f(x_i): ()."""
        return jnp.sum(stats.base)

    def unconstrain(self, bank: NoParams) -> NoParams:
        """Nothing."""
        return bank

    def constrain(self, free: NoParams) -> NoParams:
        """Nothing."""
        return free

    def frozen_coordinates(self, bank: NoParams, held: NoParams) -> NoParams:
        """Nothing."""
        return held

    def sizes(self, bank: NoParams) -> NoParams:
        """Nothing."""
        return bank

    def n_parameters(self, bank: NoParams, n_components: Any) -> Any:
        """0."""
        return 0 * n_components

    def component_axes(self) -> NoParams:
        """The leading axis."""
        return NoParams(0)

    def points(self, x: Data) -> Array:
        """Rows as points, for k-means: themselves."""
        return response_of(x)

    def supported(self, x: Data) -> tuple[Data, Array]:
        """The rows, and whether the density is positive there: (n,)."""
        return x, self._log_density(response_of(x)) != -jnp.inf  # NaN stays to be seen

    def check_data(self, x: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError that names the first concrete row outside of the support."""
        if _tree.is_tracing(self):
            return
        with jax.ensure_compile_time_eval():
            bad = ~np.asarray(_inside(self, jnp.asarray(response_of(x))))
        bad = bad if sample_weight is None else bad & (np.asarray(sample_weight) > 0)
        if bad.any():
            rows = np.flatnonzero(bad)
            raise ValueError(
                f"data: expected {self._described()} for {type(self).__name__}, got "
                f"{np.asarray(response_of(x))[rows[0]].tolist()} in row {rows[0]} ({len(rows)} such rows in all); "
                "leave them out or give them sample_weight 0."
            )

    def sample_like(self, bank: NoParams, key: Key, z: Array, x: Data) -> Data:
        """One draw for each row of x; of regression data, responses in the place of those of x."""
        drawn = self.sample(bank, key, z)  # type: ignore[attr-defined]
        return (x[0], drawn.reshape(x[1].shape), *x[2:]) if isinstance(x, tuple) else drawn

    _described: ClassVar[Callable[[], str]]

    def validate(self, bank: NoParams, x: Data, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        if not isinstance(bank, NoParams):
            raise TypeError(f"params.components: expected NoParams, got {type(bank).__name__}.")
        if tuple(jnp.shape(bank.none)) != (n_components, 0):
            raise ValueError(
                f"params.components.none: expected shape ({n_components}, 0), got {tuple(jnp.shape(bank.none))}."
            )
        self.validate_data(x)

    def _check_columns(self, x: Data, **leaves: Any) -> None:
        rows = x[1] if isinstance(x, tuple) else x
        if not hasattr(rows, "ndim") or rows.ndim not in ((1, 2) if isinstance(x, tuple) else (2,)):
            got = f"shape {tuple(rows.shape)}" if hasattr(rows, "ndim") else type(rows).__name__
            raise ValueError(f"data: expected an array of shape (n, d), got {got}; a single column is x[:, None].")
        d = 1 if rows.ndim == 1 else rows.shape[1]
        for name, leaf in leaves.items():
            if leaf is not None and jnp.shape(leaf) not in ((), (d,)):
                raise ValueError(f"{name}: expected shape () or ({d},) on {d} columns, got {jnp.shape(leaf)}.")

    def validate_data(self, x: Data) -> None:
        """Raises a ValueError if the data do not fit."""
        self._check_columns(x)


@jax.jit
def _inside(family: Any, x: Array) -> Array:
    return family.supported(x)[1]


@_tree.register
@dataclass(frozen=True)
class PointMass(Parameterless):
    """All mass at one value: probability 1 there, 0 elsewhere; the excess of `OneOf(PointMass(0.0), Poisson())`.

    Probabilities are compared with those of the other components, so these should be of counts or categories, or leave
    the value out of their support, as `Gamma` does 0. Beside a component that has a *density* at the value, the mass 1
    competes with a number that depends on the unit of the data; a row at the value should then belong to the point
    mass: say so by `labelled`.

    Of regression data, a tuple (covariates, response, …), it looks at the response.

    Attributes:
        value: () or (d,).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> model = jaxem.Mixture(jaxem.OneOf(jaxem.PointMass(0.0), jaxem.Poisson()), n_components=2)
        >>> banks = (jaxem.NoParams(), jaxem.PoissonParams(jnp.array([[3.0]])))
        >>> start = jaxem.MixtureParams(jnp.array([0.4, 0.6]), banks)
        >>> model.responsibilities(start, jnp.array([[0.0], [2.0]])).round(2)
        Array([[0.93, 0.07],
               [0.  , 1.  ]], dtype=...)
    """

    value: Any = 0.0

    claims: ClassVar[bool] = True

    def _log_density(self, x: Array) -> Array:
        value = jnp.broadcast_to(jnp.asarray(self.value, x.dtype), x.shape[1:])
        here = jnp.all(x == value[None], 1)
        return jnp.where(jnp.any(jnp.isnan(x), 1), jnp.nan, jnp.where(here, 0.0, -jnp.inf).astype(x.dtype))

    def bind(self, x: Data, sample_weight: Array | None) -> Self:
        """The family that knows the number of columns, for `sample`."""
        rows = response_of(x)
        return replace(self, value=jnp.broadcast_to(jnp.asarray(self.value, rows.dtype), rows.shape[1:]))

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The family itself: the value is no constant of the data."""
        return self

    def sample(self, bank: NoParams, key: Key, z: Array) -> Array:
        """The value for each entry of z (n,): (n, d)."""
        value = jnp.atleast_1d(jnp.asarray(self.value, jnp.asarray(bank.none).dtype))
        return jnp.broadcast_to(value[None], (z.shape[0], value.shape[0]))

    def _described(self) -> str:
        return f"rows equal to {np.asarray(self.value).tolist()}"

    def validate_data(self, x: Data) -> None:
        """Raises a ValueError if value and data do not fit."""
        self._check_columns(x, value=self.value)


@_tree.register
@dataclass(frozen=True)
class Uniform(Parameterless):
    """A background: density 1 / volume inside of a box, 0 outside (Banfield & Raftery 1993, section 4).

    Of regression data, a tuple (covariates, response, …), it looks at the response.

    Attributes:
        low, high: bounds, () or (d,); None is the least and the largest value of each column, of the rows that a fit
            is given. They are fixed: a bound that EM estimated could not move.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-0.1, 0.1, 90), jnp.linspace(-5.0, 5.0, 10)])[:, None]
        >>> model = jaxem.Mixture(jaxem.OneOf(jaxem.Uniform(), jaxem.FullNormal()), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> [f"{weight:.1f}" for weight in result.params.weights]
        ['0.1', '0.9']
    """

    low: Any = None
    high: Any = None

    claims: ClassVar[bool] = False

    def bind(self, x: Data, sample_weight: Array | None) -> Self:
        """Sets the bounds that are not given to the range of the rows (n, d)."""
        rows = present_rows(response_of(x), sample_weight)
        low = jnp.min(rows, 0) if self.low is None else self.low
        high = jnp.max(rows, 0) if self.high is None else self.high
        spread = lambda leaf: jnp.broadcast_to(jnp.asarray(leaf, rows.dtype), rows.shape[1:])  # noqa: E731
        return replace(self, low=spread(low), high=spread(high))

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The family bound to the rows of both."""
        return replace(self, low=jnp.minimum(self.low, other.low), high=jnp.maximum(self.high, other.high))

    def _bounds(self, d: int, dtype: Any) -> tuple[Array, Array]:
        if self.low is None or self.high is None:
            raise ValueError(
                "Uniform: expected low and high, or a model that is bound to its data, got None; use result.model, or "
                "bind(model, data, None)."
            )
        low, high = (jnp.broadcast_to(jnp.asarray(leaf, dtype), (d,)) for leaf in (self.low, self.high))
        return low, high

    def _log_density(self, x: Array) -> Array:
        low, high = self._bounds(x.shape[1], x.dtype)
        outside = jnp.any((x < low[None]) | (x > high[None]), 1)
        density = jnp.where(outside, -jnp.inf, -jnp.sum(jnp.log(high - low)))
        return jnp.where(jnp.any(jnp.isnan(x), 1), jnp.nan, density)

    def supported(self, x: Data) -> tuple[Data, Array]:
        """The rows, and whether they lie in the box: (n,); all, where its bounds are those of the data."""
        if self.low is None or self.high is None:
            return x, jnp.ones(_tree.n_rows(x), bool)
        return super().supported(x)

    def sample(self, bank: NoParams, key: Key, z: Array) -> Array:
        """Uniform draws for each entry of z (n,): (n, d)."""
        dtype = jnp.asarray(bank.none).dtype
        low, high = self._bounds(max(jnp.size(self.low), jnp.size(self.high)), dtype)
        return low[None] + (high - low)[None] * jax.random.uniform(key, (z.shape[0], low.shape[0]), dtype)

    def health(self, bank: NoParams, active: Array) -> Array:
        """DEGENERATE if the box has no volume, else RUNNING."""
        if self.low is None or self.high is None:
            return jnp.asarray(Status.RUNNING, jnp.int32)
        flat = jnp.any(jnp.asarray(self.high) <= jnp.asarray(self.low)) & jnp.any(active)
        return jnp.where(flat, Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)

    def _described(self) -> str:
        return f"rows between {np.asarray(self.low).tolist()} and {np.asarray(self.high).tolist()}"

    def validate_data(self, x: Data) -> None:
        """Raises a ValueError if bounds and data do not fit, or concrete bounds leave no volume."""
        self._check_columns(x, low=self.low, high=self.high)
        if self.low is None or self.high is None or _tree.is_tracing(self):
            return
        if np.any(np.asarray(self.low) >= np.asarray(self.high)):
            raise ValueError(f"low: expected bounds below high = {self.high}, got {self.low}.")
