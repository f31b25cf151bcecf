"""Deterministic annealing: EM at falling temperatures."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.protocols import StepInfo
from ..latent.finite import Tempered, WithEvidence
from ..numerics import tree as _tree


def geometric_schedule(start: float = 1.5, n_steps: int = 30) -> np.ndarray:
    """Temperatures start, …, 1 in equal ratios: (n_steps + 1,).

    Args:
        start: the first temperature, positive.
        n_steps: how many M steps are made on the way to temperature 1.

    Raises:
        ValueError: if either is not positive.

    Example:
        >>> import jaxem
        >>> jaxem.geometric_schedule(8.0, 3).tolist()
        [8.0, 4.0, 2.0, 1.0]
    """
    if not start > 0 or n_steps < 1:
        raise ValueError(f"geometric_schedule: expected start > 0 and n_steps ≥ 1, got {start!r} and {n_steps!r}.")
    return np.append(start ** (np.arange(n_steps, 0, -1) / n_steps), 1.0)


@_tree.register
@dataclass(frozen=True)
class AnnealedEM:
    """Deterministic annealing EM (Ueda & Nakano 1998): responsibilities softmax(log joint / T) at temperatures T → 1.

    Iteration t takes the t-th temperature; after the schedule T = 1, plain EM, and only there a rule may end the fit.
    High temperatures blur the components, so that the answer depends less on the start; far above the temperature at
    which they part, all components become equal. Objective and history are those of the data, log-likelihood + log
    prior at temperature 1, at every temperature: they may fall. `max_iter` includes the schedule; one that ends within
    it is MAX_ITER.

    Attributes:
        schedule: temperatures (s,), positive, the last one 1; entries may repeat; by default
            `geometric_schedule()`.

    Raises:
        ValueError: while tracing, if a concrete schedule does not end at 1 or is not positive, or the model's E step
            has no responsibilities.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> algorithm = jaxem.AnnealedEM(jaxem.geometric_schedule(2.0, 5))
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, algorithm=algorithm)
        >>> jnp.sort(result.check().params.components.mean[:, 0]).round(2)
        Array([-2.5,  2.5], dtype=...)
    """

    schedule: Any = field(default_factory=geometric_schedule)

    monotone: ClassVar[bool] = False
    ends_at_em_fixed_point: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises a ValueError unless the schedule is (s,), positive and ends at 1; of traced ones the shape is checked.

        A traced schedule is taken to end at 1.
        """
        shape = np.shape(self.schedule)
        if len(shape) != 1 or shape[0] == 0:
            raise ValueError(f"schedule: expected temperatures (s,), the last one 1, got shape {shape}.")
        if _tree.is_tracing(self.schedule):
            return
        values = np.asarray(self.schedule)
        if not np.all(values > 0) or not np.all(np.isfinite(values)):
            raise ValueError(f"schedule: expected positive temperatures, got {values.tolist()}.")
        if values[-1] != 1:
            raise ValueError(
                f"schedule: expected temperatures that end at 1, so that the fit ends as plain EM, got {values[-1]} at "
                "the end; append 1.0, or use geometric_schedule(start, n_steps)."
            )

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> Array:
        """The number of the next temperature."""
        self.validate()
        return jnp.zeros((), jnp.int32)

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: Array
    ) -> tuple[Params, Array, StepInfo]:
        """See `Algorithm`."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        schedule = jnp.asarray(self.schedule, dtype)
        at = lambda t: jnp.where(t >= schedule.shape[0] - 1, 1, schedule[jnp.clip(t, 0, schedule.shape[0] - 1)])  # noqa: E731
        rule = WithEvidence(Tempered(at(state)))
        stats, (_, log_lik) = model.e_step(params, data, sample_weight, rule)
        info = StepInfo(
            objective=log_lik + ask.log_prior(model, params),
            n_evals=jnp.ones((), jnp.int32),
            done=jnp.zeros((), bool),
            may_stop=at(state - 1) == 1,  # at which the params were made
        )
        return model.m_step(params, stats), state + 1, info
