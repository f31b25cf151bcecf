"""Derivatives of a fit, without its iterations.

θ* solves an equation R(θ*; a) = 0, a the data, weights and hyper-parameters: M(θ) − θ = 0 where the M step is closed
form; where it climbs, so that its own derivative is none, score = 0 in free coordinates (Fisher's identity). dθ* solves
−∂R/∂θ dθ* = ∂R/∂a · da. The loop is never differentiated: `attach` returns θ* as it is and carries this rule. It is a
`custom_jvp`, so nothing is traced unless somebody differentiates; forward, reverse and second derivatives follow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from . import _tree
from ._typing import Array, Params, PyTree
from .ascent import FORWARD_PARAMETERS
from .chunks import FoldPlan
from .fold import Folded, has_closed_m_step
from .protocols import bind, log_prior
from .result import FitResult

_MOST_PARAMETERS = 4096
_BASIS_AT_ONCE = 32


class Derivative(Protocol):
    """How the derivative of a fit is obtained."""

    def attach(self, equation: "Equation", params: Params, arguments: PyTree) -> Params:
        """The params, with a derivative with respect to `arguments`: the model, its data and their weights."""
        ...


@_tree.register
@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation of the fixed point (Krantz & Parks 2002), by a dense solve.

    The derivative is taken after `polish` Newton corrections, because a loop stops a little before its fixed point; the
    params returned stay the loop's. Where the last correction, relative to the size of the params, exceeds
    `valid_below`, the params are not at a fixed point, and the derivative is NaN.

    Attributes:
        valid_below: see above.
        polish: number of corrections; static.
    """

    valid_below: Any = 1e-2
    polish: int = field(metadata={"static": True}, default=2)

    def attach(self, equation: "Equation", params: Params, arguments: PyTree) -> Params:
        """See `Derivative`."""
        return _attach(equation, self.polish, params, arguments, self.valid_below)


@_tree.register
@dataclass(frozen=True)
class Stop:
    """No derivative: the params are constants."""

    def attach(self, equation: "Equation", params: Params, arguments: PyTree) -> Params:
        """See `Derivative`."""
        return params


