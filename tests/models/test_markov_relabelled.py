"""The states of a hidden Markov model have no order: what relabels them takes both axes of the transitions."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.contracts.result import permute_components
from jaxem.numerics import tree as _tree

KEY = jax.random.key(0)
ORDER = jnp.array([2, 0, 1])
MOVES = jnp.array([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.05, 0.35, 0.6]])
BANK = jaxem.NormalParams(jnp.array([[0.0], [3.0], [6.0]]), jnp.ones((3, 1, 1)))
START = jaxem.HMMParams(jnp.array([0.6, 0.3, 0.1]), MOVES, BANK)
PRIOR = jnp.array([[4.0, 2.0, 1.0], [1.5, 3.0, 1.0], [1.0, 2.0, 5.0]])
ALLOWED = jnp.array([[True, True, False], [True, True, True], [False, True, True]])


def _model(**options) -> jaxem.HiddenMarkovModel:
    return jaxem.HiddenMarkovModel(jaxem.FullNormal(), 3, **options)


@pytest.fixture(scope="module")
def data() -> jaxem.Sequences:
    drawn, _ = _model().sample(START, KEY, n=30, n_steps=15)
    return drawn._replace(length=jnp.asarray(np.arange(30) % 15 + 1))


def _same(a, b, **tolerance) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("shape", [(), (3,), (3, 3)])
def test_a_relabelled_model_gives_the_relabelled_answer(data, shape):
    """Whatever the shapes of its priors and structural zeros."""
    alpha = PRIOR if shape == (3, 3) else PRIOR[0] if shape == (3,) else 2.0
    first = alpha if shape == (3,) else None
    model = _model(concentration=alpha, allowed=ALLOWED, initial_concentration=first)
    start = START._replace(transition=jnp.where(ALLOWED, MOVES, 0) / jnp.where(ALLOWED, MOVES, 0).sum(1, keepdims=True))
    relabel = lambda params: permute_components(params, model.component_axes(), ORDER)  # noqa: E731
    here = jaxem.fit(model, start, data, max_iter=5, tol=-1.0)
    there = jaxem.fit(model.relabelled(ORDER), relabel(start), data, max_iter=5, tol=-1.0)
    np.testing.assert_allclose(there.history, here.history, rtol=1e-12)
    _same(there.params, relabel(here.params), rtol=1e-9, atol=1e-14)
    assert there.params.transition[0, 1] == 0 and here.params.transition[2, 0] == 0


def test_ordered_results_say_the_same_of_the_data(data):
    result = jaxem.fit(_model(concentration=PRIOR), START, data, max_iter=5, tol=-1.0)
    ordered = result.ordered(by=lambda params: -params.emissions.mean[:, 0])
    assert np.all(np.diff(ordered.params.emissions.mean[:, 0]) < 0)
    np.testing.assert_allclose(ordered.params.transition, result.params.transition[::-1, ::-1], rtol=1e-14)
    likelihoods = [r.model.log_prob(r.params, data) for r in (result, ordered)]
    np.testing.assert_allclose(*likelihoods, rtol=1e-12)
    np.testing.assert_allclose(*[r.model.log_prior(r.params) for r in (result, ordered)], rtol=1e-12)
    heaviest = result.ordered()
    seen = result.model.responsibilities(heaviest.params, data).sum((0, 1))
    assert np.all(np.diff(seen) < 0)


def test_shares_are_those_of_a_long_series():
    """Of a chain that comes back its stationary law, but for what the start counts; of one that stays where it ends."""
    model = _model()
    values, vectors = np.linalg.eig(np.asarray(MOVES).T)
    law = np.real(vectors[:, np.argmax(np.real(values))])
    np.testing.assert_allclose(model.shares(START), law / law.sum(), atol=5e-3)
    absorbing = START._replace(transition=jnp.array([[0.5, 0.5, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]]))
    shares = model.shares(absorbing)
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
    assert shares[2] > 0.98


@_tree.register
@dataclass(frozen=True)
class Relabelled(jaxem.EM):
    """EM that hands its states on in another order after every step."""

    def step(self, model, params, data, sample_weight, state):
        params, state, info = super().step(model, params, data, sample_weight, state)
        return permute_components(params, model.component_axes(), ORDER), state, info


def test_replicates_of_a_bootstrap_have_the_order_of_their_parent(data):
    """Whole series are drawn; a replicate whose states come in another order is brought back on both axes."""
    model = _model()
    parent = jaxem.fit(model, START, data, tol=1e-8).check().params
    plain = jaxem.bootstrap(model, parent, data, KEY, n_replicates=3, tol=-1.0, max_iter=4)
    moved = jaxem.bootstrap(model, parent, data, KEY, n_replicates=3, tol=-1.0, max_iter=4, algorithm=Relabelled())
    _same(moved.params, plain.params, rtol=1e-9, atol=1e-12)
    assert np.ptp(plain.params.transition[:, 0, 0]) > 0
