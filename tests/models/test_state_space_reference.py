"""State space models against other programs' output: end points, traces, standard errors.

The cases and where they come from: `tests/reference/README.md`.
"""

import csv
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = {case["id"]: case for case in json.loads((REFERENCE / "lgssm_cases.json").read_text("utf-8"))["cases"]}
TRACED = [name for name, case in CASES.items() if "em_trace" in case]

# Two float64 implementations of textbook EM differ by rounding alone.
TRACE_ATOL = 1e-9
# The traces went on until a step rose by less than 1e-11, and are then at most 2e-10 below the optimum.
END_ATOL = 1e-8


def series_of(name: str) -> jaxem.Sequences:
    data = CASES[name]["data"]
    with (REFERENCE / data["file"]).open(encoding="utf-8") as file:
        rows = [row[data["columns"][0]] for row in csv.DictReader(file)]
    values = np.array([np.nan if text == "NA" else float(text) for text in rows])
    for first, last in data.get("missing_rows", []):
        values[first:last] = np.nan
    if name == "lakehuron_ar1":
        values = values - 579
    return jaxem.sequences([values[:, None]])


def scalar_params(q: float, r: float, mean: float, variance: float, a: float = 1.0) -> jaxem.LGSSMParams:
    matrix = lambda number: jnp.array([[float(number)]])  # noqa: E731
    initial = jaxem.GaussianState(jnp.array([float(mean)]), matrix(variance))
    return jaxem.LGSSMParams(initial, matrix(a), matrix(q), matrix(1), matrix(r))


def _first(case: dict[str, Any]) -> tuple[float, float]:
    """Mean and variance of the first state."""
    if "prior" in case:
        return case["prior"]["x1_mean"], case["prior"]["x1_var"]
    params = case["start"]["params"]
    return params["m0"][0], params["P0"][0][0]


def params_of(name: str, listed: dict[str, Any]) -> jaxem.LGSSMParams:
    number = lambda key: float(np.ravel(listed[key])[0])  # noqa: E731
    return scalar_params(number("Q"), number("R"), *_first(CASES[name]), a=number("A") if "A" in listed else 1.0)


def model_of(name: str) -> jaxem.Frozen:
    free = CASES[name]["start"]["params"].get("estimated", ["Q", "R"])
    mask = jaxem.LGSSMParams(True, *[letter not in free for letter in "AQCR"])
    return jaxem.Frozen(jaxem.LinearGaussianStateSpace(1, floor=0.0), mask)


def _check_params(found: jaxem.LGSSMParams, listed: dict[str, Any], rtol: float = 1e-3) -> None:
    leaves = found.transition, found.transition_covariance, found.emission_covariance
    for letter, leaf in zip("AQR", leaves, strict=True):
        if letter in listed:
            np.testing.assert_allclose(np.ravel(leaf), np.ravel(listed[letter]), rtol=rtol)


@pytest.mark.parametrize("name", TRACED)
def test_plain_em_follows_the_trace_to_the_optimum(name):
    case = CASES[name]
    start = params_of(name, case["start"]["params"])
    result = jaxem.fit(model_of(name), start, series_of(name), tol=-1.0, max_iter=400)
    history = np.asarray(result.history)
    trace = case["em_trace"]
    expected = dict(enumerate(trace["loglik"])) | {int(i): v for i, v in trace["later_iterations"].items()}
    np.testing.assert_allclose(history[list(expected)], list(expected.values()), rtol=0, atol=TRACE_ATOL)
    assert abs(result.objective - case["expected"]["loglik"]) < END_ATOL
    _check_params(result.params, case["expected"]["params"])
    assert result.model.n_parameters(result.params) == case["expected"]["df"]
    smooth = model_of(name).smoothed(result.params, series_of(name))
    assert np.all(np.isfinite(smooth.mean)) and np.all(smooth.covariance > 0)


