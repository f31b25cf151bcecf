"""Entries of the registry: mixtures of families of independent columns, and of multinomial rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from contract_entries import K, ModelEntry, N
from scipy.special import gamma

import jaxem


def made(kind: Any, *leaves: Any) -> Any:
    """Params of NumPy arrays."""
    return kind(*leaves)


def _mixed(params: Any, means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments of a mixture of components with independent columns."""
    weights = np.asarray(params.weights)
    overall = weights @ means
    between = np.einsum("k,ki,kj->ij", weights, means - overall, means - overall)
    return overall, np.diag(weights @ variances) + between


def _draw(seed: int, draw: Callable[[np.random.Generator, np.ndarray], np.ndarray]) -> np.ndarray:
    """Rows of states 0, 1, 2, 0, …, by (generator, states (N,))."""
    return draw(np.random.default_rng(seed), np.arange(N) % K).astype(float)


_RATES = np.array([[0.5, 6.0], [9.0, 2.0], [16.0, 20.0]])
_COUNTS = _draw(5, lambda rng, z: rng.poisson(_RATES[z]))
_WEIGHTS = np.array([0.3, 0.3, 0.4])


_ONES = np.array([[0.9, 0.8, 0.15, 0.1, 0.85], [0.1, 0.2, 0.9, 0.85, 0.75], [0.15, 0.9, 0.8, 0.1, 0.1]])
_BITS = _draw(6, lambda rng, z: rng.random((N, 5)) < _ONES[z])
_SHARES = np.array([[0.65, 0.22, 0.13], [0.13, 0.22, 0.65], [0.15, 0.7, 0.15]])
_CODES = _draw(7, lambda rng, z: np.stack([[rng.choice(3, p=_SHARES[j]) for j in z] for _ in range(6)], 1))
_CELLS = _draw(3, lambda rng, z: np.stack([rng.multinomial(7 + i % 3, _SHARES[j]) for i, j in enumerate(z)]))


def with_gaps(data: np.ndarray, every: int = 9) -> np.ndarray:
    """One entry in so many missing, and one row."""
    data = data.copy()
    data.ravel()[4::every] = np.nan
    data[11] = np.nan
    return data


def _family_mixture(
    name: str,
    family: Callable[[], Any],
    data: np.ndarray,
    start: Callable[[], Any],
    means: Callable[[Any], np.ndarray] | None = None,
    variances: Callable[[np.ndarray], np.ndarray] | None = None,
    concentration: float | None = None,
    **other: Any,
) -> ModelEntry:
    """A mixture of K components of independent columns, with their means, and variances as a function of these."""
    options: dict[str, Any] = dict(other)
    if means is not None and variances is not None:
        options["moments"] = lambda params: _mixed(params, means(params), variances(means(params)))
        options["component_means"] = means
    return ModelEntry(
        name=name,
        build=lambda: jaxem.Mixture(family(), K, concentration=concentration),
        data=data.copy(),
        start=lambda: made(jaxem.MixtureParams, _WEIGHTS.copy(), start()),
        **({"discrete": True, "unreadable": np.inf if np.isnan(data).any() else np.nan} | options),
    )


def _poisson(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.PoissonParams, _RATES * 1.2 + 0.3)  # noqa: E731
    rates = lambda params: np.asarray(params.components.rate)  # noqa: E731
    return _family_mixture(name, family, options.pop("data", _COUNTS), start, rates, lambda rate: rate, **options)


def _bernoulli(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.BernoulliParams, 0.5 + 0.6 * (_ONES - 0.5))  # noqa: E731
    ones = lambda params: np.asarray(params.components.prob)  # noqa: E731
    return _family_mixture(name, family, options.pop("data", _BITS), start, ones, lambda p: p * (1 - p), **options)


