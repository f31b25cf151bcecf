"""Whether a function is a sum of functions of its arguments' leading entries, one of each: read from its jaxpr.

Σ_j f_j(θ_j, x), j the number of an item, has a Hessian without entries between items. It is found by following every
value from the arguments on: an array of which one axis runs over the items, a sum of such things, or neither. An
operation that is not known to keep one of the first two makes the third of it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._typing import PyTree
from .traced import followed, traced

NONE, SUM, MIXED = "none", "sum", "mixed"  # a whole number is the axis of the items
_ELEMENTWISE = {
    "add", "add_any", "sub", "mul", "div", "max", "min", "pow", "select_n", "exp", "exp2", "log", "log1p", "expm1",
    "logistic", "tanh", "sin", "cos", "neg", "abs", "sign", "integer_pow", "sqrt", "rsqrt", "square", "lgamma",
    "digamma", "erf", "erfc", "erf_inv", "is_finite", "and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt", "ge",
    "convert_element_type", "copy", "stop_gradient", "atan2", "floor", "round", "nextafter", "clamp",
}  # fmt: skip
_LINEAR = {"add", "add_any", "sub", "neg", "convert_element_type", "copy"}
_REDUCTIONS = {"reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin", "reduce_and", "reduce_or"}


def is_separable(fn: Callable, arguments: PyTree, *rest: PyTree, among: Sequence[bool] | None = None) -> bool:
    """Whether fn(arguments, *rest) is such a sum, in each of its entries; arrays or shapes.

    Args:
        fn: of them.
        arguments: those that count lead with the items.
        rest: more of what fn takes.
        among: which leaves of the arguments count; None for all.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem.numerics.separable import is_separable
        >>> slope, place = jnp.ones(3), jnp.zeros(3)
        >>> is_separable(lambda p, x: jnp.sum(jnp.tanh(p[0] * (x - p[1]))), (slope, place), 1.0)
        True
        >>> is_separable(lambda p, x: jnp.tanh(jnp.sum(p[0] * (x - p[1]))), (slope, place), 1.0)
        False
    """
    jaxpr, n = traced(fn, arguments, *rest).jaxpr, len(jax.tree.leaves(arguments))
    among = [True] * n if among is None else among
    outs = followed(jaxpr, [0 if i < n and among[i] else NONE for i in range(len(jaxpr.invars))], NONE, _applied)
    return all(out in (NONE, SUM) for out in outs)


def _applied(eqn: Any, values: list[Any]) -> Any:
    name = eqn.primitive.name
    if all(value == NONE for value in values):
        return NONE
    if MIXED in values:
        return MIXED
    if name in _ELEMENTWISE:
        return _elementwise(eqn, values)
    rule = _RULES.get(name)
    return MIXED if rule is None else rule(eqn, values)


def _elementwise(eqn: Any, values: list[Any]) -> Any:
    name = eqn.primitive.name
    if SUM in values:
        scaled = name == "mul" and NONE in values or name == "div" and values[1] == NONE
        chosen = name == "select_n" and values[0] == NONE
        return SUM if name in _LINEAR or scaled or chosen else MIXED
    axes = {value for value in values if value != NONE}
    return axes.pop() if len(axes) == 1 else SUM if name in _LINEAR else MIXED


def _reduced(eqn: Any, values: list[Any]) -> Any:
    axes, value = eqn.params["axes"], values[0]
    if value == SUM or value in axes:
        return SUM if eqn.primitive.name == "reduce_sum" else MIXED
    return value - sum(axis < value for axis in axes)


def _broadcast(eqn: Any, values: list[Any]) -> Any:
    return values[0] if values[0] == SUM else eqn.params["broadcast_dimensions"][values[0]]


def _reshaped(eqn: Any, values: list[Any]) -> Any:
    if values[0] == SUM:
        return SUM
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    before, size = math.prod(old[: values[0]]), old[values[0]]
    fits = [i for i in range(len(new)) if math.prod(new[:i]) == before and new[i] == size]
    return fits[0] if fits else MIXED


def _squeezed(eqn: Any, values: list[Any]) -> Any:
    dimensions = eqn.params["dimensions"]
    return values[0] if values[0] == SUM else values[0] - sum(d < values[0] for d in dimensions)


def _sliced(eqn: Any, values: list[Any]) -> Any:
    whole = lambda axis: eqn.invars[0].aval.shape[axis] == eqn.outvars[0].aval.shape[axis]  # noqa: E731
    return values[0] if values[0] == SUM or whole(values[0]) else MIXED


def _joined(eqn: Any, values: list[Any]) -> Any:
    found = {value for value in values if value != NONE}
    value = found.pop()
    return MIXED if found or value == eqn.params["dimension"] else value


def _stacked(eqn: Any, values: list[Any]) -> Any:
    found = {value for value in values if value != NONE}
    value = found.pop()
    return MIXED if found else value if value == SUM else value + (value >= eqn.params["axis"])


def _contracted(eqn: Any, values: list[Any]) -> Any:
    contracted, batch = eqn.params["dimension_numbers"]
    if NONE not in values:
        both = SUM not in values and (values[0], values[1]) in zip(*contracted, strict=True)
        return SUM if both else MIXED
    side = 0 if values[0] != NONE else 1
    value = values[side]
    if value == SUM or value in contracted[side]:
        return SUM
    if value in batch[side]:
        return batch[side].index(value)
    free = lambda i: [  # noqa: E731
        d for d in range(len(eqn.invars[i].aval.shape)) if d not in contracted[i] and d not in batch[i]
    ]
    return len(batch[0]) + (len(free(0)) if side else 0) + free(side).index(value)


_RULES: dict[str, Callable[[Any, list[Any]], Any]] = {
    "reduce_sum": _reduced,
    **dict.fromkeys(_REDUCTIONS, _reduced),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _squeezed,
    "transpose": lambda eqn, values: SUM if values[0] == SUM else eqn.params["permutation"].index(values[0]),
    "slice": _sliced,
    "concatenate": _joined,
    "stack": _stacked,
    "dot_general": _contracted,
}
