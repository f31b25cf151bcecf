"""What enters a function as a sum of logarithms is found, and what only looks like it is not."""

import jax
import jax.numpy as jnp
import pytest

from jaxem.numerics.log_linear import entries_of

P, ONE, W, X = jnp.full(4, 0.25), jnp.array(1), jnp.zeros(5, int), jnp.ones(4)
LOG = jnp.log


@jax.custom_vjp
def reversed_slope(p):
    return LOG(p)


reversed_slope.defvjp(lambda p: (LOG(p), p), lambda p, cotangent: (-cotangent / p,))

SUMS = {
    "an entry": (lambda p, i: LOG(p)[i], ONE),
    "an entry, then its logarithm": (lambda p, i: LOG(p[i]), ONE),
    "take": (lambda p, i: LOG(jnp.take(p, i)), ONE),
    "one hot": (lambda p, i: jax.nn.one_hot(i, 4) @ LOG(p), ONE),
    "xlogy": (lambda p, x: jax.scipy.special.xlogy(x, p).sum(), X),
    "counts": (lambda p, x: x @ LOG(p), X),
    "a floor": (lambda p, i: LOG(jnp.maximum(p, 1e-300))[i], ONE),
    "a mask": (lambda p, x: jnp.where(x > 0, LOG(p), -jnp.inf), X),
    "a product": (lambda p, i: LOG(p[0] * p[i] * 0.5), ONE),
    "a power": (lambda p, i: LOG(jnp.sqrt(p[i]) ** 3), ONE),
    "exp and back": (lambda p, i: LOG(jnp.exp(LOG(p)))[i], ONE),
    "vmap": (lambda p, w: jax.vmap(lambda i: LOG(p)[i])(w).sum(), W),
    "jit": (lambda p, i: jax.jit(lambda q: LOG(q)[i])(p), ONE),
    "scan": (lambda p, w: jax.lax.scan(lambda c, i: (c + LOG(p)[i], None), jnp.array(0.0), w)[0], W),
    "loop": (lambda p, w: jax.lax.fori_loop(0, 5, lambda j, c: c + LOG(p)[w[j]], 0.0), W),
    "cond": (lambda p, i: jax.lax.cond(i > 0, lambda: LOG(p[0]), lambda: 2 * LOG(p[1])), ONE),
    "scatter": (lambda p, i: jnp.zeros(4).at[i].set(LOG(p[0])), ONE),
    "checkpoint": (lambda p, i: jax.checkpoint(lambda q: LOG(q)[i])(p), ONE),
    "a stack": (lambda p, i: jnp.stack([LOG(p[0]), LOG(p[i])]), ONE),
    "nothing": (lambda p, x: x, X),
}
OTHERS = {
    "an entry": (lambda p, i: p[i], ONE),
    "beside": (lambda p, i: LOG(p)[i] + p[i], ONE),
    "a sum inside": (lambda p, i: LOG(p[0] + p[i]), ONE),
    "a mixture inside": (lambda p, x: LOG(p @ x), X),
    "one minus": (lambda p, i: LOG(1 - p[i]), ONE),
    "log1p": (lambda p, i: jnp.log1p(p[i]), ONE),
    "normalised": (lambda p, i: LOG(p / p.sum())[i], ONE),
    "softmax": (lambda p, i: jax.nn.log_softmax(LOG(p))[i], ONE),
    "logsumexp": (lambda p, i: jax.nn.logsumexp(LOG(p)), ONE),
    "a floor that matters": (lambda p, i: LOG(jnp.maximum(p, 0.1))[i], ONE),
    "a ceiling": (lambda p, i: LOG(jnp.clip(p, 1e-9, 1 - 1e-9))[i], ONE),
    "chosen by itself": (lambda p, i: jnp.where(p > 0.3, LOG(p), 2 * LOG(p))[i], ONE),
    "at zero others": (lambda p, i: jnp.where(p > 0, LOG(p), LOG(p[0]))[i], ONE),
    "an index of itself": (lambda p, i: LOG(p)[jnp.argmax(p)], ONE),
    "a coefficient of itself": (lambda p, i: p[0] * LOG(p)[i], ONE),
    "squared": (lambda p, i: LOG(p)[i] ** 2, ONE),
    "a density inside": (lambda p, x: LOG(p * jnp.exp(-x)), X),
    "no slope": (lambda p, i: LOG(jax.lax.stop_gradient(p))[i], ONE),
    "sorted": (lambda p, i: LOG(jnp.sort(p))[i], ONE),
    "rounded": (lambda p, i: LOG(jnp.round(p, 2))[i], ONE),
    "a derivative of one's own": (lambda p, i: reversed_slope(p)[i], ONE),
    "while": (lambda p, i: jax.lax.while_loop(lambda c: c < 0, lambda c: c + LOG(p)[i], -9.0), ONE),
    "a carry": (lambda p, w: jax.lax.scan(lambda c, i: (LOG(c * p[i] + 1), None), jnp.array(1.0), w)[0], W),
}


@pytest.mark.parametrize(("fn", "x"), SUMS.values(), ids=SUMS)
def test_a_sum_of_logarithms_is_found(fn, x):
    (entry,) = entries_of(fn, P, x)
    assert (entry.form, entry.floored) == ("logs", False), entry


@pytest.mark.parametrize(("fn", "x"), OTHERS.values(), ids=OTHERS)
def test_what_is_none_is_not_taken_for_one(fn, x):
    (entry,) = entries_of(fn, P, x)
    assert entry.form == "other" and entry.why, entry


def test_signs_floors_and_other_arguments():
    sign = lambda fn, x: entries_of(fn, P, x)[0].sign  # noqa: E731
    assert sign(lambda p, i: -LOG(p)[i], ONE) == -1 and sign(lambda p, x: x @ LOG(p), X) == 0
    assert sign(lambda p, i: LOG(p)[i] - 2 * LOG(p)[0], ONE) == 0 and sign(lambda p, i: LOG(1 / p[i]), ONE) == -1
    floors = (
        lambda p, i: LOG(p + 1e-9)[i],
        lambda p, i: LOG(jnp.maximum(p, 1e-9))[i],
        lambda p, i: LOG(jnp.maximum(p[i] * p[0], 1e-300)),
        lambda p, i: jnp.maximum(LOG(p), -700.0)[i],
        lambda p, i: jnp.where(p > 0, LOG(jnp.where(p > 0, p, 1.0)), -jnp.inf)[i],
    )
    for floored in floors:
        entry = entries_of(floored, P, ONE)[0]
        assert entry.form == "logs" and entry.floored
    forms = lambda fn: [entry.form for entry in entries_of(fn, (P, P), ONE)]  # noqa: E731
    assert forms(lambda p, i: LOG(p[0])[i] + LOG(p[1])[i]) == ["logs", "logs"]
    assert forms(lambda p, i: p[0][0] * LOG(p[1])[i]) == ["other", "logs"]
    assert forms(lambda p, i: jnp.where(p[0][0] > 0.3, 1.0, 2.0) * LOG(p[1])[i]) == ["other", "logs"]
    assert forms(lambda p, i: LOG(p[0])[i] * LOG(p[1])[i]) == ["other", "other"]


def test_a_function_is_traced_once():
    calls = []

    def counted(p, i):
        calls.append(None)
        return LOG(p)[i]

    for _ in range(3):
        entries_of(counted, P, ONE)
    assert len(calls) == 1
