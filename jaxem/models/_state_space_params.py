"""Params and statistics of a linear-Gaussian state space model, and the fields of the model."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp

from .._typing import Array


class GaussianState(NamedTuple):
    """Normal distributions of the hidden state: mean (…, s) and covariance (…, s, s).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> jaxem.GaussianState(jnp.zeros(1), 1e7 * jnp.eye(1)).covariance.shape  # a start of which nothing is known
        (1, 1)
    """

    mean: Any
    covariance: Any


class LGSSMParams(NamedTuple):
    """Params of x_1 ~ N(m, P), x_{t+1} = A x_t + B u_{t+1} + w_t, w ~ N(0, Q), y_t = C x_t + D u_t + v_t, v ~ N(0, R).

    Attributes:
        initial: m (s,) and P (s, s), of the state at the first step, a `GaussianState`.
        transition: A (s, s).
        transition_covariance: Q (s, s).
        emission: C (d, s).
        emission_covariance: R (d, d).
        transition_input: B (s, q), or None without inputs.
        emission_input: D (d, q), or None without inputs.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> one = jnp.ones((1, 1))
        >>> params = jaxem.LGSSMParams(jaxem.GaussianState(jnp.zeros(1), one), one, one, one, one)
        >>> data = jaxem.sequences([jnp.array([[0.0], [3.0]])])
        >>> model = jaxem.LinearGaussianStateSpace(1)
        >>> [f"{mean:.1f}" for mean in model.smoothed(params, data).mean[0, :, 0]]
        ['0.6', '1.8']
    """

    initial: Any
    transition: Any
    transition_covariance: Any
    emission: Any
    emission_covariance: Any
    transition_input: Any = None
    emission_input: Any = None


class Disturbances(NamedTuple):
    """Second moments of disturbances e about the current params, and of what they are regressed on, z; sums.

    Attributes:
        count: ().
        square: Σ E[e eᵀ] (a, a).
        cross: Σ E[e zᵀ] (a, b).
        design: Σ E[z zᵀ] (b, b).
    """

    count: Any
    square: Any
    cross: Any
    design: Any


class FirstStep(NamedTuple):
    """First moments of the disturbances of the first step, by which a first state of variance 0 is estimated; sums.

    Attributes:
        count: () of series with a second step, or an observation in the first.
        residual: Σ E[e] (a,).
        design: Σ E[z] (b,), what e is regressed on.
    """

    count: Any
    residual: Any
    design: Any


class LGSSMStats(NamedTuple):
    """Expected statistics of a linear-Gaussian state space model, about the params of the E step.

    Attributes:
        count: () series with a step.
        first: Σ E[x_1 − m] (s,).
        first_square: Σ E[(x_1 − m)(x_1 − m)ᵀ] (s, s).
        transition: of x_{t+1} − A x_t − B u_{t+1} on (x_t, u_{t+1}).
        emission: of y_t − C x_t − D u_t on (x_t, u_t), of the steps in which something is observed.
        first_move: of `transition` the first step of each series.
        first_seen: of `emission` the first step of each series.
    """

    count: Any
    first: Any
    first_square: Any
    transition: Disturbances
    emission: Disturbances
    first_move: FirstStep
    first_seen: FirstStep


@dataclass(frozen=True)
class StateSpaceFields:
    """What a state space model is made of; `LinearGaussianStateSpace` says what the fields are."""

    n_states: int = field(metadata={"static": True})
    floor: Any = 1e-6
    transition_prior: Any = None
    initial_prior: Any = None
    column_variance: Any = None
    diffuse: bool = field(default=False, metadata={"static": True}, kw_only=True)

    @property
    def _regresses(self) -> bool:
        """Whether the first state is estimated beside the filter; of a single state the filter's own form is exact."""
        return self.diffuse and self.n_states > 1

    def _scales(self, d: int, dtype: Any) -> tuple[Array, Array, Array]:
        """Λ of the priors −½ tr(Λ Σ⁻¹) of P, Q and R."""
        variance = jnp.ones(d, dtype) if self.column_variance is None else self.column_variance
        emission = jnp.diag(jnp.asarray(self.floor, dtype) * variance)
        s = self.n_states
        return _as_matrix(self.initial_prior, s, dtype), _as_matrix(self.transition_prior, s, dtype), emission


def _as_matrix(scale: Any, s: int, dtype: Any) -> Array:
    """() or (s,) on the diagonal, (s, s) as it is, zero for None."""
    if scale is None:
        return jnp.zeros((s, s), dtype)
    scale = jnp.asarray(scale, dtype)
    return scale if scale.ndim == 2 else jnp.diag(jnp.broadcast_to(scale, (s,)))


def join(state: Array, inputs: Array | None) -> Array:
    """[A, B] side by side, A where there are no inputs."""
    return state if inputs is None else jnp.concatenate([state, inputs], 1)


def split(joined: Array, n_states: int, inputs: Any) -> tuple[Array, Array | None]:
    """Inverse of `join`."""
    return joined[:, :n_states], None if inputs is None else joined[:, n_states:]
