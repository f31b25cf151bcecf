"""Hidden chains against a sum over all paths."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.latent.chain import (
    LINEAR,
    LOG,
    Chain,
    best_path,
    drawn_path,
    filtered,
    log_likelihood,
    posterior_of,
    smoothed,
)
from jaxem.latent.recursion import in_blocks, in_order

T, K, LENGTHS = 5, 3, (5, 1, 3, 4)
EXACT: Any = {"rtol": 1e-12, "atol": 1e-13}  # sums of at most 3⁵ terms


class Enumerated(NamedTuple):
    """Of every path of every chain."""

    log_lik: np.ndarray
    states: np.ndarray
    filtered: np.ndarray
    pairs: np.ndarray
    best: list
    paths: list


def _chain(seed: int = 0, zero: bool = True, spread: float = 2.0) -> Chain:
    rng = np.random.default_rng(seed)
    initial, transition = rng.dirichlet(np.ones(K)), rng.dirichlet(np.ones(K), size=K)
    if zero:
        transition[0, 1] = 0
        transition /= transition.sum(1, keepdims=True)
    log_emission = spread * rng.normal(size=(T, K, len(LENGTHS)))
    return Chain(*map(jnp.asarray, (initial, transition, log_emission, np.array(LENGTHS))))


WEIGHT = np.array([0.3, 2.0, 1.0, 0.0])


def _log_joint(chain: Chain, path: tuple, i: int) -> Any:
    initial, transition, log_emission, _ = map(np.asarray, chain)
    with np.errstate(divide="ignore"):
        moves = sum(np.log(transition[a, b]) for a, b in itertools.pairwise(path))
        return np.log(initial[path[0]]) + moves + sum(log_emission[s, z, i] for s, z in enumerate(path))


def _enumerate(chain: Chain) -> Enumerated:
    n = len(LENGTHS)
    found = Enumerated(np.zeros(n), np.zeros((T, K, n)), np.zeros((T, K, n)), np.zeros((K, K)), [], [])
    for i, length in enumerate(LENGTHS):
        for upto in range(1, length + 1):
            paths = list(itertools.product(range(K), repeat=upto))
            log_joint = np.array([_log_joint(chain, path, i) for path in paths])
            total = np.logaddexp.reduce(log_joint)
            p = np.exp(log_joint - total)
            for path, mass in zip(paths, p, strict=True):
                found.filtered[upto - 1, path[-1], i] += mass
        found.log_lik[i] = total
        found.best.append((paths[int(np.argmax(log_joint))], log_joint.max()))
        found.paths.append(dict(zip(paths, p, strict=True)))
        for path, mass in zip(paths, p, strict=True):
            for s, z in enumerate(path):
                found.states[s, z, i] += mass
            for a, b in itertools.pairwise(path):
                found.pairs[a, b] += WEIGHT[i] * mass
    return found


PRESENT = np.arange(T)[:, None, None] < np.array(LENGTHS)


@pytest.mark.parametrize("numbers", [LINEAR, LOG], ids=["scaled", "log"])
@pytest.mark.parametrize("few", [0, 100], ids=["product", "products"])
def test_smoothing_is_the_sum_over_all_paths(numbers, few, monkeypatch):
    monkeypatch.setattr("jaxem.latent.numbers._FEW_CHAINS", few)
    chain = _chain()
    expected = _enumerate(chain)
    forward = filtered(chain, numbers)
    found = smoothed(chain, forward, numbers, jnp.asarray(WEIGHT))
    np.testing.assert_allclose(log_likelihood(forward), expected.log_lik, **EXACT)
    np.testing.assert_allclose(smoothed(chain, forward, numbers).states, expected.states, **EXACT)
    np.testing.assert_allclose(found.states, WEIGHT * expected.states, **EXACT)
    np.testing.assert_allclose(found.pairs, expected.pairs, **EXACT)
    np.testing.assert_allclose(np.where(PRESENT, numbers.probabilities(forward.states), 0), expected.filtered, **EXACT)
    assert found.pairs[0, 1] == 0


@pytest.mark.parametrize("numbers", [LINEAR, LOG], ids=["scaled", "log"])
@pytest.mark.parametrize(("n_blocks", "t"), [(5, 5), (2, 6), (3, 15)], ids=["steps", "halves", "some absent"])
def test_blocks_of_time_are_the_whole(numbers, n_blocks, t):
    """A block of a step each, blocks of some, and blocks that no chain reaches: values, and slopes through it all."""
    chain = _chain()
    more = jnp.full((t - T, K, len(LENGTHS)), 17.0)
    whole = chain._replace(log_emission=jnp.concatenate([chain.log_emission, more]))
    expected = _enumerate(chain)
    laid = whole._replace(log_emission=in_blocks(whole.log_emission, n_blocks))
    assert laid.n_blocks == n_blocks and laid.log_emission.shape == (t // n_blocks, K, n_blocks * len(LENGTHS))
    np.testing.assert_array_equal(laid.in_order().log_emission, whole.log_emission)
    forward = filtered(laid, numbers)
    found = smoothed(laid, forward, numbers, jnp.asarray(WEIGHT))
    np.testing.assert_allclose(log_likelihood(forward), expected.log_lik, **EXACT)
    np.testing.assert_allclose(in_order(found.states, n_blocks)[:T], WEIGHT * expected.states, **EXACT)
    assert not np.any(in_order(found.states, n_blocks)[T:])
    np.testing.assert_allclose(found.pairs, expected.pairs, **EXACT)

    def values(log_emission, transition, laid):
        here = laid._replace(log_emission=log_emission, transition=transition)
        forward = filtered(here, numbers)
        found = smoothed(here, forward, numbers, jnp.asarray(WEIGHT))
        curved = jnp.sum(jnp.sin(found.states)) + jnp.sum(jnp.cos(found.pairs))
        return jnp.sum(log_likelihood(forward)) + curved

    slopes = [jax.grad(values, (0, 1))(c.log_emission, c.transition, c) for c in (whole, laid)]
    np.testing.assert_allclose(in_order(slopes[1][0], n_blocks), slopes[0][0], **EXACT)
    np.testing.assert_allclose(slopes[1][1], slopes[0][1], **EXACT)


@pytest.mark.parametrize(
    "rule", [jaxem.Hard(), jaxem.Sampled(), jaxem.Tempered(2.0)], ids=lambda rule: type(rule).__name__
)
def test_rules_of_a_chain_in_blocks(rule):
    chain, key = _chain(), jax.random.key(1)
    laid = chain._replace(log_emission=in_blocks(chain.log_emission, T))
    expected, objective = posterior_of(chain, rule, key)
    found, same = posterior_of(laid, rule, key)
    np.testing.assert_allclose(in_order(found.states, T), expected.states, **EXACT)
    np.testing.assert_allclose(found.pairs, expected.pairs, **EXACT)
    np.testing.assert_allclose(same, objective, **EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_path_is_the_best_of_all(seed):
    chain = _chain(seed)
    path, log_joint = map(np.asarray, best_path(chain))
    for i, (best, value) in enumerate(_enumerate(chain).best):
        assert tuple(path[: LENGTHS[i], i]) == best and np.all(path[LENGTHS[i] :, i] == -1)
        np.testing.assert_allclose(log_joint[i], value, **EXACT)


def test_paths_are_drawn_from_the_posterior():
    """χ² over all paths of more than five expected draws: its 0.999 quantile is passed once in a thousand keys."""
    from scipy.stats import chi2

    chain, draws = _chain(spread=1.0), 4000
    expected = _enumerate(chain)
    keys = jax.random.split(jax.random.key(0), draws)
    paths = np.asarray(jax.jit(jax.vmap(lambda key: drawn_path(chain, filtered(chain), key)))(keys))
    for i, length in enumerate(LENGTHS):
        got = dict.fromkeys(expected.paths[i], 0)
        for path in map(tuple, paths[:, :length, i].tolist()):
            got[path] += 1
        assert np.all(paths[:, length:, i] == -1)
        mass = np.array(list(expected.paths[i].values())) * draws
        seen = np.array(list(got.values()))
        assert np.all(seen[mass == 0] == 0)
        often = mass > 5
        mass, seen = np.append(mass[often], mass[~often].sum()), np.append(seen[often], seen[~often].sum())
        keep = mass > 0
        statistic = np.sum((seen[keep] - mass[keep]) ** 2 / mass[keep])
        assert statistic < chi2.ppf(0.999, max(keep.sum() - 1, 1))


def test_rules_of_a_chain():
    """At temperature T all log probabilities over T; a hard path counts for itself alone."""
    chain, weight = _chain(), jnp.asarray(WEIGHT)
    warm, objective = posterior_of(chain, jaxem.Tempered(1.0), None, weight=weight)
    soft, log_lik = posterior_of(chain, jaxem.Soft(), None, weight=weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **EXACT), (warm, objective), (soft, log_lik))
    cold, objective = posterior_of(chain, jaxem.Tempered(1e-3), None, weight=weight)
    hard, best = posterior_of(chain, jaxem.Hard(), None, weight=weight)
    np.testing.assert_allclose(cold.states, hard.states, atol=1e-6)
    np.testing.assert_allclose(objective, best, atol=1e-2)  # off by T times the entropy
    np.testing.assert_allclose(jnp.sum(hard.pairs), WEIGHT @ (np.array(LENGTHS) - 1))
    with pytest.raises(ValueError, match=r"rule: expected Soft.*pairs of states"):
        posterior_of(chain, jaxem.Given(jnp.ones((1, K))), None)


def test_a_state_lost_to_underflow_is_exact_in_logarithms():
    """The only state that explains the second half is 1000 nats from the first ten steps."""
    t = 20
    log_emission = np.zeros((t, 2, 1))
    log_emission[:10, 1] = -1000.0
    log_emission[10:, 0] = -np.inf
    chain = Chain(jnp.array([0.5, 0.5]), jnp.eye(2), jnp.asarray(log_emission), jnp.array([t]))  # never changes
    assert np.isnan(log_likelihood(filtered(chain, LINEAR)))
    forward = filtered(chain, LOG)
    found = smoothed(chain, forward, LOG)
    np.testing.assert_allclose(log_likelihood(forward), np.log(0.5) - 10 * 1000.0, rtol=1e-13)
    np.testing.assert_allclose(found.states[:, 1], 1, rtol=1e-13)
    np.testing.assert_allclose(found.pairs, [[0, 0], [0, t - 1]], rtol=1e-13)


def test_a_chain_that_no_path_explains():
    """Log-likelihood −∞, nothing expected, no path; its neighbours are as they were."""
    chain = _chain()
    lost = chain._replace(log_emission=chain.log_emission.at[2, :, 0].set(-jnp.inf))
    forward = filtered(lost)
    found, usual = smoothed(lost, forward), smoothed(chain, filtered(chain))
    assert log_likelihood(forward)[0] == -np.inf and np.all(best_path(lost)[0][:, 0] == -1)
    assert not np.isnan(found.states).any() and not np.isnan(found.pairs).any()
    np.testing.assert_array_equal(found.states[..., 1:], usual.states[..., 1:])
    slope = jax.grad(lambda e: log_likelihood(filtered(lost._replace(log_emission=e)))[1:].sum())(lost.log_emission)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("numbers", [LINEAR, LOG], ids=["scaled", "log"])
@pytest.mark.parametrize("n_blocks", [1, 5])
def test_absent_steps_change_nothing_to_the_bit(numbers, n_blocks):
    chain = _chain()
    rubbish = [in_blocks(jnp.where(PRESENT, chain.log_emission, what), n_blocks) for what in (17.0, np.nan, -np.inf)]
    chain = chain._replace(log_emission=in_blocks(chain.log_emission, n_blocks))

    def values(log_emission):
        forward = filtered(chain._replace(log_emission=log_emission), numbers)
        found = smoothed(chain, forward, numbers)
        return jnp.sum(log_likelihood(forward)) + jnp.sum(jnp.sin(found.states)) + jnp.sum(jnp.cos(found.pairs))

    for fn in (jax.jit(values), jax.jit(jax.grad(values))):
        expected = fn(chain.log_emission)
        for other in rubbish:
            np.testing.assert_array_equal(fn(other), expected)


@pytest.mark.parametrize("numbers", [LINEAR, LOG], ids=["scaled", "log"])
def test_the_slope_of_the_log_likelihood_is_the_posterior(numbers):
    """Fisher's identity, and through both passes of the second derivative."""
    chain = _chain()
    log_lik = lambda e: log_likelihood(filtered(chain._replace(log_emission=e), numbers)).sum()  # noqa: E731

    def states(e):
        here = chain._replace(log_emission=e)
        return smoothed(here, filtered(here, numbers), numbers).states

    np.testing.assert_allclose(jax.grad(log_lik)(chain.log_emission), states(chain.log_emission), **EXACT)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=chain.log_emission.shape))
    second = jax.jvp(jax.grad(log_lik), (chain.log_emission,), (direction,))[1]
    np.testing.assert_allclose(jax.jvp(states, (chain.log_emission,), (direction,))[1], second, **EXACT)


