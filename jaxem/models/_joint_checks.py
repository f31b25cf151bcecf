"""What may be wrong with a written joint: each message names the function, the row and the remedy."""

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.functions import GaussHermite
from ..fold.present import present_rows
from ..numerics.reads import rows_beyond


def name_of(function: Any, field: str) -> str:
    """The field, and the name of the user's function in it."""
    fn, what = function.fn, field
    if isinstance(fn, GaussHermite):
        fn, what = fn.log_conditional, "log_conditional"
    return f"{what} ({getattr(fn, '__name__', type(fn).__name__)})"


def check_shapes(model: Any, params: Params, row: Data) -> None:
    """Raises a ValueError or TypeError unless the functions make of params and a row what they should."""
    dtype, function = jnp.result_type(*jax.tree.leaves(params)), model.log_joint.one
    name, seen = name_of(function, "log_joint"), f"one observation {_described(row)}"
    if isinstance(function.fn, GaussHermite):
        node, conditional = jax.ShapeDtypeStruct((), dtype), function.fn.log_conditional
        out = _traced(lambda p, x, z: conditional(p, x, z), name, seen, params, row, node)
        _check_out(out, (), dtype, name, f"log p(x | z, θ) of {seen} and one node z", "sum it over what x consists of")
    remedy = "return one value a state"
    out = _traced(lambda p, x: function(p, x), name, seen, params, row)
    if getattr(out, "shape", None) == () and model.n_states == 1:
        remedy = "return log_p[None]"
    elif getattr(out, "shape", None) == ():
        remedy = "stack the states, jnp.stack([…]), each with the log of its own weight, and do not sum over them"
    elif getattr(out, "ndim", 0) > 1:
        remedy = "x has no leading axis of observations; sum over what it consists of"
    _check_out(out, (model.n_states,), dtype, name, f"one value a state of {seen}", remedy)
    if model.log_prior is not None:
        name = name_of(model.log_prior, "log_prior")
        out = _traced(lambda p: model.log_prior(p), name, "params alone", params)
        _check_out(out, (), dtype, name, "a number", "sum it over the params")


def _described(row: Data) -> str:
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", row)).replace("'", "")


def _traced(fn: Callable, name: str, seen: str, params: Params, *rest: Any) -> Any:
    try:
        return jax.eval_shape(fn, params, *rest)
    except Exception as error:
        if rest:
            _refuse_floats_as_indices(fn, name, params, *rest, error=error)
        error.add_note(
            f"{name} was called with params {_described(jax.tree.map(_shape_of, params))} and {seen}, without the "
            "leading axis of the data."
        )
        raise


def _shape_of(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _refuse_floats_as_indices(
    fn: Callable, name: str, params: Params, row: Data, *rest: Any, error: Exception
) -> NoReturn | None:
    """Raises a TypeError that names the leaves of the data that would have to be whole numbers, if that is all."""
    leaves, structure = jax.tree.flatten(row)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(row)]

    def passes(whole: list[int]) -> bool:
        as_whole = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype("int32"))  # noqa: E731
        changed = [as_whole(leaf) if i in whole else leaf for i, leaf in enumerate(leaves)]
        try:
            jax.eval_shape(fn, params, jax.tree.unflatten(structure, changed), *rest)
        except Exception:  # whatever is wrong with it, the user sees the error of the data as they are
            return False
        return True

    whole = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not isinstance(error, TypeError) or not passes(whole):
        return None
    for i in list(whole):
        if passes([j for j in whole if j != i]):
            whole.remove(i)
    names = ", ".join(f"data{paths[i]} ({leaves[i].dtype})" for i in whole)
    raise TypeError(
        f"{name}: expected whole numbers where it takes an index, got {names}; pass integers, such as "
        ".astype(int) of the table before it is given to fit."
    ) from error


def _check_out(out: Any, want: tuple, dtype: Any, name: str, what: str, remedy: str) -> None:
    fits = getattr(out, "shape", None) == want and jnp.issubdtype(out.dtype, jnp.floating)
    if not fits:
        is_array = isinstance(out, jax.ShapeDtypeStruct)
        got = f"{out.dtype}{out.shape}" if is_array else type(out).__name__
        if is_array and out.shape == want:
            remedy = "log densities are real numbers: return floating ones"
        raise ValueError(f"{name}: expected {dtype}{want}, {what}, got {got}; {remedy}.")


@jax.jit
def _at_start(model: Any, params: Params, data: Data, sample_weight: Array | None) -> tuple[Array, Array]:
    log_joint = ask.bind(model, data, sample_weight).log_joint(params, present_rows(data, sample_weight))
    return jnp.max(log_joint, 1), ask.log_prior(model, params)


def check_start(model: Any, params: Params, data: Data, sample_weight: Array | None) -> None:
    """Raises a ValueError that names the first rows of concrete data in which the joint cannot be as it is meant."""
    function = model.log_joint.one
    name = name_of(function, "log_joint")
    with jax.ensure_compile_time_eval():
        best, log_prior = (np.asarray(value) for value in _at_start(model, params, data, sample_weight))
        there = np.ones(len(best), bool) if sample_weight is None else np.asarray(sample_weight) != 0
        beyond = rows_beyond(function, params, data, there)
    if beyond.any():
        raise ValueError(
            f"{name}: expected indices within its arrays, got one beyond the end in {_rows(data, beyond)}; count from "
            "0, and give the params an entry for every value; if the last entry is meant, write jnp.minimum(index, "
            "n - 1)."
        )
    for bad, got, remedy in (
        (np.isnan(best), "NaN", "look for logarithms of what is below 0, 0 · inf or inf − inf, also in a branch that "
         "jnp.where does not take"),
        (np.isposinf(best), "inf", "no density is infinite: look for divisions by 0"),
        (np.isneginf(best), "−inf, which no latent state explains",
         "data outside the support of a density cannot be fitted by it"),
    ):  # fmt: skip
        if (bad & there).any():
            raise ValueError(
                f"{name}: expected log densities of rows that some latent state explains at the start params, got "
                f"{got} in {_rows(data, bad & there)}; {remedy}."
            )
    if not np.isfinite(log_prior):
        prior = name_of(model.log_prior, "log_prior")
        raise ValueError(
            f"{prior}: expected a finite number at the start params, got {log_prior}; start off the boundary."
        )


def _rows(data: Data, bad: np.ndarray) -> str:
    rows = np.flatnonzero(bad)
    leaves = jax.tree_util.tree_leaves_with_path(data)
    has = lambda path, leaf: f"x{jax.tree_util.keystr(path)} = {np.asarray(leaf[rows[0]]).tolist()}"  # noqa: E731
    first = ", ".join(has(*each) for each in leaves)
    first = first if len(first) <= 120 else first[:117] + "…"
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"row {rows[0]} ({first}){more}"
