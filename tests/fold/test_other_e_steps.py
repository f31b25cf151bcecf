"""Annealed, hard, stochastic and online EM: by hand, beside scikit-learn, over labels, lanes and devices."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import blobs, logsumexp, once_a_week, stacked, start
from scipy.stats import norm

import jaxem
from jaxem import Status
from jaxem.contracts import capabilities as ask
from jaxem.fold.folded import Folded
from jaxem.latent.finite import labelled
from jaxem.loop import loop

X = blobs(60)
START = start("full", [[0.5, 0.2], [3.0, 3.5]], 2.0)
MODEL = jaxem.Mixture(jaxem.FullNormal(), 2)
KEY = jax.random.key(7)
ALGORITHMS = {
    "em": jaxem.EM(),
    "annealed": jaxem.AnnealedEM(jaxem.geometric_schedule(1.5, 6)),
    "hard": jaxem.HardEM(),
    "stochastic": jaxem.StochasticEM(KEY),
    "online": jaxem.OnlineEM(KEY, 60),  # all rows: γ decides alone
}
ANY = pytest.mark.parametrize("name", ALGORITHMS)
JUMPING = {
    "squarem": jaxem.SQUAREM(),
    "anderson": jaxem.Anderson(),
    "parabolic": jaxem.ParabolicEM(),
    "newton": jaxem.NewtonCG(),
}
ANY_LABELLED = pytest.mark.parametrize(
    "name", [*ALGORITHMS, *(pytest.param(name, marks=once_a_week) for name in JUMPING)]
)


def fit(algorithm: Any, x: Any = X, params: Any = START, **options: Any) -> jaxem.FitResult:
    return jaxem.fit(MODEL, params, x, algorithm=algorithm, **{"max_iter": 40, **options})


# --- annealed


def test_annealed_em_is_tempered_em_by_hand():
    """Two normals in one column: responsibilities ∝ (w f)^(1/T), objectives at temperature 1."""
    x, schedule = X[:, 0], [3.0, 2.0, 1.5, 1.0]
    w, mean, sd = np.array([0.5, 0.5]), np.array([0.5, 3.0]), np.sqrt([2.0, 2.0])
    history = []
    for temperature in [*schedule, 1.0, 1.0]:
        log_joint = np.log(w) + norm.logpdf(x[:, None], mean, sd)
        history.append(np.sum(logsumexp(log_joint, 1)))
        r = np.exp(log_joint / temperature)
        r /= r.sum(1, keepdims=True)
        w, mean = r.mean(0), (r.T @ x) / r.sum(0)
        sd = np.sqrt((r * (x[:, None] - mean) ** 2).sum(0) / r.sum(0))
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 2)
    begin = start("full", [[0.5], [3.0]], 2.0)
    found = jaxem.fit(model, begin, X[:, :1], algorithm=jaxem.AnnealedEM(np.array(schedule)), max_iter=5, tol=-1.0)
    np.testing.assert_allclose(found.history, history, rtol=1e-11)
    assert int(found.n_evals) == 6


def test_no_rule_ends_a_fit_above_temperature_one():
    algorithm = jaxem.AnnealedEM(jaxem.geometric_schedule(1.5, 12))
    found = fit(algorithm, stop=Anything()).check()
    assert int(found.n_iter) == 13  # the thirteenth M step is the first at temperature 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Anything:
    """A rule that is content with anything."""

    def converged(self, progress: Any) -> Any:
        return jnp.ones((), bool), jnp.zeros((), bool)


@pytest.mark.slow
def test_annealing_depends_less_on_the_start():
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(3, 2))
    x = centres[rng.integers(0, 3, 600)] + rng.normal(size=(600, 2))
    model = jaxem.Mixture(jaxem.FullNormal(), 3)
    starts = jax.vmap(lambda key: model.init(key, x, method=jaxem.RandomPoints()))(
        jax.random.split(jax.random.key(0), 32)
    )
    data, good = np.stack([x] * 32), {}
    for name, algorithm in {"em": jaxem.EM(), "annealed": jaxem.AnnealedEM()}.items():
        found = jaxem.fit_batch(model, starts, data, algorithm=algorithm, max_iter=1000)
        good[name] = int(jnp.sum(found.log_lik > jnp.max(found.log_lik) - 0.6))
    assert good["annealed"] > good["em"] + 3


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([2.0, 1.5], "that end at 1"),
        ([2.0, -1.0, 1.0], "positive"),
        ([2.0, np.nan, 1.0], "positive"),
        ([], r"got shape \(0,\)"),
        (1.0, r"got shape \(\)"),
    ],
)
def test_a_schedule_out_of_range(schedule, message):
    with pytest.raises(ValueError, match=f"schedule: .*{message}"):
        jax.jit(lambda x: fit(jaxem.AnnealedEM(np.asarray(schedule)), x).params)(X)
    with pytest.raises(ValueError, match="geometric_schedule"):
        jaxem.geometric_schedule(-1.0)


# --- hard


@functools.cache
def k_means(weighted: bool) -> tuple[Any, Any, Any]:
    """scikit-learn's centres, the same by classification EM with known weights and variance, and the sample weights."""
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(2)
    x = np.array([[0.0, 0.0], [3.0, 0.0], [1.0, 3.0]])[np.arange(300) % 3] + rng.normal(size=(300, 2))
    weight = rng.uniform(0.2, 2.0, 300) if weighted else np.ones(300)
    first: Any = x[:3] + 1.0
    options: Any = {"n_init": 1, "tol": 0.0, "algorithm": "lloyd"}
    theirs = KMeans(3, init=first, **options).fit(x, sample_weight=weight)
    params = start("spherical", x[:3] + 1.0, 0.7)
    mask = jaxem.MixtureParams(True, jaxem.NormalParams(False, True))  # type: ignore[arg-type]
    model = jaxem.Frozen(jaxem.Mixture(jaxem.SphericalNormal(), 3), mask)
    ours = jaxem.fit(model, params, x, sample_weight=weight, algorithm=jaxem.HardEM(), max_iter=100)
    return theirs, ours.check(), x


