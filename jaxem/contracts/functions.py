"""Plain functions of one observation, made fit for models: hashable, vectorised over rows, with leaves of their own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from .._typing import Array, Data, Params
from ..numerics import tree as _tree


@_tree.register
@dataclass(frozen=True)
class Function:
    """A function that passes into jit.

    Attributes:
        fn: structure, so a fresh lambda compiles anew: define functions at module level.
        arguments: the first arguments, leaves.
        keywords: keyword arguments, leaves.
    """

    fn: Callable = field(metadata={"static": True})
    arguments: tuple = ()
    keywords: dict = field(default_factory=dict)

    def __call__(self, *rest: Any) -> Any:
        return self.fn(*self.arguments, *rest, **self.keywords)


def as_function(fn: Any, name: str) -> Function:
    """A function, or a `jax.tree_util.Partial` whose arguments are hyper-parameters: they get values and derivatives.

    Raises:
        ValueError: if it is not callable.
    """
    if isinstance(fn, Function):
        return fn
    if isinstance(fn, (Partial, partial)):
        return Function(fn.func, fn.args, dict(fn.keywords))
    if not callable(fn):
        raise ValueError(f"{name}: expected a function, got {fn!r}.")
    return Function(fn)


@_tree.register
@dataclass(frozen=True)
class PerRow:
    """f(params, x) of one observation, called with all of them: (n, …), in the precision of the params."""

    one: Function

    def __call__(self, params: Params, data: Data) -> Array:
        return jax.vmap(self.one, (None, 0))(params, data).astype(_dtype_of(params))


@_tree.register
@dataclass(frozen=True)
class PerRowAndComponent:
    """f(params, x) of one component and one observation, called with a bank and all observations: (n, k)."""

    one: Function

    def __call__(self, bank: Params, data: Data) -> Array:
        return jax.vmap(jax.vmap(self.one, (0, None)), (None, 0))(bank, data).astype(_dtype_of(bank))


def _dtype_of(params: Params) -> Any:
    return jnp.result_type(*jax.tree.leaves(params))


def check_nodes(n_nodes: Any) -> None:
    """Raises a ValueError unless a Gauss–Hermite rule of so many nodes has weights that are numbers above 0."""
    if isinstance(n_nodes, bool) or not isinstance(n_nodes, (int, np.integer)) or n_nodes < 1:
        raise ValueError(f"n_nodes: expected a positive int, got {n_nodes!r}; 21 is the default.")
    with np.errstate(all="ignore"):
        weights = np.polynomial.hermite_e.hermegauss(n_nodes)[1]
    if not np.all(np.isfinite(weights) & (weights > 0)):
        raise ValueError(
            f"n_nodes: expected at most about 370, beyond which the weights of a Gauss–Hermite rule underflow, got "
            f"{n_nodes}; posteriors that need more nodes are those of units of many observations: divide these."
        )


def is_quadrature(log_joint: Any) -> bool:
    """Whether the states of a log joint are the nodes of a rule, of which there is more than one."""
    rule = getattr(getattr(log_joint, "one", None), "fn", None)
    return isinstance(rule, GaussHermite) and rule.n_nodes > 1


@dataclass(frozen=True)
class GaussHermite:
    """log p(x, z_m | θ) at the nodes z_m of a Gauss–Hermite rule, of log p(x | z, θ) and z ~ N(0, 1).

    Σ_m w_m f(z_m) = ∫ f(z) N(z; 0, 1) dz for polynomials f up to degree 2·n_nodes − 1.
    """

    log_conditional: Callable
    n_nodes: int

    def __call__(self, params: Params, x: Data) -> Array:
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.n_nodes)
        log_weights = np.log(weights) - 0.5 * np.log(2 * np.pi)
        dtype = _dtype_of(params)
        log_lik = jax.vmap(self.log_conditional, (None, None, 0))(params, x, jnp.asarray(nodes, dtype))
        return log_lik + jnp.asarray(log_weights, dtype)
