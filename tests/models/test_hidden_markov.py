"""Hidden Markov models through the drivers that every model goes through."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status

slow = pytest.mark.slow
KEY = jax.random.key(0)
N, T = 12, 20


def _values(n: int = N, t: int = T, means: tuple = (0.0, 4.0), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    states = np.zeros((n, t), int)
    states[:, 0] = rng.integers(len(means), size=n)
    for i in range(1, t):
        states[:, i] = np.where(rng.random(n) < 0.2, rng.integers(len(means), size=n), states[:, i - 1])
    return np.array(means)[states][:, :, None] + rng.normal(size=(n, t, 1))


LENGTH = np.array([20, 1, 5, 20, 13, 9, 20, 2, 17, 20, 6, 11])


def _data() -> jaxem.Sequences:
    return jaxem.Sequences(jnp.asarray(_values()), jnp.asarray(LENGTH))


def _normal(**options) -> jaxem.HiddenMarkovModel:
    return jaxem.HiddenMarkovModel(jaxem.FullNormal(), 2, **options)


def _start(means: tuple = (0.5, 3.0), spread: float = 1.0) -> jaxem.HMMParams:
    k = len(means)
    transition = jnp.full((k, k), 0.2 / (k - 1)).at[jnp.arange(k), jnp.arange(k)].set(0.8)
    bank = jaxem.NormalParams(jnp.array(means)[:, None], jnp.full((k, 1, 1), spread**2))
    return jaxem.HMMParams(jnp.full(k, 1 / k), transition, bank)


def _same(a, b, **tolerance) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# --- what series are


def test_absent_and_missing_steps_are_never_looked_at():
    """Whatever stands there, NaN too: values and gradients are the same to the bit."""
    model, data, start = _normal(), _data(), _start()
    data = data._replace(values=data.values.at[0, 3].set(jnp.nan))
    absent = jnp.arange(T)[None] >= data.length[:, None]

    def objective(values, rubbish):
        values = jnp.where(absent[:, :, None], rubbish, values)
        here = data._replace(values=values.at[0, 3].set(jnp.nan))
        return model.log_prob(start, here).sum()

    both = jax.jit(jax.value_and_grad(objective))
    for rubbish in (1e300, jnp.nan, -jnp.inf):
        jax.tree.map(np.testing.assert_array_equal, both(data.values, rubbish), both(data.values, 0.0))

    def fitted(rubbish):
        values = jnp.where(absent[:, :, None], rubbish, data.values)
        return jaxem.fit(model, start, data._replace(values=values), tol=-1.0, max_iter=5)

    jax.tree.map(np.testing.assert_array_equal, fitted(jnp.nan).params, fitted(0.0).params)
    np.testing.assert_array_equal(fitted(jnp.nan).history, fitted(0.0).history)


def test_longer_padding_and_a_series_at_a_time_give_the_same():
    model, data, start = _normal(), _data(), _start()
    longer = data._replace(values=jnp.pad(data.values, ((0, 0), (0, 7), (0, 0))))
    np.testing.assert_allclose(model.log_prob(start, longer), model.log_prob(start, data), rtol=1e-13)
    alone = [model.log_prob(start, jaxem.sequences([np.asarray(data.values)[i, : LENGTH[i]]]))[0] for i in (0, 1, 7)]
    np.testing.assert_allclose(alone, model.log_prob(start, data)[np.array([0, 1, 7])], rtol=1e-13)


def test_a_missing_step_lets_the_chain_go_on():
    """p(x_1, x_3) = Σ π b_1 A² b_3."""
    model, start = _normal(), _start()
    x = np.array([0.3, np.nan, 4.1])[:, None]
    density = jnp.exp(jaxem.Mixture(jaxem.FullNormal(), 2).family.log_prob(start.emissions, jnp.asarray(x[[0, 2]])))
    twice = start.transition @ start.transition
    expected = jnp.log((start.initial * density[0]) @ twice @ density[1])
    np.testing.assert_allclose(model.log_prob(start, jaxem.sequences([x]))[0], expected, rtol=1e-13)


def test_integer_weights_are_repeated_series():
    model, data, start = _normal(), _data(), _start()
    weight = np.array([2, 1, 0, 1, 3, 1, 1, 0, 1, 1, 1, 2])
    index = np.repeat(np.arange(N), weight)
    repeated = jax.tree.map(lambda leaf: leaf[index], data)
    data = data._replace(values=data.values.at[2].set(jnp.nan))  # of weight zero: it does not exist
    once = jaxem.fit(model, start, data, sample_weight=weight.astype(float), tol=-1.0, max_iter=4)
    many = jaxem.fit(model, start, repeated, tol=-1.0, max_iter=4)
    _same(once.params, many.params, rtol=1e-11)
    np.testing.assert_allclose(once.history, many.history, rtol=1e-12)
    assert once.total_weight == many.total_weight == weight @ LENGTH


@slow
def test_chunks_cut_between_series(monkeypatch):
    model, data, start = _normal(), _data(), _start()
    whole = jaxem.fit(model, start, data, tol=-1.0, max_iter=4)
    asked = jaxem.fit(model, start, data, tol=-1.0, max_iter=4, chunk_size=5)
    jax.clear_caches()
    monkeypatch.setattr("jaxem.models._markov_steps._LANES", 5)  # held, prepared, in three chunks
    held = jaxem.fit(model, start, data, tol=-1.0, max_iter=4)
    jax.clear_caches()
    for result in (asked, held):
        _same(result.params, whole.params, rtol=1e-11)
        np.testing.assert_allclose(result.history, whole.history, rtol=1e-13)


# --- the fit


def test_blocks_of_rows_give_what_rows_do(monkeypatch):
    """The fast path of many steps: prepared in blocks, the last one filled up."""
    model, data, start = _normal(), _data(), _start()
    bound = jaxem.bind(model, data, None)
    plain = bound.e_step(start, data, None)
    monkeypatch.setattr("jaxem.models._markov_steps.LANE_ROWS", 7 * N)
    prepared = bound.e_step(start, bound.prepare(data, columns_first=True), None)
    np.testing.assert_allclose(prepared[1], plain[1], rtol=1e-12)
    _same(prepared[0].transition, plain[0].transition, rtol=1e-11)
    emissions = [bound.m_step(start, stats).emissions for stats in (prepared[0], plain[0])]
    _same(*emissions, rtol=1e-10)


FAMILIES = {
    "poisson": lambda x: (jaxem.Poisson(), np.floor(np.abs(x))),
    "diagonal": lambda x: (jaxem.DiagonalNormal(), x),
    "gamma": lambda x: (jaxem.Gamma(), np.exp(x / 4)),
    "student_t": lambda x: (jaxem.StudentT(), x),
    "missing": lambda x: (jaxem.FullNormal(missing=True), _with_gaps(np.concatenate([x, x[::-1]], 2))),
    "product": lambda x: (
        jaxem.Product(a=jaxem.FullNormal(), b=jaxem.Poisson()),
        {"a": x, "b": np.floor(np.abs(x))},
    ),
    "regression": lambda x: (jaxem.LinearRegression(), (np.concatenate([np.ones_like(x), np.sin(x)], 2), x[:, :, 0])),
    "one_of": lambda x: (jaxem.OneOf(jaxem.FullNormal(), jaxem.Uniform()), x),
    "rows": lambda x: (jaxem.NegativeBinomial(), np.floor(np.abs(x))),
}


def _with_gaps(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[::3, ::4, 0] = np.nan
    return x


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in ("product", "missing") else slow) for n in FAMILIES])
def test_any_family_emits_and_the_objective_never_falls(name):
    family, values = FAMILIES[name](_values())
    model, data = jaxem.HiddenMarkovModel(family, 2), jaxem.Sequences(values, LENGTH)
    start = model.init(KEY, data)
    result = jaxem.fit(model, start, data, max_iter=30, tol=-1.0)
    history = np.asarray(result.history)
    history = history[np.isfinite(history)]
    assert result.status in (Status.MAX_ITER, Status.RESOLUTION) and len(history) > 5
    assert np.all(np.diff(history) >= -1e-10 * np.abs(history[:-1]))
    assert history[-1] > history[0]
    np.testing.assert_allclose(result.model.log_prob(result.params, data).sum(), result.log_lik, rtol=1e-9)


@slow
def test_float32_gives_what_float64_does():
    model, data = _normal(), _data()
    double = jaxem.fit(model, _start(), data).check()
    single = jaxem.fit(model, _start(), data._replace(values=data.values.astype(np.float32))).check()
    assert single.params.transition.dtype == np.float32
    _same(single.params, double.params, rtol=0, atol=5e-3)  # the limit is where rises drown in rounding
    np.testing.assert_allclose(single.log_lik, double.log_lik, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=slow)])
def test_a_level_of_ten_thousand_spreads_moves_the_means_alone(dtype):
    """In float32 rows at 10⁴ keep three digits behind the point, by which the two fits differ."""
    model, data, level = _normal(), _data(), 1e4
    at_zero = jaxem.fit(model, _start(), data, tol=-1.0, max_iter=20)
    moved = data._replace(values=(data.values + level).astype(dtype))
    start = _start((level + 0.5, level + 3.0))
    there = jaxem.fit(model, start, moved, tol=-1.0, max_iter=20)
    atol = 5e-3 if dtype == np.float32 else 1e-8
    _same(there.params.transition, at_zero.params.transition, atol=atol)
    _same(there.params.emissions.covariance, at_zero.params.emissions.covariance, atol=atol)
    _same(there.params.emissions.mean - level, at_zero.params.emissions.mean, atol=atol)


def test_a_state_lost_to_underflow_is_answered_by_the_log_path():
    """Ten steps of 1250 nats for one of two states that never change, then ten of 13,750 for the other."""
    x = np.concatenate([np.zeros(10), np.full(10, 300.0)])[:, None]
    data = jaxem.sequences([x])
    start = jaxem.HMMParams(
        jnp.array([0.5, 0.5]), jnp.eye(2), jaxem.NormalParams(jnp.array([[0.0], [50.0]]), jnp.ones((2, 1, 1)))
    )
    model = jaxem.HiddenMarkovModel(jaxem.FullNormal(floor=0.0), 2)
    bound = jaxem.bind(model, data, None)
    assert np.isnan(bound.e_step(start, bound.prepare(data), None)[1])
    result = jaxem.fit(model, start, data, max_iter=3, tol=-1.0)
    assert np.isfinite(result.history[0]) and result.n_iter > 0
    np.testing.assert_allclose(result.history[0], model.log_prob(start, data)[0], rtol=1e-12)


def test_transitions_that_are_not_allowed_stay_zero_and_a_prior_is_counted():
    """From left to right; the M step with its prior by hand."""
    allowed = jnp.triu(jnp.ones((2, 2), bool))
    model = _normal(allowed=allowed, concentration=jnp.array(3.0), initial_allowed=jnp.array([True, False]))
    data = jaxem.Sequences(jnp.asarray(np.sort(_values(), 1)), jnp.full(N, T))
    start = model.init(KEY, data)
    assert start.transition[1, 0] == 0 and start.initial[1] == 0
    result = jaxem.fit(model, start, data).check()
    np.testing.assert_allclose(result.params.transition[1], [0, 1], rtol=0, atol=1e-15)
    stats, log_lik = result.model.e_step(result.params, data, None)
    count = stats.transition[0] + 2
    np.testing.assert_allclose(result.params.transition[0], count / count.sum(), rtol=1e-3)
    assert model.n_parameters(start) == 0 + 1 + 4
    prior = result.model.log_prior(result.params)
    np.testing.assert_allclose(log_lik + prior, result.objective, rtol=1e-9)


def test_a_state_that_is_never_left_keeps_its_row():
    data = jaxem.sequences([np.zeros((1, 1)), np.ones((1, 1))])  # series of one step have no transition
    start = _start()
    result = jaxem.fit(_normal(), start, data, max_iter=2, tol=-1.0)
    np.testing.assert_array_equal(result.params.transition, start.transition)


def test_the_gradient_through_a_fit_against_differences():
    """The first states of few series are on their boundary, but for the prior."""
    model, start = _normal(concentration=1.5, initial_concentration=1.5), _start()
    x = jnp.asarray(_values()[:4, :8])
    direction = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))

    def loss(step):
        data = jaxem.Sequences(x + step * direction, jnp.array([8, 5, 1, 8]))
        params = jaxem.fit(model, start, data, tol=-1.0, max_iter=300).params
        return params.transition[0, 0] + jnp.sum(params.emissions.mean * jnp.array([[1.0], [2.0]]))

    h = 1e-4
    numeric = (loss(h) - loss(-h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(0.0), numeric, rtol=1e-5)


@slow
def test_influence_reaches_a_first_state_on_its_boundary():
    """Probabilities of first states that tend to zero may be corrected to a little below."""
    model, data = _normal(), _data()
    result = jaxem.fit(model, _start(), data, tol=1e-10).check()
    found = jaxem.influence(result.model, result.params, data, of=_first_mean)
    i = 4
    without = jaxem.fit(model, result.params, data, sample_weight=jnp.ones(N).at[i].set(0), tol=1e-10)
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found[i], _first_mean(without.params) - _first_mean(result.params), rtol=0.3)


def _first_mean(params):
    return params.emissions.mean[0, 0]


# --- rules and drivers


def test_viterbi_training_is_maximal_over_paths():
    """Its criterion never falls; at its end the paths are those of its params."""
    model, data = _normal(), _data()
    result = jaxem.fit(model, _start(), data, algorithm=jaxem.HardEM()).check()
    path = np.asarray(model.predict(result.params, data))
    counts = np.zeros((2, 2))
    for row in path:
        row = row[row >= 0]
        np.add.at(counts, (row[:-1], row[1:]), 1)
    np.testing.assert_allclose(result.params.transition, counts / counts.sum(1, keepdims=True), rtol=1e-12)
    x = np.asarray(data.values)[:, :, 0]
    np.testing.assert_allclose(result.params.emissions.mean[1, 0], x[path == 1].mean(), rtol=1e-12)


@slow
@pytest.mark.parametrize(
    "algorithm",
    [jaxem.SQUAREM(), jaxem.Anderson(), jaxem.ParabolicEM(), jaxem.OverRelaxedEM(), jaxem.NewtonCG(),
     jaxem.AnnealedEM()],
    ids=lambda algorithm: type(algorithm).__name__,
)  # fmt: skip
def test_algorithms_reach_the_same_maximum(algorithm):
    plain = jaxem.fit(_normal(), _start(), _data(), tol=1e-9, max_iter=1000).check()
    other = jaxem.fit(_normal(), _start(), _data(), tol=1e-9, max_iter=1000, algorithm=algorithm).check()
    np.testing.assert_allclose(other.objective, plain.objective, rtol=1e-6)


@slow
def test_stochastic_em_stays_about_the_maximum():
    plain = jaxem.fit(_normal(), _start(), _data()).check()
    algorithm = jaxem.StochasticEM(KEY, average_from=50)
    other = jaxem.fit(_normal(), _start(), _data(), algorithm=algorithm, max_iter=300).check()
    _same(other.params.emissions.mean, plain.params.emissions.mean, atol=0.2)
    assert plain.objective - 2 < other.objective <= plain.objective


@slow
def test_lanes_and_groups_are_fits_of_their_own():
    model, data, start = _normal(), _data(), _start()
    ids = np.repeat([0, 1, 2], [6, 4, 2])
    alone = [jaxem.fit(model, start, jax.tree.map(lambda leaf: leaf[ids == g], data)) for g in range(3)]  # noqa: B023
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), data)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    for plan in ("lanes", "sequential"):
        lanes = jaxem.fit_batch(model, starts, batch, plan=plan)
        whole = jaxem.fit(model, start, data)
        np.testing.assert_allclose(lanes.objective, jnp.full(2, whole.objective), rtol=1e-9)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), start)
    groups = jaxem.fit_groups(model, KEY, data, ids, init=stacked, algorithm=jaxem.EM())
    np.testing.assert_allclose(groups.fits.objective, [r.objective for r in alone], rtol=1e-9)
    np.testing.assert_allclose(groups.fits.total_weight, [r.total_weight for r in alone])


@slow
def test_restarts_select_save_and_load(tmp_path):
    model, data = _normal(), _data()
    best = jaxem.fit_restarts(model, KEY, data, n_restarts=4).check()
    assert best.n_best >= 2
    models = [jaxem.HiddenMarkovModel(jaxem.FullNormal(), k) for k in (2, 3)]
    chosen = jaxem.select(models, KEY, data, n_restarts=2)
    assert chosen.table["criterion"][0] < chosen.table["criterion"][1]
    np.testing.assert_allclose(chosen.table["criterion"][0], models[0].bic(best.params, data), rtol=1e-4)
    jaxem.save(tmp_path / "fit.jaxem", best.model, best.params)
    loaded, params = jaxem.load(tmp_path / "fit.jaxem")
    np.testing.assert_array_equal(loaded.predict(params, data), best.model.predict(best.params, data))


def test_what_is_held_stays():
    """A row of transitions, and all emissions."""
    start = _start()
    rows = np.array([True, False])
    frozen = jaxem.Frozen(_normal(), jaxem.HMMParams(False, rows, True))
    result = jaxem.fit(frozen, start, _data()).check()
    np.testing.assert_array_equal(result.params.transition[0], start.transition[0])
    assert np.all(result.params.transition[1] != start.transition[1])
    jax.tree.map(np.testing.assert_array_equal, result.params.emissions, start.emissions)
    assert result.model.n_parameters(result.params) == 1 + 1
    with pytest.raises(ValueError, match=r"mask.transition: expected rows"):
        jaxem.fit(jaxem.Frozen(_normal(), jaxem.HMMParams(False, np.eye(2, dtype=bool), False)), start, _data())


def test_new_values_trace_nothing_anew():
    traced = []

    @jax.jit
    def run(model, start, data):
        traced.append(1)
        return jaxem.fit(model, start, data, max_iter=3).objective

    for alpha in (1.5, 2.5):
        run(_normal(concentration=jnp.array(alpha)), _start(), _data())
    assert len(traced) == 1


# --- what users ask


def test_forecasts_filter_and_sample_fit_together():
    model, start = _normal(), _start()
    drawn, states = model.sample(start, KEY, n=500, n_steps=8)
    assert drawn.values.shape == (500, 8, 1) and states.shape == (500, 8)
    np.testing.assert_allclose((states[:, 1:] == states[:, :-1]).mean(), 0.8, atol=0.03)  # two in a hundred: 4 sd
    known = np.asarray(start.emissions.mean)[np.asarray(states), 0]
    np.testing.assert_allclose((drawn.values[:, :, 0] - known).std(), 1, atol=0.05)
    data = drawn._replace(length=jnp.asarray(np.arange(500) % 8 + 1))
    r, f = model.responsibilities(start, data), model.filtered(start, data)
    last = np.asarray(data.length) - 1
    i = np.arange(500)
    np.testing.assert_allclose(f[i, last], r[i, last], rtol=1e-12)
    present = np.arange(8)[None] <= last[:, None]
    np.testing.assert_allclose(r.sum(2), present, rtol=1e-12, atol=0)
    ahead = model.forecast(start, data, horizon=3)
    np.testing.assert_allclose(ahead[:, 2], f[i, last] @ np.linalg.matrix_power(start.transition, 3), rtol=1e-12)
    agree = np.asarray(model.predict(start, data))[present] == np.asarray(states)[present]
    assert agree.mean() > 0.9


def test_a_start_from_labels_of_all_steps():
    """Absent steps have labels that nobody reads; a transition that never happens gets half a step."""
    x = np.array([[0.0, 1.0, 9.0], [11.0, 5.0, 5.0]])[:, :, None]
    labels = jnp.array([0, 0, 1, 1, 0, 1])
    start = _normal().init(KEY, jaxem.Sequences(x, np.array([3, 1])), method=jaxem.Labels(labels))
    np.testing.assert_allclose(start.emissions.mean[:, 0], [0.5, 10.0], rtol=1e-12)
    np.testing.assert_allclose(start.transition, [[0.5, 0.5], [0.5, 0.5]], rtol=1e-12)
    np.testing.assert_allclose(start.initial, [0.5, 0.5], rtol=1e-12)
    with pytest.raises(ValueError, match=r"Labels: expected integers of shape \(6,\)"):
        _normal().init(KEY, jaxem.Sequences(x, np.array([3, 1])), method=jaxem.Labels(labels[:2]))


def test_series_in_the_place_of_others_keep_their_gaps():
    data = _data()
    data = data._replace(values=data.values.at[3, 5].set(jnp.nan))
    drawn = _normal().sample_like(_start(), KEY, data)
    assert np.isnan(drawn.values[3, 5]).all() and np.isfinite(drawn.values[3, 4]).all()
    np.testing.assert_array_equal(drawn.values[1, 1:], data.values[1, 1:])  # absent
    assert np.all(drawn.values[0] != data.values[0])


def test_results_that_states_in_no_order_would_make_wrong_are_refused():
    model, data, start = _normal(), _data(), _start()
    refused = {
        r"model: HiddenMarkovModel has no log_joint": lambda: jaxem.decompose(model, start, data),
        r"HiddenMarkovModel has no log_joint": lambda: jaxem.trace_bound(model, start, data, 2),
        r"'icl' needs": lambda: jaxem.select([model], KEY, data, criterion="icl"),
    }
    for message, ask in refused.items():
        with pytest.raises(ValueError, match=message):
            ask()


BAD = {
    r"n_states: expected at least 2 hidden states, got 1": lambda d: (replace(_normal(), n_states=1), d),
    r"allowed: expected at least one state.*row 1": lambda d: (
        _normal(allowed=np.array([[True, True], [False, False]])),
        d,
    ),
    r"allowed: expected booleans": lambda d: (_normal(allowed=np.ones((2, 2))), d),
    r"concentration: expected shape": lambda d: (_normal(concentration=np.ones(3)), d),
    r"data.length: expected 0 to 20.*got 21 in series 2": lambda d: (
        _normal(),
        d._replace(length=d.length.at[2].set(21)),
    ),
    r"data.length: expected integers": lambda d: (_normal(), d._replace(length=d.length.astype(float))),
    r"data.values: expected arrays \(n, t": lambda d: (_normal(), d._replace(values=d.values[:, 0, 0])),
    r"missing ones throughout": lambda d: (_normal(), d._replace(values=d.values * jnp.nan)),
    r"data: expected Sequences, got ArrayImpl": lambda d: (_normal(), d.values),
    r"data: expected finite values": lambda d: (_normal(), d._replace(values=d.values.at[3, 2].set(jnp.inf))),
    r"params.transition: expected 0 where": lambda d: (_normal(allowed=np.eye(2, dtype=bool)), d),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_fitted_is_named(message):
    model, data = BAD[message](_data())
    with pytest.raises(ValueError, match=message):
        jaxem.fit(model, _start(), data)


def test_params_of_another_kind_or_shape_are_named():
    with pytest.raises(TypeError, match="params: expected HMMParams"):
        jaxem.fit(_normal(), jaxem.MixtureParams(jnp.ones(2) / 2, _start().emissions), _data())
    with pytest.raises(ValueError, match=r"params.transition: expected shape \(2, 2\)"):
        jaxem.fit(_normal(), _start((0.0, 1.0, 2.0))._replace(initial=jnp.ones(2) / 2), _data())
    with pytest.raises(ValueError, match=r"params.initial: expected numbers ≥ 0 that sum to 1"):
        jaxem.fit(_normal(), _start()._replace(initial=jnp.ones(2)), _data())
    with pytest.raises(ValueError, match="n_steps: expected a positive int"):
        _normal().sample(_start(), KEY, 3)
