"""The contracts of every model and algorithm: what users ask of a fitted model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import N
from contract_cases import answers, arrays, assert_same_bits, for_cases, need, stopped

from jaxem.contracts import capabilities as ask
from jaxem.contracts.result import permute_components

# --- what users ask of a fitted model


@for_cases(algorithms=False)
def test_ordered_relabels_params_and_model(case):
    result = stopped(case)
    need(result.model, "component_axes", "n_components", "log_prob")
    if getattr(result.model, "gate", None) is not None:
        pytest.skip("weights depend on covariates: tests/models/test_gate.py")
    if not hasattr(result.params, "weights"):
        pytest.skip("states have no weights: tests/models/test_markov_relabelled.py")
    k, data = result.model.n_components, arrays(case.model.data)
    weights = np.asarray(result.params.weights)
    by_weight = result.ordered()
    np.testing.assert_array_equal(by_weight.params.weights, -np.sort(-weights))
    assert_same_bits(result.ordered("weight"), by_weight)
    order = np.roll(np.arange(k), 1)
    by_rank = result.ordered(by=lambda params: jnp.argsort(order))
    assert_same_bits(by_rank.params, permute_components(result.params, result.model.component_axes(), order))
    assert_same_bits(result.ordered(by=lambda params: params.weights).params.weights, np.sort(weights))
    for other in (by_weight, by_rank):
        np.testing.assert_allclose(
            other.model.log_prob(other.params, data), result.model.log_prob(result.params, data), atol=1e-12
        )
        prior = ask.log_prior(result.model, result.params)
        np.testing.assert_allclose(ask.log_prior(other.model, other.params), prior, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(other.history, result.history)
    with pytest.raises(ValueError, match="by"):
        result.ordered("size")


@for_cases(algorithms=False)
def test_responsibilities_are_a_distribution(case):
    result = stopped(case)
    need(result.model, "responsibilities", "predict")
    if hasattr(result.model, "chain"):
        pytest.skip("of steps, and a path is not of the most probable states: tests/models/test_hidden_markov.py")
    r, labels = answers(case)["responsibilities"], answers(case)["predict"]
    assert r.shape == (N, result.model.n_components) and np.all(r >= 0)
    np.testing.assert_allclose(r.sum(1), 1, rtol=1e-14)
    np.testing.assert_array_equal(labels, r.argmax(1))
    assert np.issubdtype(labels.dtype, np.integer)
    active = result.model.active
    if active is not None:
        np.testing.assert_array_equal(r[:, ~np.asarray(active)], 0)
        np.testing.assert_array_equal(np.asarray(result.params.weights)[~np.asarray(active)], 0)


@for_cases(algorithms=False)
def test_scores_are_those_of_scikit_learn(case):
    if case.model.reference is None:
        pytest.skip("scikit-learn has no such model")
    result, x, found = stopped(case), case.model.data, answers(case)
    other = case.model.reference(result.model, result.params)
    np.testing.assert_allclose(found["log_prob"], other.score_samples(x), rtol=1e-11)
    proba = other.predict_proba(x)
    active = np.ones(proba.shape[1], bool) if result.model.active is None else np.asarray(result.model.active)
    np.testing.assert_allclose(found["responsibilities"][:, active], proba, atol=1e-12)
    np.testing.assert_allclose(found["aic"], other.aic(x), rtol=1e-12)
    np.testing.assert_allclose(found["bic"], other.bic(x), rtol=1e-12)
    entropy = -np.sum(np.where(proba > 0, proba * np.log(np.where(proba > 0, proba, 1)), 0))
    np.testing.assert_allclose(found["icl_entropy"], other.bic(x) + 2 * entropy, rtol=1e-12)
    np.testing.assert_allclose(found["icl"], other.bic(x) - 2 * np.sum(np.log(proba.max(1))), rtol=1e-12)
    assert int(result.model.n_parameters(result.params)) == other._n_parameters()


@for_cases(algorithms=False)
def test_weighted_criteria_are_those_of_repeated_rows(case):
    need(case.model.build(), "aic", "bic", "icl")
    found = answers(case)
    for name, by_rows in found["by_rows"].items():
        np.testing.assert_allclose(found["by_weight"][name], by_rows, rtol=1e-12)  # in another order of summation


@for_cases(algorithms=False)
def test_samples_have_the_moments_of_the_model(case):
    if case.model.moments is None:
        pytest.skip("no moments in closed form")
    result, n = stopped(case), 20_000
    x, z = map(np.asarray, result.model.sample(result.params, jax.random.key(0), n))
    mean, covariance = case.model.moments(result.params)
    d, k = len(mean), result.model.n_components
    assert x.shape == (n, d) and z.shape == (n,)
    # five standard errors; that of a covariance is at most √(kurtosis/n)·σσ, with the kurtosis of mixtures below 3
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x.mean(0) - mean) < 5 * sd / np.sqrt(n))
    assert np.all(np.abs(np.cov(x.T).reshape(d, d) - covariance) < 5 * np.sqrt(3 / n) * np.outer(sd, sd))
    weights = np.asarray(result.params.weights)
    share = np.bincount(z, minlength=k) / n
    assert np.all(np.abs(share - weights) <= 5 * np.sqrt(weights * (1 - weights) / n))
    for j in np.flatnonzero(weights):
        own = x[z == j]
        gap = np.abs(own.mean(0) - case.model.component_means(result.params)[j])
        assert np.all(gap < 5 * own.std(0) / np.sqrt(len(own)))


@for_cases(algorithms=False, only=("full", "diagonal", "tied", "low_rank", "poisson", "product"))
def test_params_may_be_arrays_of_numpy(case):
    result = stopped(case)
    params = jax.tree.map(np.asarray, result.params)
    np.testing.assert_array_equal(result.model.predict(params, case.model.data), answers(case)["predict"])
