"""Two number systems in which probabilities of hidden chains are added and multiplied.

`LINEAR` has probabilities as they are and is two to four times faster; one below the smallest number is none. `LOG`
adds logarithms, and loses nothing. States lie along the last axis but one, chains along the last: vector units run
along them. Sums over a few states are written out term by term: these fuse on a CPU, and a reduction does not.
"""

from functools import reduce
from typing import Any, Protocol

import jax.numpy as jnp
from jax import lax

from .._typing import Array
from ..numerics.linalg import dot, einsum

_FUSED_STATES = 16  # up to so many states sums over them are written out; of more they are matrix products
_FUSED_PAIRS = 8
_FEW_CHAINS = 32  # from so many on a product a step, along the chains, is up to five times faster than one of all steps


class Numbers(Protocol):
    """A semiring of probabilities, with what a recursion needs. Hashable."""

    def of(self, probabilities: Array) -> Array:
        """Probabilities in these numbers."""
        ...

    def emission(self, log_emission: Array) -> tuple[Array, Array]:
        """Emission probabilities (…, k, n) over the exponential of a shift (…, 1, n)."""
        ...

    def times(self, a: Array, b: Array) -> Array:
        """Products."""
        ...

    def across(self, matrix: Array, vector: Array) -> Array:
        """Σ_i matrix_ij vector_i: (…, k, n). A matrix (k, k) is that of all, one (…, k, k, n) each has its own."""
        ...

    def over(self, vector: Array, total: Array) -> Array:
        """Quotients."""
        ...

    def total(self, vector: Array) -> Array:
        """The sum over the states: (…, 1, n)."""
        ...

    def kept(self, total: Array) -> Array:
        """The sum, NaN where terms that count may have been lost."""
        ...

    def faint(self, vector: Array) -> Array | None:
        """Which of the states are lost, or would be in a product with another faint one; None if none ever is."""
        ...

    def log(self, values: Array) -> Array:
        """Logarithms of the probabilities."""
        ...

    def probabilities(self, values: Array) -> Array:
        """The way back."""
        ...

    def pairs(self, filtered: Array, transition: Array, ahead: Array) -> Array:
        """Σ_tn filtered_tin transition_ij ahead_tjn: (k, k)."""
        ...


class Linear:
    """Probabilities as they are."""

    def of(self, probabilities: Array) -> Array:
        """See `Numbers`."""
        return probabilities

    def emission(self, log_emission: Array) -> tuple[Array, Array]:
        """See `Numbers`."""
        top = top_of(log_emission)
        return jnp.exp(log_emission - top), top

    def times(self, a: Array, b: Array) -> Array:
        """See `Numbers`."""
        return a * b

    def across(self, matrix: Array, vector: Array) -> Array:
        """See `Numbers`."""
        if matrix.ndim > 2:
            return jnp.sum(matrix * vector[..., None, :], -3)
        if not _few(vector):
            return dot(matrix.T, vector)
        return reduce(jnp.add, [row * own for row, own in _terms(matrix, vector)])

    def over(self, vector: Array, total: Array) -> Array:
        """See `Numbers`."""
        return vector / total

    def total(self, vector: Array) -> Array:
        """See `Numbers`."""
        return reduce(jnp.add, _states(vector)) if _few(vector) else jnp.sum(vector, -2, keepdims=True)

    def kept(self, total: Array) -> Array:
        """See `Numbers`. A lost term is below the smallest number."""
        return jnp.where(self.faint(total), jnp.nan, total)

    def faint(self, vector: Array) -> Array:
        """See `Numbers`."""
        return vector <= jnp.finfo(vector.dtype).tiny ** 0.5

    def log(self, values: Array) -> Array:
        """See `Numbers`."""
        return jnp.log(values)

    def probabilities(self, values: Array) -> Array:
        """See `Numbers`."""
        return values

    def pairs(self, filtered: Array, transition: Array, ahead: Array) -> Array:
        """See `Numbers`."""
        if filtered.shape[1] <= _FUSED_PAIRS:
            return transition * jnp.sum(filtered[:, :, None] * ahead[:, None], (0, 3))
        if filtered.shape[2] < _FEW_CHAINS:
            return transition * einsum("tin,tjn->ij", filtered, ahead)
        return transition * jnp.sum(einsum("tin,tjn->tij", filtered, ahead), 0)


