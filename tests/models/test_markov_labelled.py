"""Series of which some states are known, against a sum over all paths that the labels allow."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status
from jaxem.latent.finite import Labelled

KEY = jax.random.key(0)
K, T, LENGTH = 3, 5, (5, 3, 1)
MODEL = jaxem.HiddenMarkovModel(jaxem.Poisson(), K)
RNG = np.random.default_rng(0)
START = jaxem.HMMParams(
    jnp.array([0.5, 0.3, 0.2]),
    jnp.array([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]]),
    jaxem.PoissonParams(jnp.array([[1.0], [3.0], [6.0]])),
)
DATA = jaxem.Sequences(RNG.poisson(3.0, size=(3, T, 1)).astype(float), np.array(LENGTH))
LABELS = np.array([[-1, 2, -1, -1, 0], [1, -1, -1, 99, -7], [-1, 7, 7, 7, 7]])  # absent steps have any
MASK = RNG.random((3, T, K)) < 0.6
MASK[:, :, 1] |= ~MASK.any(2)
MASK[1, 4] = False  # absent
KNOWN = {"labels": LABELS, "mask": MASK}


def _allowed(known: np.ndarray) -> np.ndarray:
    if known.dtype == bool:
        return known
    return (known[:, :, None] == np.arange(K)) | (known == -1)[:, :, None]


def _enumerated(known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list]:
    """log p(x, labels), the posterior of states, pair counts, the best path of each series."""
    allowed, rates = _allowed(known), np.asarray(START.emissions.rate)[:, 0]
    log_pmf = np.asarray(jax.scipy.stats.poisson.logpmf(DATA.values, rates[None, None]))
    log_lik, states, pairs, best = np.zeros(3), np.zeros((3, T, K)), np.zeros((K, K)), []
    for i, length in enumerate(LENGTH):
        paths = [
            p for p in itertools.product(range(K), repeat=length) if all(allowed[i, s, z] for s, z in enumerate(p))
        ]
        log_joint = np.array(
            [
                np.log(START.initial[p[0]])
                + sum(np.log(START.transition[a, b]) for a, b in itertools.pairwise(p))
                + sum(log_pmf[i, s, z] for s, z in enumerate(p))
                for p in paths
            ]
        )
        log_lik[i] = np.logaddexp.reduce(log_joint)
        best.append(paths[int(np.argmax(log_joint))])
        for path, mass in zip(paths, np.exp(log_joint - log_lik[i]), strict=True):
            states[i, np.arange(length), path] += mass
            for a, b in itertools.pairwise(path):
                pairs[a, b] += mass
    return log_lik, states, pairs, best


@pytest.mark.parametrize("name", KNOWN)
def test_only_paths_that_labels_allow_count(name):
    """In log space as users see it, and scaled as the loop runs."""
    known = KNOWN[name]
    log_lik, states, pairs, best = _enumerated(known)
    data = jaxem.labelled(DATA, known)
    np.testing.assert_allclose(MODEL.log_prob(START, data), log_lik, rtol=1e-12)
    np.testing.assert_allclose(MODEL.responsibilities(START, data), states, rtol=1e-11, atol=1e-14)
    path = np.asarray(MODEL.predict(START, data))
    assert [tuple(row[row >= 0].tolist()) for row in path] == best
    bound = jaxem.bind(MODEL, data, None)
    prepared = data._replace(data=bound.prepare(data.data, columns_first=True))
    for rows in (data, prepared):
        stats, total = bound.e_step(START, rows, None)
        np.testing.assert_allclose(total, log_lik.sum(), rtol=1e-12)
        np.testing.assert_allclose(stats.initial, states[:, 0].sum(0), rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(stats.transition, pairs, rtol=1e-11, atol=1e-14)


def test_states_that_are_all_known_make_a_fit_of_counts():
    """One M step, whatever the start: also through chunks, restarts, groups, and under Viterbi training."""
    rng = np.random.default_rng(1)
    z = rng.integers(K, size=(8, 6))
    data = jaxem.Sequences(rng.poisson(np.array([1.0, 4.0, 9.0])[z])[:, :, None], np.full(8, 6))
    known = jaxem.labelled(data, z)
    counts = np.zeros((K, K))
    np.add.at(counts, (z[:, :-1], z[:, 1:]), 1)
    expected = counts / counts.sum(1, keepdims=True)
    rates = [data.values[z == j].mean() for j in range(K)]
    fits = [
        jaxem.fit(MODEL, START, known),
        jaxem.fit(MODEL, START, known, chunk_size=3, algorithm=jaxem.HardEM()),
        jaxem.fit_restarts(MODEL, KEY, known, n_restarts=2),
    ]
    for result in fits:
        np.testing.assert_allclose(result.check().params.transition, expected, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(result.params.emissions.rate[:, 0], rates, rtol=1e-10)
    ids = np.arange(8) // 4
    groups = jaxem.fit_groups(MODEL, KEY, known, ids, n_restarts=1)
    alone = jaxem.fit(MODEL, START, jax.tree.map(lambda leaf: leaf[4:], known))
    np.testing.assert_allclose(groups.fits.objective[1], alone.objective, rtol=1e-10)


def test_labels_lead_a_fit_and_unknown_ones_change_nothing():
    data, _ = MODEL.sample(START, KEY, n=20, n_steps=12)
    free = jaxem.fit(MODEL, START, data, max_iter=5, tol=-1.0)
    same = jaxem.fit(MODEL, START, jaxem.labelled(data, np.full((20, 12), -1)), max_iter=5, tol=-1.0)
    np.testing.assert_allclose(same.history, free.history, rtol=1e-14)  # another program, which rounds as it likes
    order = jnp.array([2, 0, 1])
    swapped = jnp.argsort(order)[MODEL.predict(START, data)]
    led = jaxem.fit(MODEL, START, jaxem.labelled(data, swapped), max_iter=5, tol=-1.0)
    assert np.argsort(led.params.emissions.rate[:, 0]).tolist() == np.argsort(order).tolist()
    bic = MODEL.bic(free.params, jaxem.labelled(data, np.full((20, 12), -1)))
    np.testing.assert_allclose(bic, MODEL.bic(free.params, data), rtol=1e-12)


def test_labels_that_contradict_the_structure_end_as_not_finite():
    allowed = np.array([[True, True, False], [True, True, True], [True, True, True]])
    model = jaxem.HiddenMarkovModel(jaxem.Poisson(), K, allowed=allowed)
    start = START._replace(transition=jnp.array([[0.7, 0.3, 0.0], *START.transition[1:].tolist()]))
    known = jaxem.labelled(DATA, np.array([[0, 2, -1, -1, -1], [-1] * 5, [-1] * 5]))
    result = jaxem.fit(model, start, known)
    assert Status(int(result.status)) is Status.NONFINITE
    assert model.log_prob(start, known)[0] == -np.inf
    assert np.isnan(model.responsibilities(start, known)[0]).all()
    assert np.all(model.predict(start, known)[0] == -1)


BAD = {
    r"known: expected integer labels \(3, 5\) or a boolean mask \(3, 5, n_states\).*mark steps": np.zeros(3, int),
    r"known: expected labels ≥ −1.*step 1 of series 0": np.array([[0, -2, 0, 0, 0]] * 3),
    r"got neither in step 0 of series 2": MASK & (np.arange(3) != 2)[:, None, None],
    r"known: expected labels 0 to 2.*got 3 in step 1 of series 0": np.array([[0, 3, 0, 0, 0]] * 3),
    r"known: expected labels \(n, t\).*mask \(n, t, 3\) over the states": np.ones((3, T, 2), bool),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_known_is_named(message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(MODEL, START, jaxem.labelled(DATA, BAD[message]))


@pytest.mark.parametrize("kept", [False, True], ids=["stable", "fast"])
def test_labels_follow_the_steps_of_long_series_into_their_stretches(kept, monkeypatch):
    rng, t = np.random.default_rng(1), 70
    data = jaxem.Sequences(jnp.asarray(rng.poisson(3.0, size=(2, t, 1)), float), jnp.array([67, 30]))
    known = jnp.asarray(np.where(rng.random((2, t)) < 0.3, rng.integers(K, size=(2, t)), -1))
    model = jaxem.bind(MODEL, data, None)

    def e_step():
        steps = Labelled(model.prepare(data) if kept else data, known)
        return model.e_step_by_rule(START, steps, None, jaxem.Soft(), None)

    whole = e_step()
    for name, value in {"_LONG": 1, "_LEAST_STEPS": 16}.items():
        monkeypatch.setattr(f"jaxem.models._markov_steps.{name}", value)
    assert model.prepare(data).observed.shape == (18, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), e_step(), whole)
