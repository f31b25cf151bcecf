"""The contracts hold for models, algorithms and drivers that the library does not know."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import first, slow
from toys import (
    ClosedPoissonMixture,
    CountParams,
    PoissonMixture,
    Stepwise,
    advance_lanes,
    fit_in_rounds,
    log_weights,
    start_lanes,
)

import jaxem
from jaxem.contracts.status import Status
from jaxem.fold.folded import Folded
from jaxem.loop.loop import advance, finish, start
from jaxem.loop.stopping import Objective

COUNTS = jnp.asarray(np.concatenate([np.random.default_rng(0).poisson(rate, 150) for rate in (2.0, 9.0)]), float)
COUNT_START = CountParams(jnp.zeros(1), jnp.log(jnp.asarray([1.0, 5.0])))
NORMALS = jaxem.Mixture(jaxem.FullNormal(), n_components=2)


# near two clouds: a start that needs no compiled initialiser
NORMAL_START = jaxem.MixtureParams(
    jnp.asarray([0.4, 0.6]),
    jaxem.NormalParams(jnp.asarray([[0.5, 0.0], [2.0, 2.5]]), 2.0 * jnp.broadcast_to(jnp.eye(2), (2, 2, 2))),
)


def scaled_start(scale, offset=0.0):
    bank = NORMAL_START.components
    return NORMAL_START._replace(components=bank._replace(mean=scale * bank.mean + offset))


def two_clouds(seed=0, n=400, gap=3.0, offset=0.0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, 2)) + gap * (np.arange(n) % 2)[:, None] + offset)


# --- (a) an M step that climbs


@first("n_steps", [30, 2])
@pytest.mark.parametrize("model", [PoissonMixture, lambda **o: PoissonMixture(shape=2.0, rate=0.5, **o)])
def test_an_ascending_m_step_reaches_the_closed_form(model, n_steps):
    model = model(n_steps=n_steps)
    closed = ClosedPoissonMixture(model.shape, model.rate)
    want = jaxem.fit(closed, COUNT_START, COUNTS, tol=1e-14, max_iter=600).check()
    # a truncated M step rises more slowly near the top, hence the tight tol; params to its square root
    found = jaxem.fit(model, COUNT_START, COUNTS, tol=1e-14, max_iter=600).check()
    np.testing.assert_allclose(found.objective, want.objective, rtol=1e-11)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found.params, want.params)
    history = np.asarray(found.history)[: int(found.n_iter) + 1]
    rounding = 32 * np.finfo(float).eps * (len(COUNTS) + np.abs(history[0]))
    assert (np.diff(history) >= -rounding).all()
    assert found.n_evals == found.n_iter + 1
    rates = np.exp(want.params.log_rate)
    np.testing.assert_allclose(rates, [2, 9], rtol=0.25)


def test_the_optimum_of_the_ascent_is_a_stationary_point_of_the_likelihood():
    """An external number: zero gradient of log p(x) written out by scipy's Poisson mass."""
    from scipy.stats import poisson

    params = jaxem.fit(PoissonMixture(), COUNT_START, COUNTS, tol=1e-14, max_iter=600).check().params
    weights, rates = np.exp(log_weights(params)), np.exp(params.log_rate)

    def log_lik(theta):
        w = 1 / (1 + np.exp(-theta[0]))
        mass = w * poisson.pmf(COUNTS, np.exp(theta[1])) + (1 - w) * poisson.pmf(COUNTS, np.exp(theta[2]))
        return np.log(mass).sum()

    theta = np.array([np.log(weights[0] / weights[1]), *np.log(rates)])
    slope = [(log_lik(theta + 1e-5 * e) - log_lik(theta - 1e-5 * e)) / 2e-5 for e in np.eye(3)]
    np.testing.assert_allclose(slope, 0, atol=2e-3)  # of a sum over 300 rows


