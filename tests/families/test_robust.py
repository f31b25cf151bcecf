"""Student t components."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import made, once_a_week

import jaxem

KEY = jax.random.key(0)


def test_estimated_degrees_of_freedom_are_those_of_scipy():
    x = np.asarray(scipy.stats.t.rvs(4.0, size=500, random_state=1))[:, None] * 2 + 1
    model = jaxem.Mixture(jaxem.StudentT(normal=jaxem.FullNormal(floor=0.0)), 1)
    result = jaxem.fit(model, model.init(KEY, x), x, tol=1e-13, max_iter=2000).check()
    bank = result.params.components
    got = float(bank.dof[0]), float(bank.mean[0, 0]), float(jnp.sqrt(bank.scatter[0, 0, 0]))
    np.testing.assert_allclose(got, scipy.stats.t.fit(x), rtol=1e-3)  # Nelder-Mead stops there
    at_peer = scipy.stats.t.logpdf(x, *scipy.stats.t.fit(x)).sum()
    np.testing.assert_allclose(result.log_lik, scipy.stats.t.logpdf(x, *got).sum(), rtol=1e-13)
    assert at_peer - 1e-9 < float(result.log_lik) < at_peer + 1e-3
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert np.all(np.diff(history) > -1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=once_a_week)])
def test_normal_data_have_many_degrees_of_freedom(dtype):
    x = scipy.stats.norm.ppf((np.arange(200) + 0.5) / 200)[:, None].astype(dtype)
    model = jaxem.Mixture(jaxem.StudentT(), 1)
    result = jaxem.fit(model, model.init(KEY, x), x, tol=1e-7, max_iter=3000)
    assert float(result.params.components.dof[0]) > 20  # EM is slow there
    normal = jaxem.Mixture(jaxem.FullNormal(), 1)
    peer = jaxem.fit(normal, normal.init(KEY, x), x)
    np.testing.assert_allclose(result.log_lik, peer.log_lik, rtol=2e-3)


def test_the_density_keeps_its_digits_at_many_degrees_of_freedom():
    x = np.linspace(-3, 3, 7)[:, None]
    for dof in (0.5, 3.0, 40.0, 1e6):
        bank = made(jaxem.StudentTParams, np.zeros((1, 1)), np.ones((1, 1, 1)), np.array([dof]))
        want = scipy.stats.t.logpdf(x, dof)
        np.testing.assert_allclose(jaxem.StudentT().log_prob(bank, jnp.asarray(x)), want, rtol=1e-9)
        single = jax.tree.map(np.float32, bank)
        np.testing.assert_allclose(jaxem.StudentT().log_prob(single, jnp.asarray(x, jnp.float32)), want, rtol=2e-6)


def test_samples_are_those_of_scipy():
    bank = made(jaxem.StudentTParams, jnp.full((1, 1), 2.0), jnp.full((1, 1, 1), 9.0), jnp.array([3.0]))
    draws = np.asarray(jaxem.StudentT().sample(bank, KEY, jnp.zeros(20_000, int)))[:, 0]
    assert scipy.stats.kstest(draws, scipy.stats.t(3.0, 2.0, 3.0).cdf).pvalue > 0.01


def test_a_normal_that_does_not_fit_is_named():
    x = np.zeros((5, 2))
    bank = made(jaxem.StudentTParams, np.zeros((2, 2)), np.zeros((2, 2, 2)), np.ones(2))
    params = made(jaxem.MixtureParams, np.full(2, 0.5), bank)
    with pytest.raises(ValueError, match="normal: expected FullNormal, .* got TiedNormal"):
        jaxem.fit(jaxem.Mixture(jaxem.StudentT(normal=jaxem.TiedNormal()), 2), params, x)
    with pytest.raises(ValueError, match=r"dof: expected shape \(\) or \(2,\)"):
        jaxem.fit(jaxem.Mixture(jaxem.StudentT(np.ones(3)), 2), params, x)
