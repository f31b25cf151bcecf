"""Regressions whose M step is solved by Newton's method over all rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..._typing import Array, Data
from ...contracts.status import Status
from ...fold.chunks import Rows
from ...numerics.linalg import dot
from ...numerics.newton_bank import Surface, climb_bank, gram, solve
from .._of_rows import OfRows
from ._regression import Observed, Regression


class Slopes(NamedTuple):
    """A row's log density of (predictor, log shape), its first and second derivatives; the last three or None."""

    value: Array
    eta: Array
    eta_eta: Array
    shape: Array | None = None
    eta_shape: Array | None = None
    shape_shape: Array | None = None


@dataclass(frozen=True)
class GeneralizedRegression(OfRows, Regression):
    """A regression whose log density is of a linear predictor η = offset + xᵀβ and of at most one positive shape."""

    conditional: ClassVar[bool] = True

    _has_shape: ClassVar[bool] = False

    # what each family defines
    _log_density: ClassVar[Callable[..., Array]]  # `_link` (n, k), shape (k,) or None, response -> (n, k), to rounding
    _slopes: ClassVar[Callable[..., Slopes]]  # η, log shape, response; up to what the params do not change
    _start: ClassVar[Callable[..., Array]]  # the response, offset -> η to regress on at initialisation (n,)

    def _shape(self, bank: Any) -> Array | None:
        return None

    def _with(self, coefficients: Array, shape: Array | None) -> Any:
        return self._bank(coefficients)

    # --- densities

    def _predictor(self, coefficients: Array, rows: Observed) -> Array:
        """η (n, k), within what an exponential can take."""
        eta = rows.plus_offset(dot(rows.z, coefficients.T))
        most = 0.96 * math.log(float(jnp.finfo(eta.dtype).max))
        return jnp.clip(eta, -most, most)

    def _link(self, coefficients: Array, x: Data, rows: Observed) -> Array:
        """What the density is a function of, (n, k): η, or where that costs digits the mean."""
        return self._predictor(coefficients, rows)

    def log_prob(self, bank: Any, x: Data) -> Array:
        """log f(y_i | x_iᵀβ_j): (n, k); −inf outside of the support, NaN of a component without a mode (`estimate`)."""
        bank = jax.tree.map(jnp.asarray, bank)
        rows, coefficients = self._observed(x), self._inside(bank)
        inside = self._supported(rows.response)
        response = jnp.where(inside.reshape(-1, *[1] * (rows.response.ndim - 1)), rows.response, 0)
        log_prob = self._log_density(self._link(coefficients, x, rows), self._shape(bank), response)
        missing = jnp.any(jnp.isnan(rows.response.reshape(inside.shape[0], -1)), 1)  # to be seen
        broken = missing[:, None] | jnp.any(self._is_lost(coefficients), 1)[None]
        return jnp.where(broken, jnp.nan, jnp.where(inside[:, None], log_prob, -jnp.inf))

    def _supported(self, response: Array) -> Array:
        """Which rows have a response in the support: (n,)."""
        return jnp.all(self._in_support(response).reshape(response.shape[0], -1), 1)

    def supported(self, x: Data) -> tuple[Data, Array]:
        """The rows with a legal response in the place of others, and whether theirs is in the support: (n,)."""
        covariates, response, *offset = x
        inside = self._supported(response)
        legal = jnp.where(inside.reshape(-1, *[1] * (response.ndim - 1)), response, 0)
        seen = inside | jnp.any(jnp.isnan(response.reshape(response.shape[0], -1)), 1)  # NaN stays to be seen
        return (covariates, jnp.where(jnp.isnan(response), response, legal), *offset), seen

    def _is_lost(self, coefficients: Array) -> Array:
        return jnp.abs(coefficients) >= _lost(coefficients.dtype) / 2

    # --- the M step

    def estimate(self, bank: Any, stats: Rows, active: Array | None = None) -> Any:
        """The mode of Σ r log f + log prior, each component by itself.

        A component without a mode, as its coefficients go to infinity (a separated logistic regression, counts that are
        all zero) or are not determined by its rows, gets coefficients that are no params, where log_prob is NaN: the
        fit ends as DEGENERATE. At initialisation it keeps what was found so far.
        """
        p = stats.data[0].shape[1]
        start = self._started(stats) if bank is None else self._packed(bank)
        precision, mean, shared = self._prior_inside(p, start.dtype)
        count = jnp.sum(stats.responsibilities, 0)

        def evaluate(point: Array) -> Surface:
            value, gradient, information, size = stats.total(lambda x, r: self._sums(point, x, r))
            gap = point[:, :p] - mean[None]
            pull = dot(gap, precision)
            value = value - 0.5 * jnp.sum(gap * pull, 1)
            gradient = gradient.at[:, :p].add(-pull)
            information = information.at[:, :p, :p].add(precision[None])
            return Surface(value, *self._within_bounds(point, gradient, information), size + jnp.abs(value))

        found, surface = climb_bank(evaluate, self._clipped(start), self._uphill, self._clipped)
        found = jnp.where((count > 0)[:, None], found, start)
        if bank is not None:
            lost = (count > 0) & self._has_no_mode(surface, count, shared == p)
            found = found.at[:, :p].set(jnp.where(lost[:, None], _lost(found.dtype), found[:, :p]))
        shape = jnp.exp(found[:, p]) if found.shape[1] > p else None
        return self._with(self._outside(found[:, :p]), shape)

    def _has_no_mode(self, surface: Surface, count: Array, has_prior: Array) -> Array:
        """Whether a coefficient of the basis has a standard error beyond reason, 54 in float32 and 8192 in float64.

        At the end of a climb towards infinity the information is down to rounding. That of a component about to die is
        small because it has hardly any rows; it counts as if it had one. Where all coefficients have a prior, that says
        how large errors are within reason.
        """
        p = surface.gradient.shape[1] - self._has_shape
        information = surface.information[:, :p, :p]
        _, inverse, proper = solve(information, surface.gradient[:, :p])
        limit = jnp.where(has_prior, jnp.inf, 1 / math.sqrt(jnp.finfo(inverse.dtype).eps))
        vague = ~proper | (jnp.max(inverse, 1) * jnp.minimum(count, 1) > limit)
        # NaN must come through as it is
        return vague & jnp.all(jnp.isfinite(information), (1, 2))

    def _packed(self, bank: Any) -> Array:
        """Coefficients of the basis, and the log of the shape where there is one: (k, q)."""
        coefficients, shape = self._inside(bank), self._shape(bank)
        # from what is no params a climb begins anew
        coefficients = jnp.where(self._is_lost(coefficients), 0, coefficients)
        return coefficients if shape is None else jnp.concatenate([coefficients, jnp.log(shape)[:, None]], 1)

    def _started(self, stats: Rows) -> Array:
        """A ridge regression of the link of the response on the covariates."""

        def sums(x: Data, r: Array) -> tuple[Array, Array]:
            rows = self._observed(x)
            eta = self._start(rows.response)
            eta = eta if rows.offset is None else eta - rows.offset
            return gram(rows.z, r), dot((r * eta[:, None]).T, rows.z)

        matrix, right = stats.total(sums)
        size = 1e-2 * jnp.max(jnp.diagonal(matrix, axis1=-2, axis2=-1), -1)
        ridge = jnp.where(size > 0, size, 1)[:, None, None] * jnp.eye(right.shape[1], dtype=right.dtype)[None]
        return solve(matrix + ridge, right)[0]

    def _sums(self, point: Array, x: Data, r: Array) -> tuple[Array, Array, Array, Array]:
        """Σ r log f (k,), its gradient (k, q), its negative Hessian (k, q, q), the size of its terms (k,)."""
        rows, p = self._observed(x), x[0].shape[1]
        eta = self._predictor(point[:, :p], rows)
        s = self._slopes(eta, None if point.shape[1] == p else point[:, p], rows.response)
        times = lambda part: jnp.where(r > 0, r * part, 0)  # noqa: E731
        gradient = dot(times(s.eta).T, rows.z)
        information = gram(rows.z, times(-s.eta_eta))
        value = jnp.sum(times(s.value), 0)
        size = jnp.sum(times(jnp.abs(s.value) + jnp.abs(s.eta) + jnp.abs(s.eta_eta)), 0)
        if s.shape is None or s.eta_shape is None or s.shape_shape is None:
            return value, gradient, information, size
        cross = dot(times(-s.eta_shape).T, rows.z)[:, :, None]
        corner = jnp.sum(times(-s.shape_shape), 0)[:, None, None]
        top = jnp.concatenate([information, cross], 2)
        bottom = jnp.concatenate([jnp.swapaxes(cross, 1, 2), corner], 2)
        gradient = jnp.concatenate([gradient, jnp.sum(times(s.shape), 0)[:, None]], 1)
        return value, gradient, jnp.concatenate([top, bottom], 1), size

    def _clipped(self, point: Array) -> Array:
        return point

    def _within_bounds(self, point: Array, gradient: Array, information: Array) -> tuple[Array, Array]:
        return gradient, information

    def _uphill(self, surface: Surface) -> Array:
        """A step where the information is not positive definite: along the gradient, over bounds of its eigenvalues."""
        size = jnp.sum(jnp.abs(surface.information), 2)
        return surface.gradient / jnp.where(size > 0, size, 1)

    # --- bookkeeping

    def log_prior(self, bank: Any, active: Array | None = None) -> Array:
        """Log density of `prior` at the coefficients of the active components: ()."""
        square, log_constant, _ = self._log_prior_terms(bank)
        terms = log_constant - 0.5 * square
        return jnp.sum(terms if active is None else jnp.where(active, terms, 0))

    def health(self, bank: Any, active: Array) -> Array:
        """DEGENERATE if an active component has no mode, see `estimate`, or covariates have not full rank."""
        lost = jnp.any(self._is_lost(self._inside(bank)), 1)
        if self.basis is not None and self.prior is None:
            lost = lost | jnp.any(self.basis.dependent)
        return jnp.where(jnp.any(lost & active), Status.DEGENERATE, Status.RUNNING).astype(jnp.int32)

    def feasible(self, bank: Any) -> Array:
        """Whether all params are finite, and shapes positive: ()."""
        shape = self._shape(bank)
        return jnp.all(jnp.isfinite(bank.coefficients)) & (True if shape is None else jnp.all(shape > 0))

    def sizes(self, bank: Any) -> Any:
        """Standard deviations of the estimates from one row, about."""
        k = bank.coefficients.shape[0]
        coefficients = self._coefficient_sizes(bank, jnp.ones(k, bank.coefficients.dtype))
        return self._with(coefficients, self._shape(bank))

    def unconstrain(self, bank: Any) -> Any:
        """Coefficients as they are, logarithms of shapes."""
        shape = self._shape(bank)
        return self._with(bank.coefficients, None if shape is None else jnp.log(shape))

    def constrain(self, free: Any) -> Any:
        """Inverse of `unconstrain`."""
        shape = self._shape(free)
        return self._with(free.coefficients, None if shape is None else jnp.exp(shape))


def _lost(dtype: Any) -> float:
    """Coefficients that stand for infinity."""
    return float(jnp.finfo(dtype).max) ** 0.5
