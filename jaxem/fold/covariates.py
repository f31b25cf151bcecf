"""Covariates in coordinates in which regressions keep their digits, and Newton steps for banks of them.

Columns of covariates may be nearly parallel: ones beside years from 1900 on. Regressions are solved in the columns
z = x A that are orthonormal under the weights of the rows, and only their results are put in the user's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array
from ..numerics import tree as _tree
from ..numerics.linalg import dot
from .present import present_rows


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
