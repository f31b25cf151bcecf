"""Models from a log joint density: published values, other optimisers, and what theory promises."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import once_a_week, slow
from joint_cases import (
    CASES,
    CELLS,
    COUNTS,
    beta_3_2,
    biochemists,
    fit_linkage,
    linkage,
    linkage_model,
    scaled_beta,
    zero_inflated,
)

import jaxem
from jaxem import bijections
from jaxem.contracts.status import Status
from jaxem.drivers import single as fitting

# --- the genetic linkage of Dempster, Laird & Rubin (1977)


def test_linkage_has_the_published_optimum_iterates_and_rate():
    case, model = CASES["dlr_linkage"], linkage_model()
    theta = 0.5
    for published in case["em_param_trace"][1:]:
        theta = fit_linkage(model, theta, max_iter=1).params
        assert abs(float(theta) - published) < 1e-9 * 0.51 + 3e-9  # nine printed digits, and an M step to 1e-9
    result = fit_linkage(model)
    assert abs(float(result.params) - case["exact"]["theta"]) < 1e-8
    multinomial = jax.scipy.special.gammaln(COUNTS.sum() + 1) - jnp.sum(jax.scipy.special.gammaln(COUNTS + 1))
    assert abs(float(result.log_lik + multinomial) - case["expected"]["loglik"]) < 1e-9
    rate = jaxem.em_rate(model, result.params, CELLS, sample_weight=COUNTS)
    assert abs(float(rate) - case["exact"]["em_rate"]) < 1e-6
    near = jaxem.newton_correction(model, jnp.asarray(0.6268), CELLS, sample_weight=COUNTS)
    assert abs(float(near) - case["exact"]["theta"]) < 1e-8


def test_linkage_with_a_prior():
    case = CASES["dlr_linkage_map_beta32"]
    result = fit_linkage(linkage_model(log_prior=beta_3_2))
    assert abs(float(result.params) - case["expected"]["params"]["theta"][0]) < 1e-8
    multinomial = jax.scipy.special.gammaln(COUNTS.sum() + 1) - jnp.sum(jax.scipy.special.gammaln(COUNTS + 1))
    assert abs(float(result.objective + multinomial) - case["expected"]["loglik"]) < 1e-9


@slow
def test_a_fit_from_a_joint_is_differentiable_in_weights_and_hyper_parameters():
    """Against the quadratic equation of the optimum: the derivative of its root by finite differences."""

    def theta(weight):
        return fit_linkage(linkage_model(), sample_weight=weight).params

    def root(w):  # 0 = w1/(2 + θ) − (w2 + w3)/(1 − θ) + w4/θ
        a, b, c = w.sum(), -(w[0] - 2 * (w[1] + w[2]) - w[3]), -2 * w[3]
        return (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a)

    np.testing.assert_allclose(root(COUNTS), CASES["dlr_linkage"]["exact"]["theta"], rtol=1e-12)
    slope = [(root(COUNTS + 1e-4 * e) - root(COUNTS - 1e-4 * e)) / 2e-4 for e in np.eye(4)]
    np.testing.assert_allclose(jax.grad(theta)(jnp.asarray(COUNTS)), slope, rtol=1e-6)

    def with_strength(strength):
        return fit_linkage(linkage_model(log_prior=jax.tree_util.Partial(scaled_beta, strength))).params

    step = [with_strength(jnp.asarray(1 + e)) for e in (-1e-2, 1e-2)]  # params are resolved to 1e-8
    np.testing.assert_allclose(jax.grad(with_strength)(jnp.asarray(1.0)), (step[1] - step[0]) / 2e-2, rtol=2e-3)


# --- zero-inflated counts, item response: against other programs


def test_zero_inflated_poisson_regression_agrees_with_pscl():
    case, data = CASES["zip_biochemists_int"], biochemists()
    start = {"beta": jnp.zeros(6), "gamma": jnp.asarray(-1.0)}
    result = jaxem.fit(jaxem.LogJoint(zero_inflated, 2), start, data, tol=1e-12, max_iter=500).check()
    assert abs(float(result.log_lik) - case["expected"]["loglik"]) < case["tolerance"]["loglik_abs"]
    for name, want in case["expected"]["params"].items():
        got = np.ravel(result.params[name])
        np.testing.assert_allclose(got, want, rtol=case["tolerance"]["params_rel"], atol=1e-6)


def two_parameter_item_response(params, answers, ability):
    logits = params["slope"] * (ability - params["difficulty"])
    return jnp.sum(jax.nn.log_sigmoid(jnp.where(answers > 0, logits, -logits)))


@slow
def test_item_response_agrees_with_direct_maximisation():
    """1000 people, 10 items; scipy's BFGS on the marginal likelihood, its integral written out in NumPy."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    slope, difficulty = rng.uniform(0.7, 1.8, 10), np.linspace(-1.5, 1.5, 10)
    chance = 1 / (1 + np.exp(-slope * (rng.normal(size=(1000, 1)) - difficulty)))
    answers = (rng.uniform(size=(1000, 10)) < chance).astype(float)
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    weights = weights / weights.sum()

    def marginal(theta):
        a, b = np.exp(theta[:10]), theta[10:]
        z = a[:, None] * (nodes[None] - b[:, None])
        log_p, log_q = -np.logaddexp(0, -z), -np.logaddexp(0, z)
        joint = answers @ log_p + (1 - answers) @ log_q + np.log(weights)
        top = joint.max(1, keepdims=True)
        mass = np.exp(joint - top)
        total = mass.sum(1, keepdims=True)
        post = mass / total
        error = answers.T @ post - post.sum(0) * np.exp(log_p)  # d/dz
        gradient = np.concatenate([(error * z).sum(1), -a * error.sum(1)])
        return -(top[:, 0] + np.log(total[:, 0])).mean(), -gradient / 1000

    best = minimize(marginal, np.zeros(20), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 500})
    model = jaxem.LogJoint.quadrature(
        two_parameter_item_response, 21, constraints={"slope": bijections.positive, "difficulty": None}
    )
    start = {"slope": jnp.ones(10), "difficulty": jnp.zeros(10)}
    result = jaxem.fit(model, start, answers, tol=1e-13, max_iter=500).check()
    assert abs(float(result.objective) / 1000 + best.fun) < 1e-6
    assert float(result.objective) / 1000 > -best.fun - 1e-9
    np.testing.assert_allclose(result.params["slope"], np.exp(best.x[:10]), rtol=1e-4)