@slow
def test_a_batch_of_ascending_m_steps():
    rng = np.random.default_rng(1)
    counts = jnp.asarray(np.stack([np.append(rng.poisson(1.5, 120), rng.poisson(8.0, 180)) for _ in range(4)]), float)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), COUNT_START)
    many = jaxem.fit_batch(PoissonMixture(), starts, counts, plan="lanes", tol=1e-9, max_iter=600)
    for lane in range(4):
        alone = jaxem.fit(PoissonMixture(), COUNT_START, counts[lane], tol=1e-9, max_iter=600)
        assert many.status[lane] == alone.status == Status.CONVERGED
        np.testing.assert_allclose(many.objective[lane], alone.objective, rtol=1e-9)
        np.testing.assert_allclose(many.params.log_rate[lane], alone.params.log_rate, atol=1e-4)


@slow
def test_an_ascending_m_step_with_weights_chunks_and_a_tree_of_data():
    weight = np.random.default_rng(2).integers(0, 3, len(COUNTS))
    data = (np.where(weight > 0, COUNTS, np.nan), np.full(len(COUNTS), 2.0))
    repeated = tuple(np.repeat(leaf, weight) for leaf in data)
    options: dict[str, Any] = {"tol": -1.0, "max_iter": 10}
    whole = jaxem.fit(PoissonMixture(), COUNT_START, repeated, **options)
    found = jaxem.fit(PoissonMixture(), COUNT_START, data, sample_weight=weight, chunk_size=37, **options)
    np.testing.assert_allclose(found.history, whole.history, rtol=1e-9)


def test_differentiating_through_an_optimiser_is_refused():
    fit = lambda c, d: jaxem.fit(PoissonMixture(), COUNT_START, c, max_iter=3, derivative=d).params.log_rate  # noqa: E731
    with pytest.raises(ValueError, match=r"derivative=Stop\(\)"):
        jax.grad(lambda c: jnp.sum(fit(c, jaxem.Implicit())))(COUNTS)
    np.testing.assert_array_equal(jax.grad(lambda c: jnp.sum(fit(c, jaxem.Stop())))(COUNTS), 0)


# --- (b) a minibatch algorithm


def per_unit(model, params, data):
    return jax.jit(lambda params, data: jnp.mean(jaxem.Soft()(model.log_joint(params, data))[1]))(params, data)


def check_stepwise(model, params, data, **options):
    algorithm = Stepwise(jax.random.key(3), batch_size=64)
    n = jax.tree.leaves(data)[0].shape[0]
    best = jaxem.fit(model, params, data, tol=1e-10, max_iter=600).check()
    found = jaxem.fit(model, params, data, algorithm=algorithm, tol=-1.0, max_iter=150, **options)
    assert Status(int(found.status)) is Status.MAX_ITER and found.n_iter == 150
    assert found.n_evals == 2 * 151
    # the noise of 64 rows a step, averaged by γ = 150^−0.6 = 0.05, leaves some 1e-3 of the objective per row
    assert abs(best.objective - found.objective) / n < 1e-2
    history = np.asarray(found.history)
    assert np.isfinite(history).all() and (np.diff(history) < 0).any()
    assert found.objective == history[-1]
    return found


def test_minibatch_em_on_a_model_from_its_log_joint():
    found = check_stepwise(ClosedPoissonMixture(), COUNT_START, COUNTS)
    np.testing.assert_allclose(
        found.log_lik / len(COUNTS), per_unit(ClosedPoissonMixture(), found.params, COUNTS), rtol=1e-12
    )


@slow
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_minibatch_em_on_a_mixture_with_a_fast_path(offset):
    """Its rows must not arrive prepared, nor its statistics change their pivot from step to step."""
    x = two_clouds(offset=offset)
    check_stepwise(NORMALS, scaled_start(1.0, offset), x)


@slow
def test_minibatch_em_where_the_fast_path_is_not_trusted():
    """Spread over a hundred standard deviations in float32: statistics keep their pivot here too."""
    x = jnp.asarray(two_clouds(gap=200.0), jnp.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), scaled_start(200 / 3))
    assert not jax.jit(lambda x: NORMALS.bind(x, None).trusted(params))(x)
    check_stepwise(NORMALS, params, x)


