"""Pictures of mixtures: in one dimension, in two, and of any number by pairs of columns."""

from typing import Any

import numpy as np

from ..families.columns.dirichlet import Dirichlet
from ..families.columns.multinomial import Multinomial
from ..families.columns.von_mises_fisher import VonMisesFisher
from ..latent.finite import Gated, unlabelled
from ._ellipses import Elliptical, elliptical
from ._plane import Rows, densities, draw_contours, draw_plane, label_of, responsibilities, weight_of
from ._style import INK, PALE, axes_or_new, colour, line_style, marker, name_axes, pyplot, tidy

_ON_A_SURFACE = (VonMisesFisher, Dirichlet, Multinomial)  # densities of no two columns that could be chosen freely
_SPREADS, _SPREADS_OF_PLANE = 4.0, 2.6  # scatter radii that an axis reaches beyond the outermost mean


def mixture_1d(
    model: Any,
    params: Any,
    data: Any = None,
    ax: Any = None,
    *,
    discrete: bool | None = None,
    n_bins: Any = "auto",
    name: str = "x",
) -> Any:
    """The density of a mixture of one column, its weighted components, and a histogram of the data.

    Args:
        model: a `Mixture` without gate, best the bound one of a fit.
        params: its params.
        data: (n,) or (n, 1), labelled or not; None draws the density alone, of normal and Student-t components.
        ax: of matplotlib; None makes a figure.
        discrete: whether values are counts, drawn as bars and points; None asks whether the data are integers.
        n_bins: of the histogram, as `numpy.histogram` takes them.
        name: of the column.

    Returns:
        The Axes.

    Raises:
        ValueError: if the data have more than one column, or none are given where they are needed.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> components = jaxem.NormalParams(jnp.array([[-1.0], [2.0]]), jnp.ones((2, 1, 1)))
        >>> params = jaxem.MixtureParams(jnp.array([0.3, 0.7]), components)
        >>> ax = plots.mixture_1d(jaxem.Mixture(jaxem.FullNormal(), 2), params)
        >>> [line.get_label() for line in ax.lines]
        ['mixture', 'component 1: 30%', 'component 2: 70%']
    """
    _check_ungated(model)
    x = None if data is None else _columns(data)
    shapes = elliptical(model, params)
    if x is not None and x.shape[1] != 1:
        raise ValueError(f"data: expected one column, got {x.shape[1]}; use mixture_2d or pairs.")
    if shapes is not None and shapes.mean.shape[1] != 1:
        raise ValueError(f"params: expected components of one column, got {shapes.mean.shape[1]}; use mixture_2d.")
    if x is None and shapes is None:
        raise ValueError(f"data: expected rows, as {type(model.family).__name__} does not say where its density lies.")
    ax = tidy(axes_or_new(ax))
    if discrete is None:
        discrete = x is not None and np.issubdtype(x.dtype, np.integer)
    low, high = _range(x, shapes, 0, _SPREADS)
    grid = _integers(x, high) if discrete else np.linspace(low, high, 801)
    joint = densities(model, params, data, grid)
    if x is not None:
        _histogram(ax, x[:, 0], discrete, n_bins)
    mark: dict[str, Any] = {"marker": "_", "markersize": 11} if discrete else {}
    ax.plot(grid, joint.sum(1), color=INK, linewidth=2.6, label="mixture", **mark)
    for j in range(joint.shape[1]):
        own = {"marker": marker(j), "markersize": 5} if discrete else {}
        ax.plot(grid, joint[:, j], color=colour(j), linestyle=line_style(j + 1), label=label_of(params, j), **own)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    name_axes(ax, name, "probability" if discrete else "density")
    return ax


