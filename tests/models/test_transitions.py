"""Transitions that depend on covariates, against enumeration of paths, another maximiser, and one matrix."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import jaxem

K, T = 2, 4
LENGTH = np.array([4, 1, 3])
BANK = jaxem.NormalParams(jnp.array([[0.0], [2.5]]), jnp.array([[[1.0]], [[0.5]]]))


def model(prior: Any = None, floor: float = 1e-6, **options: Any) -> jaxem.HiddenMarkovModel:
    transitions = jaxem.SoftmaxTransitions(prior)
    return jaxem.HiddenMarkovModel(jaxem.FullNormal(floor), K, transitions=transitions, **options)


def start(coefficients: Any = None) -> jaxem.HMMParams:
    a = np.array([[[0.8, -0.5], [-0.8, 0.5]], [[-1.0, 0.25], [1.0, -0.25]]]) if coefficients is None else coefficients
    return jaxem.HMMParams(jnp.array([0.7, 0.3]), jaxem.TransitionParams(jnp.asarray(a)), BANK)


def small() -> Any:
    """Three series whose covariates and numbers are not to be looked at where no step is, nor at a first step."""
    rng = np.random.default_rng(0)
    x, q = rng.normal(1.0, 1.5, (3, T, 1)), np.stack([np.ones((3, T)), rng.normal(size=(3, T))], 2)
    absent = np.arange(T) >= LENGTH[:, None]
    x[absent], q[absent], q[:, 0] = np.nan, np.nan, np.inf
    return jaxem.gated(jaxem.Sequences(x, LENGTH), q)


def enumerated(params: Any, data: Any) -> tuple[np.ndarray, np.ndarray, list]:
    """log p(x), p(state | x) and the most probable path of each series, path by path, with NumPy alone."""
    x, a = np.asarray(data.data.values)[..., 0], np.asarray(params.transition.coefficients)
    mean, variance = np.asarray(params.emissions.mean)[:, 0], np.asarray(params.emissions.covariance)[:, 0, 0]
    log_lik, states, best = np.zeros(3), np.zeros((3, T, K)), []
    for i, t in enumerate(LENGTH):
        joint = {}
        for path in itertools.product(range(K), repeat=int(t)):
            p = float(params.initial[path[0]])
            for s in range(t):
                j = path[s]
                p *= np.exp(-0.5 * (x[i, s] - mean[j]) ** 2 / variance[j]) / np.sqrt(2 * np.pi * variance[j])
                if s:
                    odds = np.exp(a[path[s - 1]] @ np.asarray(data.covariates)[i, s])
                    p *= odds[j] / odds.sum()
            joint[path] = p
        total = sum(joint.values())
        log_lik[i] = np.log(total)
        for path, p in joint.items():
            for s, j in enumerate(path):
                states[i, s, j] += p / total
        best.append(max(joint, key=joint.get))  # type: ignore[arg-type]
    return log_lik, states, best


def drawn(n: int = 60, t: int = 12, seed: int = 1) -> tuple[Any, Any]:
    covariates = jnp.stack([jnp.ones((n, t)), jax.random.normal(jax.random.key(seed), (n, t))], 2)
    return model().sample(start(), jax.random.key(seed + 1), n, t, covariates=covariates)


def test_answers_are_those_of_all_paths():
    data, params = small(), start()
    log_lik, states, best = enumerated(params, data)
    np.testing.assert_allclose(model().log_prob(params, data), log_lik, rtol=1e-12)
    np.testing.assert_allclose(model().responsibilities(params, data), states, atol=1e-12)
    path = np.asarray(model().predict(params, data))
    assert [tuple(row[:t]) for row, t in zip(path, LENGTH, strict=True)] == best
    filtered = np.asarray(model().filtered(params, data))
    ends = (np.arange(3), LENGTH - 1)
    np.testing.assert_allclose(filtered[ends], states[ends], atol=1e-12)


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_gradient_of_the_log_likelihood_is_that_of_q(fast):
    """Fisher's identity: states and pairs are right where the slopes of both agree, on either path."""
    data, params = small(), start()
    bound = jaxem.bind(model(floor=0.0), data, None)

    @jax.jit
    def e_step(params: Any) -> Any:
        read = bound.prepare(bound.readable(data)) if fast else bound.readable(data)
        return bound.e_step(params, read, None)

    stats, log_lik = e_step(params)
    np.testing.assert_allclose(log_lik, enumerated(params, data)[0].sum(), rtol=1e-12)
    flat, unravel = ravel_pytree(bound.unconstrain(params))
    of_q = jax.jit(jax.grad(lambda flat: bound.expected_log_joint(bound.constrain(unravel(flat)), stats)))(flat)
    of_log_lik = jax.jit(jax.grad(lambda flat: jnp.sum(bound.log_prob(bound.constrain(unravel(flat)), data))))(flat)
    np.testing.assert_allclose(of_q, of_log_lik, rtol=1e-9, atol=1e-11)


