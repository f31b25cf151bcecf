"""Any density as a component of a mixture: against closed forms and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import bijections
from jaxem.contracts.status import Status


def exponential(params, x):
    return jnp.where(x >= 0, jnp.log(params["rate"]) - params["rate"] * x, -jnp.inf)


WAITS = np.concatenate([np.random.default_rng(1).exponential(scale, 150) for scale in (1.0, 20.0)])


def test_a_density_reaches_the_closed_form_of_its_family():
    """Two exponentials, whose EM everybody can write down."""
    family = jaxem.Density(exponential, {"rate": bijections.positive}, start={"rate": jnp.asarray(1.0)})
    start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), {"rate": jnp.array([2.0, 0.1])})
    result = jaxem.fit(jaxem.Mixture(family, 2), start, WAITS, tol=1e-13, max_iter=500).check()
    w, rate = np.array([0.5, 0.5]), np.array([2.0, 0.1])
    for _ in range(500):
        joint = w * rate * np.exp(-WAITS[:, None] * rate)
        r = joint / joint.sum(1, keepdims=True)
        w, rate = r.mean(0), r.sum(0) / (r * WAITS[:, None]).sum(0)
    np.testing.assert_allclose(
        result.objective, np.log((w * rate * np.exp(-WAITS[:, None] * rate)).sum(1)).sum(), rtol=1e-10
    )
    np.testing.assert_allclose(result.params.components["rate"], rate, rtol=1e-4)
    ordered = result.ordered(by=lambda params: params.components["rate"])
    np.testing.assert_allclose(ordered.params.components["rate"], np.sort(rate), rtol=1e-4)
    best = jaxem.fit_restarts(jaxem.Mixture(family, 2), jax.random.key(0), WAITS, n_restarts=3, tol=1e-10).check()
    np.testing.assert_allclose(best.objective, result.objective, rtol=1e-7)
    assert jaxem.Mixture(family, 2).n_parameters(result.params) == 3


@pytest.mark.slow
def test_a_numpyro_distribution_is_a_component():
    numpyro = pytest.importorskip("numpyro.distributions")
    from scipy.stats import gamma

    x = np.random.default_rng(2).gamma(3.0, 1 / 2.0, 400)
    family = jaxem.from_numpyro(numpyro.Gamma, m_step=jaxem.Full())
    model = jaxem.Mixture(family, 1)
    result = jaxem.fit(model, model.init(jax.random.key(0), x), x, tol=1e-12).check()
    shape, _, scale = gamma.fit(x, floc=0)
    np.testing.assert_allclose(result.params.components["concentration"], [shape], rtol=1e-4)
    np.testing.assert_allclose(result.params.components["rate"], [1 / scale], rtol=1e-4)
    with pytest.raises(ValueError, match=r"data: .* in row 3;"):
        jaxem.fit(model, result.params, np.where(np.arange(len(x)) == 3, -x, x))
    with pytest.raises(ValueError, match="distribution: expected a class"):
        jaxem.from_numpyro(numpyro.Gamma(1.0, 1.0))


def test_data_outside_the_support_are_named_and_inside_jit_not_finite():
    family = jaxem.Density(exponential, {"rate": bijections.positive})
    start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), {"rate": jnp.array([2.0, 0.1])})
    with pytest.raises(ValueError, match=r"data: .* log density −inf or NaN in row 2"):
        jaxem.fit(jaxem.Mixture(family, 2), start, np.array([1.0, 2.0, -1.0]))
    inside = jax.jit(lambda x: jaxem.fit(jaxem.Mixture(family, 2), start, x))(np.array([1.0, 2.0, -1.0]))
    assert inside.status == Status.NONFINITE