@pytest.mark.slow
def test_float32_keeps_its_digits_over_a_million_steps():
    """Staying with probability 1 − 1e-7; the log-likelihood is a sum of 10⁶ terms of size 2. In 250 blocks."""
    t, k = 1_000_000, 2
    rng = np.random.default_rng(0)
    log_emission = rng.normal(size=(t, k, 1)) - 1.5
    # of what float32 knows of them: it rounds 1 − 1e-7 by half of the rest
    transition = np.array([[1 - 1e-7, 1e-7], [1e-7, 1 - 1e-7]]).astype(np.float32)
    log_emission = log_emission.astype(np.float32)

    def run(dtype):
        own = [jnp.asarray(a, dtype) for a in (np.full(k, 0.5), transition, log_emission)]
        chain = Chain(own[0], own[1], in_blocks(own[2], 1 if dtype == np.float64 else 250), jnp.array([t]))
        forward = filtered(chain, LINEAR)
        found = smoothed(chain, forward, LINEAR)
        return log_likelihood(forward), found.states, found.pairs

    low, high = jax.jit(run, static_argnums=0)(np.float32), jax.jit(run, static_argnums=0)(np.float64)
    assert abs(float(low[0][0]) - float(high[0][0])) < 1.0
    assert np.max(np.abs(in_order(low[1], 250) - high[1])) < 1e-4
    np.testing.assert_allclose(low[2], high[2], rtol=1e-4)


