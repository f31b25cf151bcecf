"""Entries of the registry: families made of others, directions, low rank."""

from typing import Any

import jax
import numpy as np
from contract_entries import CENTRES, COLUMN_SCALE, K, ModelEntry, N
from contract_families import made

import jaxem

_rng = np.random.default_rng(12)
_Z = np.arange(N) % K
_X = (CENTRES[2][_Z] + _rng.normal(size=(N, 2))) * COLUMN_SCALE
_RATES = np.array([[1.0], [6.0], [15.0]])
_COUNTS = _rng.poisson(_RATES[_Z]).astype(float)
_WEIGHTS = np.array([0.3, 0.3, 0.4])


def _normals(k: int = K) -> jaxem.NormalParams:
    return made(jaxem.NormalParams, CENTRES[2][:k] * COLUMN_SCALE + [0.5, -1.0], np.stack([np.diag(_X.var(0) / 4)] * k))


_PRODUCT = ModelEntry(
    name="product",
    build=lambda: jaxem.Mixture(
        jaxem.Product(
            size=jaxem.FullNormal(np.asarray(1e-3)),
            count=jaxem.Poisson(jaxem.GammaPrior(np.asarray(1.5), np.asarray(0.2))),
        ),
        K,
        concentration=1.5,
    ),
    data={"size": _X.copy(), "count": _COUNTS.copy()},
    start=lambda: made(
        jaxem.MixtureParams, _WEIGHTS.copy(), {"size": _normals(), "count": made(jaxem.PoissonParams, _RATES * 1.2)}
    ),
    discrete=True,
)

_BOX = np.array([[-10.0, -40.0], [12.0, 60.0]])
_NOISY = np.concatenate([_X[: N - 8], _rng.uniform(_BOX[0], _BOX[1], (8, 2)) * 0.95])


def _background() -> jaxem.Uniform:
    return jaxem.Uniform(*_BOX.copy())


_ONE_OF = ModelEntry(
    name="one_of",
    build=lambda: jaxem.Mixture(jaxem.OneOf(_background(), jaxem.FullNormal(), jaxem.DiagonalNormal()), K),
    data=_NOISY,
    start=lambda: made(
        jaxem.MixtureParams,
        _WEIGHTS.copy(),
        (
            jaxem.NoParams(),
            made(jaxem.NormalParams, np.array([[1.0, 4.0]]), np.diag(_X.var(0))[None]),
            made(jaxem.NormalParams, CENTRES[2][2:] * COLUMN_SCALE, _X.var(0)[None] / 4),
        ),
    ),
)

_INFLATED = np.where(np.arange(N) % 2, 0, _rng.poisson(np.where(np.arange(N) % 4, 2.0, 9.0)))[:, None].astype(float)
_ZERO_INFLATED = ModelEntry(
    name="zero_inflated",
    build=lambda: jaxem.Mixture(jaxem.OneOf(jaxem.PointMass(np.asarray(0.0)), jaxem.Poisson(), jaxem.Poisson()), K),
    data=_INFLATED,
    start=lambda: made(
        jaxem.MixtureParams,
        _WEIGHTS.copy(),
        (jaxem.NoParams(), *(made(jaxem.PoissonParams, np.array([[rate]])) for rate in (2.0, 9.0))),
    ),
    discrete=True,
    variant=True,
    slow=True,
)


def _directions() -> np.ndarray:
    x = np.eye(3)[_Z] * 4 + _rng.normal(size=(N, 3)) * [1.0, 1.5, 2.0]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


_TOWARDS = np.array([[0.8, 0.6, 0.0], [0.0, 0.8, 0.6], [0.6, 0.0, 0.8]])
_VON_MISES_FISHER = ModelEntry(
    name="von_mises_fisher",
    build=lambda: jaxem.Mixture(jaxem.VonMisesFisher(np.asarray(1e-3)), K, concentration=1.5),
    data=_directions(),
    start=lambda: made(
        jaxem.MixtureParams, _WEIGHTS.copy(), made(jaxem.VonMisesFisherParams, _TOWARDS.copy(), np.ones(K))
    ),
    discrete=True,  # of length one
    slow=True,
)

# of rank 1, whose params are isolated up to a sign


def _low_rank_moved(model: Any, params: Any, data: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> Any:
    scale, shift = np.resize(scale, 3), np.resize(shift, 3)
    params = jax.tree.map(np.asarray, params)
    mean, loadings, noise = params.components
    bank = made(jaxem.LowRankNormalParams, mean * scale + shift, loadings * scale[:, None], noise * scale**2)
    return model, params._replace(components=bank), data * scale + shift


def _low_rank_moments(params: Any) -> tuple[np.ndarray, np.ndarray]:
    weights, (mean, loadings, noise) = jax.tree.map(np.asarray, params)
    overall = weights @ mean
    covariance = loadings @ loadings.transpose(0, 2, 1) + noise[:, :, None] * np.eye(mean.shape[1])
    centred = mean - overall
    return overall, np.einsum("k,kij->ij", weights, covariance + centred[:, :, None] * centred[:, None, :])


_ACROSS = CENTRES[2] @ np.array([[3.0, 0.0, 3.0], [0.0, 3.0, -3.0]])  # a factor is identified by three columns


def _loaded() -> np.ndarray:
    rng = np.random.default_rng(2)
    return _ACROSS[_Z] + 0.8 * rng.normal(size=(N, 1)) + 0.6 * rng.normal(size=(N, 3))


_LOW_RANK = ModelEntry(
    name="low_rank",
    build=lambda: jaxem.Mixture(jaxem.LowRankNormal(1, np.asarray(0.2)), K, concentration=1.5),
    data=_loaded(),
    start=lambda: made(
        jaxem.MixtureParams,
        _WEIGHTS.copy(),
        made(
            jaxem.LowRankNormalParams,
            _ACROSS + 0.3,
            np.full((K, 3, 1), 0.8),
            np.full((K, 3), 0.5),
        ),
    ),
    moved=_low_rank_moved,
    moments=_low_rank_moments,
    augmented=True,
    slow=True,
)

COMPOSITION = [_LOW_RANK, _PRODUCT, _ONE_OF, _ZERO_INFLATED, _VON_MISES_FISHER]
