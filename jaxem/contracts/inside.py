"""Params inside of their space, for what asks more of them than the model does."""

from typing import Any

from .._typing import Params
from . import capabilities as ask


def with_slopes(owner: Any, params: Params) -> Params:
    """The params, off the boundary where the objective has no slope."""
    return owner.with_slopes(params) if ask.offers(owner, "with_slopes") else params
