"""Written joints of which some params are held: what is free keeps its closed M step, and its items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow
from test_joint_closed import DATA, ITEM, MEANS, MODEL, SIMPLEX, START, X, exam, item_response, two_kinds

import jaxem

PRIOR_HELD = {"prior": True, "table": False}


def by_hand(prior, n_iter):
    """EM of the tables under a known prior, in NumPy."""
    who, label = DATA
    table, history = START["table"].copy(), []
    for i_step in range(n_iter + 1):
        log_joint = np.log(prior) + np.log(np.maximum(table, 1e-300))[who, :, label].sum(1)
        total = np.logaddexp.reduce(log_joint, 1)
        history.append(total.sum())
        if i_step == n_iter:
            return np.array(history), table
        r, counts = np.exp(log_joint - total[:, None]), np.zeros_like(table)
        for i, j in np.ndindex(who.shape):
            counts[who[i, j], :, label[i, j]] += r[i]
        seen = counts.sum(-1, keepdims=True)
        table = np.where(seen > 0, counts / np.where(seen > 0, seen, 1), table)
    raise AssertionError


def test_what_is_free_keeps_its_closed_m_step():
    prior = np.array([0.5, 0.3, 0.2])
    model = jaxem.Frozen(MODEL, PRIOR_HELD, {**START, "prior": prior})
    result = jaxem.fit(model, START, DATA, tol=-1.0, max_iter=20)
    history, table = by_hand(prior, 20)
    np.testing.assert_allclose(result.history, history, rtol=1e-12)
    np.testing.assert_allclose(result.params["table"], table, atol=1e-11)
    np.testing.assert_array_equal(result.params["prior"], prior)
    assert model.explain(START, DATA) == "['prior']: held\n['table']: closed: a simplex, and a sum of its logarithms"
    without = jaxem.fit(jaxem.Frozen(MODEL, PRIOR_HELD), START, DATA, tol=-1.0, max_iter=20)
    np.testing.assert_allclose(without.history, by_hand(START["prior"], 20)[0], rtol=1e-12)


def test_a_part_of_a_leaf_cannot_be_held():
    some = np.arange(len(START["table"])) == 0
    with pytest.raises(ValueError, match=r"mask\['table'\]: LogJoint can hold all of this leaf or nothing"):
        jaxem.fit(jaxem.Frozen(MODEL, {"prior": False, "table": some}), START, DATA)


def test_what_climbs_beside_what_is_held():
    model = jaxem.LogJoint(two_kinds, 2, {"weights": SIMPLEX, "mean": None}, m_step=jaxem.Full())
    means = jaxem.fit(jaxem.Frozen(model, {"weights": True, "mean": False}), MEANS, X, tol=-1.0, max_iter=8)
    weights = jaxem.fit(jaxem.Frozen(model, {"weights": False, "mean": True}), MEANS, X, tol=-1.0, max_iter=8)
    start = np.asarray(MEANS["mean"])
    mean, share = start, np.asarray(MEANS["weights"])
    for _ in range(8):
        one, two = np.exp(-0.5 * (X[:, None] - mean) ** 2) / 2, share * np.exp(-0.5 * (X[:, None] - start) ** 2)
        r, s = one / one.sum(1, keepdims=True), two / two.sum(1, keepdims=True)
        mean, share = X @ r / r.sum(0), s.mean(0)
    np.testing.assert_allclose(means.params["mean"], mean, atol=1e-6)
    np.testing.assert_array_equal(means.params["weights"], MEANS["weights"])
    np.testing.assert_allclose(weights.params["weights"], share, atol=1e-12)
    np.testing.assert_array_equal(weights.params["mean"], MEANS["mean"])


def test_items_of_a_test_with_equal_slopes():
    """The model of Rasch: slopes held at 1, and every item has a curvature of its own."""
    answers, start = exam(40), {"slope": jnp.ones(40), "intercept": jnp.zeros(40)}
    model = jaxem.Frozen(
        jaxem.LogJoint.quadrature(item_response, 15, constraints=ITEM), {"slope": True, "intercept": False}
    )
    result = jaxem.fit(model, start, answers, tol=1e-8).check()
    inner = lambda intercept: jnp.sum(model.log_prob({"slope": start["slope"], "intercept": intercept}, answers))  # noqa: E731
    assert float(jnp.abs(jax.grad(inner)(result.params["intercept"])).max()) < 0.1
    np.testing.assert_array_equal(result.params["slope"], 1.0)


@slow
def test_the_derivative_with_respect_to_what_is_held():
    def loss(shift):
        prior = jnp.array([0.5 + shift, 0.3 - shift, 0.2])
        model = jaxem.Frozen(MODEL, PRIOR_HELD, {**START, "prior": prior})
        params = jaxem.fit(model, START, DATA, tol=-1.0, max_iter=1500).params
        return jnp.sum(jnp.cos(jnp.arange(9.0)).reshape(3, 3) * params["table"][2])

    step = [loss(e) for e in (-1e-5, 1e-5)]
    np.testing.assert_allclose(jax.grad(loss)(0.0), (step[1] - step[0]) / 2e-5, rtol=1e-6)
