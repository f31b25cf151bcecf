"""SQUAREM: squared extrapolation of EM."""

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
from ._jumps import em_step, rate_of, step_info

_BASE, _MIDDLE, _JUMPED = 0, 1, 2
_MARKS = 64  # of the scale of lengths, to an octave


class SQUAREMState(NamedTuple):
    """Where in its cycle SQUAREM is.

    Attributes:
        phase: what the params received next are: θ₀, θ₁ = M(θ₀), or the point that was extrapolated.
        base: θ₀, (p,).
        image: M at the params accepted last: where to go if the next are refused.
        longest: the longest step length allowed.
        longest_if_refused: what it becomes if the next params are refused.
        jumped: whether the next params are extrapolated.
    """

    phase: Array
    base: Array
    image: Params
    longest: Array
    longest_if_refused: Array
    jumped: Array


@_tree.register
@dataclass(frozen=True)
class SQUAREM:
    """Squared extrapolation of EM (Varadhan & Roland 2008, scheme S3): three E steps a cycle.

    With r = θ₁ − θ₀ and v = θ₂ − θ₁ − r of two EM steps, the cycle goes to M(θ₀ + 2αr + α²v), α = ‖r‖ / ‖v‖ (their
    eqs. 6 and 9), norms relative to the sizes of the params. α is at least 1, two EM steps, and at most a bound, which
    is multiplied by `growth` when a step reaches it, and divided by it when such a step is refused (their section 7).
    If the point extrapolated is not feasible, or the cycle would end lower than θ₁, it ends at θ₂. The objective never
    falls at θ₀ and θ₁; the point extrapolated is only passed.

    Attributes:
        longest: the first bound on α, ≥ 1.
        growth: > 1.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (300, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> start = model.init(jax.random.key(1), x)
        >>> run = lambda algorithm: jaxem.fit(model, start, x, algorithm=algorithm, stop=jaxem.Residual(1e-3))
        >>> bool(run(jaxem.SQUAREM()).n_evals < run(jaxem.EM()).n_evals)
        True
    """

    longest: Any = 1.0
    growth: Any = 4.0

    monotone: ClassVar[bool] = True
    ends_at_em_fixed_point: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises a ValueError if a concrete option is out of range."""
        check_option("SQUAREM.longest", self.longest, 1)
        check_option("SQUAREM.growth", self.growth, 1, open_low=True)

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> SQUAREMState:
        """At θ₀, with nothing behind it."""
        flat = ravel_pytree(params)[0]
        longest = jnp.asarray(self.longest, flat.dtype)
        phase = jnp.asarray(_BASE, jnp.int32)
        return SQUAREMState(phase, flat, params, longest, longest, jnp.zeros((), bool))

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: SQUAREMState
    ) -> tuple[Params, SQUAREMState, StepInfo]:
        """See `Algorithm`."""
        image, _, objective, size_of_terms = em_step(model, params, data, sample_weight)
        flat, unravel = ravel_pytree(params)
        point, growth = ravel_pytree(image)[0], jnp.asarray(self.growth, flat.dtype)
        size = ask.flat_sizes(model, params)
        r = flat - state.base
        v = point - flat - r
        ratio = jnp.linalg.norm(r / size) / jnp.linalg.norm(v / size)
        # on a scale, near which r and v have no digits to spare: fits whose sums are rounded otherwise jump alike
        ratio = jnp.exp2(jnp.round(_MARKS * jnp.log2(ratio)) / _MARKS)
        length = jnp.clip(jnp.where(jnp.isnan(ratio), 1, ratio), 1, state.longest)
        squared = state.base + 2 * length * r + jnp.square(length) * v
        jump, feasible = allowed(model, unravel(squared), image)
        middle = state.phase == _MIDDLE
        jumps = middle & feasible & (length > 1.01) & ~is_rounding(point - flat, flat, size)
        at_bound = middle & (length >= state.longest)
        shorter = jnp.where(at_bound, jnp.maximum(state.longest / growth, 1), state.longest)
        longer = jnp.where(at_bound, state.longest * growth, state.longest)
        after = jnp.where(state.phase == _BASE, _MIDDLE, jnp.where(jumps, _JUMPED, _BASE)).astype(jnp.int32)
        passing = state.phase == _JUMPED
        new = SQUAREMState(
            phase=after,
            base=jnp.where(middle, state.base, flat),
            image=_tree.tree_where(passing, state.image, image),
            longest=jnp.where(middle & ~feasible, shorter, longer),
            longest_if_refused=jnp.where(passing, state.longest_if_refused, shorter),
            jumped=jumps | passing,
        )
        # modes slower than the longest step so far, by another two bounds, may still hide behind faster ones
        hidden = 1 - 1 / (jnp.square(growth) * state.longest)
        rate = jnp.where(middle, jnp.maximum(rate_of(r, r - (point - flat), size), hidden), jnp.nan)
        more = {"passing": passing, "rate": rate, "plain": middle, "size": size_of_terms}
        return _tree.tree_where(jumps, jump, image), new, step_info(objective, image, **more)

    def refused(self, model: Any, state: SQUAREMState) -> tuple[Params, SQUAREMState, Array]:
        """See `Algorithm`: θ₂, where the next cycle begins."""
        new = state._replace(
            phase=jnp.asarray(_BASE, jnp.int32), longest=state.longest_if_refused, jumped=jnp.zeros((), bool)
        )
        return state.image, new, state.jumped
