"""Pictures of hidden Markov models: a series coloured by its states, and how states follow each other."""

from typing import Any

import jax
import numpy as np

from ..latent.finite import unlabelled
from ..latent.series import Sequences
from ._style import GREY, INK, PALE_INK, axes_or_new, colour, headroom, marker, name_axes, tidy, whole_numbers

_STRIP = 0.13  # of the height of the Axes
_MOST_STATES = 20


def series_states(
    model: Any, params: Any, data: Any, series: int = 0, ax: Any = None, *, column: int = 0, names: Any = None
) -> Any:
    """A series, its steps coloured by the most probable path, above a strip with the probabilities of the states.

    Args:
        model: a `HiddenMarkovModel`.
        params: of the fit.
        data: `Sequences` of arrays (n, t, d), labelled or not.
        series: which of them.
        ax: of matplotlib; None makes a figure.
        column: which of the d columns.
        names: of the states; None counts them.

    Returns:
        The Axes.

    Raises:
        ValueError: if the data are no series, or have no such series or column, or names are not one a state.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2)
        >>> move, bank = jnp.array([[0.75, 0.25], [0.5, 0.5]]), jaxem.PoissonParams(jnp.array([[1.0], [9.0]]))
        >>> params = jaxem.HMMParams(jnp.array([0.5, 0.5]), move, bank)
        >>> ax = plots.series_states(model, params, jaxem.sequences([jnp.array([[0.0], [2.0], [8.0]])]))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['state 0', 'state 1']
    """
    values, length = _one_series(data, series, column)
    one = jax.tree.map(lambda leaf: leaf[series : series + 1], data)
    path = np.asarray(model.predict(params, one))[0, :length]
    states = np.nan_to_num(np.asarray(model.responsibilities(params, one))[0, :length])
    names = _names(names, states.shape[1])
    ax, steps = tidy(axes_or_new(ax)), np.arange(length)
    ax.plot(steps, values, color=PALE_INK, linewidth=0.9, zorder=1)
    few = length <= 400
    for j in range(states.shape[1]):
        here = path == j
        ax.scatter(
            steps[here], values[here], s=26 if few else 7, color=colour(j), marker=marker(j), linewidths=0, zorder=2,
            label=f"state {names[j]}",
        )  # fmt: skip
    ax.set_xlim(-0.5, length - 0.5)
    _probabilities(ax, steps, states)
    headroom(ax, 0.14)
    ax.legend(frameon=False, ncols=min(5, states.shape[1]), loc="upper left")
    whole_numbers(ax)
    name_axes(ax, "step", "value")
    return ax


def _one_series(data: Any, series: int, column: int) -> tuple[np.ndarray, int]:
    rows = unlabelled(data)
    if not isinstance(rows, Sequences) or np.ndim(rows.values) != 3:
        raise ValueError(
            f"data: expected Sequences of an array (n, t, d), got {type(rows).__name__}; jaxem.sequences makes them."
        )
    n, _, d = np.shape(rows.values)
    for name, index, size in (("series", series, n), ("column", column, d)):
        if not 0 <= index < size:
            raise ValueError(f"{name}: expected 0 to {size - 1}, got {index}.")
    length = int(rows.length[series])
    return np.asarray(rows.values[series, :length, column]), length


def _probabilities(ax: Any, steps: np.ndarray, states: np.ndarray) -> None:
    """A strip below the series: the probabilities of the states, one above the other."""
    low, high = ax.get_ylim()
    ax.set_ylim(low - _STRIP / (1 - _STRIP) * (high - low) * 1.3, high)
    ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= high])  # the strip has its own
    strip = ax.inset_axes((0, 0, 1, _STRIP))
    edges = np.append(steps - 0.5, steps[-1] + 0.5)
    base = np.zeros(len(steps))
    for j in range(states.shape[1]):
        strip.stairs(base + states[:, j], edges, baseline=base, fill=True, color=colour(j))
        base = base + states[:, j]
    strip.set_xlim(ax.get_xlim())
    strip.set_ylim(0, 1)
    strip.set_xticks([])
    strip.set_yticks([0, 1], ["0", "1"], fontsize="x-small", color=GREY)
    strip.yaxis.tick_right()
    strip.tick_params(length=0)
    strip.spines[:].set_visible(False)


def transitions(params: Any, ax: Any = None, *, names: Any = None) -> Any:
    """The transition matrix: from the state of a row to that of a column.

    Args:
        params: `HMMParams`.
        ax: of matplotlib; None makes a figure.
        names: of the states; None counts them.

    Returns:
        The Axes.

    Raises:
        ValueError: if there are more than 20 states, or as many names as something else.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> bank = jaxem.PoissonParams(jnp.array([[1.0], [9.0]]))
        >>> params = jaxem.HMMParams(jnp.array([0.5, 0.5]), jnp.array([[0.75, 0.25], [0.5, 0.5]]), bank)
        >>> [text.get_text() for text in plots.transitions(params).texts]
        ['0.75', '0.25', '0.50', '0.50']
    """
    matrix = np.asarray(params.transition, float)
    k = len(matrix)
    names = _names(names, k)
    if k > _MOST_STATES:
        raise ValueError(f"params.transition: expected at most {_MOST_STATES} states to draw, got {k}.")
    ax = axes_or_new(ax)
    ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    size = "medium" if k <= 6 else "small" if k <= 10 else "xx-small"
    for i in range(k):
        for j in range(k):
            ax.text(
                j, i, _text(matrix[i, j]), ha="center", va="center", fontsize=size,
                color="white" if matrix[i, j] > 0.6 else INK,
            )  # fmt: skip
    ax.set_xticks(range(k), names)
    ax.set_yticks(range(k), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    name_axes(ax, "to state", "from state")
    return ax


def _names(names: Any, k: int) -> list[str]:
    names = [str(j) for j in range(k)] if names is None else [str(name) for name in names]
    if len(names) != k:
        raise ValueError(f"names: expected {k}, one for each state, got {len(names)}.")
    return names


def _text(p: float) -> str:
    """Two digits; a probability that is not zero does not look like it."""
    return "0" if p == 0 else "<.01" if p < 0.005 else f"{p:.2f}"
