"""What the tests of hard data, arguments, drivers and groups share.

Compiling is what takes time there, so they share shapes too: rows (N, D) with sample weights, MAX_ITER iterations.
By default a property is tested on one family, one dtype and one plan; the others once a week.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxem
from jaxem import Status

FAMILIES = {
    "full": jaxem.FullNormal,
    "diagonal": jaxem.DiagonalNormal,
    "spherical": jaxem.SphericalNormal,
    "tied": jaxem.TiedNormal,
}
METHODS = {
    "k-means": jaxem.KMeans(),
    "points": jaxem.RandomPoints(),
    "responsibilities": jaxem.RandomResponsibilities(),
}
KEY = jax.random.key(0)
N, D, K, MAX_ITER = 40, 2, 2, 200

slow = pytest.mark.slow
once_a_week = (pytest.mark.slow, pytest.mark.weekly)  # a property met at every change too, with other values


def first(names: Any, values: Iterable[Any], **options: Any) -> pytest.MarkDecorator:
    """Parametrises a test; all values but the first are tested once a week. Tuples of values under a tuple of names."""
    one, *others = values
    several = isinstance(names, tuple)
    late = [pytest.param(*(value if several else (value,)), marks=once_a_week) for value in others]
    return pytest.mark.parametrize(names, [one, *late], **options)


one_family = first("name", FAMILIES)
float32_first = first("dtype", [np.float32, np.float64])
float64_first = first("dtype", [np.float64, np.float32])
lanes_first = first("plan", ["lanes", "sequential"])
sequential_first = first("plan", ["sequential", "lanes"])
one_family_and_method = pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(
            name, method, id=f"{name}-{label}", marks=() if f"{name}-{label}" == "full-k-means" else once_a_week
        )
        for name in FAMILIES
        for label, method in METHODS.items()
    ],
)


def mixture(name: str, k: int = K, **options: Any) -> jaxem.Mixture:
    return jaxem.Mixture(FAMILIES[name](**options), n_components=k)


def blobs(n: int = N, seed: int = 0, d: int = D, dtype: Any = np.float64) -> np.ndarray:
    """Two clouds, a third of the rows around 4, the others around 0."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 4.0 * (np.arange(n) % 3 == 0)[:, None]).astype(dtype)


def start(name: str, means: Any, variance: Any, dtype: Any = np.float64) -> jaxem.MixtureParams:
    """Equal weights, these means (k, d), and `variance` (d,) or () in every component."""
    means = np.asarray(means, dtype)
    k, d = means.shape
    variances = np.broadcast_to(np.asarray(variance, dtype), (d,))
    covariance = {
        "full": np.tile(np.diag(variances), (k, 1, 1)),
        "diagonal": np.tile(variances, (k, 1)),
        "spherical": np.full(k, variances.mean(), dtype),
        "tied": np.diag(variances),
    }[name]
    components = jaxem.NormalParams(jnp.asarray(means), jnp.asarray(covariance))
    return jaxem.MixtureParams(jnp.full(k, 1 / k, dtype), components)


def two_starts(name: str, d: int = D, dtype: Any = np.float64) -> jaxem.MixtureParams:
    return start(name, np.array([[0.5], [3.0]]) * np.ones((1, d)), 2.0, dtype)


def fit(name: str, params: Any, x: Any, weight: Any = None, **options: Any) -> jaxem.FitResult:
    """`jaxem.fit` in the shape that the tests share."""
    weight = np.ones(len(x), x.dtype) if weight is None else weight
    return jaxem.fit(mixture(name), params, x, sample_weight=weight, max_iter=MAX_ITER, **options)


@jax.jit
def init(model: jaxem.Mixture, key: Any, x: Any, weight: Any, method: Any) -> jaxem.MixtureParams:
    return model.init(key, x, sample_weight=weight, method=method)


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def assert_finite(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf)).all(), tree


def assert_close(got: Any, want: Any, rtol: float, atol: float = 0.0) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def assert_same(got: Any, want: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def statuses(result: Any) -> list[Status]:
    return [Status(int(code)) for code in np.ravel(result.status)]


def x64(on: bool) -> AbstractContextManager:
    """64-bit types on or off inside the context, under the name that the installed jax has for it."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import disable_x64, enable_x64  # type: ignore[attr-defined]

    return enable_x64() if on else disable_x64()


def replaced(params: jaxem.MixtureParams, **components: Any) -> jaxem.MixtureParams:
    return params._replace(components=params.components._replace(**components))


def made(kind: Any, *leaves: Any) -> Any:
    """Params, of NumPy arrays or others."""
    return kind(*leaves)


def logsumexp(values: Any, axis: int) -> np.ndarray:
    """scipy's, whose type says less."""
    return np.asarray(scipy.special.logsumexp(values, axis))


def mixture_params(bank: Any) -> jaxem.MixtureParams:
    k = jax.tree.leaves(bank)[0].shape[0]
    return made(jaxem.MixtureParams, np.full(k, 1 / k, jax.tree.leaves(bank)[0].dtype), bank)
