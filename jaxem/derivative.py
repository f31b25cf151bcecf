"""Derivatives of a fit, without its iterations.

At θ* = M(θ*; a), a the data, weights and hyper-parameters, dθ* solves (I − ∂M/∂θ) dθ* = ∂M/∂a · da. The loop is never
differentiated: `attach` returns θ* as it is and carries this rule. It is a `custom_jvp`, so nothing of it is traced
unless somebody differentiates; forward, reverse and second derivatives follow from the one rule.
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
from .fold import Folded, FoldPlan
from .protocols import bind, log_prior
from .result import FitResult

_MOST_PARAMETERS = 4096
_BASIS_AT_ONCE = 32


class Derivative(Protocol):
    """How the derivative of a fit is obtained."""

    def attach(self, em_map: Callable, params: Params, arguments: PyTree) -> Params:
        """The params, with a derivative with respect to `arguments`."""
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

    def attach(self, em_map: Callable, params: Params, arguments: PyTree) -> Params:
        """See `Derivative`."""
        return _attach(em_map, self.polish, params, arguments, self.valid_below)


@_tree.register
@dataclass(frozen=True)
class Stop:
    """No derivative: the params are constants."""

    def attach(self, em_map: Callable, params: Params, arguments: PyTree) -> Params:
        """See `Derivative`."""
        return params


def _jacobian(fn: Callable[[Array], Array], flat: Array) -> Array:
    """∂fn/∂flat, (p, p), a few columns at a time."""
    push = lambda direction: jax.jvp(fn, (flat,), (direction,))[1]  # noqa: E731
    columns = lax.map(push, jnp.eye(flat.shape[0], dtype=flat.dtype), batch_size=_BASIS_AT_ONCE)
    return columns.T


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attach(em_map: Callable, polish: int, params: Params, arguments: PyTree, valid_below: Array) -> Params:
    return params


@_attach.defjvp
def _attach_jvp(em_map: Callable, polish: int, primals: tuple, tangents: tuple) -> tuple[Params, Params]:
    params, arguments, valid_below = primals
    _, arguments_dot, _ = tangents  # the derivative with respect to the start is zero
    solution = _attach(em_map, polish, params, arguments, valid_below)
    flat, unravel = ravel_pytree(solution)
    p = flat.shape[0]
    if p > _MOST_PARAMETERS:
        raise ValueError(
            f"derivative: Implicit() solves a dense system and takes at most {_MOST_PARAMETERS} parameters, got {p}; "
            "pass derivative=Stop() to treat the fit as a constant."
        )

    def flat_map(flat: Array, arguments: PyTree) -> Array:
        return ravel_pytree(em_map(unravel(flat), arguments))[0]

    fixed = lax.stop_gradient(arguments)

    def correction(point: Array) -> Array:
        system = jnp.eye(p, dtype=flat.dtype) - _jacobian(lambda f: flat_map(f, fixed), point)
        return jnp.linalg.solve(system, flat_map(point, fixed) - point)

    point = lax.stop_gradient(flat)
    step = jnp.zeros_like(point)
    for _ in range(polish):
        step = correction(point)
        point = point + step
    size = jnp.sqrt(jnp.sum(jnp.square(point)))
    last = jnp.sqrt(jnp.sum(jnp.square(step))) / jnp.where(size > 0, size, 1)
    valid = (last <= valid_below) & jnp.all(jnp.isfinite(point))
    point = flat + lax.stop_gradient(point - flat)
    identity = jnp.eye(p, dtype=flat.dtype)
    system = jnp.where(valid, identity - _jacobian(lambda f: flat_map(f, arguments), point), identity)
    right = _tangent_if(valid, lambda a: flat_map(point, a), arguments, arguments_dot)
    answer = jnp.linalg.solve(system, right) + _nan_unless(valid, arguments_dot, flat)
    return solution, unravel(answer)


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
    params = derivative.attach(partial(em_map, plan=plan), result.params, arguments)
    value = lambda fn, x: _with_tangent_of(partial(fn, plan=plan), x, (params, arguments))  # noqa: E731
    return replace(
        result,
        params=params,
        log_lik=value(_log_lik, result.log_lik),
        objective=value(_objective, result.objective),
    )
