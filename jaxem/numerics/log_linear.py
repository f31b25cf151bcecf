"""Which arguments enter a function as a sum of logarithms, read from its jaxpr.

Σ c log p, with coefficients c that do not depend on p, is found by following every value from the arguments on: a
product of powers of entries of p (an entry itself is one), a sum of their logarithms, or something else. An operation
that is not known to keep one of the first two makes something else of it, so a function may look worse than it is, and
never better. Values are never looked at: what holds, holds for all of them. A derivative of one's own by `custom_jvp`
is taken to be that of its function, as in `jax.scipy.special.xlogy`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from .._typing import PyTree
from . import tree as _tree
from .log_entries import LOGS, OTHER, PRODUCT, RULES, UNKNOWN, Entry, Value, bounds, chosen, merged, spoilt
from .traced import called, traced


def entries_of(fn: Callable, arguments: PyTree, *rest: PyTree) -> list[Entry]:
    """How each leaf of `arguments` enters fn(arguments, *rest), of arrays or their shapes.

    A leaf that does not enter is LOGS. Traced once for a function, its shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem.numerics.log_linear import entries_of
        >>> fn = lambda p, i: jnp.log(p[0])[i] + p[1][i]
        >>> [entry.form for entry in entries_of(fn, (jnp.ones(3), jnp.ones(3)), jnp.array(0))]
        ['logs', 'other']
    """
    closed, n = traced(fn, arguments, *rest), len(jax.tree.leaves(arguments))
    values = [Value({i: Entry(PRODUCT)}) if i < n else UNKNOWN for i in range(len(closed.jaxpr.invars))]
    total = merged(_run(closed.jaxpr, [_constant(const) for const in closed.consts], values))
    return [_final(total.entries.get(i, Entry(LOGS))) for i in range(n)]


def _final(entry: Entry) -> Entry:
    return entry if entry.form in (LOGS, OTHER) else Entry(OTHER, why="no logarithm")


def _run(jaxpr: Any, consts: Sequence[Value], arguments: Sequence[Value]) -> list[Value]:
    seen: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
    seen.update(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: _constant(atom.val) if isinstance(atom, Literal) else seen[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        outs = _applied(eqn, [read(atom) for atom in eqn.invars])
        seen.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _constant(value: Any) -> Value:
    if _tree.is_tracing(value) or not np.size(value) or jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):
        return UNKNOWN
    array = np.asarray(value)
    return Value({}, float(array.min()), float(array.max())) if array.dtype.kind in "biuf" else UNKNOWN


def _applied(eqn: Any, values: list[Value]) -> list[Value]:
    """What comes out of one operation."""
    name, n_out = eqn.primitive.name, len(eqn.outvars)
    if name == "scan":
        return _scanned(eqn, values)
    if name == "cond":
        branches = [
            _run(branch.jaxpr, [_constant(c) for c in branch.consts], values[1:]) for branch in eqn.params["branches"]
        ]
        return [chosen(values[0], list(outs), name) for outs in zip(*branches, strict=True)]
    inner = called(eqn)
    if inner is not None:
        return _run(inner.jaxpr, [_constant(const) for const in inner.consts], values)
    if not any(value.entries for value in values):
        return [bounds(name, eqn, values)] * n_out
    rule = RULES.get(name)
    return [spoilt(values, name) if rule is None else rule(eqn, values)] * n_out


def _scanned(eqn: Any, values: list[Value]) -> list[Value]:
    n_consts, n_carry = eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, rows = values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
    inner = eqn.params["jaxpr"]
    while True:
        outs = _run(inner.jaxpr, [_constant(const) for const in inner.consts], [*consts, *carry, *rows])
        wider = [Value(merged([old, new]).entries) for old, new in zip(carry, outs[:n_carry], strict=True)]
        if [value.entries for value in wider] == [value.entries for value in carry]:
            return [*wider, *outs[n_carry:]]
        carry = wider
