"""Constants of the data, put together from batches that are not in memory at the same time.

A model's `bind` reads all rows. What it finds in two batches is merged by the model's own `merged`, which weighs either
side by what `weigh` says of it: moments merge exactly (Chan, Golub & LeVeque 1983).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Data, PyTree
from ..contracts import capabilities as ask
from ..latent.finite import unlabelled
from .present import present_rows


class Bound(NamedTuple):
    """A model bound to the rows so far, and the weight of these, as `weigh` gives it."""

    model: Any
    seen: PyTree


def bound_to(model: Any, data: Data, sample_weight: Array | None) -> Bound:
    """The model bound to one batch, in which some weight is positive."""
    return Bound(ask.bind(model, data, sample_weight), weigh(model, unlabelled(data), sample_weight))


def merge(first: Bound, second: Bound) -> Bound:
    """The model bound to the rows of both.

    Raises:
        ValueError: if the model has constants of the data and does not say how to merge them.
    """
    model = merged(first.model, first.seen, second.model, second.seen)
    seen = merged_weight(first.model, first.seen, second.seen)
    return Bound(model, seen)


def weigh(model: Any, data: Data, sample_weight: Array | None) -> PyTree:
    """Weight behind the constants that `bind` takes from these rows: the model's own, or that of the entries present.

    Returns:
        Without a method `weigh`: for each leaf (n, …) of the data the weight of its entries that are not NaN, (…).
    """
    if ask.offers(model, "weigh"):
        return model.weigh(data, sample_weight)
    data = present_rows(data, sample_weight)

    def of_entries(leaf: Array) -> Array:
        present = (~jnp.isnan(leaf)).astype(leaf.dtype)
        return jnp.sum(present, 0) if sample_weight is None else jnp.tensordot(sample_weight, present, 1)

    return jax.tree.map(of_entries, data)


def merged(model: Any, seen: PyTree, other: Any, other_seen: PyTree) -> Any:
    """The bound model whose constants are those of the rows behind both.

    Raises:
        ValueError: see `merge`.
    """
    if ask.offers(model, "merged"):
        return model.merged(seen, other, other_seen)
    if ask.offers(model, "bind"):
        raise ValueError(
            f"{type(model).__name__}: expected a method merged(seen, other, other_seen), which puts constants of two "
            "batches together, got a model with bind and without it; write one, or fit data in memory."
        )
    return model


def merged_weight(model: Any, seen: PyTree, other_seen: PyTree) -> PyTree:
    """The weight of both, see `weigh`."""
    if ask.offers(model, "merged_weight"):
        return model.merged_weight(seen, other_seen)
    return jax.tree.map(jnp.add, seen, other_seen)


def share(seen: Array, other_seen: Array, like: Array) -> Array:
    """The other's share of the weight, 0 without any, with trailing axes for constants shaped as `like`."""
    total = seen + other_seen
    part = jnp.where(total > 0, other_seen / jnp.where(total > 0, total, 1), 0)
    return part.reshape(part.shape + (1,) * (jnp.ndim(like) - part.ndim))


def merged_mean(mean: Array, seen: Array, other: Array, other_seen: Array) -> Array:
    """The mean of both."""
    return mean + share(seen, other_seen, mean) * (other - mean)


def merged_variance(moments: tuple[Array, Array], seen: Array, other: tuple[Array, Array], other_seen: Array) -> Array:
    """The variance of both; `moments` and `other` are mean and variance."""
    (mean, variance), (other_mean, other_variance) = moments, other
    s = share(seen, other_seen, variance)
    return variance + s * (other_variance - variance) + s * (1 - s) * jnp.square(other_mean - mean)