class Log:
    """Logarithms of probabilities, over a temperature: as powers of probabilities low ones would be none."""

    def __init__(self, temperature: Any = None) -> None:
        self._temperature = temperature

    def of(self, probabilities: Array) -> Array:
        """See `Numbers`."""
        zero = probabilities <= 0  # a Newton correction may end below; NaN, which is not, must come through
        logarithm = jnp.log(jnp.where(zero, 1, probabilities))
        return jnp.where(zero, -jnp.inf, logarithm if self._temperature is None else logarithm / self._temperature)

    def emission(self, log_emission: Array) -> tuple[Array, Array]:
        """See `Numbers`."""
        top = top_of(log_emission)
        return log_emission - top, top

    def times(self, a: Array, b: Array) -> Array:
        """See `Numbers`."""
        return a + b

    def across(self, matrix: Array, vector: Array) -> Array:
        """See `Numbers`."""
        if matrix.ndim > 2:
            return jnp.squeeze(self.total(jnp.swapaxes(matrix + vector[..., None, :], -3, -2)), -2)
        if not _few(vector):
            into = matrix.T.reshape(*(1,) * (vector.ndim - 2), *matrix.shape, 1)
            return jnp.squeeze(self.total(into + vector[..., None, :, :]), -2)
        terms = [row + own for row, own in _terms(matrix, vector)]
        top = jnp.maximum(lax.stop_gradient(reduce(jnp.maximum, terms)), jnp.finfo(vector.dtype).min)
        return _log_of(reduce(jnp.add, [jnp.exp(term - top) for term in terms]), top)

    def over(self, vector: Array, total: Array) -> Array:
        """See `Numbers`. Zero over zero is zero: of a chain that no path explains nothing is expected."""
        return vector - jnp.where(total == -jnp.inf, 0, total)

    def total(self, vector: Array) -> Array:
        """See `Numbers`."""
        top = top_of(vector)
        return _log_of(LINEAR.total(jnp.exp(vector - top)), top)

    def kept(self, total: Array) -> Array:
        """See `Numbers`."""
        return total

    def faint(self, vector: Array) -> None:
        """See `Numbers`."""

    def log(self, values: Array) -> Array:
        """See `Numbers`."""
        return values

    def probabilities(self, values: Array) -> Array:
        """See `Numbers`."""
        return jnp.exp(values)

    def pairs(self, filtered: Array, transition: Array, ahead: Array) -> Array:
        """See `Numbers`. A factor may be beyond all numbers while the product is not."""

        def of_state(own: tuple[Array, Array]) -> Array:
            before, row = own
            return jnp.sum(jnp.exp(before[:, None, :] + row[None, :, None] + ahead), (0, 2))

        return lax.map(of_state, (jnp.moveaxis(filtered, 1, 0), transition))


LINEAR, LOG = Linear(), Log()


def _few(values: Array) -> bool:
    return values.shape[-2] <= _FUSED_STATES


def _states(values: Array) -> list[Array]:
    """Each state's own, the axis kept."""
    return [lax.slice_in_dim(values, i, i + 1, axis=values.ndim - 2) for i in range(values.shape[-2])]


def _terms(matrix: Array, vector: Array) -> list[tuple[Array, Array]]:
    """Each row of the matrix (…, k, 1), and what it goes with (…, 1, n)."""
    k, ones = matrix.shape[0], (1,) * (vector.ndim - 2)
    rows = [lax.index_in_dim(matrix, i, keepdims=False).reshape(*ones, k, 1) for i in range(k)]
    return list(zip(rows, _states(vector), strict=True))


def top_of(values: Array) -> Array:
    """The largest of the states, a number even where all are −inf; a constant to derivatives."""
    # a reduction: exp(values − maximum) with the maximum written out does not run on vector units in a loop
    return jnp.maximum(jnp.max(lax.stop_gradient(values), -2, keepdims=True), jnp.finfo(values.dtype).min)


def _log_of(total: Array, top: Array) -> Array:
    """top + log total; −inf, and no slope, where it is 0."""
    nothing = total == 0
    return jnp.where(nothing, -jnp.inf, top + jnp.log(jnp.where(nothing, 1, total)))
