"""The parametric bootstrap of the likelihood ratio. Every replicate is a lane that draws data of its own."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Key, Params
from ..contracts import capabilities as ask
from ..contracts import protocols
from ..contracts.components import can_be_drawn
from ..contracts.protocols import Algorithm
from ..contracts.result import FitResult
from ..contracts.status import is_failure
from ..drivers.asked import algorithm_for, check_model, check_values, make_options, prepare_inputs, take_in
from ..drivers.batch import plan_fold_of_lanes
from ..drivers.restarts import check_initializer, fit_restarts, take_best
from ..fold.chunks import plan_fold
from ..fold.folded import Folded
from ..fold.units import log_joint_of_units
from ..latent.finite import Labelled, Soft, as_read, in_place_of, restrict, unlabelled
from ..latent.starts import Initializer, KMeans, Responsibilities, as_initializer
from ..latent.units import by_row, units_of
from ..loop.derivative import Stop
from ..loop.run import Options, solve
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ..running.lanes import over, resolve_plan
from .resampling import lanes_at_once, run_replicates


@_tree.register
@dataclass(frozen=True)
class LikelihoodRatioTest:
    """What `likelihood_ratio_test` found.

    Attributes:
        statistic: 2 (log_lik of the alternative − log_lik of the null), (); NaN if a fit failed.
        p_value: (), by the replicates in which both fits succeeded; NaN if the statistic is. NumPy's float64, unless
            traced.
        replicates: (r,) statistics under the null; NaN where a fit failed.
        status: (r, 2) of the fits of the null and of the alternative to each replicate.
        null: `FitResult` of the null.
        alternative: `FitResult` of the alternative.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 30), jnp.linspace(2.0, 3.0, 30)])[:, None]
        >>> one, two = (jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2))
        >>> test = jaxem.likelihood_ratio_test(one, two, jax.random.key(0), x, n_replicates=19)
        >>> bool(test.statistic > test.replicates.max()), test.alternative.params.weights.round(2)
        (True, Array([0.5, 0.5], dtype=...))
    """

    statistic: Array
    p_value: Array
    replicates: Array
    status: Array
    null: FitResult
    alternative: FitResult


def _fit_alternative(
    plan: str,
    keys: Array,
    null: FitResult,
    alternative: Any,
    data: tuple[Data, Any],
    asked: tuple[Initializer, Options],
) -> FitResult:
    """The best fit from random starts and from one that nests the null, below whose objective EM cannot fall."""
    (init, options), (rows, weight) = asked, data
    starts = over(lambda key: ask.init(alternative, key, rows, weight, init), keys, plan)
    if (
        ask.offers(null.model, "log_joint")
        and ask.offers(null.model, "n_components")
        and ask.offers(alternative, "n_components")
    ):
        r = _posterior(null, rows, weight)
        nested = Responsibilities(_split(r, null.model, alternative))
        nested = ask.init(alternative, keys[0], rows, weight, nested)
        starts = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), starts, nested)
    return take_best(over(lambda params: solve(alternative, params, rows, weight, options), starts, plan))


def _posterior(null: FitResult, rows: Data, weight: Any) -> Array:
    """Responsibilities of the null, (n, k)."""
    if units_of(rows) is not None:
        folded = Folded(null.model, fast=False)
        return by_row(Soft()(log_joint_of_units(folded, null.params, rows, weight))[0], rows)
    return Soft()(restrict(null.model.log_joint(null.params, unlabelled(rows)), rows))[0]


def _split(r: Array, null: Any, alternative: Any) -> Array:
    """Responsibilities (n, k) of the null in the alternative: the heaviest component several times."""
    on, slots = _active(null), _active(alternative)
    position = jnp.cumsum(slots) - 1  # of each active component of the alternative, among those that are
    source = jnp.argsort(~on, stable=True)[jnp.minimum(position, len(on) - 1)]
    source = jnp.where(position < jnp.sum(on), source, jnp.argmax(jnp.sum(jnp.where(on[None], r, 0), 0)))
    copies = jnp.sum((source[None] == source[:, None]) & slots[None], 1)
    return jnp.where(slots[None], r[:, source] / copies[None], 0)


def _active(model: Any) -> Array:
    active = ask.told(model, "active", None)
    return jnp.ones(model.n_components, bool) if active is None else jnp.asarray(active)


_alternative_program = jax.jit(_fit_alternative, static_argnums=0)


def _statistic(null: FitResult, alternative: FitResult) -> Array:
    statistic = 2 * (alternative.log_lik - null.log_lik)
    return jnp.where(is_failure(null.status) | is_failure(alternative.status), jnp.nan, statistic)


def _drawn(model: Any, params: Params, key: Key, data: Data) -> Data:
    """Rows of the model in the place of the data's."""
    if ask.offers(model, "sample_like"):
        drawn = model.sample_like(params, key, data)
    else:
        drawn = model.sample(params, key, _tree.n_rows(data))[0]
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return in_place_of(drawn, _tree.cast_data(unlabelled(drawn), dtype))


