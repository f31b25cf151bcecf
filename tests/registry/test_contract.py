"""What every model and algorithm of `contract.py` must satisfy.

Tests of one case follow one another and share compiled functions: the weighted fit of MAX_ITER iterations in float64
serves most of them, because everything but shapes and max_iter is a leaf. Programs of the tests' own are compiled
quickly rather than well (`quick_jit`); the drivers as users meet them are compiled as users have them compiled, and
give the same numbers.
"""

import functools
import inspect
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ALGORITHMS, CASES, MODELS, Case, N
from contract_cases import (
    EPS,
    INTEGER,
    MAX_ITER,
    UNEVEN,
    after,
    arrays,
    assert_close,
    assert_same_fit,
    em_first,
    fit,
    fit_as_users,
    fitted,
    for_cases,
    is_not,
    is_variant,
    number_of_iterations,
    quick_jit,
    repeated_rows,
    stopped,
)
from jax.flatten_util import ravel_pytree

import jaxem
from jaxem.contracts import capabilities as ask
from jaxem.fold.folded import Folded
from jaxem.fold.sources import is_additive

# --- the registry

# their M steps climb, and resolve params to the root of rounding, not to ROUNDING: see test_joint and test_densities
BY_CLIMBING = {jaxem.LogJoint, jaxem.Density}
# of a posterior without states; see test_state_space
BY_SERIES = {jaxem.LinearGaussianStateSpace, jaxem.StructuralModel}
# takes models of weights alone: see test_active_set
BY_WEIGHTS = {jaxem.ActiveSet, jaxem.FixedComponents}


def families_in(model: Any) -> set[type]:
    """The families of a mixture, with those that they are made of."""
    found = [model.family] if hasattr(model, "family") else []
    for family in found:
        parts = getattr(family, "parts", ())
        found.extend(parts.values() if isinstance(parts, dict) else parts)
    return {type(family) for family in found}


def test_everything_public_is_registered():
    public = [cls for cls in vars(jaxem).values() if inspect.isclass(cls) and not getattr(cls, "_is_protocol", False)]
    fields = lambda cls: getattr(cls, "__dataclass_fields__", {})  # noqa: E731
    has = lambda cls, *names: all(hasattr(cls, name) or name in fields(cls) for name in names)  # noqa: E731
    models = {cls for cls in public if has(cls, "m_step") and (has(cls, "e_step") or has(cls, "log_joint"))}
    algorithms = {cls for cls in public if has(cls, "step", "monotone")}
    families = {cls for cls in public if has(cls, "estimate", "log_prob", "statistics")}
    built = [entry.build() for entry in MODELS]
    assert models - BY_CLIMBING - BY_SERIES - BY_WEIGHTS == {type(model) for model in built}
    assert algorithms - BY_WEIGHTS == {type(entry.build()) for entry in ALGORITHMS}
    assert families - BY_CLIMBING == set().union(*[families_in(model) for model in built])
    em = [case.model.name for case in CASES if case.algorithm is ALGORITHMS[0]]
    assert em == [entry.name for entry in MODELS]
    assert len({case.name for case in CASES}) == len(CASES)
    for algorithm in ALGORITHMS[1:]:
        met = {case.model.name for case in CASES if case.algorithm is algorithm}
        assert met == {model.name for model in MODELS if algorithm.takes(model) and not model.variant}


# --- the model alone


