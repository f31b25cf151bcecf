"""Information criteria of a fitted model, on the scale of −2 log-likelihood: lower is better."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.domains import check_params
from ..latent.finite import Soft, restrict, unlabelled
from ..latent.informative import informed_weight
from ..latent.units import total_units, units_of
from ..numerics.arguments import as_weighted_rows
from .chunks import FoldPlan
from .folded import Folded
from .units import States, log_joint_of_units

NAMES = ("bic", "aic", "icl", "icl_entropy")
BY_STATE = ("icl", "icl_entropy")  # that ask for the posterior of the states
_ENTROPY_ROWS = 16384  # in one chunk


def criterion_of(
    name: str,
    model: Any,
    params: Params,
    data: Data,
    sample_weight: Array | None,
    *,
    log_lik: Array | None = None,
    plan: FoldPlan = FoldPlan(),
) -> Array:
    """The criterion of this name, ().

    Args:
        name: "aic", −2 log-likelihood + 2p (Akaike 1974); "bic", −2 log-likelihood + p·log(total weight) (Schwarz
            1978); "icl", BIC − 2·Σ_i log max_j r_ij, the integrated classification likelihood at the most probable
            states (Biernacki, Celeux & Govaert 2000, eq. 5), which mclust and flexmix print; "icl_entropy", BIC +
            2·entropy of the responsibilities, its expectation over the states (McLachlan & Peel 2000, section 6.10).
        model: bound to the data, with `n_parameters`; for `BY_STATE` with `log_joint`.
        params: of a fit.
        data: as in `fit`.
        sample_weight: (n,) or None.
        log_lik: at the params, where it is known.
        plan: how the sums over rows are cut.
    """
    data, sample_weight = as_weighted_rows(data, sample_weight)
    check_params(model, params)
    params = jax.tree.map(jnp.asarray, params)
    folded = Folded(model, plan, fast=False)
    sample_weight = informed_weight(model, data, sample_weight)
    deviance = -2 * (folded.e_step(params, data, sample_weight)[1] if log_lik is None else log_lik)
    p = ask.n_parameters(model, params)
    if name == "aic":
        return deviance + 2 * p
    total = total_units(model, data, unlabelled(data), sample_weight)
    bic = deviance + p * jnp.log(jnp.asarray(total, deviance.dtype))
    if name == "bic":
        return bic
    if units_of(data) is not None:
        of_posterior = _entropy_of if name == "icl_entropy" else _log_of_largest_of
        r = Soft()(log_joint_of_units(folded, params, data, sample_weight))[0]
        return bic + 2 * of_posterior(r, States.of(data, sample_weight).weight)
    unsure = _entropy if name == "icl_entropy" else _log_of_largest
    return bic + 2 * folded.sum_rows(unsure, params, data, sample_weight, _ENTROPY_ROWS)


def _posterior(model: Any, params: Params, data: Data) -> Array:
    return Soft()(restrict(model.log_joint(params, unlabelled(data)), data))[0]


def _entropy(model: Any, params: Params, data: Data, sample_weight: Array | None) -> Array:
    return _entropy_of(_posterior(model, params, data), sample_weight)


def _entropy_of(r: Array, sample_weight: Array | None) -> Array:
    return _weighted_sum(-jnp.sum(xlogy(r, r), 1), sample_weight)


def _log_of_largest(model: Any, params: Params, data: Data, sample_weight: Array | None) -> Array:
    return _log_of_largest_of(_posterior(model, params, data), sample_weight)


def _log_of_largest_of(r: Array, sample_weight: Array | None) -> Array:
    largest = jnp.max(r, 1)
    return _weighted_sum(-jnp.log(jnp.where(largest > 0, largest, 1)), sample_weight)


def _weighted_sum(rows: Array, sample_weight: Array | None) -> Array:
    return jnp.sum(rows if sample_weight is None else jnp.where(sample_weight > 0, sample_weight * rows, 0))
