"""M steps without a closed form: Q + log prior is climbed in free coordinates.

A step that would lower it is not taken, so the objective of the fit never falls (generalised EM; Dempster, Laird &
Rubin 1977, section 3). L-BFGS works in coordinates in which the curvature at the start, estimated from a sample of the
rows, is one: its first step is then a Newton step, which alone converges at the rate of EM (Lange 1995).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from .._typing import Array, Params
from ..numerics import tree as _tree
from ..numerics.maximize import ascend

FORWARD_PARAMETERS = 64  # up to so many a gradient is affordable forwards
_CURVATURE_PARAMETERS = 64
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
    """
    optimizer = None if ascent.optimizer is None else partial(ascent.optimizer, **(ascent.rates or {}))
    flat, unravel = ravel_pytree(to_free(params))
    p = flat.shape[0]
    size = jnp.maximum(lax.stop_gradient(size), 1).astype(flat.dtype)
    per_unit = lambda fn: lambda flat: fn(from_free(unravel(flat))) / size  # noqa: E731
    metric, enough = None, 0.0
    if optimizer is None and p <= _CURVATURE_PARAMETERS:
        metric = _unit_curvature(per_unit(sample or objective), flat, forward)
        enough = _ENOUGH if isinstance(ascent, Truncated) else 0.0
    move = lambda u: flat + (u if metric is None else jnp.matmul(metric, u, precision="highest"))  # noqa: E731
    fn = lambda u: per_unit(objective)(move(u))  # noqa: E731
    if forward and p <= FORWARD_PARAMETERS:
        fn = _gradient_forward_if_needed(fn)
    found = ascend(fn, jnp.zeros_like(flat), n_steps=ascent.n_steps, optimizer=optimizer, enough=enough)
    # coordinates that went there and back are not the params to the bit: take them only for something better
    return _tree.tree_where(found.improved, from_free(unravel(move(found.params))), params)


def _unit_curvature(fn: Callable[[Array], Array], flat: Array, forward: bool) -> Array:
    """A matrix A with Aᵀ|H|A = 1, of the Hessian H of fn; a multiple of the identity where H is not finite."""
    slope = jax.jacfwd(fn) if forward and flat.shape[0] <= 8 else jax.grad(fn)
    hessian = lax.stop_gradient(jax.jacfwd(slope)(flat))
    finite = jnp.all(jnp.isfinite(hessian))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, hessian, jnp.eye(flat.shape[0], dtype=flat.dtype)))
    values = jnp.abs(values)
    largest = jnp.maximum(jnp.max(values), jnp.finfo(flat.dtype).tiny)
    # where a kink hides the curvature, short steps: the optimiser lengthens them
    values = jnp.where(values > jnp.sqrt(jnp.finfo(flat.dtype).eps) * largest, values, largest)
    return vectors * lax.rsqrt(values)[None]


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
