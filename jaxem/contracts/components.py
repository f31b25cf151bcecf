"""What a mixture asks of its family, whether the family is one of its own or made of others (`by_component`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key
from . import capabilities as ask


def by_component(family: Any, fn: Callable[[Any, Array], Array], values: Array, tree: Any) -> Any:
    """fn(values, leaf) for every leaf of a tree shaped as the bank, or as its free coordinates.

    Args:
        family: with `component_axes`, or with a `by_component` of its own.
        fn: called with the values of the components that lead the leaf; with None where they share it.
        values: (k,), one a component.
        tree: what is mapped.
    """
    if ask.offers(family, "by_component"):
        return family.by_component(fn, values, tree)

    def along(axis: int | None, subtree: Any) -> Any:
        own = None if axis is None else values
        return jax.tree.map(lambda leaf: fn(own, leaf), subtree)

    return jax.tree.map(along, family.component_axes(), tree, is_leaf=lambda axis: axis is None)


def can_be_drawn(family: Any) -> bool:
    """Whether a family, and every family that it is made of, has a method that draws rows."""
    inside = ask.told(family, "parts", None)
    if inside is not None:
        return all(can_be_drawn(part) for part in (inside.values() if isinstance(inside, dict) else inside))
    return ask.offers(family, "sample") or ask.offers(family, "sample_like")


def sample_like(family: Any, bank: Any, key: Key, z: Array, x: Data) -> Data:
    """One row of component z_i (n,) in the place of each row of x.

    What is no outcome of the family stays as x has it: missing entries, totals, covariates, offsets. A family without a
    method `sample_like(bank, key, z, x)` has no such thing, and draws by `sample(bank, key, z)`.
    """
    if ask.offers(family, "sample_like"):
        return family.sample_like(bank, key, z, x)
    return ask.needed(family, "sample")(bank, key, z)


def count_parameters(family: Any, bank: Any, active: Array | None, n_components: int) -> Any:
    """Free parameters of the active components (k,), or of all."""
    if ask.offers(family, "count_parameters"):
        return family.count_parameters(bank, active, n_components)
    return ask.n_parameters(family, bank, n_components if active is None else jnp.sum(jnp.asarray(active)))


def log_prior(family: Any, bank: Any, active: Array | None, alive: Any) -> Array:
    """The family's log prior over the active components (k,); 0 if it has none.

    Where the prior is not proper, what counts of a component that is not alive is what it tends to contribute as its
    weight goes to zero, which is nothing, and not what it has there by default.
    """
    if ask.offers(family, "log_prior_where"):
        return family.log_prior_where(bank, active, alive)
    if not ask.offers(family, "log_prior"):
        return jnp.zeros((), jnp.result_type(bool, *jax.tree.leaves(bank)))  # a bank may have no leaves
    if ask.told(family, "has_proper_prior", True):
        return family.log_prior(bank, active)
    return family.log_prior(bank, alive if active is None else alive & active)
