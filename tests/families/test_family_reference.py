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
from helpers import first, made

import jaxem

REFERENCE = Path(__file__).parents[1] / "reference"
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


# Role conflict (Stouffer & Toby 1951): four items, 216 respondents; the answers 1 and 2 of Goodman (1974) are 1 and 0.
ROLE_CONFLICT = [42, 23, 6, 25, 6, 24, 7, 38, 1, 4, 1, 6, 2, 9, 2, 20]


def _params(listed: dict[str, Any]) -> jaxem.MixtureParams:
    weights = np.array(listed["weights"])
    return made(jaxem.MixtureParams, weights, made(jaxem.PoissonParams, np.array(listed["rates"])[:, None]))


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


@first("name", POISSON)
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


def test_a_multinomial_mixture_follows_the_trace_to_the_optimum():
    case = CASES["waterdata_multmix3"]
    x = np.stack(list(_rows(case).values()), 1)
    model = jaxem.Mixture(jaxem.Multinomial(), 3)

    def params(listed: dict[str, Any]) -> jaxem.MixtureParams:
        return made(
            jaxem.MixtureParams,
            np.array(listed["weights"]),
            made(jaxem.MultinomialParams, np.array(listed["theta"])),
        )

    result = jaxem.fit(model, params(case["start"]["params"]), x, tol=-1.0, max_iter=1000)
    _assert_trace(case, np.asarray(result.history))
    expected = case["expected"]
    _assert_optimum(case, result.objective, result.params, params(expected["params"]))
    # probabilities on the boundary are no parameters to the case
    zeros = int(np.sum(np.array(expected["params"]["theta"]) == 0))
    assert int(model.n_parameters(result.params)) - zeros == expected["df"]


@pytest.mark.slow
@pytest.mark.parametrize("family", [jaxem.Bernoulli(), jaxem.Categorical(2)], ids=["bernoulli", "categorical"])
def test_latent_classes_of_role_conflict_are_those_of_goodman(family):
    """Goodman (1974, Biometrika 61, table 2): two classes, G² = 2.72 on 6 degrees of freedom."""
    patterns = np.array(np.unravel_index(np.arange(16), (2,) * 4)).T
    x, weight = 1.0 - patterns, np.array(ROLE_CONFLICT, float)
    model = jaxem.Mixture(family, 2)
    best = jaxem.fit_restarts(
        model, jax.random.key(0), x, n_restarts=10, sample_weight=weight, tol=1e-10, max_iter=2000
    )
    best = best.check().ordered()
    saturated = np.sum(weight * np.log(weight / weight.sum()))
    assert 2 * (saturated - best.log_lik) == pytest.approx(2.720, abs=5e-4)
    assert 15 - int(model.n_parameters(best.params)) == 6
    prob = np.asarray(best.params.components.prob)
    prob = prob if prob.ndim == 2 else prob[:, :, 1]
    assert float(best.params.weights[1]) == pytest.approx(0.279, abs=5e-4)
    np.testing.assert_allclose(prob[1], [0.993, 0.940, 0.927, 0.769], atol=6e-4)
    np.testing.assert_allclose(prob[0], [0.714, 0.330, 0.354, 0.132], atol=6e-4)


@first("name", ["tmix_faithful2_nu5", "mvt_stackloss_nu5"])
def test_t_with_five_degrees_of_freedom_follows_the_trace_to_the_optimum(name):
    case = CASES[name]
    x = np.stack(list(_rows(case).values()), 1)

    def params(listed: dict[str, Any], dof: float = 5.0) -> jaxem.MixtureParams:
        weights = np.array(listed.get("weights", [1.0 if dof else 0.0]))
        mean = np.atleast_2d(listed["means"] if "means" in listed else listed["mean"])
        scatter = np.array(listed["scatter"]).reshape(len(weights), x.shape[1], x.shape[1])
        return made(jaxem.MixtureParams, weights, made(jaxem.StudentTParams, mean, scatter, np.full(len(weights), dof)))

    start, expected = params(case["start"]["params"]), case["expected"]
    model = jaxem.Mixture(jaxem.StudentT(5.0, jaxem.FullNormal(floor=0.0)), len(start.weights))
    result = jaxem.fit(model, start, x, tol=-1.0, max_iter=300)
    _assert_trace(case, np.asarray(result.history))
    _assert_optimum(case, result.objective, result.params, params(expected["params"]))
    assert int(model.n_parameters(result.params)) == expected["df"]
    errors = jaxem.standard_errors(model, result.params, x).standard_errors
    want = params(expected["standard_errors"], dof=0.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), errors, want)
