"""Classification EM."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.protocols import StepInfo
from ..latent.finite import Hard, WithEvidence
from ..numerics import tree as _tree


@_tree.register
@dataclass(frozen=True)
class HardEM:
    """Classification EM (Celeux & Govaert 1992): every row counts for its most probable state alone.

    What never falls is the classification likelihood Σ_i max_j log p(x_i, z_i = j) + log prior, which is what the
    stopping rule looks at; it ends where no row changes its state, after finitely many iterations. Objective and
    history are those of the data, log-likelihood + log prior, and may fall. Its params are no estimate of maximum
    likelihood: components that overlap come out too narrow and too far apart. With equal weights and equal spherical
    covariances, both held by `Frozen`, it is Lloyd's k-means.

    Raises:
        ValueError: while tracing, if the model's E step has no responsibilities.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, algorithm=jaxem.HardEM())
        >>> jnp.sort(result.check().params.components.mean[:, 0]).round(2)
        Array([-2.5,  2.5], dtype=...)
    """

    monotone: ClassVar[bool] = False
    ends_at_em_fixed_point: ClassVar[bool] = False

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> tuple[()]:
        """It remembers nothing."""
        return ()

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: tuple[()]
    ) -> tuple[Params, tuple[()], StepInfo]:
        """See `Algorithm`."""
        stats, (classification, log_lik) = model.e_step(params, data, sample_weight, WithEvidence(Hard()))
        prior = ask.log_prior(model, params)
        info = StepInfo(
            objective=log_lik + prior,
            n_evals=jnp.ones((), jnp.int32),
            done=jnp.zeros((), bool),
            criterion=classification + prior,
        )
        return model.m_step(params, stats), state, info
