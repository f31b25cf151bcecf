"""Standard errors against published ones and closed forms; influence against actual refits."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import quick_jit
from helpers import once_a_week
from jax.flatten_util import ravel_pytree
from joint_cases import CASES as JOINT_CASES
from joint_cases import CELLS, COUNTS, beta_3_2, biochemists, fit_linkage, linkage_model, zero_inflated
from reference_cases import CASES, _data, _model, _params

import jaxem
from jaxem import Status
from jaxem.fold.chunks import FoldPlan
from jaxem.inference.information import observed_information
from jaxem.loop.equation import Score

WITH_ERRORS = [case for case in CASES if "standard_errors" in case["expected"]]


def close(got: Any, want: Any, rtol: float, atol: float = 0.0) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


# --- published values


def _quick(case: dict[str, Any]) -> bool:
    return case["id"].startswith(("gmm_faithful_K2", "acidity"))


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case["id"], marks=() if _quick(case) else once_a_week) for case in WITH_ERRORS],
)
def test_standard_errors_of_every_reference_mixture(case):
    found = jaxem.standard_errors(_model(case), _params(case, case["expected"]["params"]), _data(case))
    assert found.status == Status.CONVERGED
    # listed for the optimum itself: both are the Hessian in float64
    close(found.standard_errors, _params(case, case["expected"]["standard_errors"]), rtol=1e-8)


def test_there_are_reference_mixtures_of_every_covariance():
    assert {case["covariance"] for case in WITH_ERRORS} == {"full", "tied", "diagonal", "spherical"}


@pytest.mark.parametrize(("name", "prior"), [("dlr_linkage", None), ("dlr_linkage_map_beta32", beta_3_2)])
def test_standard_error_of_the_linkage_data(name, prior):
    model = linkage_model(**({} if prior is None else {"log_prior": prior}))
    theta = fit_linkage(model).params
    found = jaxem.standard_errors(model, theta, CELLS, sample_weight=COUNTS)
    want = JOINT_CASES[name]["expected"]["standard_errors"]["theta"][0]
    assert abs(float(found.standard_errors) - want) < 1e-6
    np.testing.assert_allclose(found.covariance, [[want**2]], rtol=1e-5)


def test_standard_errors_of_a_zero_inflated_regression_agree_with_pscl():
    case, model, data = JOINT_CASES["zip_biochemists_int"], jaxem.LogJoint(zero_inflated, 2), biochemists()
    want = case["expected"]
    params = {"beta": jnp.asarray(want["params"]["beta"]), "gamma": jnp.asarray(want["params"]["gamma"][0])}
    found = jaxem.standard_errors(model, params, data).standard_errors
    np.testing.assert_allclose(found["beta"], want["standard_errors"]["beta"], rtol=1e-3)
    np.testing.assert_allclose(found["gamma"], want["standard_errors"]["gamma"][0], rtol=1e-3)


# --- what theory says


N = 120
X = np.concatenate([np.random.default_rng(0).normal(0, 1, 70), np.random.default_rng(1).normal(3, 0.7, 50)])[:, None]
WEIGHT = np.linspace(0.5, 1.5, N)
TWO = jaxem.Mixture(jaxem.DiagonalNormal(floor=0.01), 2, concentration=np.array([2.0, 1.5]))
START = jaxem.MixtureParams(
    jnp.array([0.6, 0.4]), jaxem.NormalParams(jnp.array([[0.0], [3.0]]), jnp.array([[1.0], [0.5]]))
)


def fit_two(weight: Any = WEIGHT, tol: Any = -1.0) -> jaxem.MixtureParams:
    return jaxem.fit(TWO, START, X, sample_weight=weight, tol=tol, max_iter=500).params


@pytest.mark.slow
def test_oakes_identity_gives_the_hessian_away_from_the_optimum_too():
    arguments = (TWO, jnp.asarray(X), jnp.asarray(WEIGHT))
    flat, to_params = Score(FoldPlan()).coordinates(START, arguments)

    def objective(flat):
        bound, params = jaxem.bind(TWO, arguments[1], arguments[2]), to_params(flat)
        return jnp.sum(arguments[2] * bound.log_prob(params, arguments[1])) + bound.log_prior(params)

    got = quick_jit(lambda flat: observed_information(flat, to_params, arguments, FoldPlan()))(flat)
    np.testing.assert_allclose(got, -quick_jit(jax.hessian(objective))(flat), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_any_function_of_the_params_by_the_delta_method():
    params = fit_two()
    both = jaxem.standard_errors(TWO, params, X, sample_weight=WEIGHT)
    gap = lambda params: params.components.mean[1, 0] - params.components.mean[0, 0]  # noqa: E731
    found = jaxem.standard_errors(TWO, params, X, sample_weight=WEIGHT, of=gap)
    c = both.covariance  # in the order weights, means, variances
    np.testing.assert_allclose(found.standard_errors, np.sqrt(c[2, 2] + c[3, 3] - 2 * c[2, 3]), rtol=1e-10)
    np.testing.assert_allclose(both.standard_errors.weights[0], both.standard_errors.weights[1], rtol=1e-10)
    np.testing.assert_allclose(jnp.sqrt(jnp.diagonal(c))[2:4], both.standard_errors.components.mean[:, 0], rtol=1e-12)


@pytest.mark.slow
def test_the_sandwich_is_made_of_the_scores_of_the_rows():
    params = fit_two()
    arguments = (TWO, jnp.asarray(X), jnp.asarray(WEIGHT))
    flat, to_params = Score(FoldPlan()).coordinates(params, arguments)
    scores = quick_jit(jax.jacrev(lambda flat: TWO.log_prob(to_params(flat), arguments[1])))(flat)
    bread = np.linalg.inv(quick_jit(lambda flat: observed_information(flat, to_params, arguments, FoldPlan()))(flat))
    slope = jax.jacfwd(lambda flat: ravel_pytree(to_params(flat))[0])(flat)
    want = slope @ bread @ (scores.T @ (WEIGHT[:, None] * scores)) @ bread @ slope.T
    found = jaxem.standard_errors(TWO, params, X, sample_weight=WEIGHT, covariance=jaxem.Sandwich())
    np.testing.assert_allclose(found.covariance, want, rtol=1e-8, atol=1e-12)
    plain = jaxem.standard_errors(TWO, params, X, sample_weight=WEIGHT)
    assert not np.allclose(plain.covariance, want, rtol=1e-2)


def test_integer_weights_are_repeated_rows_and_rows_of_weight_zero_do_not_exist():
    weight = np.resize([0.0, 1.0, 2.0], N)
    x = np.where(weight[:, None] > 0, X, np.nan)
    repeated = np.repeat(X, weight.astype(int), 0)
    for kind in (jaxem.ObservedInformation(), jaxem.Sandwich()):
        got = jaxem.standard_errors(TWO, START, x, sample_weight=weight, covariance=kind)
        want = jaxem.standard_errors(TWO, START, repeated, covariance=kind)
        close(got, want, rtol=1e-8)


def test_a_component_of_weight_zero_is_held_and_the_others_are_as_without_it():
    params = fit_two()
    alone = jaxem.standard_errors(TWO, params, X, sample_weight=WEIGHT).standard_errors
    for order in itertools.permutations(range(3)):
        three = jaxem.Mixture(TWO.family, 3, concentration=np.array([2.0, 1.5, 1.0])[list(order)])
        grown = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]])[np.array(order)], params)  # noqa: B023
        grown = grown._replace(weights=jnp.array([*params.weights, 0.0])[np.array(order)])
        found = jaxem.standard_errors(three, grown, X, sample_weight=WEIGHT)
        assert found.status == Status.CONVERGED
        place = np.argsort(order)
        close(jax.tree.map(lambda leaf: leaf[place[:2]], found.standard_errors), alone, rtol=1e-8)  # noqa: B023
        for leaf in jax.tree.leaves(found.standard_errors):
            np.testing.assert_array_equal(leaf[place[2]], 0)


@pytest.mark.slow
def test_params_that_are_not_identified_are_singular_and_nan_is_not_finite():
    equal = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), START)._replace(weights=jnp.array([0.5, 0.5]))
    flat = jaxem.Mixture(jaxem.DiagonalNormal(), 2)
    lanes = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), fit_two(), equal, START._replace(weights=START.weights * np.nan)
    )
    found = jax.vmap(lambda params: jaxem.standard_errors(flat, params, X))(lanes)
    assert [Status(int(code)) for code in found.status] == [Status.CONVERGED, Status.SINGULAR, Status.NONFINITE]
    np.testing.assert_array_equal(np.isfinite(found.covariance).all((1, 2)), [True, False, False])
    one = jaxem.standard_errors(flat, fit_two(), X)
    close(jax.tree.map(lambda leaf: leaf[0], found), one, rtol=1e-9)


@dataclasses.dataclass(frozen=True)
class WithAMatrix:
    """A normal whose covariance is held whole, so that every covariance is there twice."""

    def e_step(self, p, x, weight):
        covariance, gap = (p["covariance"] + p["covariance"].T) / 2, x - p["mean"][None]
        square = jnp.sum(gap @ jnp.linalg.inv(covariance) * gap, 1)
        log_lik = -(square + jnp.linalg.slogdet(covariance)[1] + 2 * jnp.log(2 * jnp.pi)) / 2
        return (weight.sum(), weight @ x, (x * weight[:, None]).T @ x), jnp.dot(weight, log_lik)

    def m_step(self, p, stats):
        mean = stats[1] / stats[0]
        return {"mean": mean, "covariance": stats[2] / stats[0] - jnp.outer(mean, mean), "unused": p["unused"]}


jax.tree_util.register_dataclass(WithAMatrix, [], [])


def test_what_the_data_identify_has_errors_beside_what_they_do_not():
    x = np.random.default_rng(0).normal(size=(60, 2))
    params = {"mean": x.mean(0), "covariance": np.cov(x.T, bias=True), "unused": np.ones(1)}
    found = jaxem.standard_errors(WithAMatrix(), params, x)
    assert found.status == Status.SINGULAR
    with pytest.raises(RuntimeError, match=r"3 of 7 numbers .* \(covariance\[0,1\], .* SINGULAR: the information"):
        found.check()
    close(found.standard_errors["mean"], x.std(0) / np.sqrt(60), rtol=1e-8)
    variance = np.diag(params["covariance"])
    want = np.where(np.eye(2) == 1, np.sqrt(2 / 60) * variance, np.nan)  # of one entry of two that are one: unknown
    np.testing.assert_allclose(found.standard_errors["covariance"], want, rtol=1e-8)
    assert np.isnan(found.standard_errors["unused"])
    of = lambda p: p["covariance"][0, 1] + p["covariance"][1, 0]  # noqa: E731
    both = jaxem.standard_errors(WithAMatrix(), params, x, of=of).standard_errors
    s = params["covariance"]
    np.testing.assert_allclose(both, 2 * np.sqrt((s[0, 0] * s[1, 1] + s[0, 1] ** 2) / 60), rtol=1e-8)
    moved = params | {"covariance": 10 * params["covariance"]}  # no maximum: nothing is known
    assert np.all(np.isnan(jaxem.standard_errors(WithAMatrix(), moved, x).covariance))


@pytest.mark.slow
def test_float32_keeps_its_digits():
    params = fit_two()
    want = jaxem.standard_errors(TWO, params, X).standard_errors
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    got = jaxem.standard_errors(TWO, single, X.astype(np.float32)).standard_errors
    assert got.weights.dtype == np.float32
    close(got, want, rtol=1e-3)


# --- influence


@pytest.mark.slow
def test_influence_agrees_with_refits_that_leave_one_row_out():
    params = fit_two(np.ones(N))
    of = lambda params: {"mean": params.components.mean[:, 0], "odds": params.weights[0] / params.weights[1]}  # noqa: E731
    found = jaxem.influence(TWO, params, X, of=of)
    assert found["mean"].shape == (N, 2) and found["odds"].shape == (N,)
    rows = np.random.default_rng(2).choice(N, 20, replace=False)
    here = of(params)

    def change(row: int, part: float) -> Any:
        there = of(fit_two(np.where(np.arange(N) == row, 1 - part, 1.0)))
        return jax.tree.map(lambda a, b: (a - b) / part, there, here)

    for row in rows:
        got = jax.tree.map(lambda leaf: leaf[row], found)  # noqa: B023
        # leaving out a small part of a row and extrapolating is the first order itself
        small, half = change(row, 1e-3), change(row, 5e-4)
        first_order = jax.tree.map(lambda a, b: 2 * a - b, half, small)
        close(got, first_order, rtol=1e-4, atol=1e-8)
    whole = [change(row, 1.0)["odds"] for row in rows]
    got = np.asarray(found["odds"])[rows]
    assert np.max(np.abs(got - whole)) < 0.15 * np.max(np.abs(whole))  # second order: about 1/N of a component


def test_influence_of_a_mean_is_its_closed_form():
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 1)
    params = jaxem.fit(model, model.init(jax.random.key(0), X), X, sample_weight=WEIGHT).params
    found = jaxem.influence(model, params, X, of=lambda p: p.components.mean[0, 0], sample_weight=WEIGHT)
    mean = np.average(X[:, 0], weights=WEIGHT)
    np.testing.assert_allclose(found, WEIGHT * (mean - X[:, 0]) / WEIGHT.sum(), rtol=1e-9, atol=1e-12)
    far = params._replace(
        weights=params.weights, components=params.components._replace(mean=params.components.mean + 1)
    )
    assert np.isnan(jaxem.influence(model, far, X, of=lambda p: p.components.mean[0, 0],
                                    derivative=jaxem.Implicit(polish=0))).all()  # fmt: skip


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"covariance: expected ObservedInformation\(\) or Sandwich\(\), got 'robust'"):
        jaxem.standard_errors(TWO, START, X, covariance="robust")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="params.weights: expected shape"):
        jaxem.standard_errors(TWO, START._replace(weights=jnp.ones(3)), X)
    with pytest.raises(ValueError, match="sample_weight: expected shape"):
        jaxem.influence(TWO, START, X, of=lambda params: params.weights[0], sample_weight=np.ones(3))
    wide = jaxem.Mixture(jaxem.FullNormal(), 2)
    shape: Any = jax.ShapeDtypeStruct
    bank = jaxem.NormalParams(shape((2, 64), float), shape((2, 64, 64), float))
    params = jaxem.MixtureParams(shape((2,), float), bank)
    with pytest.raises(ValueError, match="params: expected at most 4096 free coordinates, got 4289"):
        jax.eval_shape(lambda params, x: jaxem.standard_errors(wide, params, x), params, shape((9, 64), float))


# --- against the bootstrap

BY_ID = {case["id"]: case for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("case_id", ["gmm_faithful_K2_full", "acidity_E2", "gmm_iris_K2_tied"])
def test_the_sandwich_agrees_with_the_bootstrap(case_id):
    """Both hold for a model that is not true; 1000 replicates leave 2.2 % of a standard error to chance."""
    case = BY_ID[case_id]
    model, x, params = _model(case), _data(case), _params(case, case["expected"]["params"])
    of = lambda params: (params.weights[0], params.components.mean)  # noqa: E731
    want = jaxem.standard_errors(model, params, x, of=of, covariance=jaxem.Sandwich()).standard_errors
    drawn = jaxem.bootstrap(model, params, x, jax.random.key(3), 1000, tol=1e-9)
    assert np.mean(drawn.converged) > 0.99
    close(drawn.standard_errors(of), want, rtol=0.1)  # and the second order in 1/n


@pytest.mark.slow
def test_the_information_agrees_with_the_bootstrap_of_the_linkage_data():
    theta = fit_linkage(linkage_model()).params
    drawn = jaxem.bootstrap(linkage_model(), theta, CELLS, jax.random.key(4), 1000, sample_weight=COUNTS, tol=1e-9)
    np.testing.assert_allclose(drawn.standard_errors(), 0.0514673, rtol=0.1)
