"""Functions that are affine in data: found, and no others."""

import jax
import jax.numpy as jnp
import pytest

from jaxem.numerics.affine import is_affine

P, X = jnp.full(3, 0.4), jnp.arange(3.0)
AFFINE = {
    "answers": lambda p, x: jnp.sum(x * jnp.log(p) + (1 - x) * jnp.log1p(-p)),
    "logits": lambda p, x: jnp.sum(x * p - jax.nn.softplus(p)),
    "product": lambda p, x: jnp.stack([p, 2 * p]) @ x + p[0],
    "chosen": lambda p, x: jnp.where(p > 0.5, x, 2 * x) / p,
    "alone": lambda p, x: jnp.exp(p),
    "within": lambda p, x: jax.jit(lambda x: x[1] * p)(x),
}
NOT = {
    "square": lambda p, x: jnp.square(x - p),
    "itself": lambda p, x: x * x,
    "below": lambda p, x: p / (1 + x),
    "by_value": lambda p, x: jnp.where(x > 0, p, 1 - p),
    "largest": lambda p, x: jnp.max(x) * p,
    "whole": lambda p, x: x.astype(int) * p,
    "index": lambda p, x: p[jnp.argmax(x)],
    "loop": lambda p, x: jax.lax.fori_loop(0, 2, lambda i, s: s + x, p),
}


@pytest.mark.parametrize("fn", AFFINE.values(), ids=AFFINE)
def test_what_is_affine(fn):
    assert is_affine(fn, P, X)
    mean = fn(P, (X + 3 * X[::-1]) / 4)
    assert jnp.allclose((fn(P, X) + 3 * fn(P, X[::-1])) / 4, mean)


@pytest.mark.parametrize("fn", NOT.values(), ids=NOT)
def test_what_is_not(fn):
    assert not is_affine(fn, P, X)
