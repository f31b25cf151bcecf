"""Families other than the normals against published values and other programs' output.

The cases and where they come from: `tests/reference/README.md`.
"""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxem

REFERENCE = Path(__file__).parent / "reference"
CASES = {case["id"]: case for case in json.loads((REFERENCE / "family_cases.json").read_text("utf-8"))["cases"]}
POISSON = ["hasselblad_pois2", "earthquakes_poismix2", "earthquakes_poismix4", "map_hasselblad_dirichlet_gamma"]

# Two float64 implementations of textbook EM differ by rounding alone: some eps of the log-likelihood.
TRACE_RTOL = 1e-12


def _rows(case: dict[str, Any]) -> dict[str, np.ndarray]:
    with (REFERENCE / case["data"]["file"]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def _data(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their frequencies."""
    columns = _rows(case)
    if "deaths" in columns:
        return columns["deaths"][:, None], columns["freq"]
    x = columns["count"][:, None]
    return x, np.ones(len(x))


def _params(listed: dict[str, Any]) -> jaxem.MixtureParams:
    weights = np.array(listed["weights"])
    return jaxem.MixtureParams(weights, jaxem.PoissonParams(np.array(listed["rates"])[:, None]))


def _model(case: dict[str, Any]) -> jaxem.Mixture:
    k = len(case["expected"]["params"]["weights"])
    if "prior" not in case:
        return jaxem.Mixture(jaxem.Poisson(), k)
    assert case["prior"] == {"weights": "Dirichlet(5,5)", "rates": "Gamma(shape 3, rate 1.5) each"}
    return jaxem.Mixture(jaxem.Poisson(prior=jaxem.GammaPrior(3.0, 1.5)), k, concentration=5.0)


def _assert_trace(case: dict[str, Any], history: np.ndarray) -> None:
    trace = case["em_trace"]
    later = {int(i): value for i, value in trace["later_iterations"].items() if int(i) < len(history)}
    expected = dict(enumerate(trace["loglik"])) | later
    np.testing.assert_allclose(history[list(expected)], list(expected.values()), rtol=TRACE_RTOL)


def _assert_optimum(case: dict[str, Any], objective: Any, actual: Any, expected: Any) -> None:
    tolerance = case["tolerance"]
    found = [
        float(np.max(abs(a - e) / np.maximum(1, abs(e))))
        for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    ]
    print(
        f"{case['id']}: log-likelihood off by {objective - case['expected']['loglik']:.1e}, params by {max(found):.1e}"
    )
    assert abs(objective - case["expected"]["loglik"]) < tolerance["loglik_abs"]
    assert max(found) < tolerance["params_rel"]


@pytest.mark.parametrize("name", POISSON)
def test_poisson_mixtures_follow_the_trace_to_the_optimum(name):
    case = CASES[name]
    model, (x, weight) = _model(case), _data(case)
    result = jaxem.fit(model, _params(case["start"]["params"]), x, sample_weight=weight, tol=-1.0, max_iter=3000)
    _assert_trace(case, np.asarray(result.history))
    # the last digits of a slow fit: four components are hardly identified
    params = jaxem.newton_correction(model, result.params, x, sample_weight=weight)
    again = jaxem.fit(model, params, x, sample_weight=weight, tol=-1.0, max_iter=0)
    expected = case["expected"]
    _assert_optimum(case, again.objective, params, _params(expected["params"]))
    assert int(model.n_parameters(params)) == expected["df"]
    if "standard_errors" in expected:
        errors = jaxem.standard_errors(model, params, x, sample_weight=weight).standard_errors
        want = _params(expected["standard_errors"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), errors, want)
