"""What the components of a mixture hold, and whether a maximum with such components is an answer."""

import numbers
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Params
from ..numerics import tree as _tree
from . import capabilities as ask


class Holdings(NamedTuple):
    """What the components of a fit hold, those that are on and have a positive weight; None: it is not known.

    Attributes:
        smallest_count: the fewest expected rows that one of them holds, weight · total weight: ().
        largest_ratio: of the largest to the smallest eigenvalue of covariances, over all of them; 1 is least: ().
        n_at_floor: how many lie at the floor of their family: ().
    """

    smallest_count: Any
    largest_ratio: Any
    n_at_floor: Any


def holdings(
    model: Any, params: Params, total: Any, data: Data | None = None, sample_weight: Array | None = None
) -> Holdings:
    """What the components hold.

    Args:
        model: a bound `Mixture`; another has no holdings.
        params: its params.
        total: the weight of all rows, (), or None.
        data: the rows, where a gate reads them.
        sample_weight: (n,) or None.
    """
    if not ask.offers(model, "component_counts"):
        return Holdings(None, None, None)
    known = jnp.ones((), jnp.result_type(float, *jax.tree.leaves(params))) if total is None else total
    counts, on = model.component_counts(params, known, data, sample_weight)
    if counts is None:
        return Holdings(None, None, None)
    smallest = None if total is None else jnp.min(jnp.where(on, counts, jnp.inf))
    family, bank = model.family, params.components
    low = None if total is None else ask.at_floor(family, bank, counts)
    n_low = None if low is None else jnp.sum(jnp.asarray(low) & on).astype(jnp.int32)
    return Holdings(smallest, _ratio(family, bank, on), n_low)


def _ratio(family: Any, bank: Any, on: Array) -> Array | None:
    eigenvalues = ask.eigenvalues(family, bank)
    if eigenvalues is None:
        return None
    on = on.reshape(-1, *[1] * (eigenvalues.ndim - 1))
    return jnp.max(jnp.where(on, eigenvalues, 0)) / jnp.min(jnp.where(on, eigenvalues, jnp.inf))


@_tree.register
@dataclass(frozen=True)
class Admissible:
    """Which maxima of the likelihood are answers: those without a component that is a spike.

    The likelihood of a mixture with free variances is unbounded: it rises without end where a component shrinks onto a
    few rows, or onto a value that repeats (Day 1969). A floor makes such a spike finite, not right. Drivers that take
    `admissible=` return the best maximum without one; where none of the starts found any, the status of the best of
    them is INADMISSIBLE, and `select` passes the model over.

    Only components that are on and have a positive weight are looked at. One that is alone holds all rows, and is
    always admissible.

    Attributes:
        min_count: least expected number of rows, weight · total weight, of a component.
        max_ratio: largest ratio of two eigenvalues of covariances, within one component or between two (Hathaway 1985);
            None is any. It depends on the units of the columns.
        at_floor: whether a component may lie at the floor of its family, which then is all that keeps it from
            shrinking; static.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jax.random.normal(jax.random.key(0), (60, 1)), jnp.full((20, 1), 4.0)])
        >>> model = jaxem.Mixture(jaxem.FullNormal(), 2)
        >>> best = jaxem.fit_restarts(model, jax.random.key(1), x, n_restarts=3, admissible=jaxem.Admissible())
        >>> jaxem.Status(int(best.status)).name, int(best.holdings().n_at_floor)  # the rows that are equal
        ('INADMISSIBLE', 1)
    """

    min_count: Any = 5.0
    max_ratio: Any = None
    at_floor: bool = field(metadata={"static": True}, default=False)

    def allows(self, model: Any, params: Params, total: Array, data: Data, sample_weight: Array | None) -> Array:
        """Whether params are admissible: (). NaN is not."""
        _, on = model.component_counts(params, total, data, sample_weight)
        found = holdings(model, params, total, data, sample_weight)
        allowed = found.smallest_count >= self.min_count
        if self.max_ratio is not None:
            allowed &= found.largest_ratio <= self.max_ratio
        if not self.at_floor and found.n_at_floor is not None:
            allowed &= found.n_at_floor == 0
        return allowed | (jnp.sum(on) == 1)

    def check(self, model: Any) -> None:
        """Raises a ValueError if a bound is out of range, or is of what the model does not have."""
        if not ask.offers(model, "component_counts"):
            raise ValueError(
                f"admissible: expected a Mixture, whose components hold rows, got {type(model).__name__}; leave it out."
            )
        for name, least in (("min_count", 0), ("max_ratio", 1)):
            value = getattr(self, name)
            if isinstance(value, numbers.Real) and not float(value) >= least:
                raise ValueError(f"admissible.{name}: expected a number of at least {least}, got {value!r}.")
        if self.max_ratio is not None and not ask.offers(model.family, "eigenvalues"):
            raise ValueError(
                f"admissible.max_ratio: expected a family with covariances, got {type(model.family).__name__}, which "
                "has no eigenvalues; use min_count."
            )


def check_admissible(admissible: Any, *models: Any) -> None:
    """Raises a ValueError unless `admissible` is None, or an `Admissible` that fits the models."""
    if admissible is None:
        return
    if not isinstance(admissible, Admissible):
        raise ValueError(
            f"admissible: expected Admissible(min_count, max_ratio, at_floor) or None, got {admissible!r}."
        )
    for model in models:
        admissible.check(model)
