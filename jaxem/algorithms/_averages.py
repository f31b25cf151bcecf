"""Running means of params, for algorithms whose last params are noisy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Params
from ..numerics import tree as _tree


class RunningMean(NamedTuple):
    """The mean of `count` params."""

    mean: Params
    count: Array


def no_mean(params: Params, average_from: Any) -> RunningMean | None:
    """Before the first; None where no mean is asked for."""
    if average_from is None:
        return None
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return RunningMean(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), dtype))


def add_to_mean(average: RunningMean | None, params: Params, n_iter: Array, average_from: Any) -> RunningMean | None:
    """With params of n_iter M steps, if these are at least `average_from`."""
    if average is None:
        return None
    count = average.count + 1
    mean = jax.tree.map(lambda old, new: old + (new - old) / count.astype(new.dtype), average.mean, params)
    return _tree.tree_where(n_iter >= average_from, RunningMean(mean, count), average)


def mean_or(average: RunningMean | None, params: Params) -> Params:
    """The mean; `params` where there is none."""
    if average is None:
        return params
    return _tree.tree_where(average.count > 0, average.mean, params)


def check_average_from(average_from: Any) -> None:
    """Raises a ValueError unless it is None, traced, or a number ≥ 0."""
    if average_from is None or _tree.is_tracing(average_from):
        return
    if np.ndim(average_from) != 0 or not np.asarray(average_from) >= 0:
        raise ValueError(
            "average_from: expected None or the number of M steps from which params are averaged, got "
            f"{average_from!r}."
        )
