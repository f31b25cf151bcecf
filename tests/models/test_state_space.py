"""State space models through the drivers that every model goes through."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status

slow = pytest.mark.slow
KEY = jax.random.key(0)
N, T, S, D = 6, 12, 2, 2
LENGTH = np.array([12, 5, 12, 1, 9, 12])
EXACT: Any = {"rtol": 1e-9, "atol": 1e-9}


def _psd(rng: np.random.Generator, s: int) -> np.ndarray:
    root = rng.normal(size=(s, s))
    return root @ root.T / s + 0.2 * np.eye(s)


def _params(q: int = 0, seed: int = 0) -> jaxem.LGSSMParams:
    rng = np.random.default_rng(seed)
    inputs = (rng.normal(size=(S, q)), rng.normal(size=(D, q))) if q else (None, None)
    params = jaxem.LGSSMParams(
        jaxem.GaussianState(rng.normal(size=S), _psd(rng, S)), 0.5 * rng.normal(size=(S, S)), _psd(rng, S),
        rng.normal(size=(D, S)), _psd(rng, D), *inputs,
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, params)


def _values(gaps: bool = True, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.normal(size=(N, T, D)), 1) / 2 + rng.normal(size=(N, T, D))
    if gaps:
        values[rng.random(values.shape) < 0.3] = np.nan
        values[0, 0] = 0.5
    return values


def _data(gaps: bool = True) -> jaxem.Sequences:
    return jaxem.Sequences(jnp.asarray(_values(gaps)), jnp.asarray(LENGTH))


MODEL = jaxem.LinearGaussianStateSpace(S, floor=0.0)


def _same(a: Any, b: Any, **tolerance: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# --- statistics


@pytest.mark.parametrize("q", [0, 1])
def test_statistics_are_the_gradient_of_the_log_likelihood(q):
    """Fisher's identity, for every block of the params: missing entries and absent steps, inputs, weights."""
    params, data = _params(q), _data()
    if q:
        data = data._replace(values=(jnp.asarray(np.random.default_rng(3).normal(size=(N, T, q))), data.values))
    weight = jnp.array([1.0, 2.0, 0.5, 1.0, 0.0, 3.0])
    stats, log_lik = jax.jit(MODEL.e_step)(params, data, weight)
    total = lambda params: jnp.sum(weight * MODEL.log_prob(params, data))  # noqa: E731
    np.testing.assert_allclose(log_lik, total(params), rtol=1e-12)
    slope = jax.grad(total)(params)
    inverse = jnp.linalg.inv
    join = lambda a, b: a if b is None else jnp.concatenate([a, b], 1)  # noqa: E731
    half = lambda v, square, count: inverse(v) @ (square - count * v) @ inverse(v) / 2  # noqa: E731
    move, see, first = params.transition_covariance, params.emission_covariance, params.initial.covariance
    np.testing.assert_allclose(
        join(slope.transition, slope.transition_input), inverse(move) @ stats.transition.cross, **EXACT
    )
    np.testing.assert_allclose(join(slope.emission, slope.emission_input), inverse(see) @ stats.emission.cross, **EXACT)
    np.testing.assert_allclose(slope.initial.mean, inverse(first) @ stats.first, **EXACT)
    for own, expected in (
        (slope.transition_covariance, half(move, stats.transition.square, stats.transition.count)),
        (slope.emission_covariance, half(see, stats.emission.square, stats.emission.count)),
        (slope.initial.covariance, half(first, stats.first_square, stats.count)),
    ):
        np.testing.assert_allclose((own + own.T) / 2, expected, **EXACT)


