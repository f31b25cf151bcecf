"""Starts, params and labels that no model allows are refused where they have values; boundaries are not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, blobs, first, made, statuses

import jaxem
from jaxem import Mixture, MixtureParams

HALF = np.full(2, 0.5)
ONES, TWO = np.ones((12, 2)), np.ones((2, 2))
COUNTS = np.random.default_rng(0).poisson(3.0, (12, 2)).astype(float)
LINE = np.c_[np.ones(12), np.linspace(-1, 1, 12)], COUNTS[:, 0]
TURN = np.stack([np.cos(np.arange(12.0)), np.sin(np.arange(12.0))], 1)

# family, data, a bank that is legal, and what of it no model allows
SPACES = {
    "full": (jaxem.FullNormal(), blobs(12), made(jaxem.NormalParams, TWO, np.stack([np.eye(2)] * 2)),
             {"covariance": np.array([[[1.0, 2.0], [2.0, 1.0]], np.eye(2)])}),
    "tied": (jaxem.TiedNormal(), blobs(12), made(jaxem.NormalParams, TWO, np.eye(2)),
             {"covariance": np.array([[1.0, 0.5], [0.1, 1.0]])}),
    "diagonal": (jaxem.DiagonalNormal(), blobs(12), made(jaxem.NormalParams, TWO, TWO), {"covariance": -TWO}),
    "low rank": (jaxem.LowRankNormal(1), blobs(12), made(jaxem.LowRankNormalParams, TWO, TWO[..., None], TWO),
                 {"noise": -TWO}),
    "student": (jaxem.StudentT(), blobs(12), made(jaxem.StudentTParams, TWO, np.stack([np.eye(2)] * 2), np.ones(2)),
                {"dof": np.zeros(2), "scatter": -np.stack([np.eye(2)] * 2)}),
    "poisson": (jaxem.Poisson(), COUNTS, made(jaxem.PoissonParams, np.array([[0.0, 1.0], [2.0, 3.0]])), {"rate": -TWO}),
    "negative binomial": (jaxem.NegativeBinomial(), COUNTS, made(jaxem.NegativeBinomialParams, TWO, TWO),
                          {"size": 0 * TWO, "mean": -TWO}),
    "bernoulli": (jaxem.Bernoulli(), COUNTS % 2, made(jaxem.BernoulliParams, TWO), {"prob": 50 * TWO}),
    "multinomial": (jaxem.Multinomial(), COUNTS, made(jaxem.MultinomialParams, np.array([[0.0, 1.0], [0.5, 0.5]])),
                    {"prob": np.array([[0.5, 0.4], [0.5, 0.5]])}),
    "categorical": (jaxem.Categorical(2), COUNTS % 2, made(jaxem.CategoricalParams, np.full((2, 2, 2), 0.5)),
                    {"prob": np.ones((2, 2, 2))}),
    "exponential": (jaxem.Exponential(), COUNTS + 1, made(jaxem.ExponentialParams, TWO), {"rate": -TWO}),
    "gamma": (jaxem.Gamma(), COUNTS + 1, made(jaxem.GammaParams, TWO, TWO), {"shape": -TWO, "rate": 0 * TWO}),
    "beta": (jaxem.Beta(), (COUNTS + 1) / 20, made(jaxem.BetaParams, TWO, TWO), {"a": 0 * TWO, "b": -TWO}),
    "dirichlet": (jaxem.Dirichlet(), (COUNTS + 1) / (COUNTS + 1).sum(1, keepdims=True),
                  made(jaxem.DirichletParams, TWO), {"concentration": -TWO}),
    "directions": (jaxem.VonMisesFisher(), TURN, made(jaxem.VonMisesFisherParams, np.eye(2), np.ones(2)),
                   {"mean_direction": 2 * np.eye(2), "concentration": -np.ones(2)}),
    "line": (jaxem.LinearRegression(), LINE, made(jaxem.LinearRegressionParams, TWO, np.ones(2)),
             {"variance": -np.ones(2)}),
    "counts": (jaxem.NegativeBinomialRegression(), LINE,
               made(jaxem.NegativeBinomialRegressionParams, 0.1 * TWO, np.ones(2)), {"size": -np.ones(2)}),
    "robust line": (jaxem.StudentTRegression(), LINE,
                    made(jaxem.StudentTRegressionParams, TWO, np.ones(2), np.ones(2)), {"scale": -np.ones(2)}),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_a_start_outside_of_the_parameter_space_is_named_and_a_legal_one_is_not(name):
    family, data, bank, outside = SPACES[name]
    model = Mixture(family, 2)
    model.check_params(MixtureParams(HALF, bank))  # type: ignore[arg-type]
    for leaf, values in outside.items():
        wrong = MixtureParams(HALF, bank._replace(**{leaf: values}))  # type: ignore[arg-type]
        lanes = jax.tree.map(lambda good, bad: np.stack([good, bad]), MixtureParams(HALF, bank), wrong)  # type: ignore[arg-type]
        twice = jax.tree.map(lambda rows: np.stack([rows, rows]), data)
        message = rf"^params\.components\.{leaf}: expected .*, got "
        for refused in (
            lambda: jaxem.fit(model, wrong, data),  # noqa: B023
            lambda: jaxem.fit_batch(model, lanes, twice),  # noqa: B023
            lambda: model.log_prob(wrong, data),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=message):
                refused()
        with pytest.raises(ValueError, match=r"in lane 1 \(1 such lanes\); "):
            jaxem.fit_batch(model, lanes, twice)


MODEL = Mixture(jaxem.Poisson(), 2)
BANK = made(jaxem.PoissonParams, np.array([[1.0, 2.0], [5.0, 6.0]]))


@pytest.mark.parametrize("weights", [np.array([60.0, 40.0]), np.array([1.5, -0.5]), np.array([0.3, 0.3])])
def test_weights_that_are_none_are_refused_at_every_entry_that_sees_them(weights):
    params = MixtureParams(weights, BANK)  # type: ignore[arg-type]
    one = jax.tree.map(lambda leaf: leaf[None], params)
    for refused in (
        lambda: jaxem.fit(MODEL, params, COUNTS),
        lambda: jaxem.fit_batch(MODEL, one, COUNTS[None]),
        lambda: jaxem.fit_groups(MODEL, KEY, COUNTS, np.zeros(12, int), init=one),
        lambda: jaxem.fit_stream(MODEL, params, lambda: iter([(COUNTS, None)])),
        lambda: jaxem.bootstrap(MODEL, params, COUNTS, KEY, 3),
        lambda: jaxem.standard_errors(MODEL, params, COUNTS),
        lambda: MODEL.log_prob(params, COUNTS),
        lambda: MODEL.responsibilities(params, COUNTS),
        lambda: MODEL.predict(params, COUNTS),
        lambda: MODEL.sample(params, KEY, 3),
        lambda: MODEL.bic(params, COUNTS),
        lambda: jaxem.Frozen(MODEL, MixtureParams(True, False)).log_prob(params, COUNTS),
    ):
        with pytest.raises(ValueError, match=r"params\.weights: expected numbers ≥ 0 that sum to 1, got .*; divide"):
            refused()


def test_boundaries_rounding_and_components_switched_off_are_legal():
    exact = MixtureParams(np.array([0.0, 1.0]), BANK)  # type: ignore[arg-type]
    assert bool(jaxem.fit(MODEL, exact, COUNTS).converged)
    rounded = MixtureParams(np.array([1 / 3, 2 / 3], np.float32), BANK)  # type: ignore[arg-type]
    assert bool(jaxem.fit(MODEL, rounded, COUNTS).converged)  # in float64, off by 3e-8
    off = MixtureParams(np.array([1.0, 7.0]), BANK)  # type: ignore[arg-type]
    Mixture(jaxem.Poisson(), 2, active=np.array([True, False])).check_params(off)


def test_lanes_whose_start_is_not_finite_are_left_to_their_status():
    lanes = jax.tree.map(lambda leaf: np.stack([leaf, leaf * np.nan]), MixtureParams(HALF, BANK))  # type: ignore[arg-type]
    assert statuses(jaxem.fit_batch(MODEL, lanes, np.stack([COUNTS, COUNTS])))[1] == jaxem.Status.NONFINITE


def test_what_is_traced_is_not_looked_at():
    wrong = MixtureParams(jnp.array([3.0, 1.0]), BANK)  # type: ignore[arg-type]
    assert np.all(np.isfinite(jax.jit(MODEL.log_prob)(wrong, COUNTS)))


def _written(p: Any, x: Any) -> Any:
    return jnp.log(p["w"]) - jnp.square(x[0] - p["m"]) / 2


def test_a_written_joint_looks_at_its_constraints_in_every_lane_and_method():
    constraints = {"w": jaxem.bijections.simplex, "m": None}
    model = jaxem.LogJoint(_written, 2, constraints=constraints)
    wrong = {"w": np.array([3.0, 1.0]), "m": np.array([0.0, 4.0])}
    with pytest.raises(ValueError, match=r"params\['w'\]: expected a value in simplex"):
        model.log_prob(wrong, blobs(12))
    lanes = jax.tree.map(lambda a, b: np.stack([a, b]), wrong | {"w": HALF}, wrong)
    with pytest.raises(ValueError, match=r"params\['w'\]: expected a value in simplex, got .* in lane 1"):
        jaxem.fit_batch(model, lanes, np.stack([blobs(12)] * 2))


@first("driver", ["fit", "fit_restarts", "fit_stream"])
def test_labels_that_count_from_one_are_refused(driver):
    known = np.r_[np.full(10, -1), 1, 2]
    data, start = jaxem.labelled(COUNTS, known), MixtureParams(HALF, BANK)  # type: ignore[arg-type]
    run = {
        "fit": lambda: jaxem.fit(MODEL, start, data),
        "fit_restarts": lambda: jaxem.fit_restarts(MODEL, KEY, data),
        "fit_stream": lambda: jaxem.fit_stream(MODEL, start, lambda: iter([(data, None)])),
    }[driver]
    with pytest.raises(ValueError, match=r"known: expected labels 0 to 1, .* got 2 in row 11"):
        run()
