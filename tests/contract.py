"""The registry: every public model and algorithm, how to build it, its data and a start.

A model or algorithm is added here, by name, and inherits every property of `test_contract.py`. `build` makes a fresh
object at every call, so that nothing can be right only because two tests share an object. Data are small, and chosen
so that EM contracts by 0.9 or less per iteration (measured): 300 iterations then reach the fixed point to rounding.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contract_composition import COMPOSITION
from contract_counts import COUNTS_AND_FRACTIONS
from contract_entries import CENTRES, COLUMN_SCALE, AlgorithmEntry, Case, K, ModelEntry, N
from contract_families import COLUMNS, made, with_gaps
from contract_regressions import REGRESSIONS
from contract_series import SERIES

import jaxem

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
_TIED = (jaxem.TiedNormal, jaxem.TiedSphericalNormal)
_SPHERICAL = (jaxem.SphericalNormal, jaxem.TiedSphericalNormal)


def _scale_of(family: type, variance: np.ndarray) -> np.ndarray:
    """Column variances (d,) in the form of one covariance of the family: (d, d), (d,) or ()."""
    if family in _SPHERICAL:
        return np.asarray(variance.mean())
    return variance.copy() if family is jaxem.DiagonalNormal else np.diag(variance)


def _start(family: type, d: int, active: list[bool] | None) -> Callable[[], Any]:
    def start() -> jaxem.MixtureParams:
        weights = np.array([0.3, 0.3, 0.4]) * (1 if active is None else np.array(active))
        mean: Any = CENTRES[d] * COLUMN_SCALE[:d] + np.array([0.5, -1.0])[:d]
        one = _scale_of(family, _X[d].var(0) / 4)
        covariance: Any = one if family in _TIED else np.stack([one] * K)
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
        if family in _SPHERICAL:
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
    if covariance.shape in ((), (K,)):
        covariance = np.broadcast_to(covariance.reshape(-1, 1), (K, d))
    if covariance.shape == (K, d):
        covariance = covariance[:, :, None] * np.eye(d)
    overall = weights @ mean
    centred = mean - overall
    within = np.einsum("k,kij->ij", weights, np.broadcast_to(covariance, (K, d, d)))
    return overall, within + np.einsum("k,ki,kj->ij", weights, centred, centred)


def _normal_mixture(
    name: str,
    family: Any,
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
        one_scale=family in _SPHERICAL,
        variant=regularised or active is not None or d != 2,
        slow=slow,
        reference=_sklearn if family in _SKLEARN_NAME else None,
        moments=_moments,
    )


def _gaps(name: str, family: type, **options: Any) -> ModelEntry:
    """Rows with missing entries."""
    return replace(
        _normal_mixture(name, partial(family, missing=True), slow=True, **options),
        start=_start(family, 2, None),
        data=with_gaps(_X[2], 17),
        reference=None,
        augmented=True,
        variant=True,
        unreadable=np.inf,
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


# --- models of other kinds. Those whose M step climbs resolve params to the root of rounding: models/test_joint.py


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
    _normal_mixture("tied_spherical", jaxem.TiedSphericalNormal),
    _normal_mixture("full_prior", jaxem.FullNormal, regularised=True),
    _normal_mixture("diagonal_prior", jaxem.DiagonalNormal, regularised=True, slow=True),
    _normal_mixture("spherical_prior", jaxem.SphericalNormal, regularised=True, slow=True),
    _normal_mixture("tied_prior", jaxem.TiedNormal, regularised=True, slow=True),
    _normal_mixture("tied_spherical_prior", jaxem.TiedSphericalNormal, regularised=True, slow=True),
    _normal_mixture("full_active", jaxem.FullNormal, active=[True, False, True]),
    _normal_mixture("tied_prior_active", jaxem.TiedNormal, regularised=True, active=[True, True, False]),
    _normal_mixture("full_1d", jaxem.FullNormal, d=1),
    _normal_mixture("diagonal_1d_prior", jaxem.DiagonalNormal, d=1, regularised=True, slow=True),
    _gaps("full_missing", jaxem.FullNormal),
    _gaps("tied_missing", jaxem.TiedNormal, regularised=True),
    _LOGISTIC,
    _frozen(_normal_mixture("full", jaxem.FullNormal), _ONE_MEAN),
    _frozen(_normal_mixture("diagonal_prior", jaxem.DiagonalNormal, regularised=True, slow=True), _ONE_MEAN),
    *COLUMNS,
    *COMPOSITION,
    *COUNTS_AND_FRACTIONS,
    *REGRESSIONS,
    *SERIES,
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
    AlgorithmEntry("over_relaxed", jaxem.OverRelaxedEM),
    AlgorithmEntry("newton", jaxem.NewtonCG),
]

_EVERY_ALGORITHM = "diagonal"  # the model on which algorithms other than EM have all properties
# with the slow tests, for want of time; in full there
_LATE = ("student_t", "gamma", "product", "one_of", "bernoulli", "hidden_markov")


def _cases() -> list[Case]:
    cases = []
    for algorithm in ALGORITHMS:
        for model in filter(algorithm.takes, MODELS):
            complete = algorithm.name == "em" or model.name == _EVERY_ALGORITHM
            if complete or not model.variant:
                late = model.slow or model.name in _LATE or not complete
                cases.append(Case(model, algorithm, slow=late, crossed=not complete))
    return cases


CASES = _cases()
