"""Products of a normal family's features, in which the derivative of an EM step is one matrix product."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from ..._typing import Array


class Products:
    """T(x_i) as each component sees it, about its own mean, where products of T keep their digits."""

    pivot: Any

    _rows: ClassVar[Callable[..., Array]]
    _columns: ClassVar[Callable[..., list[Array]]]
    _moments: ClassVar[Callable[..., Any]]
    recentred: ClassVar[Callable[..., Any]]

    def n_features(self, x: Array) -> int:
        """f."""
        return jax.eval_shape(lambda y: jnp.concatenate(self._columns(y, 1), 1), x).shape[1]

    def linearised(self, bank: Any) -> Self:
        """The family with features about each component's own mean, where their products keep their digits."""
        return self.recentred(bank)

    def features(self, x: Array) -> Array:
        """T about each component's pivot: (k, f, n)."""
        rows = self._rows(x).T
        return jax.vmap(lambda place: jnp.concatenate(self._columns(rows - place[:, None], 0), 0))(self.pivot)

    def stats_of_products(self, products: Array) -> Any:
        """Moments, which are the first row of Σ_i r_ij T_ij T_ijᵀ (k, f, f)."""
        return self._moments(products[:, 0], self.pivot.shape[-1])