def _categorical(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    codes = np.arange(3.0)
    start = lambda: made(jaxem.CategoricalParams, np.stack([_SHARES * 0.7 + 0.1] * 6, 1))  # noqa: E731

    def means(params: Any) -> np.ndarray:
        return np.asarray(params.components.prob) @ codes

    entry = _family_mixture(name, family, options.pop("data", _CODES), start, **options)
    squares = lambda params: np.asarray(params.components.prob) @ codes**2  # noqa: E731
    moments = lambda params: _mixed(params, means(params), squares(params) - means(params) ** 2)  # noqa: E731
    return replace(entry, moments=moments, component_means=means)


def _multinomial(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.MultinomialParams, _SHARES * 0.7 + 0.1)  # noqa: E731
    total = 8  # drawn by `sample`

    def moments(params: Any) -> tuple[np.ndarray, np.ndarray]:
        prob = np.asarray(params.components.prob)
        mean, covariance = _mixed(params, total * prob, total * prob)
        return mean, covariance - total * np.einsum("k,ki,kj->ij", np.asarray(params.weights), prob, prob)

    return _family_mixture(
        name,
        family,
        _CELLS,
        start,
        **(
            {"moments": moments, "component_means": lambda params: total * np.asarray(params.components.prob)} | options
        ),
    )


_MEANS = np.where(
    np.array([[1, 0, 0, 1, 0, 1, 1, 0], [0, 1, 0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 1, 1, 0, 1]]) == 1, 5.0, 1.0
)
_WAITS = _draw(9, lambda rng, z: np.maximum(rng.exponential(_MEANS[z]), 0.05 * _MEANS[z]))
_SHAPES = np.array([[4.0, 9.0], [8.0, 3.0], [15.0, 6.0]])
_SIZES = np.array([[1.0, 6.0], [3.0, 2.5], [4.0, 12.0]])
_LENGTHS = _draw(10, lambda rng, z: _SIZES[z] * rng.gamma(_SHAPES[z]) / _SHAPES[z])


def _exponential(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.ExponentialParams, 0.8 / _MEANS)  # noqa: E731
    options = {"discrete": False, "data": _WAITS} | options
    return _family_mixture(
        name, family, options.pop("data"), start, None, None, **options
    )  # kurtosis is above that of the test


def _gamma(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.GammaParams, np.full((K, 2), 4.0), 4.0 / (1.2 * _SIZES))  # noqa: E731
    means = lambda params: np.asarray(params.components.shape) / np.asarray(params.components.rate)  # noqa: E731
    entry = _family_mixture(
        name, family, options.pop("data", _LENGTHS), start, None, None, **({"discrete": False} | options)
    )
    variances = lambda params: means(params) / np.asarray(params.components.rate)  # noqa: E731
    moments = lambda params: _mixed(params, means(params), variances(params))  # noqa: E731
    return replace(entry, moments=moments, component_means=means)


def _weibull(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.WeibullParams, np.full((K, 2), 2.5), 1.3 * _SIZES)  # noqa: E731
    entry = _family_mixture(
        name, family, options.pop("data", _LENGTHS), start, None, None, **({"discrete": False} | options)
    )

    def raw_moment(params: Any, order: int) -> np.ndarray:
        shape, scale = np.asarray(params.components.shape), np.asarray(params.components.scale)
        return scale**order * gamma(1 + order / shape)

    means = lambda params: raw_moment(params, 1)  # noqa: E731
    variances = lambda params: raw_moment(params, 2) - raw_moment(params, 1) ** 2  # noqa: E731
    return replace(
        entry, moments=lambda params: _mixed(params, means(params), variances(params)), component_means=means
    )


COLUMNS = [
    _poisson("poisson", jaxem.Poisson),
    _poisson(
        "poisson_prior",
        lambda: jaxem.Poisson(jaxem.GammaPrior(np.asarray(1.7), np.array([0.3, 0.1])), missing=True),
        concentration=1.5,
        data=with_gaps(_COUNTS),
        variant=True,
        slow=True,
    ),
    # without priors few rows end on the boundary: tests/families/test_discrete.py
    _bernoulli("bernoulli", lambda: jaxem.Bernoulli(jaxem.BetaPrior(np.asarray(1.5), np.asarray(1.4)))),
    _bernoulli(
        "bernoulli_missing",
        lambda: jaxem.Bernoulli(jaxem.BetaPrior(np.asarray(1.3), np.linspace(1.1, 1.5, 5)), missing=True),
        concentration=1.5,
        data=with_gaps(_BITS),
        variant=True,
        slow=True,
    ),
    _categorical("categorical", lambda: jaxem.Categorical(3, jaxem.DirichletPrior(np.asarray(1.4))), slow=True),
    _categorical(
        "categorical_missing",
        lambda: jaxem.Categorical((3,) * 6, jaxem.DirichletPrior(np.array([1.2, 1.4, 1.1])), missing=True),
        concentration=1.5,
        data=with_gaps(_CODES),
        variant=True,
        slow=True,
    ),
    _multinomial("multinomial", jaxem.Multinomial, slow=True),
    _multinomial(
        "multinomial_prior",
        lambda: jaxem.Multinomial(jaxem.DirichletPrior(np.asarray(1.3))),
        concentration=1.5,
        variant=True,
        slow=True,
    ),
    _exponential("exponential", jaxem.Exponential, slow=True),
    _exponential(
        "exponential_prior",
        lambda: jaxem.Exponential(jaxem.GammaPrior(np.asarray(1.3), np.linspace(0.5, 2, 8)), missing=True),
        concentration=1.5,
        data=with_gaps(_WAITS, 17),
        discrete=True,
        variant=True,
        slow=True,
    ),
    _weibull("weibull", lambda: jaxem.Weibull(np.asarray(1e-3)), slow=True),
    _weibull(
        "weibull_missing",
        lambda: jaxem.Weibull(np.asarray(0.1), jaxem.GammaPrior(np.asarray(1.5), np.array([0.2, 0.1])), missing=True),
        concentration=1.5,
        data=with_gaps(_LENGTHS),
        discrete=True,
        variant=True,
        slow=True,
    ),
    _gamma("gamma", lambda: jaxem.Gamma(np.asarray(1e-3))),
    _gamma(
        "gamma_missing",
        lambda: jaxem.Gamma(np.asarray(0.2), missing=True),
        concentration=1.5,
        data=with_gaps(_LENGTHS),
        discrete=True,
        variant=True,
        slow=True,
    ),
]
