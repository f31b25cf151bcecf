"""Derivatives of a fit, without its iterations.

θ* solves an equation R(θ*; a) = 0, a the data, weights and hyper-parameters (see `equations`). dθ* solves
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

from .._typing import Array, Params, PyTree
from ..contracts import capabilities as ask
from ..contracts.inside import with_slopes
from ..contracts.protocols import Algorithm
from ..contracts.result import FitResult
from ..fold.chunks import FoldPlan
from ..fold.folded import has_closed_m_step
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ..numerics.solvers import Solver
from .equation import Equation, em_map, equation_of, may_be_fast, newton, values

_ELSEWHERE = 30  # times the limit of the last correction


class Derivative(Protocol):
    """How the derivative of a fit is obtained.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxem
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class OfComponentsAlone:  # the weights are constants
        ...     def attach(self, params, arguments, plan):
        ...         return jaxem.OneStep().attach(params, arguments, plan)._replace(weights=params.weights)
        >>> x = jnp.array([[0.5], [1.5], [4.0]])
        >>> model = jaxem.Mixture(jaxem.Exponential(), n_components=1)
        >>> start = model.init(jax.random.key(0), x)
        >>> fitted = lambda x: jaxem.fit(model, start, x, derivative=OfComponentsAlone()).params
        >>> jax.grad(lambda x: fitted(x).components.rate.sum())(x).ravel().round(3)
        Array([-0.083, -0.083, -0.083], dtype=...)
    """

    def attach(self, params: Params, arguments: PyTree, plan: FoldPlan) -> Params:
        """The params, with a derivative with respect to `arguments`: the model, its data and their weights."""
        ...


@_tree.register
@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation of the equation that a fit solves (Krantz & Parks 2002).

    The derivative is taken after `polish` Newton corrections, because a loop stops a little before its fixed point; the
    params returned stay the loop's. Where the last correction, relative to the size of the params, exceeds
    `valid_below`, or all of them together 30 times that, the params are not at a fixed point, and the derivative is
    NaN. Without corrections, the one that would be made is what is looked at.

    Attributes:
        solver: `Dense()` or `GMRES()`; None chooses by the number of parameters.
        polish: number of corrections; static.
        valid_below: see above.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> from typing import NamedTuple
        >>> class Lifetimes(NamedTuple):  # exponential; one that was cut off, with 0, is expected to go on for 1 / rate
        ...     def e_step(self, rate, data, w):
        ...         time, ended = data
        ...         return (w.sum(), w @ (time + (1 - ended) / rate)), w @ (ended * jnp.log(rate) - rate * time)
        ...     def m_step(self, rate, stats):
        ...         return stats[0] / stats[1]
        >>> time, ended = jnp.array([1.0, 2.0, 3.0, 3.0]), jnp.array([1.0, 1.0, 0.0, 0.0])
        >>> fitted = lambda time: jaxem.fit(Lifetimes(), 1.0, (time, ended), derivative=jaxem.Implicit(polish=3))
        >>> jax.grad(lambda time: fitted(time).params)(time).round(4)  # of 2 ends in a time of 9: −2/81
        Array([-0.0247, -0.0247, -0.0247, -0.0247], dtype=...)
    """

    solver: Solver | None = None
    polish: int = field(metadata={"static": True}, default=3)
    valid_below: Any = 1e-2

    def attach(self, params: Params, arguments: PyTree, plan: FoldPlan) -> Params:
        """See `Derivative`."""
        as_count("polish", self.polish, 0)
        equation = equation_of(params, arguments, plan)
        return _attach(equation, self.polish, params, arguments, (self.solver, self.valid_below))


@_tree.register
@dataclass(frozen=True)
class OneStep:
    """The derivative of one EM step at the fit (Bolte, Pauwels & Vaiter 2023): cheap, and off by about the EM rate.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> from typing import NamedTuple
        >>> class Lifetimes(NamedTuple):  # exponential; one that was cut off, with 0, is expected to go on for 1 / rate
        ...     def e_step(self, rate, data, w):
        ...         time, ended = data
        ...         return (w.sum(), w @ (time + (1 - ended) / rate)), w @ (ended * jnp.log(rate) - rate * time)
        ...     def m_step(self, rate, stats):
        ...         return stats[0] / stats[1]
        >>> time, ended = jnp.array([1.0, 2.0, 3.0, 3.0]), jnp.array([1.0, 1.0, 0.0, 0.0])
        >>> fitted = lambda time: jaxem.fit(Lifetimes(), 1.0, (time, ended), derivative=jaxem.OneStep())
        >>> jax.grad(lambda time: fitted(time).params)(time).round(4)  # half of −2/81, as the EM rate is ½
        Array([-0.0123, -0.0123, -0.0123, -0.0123], dtype=...)
    """

    def attach(self, params: Params, arguments: PyTree, plan: FoldPlan) -> Params:
        """See `Derivative`."""
        return Unrolled(1).attach(params, arguments, plan)