# --- the closed form, stripped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stripped:
    """A Gaussian mixture that has lost its M step."""

    inner: Any

    def bind(self, data, sample_weight):
        return Stripped(self.inner.bind(data, sample_weight))

    def log_joint(self, params, data):
        return self.inner.log_joint(params, data)

    def statistics(self, params, data, responsibilities):
        return self.inner.statistics(params, data, responsibilities)

    def expected_log_joint(self, params, stats):
        return self.inner.expected_log_joint(params, stats)

    def log_prior(self, params):
        return self.inner.log_prior(params)

    def unconstrain(self, params):
        return self.inner.unconstrain(params)

    def constrain(self, free):
        return self.inner.constrain(free)


def clusters(n=200, dtype=np.float64):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, 2)) + 3.0 * (np.arange(n) % 2)[:, None]).astype(dtype)


MIXTURE = jaxem.Mixture(jaxem.FullNormal(), 2)
MIXTURE_START = jaxem.MixtureParams(
    jnp.array([0.4, 0.6]), jaxem.NormalParams(jnp.array([[0.0, 0.5], [2.5, 3.0]]), jnp.stack([2 * jnp.eye(2)] * 2))
)


@slow
def test_a_mixture_stripped_of_its_m_step_reaches_the_closed_form():
    x = clusters()
    closed = jaxem.fit(MIXTURE, MIXTURE_START, x, tol=1e-12).check()
    climbed = jaxem.fit(Stripped(MIXTURE), MIXTURE_START, x, tol=1e-12).check()
    np.testing.assert_allclose(climbed.objective, closed.objective, rtol=1e-12)


