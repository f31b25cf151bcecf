"""The first answers that a user waits for, each in a process of its own: a job of `benchmarks.startup --against`.

    python benchmarks/cold.py NAME

It prints the seconds from after the imports, with the backend up, to the result. Jobs use public names alone, and only
such as every revision has, so that this file can time another revision's jaxem.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

N, D, K = 500, 2, 3


def main() -> None:
    job = JOBS[sys.argv[1]]
    for name in jaxem.__all__:  # imports what a revision imports when a name is asked for
        getattr(jaxem, name)
    jax.block_until_ready(jax.device_put(0.0))
    started = time.perf_counter()
    jax.block_until_ready(job())
    print(time.perf_counter() - started)


def rows() -> np.ndarray:
    """K clouds, (N, D)."""
    rng = np.random.default_rng(0)
    return (3 * rng.integers(K, size=(N, 1)) + rng.normal(size=(N, D))).astype(np.float32)


def model_and_start(x: np.ndarray) -> tuple[Any, Any]:
    """A normal mixture, and params to start from that no function of jaxem has made."""
    covariances = np.tile(4 * np.eye(D, dtype=np.float32), (K, 1, 1))
    means = x[np.random.default_rng(1).choice(N, K, replace=False)]
    params = jaxem.MixtureParams(
        jnp.full(K, 1 / K, jnp.float32), jaxem.NormalParams(jnp.asarray(means), jnp.asarray(covariances))
    )
    return jaxem.Mixture(jaxem.FullNormal(), n_components=K), params


def fit() -> Any:
    x = rows()
    return jaxem.fit(*model_and_start(x), x).params


def init() -> Any:
    x = rows()
    return model_and_start(x)[0].init(jax.random.key(0), x)


def fit_restarts() -> Any:
    x = rows()
    return jaxem.fit_restarts(model_and_start(x)[0], jax.random.key(0), x, n_restarts=8).params


def gradient() -> Any:
    x = rows()
    model, start = model_and_start(x)
    return jax.grad(lambda x: jaxem.fit(model, start, x).params.weights[0])(x)


def standard_errors() -> Any:
    """Of clouds so far apart that their own moments are the maximum of the likelihood."""
    rng = np.random.default_rng(0)
    state = np.arange(N) % K
    x = (100 * state[:, None] + rng.normal(size=(N, D))).astype(np.float32)
    clouds = [x[state == j] for j in range(K)]
    moments = [
        jnp.asarray(np.stack([f(cloud) for cloud in clouds]), jnp.float32)
        for f in (lambda cloud: len(cloud) / N, lambda cloud: cloud.mean(0), lambda cloud: np.cov(cloud.T, bias=True))
    ]
    params = jaxem.MixtureParams(moments[0], jaxem.NormalParams(*moments[1:]))
    return jaxem.standard_errors(jaxem.Mixture(jaxem.FullNormal(), n_components=K), params, x).standard_errors


def log_joint() -> Any:
    """Two normal regimes of a line, the joint written by hand."""

    def joint(params: Any, row: Any) -> Any:
        gap = (row[1] - params["line"][:, 0] - params["line"][:, 1] * row[0]) / jnp.exp(params["log_scale"])
        return jax.nn.log_softmax(params["logits"]) - params["log_scale"] - jnp.square(gap) / 2

    start = {
        "logits": np.zeros(2, np.float32),
        "line": np.array([[0.0, 1.0], [2.0, 0.5]], np.float32),
        "log_scale": np.zeros(2, np.float32),
    }
    return jaxem.fit(jaxem.LogJoint(joint, 2), start, rows()).params


JOBS: dict[str, Callable[[], Any]] = {
    "fit": fit,
    "init": init,
    "fit_restarts": fit_restarts,
    "grad of a fit": gradient,
    "standard_errors": standard_errors,
    "LogJoint fit": log_joint,
}

if __name__ == "__main__":
    main()
