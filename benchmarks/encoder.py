"""A mixture fitted to the outputs of a neural network at every step of its training, with the gradient through the fit.

    python -m benchmarks.encoder

A small multilayer perceptron embeds scikit-learn's digits (1797 images of 8 x 8) in 9 dimensions. Two random views
(rotated, scaled, shifted) of a batch are embedded and whitened together, so that no collapse pays, and a mixture of ten
spherical normals is fitted to the first view, from the last step's fit. The loss is

    mean squared distance of the two views of an image + sum_j w_j log(w_j) / d + sum_j w_j variance_j,

the last two read off the fitted params alone: clusters of little variance and even weight. After 100 steps they come
in, with growing weight. No label is used. Compared over five seeds by the adjusted Rand index of clusters and digits,
of the same mixture fitted to the embedding of all images (best of 20 restarts by its own objective):

    untrained    the network as it is drawn
    detached     the same training, `derivative=jaxem.Stop()`: the mixture is fitted, but its params are constants, and
                 what trains the network is the distance of the views
    through      the same training, `derivative=jaxem.Implicit()`
    pixels       no network: the first 9 principal components, whitened; for reference

Seeds, batches, views, steps and rates are the same in all arms. Where a fit is not at a fixed point, its derivative is
NaN: such a step takes the distance of the views alone, and is counted. The settings were chosen on other seeds than the
five reported.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

import jaxem
from benchmarks import limit, machine, table

N_COMPONENTS, N_DIMENSIONS, N_HIDDEN = 10, 9, 128
BATCH, RATE, N_STEPS = 600, 3e-3, 400
N_ALONE, N_RAMP = 100, 100  # steps with weight zero on the cluster terms, then until it is one
ANGLE, SHIFT, LOG_SCALE = 0.2, 0.6, 0.1  # standard deviations of a view: radians, pixels, logarithm
MODEL = jaxem.Mixture(jaxem.SphericalNormal(floor=1e-3), N_COMPONENTS, concentration=2.0)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, N_STEPS)))
ARMS = {"detached": jaxem.Stop(), "through": jaxem.Implicit()}

Network = list[tuple[jax.Array, jax.Array]]


class Training(NamedTuple):
    """What a step needs of the last one."""

    network: Network
    optimizer: Any
    mixture: jaxem.MixtureParams
    step: jax.Array  # ()


class StepInfo(NamedTuple):
    """What is reported of a step."""

    distance: jax.Array
    cluster_term: jax.Array
    n_iter: jax.Array
    valid: jax.Array


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    seeds = parser.parse_args().seeds
    print(machine("optax", "scikit-learn"))
    digits = load_digits()
    images = jnp.asarray(digits.data / 16, jnp.float32)
    scores: dict[str, list[float]] = {name: [] for name in ("untrained", *ARMS, "pixels")}
    for seed in seeds:
        network_key, train_key, score_key = jax.random.split(jax.random.key(seed), 3)
        network = draw_network(network_key)
        scores["untrained"].append(score(score_key, embed_all(network, images), digits.target))
        scores["pixels"].append(score(score_key, principal_components(images), digits.target))
        for name, derivative in ARMS.items():
            trained = train(train_key, network, images, derivative, f"seed {seed}, {name}")
            scores[name].append(score(score_key, embed_all(trained, images), digits.target))
    report(scores)


def draw_network(key: jax.Array) -> Network:
    sizes = (64, N_HIDDEN, N_HIDDEN, N_DIMENSIONS)
    shapes = zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(key, (a, b)) * jnp.sqrt(2 / a), jnp.zeros(b)) for key, a, b in shapes]


def embed(network: Network, x: jax.Array) -> jax.Array:
    for weight, bias in network[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = network[-1]
    return x @ weight + bias


def whiten(z: jax.Array) -> jax.Array:
    """Mean zero, covariance the identity."""
    centred = z - jnp.mean(z, 0)
    factor = jnp.linalg.cholesky(centred.T @ centred / len(z) + 1e-4 * jnp.eye(z.shape[1]))
    return jax.scipy.linalg.solve_triangular(factor, centred.T, lower=True).T


@jax.jit
def embed_all(network: Network, images: jax.Array) -> jax.Array:
    return whiten(embed(network, images))


def principal_components(images: jax.Array) -> jax.Array:
    centred = images - jnp.mean(images, 0)
    left = jnp.linalg.svd(centred, full_matrices=False)[0]
    return left[:, :N_DIMENSIONS] * jnp.sqrt(len(images))


def score(key: jax.Array, z: jax.Array, digits: np.ndarray) -> float:
    """Adjusted Rand index of digits and clusters, by the best of 20 fits."""
    best = jaxem.fit_restarts(MODEL, key, z, n_restarts=20)
    return float(adjusted_rand_score(digits, np.asarray(best.model.predict(best.params, z))))


def view(key: jax.Array, images: jax.Array) -> jax.Array:
    """Every image rotated, scaled and shifted a little at random, by bilinear interpolation."""
    keys, n = jax.random.split(key, 3), len(images)
    angle = ANGLE * jax.random.normal(keys[0], (n,))
    shift = SHIFT * jax.random.normal(keys[1], (n, 2))
    scale = jnp.exp(LOG_SCALE * jax.random.normal(keys[2], (n, 2)))
    pixels = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij")).reshape(2, 64) - 3.5

    def one(image: jax.Array, angle: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        at = jnp.array([[cos, -sin], [sin, cos]]) @ pixels * scale[:, None] + shift[:, None] + 3.5
        return jax.scipy.ndimage.map_coordinates(image.reshape(8, 8), list(at), order=1)

    return jax.vmap(one)(images, angle, shift, scale)


def two_views(network: Network, views: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Embeddings (n, d) of both views (2, n, 64), whitened together."""
    z = whiten(embed(network, views.reshape(-1, 64)))
    return z[: len(z) // 2], z[len(z) // 2 :]


def distance(network: Network, views: jax.Array) -> jax.Array:
    first, second = two_views(network, views)
    return jnp.mean(jnp.square(first - second))


def cluster_term(network: Network, views: jax.Array, start: Any, derivative: Any) -> tuple[jax.Array, jaxem.FitResult]:
    """A function of the fitted params alone, and the fit."""
    first, _ = two_views(network, views)
    fit = jaxem.fit(MODEL, start, first, max_iter=200, derivative=derivative)
    weights, variance = fit.params.weights, fit.params.components.covariance
    return jnp.sum(weights * jnp.log(weights)) / N_DIMENSIONS + jnp.sum(weights * variance), fit


@jax.jit
def train_step(state: Training, key: jax.Array, images: jax.Array, derivative: Any) -> tuple[Training, StepInfo]:
    batch_key, *view_keys = jax.random.split(key, 3)
    batch = images[jax.random.choice(batch_key, len(images), (BATCH,), replace=False)]
    views = jnp.stack([view(key, batch) for key in view_keys])
    apart, gradient = jax.value_and_grad(distance)(state.network, views)
    term = jax.value_and_grad(cluster_term, has_aux=True)
    (value, fit), through = term(state.network, views, state.mixture, derivative)
    valid = jnp.isfinite(optax.global_norm(through))
    ramp = jnp.clip((state.step - N_ALONE) / N_RAMP, 0, 1)
    gradient = jax.tree.map(lambda a, b: a + ramp * jnp.where(valid, b, 0), gradient, through)
    updates, optimizer = OPTIMIZER.update(gradient, state.optimizer)
    network: Any = optax.apply_updates(state.network, updates)
    return Training(network, optimizer, fit.params, state.step + 1), StepInfo(apart, value, fit.n_iter, valid)


def train(key: jax.Array, network: Network, images: jax.Array, derivative: Any, name: str) -> Network:
    start_key, step_key = jax.random.split(key)
    restart = lambda network: jaxem.fit_restarts(  # noqa: E731
        MODEL, start_key, embed_all(network, images), n_restarts=4, derivative=jaxem.Stop()
    )
    state = Training(network, OPTIMIZER.init(network), restart(network).params, jnp.zeros((), jnp.int32))
    began, infos = time.perf_counter(), []
    for i in range(N_STEPS):
        if i == N_ALONE:  # from here on the clusters matter: those of a random embedding are a bad start
            state = state._replace(mixture=restart(state.network).params)
        state, info = jax.block_until_ready(train_step(state, jax.random.fold_in(step_key, i), images, derivative))
        infos.append(info)
        began = time.perf_counter() if i == 0 else began  # the first step may compile
    each = 1e3 * (time.perf_counter() - began) / (N_STEPS - 1)
    means = StepInfo(*(np.asarray(leaf, float) for leaf in zip(*infos, strict=True)))
    print(
        f"{name}: {each:.0f} ms and {means.n_iter.mean():.0f} EM iterations a step; last 20 steps: distance "
        f"{means.distance[-20:].mean():.3f}, cluster term {means.cluster_term[-20:].mean():.3f}; without a derivative "
        f"{int(np.sum(1 - means.valid[N_ALONE:]))} of {N_STEPS - N_ALONE}",
        flush=True,
    )
    return state.network


def report(scores: dict[str, list[float]]) -> None:
    best = np.asarray(scores["through"])
    rows = [["adjusted Rand index", "mean", "sd", "through - this", "through wins", "by seed"]]
    for name, values in scores.items():
        gain = best - values
        versus = ["-", "-"] if name == "through" else [f"{gain.mean():+.3f}", f"{np.sum(gain > 0)} of {len(gain)}"]
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        rows.append([name, f"{np.mean(values):.3f}", f"{spread:.3f}", *versus, " ".join(f"{v:.2f}" for v in values)])
    print(table(rows))
    for name in ("untrained", "detached"):
        gain = float(np.min(best - scores[name]))
        print(f"smallest gain over {name} in a seed: {limit(gain, at_least=0.0, form='.3f')}")


if __name__ == "__main__":
    main()
