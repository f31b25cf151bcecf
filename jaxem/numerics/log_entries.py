"""What operations make of arrays of products of powers of an argument's entries, and of sums of their logarithms.

A rule takes an equation of a jaxpr, of which an operand depends on such an argument, and what is known of the operands.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

PRODUCT, LOGS, SUPPORT, OTHER = "product", "logs", "support", "other"
_NEGLIGIBLE = 1e-30  # a floor below which no share of anything counts
_SMALL = 1e-6  # a floor that a share may come near to


class Entry(NamedTuple):
    """How an array enters.

    Attributes:
        form: PRODUCT of powers of its entries, LOGS, their sum; SUPPORT, whether an entry is above zero; OTHER.
        sign: of the powers or coefficients: 1, −1, or 0 where data decide.
        floored: whether a small number is put beside or below the entries, so that c depends on where p is.
        why: of OTHER, the operation that made it so.
        bare: whether a product is a single entry.
    """

    form: str
    sign: int = 1
    floored: bool = False
    why: str = ""
    bare: bool = True


class Value(NamedTuple):
    """Of a value: how each argument enters, and, if none does, bounds."""

    entries: dict[int, Entry]
    low: float = -np.inf
    high: float = np.inf

    @property
    def sign(self) -> int:
        return 1 if self.low >= 0 else -1 if self.high <= 0 else 0


UNKNOWN = Value({})


# --- what operations make of entries


def spoilt(values: Sequence[Value], why: str) -> Value:
    """Something else of all that enters."""
    first: dict[int, Entry] = {}
    for value in values:
        for i, entry in value.entries.items():
            first[i] = entry if entry.form == OTHER else first.get(i, Entry(OTHER, why=why))
    return Value(first)


def _signs(a: int, b: int) -> int:
    return a if a == b else 0


def merged(values: Sequence[Value]) -> Value:
    """Each element of one of the values; also their sum, of logarithms."""
    entries: dict[int, Entry] = {}
    for value in values:
        for i, entry in value.entries.items():
            old = entries.get(i)
            if old is None or old.form == OTHER:
                entries.setdefault(i, entry)
            elif entry.form == OTHER:
                entries[i] = entry
            elif entry.form != old.form:
                entries[i] = Entry(OTHER, why="an entry beside its logarithm")
            else:
                entries[i] = Entry(
                    old.form, _signs(old.sign, entry.sign), old.floored or entry.floored, bare=old.bare and entry.bare
                )
    if entries:
        return Value(entries)
    return Value({}, min(value.low for value in values), max(value.high for value in values))


def _mapped(value: Value, forms: dict[str, str], why: str, sign: int = 1) -> Value:
    """Each form becomes another, the powers or coefficients times something of this sign."""

    def one(entry: Entry) -> Entry:
        if entry.form in forms:
            return entry._replace(form=forms[entry.form], sign=entry.sign * sign, bare=False)
        return entry if entry.form == OTHER else Entry(OTHER, why=why)

    return Value({i: one(entry) for i, entry in value.entries.items()})


def _scaled(value: Value, by: Value, why: str) -> Value:
    """Times something in which none of what enters may enter again."""
    if all(any(e.form == LOGS for e in v.entries.values()) for v in (value, by)):
        return spoilt([value, by], "a product of logarithms")
    both, out = value.entries.keys() & by.entries.keys(), {}
    for own, other in ((value, by), (by, value)):
        for i, entry in own.entries.items():
            if entry.form == OTHER:
                out[i] = entry
            elif entry.form == LOGS and i not in both:
                out[i] = entry._replace(sign=entry.sign * (0 if other.entries else other.sign))
            elif entry.form == PRODUCT and not other.entries and other.low > 0:
                out[i] = entry._replace(bare=False)
            else:
                out[i] = Entry(OTHER, why=why)
    return Value(out)


def _product(eqn: Any, values: list[Value]) -> Value:
    """a·b, elementwise: of two products of powers one."""
    a, b = values
    if a.entries and b.entries and all(e.form == PRODUCT for v in values for e in v.entries.values()):
        return _mapped(merged([a, b]), {PRODUCT: PRODUCT}, "a product")
    return _scaled(a, b, "a product with a density or a coefficient that is no constant")


def _contracted(eqn: Any, values: list[Value]) -> Value:
    if any(entry.form == PRODUCT for value in values for entry in value.entries.values()):
        return spoilt(values, "a sum of entries")
    return _scaled(values[0], values[1], "a product of matrices")


def _quotient(eqn: Any, values: list[Value]) -> Value:
    a, b = values
    if not b.entries:
        positive = b.low > 0
        inverse = Value({}, float(np.nextafter(0, 1)) if positive else -np.inf)
        return _scaled(a, inverse, "a quotient")
    inverse = _mapped(b, {PRODUCT: PRODUCT}, "a quotient", -1)
    return _product(eqn, [a, inverse]) if a.entries or a.low > 0 else spoilt(values, "a quotient")


def _sum(eqn: Any, values: list[Value]) -> Value:
    """a + b: logarithms add; a product of powers with a small number is floored by it."""
    for own, other in (values, values[::-1]):
        if own.entries and not other.entries and any(e.form == PRODUCT for e in own.entries.values()):
            small = 0 <= other.low <= other.high <= _SMALL
            return _floored(own, other.high, 0.0, "a sum") if small else _mapped(own, {LOGS: LOGS}, "a sum")
    return _mapped(merged(values), {LOGS: LOGS}, "a sum")


def _difference(eqn: Any, values: list[Value]) -> Value:
    a, b = values
    b = Value(_mapped(b, {LOGS: LOGS, PRODUCT: PRODUCT}, "a difference", -1).entries, -b.high, -b.low)
    return _mapped(merged([a, b]), {LOGS: LOGS}, "a difference")


def _floored(value: Value, floor: float, negligible: float, why: str) -> Value:
    """With a floor under products of powers, or beside them: under single entries a tiny one is as none."""

    def one(entry: Entry) -> Entry:
        if entry.form == PRODUCT and entry.sign > 0:
            return entry._replace(floored=entry.floored or floor > negligible or not entry.bare)
        return entry if entry.form == OTHER else Entry(OTHER, why=why)

    return Value({i: one(entry) for i, entry in value.entries.items()})


def _maximum(eqn: Any, values: list[Value]) -> Value:
    """max(a, constant), a floor under products of powers or under logarithms."""
    for own, other in (values, values[::-1]):
        if own.entries and not other.entries:
            forms = {e.form for e in own.entries.values()}
            if forms == {PRODUCT} and other.high <= _SMALL:
                return _floored(own, other.high, _NEGLIGIBLE, "max")
            if forms == {LOGS} and other.high <= np.log(_SMALL):
                return Value({i: e._replace(floored=True) for i, e in own.entries.items()})
    return spoilt(values, "max")


def _power(eqn: Any, values: list[Value]) -> Value:
    base, power = values
    if power.entries or not base.entries:
        return spoilt(values, "pow")
    return _mapped(base, {PRODUCT: PRODUCT}, "pow", power.sign)


def chosen(which: Value, cases: list[Value], why: str) -> Value:
    """One of the cases, element by element."""
    entries = dict(merged(cases).entries)
    for i, entry in which.entries.items():
        # an entry of zero may be given a constant in the place of its logarithm
        at_zero = (
            cases[0 if entry.sign > 0 else 1] if entry.form == SUPPORT and entry.sign and len(cases) == 2 else None
        )
        if at_zero is None or i in at_zero.entries:
            entries[i] = entry if entry.form == OTHER else Entry(OTHER, why=f"a choice by its value ({why})")
        elif i in entries:
            entries[i] = entries[i]._replace(floored=True)
    return Value(entries) if entries else merged(cases)


def _structural(eqn: Any, values: list[Value]) -> Value:
    """Elements of the first operand, or constants, by indices that do not depend on it."""
    return Value({**values[0].entries, **spoilt(values[1:], "an index").entries}, values[0].low, values[0].high)


def _converted(eqn: Any, values: list[Value]) -> Value:
    if jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
        return values[0]
    return spoilt(values, "a conversion to integers")


def _compared(above: bool) -> Callable:
    def rule(eqn: Any, values: list[Value]) -> Value:
        """Whether an entry is above zero."""
        if eqn.primitive.name == "ne" and eqn.invars[0] is eqn.invars[1]:
            return Value({}, 0, 0)  # whether it is NaN
        a, b = values
        zero = not b.entries and 0 <= b.low <= b.high <= _NEGLIGIBLE
        if zero and all(e.form == PRODUCT and e.sign > 0 for e in a.entries.values()):
            return Value({i: Entry(SUPPORT, 1 if above else -1) for i in a.entries})
        return spoilt(values, eqn.primitive.name)

    return rule


def _scattered(eqn: Any, values: list[Value]) -> Value:
    operand, index, updates = values
    whole = merged([operand, updates])
    whole = _mapped(whole, {LOGS: LOGS}, "scatter-add") if eqn.primitive.name == "scatter-add" else whole
    return Value({**whole.entries, **spoilt([index], "an index").entries})


def _of_sum(form: str) -> Callable:
    return lambda eqn, values: _mapped(values[0], {form: form}, eqn.primitive.name)


RULES: dict[str, Callable[[Any, list[Value]], Value]] = {
    **dict.fromkeys(
        ("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose", "rev", "slice", "copy", "copy_p",
         "gather", "dynamic_slice", "reduce_precision", "split"), _structural
    ),
    "convert_element_type": _converted,
    "concatenate": lambda eqn, values: merged(values),
    "stack": lambda eqn, values: merged(values),
    "pad": lambda eqn, values: merged(values),
    "optimization_barrier": lambda eqn, values: merged(values),
    "select_n": lambda eqn, values: chosen(values[0], values[1:], "select"),
    "dynamic_update_slice": lambda eqn, values: Value(
        {**merged(values[:2]).entries, **spoilt(values[2:], "an index").entries}
    ),
    "scatter": _scattered,
    "scatter-add": _scattered,
    "add": _sum,
    "add_any": _sum,
    "sub": _difference,
    "neg": lambda eqn, values: _mapped(values[0], {LOGS: LOGS}, "neg", -1),
    "mul": _product,
    "div": _quotient,
    "dot_general": _contracted,
    "reduce_sum": _of_sum(LOGS),
    "cumsum": _of_sum(LOGS),
    "reduce_prod": _of_sum(PRODUCT),
    "cumprod": _of_sum(PRODUCT),
    "log": lambda eqn, values: _mapped(values[0], {PRODUCT: LOGS}, "log of something else"),
    "exp": lambda eqn, values: _mapped(values[0], {LOGS: PRODUCT}, "exp"),
    "sqrt": _of_sum(PRODUCT),
    "square": _of_sum(PRODUCT),
    "integer_pow": lambda eqn, values: _mapped(
        values[0], {PRODUCT: PRODUCT}, "a power", int(np.sign(eqn.params["y"]))
    ),
    "pow": _power,
    "max": _maximum,
    "gt": _compared(True),
    "ne": _compared(True),
    "eq": _compared(False),
    "le": _compared(False),
}  # fmt: skip


def bounds(name: str, eqn: Any, values: list[Value]) -> Value:
    """Bounds of what no argument enters."""
    dtype = eqn.outvars[0].aval.dtype if eqn.outvars else None
    if dtype is not None and jnp.issubdtype(dtype, jnp.bool_):
        return Value({}, 0, 1)
    if name in ("broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "transpose", "slice", "copy"):
        return values[0]
    if name in ("exp", "abs", "square", "iota", "sqrt"):
        return Value({}, 0)
    if name == "neg":
        return Value({}, -values[0].high, -values[0].low)
    if name in ("select_n", "concatenate"):
        return merged(values[1 if name == "select_n" else 0 :])
    if name in ("mul", "add", "max", "reduce_sum") and all(value.low >= 0 for value in values):
        return Value({}, 0)
    return UNKNOWN
