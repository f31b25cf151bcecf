"""Where the params of a hidden Markov model live: free coordinates, boundaries, what is held, the order of states."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array
from ..contracts import capabilities as ask
from ..contracts import components as parts
from ..contracts.holding import all_held, any_held, held_leafwise
from ..contracts.inside import project
from ._markov_params import HMMParams, HMMStats, MarkovFields
from ._markov_stationary import climbed, stationary_law

_ON_BOUNDARY = 1e-8  # probabilities tend to 0 geometrically and never arrive
_LONG = 1000  # steps, of the series whose states are counted


class MarkovSpace(MarkovFields):
    """First states and transitions on simplices, beside the family's own space."""

    def unconstrain(self, params: HMMParams) -> HMMParams:
        """Free coordinates: log-ratios to the last allowed probability of each row, and the family's own."""
        emissions = ask.unconstrain(self.family, params.emissions)
        first = params.initial[:0] if self.stationary else self._first.unconstrain(params.initial)
        return HMMParams(first, self._moves.unconstrain(params.transition), emissions)

    def constrain(self, free: HMMParams) -> HMMParams:
        """Inverse of `unconstrain`; what is not allowed gets probability 0."""
        emissions = ask.constrain(self.family, free.emissions)
        transition = self._moves.constrain(free.transition)
        first = stationary_law(transition) if self.stationary else self._first.constrain(free.initial)
        return HMMParams(first, transition, emissions)

    def feasible(self, params: HMMParams) -> Array:
        """Whether no probability is negative and the emissions are allowed by the family: ()."""
        sound = self._first.feasible(params.initial) & self._moves.feasible(params.transition)
        return sound & ask.is_feasible(self.family, params.emissions)

    def projected(self, params: HMMParams, near: HMMParams) -> HMMParams:
        """Params from elsewhere put back on the constraints, beside allowed ones."""
        emissions = project(self.family, params.emissions, near.emissions)
        transition = self._moves.projected(params.transition, near.transition)
        first = self._first.projected(params.initial, near.initial)
        first = stationary_law(transition) if self.stationary else first
        return HMMParams(first, transition, emissions)

    def sizes(self, params: HMMParams) -> HMMParams:
        """Standard deviations of the estimates from one step whose state is known, states being about as frequent.

        Of a transition √(k A_ij), of emissions the family's times √k. Probabilities below 1e-4 count as that.
        """
        own = self._moves.sizes(params.transition), ask.sizes(self.family, params.emissions)
        transition, emissions = jax.tree.map(lambda leaf: leaf * self.n_states**0.5, own)
        return HMMParams(self._first.sizes(params.initial), transition, emissions)

    def restricted(self, params: HMMParams) -> Self:
        """The model without the transitions and first states whose probability is below 1e-8."""
        allow = lambda p, own: (p > _ON_BOUNDARY) if own is None else (p > _ON_BOUNDARY) & jnp.asarray(own)  # noqa: E731
        return replace(
            self,
            family=ask.on_its_boundary(self.family, params.emissions),
            allowed=allow(params.transition, self.allowed) if self.transitions is None else self.allowed,
            initial_allowed=None if self.stationary else allow(params.initial, self.initial_allowed),
        )

    def held(self, params: HMMParams) -> HMMParams:
        """Which free coordinates are of structural zeros, or on a boundary of the family."""
        emissions = ask.held(self.family, params.emissions)
        first = jnp.zeros(0, bool) if self.stationary else self._first.held(params.initial)
        return HMMParams(first, self._moves.held(params.transition), emissions)

    def m_step_held(self, params: HMMParams, stats: HMMStats, held: HMMParams) -> HMMParams:
        """`m_step` over what is not held; `held` are booleans shaped as the params.

        Raises:
            ValueError: where a part of a row of probabilities is held, or the family cannot hold a part of the bank.
        """
        first, rows = self._held_rows(held)
        initial, transition = (params.initial, params.transition) if rows.all() and first else self.moved(params, stats)
        initial = params.initial if first else initial
        keep = lambda old, new: jnp.where(rows.reshape(-1, *[1] * (new.ndim - 1)), old, new)  # noqa: E731
        transition = jax.tree.map(keep, params.transition, transition)
        bank = params.emissions
        if all_held(held.emissions):
            return HMMParams(initial, transition, bank)
        if not any_held(held.emissions):
            return HMMParams(initial, transition, self.family.estimate(bank, stats.emissions, None))
        if not ask.offers(self.family, "estimate_held"):
            raise ValueError(
                f"mask.emissions: {type(self.family).__name__} has no estimate_held(bank, stats, held, active), so "
                "that all of the emissions are held or nothing of them; got a part."
            )
        return HMMParams(initial, transition, self.family.estimate_held(bank, stats.emissions, held.emissions, None))

    def frozen_coordinates(self, params: HMMParams, held: HMMParams) -> HMMParams:
        """Which free coordinates are held, shaped as `unconstrain(params)`."""
        first, rows = self._held_rows(held)
        moves = self._moves.held_coordinates(rows, params.transition)
        probabilities = np.full(0 if self.stationary else self.n_states - 1, first), moves
        if ask.offers(self.family, "frozen_coordinates"):
            own = self.family.frozen_coordinates(params.emissions, held.emissions)
        else:
            free = jax.eval_shape(partial(ask.unconstrain, self.family), params.emissions)
            own = held_leafwise(held.emissions, free, self.family, entries=False)
        return HMMParams(*probabilities, own)

    def _held_rows(self, held: HMMParams) -> tuple[bool, np.ndarray]:
        """Whether the first state's probabilities are held, and which rows of transitions: (k,)."""
        rows = self._moves.rows_held(held.transition)
        apart = any_held(held.initial) and not all_held(held.initial)
        if apart or np.any(rows.any(1) & ~rows.all(1)):
            where = "initial" if apart else "transition"
            raise ValueError(
                f"mask.{where}: expected rows of probabilities held as a whole or not at all, as they sum to one, got "
                "a part of one; hold the row."
            )
        rows = np.asarray(rows.all(1))
        if not self.stationary:
            return any_held(held.initial), rows
        if any_held(held.initial) != rows.any() or rows.any() != rows.all():
            raise ValueError(
                "mask: expected the initial probabilities and all transitions held, or nothing of them, as the first "
                "state has the stationary law; got a part."
            )
        return bool(rows.all()), rows

    def moved(self, params: HMMParams | None, stats: HMMStats) -> tuple[Array, Array]:
        """The M step of the first state and the transitions."""
        initial, transition = (None, None) if params is None else (params.initial, params.transition)
        if not self.stationary:
            return self._first.mode(initial, stats.initial), self._moves.mode(transition, stats.transition)
        if transition is None:
            transition = self._moves.mode(None, stats.transition)
        else:
            transition = climbed(self._moves, transition, stats.initial, stats.transition)
        return stationary_law(transition), transition

    def imposed(self, params: HMMParams) -> HMMParams:
        """Params as a fit starts from them: those that the family's own bounds allow, and a stationary law."""
        if params is None:
            return params
        first = stationary_law(params.transition) if self.stationary else params.initial
        bank = ask.imposed(self.family, params.emissions, jnp.ones(self.n_states))
        return params._replace(initial=first, emissions=bank)

    def n_parameters(self, params: HMMParams) -> Any:
        """Free parameters: of the first state, of the transitions allowed, and of the emissions."""
        emissions = parts.count_parameters(self.family, params.emissions, None, self.n_states)
        first = 0 if self.stationary else self._first.n_parameters(params.initial)
        return first + self._moves.n_parameters(params.transition) + emissions

    @property
    def component_axes(self) -> Callable[[], HMMParams]:
        """Where states lead, along both axes of the transitions; absent where the family's are not exchangeable."""
        axes = self.family.component_axes
        return lambda: HMMParams(0, self._moves.axes(), axes())

    def relabelled(self, order: Array) -> Self:
        """The model of params whose states were taken in this order."""

        def take(leaf: Any, n_axes: int) -> Any:
            for axis in range(min(n_axes, jnp.ndim(leaf)) if leaf is not None else 0):
                leaf = jnp.take(jnp.asarray(leaf), order, axis)
            return leaf

        return replace(
            self,
            family=ask.relabelled(self.family, order),
            concentration=take(self.concentration, 2),  # (k,) is of the states that are moved to
            allowed=take(self.allowed, 2),
            initial_concentration=take(self.initial_concentration, 1),
            initial_allowed=take(self.initial_allowed, 1),
        )

    def shares(self, params: HMMParams) -> Array:
        """Expected share of steps in each state, of a series that goes on with probability 0.999 after each: (k,).

        π (1 − c) (I − c·A)⁻¹ with c = 0.999. Unlike the stationary law it is unique for every chain, also one that
        never comes back to a state. Where transitions depend on covariates, A is that of their means.
        """
        transition, c = params.transition, 1 - 1 / _LONG
        if self.transitions is not None:
            if self.transitions.basis is None:
                raise ValueError(
                    "by: transitions depend on covariates, whose means a model that is bound to no data does not know; "
                    "order by what you know, such as by=lambda params: params.emissions.mean[:, 0]."
                )
            transition = self._moves.probabilities(transition, self.transitions.basis.origin[None])[0]
        system = jnp.eye(self.n_states, dtype=transition.dtype) - c * transition
        return (1 - c) * jnp.linalg.solve(system.T, params.initial)
