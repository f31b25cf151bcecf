"""Which data and params a hidden Markov model takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data
from ..contracts import capabilities as ask
from ..contracts.checks import check_option
from ..contracts.domains import SIMPLEX, check_array, check_params
from ..fold.present import present_rows
from ..latent.finite import unlabelled
from ..latent.series import Sequences, as_sequences, check_lengths, flat_steps
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ._markov_labels import check_mask
from ._markov_params import HMMParams, MarkovFields
from ._markov_steps import step_weight


class MarkovChecks(MarkovFields):
    """Checks of data and params, and what of the data is to be read."""

    def cast_rows(self, data: Data, dtype: Any) -> Data:
        """The steps as the family reads them; lengths are whole numbers."""
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
        data = as_sequences(unlabelled(data))
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(data.values)]
        if any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
            raise ValueError(
                f"data.values: expected arrays (n, t, …) of n series and t steps, got shapes {shapes}; "
                "jaxem.sequences(table, ids) makes them."
            )
        check_lengths(data, shapes[0][0])
        ask.validate_data(self.family, _shapes_of_steps(data.values))

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
        return _readable(self.family, data)

    def check_data(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete lengths beyond the steps there are, or steps outside of the support."""
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
        check_array("params.initial", params.initial, SIMPLEX, lanes=lanes)
        check_array("params.transition", params.transition, SIMPLEX, lanes=lanes)
        for name, allowed in (("transition", self.allowed), ("initial", self.initial_allowed)):
            leaf = getattr(params, name)
            if allowed is None or _tree.is_tracing(leaf, allowed):
                continue
            if np.any((np.asarray(leaf) != 0) & ~np.asarray(allowed)):
                raise ValueError(
                    f"params.{name}: expected 0 where `allowed` is False, got another probability; set it to 0 and "
                    "divide each row by its sum, or begin with model.init."
                )
        check_params(self.family, params.emissions, lanes=lanes)

    def validate(self, params: HMMParams, data: Data) -> None:
        """Raises a ValueError or TypeError if params do not fit the model and the data."""
        self.validate_data(data)
        if not isinstance(params, HMMParams):
            raise TypeError(f"params: expected HMMParams, got {type(params).__name__}; model.init makes them.")
        k = self.n_states
        for name, shape in (("initial", (k,)), ("transition", (k, k))):
            got = jnp.shape(getattr(params, name))
            if got != shape:
                raise ValueError(f"params.{name}: expected shape {shape}, got {got}.")
        ask.validate(self.family, params.emissions, _shapes_of_steps(unlabelled(data).values), k)


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
