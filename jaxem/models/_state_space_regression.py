"""The regressions of an M step of a state space model: disturbances on what is before them, any part of it held."""

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array
from ..contracts.holding import all_held
from ..numerics.linalg import dot, gram, whitening
from ._state_space_params import Disturbances


def blocks_of(name: str, flags: np.ndarray) -> list[np.ndarray]:
    """Rows of a covariance that may depend on each other, where not all of it is held.

    Raises:
        ValueError: if a block is held in part.
    """
    s = len(flags)
    if np.all(flags):
        return [np.array([i]) for i in range(s)]
    reach = ~flags | ~flags.T | np.eye(s, dtype=bool)
    for _ in range(s.bit_length()):
        reach = reach @ reach
    blocks = [np.flatnonzero(row) for row in np.unique(reach, axis=0)]
    for block in blocks:
        own = flags[np.ix_(block, block)]
        if own.any() and not own.all():
            raise ValueError(
                f"mask.{name}: expected blocks of a covariance held as a whole or not at all, got a part of the block "
                f"of rows {block.tolist()}; hold the block, or the covariances between two blocks at 0."
            )
    return blocks


def covariance_mode(before: Array, square: Array, scale: Array, count: Array, held: np.ndarray) -> Array:
    """(S + Λ) / N where it is not held; as before where nothing counts."""
    free = ~held & ~held.T
    mode = (square + square.T) / 2 + scale
    mode = mode / jnp.where(count > 0, count, 1)
    return jnp.where(free & (count > 0), mode, before)


class Block:
    """One of the two regressions: e = F z + noise of covariance V."""

    def __init__(self, name: str, coefficients: Array, covariance: Array) -> None:
        self.name, self.coefficients, self.covariance = name, coefficients, covariance

    def mode(
        self, stats: Disturbances, scale: Array, held: np.ndarray, held_covariance: np.ndarray
    ) -> tuple[Array, Array]:
        """Coefficients and covariance of the mode."""
        step = self._step(stats, ~np.asarray(held), np.asarray(held_covariance))
        about = dot(stats.cross, step.T)
        square = stats.square - about - about.T + dot(dot(step, stats.design), step.T)
        covariance = self.covariance
        if not all_held(held_covariance):
            covariance = covariance_mode(covariance, square, scale, stats.count, np.asarray(held_covariance))
        return self.coefficients + step, covariance

    def _step(self, stats: Disturbances, free: np.ndarray, held_covariance: np.ndarray) -> Array:
        """By how much the free coefficients move: rows with the same free columns are one regression."""
        step = jnp.zeros_like(self.coefficients)
        if not free.any():
            return step
        for block in blocks_of(f"{self.name}_covariance", held_covariance):
            if np.any(free[block] != free[block[0]]):
                raise ValueError(
                    f"mask.{self.name}: expected rows whose noise is correlated to be held in the same columns, got "
                    f"rows {block.tolist()} of {self.name} with others; hold their covariance at 0, or whole rows."
                )
        for columns in np.unique(free, axis=0):
            index = np.flatnonzero(columns)
            if len(index):
                rows = np.flatnonzero(np.all(free == columns, 1))
                part = divided(stats.cross[np.ix_(rows, index)], stats.design[np.ix_(index, index)])
                step = step.at[np.ix_(rows, index)].set(part)
        return step


def divided(cross: Array, design: Array) -> Array:
    """E[e zᵀ] E[z zᵀ]⁻¹, columns of z in units of their size; a column that is 0 throughout is left alone."""
    size = jnp.diagonal(design)
    root = jnp.where(size > 0, jax.lax.rsqrt(jnp.where(size > 0, size, 1)), 0)
    unit = design * root[:, None] * root[None] + jnp.diag(jnp.where(size > 0, 0, 1).astype(design.dtype))
    return dot(cross * root[None], gram(whitening(unit)[0])) * root[None]
