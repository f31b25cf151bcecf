"""Algorithms that jump ahead of EM stay where EM stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import bijections
from jaxem.contracts.inside import allowed
from jaxem.contracts.status import Status

JUMPING = [jaxem.SQUAREM(), jaxem.Anderson(), jaxem.ParabolicEM(), jaxem.OverRelaxedEM()]
IDS = [type(algorithm).__name__ for algorithm in JUMPING]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Emission:
    """Poisson deconvolution (Shepp & Vardi 1982): nothing says that pixels are not negative, but that EM's are not."""

    def e_step(self, image, data, weight):
        system, counts = data
        mean = system @ image
        log_lik = counts * jnp.log(mean) - mean
        return (image * (system.T @ (weight * counts / mean)), system.T @ weight), jnp.dot(weight, log_lik)

    def m_step(self, image, stats):
        return stats[0] / stats[1]


def emission(pixels=40, bins=60):
    rng = np.random.default_rng(0)
    system = rng.exponential(size=(bins, pixels)) * (rng.random((bins, pixels)) < 0.3)
    return system, rng.poisson(system @ rng.gamma(0.5, 5, pixels)).astype(float)


@pytest.mark.parametrize("algorithm", JUMPING, ids=IDS)
def test_pixels_of_a_plain_model_stay_positive(algorithm):
    data, start = emission(), jnp.ones(40)
    slow = jaxem.fit(Emission(), start, data, tol=-1.0, max_iter=300)
    fast = jaxem.fit(Emission(), start, data, tol=-1.0, max_iter=300, algorithm=algorithm)
    history = np.asarray(fast.history)[: int(fast.n_iter) + 1]
    assert fast.status in (Status.MAX_ITER, Status.RESOLUTION)
    assert (fast.params >= 0).all() and fast.objective >= slow.objective
    assert (np.diff(history) >= -1e-12 * abs(history[0])).all()


def shares(p, row):  # of things seen through sets of them
    member, present = row
    return jnp.where(present > 0, jnp.log(p)[member], -jnp.inf)


def sets(n=300, things=30, most=4):
    rng = np.random.default_rng(1)
    present = np.arange(most)[None] < rng.integers(1, most + 1, n)[:, None]
    return (rng.integers(0, things, (n, most)), present), rng.poisson(rng.gamma(0.3, 20, n)) + 0.0


@pytest.mark.parametrize("algorithm", JUMPING, ids=IDS)
def test_a_joint_is_accelerated_on_its_simplex(algorithm):
    data, weight = sets()
    model, start = jaxem.LogJoint(shares, 4, bijections.simplex), jnp.full(30, 1 / 30)
    options = {"sample_weight": weight, "tol": 1e-10, "max_iter": 5000}
    slow = jaxem.fit(model, start, data, **options).check()
    fast = jaxem.fit(model, start, data, algorithm=algorithm, **options).check()
    assert abs(float(fast.objective - slow.objective)) < 1e-6 * float(weight.sum())
    assert (fast.params >= 0).all() and abs(float(fast.params.sum()) - 1) < 1e-12
    assert fast.n_evals < 0.7 * slow.n_evals


INSIDE = {
    "real": (bijections.real, [-1.0, 2.0], [3.0, -4.0], [3.0, -4.0]),
    "positive": (bijections.positive, [1.0, 2.0], [-1.0, 3.0], [0.01, 3.0]),
    "softplus": (bijections.softplus, [1.0, 2.0], [-1.0, 3.0], [0.01, 3.0]),
    "greater_than": (bijections.greater_than(2.0), [3.0], [1.0], [2.01]),
    "unit_interval": (bijections.unit_interval, [0.5, 0.5], [-1.0, 1.5], [0.005, 0.995]),
    "simplex": (bijections.simplex, [0.5, 0.5, 0.0], [-0.1, 1.0, 0.1], [0.005 / 1.005, 1 / 1.005, 0.0]),
    "ordered": (bijections.ordered, [0.0, 1.0], [2.0, 1.0], [2.0, 2.01]),
    "positive_definite": (bijections.positive_definite, np.eye(2), [[1.0, 2.0], [2.0, 1.0]], None),
}


@pytest.mark.parametrize(("bijection", "near", "outside", "want"), INSIDE.values(), ids=INSIDE)
def test_a_value_outside_is_drawn_back_and_one_inside_stays(bijection, near, outside, want):
    near, outside = jnp.asarray(near), jnp.asarray(outside)
    back = bijection.projected(outside, near)
    assert bool(bijection.contains(back))
    np.testing.assert_allclose(bijection.projected(near, near), near, atol=1e-12)
    if want is not None:
        np.testing.assert_allclose(back, want, rtol=1e-9)
    else:  # one eigenvalue, −1, becomes a hundredth of the identity's
        np.testing.assert_allclose(np.linalg.eigvalsh(back), [0.01, 3.0], rtol=1e-9)


class Free:
    """A model that says nothing of its space."""


def test_what_em_leaves_negative_is_free_to_be_so():
    near = {"mean": jnp.array([-1.0, 2.0]), "rate": jnp.array([1.0, 0.0])}
    candidate = {"mean": jnp.array([3.0, -2.0]), "rate": jnp.array([-1.0, 0.5])}
    got, jumps = allowed(Free(), candidate, near)
    assert bool(jumps)
    np.testing.assert_allclose(got["mean"], [3.0, -2.0])
    np.testing.assert_allclose(got["rate"], [0.01, 0.0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wrong(Emission):
    """Its projection leaves what it allows."""

    def feasible(self, image):
        return jnp.sum(image) < 0


def test_acceleration_that_is_switched_off_is_reported():
    data, start = emission(), jnp.ones(40)
    for model, said in ((Emission(), []), (Wrong(), ["`feasible` or `projected` refuses"])):
        result = jaxem.fit(model, start, data, max_iter=5, algorithm=jaxem.SQUAREM())
        found = jaxem.diagnose(result).messages()
        assert [message[: len(said[0])] for message in found] == said if said else found == []
    starts = jnp.stack([start, 2 * start])
    many = jaxem.fit_batch(Wrong(), starts, jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), data), max_iter=3)
    assert jaxem.diagnose(many).messages()[0].startswith("in 2 of 2")
