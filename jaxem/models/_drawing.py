"""Draws from a mixture: alone, or in the place of rows that are given."""

from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key, Params
from ..contracts import capabilities as ask
from ..contracts import components as parts
from ..latent.finite import Gated, in_place_of, restrict, ungated, unlabelled
from ..latent.units import by_row, first_rows, units_of
from ..numerics import tree as _tree
from .gate import check_given, covariates_of


def draw(model: Any, params: Params, key: Key, n: int, given: Data | None) -> tuple[Data, Array]:
    """n rows and the components they came from; see `Mixture.sample`."""
    check_given(model, given, n)
    key_z, key_x = jax.random.split(key)
    covariates = None if model.gate is None else covariates_of(given)
    z = model._mixing.sample(params.weights, key_z, n, covariates)
    if ask.told(model.family, "conditional", False):
        rows = ask.needed(model.family, "sample")(params.components, key_x, z, ungated(given))
    else:
        rows = ask.needed(model.family, "sample")(params.components, key_x, z)
    return (rows if covariates is None else Gated(rows, covariates)), z


def draw_like(model: Any, params: Params, key: Key, data: Data) -> Data:
    """Rows in the place of the data's; see `Mixture.sample_like`."""
    key_z, key_x = jax.random.split(key)
    inner = unlabelled(data)
    log_weights = model._mixing.log_weights(params.weights, None if model.gate is None else covariates_of(inner))
    if log_weights.ndim == 1:
        log_weights = jnp.broadcast_to(log_weights[None], (_tree.n_rows(inner), model.n_components))
    log_weights, units = restrict(log_weights, data), units_of(data)
    if units is None:
        z = jax.random.categorical(key_z, log_weights, axis=1)
    else:
        z = by_row(jax.random.categorical(key_z, log_weights[first_rows(units, None)], axis=1), data)
    rows = parts.sample_like(model.family, params.components, key_x, z, ungated(inner))
    rows = inner._replace(data=rows) if isinstance(inner, Gated) else rows
    return in_place_of(data, rows)
