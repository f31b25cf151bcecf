"""The parametric bootstrap of the likelihood ratio. Every replicate is a lane that draws data of its own."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from . import _tree, protocols
from ._typing import Array, Data, Key
from .algorithms.em import EM
from .arguments import as_count, as_rows
from .batch import plan_fold_of_lanes
from .chunks import on_auto_axes, plan_fold
from .derivative import Stop
from .fitting import Options, check_model, check_values, make_options, prepare_inputs, solve, warn_if_rounded
from .initialize import Initializer, KMeans, Responsibilities, as_initializer
from .lanes import over, resolve_plan
from .protocols import Algorithm
from .resampling import lanes_at_once, responsibilities_of, run_replicates
from .restarts import check_initializer, fit_restarts, take_best
from .result import FitResult, is_failure
from .rules import Labelled


@_tree.register
@dataclass(frozen=True)
class LikelihoodRatioTest:
    """What `likelihood_ratio_test` found.

    Attributes:
        statistic: 2 (log_lik of the alternative − log_lik of the null), (); NaN if a fit failed.
        p_value: (), by the replicates in which both fits succeeded; NaN if the statistic is.
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
    plan: str, keys: Array, null: FitResult, alternative: Any, data: Data, asked: tuple[Initializer, Options]
) -> FitResult:
    """The best fit from random starts and from one that nests the null, below whose objective EM cannot fall."""
    init, options = asked
    starts = over(lambda key: protocols.init(alternative, key, data, None, init), keys, plan)
    if (
        hasattr(null.model, "log_joint")
        and hasattr(null.model, "n_components")
        and hasattr(alternative, "n_components")
    ):
        nested = Responsibilities(_split(responsibilities_of(null.model, null.params, data), null.model, alternative))
        nested = protocols.init(alternative, keys[0], data, None, nested)
        starts = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), starts, nested)
    return take_best(over(lambda params: solve(alternative, params, data, None, options), starts, plan))


def _split(r: Array, null: Any, alternative: Any) -> Array:
    """Responsibilities (n, k) of the null in the alternative: the heaviest component several times."""
    on, slots = _active(null), _active(alternative)
    position = jnp.cumsum(slots) - 1  # of each active component of the alternative, among those that are
    source = jnp.argsort(~on, stable=True)[jnp.minimum(position, len(on) - 1)]
    source = jnp.where(position < jnp.sum(on), source, jnp.argmax(jnp.sum(jnp.where(on[None], r, 0), 0)))
    copies = jnp.sum((source[None] == source[:, None]) & slots[None], 1)
    return jnp.where(slots[None], r[:, source] / copies[None], 0)


def _active(model: Any) -> Array:
    active = getattr(model, "active", None)
    return jnp.ones(model.n_components, bool) if active is None else jnp.asarray(active)


_alternative_program = jax.jit(_fit_alternative, static_argnums=0)


def _statistic(null: FitResult, alternative: FitResult) -> Array:
    statistic = 2 * (alternative.log_lik - null.log_lik)
    return jnp.where(is_failure(null.status) | is_failure(alternative.status), jnp.nan, statistic)


