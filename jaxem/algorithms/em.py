"""Plain EM: one E step, one M step."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.protocols import StepInfo
from ..numerics import tree as _tree


@_tree.register
@dataclass(frozen=True)
class EM:
    """Expectation–maximization (Dempster, Laird & Rubin 1977). The objective never falls.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, algorithm=jaxem.EM())  # the default
        >>> int(result.n_evals - result.n_iter)  # one E step for each M step, and one at the params returned
        1
    """

    monotone: ClassVar[bool] = True
    ends_at_em_fixed_point: ClassVar[bool] = True

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> tuple[()]:
        """EM remembers nothing."""
        return ()

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: tuple[()]
    ) -> tuple[Params, tuple[()], StepInfo]:
        """See `Algorithm`."""
        stats, objective, size = ask.evaluated_with_size(model, params, data, sample_weight)
        info = StepInfo(objective, jnp.ones((), jnp.int32), jnp.zeros((), bool), size=size)
        return model.m_step(params, stats), state, info
