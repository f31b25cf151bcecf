"""Linear algebra on banks of small matrices.

Layout. Callers see observations first: log joint (n, k). For few rows the work is done components first, (k, n),
so that vector units run along the observations; the transposes between two such functions cancel in the compiler.
For many rows observations stay first, which is what multithreaded matrix products like.
"""

from collections.abc import Callable

import jax
import jax.custom_batching
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jax import lax

from .._typing import Array

_UNROLLED = 4  # matrices up to this size are factored by formulas, which fuse; LAPACK calls cost a microsecond each
_BLOCKED = (
    8  # up to this size by blocks of such formulas, of which the compiler merges two copies; it takes longer to compile
)
_LEAF = 3
LANE_ROWS = 4096


def components_first(n_rows: int) -> bool:
    """Whether arrays over so few rows are worked on with components leading."""
    return n_rows <= LANE_ROWS


def dot(a: Array, b: Array) -> Array:
    """Matrix product in full precision: accelerators would otherwise round factors to bfloat16 or tf32."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def einsum(subscripts: str, *operands: Array) -> Array:
    """`jnp.einsum` in full precision."""
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)


def pair_indices(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Every unordered pair of columns once, in circulant order: (a, a + s mod d) for s = 0 … d // 2.

    Products of the columns in this order are whole-width products with rolled columns, three times faster on a
    CPU than a gather in triangular order.
    """
    first, second = [], []
    for shift in range(d // 2 + 1):
        width = d // 2 if (2 * shift == d and shift > 0) else d
        columns = np.arange(width)
        first.append(columns)
        second.append((columns + shift) % d)
    return np.concatenate(first), np.concatenate(second)


def pair_products(x: Array, transposed: bool) -> Array:
    """Products of the columns of x (n, d), or of the rows of x (d, n), in the order of `pair_indices`."""
    axis = 0 if transposed else 1
    d = x.shape[axis]
    parts = []
    for shift in range(d // 2 + 1):
        width = d // 2 if (2 * shift == d and shift > 0) else d
        parts.append(lax.slice_in_dim(x * jnp.roll(x, -shift, axis), 0, width, axis=axis))
    return jnp.concatenate(parts, axis)


def unpack_pairs(packed: Array, d: int) -> Array:
    """(…, d(d+1)/2) in the order of `pair_indices` to symmetric (…, d, d)."""
    first, second = pair_indices(d)
    position = np.zeros((d, d), np.int32)
    position[first, second] = position[second, first] = np.arange(len(first))
    if d <= _UNROLLED:  # static slices fuse, a gather does not
        flat = jnp.stack([packed[..., i] for i in position.ravel()], -1)
        return flat.reshape(*packed.shape[:-1], d, d)
    return packed[..., position]


def pack_pairs(matrix: Array) -> Array:
    """Symmetric (…, d, d) to (…, d(d+1)/2) in the order of `pair_indices`."""
    d = matrix.shape[-1]
    first, second = pair_indices(d)
    if d <= _UNROLLED:
        return jnp.stack([matrix[..., a, b] for a, b in zip(first, second, strict=True)], -1)
    return matrix[..., first, second]


def whitening(covariance: Array) -> tuple[Array, Array]:
    """Inverse Cholesky factors and half log-determinants of a bank of covariances.

    Args:
        covariance: (…, d, d), symmetric. Not positive definite gives NaN or inf, never an error.

    Returns:
        (…, d, d) the lower triangular L⁻¹ with Σ = L Lᵀ, and (…,) log|Σ| / 2.
    """
    if covariance.shape[-1] <= _UNROLLED:
        return _whitening_unrolled(covariance)
    return _whitening_factored(covariance)


@jax.custom_jvp
def _whitening_factored(covariance: Array) -> tuple[Array, Array]:
    d = covariance.shape[-1]
    if d <= _BLOCKED:
        return _whitening_by_blocks((covariance + jnp.swapaxes(covariance, -1, -2)) / 2)
    flat = covariance.reshape(-1, d, d)
    inverse, half_log_det = lax.platform_dependent(flat, cpu=_one_by_one, default=_factor)
    return inverse.reshape(covariance.shape), half_log_det.reshape(covariance.shape[:-2])


@_whitening_factored.defjvp
def _whitening_factored_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (covariance,), (change,) = primals, tangents
    inverse, half_log_det = _whitening_factored(covariance)
    lower = _half_of_whitened(inverse, change)
    trace = jnp.sum(jnp.diagonal(lower, axis1=-2, axis2=-1), -1)
    return (inverse, half_log_det), (-einsum("...ij,...jk->...ik", lower, inverse), trace)


def _half_of_whitened(inverse: Array, change: Array) -> Array:
    """Φ(L⁻¹ dΣ L⁻ᵀ), Φ the lower triangle with half the diagonal: dL = L·Φ (Murray 2016, eq. 8)."""
    change = (change + jnp.swapaxes(change, -1, -2)) / 2
    white = einsum("...ij,...jk,...lk->...il", inverse, change, inverse)
    mask = np.tril(np.ones(white.shape[-2:]), -1) + 0.5 * np.eye(white.shape[-1])
    return white * jnp.asarray(mask, white.dtype).reshape((1,) * (white.ndim - 2) + mask.shape)


def _whitening_by_blocks(covariance: Array) -> tuple[Array, Array]:
    """[[A, Bᵀ], [B, C]]: with W = L_A⁻¹ and V the whitening of C − BWᵀWBᵀ, L⁻¹ = [[W, 0], [−V(BWᵀ)W, V]]."""
    d = covariance.shape[-1]
    if d <= _LEAF:
        return _whitening_unrolled(covariance)
    half = _LEAF * -(-d // (2 * _LEAF))
    first, half_log_det = _whitening_by_blocks(covariance[..., :half, :half])
    low = einsum("...ij,...kj->...ik", covariance[..., half:, :half], first)
    rest = covariance[..., half:, half:] - einsum("...ij,...kj->...ik", low, low)
    second, other_half_log_det = _whitening_by_blocks(rest)
    corner = -dot(second, dot(low, first))
    top = jnp.pad(first, [(0, 0)] * (first.ndim - 1) + [(0, d - half)])
    inverse = jnp.concatenate([top, jnp.concatenate([corner, second], -1)], -2)
    return inverse, half_log_det + other_half_log_det


def _factor(covariance: Array) -> tuple[Array, Array]:
    factor = jnp.linalg.cholesky(covariance)
    eye = jnp.broadcast_to(jnp.eye(covariance.shape[-1], dtype=covariance.dtype), covariance.shape)
    inverse = lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    return inverse, jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), -1)


@jax.custom_batching.sequential_vmap
def _one_by_one(covariance: Array) -> tuple[Array, Array]:
    """A batch in one LAPACK call is as fast, and hangs: jaxlib 0.10 waits in it for the threads that it runs on."""
    return lax.map(_factor, covariance)


@jax.custom_jvp
def cholesky(matrix: Array) -> Array:
    """Lower Cholesky factors of a bank (…, d, d); NaN where one is not positive definite."""
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    factor = lax.platform_dependent(flat, cpu=_cholesky_one_by_one, default=jnp.linalg.cholesky)
    return factor.reshape(matrix.shape)


@cholesky.defjvp
def _cholesky_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    factor = cholesky(*primals)
    return factor, dot(factor, _half_of_whitened(whitening(*primals)[0], *tangents))


@jax.custom_batching.sequential_vmap
def _cholesky_one_by_one(matrix: Array) -> Array:
    return lax.map(jnp.linalg.cholesky, matrix)


def lu_factor(matrix: Array) -> tuple[Array, Array]:
    """LU factors and pivots of one matrix (d, d). Under `vmap` on a CPU one after another, as its solves."""
    return lax.platform_dependent(matrix, cpu=_lu_one_by_one, default=_lu)


def lu_solve(factors: tuple[Array, Array], b: Array, *, transposed: bool) -> Array:
    """x of Ax = b, or Aᵀx = b, (d,); inf or NaN where A is singular."""
    solve = _solve_transposed_one_by_one if transposed else _solve_one_by_one
    default = lambda lu, pivots, b: jax.scipy.linalg.lu_solve((lu, pivots), b, trans=int(transposed))  # noqa: E731
    return lax.platform_dependent(*factors, b, cpu=solve, default=default)


def _lu(matrix: Array) -> tuple[Array, Array]:
    return jax.scipy.linalg.lu_factor(matrix)


_lu_one_by_one = jax.custom_batching.sequential_vmap(_lu)


def _one_by_one_solve(trans: int) -> Callable[[Array, Array, Array], Array]:
    """One system after another, or many right sides of the same system at once."""

    @jax.custom_batching.custom_vmap
    def solve(lu: Array, pivots: Array, b: Array) -> Array:
        return jax.scipy.linalg.lu_solve((lu, pivots), b, trans=trans)

    @solve.def_vmap
    def solve_many(axis_size: int, in_batched: list[bool], lu: Array, pivots: Array, b: Array) -> tuple[Array, bool]:
        if not in_batched[0] and b.ndim == 2:
            return jax.scipy.linalg.lu_solve((lu, pivots), b.T, trans=trans).T, True
        each = [x if own else jnp.stack([x] * axis_size) for x, own in zip((lu, pivots, b), in_batched, strict=True)]
        return lax.map(lambda one: solve(*one), tuple(each)), True

    return solve


_solve_one_by_one, _solve_transposed_one_by_one = _one_by_one_solve(0), _one_by_one_solve(1)


def symmetric_eigen(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues (d,), ascending, and vectors (d, d) of one symmetric matrix. Under `vmap` as `lu_factor`."""
    return lax.platform_dependent(matrix, cpu=_symmetric_eigen_one_by_one, default=_symmetric_eigen)


def _symmetric_eigen(matrix: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


_symmetric_eigen_one_by_one = jax.custom_batching.sequential_vmap(_symmetric_eigen)


_SQUARINGS = 40


def spectral_radius(matrix: Array) -> Array:
    """max |λ| of one square matrix, by Gelfand's formula ‖Aᵐ‖^(1/m) at m = 2⁴⁰: eigenvalues have no rule on a TPU.

    A relative error of the j-th squaring counts for 2⁻ʲ of itself: the radius comes out to a few eps.
    """

    def unit(power: Array) -> tuple[Array, Array]:
        size = jnp.sqrt(jnp.sum(jnp.square(power)))
        return jnp.where(size == 0, 0, power / jnp.where(size == 0, 1, size)), jnp.log(size)

    def square(carry: tuple[Array, Array], share: Array) -> tuple[tuple[Array, Array], None]:
        power, log_size = unit(dot(carry[0], carry[0]))
        return (power, carry[1] + share * log_size), None

    shares = 0.5 ** jnp.arange(1, _SQUARINGS + 1, dtype=matrix.dtype)
    (_, log_radius), _ = lax.scan(square, unit(matrix), shares)
    return jnp.exp(log_radius)


def _inverse_factor_entries(covariance: Array) -> tuple[list[list[Array]], Array]:
    """Entries of L⁻¹ as arrays over the bank, and half the log-determinant, by formulas that fuse."""
    d = covariance.shape[-1]
    low: list[list[Array]] = [[] for _ in range(d)]
    inv: list[list[Array]] = [[] for _ in range(d)]
    log_det = jnp.zeros_like(covariance[..., 0, 0])
    for i in range(d):
        for j in range(i):
            # the mean of both triangles, as the library's Cholesky: its derivative is then symmetric
            rest = (covariance[..., i, j] + covariance[..., j, i]) / 2
            for m in range(j):
                rest = rest - low[i][m] * low[j][m]
            low[i].append(rest * inv[j][j])
        rest = covariance[..., i, i]
        for m in range(i):
            rest = rest - jnp.square(low[i][m])
        low[i].append(jnp.sqrt(rest))
        inverse = 1 / low[i][i]
        log_det = log_det + jnp.log(low[i][i])
        for j in range(i):
            total = low[i][j] * inv[j][j]
            for m in range(j + 1, i):
                total = total + low[i][m] * inv[m][j]
            inv[i].append(-inverse * total)
        inv[i].append(inverse)
    return inv, log_det


def _whitening_unrolled(covariance: Array) -> tuple[Array, Array]:
    d = covariance.shape[-1]
    entries, log_det = _inverse_factor_entries(covariance)
    zero = jnp.zeros_like(log_det)
    rows = [jnp.stack([*entries[i], *[zero] * (d - 1 - i)], -1) for i in range(d)]
    return jnp.stack(rows, -2), log_det


def precision_terms(covariance: Array, mean: Array) -> tuple[Array, Array, Array]:
    """What the natural parameters of a bank of normals are made of.

    Args:
        covariance: (k, d, d).
        mean: (k, d).

    Returns:
        Σ⁻¹μ (k, d), Σ⁻¹ packed in the order of `pair_indices` (k, d(d+1)/2), and log|Σ| / 2 (k,).
    """
    d = covariance.shape[-1]
    if d > _UNROLLED:
        factor, half_log_det = whitening(covariance)
        precision = gram(factor)
        return matvec(precision, mean), pack_pairs(precision), half_log_det
    entries, half_log_det = _inverse_factor_entries(covariance)

    def entry(a: int, b: int) -> Array:
        total = entries[max(a, b)][a] * entries[max(a, b)][b]
        for m in range(max(a, b) + 1, d):
            total = total + entries[m][a] * entries[m][b]
        return total

    linear = [sum_terms([entry(a, b) * mean[:, b] for b in range(d)]) for a in range(d)]
    first, second = pair_indices(d)
    packed = [entry(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    return jnp.stack(linear, -1), jnp.stack(packed, -1), half_log_det


def sum_terms(terms: list[Array]) -> Array:
    """Sum of a non-empty list."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def gram(inverse_factor: Array) -> Array:
    """L⁻ᵀ L⁻¹, the precision that belongs to `whitening`'s factor."""
    d = inverse_factor.shape[-1]
    if d > _UNROLLED:
        return einsum("...mi,...mj->...ij", inverse_factor, inverse_factor)
    return jnp.sum(inverse_factor[..., :, :, None] * inverse_factor[..., :, None, :], -3)


def matvec(matrix: Array, vector: Array) -> Array:
    """(…, d, d) times (…, d)."""
    if matrix.shape[-1] > _UNROLLED:
        return einsum("...ij,...j->...i", matrix, vector)
    return jnp.sum(matrix * vector[..., None, :], -1)


def is_positive_definite(covariance: Array) -> Array:
    """Whether each matrix of (…, d, d) has a finite whitening that is more than rounding: (…,).

    Σ_aa · (Σ⁻¹)_aa = 1 / (1 − R²) beyond 1 / (2 eps) means that a column is given by the others to the last digit.
    """
    factor, half_log_det = whitening(covariance)
    inflation = jnp.sum(jnp.square(factor), -2) * jnp.diagonal(covariance, axis1=-2, axis2=-1)
    return jnp.all(inflation < 0.5 / jnp.finfo(covariance.dtype).eps, -1) & jnp.isfinite(half_log_det)
