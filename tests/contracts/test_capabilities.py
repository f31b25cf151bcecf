"""What users' own classes lack is named with what there is to write, and what they misspell is not ignored."""

import ast
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same, made, once_a_week, slow

import jaxem
from jaxem.contracts.names import _REQUIRED, OPTIONAL

KEY = jax.random.key(0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HalfNormal:
    """The methods that a family must have, and no other; its bank are the variances (k,)."""

    additive = True

    def log_prob(self, bank, x):
        return -(jnp.log(jnp.pi / 2 * bank)[None] + jnp.square(x) / bank[None]) / 2

    def statistics(self, bank, x, responsibilities):
        return jnp.sum(responsibilities, 0), jnp.sum(responsibilities * jnp.square(x), 0)

    def estimate(self, bank, stats, active=None):
        return stats[1] / stats[0]

    def component_axes(self):
        return 0


ONE, TWO = (jaxem.Mixture(HalfNormal(), k) for k in (1, 2))  # type: ignore[arg-type]
X = np.abs(np.r_[np.random.default_rng(0).normal(size=60), 10 * np.random.default_rng(1).normal(size=60)])[:, None]
START = made(jaxem.MixtureParams, np.array([0.5, 0.5]), np.array([1.0, 100.0]))
ANSWERS: dict[str, Any] = {
    "squarem": lambda: jaxem.fit(TWO, START, X, algorithm=jaxem.SQUAREM()).check(),
    "diagnose": lambda: jaxem.diagnose(TWO, START),
    "bootstrap": lambda: jaxem.bootstrap(TWO, START, X, KEY, n_replicates=8),
}
ASKS_FOR: dict[str, tuple[str, Any]] = {
    "newton": ("unconstrain", lambda: jaxem.fit(TWO, START, X, algorithm=jaxem.NewtonCG())),
    "bic": ("n_parameters", lambda: TWO.bic(START, X)),
    "n_parameters": ("n_parameters", lambda: TWO.n_parameters(START)),
    "select": ("n_parameters", lambda: jaxem.select([ONE, TWO], KEY, X)),
    "standard errors": ("unconstrain", lambda: jaxem.standard_errors(TWO, START, X)),
    "sample": ("sample", lambda: TWO.sample(START, KEY, 5)),
    "likelihood ratio": ("sample", lambda: jaxem.likelihood_ratio_test(ONE, TWO, KEY, X, n_replicates=9)),
}


@pytest.mark.parametrize("call", ANSWERS.values(), ids=ANSWERS)
def test_a_family_of_four_methods_gets_an_answer(call):
    call()


@pytest.mark.parametrize(("name", "call"), ASKS_FOR.values(), ids=ASKS_FOR)
def test_what_a_family_lacks_is_named_with_its_class(name, call):
    with pytest.raises(ValueError, match=f"HalfNormal.*{name}|{name}.*HalfNormal"):
        call()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coins:
    """Two coins, with a prior whose name is misspelt."""

    def log_joint(self, p, heads):
        heads, p = heads[:, None], p[None]
        return jnp.log(0.5) + heads * jnp.log(p) + (10 - heads) * jnp.log(1 - p)

    def statistics(self, p, heads, responsibilities):
        return jnp.sum(responsibilities, 0), jnp.sum(responsibilities * heads[:, None], 0)

    def m_step(self, p, stats):
        return (stats[1] + 1) / (10 * stats[0] + 2)

    def logprior(self, p):
        return jnp.sum(jnp.log(p) + jnp.log(1 - p))

    def label_of(self, p):  # which resembles nothing
        return p


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Misspelt(HalfNormal):
    """A family within a mixture."""

    def unconstrained(self, bank):
        return jnp.log(bank)


def test_a_misspelt_name_is_refused_in_models_and_inside_of_them():
    heads = jnp.array([5, 9, 8, 4, 7])
    with pytest.raises(ValueError, match="Coins has logprior, .* not log_prior, which it resembles"):
        jaxem.fit(Coins(), jnp.array([0.6, 0.5]), heads)
    for family in (Misspelt(), jaxem.Product(a=Misspelt(), b=jaxem.Poisson())):  # type: ignore[arg-type]
        model = jaxem.Mixture(family, 2)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Misspelt has unconstrained, .* not unconstrain"):
            jaxem.fit_restarts(model, KEY, X)


ASKING = {"offers", "told", "needed", "_if_offered", "_or_itself"}
OF_ALGORITHMS = {"by_rows", "final", "for_lane", "refused", "tol"}
NOT_OF_MODELS = {"model", "e_step_and_size"}  # Frozen's own field; what only Folded has
FOR_PEOPLE = {"cli", "plots", "sklearn"}


def _calls(*functions: str) -> list[tuple[Path, str, str, int]]:
    """Where these functions are called with a name, by what, with which, and with how many arguments."""
    found = []
    for path in (Path(jaxem.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=by) | ast.Attribute(attr=by), args=[_, ast.Constant(value=name), *_]):
                    if by in functions:
                        found.append((path, by, name, len(node.args)))
    return found


def test_every_ability_that_is_asked_for_stands_in_the_list():
    asked = {name for _, _, name, _ in _calls(*ASKING)}
    assert len(asked) > 60
    assert asked - OF_ALGORITHMS - NOT_OF_MODELS <= {*OPTIONAL, *_REQUIRED}


def test_nobody_looks_for_an_ability_by_himself():
    for path, by, name, n in _calls("hasattr", "getattr"):
        alone = by == "hasattr" or n == 3
        if alone and path.name != "capabilities.py" and not FOR_PEOPLE & set(path.parts):
            assert name not in {*OPTIONAL, *_REQUIRED}, f"{path}: ask capabilities for {name}"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Faulty(HalfNormal):
    """A fault inside of a property of a name that is looked for."""

    @property
    def closed_m_step(self):
        return self.is_closed  # type: ignore[attr-defined]


def test_a_fault_inside_of_a_property_is_no_missing_ability():
    plain = jaxem.Mixture(Faulty(), 2)  # type: ignore[arg-type]
    for model in (plain, jaxem.Frozen(plain, made(jaxem.MixtureParams, True, False))):
        with pytest.raises(AttributeError, match="is_closed"):
            jaxem.fit(model, START, X)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spaced(HalfNormal):
    """The methods that a family must have, and where its params live."""

    space = jaxem.bijections.positive

    def expected_log_prob(self, bank, stats):
        return -jnp.sum(stats[0] * jnp.log(jnp.pi / 2 * bank) + stats[1] / bank) / 2


def test_one_line_on_the_space_is_all_that_follows_from_it():
    model = jaxem.Mixture(Spaced(), 2)  # type: ignore[arg-type]
    plain = jaxem.fit(model, START, X, tol=1e-12).check()
    newton = jaxem.fit(model, START, X, algorithm=jaxem.NewtonCG(), tol=1e-12).check()
    np.testing.assert_allclose(newton.params.components, plain.params.components, rtol=1e-5)  # √tol and a bit
    p = 2 * 2 - 1
    bic = float(plain.model.bic(plain.params, X))
    np.testing.assert_allclose(bic, -2 * plain.log_lik + p * np.log(len(X)), rtol=1e-12)
    one = jaxem.Mixture(Spaced(), 1)  # type: ignore[arg-type]
    start = np.mean(np.square(X))  # of one component the variance is the mean square, and its error √(2/n) of that
    fitted = jaxem.fit(one, made(jaxem.MixtureParams, np.ones(1), np.array([start])), X).check()
    errors = jaxem.standard_errors(fitted.model, fitted.params, X)
    np.testing.assert_allclose(errors.standard_errors.components, start * np.sqrt(2 / len(X)), rtol=1e-6)
    assert jaxem.select([one, model], KEY, X).table["n_parameters"] == [1, 3]


ALGORITHMS = [jaxem.EM(), jaxem.SQUAREM(), jaxem.Anderson(), jaxem.ParabolicEM(), jaxem.NewtonCG()]
RULES = [jaxem.Aitken(1e-8), jaxem.Objective(1e-8), jaxem.ParameterChange(1e-5), jaxem.Residual(1e-5)]
COUNTS = np.random.default_rng(0).poisson([[2.0], [6.0]], (2, 60)).reshape(-1, 1)
MODELS = {
    "counts": (jaxem.Mixture(jaxem.Poisson(), 2), COUNTS,
               made(jaxem.PoissonParams, np.array([[1.0], [5.0]]))),
    "normal": (jaxem.Mixture(jaxem.FullNormal(), 2), np.random.default_rng(1).normal(size=(80, 2)) ** 3,
               made(jaxem.NormalParams, np.array([[-1.0, 0.0], [1.0, 0.0]]), np.stack([np.eye(2)] * 2))),
}  # fmt: skip
# every rule with EM, and every algorithm with one of the rules, on both models
CASES = [
    pytest.param(name, algorithm, rule, marks=() if (m, a, r) in ((0, 0, 0), (0, 1, 1)) else once_a_week)
    for (m, name), (a, algorithm), (r, rule) in itertools.product(
        enumerate(MODELS), enumerate(ALGORITHMS), enumerate(RULES)
    )
    if a == 0 or r == (a + m) % len(RULES)
]


@pytest.mark.parametrize(("name", "algorithm", "rule"), CASES)
def test_frozen_with_nothing_held_is_the_model(name, algorithm, rule):
    model, x, bank = MODELS[name]
    start = made(jaxem.MixtureParams, np.array([0.3, 0.7]), bank)
    nothing = jaxem.Frozen(model, jax.tree.map(lambda leaf: False, start))
    plain, frozen = (jaxem.fit(m, start, x, algorithm=algorithm, stop=rule, max_iter=200) for m in (model, nothing))
    assert (int(plain.n_iter), int(plain.n_evals)) == (int(frozen.n_iter), int(frozen.n_evals))
    assert int(plain.status) == int(frozen.status)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), plain.params, frozen.params)


@slow
def test_a_frozen_mixture_with_a_gate_is_diagnosed():
    z = np.linspace(-1, 1, len(COUNTS))[:, None]
    model, data = jaxem.Mixture(jaxem.Poisson(), 2, gate=jaxem.SoftmaxGate()), jaxem.gated(COUNTS, z)
    params = model.init(KEY, data)
    held = jaxem.MixtureParams(False, jaxem.PoissonParams(np.array([True, False])))  # type: ignore[arg-type]
    result = jaxem.fit(jaxem.Frozen(model, held), params, data)
    assert_same(jaxem.diagnose(result.model, result.params), jaxem.diagnose(model, result.params))
