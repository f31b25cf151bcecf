"""What is ahead of series, and how long states last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

KEY = jax.random.key(0)
MODEL = jaxem.HiddenMarkovModel(jaxem.FullNormal(), 2)
PARAMS = jaxem.HMMParams(
    jnp.array([0.6, 0.4]),
    jnp.array([[0.9, 0.1], [0.3, 0.7]]),
    jaxem.NormalParams(jnp.array([[0.0], [5.0]]), jnp.array([[[1.0]], [[0.25]]])),
)
DATA = jaxem.Sequences(np.array([[0.1, 0.2, 5.0], [4.9, 0.0, 0.0]])[:, :, None], np.array([3, 1]))


def test_draws_ahead_have_the_moments_of_the_mixture_that_the_forecast_tells():
    """Mean and variance at each step, and how often the state changes: 4 standard deviations of 4000 draws."""
    ahead = np.asarray(MODEL.sample_ahead(PARAMS, KEY, DATA, horizon=4, n_draws=4000))
    assert ahead.shape == (4000, 2, 4, 1)
    weights = np.asarray(MODEL.forecast(PARAMS, DATA, 4))
    mean = weights @ np.array([0.0, 5.0])
    variance = weights @ np.array([1.0, 25.25]) - mean**2
    np.testing.assert_array_less(np.abs(ahead[..., 0].mean(0) - mean), 4 * np.sqrt(variance / 4000))
    np.testing.assert_allclose(ahead[..., 0].var(0), variance, rtol=0.1)
    state = ahead[..., 0] > 2.5
    stays = np.mean(state[:, :, 1:][state[:, :, :-1]])
    np.testing.assert_allclose(stays, 0.7, atol=0.03)


def test_draws_ahead_of_other_families_and_of_labelled_series():
    family = jaxem.Product(a=jaxem.Poisson(), b=jaxem.FullNormal())
    bank = {"a": jaxem.PoissonParams(jnp.array([[1.0], [9.0]])), "b": PARAMS.emissions}
    data = jaxem.Sequences({"a": np.ones((2, 3, 1)), "b": DATA.values}, DATA.length)
    model = jaxem.HiddenMarkovModel(family, 2)
    ahead = model.sample_ahead(PARAMS._replace(emissions=bank), KEY, data, 2, n_draws=5)
    assert ahead["a"].shape == ahead["b"].shape == (5, 2, 2, 1)
    known = jaxem.labelled(DATA, np.array([[-1, -1, 0], [0, -1, -1]]))
    np.testing.assert_allclose(MODEL.forecast(PARAMS, known, 1)[:, 0], PARAMS.transition[jnp.array([0, 0])], rtol=1e-12)
    regression = jaxem.HiddenMarkovModel(jaxem.LinearRegression(), 2)
    with pytest.raises(ValueError, match="sample_ahead: expected emissions that follow from the state alone"):
        regression.sample_ahead(PARAMS, KEY, DATA, 2)
    with pytest.raises(ValueError, match="horizon: expected a positive int"):
        MODEL.sample_ahead(PARAMS, KEY, DATA, 0)


def test_dwell_times_are_those_of_paths():
    np.testing.assert_allclose(MODEL.dwell_times(PARAMS), [10, 1 / 0.3], rtol=1e-12)
    rare = jnp.array([[1 - 1e-7, 1e-7], [0.0, 1.0]], jnp.float32)
    times = MODEL.dwell_times(PARAMS._replace(transition=rare))
    np.testing.assert_allclose(times, [1e7, np.inf], rtol=1e-6)
