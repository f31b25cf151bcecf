"""What the pictures share: colours, line styles and markers in a fixed order, and the Axes to draw into."""

from typing import Any

# Okabe & Ito (2008), without the yellow that vanishes on white; neighbours differ in lightness too
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#444444")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "|||")
INK, GREY, PALE_INK, PALE = "#222222", "#808080", "#B0B0B0", "#D9D9D9"


def pyplot() -> Any:
    """`matplotlib.pyplot`.

    Raises:
        ImportError: if matplotlib is missing, naming the extra that brings it.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError("jaxem.plots needs matplotlib: pip install 'jaxem[plot]'.") from error
    return plt


def axes_or_new(ax: Any) -> Any:
    """The Axes given, or those of a new figure."""
    if ax is not None:
        return ax
    return pyplot().subplots(figsize=(5.6, 3.8), layout="constrained")[1]


def colour(i: int) -> str:
    """Of the i-th thing; they come round again."""
    return COLOURS[i % len(COLOURS)]


def line_style(i: int) -> Any:
    """Of the i-th thing."""
    return LINES[i % len(LINES)]


def marker(i: int) -> str:
    """Of the i-th thing; with more things than colours the pair of both stays unique for 56."""
    return MARKERS[i % len(MARKERS)]


def tidy(ax: Any) -> Any:
    """Without the frame's upper and right side."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def name_axes(ax: Any, x: str, y: str) -> None:
    """Labels the axes, unless somebody has."""
    if not ax.get_xlabel():
        ax.set_xlabel(x)
    if not ax.get_ylabel():
        ax.set_ylabel(y)


def headroom(ax: Any, share: float) -> None:
    """Raises the upper end of the y axis by a share of its range, so that a legend lies above what is drawn."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + share * (high - low))


def whole_numbers(ax: Any) -> None:
    """Ticks of the x axis at whole numbers only, which steps and iterations are."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
