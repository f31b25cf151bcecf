"""Bijections between a constrained set and free real coordinates.

Each maps the trailing axes of an array, so it serves a single value and a bank alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _tree
from ._linalg import cholesky
from ._typing import Array, Params, PyTree


@dataclass(frozen=True, repr=False)
class Bijection:
    """A pair of inverse maps. Hashable, so that it can be static; the makers below return the same one every time.

    Attributes:
        name: for messages.
        to_free: constrained → free.
        from_free: free → constrained.
        contains: whether a constrained value lies in the set, reduced over all axes.
    """

    name: str
    to_free: Callable[[Array], Array]
    from_free: Callable[[Array], Array]
    contains: Callable[[Array], Array]

    def __repr__(self) -> str:
        return f"<bijection {self.name}>"


def _softplus_inverse(x: Array) -> Array:
    return x + jnp.log(-jnp.expm1(-x))


def _simplex_to_free(p: Array) -> Array:
    tiny = jnp.finfo(p.dtype).tiny  # a weight of zero has no free coordinate: it comes back as 1e-38 or 1e-308
    log_p = jnp.log(jnp.maximum(p, tiny))
    return log_p[..., :-1] - log_p[..., -1:]


def _simplex_from_free(free: Array) -> Array:
    zero = jnp.zeros((*free.shape[:-1], 1), free.dtype)
    return jax.nn.softmax(jnp.concatenate([free, zero], -1), -1)


def _ordered_to_free(x: Array) -> Array:
    return jnp.concatenate([x[..., :1], jnp.log(jnp.diff(x, axis=-1))], -1)


def _ordered_from_free(free: Array) -> Array:
    return jnp.cumsum(jnp.concatenate([free[..., :1], jnp.exp(free[..., 1:])], -1), -1)


def _pd_to_free(matrix: Array) -> Array:
    d = matrix.shape[-1]
    factor = cholesky(matrix)
    log_diagonal = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1))
    rows, columns = np.tril_indices(d, -1)
    return jnp.concatenate([log_diagonal, factor[..., rows, columns]], -1)


def _pd_from_free(free: Array) -> Array:
    f = free.shape[-1]
    d = int((np.sqrt(8 * f + 1) - 1) / 2)
    rows, columns = np.tril_indices(d, -1)
    diagonal = np.arange(d)
    factor = jnp.zeros((*free.shape[:-1], d, d), free.dtype)
    factor = factor.at[..., diagonal, diagonal].set(jnp.exp(free[..., :d]))
    factor = factor.at[..., rows, columns].set(free[..., d:])
    return jnp.matmul(factor, jnp.swapaxes(factor, -1, -2), precision=jax.lax.Precision.HIGHEST)


def _is_pd(matrix: Array) -> Array:
    factor = cholesky(matrix)
    gap = jnp.abs(matrix - jnp.swapaxes(matrix, -1, -2))
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)  # the Cholesky factor reads one triangle or the mean of both
    symmetric = jnp.all(gap <= 1e-4 * jnp.sqrt(jnp.abs(diagonal[..., :, None] * diagonal[..., None, :])))
    return symmetric & jnp.all(jnp.isfinite(factor)) & jnp.all(jnp.diagonal(factor, axis1=-2, axis2=-1) > 0)


@cache
def interval(low: float, high: float) -> Bijection:
    """The open interval (low, high), through the logit.

    Raises:
        ValueError: unless low < high.
    """
    if not low < high:
        raise ValueError(f"interval: expected low < high, got low={low}, high={high}.")
    width = high - low
    return Bijection(
        f"interval({low}, {high})",
        lambda x: jax.scipy.special.logit((x - low) / width),
        lambda u: low + width * jax.nn.sigmoid(u),
        lambda x: jnp.all((x > low) & (x < high)),
    )


real = Bijection("real", lambda x: x, lambda u: u, lambda x: jnp.all(jnp.isfinite(x)))
positive = Bijection("positive", jnp.log, jnp.exp, lambda x: jnp.all((x > 0) & jnp.isfinite(x)))
softplus = Bijection("softplus", _softplus_inverse, jax.nn.softplus, positive.contains)
unit_interval = replace(interval(0.0, 1.0), name="unit_interval")
simplex = Bijection(
    "simplex",
    _simplex_to_free,
    _simplex_from_free,
    lambda p: jnp.all(p >= 0) & jnp.all(jnp.abs(jnp.sum(p, -1) - 1) <= 1e-4),
)
ordered = Bijection(
    "ordered",
    _ordered_to_free,
    _ordered_from_free,
    lambda x: jnp.all(jnp.diff(x, axis=-1) > 0) & jnp.all(jnp.isfinite(x)),
)
positive_definite = Bijection("positive_definite", _pd_to_free, _pd_from_free, _is_pd)


@cache
def greater_than(low: float) -> Bijection:
    """The open half-line above `low`, through the logarithm."""
    return Bijection(
        f"greater_than({low})",
        lambda x: jnp.log(x - low),
        lambda u: low + jnp.exp(u),
        lambda x: jnp.all((x > low) & jnp.isfinite(x)),
    )


@dataclass(frozen=True)
class Constraints:
    """A bijection for every leaf of a tree of params; made by `constraints_of`. Hashable.

    Attributes:
        structure: of a prefix tree of the params.
        bijections: its leaves; None is `real`.
    """

    structure: Any
    bijections: tuple[Bijection | None, ...]

    def _map(self, fn: Callable[[Bijection, Array, str], Array], params: Params) -> Params:
        try:
            subtrees = self.structure.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"constraints: expected a prefix tree of the params; {error}") from error
        each = zip(self.bijections, subtrees, strict=True)
        done = [
            jax.tree_util.tree_map_with_path(lambda path, x, b=b: fn(b or real, x, jax.tree_util.keystr(path)), subtree)
            for b, subtree in each
        ]
        return jax.tree.unflatten(self.structure, done)

    def to_free(self, params: Params) -> Params:
        """Free coordinates of params."""
        return self._map(lambda b, x, _: b.to_free(x), params)

    def from_free(self, free: Params) -> Params:
        """Inverse of `to_free`."""
        return self._map(lambda b, x, _: b.from_free(x), free)

    def check(self, params: Params, name: str = "params") -> None:
        """Raises a ValueError if the trees do not match or a concrete value lies outside its set."""

        def one(bijection: Bijection, value: Array, path: str) -> Array:
            if not _tree.is_tracing(value):
                with jax.ensure_compile_time_eval():
                    inside = bool(bijection.contains(jnp.asarray(value)))
                if not inside:
                    raise ValueError(f"{name}{path}: expected a value in {bijection.name}, got {np.asarray(value)}.")
            return value

        self._map(one, params)


def constraints_of(tree: PyTree) -> Constraints:
    """The constraints that a prefix tree of bijections (None: unconstrained) describes.

    Raises:
        ValueError: if a leaf is neither.
    """
    if isinstance(tree, Constraints):
        return tree
    is_leaf = lambda leaf: leaf is None or isinstance(leaf, Bijection)  # noqa: E731
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_leaf)
    for leaf in leaves:
        if not is_leaf(leaf):
            raise ValueError(f"constraints: expected bijections, e.g. jaxem.bijections.positive, got {leaf!r}.")
    return Constraints(structure, tuple(leaves))
