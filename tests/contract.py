"""The registry: every public model and algorithm, how to build it, its data and a start.

A model or algorithm is added here, by name, and inherits every property of `test_contract.py`. `build` makes a fresh
object at every call, so that nothing can be right only because two tests share an object. Data are small, and chosen
so that EM contracts by 0.9 or less per iteration (measured): 300 iterations then reach the fixed point to rounding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

N = 32  # divisible by the four devices of conftest, and by no chunk size of the tests
K = 3
CENTRES = {2: np.array([[0.0, 0.0], [3.0, 1.0], [0.5, 4.0]]), 1: np.array([[0.0], [4.0], [9.0]])}
COLUMN_SCALE = np.array([1.0, 5.0])


@dataclass(frozen=True, eq=False)
class ModelEntry:
    """One public model.

    Attributes:
        name: of the entry; unique.
        build: a new model, its hyper-parameters not bound to any data.
        data: as the model takes it, float64.
        start: new start params, float64.
        moved: (model, params, data, scale, shift) -> the same three in other units, column by column; None if the
            model has no such symmetry.
        one_scale: the symmetry holds for a scale that all columns share.
        variant: the same class as an entry before it, with other hyper-parameters: what does not depend on those is
            tested with the slow tests.
        slow: everything about it is tested with the slow tests.
        reference: (model, params) -> a fitted scikit-learn mixture with these params, or None.
        moments: params -> mean (d,) and covariance (d, d) of an observation, or None.
        component_means: params -> (k, d), where there are moments.
        discrete: data in the support stay there only as they are: they are not moved a little.
        augmented: Q is of more than rows and states, such as the precision of a row.
        unreadable: a number that no data may hold; not NaN where that marks what is missing.
    """

    name: str
    build: Callable[[], Any]
    data: Any
    start: Callable[[], Any]
    moved: Callable[[Any, Any, Any, np.ndarray, np.ndarray], tuple[Any, Any, Any]] | None = None
    one_scale: bool = False
    variant: bool = False
    slow: bool = False
    reference: Callable[[Any, Any], Any] | None = None
    moments: Callable[[Any], tuple[np.ndarray, np.ndarray]] | None = None
    component_means: Callable[[Any], np.ndarray] = lambda params: np.asarray(params.components.mean)
    discrete: bool = False
    augmented: bool = False
    unreadable: float = np.nan


@dataclass(frozen=True, eq=False)
class AlgorithmEntry:
    """One public algorithm.

    Attributes:
        name: of the entry; unique.
        build: a new algorithm.
        changed: another one with new values of its leaves; None multiplies all leaves by a number.
        needs_states: whether it needs the responsibilities of a model with finitely many states.
        exempt: names of properties (tests) that it does not have → why.
    """

    name: str
    build: Callable[[], Any]
    changed: Callable[[], Any] | None = None
    needs_states: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)

    def takes(self, model: ModelEntry) -> bool:
        """Whether it can fit this model."""
        return not self.needs_states or hasattr(model.build(), "log_joint")


@dataclass(frozen=True, eq=False)
class Case:
    """A model fitted by an algorithm.

    Attributes:
        model: its entry.
        algorithm: its entry.
        slow: only with the slow tests.
        crossed: a pair that is tested on nothing but the objective.
    """

    model: ModelEntry
    algorithm: AlgorithmEntry
    slow: bool = False
    crossed: bool = False

    @property
    def name(self) -> str:
        return f"{self.model.name}-{self.algorithm.name}"


# --- normal mixtures


def _clusters(d: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (CENTRES[d][np.arange(N) % K] + rng.normal(size=(N, d))) * COLUMN_SCALE[:d]


_X = {d: _clusters(d) for d in CENTRES}
_SKLEARN_NAME = {
    jaxem.FullNormal: "full",
    jaxem.DiagonalNormal: "diag",
    jaxem.SphericalNormal: "spherical",
    jaxem.TiedNormal: "tied",
}


def _scale_of(family: type, variance: np.ndarray) -> np.ndarray:
    """Column variances (d,) in the form of one covariance of the family: (d, d), (d,) or ()."""
    if family is jaxem.SphericalNormal:
        return np.asarray(variance.mean())
    return variance.copy() if family is jaxem.DiagonalNormal else np.diag(variance)


def _start(family: type, d: int, active: list[bool] | None) -> Callable[[], Any]:
    def start() -> jaxem.MixtureParams:
        weights = np.array([0.3, 0.3, 0.4]) * (1 if active is None else np.array(active))
        mean: Any = CENTRES[d] * COLUMN_SCALE[:d] + np.array([0.5, -1.0])[:d]
        one = _scale_of(family, _X[d].var(0) / 4)
        covariance: Any = one if family is jaxem.TiedNormal else np.stack([one] * K)
        return jaxem.MixtureParams(weights / weights.sum(), jaxem.NormalParams(mean, covariance))

    return start


def _prior(family: type, d: int) -> jaxem.NormalInverseWishart:
    return jaxem.NormalInverseWishart(
        mean=_X[d].mean(0) + 0.25,
        shrinkage=np.asarray(0.3),
        dof=np.asarray(d + 2.5),
        scale=_scale_of(family, _X[d].var(0) / 3),
    )


def _build(family: type, d: int, regularised: bool, active: list[bool] | None) -> Callable[[], Any]:
    def build() -> jaxem.Mixture:
        if not regularised:
            return jaxem.Mixture(family(), K, active=None if active is None else np.array(active))
        return jaxem.Mixture(
            family(floor=0.01, prior=_prior(family, d)),
            K,
            concentration=np.array([1.5, 2.0, 3.0]),
            active=None if active is None else np.array(active),
        )

    return build


def _moved(model: Any, params: Any, data: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[Any, Any, Any]:
    family = type(model.family)

    def square(covariance: Any) -> Any:
        if family is jaxem.SphericalNormal:
            return covariance * scale[0] ** 2
        return covariance * (scale**2 if family is jaxem.DiagonalNormal else np.outer(scale, scale))

    params = jax.tree.map(np.asarray, params)
    mean, covariance = params.components
    bank = params.components._replace(mean=mean * scale + shift, covariance=square(covariance))
    params = params._replace(components=bank)
    prior = model.family.prior
    if prior is not None:
        prior = replace(prior, mean=prior.mean * scale + shift, scale=square(prior.scale))
        model = replace(model, family=replace(model.family, prior=prior))
    return model, params, data * scale + shift


def _sklearn(model: Any, params: Any) -> Any:
    """scikit-learn's mixture of the active components, with these params."""
    from sklearn.mixture import GaussianMixture
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

    kind = _SKLEARN_NAME[type(model.family)]
    on = np.ones(K, bool) if model.active is None else np.asarray(model.active)
    other = GaussianMixture(int(on.sum()), covariance_type=kind)
    covariance = np.asarray(params.components.covariance)
    other.weights_ = np.asarray(params.weights)[on]
    other.means_ = np.asarray(params.components.mean)[on]
    other.covariances_ = covariance if kind == "tied" else covariance[on]
    other.precisions_cholesky_ = _compute_precision_cholesky(other.covariances_, kind)
    return other


