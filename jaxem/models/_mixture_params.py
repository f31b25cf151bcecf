"""Params and statistics of a mixture, and the fields of the model."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ._weights import ConstantWeights
from .gate import GateWeights, SoftmaxGate


class MixtureParams(NamedTuple):
    """Weights (k,) on the simplex, or `GateParams` where there is a gate, and the components, a bank of the family.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.NormalParams(jnp.array([[-1.0], [2.0]]), jnp.ones((2, 1, 1)))
        >>> start = jaxem.MixtureParams(weights=jnp.array([0.3, 0.7]), components=bank)  # or model.init
        >>> jaxem.Mixture(jaxem.FullNormal(), n_components=2).predict(start, jnp.array([[0.0], [1.0]]))
        Array([0, 1], dtype=...)
    """

    weights: Any
    components: Any


class MixtureStats(NamedTuple):
    """Σ responsibilities (k,), or `Rows` of a gate, and the family's statistics."""

    count: Any
    components: Any


@dataclass(frozen=True)
class MixtureFields:
    """What a mixture is made of; `Mixture` says what the fields are."""

    family: Any
    n_components: int = field(metadata={"static": True})
    concentration: Any = None
    active: Any = None
    gate: SoftmaxGate | None = None

    @property
    def _mixing(self) -> Any:
        """What the weights are, and how they are estimated."""
        if self.gate is not None:
            return GateWeights(self.gate, self.n_components, self.active)
        return ConstantWeights(self.n_components, self.concentration, self.active)
