"""Families made of others: products, components of different families, zero inflation, background."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from helpers import first, float64_first, made

import jaxem
from jaxem import Status

KEY = jax.random.key(0)
ZERO_OR_COUNT = jaxem.OneOf(jaxem.PointMass(0.0), jaxem.Poisson())


def inflated(n: int = 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.4, 0, rng.poisson(2.5, n))[:, None].astype(float)


def zip_start(weight: float = 0.5, rate: float = 1.0) -> jaxem.MixtureParams:
    banks = (jaxem.NoParams(), made(jaxem.PoissonParams, np.array([[rate]])))
    return made(jaxem.MixtureParams, np.array([weight, 1 - weight]), banks)


# --- components of different families


@pytest.mark.slow
def test_zero_inflated_counts_have_their_closed_form():
    """The rate solves rate / (1 − exp(−rate)) = mean of the positive counts; the zeros are then fitted exactly."""
    x = inflated()
    model = jaxem.Mixture(ZERO_OR_COUNT, 2)
    result = jaxem.fit(model, zip_start(), x, tol=1e-14, max_iter=2000).check()
    positive = x[x > 0].mean()
    root: Any = scipy.optimize.brentq(lambda r: r / -np.expm1(-r) - positive, 1e-6, 50, xtol=1e-14)
    rate = float(root)
    weight = 1 - np.mean(x > 0) / -np.expm1(-rate)
    assert float(result.params.components[1].rate[0, 0]) == pytest.approx(rate, rel=1e-6)
    assert float(result.params.weights[0]) == pytest.approx(weight, rel=1e-6)
    pmf = weight * (x == 0) + (1 - weight) * scipy.stats.poisson.pmf(x, rate)
    np.testing.assert_allclose(result.log_lik, np.sum(np.log(pmf)), rtol=1e-12)
    assert int(model.n_parameters(result.params)) == 2
    # the observed information of (logit weight, log rate) by differences of the log-likelihood
    errors = jaxem.standard_errors(model, result.params, x)

    def log_lik(free: Any) -> float:
        w, r = scipy.special.expit(free[0]), np.exp(free[1])
        return np.sum(np.log(w * (x == 0) + (1 - w) * scipy.stats.poisson.pmf(x, r)))

    at, h = np.array([scipy.special.logit(weight), np.log(rate)]), 1e-3
    step = h * np.eye(2)

    def second(a: Any, b: Any) -> float:
        corners = log_lik(at + a + b) - log_lik(at + a - b) - log_lik(at - a + b) + log_lik(at - a - b)
        return corners / (4 * h * h)

    information = -np.array([[second(a, b) for b in step] for a in step])
    want = np.sqrt(np.diag(np.linalg.inv(information))) * np.array([weight * (1 - weight), rate])
    got = errors.standard_errors
    np.testing.assert_allclose([got.weights[0], got.components[1].rate[0, 0]], want, rtol=1e-4)


def test_starts_put_rows_where_they_can_be_explained():
    x = inflated()
    model = jaxem.Mixture(ZERO_OR_COUNT, 2)
    zeros = np.mean(x == 0)
    params = model.init(KEY, x)
    np.testing.assert_allclose(params.weights, [zeros, 1 - zeros])
    np.testing.assert_allclose(params.components[1].rate, [[x[x > 0].mean()]])
    # what labels give to a component that cannot explain the row is not counted
    labels = np.where(np.arange(len(x)) < 10, 0, 1)
    params = model.init(KEY, x, method=jaxem.Labels(labels))
    counted = (labels == 1) | (x[:, 0] == 0)
    np.testing.assert_allclose(params.weights[0], np.sum((labels == 0) & counted) / np.sum(counted))
    drawn = model.init(KEY, x, method=jaxem.RandomResponsibilities())
    assert float(drawn.weights[0]) < zeros


@pytest.mark.slow
@first("family", [jaxem.Gamma(), jaxem.Poisson(), jaxem.FullNormal()], ids=lambda family: type(family).__name__)
def test_nothing_but_one_value_leaves_the_other_component_finite(family):
    model = jaxem.Mixture(jaxem.OneOf(jaxem.PointMass(0.0), family), 2)
    start = model.init(KEY, np.zeros((8, 1)))
    result = jaxem.fit(model, start, np.zeros((8, 1)))
    assert int(result.status) in (Status.CONVERGED, Status.RESOLUTION)
    np.testing.assert_allclose(result.params.weights, [1, 0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


@pytest.mark.slow
@float64_first
def test_rows_outside_of_a_support_are_not_seen_by_that_component(dtype):
    """Exact zeros beside gamma waits: logarithms of zero reach no statistic, and the answer is that of two fits."""
    rng = np.random.default_rng(1)
    waits = rng.gamma(3.0, 2.0, (40, 1)).astype(dtype)
    x = np.concatenate([np.zeros((10, 1), dtype), waits])
    model = jaxem.Mixture(jaxem.OneOf(jaxem.PointMass(0.0), jaxem.Gamma()), 2)
    result = jaxem.fit(model, model.init(KEY, x), x).check()
    alone = jaxem.Mixture(jaxem.Gamma(), 1)
    want = jaxem.fit(alone, alone.init(KEY, waits), waits).check().params.components
    np.testing.assert_allclose(result.params.weights, [0.2, 0.8], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), result.params.components[1], want)


@pytest.mark.slow
def test_components_are_never_relabelled():
    x = inflated()
    model = jaxem.Mixture(ZERO_OR_COUNT, 2)
    result = jaxem.fit(model, zip_start(), x)
    assert float(result.params.weights[0]) < float(result.params.weights[1])
    with pytest.raises(ValueError, match="cannot be relabelled"):
        result.ordered()
    with pytest.raises(ValueError, match="told apart"):
        model.relabelled(jnp.array([1, 0]))
    assert not bool(jaxem.diagnose(model, result.params).equal_components)
    found = jaxem.bootstrap(model, result.params, x, KEY, n_replicates=4)
    spread = np.asarray(found.params.weights)[:, 0]
    np.testing.assert_allclose(spread, float(result.params.weights[0]), atol=0.3)
    assert np.ptp(spread) > 0
    # rates are held to the component in the second place, whatever its weight
    assert np.asarray(found.params.components[1].rate).shape == (4, 1, 1)
    other = jaxem.Mixture(jaxem.Poisson(), 2)
    selection = jaxem.select({"inflated": model, "two": other}, KEY, x, n_restarts=2)
    assert selection.best_name in ("inflated", "two")


def test_a_component_switched_off_takes_no_rows():
    x = inflated()
    model = jaxem.Mixture(ZERO_OR_COUNT, 2, active=np.array([False, True]))
    result = jaxem.fit(model, model.init(KEY, x), x).check()
    np.testing.assert_array_equal(result.params.weights, [0, 1])
    np.testing.assert_allclose(result.params.components[1].rate, [[x.mean()]])
    assert int(model.n_parameters(result.params)) == 1


@pytest.mark.slow
def test_rows_that_nobody_explains_are_named():
    model, x = jaxem.Mixture(ZERO_OR_COUNT, 2), inflated()
    for value in (-1.0, 2.5):
        bad = x.copy()
        bad[7] = value
        with pytest.raises(ValueError, match=rf"one of PointMass, Poisson can explain, got \[{value}\] in row 7"):
            jaxem.fit(model, zip_start(), bad)
        jaxem.fit(model, zip_start(), bad, sample_weight=np.where(np.arange(len(x)) == 7, 0.0, 1.0), max_iter=2)
    bad[7] = np.nan
    with pytest.raises(ValueError, match="NaN or inf in row 7"):
        jaxem.fit(model, zip_start(), bad)
    lanes = jaxem.fit_batch(
        model, jax.tree.map(lambda leaf: np.stack([leaf] * 2), zip_start()), np.stack([bad, x]), max_iter=3
    )
    assert int(lanes.status[0]) == Status.NONFINITE and int(lanes.status[1]) == Status.MAX_ITER
    labels = np.full(len(x), -1)
    labels[3] = 2  # a component that does not exist
    with pytest.raises(ValueError, match="expected labels 0 to 1, .* got 2 in row 3"):
        jaxem.fit(model, zip_start(), jaxem.labelled(x, labels))
    stray = jax.jit(lambda labels: jaxem.fit(model, zip_start(), jaxem.labelled(x, labels)))(labels)  # cannot be seen
    assert int(stray.status) == Status.NONFINITE


def test_arguments_that_do_not_fit_are_named():
    x = inflated()
    with pytest.raises(ValueError, match="n_components: expected 2, one for each family of OneOf, got 3"):
        jaxem.Mixture(ZERO_OR_COUNT, 3).init(KEY, x)
    with pytest.raises(ValueError, match="expected a tuple of 2, a bank for each part of OneOf"):
        jaxem.fit(jaxem.Mixture(ZERO_OR_COUNT, 2), zip_start()._replace(components=(jaxem.NoParams(),)), x)
    with pytest.raises(ValueError, match=r"component 1, Poisson: params.components.rate: expected shape \(1, 1\)"):
        bank = (jaxem.NoParams(), made(jaxem.PoissonParams, np.ones((2, 1))))
        jaxem.fit(jaxem.Mixture(ZERO_OR_COUNT, 2), zip_start()._replace(components=bank), x)
    with pytest.raises(ValueError, match=r"value: expected shape \(\) or \(1,\)"):
        jaxem.Mixture(jaxem.OneOf(jaxem.PointMass(np.zeros(2)), jaxem.Poisson()), 2).init(KEY, x)
    with pytest.raises(ValueError, match="OneOf: expected families"):
        jaxem.OneOf(jaxem.Poisson)
    with pytest.raises(ValueError, match="low: expected bounds below high"):
        jaxem.Mixture(jaxem.Uniform(np.array([1.0]), np.array([0.0])), 1).init(KEY, x)


def test_a_background_leaves_the_clusters_alone():
    """Banfield & Raftery: noise over the range of the data; the density is that of scipy."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(0, 0.1, (80, 2)), rng.uniform(-5, 5, (20, 2))])
    model = jaxem.Mixture(jaxem.OneOf(jaxem.Uniform(), jaxem.FullNormal(floor=0.0)), 2)
    result = jaxem.fit(model, model.init(KEY, x), x).check()
    bank = result.params.components[1]
    volume = np.prod(x.max(0) - x.min(0))
    inside = scipy.stats.multivariate_normal(np.asarray(bank.mean)[0], np.asarray(bank.covariance)[0]).pdf(x)
    w = np.asarray(result.params.weights)
    np.testing.assert_allclose(result.log_lik, np.sum(np.log(w[0] / volume + w[1] * inside)), rtol=1e-12)
    assert abs(w[0] - 0.2) < 0.05
    draws, z = map(np.asarray, result.model.sample(result.params, KEY, 500))
    assert np.all((draws[z == 0] >= x.min(0)) & (draws[z == 0] <= x.max(0)))
    with pytest.raises(ValueError, match="expected low and high, or a model that is bound"):
        model.log_prob(result.params, jnp.asarray(x))