def mixture_2d(
    model: Any,
    params: Any,
    data: Any = None,
    ax: Any = None,
    *,
    level: float = 0.9,
    contours: bool = True,
    names: tuple[str, str] = ("first column", "second column"),
) -> Any:
    """A mixture of two continuous columns: contours of its density, ellipses, and rows by their responsibilities.

    A row has the colour and marker of its most probable component; it is hollow where that has less than 90 %.

    Args:
        model: a `Mixture` without gate, best the bound one of a fit.
        params: its params.
        data: (n, 2), labelled or not; None draws the mixture alone.
        ax: of matplotlib; None makes a figure.
        level: share of each component inside its ellipse; drawn where components are normal or Student-t.
        contours: whether the density of the mixture is drawn; never for directions, shares and multinomial counts.
        names: of the columns.

    Returns:
        The Axes.

    Raises:
        ValueError: if the data do not have two columns, or the level is not between 0 and 1.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> components = jaxem.NormalParams(jnp.array([[-1.0, 0.0], [2.0, 1.0]]), jnp.tile(jnp.eye(2), (2, 1, 1)))
        >>> params = jaxem.MixtureParams(jnp.array([0.3, 0.7]), components)
        >>> ax = plots.mixture_2d(jaxem.Mixture(jaxem.FullNormal(), 2), params, names=("height (cm)", "mass (kg)"))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('height (cm)', 'mass (kg)')
    """
    _check_level(level)
    _check_ungated(model)
    x, shapes = None if data is None else _columns(data), elliptical(model, params)
    d = x.shape[1] if x is not None else 0 if shapes is None else shapes.mean.shape[1]
    if d != 2:
        advice = "pass rows (n, 2)" if d == 0 else "use mixture_1d" if d == 1 else "use pairs"
        raise ValueError(f"data: expected two columns, got {d or 'none'}; {advice}.")
    ax = tidy(axes_or_new(ax))
    ranges = [_range(x, shapes, column, _SPREADS_OF_PLANE) for column in (0, 1)]
    handles = draw_plane(ax, params, shapes, Rows(x, responsibilities(model, params, data)), (0, 1), level=level)
    if contours and not isinstance(model.family, _ON_A_SURFACE):
        handles.append(draw_contours(ax, model, params, ranges))
    ax.set(xlim=ranges[0], ylim=ranges[1])
    ax.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    name_axes(ax, *names)
    return ax


def pairs(
    model: Any, params: Any, data: Any = None, ax: Any = None, *, level: float = 0.9, names: Any = None
) -> np.ndarray:
    """A mixture of several columns by pairs: marginal densities on the diagonal, ellipses and rows below it.

    Args:
        model: a `Mixture` of normal or Student-t components, best the bound one of a fit.
        params: its params.
        data: (n, d), labelled or not; None draws the mixture alone.
        ax: array (d, d) of Axes; None makes a figure.
        level: share of each component inside its ellipse.
        names: of the d columns.

    Returns:
        The array (d, d) of Axes; those above the diagonal are switched off.

    Raises:
        ValueError: if shapes do not fit, or components have no mean and covariance.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> components = jaxem.NormalParams(jnp.array([[-1.0, 0.0], [2.0, 1.0]]), jnp.tile(jnp.eye(2), (2, 1, 1)))
        >>> params = jaxem.MixtureParams(jnp.array([0.3, 0.7]), components)
        >>> plots.pairs(jaxem.Mixture(jaxem.FullNormal(), 2), params).shape
        (2, 2)
    """
    _check_level(level)
    _check_ungated(model)
    shapes = elliptical(model, params)
    if shapes is None:
        raise ValueError(
            f"model: expected normal or Student-t components, whose marginals are known, got "
            f"{type(model.family).__name__}; draw mixture_1d or mixture_2d of the columns that it has."
        )
    k, d = shapes.mean.shape
    x = None if data is None else _columns(data)
    if x is not None and x.shape[1] != d:
        raise ValueError(f"data: expected {d} columns as params have, got {x.shape[1]}.")
    names = [f"column {i + 1}" for i in range(d)] if names is None else list(names)
    if len(names) != d:
        raise ValueError(f"names: expected {d}, one a column, got {len(names)}.")
    axes = pyplot().subplots(d, d, figsize=(2 * d + 1, 2 * d), layout="constrained")[1] if ax is None else ax
    axes = np.asarray(axes, object)
    if axes.shape != (d, d) and not d == axes.size == 1:
        raise ValueError(f"ax: expected an array ({d}, {d}) of Axes, got shape {axes.shape}.")
    axes = axes.reshape(d, d)
    rows = Rows(x, responsibilities(model, params, data))
    ranges = [_range(x, shapes, column, _SPREADS_OF_PLANE) for column in range(d)]
    handles: list[Any] = []
    for row in range(d):
        for column in range(d):
            one = tidy(axes[row, column])
            if column > row:
                one.set_axis_off()
            elif column == row:
                _marginal(one, params, shapes, column, rows)
                one.set_xlim(ranges[column])
            else:
                handles = draw_plane(one, params, shapes, rows, (column, row), level=level, size=6)
                one.set(xlim=ranges[column], ylim=ranges[row])
            _outer_labels(one, row, column, names)
    axes[0, -1].legend(handles=handles, frameon=False, loc="upper right", fontsize="small")
    return axes