def test_absent_and_missing_steps_are_never_looked_at():
    """Whatever stands there, NaN too: values and gradients are the same to the bit."""
    params, data = _params(), _data()
    absent = jnp.arange(T)[None] >= data.length[:, None]

    def objective(values, rubbish):
        here = data._replace(values=jnp.where(absent[:, :, None], rubbish, values))
        return jnp.sum(MODEL.log_prob(params, here))

    both = jax.jit(jax.value_and_grad(objective))
    plain = both(data.values, 0.0)
    assert np.all(np.isfinite(plain[1]))
    for rubbish in (1e300, jnp.nan, jnp.inf):
        jax.tree.map(np.testing.assert_array_equal, both(data.values, rubbish), plain)

    def fitted(rubbish):
        here = data._replace(values=jnp.where(absent[:, :, None], rubbish, data.values))
        return jaxem.fit(MODEL, params, here, tol=-1.0, max_iter=4)

    jax.tree.map(np.testing.assert_array_equal, fitted(jnp.nan).params, fitted(0.0).params)
    longer = data._replace(values=jnp.pad(data.values, ((0, 0), (0, 5), (0, 0))))
    np.testing.assert_allclose(MODEL.log_prob(params, longer), MODEL.log_prob(params, data), rtol=1e-13)


def test_integer_weights_are_repeated_series():
    data, start, weight = _data(), _params(), np.array([2, 1, 0, 1, 3, 1])
    repeated = jax.tree.map(lambda leaf: leaf[np.repeat(np.arange(N), weight)], data)
    data = data._replace(values=data.values.at[2].set(jnp.inf))  # of weight zero: it does not exist
    once = jaxem.fit(MODEL, start, data, sample_weight=weight.astype(float), tol=-1.0, max_iter=4)
    many = jaxem.fit(MODEL, start, repeated, tol=-1.0, max_iter=4)
    _same(once.params, many.params, rtol=1e-9)
    np.testing.assert_allclose(once.history, many.history, rtol=1e-11)


@pytest.mark.parametrize("gaps", [True, pytest.param(False, marks=slow)])
def test_the_objective_never_falls(gaps):
    model = jaxem.LinearGaussianStateSpace(S, floor=1e-3, transition_prior=0.1, initial_prior=0.2)
    data = _data(gaps)
    result = jaxem.fit(model, model.init(KEY, data), data, tol=-1.0, max_iter=40)
    history = np.asarray(result.history)
    assert np.all(np.isfinite(history)) and np.all(np.diff(history) > -1e-10)
    stats, log_lik = result.model.e_step(result.params, data, jnp.ones(N))
    np.testing.assert_allclose(log_lik + result.model.log_prior(result.params), result.objective, rtol=1e-12)
    after = result.model.m_step(result.params, stats)
    sound = result.model.feasible(after)
    assert bool(sound) and bool(result.model.feasible(model.constrain(model.unconstrain(after))))


def test_a_first_state_without_variance_climbs_with_all_else():
    """Missing entries and absent steps, inputs: every step of EM climbs, and m ends where the likelihood is flat."""
    params, data = _params(1), _data()
    data = data._replace(values=(jnp.asarray(np.random.default_rng(3).normal(size=(N, T, 1))), data.values))
    params = params._replace(initial=params.initial._replace(covariance=jnp.zeros((S, S))))
    mask = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), params)
    mask = mask._replace(initial=mask.initial._replace(covariance=np.ones((S, S), bool)))
    model = jaxem.LinearGaussianStateSpace(S, floor=1e-2, transition_prior=0.1)
    result = jaxem.fit(jaxem.Frozen(model, mask), params, data, tol=-1.0, max_iter=150)
    assert np.all(np.diff(result.history) > -1e-10)

    def slope(params):
        at = lambda mean: params._replace(initial=params.initial._replace(mean=mean))  # noqa: E731
        return jax.grad(lambda mean: jnp.sum(MODEL.log_prob(at(mean), data)))(params.initial.mean)

    assert np.max(np.abs(slope(result.params))) < 1e-2 * np.max(np.abs(slope(params)))
    np.testing.assert_array_equal(result.params.initial.covariance, np.zeros((S, S)))


