"""The front door of the drivers: options and arguments, checked once, for all of them."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Params
from ..algorithms.em import EM
from ..algorithms.squarem import SQUAREM
from ..contracts import capabilities as ask
from ..contracts.checks import warn_if_rounded
from ..contracts.domains import check_params
from ..contracts.names import check_names
from ..contracts.protocols import Algorithm, StoppingRule
from ..fold.chunks import FoldPlan, on_auto_axes
from ..fold.folded import has_closed_m_step
from ..fold.present import present_rows
from ..latent.finite import Labelled, as_read, check_known, unlabelled
from ..latent.grouped import check_alike_within
from ..latent.informative import informed_weight
from ..loop.derivative import Derivative
from ..loop.run import Options
from ..loop.stopping import Aitken
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_rows, check_weight_shape
from ..numerics.processes import check_alike, everywhere, is_here, lying_as
from ..numerics.programs import program


class Given(NamedTuple):
    """What a driver of one table is given, as the model reads it; rows that say nothing have no weight.

    Attributes:
        model: its leaves in the dtype of the fit.
        data: (n, …), raw or `Labelled`.
        sample_weight: (n,) or None.
        dtype: of the fit.
    """

    model: Any
    data: Data
    sample_weight: Array | None
    dtype: Any


def take_in(model: Any, data: Data, sample_weight: Any) -> Given:
    """Model, table and weights as they come from a caller, on axes that the compiler cuts; shapes and dtypes checked.

    Raises:
        ValueError: on a model that cannot be fitted, empty data or weights of a wrong shape.
        TypeError: on a dtype that cannot be fitted.
    """
    check_model(model)
    data, sample_weight = on_auto_axes((as_rows(data), sample_weight))
    warn_if_rounded(data)
    return prepare_inputs(model, data, sample_weight)


def make_options(
    algorithm: Algorithm, tol: Any, max_iter: int, derivative: Derivative, stop: StoppingRule | None, plan: FoldPlan
) -> Options:
    """Options, checked.

    Raises:
        ValueError: if an option is out of range, or a derivative is asked of an algorithm that cannot give it.
    """
    max_iter = as_count("max_iter", max_iter, 0)
    if isinstance(tol, numbers.Real) and np.isnan(float(tol)):
        raise ValueError("tol: expected a number, got NaN; pass a negative number to run max_iter iterations.")
    for name, value, method in (("algorithm", algorithm, "step"), ("derivative", derivative, "attach")):
        if not hasattr(value, method) or isinstance(value, type):
            raise ValueError(f"{name}: expected an object with a method {method}, e.g. EM(), got {value!r}.")
    if stop is not None and ask.has_fixed_length(algorithm):
        raise ValueError(
            f"stop: expected None, as {type(algorithm).__name__} runs max_iter iterations and no rule ends it; got "
            f"{stop!r}."
        )
    rule: StoppingRule = Aitken(tol) if stop is None else stop
    if not hasattr(rule, "converged"):
        raise ValueError(f"stop: expected a stopping rule, e.g. Aitken(1e-6), got {stop!r}.")
    for option in (algorithm, rule):
        if ask.offers(option, "validate"):
            option.validate()  # type: ignore[attr-defined]
    return Options(algorithm, rule, derivative, max_iter, plan)


def algorithm_for(models: Any, algorithm: Algorithm | None) -> Algorithm:
    """The algorithm asked for, or, of the drivers of many fits, the default.

    SQUAREM where every model has a closed M step and says which params are allowed: to the limit it takes a third of
    EM's steps or less, and what ends as MAX_ITER under EM arrives (`python -m benchmarks.limit`). EM elsewhere.
    """
    if algorithm is not None:
        return algorithm
    jumps = all(has_closed_m_step(model) and ask.knows_space(ask.told(model, "family", model)) for model in models)
    return SQUAREM() if jumps else EM()


def prepare_inputs(model: Any, data: Data, sample_weight: Any) -> Given:
    """Casts model leaves and weights to the data's dtype, checks the shapes; data as the model reads them.

    Rows that say nothing get no weight.

    Raises:
        ValueError: on empty data or weights of a wrong shape.
        TypeError: on a dtype that cannot be fitted.
    """
    rows = as_rows(unlabelled(data))
    n = _tree.n_rows(rows)
    dtype = _tree.float_dtype(rows)
    if n == 0:
        raise ValueError("data: expected at least one row, got n = 0.")
    data = as_read(model, data, dtype)
    if sample_weight is not None:
        check_weight_shape(sample_weight, n)
        sample_weight = jnp.asarray(lying_as(unlabelled(data), sample_weight), dtype)
    model = _tree.cast_floats(model, dtype)
    return Given(model, data, informed_weight(model, data, sample_weight), dtype)


def check_model(model: Any) -> None:
    """Raises a ValueError that says which methods to write, if the model cannot be fitted."""
    has = lambda name: hasattr(model, name)  # noqa: E731
    if isinstance(model, type):
        raise ValueError(f"model: expected an instance, got the class {model.__name__}; call it.")
    check_names(model)
    if not has("e_step") and not has("log_joint"):
        raise ValueError(
            f"model: {type(model).__name__} has no E step; write log_joint(params, data) -> (n, k), the log joint "
            "density of every row and latent state, or e_step(params, data, sample_weight) -> (stats, log_lik)."
        )
    needs_q = has("e_step") or has("statistics")  # else the statistics are the rows, of which Q is a sum
    if needs_q and not has("m_step") and not has("expected_log_joint"):
        raise ValueError(
            f"model: {type(model).__name__} has no M step; write m_step(params, stats) -> params, or "
            "expected_log_joint(params, stats) -> (), which is then climbed."
        )


def check_arguments(
    model: Any, params: Params, data: Data, sample_weight: Array | None, *, is_whole: bool = True
) -> None:
    """Raises if params do not fit model and data, or concrete data or weights hold what no model can use.

    `is_whole` False: a batch, of which only the rows are looked at.
    """
    if is_whole and not is_here(data):  # first: what only some processes refuse, the others would wait for
        check_alike(model=model, params=params)
    ask.validate(model, params, data)
    check_params(model, params)
    if isinstance(data, Labelled):
        tells = ask.offers(model, "log_joint")
        k = jax.eval_shape(model.log_joint, params, unlabelled(data)).shape[1] if tells else ask.n_components(model)
        check_known(data, k, sample_weight)
    check_alike_within(data, sample_weight)
    if _tree.is_tracing(data, sample_weight):
        return

    def check_rows(rows: Data, sample_weight: Array | None) -> None:
        check_values(ask.readable(model, rows), sample_weight)
        ask.check_data(model, rows, sample_weight)

    everywhere(check_rows, unlabelled(data), sample_weight)
    if is_whole:
        ask.check_table(model, unlabelled(data), sample_weight)


@program(at_most=2**17)
def _bad_rows(data: Data, sample_weight: Array | None) -> tuple[Array, Array]:
    n = _tree.n_rows(data)
    bad = jnp.zeros(n, bool)
    for leaf in jax.tree.leaves(data):
        bad = bad | jnp.any(~jnp.isfinite(leaf.reshape(n, -1)), 1)
    if sample_weight is not None:
        bad = bad & (sample_weight != 0)
    return jnp.any(bad), bad


def check_values(data: Data, sample_weight: Array | None) -> None:
    """Raises a ValueError that names the first rows with NaN or inf, or with an impossible weight."""
    if sample_weight is not None:
        weight = np.asarray(sample_weight)
        rows = np.flatnonzero(~((weight >= 0) & np.isfinite(weight)))
        if len(rows):
            raise ValueError(
                f"sample_weight: expected finite non-negative weights, got {weight[rows[0]]} in {_name_rows(rows)}."
            )
    with jax.ensure_compile_time_eval():  # the params may be traced
        found, bad = _bad_rows(unlabelled(data), sample_weight)
        found = bool(found)
    if found:
        rows = np.flatnonzero(np.asarray(bad))
        raise ValueError(
            f"data: expected finite values, got NaN or inf in {_name_rows(rows)}; "
            "drop these rows or give them sample_weight 0."
        )


@program(at_most=2**14)
def _impossible_rows(model: Any, params: Params, data: Data, sample_weight: Array | None) -> Array:
    bound, rows = ask.bind(model, data, sample_weight), present_rows(data, sample_weight)
    # of series, whose states are not of rows, the evidence
    best = jnp.max(bound.log_joint(params, rows), 1) if ask.offers(bound, "log_joint") else bound.log_prob(params, rows)
    bad = ~(best > -jnp.inf)
    return bad if sample_weight is None else bad & (sample_weight != 0)


def check_support(model: Any, params: Params, data: Data, sample_weight: Array | None) -> None:
    """Raises a ValueError that names the first rows that no state explains: outside the support of a user's density.

    A model that knows more of what may be wrong at the start says that itself.
    """
    if ask.offers(model, "check_start"):
        return model.check_start(params, data, sample_weight)
    with jax.ensure_compile_time_eval():
        bad = np.asarray(_impossible_rows(model, params, data, sample_weight))
    if bad.any():
        rows = np.flatnonzero(bad)
        raise ValueError(
            f"data: expected rows that some latent state explains at the start params, got log density −inf or NaN in "
            f"{_name_rows(rows)}; data outside the support of a density cannot be fitted by it."
        )


def _name_rows(rows: np.ndarray) -> str:
    first = ", ".join(str(row) for row in rows[:5])
    return f"row{'s' if len(rows) > 1 else ''} {first}" + (f", … ({len(rows)} in all)" if len(rows) > 5 else "")
