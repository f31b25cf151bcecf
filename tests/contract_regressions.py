"""Entries of the registry: regressions, and weights that depend on covariates. All are tested with the slow tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
from contract_entries import CENTRES, COLUMN_SCALE, K, ModelEntry, N
from contract_families import made

import jaxem

_rng = np.random.default_rng(21)
_T = np.linspace(-1.5, 1.5, N // 2).repeat(2)
_Z = np.arange(N) % 2
_DESIGN = np.stack([np.ones(N), _T + 4.0], 1)
_OFFSET = 0.3 * np.cos(3.0 * np.arange(N))
_SLOPES = np.array([[1.0, 0.4], [3.5, -0.3]])  # about the middle
_ETA = _SLOPES[_Z, 0] + _SLOPES[_Z, 1] * _T


def _started(slopes: np.ndarray) -> np.ndarray:
    """Coefficients near those of the data, of the design's own columns."""
    slopes = slopes * 0.9
    return np.stack([slopes[:, 0] - 4 * slopes[:, 1], slopes[:, 1]], 1)


def _entry(
    name: str, family: Callable[[], Any], data: tuple, bank: Callable[[], Any], gate: Any = None, **options: Any
) -> ModelEntry:
    weights = np.array([0.45, 0.55])
    return ModelEntry(
        name=name,
        build=lambda: jaxem.Mixture(family(), 2, gate=None if gate is None else gate()),
        data=data if gate is None else made(jaxem.gated, data, np.stack([np.ones(N), _T], 1)),
        start=lambda: made(
            jaxem.MixtureParams,
            weights.copy() if gate is None else made(jaxem.GateParams, np.array([[0.2, -0.1], [-0.2, 0.1]])),
            bank(),
        ),
        variant=True,
        slow=True,
        given=_DESIGN[:5] if gate is None else made(jaxem.gated, _DESIGN[:5], _DESIGN[:5]),
        **options,
    )


_RESPONSE = 3 * _ETA + _OFFSET + _rng.normal(size=N)
_COUNTS = _rng.poisson(np.exp(_ETA + _OFFSET)).astype(float)
_SUCCESSES = _rng.binomial(12, 1 / (1 + np.exp(-1.2 * (_ETA - 2.2)))).astype(float)
_NB_COUNTS = _rng.poisson(np.exp(_ETA) * _rng.gamma(9.0, 1 / 9, N)).astype(float)


def _linear(variance: float = 2.0) -> Any:
    return made(jaxem.LinearRegressionParams, _started(3 * _SLOPES), np.full(2, variance))


_CLUSTERS = (CENTRES[2][np.arange(N) % K] + np.random.default_rng(3).normal(size=(N, 2))) * COLUMN_SCALE
_GATE_COVARIATES = np.stack([np.ones(N), CENTRES[2][np.arange(N) % K, 0] / 3 + _rng.normal(size=N)], 1)


def _gated_start() -> Any:
    normals = made(
        jaxem.NormalParams, CENTRES[2] * COLUMN_SCALE + [0.5, -1.0], np.stack([np.diag(_CLUSTERS.var(0) / 4)] * K)
    )
    gate = made(jaxem.GateParams, np.array([[0.2, -0.3], [0.1, 0.4], [-0.3, -0.1]]))
    return made(jaxem.MixtureParams, gate, normals)


_GATED_NORMALS = ModelEntry(
    name="gated_normals",
    build=lambda: jaxem.Mixture(
        jaxem.FullNormal(),
        K,
        gate=jaxem.SoftmaxGate(jaxem.GaussianPrior(np.array([4.0, 16.0]), np.asarray(0.0))),
    ),
    data=made(jaxem.gated, _CLUSTERS.copy(), _GATE_COVARIATES.copy()),
    start=_gated_start,
    variant=True,
    slow=True,
    given=made(jaxem.gated, _CLUSTERS[:5], _GATE_COVARIATES[:5]),
)

REGRESSIONS = [
    _entry("linear_regression", jaxem.LinearRegression, (_DESIGN, _RESPONSE, _OFFSET), _linear),
    _entry(
        "linear_regression_prior",
        lambda: jaxem.LinearRegression(
            jaxem.GaussianPrior(np.array([0.0, 0.5]), np.array([0.0, 0.2])), np.asarray(0.01)
        ),
        (_DESIGN, _RESPONSE),
        _linear,
    ),
    _entry(
        "student_t_regression",
        lambda: jaxem.StudentTRegression(np.asarray(5.0)),
        (_DESIGN, _RESPONSE, _OFFSET),
        lambda: made(jaxem.StudentTRegressionParams, _started(3 * _SLOPES), np.full(2, 1.5), np.full(2, 5.0)),
        augmented=True,
    ),
    _entry(
        "poisson_regression",
        jaxem.PoissonRegression,
        (_DESIGN, _COUNTS, _OFFSET),
        lambda: made(jaxem.PoissonRegressionParams, _started(_SLOPES)),
        discrete=True,
    ),
    _entry(
        "logistic_regression",
        lambda: jaxem.LogisticRegression(jaxem.GaussianPrior(np.asarray(0.2), np.array([0.1, 0.0]))),
        (_DESIGN, np.stack([_SUCCESSES, 12 - _SUCCESSES], 1)),
        lambda: made(jaxem.LogisticRegressionParams, _started(_SLOPES - [[2.2, 0.0]])),
        discrete=True,
    ),
    _entry(
        "negative_binomial_regression",
        lambda: jaxem.NegativeBinomialRegression(jaxem.GaussianPrior(np.asarray(0.01))),
        (_DESIGN, _NB_COUNTS),
        lambda: made(jaxem.NegativeBinomialRegressionParams, _started(_SLOPES), np.full(2, 3.0)),
        discrete=True,
    ),
    _entry(
        "gated_regression",
        jaxem.LinearRegression,
        (_DESIGN, _RESPONSE, _OFFSET),
        _linear,
        gate=jaxem.SoftmaxGate,
    ),
    _GATED_NORMALS,
]
