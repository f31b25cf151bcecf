"""What keeps the components of a normal family from collapsing: floor, prior, a bound on the ratio of eigenvalues."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..._typing import Array
from ...contracts.priors import DefaultPrior, NormalInverseWishart
from ...numerics import tree as _tree
from . import _ratio


@dataclass(frozen=True)
class Regularised:
    """The part of a normal family that needs no data but their constants; `Normal` says what the fields are."""

    floor: Any = 1e-6
    prior: NormalInverseWishart | DefaultPrior | None = None

    if TYPE_CHECKING:  # fields of the normal family; declared here they would come before its others
        robust_variance: Any = None
        origin: Any = None
        max_ratio: Any = None

    _eigenvalues: ClassVar[Callable[..., Array]]  # covariances -> (k, d), (k, 1) of spheres, (1, d) of one for all
    _least_multiple: ClassVar[Callable[..., Array]]
    _clip: ClassVar[Callable[..., Array]]
    _divisor: ClassVar[Callable[..., Array]]
    _scale_shape: ClassVar[Callable[..., tuple[int, ...]]]

    def _floor_scale(self, d: int, dtype: Any) -> Array:
        variance = jnp.ones(d, dtype) if self.robust_variance is None else self.robust_variance
        return jnp.asarray(self.floor, dtype) * variance

    def at_floor(self, bank: Any, count: Array) -> Array:
        """Which components lie at the floor: (k,) booleans.

        In some direction at least half of the variance is the floor's Λ / divisor, so that its size is not the data's.

        Args:
            bank: of k components.
            count: (k,), weights of the rows of each; without any a component is not at the floor.
        """
        d, dtype = bank.mean.shape[-1], bank.mean.dtype
        floor = self._floor_scale(d, dtype)
        divisor = self._divisor(count, self._pseudo_observations(dtype), d, count > 0)
        least = self._least_multiple(bank.covariance, jnp.where(floor > 0, floor, 1))
        return (least * divisor <= 2) & (count > 0) & jnp.any(floor > 0)

    def among(self, n_components: Any) -> Self:
        """The family of one of so many components, which its default prior asks for."""
        if not isinstance(self.prior, DefaultPrior):
            return self
        return replace(self, prior=replace(self.prior, n_components=n_components))

    def _with_prior_of(self, x: Array, weight: Array | None) -> Self:
        return replace(self, prior=self.prior.bound(x, weight)) if isinstance(self.prior, DefaultPrior) else self

    def _within_ratio(self, covariance: Array, weight: Array) -> Array:
        """The best covariances under `max_ratio`, given the best without it and their weights in Q + log prior."""
        if self.max_ratio is None:
            return covariance
        values = self._eigenvalues(covariance)
        weight = jnp.sum(weight) if values.shape[0] == 1 else weight
        low, high = _ratio.limits(values, jnp.broadcast_to(weight, values.shape[:1]), self.max_ratio)
        return self._clip(covariance, low, high)

    def imposed(self, bank: Any, weights: Array) -> Any:
        """The bank put within `max_ratio`, where it is not: what a fit starts from."""
        if self.max_ratio is None:
            return bank
        inside = self._obeys_ratio(bank)
        covariance = self._within_ratio(bank.covariance, weights)
        return bank._replace(covariance=jnp.where(inside, bank.covariance, covariance))

    def _pseudo_observations(self, dtype: Any) -> NormalInverseWishart | None:
        if self.prior is None:
            return None
        prior = self.prior
        if isinstance(prior, DefaultPrior):
            prior = prior.known(self._scale_shape(prior.mean.shape[0] if prior.mean is not None else 0), dtype)
        prior = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), prior)
        return prior if self.origin is None else replace(prior, mean=prior.mean - self.origin)

    def eigenvalues(self, bank: Any) -> Array:
        """Eigenvalues of the covariances, ascending: (k, d)."""
        return jnp.broadcast_to(self._eigenvalues(bank.covariance), bank.mean.shape)

    def _obeys_ratio(self, bank: Any) -> Array:
        """Whether the bank is within `max_ratio`: ()."""
        return _ratio.obeys(self._eigenvalues(bank.covariance), self.max_ratio)

    def _check_regularisation(self, d: int) -> None:
        """Raises a ValueError unless floor, bound and prior fit d columns."""
        if jnp.shape(self.floor) != ():
            raise ValueError(
                f"floor: expected a number, got shape {jnp.shape(self.floor)}; floors that differ by lane are named in "
                "model_axes of fit_batch."
            )
        if self.max_ratio is not None and jnp.shape(self.max_ratio) != ():
            raise ValueError(f"max_ratio: expected a number ≥ 1 or None, got shape {jnp.shape(self.max_ratio)}.")
        if self.max_ratio is not None and not _tree.is_tracing(self.max_ratio) and not np.asarray(self.max_ratio) >= 1:
            raise ValueError(f"max_ratio: expected a number ≥ 1 or None, got {self.max_ratio}.")
        if isinstance(self.prior, DefaultPrior):
            for name, leaf in (("shrinkage", self.prior.shrinkage), ("dof", self.prior.dof)):
                if leaf is not None and jnp.shape(leaf) != ():
                    raise ValueError(f"prior.{name}: expected a number, got shape {jnp.shape(leaf)}.")
        elif self.prior is not None:
            want = {"mean": (d,), "shrinkage": (), "dof": (), "scale": self._scale_shape(d)}
            for name, shape in want.items():
                if tuple(jnp.shape(getattr(self.prior, name))) != shape:
                    raise ValueError(
                        f"prior.{name}: expected shape {shape} for {type(self).__name__} on {d} columns, got "
                        f"{tuple(jnp.shape(getattr(self.prior, name)))}."
                    )
