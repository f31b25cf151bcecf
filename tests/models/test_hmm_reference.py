"""Hidden Markov models against other programs' output: end points, traces, standard errors.

The cases and where they come from: `tests/reference/README.md`.
"""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = {case["id"]: case for case in json.loads((REFERENCE / "hmm_cases.json").read_text("utf-8"))["cases"]}
TRACED = [name for name, case in CASES.items() if "em_trace" in case]
# of families and shapes that other cases have too
LATER = (
    "earthquakes_pois_hmm2",
    "earthquakes_pois_hmm3",
    "discoveries_pois_hmm2",
    "geyser_binary_hmm2",
    "speed_gauss_hmm2",
)
STATIONARY = [name for name in CASES if name not in TRACED]

# Two float64 implementations of textbook EM differ by rounding alone: a hundred steps, some eps each.
TRACE_ATOL = 1e-9
# The traces went on until a step rose by less than 1e-11, and are then at most 2e-11 below the optimum.
END_ATOL = 1e-8


def _number(text: str) -> float:
    return np.nan if text == "NA" else float(text)


def _data(case: dict[str, Any]) -> jaxem.Sequences:
    with (REFERENCE / case["data"]["file"]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    x = {name: np.array([_number(row[name]) for row in rows])[:, None] for name in case["data"]["columns"]}
    if case["data"].get("note") == "x = duration >= 3":
        table: Any = (x["duration"] >= 3).astype(float)
    elif case["data"].get("note") == "take log10":
        table = np.log10(x["lynx"])
    else:
        table = x if len(x) > 1 else next(iter(x.values()))
    lengths = case["data"].get("lengths", [len(rows)])
    return jaxem.sequences(table, ids=np.repeat(np.arange(len(lengths)), lengths))


def _family(case: dict[str, Any]) -> Any:
    normal = jaxem.FullNormal(floor=0.0)
    kind = case["family"].split()[1]
    product = jaxem.Product(rt=normal, corr=jaxem.Bernoulli())
    return {"poisson": jaxem.Poisson(), "gauss": normal, "cat": jaxem.Bernoulli(), "product": product}[kind]


def _model(case: dict[str, Any]) -> jaxem.HiddenMarkovModel:
    k = len(case["start"]["params"]["init"])
    if case["id"] in STATIONARY:
        return jaxem.HiddenMarkovModel(_family(case), k, stationary=True)
    if "prior" not in case:
        return jaxem.HiddenMarkovModel(_family(case), k)
    prior = case["prior"]
    assert prior["init"] == "Dirichlet(2,2)" and prior["trans_rows"] == ["Dirichlet(5,2)", "Dirichlet(2,5)"]
    alpha = np.array([[5.0, 2.0], [2.0, 5.0]])
    return jaxem.HiddenMarkovModel(_family(case), k, concentration=alpha, initial_concentration=2.0)


def _emissions(listed: dict[str, Any]) -> Any:
    if "rates" in listed:
        return jaxem.PoissonParams(jnp.array(listed["rates"])[:, None])
    if "emission" in listed:
        return jaxem.BernoulliParams(jnp.array(listed["emission"])[:, 1:])
    k = len(listed["means"])
    variance = jnp.array(listed.get("vars", listed.get("covs"))).reshape(k, 1, 1)
    normal = jaxem.NormalParams(jnp.array(listed["means"]).reshape(k, 1), variance)
    return {"rt": normal, "corr": jaxem.BernoulliParams(jnp.array(listed["p"])[:, None])} if "p" in listed else normal


def _params(listed: dict[str, Any], initial: Any = None) -> jaxem.HMMParams:
    initial = jnp.array(listed["init"]) if initial is None else initial
    return jaxem.HMMParams(initial, jnp.array(listed["trans"]), _emissions(listed))


def _stationary(transition: np.ndarray) -> np.ndarray:
    k = len(transition)
    return np.linalg.solve((np.eye(k) - transition + 1).T, np.ones(k))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LATER else ()) for n in TRACED])
def test_plain_em_follows_the_trace_to_the_optimum(name):
    case = CASES[name]
    model, data = _model(case), _data(case)
    result = jaxem.fit(model, _params(case["start"]["params"]), data, tol=-1.0, max_iter=250)
    history = np.asarray(result.history)
    trace = case["em_trace"]
    expected = dict(enumerate(trace["loglik"])) | {int(i): v for i, v in trace["later_iterations"].items()}
    np.testing.assert_allclose(history[list(expected)], list(expected.values()), rtol=0, atol=TRACE_ATOL)
    assert abs(result.objective - case["expected"]["loglik"]) < END_ATOL
    without = case["expected"].get("loglik_without_prior", case["expected"]["loglik"])
    assert abs(result.log_lik - without) < 1e-6  # at params that are 1e-11 in the objective from the optimum
    listed = _params(case["expected"]["params"])
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4), result.params, listed)


