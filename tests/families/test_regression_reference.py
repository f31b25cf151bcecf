"""Regressions against published values and other programs' output: `tests/reference/README.md`."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from contract_cases import quick_jit
from helpers import made, once_a_week, slow

import jaxem

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = {case["id"]: case for case in json.loads((REFERENCE / "regression_cases.json").read_text("utf-8"))["cases"]}
KEY = jax.random.key(0)


def _columns(case: dict[str, Any]) -> dict[str, np.ndarray]:
    with (REFERENCE / case["data"]["file"]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def _design(*columns: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(columns[0]), *columns], 1)


@quick_jit
def _corrected(model: Any, params: Any, data: Any) -> Any:
    return jax.lax.fori_loop(0, 2, lambda _, params: jaxem.newton_correction(model, params, data), params)


def _fit(model: Any, start: Any, data: Any, **options: Any) -> jaxem.FitResult:
    """To the optimum: EM, then Newton corrections for the last digits."""
    result = jaxem.fit(model, start, data, **({"tol": 1e-9, "max_iter": 500} | options))
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert np.all(np.diff(history) > -1e-9)
    params = _corrected(model, result.params, data)
    return jaxem.fit(model, params, data, tol=-1.0, max_iter=0)


def _assert_case(case: dict[str, Any], model: Any, result: jaxem.FitResult, data: Any, of: Any) -> None:
    """Log-likelihood, params and standard errors; `of` makes of params what the case lists, by name."""
    expected, tolerance = case["expected"], case["tolerance"]
    off = lambda listed, got: max(  # noqa: E731
        float(np.max(abs(np.asarray(got[name]) - listed[name]) / np.maximum(1, np.abs(listed[name])))) for name in got
    )
    found = off(expected["params"], of(result.params))
    errors = jaxem.standard_errors(model, result.params, data, of=of).standard_errors
    in_errors = off(expected["standard_errors"], errors)
    loglik = abs(float(result.log_lik) - expected["loglik"])
    print(f"{case['id']}: log-likelihood off by {loglik:.1e}, params by {found:.1e}, errors by {in_errors:.1e}")
    assert set(of(result.params)) == set(expected["params"])
    assert loglik < tolerance["loglik_abs"] and found < tolerance["params_rel"] and in_errors < tolerance["params_rel"]
    assert int(model.n_parameters(result.params)) == expected["df"]


def _of_linear(params: Any) -> dict[str, Any]:
    beta, variance = params.components
    return {"weights": params.weights, "beta": beta, "vars": variance}


def _of_poisson(params: Any) -> dict[str, Any]:
    return {"weights": params.weights, "beta": params.components.coefficients}


@slow
def test_a_mixture_of_linear_regressions_follows_the_trace_to_the_optimum():
    case = CASES["npreg_gauss2"]
    columns = _columns(case)
    data = (_design(columns["x"], columns["x"] ** 2), columns["yn"])
    listed = case["start"]["params"]
    bank = made(jaxem.LinearRegressionParams, np.array(listed["beta"]), np.array(listed["vars"]))
    start = made(jaxem.MixtureParams, np.array(listed["weights"]), bank)
    model = jaxem.Mixture(jaxem.LinearRegression(floor=0.0), 2)
    trace = case["em_trace"]["loglik"]
    result = jaxem.fit(model, start, data, tol=-1.0, max_iter=40)
    np.testing.assert_allclose(result.history[: len(trace)], trace, rtol=1e-13)
    _assert_case(case, model, result, data, _of_linear)


@slow
def test_a_mixture_of_poisson_regressions():
    case = CASES["npreg_pois2"]
    columns = _columns(case)
    data = (_design(columns["x"]), columns["yp"])
    model = jaxem.Mixture(jaxem.PoissonRegression(), 2)
    labels = (columns["class"] - columns["class"].min()).astype(int)
    result = _fit(model, model.init(KEY, data, method=jaxem.Labels(labels)), data)
    _assert_case(case, model, result, data, _of_poisson)


def _of_inflated(params: Any) -> dict[str, Any]:
    zero, rest = params.weights.coefficients
    bank = params.components[1]
    found = {"beta": bank.coefficients[0], "gamma": zero - rest}
    return found | ({"theta": bank.size} if hasattr(bank, "size") else {})


@pytest.mark.parametrize(
    "name",
    [
        "zip_biochemists_int",
        pytest.param("zip_biochemists", marks=once_a_week),
        pytest.param("zinb_biochemists", marks=slow),
    ],
)
def test_zero_inflated_regressions(name):
    case = CASES[name]
    columns = _columns(case)
    x = _design(*[columns[column] for column in case["data"]["columns"][1:]])
    data = jaxem.gated((x, columns["art"]), x[:, : len(case["expected"]["params"]["gamma"])])
    family = jaxem.NegativeBinomialRegression() if "theta" in case["expected"]["params"] else jaxem.PoissonRegression()
    model = jaxem.Mixture(jaxem.OneOf(jaxem.PointMass(0.0), family), 2, gate=jaxem.SoftmaxGate())
    result = _fit(model, model.init(KEY, data), data)
    _assert_case(case, model, result, data, _of_inflated)


def _of_student_t(params: Any) -> dict[str, Any]:
    beta, scale, dof = params.components
    return {"beta": beta[0], "scale": scale, "nu": dof}


@slow
def test_linear_regression_with_t_errors():
    case = CASES["t_reg_stackloss"]
    columns = _columns(case)
    data = (_design(columns["Air.Flow"], columns["Water.Temp"], columns["Acid.Conc."]), columns["stack.loss"])
    model = jaxem.Mixture(jaxem.StudentTRegression(floor=0.0), 1)
    result = _fit(model, model.init(KEY, data), data)  # starts from ordinary least squares
    _assert_case(case, model, result, data, _of_student_t)
