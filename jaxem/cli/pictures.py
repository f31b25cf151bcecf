"""Pictures of the fits of a table, as PNG; without matplotlib there are none."""

import importlib.util
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .failure import first_line
from .fits import Fits
from .rows import Table

_MOST_ROWS = 3000  # drawn of one group
_MOST_COLUMNS = 5  # drawn by pairs
_ELLIPTICAL = ("full", "diagonal", "spherical", "tied", "student-t")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(table: Table, fits: Fits, family: str) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Captions and pictures: how the fits ended, and the mixture of the group with the most rows; and what is missing.

    A picture that fails costs nothing but itself.
    """
    if not can_draw():
        return [], ["For pictures: pip install 'jaxem[plot]'."]
    pictures, missing = [], []
    for picture in (_endings, _largest):
        try:
            found = picture(table, fits, family)
        except Exception as error:  # of matplotlib, any
            missing.append(f"A picture could not be drawn: {first_line(error)}")
            continue
        pictures += [] if found is None else [found]
    return pictures, missing


def _endings(_: Table, fits: Fits, __: str) -> tuple[str, bytes] | None:
    from types import SimpleNamespace

    from matplotlib.figure import Figure

    from .. import plots

    if len(fits.labels) == 1:
        return None
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    ended = SimpleNamespace(status=fits.best("status"), n_iter=fits.best("n_iter"))
    plots.lanes(ended, figure.subplots()).set_ylabel("groups")
    return "How the chosen fits ended, and after how many iterations.", _png(figure)


def _largest(table: Table, fits: Fits, family: str) -> tuple[str, bytes] | None:
    usable = ~np.isnan(fits.best("criterion"))
    if not usable.any():
        return None
    group = int(np.argmax(np.where(usable, fits.n_rows, -1)))
    rows = table.values if table.codes is None else table.values[table.codes == group]
    shown = rows[np.random.default_rng(0).permutation(len(rows))[:_MOST_ROWS]]
    params = jax.tree.map(jnp.asarray, fits.params_of(group))
    picture = _mixture(fits.models[fits.chosen[group]], params, shown, table.names, family)
    if picture is None:
        return None
    what = "The mixture" if fits.labels[group] is None else f"The group with the most rows, {fits.labels[group]}"
    some = f", of which {len(shown):,} are drawn" if len(shown) < len(rows) else ""
    return f"{what}: {len(rows):,} rows{some}.", _png(picture)


def _mixture(model: Any, params: Any, rows: np.ndarray, names: list[str], family: str) -> Any:
    from matplotlib.figure import Figure

    from .. import plots

    d = len(names)
    data = rows.astype(params.weights.dtype)
    names = [(name if len(name) <= 30 else name[:29] + "…").replace("$", r"\$") for name in names]  # no formulas
    figure = Figure(figsize=(7.4, 4.8) if d < 3 else (2 * d + 1, 2 * d), layout="constrained")
    if d == 1:
        plots.mixture_1d(model, params, data, figure.subplots(), discrete=_is_discrete(family), name=names[0])
    elif d == 2 and not _is_discrete(family):
        plots.mixture_2d(model, params, data, figure.subplots(), names=(names[0], names[1]))
    elif d <= _MOST_COLUMNS and family in _ELLIPTICAL:
        plots.pairs(model, params, data, figure.subplots(d, d), names=names)
    else:
        return None
    return figure


def _is_discrete(family: str) -> bool:
    return family in ("poisson", "negative-binomial", "bernoulli")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