def test_a_level_of_ten_thousand_spreads_moves_the_intercept_alone():
    """In float32 rows at 10⁴ keep three digits behind the point."""
    level, values = 1e4, _values(gaps=False)
    ones = np.ones((N, T, 1))
    start = _params()._replace(transition_input=jnp.zeros((S, 1)), emission_input=jnp.zeros((D, 1)))
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), start)
    there = single._replace(emission_input=single.emission_input + level)
    fit = lambda start, values: jaxem.fit(  # noqa: E731
        MODEL, start, jaxem.Sequences((ones.astype(values.dtype), values), LENGTH), tol=-1.0, max_iter=10
    )
    expected = fit(start, values)
    found = fit(there, (values + level).astype(np.float32))
    _same(found.params.transition_covariance, expected.params.transition_covariance, rtol=0, atol=5e-3)
    _same(found.params.emission_covariance, expected.params.emission_covariance, rtol=0, atol=5e-3)
    np.testing.assert_allclose(found.params.emission_input - level, expected.params.emission_input, atol=5e-3)
    np.testing.assert_allclose(found.log_lik, expected.log_lik, rtol=0, atol=0.05)


STRUCTURES = {
    "trend": jaxem.local_trend,
    "smooth trend": lambda: jaxem.local_trend(level_variance=0.0),
    "seasons": lambda: jaxem.local_level() + jaxem.seasonal(4),
    "trend and seasons": lambda: jaxem.local_trend() + jaxem.seasonal(4),
    "months": lambda: jaxem.local_trend() + jaxem.seasonal(12),
    "autoregression": lambda: jaxem.local_level(variance=0.0, noise=0.0) + jaxem.autoregression(2),
}


@pytest.mark.parametrize(
    ("name", "level", "gaps"),
    [
        ("trend", 0.0, False),
        ("seasons", 1e4, True),
        *[
            pytest.param(name, level, gaps, marks=slow)
            for name in STRUCTURES
            for level, gaps in ((0.0, True), (1e4, False))
            if not (level and name == "autoregression")  # which EM only moves by less than rounding at 10⁴
        ],
    ],
)
def test_several_diffuse_states_in_float32(name, level, gaps):
    """Levels of 10⁴ spreads keep three digits of the noise; gaps at the start leave states unknown for longer."""
    rng = np.random.default_rng(0)
    t = np.arange(40)
    y = level + 0.3 * t + 2 * np.cos(2 * np.pi * t / 4) + 0.5 * np.cumsum(rng.normal(size=40)) + rng.normal(size=40)
    if gaps:
        y[[1, 2, 7, 20]] = np.nan
    model = STRUCTURES[name]()
    data = jaxem.sequences([y.astype(np.float32)[:, None]])
    wide = data._replace(values=data.values.astype(np.float64))
    start = model.init(KEY, wide)
    fit = lambda start, data: jaxem.fit(model, start, data, tol=-1.0, max_iter=10)  # noqa: E731
    single, double = fit(jax.tree.map(lambda leaf: leaf.astype(np.float32), start), data), fit(start, wide)
    assert single.status == double.status == Status.MAX_ITER and np.all(np.diff(double.history) > -1e-9)
    tolerance = 1e-3 if level else 1e-5
    np.testing.assert_allclose(single.log_lik, double.log_lik, rtol=0, atol=max(3 * tolerance, 1e-4))
    size = np.diagonal(double.params.transition_covariance).max() + double.params.emission_covariance[0, 0]
    for own, expected in zip(jax.tree.leaves(single.params), jax.tree.leaves(double.params), strict=True):
        np.testing.assert_allclose(own, expected, rtol=tolerance, atol=tolerance * size)
    states = [model.smoothed(fitted.params, rows) for fitted, rows in ((single, data), (double, wide))]
    np.testing.assert_allclose(states[0].mean, states[1].mean, rtol=1e-6, atol=30 * tolerance)
    np.testing.assert_allclose(states[0].covariance, states[1].covariance, rtol=30 * tolerance, atol=tolerance * size)


