"""Maximisation of smooth functions inside an M step: `ascend` by an optax optimiser, `newton` in few dimensions.

Neither ends lower than it started, so a generalised EM built on them never falls (Dempster, Laird & Rubin 1977,
section 3). Both are fit for vmap. Call them inside a jitted function: eagerly, every call compiles.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from .._typing import Array, Params
from . import tree as _tree
from .linalg import dot, whitening

_MOST_HALVINGS = 40


class Maximum(NamedTuple):
    """Where a maximisation ended.

    Attributes:
        params: the best point seen; the start, if the objective or its gradient is not finite there.
        objective: at `params`.
        n_steps: steps taken, int32.
        gradient_norm: the largest |∂objective| of any coordinate, at `params`.
        improved: whether `objective` is above that of the start.
    """

    params: Params
    objective: Array
    n_steps: Array
    gradient_norm: Array
    improved: Array


class _Point(NamedTuple):
    params: Params
    value: Array
    gradient: Params

    @property
    def steepness(self) -> Array:
        return jnp.max(jnp.abs(ravel_pytree(self.gradient)[0]), initial=0)

    @property
    def is_finite(self) -> Array:
        return jnp.isfinite(self.value) & jnp.isfinite(self.steepness)

    def is_flat(self, tol: Any) -> Array:
        tol = jnp.maximum(jnp.asarray(tol, self.value.dtype), 4 * jnp.finfo(self.value.dtype).eps)
        return self.steepness <= tol * jnp.maximum(1, jnp.abs(self.value))


def ascend(
    objective: Callable[[Params], Array],
    start: Params,
    *,
    n_steps: Any = 100,
    tol: Any = 0.0,
    enough: Any = 0.0,
    optimizer: Callable[[], Any] | None = None,
) -> Maximum:
    """Maximises a function of free coordinates by an optax optimiser.

    The default is L-BFGS with a line search for the strong Wolfe conditions (Nocedal & Wright 2006, algorithms 7.5, 3.5
    and 3.6). An optimiser with a line search ends where that finds nothing better. Of any other, a step to where the
    objective is not finite is refused: it starts afresh from the best point, its steps quartered. No derivative passes.

    Args:
        objective: params → (), smooth where finite; NaN or −inf where not allowed.
        start: pytree of floating arrays of one dtype.
        n_steps: the most steps, an int or an array ().
        tol: ends where the largest |∂objective| ≤ tol · max(1, |objective|); never below 4·eps of that.
        enough: ends where ½|∂objective|², what is left to gain where the curvature is one, is at most this part of the
            gain so far.
        optimizer: called in the trace without arguments, returns an optax optimiser (which minimises, as ever).

    Returns:
        A `Maximum`, never lower than the start.

    Raises:
        TypeError: if a leaf of `start` is not floating.
        ValueError: if the objective is not a floating scalar, or the result is differentiated.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxem.numerics.maximize import ascend
        >>> jax.jit(lambda c: ascend(lambda x: -jnp.sum((x - c) ** 2), jnp.zeros(2)).params.round(3))(jnp.ones(2))
        Array([1., 1.], dtype=...)
    """
    import optax

    objective, start, constants = _converted(objective, start)
    constants = _without_derivative(constants)
    # optax's line search evaluates float32 params in float64 where x64 is on
    same = lambda x: jax.tree.map(lambda x, like: x.astype(like.dtype), x, start)  # noqa: E731
    loss = lambda x: -objective(same(x), *constants)  # noqa: E731
    optimiser = optax.with_extra_args_support((optimizer or optax.lbfgs)())

    def step(carry: tuple) -> tuple:
        here, best, state, scale, i, _ = carry
        value, gradient = here.value, here.gradient
        updates, state = optimiser.update(gradient, state, here.params, value=value, grad=gradient, value_fn=loss)
        params = optax.apply_updates(here.params, jax.tree.map(lambda u: scale * u, updates))
        seen = _seen(state)
        there = _Point(params, *(seen if searched else jax.value_and_grad(loss)(params)))
        finite = there.is_finite & jnp.all(jnp.isfinite(ravel_pytree(params)[0]))
        flatter = (there.value == best.value) & (there.steepness < best.steepness)
        better = finite & ((there.value < best.value) | flatter)
        here = _tree.tree_where(finite, there, best)
        state = _tree.tree_where(finite, state, optimiser.init(best.params))
        best = _tree.tree_where(better, there, best)
        scale = jnp.where(finite, scale, scale / 4)
        left = 0.5 * sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(best.gradient))
        done = best.is_flat(tol) | (searched & ~better) | (left < enough * (first.value - best.value))
        new = (here, best, state, scale, i + 1, done)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), new, carry)

    first = _Point(start, *jax.value_and_grad(loss)(start))
    zero, done = jnp.zeros((), jnp.int32), ~first.is_finite | first.is_flat(tol)
    state = jax.tree.map(jnp.asarray, optimiser.init(start))
    searched = None not in _seen(state)
    carry = (first, first, state, jnp.ones((), first.value.dtype), zero, done)
    _, best, _, _, steps, _ = lax.while_loop(lambda c: ~c[-1] & (c[-2] < n_steps), step, carry)
    if searched and best.value.dtype != jax.dtypes.canonicalize_dtype(float):
        # the line search saw these params before they were rounded
        best = best._replace(value=loss(best.params))
        best = _tree.tree_where(best.value <= first.value, best, first)
    return Maximum(best.params, -best.value, steps, best.steepness, best.value < first.value)


def _seen(optimizer_state: Any) -> tuple[Any, Any]:
    """Value and gradient at the new params, where a line search has left them in the optimiser's state."""
    import optax

    value, gradient = (optax.tree_utils.tree_get(optimizer_state, name) for name in ("value", "grad"))
    return (value, gradient) if value is not None else (None, None)


