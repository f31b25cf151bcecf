"""Params and statistics of a hidden Markov model, the fields of the model, and rows of probabilities."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array
from ..contracts.domains import SIMPLEX, check_array
from ..numerics import tree as _tree
from ..numerics.special import onto_simplex
from ._weights import ConstantWeights
from .transitions import SoftmaxMoves, SoftmaxTransitions


class HMMParams(NamedTuple):
    """Probabilities of the first state (k,), of transitions (k, k), and the emissions, a bank of the family.

    `transition[i, j]` is the probability that state j follows state i; rows sum to 1. Where transitions depend on
    covariates it is `TransitionParams`.

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
    """Expected first states (k,), transitions (k, k), or `Rows` of moves with covariates, the family's statistics."""

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
    transitions: SoftmaxTransitions | None = None

    @property
    def n_components(self) -> int:
        """k, as starts and memory count them."""
        return self.n_states

    @property
    def _first(self) -> "Simplex":
        """What the first state is drawn from."""
        return Simplex((self.n_states,), self.initial_concentration, self.initial_allowed)

    @property
    def _moves(self) -> Any:
        """What the next state is drawn from, one row a state: `Simplex`, or `SoftmaxMoves` of covariates."""
        if self.transitions is not None:
            return SoftmaxMoves(self.transitions, self.n_states, self.allowed)
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

    def n_parameters(self, probabilities: Array) -> Any:
        """Free parameters."""
        rows = 1 if len(self.shape) == 1 else self.shape[0]
        entries = rows * self.shape[-1] if self.allowed is None else jnp.sum(jnp.asarray(self.allowed))
        return entries - rows

    def feasible(self, probabilities: Array) -> Array:
        """Whether none is negative, and there is one: ()."""
        return jnp.all(probabilities >= 0) & jnp.all(jnp.sum(probabilities, -1) > 0)

    def projected(self, probabilities: Array, near: Array) -> Array:
        """Probabilities from elsewhere put back on the simplex, beside others."""
        return onto_simplex(probabilities, near)

    def sizes(self, probabilities: Array) -> Array:
        """Standard deviations of the estimates from one step whose state is known; below 1e-4 they count as that."""
        return jnp.sqrt(jnp.maximum(probabilities, 1e-4))

    # --- as rows of transitions; the methods are those of `SoftmaxMoves`, which depend on covariates

    def of_steps(self, probabilities: Array, covariates: None) -> Array:
        """Of every step: (k, k)."""
        return self.masked(probabilities)

    def counted(self, pairs: Array, covariates: None) -> Array:
        """Expected transitions as `mode` takes them."""
        return pairs

    def reached(self, probabilities: Array) -> Array:
        """States that may be come to from another: (k,)."""
        away = probabilities * (1 - jnp.eye(self.shape[-1], dtype=probabilities.dtype))
        return jnp.any(away > 0, 0)

    def rows_held(self, mask: Any) -> np.ndarray:
        """What of each row is held, (k, k), of a mask."""
        return np.asarray(mask)

    def held_coordinates(self, rows: np.ndarray, probabilities: Array) -> Any:
        """Free coordinates of rows that are held, (k,)."""
        k = self.shape[-1]
        return np.broadcast_to(rows[:, None], (k, k - 1))

    def axes(self) -> Any:
        """States lead along both."""
        return (0, 1)

    def validate(self, probabilities: Any, q: int | None) -> None:
        """Raises a ValueError unless the shape fits."""
        if jnp.shape(probabilities) != self.shape:
            raise ValueError(f"params.transition: expected shape {self.shape}, got {jnp.shape(probabilities)}.")

    def check_params(self, probabilities: Array, *, lanes: bool = False, name: str = "transition") -> None:
        """Raises a ValueError that names what of concrete probabilities is none."""
        check_array(f"params.{name}", probabilities, SIMPLEX, lanes=lanes)
        if self.allowed is None or _tree.is_tracing(probabilities, self.allowed):
            return
        if np.any((np.asarray(probabilities) != 0) & ~np.asarray(self.allowed)):
            raise ValueError(
                f"params.{name}: expected 0 where `allowed` is False, got another probability; set it to 0 and "
                "divide each row by its sum, or begin with model.init."
            )

    def _each(self, fn: Callable[..., Array], *arguments: Array) -> Array:
        """A method of `ConstantWeights` for the one simplex, or for each row."""
        dtype = arguments[0].dtype
        alpha = None if self.concentration is None else self._alpha(dtype)

        def one(alpha: Any, allowed: Any, *arguments: Array) -> Array:
            return fn(ConstantWeights(self.shape[-1], alpha, allowed), *arguments)

        return (one if len(self.shape) == 1 else jax.vmap(one))(alpha, self.allowed, *arguments)