@pytest.mark.parametrize("weighted", [False, True])
def test_k_means_is_hard_em_with_equal_weights_and_variances(weighted):
    theirs, ours, x = k_means(weighted)
    np.testing.assert_allclose(ours.params.components.mean, theirs.cluster_centers_, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(ours.model.predict(ours.params, x), theirs.labels_)
    assert abs(int(ours.n_iter) - theirs.n_iter_) <= 1 and int(ours.n_iter) > 3


def test_the_classification_likelihood_never_falls_and_the_fit_ends_by_it():
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.concatenate([rng.normal(size=(150, 2)), 1.5 * rng.normal(size=(150, 2)) + 2.0]))
    algorithm, bound = jaxem.HardEM(), jax.jit(ask.bind)(MODEL, x, None)
    state = loop.start(bound, jaxem.fit(MODEL, START, x).params, x, None, algorithm=algorithm, max_iter=100)
    rule = jaxem.Objective(0.0)
    go_on = jax.jit(lambda s, n: loop.advance(s, bound, x, None, algorithm=algorithm, stop=rule, n_iter=n))
    criteria = [float((state := go_on(state, 0)).previous)]
    while int(state.status) == Status.RUNNING:
        state = go_on(state, 1)
        criteria.append(float(state.previous))
    assert len(criteria) > 5 and np.all(np.diff(criteria) >= -1e-11 * np.abs(criteria[0]))
    result = jax.jit(loop.finish)(state, bound)
    assert int(result.status) in (Status.CONVERGED, Status.RESOLUTION)
    best = jnp.max(bound.log_joint(result.params, x), 1)
    np.testing.assert_allclose(criteria[-1], jnp.sum(best) + bound.log_prior(result.params), rtol=1e-12)
    want = jnp.sum(bound.log_prob(result.params, x)) + bound.log_prior(result.params)
    np.testing.assert_allclose(result.objective, want, rtol=1e-12)
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert history[-1] < history[0]  # that of the data may, from the fit of EM on


# --- stochastic


def test_the_mean_of_the_chain_is_near_the_maximum():
    x = blobs(600)
    exact = jaxem.fit(MODEL, START, x, tol=1e-10)
    found = jaxem.fit(MODEL, START, x, algorithm=jaxem.StochasticEM(KEY, average_from=20), max_iter=220).check()
    assert (int(found.n_iter), int(found.n_evals)) == (220, 222)
    # 600 well separated rows: the chain scatters by less than a standard error, its mean of 200 by a tenth of that
    assert 0 < float(exact.log_lik - found.log_lik) < 0.05
    assert float(found.objective) == float(found.history[220])
    direct = jnp.sum(found.model.log_prob(found.params, x)) + found.model.log_prior(found.params)
    np.testing.assert_allclose(found.objective, direct, rtol=1e-12)