@slow
def test_a_mixture_stripped_of_its_m_step_has_the_derivative_and_the_rate_of_the_closed_form():
    x = clusters()
    closed = jaxem.fit(MIXTURE, MIXTURE_START, x, tol=1e-12).check()
    loss = lambda model: lambda x: jaxem.fit(model, MIXTURE_START, x, tol=1e-12).params.weights[0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss(Stripped(MIXTURE)))(x), jax.grad(loss(MIXTURE))(x), rtol=1e-5, atol=1e-9)
    rate = jaxem.em_rate(MIXTURE, closed.params, x)
    np.testing.assert_allclose(jaxem.em_rate(Stripped(MIXTURE), closed.params, x), rate, rtol=1e-5)


def test_other_optimisers_climb_too():
    import optax

    m_step = jaxem.Truncated(20, optimizer=optax.adam, rates={"learning_rate": 0.05})
    result = fit_linkage(linkage_model(m_step=m_step), max_iter=60)
    assert abs(float(result.params) - CASES["dlr_linkage"]["exact"]["theta"]) < 1e-3
    history = np.asarray(result.history)
    assert (np.diff(history) >= -1e-12 * abs(history[0])).all()


# --- properties: chunks, shards, weights, labels, dtypes


def numbers(params, x):
    whitened = (x - params["mean"]) / params["scale"]
    weights = jnp.stack([params["share"], 1 - params["share"]])
    return jnp.log(weights) - 0.5 * jnp.square(whitened) - jnp.log(params["scale"])


NUMBERS_START = {"share": jnp.asarray(0.4), "mean": jnp.array([0.5, 5.0]), "scale": jnp.array([1.0, 2.0])}
NUMBERS = jaxem.LogJoint(
    numbers, 2, {"share": bijections.unit_interval, "mean": None, "scale": bijections.positive}, start=NUMBERS_START
)
X = np.concatenate([np.linspace(-1.5, 2.0, 30), 6 + np.linspace(-2.0, 2.5, 30)])


def fit_numbers(x: Any = X, model=NUMBERS, **options):
    return jaxem.fit(model, NUMBERS_START, x, **({"tol": 1e-12, "max_iter": 300} | options))


def assert_same_fit(got, want):
    """A climbing M step resolves the objective to rounding, and params to the root of that."""
    np.testing.assert_allclose(got.objective, want.objective, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got.params, want.params)


@slow
def test_chunks_weights_and_absent_rows():
    want = fit_numbers(np.repeat(X, 2))
    assert_same_fit(fit_numbers(sample_weight=np.full(len(X), 2.0), chunk_size=7), want)
    absent = np.append(X, [np.nan, np.inf])
    weight = np.append(np.full(len(X), 2.0), [0.0, 0.0])
    assert_same_fit(fit_numbers(absent, sample_weight=weight), want)
    slope = jax.grad(lambda x: fit_numbers(x, sample_weight=weight).params["mean"][0])(jnp.asarray(absent))
    assert np.isfinite(slope).all() and (np.asarray(slope)[-2:] == 0).all()


@slow
def test_rows_sharded_over_four_devices():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    far = jax.device_put(X, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    assert_same_fit(fit_numbers(far), fit_numbers())


@slow
def test_a_batch_of_joints_equals_a_loop_and_nan_stays_in_its_lane():
    x = np.stack([X, 2 * X, np.where(np.arange(len(X)) == 3, np.nan, X)])
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), NUMBERS_START)
    for plan in ("sequential", "lanes"):
        many = jaxem.fit_batch(NUMBERS, starts, x, plan=plan, tol=1e-12, max_iter=300)
        assert many.status[2] == Status.NONFINITE
        for lane in range(2):
            alone = fit_numbers(x[lane])
            np.testing.assert_allclose(many.objective[lane], alone.objective, rtol=1e-10)
            np.testing.assert_allclose(many.params["mean"][lane], alone.params["mean"], rtol=1e-4, atol=1e-5)