def newton(objective: Callable[[Params], Array], start: Params, *, n_steps: Any = 50, tol: Any = 0.0) -> Maximum:
    """Maximises a function of few free coordinates by damped Newton steps with a dense Hessian.

    The step −H⁻¹g, along g where H is not negative definite, is halved until the objective does not fall (Nocedal &
    Wright 2006, algorithm 3.2). A step that the objective does not resolve passes if it lowers |g|, so the params end
    as exact as g allows. They have the derivative of the stationary point, −H⁻¹∂g, in all that `objective` closes over.

    Args:
        objective: params → (), twice differentiable where finite; NaN or −inf where not allowed.
        start: pytree of floating arrays of one dtype.
        n_steps: as in `ascend`.
        tol: as in `ascend`.

    Returns:
        A `Maximum`, lower than the start by rounding at most, 8·eps·|objective|.

    Raises:
        TypeError: if a leaf of `start` is not floating.
        ValueError: if the objective is not a floating scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxem.numerics.maximize import newton
        >>> log_rate = lambda mean: newton(lambda u: mean * u - jnp.exp(u), jnp.zeros(())).params
        >>> jax.jit(jax.value_and_grad(log_rate))(4.0)
        (Array(1.386, dtype=...), Array(0.25, dtype=...))
    """
    flat, unravel = ravel_pytree(_floating(start))
    pure, flat, constants = _converted(lambda x: objective(unravel(x)), flat)
    frozen = lax.stop_gradient(constants)
    fn = lambda x: pure(x, *frozen)  # noqa: E731
    evaluate = lambda x: _Point(x, *jax.value_and_grad(fn)(x))  # noqa: E731
    first = evaluate(flat)

    def step(carry: tuple) -> tuple:
        here, i, _ = carry
        direction = _uphill(jax.hessian(fn)(here.params), here.gradient)
        slack = 8 * jnp.finfo(flat.dtype).eps * jnp.abs(here.value)

        def passes(new: _Point) -> Array:
            unresolved = new.value >= jnp.maximum(here.value, first.value) - slack
            better = (new.value > here.value) | (unresolved & (new.steepness < here.steepness))
            return new.is_finite & better

        halve = lambda c: (c[0] / 2, evaluate(here.params + direction * c[0] / 2))  # noqa: E731
        too_far = lambda c: (c[0] > 0.5**_MOST_HALVINGS) & ~passes(c[1])  # noqa: E731
        _, there = lax.while_loop(too_far, halve, (jnp.ones((), flat.dtype), evaluate(here.params + direction)))
        moved = passes(there)
        there = _tree.tree_where(moved, there, here)
        return there, i + 1, ~moved | there.is_flat(tol)

    carry = (first, jnp.zeros((), jnp.int32), ~first.is_finite | first.is_flat(tol))
    best, steps, _ = lax.while_loop(lambda c: ~c[-1] & (c[1] < n_steps), step, carry)
    x = _stationary(pure, best.params, constants)
    return Maximum(unravel(x), pure(x, *constants), steps, best.steepness, best.value > first.value)