@quick_jit
def two_arrows(model: Any, params: Any, data: Any, repeated: Any, draws: Any, noise: Any) -> dict[str, Any]:
    """What the model's two arrows say at params, and one iteration later."""
    weight = jnp.asarray(UNEVEN)
    bound = ask.bind(model, data, weight)
    fold = Folded(bound).e_step
    parts = [jax.tree.map(lambda leaf, s=s: leaf[s], (data, weight)) for s in (slice(13), slice(13, N))]
    stats, log_lik = fold(params, data, weight)
    mode = bound.m_step(params, stats)
    out: dict[str, Any] = {
        "whole": (stats, log_lik),
        "parts": [fold(params, *part) for part in parts],
        "bound_by_weight": ask.bind(model, data, jnp.asarray(INTEGER)),
        "bound_to_rows": ask.bind(model, repeated, None),
        "by_weight": fold(params, data, jnp.asarray(INTEGER)),
        "by_rows": fold(params, repeated, None),
        "mode": mode,
    }
    if hasattr(bound, "log_joint"):
        out |= _decomposition(bound, params, mode, data, draws)
    if hasattr(bound, "unconstrain") and hasattr(bound, "expected_log_joint"):
        out |= _surface_at_mode(bound, params, mode, stats, noise)
    return out


def _decomposition(bound: Any, params: Any, other: Any, data: Any, draws: Any) -> dict[str, Any]:
    """Q, and the bound of given responsibilities; states that are switched off take no rows."""
    posterior = jaxem.Soft()(bound.log_joint(params, data))[0]
    log_joint = bound.log_joint(other, data)
    fold = functools.partial(Folded(bound).e_step, params, data, jnp.asarray(UNEVEN))

    def one(draw: Any) -> Any:
        r = jnp.where(posterior > 0, draw, 0)
        r = r / jnp.sum(r, 1, keepdims=True)
        kl = jnp.sum(jax.scipy.special.xlogy(r, r) - jnp.where(r > 0, r * jnp.log(posterior), 0), 1)
        stats, lower_bound = fold(rule=jaxem.Given(r))
        direct = jnp.sum(UNEVEN * jnp.sum(jnp.where(r > 0, r * log_joint, 0), 1))
        q = bound.expected_log_joint(other, stats) if hasattr(bound, "expected_log_joint") else direct
        return {"bound": lower_bound, "gap": jnp.sum(UNEVEN * kl), "q": q, "q_by_rows": direct}

    return {"at_posterior": fold(rule=jaxem.Given(posterior)), **jax.vmap(one)(draws)}


def _surface_at_mode(bound: Any, params: Any, mode: Any, stats: Any, noise: Any) -> dict[str, Any]:
    """Q + log prior in free coordinates, at the M step's output."""
    free = bound.unconstrain(mode)
    flat, unravel = ravel_pytree(free)
    flat_start = ravel_pytree(bound.unconstrain(params))[0]

    def surface(flat: Any) -> Any:
        params = bound.constrain(unravel(flat))
        return bound.expected_log_joint(params, stats) + ask.log_prior(bound, params)

    return {
        "round_trip": bound.constrain(free),
        "gradient": jax.grad(surface)(flat),
        "gradient_at_start": jax.grad(surface)(flat_start),
        "at_mode": surface(flat),
        "nearby": jax.vmap(lambda step: surface(flat + 1e-3 * step[: flat.size]))(noise),
    }


@functools.cache
def facts(case: Case) -> dict[str, Any]:
    entry, rng = case.model, np.random.default_rng(1)
    model, params, data, repeated = arrays((entry.build(), entry.start(), entry.data, repeated_rows(case)))
    k = jax.eval_shape(model.log_joint, params, data).shape[1] if hasattr(model, "log_joint") else 1
    draws = rng.dirichlet(np.full(k, 0.5), (20, N))
    return jax.device_get(two_arrows(model, params, data, repeated, draws, rng.normal(size=(8, 1000))))


def fact(case: Case, name: str) -> Any:
    if name not in facts(case):
        pytest.skip("the model lacks the methods for this")
    return facts(case)[name]


@for_cases(algorithms=False, core=True)
def test_stats_add_over_chunks(case):
    if not is_additive(case.model.build()):
        pytest.skip("statistics are rows")
    # two orders of summation of N terms of either sign
    assert_close(jax.tree.map(np.add, *fact(case, "parts")), fact(case, "whole"), 1e-13)


