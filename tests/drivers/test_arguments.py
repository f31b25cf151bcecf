"""Arguments that go wrong: what every driver says about them, and which dtypes are cast."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    FAMILIES,
    KEY,
    MAX_ITER,
    D,
    K,
    N,
    assert_same,
    blobs,
    first,
    fit,
    mixture,
    replaced,
    stacked,
    start,
    statuses,
    two_starts,
    x64,
)

import jaxem
from jaxem import Status

# --- fit names the rows


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fit_names_the_rows_with_nan_or_inf(bad):
    x = blobs()
    x[[3, 17], [0, 1]] = bad
    for name in FAMILIES:
        with pytest.raises(ValueError, match=r"data: .*rows 3, 17.*sample_weight 0"):
            jaxem.fit(mixture(name), two_starts(name), x)
    with pytest.raises(ValueError, match="rows 3, 17"):
        jaxem.fit(mixture("full"), two_starts("full"), jaxem.labelled(x, np.full(N, -1)))
    x[10:30] = bad
    with pytest.raises(ValueError, match=r"rows 3, 10, 11, 12, 13, … \(21 in all\)"):
        jaxem.fit(mixture("full"), two_starts("full"), x)


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf], ids=["nan", "negative", "inf"])
def test_fit_names_the_rows_with_impossible_weights(bad):
    weight = np.ones(N)
    weight[[4, 9]] = bad
    with pytest.raises(ValueError, match=f"sample_weight: .*{bad}.*rows 4, 9"):
        jaxem.fit(mixture("full"), two_starts("full"), blobs(), sample_weight=weight)


# --- arguments that do not fit: argument, expected, got, remedy


def test_params_of_a_wrong_shape_name_the_leaf_and_both_shapes():
    x, params = blobs(), two_starts("full")
    with pytest.raises(ValueError, match=r"params\.weights: expected shape \(2,\), got \(3,\)"):
        jaxem.fit(mixture("full"), params._replace(weights=jnp.ones(3) / 3), x)
    with pytest.raises(ValueError, match=r"params\.components\.mean: expected shape \(2, 2\).*got \(2, 3\)"):
        jaxem.fit(mixture("full"), replaced(params, mean=jnp.zeros((2, 3))), x)
    with pytest.raises(ValueError, match=r"params\.components\.covariance: expected shape \(2, 2, 2\).*got \(2, 2\)"):
        jaxem.fit(mixture("full"), two_starts("diagonal"), x)
    with pytest.raises(ValueError, match=r"params\.components\.covariance: expected shape \(2,\).*got \(2, 2\)"):
        jaxem.fit(mixture("spherical"), two_starts("diagonal"), x)
    with pytest.raises(TypeError, match="params: expected MixtureParams, got tuple"):
        jaxem.fit(mixture("full"), (1, 2), x)
    with pytest.raises(TypeError, match=r"params\.components: expected NormalParams"):
        jaxem.fit(mixture("full"), params._replace(components=jnp.zeros(2)), x)
    with pytest.raises(ValueError, match=r"params\.weights: expected shape \(3,\), got \(2,\)"):
        jaxem.fit(mixture("full", k=3), params, x)


def test_start_params_of_lanes_and_groups_of_a_wrong_shape_name_the_argument():
    x, params = blobs(), two_starts("full")
    with pytest.raises(ValueError, match="params: expected leaves leading with 3 lanes"):
        jaxem.fit_batch(mixture("full"), stacked([params] * 2), np.stack([x] * 3))
    with pytest.raises(ValueError, match=r"params\.components\.covariance: expected shape \(2, 2, 2\)"):
        jaxem.fit_batch(mixture("full"), stacked([two_starts("diagonal")] * 3), np.stack([x] * 3))
    with pytest.raises(ValueError, match="init: expected start params leading with 1 groups"):
        jaxem.fit_groups(mixture("full"), KEY, x, np.zeros(N, int), init=stacked([params] * 2))
    with pytest.raises(ValueError, match=r"components\.covariance: expected shape \(2, 2, 2\)"):
        jaxem.fit_groups(mixture("full"), KEY, x, np.zeros(N, int), init=stacked([two_starts("diagonal")]))


def test_data_of_a_wrong_shape_say_which_is_expected():
    params = two_starts("full")
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\), got shape \(40,\).*x\[:, None\]"):
        jaxem.fit(mixture("full"), params, blobs()[:, 0])
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\)"):
        jaxem.fit_batch(mixture("full"), stacked([params] * N), blobs())
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\)"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs()[:, 0])
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\)"):
        jaxem.fit_groups(mixture("full"), KEY, blobs()[:, 0], np.zeros(N, int))
    with pytest.raises(ValueError, match=r"data: expected an array of shape \(n, d\)"):
        mixture("full").init(KEY, blobs()[:, 0])
    with pytest.raises(ValueError, match="params.components.mean"):
        jaxem.fit(mixture("full"), params, blobs(d=3))
    with pytest.raises(ValueError, match="data: "):
        jaxem.fit(mixture("full"), params, [])
    with pytest.raises(ValueError, match="data: "):
        jaxem.fit(mixture("full"), params, np.float64(3))


def test_weights_of_a_wrong_shape_say_which_is_expected():
    x, params = blobs(), two_starts("full")
    model, short = mixture("full"), np.ones(N - 1)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(40,\).*got \(39,\)"):
        jaxem.fit(model, params, x, sample_weight=short)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(40,\).*got \(39,\)"):
        jaxem.fit_restarts(model, KEY, x, sample_weight=short)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(40,\).*got \(39,\)"):
        jaxem.fit_groups(model, KEY, x, np.zeros(N, int), sample_weight=short)
    with pytest.raises(ValueError, match="sample_weight: expected"):
        jaxem.fit_batch(model, stacked([params] * 2), np.stack([x] * 2), sample_weight=np.ones(N))
    with pytest.raises(ValueError, match="sample_weight: expected"):
        jaxem.fit_batch(model, stacked([params] * 2), np.stack([x] * 2), sample_weight=np.ones((2, N - 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": -1}, "max_iter: expected a non-negative int, got -1"),
        ({"max_iter": 2.5}, "max_iter: expected a non-negative int, got 2.5"),
        ({"max_iter": True}, "max_iter: expected a non-negative int, got True"),
        ({"tol": np.nan}, "tol: expected a number, got NaN"),
        ({"chunk_size": 0}, "chunk_size: expected a positive int or None, got 0"),
        ({"chunk_size": -3}, "chunk_size: expected a positive int or None, got -3"),
        ({"chunk_size": 1.5}, "chunk_size: expected a positive int or None, got 1.5"),
        ({"algorithm": "em"}, "algorithm: expected .*got 'em'"),
        ({"algorithm": jaxem.EM}, "algorithm: expected .*got <class"),
        ({"derivative": True}, "derivative: expected .*got True"),
        ({"stop": 1e-3}, "stop: expected .*got 0.001"),
    ],
)
def test_options_out_of_range_name_the_argument_in_every_driver(options, message):
    x, params, model = blobs(), two_starts("full"), mixture("full")
    calls = [
        lambda: jaxem.fit(model, params, x, **options),
        lambda: jaxem.fit_batch(model, stacked([params]), x[None], **options),
        lambda: jaxem.fit_restarts(model, KEY, x, **options),
        lambda: jaxem.fit_groups(model, KEY, x, np.zeros(N, int), **options),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_an_unknown_plan_names_those_there_are():
    x, params, model = blobs(), two_starts("full"), mixture("full")
    message = "plan: expected 'auto', 'lanes' or 'sequential', got 'vmap'"
    with pytest.raises(ValueError, match=message):
        jaxem.fit_batch(model, stacked([params]), x[None], plan="vmap")
    with pytest.raises(ValueError, match=message):
        jaxem.fit_restarts(model, KEY, x, plan="vmap")
    with pytest.raises(ValueError, match=message):
        jaxem.fit_groups(model, KEY, x, np.zeros(N, int), plan="vmap")


@pytest.mark.parametrize("n_restarts", [0, -1, 1.5, True])
def test_a_number_of_restarts_that_is_none_names_the_argument(n_restarts):
    with pytest.raises(ValueError, match="n_restarts: expected a positive int"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs(), n_restarts=n_restarts)
    with pytest.raises(ValueError, match="n_restarts: expected a positive int"):
        jaxem.fit_groups(mixture("full"), KEY, blobs(), np.zeros(N, int), n_restarts=n_restarts)


def test_restarts_of_given_starts_are_refused_not_ignored():
    params = stacked([two_starts("full")])
    with pytest.raises(ValueError, match="n_restarts"):
        jaxem.fit_groups(mixture("full"), KEY, blobs(), np.zeros(N, int), init=params, n_restarts=4)


def test_an_initialiser_that_is_none_names_the_argument():
    with pytest.raises((ValueError, TypeError), match="init"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs(), init=two_starts("full"))  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match="init|method"):
        mixture("full").init(KEY, blobs(), method="kmeans")  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match="init"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs(), init=jaxem.KMeans)  # type: ignore[arg-type]


class NoEStep(NamedTuple):
    """A model that forgot its E step."""

    def m_step(self, params, stats):
        return params


class NoMStep(NamedTuple):
    """A model that forgot its M step."""

    def e_step(self, params, data, sample_weight):
        return jnp.sum(data), jnp.zeros(())


def test_a_model_without_its_methods_says_which_to_write():
    x = blobs()
    with pytest.raises(ValueError, match="NoEStep has no E step; write log_joint"):
        jaxem.fit(NoEStep(), jnp.zeros(2), x)
    with pytest.raises(ValueError, match="NoMStep has no M step; write m_step"):
        jaxem.fit(NoMStep(), jnp.zeros(2), x)
    with pytest.raises(ValueError, match="NoMStep has no M step"):
        jaxem.fit_batch(NoMStep(), jnp.zeros((1, 2)), x[None])
    with pytest.raises(ValueError, match="model: expected an instance, got the class Mixture"):
        jaxem.fit(jaxem.Mixture, two_starts("full"), x)
    with pytest.raises(ValueError, match="model: expected an instance|no E step"):
        jaxem.fit_groups(jaxem.Mixture, KEY, x, np.zeros(N, int))


def test_a_model_without_init_says_what_to_do_instead():
    class NoInit(NamedTuple):
        def e_step(self, params, data, sample_weight):
            return jnp.sum(data), jnp.zeros(())

        def m_step(self, params, stats):
            return params

    with pytest.raises(ValueError, match="init.*pass start params"):
        jaxem.fit_restarts(NoInit(), KEY, blobs())


def test_a_mixture_with_leaves_that_do_not_fit_names_them():
    x, params = blobs(), two_starts("full")
    for k in (0, -1, 2.0, None):
        with pytest.raises(ValueError, match="n_components: expected a positive int"):
            jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), k), params, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"concentration: expected shape \(2,\), got \(3,\)"):
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2, concentration=np.ones(3)), params, x)
    with pytest.raises(ValueError, match=r"active: expected shape \(2,\), got \(3,\)"):
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2, active=np.ones(3, bool)), params, x)
    with pytest.raises(ValueError, match=r"active: expected booleans"):
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2, active=np.ones(2)), params, x)
    prior = jaxem.NormalInverseWishart(mean=np.zeros(3), shrinkage=0.1, dof=4.0, scale=np.eye(2))
    with pytest.raises(ValueError, match=r"prior\.mean: expected shape \(2,\).*got \(3,\)"):
        jaxem.fit(mixture("full", prior=prior), params, x)


# --- dtypes


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.uint8, bool])
def test_integers_are_cast_to_the_default_float(dtype):
    x = np.clip(np.round(5 * blobs()), 0, 100)
    x = (x > 5).astype(float) if dtype is bool else x
    weight = np.ones(N)
    want = fit("full", two_starts("full"), x, weight)
    got = fit("full", two_starts("full"), x.astype(dtype), weight)
    assert got.objective.dtype == np.float64
    assert_same((got.params, got.objective, got.status), (want.params, want.objective, want.status))


@pytest.mark.slow
def test_integers_are_cast_to_the_default_float_in_groups():
    x, ids = np.round(5 * blobs()).astype(np.int16), np.zeros(N, int)
    groups = jaxem.fit_groups(mixture("full"), KEY, x, ids, sample_weight=np.ones(N), max_iter=MAX_ITER)
    assert groups.objective.dtype == np.float64
    assert groups.responsibilities(x, ids).dtype == np.float64


def test_integers_are_cast_to_float32_while_x64_is_off():
    with x64(False):
        result = fit("full", two_starts("full", dtype=np.float32), np.round(5 * blobs()).astype(int))
    assert result.objective.dtype == np.float32


@pytest.mark.parametrize("part", ["weights", "mean", "covariance"])
def test_integer_start_params_are_cast(part):
    params = start("full", [[0.0, 0.0], [4.0, 4.0]], 1.0)
    whole = {
        "weights": params._replace(weights=jnp.array([1, 0])),
        "mean": replaced(params, mean=np.array([[0, 0], [4, 4]])),
        "covariance": replaced(params, covariance=np.array([np.eye(2, dtype=int)] * 2)),
    }[part]
    want = fit("full", jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), whole), blobs())
    assert_same(fit("full", whole, blobs()).params, want.params)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.complex64])
def test_half_precision_and_complex_numbers_are_a_type_error_that_names_float32(dtype):
    x = blobs().astype(dtype)
    model, params = mixture("full"), two_starts("full")
    calls = [
        lambda: jaxem.fit(model, params, x),
        lambda: jaxem.fit(model, params, jnp.asarray(x)),
        lambda: jaxem.fit_batch(model, stacked([params]), x[None]),
        lambda: jaxem.fit_restarts(model, KEY, x),
        lambda: jaxem.fit_groups(model, KEY, x, np.zeros(N, int)),
        lambda: model.init(KEY, x),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="float32"):
            call()


def test_data_that_are_not_numbers_are_a_type_error():
    with pytest.raises(TypeError, match="data: expected numbers"):
        jaxem.fit(mixture("full"), two_starts("full"), np.full((N, D), "a"))
    with pytest.raises(TypeError, match="data: expected numbers"):
        jaxem.fit(mixture("full"), two_starts("full"), blobs().astype(object))


def test_the_warning_of_rounding_names_the_users_line_from_any_depth():
    x, params = blobs(), two_starts("full", dtype=np.float32)
    with x64(False), pytest.warns(UserWarning, match="jax_enable_x64") as caught:
        jaxem.standard_errors(mixture("full"), params, x)
    assert [one.filename for one in caught] == [__file__]


@first("driver", ["fit", "fit_groups", "fit_batch", "fit_restarts"])
def test_float64_numpy_data_while_x64_is_off_warn_once_and_name_the_setting(driver):
    x = blobs()

    def run(x):
        params = two_starts("full", dtype=np.float32)
        match driver:
            case "fit":
                return jaxem.fit(mixture("full"), params, x, sample_weight=np.ones(N, np.float32), max_iter=MAX_ITER)
            case "fit_batch":
                return jaxem.fit_batch(mixture("full"), stacked([params]), x[None], max_iter=5)
            case "fit_restarts":
                return jaxem.fit_restarts(mixture("full"), KEY, x, n_restarts=2, max_iter=5)
            case _:
                return jaxem.fit_groups(mixture("full"), KEY, x, np.zeros(N, int), init=stacked([params]), max_iter=5)

    with x64(False):
        with pytest.warns(UserWarning, match="jax_enable_x64") as caught:
            assert run(x).objective.dtype == np.float32
        assert len(caught) == 1
        assert caught[0].filename == __file__  # points at the user's line
        run(x.astype(np.float32))  # warnings are errors here: none
        run(jnp.asarray(x, np.float32))


# --- labels


def test_labels_that_are_no_states_name_the_row():
    x = blobs()
    known = np.full(N, -1)
    known[6] = -2
    with pytest.raises(ValueError, match="known: .*row 6"):
        jaxem.labelled(x, known)
    mask = np.ones((N, K), bool)
    mask[9] = False
    with pytest.raises(ValueError, match="known: .*row 9"):
        jaxem.labelled(x, mask)
    for wrong in (np.zeros(N), np.zeros(N - 1, int), np.zeros((N, K)), np.zeros((N, K), int), np.zeros(N, bool)):
        with pytest.raises(ValueError, match="known: expected integer labels"):
            jaxem.labelled(x, wrong)


def test_a_label_beyond_the_last_state_never_passes_for_a_fit():
    data = jaxem.labelled(blobs(), np.where(np.arange(N) == 3, K, -1))
    try:
        result = jaxem.fit(mixture("full"), two_starts("full"), data)
    except ValueError as error:
        assert "known" in str(error)  # no less good
    else:
        assert statuses(result) == [Status.NONFINITE]


def test_a_mask_over_another_number_of_states_says_how_many():
    data = jaxem.labelled(blobs(), np.ones((N, 3), bool))
    with pytest.raises(ValueError, match=r"known: expected a mask over 2 states, got \(40, 3\)"):
        jaxem.fit(mixture("full"), two_starts("full"), data)


def test_start_labels_out_of_range_are_a_value_error():
    x, model = blobs(), mixture("full")
    for low, high in ((-1, 0), (0, K)):
        labels = np.where(np.arange(N) == 3, low, high)
        with pytest.raises(ValueError, match="Labels: expected states 0 to 1"):
            model.init(KEY, x, method=jaxem.Labels(labels))
    for wrong in (np.zeros(N), np.zeros(N - 1, int), np.zeros((N, 1), int)):
        with pytest.raises(ValueError, match=r"Labels: expected integers of shape \(40,\)"):
            model.init(KEY, x, method=jaxem.Labels(wrong))


def test_start_labels_out_of_range_are_a_value_error_in_the_drivers_too():
    with pytest.raises(ValueError, match="Labels: expected states 0 to 1"):
        jaxem.fit_restarts(mixture("full"), KEY, blobs(), n_restarts=1, init=jaxem.Labels(np.full(N, K)))


def test_start_responsibilities_that_are_none_are_a_value_error():
    x, model = blobs(), mixture("full")
    for wrong in (np.ones((N, 3)) / 3, np.ones(N), np.ones((N - 1, K)) / K):
        with pytest.raises(ValueError, match=r"Responsibilities: expected shape \(40, 2\)"):
            model.init(KEY, x, method=jaxem.Responsibilities(wrong))
    for bad in (-0.5, np.nan):
        r = np.full((N, K), 0.5)
        r[7, 1] = bad
        with pytest.raises(ValueError, match="Responsibilities: .*row 7"):
            model.init(KEY, x, method=jaxem.Responsibilities(r))


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_concentration_that_is_not_positive_is_an_error(value):
    x = np.linspace(-1, 1, 20)[:, None]
    mixture = jaxem.Mixture(jaxem.FullNormal(), 2, concentration=value)
    with pytest.raises(ValueError, match=r"concentration: expected a number in \(0, inf\)"):
        mixture.init(jax.random.key(0), x)
    data = jaxem.sequences([x])
    for name in ("concentration", "initial_concentration"):
        chain = jaxem.HiddenMarkovModel(jaxem.FullNormal(), 2, **{name: value})
        with pytest.raises(ValueError, match=rf"^{name}: expected a number in \(0, inf\)"):
            chain.init(jax.random.key(0), data)
