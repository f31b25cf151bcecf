"""Rules: how an E step over finitely many states turns log p(x_i, z_i = j) into responsibilities.

Soft EM, annealing, classification EM, stochastic EM and given posteriors all pass through this one door.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..numerics import tree as _tree
from ..numerics.arguments import as_rows
from ..numerics.linalg import components_first
from ..numerics.processes import everywhere
from .series import Sequences, present_steps
from .units import Grouped, Labelled, units_of


class Rule(Protocol):
    """Called with log_joint (n, k) and a key; returns responsibilities (n, k) and the objective of each row (n,).

    Or several objectives, a tree of them, which the E step sums alike.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> def halfway(log_joint, key):  # for the step of an algorithm: folded.e_step(params, data, weight, halfway)
        ...     soft, log_lik = jaxem.Soft()(log_joint, key)
        ...     return (soft + jaxem.Hard()(log_joint, key)[0]) / 2, log_lik
        >>> halfway(jnp.log(jnp.array([[0.1, 0.1, 0.0]])), None)[0]
        Array([[0.75, 0.25, 0.  ]], dtype=...)
    """

    def __call__(self, log_joint: Array, key: Key | None) -> tuple[Array, Any]:  # noqa: D102
        ...


def _softmax(log_joint: Array) -> tuple[Array, Array]:
    """Posterior and log-evidence of each row; a row of −inf throughout has responsibilities 0 and evidence −inf."""
    flip = components_first(log_joint.shape[0])
    logits = log_joint.T if flip else log_joint
    axis = 0 if flip else 1
    # what is of size n·k stays as few plain operations as there can be: guards are of size n
    top = jnp.maximum(jax.lax.stop_gradient(jnp.max(logits, axis, keepdims=True)), jnp.finfo(logits.dtype).min)
    shifted = jnp.exp(logits - top)
    total = jnp.sum(shifted, axis, keepdims=True)
    impossible = total == 0
    safe_total = jnp.where(impossible, 1, total)
    posterior = shifted / safe_total
    evidence = jnp.squeeze(jnp.where(impossible, -jnp.inf, top + jnp.log(safe_total)), axis)
    return (posterior.T if flip else posterior), evidence


def posterior(log_joint: Array) -> Array:
    """Responsibilities (n, k) for those who read them: NaN in a row that no state explains, where E steps count 0."""
    responsibilities, evidence = _softmax(log_joint)
    return jnp.where((evidence == -jnp.inf)[:, None], jnp.nan, responsibilities)


def most_probable(log_joint: Array) -> Array:
    """The most probable state of each row (n,); −1 where none explains it, or the densities are NaN."""
    return jnp.where(jnp.max(log_joint, 1) > -jnp.inf, jnp.argmax(log_joint, 1), -1)


@_tree.register
@dataclass(frozen=True)
class Soft:
    """The exact posterior: responsibilities softmax_j log p(x_i, z = j), objective log p(x_i).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> log_joint = jnp.log(jnp.array([[0.3, 0.1]]))  # of one row and two states
        >>> responsibilities, objective = jaxem.Soft()(log_joint)  # what an E step does with it
        >>> responsibilities.round(2), jnp.exp(objective).round(2)
        (Array([[0.75, 0.25]], dtype=...), Array([0.4], dtype=...))
    """

    def __call__(self, log_joint: Array, key: Key | None = None) -> tuple[Array, Array]:
        """See `Rule`."""
        return _softmax(log_joint)


@_tree.register
@dataclass(frozen=True)
class Tempered:
    """The posterior at a temperature T: softmax(log_joint / T), objective T·log Σ exp(log_joint / T).

    The free energy of deterministic annealing EM (Ueda & Nakano 1998, eq. 13, β = 1/T). T = 1 is `Soft`.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> log_joint = jnp.log(jnp.array([[0.3, 0.1]]))  # of one row and two states
        >>> responsibilities, _ = jaxem.Tempered(2.0)(log_joint)
        >>> responsibilities.round(2)
        Array([[0.63, 0.37]], dtype=...)
    """

    temperature: Any = 1.0

    def __call__(self, log_joint: Array, key: Key | None = None) -> tuple[Array, Array]:
        """See `Rule`."""
        temperature = jnp.asarray(self.temperature, log_joint.dtype)
        responsibilities, free_energy = _softmax(log_joint / temperature)
        return responsibilities, temperature * free_energy


@_tree.register
@dataclass(frozen=True)
class Hard:
    """The most probable state alone: the classification likelihood (Celeux & Govaert 1992).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> log_joint = jnp.log(jnp.array([[0.3, 0.1]]))  # of one row and two states
        >>> responsibilities, objective = jaxem.Hard()(log_joint)
        >>> responsibilities, jnp.exp(objective).round(2)
        (Array([[1., 0.]], dtype=...), Array([0.3], dtype=...))
    """

    def __call__(self, log_joint: Array, key: Key | None = None) -> tuple[Array, Array]:
        """See `Rule`."""
        k, best = log_joint.shape[1], jnp.max(log_joint, 1)
        state = jnp.where(best == -jnp.inf, -1, jnp.argmax(log_joint, 1))  # a row that none explains is not counted
        return jax.nn.one_hot(state, k, dtype=log_joint.dtype), best


@_tree.register
@dataclass(frozen=True)
class Sampled:
    """One state drawn from the posterior: stochastic EM (Celeux & Diebolt 1985). Objective log p(x_i).

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> log_joint = jnp.log(jnp.array([[0.3, 0.1]]))  # of one row and two states
        >>> responsibilities, _ = jaxem.Sampled()(log_joint, jax.random.key(0))
        >>> sorted(responsibilities[0].tolist())  # the first state three times in four
        [0.0, 1.0]
    """

    def __call__(self, log_joint: Array, key: Key | None) -> tuple[Array, Array]:
        """See `Rule`.

        Raises:
            ValueError: without a key.
        """
        if key is None:
            raise ValueError(
                "Sampled: expected a key to draw latent states with, got None; pass key=jax.random.key(0)."
            )
        _, evidence = _softmax(log_joint)
        state = jax.random.categorical(key, log_joint, axis=1)
        return jax.nn.one_hot(state, log_joint.shape[1], dtype=log_joint.dtype), evidence


@_tree.register
@dataclass(frozen=True)
class WithEvidence:
    """Another rule, whose objective comes in a pair with log p(x_i): no second E step to know the true objective."""

    rule: Any

    def __call__(self, log_joint: Array, key: Key | None) -> tuple[Array, tuple[Array, Array]]:
        """See `Rule`."""
        responsibilities, objective = self.rule(log_joint, key)
        return responsibilities, (objective, _softmax(log_joint)[1])


@_tree.register
@dataclass(frozen=True)
class WithSize:
    """`Soft`, whose objective comes in a pair with its size |log p(x_i)|, which the rounding of the sum goes by."""

    def __call__(self, log_joint: Array, key: Key | None = None) -> tuple[Array, tuple[Array, Array]]:
        """See `Rule`."""
        responsibilities, evidence = _softmax(log_joint)
        evidence = jax.lax.optimization_barrier(evidence)  # else both sums take logarithms of their own
        return responsibilities, (evidence, jnp.abs(jax.lax.stop_gradient(evidence)))


@_tree.register
@dataclass(frozen=True)
class Given:
    """Responsibilities that are given, (n, k), whatever the params; objective the bound E_r[log_joint] + H(r).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> log_joint = jnp.log(jnp.array([[0.3, 0.1]]))  # of one row and two states
        >>> responsibilities, objective = jaxem.Given(jnp.array([[0.5, 0.5]]))(log_joint)
        >>> jnp.exp(objective).round(2), jnp.exp(jaxem.Soft()(log_joint)[1]).round(2)  # below the evidence
        (Array([0.35], dtype=...), Array([0.4], dtype=...))
    """

    responsibilities: Array

    def __call__(self, log_joint: Array, key: Key | None = None) -> tuple[Array, Array]:
        """See `Rule`."""
        r = self.responsibilities
        return r, jnp.sum(jnp.where(r > 0, r * log_joint, 0) - jax.scipy.special.xlogy(r, r), 1)


def as_read(model: Any, data: Data, dtype: Any) -> Data:
    """The data as the model reads them, see `cast_rows`, with what is known of their states.

    Raises:
        ValueError: if rows are grouped, and the model does not say what of its joint counts once for an id.
    """
    check_can_group(model, data)
    return in_place_of(data, ask.cast_rows(model, unlabelled(data), dtype))


def in_place_of(data: Data, rows: Data) -> Data:
    """Rows instead of those of the data, with what is known of their states, and their ids."""
    if isinstance(data, Labelled):
        return data._replace(data=in_place_of(data.data, rows))
    return replace(data, data=rows) if isinstance(data, Grouped) else rows


def check_can_group(model: Any, data: Data) -> None:
    """Raises a ValueError if rows are grouped, and the model cannot tell log p(x | z) from log p(z)."""
    if model is not None and units_of(data) is not None and not ask.offers(model, "log_given"):
        raise ValueError(
            f"data: expected rows that are units, got grouped(data, ids) for {type(model).__name__}, which has no "
            "log_given(params, data), log_state(params, data) and with_states(params, stats, data, responsibilities): "
            "log p(x | z) of rows, log p(z) of ids, and statistics in which states are counted by id; write them, or "
            "use a Mixture."
        )


def labelled(data: Data, known: Any) -> Labelled:
    """Attaches partly known latent states to data, for any model with finitely many states.

    A row is then explained by its allowed states alone: log(allowed) is added to its log joint.

    Args:
        data: pytree, leading axis n.
        known: integers (n,), the state of each row, −1 where unknown; or booleans (n, k), the states possible. Of
            `Sequences` (n, t) or (n, t, k); what stands in absent steps is never looked at.

    Returns:
        Data that every driver takes in the place of `data`.

    Raises:
        ValueError: if the shape or dtype is neither, or a row allows no state.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> known = jnp.full(8, -1).at[0].set(1)  # the first row, 0, is of component 1
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), jaxem.PoissonParams(jnp.array([[9.0], [8.0]])))
        >>> jaxem.fit(model, start, jaxem.labelled(x, known)).params.components.rate.round(2)
        Array([[21.5],
               [ 1.5]], dtype=...)
    """
    data, known_array = as_rows(data), jnp.asarray(known)
    each = _labels_shape(data)
    is_mask = known_array.dtype == bool and known_array.shape[:-1] == each
    is_label = jnp.issubdtype(known_array.dtype, jnp.integer) and known_array.shape == each
    if not is_mask and not is_label:
        whose = "rows" if len(each) == 1 else "steps"
        raise ValueError(
            f"known: expected integer labels ({_commas(each)}) or a boolean mask ({', '.join(map(str, each))}, "
            f"n_states), got {known_array.dtype}{known_array.shape}; mark {whose} of unknown state with −1."
        )
    found = Labelled(data, known_array)
    if not _tree.is_tracing(known_array):
        everywhere(_check_known, known_array, _is_there(found))
    return found


def _labels_shape(data: Data) -> tuple[int, ...]:
    """(n,); of series (n, t)."""
    return np.shape(jax.tree.leaves(data)[0])[: 2 if isinstance(ungated(data), Sequences) else 1]


def _commas(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}," if len(shape) == 1 else ", ".join(map(str, shape))


def _is_there(data: Labelled) -> Array | None:
    """Which steps of series are, (n, t); None of rows, or where it is not known yet."""
    inner = ungated(data.data)
    if not isinstance(inner, Sequences) or _tree.is_tracing(inner.length):
        return None
    with jax.ensure_compile_time_eval():
        return present_steps(inner)


def tells_something(data: Labelled) -> Array:
    """Which rows have a label that rules something out: (n,)."""
    allowed = jnp.asarray(data.allowed)
    n_axes = len(_labels_shape(data.data))
    told = allowed != -1 if allowed.ndim == n_axes else ~jnp.all(allowed, -1)
    return told if n_axes == 1 else jnp.any(told & present_steps(ungated(data.data)), 1)


def check_known(data: Data, n_states: Any, sample_weight: Array | None) -> None:
    """Raises a ValueError if a concrete label of a row that exists is none of the states 0 to n_states − 1."""
    if not isinstance(data, Labelled) or not isinstance(n_states, int) or data.allowed.dtype == bool:
        return

    def check(allowed: Array, weight: Array | None, is_there: Array | None) -> None:
        bad = np.asarray(allowed) >= n_states
        bad = bad if is_there is None else bad & np.asarray(is_there)
        if weight is not None:
            bad = bad & (np.asarray(weight) != 0).reshape(-1, *[1] * (bad.ndim - 1))
        if bad.any():
            place = np.unravel_index(int(np.argmax(bad)), bad.shape)
            raise ValueError(
                f"known: expected labels 0 to {n_states - 1}, the states of the model, or −1, got "
                f"{np.asarray(allowed)[place]} in {_name(place)}; labels count from 0: subtract 1 from those that "
                "count from 1."
            )

    if not _tree.is_tracing(data.allowed, sample_weight):
        everywhere(check, data.allowed, sample_weight, _is_there(data))


def _check_known(known: Array, is_there: Array | None) -> None:
    values = np.asarray(known)  # under jit, jax would trace even what it does with constants
    bad = ~values.any(-1) if values.dtype == bool else values < -1
    bad = bad if is_there is None else bad & np.asarray(is_there)
    if bad.any():
        where = _name(np.unravel_index(int(np.argmax(bad)), bad.shape))
        raise ValueError(
            f"known: expected labels ≥ −1 and at least one allowed state a row, got neither in {where}; use "
            "−1 (or a row of True) for an unknown state."
        )


def _name(place: tuple) -> str:
    return f"row {place[0]}" if len(place) == 1 else f"step {place[1]} of series {place[0]}"


class Gated(NamedTuple):
    """Data with covariates of the mixture weights, or of transitions; made by `gated`.

    Attributes:
        data: as the family takes it, or `Sequences`.
        covariates: (n, q); of series (n, t, q).
    """

    data: Data
    covariates: Array


def gated(data: Data, covariates: Any) -> Gated:
    """Attaches covariates of the mixture weights to data, for a `Mixture` with a `gate`.

    Or those of the transitions to `Sequences`, for a `HiddenMarkovModel` with `transitions`. Labels go around both:
    `labelled(gated(data, covariates), known)`.

    Args:
        data: pytree, leading axis n, as the family takes it.
        covariates: (n, q), one column a covariate; a column of ones is the intercept, none is added. Of `Sequences`
            (n, t, q); those of the first step, and of absent ones, are never looked at.

    Returns:
        Data that every driver takes in the place of `data`.

    Raises:
        ValueError: if the shape is another, or the data are labelled already.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> t = jnp.array([-2.0, 0.0, 2.0])
        >>> data = jaxem.gated(jnp.zeros((3, 1)), jnp.stack([jnp.ones(3), t], 1))  # one row of data thrice
        >>> model = jaxem.Mixture(jaxem.Poisson(), 2, gate=jaxem.SoftmaxGate())
        >>> gate = jaxem.GateParams(jnp.array([[0.0, 0.5], [0.0, -0.5]]))
        >>> params = jaxem.MixtureParams(gate, jaxem.PoissonParams(jnp.ones((2, 1))))
        >>> model.responsibilities(params, data)[:, 0].round(2)  # σ(t)
        Array([0.12, 0.5 , 0.88], dtype=...)
    """
    if isinstance(data, (Labelled, Grouped)):
        raise ValueError(
            "data: expected rows without labels and ids; write labelled(gated(data, covariates), known), or "
            "grouped(gated(data, covariates), ids)."
        )
    data, covariates = as_rows(data), as_rows(covariates, "covariates")
    each = _labels_shape(data)
    if np.shape(covariates)[:-1] != each:
        column = "c[:, None]" if len(each) == 1 else "c[:, :, None]"
        raise ValueError(
            f"covariates: expected shape ({', '.join(map(str, each))}, q), one column a covariate, got "
            f"{np.shape(covariates)}; a single column is {column}, a column of ones the intercept."
        )
    return Gated(data, covariates)


def ungated(data: Data) -> Data:
    """The data without the covariates of the weights."""
    return data.data if isinstance(data, Gated) else data


def series_of(data: Data) -> Data:
    """The series without labels and covariates."""
    return ungated(unlabelled(data))


def unlabelled(data: Data) -> Data:
    """The data without their labels and ids."""
    return ungrouped(without_labels(data))


def without_labels(data: Data) -> Data:
    """The data without their labels."""
    return data.data if isinstance(data, Labelled) else data


def ungrouped(data: Data) -> Data:
    """The data without their ids."""
    return data.data if isinstance(data, Grouped) else data


def restrict(log_joint: Array, data: Data) -> Array:
    """−inf for the states that labels rule out. A label beyond the last state rules out all, so it cannot pass.

    Nor can one onto a state of weight zero, whose log joint may have come as a very low finite number.
    """
    if not isinstance(data, Labelled):
        return log_joint
    allowed = data.allowed
    if allowed.ndim == 1:
        states = jnp.arange(log_joint.shape[1])
        allowed = (allowed[:, None] == states[None]) | (allowed[:, None] == -1)
    elif allowed.shape[1] != log_joint.shape[1]:
        raise ValueError(
            f"known: expected a mask over {log_joint.shape[1]} states, got {allowed.shape}; give one column a state."
        )
    impossible = log_joint <= jnp.finfo(log_joint.dtype).min / 8  # NaN stays to be seen
    return jnp.where(allowed & ~impossible, log_joint, -jnp.inf)
