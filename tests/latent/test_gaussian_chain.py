"""Linear-Gaussian chains against the joint normal distribution of all states and values, written out densely."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem.latent import gaussian_chain
from jaxem.latent.gaussian_chain import (
    GaussianChain,
    drawn_states,
    factor,
    independent_entries,
    is_common,
    log_likelihoods,
    shared_or_each,
    sum_over_time,
)
from jaxem.latent.gaussian_start import passed, smoothed_states

T, S, D, LENGTHS = 5, 2, 3, (5, 3, 5, 1)
EXACT: Any = {"rtol": 1e-10, "atol": 1e-10}


class Joint(NamedTuple):
    """Of all states x (t·s,) and disturbances of a series: y = G x + v."""

    mean: np.ndarray
    covariance: np.ndarray


def _psd(rng: np.random.Generator, s: int, rank: int | None = None) -> np.ndarray:
    root = rng.normal(size=(s, rank or s))
    return root @ root.T


def _chain(seed: int = 0, *, gaps: bool = True, singular: bool = False, d: int = D) -> GaussianChain:
    rng = np.random.default_rng(seed)
    n = len(LENGTHS)
    present = np.arange(T)[:, None] < np.array(LENGTHS)[None]
    observed = np.broadcast_to(present[:, None], (T, d, n)).copy()
    if gaps:
        observed &= rng.random((T, d, n)) < 0.6
        observed[1, :, 0] = False
    rank = 1 if singular else None
    arrays = (
        rng.normal(size=S), _psd(rng, S, rank), rng.normal(size=(S, S)), _psd(rng, S, rank),
        rng.normal(size=(d, S)), _psd(rng, d),
        np.where(observed, rng.normal(size=(T, d, n)), 0), observed, present, rng.normal(size=(T, S, n)),
    )  # fmt: skip
    return GaussianChain(*map(jnp.asarray, arrays))


def _states(chain: GaussianChain, i: int) -> Joint:
    """Mean and covariance of all states of series i, before anything is observed."""
    t, a = LENGTHS[i], np.asarray(chain.transition)
    drift = np.asarray(chain.drift)[:, :, i]
    mean = [np.asarray(chain.initial_mean)]
    covariance = np.zeros((t, S, t, S))
    covariance[0, :, 0] = chain.initial_covariance
    for u in range(1, t):
        mean.append(a @ mean[-1] + drift[u - 1])
        for w in range(u):
            covariance[u, :, w] = a @ covariance[u - 1, :, w]
            covariance[w, :, u] = covariance[u, :, w].T
        covariance[u, :, u] = a @ covariance[u - 1, :, u - 1] @ a.T + np.asarray(chain.transition_covariance)
    return Joint(np.concatenate(mean), covariance.reshape(t * S, t * S))


def _given(chain: GaussianChain, i: int, until: int) -> tuple[Joint, float]:
    """The states of series i given the values of its first steps, and the log density of these."""
    t, d = LENGTHS[i], chain.emission.shape[0]
    prior = _states(chain, i)
    seen = np.asarray(chain.observed)[:t, :, i].copy()
    seen[until:] = False
    where = seen.ravel()
    design = np.kron(np.eye(t), np.asarray(chain.emission))[where]
    noise = np.kron(np.eye(t), np.asarray(chain.emission_covariance))[np.ix_(where, where)]
    y = np.asarray(chain.values)[:t, :, i].reshape(t * d)[where]
    total = design @ prior.covariance @ design.T + noise
    gain = np.linalg.solve(total, design @ prior.covariance).T
    residual = y - design @ prior.mean
    posterior = Joint(prior.mean + gain @ residual, prior.covariance - gain @ design @ prior.covariance)
    log_det = np.linalg.slogdet(2 * np.pi * total)[1]
    return posterior, -(log_det + residual @ np.linalg.solve(total, residual)) / 2


def _passes(chain: GaussianChain, observed: Any = None, diffuse: bool = False) -> tuple:
    entries = independent_entries(chain, chain.observed if observed is None else observed)
    forward = passed(chain, entries, diffuse)
    return entries, forward.known, smoothed_states(chain, forward)


@pytest.mark.parametrize(("singular", "d"), [(False, D), (True, D), (False, 1)])
@pytest.mark.parametrize("wide", [0.0, 100.0])
def test_both_passes_are_the_joint_normal_distribution(singular, d, wide):
    """A first state that is wide is estimated beside the filter; so may another be."""
    chain = _chain(singular=singular, d=d)
    chain = chain._replace(initial_covariance=chain.initial_covariance * max(wide, 1))
    _, forward, smooth = jax.jit(partial(_passes, diffuse=wide > 0))(chain)
    log_lik = log_likelihoods(forward, chain.observed)
    for i, t in enumerate(LENGTHS):
        posterior, density = _given(chain, i, t)
        np.testing.assert_allclose(log_lik[i], density, **EXACT)
        mean, covariance = posterior.mean.reshape(t, S), posterior.covariance.reshape(t, S, t, S)
        np.testing.assert_allclose(smooth.mean[:t, :, i], mean, **EXACT)
        for u in range(t):
            np.testing.assert_allclose(smooth.covariance[u, :, :, i], covariance[u, :, u], **EXACT)
            until = _given(chain, i, u + 1)[0]
            np.testing.assert_allclose(forward.mean[u, :, i], until.mean.reshape(t, S)[u], **EXACT)
            own = until.covariance.reshape(t, S, t, S)[u, :, u]
            np.testing.assert_allclose(forward.covariance[u, :, :, i], own, **EXACT)


def test_score_and_information_give_disturbances_and_their_covariances():
    """x_{t+1} − A x_t − drift: mean Q r, covariance Q − Q N Q, with x_t −Q N A P."""
    chain = _chain(singular=True)
    _, forward, smooth = _passes(chain)
    a, q = np.asarray(chain.transition), np.asarray(chain.transition_covariance)
    i, t = 0, LENGTHS[0]
    posterior = _given(chain, i, t)[0]
    mean, covariance = posterior.mean.reshape(t, S), posterior.covariance.reshape(t, S, t, S)
    for u in range(t - 1):
        both = np.zeros((S, t, S))
        both[:, u + 1], both[:, u] = np.eye(S), -a
        both = both.reshape(S, t * S)
        r, n = np.asarray(smooth.score)[u + 1, :, i], np.asarray(smooth.information)[u + 1, :, :, i]
        expected = both @ posterior.mean - np.asarray(chain.drift)[u, :, i]
        np.testing.assert_allclose(q @ r, expected, **EXACT)
        np.testing.assert_allclose(q - q @ n @ q, both @ posterior.covariance @ both.T, **EXACT)
        cross = -q @ n @ a @ np.asarray(forward.covariance)[u, :, :, i]
        own = (both @ posterior.covariance).reshape(S, t, S)[:, u]
        np.testing.assert_allclose(cross, own, **EXACT)
    assert mean.shape == (t, S) and covariance.shape == (t, S, t, S)


def test_covariances_are_computed_once_where_all_series_have_the_same_entries():
    chain = _chain(gaps=False)
    whole = chain._replace(observed=jnp.ones_like(chain.observed), present=jnp.ones_like(chain.present))
    assert not is_common(chain) and is_common(whole)
    once, each = _passes(whole, whole.observed[..., :1]), _passes(whole)
    assert once[1].covariance.shape[-1] == 1 and each[1].covariance.shape[-1] == len(LENGTHS)
    np.testing.assert_allclose(once[2].mean, each[2].mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(once[2].covariance[..., 0], each[2].covariance[..., 2], rtol=1e-12, atol=1e-13)
    lanes = lambda chain: shared_or_each(chain, lambda _, observed: jnp.asarray(observed.shape[-1]))  # noqa: E731
    assert jax.jit(lanes)(whole) == 1 and jax.jit(lanes)(chain) == len(LENGTHS)


def test_many_columns_are_scanned(monkeypatch):
    chain = _chain()
    written_out = _passes(chain)
    monkeypatch.setattr(gaussian_chain, "_UNROLLED", 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), _passes(chain), written_out)


def test_the_state_ahead_is_that_after_the_end_of_each_series():
    chain = _chain()
    _, forward, _ = _passes(chain)
    i, t = 1, LENGTHS[1]
    last = _given(chain, i, t)[0]
    mean = np.asarray(chain.transition) @ last.mean[-S:] + np.asarray(chain.drift)[t - 1, :, i]
    np.testing.assert_allclose(forward.ahead[0][:, i], mean, **EXACT)


def test_a_sum_over_a_million_steps_keeps_its_digits():
    values = np.random.default_rng(0).random((10**6, 1)).astype(np.float32)
    exact = values.astype(np.float64).sum()
    assert abs(float(sum_over_time(jnp.asarray(values))[0]) / exact - 1) < 2e-7


def test_a_factor_of_a_singular_covariance():
    covariance = np.diag([0.0, 4.0, 0.0])
    covariance[1:, 1:] = [[4.0, 2.0], [2.0, 1.0]]
    low = factor(jnp.asarray(covariance))
    np.testing.assert_allclose(low @ low.T, covariance, atol=1e-15)
    assert np.all(np.isfinite(jax.jacobian(factor)(jnp.asarray(covariance))))


def test_draws_have_the_moments_of_the_states():
    chain = _chain(singular=True)
    assert chain.drift is not None
    n = 20000
    wide = chain._replace(
        present=jnp.ones((T, n), bool), drift=jnp.broadcast_to(chain.drift[:, :, :1], (T, S, n)),
        values=jnp.zeros((T, D, n)), observed=jnp.ones((T, D, n), bool),
    )  # fmt: skip
    states = np.asarray(drawn_states(wide, jax.random.key(0)))
    prior = _states(chain, 0)
    spread = prior.covariance[-S:, -S:]
    error = np.sqrt(np.diagonal(spread) / n)
    assert np.all(np.abs(states[-1].mean(1) - prior.mean[-S:]) < 5 * error)
    np.testing.assert_allclose(np.cov(states[-1]), spread, rtol=0.06, atol=0.06 * spread.max())