def _test_lane(static: tuple[str, int], key: Key, shared: tuple) -> tuple[Array, Array]:
    plan, n_restarts = static
    null, fitted, alternative, (init, options), (data, *weights) = shared
    asked = (init, options.for_lane(protocols.number_of(key)))
    key_data, key_starts = jax.random.split(key)
    drawn = _drawn(fitted.model, fitted.params, key_data, data)
    for model in (null, alternative):
        drawn = as_read(model, drawn, fitted.objective.dtype)
    of_null = solve(null, fitted.params, drawn, weights[0], asked[1])
    keys = jax.random.split(key_starts, n_restarts)
    of_alternative = _fit_alternative(plan, keys, of_null, alternative, (drawn, weights[1]), asked)
    return _statistic(of_null, of_alternative), jnp.stack([of_null.status, of_alternative.status])


def likelihood_ratio_test(
    null: Any,
    alternative: Any,
    key: Key,
    data: Data,
    n_replicates: int = 199,
    *,
    n_restarts: int = 4,
    init: Initializer = KMeans(),
    plan: str = "auto",
    progress: bool = False,
    algorithm: Algorithm | None = None,
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
) -> LikelihoodRatioTest:
    """The parametric bootstrap of the likelihood ratio (McLachlan 1987), e.g. for the number of components.

    The ratio of nested mixtures is not χ²-distributed, so data sets like the data are drawn from the fitted null, and
    both models are fitted to each: p = (1 + #{replicates ≥ statistic}) / (1 + #replicates). A replicate has what is no
    outcome of the model as the data have it: the number of rows, missing entries, totals, covariates, offsets, those of
    a gate, labels. Fits that end by
    MAX_ITER count, because the data and the replicates stop by the same rule; failed ones do not. The null is fitted to
    a replicate from the params that it was drawn from; the alternative always from `n_restarts` starts and one that
    nests the null, so that no statistic is negative beyond rounding and the difference of the log priors.

    Args:
        null: the smaller model, with `init` and a method that draws: `sample_like(params, key, data) -> data`, rows in
            the place of the data's, or `sample(params, key, n) -> (data, latent states)`.
        alternative: the larger one, with `init`; e.g. a `Mixture` of one component more.
        key: of `jax.random`; the same key gives the same answer, whatever the plan.
        data: as in `fit`; with labels where both models have as many components.
        n_replicates: r; p-values are multiples of 1/(r + 1).
        n_restarts: random starts of a fit.
        init: how each start is drawn.
        plan: as in `fit_batch`.
        progress: as in `fit_batch`.
        algorithm: as in `fit`; None is `SQUAREM()` where the model has a closed M step and says which params are
            allowed, else `EM()`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.

    Returns:
        A `LikelihoodRatioTest`, whose values carry no derivative.

    Raises:
        ValueError: if the null cannot be sampled or has more components than the alternative, and as in `fit`.
        TypeError: as in `fit`.

    Status:
        Any of `Status`, by fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 30), jnp.linspace(2.0, 3.0, 30)])[:, None]
        >>> one, two = (jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2))
        >>> float(jaxem.likelihood_ratio_test(one, two, jax.random.key(0), x, n_replicates=19).p_value)
        0.05
    """
    plan = resolve_plan(plan)
    n_replicates, n_restarts = as_count("n_replicates", n_replicates), as_count("n_restarts", n_restarts)
    check_model(alternative)
    null, data, weight, dtype = take_in(null, data, None)
    alternative, data, other_weight, _ = prepare_inputs(alternative, data, None)
    _check_pair(null, alternative, data, init)
    rows = unlabelled(data)
    if not _tree.is_tracing(rows):
        check_values(ask.readable(null, rows), None)
    keys = jax.random.split(key, 3)
    fitted = fit_restarts(
        null, keys[0], data, n_restarts=n_restarts, init=init, plan=plan, algorithm=algorithm, tol=tol,
        max_iter=max_iter, chunk_size=chunk_size, derivative=Stop(),
    )  # fmt: skip
    drawn = jax.eval_shape(lambda key: _drawn(fitted.model, fitted.params, key, data), keys[0])
    if (got := jax.tree.map(jnp.shape, drawn)) != (want := jax.tree.map(jnp.shape, data)):
        raise ValueError(
            f"null: expected draws shaped as the data, {want}, got {got}; write sample_like(params, key, data) -> data."
        )
    at_once = lanes_at_once(plan, n_replicates, data, (n_restarts + 1) * ask.n_components(alternative, 1))
    fold = plan_fold_of_lanes(chunk_size, plan, at_once * (n_restarts + 1))
    algorithm = algorithm_for([null, alternative], algorithm)
    options = _tree.cast_floats(make_options(algorithm, tol, max_iter, Stop(), None, fold), dtype)
    whole = replace(options, plan=plan_fold(data, chunk_size))
    starts = jax.random.split(keys[1], n_restarts)
    other = _alternative_program(plan, starts, fitted, alternative, (data, other_weight), (as_initializer(init), whole))
    statistic = _statistic(fitted, other)
    shared = (null, fitted, alternative, (as_initializer(init), options), (data, weight, other_weight))
    static, lanes = (plan, n_restarts), jax.random.split(keys[2], n_replicates)
    replicates, status = run_replicates(_test_lane, static, lanes, shared, (plan, at_once, progress))
    return LikelihoodRatioTest(statistic, _p_value(statistic, replicates), replicates, status, fitted, other)


