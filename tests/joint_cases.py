"""Written joints with answers from outside."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem import bijections

REFERENCE = Path(__file__).parent / "reference"


CASES = {case["id"]: case for case in json.loads((REFERENCE / "joint_cases.json").read_text("utf-8"))["cases"]}


CELLS, COUNTS = np.arange(4), np.array([125.0, 18.0, 20.0, 34.0])


def linkage(theta, cell):
    probability = jnp.stack([0.5 + 0 * theta, theta / 4, (1 - theta) / 4, (1 - theta) / 4, theta / 4])
    return jnp.where(jnp.array([0, 0, 1, 2, 3]) == cell, jnp.log(probability), -jnp.inf)


def beta_3_2(theta):
    return jnp.log(12.0) + 2 * jnp.log(theta) + jnp.log1p(-theta)


def linkage_model(**options):
    return jaxem.LogJoint(linkage, 5, bijections.unit_interval, **({"m_step": jaxem.Full()} | options))


def fit_linkage(model, start=0.5, **options):
    options = {"sample_weight": COUNTS, "tol": -1.0, "max_iter": 25} | options
    return jaxem.fit(model, jnp.asarray(start), CELLS, **options)


def scaled_beta(strength, theta):
    return strength * beta_3_2(theta)


def zero_inflated(params, row):
    count, covariates = row
    log_rate = covariates @ params["beta"]
    log_zero = jax.nn.log_sigmoid(params["gamma"])
    log_count = jax.nn.log_sigmoid(-params["gamma"])
    poisson = count * log_rate - jnp.exp(log_rate) - jax.scipy.special.gammaln(count + 1)
    return jnp.stack([jnp.where(count == 0, log_zero, -jnp.inf), log_count + poisson])


def biochemists():
    with (REFERENCE / "data" / "biochemists.csv").open(encoding="utf-8") as file:
        rows = np.array([[float(value) for value in row.values()] for row in csv.DictReader(file)])
    return rows[:, 0], np.column_stack([np.ones(len(rows)), rows[:, 1:]])
