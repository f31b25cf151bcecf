#!/usr/bin/env bash
# jax 0.10.2 on a CPU, float32. To keep the digits of exp(x) where x is large, split x exactly into a number of few bits
# and a small rest, and multiply the two exponentials. Under jit the product exp(a)·exp(b) is computed as exp(a + b), whose
# argument is rounded again: the largest relative error is 1.0e-6, where it is 1.6e-7 eagerly, or with the second factor
# behind lax.optimization_barrier. One exponential is left in the compiled program of the two that were written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PY'
import jax, jax.numpy as jnp, numpy as np

rng = np.random.default_rng(0)
a = np.round(8 * rng.uniform(5, 18, 4096)).astype(np.float32) / 8  # exact in float32
b = rng.uniform(-0.06, 0.06, 4096).astype(np.float32)
exact = np.exp(a.astype(np.float64) + b.astype(np.float64))

product = lambda a, b: jnp.exp(a) * jnp.exp(b)
barred = lambda a, b: jnp.exp(a) * jax.lax.optimization_barrier(jnp.exp(b))
worst = lambda fn: float(np.max(np.abs(np.asarray(fn(a, b), np.float64) / exact - 1)))
eager, compiled, behind = worst(product), worst(jax.jit(product)), worst(jax.jit(barred))
print(f"jax {jax.__version__}: largest relative error, eager {eager:.1e}, jit {compiled:.1e}, jit with a barrier {behind:.1e}")
text = jax.jit(product).lower(a, b).compile().as_text()
print("exponentials in the compiled program:", text.count("exponential("), "(two were written)")
assert compiled > 2.5 * eager and behind < 1.5 * eager, "the product of exponentials keeps its digits now"
PY
