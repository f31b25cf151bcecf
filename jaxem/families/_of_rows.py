"""Families without statistics smaller than the rows themselves."""

from typing import Any, ClassVar

import jax.numpy as jnp

from .._typing import Array, Data, Params
from ..fold.chunks import Rows


class OfRows:
    """Statistics are the rows, and what is summed over them is summed by the M step."""

    additive: ClassVar[bool] = False
    closed_m_step: ClassVar[bool] = False

    def statistics(self, bank: Params | None, x: Data, responsibilities: Array) -> Rows:
        """The rows themselves."""
        return Rows(x, responsibilities)

    def expected_log_prob(self, bank: Params, stats: Rows) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        family: Any = self
        return jnp.sum(stats.expectation(lambda x: family.log_prob(bank, x)))