def _test_lane(static: tuple[str, int, int], key: Key, shared: tuple) -> tuple[Array, Array]:
    plan, n, n_restarts = static
    null, fitted, alternative, (init, options) = shared
    asked = (init, options.for_lane(protocols.number_of(key)))
    key_data, key_starts = jax.random.split(key)
    drawn = fitted.model.sample(fitted.params, key_data, n)[0]
    for model in (null, alternative):
        drawn = protocols.cast_rows(model, drawn, fitted.objective.dtype)
    data = drawn
    of_null = solve(null, fitted.params, data, None, asked[1])
    keys = jax.random.split(key_starts, n_restarts)
    of_alternative = _fit_alternative(plan, keys, of_null, alternative, data, asked)
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
    algorithm: Algorithm = EM(),
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
) -> LikelihoodRatioTest:
    """The parametric bootstrap of the likelihood ratio (McLachlan 1987), e.g. for the number of components.

    The ratio of nested mixtures is not χ²-distributed, so data sets of the size of the data are drawn from the fitted
    null, and both models are fitted to each: p = (1 + #{replicates ≥ statistic}) / (1 + #replicates). Fits that end by
    MAX_ITER count, because the data and the replicates stop by the same rule; failed ones do not. The null is fitted to
    a replicate from the params that it was drawn from; the alternative always from `n_restarts` starts and one that
    nests the null, so that no statistic is negative beyond rounding and the difference of the log priors.

    Args:
        null: the smaller model, with `init` and `sample(params, key, n) -> (data, latent states)`.
        alternative: the larger one, with `init`; e.g. a `Mixture` of one component more.
        key: of `jax.random`; the same key gives the same answer, whatever the plan.
        data: as in `fit`, without labels.
        n_replicates: r; p-values are multiples of 1/(r + 1).
        n_restarts: random starts of a fit.
        init: how each start is drawn.
        plan: as in `fit_batch`.
        progress: as in `fit_batch`.
        algorithm: as in `fit`.
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
    for model in (null, alternative):
        check_model(model)
    data = on_auto_axes(as_rows(data))
    warn_if_rounded(data)
    null, data, _, dtype = prepare_inputs(null, data, None)
    alternative, data = _tree.cast_floats(alternative, dtype), protocols.cast_rows(alternative, data, dtype)
    _check_pair(null, alternative, data, init)
    if not _tree.is_tracing(data):
        check_values(null.readable(data) if hasattr(null, "readable") else data, None)
    keys = jax.random.split(key, 3)
    fitted = fit_restarts(
        null, keys[0], data, n_restarts=n_restarts, init=init, plan=plan, algorithm=algorithm, tol=tol,
        max_iter=max_iter, chunk_size=chunk_size, derivative=Stop(),
    )  # fmt: skip
    drawn = jax.eval_shape(lambda key: fitted.model.sample(fitted.params, key, _tree.n_rows(data))[0], keys[0])
    if (got := jax.tree.map(jnp.shape, drawn)) != (want := jax.tree.map(jnp.shape, data)):
        raise ValueError(f"null: expected sample to return (data, latent states), data shaped {want}, got {got}.")
    at_once = lanes_at_once(plan, n_replicates, data, (n_restarts + 1) * getattr(alternative, "n_components", 1))
    fold = plan_fold_of_lanes(chunk_size, plan, at_once * (n_restarts + 1))
    options = _tree.cast_floats(make_options(algorithm, tol, max_iter, Stop(), None, fold), dtype)
    whole = replace(options, plan=plan_fold(data, chunk_size))
    starts = jax.random.split(keys[1], n_restarts)
    other = _alternative_program(plan, starts, fitted, alternative, data, (as_initializer(init), whole))
    statistic = _statistic(fitted, other)
    shared = (null, fitted, alternative, (as_initializer(init), options))
    static, lanes = (plan, _tree.n_rows(data), n_restarts), jax.random.split(keys[2], n_replicates)
    replicates, status = run_replicates(_test_lane, static, lanes, shared, (plan, at_once, progress))
    p_value = (1 + jnp.sum(replicates >= statistic)) / (1 + jnp.sum(~jnp.isnan(replicates)))
    p_value = jnp.where(jnp.isnan(statistic), jnp.nan, p_value).astype(statistic.dtype)
    return LikelihoodRatioTest(statistic, p_value, replicates, status, fitted, other)


def _check_pair(null: Any, alternative: Any, data: Data, init: Initializer) -> None:
    """Raises a ValueError if the null cannot be drawn from, or is not nested in the alternative."""
    for model in (null, alternative):
        if hasattr(model, "validate_data"):
            model.validate_data(data)
        check_initializer(init, _tree.n_rows(data), getattr(model, "n_components", None))
    if isinstance(data, Labelled):
        raise ValueError("data: expected rows without labels, which no draw from the null has; got labelled data.")
    if not hasattr(null, "sample") or not hasattr(getattr(null, "family", null), "sample"):
        raise ValueError(
            f"null: expected sample(params, key, n) -> (data, latent states) in model and family, got {null!r} without;"
            " write this method."
        )
    ours, theirs = getattr(null, "n_components", 0), getattr(alternative, "n_components", 0)
    if ours > theirs > 0:
        raise ValueError(f"null: expected at most the alternative's {theirs} components, got {ours}; swap the models.")
