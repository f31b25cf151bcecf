"""Made data for every family and regression: plain ones, and ones at the extremes of what float32 can hold.

A `Case` draws rows from k components at a level of its own scale (a rate, a total, a concentration, an offset in
standard deviations …). Rows come as float64 and are rounded by whoever fits them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jaxem

Draw = Callable[[np.random.Generator, int, int, float], Any]  # rng, n, k, level -> data, leading axis n
TINY = 1e-30
ONE_IN = 1000  # one row of so many lies far out


class Case(NamedTuple):
    """A family, how to draw rows for k components at a level, levels that are extreme, levels that are plain."""

    family: Any
    draw: Draw
    levels: tuple[float, ...]
    plain: tuple[float, float]


def _z(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    z = rng.integers(k, size=n)
    z[:k] = np.arange(k)
    return z


def normals(spread: float = 8.0, d: int = 2, far: float = 0.0) -> Draw:
    """Correlated unit-variance rows; the level is the offset of all; `far` is where one row in a thousand lies."""

    def draw(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
        centres = level + spread * rng.normal(size=(k, d))
        factor = np.linalg.cholesky(0.5 * np.eye(d) + 0.5)
        x = centres[_z(rng, n, k)] + rng.normal(size=(n, d)) @ factor.T
        x[::ONE_IN, 0] += far
        return x

    return draw


def _means(rng: np.random.Generator, k: int, d: int, level: float) -> np.ndarray:
    """Means about the level: k steps of a few Poisson standard deviations, or of its own size, by chance."""
    step = 4 * np.sqrt(level) if rng.random() < 0.5 else 0.8 * level
    return level + step * (np.arange(k)[:, None] + 0.2 * rng.random((k, d)))


def counts(far: float = 0.0, size: float | None = None) -> Draw:
    """Counts (n, 2) of means about the level, Poisson or negative binomial."""

    def draw(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
        mean = _means(rng, k, 2, level)[_z(rng, n, k)]
        if size is not None:
            mean = mean * rng.gamma(size, 1 / size, mean.shape)
        x = rng.poisson(mean).astype(float)
        x[::ONE_IN] += far
        return x

    return draw


def multinomials(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
    """Rows of counts over four cells, one of them rare; the level is the total, which varies."""
    tilt = 1 + rng.choice([4 / np.sqrt(level), 0.5]) * rng.random((k, 4))
    prob = np.array([0.2, 0.3, 0.5, 1e-6]) * np.minimum(tilt, 2)
    prob = prob / prob.sum(1, keepdims=True)
    total = rng.poisson(level, n) + 1
    return np.stack([rng.multinomial(t, prob[j]) for t, j in zip(total, _z(rng, n, k), strict=True)]).astype(float)


def ones(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
    """Zeros and ones (n, 4); the level is how rare ones are in half of the columns, and zeros in the others."""
    prob = np.clip(level * (1 + 3 * rng.random((k, 4))), 0, 0.9)
    prob[:, 2:] = 1 - prob[:, 2:]
    return (rng.random((n, 4)) < prob[_z(rng, n, k)]).astype(float)


def categories(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
    """Codes 0 … 2 in three columns; the level is the probability of the last."""
    prob = np.array([0.6, 0.4, level]) * (0.5 + rng.random((k, 3, 3)))
    edges = np.cumsum(prob / prob.sum(-1, keepdims=True), -1)[_z(rng, n, k)]
    return np.minimum((rng.random((n, 3, 1)) > edges).sum(-1), 2).astype(float)


def _held(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Numbers that float32 holds: what is less lies anywhere on the scale of its logarithm, not at one point."""
    return np.where(x < TINY, TINY ** rng.random(x.shape), x)