@_tree.register
@dataclass(frozen=True)
class Unrolled:
    """The derivative of `n_iter` more EM steps from the fit; off by about the EM rate to the power of n_iter.

    Reverse mode stores the steps: memory grows with n_iter.

    Attributes:
        n_iter: static.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> from typing import NamedTuple
        >>> class Lifetimes(NamedTuple):  # exponential; one that was cut off, with 0, is expected to go on for 1 / rate
        ...     def e_step(self, rate, data, w):
        ...         time, ended = data
        ...         return (w.sum(), w @ (time + (1 - ended) / rate)), w @ (ended * jnp.log(rate) - rate * time)
        ...     def m_step(self, rate, stats):
        ...         return stats[0] / stats[1]
        >>> time, ended = jnp.array([1.0, 2.0, 3.0, 3.0]), jnp.array([1.0, 1.0, 0.0, 0.0])
        >>> fitted = lambda time: jaxem.fit(Lifetimes(), 1.0, (time, ended), derivative=jaxem.Unrolled(3))
        >>> jax.grad(lambda time: fitted(time).params)(time).round(4)  # ⅞ of −2/81, as the EM rate is ½
        Array([-0.0216, -0.0216, -0.0216, -0.0216], dtype=...)
    """

    n_iter: int = field(metadata={"static": True})

    def attach(self, params: Params, arguments: PyTree, plan: FoldPlan) -> Params:
        """See `Derivative`.

        Raises:
            ValueError: if n_iter is not a positive int, or the M step of the model climbs and has no derivative.
        """
        as_count("n_iter", self.n_iter)
        if not has_closed_m_step(arguments[0], params, arguments[1]):
            raise ValueError(
                f"derivative: {type(arguments[0]).__name__} has no M step in closed form, so its EM steps have no "
                "derivative to unroll; pass derivative=Implicit(), which solves the score equation."
            )
        return _attach_unrolled(plan, self.n_iter, params, arguments)


@_tree.register
@dataclass(frozen=True)
class Stop:
    """No derivative: the params are constants.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.5], [1.5], [4.0]])
        >>> model = jaxem.Mixture(jaxem.Exponential(), n_components=1)
        >>> start = model.init(jax.random.key(0), x)
        >>> fitted = lambda x: jaxem.fit(model, start, x, derivative=jaxem.Stop()).params.components
        >>> jax.grad(lambda x: jnp.sum(x * fitted(x).rate))(x).ravel()  # the rate, as if it were given
        Array([0.5, 0.5, 0.5], dtype=...)
    """

    def attach(self, params: Params, arguments: PyTree, plan: FoldPlan) -> Params:
        """See `Derivative`."""
        return params


# --- implicit


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attach(equation: Equation, polish: int, params: Params, arguments: PyTree, options: PyTree) -> Params:
    return params