@for_cases(algorithms=False, core=True)
def test_integer_weights_are_repeated_rows(case):
    assert_close(fact(case, "bound_by_weight"), fact(case, "bound_to_rows"), 1e-13)
    part = slice(None) if is_additive(case.model.build()) else slice(1, None)  # of statistics that are rows
    assert_close(fact(case, "by_weight")[part], fact(case, "by_rows")[part], 1e-13)
    by_rows = fit(case, repeated_rows(case), np.ones(N), tol=1e-6)
    assert_same_fit(fit(case, weight=INTEGER, tol=1e-6), by_rows)


@for_cases(algorithms=False, core=True)
def test_the_gradient_of_q_plus_log_prior_vanishes_at_the_m_step(case):
    assert_close(fact(case, "round_trip"), fact(case, "mode"), 1e-13)
    # the gradient is a difference of sums over N rows of terms of order 10
    assert np.max(np.abs(fact(case, "gradient"))) < 1e-13 * N * 10
    assert np.max(np.abs(fact(case, "gradient_at_start"))) > 0.1
    # and it is a maximum: steps of 1e-3 cost some N·1e-6
    assert np.max(fact(case, "nearby")) < fact(case, "at_mode") - 1e-8


@for_cases(algorithms=False, core=True)
def test_q_of_the_statistics_is_the_sum_over_rows(case):
    if case.model.augmented:
        pytest.skip("Q is of more than rows and states")
    np.testing.assert_allclose(fact(case, "q"), fact(case, "q_by_rows"), rtol=1e-13)


@for_cases(algorithms=False, core=True)
def test_any_responsibilities_give_a_lower_bound(case):
    """log p(x) = bound(r) + KL(r ‖ posterior), for every r."""
    stats, log_lik = fact(case, "whole")
    assert np.all(fact(case, "bound") < log_lik)
    np.testing.assert_allclose(fact(case, "bound") + fact(case, "gap"), np.full(20, log_lik), rtol=1e-12)
    assert_close(fact(case, "at_posterior"), (stats, log_lik), 1e-13)


# --- the fit


@for_cases(cross=True, core=True)
def test_the_objective_never_falls(case):
    if not case.algorithm.build().monotone:
        pytest.skip("the algorithm does not promise it")
    result = fitted(case)
    history = np.asarray(result.history)
    allowance = 16 * EPS * (UNEVEN.sum() + np.abs(history[:-1]))  # of the status DECREASED
    assert int(result.status) == jaxem.Status.MAX_ITER and np.all(np.isfinite(history))
    assert np.all(np.diff(history) >= -allowance)
    assert history[-1] > history[0] + 1


@for_cases(core=True)
def test_the_objective_is_that_of_the_params_returned(case):
    result = stopped(case)
    history, n_iter = np.asarray(result.history), int(result.n_iter)
    assert int(result.status) == jaxem.Status.CONVERGED
    assert n_iter == number_of_iterations(case) or 1 < n_iter < MAX_ITER
    assert history.shape == (MAX_ITER + 1,)
    np.testing.assert_array_equal(np.isnan(history), np.arange(MAX_ITER + 1) > n_iter)
    assert history[n_iter] == result.objective
    again = fit(replace(case, algorithm=ALGORITHMS[0]), start=result.params, tol=-1.0)
    np.testing.assert_allclose(again.history[0], result.objective, rtol=1e-14)
    prior = ask.log_prior(result.model, result.params)
    np.testing.assert_allclose(result.log_lik + prior, result.objective, rtol=1e-14)
    if hasattr(result.model, "log_prob"):
        rows = np.asarray(result.model.log_prob(result.params, arrays(case.model.data)))
        np.testing.assert_allclose(result.log_lik, rows @ UNEVEN, rtol=1e-13)
    if isinstance(case.algorithm.build(), jaxem.EM):
        assert int(result.n_evals) == n_iter + 1
        limit = float(fitted(case).objective)
        assert -1e-13 * abs(limit) <= limit - float(result.objective) <= 2e-6 * float(result.total_weight)
        np.testing.assert_array_equal(fitted(case).history[: n_iter + 1], history[: n_iter + 1])