def test_labels_restrict_the_states():
    known = np.where(np.arange(len(X)) < 5, 1, -1)  # five low numbers are said to be high
    result = fit_numbers(jaxem.labelled(X, known))
    assert result.converged and float(result.params["share"]) < float(fit_numbers().params["share"])


@slow
def test_float32_in_is_float32_out():
    got = fit_numbers(X.astype(np.float32), tol=1e-6)
    assert got.converged and got.params["mean"].dtype == jnp.float32 == got.objective.dtype
    np.testing.assert_allclose(got.objective, fit_numbers().objective, rtol=1e-5)


def rebuilt(scale):
    constraints = {"share": bijections.interval(0.0, 1.0), "mean": None, "scale": bijections.positive}
    prior = jax.tree_util.Partial(shrinkage, jnp.asarray(scale))
    return jaxem.LogJoint(numbers, 2, constraints, m_step=jaxem.Truncated(int(scale)), log_prior=prior)


def shrinkage(scale, params):
    return -0.5 * jnp.sum(jnp.square(params["mean"])) / (100 * scale)


def test_a_model_built_anew_with_new_values_compiles_nothing():
    fit_numbers(model=rebuilt(2.0))
    size = fitting._fit_at_first._cache_size()  # type: ignore[attr-defined]
    fit_numbers(1.1 * X, model=rebuilt(3.0), tol=1e-10)
    assert fitting._fit_at_first._cache_size() == size  # type: ignore[attr-defined]


@slow
def test_a_fit_from_a_joint_lowers_for_cuda_and_tpu():
    exported = jax.export.export(jax.jit(fit_numbers), platforms=["cuda", "tpu"])(jnp.asarray(X, jnp.float32))
    assert exported.platforms == ("cuda", "tpu")


# --- random joints


def table(params, row):
    """Two binary latents enumerated jointly, three symbols; zeros in `allowed` make states impossible."""
    symbol, allowed = row
    prior = jax.nn.log_softmax(params["prior"])
    emission = jax.nn.softmax(params["emission"], -1) * allowed  # log of 0: no slope backwards
    return prior + jnp.log(emission[:, symbol.astype(int)])


def gaussians(params, row):
    x, allowed = row
    log_density = -0.5 * jnp.square((x - params["mean"]) * jnp.exp(-params["log_scale"])) - params["log_scale"]
    return jnp.where(allowed > 0, log_density, -jnp.inf)


def counts(params, row):
    x, allowed = row
    return x * params["log_rate"] - jnp.exp(params["log_rate"]) - jax.scipy.special.gammaln(x + 1) + jnp.log(allowed)


def random_problems(kind, n_lanes, n=40):
    rng = np.random.default_rng(5)
    if kind is table:
        allowed = np.ones((n_lanes, 4, 3))
        allowed[:, 1, 0] = 0
        data = (rng.integers(3, size=(n_lanes, n)).astype(float), np.repeat(allowed[:, None], n, 1))
        return {"prior": rng.normal(size=(n_lanes, 4)), "emission": rng.normal(size=(n_lanes, 4, 3))}, data
    allowed = (rng.uniform(size=(n_lanes, n, 3)) < 0.8).astype(float)
    allowed[..., 0] = 1
    if kind is gaussians:
        params = {"mean": 2 * rng.normal(size=(n_lanes, 3)), "log_scale": 0.3 * rng.normal(size=(n_lanes, 3))}
        return params, (3 * rng.normal(size=(n_lanes, n)), allowed)
    return {"log_rate": rng.normal(size=(n_lanes, 3))}, (rng.poisson(4.0, size=(n_lanes, n)).astype(float), allowed)


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=once_a_week)])
@pytest.mark.parametrize("kind", [table, gaussians, counts])
def test_the_objective_of_random_joints_never_falls(kind, dtype):
    params, data = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), random_problems(kind, 34))
    model = jaxem.LogJoint(kind, 4 if kind is table else 3)
    result = jaxem.fit_batch(model, params, data, tol=-1.0, max_iter=12)
    history = np.asarray(result.history)
    assert np.isfinite(history[:, :2]).all()
    assert set(np.asarray(result.status)) <= {Status.MAX_ITER}
    rounding = 16 * np.finfo(dtype).eps * (40 + np.abs(history[:, :1]))
    assert (np.diff(history, axis=1) >= -rounding).all()
    assert (history[:, -1] > history[:, 0] + 0.1).mean() > 0.9  # they rise: the gradient is there


