"""Whether a function is affine in some of its arguments, whatever the values of the others: read from its jaxpr.

Then Σ_i w_i f(θ, x_i) = (Σ w) f(θ, Σ w x / Σ w): sums over rows are those of one mean row. It is found by following
every value: free of the arguments, affine in them, or neither. An operation that is not known to keep one of the first
two makes the third of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import PyTree
from .traced import followed, traced

FREE, AFFINE, OTHER = range(3)
_KEEP = {
    "add", "add_any", "sub", "neg", "copy", "reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose", "rev",
    "slice", "concatenate", "stack", "pad", "split", "reduce_sum", "cumsum", "stop_gradient", "real",
}  # fmt: skip
_FIRST = {"div", "gather", "dynamic_slice"}  # affine in the first operand, if the others are free
_ONE_OF = {"mul", "dot_general"}  # in one, if the other is free


def is_affine(fn: Callable, fixed: PyTree, among: PyTree) -> bool:
    """Whether fn(fixed, among) is affine in `among`, of floating arrays or their shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem.numerics.affine import is_affine
        >>> rate, x = jnp.ones(3), jnp.ones(3)
        >>> is_affine(lambda rate, x: jnp.sum(x * jnp.log(rate) - rate), rate, x)
        True
        >>> is_affine(lambda rate, x: jnp.sum(jnp.square(x - rate)), rate, x)
        False
    """
    jaxpr, first, n = traced(fn, fixed, among).jaxpr, len(jax.tree.leaves(fixed)), len(jax.tree.leaves(among))
    arguments = [AFFINE if first <= i < first + n else FREE for i in range(len(jaxpr.invars))]
    return max(followed(jaxpr, arguments, FREE, _applied), default=FREE) < OTHER


def _applied(eqn: Any, values: list[int]) -> int:
    name, most = eqn.primitive.name, max(values, default=FREE)
    if most != AFFINE:
        return most
    to_floats = name == "convert_element_type" and jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
    one = name in _ONE_OF and FREE in values
    first = name in _FIRST and max(values[1:], default=FREE) == FREE
    either = name == "select_n" and values[0] == FREE
    return AFFINE if name in _KEEP or to_floats or one or first or either else OTHER