def test_a_box_without_volume_is_degenerate():
    x = np.concatenate([np.ones((20, 1)), np.arange(20.0)[:, None]], 1)
    model = jaxem.Mixture(jaxem.OneOf(jaxem.Uniform(), jaxem.FullNormal()), 2)
    assert int(jaxem.fit(model, model.init(KEY, x), x).status) in (Status.DEGENERATE, Status.NONFINITE)


def test_point_and_box_look_at_the_response_of_regression_data():
    x = (np.ones((6, 2)), np.array([0.0, 1.0, 0.0, 3.0, 2.0, 0.0]))
    bank = jaxem.NoParams()
    at = jaxem.PointMass(0.0).log_prob(bank, x)
    np.testing.assert_array_equal(np.asarray(at)[:, 0], np.where(x[1] == 0, 0, -np.inf))
    box = jaxem.Uniform(-1.0, 2.0).log_prob(bank, x)
    np.testing.assert_allclose(np.asarray(box)[:, 0], np.where(x[1] <= 2, -np.log(3), -np.inf))
    draws = jaxem.PointMass(np.array([1.0, 2.0])).sample(bank, KEY, jnp.zeros(3, int))
    np.testing.assert_array_equal(draws, [[1, 2]] * 3)


def test_a_part_of_one_of_may_be_known():
    x = inflated()
    model = jaxem.Mixture(ZERO_OR_COUNT, 2)
    mask = made(jaxem.MixtureParams, False, (True, made(jaxem.PoissonParams, True)))
    result = jaxem.fit(jaxem.Frozen(model, mask), zip_start(rate=2.5), x, tol=1e-13).check()
    assert float(result.params.components[1].rate[0, 0]) == 2.5
    free = lambda w: -np.sum(np.log(w * (x == 0) + (1 - w) * scipy.stats.poisson.pmf(x, 2.5)))  # noqa: E731
    want = scipy.optimize.minimize_scalar(free, bounds=(0, 1), method="bounded", options={"xatol": 1e-9}).x
    assert float(result.params.weights[0]) == pytest.approx(want, abs=1e-5)


