"""Covariates in coordinates in which regressions keep their digits, and Newton steps for banks of them.

Columns of covariates may be nearly parallel: ones beside years from 1900 on. Regressions are solved in the columns
z = x A that are orthonormal under the weights of the rows, and only their results are put in the user's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _tree
from ._linalg import dot, einsum, whitening
from ._typing import Array
from .fold import present_rows

_MOST_EVALUATIONS = 100
_SINGULAR = 0.02  # over eps: beyond, an entry of an inverse is rounding


class Basis(NamedTuple):
    """Orthonormal columns z = x A of covariates x.

    Attributes:
        origin: (p,), means of the covariates.
        to_white: A, (p, p), upper triangular.
        from_white: its inverse: coefficients of z are this matrix times those of x.
        dependent: (p,), columns that are linear combinations of those before them, to rounding.
        mean: (p,), means of z.
    """

    origin: Array
    to_white: Array
    from_white: Array
    dependent: Array
    mean: Array

    def rows(self, x: Array) -> Array:
        """z of covariates (n, p)."""
        # about the means: offsets that are large beside the spread cancel before they are multiplied
        return dot(x - self.origin[None], self.to_white) + self.mean[None]

    def to_local(self, coefficients: Array) -> Array:
        """Coefficients (…, p) of z from those of x."""
        return dot(coefficients, self.from_white.T)

    def to_global(self, coefficients: Array) -> Array:
        """Inverse of `to_local`."""
        return dot(coefficients, self.to_white.T)


def basis_of(x: Array, sample_weight: Array | None) -> Basis:
    """The basis of covariates (n, p), by Gram–Schmidt with reorthogonalisation (Giraud & Langou 2005).

    It carries no derivative: what is computed in it does not depend on it.
    """
    x = lax.stop_gradient(present_rows(x, sample_weight))
    n, p = x.shape
    weight = jnp.ones(n, x.dtype) if sample_weight is None else lax.stop_gradient(sample_weight)
    total = jnp.sum(weight)
    share = weight / jnp.where(total > 0, total, 1)
    size = jnp.sqrt(dot(share, jnp.square(x)))
    least = 16 * p * jnp.finfo(x.dtype).eps

    def column(j: Array, carry: tuple) -> tuple:
        z, to, back, dependent = carry
        v = lax.dynamic_index_in_dim(x, j, 1, keepdims=False)
        a, c = (jnp.arange(p) == j).astype(x.dtype), jnp.zeros(p, x.dtype)
        for _ in range(2):
            part = dot(share * v, z)
            v, a, c = v - dot(z, part), a - dot(to, part), c + part
        norm = jnp.sqrt(dot(share, jnp.square(v)))
        nil = ~(norm > least * size[j])
        scale = jnp.where(nil, jnp.where(size[j] > 0, size[j], 1), norm)
        put = lambda matrix, values: lax.dynamic_update_index_in_dim(matrix, values, j, 1)  # noqa: E731
        c = jnp.where(jnp.arange(p) == j, scale, c)
        z = put(z, jnp.where(nil, 0, v / scale))
        return z, put(to, a / scale), put(back, c), dependent.at[j].set(nil)

    square = jnp.zeros((p, p), x.dtype)
    start = (jnp.zeros_like(x), square, square, jnp.zeros(p, bool))
    _, to, back, dependent = lax.fori_loop(0, p, column, start)
    origin = dot(share, x)
    return Basis(origin, to, back, dependent, dot(origin, to))


def rows_alike(basis: Basis, variance: Array, centre: Array, mean_response: Array) -> tuple[Array, Array]:
    """A few rows with the first and second moments of those that a regression was bound to.

    Args:
        basis: of the covariates.
        variance: of the response, ().
        centre: E[z y], (p,).
        mean_response: ().

    Returns:
        Covariates (p + 2, p) and responses (p + 2,), of equal weight.
    """
    p = centre.shape[0]
    mu = jnp.where(basis.dependent, 0, basis.mean)
    # y = zᵀ centre + ρ h, with h orthonormal to z; ρ² without the square of a mean that is large beside the rest
    along = jnp.sum(jnp.square(mu))
    on_mean = dot(mu, centre) / jnp.where(along > 0, jnp.sqrt(along), 1)
    across = centre - mu * on_mean / jnp.where(along > 0, jnp.sqrt(along), 1)
    square = variance - jnp.sum(jnp.square(across)) + (mean_response - on_mean) * (mean_response + on_mean)
    rho = jnp.sqrt(jnp.maximum(square, 0))
    most = jnp.sqrt(jnp.maximum(1 - along, 0))
    mean_h = jnp.clip((mean_response - dot(mu, centre)) / jnp.where(rho > 0, rho, 1), -most, most)
    rest = jnp.sqrt(jnp.maximum(1 - along - jnp.square(mean_h), 0))
    means = jnp.concatenate([mu, jnp.stack([mean_h, rest])])
    means = means / jnp.sqrt(jnp.sum(jnp.square(means)))
    # the reflection (Householder 1958) that takes equal entries to the means: its columns are orthonormal, with these
    even = jnp.full(p + 2, 1 / np.sqrt(p + 2), centre.dtype)
    v = even - means
    length = jnp.sum(jnp.square(v))
    reflection = jnp.eye(p + 2, dtype=v.dtype) - 2 * v[:, None] * v[None] / jnp.where(length > 0, length, 1)
    columns = np.sqrt(p + 2).astype(v.dtype) * reflection
    z = jnp.where(basis.dependent[None], 0, columns[:, :p])
    x = dot(z - basis.mean[None], basis.from_white) + basis.origin[None]
    return x, dot(z, centre) + rho * columns[:, p]


_dependent_columns = jax.jit(lambda x, sample_weight: basis_of(x, sample_weight).dependent)


def check_rank(x: Any, sample_weight: Array | None, name: str) -> None:
    """Raises a ValueError that names the first column of concrete covariates (n, p) that others give."""
    with jax.ensure_compile_time_eval():
        columns = np.flatnonzero(np.asarray(_dependent_columns(jnp.asarray(x), sample_weight)))
    if len(columns):
        raise ValueError(
            f"{name}: expected columns of full rank, got column {columns[0]}, which is a linear combination of the "
            "columns before it; leave it out, or pass prior=GaussianPrior(precision)."
        )


def solve(matrix: Array, right: Array) -> tuple[Array, Array, Array]:
    """Solutions of a bank of positive definite systems, and how well determined they are.

    Args:
        matrix: (k, p, p).
        right: (k, p).

    Returns:
        (k, p); the diagonals of the inverses (k, p); whether a matrix is positive definite by more than rounding (k,).
        Where it is not, the first two are zero.
    """
    factor, _ = whitening(matrix)
    finite = jnp.all(jnp.isfinite(factor), (-2, -1))
    factor = jnp.where(finite[:, None, None], factor, 0)
    inverse = jnp.sum(jnp.square(factor), -2)
    largest = jnp.max(jnp.diagonal(matrix, axis1=-2, axis2=-1), -1)
    proper = finite & (jnp.max(inverse, -1) * largest < _SINGULAR / jnp.finfo(matrix.dtype).eps)
    solution = einsum("kji,kj->ki", factor, einsum("kij,kj->ki", factor, right))
    return jnp.where(proper[:, None], solution, 0), jnp.where(proper[:, None], inverse, 0), proper


def gram(z: Array, weights: Array) -> Array:
    """Σ_i w_ij z_i z_iᵀ, (k, p, p), of rows (n, p) and weights (n, k)."""
    return lax.map(lambda w: dot((z * w[:, None]).T, z), weights.T)


class Surface(NamedTuple):
    """A bank of functions at a point (k, q).

    Attributes:
        value: (k,).
        gradient: (k, q).
        information: (k, q, q), negative Hessians.
        size: (k,), of the terms that the values are sums of, which their rounding goes by.
    """

    value: Array
    gradient: Array
    information: Array
    size: Array


class _Climb(NamedTuple):
    point: Array
    surface: Surface
    step: Array
    length: Array
    done: Array
    n: Array


def climb_bank(
    evaluate: Callable[[Array], Surface],
    start: Array,
    fallback: Callable[[Surface], Array] | None = None,
    project: Callable[[Array], Array] = lambda point: point,
) -> tuple[Array, Surface]:
    """Maximises a bank of functions side by side by Newton steps, halved until none falls, to rounding.

    A step that its function does not resolve passes if it lowers the gradient by much, about as in `maximize.newton`;
    here every evaluation is one pass over the rows, and gives all of a `Surface`.

    Args:
        evaluate: points (k, q) → `Surface`; NaN or −inf where not allowed.
        start: (k, q), allowed.
        fallback: steps (k, q) uphill where the information is not positive definite; None is along the gradient.
        project: puts points within bounds.

    Returns:
        The points and the surface there. No derivative passes.
    """
    eps = jnp.finfo(start.dtype).eps

    def direction(surface: Surface) -> Array:
        step, _, proper = solve(surface.information, surface.gradient)
        if fallback is None:
            size = jnp.max(jnp.sum(jnp.abs(surface.information), -1), -1, keepdims=True)
            other = surface.gradient / jnp.where(size > 0, size, 1)
        else:
            other = fallback(surface)
        return jnp.where(proper[:, None], step, other)

    def trip(c: _Climb) -> _Climb:
        candidate = project(c.point + c.length[:, None] * c.step)
        moved = candidate - c.point
        there = evaluate(candidate)
        here = c.surface
        steepness = lambda s: jnp.max(jnp.abs(s.gradient), -1)  # noqa: E731
        slack = 4 * eps * here.size
        finite = jnp.isfinite(there.value) & jnp.isfinite(steepness(there))
        rise = there.value - here.value
        flatter = steepness(there) < 0.25 * steepness(here)  # by more than chance: rounding is not followed about
        better = finite & ((rise > slack) | ((rise >= -slack) & flatter))
        better = better & ~c.done
        gain = c.length * jnp.sum(c.step * here.gradient, -1)
        take = lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
        surface = Surface(*map(take, there, here))
        point = take(candidate, c.point)
        reach = 2 * eps * jnp.maximum(1, jnp.max(jnp.abs(point), -1))
        settled = better & ((jnp.max(jnp.abs(moved), -1) <= reach) | (steepness(surface) == 0))
        stuck = ~better & ((gain <= slack) | (c.length < 1e-9))
        return _Climb(
            point,
            surface,
            take(direction(surface), c.step),
            jnp.where(better, 1, c.length / 2),
            c.done | settled | stuck,
            c.n + 1,
        )

    first = evaluate(start)
    done = ~jnp.isfinite(first.value) | ~jnp.all(jnp.isfinite(first.gradient), -1)
    climb = _Climb(start, first, direction(first), jnp.ones_like(first.value), done, jnp.zeros((), jnp.int32))
    end = lax.while_loop(lambda c: jnp.any(~c.done) & (c.n < _MOST_EVALUATIONS), trip, climb)
    return end.point, end.surface


def as_precision(leaf: Any, p: int, dtype: Any) -> Array:
    """A leaf of a prior over p coefficients: (p,)."""
    return jnp.broadcast_to(jnp.asarray(leaf, dtype), (p,))


def check_design(covariates: Any, n: int, name: str) -> int:
    """Raises a ValueError unless covariates are (n, p); returns p."""
    shape = tuple(jnp.shape(covariates))
    if len(shape) != 2 or shape[0] != n or shape[1] < 1:
        raise ValueError(
            f"{name}: expected an array of shape ({n}, p), one column a covariate, got {shape}; a column of ones is "
            "the intercept, which is not added."
        )
    return shape[1]


def is_present(sample_weight: Any, n: int) -> np.ndarray:
    """Which rows of concrete data exist: (n,)."""
    return np.ones(n, bool) if sample_weight is None else np.asarray(sample_weight) > 0


def side_by_side(*leaves: Any) -> Array:
    """Points for k-means: all numbers of a row in one row."""
    return _tree.side_by_side(leaves)