def _uphill(hessian: Array, gradient: Array) -> Array:
    """The Newton step where it leads uphill, else the gradient over the size of the Hessian."""
    inverse_factor, _ = whitening(-hessian)
    concave = jnp.all(jnp.isfinite(inverse_factor))
    inverse_factor = jnp.where(concave, inverse_factor, 0)
    step = dot(inverse_factor.T, dot(inverse_factor, gradient))
    size = jnp.max(jnp.sum(jnp.abs(hessian), 1), initial=0)
    size = jnp.where(jnp.isfinite(size) & (size > 0), size, jnp.max(jnp.abs(gradient), initial=1))
    return jnp.where(concave & jnp.all(jnp.isfinite(step)), step, gradient / size)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _stationary(fn: Callable, x: Array, constants: list) -> Array:
    return x


@_stationary.defjvp
def _stationary_jvp(fn: Callable, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """∂x = −H⁻¹ ∂g, as ∇fn(x; constants) = 0; a right side of zero gives zero, whatever H."""
    x, constants = primals
    x, gradient = _stationary(fn, x, constants), jax.grad(fn)
    hessian = jax.jacfwd(gradient)(x, *constants)
    _, right = jax.jvp(lambda c: -gradient(x, *c), (constants,), (tangents[1],))
    solve = lambda _, b: jnp.where(jnp.all(b == 0), 0, jnp.linalg.solve(hessian, b))  # noqa: E731
    product = lambda v: jnp.matmul(hessian, v, precision=lax.Precision.HIGHEST)  # noqa: E731
    return x, lax.custom_linear_solve(product, right, solve, symmetric=True)


@jax.custom_jvp
def _without_derivative(constants: list) -> list:
    return constants


@_without_derivative.defjvp
def _without_derivative_jvp(primals: tuple, tangents: tuple) -> tuple:
    raise ValueError(
        "ascend: an optimiser that may stop early has no derivative, and a result of it was differentiated; pass "
        "derivative=Stop() to the fit, or stop the gradient of what the objective closes over."
    )


def _floating(start: Params) -> Params:
    leaves = jax.tree.leaves(start)
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        raise TypeError(f"start: expected a tree of floating arrays, got {jax.tree.map(jnp.result_type, start)}.")
    dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(*leaves))
    return lax.stop_gradient(jax.tree.map(jnp.asarray, _tree.cast_floats(start, dtype)))


def _converted(objective: Callable, start: Params) -> tuple[Callable, Params, list]:
    """The objective with all that may carry a derivative as arguments, and a start that carries none."""
    start = _floating(start)
    out = jax.eval_shape(objective, start)
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        got = f"{out.dtype}{out.shape}" if hasattr(out, "shape") else out
        raise ValueError(f"objective: expected a floating scalar, got {got}; sum it over observations.")
    dtype = jax.tree.leaves(start)[0].dtype
    pure, constants = jax.closure_convert(lambda x: objective(x).astype(dtype), start)
    return pure, start, constants
