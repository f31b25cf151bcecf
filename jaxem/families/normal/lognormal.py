"""Positive columns whose logarithms are normal."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..._typing import Array, Key
from ...fold.features import Features
from ...numerics import tree as _tree
from ..columns._columns import named_outside
from ._normal import Moments, NormalParams
from .diagonal import DiagonalNormal


@_tree.register
@dataclass(frozen=True)
class LogNormal(DiagonalNormal):
    """Positive columns, independent: log x_a ~ N(mean_a, covariance_a).

    Everything is said of the logarithms: the `NormalParams` means and variances (k, d), the floor in units of the
    robust column variances of the logarithms, the prior. exp(mean) is the median of x, √covariance its relative spread.

    Attributes:
        floor: regularisation: the log prior −½ Σ_k tr(Λ Σ_k⁻¹), Λ = floor · diag(robust variances of the
            logarithms), as of `FullNormal`. 0 is pure maximum likelihood.
        prior: a `NormalInverseWishart` of the logarithms, its scale (d,), or None.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.exp(jnp.array([[-1.0], [0.0], [4.0]]))
        >>> model = jaxem.Mixture(jaxem.LogNormal(floor=0.0), n_components=1)
        >>> bank = jaxem.fit(model, model.init(jax.random.key(0), x), x).params.components
        >>> bank.mean.round(3), bank.covariance.round(3)
        (Array([[1.]], dtype=...), Array([[4.667]], dtype=...))
    """

    costly_features: ClassVar[bool] = True

    def bind(self, x: Array, sample_weight: Array | None) -> "LogNormal":
        """Sets pivot and variance, of the logarithms."""
        return super().bind(_log(x), sample_weight)

    def weigh(self, x: Array, sample_weight: Array | None) -> Any:
        """What stands behind the constants, of the logarithms."""
        return super().weigh(_log(x), sample_weight)

    def _rows(self, x: Array) -> Array:
        # about the origin as a ratio, so that a narrow column far from 1 keeps its digits
        return _log(x) if self.origin is None else _log(x / jnp.exp(self.origin)[None])

    # --- the density of x is that of log x times Π 1/x; on the fast path log x is linear in the features

    def log_prob(self, bank: NormalParams, x: Array | Features) -> Array:
        """log f(x_i | j): (n, k); −inf outside of the support."""
        bank = jax.tree.map(jnp.asarray, bank)
        if isinstance(x, Features):
            return self._log_prob_fast(bank, x)
        x = jnp.asarray(x, bank.mean.dtype)
        valid = _is_positive(x)
        safe = jnp.where(valid, x, 1)
        log_prob = super().log_prob(bank, safe) - jnp.sum(jnp.log(safe), 1, keepdims=True)
        outside = ~jnp.all(valid, 1, keepdims=True)
        broken = jnp.any(jnp.isnan(x), 1, keepdims=True)  # to be seen
        return jnp.where(broken, jnp.nan, jnp.where(outside, -jnp.inf, log_prob))

    def natural(self, bank: NormalParams, log_weights: Array | float = 0.0) -> Array:
        """Natural parameters of T about the pivot, of the density of x: (k, f)."""
        jacobian = jnp.concatenate(
            [
                jnp.sum(self._log_place(bank.mean), 1, keepdims=True),
                jnp.ones_like(bank.mean),
                jnp.zeros_like(bank.mean),
            ],
            1,
        )
        return super().natural(bank, log_weights) - jacobian

    def _log_place(self, like: Array) -> Array:
        """The logarithm that the features are relative to, (k, d)."""
        place = jnp.zeros_like(like) if self.pivot is None else jnp.broadcast_to(self.pivot, like.shape)
        return place if self.origin is None else place + self.origin[None]

    def expected_log_prob(self, bank: NormalParams, stats: Moments) -> Array:
        """Σ_ij r_ij log f(x_i | j) from moments of the logarithms about the pivot: ()."""
        logs = stats.count[:, None] * self._log_place(bank.mean) + stats.first
        return super().expected_log_prob(bank, stats) - jnp.sum(logs)

    def sample(self, bank: NormalParams, key: Key, z: Array) -> Array:
        """One row of component z_i for each entry of z (n,): (n, d)."""
        return jnp.exp(super().sample(bank, key, z))

    def points(self, x: Array) -> Array:
        """Logarithms, for k-means."""
        return _log(x)

    def supported(self, x: Array) -> tuple[Array, Array]:
        """Rows with legal entries in the place of those outside of the support, and which rows are not: (n,)."""
        inside = jnp.all(_is_positive(x), 1) | jnp.any(jnp.isnan(x), 1)  # NaN stays to be seen
        return jnp.where(inside[:, None], x, 1), inside

    def check_data(self, x: Any, sample_weight: Array | None) -> None:
        """Raises a ValueError that names the first entry of concrete data outside of the support."""
        bad = ~((np.asarray(x) > 0) & np.isfinite(np.asarray(x)))
        if sample_weight is not None:
            bad = bad & (np.asarray(sample_weight) > 0)[:, None]
        named_outside(x, bad, "finite positive numbers", "LogNormal")


def _is_positive(x: Array) -> Array:
    return (x > 0) & (x < jnp.inf)


def _log(x: Array) -> Array:
    """log x; NaN outside of the support."""
    return jnp.log(jnp.where(_is_positive(x), x, jnp.nan))
