"""Bijections between a constrained set and free real coordinates, for the `constraints` of `LogJoint` and `Density`.

Each maps the trailing axes of an array, so it serves a single value and a bank alike.

Example:
    >>> import jax.numpy as jnp
    >>> from jaxem import bijections
    >>> values = {
    ...     bijections.real: [-1.0, 2.0],
    ...     bijections.positive: [0.5, 3.0],
    ...     bijections.softplus: [0.5, 3.0],
    ...     bijections.unit_interval: [0.1, 0.9],
    ...     bijections.simplex: [0.2, 0.3, 0.5],
    ...     bijections.ordered: [-1.0, 0.0, 5.0],
    ...     bijections.positive_definite: [[2.0, 1.0], [1.0, 3.0]],
    ... }
    >>> for bijection, value in values.items():
    ...     free = bijection.to_free(jnp.array(value))
    ...     print(bijection.name, free.shape, bool(jnp.allclose(bijection.from_free(free), jnp.array(value))))
    real (2,) True
    positive (2,) True
    softplus (2,) True
    unit_interval (2,) True
    simplex (2,) True
    ordered (3,) True
    positive_definite (3,) True
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._typing import Array, Params, PyTree
from .numerics import tree as _tree
from .numerics.linalg import cholesky

__all__ = [
    "Bijection",
    "Constraints",
    "constraints_of",
    "greater_than",
    "interval",
    "ordered",
    "positive",
    "positive_definite",
    "real",
    "simplex",
    "softplus",
    "unit_interval",
]


@dataclass(frozen=True, repr=False)
class Bijection:
    """A pair of inverse maps. Hashable, so that it can be static; the makers below return the same one every time.

    Attributes:
        name: for messages.
        to_free: constrained → free.
        from_free: free → constrained.
        contains: whether a constrained value lies in the set, reduced over all axes.
        projected: (value, near) → a value of the set, of one that may lie outside and one inside near which it shall
            be, for algorithms that jump ahead of EM; None: by way of the free coordinates, NaN if these are.
        trailing: how many trailing axes one value has: 0 of a number, 1 of a vector, 2 of a matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem import bijections
        >>> log2 = bijections.Bijection("log2", jnp.log2, jnp.exp2, bijections.positive.contains)  # at module level
        >>> log2.to_free(jnp.array(8.0)), log2.from_free(jnp.array(3.0))
        (Array(3., dtype=...), Array(8., dtype=...))
    """

    name: str
    to_free: Callable[[Array], Array]
    from_free: Callable[[Array], Array]
    contains: Callable[[Array], Array]
    projected: Callable[[Array, Array], Array] | None = None
    trailing: int = 0

    def __repr__(self) -> str:
        return f"<bijection {self.name}>"


_KEPT = 0.01  # of the distance to a boundary that a jump would cross


def drawn_back(x: Array, near: Array) -> Array:
    """Values above 0 again: no nearer to it than a hundredth of allowed ones, and 0 where these are."""
    return jnp.where(near == 0, 0, jnp.maximum(x, _KEPT * near))


def _within(low: float, high: float) -> Callable[[Array, Array], Array]:
    return lambda x, near: jnp.clip(x, low + _KEPT * (near - low), high - _KEPT * (high - near))


def _onto_simplex(p: Array, near: Array) -> Array:
    p = drawn_back(p, near)
    return p / jnp.sum(p, -1, keepdims=True)


def _in_order(x: Array, near: Array) -> Array:
    gaps = drawn_back(jnp.diff(x, axis=-1), jnp.diff(near, axis=-1))
    return jnp.cumsum(jnp.concatenate([x[..., :1], gaps], -1), -1)


def _onto_pd(matrix: Array, near: Array) -> Array:
    """Eigenvalues relative to those of the other matrix are at least a hundredth."""
    factor = cholesky(near)
    solve = lambda m: jax.scipy.linalg.solve_triangular(factor, m, lower=True)  # noqa: E731
    relative = solve(jnp.swapaxes(solve(matrix), -1, -2))
    values, vectors = jnp.linalg.eigh((relative + jnp.swapaxes(relative, -1, -2)) / 2)
    half = jnp.matmul(factor, vectors * jnp.sqrt(jnp.maximum(values, _KEPT))[..., None, :], precision="highest")
    return jnp.matmul(half, jnp.swapaxes(half, -1, -2), precision="highest")


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

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem import bijections
        >>> shift = bijections.interval(-1.0, 3.0)
        >>> shift.from_free(jnp.array(0.0)), bool(shift.contains(jnp.array(3.5)))
        (Array(1., dtype=...), False)
    """
    if not low < high:
        raise ValueError(f"interval: expected low < high, got low={low}, high={high}.")
    width = high - low
    return Bijection(
        f"interval({low}, {high})",
        lambda x: jax.scipy.special.logit((x - low) / width),
        lambda u: low + width * jax.nn.sigmoid(u),
        lambda x: jnp.all((x > low) & (x < high)),
        _within(low, high),
    )