def test_a_diffuse_model_is_the_same_model():
    """Whatever the first state: statistics, residuals, forecasts; and in float32 the model alone says what to do."""
    params, data = _params(), _data()
    beside = jaxem.LinearGaussianStateSpace(S, floor=0.0, diffuse=True)
    wide = params._replace(initial=params.initial._replace(covariance=1e3 * params.initial.covariance))
    step = jax.jit(lambda model, here: model.e_step(here, data, jnp.arange(N, dtype=float)))
    slope = jax.jit(jax.grad(lambda free, model: step(model, MODEL.constrain(free))[1]))
    for here in (params, wide):
        for ask in ("log_prob", "filtered", "smoothed", "residuals"):
            _same(getattr(beside, ask)(here, data), getattr(MODEL, ask)(here, data), rtol=1e-8, atol=1e-9)
        _same(beside.forecast(here, data, 3), MODEL.forecast(here, data, 3), rtol=1e-8, atol=1e-9)
        _same(step(beside, here), step(MODEL, here), rtol=1e-7, atol=1e-8)
        free = MODEL.unconstrain(here)
        _same(slope(free, beside), slope(free, MODEL), rtol=1e-7, atol=1e-7)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), wide)
    single = single._replace(initial=single.initial._replace(covariance=1e7 * jnp.eye(S, dtype=np.float32)))
    with pytest.warns(UserWarning, match=r"diffuse=True"):
        MODEL.log_prob(single, data._replace(values=data.values.astype(np.float32)))


@slow
@pytest.mark.parametrize("noise", [1.0, 1e-6])
def test_a_million_steps_in_float32(noise):
    """A diffuse start, and a sensor as precise as that."""
    t = 10**6
    rng = np.random.default_rng(0)
    level = np.zeros(t)
    shocks = rng.normal(size=t)
    for i in range(1, t):
        level[i] = 0.9 * level[i - 1] + shocks[i]
    y = (level + noise**0.5 * rng.normal(size=t))[None, :, None]
    matrix = lambda x: jnp.array([[x]])  # noqa: E731
    params = jaxem.LGSSMParams(
        jaxem.GaussianState(jnp.zeros(1), matrix(1e7)), matrix(0.85), matrix(1.3), matrix(1.0), matrix(1.2 * noise)
    )
    model = jaxem.LinearGaussianStateSpace(1, floor=0.0)

    def step(dtype):
        data = jaxem.Sequences(jnp.asarray(y.astype(np.float32), dtype), jnp.array([t]))
        own = jax.tree.map(lambda leaf: leaf.astype(np.float32).astype(dtype), params)
        stats, log_lik = jax.jit(model.e_step)(own, data, jnp.ones(1, dtype))
        return model.m_step(own, stats), log_lik, model.smoothed(own, data)

    single, double = step(np.float32), step(np.float64)
    assert abs(float(single[1]) - float(double[1])) < 1
    np.testing.assert_allclose(single[0].transition_covariance, double[0].transition_covariance, rtol=1e-4)
    np.testing.assert_allclose(single[0].emission_covariance, double[0].emission_covariance, rtol=1e-4)
    np.testing.assert_allclose(single[2].mean, double[2].mean, rtol=0, atol=1e-4)


# --- derivatives, coordinates


