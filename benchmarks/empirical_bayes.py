"""A prior learned by gradient through 3,146 fits at once: empirical Bayes on the flights that ship with jaxem.

    python -m benchmarks.empirical_bayes

Every aircraft gets its own mixture of two full-covariance normals of (departure delay, arrival delay), and all share
one prior. An aircraft's flights are split at random: half of them, at most 64, are fitted; of the rest one half is for
learning, the other for testing. The hyper-parameters climb, by Adam, the mean log-likelihood of the learning flights
under the fits; each gradient is the implicit derivative of all the fits. The test flights are looked at once, at the
end.

All arms start every aircraft at the same params, the mixture of all aircraft's flights together, so that what is
differentiated is smooth. Compared on the test flights, in float64:

    no prior         floor = 0, maximum likelihood
    default floor    what `FullNormal()` does
    first guess      a weak `NormalInverseWishart` on both components and a Dirichlet on the weights
    learned prior    the same after learning, from the first guess
    learned flights  a prior that tells the two components apart: eight flights of known component beside the
                     aircraft's own. Where they lie and what they weigh is learned, from the common start
    one for all      no fit by aircraft: the common start itself

The conjugate prior is the same for both components, so it cannot say that one is narrow and the other wide, and stays
below the last arm; the learned flights can.

A failed fit (`FitResult.failed`) scores by a fallback: the default floor's fit, and where that failed, the common
start. The second column leaves out every aircraft that failed in any arm. As a flight far from a component that has
collapsed can cost hundreds of nats and own a mean, the third column counts no flight below -30 nats.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxem
from benchmarks import limit, machine, table, x64
from jaxem.sources.flights import load_flights

MOST_FITTED, WORST = 64, -30.0
TOL, N_STEPS, RATE = 1e-9, 72, 0.2
UNIT = 20.0  # minutes: hyper-parameters are learned in this unit


class Rows(NamedTuple):
    """Some flights of all aircraft, flat."""

    x: jax.Array  # (n, 2)
    aircraft: jax.Array  # (n,) integers


class Split(NamedTuple):
    """Flights to fit, padded with weight zero to one size, and those held out."""

    x: jax.Array  # (b, m, 2)
    weight: jax.Array  # (b, m)
    learn: Rows
    test: Rows


class Prior(NamedTuple):
    """Hyper-parameters in free coordinates, the same for both components."""

    mean: jax.Array  # (2,), in UNIT
    log_shrinkage: jax.Array  # ()
    log_dof: jax.Array  # (), of the degrees of freedom above d - 1
    log_scale: jax.Array  # (2,), of the Cholesky factor's diagonal, in UNIT
    tilt: jax.Array  # (), the factor's off-diagonal, in UNIT
    log_concentration: jax.Array  # (2,), of the concentration above 1


class PriorFlights(NamedTuple):
    """Flights of known component: four of equal weight a component, with a mean and a covariance."""

    mean: jax.Array  # (2, 2), component first, in UNIT
    log_scale: jax.Array  # (2, 2), of the Cholesky factors' diagonals, in UNIT
    tilt: jax.Array  # (2,), the factors' off-diagonals, in UNIT
    log_weight: jax.Array  # (2,), of a component's four flights together


def main() -> None:
    print(machine("optax"))
    with x64():
        run()


def run() -> None:
    split = split_flights()
    n_aircraft, size = split.weight.shape
    fitted, learn, test = int(split.weight.sum()), len(split.learn.x), len(split.test.x)
    print(
        f"{n_aircraft:,} aircraft; flights: {fitted:,} fitted, at most {size} each, {learn:,} learning, {test:,} test"
    )
    start = common_start(split)
    first = first_guess()
    prior = climb("learned prior", fit_with_prior, first, start, split)
    describe_prior(prior)
    flights = climb("learned flights", fit_with_flights, flights_of(start), start, split)
    describe_flights(flights)
    n = len(split.x)
    arms = {
        "no prior": fit_all(jaxem.Mixture(jaxem.FullNormal(floor=0.0), 2), start, split.x, split.weight),
        "default floor": fit_all(jaxem.Mixture(jaxem.FullNormal(), 2), start, split.x, split.weight),
        "first guess": fit_with_prior(for_each(first, n), start, split),
        "learned prior": fit_with_prior(for_each(prior, n), start, split),
        "learned flights": fit_with_flights(for_each(flights, n), start, split),
    }
    report(arms, start, split)


def split_flights() -> Split:
    """A random half of each aircraft's flights, at most MOST_FITTED, to fit; every second of the rest to learn from."""
    flights = load_flights()
    rng = np.random.default_rng(0)
    aircraft = np.unique(flights.tailnum, return_inverse=True)[1]
    order = np.lexsort((rng.random(len(aircraft)), aircraft))
    x, aircraft = flights.delays[order].astype(np.float64), aircraft[order]
    counts = np.bincount(aircraft)
    rank = np.arange(len(x)) - np.repeat(np.cumsum(counts) - counts, counts)
    n_fitted = np.minimum(counts // 2, MOST_FITTED)[aircraft]
    fitted = rank < n_fitted
    learn, test = (~fitted & ((rank - n_fitted) % 2 == parity) for parity in (0, 1))
    padded, weight = np.zeros((len(counts), MOST_FITTED, 2)), np.zeros((len(counts), MOST_FITTED))
    padded[aircraft[fitted], rank[fitted]] = x[fitted]
    weight[aircraft[fitted], rank[fitted]] = 1
    rows = lambda mask: Rows(jnp.asarray(x[mask]), jnp.asarray(aircraft[mask]))  # noqa: E731
    return Split(jnp.asarray(padded), jnp.asarray(weight), rows(learn), rows(test))


def common_start(split: Split) -> jaxem.MixtureParams:
    """One mixture of all fitted flights, for every aircraft: (b, …)."""
    x = split.x[split.weight > 0]
    pooled = jaxem.fit_restarts(jaxem.Mixture(jaxem.FullNormal(), 2), jax.random.key(0), x, n_restarts=4)
    return for_each(pooled.check().ordered(lambda params: params.components.mean[:, 0]).params, len(split.x))


def for_each(tree: Any, n: int) -> Any:
    """The same for each of n aircraft."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *jnp.shape(leaf))), tree)


def fit_all(model: jaxem.Mixture, start: Any, data: Any, weight: jax.Array, **options: Any) -> jaxem.FitResult:
    return jaxem.fit_batch(model, start, data, sample_weight=weight, tol=TOL, max_iter=1000, **options)


def first_guess() -> Prior:
    """A tenth of a flight at mean (0, 0), 4 degrees of freedom at 20 minutes, concentration 2."""
    zeros, zero = jnp.zeros(2), jnp.zeros(())
    return Prior(zeros, zero + jnp.log(0.1), zero + jnp.log(3.0), zeros, zero, zeros)


def model_of(prior: Prior) -> jaxem.Mixture:
    factor = cholesky_factor(prior.log_scale, prior.tilt)
    dof = 1 + jnp.exp(prior.log_dof)
    wishart = jaxem.NormalInverseWishart(UNIT * prior.mean, jnp.exp(prior.log_shrinkage), dof, factor @ factor.T)
    return jaxem.Mixture(jaxem.FullNormal(prior=wishart), 2, concentration=1 + jnp.exp(prior.log_concentration))


def cholesky_factor(log_scale: jax.Array, tilt: jax.Array) -> jax.Array:
    return UNIT * (jnp.diag(jnp.exp(log_scale)) + jnp.array([[0.0, 0.0], [1.0, 0.0]]) * tilt)


def fit_with_prior(every: Prior, start: Any, split: Split) -> jaxem.FitResult:
    """All fits; hyper-parameters (b, ...)."""
    return fit_all(jax.vmap(model_of)(every), start, split.x, split.weight, model_axes=0)


def flights_of(start: jaxem.MixtureParams) -> PriorFlights:
    """Those that have the moments of the common start, and weigh one flight a component."""
    mean, covariance = jax.tree.map(lambda leaf: leaf[0], start.components)
    factor = jnp.linalg.cholesky(covariance) / UNIT
    return PriorFlights(mean / UNIT, jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), factor[:, 1, 0], jnp.zeros(2))


def rows_of(flights: PriorFlights) -> tuple[jax.Array, jax.Array]:
    """Delays (8, 2) and weights (8,): mean ± sqrt(2) times each column of the Cholesky factor."""
    factors = jax.vmap(cholesky_factor)(flights.log_scale, flights.tilt)
    columns = jnp.swapaxes(factors, 1, 2) * jnp.sqrt(2.0)
    x = UNIT * flights.mean[:, None] + jnp.concatenate([columns, -columns], 1)
    return x.reshape(8, 2), jnp.repeat(jnp.exp(flights.log_weight) / 4, 4)


def fit_with_flights(every: PriorFlights, start: Any, split: Split) -> jaxem.FitResult:
    """All fits; hyper-parameters (b, ...)."""
    prior_x, prior_weight = jax.vmap(rows_of)(every)
    x, weight = jnp.concatenate([prior_x, split.x], 1), jnp.concatenate([prior_weight, split.weight], 1)
    known = jnp.concatenate([jnp.repeat(jnp.arange(2), 4), jnp.full(split.x.shape[1], -1)])
    data = jax.vmap(lambda x: jaxem.labelled(x, known))(x)
    return fit_all(jaxem.Mixture(jaxem.FullNormal(), 2), start, data, weight)


@jax.jit
def log_prob(params: jaxem.MixtureParams, rows: Rows) -> jax.Array:
    """log p(flight | its aircraft's params): (n,)."""
    own = jax.tree.map(lambda leaf: leaf[rows.aircraft], params)
    plain = jaxem.Mixture(jaxem.FullNormal(), 2)
    return jax.vmap(lambda params, x: plain.log_prob(params, x[None])[0])(own, rows.x)


def climb(name: str, fit: Callable, hyper: Any, start: Any, split: Split) -> Any:
    """Adam on the mean log-likelihood of the learning flights under `fit(hyper for each aircraft, start, split)`."""
    n = len(split.x)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, N_STEPS))

    def loss(every: Any, start: Any, split: Split) -> jax.Array:
        fits = fit(every, start, split)
        ok = ~fits.failed[split.learn.aircraft]
        return -jnp.sum(jnp.where(ok, log_prob(fits.params, split.learn), 0)) / jnp.sum(ok)

    @jax.jit
    def step(hyper: Any, state: Any, start: Any, split: Split) -> tuple[Any, Any, jax.Array, jax.Array]:
        # one set for each aircraft, all the same: a fit without a derivative then spoils its own gradient alone
        value, gradient = jax.value_and_grad(loss)(for_each(hyper, n), start, split)
        ok = jnp.all(jnp.concatenate([jnp.isfinite(leaf).reshape(n, -1) for leaf in gradient], 1), 1)
        keep = lambda leaf: jnp.where(ok.reshape(n, *[1] * (leaf.ndim - 1)), leaf, 0)  # noqa: E731
        updates, state = optimizer.update(jax.tree.map(lambda leaf: jnp.sum(keep(leaf), 0), gradient), state)
        return optax.apply_updates(hyper, updates), state, -value, jnp.sum(~ok)

    state, values, dropped, times = optimizer.init(hyper), [], 0, []
    for _ in range(N_STEPS):
        began = time.perf_counter()
        hyper, state, value, bad = jax.block_until_ready(step(hyper, state, start, split))
        times.append(time.perf_counter() - began)
        values.append(float(value))
        dropped += int(bad)
    path = ", ".join(f"{values[i]:.4f}" for i in range(0, N_STEPS, N_STEPS // 6)) + f", {values[-1]:.4f}"
    print(f"\n{name}: log-likelihood of a learning flight, every {N_STEPS // 6} steps: {path}")
    print(f"first step {times[0]:.1f} s, then {np.median(times[1:]):.2f} s: all {n:,} fits and their derivative")
    print(f"gradients left out, of {n * N_STEPS:,}, because a fit was not at a fixed point: {dropped}", flush=True)
    return hyper


def describe_prior(prior: Prior) -> None:
    model = jax.tree.map(lambda leaf: np.round(np.asarray(leaf), 2).tolist(), model_of(prior))
    record = model.family.prior
    print(f"mean {record.mean}, shrinkage {record.shrinkage}, degrees of freedom {record.dof}, scale {record.scale}")
    print(f"concentration {model.concentration}")


def describe_flights(flights: PriorFlights) -> None:
    factors = jax.vmap(cholesky_factor)(flights.log_scale, flights.tilt)
    for j, factor in enumerate(factors):
        mean, covariance = UNIT * flights.mean[j], factor @ factor.T
        numbers = [
            np.round(np.asarray(leaf), 2).tolist() for leaf in (jnp.exp(flights.log_weight[j]), mean, covariance)
        ]
        print("component {}: weight {}, mean {}, covariance {}".format(j, *numbers))


def report(arms: dict[str, jaxem.FitResult], start: Any, split: Split) -> None:
    aircraft = np.asarray(split.test.aircraft)
    counts = np.bincount(aircraft, minlength=len(split.x))
    fallback = pick(arms["default floor"].failed, start, arms["default floor"].params)
    scores = {
        name: np.asarray(log_prob(pick(fit.failed, fallback, fit.params), split.test)) for name, fit in arms.items()
    }
    scores["one for all"] = np.asarray(log_prob(start, split.test))
    sound = ~np.any([np.asarray(fit.failed) for fit in arms.values()], 0)[aircraft]
    rows = [
        ["test flights, nats each", "failed fits", "all", "failed in no arm", "none below -30", "learned prior better"]
    ]
    learned = scores["learned prior"]
    for name, score in scores.items():
        failed = f"{int(np.sum(arms[name].failed))}" if name in arms else "-"
        gain = np.bincount(aircraft, learned - score, minlength=len(counts)) / np.maximum(counts, 1)
        share = "-" if name == "learned prior" else f"{100 * np.mean(gain[counts > 0] > 0):.0f} % of aircraft"
        numbers = [score.mean(), score[sound].mean(), np.maximum(score, WORST).mean()]
        rows.append([name, failed, *(f"{number:.4f}" for number in numbers), share])
    print(table(rows))
    for name in ("no prior", "default floor"):
        for label, mask in (("all", slice(None)), ("failed in no arm", sound)):
            gain = float(np.mean((learned - scores[name])[mask]))
            print(f"learned prior above {name}, {label}: {limit(gain, at_least=0.0, form='.4f')}")
    total = np.bincount(aircraft, scores["learned flights"] - scores["one for all"], minlength=len(counts))
    gain, n = float(np.sum(total) / len(aircraft)), len(aircraft)
    error = float(np.sqrt(np.sum(np.square(total - gain * counts))) / n)  # aircraft are independent, not flights
    print(f"learned flights above one for all: {limit(gain, at_least=0.0, form='.4f')}, standard error {error:.4f}")


def pick(mask: jax.Array, yes: Any, no: Any) -> Any:
    """Lane by lane: yes where the mask holds, else no."""
    choose = lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(choose, yes, no)


if __name__ == "__main__":
    main()
