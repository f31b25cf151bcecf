"""Where the params of a composite live: part by part."""

from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..._typing import Array, PyTree, Stats
from ...contracts import capabilities as ask
from ...contracts.inside import project
from ._parts import Parts


class PartsSpace(Parts):
    """Free coordinates, boundaries and what is held, of every part."""

    def unconstrain(self, bank: Any) -> Any:
        """Free coordinates of every part."""
        return self._map(lambda name, part, own: ask.unconstrain(part, own), bank)

    def constrain(self, free: Any) -> Any:
        """Inverse of `unconstrain`."""
        return self._map(lambda name, part, own: ask.constrain(part, own), free)

    def held(self, bank: Any) -> Any:
        """Which free coordinates lie on a boundary."""
        return self._map(lambda name, part, own: ask.held(part, own), bank)

    def feasible(self, bank: Any) -> Array:
        """Whether every part allows its params: ()."""
        return jnp.all(jnp.stack(self._list(lambda name, part, own: ask.is_feasible(part, own), bank)))

    def projected(self, bank: Any, near: Any) -> Any:
        """A bank from elsewhere put back on the constraints of every part."""
        return self._map(lambda name, part, own, beside: project(part, own, beside), bank, near)

    def sizes(self, bank: Any) -> Any:
        """Standard deviations of the estimates from one row, of every part."""
        return self._map(lambda name, part, own: ask.sizes(part, own), bank)

    def restricted(self, bank: Any) -> Self:
        """The family that stays on the boundary that the bank is on."""
        stay = lambda name, part, own: ask.on_its_boundary(part, own)  # noqa: E731
        return self._of(self._map(stay, bank))

    def estimate_held(self, bank: Any, stats: Stats, held: Any, active: Array | None = None) -> Any:
        """The mode with some entries as `bank` has them; `held` are booleans shaped as the bank."""

        def one(name: Any, part: Any, own: Any, s: Stats, flags: Any) -> Any:
            on = self._leading(active, name)
            if _all(flags):
                return own
            if not _any(flags):
                return part.estimate(own, s, on)
            if not ask.offers(part, "estimate_held"):
                raise ValueError(
                    f"mask.components: {self._named(name)} has no estimate_held, so that all of its params are held or "
                    "none; got a part."
                )
            return part.estimate_held(own, s, flags, on)

        return self._map(one, bank, stats, held)

    def frozen_coordinates(self, bank: Any, held: Any) -> Any:
        """Which free coordinates are held, shaped as `unconstrain(bank)`."""

        def one(name: Any, part: Any, own: Any, flags: Any) -> Any:
            if ask.offers(part, "frozen_coordinates"):
                return part.frozen_coordinates(own, flags)
            if _any(flags) and not _all(flags):
                raise ValueError(
                    f"mask.components: {self._named(name)} can hold all of its params or none, got a part."
                )
            free = jax.eval_shape(partial(ask.unconstrain, part), own)
            return jax.tree.map(lambda leaf: np.full(leaf.shape, _any(flags)), free)

        return self._map(one, bank, held)


def _any(held: PyTree) -> bool:
    return any(bool(np.any(leaf)) for leaf in jax.tree.leaves(held))


def _all(held: PyTree) -> bool:
    return all(bool(np.all(leaf)) for leaf in jax.tree.leaves(held))