def _p_value(statistic: Array, replicates: Array) -> Any:
    """A ratio of two counts: of concrete values in NumPy's float64, so that 1/20 is 0.05."""
    if _tree.is_tracing(statistic, replicates):
        ratio = (1 + jnp.sum(replicates >= statistic)) / (1 + jnp.sum(~jnp.isnan(replicates)))
        return jnp.where(jnp.isnan(statistic), jnp.nan, ratio).astype(statistic.dtype)
    values = np.asarray(replicates)
    ratio = (1 + np.sum(values >= np.asarray(statistic))) / (1 + np.sum(~np.isnan(values)))
    return np.asarray(np.nan if np.isnan(statistic) else ratio)


def _check_pair(null: Any, alternative: Any, data: Data, init: Initializer) -> None:
    """Raises a ValueError if the null cannot be drawn from, or is not nested in the alternative."""
    for model in (null, alternative):
        ask.validate_data(model, unlabelled(data))
        check_initializer(init, _tree.n_rows(data), ask.n_components(model))
    family = ask.told(null, "family", None)
    if not (ask.offers(null, "sample_like") or ask.offers(null, "sample")) or not (
        family is None or can_be_drawn(family)
    ):
        raise ValueError(
            f"null: expected sample(params, key, n) -> (data, latent states) in model and family, or "
            f"sample_like(params, key, data) -> data of draws that are conditional on something, got {null!r} without; "
            "write one of these methods."
        )
    ours, theirs = ask.n_components(null, 0), ask.n_components(alternative, 0)
    if ours > theirs > 0:
        raise ValueError(f"null: expected at most the alternative's {theirs} components, got {ours}; swap the models.")
    if isinstance(data, Labelled) and (ours != theirs or not ask.offers(null, "sample_like")):
        raise ValueError(
            "data: expected rows without labels, or two models of as many components, which draw rows in the place of "
            "labelled ones by sample_like(params, key, data), got labelled data; leave the labels out."
        )
