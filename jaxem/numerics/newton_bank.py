"""Newton's method for a bank of regressions: each component climbs on its own surface."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array
from .linalg import dot, einsum, whitening

_MOST_EVALUATIONS = 100
_SINGULAR = 0.02  # over eps: beyond, an entry of an inverse is rounding


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


def climb_entries(fn: Callable[[Array], Array], start: Array, size: Callable[[Array], Array]) -> Array:
    """The maximum of a function of every entry, which depends on no other entry, by `climb_bank`.

    Args:
        fn: entries → values, shaped alike; differentiated twice.
        start: where the climb begins.
        size: entries → the size of the terms that the values are sums of.

    Returns:
        Shaped as `start`. No derivative passes.
    """

    def surface(flat: Array) -> Surface:
        point = flat.reshape(start.shape)
        slope = lambda point: jax.jvp(fn, (point,), (jnp.ones_like(point),))  # noqa: E731
        (value, first), (_, second) = jax.jvp(slope, (point,), (jnp.ones_like(point),))
        return Surface(value.ravel(), first.reshape(-1, 1), -second.reshape(-1, 1, 1), size(point).ravel())

    return climb_bank(surface, start.reshape(-1, 1))[0].reshape(start.shape)
