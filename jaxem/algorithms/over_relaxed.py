"""Over-relaxed EM: steps of EM, lengthened while that goes well."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.checks import check_option
from ..contracts.inside import allowed
from ..contracts.protocols import StepInfo
from ..numerics import tree as _tree
from ..numerics.tree import is_rounding
from ._jumps import em_step, step_info


class OverRelaxedState(NamedTuple):
    """M and the objective at the params accepted last, the step from there in steps of EM, whether it is beyond M."""

    image: Params
    objective: Array
    length: Array
    jumped: Array


@_tree.register
@dataclass(frozen=True)
class OverRelaxedEM:
    """θ + η·(M(θ) − θ), η growing from 1 step by step (Salakhutdinov & Roweis 2003, adaptive over-relaxation).

    Where it would lower the objective, or is not allowed, EM's step is taken, and η is 1: the objective never falls.

    Attributes:
        growth: by which η grows, > 1.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (300, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> start = model.init(jax.random.key(1), x)
        >>> slow, fast = (jaxem.fit(model, start, x, algorithm=a) for a in (jaxem.EM(), jaxem.OverRelaxedEM()))
        >>> bool(fast.n_evals < slow.n_evals)
        True
    """

    growth: Any = 1.2

    monotone: ClassVar[bool] = True
    ends_at_em_fixed_point: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises a ValueError if a concrete option is out of range."""
        check_option("OverRelaxedEM.growth", self.growth, 1, open_low=True)

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> OverRelaxedState:
        one = jnp.ones((), ravel_pytree(params)[0].dtype)
        return OverRelaxedState(params, -jnp.inf * one, one, jnp.zeros((), bool))

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: OverRelaxedState
    ) -> tuple[Params, OverRelaxedState, StepInfo]:
        """See `Algorithm`."""
        image, _, objective, size = em_step(model, params, data, sample_weight)
        flat, unravel = ravel_pytree(params)
        step = ravel_pytree(image)[0] - flat
        length = jnp.where(objective > state.objective, state.length * jnp.asarray(self.growth, flat.dtype), 1)
        beyond, feasible = allowed(model, unravel(flat + length * step), image)
        jumps = feasible & ~is_rounding(step, flat, ask.flat_sizes(model, params))
        new = OverRelaxedState(image, objective.astype(flat.dtype), jnp.where(jumps, length, 1), jumps)
        return _tree.tree_where(jumps, beyond, image), new, step_info(objective, image, size=size)

    def refused(self, model: Any, state: OverRelaxedState) -> tuple[Params, OverRelaxedState, Array]:
        """See `Algorithm`: the step of EM."""
        return state.image, self.init(model, state.image, None, None), state.jumped
