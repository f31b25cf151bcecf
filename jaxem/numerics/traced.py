"""Functions as their operations, traced once: what is read from these holds for all values."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from .._typing import PyTree

_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "checkpoint", "remat", "remat2",
}  # fmt: skip


def traced(fn: Callable, *arguments: PyTree) -> ClosedJaxpr:
    """The operations of fn(*arguments), of arrays or their shapes; once for a function, its shapes and dtypes.

    Its inputs are the leaves of the arguments, then those of `fn` itself, if it is a tree.
    """
    is_tree = not jax.tree_util.treedef_is_leaf(jax.tree.structure(fn))
    leaves, structure = jax.tree.flatten((arguments, fn if is_tree else None))
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return _traced(None if is_tree else fn, structure, shapes)


@lru_cache(512)
def _traced(fn: Callable | None, structure: Any, shapes: tuple) -> ClosedJaxpr:
    def flat(*leaves: Any) -> list:
        arguments, own = jax.tree.unflatten(structure, leaves)
        return jax.tree.leaves((own if fn is None else fn)(*arguments))

    return jax.make_jaxpr(flat)(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))


def called(eqn: Any) -> Any:
    """The jaxpr that an operation does nothing but call, if it is such an operation."""
    if eqn.primitive.name not in _CALLS:
        return None
    inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
    return inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ())


def followed(
    jaxpr: Any, arguments: Sequence[Any], constant: Any, applied: Callable[[Any, list[Any]], Any]
) -> list[Any]:
    """What is known of a jaxpr's outputs, from what is known of its arguments.

    Args:
        jaxpr: of arrays.
        arguments: what is known of each input.
        constant: what is known of numbers and constants.
        applied: (operation, what is known of its inputs) → the same of its outputs.
    """
    seen: dict[Any, Any] = dict.fromkeys(jaxpr.constvars, constant) | dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: constant if hasattr(atom, "val") else seen[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        values, inner = [read(atom) for atom in eqn.invars], called(eqn)
        if inner is None:
            outs = [applied(eqn, values)] * len(eqn.outvars)
        else:
            outs = followed(inner.jaxpr, values, constant, applied)
        seen.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
