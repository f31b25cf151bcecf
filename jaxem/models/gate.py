"""Mixture weights that depend on covariates: mixtures of experts, concomitant variables, latent class regression."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..contracts.priors import GaussianPrior
from ..fold.chunks import Rows
from ..fold.covariates import Basis, as_precision, basis_of, check_design, check_rank
from ..latent.finite import Gated, ungated
from ..numerics import tree as _tree
from ..numerics.linalg import dot
from ..numerics.newton_bank import Surface, climb_bank


class GateParams(NamedTuple):
    """Coefficients (k, q), which sum to zero over the components.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> gate = jaxem.GateParams(jnp.array([[0.0, 1.0], [0.0, -1.0]]))  # in the place of the weights
        >>> start = jaxem.MixtureParams(gate, jaxem.PoissonParams(jnp.array([[1.0], [9.0]])))
        >>> model = jaxem.Mixture(jaxem.Poisson(), 2, gate=jaxem.SoftmaxGate())
        >>> model.gate.contrasts(start.weights, reference=1)
        Array([[0., 2.],
               [0., 0.]], dtype=...)
    """

    coefficients: Array


@_tree.register
@dataclass(frozen=True)
class SoftmaxGate:
    """w_j(q_i) = softmax_j(q_iᵀ a_j) of covariates q (n, q): `Mixture(family, k, gate=SoftmaxGate())`.

    Data are `gated(data, covariates)`; a column of ones in the covariates is the intercept, none is added. The
    coefficients sum to zero over the (active) components, so that no component is special: results can be relabelled,
    and a prior does not depend on their order. `contrasts` are the coefficients relative to one component. The M step
    is weighted multinomial logistic regression by Newton's method over all rows (Jordan & Jacobs 1994).

    Where covariates separate the components, coefficients grow until the objective does not resolve it, and stay
    finite; only their direction then says something. A prior bounds them.

    Attributes:
        prior: a `GaussianPrior` on the coefficients of every component, mean 0; None is flat. Its log density is up to
            a constant.
        basis: set by `bind`: coordinates in which the covariates are orthonormal.
        local: set by `localised`: coefficients are those of the basis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> t = jnp.linspace(-2.0, 2.0, 100)
        >>> up = jnp.sin(400.0 * jnp.arange(100)) / 2 + 0.5 < jax.nn.sigmoid(3 * t)
        >>> x = jnp.where(up, 9.0, 0.0)[:, None] + jnp.cos(jnp.arange(100.0))[:, None]
        >>> data = jaxem.gated(x, jnp.stack([jnp.ones(100), t], 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), 2, gate=jaxem.SoftmaxGate())
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data).check()
        >>> upper = int(jnp.argmax(result.params.components.mean[:, 0]))
        >>> bool(model.gate.contrasts(result.params.weights, 1 - upper)[upper, 1] > 1)
        True
    """

    prior: GaussianPrior | None = None
    basis: Basis | None = field(default=None, kw_only=True)
    local: bool = field(metadata={"static": True}, default=False, kw_only=True)

    def contrasts(self, params: GateParams, reference: Any = -1) -> Array:
        """Coefficients (k, q) relative to those of the component `reference`, whose own are zero."""
        return params.coefficients - params.coefficients[reference][None]

    def bind(self, covariates: Array, sample_weight: Array | None) -> Self:
        """The gate with the basis of the covariates."""
        return replace(self, basis=basis_of(covariates, sample_weight))

    def localised(self) -> Self:
        """The bound gate for coefficients of the basis."""
        return replace(self, local=True)

    def to_local(self, params: GateParams) -> GateParams:
        """Params as `localised` takes them."""
        return GateParams(self.basis.to_local(params.coefficients)) if self.basis is not None else params

    def to_global(self, params: GateParams) -> GateParams:
        """Inverse of `to_local`."""
        return GateParams(self.basis.to_global(params.coefficients)) if self.basis is not None else params


@dataclass(frozen=True)
class GateWeights:
    """A gate over k components, of which some may be switched off."""

    gate: SoftmaxGate
    n_components: int
    active: Any

    # --- coordinates

    def _inside(self, params: GateParams) -> Array:
        return params.coefficients if self.gate.local else self.gate.to_local(params).coefficients

    def _outside(self, coefficients: Array) -> GateParams:
        params = GateParams(coefficients)
        return params if self.gate.local else self.gate.to_global(params)

    def _z(self, covariates: Array) -> Array:
        return covariates if self.gate.basis is None else self.gate.basis.rows(covariates)

    def _on(self) -> Array:
        return jnp.ones(self.n_components, bool) if self.active is None else jnp.asarray(self.active)

    def _centred(self, coefficients: Array) -> Array:
        """With sums of zero over the active components, zero for the others."""
        on = self._on()[:, None]
        mean = jnp.sum(jnp.where(on, coefficients, 0), 0) / jnp.sum(on)
        return jnp.where(on, coefficients - mean[None], 0)

    def _log_softmax(self, logits: Array) -> Array:
        if self.active is None:
            return jax.nn.log_softmax(logits, 1)
        on = self._on()[None]
        low = jnp.finfo(logits.dtype).min / 4
        return jnp.where(on, jax.nn.log_softmax(jnp.where(on, logits, low), 1), -jnp.inf)

    # --- the two arrows

    def log_weights(self, params: GateParams, covariates: Array) -> Array:
        """log w_j(q_i): (n, k); −inf for components switched off."""
        return self._log_softmax(dot(self._z(covariates), self._inside(params).T))

    def counts(
        self, params: GateParams, total: Any, covariates: Array | None, sample_weight: Array | None
    ) -> tuple[Array | None, Array]:
        """Expected rows of each component, the sum of its weights over the rows, and which are on: (k,) each."""
        if covariates is None:
            return None, self._on()
        weights = jnp.exp(self.log_weights(params, covariates))
        if sample_weight is not None:
            weights = jnp.where(sample_weight[:, None] > 0, weights * sample_weight[:, None], 0)
        return jnp.sum(weights, 0), self._on()

    def statistics(self, covariates: Array, responsibilities: Array, components: Any) -> Rows:
        """The rows themselves."""
        return Rows(covariates, responsibilities)

    def _precision(self, q: int, dtype: Any) -> Array:
        """Of the prior, for coefficients of the basis: (q, q)."""
        if self.gate.prior is None:
            return jnp.zeros((q, q), dtype)
        precision = as_precision(self.gate.prior.precision, q, dtype)
        to_white = jnp.eye(q, dtype=dtype) if self.gate.basis is None else self.gate.basis.to_white
        return dot(to_white.T * precision[None], to_white)

    def estimate(self, params: GateParams | None, rows: Rows) -> GateParams:
        """The mode of Σ_ij r_ij log w_j(q_i) + log prior; at initialisation under a weak prior, as states are certain.

        The sums are those of the coefficients of all components, whose common shift changes nothing; a fictitious
        prior on their sum holds that at zero, exactly.
        """
        dtype = rows.responsibilities.dtype
        k, q = self.n_components, rows.data.shape[1]
        on = self._on()
        start = jnp.zeros((k, q), dtype) if params is None else self._centred(self._inside(params))
        precision = self._precision(q, dtype)
        total = jnp.sum(rows.responsibilities)
        if params is None:
            precision = precision + 0.02 * total * jnp.eye(q, dtype=dtype)
        both = (on[:, None] & on[None]).astype(dtype)
        shift = jnp.where(total > 0, total, 1) / k**2 * jnp.kron(both, jnp.eye(q, dtype=dtype))
        off = jnp.diag(jnp.repeat(~on, q).astype(dtype))
        constant = shift + off + jnp.kron(jnp.diag(on.astype(dtype)), precision)

        def evaluate(flat: Array) -> Surface:
            a = flat.reshape(k, q)
            value, gradient, information = rows.total(lambda c, r: self._sums(a, c, r))
            ridge = dot(a, precision)
            gradient = jnp.where(on[:, None], gradient - ridge, 0)
            value = value - 0.5 * jnp.sum(jnp.where(on[:, None], a * ridge, 0))
            return Surface(value[None], gradient.reshape(1, -1), (information + constant)[None], jnp.abs(value)[None])

        found, _ = climb_bank(evaluate, start.reshape(1, -1))
        return self._outside(self._centred(found.reshape(k, q)))

    def _sums(self, a: Array, covariates: Array, responsibilities: Array) -> tuple[Array, Array, Array]:
        """Σ r log w, its gradient (k, q) and its negative Hessian (kq, kq), over these rows."""
        z = self._z(covariates)
        (n, q), k = z.shape, self.n_components
        log_w = self._log_softmax(dot(z, a.T))
        w = jnp.exp(log_w)
        count = jnp.sum(responsibilities, 1, keepdims=True)
        value = jnp.sum(jnp.where(responsibilities > 0, responsibilities * log_w, 0))
        gradient = dot((responsibilities - count * w).T, z)
        own = lax.map(lambda u: dot((z * u[:, None]).T, z), (count * w).T)
        spread = (w[:, :, None] * z[:, None, :]).reshape(n, k * q)
        blocks = jnp.zeros((k, q, k, q), z.dtype).at[jnp.arange(k), :, jnp.arange(k), :].set(own)
        return value, gradient, blocks.reshape(k * q, k * q) - dot((spread * count).T, spread)

    def log_prior(self, params: GateParams) -> Array:
        """−½ Σ precision·a², of the active components: ()."""
        a = params.coefficients
        if self.gate.prior is None:
            return jnp.zeros((), a.dtype)
        inside = self._inside(params)
        precision = self._precision(a.shape[1], a.dtype)
        return -0.5 * jnp.sum(jnp.where(self._on()[:, None], inside * dot(inside, precision), 0))

    def expected_log_prob(self, params: GateParams, rows: Rows) -> Array:
        """Σ_ij r_ij log w_j(q_i): ()."""
        return jnp.sum(rows.expectation(lambda covariates: self.log_weights(params, covariates)))

    def sample(self, params: GateParams, key: Key, n: int, covariates: Array) -> Array:
        """Components of the rows of covariates: (n,)."""
        return jax.random.categorical(key, self.log_weights(params, covariates), axis=1)

    # --- bookkeeping, as of `ConstantWeights`

    def n_active(self) -> Any:
        """How many components are on."""
        return self.n_components if self.active is None else jnp.sum(jnp.asarray(self.active))

    def n_parameters(self, params: GateParams) -> Any:
        """Free parameters: q for each active component but one."""
        return (self.n_active() - 1) * params.coefficients.shape[1]

    def is_not_zero(self, params: GateParams) -> Array:
        """The active components: all of their weights are positive."""
        return self._on()

    def is_positive(self, params: GateParams) -> Array:
        """The active components."""
        return self._on()

    def feasible(self, params: GateParams) -> Array:
        """Any finite coefficients will do: ()."""
        return jnp.all(jnp.isfinite(params.coefficients))

    def projected(self, params: GateParams, near: GateParams) -> GateParams:
        """Sums put back to zero."""
        return GateParams(self._centred(params.coefficients))

    def sizes(self, params: GateParams) -> tuple[GateParams, Array]:
        """Standard deviations from one row, about; and the root of the share of rows that a component sees, about."""
        k, q = params.coefficients.shape
        own = jnp.ones(q, params.coefficients.dtype)
        if not self.gate.local and self.gate.basis is not None:
            own = jnp.sqrt(jnp.sum(jnp.square(self.gate.basis.to_white), 1))
        share = jnp.full(k, k**-0.5, own.dtype)
        return GateParams(jnp.broadcast_to(own[None] * k**0.5, (k, q))), share

    def component_axes(self) -> GateParams:
        """The coefficients lead with the components."""
        return GateParams(0)  # type: ignore[arg-type]

    def unconstrain(self, params: GateParams) -> GateParams:
        """Coefficients of all but the last active component, (k − 1, q)."""
        return GateParams(params.coefficients[self.others()])

    def constrain(self, free: GateParams) -> GateParams:
        """Inverse of `unconstrain`."""
        k = self.n_components
        a = jnp.zeros((k, free.coefficients.shape[1]), free.coefficients.dtype)
        a = jnp.where(self._on()[:, None], a.at[self.others()].set(free.coefficients), 0)
        return GateParams(a.at[self.last()].set(-jnp.sum(a, 0)))

    def held(self, params: GateParams) -> GateParams:
        """Which free coordinates are of components switched off."""
        off = ~self._on()[self.others()]
        return GateParams(jnp.broadcast_to(off[:, None], (off.shape[0], params.coefficients.shape[1])))

    def last(self) -> Any:
        """The last active component, whose coefficients the others give."""
        k = self.n_components
        return k - 1 if self.active is None else k - 1 - jnp.argmax(self._on()[::-1])

    def others(self) -> Array:
        """The components but the last."""
        index = jnp.arange(self.n_components - 1)
        return index + (index >= self.last())

    def validate_covariates(self, covariates: Any, n: int) -> None:
        """Raises a ValueError unless covariates are (n, q) and the prior fits."""
        q = check_design(covariates, n, "covariates of the gate")
        if self.gate.prior is not None:
            check_zero_mean(self.gate.prior, q, "gate")

    def check_covariates(self, covariates: Any, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete covariates that have not full rank, without a prior."""
        if self.gate.prior is None:
            check_rank(covariates, sample_weight, "covariates of the gate")

    def validate(self, params: Any, covariates: Any) -> None:
        """Raises a ValueError or TypeError unless params fit the covariates."""
        if not isinstance(params, GateParams):
            raise TypeError(
                f"params.weights: expected GateParams, as the mixture has a gate, got {type(params).__name__}; "
                "model.init makes them."
            )
        want = (self.n_components, jnp.shape(covariates)[1])
        if jnp.shape(params.coefficients) != want:
            raise ValueError(
                f"params.weights.coefficients: expected shape {want}, got {jnp.shape(params.coefficients)}."
            )

    def check_params(self, params: GateParams, *, lanes: bool = False) -> None:
        """Raises a ValueError unless concrete coefficients sum to zero over the components."""
        if _tree.is_tracing(params):
            return
        a = np.asarray(params.coefficients)
        total, size = a.sum(-2), np.maximum(1, np.abs(a).max(-2))
        outside = np.atleast_2d(np.abs(total) > 1e-3 * size).any(-1)  # NaN has a status
        if outside.any():
            lane = f" in lane {int(np.argmax(outside))}" if lanes else ""
            got = np.atleast_2d(total)[np.argmax(outside)]
            raise ValueError(
                f"params.weights.coefficients: expected sums of zero over the components, got {got}{lane}; subtract "
                "the mean over the components."
            )


