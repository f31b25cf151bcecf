"""Pictures: what is drawn agrees with the params, in colours, styles and words; nothing global changes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse, Rectangle

import jaxem
from jaxem import Status, plots
from jaxem.cli import demonstration as command
from jaxem.plots import _style
from jaxem.plots._ellipses import elliptical

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

COVARIANCE = jnp.array([[[2.0, 0.8], [0.8, 0.5]], [[0.3, -0.1], [-0.1, 1.0]]])
MEAN = jnp.array([[-2.0, 0.0], [3.0, 1.0]])
PLANE = jaxem.MixtureParams(jnp.array([0.3, 0.7]), jaxem.NormalParams(MEAN, COVARIANCE))
MODEL = jaxem.Mixture(jaxem.FullNormal(), 2)
GATED = jaxem.Mixture(jaxem.FullNormal(), 2, gate=jaxem.SoftmaxGate())
LINE = jaxem.MixtureParams(jnp.array([0.3, 0.7]), jaxem.NormalParams(MEAN[:, :1], COVARIANCE[:, :1, :1]))
ROWS = np.random.default_rng(0).normal(size=(40, 2)) * [2.0, 1.0]


@pytest.fixture(autouse=True)
def leave_no_figure_and_no_style():
    before = dict(matplotlib.rcParams)
    yield
    changed = {name for name, value in matplotlib.rcParams.items() if value != before[name]}
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()  # a picture that cannot be drawn is none
    plt.close("all")
    assert not changed


@pytest.fixture
def result():
    history = jnp.array([-9.0, -5.0, -4.0, -3.5, jnp.nan])
    four = jnp.array(-3.5)
    return jaxem.FitResult(None, four, four, jnp.array(3), jnp.array(4), jnp.array(0), history, None)


def legend_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ellipses_of(ax) -> list[Ellipse]:
    """Without the white lines underneath."""
    return [patch for patch in ax.patches if isinstance(patch, Ellipse)][1::2]


# --- fits


def test_history_draws_every_objective_up_to_the_last(result):
    (line,) = plots.history(result).lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [-9, -5, -4, -3.5])
    assert all(tick == round(tick) for tick in line.axes.get_xticks())


def test_history_of_several_fits_is_told_apart_by_more_than_colour(result):
    other = dataclasses.replace(result, history=result.history - 1)
    ax = plots.history({"EM": result, "SQUAREM": other}, to_go=True)
    assert legend_of(ax) == ["EM", "SQUAREM"] and ax.get_yscale() == "log"
    first, second = ax.lines
    assert (first.get_linestyle(), first.get_marker()) != (second.get_linestyle(), second.get_marker())
    np.testing.assert_allclose(first.get_ydata(), [5.5, 1.5, 0.5])  # to the highest of both, itself left out
    np.testing.assert_allclose(second.get_ydata(), [6.5, 2.5, 1.5, 1.0])


def test_history_of_lanes_is_a_line_each(result):
    failed = jnp.full(5, jnp.nan)
    lanes = dataclasses.replace(result, history=jnp.stack([result.history, 2 * result.history, failed]))
    assert [len(line.get_xdata()) for line in plots.history(lanes).lines] == [4, 4, 0]
    assert [len(line.get_xdata()) for line in plots.history(lanes, to_go=True).lines] == [3, 3, 0]


def test_half_steps_show_bound_and_log_likelihood():
    trace = jaxem.trace_bound(MODEL, PLANE, ROWS, 3)
    ax = plots.half_steps(trace)
    log_lik, bound = (np.asarray(line.get_ydata()) for line in ax.lines)
    np.testing.assert_allclose(bound[::2], log_lik[::2])  # after the E step the gap is closed
    assert (bound[1::2] < log_lik[1::2]).all() and (np.diff(bound) > 0).all()
    np.testing.assert_allclose(log_lik[1::2] - bound[1::2], trace.after_m.kl)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["E1", "M1", "E2", "M2", "E3", "M3"]
    assert set(legend_of(ax)) == {"KL(q ‖ p)", "log-likelihood", "bound L(q, θ)"}


def test_lanes_are_stacked_by_status_and_none_is_lost(result):
    status, n_iter = jnp.array([0, 0, 2, 1, 3, 0]), jnp.array([3, 3, 500, 7, 0, 250])
    ax = plots.lanes(dataclasses.replace(result, status=status, n_iter=n_iter))
    bars = [bar for bar in ax.patches if isinstance(bar, Rectangle)]
    assert sum(bar.get_height() for bar in bars) == 6
    assert legend_of(ax) == ["CONVERGED: 3", "RESOLUTION: 1", "MAX_ITER: 1", "NONFINITE: 1"]
    assert len({bar.get_hatch() for bar in bars}) == 4
    reaches = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars if bar.get_height()]
    assert all(any(low < value < high for low, high in reaches) for value in n_iter.tolist())


def bootstrap_of(values, status=None):
    n = len(values)
    status = jnp.zeros(n, int) if status is None else status
    return jaxem.Bootstrap(jnp.asarray(values), jnp.zeros(n), jnp.zeros(n), jnp.zeros(n), status, jnp.array([1.0, 2.0]))


def test_the_cloud_has_the_ellipse_of_its_covariance_and_only_replicates_that_converged():
    values = np.random.default_rng(1).normal(size=(500, 2)) @ [[1.0, 0.5], [0.0, 0.3]] + [1.0, 2.0]
    status = jnp.where(jnp.arange(500) < 450, Status.CONVERGED, Status.DEGENERATE)
    ax = plots.bootstrap(bootstrap_of(values, status), lambda params: params, names=("a", "b"))
    assert len(ax.collections[0].get_offsets()) == 450
    (ellipse,) = ax.patches
    radius = np.sqrt(-2 * np.log(0.05))
    lengths = 2 * radius * np.sqrt(np.linalg.eigvalsh(np.cov(values[:450].T)))
    np.testing.assert_allclose(sorted([ellipse.width, ellipse.height]), lengths)
    inside = ellipse.contains_points(ax.transData.transform(values[:450]))
    assert 0.92 < inside.mean() < 0.98
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b") and len(legend_of(ax)) == 3


def test_one_number_of_a_bootstrap_is_a_histogram_with_its_interval():
    values = np.random.default_rng(1).normal(size=(400, 2))
    ax = plots.bootstrap(bootstrap_of(values), lambda params: params[0], level=0.8)
    assert sum(bar.get_height() for bar in ax.patches) == 400
    places = [line.get_xdata()[0] for line in ax.lines]
    np.testing.assert_allclose(places, [1.0, *np.quantile(values[:, 0], [0.1, 0.9])])


# --- mixtures


def test_a_density_of_one_column_integrates_to_one_and_is_the_sum_of_its_components():
    data = MEAN[0, 0] + np.linspace(-1, 8, 50)
    for rows in (None, data[:, None]):
        mixture, *components = plots.mixture_1d(MODEL, LINE, rows).lines
        x = np.asarray(mixture.get_xdata())
        assert abs(np.trapezoid(mixture.get_ydata(), x) - 1) < 1e-3
        areas = [np.trapezoid(line.get_ydata(), x) for line in components]
        np.testing.assert_allclose(areas, LINE.weights, atol=1e-3)
        assert len({line.get_linestyle() for line in components}) == 2


def test_the_histogram_is_a_density_too():
    ax = plots.mixture_1d(MODEL, LINE, ROWS[:, :1], name="delay (minutes)")
    assert abs(sum(bar.get_height() * bar.get_width() for bar in ax.patches) - 1) < 1e-9
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("delay (minutes)", "density")


def test_counts_are_drawn_at_whole_numbers():
    model, counts = jaxem.Mixture(jaxem.Poisson(), 2), np.repeat(np.arange(12), 3)[:, None]
    params = jaxem.MixtureParams(jnp.array([0.4, 0.6]), jaxem.PoissonParams(jnp.array([[1.0], [4.0]])))
    ax = plots.mixture_1d(model, params, counts)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(13))
    assert abs(np.sum(ax.lines[0].get_ydata()) - 1) < 1e-2 and ax.get_ylabel() == "probability"
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], 1 / 12)
    assert plots.mixture_1d(model, params, counts, discrete=False).get_ylabel() == "density"


def test_outside_of_the_support_a_density_is_zero():
    params = jaxem.MixtureParams(jnp.ones(1), jaxem.GammaParams(jnp.array([[2.0]]), jnp.array([[1.0]])))
    line = plots.mixture_1d(jaxem.Mixture(jaxem.Gamma(), 1), params, np.linspace(0.1, 12, 30)[:, None]).lines[0]
    x, y = map(np.asarray, line.get_data())
    assert x[0] < 0 and not y[x < 0].any() and abs(np.trapezoid(y, x) - 1) < 1e-3


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_ellipse_holds_its_share_and_has_the_axes_of_the_covariance(level):
    ax = plots.mixture_2d(MODEL, PLANE, ROWS, level=level)
    drawn = ellipses_of(ax)
    assert len(drawn) == 2
    for ellipse, mean, covariance in zip(drawn, MEAN, COVARIANCE, strict=True):
        values, vectors = np.linalg.eigh(covariance)
        radius = np.sqrt(-2 * np.log(1 - level))
        np.testing.assert_allclose([ellipse.height, ellipse.width], 2 * radius * np.sqrt(values))
        along = np.radians(ellipse.angle)
        assert abs(abs(vectors[:, 1] @ [np.cos(along), np.sin(along)]) - 1) < 1e-12
        np.testing.assert_allclose(ellipse.center, mean)
        draws = np.random.default_rng(0).multivariate_normal(mean, covariance, 4000)
        assert abs(ellipse.contains_points(ax.transData.transform(draws)).mean() - level) < 0.02


def test_an_ellipse_of_a_student_t_holds_its_share():
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal([0, 0], COVARIANCE[0], 8000) / np.sqrt(rng.chisquare(3, (8000, 1)) / 3)
    params = jaxem.MixtureParams(jnp.ones(1), jaxem.StudentTParams(jnp.zeros((1, 2)), COVARIANCE[:1], jnp.array([3.0])))
    shapes = elliptical(jaxem.Mixture(jaxem.StudentT(), 1), params)
    assert shapes is not None
    distance = np.sqrt(np.einsum("ni,ij,nj->n", draws, np.linalg.inv(COVARIANCE[0]), draws))
    assert abs((distance < shapes.radius(0, 0.9)).mean() - 0.9) < 0.01
    x = np.linspace(-400, 400, 400_001)
    assert abs(np.trapezoid(shapes.marginal(0, 0, x), x) - 1) < 1e-4


def test_every_form_of_covariance_becomes_a_matrix():
    mean, low_rank = MEAN, jaxem.LowRankNormalParams(MEAN, jnp.ones((2, 2, 1)), jnp.full((2, 2), 0.5))
    forms = {
        jaxem.DiagonalNormal(): jaxem.NormalParams(mean, jnp.array([[1.0, 2.0], [3.0, 4.0]])),
        jaxem.SphericalNormal(): jaxem.NormalParams(mean, jnp.array([1.0, 2.0])),
        jaxem.TiedNormal(): jaxem.NormalParams(mean, COVARIANCE[0]),
        jaxem.LowRankNormal(1): low_rank,
    }
    expected = [
        [np.diag([1.0, 2]), np.diag([3.0, 4])],
        [np.eye(2), 2 * np.eye(2)],
        [COVARIANCE[0], COVARIANCE[0]],
        [np.ones((2, 2)) + 0.5 * np.eye(2)] * 2,
    ]
    for (family, bank), matrices in zip(forms.items(), expected, strict=True):
        shapes = elliptical(jaxem.Mixture(family, 2), jaxem.MixtureParams(jnp.full(2, 0.5), bank))
        assert shapes is not None
        np.testing.assert_allclose(shapes.scatter, matrices)


def test_rows_are_marked_by_component_and_hollow_where_undecided():
    between = MEAN[:1] + jnp.linspace(0, 1, 201)[:, None] * (MEAN[1:] - MEAN[:1])
    even = between[jnp.argmin(jnp.max(MODEL.responsibilities(PLANE, between), 1))]
    rows = jnp.stack([MEAN[0], MEAN[1], MEAN[1] + 0.1, even])
    r = np.asarray(MODEL.responsibilities(PLANE, rows))
    assert r[3].max() < 0.9
    ax = plots.mixture_2d(MODEL, PLANE, rows, contours=False)
    sizes = [len(part.get_offsets()) for part in ax.collections]
    assert sizes == ([1, 1, 2, 0] if r[3, 0] > 0.5 else [1, 0, 2, 1])
    assert any("hollow" in text for text in legend_of(ax)) and sum(sizes) == len(rows)
    markers = {part.get_paths()[0].vertices.tobytes() for part in ax.collections}
    assert len(markers) == 2


def test_contours_are_levels_of_the_density():
    ax = plots.mixture_2d(MODEL, PLANE, ROWS)
    contours = next(part for part in ax.collections if hasattr(part, "levels"))
    ratios = np.asarray(contours.levels)[1:] / np.asarray(contours.levels)[:-1]
    np.testing.assert_allclose(ratios, 3)
    points = contours.get_paths()[2].vertices
    density = np.exp(MODEL.log_prob(PLANE, points))
    np.testing.assert_allclose(density, contours.levels[2], rtol=0.05)


def test_two_columns_of_any_family_have_contours():
    params = jaxem.MixtureParams(jnp.ones(1), jaxem.GammaParams(jnp.full((1, 2), 2.0), jnp.ones((1, 2))))
    ax = plots.mixture_2d(jaxem.Mixture(jaxem.Gamma(), 1), params, np.abs(ROWS) + 0.1)
    assert not ax.patches and any(hasattr(part, "levels") for part in ax.collections)


def test_a_density_on_a_circle_has_no_contours():
    params = jaxem.MixtureParams(jnp.ones(1), jaxem.VonMisesFisherParams(jnp.array([[0.0, 1.0]]), jnp.array([2.0])))
    rows = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    ax = plots.mixture_2d(jaxem.Mixture(jaxem.VonMisesFisher(), 1), params, rows)
    assert not any(hasattr(part, "levels") for part in ax.collections) and legend_of(ax) == ["component 1: 100%"]


def test_rows_with_missing_entries_are_left_out_where_they_are_needed():
    model = jaxem.Mixture(jaxem.FullNormal(missing=True), 2)
    rows = np.where(np.arange(80).reshape(40, 2) % 7 == 0, np.nan, ROWS)
    axes = plots.pairs(model, PLANE, rows)
    assert abs(sum(bar.get_height() * bar.get_width() for bar in axes[0, 0].patches) - 1) < 1e-9


def test_pairs_are_a_triangle_with_shared_ranges_and_true_marginals():
    mean, scatter = jnp.array([[0.0, 1, 2], [4.0, 5, 6]]), jnp.stack([jnp.diag(jnp.array([1.0, 2, 3])), jnp.eye(3)])
    params = jaxem.MixtureParams(jnp.array([0.4, 0.6]), jaxem.NormalParams(mean, scatter))
    rows = 3 * np.random.default_rng(0).normal(size=(30, 3)) + 3
    axes = plots.pairs(MODEL, params, rows, names=["a", "b", "c"])
    assert axes.shape == (3, 3)
    assert [[ax.axison for ax in row] for row in axes] == [[row >= column for column in range(3)] for row in range(3)]
    assert axes[1, 0].get_xlim() == axes[2, 0].get_xlim() == axes[0, 0].get_xlim()
    assert axes[2, 0].get_ylim() == axes[2, 1].get_ylim()
    assert [ax.get_xlabel() for ax in axes[2]] == ["a", "b", "c"] and axes[1, 0].get_ylabel() == "b"
    line = axes[1, 1].lines[0]
    assert abs(np.trapezoid(line.get_ydata(), line.get_xdata()) - 1) < 1e-3
    drawn = ellipses_of(axes[2, 1])[0]
    radius = np.sqrt(-2 * np.log(0.1))
    np.testing.assert_allclose(sorted([drawn.width, drawn.height]), 2 * radius * np.sqrt([2.0, 3.0]))
    assert legend_of(axes[0, 2])[:2] == ["component 1: 40%", "component 2: 60%"]


# --- all of them


def test_axes_that_are_given_are_used_and_returned_and_their_labels_kept(result):
    figure, ax = plt.subplots()
    ax.set_xlabel("mine")
    assert plots.history(result, ax) is ax and ax.get_xlabel() == "mine"
    given = figure.subplots(2, 2)
    assert (plots.pairs(MODEL, PLANE, None, given) == given).all()
    assert plots.mixture_2d(MODEL, PLANE, None, plt.subplots()[1]).figure is not figure


def test_params_may_be_of_numpy():
    on_host = jax.tree.map(np.asarray, PLANE)
    assert legend_of(plots.mixture_2d(MODEL, on_host, ROWS)) == legend_of(plots.mixture_2d(MODEL, PLANE, ROWS))


def test_labelled_data_are_drawn_without_their_labels():
    known = jaxem.labelled(jnp.asarray(ROWS), jnp.zeros(len(ROWS), int))
    assert sum(len(part.get_offsets()) for part in plots.mixture_2d(MODEL, PLANE, known).collections[:4]) == len(ROWS)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.mixture_1d(MODEL, LINE, ROWS), "expected one column, got 2; use mixture_2d"),
        (lambda: plots.mixture_1d(MODEL, PLANE), "expected components of one column, got 2"),
        (lambda: plots.mixture_1d(jaxem.Mixture(jaxem.Poisson(), 2), LINE._replace(components=())), "Poisson does not"),
        (lambda: plots.mixture_1d(MODEL, LINE, discrete=True), "expected counts where discrete"),
        (lambda: plots.mixture_2d(MODEL, PLANE, ROWS[:, :1]), "expected two columns, got 1; use mixture_1d"),
        (lambda: plots.mixture_2d(MODEL, PLANE, np.ones((4, 3))), "expected two columns, got 3; use pairs"),
        (lambda: plots.mixture_2d(MODEL, PLANE, ROWS, level=95), "level: expected a number between 0 and 1, got 95"),
        (lambda: plots.mixture_2d(MODEL, PLANE, (ROWS, ROWS)), "expected an array .* got tuple"),
        (lambda: plots.pairs(MODEL, PLANE, np.ones((4, 3))), "expected 2 columns as params have, got 3"),
        (lambda: plots.pairs(MODEL, PLANE, ROWS, names=["one"]), "names: expected 2"),
        (lambda: plots.pairs(MODEL, PLANE, ROWS, plt.subplots()[1]), r"ax: expected an array \(2, 2\)"),
        (lambda: plots.pairs(jaxem.Mixture(jaxem.Poisson(), 2), LINE._replace(components=())), "got Poisson"),
        (
            lambda: plots.mixture_2d(GATED, PLANE),
            "without gate",
        ),
        (
            lambda: plots.mixture_1d(GATED, LINE),
            "without gate",
        ),
        (lambda: plots.history(3), "results: expected a FitResult, got int"),
        (lambda: plots.history({"EM": 3}), r"results\['EM'\]: expected a FitResult"),
        (
            lambda: plots.half_steps(3),  # type: ignore[arg-type]
            "expected what jaxem.trace_bound returns, got int",
        ),
        (lambda: plots.bootstrap(bootstrap_of(ROWS), jnp.sum, level=2), "level: expected"),
        (lambda: plots.bootstrap(bootstrap_of(ROWS), lambda p: jnp.ones(3)), r"one number or two, got shape \(3,\)"),
        (lambda: plots.bootstrap(bootstrap_of(ROWS[:1]), jnp.sum), "at least two replicates that converged, got 1"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_with_its_remedy(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_lanes_of_a_single_fit_are_an_error(result):
    with pytest.raises(ValueError, match=r"expected lanes, status of shape \(b,\), got shape \(\)"):
        plots.lanes(result)


def test_the_command_adds_a_picture_to_its_tables(tmp_path, capsys, monkeypatch):
    three = np.arange(3)
    table = command.Table(
        np.array(["N1", "N2", "N725MQ"]), three + 20, three, three, three * 1.0, np.full((3, 2), 0.5),
        np.tile(MEAN, (3, 1, 1)), np.tile(COVARIANCE, (3, 1, 1, 1)), 1.0,
    )  # fmt: skip
    command.write(table, tmp_path)
    written = {"flights.csv", "params.npz", "flights.png"}
    assert {path.name for path in tmp_path.iterdir()} == written
    said = capsys.readouterr().out
    assert all(name in said for name in written) and (tmp_path / "flights.png").stat().st_size > 20_000
    assert not plt.get_fignums()  # nothing of pyplot's
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "flights.png").unlink()
    command.write(table, tmp_path)
    assert not (tmp_path / "flights.png").exists() and "pip install 'jaxem[plot]'" in capsys.readouterr().out


def test_neighbouring_colours_differ_in_grey():
    lightness = [np.dot(to_rgb(name), [0.2126, 0.7152, 0.0722]) for name in _style.COLOURS[:5]]
    assert (np.abs(np.diff(lightness)) > 0.05).all()
    assert len(set(_style.LINES)) == len(set(_style.COLOURS)) and len(set(_style.MARKERS)) == len(_style.HATCHES)


def test_without_matplotlib_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from jaxem import plots\n"  # which needs nothing yet
        "try:\n    plots.lanes(type('R', (), {'status': [0, 0], 'n_iter': [1, 2]}))\n"
        "except ImportError as error:\n    print(error)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert "pip install 'jaxem[plot]'" in done.stdout


# --- series


CHAIN = jaxem.HiddenMarkovModel(jaxem.Poisson(), 2)
MOVES = jaxem.HMMParams(
    jnp.array([0.5, 0.5]), jnp.array([[0.75, 0.25], [0.0, 1.0]]), jaxem.PoissonParams(jnp.array([[1.0], [9.0]]))
)


def test_a_series_has_the_colours_of_its_path_and_the_probabilities_of_its_states():
    data = jaxem.sequences([jnp.array([[5.0], [5.0]]), jnp.array([[0.0], [2.0], [8.0], [9.0]])])
    ax = plots.series_states(CHAIN, MOVES, data, series=1)
    assert legend_of(ax) == ["state 0", "state 1"]
    steps = [points.get_offsets()[:, 0].tolist() for points in ax.collections]
    path = np.asarray(CHAIN.predict(MOVES, data))[1]
    assert steps == [np.flatnonzero(path == j).tolist() for j in (0, 1)]
    (strip,) = ax.child_axes
    first = strip.patches[0].get_data().values
    np.testing.assert_allclose(first, CHAIN.responsibilities(MOVES, data)[1, :, 0], rtol=1e-6)
    np.testing.assert_allclose(strip.patches[1].get_data().values, 1, rtol=1e-6)
    with pytest.raises(ValueError, match="series: expected 0 to 1, got 2"):
        plots.series_states(CHAIN, MOVES, data, series=2)
    with pytest.raises(ValueError, match="data: expected Sequences"):
        plots.series_states(CHAIN, MOVES, jnp.ones((3, 1)))


def test_transitions_are_written_from_row_to_column():
    ax = plots.transitions(MOVES, names=["calm", "busy"])
    assert [text.get_text() for text in ax.texts] == ["0.75", "0.25", "0", "1.00"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["calm", "busy"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("to state", "from state")
    with pytest.raises(ValueError, match="names: expected 2"):
        plots.transitions(MOVES, names=["calm"])
