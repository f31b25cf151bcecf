"""What regressions share: their data, the basis of their covariates, a prior on their coefficients."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._typing import Array, Data, Key
from ...contracts.domains import Domain, check_leaves
from ...contracts.priors import GaussianPrior, gaussian_log_constant
from ...fold.covariates import Basis, as_precision, basis_of, check_design, check_rank, is_present
from ...numerics import tree as _tree
from ...numerics.linalg import dot


class Observed(NamedTuple):
    """Rows as a regression works with them: z (n, p), the response, the offset (n,) or None."""

    z: Array
    response: Array
    offset: Array | None

    def plus_offset(self, predictor: Array) -> Array:
        """A linear predictor (n, k) with the offset."""
        return predictor if self.offset is None else predictor + self.offset[:, None]


@dataclass(frozen=True)
class Regression:
    """A family of data (covariates (n, p), response[, offset (n,)]), whose components have coefficients (k, p).

    Attributes:
        prior: a `GaussianPrior` on the coefficients of every component, or None.
        basis: set by `bind`: coordinates in which the covariates are orthonormal.
        local: set by `localised`: coefficients are those of the basis.
    """

    prior: GaussianPrior | None = None
    basis: Basis | None = field(default=None, kw_only=True)
    local: bool = field(metadata={"static": True}, default=False, kw_only=True)

    _bank: ClassVar[type]
    reads_floats: ClassVar[bool] = True
    _domains: ClassVar[tuple[Domain, ...]]  # of the leaves of a bank
    _response: ClassVar[str]
    _response_shapes: ClassVar[tuple[str, ...]] = ("(n,)",)

    # --- coordinates

    def bind(self, x: Data, sample_weight: Array | None) -> Self:
        """The family with the basis of the covariates."""
        return replace(self, basis=basis_of(x[0], sample_weight))

    def localised(self) -> Self:
        """The bound family for coefficients of the basis."""
        return replace(self, local=True)

    def to_local(self, bank: Any) -> Any:
        """The bank as `localised` takes it."""
        return bank._replace(coefficients=self._to_local(bank.coefficients))

    def to_global(self, bank: Any) -> Any:
        """Inverse of `to_local`."""
        return bank._replace(coefficients=self._to_global(bank.coefficients))

    def _to_local(self, coefficients: Array) -> Array:
        return coefficients if self.basis is None else self.basis.to_local(coefficients)

    def _to_global(self, coefficients: Array) -> Array:
        return coefficients if self.basis is None else self.basis.to_global(coefficients)

    def _inside(self, bank: Any) -> Array:
        """Coefficients of the basis (k, p) of a bank in whichever coordinates this family takes."""
        return bank.coefficients if self.local else self._to_local(bank.coefficients)

    def _outside(self, coefficients: Array) -> Array:
        """Inverse of `_inside`."""
        return coefficients if self.local else self._to_global(coefficients)

    def _observed(self, x: Data) -> Observed:
        covariates, response = x[:2]
        z = covariates if self.basis is None else self.basis.rows(covariates)
        return Observed(z, response, x[2] if len(x) > 2 else None)

    # --- the prior

    def _prior_inside(self, p: int, dtype: Any) -> tuple[Array, Array, Array]:
        """Precision matrix (p, p) and mean (p,) of the prior for coefficients of the basis; how many have one."""
        if self.prior is None:
            return jnp.zeros((p, p), dtype), jnp.zeros(p, dtype), jnp.zeros((), dtype)
        precision, mean = as_precision(self.prior.precision, p, dtype), as_precision(self.prior.mean, p, dtype)
        to_white = jnp.eye(p, dtype=dtype) if self.basis is None else self.basis.to_white
        matrix = dot(to_white.T * precision[None], to_white)
        return matrix, self._to_local(mean), jnp.sum(precision > 0).astype(dtype)

    def _log_prior_terms(self, bank: Any) -> tuple[Array, Array, Array]:
        """Σ precision·(β − mean)² (k,), the log constant (), how many coefficients have a prior ()."""
        k, p = bank.coefficients.shape
        dtype = bank.coefficients.dtype
        if self.prior is None:
            return jnp.zeros(k, dtype), jnp.zeros((), dtype), jnp.zeros((), dtype)
        precision, mean = as_precision(self.prior.precision, p, dtype), as_precision(self.prior.mean, p, dtype)
        beta = self._to_global(self._inside(bank))
        square = jnp.sum(precision[None] * jnp.square(beta - mean[None]), 1)
        return square, gaussian_log_constant(precision), jnp.sum(precision > 0).astype(dtype)

    @property
    def has_proper_prior(self) -> bool:
        """Whether a component without rows has a mode: not here, where some param has no prior."""
        return False

    # --- draws

    def sample_like(self, bank: Any, key: Key, z: Array, x: Data) -> tuple:
        """Responses of components z (n,) in the place of those of x, given its covariates and offset: data."""
        return self.sample(bank, key, z, given_of(x))  # type: ignore[attr-defined]

    # --- bookkeeping

    def component_axes(self) -> Any:
        """Every leaf leads with the components."""
        return self._bank(*[0] * len(self._bank._fields))  # type: ignore[attr-defined]

    def points(self, x: Data) -> Array:
        """Rows as points, for k-means: covariates and response side by side."""
        return _tree.side_by_side(tuple(x[:2]))

    def n_parameters(self, bank: Any, n_components: Any) -> Any:
        """Free parameters of so many components."""
        return n_components * (bank.coefficients.shape[1] + len(bank._fields) - 1)

    def _coefficient_sizes(self, bank: Any, scale: Array) -> Array:
        """Standard deviations of coefficients (k, p) of which those of the basis have `scale` (k,)."""
        own = jnp.ones(bank.coefficients.shape[1], scale.dtype)
        if not self.local and self.basis is not None:
            own = jnp.sqrt(jnp.sum(jnp.square(self.basis.to_white), 1))
        return scale[:, None] * own[None]

    def validate(self, bank: Any, x: Any, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        if not isinstance(bank, self._bank):
            raise TypeError(f"params.components: expected {self._bank.__name__}, got {type(bank).__name__}.")
        p = self.validate_data(x)
        for name, leaf in zip(bank._fields, bank, strict=True):  # type: ignore[attr-defined]
            want = (n_components, p) if name == "coefficients" else (n_components,)
            if tuple(jnp.shape(leaf)) != want:
                raise ValueError(
                    f"params.components.{name}: expected shape {want} for {type(self).__name__} with {n_components} "
                    f"components and {p} covariates, got {tuple(jnp.shape(leaf))}."
                )

    def check_params(self, bank: Any, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of a concrete bank lies outside of the parameter space."""
        check_leaves("params.components", bank, self._domains, lanes=lanes)

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (covariates, response[, offset]) and the prior fits; returns p."""
        shapes = " or ".join(self._response_shapes)
        if not isinstance(x, tuple) or len(x) not in (2, 3):
            got = f"a tuple of {len(x)}" if isinstance(x, tuple) else type(x).__name__
            raise ValueError(
                f"data: expected a tuple (covariates (n, p), response {shapes}[, offset (n,)]) for "
                f"{type(self).__name__}, got {got}."
            )
        n = _tree.n_rows(x)
        p = check_design(x[0], n, "data: covariates")
        got = tuple(jnp.shape(x[1]))
        if got not in [eval_shape(shape, n) for shape in self._response_shapes]:
            raise ValueError(f"data: expected a response {shapes} for {type(self).__name__}, n = {n}, got shape {got}.")
        if len(x) == 3 and tuple(jnp.shape(x[2])) != (n,):
            raise ValueError(f"data: expected an offset of shape ({n},), got {tuple(jnp.shape(x[2]))}.")
        for name in ("precision", "mean") if self.prior is not None else ():
            shape = tuple(jnp.shape(getattr(self.prior, name)))
            if shape not in ((), (p,)):
                raise ValueError(f"prior.{name}: expected shape () or ({p},) on {p} covariates, got {shape}.")
        return p

    def check_data(self, x: Any, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete responses outside of the support."""
        self._check_response(np.asarray(x[1]), is_present(sample_weight, len(x[1])))

    def check_table(self, x: Any, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete covariates that have not full rank, without a prior."""
        if self.prior is None:
            check_rank(x[0], sample_weight, "data: covariates")

    def _check_response(self, response: np.ndarray, present: np.ndarray) -> None:
        bad = present[(...,) + (None,) * (response.ndim - 1)] & ~np.asarray(self._in_support(response))
        if bad.any():
            rows = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
            first = response[rows[0]].tolist()
            raise ValueError(
                f"data: expected {self._response} as response of {type(self).__name__}, got {first} in row {rows[0]} "
                f"({len(rows)} such rows in all); leave them out or give them sample_weight 0."
            )

    def _in_support(self, response: Any) -> Any:
        return jnp.isfinite(response)


def given_of(x: Data) -> Data:
    """What draws of a regression are conditional on: the covariates of data x, or (covariates, offset)."""
    return (x[0], x[2]) if len(x) > 2 else x[0]


def eval_shape(shape: str, n: int) -> tuple[int, ...]:
    """The shape that "(n,)" or "(n, 2)" stands for."""
    return (n,) if shape == "(n,)" else (n, 2)


def weighted_mean(values: Array, sample_weight: Array | None) -> Array:
    """The mean of values (n, …) under the weights of the rows; rows of weight zero are never looked at."""
    if sample_weight is None:
        return jnp.mean(values, 0)
    total = jnp.sum(sample_weight)
    weight = sample_weight.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(weight > 0, weight * values, 0), 0) / jnp.where(total > 0, total, 1)


def constant(values: Any) -> Any:
    """Values that carry no derivative: coordinates, on which the answer does not depend."""
    return lax.stop_gradient(values)