@for_cases()
def test_too_few_iterations_give_max_iter(case):
    result = after(case, 2, max_iter=2)
    assert int(result.status) == jaxem.Status.MAX_ITER
    assert int(result.n_iter) == 2 and result.history.shape == (3,)
    assert not bool(result.converged) and not bool(result.failed)
    with pytest.raises(RuntimeError, match="MAX_ITER"):
        result.check()
    assert_close(result.history, fitted(case).history[:3])


@for_cases(
    slow=em_first(is_not("diagonal")),
    weekly=em_first(),
    only=("full", "diagonal", "logistic", "gamma", "product", "student_t"),
)
def test_jit_equals_eager(case):
    with jax.disable_jit():
        eager = fit_as_users(case, tol=0.0, max_iter=2)
    assert_same_fit(eager, after(case, 2, max_iter=2))


def bootstraps(case: Case, n_lanes: int) -> Any:
    """Data of the case resampled, leading axis of lanes."""
    rows = np.random.default_rng(4).integers(0, N, (n_lanes, N))
    return jax.tree.map(lambda leaf: leaf[rows], case.model.data)


def stacked(tree: Any, n_lanes: int) -> Any:
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (n_lanes, *np.shape(leaf))), tree)


@functools.cache
def lanes(case: Case, of_batch: bool = False) -> tuple[Any, list[jaxem.FitResult]]:
    """Four problems, the third with a NaN, and each of the others fitted by itself; a batch gives keys to its lanes."""
    data = bootstraps(case, 4)
    build = case.algorithm.build

    def one(i: int) -> jaxem.FitResult:
        own = replace(case.algorithm, build=lambda: ask.for_lane(build(), jnp.uint32(i)) if of_batch else build())
        return fit(replace(case, algorithm=own), jax.tree.map(lambda leaf: leaf[i], data), tol=1e-6)

    alone = [one(i) for i in range(4)]
    jax.tree.leaves(data)[0][2, 5] = case.model.unreadable
    return data, alone


def assert_lanes(case: Case, result: jaxem.FitResult, of_batch: bool = False) -> None:
    _, alone = lanes(case, of_batch)
    for i, expected in enumerate(alone):
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], replace(result, lane_efficiency=None))
        if i == 2:
            assert int(lane.status) == jaxem.Status.NONFINITE and bool(lane.failed) and not bool(lane.converged)
            if not ask.by_rows(case.algorithm.build()):  # which meets the row later
                assert int(lane.n_iter) == 0 and np.isnan(lane.objective)
                assert_close(lane.params, arrays(case.model.start()))
        else:
            assert_same_fit(lane, expected)


@for_cases(slow=em_first(is_variant))
def test_vmap_equals_a_loop_and_nan_stays_in_its_lane(case):
    data, _ = lanes(case)

    @quick_jit
    @jax.vmap
    def fit_lane(start: Any, data: Any, weight: Any) -> jaxem.FitResult:
        return fit_as_users(case, data, weight, start=start)

    assert_lanes(case, fit_lane(stacked(case.model.start(), 4), data, stacked(UNEVEN, 4)))


@for_cases(slow=is_not("full"))
@pytest.mark.parametrize("plan", ["sequential", "lanes"])
def test_a_batch_equals_a_loop_and_nan_stays_in_its_lane(case, plan):
    data, _ = lanes(case)
    result = jaxem.fit_batch(
        case.model.build(), stacked(case.model.start(), 4), data, sample_weight=stacked(UNEVEN, 4),
        algorithm=case.algorithm.build(), tol=1e-6, max_iter=MAX_ITER, plan=plan,
    )  # fmt: skip
    assert_lanes(case, result, of_batch=True)
    with pytest.raises(RuntimeError, match="NONFINITE"):
        result.check()
    if hasattr(result.model, "component_axes") and hasattr(result.params, "weights"):
        weights = np.asarray(result.ordered().params.weights)
        np.testing.assert_array_equal(weights, -np.sort(-np.asarray(result.params.weights), 1))
