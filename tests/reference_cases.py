"""The reference mixtures: their data, models and params."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

REFERENCE = Path(__file__).parent / "reference"


CASES = json.loads((REFERENCE / "cases.json").read_text(encoding="utf-8"))["cases"]


FAMILIES = {
    "full": jaxem.FullNormal,
    "tied": jaxem.TiedNormal,
    "diagonal": jaxem.DiagonalNormal,
    "spherical": jaxem.SphericalNormal,
}


def _columns(case: dict[str, Any], names: list[str]) -> np.ndarray:
    with (REFERENCE / case["data"]["file"]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[name]) for name in names] for row in rows])


def _data(case: dict[str, Any]) -> jax.Array:
    x = _columns(case, case["data"]["columns"]) / case["data"].get("divide_by", 1)
    x = jnp.asarray(x)
    assert x.dtype == jnp.float64, "the reference tests need jax_enable_x64"
    return x


def _model(case: dict[str, Any]):
    prior = case.get("prior")
    if prior is not None:
        prior = jaxem.NormalInverseWishart(
            mean=jnp.asarray(prior["mean"]),
            shrinkage=float(prior["shrinkage"]),
            dof=float(prior["dof"]),
            scale=jnp.asarray(prior["scale"]),
        )
    family = FAMILIES[case["covariance"]](floor=0.0, prior=prior)
    n_components = len(case["expected"]["params"]["weights"])
    return jaxem.Mixture(family, n_components=n_components)


def _params(case: dict[str, Any], listed: dict[str, Any]) -> jaxem.MixtureParams:
    """The listed parameters in jaxem's shapes; one-dimensional cases list variances."""
    k, d = len(listed["weights"]), len(case["data"]["columns"])
    shape = {"full": (k, d, d), "tied": (d, d), "diagonal": (k, d), "spherical": (k,)}
    covariance = np.asarray(listed["covs"] if "covs" in listed else listed["vars"])
    return jaxem.MixtureParams(
        weights=jnp.asarray(listed["weights"]),
        components=jaxem.NormalParams(
            mean=jnp.asarray(listed["means"]).reshape(k, d),
            covariance=jnp.asarray(covariance.reshape(shape[case["covariance"]])),
        ),
    )