def test_the_fit_is_the_maximum_that_another_program_finds():
    data, _ = drawn()
    fitted = jaxem.fit(model(floor=0.0), start(), data, tol=1e-11, max_iter=2000).check()
    assert np.all(np.diff(fitted.history[: int(fitted.n_iter) + 1]) >= -1e-9)
    flat, unravel = ravel_pytree(model().unconstrain(start()))
    slope = jax.jit(jax.value_and_grad(lambda flat: -jnp.sum(model().log_prob(model().constrain(unravel(flat)), data))))
    found = scipy.optimize.minimize(slope, np.asarray(flat), jac=True, method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(fitted.log_lik, -found.fun, rtol=1e-10)
    other = model().constrain(unravel(jnp.asarray(found.x)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), fitted.params, other)


@pytest.mark.slow
def test_a_constant_covariate_gives_one_matrix():
    data, _ = drawn(40, 10)
    ones = jaxem.gated(data.data, 3.0 * jnp.ones((40, 10, 1)))
    softmax = jaxem.fit(model(), start(start().transition.coefficients[:, :, :1]), ones, tol=1e-10).check()
    plain_model = jaxem.HiddenMarkovModel(jaxem.FullNormal(), K)
    plain = start()._replace(transition=model().transition_matrix(start(np.zeros((K, K, 2))), jnp.ones((1, 2)))[0])
    plain = jaxem.fit(plain_model, plain, data.data, tol=1e-10).check()
    np.testing.assert_allclose(softmax.log_lik, plain.log_lik, rtol=1e-9)
    matrix = model().transition_matrix(softmax.params, jnp.array([[3.0]]))[0]
    np.testing.assert_allclose(matrix, plain.params.transition, atol=1e-4)
    assert int(softmax.model.n_parameters(softmax.params)) == int(plain.model.n_parameters(plain.params))


def test_a_prior_shrinks_towards_even_odds_and_the_objective_never_falls():
    data, _ = drawn(40, 10)
    size = []
    for precision in (0.1, 1000.0):
        found = jaxem.fit(model(prior=jaxem.GaussianPrior(precision)), start(), data, max_iter=60)
        assert np.all(np.diff(found.history[: int(found.n_iter) + 1]) >= -1e-9)
        prior = found.model.log_prior(found.params) - jaxem.bind(model(), data, None).log_prior(found.params)
        np.testing.assert_allclose(prior, -0.5 * precision * np.sum(found.params.transition.coefficients**2), rtol=1e-9)
        size.append(float(jnp.max(jnp.abs(found.params.transition.coefficients))))
    assert size[1] < 0.3 * size[0]


def test_moves_that_are_not_allowed_never_happen():
    allowed = jnp.array([[True, True], [False, True]])
    only = jnp.array([[[0.5, 1.0], [-0.5, -1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    data, _ = drawn(40, 10)
    fitted = jaxem.fit(model(allowed=allowed), start(only), data, max_iter=30)
    matrix = model(allowed=allowed).transition_matrix(fitted.params, jnp.array([[1.0, 0.3]]))[0]
    assert matrix[1, 0] == 0 and matrix[1, 1] == 1 and np.all(np.isfinite(fitted.history[: int(fitted.n_iter) + 1]))
    assert int(fitted.model.n_parameters(fitted.params)) == 1 + 2 + 4  # a first state, one move, two normals


def test_forecasts_follow_the_covariates_ahead():
    data, params = small(), start()
    ahead = jnp.asarray(np.random.default_rng(3).normal(size=(3, 2, 2)))
    states = model().forecast(params, data, 2, covariates=ahead)
    last = np.asarray(model().filtered(params, data))[np.arange(3), LENGTH - 1]
    for h in range(2):
        moves = np.asarray(model().transition_matrix(params, ahead[:, h]))
        last = np.einsum("ni,nij->nj", last, moves)
        np.testing.assert_allclose(states[:, h], last, rtol=1e-12)
    paths = model().sample_ahead(params, jax.random.key(0), data, 2, 4000, covariates=ahead)
    mean = np.einsum("nhj,j->nh", states, np.asarray(BANK.mean)[:, 0])
    np.testing.assert_allclose(paths.mean(0)[..., 0], mean, atol=5 * 1.7 / 4000**0.5)


def test_draws_move_as_the_covariates_say():
    covariates = jnp.broadcast_to(jnp.array([1.0, 2.0]), (4000, 2, 2))
    _, states = model().sample(start(), jax.random.key(0), 4000, 2, covariates=covariates)
    matrix = model().transition_matrix(start(), jnp.array([[1.0, 2.0]]))[0]
    for i in range(K):
        share = np.mean(states[states[:, 0] == i, 1] == 0)
        np.testing.assert_allclose(share, matrix[i, 0], atol=5 * 0.5 / 1000**0.5)


@pytest.mark.slow
def test_drivers_take_covariates():
    """Starts, errors, labels, held rows, order, replicates, groups."""
    data, states = drawn(60, 10)
    free = model()
    result = jaxem.fit(free, free.init(jax.random.key(0), data), data, max_iter=200).check()
    ordered = result.ordered(by=lambda params: params.emissions.mean[:, 0])
    np.testing.assert_allclose(ordered.params.emissions.mean, BANK.mean, atol=0.3)
    np.testing.assert_allclose(ordered.params.transition.coefficients, start().transition.coefficients, atol=0.6)
    by_share = result.ordered()
    np.testing.assert_allclose(by_share.model.log_prob(by_share.params, data).sum(), result.log_lik, rtol=1e-10)
    errors = jaxem.standard_errors(free, result.params, data)
    spread = np.asarray(errors.standard_errors.transition.coefficients)
    assert np.all((spread > 0.02) & (spread < 0.5))
    known = jaxem.fit(free, start(), jaxem.labelled(data, states), max_iter=50)
    assert known.log_lik < result.log_lik
    mask = jaxem.HMMParams(False, jaxem.TransitionParams(jnp.array([True, False])), False)
    held = jaxem.fit(jaxem.Frozen(free, mask), start(), data, max_iter=20).params.transition.coefficients
    np.testing.assert_array_equal(held[0], start().transition.coefficients[0])
    assert np.max(np.abs(held[1] - start().transition.coefficients[1])) > 1e-3
    replicates = jaxem.bootstrap(free, result.params, data, jax.random.key(1), 4, max_iter=50)
    assert np.all(np.std(replicates.params.transition.coefficients, 0) > 0)
    groups = jaxem.fit_groups(free, jax.random.key(2), data, np.arange(60) % 2, max_iter=50)
    assert groups.params.transition.coefficients.shape == (2, K, K, 2) and np.all(np.isfinite(groups.log_lik))


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda d: jaxem.fit(model(), start(), d.data), "gated"),
        (lambda d: jaxem.fit(jaxem.HiddenMarkovModel(jaxem.FullNormal(), K), start(), d), "SoftmaxTransitions"),
        (lambda d: model(stationary=True).log_prob(start(), d), "stationary"),
        (lambda d: model(concentration=2.0).log_prob(start(), d), "concentration"),
        (lambda d: model(prior=jaxem.GaussianPrior(1.0, 2.0)).log_prob(start(), d), "mean"),
        (lambda d: model().dwell_times(start()), "covariates"),
        (lambda d: model().forecast(start(), d, 2), "covariates"),
        (lambda d: model().sample(start(), jax.random.key(0), 3, 4), "covariates"),
        (lambda d: jaxem.gated(d.data, np.ones((3, 2, 1))), "covariates"),
        (lambda d: jaxem.fit(model(), start(np.zeros((K, K, 3))), d), "shape"),
        (lambda d: jaxem.fit(model(), start(np.ones((K, K, 2))), d), "sums of zero"),
        (lambda d: jaxem.fit(model(), start(), d._replace(covariates=np.ones((3, T, 2)))), "rank"),
        (lambda d: jaxem.fit_stream(model(), start(), lambda: iter([(d, None)])), "fit_stream|additive|rows"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(ask, match):
    with pytest.raises((ValueError, TypeError), match=match):
        ask(small())


def test_families_whose_statistics_are_rows_are_fitted():
    """Their rows are looked at before a fit, those of series by their evidence."""
    model = jaxem.HiddenMarkovModel(jaxem.Weibull(), K)
    bank = jaxem.WeibullParams(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [5.0]]))
    params = jaxem.HMMParams(jnp.array([0.5, 0.5]), jnp.array([[0.8, 0.2], [0.2, 0.8]]), bank)
    data, _ = model.sample(params, jax.random.key(0), 10, 8)
    assert not model.additive
    result = jaxem.fit(model, params, data, max_iter=20)
    history = result.history[: int(result.n_iter) + 1]
    assert np.all(np.diff(history) >= -1e-9) and history[-1] > history[0]