def _moments(params: Any) -> tuple[np.ndarray, np.ndarray]:
    weights, (mean, covariance) = jax.tree.map(np.asarray, params)
    d = mean.shape[1]
    if covariance.shape == (K,):
        covariance = covariance[:, None] * np.ones(d)
    if covariance.shape == (K, d):
        covariance = covariance[:, :, None] * np.eye(d)
    overall = weights @ mean
    centred = mean - overall
    within = np.einsum("k,kij->ij", weights, np.broadcast_to(covariance, (K, d, d)))
    return overall, within + np.einsum("k,ki,kj->ij", weights, centred, centred)


def _normal_mixture(
    name: str,
    family: type,
    *,
    d: int = 2,
    regularised: bool = False,
    active: list[bool] | None = None,
    slow: bool = False,
) -> ModelEntry:
    return ModelEntry(
        name=name,
        build=_build(family, d, regularised, active),
        data=_X[d].copy(),
        start=_start(family, d, active),
        moved=_moved,
        one_scale=family is jaxem.SphericalNormal,
        variant=regularised or active is not None or d != 2,
        slow=slow,
        reference=_sklearn,
        moments=_moments,
    )


# --- families of independent columns


def made(kind: Any, *leaves: Any) -> Any:
    """Params of NumPy arrays."""
    return kind(*leaves)


