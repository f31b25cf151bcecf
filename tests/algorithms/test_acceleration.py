"""Accelerated EM: counts of E steps against R's packages, and the guards that keep it safe."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import assert_close, quick_jit
from helpers import FAMILIES, blobs, first, once_a_week, two_starts
from jax.flatten_util import ravel_pytree

import jaxem
from jaxem.algorithms._jumps import em_step, step_info
from jaxem.algorithms.anderson import least_squares

ACCELERATED = {
    "squarem": jaxem.SQUAREM,
    "anderson": jaxem.Anderson,
    "parabolic": jaxem.ParabolicEM,
    "over_relaxed": jaxem.OverRelaxedEM,
    "newton": jaxem.NewtonCG,
}
every_algorithm = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=once_a_week if name == "newton" else ()) for name in ACCELERATED]
)


# --- E steps on the death notices of The London Times (Hasselblad 1969)

NOTICES = np.array([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1])  # days with 0, 1, … 9 of them
STARTS = [(0.3, 1.0, 2.5), (0.5, 1.0, 3.0), (0.45, 0.5, 4.5)]  # weight of the first component, rates
# R 4.2.2, SQUAREM::fpiter (SQUAREM 2021.1), until ‖M(θ) − θ‖ in these three numbers is at most 1e-7
EM_IN_R = (2055, 2113, 1968)
OPTIMUM = -1989.945859883  # the same and daarem 0.7; published: the vignette of SQUAREM, section 2.1
FEWER = {"em": 1, "squarem": 25, "anderson": 60, "newton": 40, "parabolic": 10, "over_relaxed": 6}


def three_numbers(params: jaxem.MixtureParams) -> Any:
    return params.weights[:1], params.components


@quick_jit
def notices(start: Any, algorithm: Any) -> jaxem.FitResult:
    stop = jaxem.Residual(1e-7, of=three_numbers)
    model, x = jaxem.Mixture(jaxem.Poisson(), 2), jnp.arange(10.0)[:, None]
    one = lambda start: jaxem.fit(  # noqa: E731
        model, start, x, sample_weight=jnp.asarray(NOTICES), algorithm=algorithm, stop=stop, max_iter=2200
    )
    return jax.vmap(one)(start)


@pytest.mark.parametrize("name", FEWER)
def test_e_steps_on_the_death_notices(name):
    weight, *rates = np.array(STARTS).T
    weights, rate = jnp.stack([weight, 1 - weight], 1), jnp.stack(rates, 1)[:, :, None]
    start = jaxem.MixtureParams(weights, jaxem.PoissonParams(rate))
    result = notices(start, jaxem.EM() if name == "em" else ACCELERATED[name]())
    np.testing.assert_array_equal(result.status, jaxem.Status.CONVERGED)
    np.testing.assert_allclose(result.objective, np.full(3, OPTIMUM), rtol=0, atol=1e-8)
    if name == "em":
        assert np.max(np.abs(result.n_evals - np.array(EM_IN_R))) <= 1
    assert np.all(np.asarray(result.n_evals) <= np.array(EM_IN_R) / FEWER[name] + 1)


# --- the objective never falls

N_PROBLEMS, ROWS = 200, 40


def problems(n_lanes: int, dtype: Any) -> tuple[Any, Any]:
    """Overlapping and separate clouds of two to four centres, with three components to explain them."""
    rng = np.random.default_rng(11)
    centres = rng.normal(size=(n_lanes, 4, 2)) * rng.uniform(0.5, 5, (n_lanes, 1, 1))
    member = rng.integers(rng.integers(2, 5, (n_lanes, 1)), size=(n_lanes, ROWS))
    x = np.take_along_axis(centres, member[:, :, None], 1) + rng.normal(size=(n_lanes, ROWS, 2))
    weights: Any = rng.dirichlet([2.0] * 3, n_lanes)
    mean: Any = x[:, :3] + 0.1 * rng.normal(size=(n_lanes, 3, 2))
    covariance: Any = np.broadcast_to(np.eye(2), (n_lanes, 3, 2, 2)) * rng.uniform(0.3, 3, (n_lanes, 3, 1, 1))
    start = jaxem.MixtureParams(weights, jaxem.NormalParams(mean, covariance))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), start), x.astype(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "n_lanes"),
    [("anderson", 6), *(pytest.param(name, N_PROBLEMS, marks=once_a_week) for name in ACCELERATED)],
)
def test_the_objective_never_falls_on_random_problems(name, n_lanes, dtype):
    start, x = problems(n_lanes, dtype)
    # with a proper prior components stay alive
    prior = jaxem.NormalInverseWishart(mean=np.zeros(2), shrinkage=0.1, dof=4.0, scale=0.1 * np.eye(2))
    model = jaxem.Mixture(jaxem.FullNormal(prior=prior), 3)
    run = lambda algorithm: jaxem.fit_batch(model, start, x, algorithm=algorithm, tol=-1.0, max_iter=80)  # noqa: E731
    result = run(ACCELERATED[name]())
    history = np.asarray(result.history, np.float64)
    # 16 eps of the status DECREASED, and what the objective is rounded by when that is taken from it
    allowance = 17 * np.finfo(dtype).eps * (ROWS + np.abs(history[:, :-1]))
    # not one fit fell, failed or stood still: the rises are seen over at least a row's worth
    np.testing.assert_array_equal(result.status, jaxem.Status.MAX_ITER)
    assert np.all(np.diff(history) >= -allowance)
    assert np.median(history[:, -1] - history[:, 0]) > 1
    assert np.all(np.asarray(result.n_evals) >= 81)


# --- refused candidates


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reckless:
    """EM that first proposes what it should not: params without a density, or far away."""

    length: Any

    monotone: ClassVar[bool] = True
    ends_at_em_fixed_point: ClassVar[bool] = True

    def init(self, model, params, data, sample_weight):
        return params, jnp.zeros((), bool)

    def step(self, model, params, data, sample_weight, state):
        image, _, objective, _ = em_step(model, params, data, sample_weight)
        wild = jax.tree.map(lambda a, b: a + self.length * (a - b), image, params)
        return wild, (image, jnp.ones((), bool)), step_info(objective, image)

    def refused(self, model, state):
        image, possible = state
        return image, (image, jnp.zeros((), bool)), possible


@quick_jit
def fit_blobs(start: Any, x: Any, algorithm: Any, weight: Any = None) -> jaxem.FitResult:
    model = jaxem.Mixture(jaxem.FullNormal(), 2)
    return jaxem.fit(model, start, x, sample_weight=weight, algorithm=algorithm, tol=-1.0, max_iter=20)


@pytest.mark.parametrize("length", [1e3, np.nan])
def test_a_refused_candidate_costs_one_e_step_and_nothing_else(length):
    x, start = blobs(), two_starts("full")
    plain, reckless = fit_blobs(start, x, jaxem.EM()), fit_blobs(start, x, Reckless(length))
    assert int(reckless.n_evals) == 2 * int(plain.n_evals) - 1
    assert int(reckless.n_iter) == int(plain.n_iter) and int(reckless.status) == int(plain.status)
    assert_close((reckless.params, reckless.history), (plain.params, plain.history), 1e-13)  # two programs


def test_a_refused_candidate_does_not_leave_the_fast_path():
    x, start = jnp.asarray(blobs()), two_starts("full")
    bound = jaxem.bind(jaxem.Mixture(jaxem.FullNormal(), 2), x, None)
    for length in (1e3, np.nan):
        state = jaxem.start(bound, start, x, None, algorithm=Reckless(length), max_iter=5)
        state = jaxem.advance(state, bound, x, None, algorithm=Reckless(length), stop=jaxem.Objective(-1.0), n_iter=5)
        assert int(state.path) == 0 and int(state.n_iter) == 6


@pytest.mark.slow
@every_algorithm
def test_a_weight_of_zero_stays_exactly_zero(name):
    x, start = blobs(), two_starts("full")
    padded = lambda leaf: jnp.concatenate([leaf, leaf[:1]])  # noqa: E731
    start = jax.tree.map(padded, start)._replace(weights=jnp.asarray([0.5, 0.5, 0.0]))
    model = jaxem.Mixture(jaxem.FullNormal(), 3)
    result = jaxem.fit(model, start, x, algorithm=ACCELERATED[name](), tol=1e-10)
    assert bool(result.converged) and float(result.params.weights[2]) == 0
    plain = jaxem.fit(model, start, x, tol=1e-13)
    np.testing.assert_allclose(result.objective, plain.objective, rtol=1e-9)
    np.testing.assert_allclose(np.sum(result.params.weights), 1, rtol=1e-15)


@every_algorithm
def test_weights_that_tend_to_zero_do_not_hold_it_back(name):
    """Seven known rates, four of which are not needed: no further from the optimum than EM at equal E steps."""
    rate = np.arange(1.0, 8.0)[:, None]
    model = jaxem.Mixture(KnownRates(jnp.asarray(rate)), 7)
    start = jaxem.MixtureParams(jnp.full(7, 1 / 7), ())
    x, options = np.arange(10.0)[:, None], {"sample_weight": NOTICES, "tol": -1.0}
    slow = jaxem.fit(model, start, x, max_iter=300, **options)
    n_iter = 25 if name == "newton" else 100  # its iterations take several E steps
    fast = jaxem.fit(model, start, x, algorithm=ACCELERATED[name](), max_iter=n_iter, **options)
    weights = np.asarray(fast.params.weights)
    assert int(fast.n_evals) <= 301 and np.all(weights >= 0) and np.sum(weights < 1e-3) >= 4
    assert float(fast.objective) > float(slow.objective)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-14)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KnownRates:
    """Poisson components whose rates are known: the bank is empty."""

    rate: Any
    additive: ClassVar[bool] = True

    def log_prob(self, bank, x):
        return jnp.sum(jax.scipy.stats.poisson.logpmf(x[:, None], self.rate[None]), -1)

    def statistics(self, bank, x, responsibilities):
        return ()

    def estimate(self, bank, stats, active=None):
        return ()

    def expected_log_prob(self, bank, stats):
        return jnp.zeros(())

    def component_axes(self):
        return ()

    def unconstrain(self, bank):
        return ()

    def constrain(self, free):
        return ()


# --- pieces


def test_least_squares_is_that_of_linear_algebra():
    rng = np.random.default_rng(2)
    columns, target = rng.normal(size=(4, 9)), rng.normal(size=9)
    for damping in (0.0, 0.3):
        ridge = damping * np.sum(columns**2)
        want = np.linalg.solve(columns @ columns.T + ridge * np.eye(4), columns @ target)
        np.testing.assert_allclose(least_squares(jnp.asarray(columns), jnp.asarray(target), jnp.asarray(damping)), want)
    # a window that is not yet full, and a column twice: the same fit, by what is there
    padded = jnp.asarray(np.concatenate([columns[:2], columns[:1], np.zeros((2, 9))]))
    got = least_squares(padded, jnp.asarray(target), jnp.asarray(0.0))
    want = np.linalg.lstsq(columns[:2].T, target, rcond=None)[0] @ columns[:2]
    np.testing.assert_allclose(np.asarray(got) @ np.asarray(padded), want)
    np.testing.assert_array_equal(got[2:], 0)


@pytest.mark.slow
def test_newton_steps_converge_quadratically():
    x, start = blobs(), two_starts("full")
    stop = jaxem.Residual(1e-9)
    slow = jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2), start, x, stop=stop)
    found = jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2), start, x, stop=stop, algorithm=jaxem.NewtonCG(forcing=1e-9))
    assert bool(found.converged) and int(found.n_iter) < int(slow.n_iter)
    gap = float(found.objective) - np.asarray(found.history)[: int(found.n_iter)]
    assert gap[-2] < gap[-3] ** 1.5 and gap[-3] > 1e-9
    np.testing.assert_allclose(ravel_pytree(found.params)[0], ravel_pytree(slow.params)[0], rtol=0, atol=1e-6)


def test_newton_without_free_coordinates_names_the_model():
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Mean:
        def e_step(self, params, data, sample_weight):
            return jnp.sum(data * sample_weight), -jnp.sum(sample_weight * jnp.square(data - params))

        def m_step(self, params, stats):
            return stats / 5

    with pytest.raises(ValueError, match="unconstrain.*Mean"):
        jaxem.fit(Mean(), jnp.zeros(()), jnp.arange(5.0), algorithm=jaxem.NewtonCG())
    assert float(jaxem.fit(Mean(), jnp.zeros(()), jnp.arange(5.0), algorithm=jaxem.Anderson()).params) == 2.0


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: jaxem.SQUAREM(longest=0.5), "SQUAREM.longest"),
        (lambda: jaxem.SQUAREM(growth=1.0), "SQUAREM.growth"),
        (lambda: jaxem.Anderson(window=0), "Anderson.window"),
        (lambda: jaxem.Anderson(window=2.5), "Anderson.window"),  # type: ignore[arg-type]
        (lambda: jaxem.Anderson(damping=-1e-3), "Anderson.damping"),
        (lambda: jaxem.Anderson(relaxation="2"), "Anderson.relaxation"),
        (lambda: jaxem.ParabolicEM(first=0.0), "ParabolicEM.first"),
        (lambda: jaxem.ParabolicEM(ratio=np.nan), "ParabolicEM.ratio"),
        (lambda: jaxem.NewtonCG(warmup=-1), "NewtonCG.warmup"),
        (lambda: jaxem.NewtonCG(forcing=1.5), "NewtonCG.forcing"),
        (lambda: jaxem.NewtonCG(max_products=0), "NewtonCG.max_products"),
        (lambda: jaxem.NewtonCG(halvings=-2), "NewtonCG.halvings"),
    ],
)
def test_bad_options_are_named(build, named):
    with pytest.raises(ValueError, match=f"{named}: expected .*, got"):
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2), two_starts("full"), blobs(), algorithm=build())


@pytest.mark.slow
@first(("name", "family"), [(name, family) for name in ACCELERATED for family in FAMILIES])
def test_in_float32_it_ends_where_em_ends(name, family):
    x, start = blobs(dtype=np.float32), two_starts(family, dtype=np.float32)
    model = jaxem.Mixture(FAMILIES[family](), 2)
    result = jaxem.fit(model, start, x, algorithm=ACCELERATED[name](), tol=-1.0, max_iter=60)
    plain = jaxem.fit(model, start, x, tol=-1.0, max_iter=60)
    assert int(result.status) == jaxem.Status.MAX_ITER
    for got, want in zip(jax.tree.leaves(result.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.max(np.abs(want)))
