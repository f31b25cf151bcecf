"""Directions: unit vectors."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._typing import Array, Key
from ...contracts.domains import DIRECTION, NOT_NEGATIVE, Domain
from ...contracts.status import Status
from ...fold.features import Features
from ...numerics import tree as _tree
from ...numerics.bessel import bessel_ratio, bessel_ratio_slope, inverse_bessel_ratio, log_bessel
from ...numerics.linalg import dot
from ._columns import ColumnSums, LinearFamily

_LENGTH = 1e-4  # by which a unit vector may be off: data are often rounded to a few digits


class VonMisesFisherParams(NamedTuple):
    """Mean directions (k, d), unit vectors, and concentrations (k,) ≥ 0.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.VonMisesFisherParams(jnp.array([[1.0, 0.0], [0.0, 1.0]]), concentration=jnp.array([5.0, 5.0]))
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> jaxem.Mixture(jaxem.VonMisesFisher(), n_components=2).predict(start, jnp.array([[0.8, 0.6], [0.6, 0.8]]))
        Array([0, 1], dtype=...)
    """

    mean_direction: Array
    concentration: Array


@_tree.register
@dataclass(frozen=True)
class VonMisesFisher(LinearFamily):
    """Unit vectors about a mean direction: f(x) = C_d(κ) exp(κ⟨x, μ⟩), C_d(κ) = κ^ν / ((2π)^{d/2} I_ν(κ)), ν = d/2 − 1.

    In the plane this is the von Mises distribution of an angle. The M step is the direction of Σrx, and κ with
    I_{d/2}(κ) / I_ν(κ) = |Σrx| / N − floor / N by Newton's method on these numbers alone (Banerjee et al. 2005;
    Sra 2012), in any dimension and for any κ. κ = 0 is legal: the uniform distribution. Rows that are all equal make
    the likelihood unbounded, which the floor prevents: then κ = (d − 1) N / (2 floor).

    Rows may be off unit length by 1e-4, as rounded data are; their directions count.

    Attributes:
        floor: regularisation: the log prior −floor · Σ κ. 0 is pure maximum likelihood.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> angle = jnp.concatenate([jnp.linspace(-0.2, 0.2, 30), jnp.linspace(1.0, 1.6, 60)])
        >>> x = jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
        >>> model = jaxem.Mixture(jaxem.VonMisesFisher(), n_components=2)
        >>> params = jaxem.fit(model, model.init(jax.random.key(0), x), x).check().ordered().params
        >>> jnp.arctan2(*params.components.mean_direction.T[::-1]).round(2) + 0.0
        Array([1.3, 0. ], dtype=...)
    """

    floor: Any = 1e-6
    # set by `bind`, (d,): the direction of a component without rows; `recentred` sets the pivot, (k, d)
    centre: Any = field(default=None, kw_only=True)

    _bank: ClassVar[type] = VonMisesFisherParams
    _domains: ClassVar[tuple[Domain, ...]] = (DIRECTION, NOT_NEGATIVE)
    _support: ClassVar[str] = "rows of length 1 (divide each by its norm)"
    _legal: ClassVar[float] = 1.0
    _vague: ClassVar[float] = 1.0

    def _is_valid(self, x: Array, axis: int) -> Array:
        return jnp.broadcast_to(jnp.abs(_norm(x, axis) - 1) < _LENGTH, x.shape)

    def _legal_row(self, x: Array) -> Array:
        return jnp.full((1, x.shape[1]), x.shape[1] ** -0.5, jnp.result_type(x.dtype, 1.0))

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets the centre, the direction of the weighted mean."""
        bound = super().bind(x, sample_weight)
        return replace(bound, centre=_direction(bound.pivot))

    def merged(self, seen: Array, other: Self, other_seen: Array) -> Self:
        """The family bound to the rows of both."""
        bound = super().merged(seen, other, other_seen)
        return replace(bound, centre=_direction(bound.pivot))

    def recentred(self, bank: VonMisesFisherParams) -> Self:
        """The same family with statistics about these directions: its stable path."""
        return replace(self, pivot=lax.stop_gradient(_direction(bank.mean_direction)))

    @property
    def _is_recentred(self) -> bool:
        return self.pivot is not None and jnp.ndim(self.pivot) == 2

    # --- densities: κ⟨x, μ⟩ + log C on the fast path, −½κ|x − μ|² + (κ + log C) on the stable one

    def _columns(self, x: Array, axis: int) -> list[Array]:
        inside = self._is_valid(x, axis)
        unit = jnp.where(inside, x, 1) / _norm(jnp.where(inside, x, 1), axis)
        return [jnp.ones_like(lax.slice_in_dim(x, 0, 1, axis=axis)), jnp.where(inside, unit, jnp.nan)]

    def _log_normaliser(self, bank: VonMisesFisherParams, *, scaled: bool) -> Array:
        """log C_d(κ), or log C_d(κ) + κ if `scaled`: (k,)."""
        d = bank.mean_direction.shape[1]
        return -0.5 * d * math.log(2 * math.pi) - log_bessel(d / 2 - 1, scaled, bank.concentration)

    def _natural(self, bank: VonMisesFisherParams) -> tuple[list[Array], Array]:
        eta = bank.concentration[:, None] * _direction(bank.mean_direction)
        return [eta], self._log_normaliser(bank, scaled=False)[:, None]

    def _log_prob_rows(self, bank: VonMisesFisherParams, x: Array, present: Array | None) -> Array:
        unit, mean = x / _norm(x, 1), _direction(bank.mean_direction)
        distance = lambda centre: jnp.sum(jnp.square(unit - centre[None]), 1)  # noqa: E731
        squared = lax.map(distance, mean).T
        return self._log_normaliser(bank, scaled=True)[None] - 0.5 * bank.concentration[None] * squared

    def trusted(self, bank: VonMisesFisherParams) -> Array:
        """Whether the fast path keeps its digits: eps · κ ≤ 0.3·√eps, κ to about 870 in float32."""
        largest = jnp.max(bank.concentration)
        return largest <= 0.3 / math.sqrt(jnp.finfo(largest.dtype).eps)

    # --- statistics: Σ r x; about each component's own direction m, Σ r (x − m) and Σ r ½|x − m|²

    def statistics(self, bank: Any, x: Array | Features, responsibilities: Array) -> ColumnSums:
        """Sums weighted with responsibilities (n, k). `bank` is not used."""
        if not self._is_recentred or isinstance(x, Features):
            return super().statistics(bank, x, responsibilities)
        unit = self._columns(x, 1)[1]

        def one(j: Array) -> tuple[Array, ...]:
            r = lax.dynamic_index_in_dim(responsibilities, j, 1, keepdims=False)
            y = unit - self.pivot[j][None]
            return jnp.sum(r), dot(r, y), dot(r, 0.5 * jnp.sum(jnp.square(y), 1))

        count, total, gap = lax.map(one, jnp.arange(responsibilities.shape[1]))
        return ColumnSums(count, count[:, None], (total, gap[:, None]), jnp.zeros_like(count))

    def _resultant(self, stats: ColumnSums) -> tuple[Array, Array, Array, Array]:
        """Directions of Σrx (k, d), R = |Σrx| / N (k,), 1 − R with its digits, and what it loses by rounding.

        Of 1 for a count of 0.
        """
        total, count = stats.totals[0], stats.count[:, None]
        mean = total / jnp.where(count > 0, count, 1)
        if not self._is_recentred:
            length = _norm(mean, 1)
            gap, spread = 1 - length, jnp.ones_like(length)
        else:
            # |m + δ|² = 1 − 2q + |δ|², q = Σ r ½|x − m|² / N, as ⟨m, x − m⟩ = −½|x − m|² between unit vectors
            spread = 2 * stats.totals[1] / jnp.where(count > 0, count, 1)
            gap = spread - jnp.sum(jnp.square(mean), 1, keepdims=True)
            mean = self.pivot + mean
            length = _norm(mean, 1)
            gap = gap / (1 + length)
        return _direction(mean), length[:, 0], gap[:, 0], 8 * jnp.finfo(gap.dtype).eps * spread[:, 0]

    def estimate(
        self, bank: VonMisesFisherParams | None, stats: ColumnSums, active: Array | None = None
    ) -> VonMisesFisherParams:
        """μ the direction of Σrx, κ with I_{d/2}(κ) / I_{d/2−1}(κ) = (|Σrx| − floor) / N, not below 0.

        A component without any weight is uniform, about the direction of all rows.
        """
        direction, length, gap, lost = self._resultant(stats)
        d, dtype = direction.shape[1], direction.dtype
        present = stats.count > 0
        pull = jnp.asarray(self.floor, dtype) / jnp.where(present, stats.count, 1)
        # of a component at one point: a κ that is finite, and no density; about a direction that is not its own, one
        # that the sums resolve, so that the likelihood rises
        least = jnp.maximum(jnp.finfo(dtype).eps ** 2, lost)
        rest = gap + pull
        rest = jnp.where(rest < least, least, rest)  # NaN stays to be seen
        concentrated = ~(length - pull <= 0) & present
        share = jnp.where(concentrated, jnp.where(rest < 0.5, 1 - rest, length - pull), 0.5)
        rest = jnp.where(concentrated, rest, 0.5)
        kappa = inverse_bessel_ratio(d / 2 - 1, jnp.log(share) - jnp.log(rest))
        centre = jnp.zeros(d, dtype).at[0].set(1) if self.centre is None else self.centre
        return VonMisesFisherParams(
            jnp.where(present[:, None], direction, centre[None]), jnp.where(concentrated, kappa, 0)
        )

    def expected_log_prob(self, bank: VonMisesFisherParams, stats: ColumnSums) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        if not self._is_recentred:
            return super().expected_log_prob(bank, stats)
        total, half_square = stats.totals
        step = _direction(bank.mean_direction) - self.pivot
        # Σ r ½|x − μ|² of unit vectors, from the sums about m
        half_square = half_square[:, 0] - jnp.sum(step * total, 1) + 0.5 * stats.count * jnp.sum(jnp.square(step), 1)
        return jnp.sum(stats.count * self._log_normaliser(bank, scaled=True) - bank.concentration * half_square)

    def log_prior(self, bank: VonMisesFisherParams, active: Array | None = None) -> Array:
        """−floor · Σ κ over the active components: ()."""
        kappa = bank.concentration if active is None else jnp.where(active, bank.concentration, 0)
        return -jnp.asarray(self.floor, kappa.dtype) * jnp.sum(kappa)

    def sample(self, bank: VonMisesFisherParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        mean, kappa = bank.mean_direction[z], bank.concentration[z]
        key_angle, key_side = jax.random.split(key)
        gap = _one_minus_cosine(key_angle, kappa, mean.shape[1])[:, None]
        noise = jax.random.normal(key_side, mean.shape, mean.dtype)
        side = _direction(noise - jnp.sum(noise * mean, 1, keepdims=True) * mean)
        return _direction((1 - gap) * mean + jnp.sqrt(gap * (2 - gap)) * side)

    # --- bookkeeping

    def health(self, bank: VonMisesFisherParams, active: Array) -> Array:
        """DEGENERATE if an active component lies at one point, to rounding, else RUNNING."""
        point = bank.concentration > 0.5 / jnp.finfo(bank.concentration.dtype).eps
        return jnp.where(jnp.any(point & active), Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)

    def feasible(self, bank: VonMisesFisherParams) -> Array:
        """Whether directions have length one, to rounding, and concentrations are finite and not negative: ()."""
        slack = 8 * math.sqrt(bank.mean_direction.shape[1]) * jnp.finfo(bank.mean_direction.dtype).eps
        unit = jnp.all(jnp.abs(_norm(bank.mean_direction, 1) - 1) <= slack)
        return unit & jnp.all((bank.concentration >= 0) & jnp.isfinite(bank.concentration))

    def projected(self, bank: VonMisesFisherParams, near: VonMisesFisherParams) -> VonMisesFisherParams:
        """Directions from elsewhere made unit vectors; a concentration goes 99 parts of 100 of the way to 0 at most."""
        kappa = jnp.maximum(bank.concentration, 0.01 * near.concentration)
        return VonMisesFisherParams(_direction(bank.mean_direction), jnp.where(near.concentration > 0, kappa, 0))

    def sizes(self, bank: VonMisesFisherParams) -> VonMisesFisherParams:
        """Standard deviations of the estimates from one row: 1/√(κA) of a direction, 1/√A' of a concentration."""
        d = bank.mean_direction.shape[1]
        kappa = jnp.maximum(bank.concentration, 1e-2)
        ratio, slope = bessel_ratio(d / 2 - 1, kappa)[0], bessel_ratio_slope(d / 2 - 1, kappa)
        side = jnp.broadcast_to(1 / jnp.sqrt(kappa * ratio)[:, None], bank.mean_direction.shape)
        return VonMisesFisherParams(side, 1 / jnp.sqrt(slope))

    def unconstrain(self, bank: VonMisesFisherParams) -> VonMisesFisherParams:
        """κμ (k, d) in the place of the direction, and nothing, (k, 0), in that of the concentration."""
        kappa = bank.concentration[:, None]
        return VonMisesFisherParams(kappa * _direction(bank.mean_direction), kappa[:, :0])

    def constrain(self, free: VonMisesFisherParams) -> VonMisesFisherParams:
        """Inverse of `unconstrain`; of κ = 0 with a direction of its own."""
        return VonMisesFisherParams(_direction(free.mean_direction), _norm(free.mean_direction, 1)[:, 0])

    def _check_held(self, held: VonMisesFisherParams) -> None:
        whole = np.concatenate([held.mean_direction, held.concentration[:, None]], 1)
        if np.any(whole.any(1) & ~whole.all(1)):
            raise ValueError(
                "mask.components: VonMisesFisher can hold all of a component, its direction with its concentration, or "
                "nothing of it; got a part."
            )

    def frozen_coordinates(self, bank: VonMisesFisherParams, held: VonMisesFisherParams) -> VonMisesFisherParams:
        """Which free coordinates are held, shaped as `unconstrain(bank)`."""
        self._check_held(held)
        return held._replace(concentration=held.concentration[:, None][:, :0])

    def n_parameters(self, bank: VonMisesFisherParams, n_components: Any) -> Any:
        """Free parameters of so many components: d each."""
        return n_components * bank.mean_direction.shape[1]

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], ...]:
        return ((k, d), (k,))

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d) with d ≥ 2; returns d."""
        d = super().validate_data(x)
        if d < 2:
            raise ValueError(f"data: expected unit vectors with d ≥ 2 columns, got {d}; an angle is (cos, sin).")
        return d


def _norm(x: Array, axis: int) -> Array:
    """Euclidean length, kept as an axis; its derivative at 0 is 0."""
    square = jnp.sum(jnp.square(x), axis, keepdims=True)
    nil = square == 0
    return jnp.where(nil, 0, jnp.sqrt(jnp.where(nil, 1, square)))


def _direction(x: Array) -> Array:
    """x / |x| along the last axis; the first axis of the space where x is 0."""
    length = _norm(x, -1)
    first = jnp.zeros(x.shape[-1], x.dtype).at[0].set(1)
    return jnp.where(length == 0, jnp.broadcast_to(first, x.shape), x / jnp.where(length == 0, 1, length))


def _one_minus_cosine(key: Key, kappa: Array, d: int) -> Array:
    """Draws of 1 − ⟨x, μ⟩, (n,), by rejection (Wood 1994, algorithm VM*), in terms that keep digits for large κ."""
    b = (d - 1) / (2 * kappa + jnp.sqrt(4 * jnp.square(kappa) + (d - 1) ** 2))
    x0, gap0 = (1 - b) / (1 + b), 2 * b / (1 + b)

    def draw(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, gap, done = carry
        key, key_z, key_u = jax.random.split(key, 3)
        z = jax.random.beta(key_z, (d - 1) / 2, (d - 1) / 2, kappa.shape, kappa.dtype)
        log_u = jnp.log(jax.random.uniform(key_u, kappa.shape, kappa.dtype))
        new = 2 * b * z / (1 - (1 - b) * z)
        ratio = (gap0 + x0 * new) / (4 * b / jnp.square(1 + b))
        accepted = kappa * (gap0 - new) + (d - 1) * jnp.log(ratio) >= log_u
        return key, jnp.where(accepted & ~done, new, gap), done | accepted

    start = (key, jnp.zeros_like(kappa), jnp.isnan(kappa))
    return lax.while_loop(lambda carry: ~jnp.all(carry[2]), draw, start)[1]
