"""Linear systems of a fit's derivative: dense, or iterative where a matrix would be too large.

Both go through `lax.custom_linear_solve`, so that they can be differentiated in both directions and again. A system
that is not solved gives NaN, never a plausible number.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import gmres

from .._typing import Array
from . import linalg as _linalg
from . import tree as _tree

MOST_DENSE = 4096
_FEW = 32  # parameters for which a matrix costs less than an iteration
_MOST_FACTORS = 512
_BASIS_AT_ONCE = 32
_UNSOLVED = 1e-3  # part of the right side that may be left


class Factors(NamedTuple):
    """The matrix 1 − up·core·down: size q inside, p outside, both maps linear and cheap.

    Attributes:
        down: (p,) → (q,).
        core: (q, q).
        up: (q,) → (p,).
        n_blocks: q falls into so many equal blocks, and down·up maps all entries of a block but its first to the same
            block; 1 says nothing.
        residual: (p,), of the equation that the matrix belongs to, at the same point; the same sums give it.
    """

    down: Callable[[Array], Array]
    core: Array
    up: Callable[[Array], Array]
    n_blocks: int
    residual: Array

    def around(self) -> Array:
        """down·up·core, (q, q)."""
        blocks, q = self.n_blocks, self.core.shape[0]
        width = q // blocks
        turn = jax.vmap(lambda e: self.down(self.up(e)))
        first = jnp.arange(0, q, width)
        rows = self.core.reshape(blocks, width, q)
        # one direction moves an entry of every block; the blocks' first entries move one by one
        within = turn(jnp.tile(jnp.eye(width, dtype=rows.dtype)[1:], (1, blocks))).reshape(width - 1, blocks, width)
        across = turn(jnp.eye(q, dtype=rows.dtype)[first])
        out = _linalg.einsum("cba,bcz->baz", within, rows[:, 1:]).reshape(q, q)
        return out + _linalg.dot(across.T, self.core[first])


class Operator(NamedTuple):
    """A square linear map.

    Attributes:
        linearise: makes it, (p,) → (p,).
        scale: (p,), positive: the sizes of the unknowns.
        n_factors: q of the factors; None where there are none.
        factors: makes them; called where they are wanted.
    """

    linearise: Callable[[], Callable[[Array], Array]]
    scale: Array
    n_factors: int | None = None
    factors: Callable[[], Factors] | None = None

    @property
    def size(self) -> int:
        """p."""
        return self.scale.shape[0]


class Solver(Protocol):
    """How linear systems are solved."""

    def inverse(self, operator: Operator) -> tuple[Callable[[Array], Array], Array | None]:
        """The inverse of the operator, (p,) → (p,), and the residual where its factors came with it."""
        ...


@_tree.register
@dataclass(frozen=True)
class Dense:
    """A matrix and its LU factors; of the smaller size where the operator has factors.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> model, x = jaxem.Mixture(jaxem.Poisson(), n_components=1), jnp.array([[0.0], [2.0], [7.0]])
        >>> start, derivative = model.init(jax.random.key(0), x), jaxem.Implicit(jaxem.Dense())
        >>> rate = lambda x: jaxem.fit(model, start, x, derivative=derivative).params.components.rate[0, 0]
        >>> jax.grad(rate)(x)[:, 0].round(2)  # a third each, of the mean
        Array([0.33, 0.33, 0.33], dtype=...)
    """

    def inverse(self, operator: Operator) -> tuple[Callable[[Array], Array], Array | None]:
        """See `Solver`.

        Raises:
            ValueError: on more than 4096 unknowns.
        """
        size = operator.n_factors or operator.size
        if size > MOST_DENSE:
            raise ValueError(f"solver: Dense() takes at most {MOST_DENSE} unknowns, got {size}; pass solver=GMRES().")
        if operator.factors is None:
            return _dense_inverse(columns_of(operator.linearise(), operator.scale)), None
        factors = operator.factors()
        inner = _dense_inverse(jnp.eye(size, dtype=factors.core.dtype) - factors.around())
        # (1 − UCD)⁻¹ = 1 + UC(1 − DUC)⁻¹D (Woodbury)
        return lambda b: b + factors.up(_linalg.dot(factors.core, inner(factors.down(b)))), factors.residual


@_tree.register
@dataclass(frozen=True)
class GMRES:
    """Krylov iterations (Saad & Schultz 1986); a derivative of the EM map each, no matrix.

    Attributes:
        tol: relative residual at which to stop; None is eps^¾. One above 1e-3 at the end gives NaN.
        restart: dimension of the Krylov space; static.
        max_restarts: static.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> model, x = jaxem.Mixture(jaxem.Poisson(), n_components=1), jnp.array([[0.0], [2.0], [7.0]])
        >>> start, derivative = model.init(jax.random.key(0), x), jaxem.Implicit(jaxem.GMRES())
        >>> rate = lambda x: jaxem.fit(model, start, x, derivative=derivative).params.components.rate[0, 0]
        >>> jax.grad(rate)(x)[:, 0].round(2)  # a third each, of the mean
        Array([0.33, 0.33, 0.33], dtype=...)
    """

    tol: Any = None
    restart: int = field(metadata={"static": True}, default=40)
    max_restarts: int = field(metadata={"static": True}, default=25)

    def inverse(self, operator: Operator) -> tuple[Callable[[Array], Array], Array | None]:
        """See `Solver`."""
        scale = lax.stop_gradient(operator.scale)
        restart = min(self.restart, operator.size)
        tol: Any = jnp.finfo(scale.dtype).eps ** 0.75 if self.tol is None else self.tol

        def solve(apply: Callable, b: Array, scale: Array) -> Array:
            scaled = lambda v: apply(v * scale) / scale  # noqa: E731
            right = b / scale
            # the library takes vectors shorter than eps for zero, such as the residual of a fit to the last digit
            length = jnp.linalg.norm(lax.stop_gradient(right))
            length = jnp.where(length > 0, length, 1)
            x, _ = gmres(scaled, right / length, tol=tol, restart=restart, maxiter=self.max_restarts)
            return _nan_unless_solved(scaled, x * length, right) * scale

        apply = operator.linearise()

        def inverse(b: Array) -> Array:
            return lax.custom_linear_solve(
                apply,
                b,
                solve=lambda apply, b: solve(apply, b, scale),
                transpose_solve=lambda apply, b: solve(apply, b, 1 / scale),
            )

        return inverse, None


def choose(operator: Operator) -> Solver:
    """The solver that is likely to be the cheaper."""
    if operator.size <= _FEW or (operator.n_factors or _MOST_FACTORS + 1) <= _MOST_FACTORS:
        return Dense()
    return GMRES()


def columns_of(apply: Callable[[Array], Array], like: Array) -> Array:
    """The matrix of a linear map (p,) → (p,), a few columns at a time."""
    return lax.map(apply, jnp.eye(like.shape[0], dtype=like.dtype), batch_size=_BASIS_AT_ONCE).T


def _dense_inverse(matrix: Array) -> Callable[[Array], Array]:
    fixed = lax.stop_gradient(matrix)
    factors = _linalg.lu_factor(fixed)

    def solve(b: Array, transposed: bool) -> Array:
        x = _linalg.lu_solve(factors, b, transposed=transposed)
        return _nan_unless_solved(lambda v: _linalg.dot(fixed.T if transposed else fixed, v), x, b)

    return lambda b: lax.custom_linear_solve(
        lambda v: _linalg.dot(matrix, v),
        b,
        solve=lambda _, b: solve(b, transposed=False),
        transpose_solve=lambda _, b: solve(b, transposed=True),
    )


def _nan_unless_solved(apply: Callable[[Array], Array], x: Array, b: Array) -> Array:
    """A right side of zero is solved by zero, whatever the matrix: who asks for nothing gets no NaN."""
    left = jnp.sqrt(jnp.sum(jnp.square(b - apply(x))))
    solved = left <= _UNSOLVED * jnp.sqrt(jnp.sum(jnp.square(b)))
    return jnp.where(jnp.all(b == 0), jnp.zeros_like(x), jnp.where(solved, x, jnp.nan))
