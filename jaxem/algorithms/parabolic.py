"""Parabolic EM: a search along the parabola through three iterates of EM."""

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

_FIRST, _SETTLE, _SEARCH = 0, 1, 2


class ParabolicState(NamedTuple):
    """Where in its cycle the search is.

    Attributes:
        phase: what the params received next are: the start, the EM point of the best, or a point of the parabola.
        control: (3, p) P₀, P₁ and P₂.
        image: M at the params accepted last: where to go if the next are refused.
        objective: at those accepted last.
        reach: t − 1 of the next point of the parabola.
        jumped: whether the next params are a point of the parabola.
    """

    phase: Array
    control: Array
    image: Params
    objective: Array
    reach: Array
    jumped: Array


@_tree.register
@dataclass(frozen=True)
class ParabolicEM:
    """A search along the parabola through three iterates of EM (Berlinet & Roland 2009, section 3).

    P(t) = (1 − t)² P₀ + 2t(1 − t) P₁ + t² P₂ is tried at t = 1 + first·ratioⁱ, i = 0, 1, …, while the objective rises
    and the point is feasible. Two steps of EM from the best point make the next P₂, and P₀ and P₁ are the former P₁ and
    P₂: the parabola spans whole cycles. The objective never falls. Each point that is tried takes an E step.

    Attributes:
        first: > 0.
        ratio: > 1.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (300, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> start = model.init(jax.random.key(1), x)
        >>> run = lambda algorithm: jaxem.fit(model, start, x, algorithm=algorithm, stop=jaxem.Residual(1e-3))
        >>> bool(run(jaxem.ParabolicEM()).n_evals < run(jaxem.EM()).n_evals)
        True
    """

    first: Any = 0.1
    ratio: Any = 1.5

    monotone: ClassVar[bool] = True
    ends_at_em_fixed_point: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises a ValueError if a concrete option is out of range."""
        check_option("ParabolicEM.first", self.first, 0, open_low=True)
        check_option("ParabolicEM.ratio", self.ratio, 1, open_low=True)

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> ParabolicState:
        """At P₀."""
        flat = ravel_pytree(params)[0]
        return ParabolicState(
            phase=jnp.asarray(_FIRST, jnp.int32),
            control=jnp.stack([flat] * 3),
            image=params,
            objective=jnp.asarray(-jnp.inf, flat.dtype),
            reach=jnp.asarray(self.first, flat.dtype),
            jumped=jnp.zeros((), bool),
        )

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: ParabolicState
    ) -> tuple[Params, ParabolicState, StepInfo]:
        """See `Algorithm`."""
        image, _, objective, size_of_terms = em_step(model, params, data, sample_weight)
        flat, unravel = ravel_pytree(params)
        point = ravel_pytree(image)[0]
        first, settles, search = (state.phase == phase for phase in (_FIRST, _SETTLE, _SEARCH))
        shifted = jnp.stack([jnp.where(first, flat, state.control[1]), jnp.where(first, flat, state.control[2]), point])
        control = jnp.where(search, state.control, shifted)
        further = state.reach * jnp.asarray(self.ratio, flat.dtype)
        reach = jnp.where(search, further, jnp.asarray(self.first, flat.dtype))
        jump, feasible = allowed(model, unravel(_parabola(control, 1 + reach)), image)
        higher = objective > state.objective
        moves = ~is_rounding(point - flat, flat, ask.flat_sizes(model, params))
        jumps = (settles | (search & higher)) & feasible & moves
        new = ParabolicState(
            phase=jnp.where(jumps, _SEARCH, _SETTLE).astype(jnp.int32),
            control=control,
            image=image,
            objective=objective.astype(flat.dtype),
            reach=reach,
            jumped=jumps,
        )
        return _tree.tree_where(jumps, jump, image), new, step_info(objective, image, size=size_of_terms)

    def refused(self, model: Any, state: ParabolicState) -> tuple[Params, ParabolicState, Array]:
        """See `Algorithm`: one step of EM from the best point."""
        new = state._replace(phase=jnp.asarray(_SETTLE, jnp.int32), jumped=jnp.zeros((), bool))
        return state.image, new, state.jumped


def _parabola(control: Array, t: Array) -> Array:
    """P(t), from differences: P₀ + 2t(P₁ − P₀) + t²(P₂ − 2P₁ + P₀)."""
    start, middle, end = control
    return start + 2 * t * (middle - start) + jnp.square(t) * ((end - middle) - (middle - start))
