"""Entries of the registry: models of series, whose data hold whole numbers beside those that can be moved."""

from typing import Any

import jax
import numpy as np
from contract_entries import CENTRES, COLUMN_SCALE, K, ModelEntry, N
from contract_families import made

import jaxem

T = 5
_rng = np.random.default_rng(14)
_MOVES = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.2, 0.5]])
_CYCLE = np.array([[True, True, False], [False, True, True], [True, False, True]])
_LENGTH = (2 + np.arange(N) % (T - 1)).astype(np.int32)


def _path(moves: np.ndarray) -> np.ndarray:
    """States (N, T); as many series begin in one as in another."""
    path = [np.arange(N) % K]
    for _ in range(T - 1):
        path.append((moves[path[-1]].cumsum(1) > _rng.uniform(size=(N, 1))).argmax(1))
    return np.stack(path, 1)


_Z = _path(_MOVES)
_X = (CENTRES[2][_Z] + _rng.normal(size=(N, T, 2))) * COLUMN_SCALE
_START_MOVES = 0.5 * _MOVES + 0.5 / K


def _start() -> jaxem.HMMParams:
    mean = CENTRES[2] * COLUMN_SCALE + np.array([0.5, -1.0])
    bank = made(jaxem.NormalParams, mean, np.stack([np.diag(_X.var((0, 1)) / 4)] * K))
    return made(jaxem.HMMParams, np.array([0.3, 0.3, 0.4]), _START_MOVES.copy(), bank)


def _moved(model: Any, params: Any, data: Any, scale: np.ndarray, shift: np.ndarray) -> tuple[Any, Any, Any]:
    params = jax.tree.map(np.asarray, params)
    mean, covariance = params.emissions
    bank = params.emissions._replace(mean=mean * scale + shift, covariance=covariance * np.outer(scale, scale))
    return model, params._replace(emissions=bank), data._replace(values=data.values * scale + shift)


_HIDDEN_MARKOV = ModelEntry(
    name="hidden_markov",
    build=lambda: jaxem.HiddenMarkovModel(
        jaxem.FullNormal(np.asarray(0.01)),
        K,
        concentration=np.array([[3.0, 2.0, 1.5], [1.5, 2.5, 2.0], [2.0, 1.25, 3.0]]),
        initial_concentration=np.array([1.5, 2.0, 3.0]),
    ),
    data=jaxem.Sequences(_X.copy(), _LENGTH.copy()),
    start=_start,
    moved=_moved,
    unreadable=np.inf,
    sampled=(T,),
)


def _cyclic(rows: np.ndarray) -> np.ndarray:
    rows = np.where(_CYCLE, rows, 0)
    return rows / rows.sum(1, keepdims=True)


_RATES = np.array([[1.0], [7.0], [20.0]])
_CYCLIC = ModelEntry(
    name="hidden_markov_cyclic",
    build=lambda: jaxem.HiddenMarkovModel(
        jaxem.Poisson(jaxem.GammaPrior(np.asarray(1.5), np.asarray(0.2))), K, allowed=_CYCLE.copy(), concentration=1.5
    ),
    data=jaxem.Sequences(_rng.poisson(_RATES[_path(_cyclic(_MOVES))]).astype(float), _LENGTH.copy()),
    start=lambda: made(
        jaxem.HMMParams, np.full(K, 1 / K), _cyclic(_START_MOVES), made(jaxem.PoissonParams, _RATES * 1.2)
    ),
    discrete=True,
    variant=True,
    slow=True,
    unreadable=np.inf,
    sampled=(T,),
)

SERIES = [_HIDDEN_MARKOV, _CYCLIC]