def _outer_labels(ax: Any, row: int, column: int, names: list[str]) -> None:
    if row == len(names) - 1:
        ax.set_xlabel(names[column])
    else:
        ax.tick_params(labelbottom=False)
    if column == 0 and row > 0:
        ax.set_ylabel(names[row])
    elif column != row:
        ax.tick_params(labelleft=False)
    if column == row:  # a density, whose scale nobody reads
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)


def _marginal(ax: Any, params: Any, shapes: Elliptical, column: int, rows: Rows) -> None:
    grid = np.linspace(*_range(rows.x, shapes, column, _SPREADS), 401)
    if rows.x is not None:
        _histogram(ax, rows.x[:, column], False, "auto")
    parts = [weight_of(params, j) * shapes.marginal(j, column, grid) for j in range(len(shapes.mean))]
    ax.plot(grid, np.sum(parts, 0), color=INK, linewidth=2)
    for j, part in enumerate(parts):
        ax.plot(grid, part, color=colour(j), linestyle=line_style(j + 1), linewidth=1.2)
    ax.set_ylim(bottom=0)


def _integers(x: np.ndarray | None, high: float) -> np.ndarray:
    if x is None:
        raise ValueError("data: expected counts where discrete is True, got None; without them a density is drawn.")
    return np.arange(np.floor(np.nanmin(x)), np.ceil(high) + 1)


def _histogram(ax: Any, x: np.ndarray, discrete: bool, n_bins: Any) -> None:
    x = x[np.isfinite(x)]
    if discrete:
        values, counts = np.unique(x, return_counts=True)
        ax.bar(values, counts / len(x), width=0.9, color=PALE, label="data")
    else:
        ax.hist(x, bins=n_bins, density=True, color=PALE, edgecolor="white", linewidth=0.4, label="data")


def _range(x: np.ndarray | None, shapes: Elliptical | None, column: int, spreads: float) -> tuple[float, float]:
    """What an axis shows: the rows with a margin, and the components, as far as these do not dwarf the rows."""
    low, high = np.inf, -np.inf
    if shapes is not None:
        spread = spreads * np.sqrt(shapes.scatter[:, column, column])
        low, high = float((shapes.mean[:, column] - spread).min()), float((shapes.mean[:, column] + spread).max())
    if x is None:
        return low, high
    first, last = float(np.nanmin(x[:, column])), float(np.nanmax(x[:, column]))
    extent = (last - first) or 1.0
    low, high = max(low, first - extent), min(high, last + extent)
    return min(low, first - 0.08 * extent), max(high, last + 0.08 * extent)


def _columns(data: Any) -> np.ndarray:
    """The rows on the host, (n, d).

    Raises:
        ValueError: if they are no array of rows.
    """
    rows = unlabelled(data)
    if isinstance(rows, Gated) or not hasattr(rows, "shape") or np.ndim(rows) not in (1, 2):
        raise ValueError(
            f"data: expected an array (n,) or (n, d), got {type(rows).__name__}; what depends on covariates, or has "
            "columns of several kinds, has no single density to draw."
        )
    return np.asarray(rows).reshape(len(rows), -1)


def _check_ungated(model: Any) -> None:
    if getattr(model, "gate", None) is not None:
        raise ValueError(
            "model: expected a mixture without gate, got one whose weights depend on covariates, and with them the "
            "density; draw Mixture(family, k) with MixtureParams(weights at some covariates, params.components)."
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}; 0.9 is 90 %.")
