"""Information criteria of a fitted model, on the scale of −2 log-likelihood: lower is better."""

from typing import Any

import jax.numpy as jnp
from jax.scipy.special import xlogy

from . import _tree
from ._typing import Array, Data, Params
from .arguments import as_weighted_rows
from .chunks import FoldPlan
from .fold import Folded
from .rules import Soft, restrict, unlabelled

NAMES = ("bic", "aic", "icl")
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
            1978); "icl", BIC + 2·entropy of the responsibilities (Biernacki, Celeux & Govaert 2000).
        model: bound to the data, with `n_parameters`; for "icl" with `log_joint`.
        params: of a fit.
        data: as in `fit`.
        sample_weight: (n,) or None.
        log_lik: at the params, where it is known.
        plan: how the sums over rows are cut.
    """
    data, sample_weight = as_weighted_rows(data, sample_weight)
    folded = Folded(model, plan, fast=False)
    deviance = -2 * (folded.e_step(params, data, sample_weight)[1] if log_lik is None else log_lik)
    p = model.n_parameters(params)
    if name == "aic":
        return deviance + 2 * p
    total = _tree.n_rows(data) if sample_weight is None else jnp.sum(sample_weight)
    bic = deviance + p * jnp.log(jnp.asarray(total, deviance.dtype))
    if name == "bic":
        return bic
    return bic + 2 * folded.sum_rows(_entropy, params, data, sample_weight, _ENTROPY_ROWS)


def _entropy(model: Any, params: Params, data: Data, sample_weight: Array | None) -> Array:
    r = Soft()(restrict(model.log_joint(params, unlabelled(data)), data))[0]
    entropy = -jnp.sum(xlogy(r, r), 1)
    return jnp.sum(entropy if sample_weight is None else jnp.where(sample_weight > 0, sample_weight * entropy, 0))