OVERLAP = 0.4 * X + np.random.default_rng(3).normal(size=(60, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(jaxem.OnlineEM(KEY, 10), id="online"),
        pytest.param(jaxem.StochasticEM(KEY), id="stochastic"),
    ],
)
def test_lanes_draw_apart_whatever_the_plan(algorithm):
    starts, data = stacked([START] * 3), np.stack([OVERLAP] * 3)
    by_plan = [
        jaxem.fit_batch(MODEL, starts, data, algorithm=algorithm, max_iter=10, plan=plan)
        for plan in ("lanes", "sequential")
    ]
    np.testing.assert_allclose(by_plan[0].objective, by_plan[1].objective, rtol=1e-11)
    assert len(set(np.asarray(by_plan[0].objective).tolist())) == 3  # though data and starts are the same
    for lane in range(3):
        alone = fit(ask.for_lane(algorithm, jnp.uint32(lane)), OVERLAP, max_iter=10)
        np.testing.assert_allclose(by_plan[1].objective[lane], alone.objective, rtol=1e-11)
    keys = jax.random.split(jax.random.key(1), 3)
    own = lambda key: type(algorithm)(key) if isinstance(algorithm, jaxem.StochasticEM) else jaxem.OnlineEM(key, 10)  # noqa: E731
    mapped = jax.jit(jax.vmap(lambda key: fit(own(key), OVERLAP, max_iter=10).objective))(keys)
    for lane in range(3):
        np.testing.assert_allclose(mapped[lane], fit(own(keys[lane]), OVERLAP, max_iter=10).objective, rtol=1e-11)
    assert len(set(np.asarray(mapped).tolist())) == 3


@pytest.mark.slow
def test_keys_in_restarts_and_groups():
    algorithm = jaxem.StochasticEM(KEY)
    plans = [
        jaxem.fit_restarts(MODEL, KEY, OVERLAP, n_restarts=3, algorithm=algorithm, max_iter=10, plan=plan)
        for plan in ("lanes", "sequential")
    ]
    np.testing.assert_allclose(plans[0].objective, plans[1].objective, rtol=1e-11)
    twice = np.concatenate([OVERLAP, OVERLAP])
    groups = jaxem.fit_groups(
        MODEL, KEY, twice, np.arange(120) // 60, init=stacked([START] * 2), algorithm=algorithm, max_iter=10
    )
    assert float(groups.fits.objective[0]) != float(groups.fits.objective[1])
    assert bool(groups.converged.all())


# --- online


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Census:
    """A model whose statistics count the rows: data are row numbers. Its parameter stays what it is."""

    n: ClassVar[int] = 22

    def e_step(self, params, data, sample_weight):
        seen = jnp.sum(jax.nn.one_hot(data.astype(int), self.n, dtype=data.dtype) * sample_weight[:, None], 0)
        return seen, jnp.sum(sample_weight)

    def m_step(self, params, stats):
        return params


@pytest.mark.parametrize(("size", "n_shards"), [(2, 1), (11, 1), (5, 1)])
def test_every_pass_visits_every_row_once(size, n_shards):
    """With κ = 1 and γ_t = 1 / (t + 1), the running average is that of all minibatches so far."""
    algorithm = jaxem.OnlineEM(KEY, size, decay=1.0, delay=1.0)
    data, params = jnp.arange(22.0), jnp.zeros(1)
    model = Folded(Census(), fast=False)
    n_steps = {2: 11, 11: 2, 5: 22}[size]  # five passes of the last
    state = algorithm.init(model, params, data, None)
    step = jax.jit(lambda state: algorithm.step(model, params, data, None, state)[1])
    for t in range(n_steps):
        before = state
        state = step(state)
        counts = np.asarray(state.stats) * size * (t + 1)
        np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
        assert counts.max() - counts.min() <= 1 + 1e-9 and before.n_steps == t
    np.testing.assert_allclose(counts, n_steps * size / 22)
    assert float(state.weight) == pytest.approx(1)