@pytest.mark.parametrize("n_blocks", [1, 4])
@pytest.mark.parametrize("transition", [np.eye(2), [[0.9, 0.1], [0.0, 1.0]]], ids=["of a series", "no way back"])
def test_a_state_that_fades_away_for_good_is_seen(transition, n_blocks):
    """Ten nats a step against the state that is the right one in the end: scaled numbers have lost it by then."""
    for_first = np.repeat([0.0, -10.0], [12, 52])
    log_emission = jnp.asarray(np.stack([-10.0 - for_first, for_first], 1)[:, :, None], jnp.float32)
    start = jnp.asarray([0.5, 0.5], jnp.float32)
    chain = Chain(start, jnp.asarray(transition, jnp.float32), log_emission, jnp.array([64]))
    exact = log_likelihood(filtered(chain, LOG))
    cut = chain._replace(log_emission=in_blocks(log_emission, n_blocks))
    assert exact < -100 and jnp.isnan(log_likelihood(filtered(cut, LINEAR)))[0]
    # of states that lead to each other nothing is missing, however small they became
    ways = chain._replace(transition=jnp.asarray([[0.9, 0.1], [0.2, 0.8]], jnp.float32))
    np.testing.assert_allclose(log_likelihood(filtered(ways, LINEAR)), log_likelihood(filtered(ways, LOG)), rtol=1e-6)
    # a state that was never possible is not missing
    never = chain._replace(initial=jnp.asarray([0.0, 1.0], jnp.float32), transition=jnp.eye(2, dtype=jnp.float32))
    np.testing.assert_allclose(log_likelihood(filtered(never, LINEAR)), log_likelihood(filtered(never, LOG)), rtol=1e-6)