@pytest.mark.parametrize("kind", [table, gaussians, counts])
def test_bound_and_gap_make_up_the_likelihood_for_any_posterior(kind):
    params, data = random_problems(kind, 3)
    rng = np.random.default_rng(6)
    model = jaxem.LogJoint(kind, 4 if kind is table else 3)
    for lane in range(3):
        p, d = jax.tree.map(lambda leaf, lane=lane: jnp.asarray(leaf[lane]), (params, data))
        possible = np.asarray(model.log_joint(p, d)) > -np.inf
        posterior = rng.dirichlet(np.ones(possible.shape[1]), size=40) * possible
        posterior = jnp.asarray(posterior / posterior.sum(1, keepdims=True))
        weight = jnp.asarray(rng.uniform(0.5, 1.5, 40))
        parts = jaxem.decompose(model, p, d, posterior, sample_weight=weight)
        assert abs(float(parts.elbo + parts.kl - parts.log_lik)) < 1e-10 * abs(float(parts.log_lik))
        assert parts.kl > 0 and parts.elbo < parts.log_lik
        np.testing.assert_allclose(parts.expected_log_joint + parts.entropy, parts.elbo, rtol=1e-12)
        exact = jaxem.decompose(model, p, d, sample_weight=weight)
        assert abs(float(exact.kl)) < 1e-10 and abs(float(exact.elbo - exact.log_lik)) < 1e-9


def test_the_trace_of_the_bound_shows_both_half_steps():
    x = clusters()
    trace = jaxem.trace_bound(MIXTURE, MIXTURE_START, x, 4)
    want = jaxem.fit(MIXTURE, MIXTURE_START, x, tol=-1.0, max_iter=4)
    priors = [0.0]  # the floor's, which is no part of the bound
    log_lik = np.asarray(trace.after_e.log_lik)
    np.testing.assert_allclose(log_lik[0], np.asarray(want.history)[0] - priors[0], rtol=1e-5)
    np.testing.assert_allclose(trace.after_e.kl, 0, atol=1e-9)
    assert (np.asarray(trace.after_m.elbo) > log_lik).all()
    assert (np.asarray(trace.after_m.kl) > 0).all()
    np.testing.assert_allclose(trace.after_m.log_lik[:-1], log_lik[1:], rtol=1e-12)


# --- bad input


def wrong_shape(theta, cell):
    return linkage(theta, cell)[:4]


def whole_numbers(theta, cell):
    return jnp.zeros(5, int)


