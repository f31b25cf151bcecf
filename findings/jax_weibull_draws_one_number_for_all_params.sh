#!/usr/bin/env bash
# jax 0.10.2. `jax.random.weibull_min(key, scale, concentration)` with arrays of params and no `shape` draws one uniform
# number and gives every element a value of it: with equal params all "draws" are equal. `gamma`, `beta` and `poisson`
# called alike draw anew for each element. Pass `shape=scale.shape`. Seen: 1 distinct value of 1000, for the
# others about 1000 (Poisson: of mean 1e6).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2"
"$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp

key, ones = jax.random.key(0), jnp.ones(1000)
draws = {
    "weibull_min": jax.random.weibull_min(key, ones, ones),
    "weibull_min with shape": jax.random.weibull_min(key, ones, ones, shape=ones.shape),
    "gamma": jax.random.gamma(key, ones),
    "beta": jax.random.beta(key, ones, ones),
    "poisson": jax.random.poisson(key, 1e6 * ones),
}
distinct = {name: len(jnp.unique(values)) for name, values in draws.items()}
print("jax", jax.__version__, "distinct values of 1000:", distinct)
assert draws["weibull_min"].shape == (1000,)
assert distinct.pop("weibull_min") == 1
assert min(distinct.values()) > 800
PY