# --- products


def mixed(n: int = 40, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = np.arange(n) % 2
    return {
        "size": rng.normal(size=(n, 2)) + 3.0 * z[:, None],
        "count": rng.poisson(np.where(z, 8.0, 1.0))[:, None].astype(float),
    }


def product_start() -> jaxem.MixtureParams:
    bank = {
        "size": made(jaxem.NormalParams, np.array([[0.5, 0.5], [2.5, 2.5]]), np.stack([np.eye(2)] * 2)),
        "count": made(jaxem.PoissonParams, np.array([[2.0], [6.0]])),
    }
    return made(jaxem.MixtureParams, np.full(2, 0.5), bank)


def product(**options: Any) -> jaxem.Product:
    return jaxem.Product(**({"size": jaxem.FullNormal(floor=0.0), "count": jaxem.Poisson()} | options))


@pytest.mark.slow
def test_a_product_is_the_sum_of_log_densities():
    x, model = mixed(), jaxem.Mixture(product(), 2)
    result = jaxem.fit(model, product_start(), x, tol=1e-13).check()
    bank, w = jax.tree.map(np.asarray, (result.params.components, result.params.weights))
    joint = np.log(w)[None] + np.stack(
        [
            scipy.stats.multivariate_normal(bank["size"].mean[j], bank["size"].covariance[j]).logpdf(x["size"])
            + scipy.stats.poisson.logpmf(x["count"][:, 0], bank["count"].rate[j, 0])
            for j in range(2)
        ],
        1,
    )
    np.testing.assert_allclose(result.log_lik, np.sum(np.asarray(scipy.special.logsumexp(joint, axis=1))), rtol=1e-12)
    r = scipy.special.softmax(joint, axis=1)
    np.testing.assert_allclose(bank["count"].rate[:, 0], r.T @ x["count"][:, 0] / r.sum(0), rtol=1e-5)
    np.testing.assert_allclose(bank["size"].mean, r.T @ x["size"] / r.sum(0)[:, None], rtol=1e-5)
    assert int(model.n_parameters(result.params)) == 1 + 2 * (5 + 1)
    draws, _ = model.sample(result.params, KEY, 7)
    assert {name: rows.shape for name, rows in draws.items()} == {"size": (7, 2), "count": (7, 1)}
    light = result.ordered().params
    assert float(light.weights[0]) >= float(light.weights[1])


@pytest.mark.slow
def test_a_part_leaves_out_what_it_does_not_see():
    x, model = mixed(), jaxem.Mixture(product(count=jaxem.Poisson(missing=True)), 2)
    x["count"][::3] = np.nan
    result = jaxem.fit(model, product_start(), x).check()
    whole = {name: rows[np.arange(40) % 3 != 0] for name, rows in x.items()}
    seen = model.responsibilities(result.params, jax.tree.map(jnp.asarray, x))[np.arange(40) % 3 != 0]
    rate = seen.T @ whole["count"] / jnp.sum(seen, 0)[:, None]
    np.testing.assert_allclose(result.params.components["count"].rate, rate, rtol=1e-3)
    x["size"][2] = np.nan
    with pytest.raises(ValueError, match="NaN or inf in row 2"):
        jaxem.fit(model, product_start(), x)


def test_errors_of_a_product_name_the_part():
    x, model = mixed(), jaxem.Mixture(product(), 2)
    bad = {**x, "count": x["count"] + 0.5}
    with pytest.raises(ValueError, match="part 'count': data: expected non-negative integers"):
        jaxem.fit(model, product_start(), bad)
    with pytest.raises(ValueError, match=r"data: expected a dict with the names \['count', 'size'\]"):
        jaxem.fit(model, product_start(), {"count": x["count"]})
    with pytest.raises(ValueError, match=r"data: expected a dict .* got ndarray|got ArrayImpl"):
        jaxem.fit(model, product_start(), x["size"])
    with pytest.raises(ValueError, match=r"part 'count': params.components.rate: expected shape \(2, 1\)"):
        bank = {**product_start().components, "count": made(jaxem.PoissonParams, np.ones((3, 1)))}
        jaxem.fit(model, product_start()._replace(components=bank), x)
    with pytest.raises(ValueError, match="a dict with the keys"):
        jaxem.fit(model, product_start()._replace(components=product_start().components["size"]), x)
    with pytest.raises(ValueError, match="expected a family for 'size'"):
        jaxem.Product(size=jaxem.FullNormal)


@pytest.mark.slow
def test_a_part_without_sums_keeps_the_rows():
    """A density by autodiff beside a Poisson: the same fit as with the formula."""

    x = mixed()
    model = jaxem.Mixture(
        product(size=jaxem.Density(spherical, {"mean": None, "log_scale": None}, m_step=jaxem.Full())), 2
    )
    start = product_start()
    bank = {**start.components, "size": {"mean": np.array([[0.5, 0.5], [2.5, 2.5]]), "log_scale": np.zeros(2)}}
    result = jaxem.fit(model, start._replace(components=bank), x, max_iter=60).check()
    assert not model.additive and not model.closed_m_step and not model.has_fast_path
    peer = jaxem.Mixture(product(size=jaxem.SphericalNormal(floor=0.0)), 2)
    bank = {**start.components, "size": made(jaxem.NormalParams, bank["size"]["mean"], np.ones(2))}
    want = jaxem.fit(peer, start._replace(components=bank), x).check()
    np.testing.assert_allclose(result.log_lik, want.log_lik, rtol=1e-5)


def spherical(params: Any, x: Any) -> Any:
    whitened = (x - params["mean"]) * jnp.exp(-params["log_scale"])
    return -0.5 * jnp.sum(jnp.square(whitened)) - 2 * params["log_scale"] - jnp.log(2 * jnp.pi)


@pytest.mark.slow
def test_all_parts_leave_the_fast_path_together():
    """In float32 with one part far narrower than its spread."""
    x: dict[str, Any] = {name: rows.astype(np.float32) for name, rows in mixed().items()}
    x["size"] = np.where(np.arange(40)[:, None] % 2, 500, 0).astype(np.float32) + 0.01 * x["size"]
    model = jaxem.Mixture(product(), 2)
    start = model.init(KEY, x)
    single = jaxem.fit(model, start, x).check()
    double = jax.tree.map(np.float64, (start, x))
    want = jaxem.fit(model, *double).check()
    np.testing.assert_allclose(single.log_lik, want.log_lik, rtol=1e-4)
    np.testing.assert_allclose(
        single.params.components["size"].covariance, want.params.components["size"].covariance, rtol=1e-3, atol=1e-7
    )


@pytest.mark.slow
def test_the_derivative_of_a_product_takes_the_general_path():
    x: Any = jax.tree.map(jnp.asarray, mixed())
    model = jaxem.Mixture(product(), 2)

    @jax.jit
    def rate(shift: Any) -> Any:
        moved = {**x, "size": x["size"].at[3].add(shift)}
        return jaxem.fit(model, product_start(), moved, tol=1e-14).params.components["count"].rate[0, 0]

    want = (rate(1e-4) - rate(-1e-4)) / 2e-4
    assert float(jax.grad(rate)(0.0)) == pytest.approx(float(want), rel=1e-5, abs=1e-8)


def _of_many_supports():
    """Families of rows (n, 3) and 12 rows of each, most of which the others cannot explain."""
    rng = np.random.default_rng(5)
    counts, unit = rng.poisson(4.0, (12, 3)), rng.normal([2.0, 0.0, 0.0], 0.3, (12, 3))
    return {
        jaxem.FullNormal(): rng.normal(-500.0, 30.0, (12, 3)),
        jaxem.StudentT(): rng.normal(-20.0, 30.0, (12, 3)),
        jaxem.LowRankNormal(1): rng.normal(7.0, 3.0, (12, 3)),
        jaxem.LogNormal(): np.exp(rng.normal(6.0, 1.0, (12, 3))),
        jaxem.Exponential(): rng.exponential(3.0, (12, 3)),
        jaxem.Gamma(): rng.gamma(3.0, 2.0, (12, 3)),
        jaxem.Beta(): rng.beta(2.0, 3.0, (12, 3)),
        jaxem.Dirichlet(): rng.dirichlet([2.0, 3.0, 4.0], 12),
        jaxem.VonMisesFisher(): unit / np.linalg.norm(unit, axis=1, keepdims=True),
        jaxem.Poisson(): counts,
        jaxem.NegativeBinomial(): rng.negative_binomial(2, 0.2, (12, 3)),
        jaxem.Multinomial(): rng.multinomial(9, [0.2, 0.3, 0.5], 12),
        jaxem.Bernoulli(): rng.integers(2, size=(12, 3)),
        jaxem.Categorical(3): rng.integers(3, size=(12, 3)),
        jaxem.PointMass(0.0): np.zeros((12, 3)),
    }


@first(("families", "path"), [(("LogNormal", "Dirichlet", "VonMisesFisher"), "stable"), ((), "stable"), ((), "fast")])
def test_rows_outside_of_the_support_of_any_family_leave_values_and_gradients_finite(families, path):
    """Each family meets rows of all the others (fifteen, in the slow ones), so that every pair of supports is there."""
    chosen = lambda family: not families or type(family).__name__ in families  # noqa: E731
    of = {family: rows for family, rows in _of_many_supports().items() if chosen(family)}
    x = jnp.asarray(np.concatenate(list(of.values())), jnp.float32)
    model = jaxem.Mixture(jaxem.OneOf(*of), len(of))
    start = model.init(KEY, x, method=jaxem.Labels(np.repeat(np.arange(len(of)), 12)))
    bound = jaxem.bind(model, x, None)
    rows = bound.prepare(x) if path == "fast" else x

    def objective(params):
        log_joint = bound.log_joint(params, rows)
        stats = bound.statistics(params, rows, jaxem.Soft()(log_joint)[0])
        return jnp.sum(jaxem.Soft()(log_joint)[1]), bound.m_step(params, stats)

    (log_lik, after), slope = jax.jit(jax.value_and_grad(objective, has_aux=True))(start)
    assert np.isfinite(log_lik)
    for leaf in jax.tree.leaves((after, slope)):
        assert np.isfinite(leaf).all()