def test_what_does_not_fit_says_so():
    with pytest.raises(ValueError, match=r"log_joint \(wrong_shape\): expected float64\(5,\).* got float64\(4,\)"):
        jaxem.fit(jaxem.LogJoint(wrong_shape, 5), 0.5, CELLS)
    with pytest.raises(ValueError, match=r"log_joint \(whole_numbers\): expected float64\(5,\).* got int64\(5,\)"):
        jaxem.fit(jaxem.LogJoint(whole_numbers, 5), 0.5, CELLS)
    with pytest.raises(ValueError, match=r"params: expected a value in unit_interval, got 1\.5"):
        fit_linkage(linkage_model(), 1.5)
    with pytest.raises(ValueError, match="constraints: expected a prefix tree of the params"):
        jaxem.fit(jaxem.LogJoint(numbers, 2, {"share": bijections.unit_interval}), NUMBERS_START, X)
    with pytest.raises(ValueError, match="constraints: expected bijections"):
        jaxem.LogJoint(numbers, 2, {"share": "positive"})
    with pytest.raises(ValueError, match="n_states: expected a positive int"):
        jaxem.LogJoint(numbers, 0)
    with pytest.raises(ValueError, match=r"m_step: expected Full\(\) or Truncated"):
        jaxem.LogJoint(numbers, 2, m_step="full")
    with pytest.raises(ValueError, match="start: expected params"):
        linkage_model().init(jax.random.key(0), CELLS)
    with pytest.raises(ValueError, match="no M step; write m_step"):
        jaxem.fit(NoMStep(), 0.5, CELLS)


class NoMStep:
    def e_step(self, params, data, sample_weight):
        return data, jnp.zeros(())


def random_intercept(params, row, z):
    counts, covariate = row
    log_rate = params["intercept"] + params["slope"] * covariate + params["spread"] * z
    return jnp.sum(counts * log_rate - jnp.exp(log_rate) - jax.scipy.special.gammaln(counts + 1))


@slow
def test_a_random_intercept_agrees_with_direct_maximisation():
    """Five counts a person; scipy's Nelder–Mead on the marginal likelihood by the trapezoidal rule on 1,601 points."""
    from scipy.optimize import minimize
    from scipy.stats import norm, poisson

    rng = np.random.default_rng(3)
    covariate = rng.normal(size=(25, 5))
    counts = rng.poisson(np.exp(0.5 + 0.4 * covariate + 0.7 * rng.normal(size=(25, 1)))).astype(float)
    z = np.linspace(-8, 8, 1601)

    def marginal(theta):
        log_rate = theta[0] + theta[1] * covariate[..., None] + theta[2] * z
        mass = np.exp(poisson.logpmf(counts[..., None], np.exp(log_rate)).sum(1)) * norm.pdf(z)
        return -np.log(mass.sum(1) * (z[1] - z[0])).sum()

    constraints = {"intercept": None, "slope": None, "spread": bijections.positive}
    # a person's posterior is four times as narrow as the prior, for which 41 nodes lie too far apart
    model = jaxem.LogJoint.quadrature(random_intercept, 101, constraints=constraints)
    start = {"intercept": jnp.asarray(0.0), "slope": jnp.asarray(0.0), "spread": jnp.asarray(1.0)}
    result = jaxem.fit(model, start, (counts, covariate), tol=1e-12).check()
    found = np.array([float(result.params[name]) for name in ("intercept", "slope", "spread")])
    best = minimize(marginal, found, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10})
    assert abs(float(result.log_lik) + best.fun) < 5e-4  # what is left of the rule's error
    np.testing.assert_allclose(found, best.x, atol=1e-3)


# --- large data


@slow
def test_truncated_and_full_reach_the_closed_form_on_many_rows():
    x = clusters(20_000)
    want = jaxem.fit(jaxem.Mixture(jaxem.FullNormal(floor=0.0), 2), MIXTURE_START, x, tol=1e-9).check()
    mixture, normal, pd = jaxem.MixtureParams, jaxem.NormalParams, bijections.positive_definite
    constraints = mixture(bijections.simplex, normal(None, pd))  # type: ignore[arg-type]
    for m_step in (jaxem.Truncated(3), jaxem.Full()):
        model = jaxem.LogJoint(mixture_joint, 2, constraints, m_step=m_step)
        got = jaxem.fit(model, MIXTURE_START, x, tol=1e-9).check()
        assert abs(float(got.objective - want.objective)) / len(x) < 1e-6


def mixture_joint(params, x):
    mean, covariance = params.components
    density = jax.scipy.stats.multivariate_normal.logpdf(x[None], mean, covariance)
    return jnp.log(params.weights) + density
