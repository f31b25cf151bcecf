"""Transitions of a hidden Markov model that depend on covariates: one multinomial regression for each state left."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array
from ..contracts.priors import GaussianPrior
from ..fold.chunks import Rows
from ..fold.covariates import Basis, basis_of, check_rank
from ..numerics import tree as _tree
from .gate import GateParams, GateWeights, SoftmaxGate


class TransitionParams(NamedTuple):
    """Coefficients (k, k, q), [i, j] of state j following state i; of every i they sum to zero over the j allowed.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> move = jaxem.TransitionParams(jnp.zeros((2, 2, 1)).at[0, :, 0].set(jnp.log(3) * jnp.array([0.5, -0.5])))
        >>> bank = jaxem.PoissonParams(jnp.array([[1.0], [9.0]]))
        >>> params = jaxem.HMMParams(jnp.array([0.5, 0.5]), move, bank)  # in the place of a matrix
        >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), 2, transitions=jaxem.SoftmaxTransitions())
        >>> model.transition_matrix(params, jnp.array([[0.0], [1.0]]))[:, 0].round(2)  # from the first state
        Array([[0.5 , 0.5 ],
               [0.75, 0.25]], dtype=...)
    """

    coefficients: Array


@_tree.register
@dataclass(frozen=True)
class SoftmaxTransitions:
    """p(z_t = j | z_{t−1} = i) = softmax_j(q_tᵀ a_ij) of covariates q (n, t, q), in the place of one matrix.

    Data are `gated(sequences, covariates)`; the covariates of a step are those of the move into it, so that those of
    the first step of a series, and of absent ones, are never looked at. A column of ones is the intercept, none is
    added. Coefficients sum to zero over the states moved to. The M step is a weighted multinomial logistic regression
    for each state left, by Newton's method (Diebold, Lee & Weinbach 1994; Hughes, Guttorp & Charles 1999).

    Every step has a matrix of its own: memory is n·t·k² numbers, and few long series are not cut into blocks that run
    side by side. Where covariates separate the states, coefficients grow until the objective does not resolve it; a
    prior bounds them.

    Attributes:
        prior: a `GaussianPrior` on the coefficients of every state moved to, mean 0; None is flat. Its log density is
            up to a constant.
        basis: set by `bind`: coordinates in which the covariates are orthonormal.
        local: set by `localised`: coefficients are those of the basis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> warm = jnp.sin(jnp.arange(60.0) / 6)
        >>> x = jnp.where(warm > 0, 9.0, 0.0)[:, None] + (jnp.arange(60) % 3)[:, None]
        >>> covariates = jnp.stack([jnp.ones(60), warm], 1)[None]
        >>> data = jaxem.gated(jaxem.sequences([x]), covariates)
        >>> shrunk = jaxem.SoftmaxTransitions(jaxem.GaussianPrior(0.1))
        >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2, transitions=shrunk)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data).check()
        >>> busy = jnp.argmax(result.params.emissions.rate[:, 0])
        >>> cold, hot = model.transition_matrix(result.params, jnp.array([[1.0, -1.0], [1.0, 1.0]]))[:, :, busy]
        >>> bool(jnp.all(hot > 0.5) and jnp.all(cold < 0.5))
        True
    """

    prior: GaussianPrior | None = None
    basis: Basis | None = field(default=None, kw_only=True)
    local: bool = field(metadata={"static": True}, default=False, kw_only=True)

    def bind(self, covariates: Array, weight: Array) -> Self:
        """With the basis of the covariates of all moves, rows (m, q); another row has weight zero."""
        return replace(self, basis=basis_of(covariates, weight))

    def localised(self) -> Self:
        """For coefficients of the basis."""
        return replace(self, local=True)

    def to_local(self, params: TransitionParams) -> TransitionParams:
        """Params as `localised` takes them."""
        return TransitionParams(self._gate.to_local(GateParams(params.coefficients)).coefficients)

    def to_global(self, params: TransitionParams) -> TransitionParams:
        """Inverse of `to_local`."""
        return TransitionParams(self._gate.to_global(GateParams(params.coefficients)).coefficients)

    @property
    def _gate(self) -> SoftmaxGate:
        return SoftmaxGate(self.prior, basis=self.basis, local=self.local)


class SoftmaxMoves(NamedTuple):
    """Transitions as `Simplex` has them, one gate for each state left; their counts are `Rows` of moves.

    Attributes:
        transitions: what they are.
        n_states: k.
        allowed: booleans (k, k), or None.
    """

    transitions: SoftmaxTransitions
    n_states: int
    allowed: Any

    def _each(self, fn: Callable[..., Any], *arguments: Any) -> Any:
        """Of each state left, fn(gate, its own …)."""
        gate, k = self.transitions._gate, self.n_states
        if self.allowed is None:
            return jax.vmap(lambda *own: fn(GateWeights(gate, k, None), *own))(*arguments)
        one = lambda on, *own: fn(GateWeights(gate, k, on), *own)  # noqa: E731
        return jax.vmap(one)(jnp.asarray(self.allowed), *arguments)

    def by_row(self, params: TransitionParams, covariates: Array) -> Array:
        """log p(j follows i) in rows of covariates (m, q): (m, k, k)."""
        log_weights = lambda gate, a: gate.log_weights(GateParams(a), covariates)  # noqa: E731
        return jnp.swapaxes(self._each(log_weights, params.coefficients), 0, 1)

    def probabilities(self, params: TransitionParams, covariates: Array) -> Array:
        """p(j follows i), (m, k, k); what is allowed is never 0, however far a covariate lies from the others."""
        moves = jnp.exp(self.by_row(params, covariates))
        moves = jnp.maximum(moves, jnp.finfo(moves.dtype).tiny)
        return moves if self.allowed is None else jnp.where(jnp.asarray(self.allowed)[None], moves, 0)

    def of_steps(self, params: TransitionParams, covariates: Array) -> Array:
        """Of every step, p(j follows i) in chains whose covariates are (t, n, q): (t, k, k, n)."""
        t, n, q = covariates.shape
        moves = self.probabilities(params, covariates.reshape(t * n, q))
        return jnp.moveaxis(moves.reshape(t, n, self.n_states, self.n_states), 1, 3)

    def counted(self, pairs: Array, covariates: Array) -> Rows:
        """Expected transitions (t, k, k, n) as `mode` takes them."""
        t, n, q = covariates.shape
        return Rows(covariates.reshape(t * n, q), jnp.moveaxis(pairs, 3, 1).reshape(t * n, -1))

    def mode(self, before: TransitionParams | None, count: Rows) -> TransitionParams:
        """The regressions, climbed from where they were."""
        k = self.n_states
        on = jnp.ones((k, k), bool) if self.allowed is None else jnp.asarray(self.allowed)
        by_state = jnp.moveaxis(count.responsibilities.reshape(-1, k, k), 1, 0)
        gate = self.transitions._gate

        def one(own: tuple[Array, ...]) -> Array:
            on, r, *a = own
            weights = GateWeights(gate, k, None if self.allowed is None else on)
            start = GateParams(a[0]) if a else None
            return weights.estimate(start, replace(count, responsibilities=r)).coefficients

        start = () if before is None else (before.coefficients,)
        return TransitionParams(lax.map(one, (on, by_state, *start)))

    def log_prior(self, params: TransitionParams) -> Array:
        """−½ Σ precision·a²: ()."""
        return jnp.sum(self._each(lambda gate, a: gate.log_prior(GateParams(a)), params.coefficients))

    def expected_log_prob(self, params: TransitionParams, count: Rows) -> Array:
        """Σ over moves of r_ij log p(j follows i): ()."""
        return jnp.sum(count.expectation(lambda rows: self.by_row(params, rows).reshape(rows.shape[0], -1)))

    def unconstrain(self, params: TransitionParams) -> TransitionParams:
        """Coefficients of all but the last state allowed: (k, k − 1, q)."""
        return TransitionParams(
            self._each(lambda gate, a: gate.unconstrain(GateParams(a)).coefficients, params.coefficients)
        )

    def constrain(self, free: TransitionParams) -> TransitionParams:
        """Inverse of `unconstrain`."""
        return TransitionParams(
            self._each(lambda gate, a: gate.constrain(GateParams(a)).coefficients, free.coefficients)
        )

    def held(self, params: TransitionParams) -> TransitionParams:
        """Which free coordinates are of moves that are not allowed."""
        return TransitionParams(self._each(lambda gate, a: gate.held(GateParams(a)).coefficients, params.coefficients))

    def projected(self, params: TransitionParams, near: TransitionParams) -> TransitionParams:
        """Sums put back to zero."""
        return TransitionParams(self._each(lambda gate, a: gate._centred(a), params.coefficients))

    def feasible(self, params: TransitionParams) -> Array:
        """Any finite coefficients will do: ()."""
        return jnp.all(jnp.isfinite(params.coefficients))

    def sizes(self, params: TransitionParams) -> TransitionParams:
        """Standard deviations of the estimates from one step whose state is known, about."""
        return TransitionParams(
            self._each(lambda gate, a: gate.sizes(GateParams(a))[0].coefficients, params.coefficients)
        )

    def n_parameters(self, params: TransitionParams) -> Any:
        """Free parameters: q for each move allowed but one from every state."""
        k, q = self.n_states, params.coefficients.shape[-1]
        return ((k * k if self.allowed is None else jnp.sum(jnp.asarray(self.allowed))) - k) * q

    def reached(self, params: TransitionParams) -> Array:
        """States that may be come to from another: (k,)."""
        away = ~np.eye(self.n_states, dtype=bool)
        return jnp.any(away if self.allowed is None else jnp.asarray(self.allowed) & away, 0)

    def rows_held(self, mask: TransitionParams) -> np.ndarray:
        """What of each state left is held, (k, …), of a mask."""
        return np.asarray(mask.coefficients).reshape(self.n_states, -1)

    def held_coordinates(self, rows: np.ndarray, params: TransitionParams) -> TransitionParams:
        """Free coordinates of states left whose coefficients are held, (k,)."""
        k, q = self.n_states, params.coefficients.shape[-1]
        return TransitionParams(np.broadcast_to(rows[:, None, None], (k, k - 1, q)))  # type: ignore[arg-type]

    def axes(self) -> TransitionParams:
        """States lead along both."""
        return TransitionParams((0, 1))  # type: ignore[arg-type]

    # --- checks

    def validate(self, params: Any, q: int) -> None:
        """Raises a ValueError or TypeError unless params fit so many covariates."""
        if not isinstance(params, TransitionParams):
            raise TypeError(
                f"params.transition: expected TransitionParams, as transitions depend on covariates, got "
                f"{type(params).__name__}; model.init makes them."
            )
        want = (self.n_states, self.n_states, q)
        if jnp.shape(params.coefficients) != want:
            raise ValueError(
                f"params.transition.coefficients: expected shape {want}, got {jnp.shape(params.coefficients)}."
            )

    def check_params(self, params: TransitionParams, *, lanes: bool = False) -> None:
        """Raises a ValueError unless concrete coefficients sum to zero over the states moved to."""
        if _tree.is_tracing(params):
            return
        a = np.asarray(params.coefficients)
        outside = np.abs(a.sum(-2)) > 1e-3 * np.maximum(1, np.abs(a).max(-2))  # NaN has a status
        if outside.any():
            place = tuple(int(i) for i in np.argwhere(outside)[0])
            where = f"lane {place[0]}, state {place[1]}" if lanes else f"state {place[0]}"
            raise ValueError(
                f"params.transition.coefficients: expected sums of zero over the states moved to, got "
                f"{a.sum(-2)[place]} from {where}; subtract the mean over the second axis."
            )
        if self.allowed is None or _tree.is_tracing(self.allowed):
            return
        if np.any((a != 0) & ~np.asarray(self.allowed)[..., None]):
            raise ValueError(
                "params.transition.coefficients: expected 0 where `allowed` is False, got others; begin with "
                "model.init."
            )

    def check_covariates(self, covariates: Array, weight: Array) -> None:
        """Raises a ValueError on concrete covariates of moves that have not full rank, without a prior."""
        if self.transitions.prior is None:
            check_rank(covariates, weight, "covariates of the transitions")
