"""Long series in stretches of time, and many short ones: the same E step whichever way the steps lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

K = 2


def _model() -> tuple:
    model = jaxem.HiddenMarkovModel(jaxem.DiagonalNormal(floor=0.0), K)
    bank = jaxem.NormalParams(jnp.array([[0.0, 1.0], [2.0, 0.0]]), jnp.array([[1.0, 2.0], [0.5, 1.0]]))
    return model, jaxem.HMMParams(jnp.array([0.3, 0.7]), jnp.array([[0.9, 0.1], [0.2, 0.8]]), bank)


def _series(n: int, t: int, lengths: list) -> jaxem.Sequences:
    x = np.random.default_rng(0).normal(size=(n, t, 2))
    x[:, 3::7] = np.nan  # missing
    return jaxem.Sequences(jnp.asarray(x), jnp.asarray(lengths))


@pytest.mark.parametrize("n", [3, 300], ids=["stretches", "side by side"])
def test_an_e_step_does_not_depend_on_how_steps_lie(n, monkeypatch):
    """Three series in stretches of which one is absent and one is cut; three hundred, with the densities in a loop."""
    t, lengths = (70, [70, 33, 5]) if n == 3 else (6, [6, 1, 4] * 100)
    model, params = _model()
    data, weight = _series(n, t, lengths), jnp.linspace(0.0, 2.0, n)
    bound = jaxem.bind(model, data, weight)
    e_step = lambda steps: jax.jit(lambda p, w: bound.e_step(p, steps, w))(params, weight)  # noqa: E731
    whole = e_step(data)
    for name, value in {"_LONG": 1, "_LEAST_STEPS": 16, "_WIDE": 128}.items():
        monkeypatch.setattr(f"jaxem.models._markov_steps.{name}", value)
    prepared = bound.prepare(data, columns_first=True)
    assert prepared.observed.shape == ((18, 12) if n == 3 else (t, n))
    for other in (data, prepared):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), e_step(other), whole)
