"""The state of the loop over EM iterations."""

from typing import Any, NamedTuple

from .._typing import Array, Data, Params
from ..fold.sources import Summed
from ..latent.finite import unlabelled
from ..latent.units import total_units


class LoopState(NamedTuple):
    """All that a fit needs to go on.

    Attributes:
        params: the candidate to evaluate next; relative to the data's own place where the model is `localised`, so
            that a far offset costs no digits. `finish` puts them back.
        best: the last candidate accepted; the start before there is one.
        objective: at `best`; NaN before there is one.
        previous: what the next objective is compared with: `objective`, or the algorithm's criterion in its place; −inf
            at a fresh start.
        algorithm_state: the algorithm's own.
        n_iter: M steps inside `params`.
        n_evals: E steps so far.
        status: int32, RUNNING until the fit ends.
        history: (max_iter + 1,) objectives by number of M steps; NaN where not reached.
        path: 0 on the model's fast path, 1 on its stable path.
        steps: (3,) squared lengths of the last steps of EM, see `Progress`; NaN where the algorithm jumps.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> bound = jaxem.bind(model, x, None)
        >>> params = model.init(jax.random.key(0), x)
        >>> state = jaxem.start(bound, params, x, None, algorithm=jaxem.EM(), max_iter=100)
        >>> jaxem.Status(int(state.status)).name, int(state.n_evals), state.history.shape
        ('RUNNING', 0, (101,))
    """

    params: Params
    best: Params
    objective: Array
    previous: Array
    algorithm_state: Any
    n_iter: Array
    n_evals: Array
    status: Array
    history: Array
    path: Array
    steps: Array


def total_weight(model: Any, data: Data, sample_weight: Array | None, dtype: Any) -> Array:
    """Σ sample weights, of series times their steps, of grouped rows by id; the number of rows without them."""
    if isinstance(data, Summed):
        return data.total.astype(dtype)
    return total_units(model, data, unlabelled(data), sample_weight).astype(dtype)
