"""Models of which parts are known: exact M steps, free coordinates, derivatives, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAMILIES, blobs, start
from jax.flatten_util import ravel_pytree
from toys import ClosedPoissonMixture, CountParams, PoissonMixture

import jaxem
from jaxem import Frozen
from jaxem.contracts import capabilities as ask
from jaxem.fold.folded import Folded

MixtureParams: Any = jaxem.MixtureParams  # of booleans, and of arrays of NumPy
NormalParams: Any = jaxem.NormalParams
PoissonParams: Any = jaxem.PoissonParams
Counts: Any = CountParams
X = blobs(60)
ONE_OF_TWO = np.array([True, False])
ENTRIES = np.array([[True, False], [False, True]])


def mask(weights: Any = False, mean: Any = False, covariance: Any = False) -> Any:
    return MixtureParams(weights, NormalParams(mean, covariance))


def prior(name: str) -> jaxem.NormalInverseWishart:
    scale = {"full": np.eye(2), "tied": np.eye(2), "diagonal": np.ones(2), "spherical": np.asarray(1.0)}[name]
    return jaxem.NormalInverseWishart(np.array([1.0, 2.0]), np.asarray(2.0), np.asarray(5.0), scale)


MASKS = {
    "mean": mask(mean=ONE_OF_TWO),
    "weights": mask(weights=True),
    "covariance": mask(covariance=True),
    "all but means": mask(weights=True, covariance=True),
    "covariance of one": mask(covariance=ONE_OF_TWO),
    "entries": mask(mean=ENTRIES),
}
HOLDS = [
    *[(name, held) for name in FAMILIES for held in ("mean", "all but means")],
    *[(name, "covariance of one") for name in ("full", "diagonal", "spherical")],
    *[(name, "entries") for name in ("diagonal", "spherical")],
    ("full", "weights"),
    ("tied", "covariance"),
]


# --- exact M steps


@pytest.mark.slow
@pytest.mark.parametrize(("name", "held"), HOLDS)
def test_the_m_step_is_the_mode_over_what_is_not_held(name, held):
    """The gradient of Q + log prior vanishes in the coordinates that are free, and there only."""
    inner = jaxem.Mixture(FAMILIES[name](floor=0.1, prior=prior(name)), 2, concentration=2.0)
    params = jax.tree.map(jnp.asarray, start(name, [[0.5, -0.5], [2.0, 3.0]], [2.0, 1.0]))
    model = Frozen(inner, MASKS[held], params)

    @jax.jit
    def surface(params: Any) -> Any:
        bound = model.bind(jnp.asarray(X), None)
        stats, _ = Folded(bound).e_step(params, jnp.asarray(X), None)
        mode = bound.m_step(params, stats)
        q = lambda params: bound.model.expected_log_joint(params, stats) + ask.log_prior(bound.model, params)  # noqa: E731
        free = lambda flat: q(bound.constrain(flat))  # noqa: E731
        whole, unravel = ravel_pytree(inner.unconstrain(mode))
        all_of_them = lambda flat: q(inner.constrain(unravel(flat)))  # noqa: E731
        return mode, jax.grad(free)(bound.unconstrain(mode)), jax.grad(all_of_them)(whole)

    mode, slope, slope_of_all = surface(params)
    assert slope.size < slope_of_all.size
    assert np.max(np.abs(slope)) < 1e-11 and np.max(np.abs(slope_of_all)) > 1e-2
    assert_held(mode, params, model)
    assert int(model.n_parameters(params)) == slope.size


def assert_held(params: Any, values: Any, model: Any) -> None:
    """To the bit."""
    for flags, a, b in zip(*map(jax.tree.leaves, (model.spread(values), params, values)), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[flags], np.asarray(b)[flags])
    moved = [
        np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (params, values)), strict=True)
    ]
    assert any(moved)


def test_scatter_about_a_known_mean_by_hand():
    """One component: Σ = (scatter about μ + Λ) / n; with a prior + Ψ + κ(μ − m)(μ − m)ᵀ, over n + ν + d + 2."""
    mean, weight = np.array([0.5, -0.25]), np.random.default_rng(0).uniform(0.5, 2, 60)
    values = MixtureParams(np.ones(1), NormalParams(mean[None], np.eye(2)[None]))
    gap = X - mean
    scatter = (weight[:, None] * gap).T @ gap
    held = mask(mean=True)
    plain = jaxem.fit(Frozen(jaxem.Mixture(jaxem.FullNormal(floor=0.0), 1), held), values, X, sample_weight=weight)
    np.testing.assert_allclose(plain.check().params.components.covariance[0], scatter / weight.sum(), rtol=1e-12)
    known = prior("full")
    away = mean - known.mean
    want = (scatter + known.scale + known.shrinkage * np.outer(away, away)) / (weight.sum() + known.dof + 4)
    model = Frozen(jaxem.Mixture(jaxem.FullNormal(floor=0.0, prior=known), 1), held)
    found = jaxem.fit(model, values, X, sample_weight=weight)
    np.testing.assert_allclose(found.params.components.covariance[0], want, rtol=1e-12)


def test_what_is_held_stays_to_the_bit_far_from_the_origin_and_in_every_lane():
    far = X + np.array([1e4, -3e4])
    params = start("full", [[1e4 + 1 / 3, -3e4 + 1 / 7], [1e4 + 3.0, -3e4 + 3.0]], 2.0)
    model = Frozen(jaxem.Mixture(jaxem.FullNormal(), 2), mask(weights=True, mean=ONE_OF_TWO))
    result = jaxem.fit(model, params, far).check()
    assert_held(result.params, params, model)
    moved = jax.tree.map(lambda leaf: leaf + 1 / 128, params)._replace(
        weights=params.weights + jnp.array([1, -1]) / 128
    )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, params, moved)
    many = jaxem.fit_batch(model, stacked, np.stack([far] * 3))
    for lane in range(3):
        own, values = (jax.tree.map(lambda leaf, i=lane: leaf[i], tree) for tree in (many.params, stacked))
        assert_held(own, values, model)
    np.testing.assert_allclose(many.objective[0], result.objective, rtol=1e-12)


def test_poisson_rates_and_categories():
    rng = np.random.default_rng(0)
    x = rng.poisson(np.array([[2.0, 5.0], [9.0, 1.0]])[np.arange(80) % 2]).astype(float)
    inner = jaxem.Mixture(jaxem.Poisson(jaxem.GammaPrior(2.0, 1.0)), 2)
    params = MixtureParams(jnp.array([0.5, 0.5]), PoissonParams(jnp.array([[2.5, 4.0], [8.0, 2.0]])))
    model = Frozen(inner, MixtureParams(False, PoissonParams(ENTRIES)))
    result = jaxem.fit(model, params, x, tol=-1.0, max_iter=200)
    assert_held(result.params, params, model)
    at = result.model
    objective = lambda free: jnp.sum(at.log_prob(at.constrain(free), x)) + at.log_prior(at.constrain(free))  # noqa: E731
    slope = jax.jit(jax.grad(objective))(at.unconstrain(result.params))
    assert slope.shape == (3,) and np.max(np.abs(slope)) < 1e-9 * 80


# --- models whose M step climbs


@pytest.mark.slow
def test_a_model_that_climbs_holds_a_part():
    rng = np.random.default_rng(1)
    count = rng.poisson(np.array([2.0, 8.0])[np.arange(100) % 2]).astype(float)
    params = Counts(jnp.zeros(1), jnp.log(jnp.array([2.0, 6.0])))

    class WithoutMStep(PoissonMixture):
        m_step = jaxem.Full()  # type: ignore[assignment]

    jax.tree_util.register_dataclass(WithoutMStep, data_fields=["shape", "rate"], meta_fields=["n_steps"])
    model = Frozen(WithoutMStep(), Counts(False, np.array([True, False])))
    result = jaxem.fit(model, params, count, tol=-1.0, max_iter=100)
    assert float(result.params.log_rate[0]) == float(params.log_rate[0])
    bound = result.model
    log_lik = lambda free: jnp.sum(jax.nn.logsumexp(bound.model.log_joint(bound.constrain(free), count), 1))  # noqa: E731
    slope = jax.grad(log_lik)(bound.unconstrain(result.params))
    assert slope.shape == (2,) and np.max(np.abs(slope)) < 1e-6 * 100
    with pytest.raises(ValueError, match="ClosedPoissonMixture has no m_step_held"):
        jaxem.fit(Frozen(ClosedPoissonMixture(), Counts(False, np.array([True, False]))), params, count)


# --- derivatives and standard errors


ONE = MixtureParams(np.ones(1), NormalParams(np.array([[0.25]]), np.array([[[1.5]]])))
COLUMN = X[:, :1]


@pytest.mark.slow
def test_the_derivative_in_a_known_mean():
    """σ² = mean (x − m)², so dσ²/dm = −2(x̄ − m); the start has no influence."""

    def variance(mean: Any, begin: Any, given: bool) -> Any:
        values = ONE._replace(components=ONE.components._replace(mean=mean))
        model = Frozen(jaxem.Mixture(jaxem.FullNormal(floor=0.0), 1), mask(mean=True), values if given else None)
        result = jaxem.fit(model, begin if given else values, COLUMN)
        return result.params.components.covariance[0, 0, 0], result.params.components.mean[0, 0]

    begin = jax.tree.map(jnp.asarray, ONE)
    slope, own = jax.jit(jax.jacrev(lambda m: variance(m, begin, True)))(begin.components.mean)
    np.testing.assert_allclose(slope, [[-2 * (COLUMN.mean() - 0.25)]], rtol=1e-10)
    np.testing.assert_allclose(own, [[1.0]])
    for leaf in jax.tree.leaves(jax.jit(jax.grad(lambda m: variance(m, begin, False)[0]))(begin.components.mean)):
        np.testing.assert_array_equal(leaf, 0)


def test_standard_errors_with_known_parts():
    n, model = len(COLUMN), jaxem.Mixture(jaxem.FullNormal(floor=0.0), 1)
    known_mean = Frozen(model, mask(mean=True))
    fitted = jaxem.fit(known_mean, ONE, COLUMN).params
    errors = jaxem.standard_errors(known_mean, fitted, COLUMN).standard_errors
    variance = float(fitted.components.covariance[0, 0, 0])
    assert float(errors.components.mean[0, 0]) == 0 and float(errors.weights[0]) == 0
    np.testing.assert_allclose(errors.components.covariance[0, 0, 0], variance * np.sqrt(2 / n), rtol=1e-10)
    known_variance = Frozen(model, mask(covariance=True))
    fitted = jaxem.fit(known_variance, ONE, COLUMN).params
    errors = jaxem.standard_errors(known_variance, fitted, COLUMN).standard_errors
    np.testing.assert_allclose(errors.components.mean[0, 0], np.sqrt(1.5 / n), rtol=1e-10)
    assert float(errors.components.covariance[0, 0, 0]) == 0


def test_em_rate_and_newton_see_the_free_coordinates_alone():
    """Weights alone are free: the rate is the derivative of the mean responsibility in one weight."""
    inner = jaxem.Mixture(jaxem.FullNormal(), 2)
    params = start("full", [[0.0, 0.0], [2.0, 2.0]], 2.0)
    model = Frozen(inner, mask(mean=True, covariance=True))
    result = jaxem.fit(model, params, X, tol=1e-8)
    correct = jax.jit(lambda params: jaxem.newton_correction(model, params, X))
    fixed = correct(correct(result.params))
    moved = lambda w: jnp.mean(inner.responsibilities(fixed._replace(weights=jnp.array([w, 1 - w])), X)[:, 0])  # noqa: E731
    w = float(fixed.weights[0])
    np.testing.assert_allclose(moved(w), w, rtol=1e-12)
    rate = (moved(w + 1e-5) - moved(w - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(lambda params: jaxem.em_rate(model, params, X))(fixed), rate, rtol=1e-6)
    np.testing.assert_array_equal(fixed.components.mean, params.components.mean)


# --- drivers


@pytest.mark.slow
def test_restarts_and_selection_with_known_parts():
    values = start("full", [[0.0, 0.0], [1.0, 1.0]], 1.0)
    inner = jaxem.Mixture(jaxem.FullNormal(), 2)
    known = Frozen(inner, mask(weights=True, mean=ONE_OF_TWO), values)
    best = jaxem.fit_restarts(known, jax.random.key(0), X, n_restarts=2).check()
    assert_held(best.params, values, known)
    selection = jaxem.select({"known": known, "free": inner}, jax.random.key(0), X, n_restarts=2, max_iter=200)
    p = selection.table["n_parameters"]
    assert p == [8, 11]
    for i in range(2):
        found = selection.results[i]
        bic = -2 * float(found.log_lik) + p[i] * np.log(len(X))
        np.testing.assert_allclose(selection.table["criterion"][i], bic, rtol=1e-12)
        np.testing.assert_allclose(found.model.bic(found.params, X), bic, rtol=1e-10)


@pytest.mark.slow
def test_bootstrap_with_known_parts():
    params = start("full", [[0.0, 0.0], [2.0, 2.0]], 1.0)
    model = Frozen(jaxem.Mixture(jaxem.FullNormal(), 2), mask(weights=True, mean=ONE_OF_TWO))
    replicates = jaxem.bootstrap(model, params, X, jax.random.key(1), 5, max_iter=200)
    errors = replicates.standard_errors()
    np.testing.assert_array_equal(errors.components.mean[0], 0)
    assert np.all(np.asarray(errors.components.mean[1]) > 0)


# --- bad input


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (mask(weights=np.array([True, False])), r"mask.weights: expected all weights held or none"),
        (mask(mean=ENTRIES), "mask.components.mean: FullNormal can hold all of the mean of component 0"),
        (mask(covariance=np.broadcast_to(np.eye(2, dtype=bool), (2, 2, 2))), "mask.components.covariance: FullNormal"),
        (mask(mean=np.ones(3, bool)), r"mask.components.mean: expected a boolean .*\(2, 2\).*got shape \(3,\)"),
        (MixtureParams(False, {"rate": True}), "names leaves that do not exist"),
        (MixtureParams(False, PoissonParams(True)), "names leaves that do not exist"),
        (True, "holds all"),
        (mask(True, True, True), "holds all"),
    ],
)  # fmt: skip
def test_a_mask_that_does_not_fit(held, message):
    params = start("full", [[0.0, 0.0], [2.0, 2.0]], 2.0)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: jaxem.fit(Frozen(jaxem.Mixture(jaxem.FullNormal(), 2), held), params, x))(X)


def test_a_mask_of_something_else():
    inner = jaxem.Mixture(jaxem.FullNormal(), 2)
    with pytest.raises(ValueError, match="mask: expected a tree of booleans, True where held, got float64"):
        Frozen(inner, mask(weights=np.ones(2)))
    with pytest.raises(ValueError, match="mask: expected concrete booleans"):
        jax.jit(lambda flag: Frozen(inner, mask(weights=flag)).mask.flags)(True)
    free = Frozen(inner, mask(weights=True))
    with pytest.raises(ValueError, match="Frozen: expected values= to draw starts about"):
        jaxem.fit_restarts(free, jax.random.key(0), X)
    with pytest.raises(ValueError, match="Frozen: expected values to hold"):
        free.constrain(jnp.zeros(5))
    params = start("full", [[0.0, 0.0], [2.0, 2.0]], 2.0)
    with pytest.raises(ValueError, match="values: expected the shapes of the params"):
        jaxem.fit(Frozen(inner, mask(weights=True), start("full", [[0.0, 0.0]], 1.0)), params, X)
    with pytest.raises(ValueError, match="component_axes"):
        jaxem.fit(free, params, X).ordered()