# --- the data of a mixture with a gate


def covariates_of(data: Any) -> Array:
    """The covariates of the weights.

    Raises:
        ValueError: if the data have none.
    """
    if not isinstance(data, Gated):
        raise ValueError(
            f"data: expected gated(data, covariates), as the mixture has a gate, got {type(data).__name__} without "
            "covariates of the weights."
        )
    return data.covariates


def check_zero_mean(prior: GaussianPrior, q: int, name: str) -> None:
    """Raises a ValueError unless a prior is one on q coefficients that sum to zero over the components."""
    if jnp.shape(prior.precision) not in ((), (q,)):
        raise ValueError(
            f"{name}.prior.precision: expected shape () or ({q},) on {q} covariates, got {jnp.shape(prior.precision)}."
        )
    if not _tree.is_tracing(prior.mean) and np.any(np.asarray(prior.mean) != 0):
        raise ValueError(f"{name}.prior.mean: expected 0, as coefficients sum to zero over the components.")


def check_gated(model: Any, data: Data) -> None:
    """Raises a ValueError unless the data have covariates of the weights just where the mixture has a gate."""
    if model.gate is None:
        if isinstance(data, Gated):
            raise ValueError("data: expected no covariates of the weights, got gated data; write gate=SoftmaxGate().")
        return
    if not isinstance(model.gate, SoftmaxGate):
        raise ValueError(f"gate: expected SoftmaxGate() or None, got {model.gate!r}.")
    if model.concentration is not None:
        raise ValueError(
            "concentration: expected None beside a gate, whose weights are not constant; a prior on its coefficients "
            "is SoftmaxGate(prior=GaussianPrior(precision))."
        )
    covariates = covariates_of(data)
    model._mixing.validate_covariates(covariates, _tree.n_rows(ungated(data)))


def check_given(model: Any, given: Any, n: int) -> None:
    """Raises a ValueError unless `given` is what draws of the model are conditional on."""
    if model.gate is None and not ask.told(model.family, "conditional", False):
        if given is not None:
            raise ValueError(f"given: expected None, as {type(model.family).__name__} has no covariates.")
        return
    wanted = "covariates (n, p) or (covariates, offset)" if ask.told(model.family, "conditional", False) else "rows"
    wanted = wanted if model.gate is None else f"gated({wanted}, covariates of the gate)"
    if given is None or (isinstance(given, Gated) != (model.gate is not None)) or _tree.n_rows(given) != n:
        got = "None" if given is None else f"{type(given).__name__} of {_tree.n_rows(given)} rows"
        raise ValueError(
            f"given: expected {wanted} with n = {n}, on which draws of this mixture are conditional, got {got}."
        )
