"""What theory promises of every model, tried on one of your own: `check_model` and `check_family`.

    import jaxem.testing
    jaxem.testing.check_family(MyFamily(), bank, x)

Each property that does not hold is an AssertionError that says which, what was expected and what was got. What a class
does not offer is not tested; the properties that were are returned by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ._typing import Array, Data, Params, PyTree
from .contracts import capabilities as ask
from .contracts.names import check_names
from .drivers.single import fit
from .fold.folded import Folded, expected_log_joint, has_closed_m_step
from .fold.sources import is_additive
from .models.mixture import Mixture, MixtureParams
from .numerics import tree as _tree

__all__ = ["check_family", "check_model"]


@dataclass(frozen=True)
class _Case:
    """A model with float64 or float32 params and rows, all of which have a positive density."""

    model: Any
    params: Params
    data: Data

    @property
    def n(self) -> int:
        return _tree.n_rows(self.data)

    @property
    def eps(self) -> float:
        return float(jnp.finfo(ravel_pytree(self.params)[0].dtype).eps)

    def bound(self, data: Data | None = None, weight: Array | None = None) -> Any:
        """The model bound to these rows."""
        return ask.bind(self.model, self.data if data is None else data, weight)

    def e_step(self, data: Data, weight: Array | None, model: Any = None) -> tuple[PyTree, Array]:
        """Statistics and log-likelihood of a model that is bound to all rows."""
        return Folded(self.bound() if model is None else model, fast=False).e_step(self.params, data, weight)


def check_model(model: Any, params: Params, data: Data) -> list[str]:
    """Tries what the contracts promise of a model: `EMModel` or `FiniteLatent`.

    Args:
        model: your own, not bound.
        params: start params, in the interior of the parameter space.
        data: pytree of rows (n, …), ten or more, to which the model can be fitted from there.

    Returns:
        The names of the properties that were tested, and hold.

    Raises:
        AssertionError: naming the first that does not.
        ValueError: as `fit`, e.g. for a name that is misspelt.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem, jaxem.testing
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -1.0, 20), jnp.linspace(2.0, 5.0, 20)])[:, None]
        >>> model = jaxem.Mixture(jaxem.DiagonalNormal(), n_components=2)
        >>> len(jaxem.testing.check_model(model, model.init(jax.random.key(0), x), x))
        10
    """
    check_names(model)
    data = jax.tree.map(jnp.asarray, data)
    dtype = _tree.float_dtype(data)
    params = jax.tree.map(jnp.asarray, _tree.cast_data(params, dtype))
    case = _Case(_tree.cast_floats(model, dtype), params, ask.cast_rows(model, data, dtype))
    return [name for name, holds in _PROPERTIES.items() if holds(case)]


def check_family(family: Any, bank: Params, x: Data, *, n_components: int | None = None) -> list[str]:
    """`check_model` of a mixture of this family.

    Args:
        family: your own.
        bank: params of its components, in the interior of the parameter space; they differ.
        x: rows, ten or more.
        n_components: k; None is the leading axis of the first leaf of the bank.

    Returns:
        As `check_model`.

    Raises:
        AssertionError: as there.
        ValueError: as there.

    Example:
        >>> import jax.numpy as jnp, jaxem, jaxem.testing
        >>> x = jnp.concatenate([jnp.linspace(0.1, 1.0, 20), jnp.linspace(5.0, 9.0, 20)])[:, None]
        >>> bank = jaxem.ExponentialParams(rate=jnp.array([[2.0], [0.2]]))
        >>> "the objective never falls" in jaxem.testing.check_family(jaxem.Exponential(), bank, x)
        True
    """
    k = _tree.n_rows(bank, "bank") if n_components is None else n_components
    return check_model(Mixture(family, k), MixtureParams(jnp.full(k, 1 / k), bank), x)


# --- the properties: True where they hold, False where there is nothing to test


def _never_falls(case: _Case) -> bool:
    result = fit(case.model, case.params, case.data, tol=-1.0, max_iter=20)
    history = np.asarray(result.history, np.float64)
    history = history[np.isfinite(history)]
    _expect(len(history) > 1, "the objective never falls", "20 finite objectives", f"status {int(result.status)}")
    room = 16 * case.eps * (case.n + np.abs(history[:-1]))
    falls = np.diff(history) + room < 0
    _expect(not falls.any(), "the objective never falls", "a rise at every iteration", f"rises {np.diff(history)}")
    return True


def _log_joint_has_a_shape(case: _Case) -> bool:
    if not ask.offers(case.model, "log_joint"):
        return False
    log_joint = case.bound().log_joint(case.params, case.data)
    shape = (case.n, ask.n_components(case.model, log_joint.shape[-1]))
    _expect(log_joint.shape == shape, "log_joint is (n, k)", shape, log_joint.shape)
    _expect(bool(jnp.all(log_joint < jnp.inf)), "log_joint is (n, k)", "no NaN and no +inf", log_joint)
    return True


def _statistics_add(case: _Case) -> bool:
    if not is_additive(case.model):
        return False
    cut = lambda rows: jax.tree.map(lambda leaf: leaf[rows], case.data)  # noqa: E731
    half, bound = case.n // 3, case.bound()
    parts = [case.e_step(cut(slice(a, b)), None, bound) for a, b in ((0, half), (half, None))]
    _alike(case, "statistics add", jax.tree.map(jnp.add, *parts), case.e_step(case.data, None, bound))
    return True


def _weights_are_repeats(case: _Case) -> bool:
    count = np.arange(case.n) % 3
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), case.data)
    bound, weight = case.bound(repeated), jnp.asarray(count, ravel_pytree(case.params)[0].dtype)
    values = [case.e_step(rows, w, bound) for rows, w in ((case.data, weight), (repeated, None))]
    if not is_additive(case.model):  # the statistics are the rows themselves
        values = [log_lik for _, log_lik in values]
    _alike(case, "integer weights are repeated rows", *values)
    return True


def _zero_weight_is_absent(case: _Case) -> bool:
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(case.data)):
        return False
    weight = jnp.ones(case.n, ravel_pytree(case.params)[0].dtype).at[0].set(0)
    spoilt = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), case.data)
    values = [case.e_step(rows, weight, case.bound(rows, weight))[1] for rows in (case.data, spoilt)]
    _alike(case, "a row of weight zero is never looked at", *values)
    return True


def _m_step_is_a_maximum(case: _Case) -> bool:
    offered = ask.knows_coordinates(case.model) and ask.offers(case.model, "expected_log_joint")
    if not offered or not has_closed_m_step(case.model):
        return False
    bound = case.bound()
    stats, _ = case.e_step(case.data, None, bound)
    params = bound.m_step(case.params, stats)
    flat, unravel = ravel_pytree(ask.unconstrain(bound, params))

    def q(flat: Array) -> Array:
        there = ask.constrain(bound, unravel(flat))
        return expected_log_joint(bound, stats)[0](there) + ask.log_prior(bound, there)

    slope = np.abs(jax.grad(q)(flat))[~np.asarray(ravel_pytree(ask.held(bound, params))[0])]
    room = 1e4 * case.eps * case.n
    _expect(bool(np.all(slope <= room)), "the M step maximises Q + log prior", f"a gradient below {room:.1e}", slope)
    return True


def _coordinates_go_there_and_back(case: _Case) -> bool:
    if not ask.knows_coordinates(case.model):
        return False
    back = ask.constrain(case.model, ask.unconstrain(case.model, case.params))
    _alike(case, "free coordinates go there and back", back, case.params)
    return True


def _compiles(case: _Case) -> bool:
    bound = case.bound()
    step = lambda data: case.e_step(data, None, bound)[1]  # noqa: E731
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), case.data)
    _alike(case, "jit and vmap change nothing", jax.jit(jax.vmap(step))(both), jnp.stack([step(case.data)] * 2))
    return True


def _keeps_its_dtype(case: _Case) -> bool:
    result = fit(case.model, case.params, case.data, max_iter=2)
    want = {leaf.dtype for leaf in jax.tree.leaves(case.params) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    got = {leaf.dtype for leaf in jax.tree.leaves(result.params) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    _expect(got == want, "dtype in is dtype out", want, got)
    return True


def _new_values_compile_nothing(case: _Case) -> bool:
    traces = []

    def run(model: Any, params: Params, data: Data) -> Params:
        traces.append(None)
        return fit(model, params, data, max_iter=2).params

    program = jax.jit(run)
    for model in (case.model, jax.tree.unflatten(*reversed(jax.tree.flatten(case.model)))):
        program(model, case.params, case.data)
    _expect(len(traces) == 1, "an equal model compiles nothing new", "one trace", f"{len(traces)}; is it registered?")
    return True


_PROPERTIES: dict[str, Callable[[_Case], bool]] = {
    "log_joint is (n, k)": _log_joint_has_a_shape,
    "the objective never falls": _never_falls,
    "statistics add": _statistics_add,
    "integer weights are repeated rows": _weights_are_repeats,
    "a row of weight zero is never looked at": _zero_weight_is_absent,
    "the M step maximises Q + log prior": _m_step_is_a_maximum,
    "free coordinates go there and back": _coordinates_go_there_and_back,
    "jit and vmap change nothing": _compiles,
    "dtype in is dtype out": _keeps_its_dtype,
    "an equal model compiles nothing new": _new_values_compile_nothing,
}


def _expect(holds: bool, name: str, expected: Any, got: Any) -> None:
    if not holds:
        raise AssertionError(f"{name}: expected {expected}, got {got}.")


def _alike(case: _Case, name: str, got: PyTree, expected: PyTree) -> None:
    """To the rounding of sums over the rows."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = 1 + np.max(np.abs(np.asarray(b, np.float64)), initial=0)
        close = np.allclose(a, b, rtol=0, atol=1e3 * case.eps * scale, equal_nan=True)
        _expect(close and np.shape(a) == np.shape(b), name, b, a)