def test_weights_count_per_unit_and_rows_without_weight_not_at_all():
    algorithm = jaxem.OnlineEM(KEY, 11, decay=1.0)
    weight = jnp.asarray(np.random.default_rng(0).integers(0, 3, 22), float)
    data = jnp.where(weight > 0, jnp.arange(22.0), jnp.nan)
    model, params = Folded(Census(), fast=False), jnp.zeros(1)
    state = algorithm.init(model, params, data, weight)
    for _ in range(2):
        _, state, info = algorithm.step(model, params, data, weight, state)
        np.testing.assert_allclose(info.objective, weight.sum())  # of Census, the weight: scaled to that of all rows
    np.testing.assert_allclose(state.stats / state.weight * weight.sum(), weight, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, pytest.param(1, marks=once_a_week)])
def test_one_minibatch_of_all_rows_is_one_em_step_with_priors_and_weights(devices):
    prior = jaxem.NormalInverseWishart(np.zeros(2), 0.5, 5.0, np.eye(2))
    model = jaxem.Mixture(jaxem.FullNormal(prior=prior), 2, concentration=2.0)
    weight = jnp.asarray(np.random.default_rng(0).integers(0, 3, 60), float)
    table = X[np.random.default_rng(1).permutation(60)]  # on four devices periods of the table would meet
    exact = jaxem.fit(model, START, table, sample_weight=weight, max_iter=1, tol=-1.0)
    x, w = jnp.asarray(table), weight
    if devices == 4:
        mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
        x, w = jax.device_put((x, w), jax.NamedSharding(mesh, jax.P("rows")))
    found = jaxem.fit(model, START, x, sample_weight=w, max_iter=1, algorithm=jaxem.OnlineEM(KEY, 60))
    for a, b in zip(*map(jax.tree.leaves, (found.params, exact.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.objective, exact.objective, rtol=1e-12)
    if devices == 4:
        algorithm = jaxem.OnlineEM(KEY, 12, average_from=50)
        part = jaxem.fit(model, START, x, sample_weight=w, max_iter=100, algorithm=algorithm)
        best = jaxem.fit(model, START, table, sample_weight=weight)
        assert 0 < float(best.objective - part.objective) < 0.02 * 60
        with pytest.raises(ValueError, match="batch_size: expected a multiple of the number of devices"):
            jaxem.fit(model, START, x, algorithm=jaxem.OnlineEM(KEY, 10))


def test_one_pass_over_many_rows_in_float32_is_close_to_the_exact_fit():
    n = 40_000
    x = blobs(n, dtype=np.float32)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), START)
    exact = fit(jaxem.EM(), x, params, tol=1e-6, max_iter=100)
    found = fit(jaxem.OnlineEM(KEY, 100), x, params, max_iter=n // 100).check()
    assert found.params.weights.dtype == np.float32
    assert abs(float(found.log_lik - exact.log_lik)) / n < 1e-3
    # the table is sorted by cluster: minibatches of neighbouring rows would see one of them at a time
    order = np.argsort(x.sum(1))
    by_size = fit(jaxem.OnlineEM(KEY, 100), x[order], params, max_iter=n // 100)
    assert abs(float(by_size.log_lik - exact.log_lik)) / n < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.5}, r"decay: expected a number in \(0.5, 1\], got 0.5"),
        ({"decay": 1.1}, "decay"),
        ({"decay": np.nan}, "decay"),
        ({"delay": -1.0}, "delay: expected a number ≥ 0"),
        ({"batch_size": 0}, "batch_size: expected a positive int, got 0"),
        ({"batch_size": 61}, "batch_size: expected at most the number of rows, 60, got 61"),
        ({"average_from": -1}, "average_from"),
    ],
)
def test_online_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: fit(jaxem.OnlineEM(KEY, **({"batch_size": 6} | options)), x).params)(X)


def test_models_that_cannot_be_fitted_so():
    density = jaxem.Density(lambda theta, row: -0.5 * jnp.sum(jnp.square(row - theta)))
    model = jaxem.Mixture(density, 2)
    params = jaxem.MixtureParams(jnp.full(2, 0.5), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="Mixture: online EM needs statistics that are sums over rows"):
        jaxem.fit(model, params, X, algorithm=jaxem.OnlineEM(KEY, 6))
    logistic = jaxem.VariationalLogisticRegression(jaxem.FixedPrecision(1.0))
    begin = jaxem.LogisticParams(jnp.zeros(2), jnp.eye(2))
    for algorithm in (jaxem.HardEM(), jaxem.AnnealedEM(), jaxem.StochasticEM(KEY)):
        with pytest.raises(ValueError, match="VariationalLogisticRegression: rules other than Soft"):
            jaxem.fit(logistic, begin, (X, np.arange(60) % 2), algorithm=algorithm)
    for algorithm in (jaxem.StochasticEM(KEY), jaxem.OnlineEM(KEY, 6)):
        with pytest.raises(ValueError, match="stop: expected None"):
            fit(algorithm, stop=jaxem.Objective(1e-3))
    with pytest.raises(ValueError, match="average_from"):
        fit(jaxem.StochasticEM(KEY, average_from=-1))