def _mixed(params: Any, means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments of a mixture of components with independent columns."""
    weights = np.asarray(params.weights)
    overall = weights @ means
    between = np.einsum("k,ki,kj->ij", weights, means - overall, means - overall)
    return overall, np.diag(weights @ variances) + between


def _draw(seed: int, draw: Callable[[np.random.Generator, np.ndarray], np.ndarray]) -> np.ndarray:
    """Rows of states 0, 1, 2, 0, …, by (generator, states (N,))."""
    return draw(np.random.default_rng(seed), np.arange(N) % K).astype(float)


_RATES = np.array([[0.5, 6.0], [9.0, 2.0], [16.0, 20.0]])
_COUNTS = _draw(5, lambda rng, z: rng.poisson(_RATES[z]))
_WEIGHTS = np.array([0.3, 0.3, 0.4])


_ONES = np.array([[0.9, 0.8, 0.15, 0.1, 0.85], [0.1, 0.2, 0.9, 0.85, 0.75], [0.15, 0.9, 0.8, 0.1, 0.1]])
_BITS = _draw(6, lambda rng, z: rng.random((N, 5)) < _ONES[z])
_SHARES = np.array([[0.65, 0.22, 0.13], [0.13, 0.22, 0.65], [0.15, 0.7, 0.15]])
_CODES = _draw(7, lambda rng, z: np.stack([[rng.choice(3, p=_SHARES[j]) for j in z] for _ in range(6)], 1))
_CELLS = _draw(3, lambda rng, z: np.stack([rng.multinomial(7 + i % 3, _SHARES[j]) for i, j in enumerate(z)]))


def _with_gaps(data: np.ndarray) -> np.ndarray:
    """Every ninth entry missing, and one row."""
    data = data.copy()
    data.ravel()[4::9] = np.nan
    data[11] = np.nan
    return data


def _family_mixture(
    name: str,
    family: Callable[[], Any],
    data: np.ndarray,
    start: Callable[[], Any],
    means: Callable[[Any], np.ndarray] | None = None,
    variances: Callable[[np.ndarray], np.ndarray] | None = None,
    concentration: float | None = None,
    **other: Any,
) -> ModelEntry:
    """A mixture of K components of independent columns, with their means, and variances as a function of these."""
    options: dict[str, Any] = dict(other)
    if means is not None and variances is not None:
        options["moments"] = lambda params: _mixed(params, means(params), variances(means(params)))
        options["component_means"] = means
    return ModelEntry(
        name=name,
        build=lambda: jaxem.Mixture(family(), K, concentration=concentration),
        data=data.copy(),
        start=lambda: made(jaxem.MixtureParams, _WEIGHTS.copy(), start()),
        **({"discrete": True, "unreadable": np.inf if np.isnan(data).any() else np.nan} | options),
    )


def _poisson(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.PoissonParams, _RATES * 1.2 + 0.3)  # noqa: E731
    rates = lambda params: np.asarray(params.components.rate)  # noqa: E731
    return _family_mixture(name, family, options.pop("data", _COUNTS), start, rates, lambda rate: rate, **options)


def _bernoulli(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.BernoulliParams, 0.5 + 0.6 * (_ONES - 0.5))  # noqa: E731
    ones = lambda params: np.asarray(params.components.prob)  # noqa: E731
    return _family_mixture(name, family, options.pop("data", _BITS), start, ones, lambda p: p * (1 - p), **options)


def _categorical(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    codes = np.arange(3.0)
    start = lambda: made(jaxem.CategoricalParams, np.stack([_SHARES * 0.7 + 0.1] * 6, 1))  # noqa: E731

    def means(params: Any) -> np.ndarray:
        return np.asarray(params.components.prob) @ codes

    entry = _family_mixture(name, family, options.pop("data", _CODES), start, **options)
    squares = lambda params: np.asarray(params.components.prob) @ codes**2  # noqa: E731
    moments = lambda params: _mixed(params, means(params), squares(params) - means(params) ** 2)  # noqa: E731
    return replace(entry, moments=moments, component_means=means)


def _multinomial(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.MultinomialParams, _SHARES * 0.7 + 0.1)  # noqa: E731
    total = 8  # drawn by `sample`

    def moments(params: Any) -> tuple[np.ndarray, np.ndarray]:
        prob = np.asarray(params.components.prob)
        mean, covariance = _mixed(params, total * prob, total * prob)
        return mean, covariance - total * np.einsum("k,ki,kj->ij", np.asarray(params.weights), prob, prob)

    return _family_mixture(
        name,
        family,
        _CELLS,
        start,
        **(
            {"moments": moments, "component_means": lambda params: total * np.asarray(params.components.prob)} | options
        ),
    )


# --- known parts


def _frozen_moved(model: Any, params: Any, data: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> Any:
    values = _moved(model.model, model.values, data, scale, shift)[1]
    inner, params, data = _moved(model.model, params, data, scale, shift)
    return replace(model, model=inner, values=values), params, data


def _frozen(inner: ModelEntry, mask: Any) -> ModelEntry:
    """With entries held at what the start has, given as `values`."""
    return replace(
        inner,
        name=f"{inner.name}_frozen",
        build=lambda: jaxem.Frozen(inner.build(), mask, jax.tree.map(np.asarray, inner.start())),
        moved=_frozen_moved,
        variant=True,
        reference=None,
    )


_ONE_MEAN = jaxem.MixtureParams(False, jaxem.NormalParams(np.array([False, False, True]), False))  # type: ignore[arg-type]


_MEANS = np.where(
    np.array([[1, 0, 0, 1, 0, 1, 1, 0], [0, 1, 0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 1, 1, 0, 1]]) == 1, 5.0, 1.0
)
_WAITS = _draw(9, lambda rng, z: np.maximum(rng.exponential(_MEANS[z]), 0.05 * _MEANS[z]))
_SHAPES = np.array([[4.0, 9.0], [8.0, 3.0], [15.0, 6.0]])
_SIZES = np.array([[1.0, 6.0], [3.0, 2.5], [4.0, 12.0]])
_LENGTHS = _draw(10, lambda rng, z: _SIZES[z] * rng.gamma(_SHAPES[z]) / _SHAPES[z])


def _exponential(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.ExponentialParams, 0.8 / _MEANS)  # noqa: E731
    options = {"discrete": False, "data": _WAITS} | options
    return _family_mixture(
        name, family, options.pop("data"), start, None, None, **options
    )  # kurtosis is above that of the test


def _gamma(name: str, family: Callable[[], Any], **options: Any) -> ModelEntry:
    start = lambda: made(jaxem.GammaParams, np.full((K, 2), 4.0), 4.0 / (1.2 * _SIZES))  # noqa: E731
    means = lambda params: np.asarray(params.components.shape) / np.asarray(params.components.rate)  # noqa: E731
    entry = _family_mixture(
        name, family, options.pop("data", _LENGTHS), start, None, None, **({"discrete": False} | options)
    )
    variances = lambda params: means(params) / np.asarray(params.components.rate)  # noqa: E731
    moments = lambda params: _mixed(params, means(params), variances(params))  # noqa: E731
    return replace(entry, moments=moments, component_means=means)


# --- heavy tails


def _student_t(name: str, family: Callable[[], Any], dof: float, form: type, **options: Any) -> ModelEntry:
    normal = _start(form, 2, None)

    def start() -> jaxem.MixtureParams:
        weights, (mean, covariance) = normal()
        return made(jaxem.MixtureParams, weights, made(jaxem.StudentTParams, mean, covariance, np.full(K, dof)))

    def moved(model: Any, params: Any, data: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> tuple[Any, Any, Any]:
        bank = jaxem.NormalParams(params.components.mean, params.components.scatter)
        inner = jaxem.Mixture(form(), K)
        _, other, data = _moved(inner, params._replace(components=bank), data, scale, shift)
        bank = params.components._replace(mean=other.components.mean, scatter=other.components.covariance)
        return model, jax.tree.map(np.asarray, params._replace(components=bank)), data

    return ModelEntry(
        name=name,
        build=lambda: jaxem.Mixture(family(), K),
        data=_X[2].copy(),
        start=start,
        moved=moved,
        augmented=True,
        **options,
    )


# --- models of other kinds. Those whose M step climbs resolve params to the root of rounding: tests/test_joint.py


_SOFT_LABELS = 0.05 + 0.85 * (np.sin(np.arange(N) * 1.7) + _X[2][:, 0] / 4 > 0.4)

_LOGISTIC = ModelEntry(
    name="logistic",
    build=lambda: jaxem.VariationalLogisticRegression(jaxem.FixedPrecision(np.asarray(0.7))),
    data=(_X[2] / COLUMN_SCALE, _SOFT_LABELS),
    start=lambda: jaxem.LogisticParams(jnp.zeros(2), jnp.eye(2)),
)

MODELS = [
    _normal_mixture("full", jaxem.FullNormal),
    _normal_mixture("diagonal", jaxem.DiagonalNormal),
    _normal_mixture("spherical", jaxem.SphericalNormal),
    _normal_mixture("tied", jaxem.TiedNormal),
    _normal_mixture("full_prior", jaxem.FullNormal, regularised=True),
    _normal_mixture("diagonal_prior", jaxem.DiagonalNormal, regularised=True, slow=True),
    _normal_mixture("spherical_prior", jaxem.SphericalNormal, regularised=True, slow=True),
    _normal_mixture("tied_prior", jaxem.TiedNormal, regularised=True, slow=True),
    _normal_mixture("full_active", jaxem.FullNormal, active=[True, False, True]),
    _normal_mixture("tied_prior_active", jaxem.TiedNormal, regularised=True, active=[True, True, False]),
    _normal_mixture("full_1d", jaxem.FullNormal, d=1),
    _normal_mixture("diagonal_1d_prior", jaxem.DiagonalNormal, d=1, regularised=True, slow=True),
    _LOGISTIC,
    _frozen(_normal_mixture("full", jaxem.FullNormal), _ONE_MEAN),
    _frozen(_normal_mixture("diagonal_prior", jaxem.DiagonalNormal, regularised=True, slow=True), _ONE_MEAN),
    _poisson("poisson", jaxem.Poisson),
    _poisson(
        "poisson_prior",
        lambda: jaxem.Poisson(jaxem.GammaPrior(np.asarray(1.7), np.array([0.3, 0.1])), missing=True),
        concentration=1.5,
        data=_with_gaps(_COUNTS),
        variant=True,
        slow=True,
    ),
    # without priors few rows end on the boundary: tests/test_discrete.py
    _bernoulli("bernoulli", lambda: jaxem.Bernoulli(jaxem.BetaPrior(np.asarray(1.5), np.asarray(1.4)))),
    _bernoulli(
        "bernoulli_missing",
        lambda: jaxem.Bernoulli(jaxem.BetaPrior(np.asarray(1.3), np.linspace(1.1, 1.5, 5)), missing=True),
        concentration=1.5,
        data=_with_gaps(_BITS),
        variant=True,
        slow=True,
    ),
    _categorical("categorical", lambda: jaxem.Categorical(3, jaxem.DirichletPrior(np.asarray(1.4)))),
    _categorical(
        "categorical_missing",
        lambda: jaxem.Categorical((3,) * 6, jaxem.DirichletPrior(np.array([1.2, 1.4, 1.1])), missing=True),
        concentration=1.5,
        data=_with_gaps(_CODES),
        variant=True,
        slow=True,
    ),
    _multinomial("multinomial", jaxem.Multinomial),
    _multinomial(
        "multinomial_prior",
        lambda: jaxem.Multinomial(jaxem.DirichletPrior(np.asarray(1.3))),
        concentration=1.5,
        variant=True,
        slow=True,
    ),
    _exponential("exponential", jaxem.Exponential),
    _exponential(
        "exponential_prior",
        lambda: jaxem.Exponential(jaxem.GammaPrior(np.asarray(1.3), np.linspace(0.5, 2, 8)), missing=True),
        concentration=1.5,
        data=_with_gaps(_WAITS),
        discrete=True,
        variant=True,
        slow=True,
    ),
    _gamma("gamma", lambda: jaxem.Gamma(np.asarray(1e-3))),
    _gamma(
        "gamma_missing",
        lambda: jaxem.Gamma(np.asarray(0.2), missing=True),
        concentration=1.5,
        data=_with_gaps(_LENGTHS),
        discrete=True,
        variant=True,
        slow=True,
    ),
    _student_t("student_t", lambda: jaxem.StudentT(np.asarray(6.0)), 6.0, jaxem.FullNormal),
    _student_t(
        "student_t_diagonal",
        lambda: jaxem.StudentT(np.array([4.0, 9.0, 30.0]), jaxem.DiagonalNormal(np.asarray(1e-3))),
        5.0,
        jaxem.DiagonalNormal,
        variant=True,
        slow=True,
    ),
]

_FIXED_LENGTH = {
    "test_too_few_iterations_give_max_iter": "it runs max_iter iterations by design",
}
_REPEATED = {
    "test_the_stable_path_gives_the_answer_of_the_fast_path": "an evaluation that is repeated on the stable path is "
    "one more for its state: the next temperature, other draws; by rows there is no fast path",
}

ALGORITHMS = [
    AlgorithmEntry("em", jaxem.EM),
    AlgorithmEntry(
        "annealed",
        lambda: jaxem.AnnealedEM(jaxem.geometric_schedule(1.5, 6)),
        changed=lambda: jaxem.AnnealedEM(jaxem.geometric_schedule(1.25, 6)),
        needs_states=True,
        exempt=_REPEATED,
    ),
    AlgorithmEntry(
        "hard",
        jaxem.HardEM,
        needs_states=True,
        exempt=dict.fromkeys(
            (
                "test_too_few_iterations_give_max_iter",
                "test_the_stable_path_gives_the_answer_of_the_fast_path",
            ),
            "on these data no row changes its state after the second iteration",
        ),
    ),
    AlgorithmEntry(
        "stochastic",
        lambda: jaxem.StochasticEM(jax.random.key(3), average_from=np.asarray(20.0)),
        changed=lambda: jaxem.StochasticEM(jax.random.key(4), average_from=np.asarray(25.0)),
        needs_states=True,
        exempt=_FIXED_LENGTH
        | _REPEATED
        | dict.fromkeys(
            (
                "test_chunks_do_not_change_the_answer",
                "test_chunks_without_weights_do_not_change_the_answer",
                "test_four_devices_equal_one",
                "test_four_devices_equal_one_however_the_data_lie",
            ),
            "chunks and shards draw from keys of their own",
        )
        | {
            "test_a_relabelled_start_gives_the_relabelled_answer": "draws go by the order of the components",
            "test_float32_agrees_with_float64": "the two dtypes draw other numbers",
            "test_the_fit_scales_with_the_columns": "the chain carries rounding along",
        },
    ),
    AlgorithmEntry(
        "online",
        lambda: jaxem.OnlineEM(jax.random.key(3), 16, decay=np.asarray(0.7), average_from=np.asarray(20.0)),
        changed=lambda: jaxem.OnlineEM(jax.random.key(4), 16, np.asarray(0.8), np.asarray(2.0), np.asarray(25.0)),
        exempt=_FIXED_LENGTH
        | _REPEATED
        | dict.fromkeys(
            ("test_four_devices_equal_one", "test_four_devices_equal_one_however_the_data_lie"),
            "every device gives rows of its own to a minibatch",
        ),
    ),
    AlgorithmEntry("squarem", jaxem.SQUAREM),
    AlgorithmEntry("anderson", jaxem.Anderson),
    AlgorithmEntry("parabolic", jaxem.ParabolicEM),
    AlgorithmEntry("newton", jaxem.NewtonCG),
]

_EVERY_ALGORITHM = ("diagonal", "full_prior")  # models on which algorithms have all properties; the first by default


def _cases() -> list[Case]:
    cases = []
    for algorithm in ALGORITHMS:
        for model in filter(algorithm.takes, MODELS):
            em = algorithm.name == "em"
            slow = model.slow or not (em or model.name == _EVERY_ALGORITHM[0])
            crossed = not (em or model.name in _EVERY_ALGORITHM)
            if not (crossed and model.variant):
                cases.append(Case(model, algorithm, slow, crossed))
    return cases


CASES = _cases()
