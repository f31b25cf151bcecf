"""Which data and params a mixture takes."""

from typing import Any

import jax.numpy as jnp

from .._typing import Array, Data
from ..contracts import capabilities as ask
from ..contracts.checks import check_option
from ..contracts.domains import check_params
from ..latent.finite import Gated, ungated, unlabelled
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ._mixture_params import MixtureFields, MixtureParams
from .gate import check_gated, covariates_of


class MixtureChecks(MixtureFields):
    """Checks of data and params, and what of the data is to be read."""

    def cast_rows(self, data: Data, dtype: Any) -> Data:
        """The data as the family reads them; covariates of a gate are floats."""
        rows = ask.cast_rows(self.family, ungated(data), dtype)
        if not isinstance(data, Gated):
            return rows
        return Gated(rows, _tree.cast_data(data.covariates, dtype))

    def validate_data(self, data: Data) -> None:
        """Raises a ValueError if the data do not fit the family or the model's own leaves do not fit k."""
        k = as_count("n_components", self.n_components)
        own = ask.n_components(self.family, k)
        if own != k:
            raise ValueError(
                f"n_components: expected {own}, one for each family of {type(self.family).__name__}, got {k}."
            )
        for name in ("concentration", "active"):
            leaf = getattr(self, name)
            if leaf is not None and jnp.shape(leaf) not in ((k,), *([()] if name == "concentration" else [])):
                raise ValueError(f"{name}: expected shape ({k},), got {jnp.shape(leaf)}.")
        if self.concentration is not None:
            check_option("concentration", self.concentration, 0, open_low=True)
        if self.active is not None and jnp.asarray(self.active).dtype != bool:
            raise ValueError(f"active: expected booleans ({k},), got {jnp.asarray(self.active).dtype}.")
        data = unlabelled(data)
        check_gated(self, data)
        ask.validate_data(self.family, ungated(data))

    def readable(self, data: Data) -> Data:
        """The data with a number wherever the family allows a missing entry."""
        rows = ask.readable(self.family, ungated(data))
        return data._replace(data=rows) if isinstance(data, Gated) else rows

    def informative(self, data: Data) -> Array | None:
        """Which rows say something about the params: (n,), or None for all."""
        return ask.informative(self.family, ungated(data))

    def check_data(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete data outside of the family's support."""
        ask.check_data(self.family, ungated(data), sample_weight)

    def check_table(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete data that as a whole do not determine the params."""
        if isinstance(data, Gated):
            self._mixing.check_covariates(data.covariates, sample_weight)
        ask.check_table(self.family, ungated(data), sample_weight)

    def check_params(self, params: MixtureParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of concrete params lies outside of the parameter space."""
        self._mixing.check_params(params.weights, lanes=lanes)
        check_params(self.family, params.components, lanes=lanes)

    def validate(self, params: MixtureParams, data: Data) -> None:
        """Raises a ValueError or TypeError if params do not fit the model and the data."""
        self.validate_data(data)
        if not isinstance(params, MixtureParams):
            raise TypeError(f"params: expected MixtureParams, got {type(params).__name__}; model.init makes them.")
        data = unlabelled(data)
        self._mixing.validate(params.weights, None if self.gate is None else covariates_of(data))
        ask.validate(self.family, params.components, ungated(data), self.n_components)