WITH_ERRORS = [name for name in TRACED if "standard_errors" in CASES[name]["expected"]]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LATER else ()) for n in WITH_ERRORS])
def test_standard_errors_hold_what_is_on_a_boundary(name):
    case = CASES[name]
    expected = case["expected"]
    model, data, listed = _model(case), _data(case), _params(expected["params"])
    found = jaxem.standard_errors(model, listed, data).standard_errors
    errors = expected["standard_errors"]
    np.testing.assert_allclose(found.initial, errors["init"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.transition, errors["trans"], rtol=1e-3, atol=1e-6)
    own = {"rates": "rate", "emission": "prob", "means": "mean", "vars": "covariance"}
    for key, leaf in own.items():
        if key in errors:
            values = np.array(errors[key])
            values = values[:, 1:] if key == "emission" else values
            got = np.asarray(getattr(found.emissions, leaf)).reshape(values.shape)
            np.testing.assert_allclose(got, values, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "3" in n else ()) for n in STATIONARY])
def test_a_stationary_chain_arrives_where_direct_maximisation_does(name):
    case = CASES[name]
    model, data, expected = _model(case), _data(case), case["expected"]
    result = jaxem.fit(model, _params(case["start"]["params"]), data, tol=-1.0, max_iter=400)
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert np.all(np.diff(history) > -1e-10)
    assert abs(result.objective - expected["loglik"]) < END_ATOL
    on_boundary = np.sum(result.params.transition < 1e-8)  # which the case does not count
    assert model.n_parameters(result.params) - on_boundary == expected["df"]
    listed = _params(expected["params"], jnp.array(_stationary(np.array(expected["params"]["trans"]))))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4), result.params, listed)
    found, errors = jaxem.standard_errors(model, listed, data).standard_errors, expected["standard_errors"]
    np.testing.assert_allclose(found.transition, errors["trans"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.emissions.rate[:, 0], errors["rates"], rtol=1e-3)


@pytest.mark.parametrize("name", STATIONARY)
def test_density_of_a_stationary_chain(name):
    expected = CASES[name]["expected"]
    initial = _stationary(np.array(expected["params"]["trans"]))
    params = _params(expected["params"], jnp.array(initial))
    log_lik = _model(CASES[name]).log_prob(params, _data(CASES[name]))
    assert abs(log_lik.sum() - expected["loglik"]) < END_ATOL


def test_free_parameters_are_counted():
    case = CASES["speed_gauss_hmm2"]  # nothing on a boundary but the first state, of which the case counts one
    params = _params(case["expected"]["params"])
    assert _model(case).n_parameters(params) == case["expected"]["df"]


def test_bic_counts_time_steps():
    case = CASES["presidents_gauss_hmm2_missing"]
    model, params, data = _model(case), _params(case["expected"]["params"]), _data(case)
    observed = np.sum(~np.isnan(data.values))
    expected = -2 * case["expected"]["loglik"] + 7 * np.log(observed)
    assert observed == 114 and abs(model.bic(params, data) - expected) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speed_gauss_hmm2", "lynx_gauss_hmm2", "earthquakes_pois_hmm3"])
def test_hmmlearn_says_the_same(name):
    """One E step's posterior and path, and twenty iterations, by another program that runs here."""
    hmm = pytest.importorskip("hmmlearn.hmm")
    case = CASES[name]
    model, data, start = _model(case), _data(case), _params(case["start"]["params"])
    k, lengths = model.n_states, np.asarray(data.length).tolist()
    common = {"init_params": "", "n_iter": 20, "tol": -np.inf}
    if "means" in case["start"]["params"]:
        other = hmm.GaussianHMM(k, "full", min_covar=0, covars_prior=0, covars_weight=0, **common)
        other.means_, other.covars_ = np.asarray(start.emissions.mean), np.asarray(start.emissions.covariance)
    else:
        other = hmm.PoissonHMM(k, lambdas_prior=0, lambdas_weight=0, **common)
        other.lambdas_ = np.asarray(start.emissions.rate)
    other.startprob_, other.transmat_, other.n_features = np.asarray(start.initial), np.asarray(start.transition), 1
    x = np.concatenate([series[:length] for series, length in zip(data.values, lengths, strict=True)])
    x = x if "means" in case["start"]["params"] else x.astype(int)
    present = np.arange(data.values.shape[1]) < np.array(lengths)[:, None]
    log_lik, posterior = other.score_samples(x, lengths)
    np.testing.assert_allclose(model.log_prob(start, data).sum(), log_lik, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(model.responsibilities(start, data))[present], posterior, atol=1e-10)
    np.testing.assert_array_equal(np.asarray(model.predict(start, data))[present], other.predict(x, lengths))
    other.fit(x, lengths)
    ours = jaxem.fit(model, start, data, tol=-1.0, max_iter=20)
    np.testing.assert_allclose(ours.params.transition, other.transmat_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.objective, other.score(x, lengths), rtol=1e-9)
