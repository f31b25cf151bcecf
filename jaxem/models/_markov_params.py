"""Params and statistics of a hidden Markov model, the fields of the model, and rows of probabilities."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array
from ._weights import ConstantWeights


class HMMParams(NamedTuple):
    """Probabilities of the first state (k,), of transitions (k, k), and the emissions, a bank of the family.

    `transition[i, j]` is the probability that state j follows state i; rows sum to 1.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.PoissonParams(jnp.array([[1.0], [9.0]]))
        >>> start = jaxem.HMMParams(jnp.array([0.5, 0.5]), jnp.array([[0.9, 0.1], [0.2, 0.8]]), bank)
        >>> data = jaxem.sequences([jnp.array([[0.0], [2.0], [8.0]])])
        >>> jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2).predict(start, data)
        Array([[0, 0, 1]], dtype=...)
    """

    initial: Any
    transition: Any
    emissions: Any


class HMMStats(NamedTuple):
    """Expected first states (k,), transitions (k, k), and the family's statistics."""

    initial: Any
    transition: Any
    emissions: Any


@dataclass(frozen=True)
class MarkovFields:
    """What a hidden Markov model is made of; `HiddenMarkovModel` says what the fields are."""

    family: Any
    n_states: int = field(metadata={"static": True})
    concentration: Any = None
    allowed: Any = None
    initial_concentration: Any = None
    initial_allowed: Any = None
    stationary: bool = field(metadata={"static": True}, default=False)

    @property
    def n_components(self) -> int:
        """k, as starts and memory count them."""
        return self.n_states

    @property
    def _first(self) -> "Simplex":
        """What the first state is drawn from."""
        return Simplex((self.n_states,), self.initial_concentration, self.initial_allowed)

    @property
    def _moves(self) -> "Simplex":
        """What the next state is drawn from, one row a state."""
        return Simplex((self.n_states, self.n_states), self.concentration, self.allowed)


class Simplex(NamedTuple):
    """Probabilities (k,), or rows (k, k) of them, of which some may be structural zeros; with a Dirichlet prior.

    Attributes:
        shape: (k,) or (k, k).
        concentration: broadcasts to the shape; None is flat.
        allowed: booleans of this shape; None is all.
    """

    shape: tuple[int, ...]
    concentration: Any
    allowed: Any

    def masked(self, probabilities: Array) -> Array:
        """Zero where nothing is allowed."""
        return probabilities if self.allowed is None else jnp.where(self.allowed, probabilities, 0)

    def mode(self, before: Array | None, count: Array) -> Array:
        """p_j ∝ N_j + α_j − 1, not below 0; a row without counts stays as it was, or is uniform."""
        if self.concentration is not None:
            count = jnp.maximum(count + self._alpha(count.dtype) - 1, 0)
        count = self.masked(count)
        total = jnp.sum(count, -1, keepdims=True)
        empty = total <= 0  # NaN is not
        even = self.masked(jnp.ones_like(count))
        otherwise = even / jnp.sum(even, -1, keepdims=True) if before is None else before
        return jnp.where(empty, otherwise, count / jnp.where(empty, 1, total))

    def _alpha(self, dtype: Any) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.concentration, dtype), self.shape)

    def log_prior(self, probabilities: Array) -> Array:
        """Dirichlet log density, 0 if flat: ()."""
        if self.concentration is None:
            return jnp.zeros((), probabilities.dtype)
        return jnp.sum(self._each(ConstantWeights.log_prior, probabilities))

    def expected_log_prob(self, probabilities: Array, count: Array) -> Array:
        """Σ N log p: ()."""
        return jnp.sum(self._each(ConstantWeights.expected_log_prob, probabilities, count))

    def unconstrain(self, probabilities: Array) -> Array:
        """Log-ratios to the last allowed entry of a row: (…, k − 1)."""
        return self._each(ConstantWeights.unconstrain, probabilities)

    def constrain(self, free: Array) -> Array:
        """Inverse of `unconstrain`."""
        return self._each(ConstantWeights.constrain, free)

    def held(self, probabilities: Array) -> Array:
        """Which free coordinates are of structural zeros."""
        return self._each(ConstantWeights.held, probabilities)

    def n_parameters(self) -> Any:
        """Free parameters."""
        rows = 1 if len(self.shape) == 1 else self.shape[0]
        entries = rows * self.shape[-1] if self.allowed is None else jnp.sum(jnp.asarray(self.allowed))
        return entries - rows

    def _each(self, fn: Callable[..., Array], *arguments: Array) -> Array:
        """A method of `ConstantWeights` for the one simplex, or for each row."""
        dtype = arguments[0].dtype
        alpha = None if self.concentration is None else self._alpha(dtype)

        def one(alpha: Any, allowed: Any, *arguments: Array) -> Array:
            return fn(ConstantWeights(self.shape[-1], alpha, allowed), *arguments)

        return (one if len(self.shape) == 1 else jax.vmap(one))(alpha, self.allowed, *arguments)
