"""What to know about a fit beyond its status."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._typing import Array, Params


class Diagnosis(NamedTuple):
    """Findings about the params of a fit; under `vmap`, one a lane.

    Attributes:
        smallest_weight: of the active components. Zero is a legal boundary optimum: the component is not needed.
        worst_condition: largest condition number of an active component's covariance; NaN for families without one.
        equal_components: two active components are the same, as after a symmetric start: EM cannot part them.
    """

    smallest_weight: Array
    worst_condition: Array
    equal_components: Array

    def messages(self) -> list[str]:
        """Sentences on what is unusual; empty if nothing is. Needs concrete values of one fit."""
        found = []
        if bool(np.asarray(self.equal_components)):
            found.append("two components are equal: their starts were, and EM cannot part them; start elsewhere.")
        if float(self.smallest_weight) <= 0:
            found.append("a component has weight zero: fewer components give the same density.")
        if float(self.worst_condition) > 1e-2 / float(jnp.finfo(jnp.asarray(self.worst_condition).dtype).eps):
            found.append("a covariance is nearly singular for this dtype; use float64, a larger floor or a prior.")
        return found


def diagnose(model: Any, params: Params) -> Diagnosis:
    """Looks for weights at zero, near-singular covariances and components that a symmetric start made equal.

    Args:
        model: a `Mixture`; for a stacked result, `jax.vmap(jaxem.diagnose)(result.model, result.params)`.
        params: its params.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (50, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> half = jaxem.Responsibilities(jax.numpy.full((50, 2), 0.5))
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x, method=half), x)
        >>> bool(jaxem.diagnose(model, result.params).equal_components)
        True
    """
    weights = params.weights
    k = weights.shape[0]
    active = jnp.ones(k, bool) if model.active is None else jnp.asarray(model.active)
    smallest = jnp.min(jnp.where(active, weights, jnp.inf))
    same = jnp.ones((k, k), bool)
    axes = jax.tree.leaves(model.component_axes(), is_leaf=lambda axis: axis is None)
    for axis, leaf in zip(axes, jax.tree.leaves(params), strict=True):
        if axis == 0:
            flat = leaf.reshape(k, -1)
            tolerance = 64 * jnp.finfo(leaf.dtype).eps * jnp.max(jnp.abs(flat), 0)
            same = same & jnp.all(jnp.abs(flat[:, None] - flat[None]) <= tolerance[None, None], -1)
    pairs = active[:, None] & active[None] & ~jnp.eye(k, dtype=bool)
    return Diagnosis(smallest, _worst_condition(model, params, active), jnp.any(same & pairs))


def _worst_condition(model: Any, params: Params, active: Array) -> Array:
    covariance = getattr(params.components, "covariance", None)
    if covariance is None:
        return jnp.full((), jnp.nan, params.weights.dtype)
    d = params.components.mean.shape[-1]
    shared = model.component_axes().components.covariance is None
    if covariance.shape[-2:] == (d, d) and covariance.ndim == (2 if shared else 3):
        eigenvalues = jnp.linalg.eigvalsh(covariance)
    elif covariance.ndim == 2:
        eigenvalues = covariance
    else:
        eigenvalues = covariance[:, None]
    condition = jnp.max(eigenvalues, -1) / jnp.min(eigenvalues, -1)
    return condition if shared else jnp.max(jnp.where(active, condition, 1))