def gammas(scale: float = 1.0, shape: float | None = None) -> Draw:
    """Positive rows (n, 2); the level is the shape, or the mean where the shape is given."""

    def draw(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
        own, mean = (level, scale) if shape is None else (shape, level)
        z = _z(rng, n, k)
        ratio = (1 + 6 * np.arange(k) / np.sqrt(max(own, 1)))[:, None] * (1 + 0.1 * rng.random((k, 2)))
        return _held(rng, rng.gamma(own, 1, (n, 2)) / own) * mean * ratio[z]

    return draw


def fractions(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
    """Numbers between 0 and 1 (n, 2); the level is the concentration a + b."""
    mean = 0.2 + 0.6 * rng.random((k, 2))
    a, b = (level * part[_z(rng, n, k)] for part in (mean, 1 - mean))
    return np.minimum(_held(rng, rng.beta(a, b)), 1 - 2.0**-24)


def shares(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
    """Rows of three shares; the level is the concentration."""
    alpha = level * rng.dirichlet([4.0, 4.0, 4.0], k)
    x = _held(rng, rng.gamma(alpha[_z(rng, n, k)]))
    return x / x.sum(1, keepdims=True)


def directions(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
    """Unit vectors (n, 3) about k directions; the level is the concentration, normal about the direction where high."""
    mean = rng.normal(size=(k, 3))
    mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    x = mean[_z(rng, n, k)] + rng.normal(size=(n, 3)) / np.sqrt(level)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def lognormals(rng: np.random.Generator, n: int, k: int, level: float) -> np.ndarray:
    """Positive rows (n, 2); the level is the median."""
    return level * np.exp(rng.normal(size=(n, 2)) * 0.3 + 2 * np.arange(k)[_z(rng, n, k), None])


def _design(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.stack([np.ones(n), rng.normal(size=n)], 1)


def lines(noise: Callable = np.random.Generator.normal, far: float = 0.0) -> Draw:
    """Responses on k lines; the level is their offset, in standard deviations."""

    def draw(rng: np.random.Generator, n: int, k: int, level: float) -> tuple:
        x, beta = _design(rng, n), np.stack([level + 6 * np.arange(k), rng.normal(size=k)], 1)
        y = np.sum(x * beta[_z(rng, n, k)], 1) + noise(rng, size=n)
        y[::ONE_IN] += far
        return x, y

    return draw


def rates(size: float | None = None, exposed: bool = True) -> Draw:
    """Responses that are counts, whose mean at the middle is the level, with an exposure."""

    def draw(rng: np.random.Generator, n: int, k: int, level: float) -> tuple:
        x, offset = _design(rng, n), np.log(level) + (rng.normal(size=n) if exposed else np.zeros(n))
        beta = np.stack([np.log1p(np.arange(k)), 0.3 * rng.normal(size=k)], 1)
        mean = np.exp(offset + np.sum(x * beta[_z(rng, n, k)], 1))
        mean = mean if size is None else mean * rng.gamma(size, 1 / size, n)
        y = rng.poisson(mean).astype(float)
        return (x, y, offset) if exposed else (x, y)

    return draw


def successes(rng: np.random.Generator, n: int, k: int, level: float) -> tuple:
    """Successes and failures (n, 2); the level is the number of trials."""
    x, beta = _design(rng, n), np.stack([1.5 * np.arange(k), rng.normal(size=k)], 1)
    trials = rng.poisson(level, n) + 1
    s = rng.binomial(trials, 1 / (1 + np.exp(-np.sum(x * beta[_z(rng, n, k)], 1))))
    return x, np.stack([s, trials - s], 1).astype(float)


OFFSETS = (0.0, 1.0, 1e2, 1e4)
COUNTS = (1e-6, 1e-3, 1.0, 30.0, 1e3, 1e5, 1e6, 1e8)
CASES: dict[str, Case] = {
    "FullNormal": Case(jaxem.FullNormal(), normals(), OFFSETS, (-1e4, 1e4)),
    "FullNormal, spread 1000": Case(jaxem.FullNormal(), normals(1e3), OFFSETS, (-1e4, 1e4)),
    "FullNormal, far row": Case(jaxem.FullNormal(), normals(far=1e7), OFFSETS, (-1e4, 1e4)),
    "FullNormal, 8 columns": Case(jaxem.FullNormal(), normals(20.0, 8), OFFSETS, (-1e4, 1e4)),
    "DiagonalNormal": Case(jaxem.DiagonalNormal(), normals(30.0), OFFSETS, (-1e4, 1e4)),
    "SphericalNormal": Case(jaxem.SphericalNormal(), normals(30.0), OFFSETS, (-1e4, 1e4)),
    "TiedNormal": Case(jaxem.TiedNormal(), normals(30.0), OFFSETS, (-1e4, 1e4)),
    "LowRankNormal": Case(jaxem.LowRankNormal(1), normals(30.0, 3), OFFSETS, (-1e4, 1e4)),
    "StudentT": Case(jaxem.StudentT(), normals(30.0), OFFSETS, (-1e4, 1e4)),
    "StudentT, far row": Case(jaxem.StudentT(), normals(30.0, far=1e7), OFFSETS, (-1e4, 1e4)),
    "LogNormal": Case(jaxem.LogNormal(), lognormals, (1e-6, 1.0, 1e7), (1.0, 1e4)),
    "Exponential": Case(jaxem.Exponential(), gammas(shape=1.0), (1e-6, 1.0, 1e6), (1.0, 1e4)),
    "Gamma": Case(jaxem.Gamma(), gammas(), (1e-3, 1e-1, 1.0, 1e2, 1e4), (0.5, 50.0)),
    "Gamma, large": Case(jaxem.Gamma(), gammas(1e6), (1e-3, 1.0, 1e4), (0.5, 50.0)),
    "Beta": Case(jaxem.Beta(), fractions, (1e-2, 1.0, 1e2, 1e4, 1e6), (1.0, 100.0)),
    "Dirichlet": Case(jaxem.Dirichlet(), shares, (1e-1, 1.0, 1e2, 1e4, 1e6), (1.0, 100.0)),
    "VonMisesFisher": Case(jaxem.VonMisesFisher(), directions, (1e-2, 1.0, 1e2, 1e4, 1e6), (1.0, 1e3)),
    "Poisson": Case(jaxem.Poisson(), counts(), COUNTS, (1.0, 1e4)),
    "Poisson, far row": Case(jaxem.Poisson(), counts(far=1e7), COUNTS, (1.0, 1e4)),
    "NegativeBinomial": Case(jaxem.NegativeBinomial(), counts(size=3.0), COUNTS, (1.0, 1e4)),
    "NegativeBinomial, Poisson": Case(jaxem.NegativeBinomial(), counts(), COUNTS, (1.0, 1e4)),
    "NegativeBinomial, far row": Case(jaxem.NegativeBinomial(), counts(1e7, 3.0), COUNTS, (1.0, 1e4)),
    "Multinomial": Case(jaxem.Multinomial(), multinomials, (1.0, 30.0, 1e3, 1e5, 1e6, 1e8), (1.0, 1e4)),
    "Bernoulli": Case(jaxem.Bernoulli(), ones, (1e-6, 1e-3, 0.3), (0.05, 0.5)),
    "Categorical": Case(jaxem.Categorical(3), categories, (1e-6, 1e-3, 0.3), (0.05, 0.5)),
    "LinearRegression": Case(jaxem.LinearRegression(), lines(), OFFSETS, (-1e4, 1e4)),
    "LinearRegression, far row": Case(jaxem.LinearRegression(), lines(far=1e7), OFFSETS, (-1e4, 1e4)),
    "StudentTRegression": Case(
        jaxem.StudentTRegression(), lines(lambda rng, size: rng.standard_t(4, size)), OFFSETS, (-1e4, 1e4)
    ),
    "PoissonRegression": Case(jaxem.PoissonRegression(), rates(), (0.1, *COUNTS[2:]), (1.0, 1e4)),
    "PoissonRegression, no offset": Case(jaxem.PoissonRegression(), rates(exposed=False), COUNTS[2:], (1.0, 1e4)),
    "NegativeBinomialRegression": Case(jaxem.NegativeBinomialRegression(), rates(3.0), (0.1, *COUNTS[2:]), (1.0, 1e4)),
    "LogisticRegression": Case(jaxem.LogisticRegression(), successes, (1.0, 30.0, 1e3, 1e5, 1e6, 1e8), (1.0, 1e4)),
}


def single(data: Any) -> Any:
    """The rows in float32, as a fit takes them."""
    if isinstance(data, tuple):
        return tuple(np.asarray(leaf, np.float32) for leaf in data)
    return np.asarray(data, np.float32)


def stacked(lanes: list[Any]) -> Any:
    """Data of several lanes with a leading axis for them."""
    if isinstance(lanes[0], tuple):
        return tuple(np.stack(leaves) for leaves in zip(*lanes, strict=True))
    return np.stack(lanes)
