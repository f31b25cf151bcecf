"""Blocks of a written joint whose M step is in closed form: found, exact, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow

import jaxem
from jaxem import bijections
from jaxem.contracts.status import Status

SIMPLEX, UNIT = bijections.simplex, bijections.unit_interval

# --- annotators and classes (Dawid & Skene 1979)


def dawid_skene(p, row):
    who, label = row
    return jnp.log(p["prior"]) + jnp.sum(jnp.log(jnp.maximum(p["table"], 1e-300))[who, :, label], 0)


ANNOTATORS, CLASSES = 7, 3


def annotations(n=120):
    rng = np.random.default_rng(0)
    truth = rng.integers(CLASSES, size=n)
    table = np.stack([[rng.dirichlet(4 * np.eye(CLASSES)[c] + 0.7) for c in range(CLASSES)] for _ in range(ANNOTATORS)])
    who = np.stack([rng.choice(ANNOTATORS - 1, 3, replace=False) for _ in range(n)])  # the last says nothing
    label = np.array([[rng.choice(CLASSES, p=table[w, truth[i]]) for w in who[i]] for i in range(n)])
    label[(who == 0) & (label == 2)] = 1  # what annotator 0 never says
    return who, label


DATA = annotations()
DIAGONAL = 0.6 * np.eye(CLASSES) + 0.4 / 3
START = {"prior": np.full(CLASSES, 1 / 3), "table": np.broadcast_to(DIAGONAL, (ANNOTATORS, CLASSES, CLASSES))}
MODEL = jaxem.LogJoint(dawid_skene, CLASSES, constraints=SIMPLEX)


def em_by_hand(who, label, weight, n_iter, alpha=1.0):
    """In NumPy; the objective before each step, with the prior (α − 1) Σ log table."""
    prior, table, history = START["prior"].copy(), START["table"].copy(), []
    for i_step in range(n_iter + 1):
        log_joint = np.log(prior) + np.log(np.maximum(table, 1e-300))[who, :, label].sum(1)
        total = np.logaddexp.reduce(log_joint, 1)
        history.append(weight @ total + (alpha - 1) * np.log(np.maximum(table, 1e-300)).sum())
        if i_step == n_iter:
            break
        r = np.exp(log_joint - total[:, None]) * weight[:, None]
        prior, counts = r.sum(0) / r.sum(), np.full(table.shape, alpha - 1)
        for i, j in np.ndindex(who.shape):
            counts[who[i, j], :, label[i, j]] += r[i]
        seen = counts.sum(-1, keepdims=True)
        table = np.where(seen > 0, counts / np.where(seen > 0, seen, 1), table)
    return np.array(history), prior, table


@pytest.mark.parametrize("options", [{}, {"chunk_size": 50}])
def test_annotators_and_classes_go_as_em_by_hand_does(options):
    weight = np.random.default_rng(1).uniform(0.5, 2, len(DATA[0]))
    result = jaxem.fit(MODEL, START, DATA, sample_weight=weight, tol=-1.0, max_iter=20, **options)
    history, _, table = em_by_hand(*DATA, weight, 20)
    assert result.n_iter == 20
    np.testing.assert_allclose(result.history, history, rtol=1e-12)
    np.testing.assert_allclose(result.params["table"], table, atol=1e-11)
    assert (np.asarray(result.params["table"])[0, :, 2] == 0).all()  # never said
    np.testing.assert_array_equal(result.params["table"][-1], START["table"][-1])  # says nothing: as it was


def flat_prior(alpha, p):
    return (alpha - 1) * jnp.sum(jnp.log(jnp.maximum(p["table"], 1e-300)))


def with_prior(alpha):
    prior = jax.tree_util.Partial(flat_prior, jnp.asarray(alpha))
    return jaxem.LogJoint(dawid_skene, CLASSES, constraints=SIMPLEX, log_prior=prior)


def test_a_dirichlet_prior_is_in_the_closed_form():
    result = jaxem.fit(with_prior(1.5), START, DATA, tol=-1.0, max_iter=20)
    history, *_ = em_by_hand(*DATA, np.ones(len(DATA[0])), 20, 1.5)
    np.testing.assert_allclose(result.history, history, rtol=1e-12)
    assert "log_prior" not in with_prior(1.5).explain(START, DATA)


def test_counts_below_zero_have_no_maximum():
    assert jaxem.fit(with_prior(0.1), START, DATA).status == Status.NONFINITE


def test_labels_and_lanes():
    known = np.where(np.arange(len(DATA[0])) < 9, 0, -1)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), START)
    rows = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), DATA)
    many = jaxem.fit_batch(MODEL, starts, rows)
    alone = jaxem.fit(MODEL, START, DATA)
    np.testing.assert_allclose(many.objective, alone.objective, rtol=1e-12)
    labelled = jaxem.fit(MODEL, START, jaxem.labelled(DATA, known)).check()
    assert labelled.params["prior"][0] > alone.params["prior"][0]


@slow
def test_the_derivative_of_a_closed_fit_against_differences():
    """Of weights and of a prior, with entries at zero and rows that are never seen."""
    weight = jnp.asarray(np.random.default_rng(2).uniform(0.5, 2, len(DATA[0])))
    options = {"tol": -1.0, "max_iter": 1500}

    def loss(weight, model):
        params = jaxem.fit(model, START, DATA, sample_weight=weight, **options).params
        return params["prior"][0] + jnp.sum(jnp.cos(jnp.arange(9.0)).reshape(3, 3) * params["table"][2])

    slope = jax.grad(loss)(weight, MODEL)
    for i in range(3):
        step = [loss(weight.at[i].add(e), MODEL) for e in (-1e-4, 1e-4)]
        np.testing.assert_allclose(slope[i], (step[1] - step[0]) / 2e-4, rtol=1e-6, atol=1e-8)
    of_alpha = lambda alpha: loss(weight, with_prior(alpha))  # noqa: E731
    step = [of_alpha(1.5 + e) for e in (-1e-4, 1e-4)]
    np.testing.assert_allclose(jax.grad(of_alpha)(1.5), (step[1] - step[0]) / 2e-4, rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda w: jaxem.fit(MODEL, START, DATA, sample_weight=w).log_lik)(weight)).all()


@slow
def test_the_rate_is_that_of_the_closed_map():
    fitted = jaxem.fit(with_prior(1.5), START, DATA, tol=-1.0, max_iter=500)
    history = np.asarray(jaxem.fit(with_prior(1.5), START, DATA, tol=-1.0, max_iter=40).history)
    seen = (fitted.objective - history[39]) / (fitted.objective - history[38])  # by the square of the rate
    np.testing.assert_allclose(jaxem.em_rate(with_prior(1.5), fitted.params, DATA) ** 2, seen, rtol=1e-2)


# --- what is closed beside what climbs


def two_kinds(p, x):  # the weights of two normals, of which the means climb
    return jnp.log(p["weights"]) - 0.5 * jnp.square(x - p["mean"])


MEANS = {"weights": jnp.array([0.5, 0.5]), "mean": jnp.array([-1.0, 1.0])}
X = np.r_[np.random.default_rng(3).normal(-2, 1, 30), np.random.default_rng(4).normal(1.5, 1, 60)]


def test_closed_blocks_beside_climbing_ones():
    model = jaxem.LogJoint(two_kinds, 2, {"weights": SIMPLEX, "mean": None}, m_step=jaxem.Full())
    lines = model.explain(MEANS, X).splitlines()
    assert lines[0].startswith("['mean']: climbs") and lines[1].startswith("['weights']: closed")
    result = jaxem.fit(model, MEANS, X, tol=-1.0, max_iter=8)
    weights, mean = np.array([0.5, 0.5]), np.array([-1.0, 1.0])
    for _ in range(8):  # the two do not interact: both at once is the M step
        joint = weights * np.exp(-0.5 * (X[:, None] - mean) ** 2)
        r = joint / joint.sum(1, keepdims=True)
        weights, mean = r.mean(0), X @ r / r.sum(0)
    np.testing.assert_allclose(result.params["weights"], weights, atol=1e-8)
    np.testing.assert_allclose(result.params["mean"], mean, atol=1e-6)


@slow
def test_the_derivative_of_a_fit_with_closed_and_climbing_blocks():
    model = jaxem.LogJoint(two_kinds, 2, {"weights": SIMPLEX, "mean": None})
    loss = lambda x: jaxem.fit(model, MEANS, x, tol=1e-15, max_iter=2000).params  # noqa: E731
    closed = lambda x: jaxem.newton_correction(model, loss(x), x)["weights"][0]  # noqa: E731
    slope = jax.grad(lambda x: loss(x)["weights"][0])(jnp.asarray(X))
    for i in (0, 50):
        step = [closed(jnp.asarray(X).at[i].add(e)) for e in (-1e-4, 1e-4)]
        np.testing.assert_allclose(slope[i], (step[1] - step[0]) / 2e-4, rtol=1e-6)


# --- joints made to mislead


def dina(p, answers):  # two skills, three items: two need one, one needs both (Junker & Sijtsma 2001)
    able = jnp.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
    right = jnp.where(able > 0, 1 - p["errors"][:, 1:2], p["errors"][:, :1])  # the errors: guess, slip, neither
    return jnp.log(p["classes"]) + jnp.sum(jnp.where(answers[:, None] > 0, jnp.log(right), jnp.log1p(-right)), 0)


def cure(p, row):  # the cured never end; lifetimes that ended or not; shares tilted by a covariate
    time, ended, x = row
    odds = jnp.log(p["cured"]) + jnp.stack([x, 0.0]) * p["slope"]
    log_share = odds - jax.nn.logsumexp(odds)
    return log_share + jnp.stack([jnp.where(ended > 0, -jnp.inf, 0.0), ended * jnp.log(p["rate"]) - p["rate"] * time])


def leaky(p, x):  # the same logarithms, and a little of the share itself
    return jnp.log(p["weights"]) + 1e-3 * p["weights"] - 0.5 * jnp.square(x - p["mean"])


def masked(p, x):  # below 0.3 its square root: closed where it starts, and not beyond
    log_weights = jnp.where(p["weights"] > 0.3, jnp.log(p["weights"]), 0.5 * jnp.log(0.3 * p["weights"]))
    return log_weights - 0.5 * jnp.square(x - p["mean"])


def answers(n=150):
    rng = np.random.default_rng(5)
    able = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])[:, rng.integers(4, size=n)].T
    return (rng.uniform(size=(n, 3)) < np.where(able, 0.85, 0.2)).astype(float)


def lifetimes(n=150):
    rng = np.random.default_rng(6)
    x = rng.normal(size=n)
    time = np.where(rng.uniform(size=n) < 1 / (1 + np.exp(-x)), np.inf, rng.exponential(1.0, n))
    return np.minimum(time, 3.0), (time < 3.0) * 1.0, x


MISLEADING = {
    "dina": (
        dina, 4, {"classes": SIMPLEX, "errors": SIMPLEX},
        {"classes": np.full(4, 0.25), "errors": np.tile([0.2, 0.15, 0.65], (3, 1))}, answers(), "errors",
    ),
    "cure": (
        cure, 2, {"cured": SIMPLEX, "rate": bijections.positive, "slope": None},
        {"cured": np.array([0.5, 0.5]), "rate": np.array(0.7), "slope": np.array(0.1)}, lifetimes(), "cured",
    ),
    "leaky": (leaky, 2, {"weights": SIMPLEX, "mean": None}, MEANS, X, "weights"),
    "masked": (masked, 2, {"weights": SIMPLEX, "mean": None}, MEANS, X, "weights"),
}  # fmt: skip


@pytest.mark.parametrize(("fn", "k", "constraints", "start", "data", "name"), MISLEADING.values(), ids=MISLEADING)
def test_a_block_that_only_looks_closed_climbs(fn, k, constraints, start, data, name):
    model = jaxem.LogJoint(fn, k, constraints)
    line = next(line for line in model.explain(start, data).splitlines() if line.startswith(f"['{name}']"))
    assert "climbs: no sum of its logarithms in log_joint" in line
    result = jaxem.fit(model, start, data, tol=1e-10, max_iter=300)
    history = np.asarray(result.history)
    history = history[np.isfinite(history)]
    assert (np.diff(history) >= -1e-12 * abs(history[0])).all() and result.status <= Status.MAX_ITER
    # no direction of the free coordinates leads higher
    slope = jax.grad(lambda free: jnp.sum(model.log_prob(model.constrain(free), data)))(
        model.unconstrain(result.params)
    )
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(slope)) < 1e-2


# --- against published answers

GENOTYPES = np.array([[0, 0], [0, 2], [1, 1], [1, 2], [0, 1], [2, 2]])  # of the alleles A, B, O


def abo(p, phenotype):  # A, B, AB, O: what alleles show
    log_p = jnp.log(p)
    twice = jnp.where(GENOTYPES[:, 0] == GENOTYPES[:, 1], 0.0, jnp.log(2.0))
    shows = jnp.array([0, 0, 1, 1, 2, 3]) == phenotype
    return jnp.where(shows, log_p[GENOTYPES[:, 0]] + log_p[GENOTYPES[:, 1]] + twice, -jnp.inf)


def test_gene_counting_has_the_published_frequencies():
    """Rao (1973): 0.2136, 0.0501, 0.7363."""
    model, counts = jaxem.LogJoint(abo, 6, SIMPLEX), np.array([186.0, 38.0, 13.0, 284.0])
    result = jaxem.fit(model, np.full(3, 1 / 3), np.arange(4), sample_weight=counts, tol=1e-12).check()
    np.testing.assert_allclose(result.params, [0.21359094, 0.05014533, 0.73626373], atol=1e-6)
    assert abs(float(result.log_lik) + 511.57146972) < 1e-6


# --- items that do not touch each other


def item_response(p, answers, z):
    logits = p["slope"] * z + p["intercept"]
    return jnp.sum(answers * logits - jax.nn.softplus(logits)) + 0.0 * p.get("all", 0.0)


def exam(items, n=300):
    rng = np.random.default_rng(7)
    slope, intercept, z = rng.lognormal(0, 0.3, items), rng.normal(size=items), rng.normal(size=(n, 1))
    return (rng.uniform(size=(n, items)) < 1 / (1 + np.exp(-slope * z - intercept))).astype(float)


ITEM = {"slope": bijections.positive, "intercept": None}


def test_items_of_a_test_climb_each_by_itself():
    """Above 64 coordinates too; what touches all items takes that away."""
    answers, start = exam(40), {"slope": jnp.ones(40), "intercept": jnp.zeros(40)}
    model = jaxem.LogJoint.quadrature(item_response, 15, constraints=ITEM)
    assert model.items_of(start, answers, (False, False)) == 40
    result = jaxem.fit(model, start, answers, tol=1e-7).check()
    slope = jax.grad(lambda free: jnp.sum(model.log_prob(model.constrain(free), answers)))(
        model.unconstrain(result.params)
    )
    assert max(float(jnp.abs(leaf).max()) for leaf in slope.values()) < 0.1
    with_all = jaxem.LogJoint.quadrature(item_response, 15, constraints={**ITEM, "all": None})
    assert with_all.items_of({**start, "all": jnp.array(0.0)}, answers, (False, False, False)) == 1


# --- joints that are affine in the data


def answered(p, answers):  # a latent class answers each item right or wrong
    right = p["right"][:, :, 0]
    return jnp.log(p["class"]) + jnp.log(right) @ answers + jnp.log1p(-right) @ (1 - answers)


@pytest.mark.parametrize("dtype", [float, int])
def test_a_joint_that_is_affine_in_the_rows_needs_one_mean_row_a_state(dtype):
    """The same Q, with weights, rows of no weight and a state that no row is in; whole numbers too."""
    rng = np.random.default_rng(8)
    data = rng.integers(0, 2, (50, 4)).astype(dtype)
    r = rng.dirichlet(np.ones(3), 50) * np.where(np.arange(50) < 5, 0, rng.uniform(size=50))[:, None]
    r[:, 2] = 0
    model = jaxem.LogJoint(answered, 3, {"class": SIMPLEX, "right": UNIT})
    start = {"class": jnp.full(3, 1 / 3), "right": jnp.asarray(rng.uniform(0.2, 0.8, (3, 4, 1)))}
    rows = jaxem.Rows(jnp.asarray(data), jnp.asarray(r))
    few = model.condensed(start, rows)
    assert few.responsibilities.shape == (3, 3) and few.data.shape == (3, 4)
    q = lambda rows: lambda params: jnp.sum(rows.expectation(lambda x: model.log_joint(params, x)))  # noqa: E731
    np.testing.assert_allclose(q(few)(start), q(rows)(start), rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12),
        jax.grad(q(few))(start),
        jax.grad(q(rows))(start),
    )
    normal = jaxem.LogJoint(two_kinds, 2, {"weights": SIMPLEX, "mean": None})
    same = jaxem.Rows(jnp.asarray(X), jnp.ones((len(X), 2)))
    assert normal.condensed(MEANS, same) is same
    labels = jaxem.Rows(DATA, jnp.ones((len(DATA[0]), CLASSES)))
    assert MODEL.condensed(START, labels) is labels
