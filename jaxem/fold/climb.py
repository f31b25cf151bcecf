"""M steps without a closed form: Q + log prior is climbed in free coordinates.

A step that would lower it is not taken, so the objective of the fit never falls (generalised EM; Dempster, Laird &
Rubin 1977, section 3). L-BFGS works in coordinates in which the curvature at the start, estimated from a sample of the
rows, is one: its first step is then a Newton step, which alone converges at the rate of EM (Lange 1995).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from .._typing import Array, Params
from ..numerics import tree as _tree
from ..numerics.maximize import ascend

FORWARD_PARAMETERS = 64  # up to so many a gradient is affordable forwards
_CURVATURE_PARAMETERS = 64
_PROBES = 8
_MOST_HALVINGS = 30
_ENOUGH = 0.1  # a truncated M step ends where less than this part of its gain is left


@_tree.register
@dataclass(frozen=True)
class Full:
    """Climbs until the gradient vanishes to rounding.

    Attributes:
        max_steps: the most steps of the optimiser.
        optimizer: called in the trace with `rates` as keywords, returns an optax optimiser; None is L-BFGS with a line
            search. A module-level function such as `optax.adam`: a fresh lambda compiles anew at every fit.
        rates: keywords of `optimizer`, a dict of numbers, e.g. {"learning_rate": 1e-2}; new values compile nothing.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> def log_joint(rate, x):  # exponential waiting times: a single latent state
        ...     return (jnp.log(rate) - rate * x)[None]
        >>> model = jaxem.LogJoint(log_joint, 1, constraints=jaxem.bijections.positive, m_step=jaxem.Full())
        >>> jaxem.fit(model, jnp.array(1.0), jnp.array([0.5, 1.5, 4.0])).params.round(3)  # 1 / mean
        Array(0.5, dtype=...)
    """

    max_steps: Any = 200
    optimizer: Callable[..., Any] | None = field(metadata={"static": True}, default=None)
    rates: Any = None

    @property
    def n_steps(self) -> Any:
        """The most steps."""
        return self.max_steps


@_tree.register
@dataclass(frozen=True)
class Truncated:
    """A few climbing steps: cheaper iterations, perhaps more of them.

    Attributes:
        n_steps: the most steps; it ends before where nine tenths of the gain is made.
        optimizer: as in `Full`.
        rates: as in `Full`.

    Example:
        >>> import jax.numpy as jnp, jaxem, optax
        >>> def log_joint(rate, x):  # exponential waiting times: a single latent state
        ...     return (jnp.log(rate) - rate * x)[None]
        >>> ten_of_adam = jaxem.Truncated(10, optax.adam, {"learning_rate": 0.05})
        >>> model = jaxem.LogJoint(log_joint, 1, constraints=jaxem.bijections.positive, m_step=ten_of_adam)
        >>> jaxem.fit(model, jnp.array(1.0), jnp.array([0.5, 1.5, 4.0])).params.round(1)  # 1 / mean
        Array(0.5, dtype=...)
    """

    n_steps: Any = 3
    optimizer: Callable[..., Any] | None = field(metadata={"static": True}, default=None)
    rates: Any = None


def check_ascent(m_step: Any) -> None:
    """Raises a ValueError unless `m_step` says how to climb."""
    if not isinstance(m_step, (Full, Truncated)):
        raise ValueError(f"m_step: expected Full() or Truncated(n), got {m_step!r}.")


def climb(
    ascent: Full | Truncated,
    objective: Callable[[Params], Array],
    params: Params,
    *,
    size: Array,
    sample: Callable[[Params], Array] | None = None,
    to_free: Callable[[Params], Any] = lambda params: params,
    from_free: Callable[[Any], Params] = lambda free: free,
    forward: bool = False,
    items: int = 1,
) -> Params:
    """Params that raise `objective`, starting from `params`; the same params where nothing higher is found.

    Args:
        ascent: how far.
        objective: params → (), summed over observations.
        params: the start.
        size: (), the number of observations in the sum, which the optimiser's scale is for.
        sample: a cheaper function with about the curvature of `objective`; None takes that itself.
        to_free: params → free coordinates.
        from_free: its inverse.
        forward: take the gradient forwards where backwards it is not finite: states of probability zero leave 0·inf
            in a backward pass, which a forward pass masks.
        items: where the objective is a sum over items, with which every leaf of the free coordinates leads: each has
            a curvature of its own.
    """
    optimizer = None if ascent.optimizer is None else partial(ascent.optimizer, **(ascent.rates or {}))
    start, back = _by_item(to_free(params), items)
    size = jnp.maximum(lax.stop_gradient(size), 1).astype(start.dtype)
    per_unit = lambda fn: lambda x: fn(from_free(back(x))) / size  # noqa: E731
    fn, few, p = per_unit(objective), per_unit(sample or objective), start.size
    if forward and p <= FORWARD_PARAMETERS:
        fn = _gradient_forward_if_needed(fn)
    dense = start.shape[1] <= _CURVATURE_PARAMETERS
    if optimizer is None and dense and isinstance(ascent, Truncated):
        found, improved = _newton_steps(fn, few, start, ascent.n_steps, forward)
        return _tree.tree_where(improved, from_free(back(found)), params)
    metric = None
    if optimizer is None:
        metric = _unit_curvature(few, start, forward) if dense else _unit_diagonal(few, start)
    move = lambda u: start + (u if metric is None else _times(metric, u))  # noqa: E731
    found = ascend(lambda u: fn(move(u)), jnp.zeros_like(start), n_steps=ascent.n_steps, optimizer=optimizer)
    # coordinates that went there and back are not the params to the bit: take them only for something better
    return _tree.tree_where(found.improved, from_free(back(move(found.params))), params)


def _by_item(free: Any, items: int) -> tuple[Array, Callable[[Array], Any]]:
    """Free coordinates as a matrix (items, coordinates of one), and the way back."""
    if items == 1:
        flat, unravel = ravel_pytree(free)
        return flat[None], lambda x: unravel(x[0])
    leaves, structure = jax.tree.flatten(free)
    widths = [leaf.size // items for leaf in leaves]
    ends = np.cumsum(widths)[:-1].tolist()

    def back(x: Array) -> Any:
        parts = jnp.split(x, ends, 1)
        return jax.tree.unflatten(structure, [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)])

    return jnp.concatenate([leaf.reshape(items, -1) for leaf in leaves], 1), back


def _times(metric: Array, x: Array) -> Array:
    """Matrices of the items times their vectors, or a scale of each coordinate."""
    if metric.ndim == x.ndim:
        return metric * x
    return jnp.matmul(metric, x[..., None], precision="highest")[..., 0]


class _Climb(NamedTuple):
    """Where Newton steps have come.

    Attributes:
        x: (items, s).
        rose: whether the objective is higher there than at the start.
        n: steps taken.
        done: whether no more is wanted, or found.
    """

    x: Array
    rose: Array
    n: Array
    done: Array


def _newton_steps(fn: Callable, few: Callable, start: Array, n_steps: Any, forward: bool) -> tuple[Array, Array]:
    """A few steps |H|⁻¹g, halved until the objective rises; ends after one that keeps its promise. And if it rose."""

    def step(c: _Climb) -> _Climb:
        value, slope = jax.value_and_grad(fn)(c.x)
        metric = _unit_curvature(few, c.x, forward)
        across = _times(jnp.swapaxes(metric, -1, -2), slope)
        direction, promised = _times(metric, across), 0.5 * jnp.sum(jnp.square(across))

        def halve(trial: tuple) -> tuple:
            length = trial[0] / 2  # the first trial is a whole step
            return length, fn(c.x + length * direction)

        lower = lambda trial: (trial[0] > 0.5**_MOST_HALVINGS) & ~(trial[1] > value)  # noqa: E731
        length, found = lax.while_loop(lower, halve, (jnp.full((), 2, c.x.dtype), jnp.full_like(value, -jnp.inf)))
        better = jnp.isfinite(found) & (found > value)
        kept = (length == 1) & (found - value >= (1 - _ENOUGH) * promised)
        x = jnp.where(better, c.x + length * direction, c.x)
        return _Climb(x, c.rose | better, c.n + 1, ~better | kept)

    no = jnp.zeros((), bool)
    end = lax.while_loop(lambda c: ~c.done & (c.n < n_steps), step, _Climb(start, no, jnp.zeros((), jnp.int32), no))
    return end.x, end.rose


def _unit_curvature(fn: Callable[[Array], Array], x: Array, forward: bool) -> Array:
    """Matrices A with Aᵀ|H|A = 1, of the Hessians H of the items (items, s, s); multiples of 1 where not finite.

    One tangent after the other: all at once would be so many times the rows, in memory, and in small factorisations
    of which jaxlib's threads may wait for each other.
    """
    items, s = x.shape
    slope = jax.jacfwd(fn) if forward and x.size <= 8 else jax.grad(fn)
    unit = jnp.eye(s, dtype=x.dtype)
    column = lambda e: jax.jvp(slope, (x,), (jnp.broadcast_to(e, x.shape),))[1]  # noqa: E731
    hessian = lax.stop_gradient(jnp.moveaxis(lax.map(column, unit), 0, -1))
    hessian = (hessian + jnp.swapaxes(hessian, -1, -2)) / 2
    finite = jnp.all(jnp.isfinite(hessian), (-2, -1), keepdims=True)
    values, vectors = jnp.linalg.eigh(jnp.where(finite, hessian, unit))
    return vectors * lax.rsqrt(_away_from_zero(jnp.abs(values), x.dtype))[..., None, :]


def _unit_diagonal(fn: Callable[[Array], Array], x: Array) -> Array:
    """The same of the Hessian's diagonal alone, a scale of each coordinate.

    It is estimated from products with vectors of signs (Bekas, Kokiopoulou & Saad 2007).
    """
    signs = jax.random.rademacher(jax.random.key(0), (_PROBES, *x.shape), x.dtype)
    product = lambda v: v * jax.jvp(jax.grad(fn), (x,), (v,))[1]  # noqa: E731
    diagonal = jnp.mean(jnp.abs(lax.stop_gradient(lax.map(product, signs))), 0)
    diagonal = jnp.where(jnp.all(jnp.isfinite(diagonal)), diagonal, 1)
    return lax.rsqrt(_away_from_zero(diagonal, x.dtype))


def _away_from_zero(values: Array, dtype: Any) -> Array:
    largest = jnp.maximum(jnp.max(values), jnp.finfo(dtype).tiny)
    # where a kink hides the curvature, short steps: the optimiser lengthens them
    return jnp.where(values > jnp.sqrt(jnp.finfo(dtype).eps) * largest, values, largest)


def _gradient_forward_if_needed(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    @jax.custom_vjp
    def safe(x: Array) -> Array:
        return fn(x)

    def fwd(x: Array) -> tuple[Array, Array]:
        value, gradient = jax.value_and_grad(fn)(x)
        usable = jnp.all(jnp.isfinite(gradient)) | ~jnp.isfinite(value)
        return value, lax.cond(usable, lambda: gradient, lambda: jax.jacfwd(fn)(x))

    def bwd(gradient: Array, cotangent: Array) -> tuple[Array]:
        return (cotangent * gradient,)

    safe.defvjp(fwd, bwd)
    return safe
