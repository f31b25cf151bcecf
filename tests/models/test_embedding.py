"""EM inside a larger model: a network trained through a fit, and a prior learned through a batch of fits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem

OPTIMIZER = optax.adam(0.03)
FIT = {"tol": 1e-13, "max_iter": 1000}


def slope(fn: Any, at: Any, direction: Any, step: float = 1e-4) -> float:
    """Central difference of fn along a direction."""
    moved = lambda t: jax.tree.map(lambda a, b: a + t * b, at, direction)  # noqa: E731
    return (float(fn(moved(step))) - float(fn(moved(-step)))) / (2 * step)


def along(gradient: Any, direction: Any) -> float:
    return float(jnp.asarray(optax.tree.vdot(gradient, direction)))


def random_like(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


# --- an encoder: the share of the variance that lies within the clusters of its output

MODEL = jaxem.Mixture(jaxem.SphericalNormal(), 2, concentration=2.0)


def table() -> np.ndarray:
    """Two clouds of 40 rows, apart in one of four columns; the others are wide."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4)) * np.array([0.4, 1.0, 1.5, 1.5])
    x[:40, 0] += 3.0
    return x - x.mean(0)


def encode(network: dict, x: Any) -> jax.Array:
    return jnp.tanh(x @ network["inner"]) @ network["outer"]


def first_network() -> dict:
    rng = np.random.default_rng(1)
    return {"inner": jnp.asarray(0.4 * rng.normal(size=(4, 6))), "outer": jnp.asarray(rng.normal(size=(6, 2)))}


def first_mixture(z: jax.Array) -> jaxem.MixtureParams:
    return MODEL.init(jax.random.key(0), z, method=jaxem.Labels(np.repeat([0, 1], 40)))


def loss(network: dict, start: Any, derivative: Any) -> tuple[jax.Array, jaxem.MixtureParams]:
    z = encode(network, table())
    fit = jaxem.fit(MODEL, start, z, derivative=derivative, **FIT)
    within = 2 * jnp.sum(fit.params.weights * fit.params.components.covariance)
    return jnp.log(within / jnp.sum(jnp.var(z, 0))), fit.params


loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def network() -> dict:
    return first_network()


@pytest.fixture(scope="module")
def start(network: dict) -> jaxem.MixtureParams:
    return first_mixture(encode(network, table()))


@pytest.mark.slow
def test_the_gradient_of_a_training_loss_goes_through_the_fit(network, start):
    direction = random_like(network, 2)
    want = slope(lambda net: loss_and_gradient(net, start, jaxem.Implicit())[0][0], network, direction)
    _, gradient = loss_and_gradient(network, start, jaxem.Implicit())
    _, detached = loss_and_gradient(network, start, jaxem.Stop())
    # of the difference: its own error is step² / 6 times the third derivative
    assert along(gradient, direction) == pytest.approx(want, rel=1e-5)
    assert abs(along(detached, direction) - want) > 0.1 * abs(want)


def test_training_through_a_fit_lowers_the_loss(network, start):
    state, values = OPTIMIZER.init(network), []
    for _ in range(6):
        (value, start), gradient = loss_and_gradient(network, start, jaxem.Implicit())
        updates, state = OPTIMIZER.update(gradient, state)
        network = optax.apply_updates(network, updates)
        values.append(float(value))
    assert all(later < earlier - 0.01 for earlier, later in zip(values[:-1], values[1:], strict=True)), values


# --- empirical Bayes: 20 groups of 12 rows, one prior, scored on 12 other rows of each


def groups() -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit and rows held out, (20, 12, 2); two components whose place differs a little by group."""
    rng = np.random.default_rng(3)
    centre = np.array([[0.0, 0.0], [4.0, 4.0]]) + 0.3 * rng.normal(size=(20, 2, 2))
    state = rng.integers(2, size=(20, 24))
    x = centre[np.arange(20)[:, None], state] + rng.normal(size=(20, 24, 2)) * np.array([1.0, 0.5])
    return x[:, :12], x[:, 12:]


def common_start() -> jaxem.MixtureParams:
    mean = np.array([[0.0, 0.0], [4.0, 4.0]])
    bank = jaxem.NormalParams(jnp.asarray(mean), jnp.ones((2, 2)))
    params = jaxem.MixtureParams(jnp.full(2, 0.5), bank)
    return jax.tree.map(lambda leaf: jnp.tile(leaf, (20, *[1] * leaf.ndim)), params)


def first_prior() -> dict:
    values = {"mean": [1.0, 1.0], "shrinkage": -2.3, "dof": 1.1, "scale": [-1.2, -1.2], "concentration": 0.0}
    return {name: jnp.asarray(np.asarray(value)) for name, value in values.items()}  # no weak types: one trace


def negative_held_out(hyper: dict) -> jax.Array:
    fitted, held_out = groups()
    dof = 1 + jnp.exp(hyper["dof"])
    prior = jaxem.NormalInverseWishart(hyper["mean"], jnp.exp(hyper["shrinkage"]), dof, jnp.exp(hyper["scale"]))
    model = jaxem.Mixture(jaxem.DiagonalNormal(prior=prior), 2, concentration=1 + jnp.exp(hyper["concentration"]))
    fits = jaxem.fit_batch(model, common_start(), fitted, **FIT)
    score = jax.vmap(lambda params, x: jnp.mean(model.log_prob(params, x)))(fits.params, held_out)
    return -jnp.mean(jnp.where(fits.failed, 0, score))


held_out_and_gradient = jax.jit(jax.value_and_grad(negative_held_out))


@pytest.mark.slow
def test_the_gradient_of_a_held_out_likelihood_in_a_prior_goes_through_a_batch_of_fits():
    hyper = first_prior()
    _, gradient = held_out_and_gradient(hyper)
    for name in hyper:
        direction = jax.tree.map(jnp.zeros_like, hyper) | {name: jnp.ones_like(hyper[name])}
        want = slope(lambda hyper: held_out_and_gradient(hyper)[0], hyper, direction)
        assert abs(want) > 1e-4, name
        assert along(gradient, direction) == pytest.approx(want, rel=1e-4), name


@pytest.mark.slow
def test_a_prior_learned_through_a_batch_of_fits_predicts_better():
    hyper = first_prior()
    state, values = OPTIMIZER.init(hyper), []
    for _ in range(4):
        value, gradient = held_out_and_gradient(hyper)
        updates, state = OPTIMIZER.update(gradient, state)
        hyper: Any = optax.apply_updates(hyper, updates)
        values.append(float(value))
    assert all(later < earlier - 1e-3 for earlier, later in zip(values[:-1], values[1:], strict=True)), values