real = Bijection("real", lambda x: x, lambda u: u, lambda x: jnp.all(jnp.isfinite(x)), lambda x, near: x)
"""Any finite number, as it is."""
positive = Bijection("positive", jnp.log, jnp.exp, lambda x: jnp.all((x > 0) & jnp.isfinite(x)), drawn_back)
"""Numbers above 0, through the logarithm."""
softplus = Bijection("softplus", _softplus_inverse, jax.nn.softplus, positive.contains, drawn_back)
"""Numbers above 0, through x = log(1 + exp(u)): large ones nearly as they are."""
unit_interval = replace(interval(0.0, 1.0), name="unit_interval")
"""Numbers between 0 and 1, through the logit."""
simplex = Bijection(
    "simplex",
    _simplex_to_free,
    _simplex_from_free,
    lambda p: jnp.all(p >= 0) & jnp.all(jnp.abs(jnp.sum(p, -1) - 1) <= 1e-4),
    _onto_simplex,
    trailing=1,
)
"""Probabilities that sum to 1 along the last axis, (…, k): log-ratios to the last one, (…, k − 1)."""
ordered = Bijection(
    "ordered",
    _ordered_to_free,
    _ordered_from_free,
    lambda x: jnp.all(jnp.diff(x, axis=-1) > 0) & jnp.all(jnp.isfinite(x)),
    _in_order,
    trailing=1,
)
"""Numbers that increase along the last axis: the first, and the logarithms of the differences."""
positive_definite = Bijection("positive_definite", _pd_to_free, _pd_from_free, _is_pd, _onto_pd, trailing=2)
"""Symmetric positive definite matrices (…, d, d): the log-Cholesky factor, (…, d(d + 1)/2)."""


@cache
def greater_than(low: float) -> Bijection:
    """The open half-line above `low`, through the logarithm.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem import bijections
        >>> bijections.greater_than(2.0).from_free(jnp.array([-9.0, 0.0])).round(2)
        Array([2., 3.], dtype=...)
    """
    return Bijection(
        f"greater_than({low})",
        lambda x: jnp.log(x - low),
        lambda u: low + jnp.exp(u),
        lambda x: jnp.all((x > low) & jnp.isfinite(x)),
        lambda x, near: low + drawn_back(x - low, near - low),
    )


