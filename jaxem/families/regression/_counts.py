"""What regressions of counts share."""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax

from ..._typing import Array, Data
from ...numerics.linalg import dot
from ._generalized import GeneralizedRegression
from ._regression import Observed


@dataclass(frozen=True)
class CountRegression(GeneralizedRegression):
    """A regression of counts on the logarithm of their mean."""

    _response: ClassVar[str] = "counts (non-negative integers)"

    def _link(self, coefficients: Array, x: Data, rows: Observed) -> Array:
        """Means, as a product of exponentials of what all rows share, the offset, and the rest.

        Rounding of η, 1e-6 of 18 in float32, is a relative error of the mean: 100 of 1e8, a hundredth of its standard
        deviation. What all rows share does no harm to a mode.
        """
        eta = self._predictor(coefficients, rows)
        if self.basis is None:
            return jnp.exp(eta)
        shared = dot(coefficients, self.basis.mean)[None]
        own = dot(self.basis.rows(x[0]) - self.basis.mean[None], coefficients.T)
        parts = [shared, own] if rows.offset is None else [shared, own, rows.offset[:, None]]
        most = 0.3 * math.log(float(jnp.finfo(eta.dtype).max))
        inside = functools.reduce(jnp.logical_and, [jnp.abs(part) < most for part in parts])
        # behind a barrier: XLA makes exp(a)·exp(b) exp(a + b)
        factors = [lax.optimization_barrier(jnp.exp(jnp.where(inside, part, 0))) for part in parts]
        product = functools.reduce(jnp.multiply, factors)
        return jnp.where(inside, product, jnp.exp(eta))

    def _start(self, y: Array) -> Array:
        return jnp.log(y + 0.5)

    def _in_support(self, response: Any) -> Any:
        return are_counts(response)


def are_counts(response: Any) -> Any:
    return (response >= 0) & (response == jnp.floor(response)) & (response < jnp.inf)
