"""Which data and params a hidden Markov model takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data
from ..contracts import capabilities as ask
from ..contracts.checks import check_option
from ..contracts.domains import check_params
from ..fold.present import present_rows
from ..latent.finite import Gated, series_of, ungated, unlabelled
from ..latent.series import Sequences, as_sequences, check_lengths, flat_steps
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ._markov_labels import check_mask
from ._markov_params import HMMParams, MarkovFields
from ._markov_steps import covariates_of_moves, rows_of_moves, step_weight
from .gate import check_zero_mean
from .transitions import SoftmaxTransitions


class MarkovChecks(MarkovFields):
    """Checks of data and params, and what of the data is to be read."""

    def cast_rows(self, data: Data, dtype: Any) -> Data:
        """The steps as the family reads them; lengths are whole numbers."""
        if isinstance(data, Gated):
            return Gated(self.cast_rows(data.data, dtype), _tree.cast_data(data.covariates, dtype))
        if not isinstance(data, Sequences):
            return data  # an error soon
        length = data.length if hasattr(data.length, "dtype") else np.asarray(data.length)
        return Sequences(ask.cast_rows(self.family, data.values, dtype), jnp.asarray(length))

    def validate_data(self, data: Data) -> None:
        """Raises a ValueError if the data do not fit the family or the model's own leaves do not fit k."""
        k = as_count("n_states", self.n_states)
        if k == 1:
            raise ValueError(
                f"n_states: expected at least 2 hidden states, got 1; steps are then independent: flatten them and fit "
                f"Mixture({type(self.family).__name__}(), 1)."
            )
        self._check_leaves(k)
        check_mask(data, k)
        self._check_gated(unlabelled(data))
        data = as_sequences(series_of(data))
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(data.values)]
        if any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
            raise ValueError(
                f"data.values: expected arrays (n, t, …) of n series and t steps, got shapes {shapes}; "
                "jaxem.sequences(table, ids) makes them."
            )
        check_lengths(data, shapes[0][0])
        ask.validate_data(self.family, _shapes_of_steps(data.values))

    def _check_gated(self, data: Data) -> None:
        """Raises a ValueError unless there are covariates just where the transitions depend on some."""
        if self.transitions is None:
            if isinstance(data, Gated):
                raise ValueError(
                    "data: expected no covariates of the transitions, got gated data; write "
                    "transitions=SoftmaxTransitions()."
                )
            return
        if not isinstance(self.transitions, SoftmaxTransitions):
            raise ValueError(f"transitions: expected SoftmaxTransitions() or None, got {self.transitions!r}.")
        if self.stationary or self.concentration is not None:
            name = "stationary" if self.stationary else "concentration"
            raise ValueError(
                f"{name}: expected to be left out beside transitions=SoftmaxTransitions(), which are not constant; a "
                "prior on their coefficients is SoftmaxTransitions(prior=GaussianPrior(precision))."
            )
        if not isinstance(data, Gated):
            raise ValueError(
                f"data: expected gated(sequences, covariates), as transitions depend on covariates, got "
                f"{type(data).__name__} without any."
            )
        if not isinstance(data.data, Sequences):
            as_sequences(data.data)
        n, t = jax.tree.leaves(data.data.values)[0].shape[:2]
        shape, prior = jnp.shape(data.covariates), self.transitions.prior
        if len(shape) != 3 or shape[:2] != (n, t) or shape[2] < 1:
            raise ValueError(
                f"data.covariates: expected shape ({n}, {t}, q), one column a covariate, got {shape}; a column of ones "
                "is the intercept, which is not added."
            )
        if prior is not None:
            check_zero_mean(prior, shape[2], "transitions")

    def _check_leaves(self, k: int) -> None:
        shapes = {
            "concentration": ((), (k,), (k, k)), "allowed": ((k, k),),
            "initial_concentration": ((), (k,)), "initial_allowed": ((k,),),
        }  # fmt: skip
        for name, legal in shapes.items():
            leaf = getattr(self, name)
            if leaf is not None and jnp.shape(leaf) not in legal:
                raise ValueError(f"{name}: expected shape {' or '.join(map(str, legal))}, got {jnp.shape(leaf)}.")
        if self.stationary and (self.initial_concentration is not None or self.initial_allowed is not None):
            raise ValueError(
                "stationary: expected no initial_concentration and no initial_allowed beside it, as the law of the "
                "first state follows from the transitions; leave them out."
            )
        for name in ("concentration", "initial_concentration"):
            if (leaf := getattr(self, name)) is not None:
                check_option(name, leaf, 0, open_low=True)
        for name in ("allowed", "initial_allowed"):
            leaf = getattr(self, name)
            if leaf is None or _tree.is_tracing(leaf):
                continue
            values = np.asarray(leaf)
            if values.dtype != bool:
                raise ValueError(f"{name}: expected booleans, got {values.dtype}; write allowed > 0.")
            empty = ~np.atleast_2d(values).any(-1)
            if empty.any():
                raise ValueError(
                    f"{name}: expected at least one state that may follow in each row, got none in row "
                    f"{int(np.argmax(empty))}; a state that is never left is allowed to follow itself."
                )

    def readable(self, data: Data) -> Data:
        """The data with a number wherever a step is absent or missing, or the family allows a missing entry."""
        if isinstance(data, Gated):
            return Gated(_readable(self.family, data.data), covariates_of_moves(data))
        return _readable(self.family, data)

    def check_data(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete lengths beyond the steps there are, or steps outside of the support."""
        data = ungated(data)
        length, t = np.asarray(data.length), jax.tree.leaves(data.values)[0].shape[1]
        bad = (length < 0) | (length > t)
        if sample_weight is not None:
            bad = bad & (np.asarray(sample_weight) != 0)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"data.length: expected 0 to {t}, the steps that data.values have, got {length[row]} in series {row}; "
                "jaxem.sequences(table, ids) counts them."
            )
        with jax.ensure_compile_time_eval():  # the params may be traced
            rows, weight, something = _there(*jax.tree.map(jnp.asarray, (data, sample_weight)))
        if something:
            ask.check_data(self.family, rows, weight)

    def check_table(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete data in which nothing is observed, or that do not determine the params."""
        if isinstance(data, Gated):
            with jax.ensure_compile_time_eval():
                moves = rows_of_moves(*jax.tree.map(jnp.asarray, (data, sample_weight)))
            self._moves.check_covariates(*moves)
        data = ungated(data)
        with jax.ensure_compile_time_eval():
            rows, weight, something = _there(*jax.tree.map(jnp.asarray, (data, sample_weight)))
        if not something:
            raise ValueError(
                "data: expected a step with numbers in some series of positive weight, got missing ones throughout; "
                "look at how the columns were read."
            )
        ask.check_table(self.family, rows, weight)

    def check_params(self, params: HMMParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of concrete params lies outside of the parameter space."""
        self._first.check_params(params.initial, lanes=lanes, name="initial")
        self._moves.check_params(params.transition, lanes=lanes)
        check_params(self.family, params.emissions, lanes=lanes)

    def validate(self, params: HMMParams, data: Data) -> None:
        """Raises a ValueError or TypeError if params do not fit the model and the data."""
        self.validate_data(data)
        if not isinstance(params, HMMParams):
            raise TypeError(f"params: expected HMMParams, got {type(params).__name__}; model.init makes them.")
        k, inner = self.n_states, unlabelled(data)
        if jnp.shape(params.initial) != (k,):
            raise ValueError(f"params.initial: expected shape {(k,)}, got {jnp.shape(params.initial)}.")
        q = jnp.shape(inner.covariates)[2] if isinstance(inner, Gated) else None
        self._moves.validate(params.transition, q)
        ask.validate(self.family, params.emissions, _shapes_of_steps(ungated(inner).values), k)


def _shapes_of_steps(values: Any) -> Any:
    """Of `flat_steps`: checks read no more, and reshaping here and now compiles."""
    return jax.eval_shape(flat_steps, values)


@jax.jit
def _readable(family: Any, data: Sequences) -> Sequences:
    rows = ask.readable(family, flat_steps(data.values))
    weight = step_weight(data, None)

    def filled(leaf: Array, like: Array) -> Array:
        unread = (weight == 0).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(unread, jnp.zeros((), leaf.dtype), leaf).reshape(like.shape)

    return data._replace(values=jax.tree.map(filled, rows, data.values))


@jax.jit
def _there(data: Sequences, sample_weight: Array | None) -> tuple[Any, Array, Array]:
    """Steps as rows, those that say nothing replaced by one that does; their weights; whether there is any."""
    weight = step_weight(data, sample_weight)
    return present_rows(flat_steps(data.values), weight), weight, jnp.any(weight > 0)


def covariates_for(
    model: Any, covariates: Any, each: tuple[int, int] | None, params: Any, *, whole: bool = False
) -> Array | None:
    """Covariates of transitions that are still to come, checked: (*each, q), or (m, q) of any m; None if constant.

    Those of first steps are not looked at, but where they are `whole`, and follow a series.

    Raises:
        ValueError: if they are missing, shaped otherwise, not finite, or given where transitions are constant.
    """
    if model.transitions is None:
        if covariates is not None:
            raise ValueError(
                "covariates: expected None, as the transitions depend on none, got some; write "
                "transitions=SoftmaxTransitions()."
            )
        return None
    q = jnp.shape(params.transition.coefficients)[-1]
    shape = None if covariates is None else jnp.shape(covariates)
    fits = shape is not None and len(shape) == (2 if each is None else 3) and shape[:-1] in (each, shape[:1])
    if shape is None or not fits or shape[-1] != q:
        want = f"({', '.join(map(str, each or ('m',)))}, {q})"
        raise ValueError(
            f"covariates: expected shape {want}, those of the moves into each step, as transitions depend on them, got "
            f"{shape}."
        )
    found = jnp.asarray(covariates, _tree.float_dtype(params.transition.coefficients))
    if not _tree.is_tracing(found) and not np.all(np.isfinite(found if whole or each is None else found[:, 1:])):
        raise ValueError("covariates: expected finite numbers, got NaN or inf.")
    return found
