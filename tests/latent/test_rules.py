"""Rules and partly known labels, against brute force in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import first, logsumexp, slow

import jaxem
from jaxem.contracts.status import Status
from jaxem.fold.chunks import FoldPlan, plan_fold
from jaxem.fold.folded import Folded
from jaxem.latent.finite import Given, Hard, Labelled, Sampled, Soft, Tempered, labelled, restrict

# both sides of 4096 rows, where the layout of the E step changes
SIZES = [6, 4096, 4097]
MODEL = jaxem.Mixture(jaxem.FullNormal(), n_components=3)


def log_joints(n, k=3, impossible=True):
    """Random log joints; a third of the states impossible, never all of a row."""
    rng = np.random.default_rng(n)
    values = 3 * rng.normal(size=(n, k))
    if impossible:
        ruled_out = rng.uniform(size=(n, k)) < 1 / 3
        ruled_out[np.arange(n), rng.integers(0, k, n)] = False
        values[ruled_out] = -np.inf
    return values


def clouds(n=300, seed=0):
    rng = np.random.default_rng(seed)
    state = rng.integers(0, 3, n)
    centres = np.asarray([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
    return jnp.asarray(centres[state] + rng.normal(size=(n, 2))), jnp.asarray(state)


# near the three clouds: a start that needs no compiled initialiser
START = jaxem.MixtureParams(
    jnp.asarray([0.3, 0.3, 0.4]),
    jaxem.NormalParams(
        jnp.asarray([[0.5, 0.2], [3.0, 0.1], [1.0, 2.0]]), 1.5 * jnp.broadcast_to(jnp.eye(2), (3, 2, 2))
    ),
)


# --- values


@first("n", SIZES[::-1])
def test_soft_tempered_and_hard_by_brute_force(n):
    values = log_joints(n)
    evidence = logsumexp(values, 1)
    soft, objective = jax.jit(Soft())(values)
    np.testing.assert_allclose(soft, np.exp(values - evidence[:, None]), rtol=1e-13)
    np.testing.assert_allclose(objective, evidence, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-14)
    for temperature in (0.5, 4.0):
        r, free_energy = jax.jit(lambda t, v: Tempered(t)(v))(temperature, values)
        scaled = values / temperature
        np.testing.assert_allclose(r, np.exp(scaled - logsumexp(scaled, 1)[:, None]), rtol=1e-12)
        np.testing.assert_allclose(free_energy, temperature * logsumexp(scaled, 1), rtol=1e-12, atol=1e-12)
    r, best = jax.jit(Hard())(values)
    np.testing.assert_array_equal(r, np.eye(3)[values.argmax(1)])
    np.testing.assert_array_equal(best, values.max(1))


@first("dtype", [jnp.float32, jnp.float64])
def test_temperature_one_is_soft(dtype):
    values = jnp.asarray(log_joints(500), dtype)
    for temperature in (1.0, 1, jnp.ones((), dtype)):
        for found, want in zip(Tempered(temperature)(values), Soft()(values), strict=True):
            assert found.dtype == want.dtype == dtype
            np.testing.assert_array_equal(found, want)


def test_temperatures_between_hard_and_uniform():
    values = jnp.asarray(log_joints(50, impossible=False))
    np.testing.assert_allclose(Tempered(1e-6)(values)[0], Hard()(values)[0], atol=1e-12)
    np.testing.assert_allclose(Tempered(1e9)(values)[0], 1 / 3, atol=1e-7)


def test_sampled_states_follow_the_posterior():
    values = log_joints(40)
    posterior, evidence = Soft()(jnp.asarray(values))
    draw = jax.jit(jax.vmap(lambda key: Sampled()(jnp.asarray(values), key)))
    r, objective = draw(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_array_equal(objective[0], evidence)
    assert ((r == 0) | (r == 1)).all() and (r.sum(2) == 1).all()
    # 4000 draws: a standard deviation of at most 0.008; never an impossible state
    np.testing.assert_allclose(r.mean(0), posterior, atol=0.04)
    assert (np.asarray(r)[:, np.isinf(values)] == 0).all()
    with pytest.raises(ValueError, match="Sampled: expected a key"):
        Sampled()(jnp.asarray(values), None)


def test_given_is_a_bound_that_the_posterior_closes():
    values = jnp.asarray(log_joints(200, impossible=False))
    posterior, evidence = Soft()(values)
    rng = np.random.default_rng(0)
    for concentration in (0.1, 1.0, 30.0):
        r = rng.dirichlet(np.full(3, concentration), 200)
        same, bound = Given(jnp.asarray(r))(jnp.asarray(values), None)
        np.testing.assert_array_equal(same, r)
        gap = np.sum(r * (np.log(np.maximum(r, 1e-300)) - np.log(posterior)), 1)  # KL(r ‖ posterior)
        assert (gap >= 0).all()
        np.testing.assert_allclose(bound, evidence - gap, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(Given(posterior)(values, None)[1], evidence, rtol=1e-12, atol=1e-12)


def test_given_with_impossible_states():
    values = jnp.asarray([[0.0, -jnp.inf], [0.0, -jnp.inf], [-jnp.inf, -1.0]])
    r = jnp.asarray([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    np.testing.assert_array_equal(Given(r)(values, None)[1], [0.0, -jnp.inf, -1.0])


# --- gradients


@first("n", SIZES)
@first("rule", [Tempered(2.0), Soft(), Hard(), Sampled(), Given], ids=str)
def test_gradients_in_the_log_joint_are_the_responsibilities(rule, n):
    """For Soft, Tempered, Hard and Given alike; impossible states have gradient zero, not NaN."""
    values = jnp.asarray(log_joints(n))
    rule = Given(Soft()(values)[0]) if rule is Given else rule
    key = jax.random.key(0)
    want = Soft()(values)[0] if isinstance(rule, Sampled) else rule(values, key)[0]
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(rule(v, key)[1])))(values)
    np.testing.assert_allclose(gradient, want, rtol=1e-12, atol=1e-14)
    second = jax.jit(jax.grad(lambda v: jnp.sum(jnp.square(rule(v, key)[0]))))(values)
    assert jnp.isfinite(second).all()


def test_a_row_without_any_possible_state():
    """Evidence −inf and no NaN, so that other rows and lanes keep their values and gradients."""
    values = jnp.asarray([[0.0, 1.0], [-jnp.inf, -jnp.inf]])
    for rule in (Soft(), Tempered(3.0)):
        r, objective = jax.jit(rule)(values)
        np.testing.assert_array_equal(r[1], 0)
        assert objective[1] == -jnp.inf and jnp.isfinite(objective[0])
        gradient = jax.jit(jax.grad(lambda v, rule=rule: jnp.sum(rule(v)[0][0]) + rule(v)[1][0]))(values)
        assert jnp.isfinite(gradient).all()
    assert Hard()(values)[1][1] == -jnp.inf


def test_nan_does_not_pass_as_a_possible_row():
    for rule in (Soft(), Tempered(2.0), Hard()):
        _, objective = rule(jnp.asarray([[jnp.nan, 0.0], [0.0, 0.0]]))
        assert not jnp.isfinite(objective[0]) and jnp.isfinite(objective[1])


# --- rules inside the fold


@slow
@first("rule", [Hard(), Tempered(2.0), Given], ids=str)
def test_rules_fold_over_chunks_weights_and_devices(rule):
    x, _ = clouds(256)
    weight = jnp.asarray(np.random.default_rng(0).integers(0, 3, 256), float)
    bound = jax.jit(MODEL.bind)(x, weight)
    log_joint = jax.jit(MODEL.log_joint)(START, x)
    rule = Given(jax.jit(Soft())(log_joint)[0]) if rule is Given else rule
    r, objective = rule(log_joint, None)
    want = jax.jit(bound.statistics)(None, x, r * weight[:, None]), jnp.sum(weight * objective)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    far = jax.device_put((x, weight), jax.NamedSharding(mesh, jax.P("rows")))
    plans = {FoldPlan(chunk_size=50): (x, weight), plan_fold(far[0], 30): far}
    if isinstance(rule, Given):  # its responsibilities go where the rows go
        plans |= {FoldPlan(): (x, weight), plan_fold(far[0], None): far}
    for plan, (rows, w) in plans.items():
        found = jax.jit(lambda x, w, plan=plan: Folded(bound, plan).e_step(START, x, w, rule))(rows, w)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, want)


def test_given_responsibilities_on_prepared_rows_of_four_devices():
    x, _ = clouds(256)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    far = jax.device_put(x, jax.NamedSharding(mesh, jax.P("rows")))
    r = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(3), 256))

    def e_step(x, r, plan):
        folded = Folded(MODEL.bind(x, None), plan)
        return folded.e_step(START, folded.hold(START, x, None), None, Given(r))

    found = jax.jit(e_step, static_argnums=2)(far, r, plan_fold(far, None))
    want = jax.jit(e_step, static_argnums=2)(x, r, FoldPlan())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, want)


def test_a_sampled_e_step_draws_its_chunks_apart():
    x = jnp.zeros((120, 2)) + jnp.arange(120)[:, None] % 2
    bank = START.components._replace(mean=jnp.zeros((3, 2)))
    params = START._replace(weights=jnp.full(3, 1 / 3), components=bank)
    e_step = lambda x, key: Folded(MODEL.bind(x, None), FoldPlan(chunk_size=10)).e_step(params, x, None, Sampled(), key)  # noqa: E731
    counts = jax.jit(e_step)(x, jax.random.key(0))[0].count
    assert counts.sum() == 120 and (counts % 12 != 0).any()  # twelve equal chunks would give multiples of 12


# --- labels


def numpy_em(x, allowed, params, weight, n_iter):
    """Maximum likelihood by hand, no floor: log-likelihoods after 0 … n_iter M steps, and the params."""
    pi, mean, cov = (np.asarray(leaf) for leaf in (params.weights, *params.components))

    def e_step():
        gap = x[:, None] - mean[None]
        distance = np.einsum("nki,kij,nkj->nk", gap, np.linalg.inv(cov), gap)
        density = np.log(pi) - 0.5 * (distance + np.linalg.slogdet(cov)[1] + x.shape[1] * np.log(2 * np.pi))
        density = np.where(allowed, density, -np.inf)
        evidence = logsumexp(density, 1)
        return np.exp(density - evidence[:, None]) * weight[:, None], weight @ evidence

    r, log_lik = e_step()
    history = [log_lik]
    for _ in range(n_iter):
        pi, mean = r.sum(0) / r.sum(), r.T @ x / r.sum(0)[:, None]
        gap = x[:, None] - mean[None]
        cov = np.einsum("nk,nki,nkj->kij", r, gap, gap) / r.sum(0)[:, None, None]
        r, log_lik = e_step()
        history.append(log_lik)
    return np.asarray(history), mean, cov


@first(("form", "chunk_size"), [("labels", None), ("mask", 64)])
def test_semi_supervised_fit_is_em_by_hand(form, chunk_size):
    x, state = clouds()
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 3, 300).astype(float)
    if form == "labels":
        known = np.where(rng.uniform(size=300) < 0.3, state, -1)
        allowed = (known[:, None] == np.arange(3)) | (known[:, None] == -1)
    else:  # one wrong state ruled out, in half of the rows
        wrong = (np.asarray(state) + rng.integers(1, 3, 300)) % 3
        known = allowed = (np.arange(3) != wrong[:, None]) | (rng.uniform(size=300) < 0.5)[:, None]
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), n_components=3)
    params = START
    far = jnp.where(weight[:, None] > 0, x, jnp.nan)  # rows of weight zero do not exist
    found = jaxem.fit(
        model, params, labelled(far, known), sample_weight=weight, tol=-1.0, max_iter=15, chunk_size=chunk_size
    )
    history, mean, cov = numpy_em(np.asarray(x), allowed, params, weight, 15)
    np.testing.assert_allclose(found.history, history, rtol=1e-11)
    np.testing.assert_allclose(found.params.components.mean, mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.params.components.covariance, cov, rtol=1e-8, atol=1e-10)


@slow
@pytest.mark.parametrize("n", [5000])
def test_all_labels_known_is_one_m_step_and_none_known_is_no_label(n):
    x, state = clouds(n)
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), n_components=3)
    known = jaxem.fit(model, START, labelled(x, state)).check()
    assert known.n_iter <= 2
    for j in range(3):
        mean = np.asarray(x)[np.asarray(state) == j].mean(0)
        np.testing.assert_allclose(known.params.components.mean[j], mean, rtol=1e-10)
    unknown = jaxem.fit(model, START, labelled(x, jnp.full(n, -1)))
    plain = jaxem.fit(model, START, x)
    np.testing.assert_allclose(unknown.objective, plain.objective, rtol=1e-13)
    assert unknown.n_iter == plain.n_iter


@pytest.mark.slow
@first("driver", ["batch", "groups"])
def test_labels_in_batches_and_groups(driver):
    x, state = clouds(240)
    known = np.where(np.arange(240) % 3 == 0, state, -1)
    ids = np.arange(240) % 2
    options: dict[str, Any] = {"tol": 1e-8, "algorithm": jaxem.EM()}
    pair = [np.stack([np.asarray(leaf)[ids == g] for g in (0, 1)]) for leaf in (x, known)]
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), START)
    alone = [jaxem.fit(MODEL, START, labelled(pair[0][g], pair[1][g]), **options).check() for g in (0, 1)]
    if driver == "batch":
        found = jaxem.fit_batch(MODEL, starts, jax.vmap(labelled)(*pair), **options)
    else:
        found = jaxem.fit_groups(MODEL, jax.random.key(0), labelled(x, known), ids, init=starts, **options)
    for g in (0, 1):
        means = found.params.components.mean[g]
        np.testing.assert_allclose(means, alone[g].params.components.mean, rtol=1e-8, atol=1e-10)


@slow
def test_labels_in_restarts():
    x, state = clouds(240)
    known = np.where(np.arange(240) % 3 == 0, state, -1)
    best = jaxem.fit_restarts(MODEL, jax.random.key(0), labelled(x, known), n_restarts=6, tol=1e-8).check()
    np.testing.assert_allclose(best.params.components.mean, [[0, 0], [4, 0], [1, 3]], atol=0.6)


def test_a_row_that_its_label_makes_impossible_is_nonfinite():
    x, _ = clouds(60)
    beyond = np.full(60, -1)
    beyond[7] = 3  # there are the states 0, 1 and 2
    everyone, absent = np.ones(60), np.arange(60) != 7
    with pytest.raises(ValueError, match="known: expected labels 0 to 2, .* got 3 in row 7"):  # as counted from 1
        jaxem.fit(MODEL, START, labelled(x, beyond), sample_weight=everyone)
    traced = jax.jit(lambda beyond: jaxem.fit(MODEL, START, labelled(x, beyond), sample_weight=everyone))
    assert Status(int(traced(beyond).status)) is Status.NONFINITE  # where labels have no values yet
    assert jaxem.fit(MODEL, START, labelled(x, beyond), sample_weight=absent).converged


@slow
def test_a_label_onto_an_inactive_component_and_one_beyond_in_a_group_are_nonfinite():
    x, _ = clouds(60)
    beyond = np.where(np.arange(60) == 7, 3, -1)
    switched_off = jaxem.Mixture(jaxem.FullNormal(), n_components=3, active=jnp.asarray([True, False, True]))
    onto_it = np.where(beyond == 3, 1, -1)
    start = START._replace(weights=jnp.array([0.5, 0.0, 0.5]))
    assert Status(int(jaxem.fit(switched_off, start, labelled(x, onto_it)).status)) is Status.NONFINITE
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), START)
    groups = jaxem.fit_groups(MODEL, jax.random.key(0), labelled(x, beyond), np.arange(60) // 30, init=starts)
    assert groups.status[0] == Status.NONFINITE and groups.converged[1]


def test_labels_may_be_constants_of_a_jitted_function():
    known, wrong = jnp.asarray([0, -1, 1]), jnp.asarray([0, -2, 1])
    data = jax.jit(lambda x: labelled(x, known))(jnp.zeros((3, 2)))
    np.testing.assert_array_equal(data.allowed, known)
    with pytest.raises(ValueError, match="row 1"):
        jax.jit(lambda x: labelled(x, wrong))(jnp.zeros((3, 2)))


@pytest.mark.slow
def test_gradients_flow_past_labels():
    x, state = clouds(60)
    known = np.where(np.arange(60) % 2 == 0, state, -1)

    def log_lik(x):
        return jnp.sum(Soft()(restrict(MODEL.log_joint(START, x), Labelled(x, jnp.asarray(known))))[1])

    def fitted(x):
        # to the fixed point, as the differences take the params as they are, and the derivative polishes them
        result = jaxem.fit(MODEL, START, labelled(x, known), tol=-1.0, max_iter=300)
        return jnp.sum(result.params.components.mean**2) + result.log_lik / 60

    for fn in (jax.jit(log_lik), jax.jit(fitted)):
        gradient = jax.jit(jax.grad(fn))(x)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
        slope = (fn(x + 1e-5 * direction) - fn(x - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-5)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (np.zeros(5, int), r"expected integer labels \(6,\)"),
        (np.zeros(6), "expected integer labels"),
        (np.ones((6, 3)), "boolean mask"),
        (np.zeros((5, 3), bool), "boolean mask"),
        (np.asarray([0, 1, -1, -2, 0, 0]), "row 3"),
        (np.asarray([[True, False]] * 4 + [[False, False]] * 2), "row 4"),
    ],
)
def test_bad_labels(known, message):
    with pytest.raises(ValueError, match=message):
        labelled(jnp.zeros((6, 2)), known)


def test_bad_combinations():
    x, _ = clouds(60)
    with pytest.raises(ValueError, match="a mask over 3 states"):
        jaxem.fit(MODEL, START, labelled(x, np.ones((60, 2), bool)))

    class OwnEStep:
        def e_step(self, params, data, sample_weight):
            return jnp.sum(data), jnp.sum(data)

        def m_step(self, params, stats):
            return params

    with pytest.raises(ValueError, match="OwnEStep: .*log_joint and statistics"):
        Folded(OwnEStep()).e_step(jnp.zeros(1), x, None, Hard())
    with pytest.raises(ValueError, match="OwnEStep: .*labelled data"):
        Folded(OwnEStep()).e_step(jnp.zeros(1), labelled(x, jnp.full(60, -1)), None)


def test_a_row_that_no_component_explains_has_no_responsibilities_and_no_component():
    """Never (0, 0), nor component 0; NaN data have none either. E steps count 0 for both."""
    params = jaxem.MixtureParams(jnp.array([0.5, 0.5]), jaxem.PoissonParams(jnp.array([[0.0], [0.0]])))
    model, x = jaxem.Mixture(jaxem.Poisson(), 2), jnp.array([[0.0], [3.0], [jnp.nan]])
    np.testing.assert_array_equal(model.responsibilities(params, x), [[0.5, 0.5], [np.nan] * 2, [np.nan] * 2])
    np.testing.assert_array_equal(model.predict(params, x), [0, -1, -1])
    for rule in (Soft(), Hard()):
        responsibilities, objective = rule(model.log_joint(params, x[:2]))
        np.testing.assert_array_equal(responsibilities[1], [0, 0])
        assert objective[1] == -np.inf
    joint = jaxem.LogJoint(_coins, 2)
    np.testing.assert_array_equal(joint.responsibilities(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0]))[1], [np.nan] * 2)
    # a row of weight zero is not looked at, in a fit
    start = params._replace(components=jaxem.PoissonParams(jnp.array([[1.0], [2.0]])))
    result = jaxem.fit(model, start, x, sample_weight=jnp.array([1.0, 1.0, 0.0]), max_iter=2)
    assert not bool(result.failed) and np.isfinite(result.objective)


def _coins(prob, heads):
    return jnp.log(0.5) + jnp.where(heads == 1, jnp.log(prob), jnp.log1p(-prob))