@slow
def test_minibatch_em_with_weights_labels_and_batches():
    weight = np.where(np.arange(400) % 5 == 0, 0.0, 1.0)
    x = np.where(weight[:, None] > 0, two_clouds(), np.nan)
    known = np.where(np.arange(400) % 3 == 0, np.arange(400) % 2, -1)
    options: dict[str, Any] = {"algorithm": Stepwise(jax.random.key(1)), "tol": -1.0, "max_iter": 40}
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), (NORMAL_START, x, weight, known))
    data = jax.vmap(jaxem.labelled)(both[1], both[3])
    found = jaxem.fit_batch(NORMALS, both[0], data, sample_weight=both[2], plan="lanes", **options)
    assert (found.status == Status.MAX_ITER).all() and np.isfinite(found.history).all()
    np.testing.assert_allclose(found.params.components.mean[0, :, 0], [0, 3], atol=0.3)
    np.testing.assert_array_equal(found.objective[0], found.objective[1])  # the same key, the same draws


@slow
def test_a_fall_of_a_stochastic_objective_is_not_convergence():
    found = jaxem.fit(
        ClosedPoissonMixture(), COUNT_START, COUNTS, algorithm=Stepwise(jax.random.key(0), 8), tol=1e-7, max_iter=100
    )
    last = np.diff(np.asarray(found.history)[: int(found.n_iter) + 1])[-1] / len(COUNTS)
    assert abs(last) <= 1e-7 or Status(int(found.status)) is Status.MAX_ITER


@slow
def test_a_stochastic_fit_resumed_gives_the_same_bits():
    algorithm, stop = Stepwise(jax.random.key(3)), Objective(-1.0)

    def run(data, cuts):
        model = ClosedPoissonMixture()
        state = start(model, COUNT_START, data, None, algorithm=algorithm, max_iter=20)
        for n_iter in cuts:
            state = advance(state, model, data, None, algorithm=algorithm, stop=stop, n_iter=n_iter)
        return finish(state, model)

    whole, split = (jax.jit(run, static_argnums=1)(COUNTS, cuts) for cuts in ((20,), (4, 1, 15)))
    jax.tree.map(np.testing.assert_array_equal, whole, split)


# --- (c) lanes in two rounds


@pytest.mark.slow
def test_two_rounds_with_a_gather_between_equal_one_program():
    x = jnp.stack([two_clouds(seed, n=80, gap=gap) for seed, gap in enumerate([8.0, 1.0, 2.0, 7.0, 0.5, 3.0])])
    x = x.at[3, 7, 0].set(jnp.nan)  # a lane that fails at once
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 6), NORMAL_START)
    options: dict[str, Any] = {"algorithm": jaxem.EM(), "tol": 1e-6, "max_iter": 200}
    want = jaxem.fit_batch(NORMALS, params, x, plan="lanes", **options)
    found, running = fit_in_rounds(NORMALS, params, x, first=8, **options)
    assert 0 < len(running) < 5 and 0 not in running and 3 not in running
    assert want.status[3] == Status.NONFINITE and want.n_iter.max() > 16
    for name in ("n_iter", "n_evals", "status"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
    # another number of lanes is another program, which may order its sums differently
    for name in ("objective", "log_lik", "history"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), found.params, want.params)

    # all lanes in rounds: the same program entered again, so nothing may be forgotten between them
    bound, state = start_lanes(NORMALS, params, x, algorithm=jaxem.EM(), max_iter=200)
    go_on = lambda state, n: advance_lanes(bound, state, x, n, algorithm=jaxem.EM(), tol=1e-6)  # noqa: E731
    whole, split = go_on(state, 200), go_on(go_on(go_on(state, 4), 7), 200)
    jax.tree.map(np.testing.assert_array_equal, whole, split)


def test_folded_reads_a_minibatch():
    x = two_clouds()
    e_step = jax.jit(lambda x, rows: Folded(NORMALS.bind(x, None)).e_step(NORMAL_START, rows, None))
    half, rest, whole = e_step(x, x[:200]), e_step(x, x[200:]), e_step(x, x)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-11, atol=1e-9), half, rest, whole)
