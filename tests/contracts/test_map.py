"""Fits with priors: stationary points of log-likelihood + log prior, for every family and prior of the registry."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ALGORITHMS, MODELS, Case
from contract_cases import UNEVEN, arrays, quick_jit, stopped
from helpers import once_a_week
from jax.flatten_util import ravel_pytree

import jaxem
from jaxem.contracts import capabilities as ask
from jaxem.loop.equation import held_coordinates

_DEFAULT = ("full_prior", "diagonal_prior_frozen")
_MARKED = [
    pytest.param(entry, id=entry.name, marks=() if entry.name in _DEFAULT else once_a_week)
    for entry in MODELS
    if hasattr(entry.build(), "unconstrain") and hasattr(entry.build(), "log_prob")
]


@quick_jit
def polished(model: Any, params: Any, data: Any, weight: Any) -> Any:
    correct = lambda _, params: jaxem.newton_correction(model, params, data, sample_weight=weight)  # noqa: E731
    return jax.lax.fori_loop(0, 3, correct, params)


@quick_jit
def slope(bound: Any, params: Any, data: Any, weight: Any) -> Any:
    """Of the rows' log densities and the log prior, in the free coordinates of params that are on no boundary."""
    model = ask.on_its_boundary(bound, params)
    flat, unravel = ravel_pytree(model.unconstrain(params))

    def objective(flat: Any) -> Any:
        here = model.constrain(unravel(flat))
        return jnp.sum(weight * model.log_prob(here, data)) + ask.log_prior(model, here)

    return jnp.where(held_coordinates(model, params, flat), 0, jax.grad(objective)(flat))


@pytest.mark.slow
@pytest.mark.parametrize("entry", _MARKED)
def test_fits_are_stationary(entry):
    result = stopped(Case(entry, ALGORITHMS[0]))
    model, data = arrays((entry.build(), entry.data))
    params = polished(model, result.params, data, UNEVEN)
    before, after = (slope(result.model, at, data, UNEVEN) / UNEVEN.sum() for at in (result.params, params))
    assert np.max(np.abs(after)) <= 1e-8
    assert np.max(np.abs(before)) > 10 * np.max(np.abs(after))  # the fit stopped a little before
    assert np.max(np.abs(before)) < 0.05


# --- priors by lane


PRIOR = jaxem.NormalInverseWishart(np.zeros(2), np.asarray(0.5), np.asarray(4.0), np.ones(2))
HYPER = {  # name -> the model of a value
    "concentration": lambda v: jaxem.Mixture(jaxem.DiagonalNormal(prior=PRIOR), 2, concentration=1 + v),
    "scale": lambda v: jaxem.Mixture(
        jaxem.DiagonalNormal(prior=jaxem.NormalInverseWishart(np.zeros(2), 0.5, 4.0, v * jnp.ones(2))), 2
    ),
    "gamma": lambda v: jaxem.Mixture(jaxem.Poisson(jaxem.GammaPrior(1 + v, v)), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gamma", *(pytest.param(name, marks=once_a_week) for name in ("concentration", "scale"))]
)
def test_hyper_parameters_may_differ_by_lane_and_be_differentiated(name):
    rng = np.random.default_rng(0)
    x = rng.poisson(np.array([[2.0, 5.0], [9.0, 1.0]])[np.arange(60) % 2]).astype(float)
    values = jnp.asarray([0.5, 1.0, 2.0])
    start = HYPER[name](values[0]).init(jax.random.key(0), x, method=jaxem.RandomPoints())

    def one(value: Any) -> Any:
        result = jaxem.fit(HYPER[name](value), start, x, tol=1e-13)
        return result.params, result.objective

    by_lane = quick_jit(jax.vmap(lambda value: jax.jvp(one, (value,), (jnp.ones(()),))))
    (params, objective), (tangent, _) = by_lane(values)
    h = 1e-4
    apart = by_lane(values[:1] + jnp.array([-h, h, 0]))[0][0]
    alone = quick_jit(one)
    for lane in range(3):
        np.testing.assert_allclose(objective[lane], alone(values[lane])[1], rtol=1e-11)
    for t, both in zip(*map(jax.tree.leaves, (tangent, apart)), strict=True):
        want = (both[1] - both[0]) / (2 * h)
        np.testing.assert_allclose(t[0], want, atol=1e-3 * np.max(np.abs(want)))
    assert not np.allclose(params.components[0][0], params.components[0][2], rtol=1e-6)