class Equation(Protocol):
    """R(θ; arguments) = 0 at a fit, in flat coordinates. Hashable."""

    def coordinates(self, params: Params, arguments: PyTree) -> tuple[Array, Callable[[Array], Params]]:
        """The params as a vector (p,), and the way back."""
        ...

    def residual(self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """R, (p,); −(∂R/∂θ)⁻¹R is a Newton correction."""
        ...


@dataclass(frozen=True)
class FixedPoint:
    """M(θ) − θ = 0, for an M step in closed form."""

    plan: FoldPlan

    def coordinates(self, params: Params, arguments: PyTree) -> tuple[Array, Callable[[Array], Params]]:
        """See `Equation`."""
        return ravel_pytree(params)

    def residual(self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """See `Equation`."""
        return ravel_pytree(em_map(to_params(flat), arguments, self.plan))[0] - flat


@dataclass(frozen=True)
class Score:
    """The gradient of log-likelihood + log prior is zero, in free coordinates."""

    plan: FoldPlan

    def coordinates(self, params: Params, arguments: PyTree) -> tuple[Array, Callable[[Array], Params]]:
        """See `Equation`."""
        model = arguments[0]
        if not hasattr(model, "unconstrain"):
            return ravel_pytree(params)
        flat, unravel = ravel_pytree(model.unconstrain(params))
        return flat, lambda flat: model.constrain(unravel(flat))

    def residual(self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """See `Equation`."""
        return gradient(lambda flat: _objective((to_params(flat), arguments), self.plan), flat)


def gradient(fn: Callable[[Array], Array], flat: Array) -> Array:
    """∂fn/∂flat, (p,); forwards where that is affordable: states of probability zero then leave no 0·inf."""
    forwards = flat.shape[0] <= FORWARD_PARAMETERS
    return (jax.jacfwd if forwards else jax.grad)(fn)(flat)


def equation_of(model: Any, plan: FoldPlan) -> Equation:
    """The equation that a fit of this model solves."""
    return FixedPoint(plan) if has_closed_m_step(model) else Score(plan)


def _jacobian(fn: Callable[[Array], Array], flat: Array) -> Array:
    """∂fn/∂flat, (p, p), a few columns at a time."""
    push = lambda direction: jax.jvp(fn, (flat,), (direction,))[1]  # noqa: E731
    columns = lax.map(push, jnp.eye(flat.shape[0], dtype=flat.dtype), batch_size=_BASIS_AT_ONCE)
    return columns.T


def minus_jacobian(equation: Equation, point: Array, to_params: Callable, arguments: PyTree) -> Array:
    """−∂R/∂θ, (p, p)."""
    return -_jacobian(lambda flat: equation.residual(flat, to_params, arguments), point)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attach(equation: Equation, polish: int, params: Params, arguments: PyTree, valid_below: Array) -> Params:
    return params


@_attach.defjvp
def _attach_jvp(equation: Equation, polish: int, primals: tuple, tangents: tuple) -> tuple[Params, Params]:
    params, arguments, valid_below = primals
    _, arguments_dot, _ = tangents  # the derivative with respect to the start is zero
    solution = _attach(equation, polish, params, arguments, valid_below)
    fixed = lax.stop_gradient(arguments)
    flat, to_params = equation.coordinates(solution, fixed)
    p = flat.shape[0]
    if p > _MOST_PARAMETERS:
        raise ValueError(
            f"derivative: Implicit() solves a dense system and takes at most {_MOST_PARAMETERS} parameters, got {p}; "
            "pass derivative=Stop() to treat the fit as a constant."
        )

    def correct(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        point, _ = carry
        step = newton_step(equation, point, to_params, fixed)
        return point + step, step

    start = lax.stop_gradient(flat)
    point, step = lax.fori_loop(0, polish, correct, (start, jnp.zeros_like(start)))
    size = jnp.sqrt(jnp.sum(jnp.square(point)))
    last = jnp.sqrt(jnp.sum(jnp.square(step))) / jnp.where(size > 0, size, 1)
    valid = (last <= valid_below) & jnp.all(jnp.isfinite(point))
    point = flat + lax.stop_gradient(point - flat)
    identity = jnp.eye(p, dtype=flat.dtype)
    system = jnp.where(valid, minus_jacobian(equation, point, to_params, arguments), identity)
    right = _tangent_if(valid, lambda a: equation.residual(point, to_params, a), arguments, arguments_dot)
    answer = jnp.linalg.solve(system, right) + _nan_unless(valid, arguments_dot, flat)
    return solution, jax.jvp(to_params, (point,), (answer,))[1]


def newton_step(equation: Equation, point: Array, to_params: Callable, arguments: PyTree) -> Array:
    """−(∂R/∂θ)⁻¹R, (p,): from a point near the solution to it, to second order."""
    system = minus_jacobian(equation, point, to_params, arguments)
    return jnp.linalg.solve(system, equation.residual(point, to_params, arguments))


def _tangent_if(valid: Array, fn: Callable, arguments: PyTree, tangents: PyTree) -> Array:
    """The tangent of fn where valid, else 0, in both directions: 0·NaN of an invalid lane reaches nobody."""
    keep = lambda dot: dot if _is_float0(dot) else jnp.where(valid, dot, 0)  # noqa: E731
    out = jax.jvp(fn, (arguments,), (jax.tree.map(keep, tangents),))[1]
    return jnp.where(valid, out, 0)


def _nan_unless(valid: Array, tangents: PyTree, like: Array) -> Array:
    """Zeros where valid; else NaN for a tangent or cotangent that is not zero: for those who ask, both ways."""
    total = jnp.zeros((), like.dtype)
    for dot in jax.tree.leaves(tangents):
        if not _is_float0(dot):
            total = total + jnp.sum(dot).astype(like.dtype)

    def poison(_: Callable, b: Array) -> Array:
        return jnp.where(valid | jnp.all(b == 0), jnp.zeros_like(b), jnp.full_like(b, jnp.nan))

    return lax.custom_linear_solve(lambda x: x, jnp.full(like.shape, total), poison, poison)


def _is_float0(tangent: Any) -> bool:
    return getattr(tangent, "dtype", None) == jax.dtypes.float0


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_tangent_of(fn: Callable, value: Array, arguments: PyTree) -> Array:
    return value


@_with_tangent_of.defjvp
def _with_tangent_of_jvp(fn: Callable, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    value, arguments = primals
    _, arguments_dot = tangents
    valid = jnp.isfinite(value)
    dot = _tangent_if(valid, fn, arguments, arguments_dot) + _nan_unless(valid, arguments_dot, value)
    return _with_tangent_of(fn, value, arguments), dot


def em_map(params: Params, arguments: PyTree, plan: FoldPlan) -> Params:
    """M(θ; model, data, weights): one E step and one M step of the model bound to these data."""
    model, data, sample_weight = arguments
    folded = _on_stable_path(bind(model, data, sample_weight), params, plan)
    stats, _ = folded.e_step(params, data, sample_weight)
    return folded.m_step(params, stats)


def _on_stable_path(model: Any, params: Params, plan: FoldPlan) -> Folded:
    recentred = model.recentred(params) if hasattr(model, "recentred") else model
    return Folded(recentred, plan, fast=False)


def _log_lik(arguments: PyTree, plan: FoldPlan) -> Array:
    params, (model, data, sample_weight) = arguments
    return _on_stable_path(bind(model, data, sample_weight), params, plan).e_step(params, data, sample_weight)[1]


def _objective(arguments: PyTree, plan: FoldPlan) -> Array:
    params, (model, data, sample_weight) = arguments
    return _log_lik(arguments, plan) + log_prior(bind(model, data, sample_weight), params)


def differentiable(
    result: FitResult, derivative: Derivative, model: Any, data: PyTree, sample_weight: Array | None, plan: FoldPlan
) -> FitResult:
    """The same values; params, log_lik and objective with derivatives in the model's leaves, data and weights."""
    if isinstance(derivative, Stop):
        return result
    if sample_weight is not None:  # a row of weight zero does not exist, nor does the derivative in its weight
        sample_weight = jnp.where(sample_weight > 0, sample_weight, 0)
    arguments = (model, data, sample_weight)
    params = derivative.attach(equation_of(model, plan), result.params, arguments)
    value = lambda fn, x: _with_tangent_of(partial(fn, plan=plan), x, (params, arguments))  # noqa: E731
    return replace(
        result,
        params=params,
        log_lik=value(_log_lik, result.log_lik),
        objective=value(_objective, result.objective),
    )
