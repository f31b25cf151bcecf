"""Entries of the registry: mixtures of negative binomials, log-normals, betas and Dirichlets."""

from typing import Any

import numpy as np
from contract_entries import CENTRES, K, ModelEntry, N
from contract_families import _draw, _family_mixture, _mixed, made, with_gaps

import jaxem

_COUNT_MEANS = np.array([[40.0, 900.0], [300.0, 30.0], [4000.0, 300.0]])
_SIZE = 6.0
_COUNTS = _draw(12, lambda rng, z: rng.poisson(rng.gamma(_SIZE, size=(N, 2)) / _SIZE * _COUNT_MEANS[z]))


def _negative_binomial(name: str, family: Any, data: np.ndarray, size: np.ndarray, **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.NegativeBinomialParams, size.copy(), 1.2 * _COUNT_MEANS)  # noqa: E731
    return _family_mixture(name, family, data, start, augmented=True, slow=True, **options)


# near 1: differences in the data are steps in units of a column, and are to stay positive
_LOG_CENTRES = 0.15 * CENTRES[2]
_LOGS = np.exp(_draw(13, lambda rng, z: _LOG_CENTRES[z] + 0.1 * rng.normal(size=(N, 2))))


def _log_normal(name: str, family: Any, **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.NormalParams, _LOG_CENTRES + 0.02, np.full((K, 2), 0.01))  # noqa: E731
    return _family_mixture(name, family, _LOGS, start, discrete=False, slow=True, **options)


_A = np.array([[6.0, 2.0], [2.0, 9.0], [20.0, 20.0]])
_B = np.array([[2.0, 8.0], [9.0, 1.5], [4.0, 20.0]])
_FRACTIONS = np.minimum(_draw(14, lambda rng, z: rng.beta(_A[z], _B[z])), 0.96)  # below 1 where a test moves it


def _beta(name: str, family: Any, data: np.ndarray, **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.BetaParams, 0.8 * _A + 0.5, 0.8 * _B + 0.5)  # noqa: E731

    def moments(params: Any) -> tuple[np.ndarray, np.ndarray]:
        a, b = map(np.asarray, params.components)
        return _mixed(params, a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1)))

    def means(params: Any) -> np.ndarray:
        a, b = map(np.asarray, params.components)
        return a / (a + b)

    return _family_mixture(
        name, family, data, start, **({"slow": True, "moments": moments, "component_means": means} | options)
    )


_CONCENTRATIONS = np.array([[12.0, 3.0, 2.0, 3.0], [2.0, 9.0, 3.0, 6.0], [5.0, 5.0, 30.0, 5.0]])
_SHARES = _draw(15, lambda rng, z: np.stack([rng.dirichlet(_CONCENTRATIONS[j]) for j in z]))


def _dirichlet(name: str, family: Any, **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.DirichletParams, 0.7 * _CONCENTRATIONS + 1)  # noqa: E731

    def means(params: Any) -> np.ndarray:
        alpha = np.asarray(params.components.concentration)
        return alpha / alpha.sum(1, keepdims=True)

    def moments(params: Any) -> tuple[np.ndarray, np.ndarray]:
        total = np.asarray(params.components.concentration).sum(1)
        mean = means(params)
        overall, covariance = _mixed(params, mean, mean / (total[:, None] + 1))
        own = np.asarray(params.weights) / (total + 1)
        return overall, covariance - np.einsum("k,ki,kj->ij", own, mean, mean)

    return _family_mixture(name, family, _SHARES, start, slow=True, moments=moments, component_means=means, **options)


COUNTS_AND_FRACTIONS = [
    _negative_binomial("negative_binomial", jaxem.NegativeBinomial, _COUNTS, np.full((K, 2), 4.0)),
    _negative_binomial(
        "negative_binomial_fixed",
        lambda: jaxem.NegativeBinomial(np.full((K, 2), 5.0), missing=True),
        with_gaps(_COUNTS),
        np.full((K, 2), 5.0),
        concentration=1.5,
        variant=True,
    ),
    _log_normal("log_normal", lambda: jaxem.LogNormal(np.asarray(1e-3))),
    _beta("beta", lambda: jaxem.Beta(np.asarray(1e-3)), _FRACTIONS, discrete=False),
    _beta(
        "beta_missing",
        lambda: jaxem.Beta(np.asarray(0.05), missing=True),
        with_gaps(_FRACTIONS),
        concentration=1.5,
        variant=True,
    ),
    _dirichlet("dirichlet", lambda: jaxem.Dirichlet(np.asarray(1e-3))),
]