def test_the_gradient_through_a_fit_against_differences():
    model = jaxem.local_level(start=jaxem.GaussianState(jnp.zeros(1), jnp.eye(1)))
    x = jnp.asarray(_values(gaps=False)[:, :, :1])
    direction = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
    start = model.init(KEY, jaxem.Sequences(x, LENGTH))

    def loss(step):
        data = jaxem.Sequences(x + step * direction, LENGTH)
        params = jaxem.fit(model, start, data, algorithm=jaxem.SQUAREM(), tol=-1.0, max_iter=80).params
        return params.transition_covariance[0, 0] + 2 * params.emission_covariance[0, 0]

    h = 1e-4
    numeric = (loss(h) - loss(-h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(0.0), numeric, rtol=1e-5)


def test_newton_and_plain_em_find_the_same_optimum():
    model = jaxem.local_level(start=jaxem.GaussianState(jnp.zeros(1), jnp.eye(1)))
    data = jaxem.Sequences(_values()[:, :, :1], LENGTH)
    start = model.init(KEY, data)
    plain = jaxem.fit(model, start, data, tol=1e-12, max_iter=2000).check()
    newton = jaxem.fit(model, start, data, algorithm=jaxem.NewtonCG(), tol=1e-12).check()
    np.testing.assert_allclose(newton.objective, plain.objective, atol=1e-8)
    assert newton.n_evals < plain.n_evals


def test_axes_of_the_state_are_no_parameters():
    params = _params()
    everything = 2 + 3 + 4 + 3 + 4 + 3
    assert MODEL.n_parameters(params) == everything - 4
    noise = jaxem.LGSSMParams(False, False, True, False, False)  # Q known: what is left are the axes that Q has
    assert jaxem.Frozen(MODEL, noise, params).n_parameters(params) == everything - 3 - 1
    free = MODEL.unconstrain(params)
    _same(MODEL.constrain(free), params, rtol=1e-12)


# --- makers


def test_parts_of_structural_models_stay_what_they_are():
    model = jaxem.local_trend(slope_variance=0.0) + jaxem.seasonal(4) + jaxem.autoregression(2)
    t = np.arange(60)
    y = 0.1 * t + 2 * np.cos(t * np.pi / 2) + np.random.default_rng(0).normal(size=60)
    data = jaxem.sequences([y[:, None]])
    start = model.init(KEY, data)
    result = jaxem.fit(model, start, data, max_iter=20, tol=-1.0)
    history = np.asarray(result.history)
    assert np.all(np.diff(history) > -1e-8)
    a, q = np.asarray(result.params.transition), np.asarray(result.params.transition_covariance)
    np.testing.assert_array_equal(a[:2, :2], [[1, 1], [0, 1]])
    np.testing.assert_array_equal(a[2:5, 2:5], [[-1, -1, -1], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(a[6], [0, 0, 0, 0, 0, 1, 0])
    assert np.all(a[5, 5:] != np.asarray(start.transition)[5, 5:]) and np.all(a[5, :5] == 0)
    assert np.flatnonzero(q).tolist() == [0, 2 * 8, 5 * 8] and q[0, 0] != start.transition_covariance[0, 0]
    np.testing.assert_array_equal(result.params.emission, [[1, 0, 1, 0, 0, 1, 0]])
    assert model.n_parameters(start) == 3 + 2 + 1
    ahead = model.forecast(result.params, data, horizon=4)
    assert np.all(ahead.lower < ahead.mean) and np.all(np.diff(ahead.covariance[0, :, 0, 0]) > 0)


def test_an_autoregression_without_noise_is_least_squares():
    """Given the first value; a diffuse start says as much in 10⁻⁷."""
    y = np.random.default_rng(1).normal(size=80)
    for i in range(1, 80):
        y[i] += 0.7 * y[i - 1]
    data = jaxem.sequences([y[:, None]])
    model = jaxem.autoregression(1)
    result = jaxem.fit(model, model.init(KEY, data), data, tol=1e-12).check()
    slope = y[1:] @ y[:-1] / (y[:-1] @ y[:-1])
    np.testing.assert_allclose(result.params.transition, [[slope]], rtol=1e-6)
    np.testing.assert_allclose(
        result.params.transition_covariance, [[np.mean((y[1:] - slope * y[:-1]) ** 2)]], rtol=1e-6
    )


def test_masks_that_leave_no_formula_are_refused():
    params, data = _params(), _data()
    whole = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), params)
    part = whole._replace(transition_covariance=np.array([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="blocks of a covariance held as a whole"):
        jaxem.fit(jaxem.Frozen(MODEL, part), params, data)
    apart = whole._replace(transition_covariance=~np.eye(2, dtype=bool))
    with pytest.raises(ValueError, match="covariances of 0 held beside others"):
        MODEL.m_step_held(params, MODEL.e_step(params, data, jnp.ones(N))[0], apart)
    rows = whole._replace(transition=np.array([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="held in the same columns"):
        jaxem.fit(jaxem.Frozen(MODEL, rows), params, data)


# --- what a fitted model says


def test_forecasts_and_residuals_of_a_level():
    params = jax.tree.map(lambda leaf: leaf[..., :1] if leaf.ndim == 1 else leaf[:1, :1], _params())
    model = jaxem.LinearGaussianStateSpace(1)
    y = np.array([0.4, np.nan, 1.3])
    longer = jaxem.sequences([np.append(y, [np.nan, np.nan])[:, None]])
    ahead = model.forecast(params, jaxem.sequences([y[:, None]]), horizon=2, level=0.5)
    states = model.filtered(params, longer)
    np.testing.assert_allclose(ahead.states.mean[0], states.mean[0, 3:], rtol=1e-12)
    np.testing.assert_allclose(ahead.states.covariance[0], states.covariance[0, 3:], rtol=1e-12)
    spread = params.emission**2 * states.covariance[0, 4] + params.emission_covariance
    np.testing.assert_allclose(ahead.covariance[0, 1], spread, rtol=1e-12)
    half = 0.6744897501960817 * np.sqrt(spread)[0]
    np.testing.assert_allclose(ahead.upper[0, 1], ahead.mean[0, 1] + half, rtol=1e-12)
    np.testing.assert_allclose(ahead.lower[0, 1], ahead.mean[0, 1] - half, rtol=1e-12)
    residuals = np.asarray(model.residuals(params, longer))[0, :, 0]
    assert np.isnan(residuals[[1, 3, 4]]).all() and np.isfinite(residuals[[0, 2]]).all()
    first = params.emission[0, 0] ** 2 * params.initial.covariance[0, 0] + params.emission_covariance[0, 0]
    np.testing.assert_allclose(residuals[0], (0.4 - params.emission[0, 0] * params.initial.mean[0]) / first**0.5)


def test_draws_come_back_by_a_fit_and_residuals_are_standard_normal():
    truth = _params(q=1)
    inputs = np.random.default_rng(5).normal(size=(400, 30, 1))
    data, states = MODEL.sample(truth, KEY, 400, n_steps=30, inputs=inputs)
    assert data.values[1].shape == (400, 30, D) and states.shape == (400, 30, S)
    residuals = np.asarray(MODEL.residuals(truth, data)).reshape(-1, D)
    np.testing.assert_allclose(np.cov(residuals.T), np.eye(D), atol=5 * 2**0.5 / 12000**0.5)
    result = jaxem.fit(MODEL, truth, data, tol=1e-7)
    eigenvalues = lambda a: np.sort_complex(np.linalg.eigvals(np.asarray(a)))  # noqa: E731
    np.testing.assert_allclose(eigenvalues(result.params.transition), eigenvalues(truth.transition), atol=0.1)
    np.testing.assert_allclose(result.params.emission_input, truth.emission_input, atol=0.1)
    again = MODEL.sample_like(
        truth, KEY, data._replace(values=(data.values[0], data.values[1].at[0, 3, 1].set(jnp.nan)))
    )
    assert np.isnan(again.values[1]).sum() == 1


# --- drivers


def test_a_lane_that_is_not_finite_disturbs_none():
    model = jaxem.local_level()
    x = _values(gaps=False)[:, :, :1]
    x[2, 4] = np.inf
    data = jaxem.Sequences(x, np.full(N, T))
    groups = jaxem.fit_groups(model, KEY, data, np.arange(N), max_iter=5, tol=-1.0)
    status = [Status(int(code)) for code in groups.status]
    assert status[2] == Status.NONFINITE and all(code == Status.MAX_ITER for i, code in enumerate(status) if i != 2)
    assert np.all(np.isfinite(np.delete(np.asarray(groups.objective), 2)))


def test_restarts_selection_and_files(tmp_path):
    data = _data(gaps=False)
    best = jaxem.fit_restarts(MODEL, KEY, data, n_restarts=2, max_iter=10)
    again = jaxem.fit_restarts(MODEL, KEY, data, n_restarts=2, max_iter=10)
    np.testing.assert_array_equal(best.objective, again.objective)
    assert np.isfinite(best.objective)
    jaxem.save(tmp_path / "fit.npz", best.model, best.params)
    _, params = jaxem.load(tmp_path / "fit.npz")
    jax.tree.map(np.testing.assert_array_equal, params, best.params)
    found = MODEL.bic(best.params, data)
    log_lik = MODEL.log_prob(best.params, data).sum()
    np.testing.assert_allclose(found, -2 * log_lik + 15 * np.log(LENGTH.sum()), rtol=1e-9)


@slow
def test_select_and_bootstrap():
    data = _data(gaps=False)
    models = {s: jaxem.LinearGaussianStateSpace(s) for s in (1, 2)}
    chosen = jaxem.select(list(models.values()), KEY, data, n_restarts=1, max_iter=30)
    assert np.all(np.isfinite(np.asarray(chosen.table["criterion"], float)))
    model = jaxem.local_level()
    one = jaxem.Sequences(data.values[:, :, :1], data.length)
    result = jaxem.fit(model, model.init(KEY, one), one)
    replicates = jaxem.bootstrap(result.model, result.params, one, KEY, n_replicates=4)
    assert np.all(np.isfinite(np.asarray(replicates.params.emission_covariance)))


# --- bad input


def _change(**leaves: Any) -> jaxem.LGSSMParams:
    return _params()._replace(**leaves)


@pytest.mark.parametrize(
    ("params", "data", "message"),
    [
        (_params(), lambda: _values(), "expected Sequences"),
        (_params(), lambda: _data()._replace(values=_values()[:, :, 0]), r"\(n, t, d\)"),
        (_params(), lambda: _data()._replace(length=LENGTH + 1), "expected 0 to 12"),
        (_params(), lambda: _data()._replace(length=LENGTH[:3]), "share their leading axis"),
        (_params(), lambda: _data()._replace(values={"a": _values()}), "got a dict"),
        (_params(), lambda: _data()._replace(values=np.full((N, T, D), np.nan)), "missing ones throughout column 0"),
        (_params(1), lambda: _data(), "expected a pair of inputs"),
        (_params(), lambda: _data()._replace(values=(np.ones((N, T, 1)), _values())), "transition_input"),
        (_change(emission=jnp.ones((3, S))), lambda: _data(), "params.emission: expected shape"),
        (_change(emission_covariance=-jnp.eye(D)), lambda: _data(), "symmetric positive definite"),
    ],
)
def test_what_does_not_fit_is_named(params, data, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(MODEL, params, data(), max_iter=1)


def test_bad_options_are_named():
    data = _data()
    with pytest.raises(TypeError, match="expected LGSSMParams"):
        jaxem.fit(MODEL, tuple(_params()), data)
    with pytest.raises(ValueError, match="n_states"):
        jaxem.LinearGaussianStateSpace(0).init(KEY, data)
    with pytest.raises(ValueError, match="floor"):
        jaxem.LinearGaussianStateSpace(1, floor=-1.0).init(KEY, data)
    with pytest.raises(ValueError, match="method: expected None"):
        MODEL.init(KEY, data, method=jaxem.RandomPoints())
    with pytest.raises(ValueError, match="horizon"):
        MODEL.forecast(_params(), data, 0)
    with pytest.raises(ValueError, match="level"):
        MODEL.forecast(_params(), data, 1, level=2.0)
    with pytest.raises(ValueError, match="inputs: expected shape"):
        MODEL.sample(_params(1), KEY, 2, n_steps=3)
    with pytest.raises(ValueError, match="inputs: expected None"):
        MODEL.sample(_params(), KEY, 2, n_steps=3, inputs=np.ones((2, 3, 1)))
    with pytest.raises(ValueError, match="period"):
        jaxem.seasonal(1)
    with pytest.raises(ValueError, match="variance of state 1"):
        jaxem.local_level(variance=-1.0)
    with pytest.raises(ValueError, match="start"):
        jaxem.local_trend(start=jaxem.GaussianState(np.zeros(1), np.eye(1)))
    with pytest.raises(ValueError, match="one column"):
        jaxem.local_level().init(KEY, data)
