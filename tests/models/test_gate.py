"""Mixture weights that depend on covariates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from contract_cases import quick_jit
from helpers import logsumexp, made, slow

import jaxem
from jaxem.contracts.result import permute_components

KEY = jax.random.key(0)
N = 120
_rng = np.random.default_rng(0)
T = _rng.normal(size=N)
Q = np.stack([np.ones(N), 1950 + 10 * T], 1)  # offsets that are large beside the spread
_LOGITS = np.stack([0.5 + T, -T, 0 * T], 1)
Z = np.array([_rng.choice(3, p=p) for p in scipy.special.softmax(_LOGITS, 1)])
X = (np.array([0.0, 4.0, 9.0])[Z] + _rng.normal(size=N))[:, None]
DATA = jaxem.gated(X, Q)
GATE = jaxem.SoftmaxGate()
MODEL = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 3, gate=GATE)


@quick_jit
def _fit(model: Any, data: Any) -> jaxem.FitResult:
    return jaxem.fit(model, model.init(KEY, data), data, tol=1e-11, max_iter=400)


@pytest.fixture(scope="module")
def fitted() -> jaxem.FitResult:
    result = _fit(MODEL, DATA)
    result.check()
    return result.ordered(by=lambda params: params.components.mean[:, 0])


def test_the_fit_is_the_maximum_of_scipys_likelihood(fitted):
    def negative_log_lik(v: np.ndarray) -> float:
        a = np.concatenate([v[:4].reshape(2, 2), np.zeros((1, 2))])
        log_w = scipy.special.log_softmax(np.stack([np.ones(N), T], 1) @ a.T, 1)
        return -logsumexp(log_w + scipy.stats.norm.logpdf(X, v[4:7], np.exp(v[7:])), 1).sum()

    start = np.r_[np.zeros(4), 0.0, 4.0, 9.0, np.zeros(3)]
    with np.errstate(all="ignore"):
        found = scipy.optimize.minimize(negative_log_lik, start, method="BFGS", options={"gtol": 1e-6})
    np.testing.assert_allclose(fitted.log_lik, -found.fun, rtol=1e-9)
    contrasts = np.asarray(GATE.contrasts(fitted.params.weights))
    np.testing.assert_allclose(contrasts[:2, 1] * 10, found.x[[1, 3]], rtol=1e-3)
    np.testing.assert_allclose(contrasts[:2] @ [1, 1950], found.x[[0, 2]], rtol=1e-3)
    assert not contrasts[2].any() and int(MODEL.n_parameters(fitted.params)) == 10
    np.testing.assert_allclose(fitted.params.weights.coefficients.sum(0), 0, atol=1e-10)
    history = np.asarray(fitted.history)[: int(fitted.n_iter) + 1]
    assert np.all(np.diff(history) > -1e-9)


@slow
def test_float32_agrees(fitted):
    single = jax.tree.map(np.float32, DATA)
    result = jaxem.fit(MODEL, jax.tree.map(np.float32, fitted.params), single, tol=1e-7)
    np.testing.assert_allclose(result.params.weights.coefficients, fitted.params.weights.coefficients, rtol=2e-3)
    np.testing.assert_allclose(result.objective, fitted.objective, rtol=1e-6)


@slow
def test_constant_weights_are_a_gate_with_an_intercept_alone():
    data = jaxem.gated(X, np.ones((N, 1)))
    gate = _fit(MODEL, data)
    plain = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 3)
    bank = gate.params.components
    start = made(jaxem.MixtureParams, jax.nn.softmax(gate.params.weights.coefficients[:, 0]), bank)
    result = jaxem.fit(plain, start, X, tol=1e-12)
    np.testing.assert_allclose(result.objective, gate.objective, rtol=1e-9)
    np.testing.assert_allclose(result.params.weights, start.weights, rtol=1e-3)
    np.testing.assert_allclose(plain.bic(result.params, X), MODEL.bic(gate.params, data), rtol=1e-9)


@slow
def test_a_component_switched_off_is_not_there():
    off = jaxem.Mixture(jaxem.FullNormal(), 3, active=np.array([True, False, True]), gate=jaxem.SoftmaxGate())
    two = jaxem.Mixture(jaxem.FullNormal(), 2, gate=jaxem.SoftmaxGate())
    result = _fit(off, DATA)
    kept = jax.tree.map(lambda leaf: leaf[::2], result.params)
    alone = jaxem.fit(two, kept, DATA, tol=1e-11, max_iter=400).check()
    np.testing.assert_allclose(result.objective, alone.objective, rtol=1e-9)
    assert not result.params.weights.coefficients[1].any()
    assert int(off.n_parameters(result.params)) == int(two.n_parameters(kept))
    assert not np.asarray(off.responsibilities(result.params, DATA))[:, 1].any()
    errors = jaxem.standard_errors(off, result.params, DATA).standard_errors
    assert not np.asarray(errors.weights.coefficients)[1].any() and np.all(errors.weights.coefficients[0] > 0)


@slow
def test_labels_go_around_the_covariates(fitted):
    """And through the fit: rows whose component is known are certain."""
    known = np.where(np.arange(N) < 30, Z, -1)
    data = jaxem.labelled(DATA, known)
    result = jaxem.fit(MODEL, fitted.params, data, tol=1e-8).check()
    assert float(result.log_lik) < float(fitted.log_lik)
    posterior = MODEL.responsibilities(result.params, DATA)
    decomposed = jaxem.decompose(MODEL, result.params, data)
    np.testing.assert_allclose(decomposed.log_lik, result.log_lik, rtol=1e-9)
    assert posterior.shape == (N, 3)
    with pytest.raises(ValueError, match=r"write labelled\(gated\(data, covariates\), known\)"):
        jaxem.gated(data, Q)


@slow
def test_groups_and_bootstrap_carry_the_covariates(fitted):
    groups = jaxem.fit_groups(MODEL, KEY, DATA, np.arange(N) % 2, tol=1e-6)
    part = jax.tree.map(lambda leaf: leaf[1::2], DATA)
    alone = jaxem.fit(MODEL, _take(groups.params, 1), part, tol=1e-6)
    np.testing.assert_allclose(groups.objective[1], alone.objective, rtol=1e-6)
    assert groups.responsibilities(DATA, np.arange(N) % 2).shape == (N, 3)
    errors = jaxem.standard_errors(MODEL, fitted.params, DATA).standard_errors
    spread = jaxem.bootstrap(MODEL, fitted.params, DATA, KEY, 60).standard_errors()
    ratio = np.asarray(spread.weights.coefficients / errors.weights.coefficients)
    assert np.all((ratio > 0.5) & (ratio < 2.5))


def _take(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def test_components_may_be_relabelled(fitted):
    params, axes = fitted.params, MODEL.component_axes()
    other = permute_components(params, axes, jnp.array([2, 0, 1]))
    np.testing.assert_allclose(MODEL.log_prob(other, DATA), MODEL.log_prob(params, DATA), rtol=1e-9)
    back = MODEL.constrain(MODEL.unconstrain(other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), back, other)
    with pytest.raises(ValueError, match="by: expected a function of params .* depend on covariates, got 'weight'"):
        fitted.ordered()
    diagnosis = jaxem.diagnose(MODEL, params, fitted.history)
    assert np.isnan(diagnosis.smallest_weight) and not bool(diagnosis.equal_components)


def test_draws_are_conditional_on_the_covariates(fitted):
    rows, states = MODEL.sample(fitted.params, KEY, N, DATA)
    assert isinstance(rows, type(DATA)) and rows.data.shape == X.shape
    np.testing.assert_array_equal(rows.covariates, Q)
    expected = np.exp(MODEL._mixing.log_weights(fitted.params.weights, jnp.asarray(Q))).sum(0)
    np.testing.assert_allclose(np.bincount(states, minlength=3), expected, atol=4 * np.sqrt(N / 4))
    with pytest.raises(ValueError, match=r"given: expected gated\(rows, covariates of the gate\) with n = 4"):
        MODEL.sample(fitted.params, KEY, 4)


@slow
def test_covariates_that_separate_the_components_end_finite():
    """The likelihood has no maximum in the gate; the coefficients grow until the objective does not see it."""
    t = np.linspace(-1, 1, N)
    data = jaxem.gated(np.where(t > 0, 50.0, 0.0)[:, None] + X / 10, np.stack([np.ones(N), t], 1))
    for prior in (None, jaxem.GaussianPrior(np.array([0.0, 0.1]))):
        model = jaxem.Mixture(jaxem.FullNormal(), 2, gate=jaxem.SoftmaxGate(prior))
        result = _fit(model, data)
        assert bool(result.converged) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
        posterior = np.asarray(model.responsibilities(result.params, data))
        assert np.all(np.max(posterior, 1) > 1 - 1e-6)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (MODEL, X, r"data: expected gated\(data, covariates\), as the mixture has a gate, got ndarray"),
        (jaxem.Mixture(jaxem.FullNormal(), 3), DATA, r"got gated data; write gate=SoftmaxGate\(\)"),
        (
            jaxem.Mixture(jaxem.FullNormal(), 3, gate=made(bool, 1)),
            DATA,
            r"gate: expected SoftmaxGate\(\) or None, got array\(True\)",
        ),
        (
            jaxem.Mixture(jaxem.FullNormal(), 3, 2.0, gate=jaxem.SoftmaxGate()),
            DATA,
            r"concentration: expected None beside a gate.*SoftmaxGate\(prior=",
        ),
        (
            jaxem.Mixture(jaxem.FullNormal(), 3, gate=jaxem.SoftmaxGate(jaxem.GaussianPrior(np.ones(3)))),
            DATA,
            r"gate.prior.precision: expected shape \(\) or \(2,\)",
        ),
        (MODEL, jaxem.gated(X, np.concatenate([Q, Q[:, :1]], 1)), "covariates of the gate: expected columns of full"),
    ],
    ids=["no covariates", "no gate", "no kind", "concentration", "prior", "rank"],
)
def test_what_does_not_fit_a_gate_is_named(model, data, message, fitted):
    params = fitted.params
    if isinstance(data, tuple) and np.shape(data[1])[1] == 3:
        wider = jnp.pad(params.weights.coefficients, ((0, 0), (0, 1)))
        params = params._replace(weights=made(jaxem.GateParams, wider))
    with pytest.raises(ValueError, match=message):
        jaxem.fit(model, params, data)


def test_params_of_a_gate_are_checked(fitted):
    constant = fitted.params._replace(weights=np.full(3, 1 / 3))
    with pytest.raises(TypeError, match="params.weights: expected GateParams, as the mixture has a gate, got"):
        jaxem.fit(MODEL, constant, DATA)
    moved = fitted.params._replace(weights=made(jaxem.GateParams, np.ones((3, 2))))
    with pytest.raises(ValueError, match="expected sums of zero over the components, got .* subtract the mean"):
        jaxem.fit(MODEL, moved, DATA)
    with pytest.raises(ValueError, match=r"covariates: expected shape \(120, q\)"):
        jaxem.gated(X, T)