@dataclass(frozen=True)
class Constraints:
    """A bijection for every leaf of a tree of params; made by `constraints_of`. Hashable.

    Attributes:
        structure: of a prefix tree of the params.
        bijections: its leaves; None is `real`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem import bijections
        >>> constraints = bijections.constraints_of({"mean": None, "scale": bijections.positive})
        >>> free = constraints.to_free({"mean": jnp.array(2.0), "scale": jnp.array(1.0)})
        >>> {name: float(value) for name, value in free.items()}
        {'mean': 2.0, 'scale': 0.0}
    """

    structure: Any
    bijections: tuple[Bijection | None, ...]

    def _map(self, fn: Callable[[Bijection, Array, str], Array], params: Params) -> Params:
        try:
            subtrees = self.structure.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"constraints: expected a prefix tree of the params; {error}") from error
        each = zip(self.bijections, subtrees, strict=True)
        filled = [jax.tree.map(lambda _, b=b: b or real, subtree) for b, subtree in each]
        return jax.tree_util.tree_map_with_path(
            lambda path, b, x: fn(b, x, jax.tree_util.keystr(path)), jax.tree.unflatten(self.structure, filled), params
        )

    def leaves(self, params: Params) -> list[Bijection]:
        """The bijection of each leaf of the params."""
        found: list[Bijection] = []
        self._map(lambda b, x, _: found.append(b) or x, params)  # type: ignore[func-returns-value]
        return found

    def to_free(self, params: Params) -> Params:
        """Free coordinates of params."""
        return self._map(lambda b, x, _: b.to_free(x), params)

    def from_free(self, free: Params) -> Params:
        """Inverse of `to_free`."""
        return self._map(lambda b, x, _: b.from_free(x), free)

    def projected(self, params: Params, near: Params) -> Params:
        """Params put back into their sets, leaf by leaf, beside allowed ones."""

        def one(bijection: Bijection, value: Array, beside: Array) -> Array:
            if bijection.projected is None:
                return bijection.from_free(bijection.to_free(value))
            return bijection.projected(value, beside)

        leaves, structure = jax.tree.flatten(params)
        each = zip(self.leaves(params), leaves, jax.tree.leaves(near), strict=True)
        return jax.tree.unflatten(structure, [one(*parts) for parts in each])

    def contains(self, params: Params) -> Array:
        """Whether all params lie in their sets: ()."""
        inside = self._map(lambda b, x, _: b.contains(x), params)
        return jnp.all(jnp.stack(jax.tree.leaves(inside)))

    def check(self, params: Params, name: str = "params", *, lanes: bool = False) -> None:
        """Raises a ValueError if the trees do not match or a concrete value lies outside its set.

        With `lanes`, leaves lead with them, and lanes in which something is not finite are left to their status.
        """

        def one(bijection: Bijection, value: Array, path: str) -> Array:
            axes = np.ndim(value) - lanes
            if axes < bijection.trailing:
                kind = "vectors" if bijection.trailing == 1 else "matrices"
                raise ValueError(
                    f"{name}{path}: expected {kind} in {bijection.name}, got shape {np.shape(value)[lanes:]}; give one "
                    "entry to every value that it has, or leave it out of the constraints."
                )
            if lanes and not _tree.is_tracing(value):
                with jax.ensure_compile_time_eval():
                    rows = jnp.asarray(value)
                    finite = jnp.all(jnp.isfinite(rows.reshape(rows.shape[0], -1)), 1)
                    outside = np.flatnonzero(finite & ~jax.vmap(bijection.contains)(rows))
                if len(outside):
                    raise ValueError(
                        f"{name}{path}: expected a value in {bijection.name}, got {np.asarray(value)[outside[0]]} in "
                        f"lane {outside[0]} ({len(outside)} such lanes)."
                    )
            elif not _tree.is_tracing(value):
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

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxem import bijections
        >>> constraints = bijections.constraints_of({"p": bijections.simplex})  # as LogJoint and Density do with theirs
        >>> constraints.check({"p": jnp.array([0.5, 0.6])})
        Traceback (most recent call last):
        ValueError: params['p']: expected a value in simplex, got [0.5 0.6].
    """
    if isinstance(tree, Constraints):
        return tree
    is_leaf = lambda leaf: leaf is None or isinstance(leaf, Bijection)  # noqa: E731
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_leaf)
    for leaf in leaves:
        if not is_leaf(leaf):
            raise ValueError(f"constraints: expected bijections, e.g. jaxem.bijections.positive, got {leaf!r}.")
    return Constraints(structure, tuple(leaves))