# --- labels


@pytest.mark.slow
@ANY_LABELLED
def test_rows_of_known_states_give_their_own_moments(name):
    """All states known: no E step has a say, and every algorithm finds the moments of the classes."""
    state = (np.arange(60) % 3 == 0).astype(int)
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 2)
    found = jaxem.fit(model, START, labelled(X, state), algorithm=(ALGORITHMS | JUMPING)[name], max_iter=40).check()
    for j in (0, 1):
        own = X[state == j]
        np.testing.assert_allclose(found.params.components.mean[j], own.mean(0), rtol=1e-9)
        np.testing.assert_allclose(
            found.params.components.covariance[j], np.cov(own.T, bias=True), rtol=1e-8, atol=1e-10
        )
    np.testing.assert_allclose(found.params.weights, [2 / 3, 1 / 3], rtol=1e-9)


@ANY_LABELLED
def test_a_few_labels_say_which_component_is_which(name):
    """Labels against the order of the start: the components change places."""
    state = (np.arange(60) % 3 == 0).astype(int)
    known = np.where(np.arange(60) < 24, 1 - state, -1)
    found = fit((ALGORITHMS | JUMPING)[name], labelled(X, known), start("full", [[2.0, 2.0], [2.0, 2.0]], 4.0))
    np.testing.assert_allclose(found.params.components.mean, [[4.0, 4.0], [0.0, 0.0]], atol=1.0)
    log_joint = np.asarray(found.model.log_joint(found.params, X))
    log_joint = np.where((known[:, None] == [0, 1]) | (known[:, None] == -1), log_joint, -np.inf)
    np.testing.assert_allclose(found.log_lik, np.sum(logsumexp(log_joint, 1)), rtol=1e-12)


@ANY_LABELLED
def test_labels_that_cannot_be(name):
    beyond = np.where(np.arange(60) == 7, 2, -1)  # there are the states 0 and 1
    algorithm = (ALGORITHMS | JUMPING)[name]
    with pytest.raises(ValueError, match="expected labels 0 to 1, .* got 2 in row 7"):
        fit(algorithm, labelled(X, beyond))
    traced = jax.jit(lambda beyond: fit(algorithm, labelled(X, beyond)).status)  # where they cannot be seen
    assert int(traced(beyond)) == Status.NONFINITE
    with pytest.raises(ValueError, match=r"known: .* row 3"):
        fit((ALGORITHMS | JUMPING)[name], labelled(X, (np.arange(60)[:, None] != 3) & np.ones((60, 2), bool)))
    with pytest.raises(ValueError, match="a mask over 2 states"):
        fit((ALGORITHMS | JUMPING)[name], labelled(X, np.ones((60, 3), bool)))


@pytest.mark.slow
def test_a_fit_in_pieces_is_concluded_once():
    algorithm, x = jaxem.OnlineEM(KEY, 10, average_from=3), jnp.asarray(X)
    bound = jax.jit(ask.bind)(MODEL, x, None)
    state = loop.start(bound, START, x, None, algorithm=algorithm, max_iter=12)
    go_on = jax.jit(lambda s, n: loop.advance(s, bound, x, None, algorithm=algorithm, stop=jaxem.Objective(), n_iter=n))
    for n_iter in (5, 4, 3):
        state = go_on(state, n_iter)
    assert int(state.status) == Status.RUNNING
    state = jax.jit(lambda s: jaxem.conclude(s, bound, x, None, algorithm=algorithm))(state)
    pieces, whole = jax.jit(loop.finish)(state, bound), fit(algorithm, max_iter=12)
    assert int(pieces.status) == int(whole.status) == Status.CONVERGED
    np.testing.assert_allclose(pieces.objective, whole.objective, rtol=1e-12)
