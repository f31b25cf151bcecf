"""What follows from where params live: of a class with a `space`, a prefix tree of its params of bijections."""

from typing import Any

from .._typing import Array, Params
from ..bijections import constraints_of


class Coordinates:
    """Free coordinates of a model's params, leaf by leaf."""

    space: Any

    def unconstrain(self, params: Params) -> Params:
        """Free coordinates."""
        return constraints_of(self.space).to_free(params)

    def constrain(self, free: Params) -> Params:
        """Inverse of `unconstrain`."""
        return constraints_of(self.space).from_free(free)


class BankCoordinates(Coordinates):
    """Those of a family's bank, by its name."""

    def unconstrain(self, bank: Params) -> Params:
        """Free coordinates."""
        return super().unconstrain(bank)


class InSpace(BankCoordinates):
    """And which banks are allowed."""

    def feasible(self, bank: Params) -> Array:
        """Whether all params lie in their space: ()."""
        return constraints_of(self.space).contains(bank)
