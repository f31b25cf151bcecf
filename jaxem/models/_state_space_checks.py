"""Which data and params a state space model takes."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data
from ..contracts.checks import check_option, level_outside
from ..contracts.domains import COVARIANCE, REAL, check_array
from ..latent.finite import Labelled
from ..latent.series import Sequences, as_sequences, check_lengths, present_steps
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ._state_space_params import GaussianState, LGSSMParams, StateSpaceFields
from ._state_space_steps import inputs_of, observed_entries, outcomes

_WIDEST = 1e5  # times the noise: of two states the log-likelihood is then off by some hundredths in float32


class StateSpaceChecks(StateSpaceFields):
    """Checks of data and params, and what of the data is to be read."""

    def cast_rows(self, data: Data, dtype: Any) -> Data:
        """The steps as floats; lengths are whole numbers."""
        if not isinstance(data, Sequences):
            return data  # an error soon
        length = data.length if hasattr(data.length, "dtype") else np.asarray(data.length)
        return Sequences(_tree.cast_data(data.values, dtype), jnp.asarray(length))

    def validate_data(self, data: Data) -> None:
        """Raises a ValueError if the data are no series of vectors, or the model's own leaves do not fit s."""
        s = as_count("n_states", self.n_states)
        self._check_leaves(s)
        if isinstance(data, Labelled):
            raise ValueError(
                "data: expected Sequences, got labelled ones; the states of a state space model are vectors: pass the "
                "sequences alone."
            )
        data = as_sequences(data)
        if isinstance(data.values, (tuple, list)) and len(data.values) != 2:
            raise ValueError(
                f"data.values: expected an array (n, t, d), or inputs (n, t, q) and such an array, got "
                f"{len(data.values)} leaves."
            )
        if isinstance(data.values, dict):
            raise ValueError(
                "data.values: expected an array (n, t, d), or a pair of inputs (n, t, q) and such an array, got a dict."
            )
        shapes = [np.shape(leaf) for leaf in (outcomes(data), inputs_of(data)) if leaf is not None]
        if any(len(shape) != 3 or shape[:2] != shapes[0][:2] for shape in shapes):
            raise ValueError(
                f"data.values: expected arrays (n, t, d) of n series, t steps and d columns, got shapes {shapes}; "
                "jaxem.sequences(table, ids) makes them."
            )
        check_lengths(data, shapes[0][0])

    def _check_leaves(self, s: int) -> None:
        if jnp.shape(self.floor) != ():
            raise ValueError(f"floor: expected a number, got shape {jnp.shape(self.floor)}.")
        check_option("floor", self.floor, 0)
        for name in ("transition_prior", "initial_prior"):
            leaf = getattr(self, name)
            if leaf is None:
                continue
            if jnp.shape(leaf) not in ((), (s,), (s, s)):
                raise ValueError(f"{name}: expected shape (), ({s},) or ({s}, {s}), got {jnp.shape(leaf)}.")
            if jnp.ndim(leaf) < 2:
                check_option(name, leaf, 0)
            else:
                check_array(name, leaf, COVARIANCE)

    def readable(self, data: Data) -> Data:
        """The data with a number wherever an entry is missing, or a step absent."""
        absent = ~present_steps(data)[:, :, None]
        values = jnp.where(observed_entries(data), outcomes(data), 0)
        inputs = inputs_of(data)
        return data._replace(values=values if inputs is None else (jnp.where(absent, 0, inputs), values))

    def check_data(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete lengths beyond the steps there are."""
        length, t = np.asarray(data.length), outcomes(data).shape[1]
        bad = (length < 0) | (length > t)
        if sample_weight is not None:
            bad = bad & (np.asarray(sample_weight) != 0)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"data.length: expected 0 to {t}, the steps that data.values have, got {length[row]} in series {row}; "
                "jaxem.sequences(table, ids) counts them."
            )

    def check_table(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete data in which a column is never observed."""
        seen = np.asarray(observed_entries(data))
        if sample_weight is not None:
            seen = seen & (np.asarray(sample_weight) > 0)[:, None, None]
        empty = ~seen.any((0, 1))
        if empty.any():
            raise ValueError(
                f"data: expected a number in each column of some series of positive weight, got missing ones "
                f"throughout column {int(np.argmax(empty))}; look at how the columns were read."
            )

    def check_params(self, params: LGSSMParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of concrete params lies outside of the parameter space."""
        for name, leaf, domain in (
            ("initial.mean", params.initial.mean, REAL),
            ("initial.covariance", params.initial.covariance, COVARIANCE),
            ("transition_covariance", params.transition_covariance, COVARIANCE),
            ("emission_covariance", params.emission_covariance, COVARIANCE),
        ):
            check_array(f"params.{name}", leaf, domain, lanes=lanes)

    def validate(self, params: LGSSMParams, data: Data) -> None:
        """Raises a ValueError or TypeError if params do not fit the model and the data."""
        self.validate_data(data)
        if not isinstance(params, LGSSMParams) or not isinstance(params.initial, GaussianState):
            kind = type(params.initial if isinstance(params, LGSSMParams) else params).__name__
            raise TypeError(
                f"params: expected LGSSMParams, whose initial is a GaussianState, got {kind}; model.init makes them."
            )
        s, d, inputs = self.n_states, outcomes(data).shape[2], inputs_of(data)
        want: dict[str, Any] = {
            "transition": (s, s), "transition_covariance": (s, s), "emission": (d, s), "emission_covariance": (d, d),
        }  # fmt: skip
        if inputs is not None:
            want |= {"transition_input": (s, inputs.shape[2]), "emission_input": (d, inputs.shape[2])}
        for name, leaf, shape in (
            ("initial.mean", params.initial.mean, (s,)),
            ("initial.covariance", params.initial.covariance, (s, s)),
            *((name, getattr(params, name), shape) for name, shape in want.items()),
        ):
            if leaf is None or jnp.shape(leaf) != shape:
                got = "None" if leaf is None else jnp.shape(leaf)
                raise ValueError(f"params.{name}: expected shape {shape}, got {got}.")
        if inputs is None and (params.transition_input is not None or params.emission_input is not None):
            raise ValueError(
                "data.values: expected a pair of inputs (n, t, q) and values (n, t, d), as params have input matrices, "
                "got an array; pass Sequences((inputs, values), length)."
            )
        if not _tree.is_tracing(params) and not self._regresses and _tree.float_dtype(data.values) == np.float32:
            _warn_if_wide(params)


def _warn_if_wide(params: LGSSMParams) -> None:
    """One warning if the first state is so wide beside the noise that a filter in float32 loses its digits."""
    widest, noise, moved, see = (
        np.asarray(leaf, np.float64)
        for leaf in (
            params.initial.covariance, params.emission_covariance, params.transition_covariance, params.emission
        )
    )  # fmt: skip
    reach = np.square(see).max(1)
    size = np.diagonal(moved).max() + (np.diagonal(noise) / np.where(reach > 0, reach, 1)).max()
    if len(widest) > 1 and np.diagonal(widest).max() > _WIDEST * size:
        warnings.warn(
            f"params.initial.covariance: {np.diagonal(widest).max():.1e} beside noise of {size:.1e} loses its digits "
            "in float32; LinearGaussianStateSpace(..., diffuse=True) keeps them, and so does jax_enable_x64.",
            UserWarning,
            stacklevel=level_outside(),
        )
