"""Mixture weights that are the same for every row."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array
from ..contracts.domains import SIMPLEX, check_array
from ..contracts.priors import dirichlet_log_prob
from ..numerics import tree as _tree
from ..numerics.special import onto_simplex


@dataclass(frozen=True)
class ConstantWeights:
    """Weights (k,) on the simplex. The methods are those of `GateWeights`, which depend on covariates."""

    n_components: int
    concentration: Any
    active: Any

    def log_weights(self, weights: Array, covariates: Array | None = None) -> Array:
        """log w: (k,); −inf where the weight is zero."""
        weights = weights if self.active is None else jnp.where(self.active, weights, 0)
        zero = weights == 0  # not "is not positive": NaN must come through
        return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1, weights)))

    def statistics(self, covariates: None, responsibilities: Array, components: Any) -> Array:
        """Σ responsibilities (k,)."""
        counted = "count" in getattr(components, "_fields", ())
        return components.count if counted else jnp.sum(responsibilities, 0)

    def estimate(self, weights: Array | None, count: Array) -> Array:
        """w_j ∝ N_j + α_j − 1, not below 0."""
        if self.concentration is not None:
            count = jnp.maximum(count + (jnp.asarray(self.concentration, count.dtype) - 1), 0)
        if self.active is not None:
            count = jnp.where(self.active, count, 0)
        return count / jnp.sum(count)

    def log_prior(self, weights: Array) -> Array:
        """Dirichlet log density, 0 if flat: ()."""
        if self.concentration is None:
            return jnp.zeros((), weights.dtype)
        return dirichlet_log_prob(jnp.asarray(self.concentration, weights.dtype), weights, self.active)

    def expected_log_prob(self, weights: Array, count: Array) -> Array:
        """Σ_j N_j log w_j: ()."""
        positive = weights > 0
        terms = count * jnp.log(jnp.where(positive, weights, 1))
        return jnp.sum(jnp.where(positive | (count == 0), terms, -jnp.inf))

    def sample(self, weights: Array, key: Any, n: int, covariates: None) -> Array:
        """Components of n rows: (n,)."""
        return jax.random.categorical(key, jnp.log(weights), shape=(n,))

    def n_active(self) -> Any:
        """How many components are on."""
        return self.n_components if self.active is None else jnp.sum(jnp.asarray(self.active))

    def n_parameters(self, weights: Array) -> Any:
        """Free parameters."""
        return self.n_active() - 1

    def counts(self, weights: Array, total: Any, covariates: None, sample_weight: Array | None) -> tuple[Array, Array]:
        """Expected rows of each component among rows of this total weight, and which are on and not empty: (k,) each.

        Those of the prior are taken out again: at a mode w_j ∝ N_j + α_j − 1.
        """
        on = weights > 0
        on = on if self.active is None else on & jnp.asarray(self.active)
        if self.concentration is None:
            return weights * total, on
        extra = jnp.where(on, jnp.asarray(self.concentration, weights.dtype) - 1, 0)
        return jnp.maximum(weights * (total + jnp.sum(extra)) - extra, 0), on

    def is_not_zero(self, weights: Array) -> Array:
        """Which components have a weight, (k,). NaN counts."""
        return weights != 0

    def is_positive(self, weights: Array) -> Array:
        """Which components have a positive weight, (k,)."""
        return weights > 0

    def feasible(self, weights: Array) -> Array:
        """Whether the weights are not negative: ()."""
        return jnp.all(weights >= 0) & (jnp.sum(weights) > 0)

    def projected(self, weights: Array, near: Array) -> Array:
        """Weights from elsewhere put back on the simplex."""
        return onto_simplex(weights, near)

    def sizes(self, weights: Array) -> tuple[Array, Array]:
        """√w_j twice: standard deviations from one row, and the share of rows that a component sees, its root."""
        root = jnp.sqrt(jnp.maximum(weights, 1e-4))
        return root, root

    def component_axes(self) -> int:
        """The weights lead with the components."""
        return 0

    def unconstrain(self, weights: Array) -> Array:
        """Log-ratios to the weight of the last active component (k − 1,)."""
        positive = weights > 0
        log_weights = jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)), 0)
        if self.active is None:  # slices; a scatter and its derivatives take long to compile
            return log_weights[:-1] - log_weights[-1]
        return log_weights[self.others()] - log_weights[self.last()]

    def constrain(self, free: Array) -> Array:
        """Inverse of `unconstrain`; components switched off get weight 0."""
        if self.active is None:
            return jax.nn.softmax(jnp.concatenate([free, jnp.zeros(1, free.dtype)]))
        logits = jnp.zeros(self.n_components, free.dtype).at[self.others()].set(free)
        return jax.nn.softmax(jnp.where(self.active, logits, -jnp.inf))

    def held(self, weights: Array) -> Array:
        """Which free coordinates are of components switched off."""
        if self.active is None:
            return jnp.zeros(self.n_components - 1, bool)
        return ~jnp.asarray(self.active)[self.others()]

    def last(self) -> Any:
        """The last active component, which the weights are relative to."""
        k = self.n_components
        return k - 1 if self.active is None else k - 1 - jnp.argmax(jnp.asarray(self.active)[::-1])

    def others(self) -> Array:
        """The components but the last."""
        index = jnp.arange(self.n_components - 1)
        return index + (index >= self.last())

    def check_params(self, weights: Array, *, lanes: bool = False) -> None:
        """Raises a ValueError unless concrete weights of the active components lie on the simplex."""
        if not _tree.is_tracing(weights, self.active):
            on = np.asarray(weights) if self.active is None else np.where(self.active, weights, 0)
            check_array("params.weights", on, SIMPLEX, lanes=lanes)

    def validate(self, weights: Any, covariates: None) -> None:
        """Raises a ValueError unless the weights are (k,)."""
        if jnp.shape(weights) != (self.n_components,):
            raise ValueError(f"params.weights: expected shape ({self.n_components},), got {jnp.shape(weights)}.")
