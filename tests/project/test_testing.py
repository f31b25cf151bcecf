"""`jaxem.testing` passes what is right, and names what is not."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made, slow

import jaxem
import jaxem.testing

X = np.random.default_rng(0).normal(size=(30, 2)) + np.repeat([[0.0, 3.0], [5.0, 0.0]], 15, axis=0)
BANK = made(jaxem.NormalParams, np.array([[0.5, 2.0], [4.0, 1.0]]), np.ones((2, 2)))


def broken(name: str, method: Any, base: type = jaxem.DiagonalNormal) -> Any:
    """The family with one method that is wrong."""
    cls = dataclasses.dataclass(frozen=True)(type("Broken", (base,), {name: method}))
    return jax.tree_util.register_dataclass(cls)()


def _wrong_estimate(self: Any, bank: Any, stats: Any, active: Any = None) -> Any:
    right = jaxem.DiagonalNormal.estimate(self, bank, stats, active)
    return right if bank is None else right._replace(covariance=right.covariance * 3)


def _unweighted(self: Any, bank: Any, x: Any, responsibilities: Any) -> Any:
    total = jnp.sum(responsibilities, 1, keepdims=True)
    return jaxem.DiagonalNormal.statistics(self, bank, x, responsibilities / jnp.where(total > 0, total, 1))


def _mean_statistics(self: Any, bank: Any, x: Any, responsibilities: Any) -> Any:
    stats = jaxem.DiagonalNormal.statistics(self, bank, x, responsibilities)
    return jax.tree.map(lambda leaf: leaf / responsibilities.shape[0], stats)


def _wrong_way_back(self: Any, free: Any) -> Any:
    return free._replace(covariance=jnp.exp(2 * free.covariance))


BROKEN = {
    "the objective never falls|the M step maximises": ("estimate", _wrong_estimate),
    "statistics add": ("statistics", _mean_statistics),
    "integer weights are repeated rows": ("statistics", _unweighted),
    "free coordinates go there and back|the M step maximises": ("constrain", _wrong_way_back),
}


@slow
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_family_is_named(name):
    with pytest.raises(AssertionError, match=name):
        jaxem.testing.check_family(broken(*BROKEN[name]), BANK, X)


def test_a_family_of_the_library_has_every_property():
    assert len(jaxem.testing.check_family(jaxem.DiagonalNormal(), BANK, X)) == 10


@slow
def test_a_model_that_is_not_registered_as_a_pytree_is_named():
    class Plain(jaxem.Mixture):
        """A class of its own for each instance that jax takes for a leaf."""

    with pytest.raises((AssertionError, TypeError, ValueError)):
        jaxem.testing.check_model(Plain(jaxem.DiagonalNormal(), 2), made(jaxem.MixtureParams, np.full(2, 0.5), BANK), X)


@slow
def test_regressions_and_rows_of_whole_numbers_are_tested_too():
    counts = np.random.default_rng(1).poisson(np.repeat([[2.0], [9.0]], 15, axis=0))
    done = jaxem.testing.check_family(jaxem.Poisson(), made(jaxem.PoissonParams, np.array([[1.0], [7.0]])), counts)
    assert "a row of weight zero is never looked at" in done  # the library's own families read floats
    bank = made(jaxem.LinearRegressionParams, np.array([[0.5, 1.0], [-1.0, 0.3]]), np.ones(2))
    done = jaxem.testing.check_family(jaxem.LinearRegression(), bank, (np.c_[np.ones(30), X[:, 0]], X[:, 1]))
    assert len(done) == 10
