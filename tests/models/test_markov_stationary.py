"""Chains that begin in their stationary law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.models._markov_stationary import stationary_law

KEY = jax.random.key(0)
MOVES = jnp.array([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.05, 0.35, 0.6]])
START = jaxem.HMMParams(jnp.full(3, 1 / 3), MOVES, jaxem.PoissonParams(jnp.array([[1.0], [4.0], [9.0]])))


def _model(**options) -> jaxem.HiddenMarkovModel:
    return jaxem.HiddenMarkovModel(jaxem.Poisson(), 3, stationary=True, **options)


@pytest.fixture(scope="module")
def data() -> jaxem.Sequences:
    """Short series, of which the first step says much."""
    drawn, _ = _model().sample(START._replace(initial=stationary_law(MOVES)), KEY, n=40, n_steps=4)
    return drawn._replace(length=jnp.asarray(np.arange(40) % 4 + 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_law_is_that_of_equations_also_of_a_chain_that_hardly_moves(dtype):
    """Chains of two states have π ∝ (A_21, A_12), which 1 − A_11 in float32 does not know."""
    law = np.linalg.solve((np.eye(3) - np.asarray(MOVES) + 1).T, np.ones(3))
    np.testing.assert_allclose(stationary_law(MOVES.astype(dtype)), law, rtol=10 * np.finfo(dtype).eps)
    slow = np.array([[1 - 1e-7, 1e-7], [3e-7, 1 - 3e-7]], dtype)
    np.testing.assert_allclose(stationary_law(jnp.asarray(slow)), [0.75, 0.25], rtol=4 * np.finfo(dtype).eps)


def test_the_objective_never_falls_and_ends_flat(data):
    """With a prior and a structural zero; the gradient in free coordinates, which are those of the transitions."""
    allowed = jnp.array([[True, True, False], [True, True, True], [True, True, True]])
    model = _model(concentration=1.5, allowed=allowed)
    start = START._replace(transition=jnp.where(allowed, MOVES, 0) / jnp.where(allowed, MOVES, 0).sum(1, keepdims=True))
    result = jaxem.fit(model, start, data, tol=-1.0, max_iter=400)
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert np.all(np.diff(history) >= -1e-12 * np.abs(history[0]))
    params = result.params
    np.testing.assert_allclose(params.initial, params.initial @ params.transition, rtol=1e-12)
    assert params.transition[0, 2] == 0
    free = model.unconstrain(params)
    assert free.initial.shape == (0,) and model.n_parameters(params) == 5 + 3

    def objective(free):
        here = model.constrain(free)
        return model.log_prob(here, data).sum() + model.log_prior(here)

    gradient = jax.grad(objective)(free)
    np.testing.assert_allclose(gradient.transition, 0, atol=1e-5)
    np.testing.assert_allclose(objective(free), result.objective, rtol=1e-12)


def test_the_first_step_counts(data):
    """A law of its own that is free is no worse, and a first state that is fixed stays."""
    bound = jaxem.fit(_model(), START, data, tol=1e-9, max_iter=1000).check()
    model = jaxem.HiddenMarkovModel(jaxem.Poisson(), 3)
    free = jaxem.fit(model, START, data, tol=1e-9, max_iter=1000).check()
    assert bound.objective < free.objective
    first = bound.params.initial
    fixed = jaxem.Frozen(model, jaxem.HMMParams(True, False, False))
    held = jaxem.fit(fixed, START._replace(initial=first), data, tol=1e-9, max_iter=1000).check()
    np.testing.assert_array_equal(held.params.initial, first)
    assert bound.objective <= held.objective + 1e-6 and held.objective <= free.objective + 1e-6


@pytest.mark.slow
def test_other_algorithms_and_errors_know_the_law(data):
    plain = jaxem.fit(_model(), START, data, tol=1e-10, max_iter=2000).check()
    fast = jaxem.fit(_model(), START, data, tol=1e-10, max_iter=2000, algorithm=jaxem.SQUAREM()).check()
    np.testing.assert_allclose(fast.objective, plain.objective, rtol=1e-9)
    np.testing.assert_allclose(fast.params.initial, stationary_law(fast.params.transition), rtol=1e-12)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), START)
    lanes = jaxem.fit_batch(_model(), starts, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), data), tol=1e-10)
    np.testing.assert_allclose(lanes.objective, plain.objective, rtol=1e-9)
    loss = lambda weight: jaxem.fit(_model(), START, data, sample_weight=weight, tol=1e-10).params.transition[0, 0]  # noqa: E731
    ones, h = jnp.ones(40), 1e-4
    numeric = (loss(ones.at[3].add(h)) - loss(ones.at[3].add(-h))) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(ones)[3], numeric, rtol=1e-3, atol=1e-7)


def test_what_cannot_go_together_is_named(data):
    with pytest.raises(ValueError, match="stationary: expected no initial_concentration"):
        jaxem.fit(_model(initial_concentration=2.0), START, data)
    rows = np.array([True, False, False])
    with pytest.raises(ValueError, match="mask: expected the initial probabilities and all transitions held"):
        jaxem.fit(jaxem.Frozen(_model(), jaxem.HMMParams(False, rows, False)), START, data)
