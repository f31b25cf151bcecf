"""`jaxem.sklearn.GaussianHMM`: hmmlearn's interface."""

import logging
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from jaxem.sklearn import GaussianHMM

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(m, 1, size=(20, 2)) for m in (0, 4, 0, 8)])
LENGTHS = [30, 50]
TYPES = ("full", "tied", "diag", "spherical")
slow = pytest.mark.slow


@slow
@pytest.mark.parametrize("kind", TYPES)
def test_steps_of_em_are_hmmlearns(kind):
    """From the start that the seed draws, with priors on all; of spheres hmmlearn's `covars_` have a wrong shape.

    Its spheres start with the mean of the covariance matrix, where ours start with the mean of the variances.
    """
    hmm = pytest.importorskip("hmmlearn.hmm")
    options: dict[str, Any] = {
        "n_components": 3, "covariance_type": kind, "random_state": 0, "n_iter": 8, "tol": 1e-9, "means_weight": 0.5,
        "means_prior": 1.0, "startprob_prior": 1.5, "transmat_prior": 1.2, "covars_weight": 4,
    }  # fmt: skip
    ours, other = GaussianHMM(**options), hmm.GaussianHMM(**options)
    for model in (ours, other):
        if kind == "spherical":
            model.init_params, model.covars_ = "stm", np.full(3, 4.0)
        model.fit(X, LENGTHS)
    for name in ("startprob_", "transmat_", "means_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(other, name), rtol=1e-9, atol=1e-12)
    theirs = other._covars_[:, 0] if kind == "spherical" else other._covars_
    np.testing.assert_allclose(ours._covars_, theirs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.score(X, LENGTHS), other.score(X, LENGTHS), rtol=1e-12)
    np.testing.assert_allclose(ours.predict_proba(X, LENGTHS), other.predict_proba(X, LENGTHS), atol=1e-9)
    for algorithm in ("viterbi", "map"):
        scores, states = zip(*[m.decode(X, LENGTHS, algorithm) for m in (ours, other)], strict=True)
        np.testing.assert_allclose(*scores, rtol=1e-12)
        np.testing.assert_array_equal(*states)
    np.testing.assert_allclose(ours.bic(X, LENGTHS), other.bic(X, LENGTHS), rtol=1e-12)
    assert ours.monitor_.iter == other.monitor_.iter == 8


def test_a_fit_finds_the_states_and_what_it_raises_never_falls():
    model: Any = clone(GaussianHMM(3, "full", random_state=2, n_iter=30))
    model.fit(X, LENGTHS)
    assert np.all(np.diff(model.monitor_.history) > -1e-9) and model.monitor_.converged
    np.testing.assert_allclose(sorted(model.means_[:, 0]), [0, 4, 8], atol=0.6)
    states = model.predict(X, LENGTHS)
    assert np.all(states[:20] == states[0]) and states[20] != states[0]
    np.testing.assert_allclose(model.predict_proba(X, LENGTHS).sum(1), 1, rtol=1e-12)
    drawn, path = model.sample(50, random_state=1)
    assert drawn.shape == (50, 2) and path.shape == (50,)
    law = model.get_stationary_distribution()
    np.testing.assert_allclose(law @ model.transmat_, law, atol=1e-12)


def test_what_is_not_fitted_stays_and_what_is_set_anew_is_said(caplog):
    model = GaussianHMM(2, "diag", params="m", init_params="c", n_iter=3)
    model.startprob_, model.transmat_ = [0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]]
    model.means_ = [[0.0, 0.0], [5.0, 5.0]]
    model.fit(X, LENGTHS)
    np.testing.assert_array_equal(model.transmat_, [[0.9, 0.1], [0.2, 0.8]])
    assert np.all(model.means_[0] != 0) and np.allclose(model._covars_[0], model._covars_[1])
    with caplog.at_level(logging.WARNING):
        model.fit(X, LENGTHS)
    assert "will be overwritten" in caplog.text


BAD = {
    "lengths: expected positive integers that sum to 80": lambda: GaussianHMM(2).fit(X, [30, 30]),
    "covariance_type: expected one of": lambda: GaussianHMM(2, "round").fit(X),
    "implementation: expected 'log' or 'scaling'": lambda: GaussianHMM(2, implementation="fast").fit(X),
    "algorithm: expected 'viterbi' or 'map'": lambda: GaussianHMM(2, n_iter=0).fit(X).decode(X, algorithm="best"),
    "X: expected 2 columns": lambda: GaussianHMM(2, n_iter=0).fit(X).fit(X[:, :1]),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.parametrize(
    ("kind", "covars"),
    [("full", np.ones((2, 2, 2))), ("diag", [[1.0, -1.0], [1.0, 1.0]]), ("tied", [[1.0, 2.0]]), ("spherical", [1.0])],
)
def test_covariances_are_checked(kind, covars):
    with pytest.raises(ValueError, match="covars_: expected"):
        GaussianHMM(2, kind).covars_ = covars
