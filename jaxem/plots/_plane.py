"""What is drawn in a plane of two columns: rows by their responsibilities, ellipses, contours."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..contracts import capabilities as ask
from ..latent.finite import unlabelled
from ..numerics.arguments import as_rows
from ._ellipses import Elliptical, ellipse
from ._style import INK, PALE_INK, colour, line_style, marker

_CONTOURS, _CONTOUR_STEP = 5, 3  # so many lines, each of so many times the density of the next
_DECIDED = 0.9  # share of the most probable component from which a row counts as decided


class Rows(NamedTuple):
    """Data on the host, (n, d), and responsibilities, (n, k); None where there are none."""

    x: np.ndarray | None
    r: np.ndarray | None


def draw_plane(
    ax: Any,
    params: Any,
    shapes: Elliptical | None,
    rows: Rows,
    columns: tuple[int, int],
    *,
    level: float,
    size: float = 16,
) -> list[Any]:
    """Draws rows and ellipses; returns what the legend shows."""
    from matplotlib.lines import Line2D

    k = np.size(params.weights)
    undecided = _scatter(ax, rows.x[:, list(columns)], rows.r, size) if rows.x is not None else False
    handles = []
    for j in range(k):
        style: dict[str, Any] = {"color": _darker(colour(j)), "marker": marker(j), "linestyle": ""}
        if shapes is not None and weight_of(params, j) > 0:
            _component(ax, shapes, j, columns, level)
            style |= {"linestyle": line_style(j), "linewidth": 1.8}
        style["label"] = label_of(params, j)
        handles.append(Line2D([], [], **style))
    if undecided:
        label = f"hollow: less than {_DECIDED:.0%}\nof one component"
        handles.append(Line2D([], [], linestyle="", marker="o", markerfacecolor="none", color=INK, label=label))
    return handles


def _component(ax: Any, shapes: Elliptical, j: int, columns: tuple[int, int], level: float) -> None:
    index = list(columns)
    mean, scatter, radius = shapes.mean[j, index], shapes.scatter[j][np.ix_(index, index)], shapes.radius(j, level)
    # a white line underneath keeps an ellipse apart from the rows of its own colour
    ax.add_patch(ellipse(mean, scatter, radius, edgecolor="white", linewidth=3.4, zorder=3))
    style = {"edgecolor": _darker(colour(j)), "linestyle": line_style(j), "linewidth": 1.8}
    ax.add_patch(ellipse(mean, scatter, radius, zorder=3, **style))
    ax.plot(*mean, marker=marker(j), color=_darker(colour(j)), markersize=9, markeredgecolor="white", zorder=4)


def _darker(name: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(0.7 * part for part in to_rgb(name))


def _scatter(ax: Any, x: np.ndarray, r: np.ndarray | None, size: float) -> bool:
    """Draws the rows; returns whether any is undecided."""
    assert r is not None
    explained = ~np.isnan(r).any(1)
    best, decided = np.where(explained, r.argmax(1), -1), ~(r.max(1) < _DECIDED)
    if not explained.all():
        ax.scatter(*x[~explained].T, s=size, marker="x", color=PALE_INK)
    for j in range(r.shape[1]):
        style: dict[str, Any] = {"s": size, "marker": marker(j), "edgecolors": colour(j), "linewidths": 0.7}
        ax.scatter(*x[(best == j) & decided].T, facecolors=colour(j), alpha=0.55, **style)
        ax.scatter(*x[(best == j) & ~decided].T, facecolors="none", **style)
    return not bool(decided.all())


def draw_contours(ax: Any, model: Any, params: Any, ranges: list[tuple[float, float]]) -> Any:
    """Draws the density of the mixture; returns what the legend shows."""
    from matplotlib.lines import Line2D

    first, second = (np.linspace(low, high, 161) for low, high in ranges)
    points = np.stack(np.meshgrid(first, second), -1)
    density = densities(model, params, None, points.reshape(-1, 2)).sum(1).reshape(len(second), len(first))
    if density.max() > 0:
        levels = density.max() * float(_CONTOUR_STEP) ** np.arange(-_CONTOURS, 0)
        ax.contour(first, second, density, levels, colors=PALE_INK, linewidths=0.8, zorder=1.5)
    return Line2D(
        [], [], label=f"density, falling to\n1/{_CONTOUR_STEP} from line to line", linewidth=0.8, color=PALE_INK
    )


def densities(model: Any, params: Any, data: Any, grid: np.ndarray) -> np.ndarray:
    """w_j f(x | j) of points on a grid, (m, k); 0 outside of the support."""
    flat = data is not None and np.ndim(unlabelled(data)) == 1
    points = grid if flat or grid.ndim == 2 else grid[:, None]
    points = points.astype(_float_dtype_of(params))
    log_joint = np.asarray(model.log_joint(*_on_device((params, points))))
    return np.where(np.isnan(log_joint), 0, np.exp(log_joint))


def responsibilities(model: Any, params: Any, data: Any) -> np.ndarray | None:
    """(n, k), labels apart; None without data."""
    if data is None:
        return None
    rows = ask.cast_rows(model, as_rows(unlabelled(data)), _float_dtype_of(params))
    return np.asarray(model.responsibilities(*_on_device((params, rows))))


def _on_device(tree: Any) -> Any:
    """Arrays of jax, which a model may index by tracers."""
    return jax.tree.map(jnp.asarray, tree)


def _float_dtype_of(params: Any) -> Any:
    return jnp.result_type(*jax.tree.leaves(params))


def label_of(params: Any, j: int) -> str:
    """Of a component in the legend."""
    return f"component {j + 1}: {weight_of(params, j):.0%}"


def weight_of(params: Any, j: int) -> float:
    """Of a component, on the host."""
    return float(np.asarray(params.weights)[j])