def test_a_diffuse_start_is_the_exact_diffuse_likelihood_and_its_standard_errors():
    """The first flow says nothing but where the level is: its density, that of the start, is taken off."""
    name = "nile_local_level_diffuse"
    case, data = CASES[name], series_of(name)
    first, variance = float(data.values[0, 0, 0]), 1e13
    expected = case["expected"]
    r, q = (expected["params"][letter][0] for letter in "RQ")
    model = model_of(name)
    constant = np.log(2 * np.pi * (variance + r)) / 2
    at_optimum = scalar_params(q, r, first, variance)
    assert abs(model.log_prob(at_optimum, data)[0] + constant - expected["loglik"]) < END_ATOL
    start = scalar_params(case["start"]["params"]["Q"], case["start"]["params"]["R"], first, variance)
    result = jaxem.fit(model, start, data, algorithm=jaxem.SQUAREM(), tol=1e-12).check()
    assert abs(result.objective + constant - expected["loglik"]) < END_ATOL
    _check_params(result.params, expected["params"])
    _check_errors(name, model, at_optimum)


def _check_errors(name: str, model: Any, params: jaxem.LGSSMParams) -> jaxem.LGSSMParams:
    found = jaxem.standard_errors(model, params, series_of(name)).standard_errors
    expected = CASES[name]["expected"]["standard_errors"]
    np.testing.assert_allclose(found.transition_covariance.ravel(), expected["Q"], rtol=1e-3)
    np.testing.assert_allclose(found.emission_covariance.ravel(), expected["R"], rtol=1e-3)
    assert found.transition == 0 and found.emission == 0
    return found


def test_a_first_state_that_is_estimated():
    """With variance 0, as in MARSS: whose published fits stopped below this optimum."""
    name = "nile_local_level_x1est"
    case, data = CASES[name], series_of(name)
    mask = jaxem.LGSSMParams(jaxem.GaussianState(False, True), True, False, True, False)
    model = jaxem.Frozen(jaxem.LinearGaussianStateSpace(1, floor=0.0), mask)
    number = lambda listed, name: float(np.ravel(listed[name])[0])  # noqa: E731
    at = lambda listed: scalar_params(number(listed, "Q"), number(listed, "R"), number(listed, "x1"), 0.0)  # noqa: E731
    start = at(case["start"]["params"])
    history = np.asarray(jaxem.fit(model, start, data, tol=-1.0, max_iter=30).history)
    assert np.all(np.diff(history) > 0)
    result = jaxem.fit(model, start, data, algorithm=jaxem.SQUAREM(), tol=1e-12, max_iter=2000).check()
    expected = case["expected"]
    assert abs(result.objective - expected["loglik"]) < END_ATOL
    _check_params(result.params, expected["params"])
    np.testing.assert_allclose(result.params.initial.mean, expected["params"]["x1"], rtol=1e-5)
    assert result.model.n_parameters(result.params) == expected["df"]
    found = _check_errors(name, model, at(expected["params"]))
    np.testing.assert_allclose(found.initial.mean, expected["standard_errors"]["x1"], rtol=1e-3)


def test_standard_errors_of_the_nile():
    name = "nile_local_level_prior"
    _check_errors(name, model_of(name), params_of(name, CASES[name]["expected"]["params"]))


def test_accelerated_fits_of_the_nile():
    """From the stated start, to within 1e-10 nats of the optimum; EM's rise is below 1e-12 nats after 369 steps."""
    name = "nile_local_level_prior"
    case, data, model = CASES[name], series_of(name), model_of(name)
    start = params_of(name, case["start"]["params"])
    for algorithm, most in ((jaxem.SQUAREM(), 40), (jaxem.Anderson(), 15)):
        result = jaxem.fit(model, start, data, algorithm=algorithm, tol=1e-12).check()
        assert result.n_evals <= most and abs(result.objective - case["expected"]["loglik"]) < 1e-10
    rises = np.diff(jaxem.fit(model, start, data, tol=-1.0, max_iter=400).history)
    assert abs(int(np.argmax(rises < 1e-12)) - 369) <= 5  # rises near 1e-12 carry the rounding of 638 nats, 1e-13