@_attach.defjvp
def _attach_jvp(equation: Equation, polish: int, primals: tuple, tangents: tuple) -> tuple[Params, Params]:
    params, arguments, (solver, valid_below) = primals
    _, arguments_dot, _ = tangents  # the derivative with respect to the start is zero
    solution = _attach(equation, polish, params, arguments, (solver, valid_below))
    fixed = equation.bound(lax.stop_gradient(arguments))
    flat, to_params = equation.coordinates(solution, fixed)

    def correct(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        inverse, residual = newton(equation, solver, carry[0], to_params, fixed)
        step = inverse(residual)
        return carry[0] + step, step

    start = lax.stop_gradient(flat)
    point, last = lax.fori_loop(0, polish, correct, (start, jnp.zeros_like(start)))
    point = flat + lax.stop_gradient(point - flat)
    fast = may_be_fast(solution, fixed, equation.plan)
    inverse, residual = newton(equation, solver, point, to_params, equation.bound(arguments), fast)
    if polish == 0:
        last = lax.stop_gradient(inverse(lax.stop_gradient(residual)))
    size = jnp.linalg.norm(lax.stop_gradient(point))
    limit = valid_below * jnp.where(size > 0, size, 1)
    # corrections that have settled, but elsewhere, are of another fixed point
    valid = (jnp.linalg.norm(last) <= limit) & (jnp.linalg.norm(lax.stop_gradient(point) - start) <= _ELSEWHERE * limit)
    right = tangent_if(valid, lambda a: equation.residual_on(fast, point, to_params, a), arguments, arguments_dot)
    # zeros go in and come out of a system that is not valid, so that 0·NaN reaches nobody, backwards too
    answer = jnp.where(valid, inverse(jnp.where(valid, right, 0)), 0)
    answer = answer + nan_unless(valid, arguments_dot, flat)
    return solution, jax.jvp(to_params, (point,), (answer,))[1]


# --- unrolled


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attach_unrolled(plan: FoldPlan, n_iter: int, params: Params, arguments: PyTree) -> Params:
    return params


@_attach_unrolled.defjvp
def _attach_unrolled_jvp(plan: FoldPlan, n_iter: int, primals: tuple, tangents: tuple) -> tuple[Params, Params]:
    params, arguments = primals
    _, arguments_dot = tangents
    solution = _attach_unrolled(plan, n_iter, params, arguments)
    start = lax.stop_gradient(solution)
    valid = _tree.is_finite(em_map(start, lax.stop_gradient(arguments), plan))

    def more(arguments: PyTree) -> Params:
        step = lambda params, _: (em_map(params, arguments, plan), None)  # noqa: E731
        return lax.scan(step, start, None, length=n_iter)[0]

    change = tangent_if(valid, more, arguments, arguments_dot)
    return solution, jax.tree.map(lambda dot: dot + nan_unless(valid, arguments_dot, dot), change)


# --- what is not valid reaches only those who ask for it


def tangent_if(valid: Array, fn: Callable, arguments: PyTree, tangents: PyTree) -> PyTree:
    """The tangent of fn where valid, else 0, in both directions: 0·NaN of an invalid lane reaches nobody."""
    keep = lambda dot: dot if _is_float0(dot) else jnp.where(valid, dot, 0)  # noqa: E731
    out = jax.jvp(fn, (arguments,), (jax.tree.map(keep, tangents),))[1]
    return jax.tree.map(lambda dot: jnp.where(valid, dot, 0), out)


def nan_unless(valid: Array, tangents: PyTree, like: Array) -> Array:
    """Zeros where valid; else NaN for a tangent or cotangent that is not zero: for those who ask, both ways."""
    total = jnp.zeros((), like.dtype)
    for dot in jax.tree.leaves(tangents):
        if not _is_float0(dot):
            # weights of no pattern: tangents that are not zero must not cancel
            pattern = jnp.cos(jnp.arange(1, dot.size + 1, dtype=dot.dtype)).reshape(dot.shape)
            total = total + jnp.sum(dot * pattern).astype(like.dtype)

    def poison(_: Callable, b: Array) -> Array:
        return jnp.where(valid | jnp.all(b == 0), jnp.zeros_like(b), jnp.full_like(b, jnp.nan))

    return lax.custom_linear_solve(lambda x: x, jnp.full(like.shape, total), poison, poison)


def _is_float0(tangent: Any) -> bool:
    return getattr(tangent, "dtype", None) == jax.dtypes.float0


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_tangent(plan: FoldPlan, value: tuple[Array, Array], arguments: PyTree) -> tuple[Array, Array]:
    return value


@_with_tangent.defjvp
def _with_tangent_jvp(plan: FoldPlan, primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    value, arguments = primals
    _, arguments_dot = tangents
    valid = _tree.is_finite(value)
    fast = may_be_fast(arguments[0], arguments[1], plan)
    dots = tangent_if(valid, partial(_values_at, plan, fast), arguments, arguments_dot)
    dots = jax.tree.map(lambda dot: dot + nan_unless(valid, arguments_dot, dot), dots)
    return _with_tangent(plan, value, arguments), dots


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _refuse(name: str, value: PyTree) -> PyTree:
    return value


@_refuse.defjvp
def _refuse_jvp(name: str, primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    raise ValueError(
        f"derivative: {name} does not end at a fixed point of the EM map, so its fit has no implicit derivative; pass "
        "derivative=Stop() to treat the fit as a constant, or fit with EM()."
    )


def differentiable(
    result: FitResult,
    model: Any,
    data: PyTree,
    sample_weight: Array | None,
    *,
    derivative: Derivative,
    algorithm: Algorithm,
    plan: FoldPlan,
) -> FitResult:
    """The same values; params, log_lik and objective with derivatives in the model's leaves, data and weights.

    Raises:
        ValueError: when somebody differentiates the fit of an algorithm that does not end at a fixed point.
    """
    if isinstance(derivative, Stop):
        return result
    if sample_weight is not None:  # a row of weight zero does not exist, nor does the derivative in its weight
        sample_weight = jnp.where(sample_weight > 0, sample_weight, 0)
    arguments = (model, data, sample_weight)
    if not algorithm.ends_at_em_fixed_point:
        values, _ = _refuse(type(algorithm).__name__, ((result.params, result.log_lik, result.objective), arguments))
        return replace(result, params=values[0], log_lik=values[1], objective=values[2])
    params = ask.imposed(model, derivative.attach(result.params, arguments, plan))
    log_lik, objective = _with_tangent(plan, (result.log_lik, result.objective), (params, arguments))
    return replace(result, params=params, log_lik=log_lik, objective=objective)


def _values_at(plan: FoldPlan, fast: Any, both: tuple[Params, PyTree]) -> tuple[Array, Array]:
    params, arguments = both
    return values(with_slopes(arguments[0], params), arguments, plan, fast)
