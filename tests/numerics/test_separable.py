"""Sums over items are found, and what touches two items is none."""

import jax
import jax.numpy as jnp
import pytest

from jaxem.contracts.functions import GaussHermite
from jaxem.numerics.separable import is_separable

A, X = jnp.ones(5), jnp.ones(5)


def response(p, answers, z):
    logits = p[0] * (z - p[1])
    return jnp.sum(jax.nn.log_sigmoid(jnp.where(answers > 0, logits, -logits)))


SUMS = {
    "a test": GaussHermite(response, 3),
    "softplus": lambda p, x: x @ p[0] - jnp.sum(jax.nn.softplus(p[0] * p[1])),
    "a stack": lambda p, x: jnp.stack([jnp.sum(p[0]), 2 * jnp.sum(p[1] * x)]),
    "columns": lambda p, x: jnp.sum(jnp.stack([p[0], p[1]], 1).max(1)),
    "a matrix": lambda p, x: jnp.sum((p[0][:, None] * jnp.ones((5, 2))).T @ (x[:, None] * p[1][:, None])),
    "a choice": lambda p, x: jnp.where(x[0] > 0, jnp.sum(p[0]), 3.0),
    "reshaped": lambda p, x: jnp.sum(jnp.exp(p[0].reshape(1, 5, 1)) * p[1][None, :, None]),
}
OTHERS = {
    "exp of a sum": lambda p, x: jnp.exp(jnp.sum(p[0])),
    "a product of sums": lambda p, x: jnp.sum(p[0]) * jnp.sum(p[1]),
    "neighbours": lambda p, x: jnp.sum(p[0][1:] * p[1][:-1]),
    "backwards": lambda p, x: jnp.sum(p[0] * p[1][::-1]),
    "all pairs": lambda p, x: jnp.sum(jnp.exp(p[0][:, None] * p[1][None])),
    "a softmax": lambda p, x: jnp.sum(x * jax.nn.log_softmax(p[0])),
    "the largest": lambda p, x: jnp.max(p[0]),
    "running sums": lambda p, x: jnp.sum(jnp.square(jnp.cumsum(p[0]))),
    "an index": lambda p, x: p[0][jnp.argmax(p[1])],
    "an item each": lambda p, x: jnp.exp(p[0]),
    "chosen by a sum": lambda p, x: jnp.where(jnp.sum(p[0]) > 1, jnp.sum(p[1]), 0.0),
}


@pytest.mark.parametrize("fn", SUMS.values(), ids=SUMS)
def test_a_sum_over_items_is_found_and_its_hessian_has_no_others(fn):
    assert is_separable(fn, (A, A), X)
    total = lambda p: jnp.sum(fn(p, X))  # noqa: E731
    hessian = jax.hessian(total)((1.1 * A, 0.7 * A))
    for block in jax.tree.leaves(hessian):
        assert jnp.abs(block - jnp.diag(jnp.diag(block))).max() < 1e-12


@pytest.mark.parametrize("fn", OTHERS.values(), ids=OTHERS)
def test_what_touches_two_items_is_not_taken_for_one(fn):
    assert not is_separable(fn, (A, A), X)
