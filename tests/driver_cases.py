"""One model, start and shape for the tests of drivers and groups, so that they share compiled programs."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers import D, K, assert_same, blobs

import jaxem

N, MAX_ITER = 30, 150
SIZES = (12, 10, 16)  # of the groups of most tables here: all are padded to 16, which is one program
MODEL = jaxem.Mixture(jaxem.FullNormal(), K)


def begin(n_lanes: int | None = None) -> jaxem.MixtureParams:
    """One start, or the same for every lane."""
    components = jaxem.NormalParams(jnp.array([[0.5, 0.0], [3.0, 3.5]]), jnp.stack([2.0 * jnp.eye(D)] * K))
    params = jaxem.MixtureParams(jnp.full(K, 0.5), components)
    return params if n_lanes is None else jax.tree.map(lambda leaf: jnp.stack([leaf] * n_lanes), params)


def assert_close(got: Any, want: Any, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def assert_same_fit(got: Any, want: Any) -> None:
    """Up to the order of additions."""
    assert_same((got.status, got.n_iter, got.n_evals), (want.status, want.n_iter, want.n_evals))
    assert_close((got.params, got.objective, got.log_lik), (want.params, want.objective, want.log_lik))


def alone(x: np.ndarray, weight: np.ndarray | None = None, size: int = 150) -> jaxem.FitResult:
    """The fit of one group; its rows are followed by rows of weight zero so that all sizes share one program."""
    n = len(x)
    padded = np.full((max(n, size), D), np.nan)
    padded[:n] = x
    weights = np.zeros(len(padded))
    weights[:n] = 1.0 if weight is None else weight
    return jaxem.fit(MODEL, begin(), padded, sample_weight=weights, max_iter=MAX_ITER)


@cache
def three_groups() -> tuple[np.ndarray, list[jaxem.FitResult]]:
    """A table sorted by group, SIZES rows each, and the fit of each group by itself."""
    parts = [blobs(size, seed) for seed, size in enumerate(SIZES)]
    return np.concatenate(parts), [alone(part) for part in parts]
