"""Pictures of fits: their objectives, both half steps of EM, lanes of a batch, replicates of a bootstrap."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..contracts.status import Status
from ..inference.diagnostics import BoundTrace
from ..inference.resampling import Bootstrap
from ._ellipses import ellipse
from ._style import (
    GREY,
    HATCHES,
    INK,
    PALE,
    axes_or_new,
    colour,
    headroom,
    line_style,
    marker,
    name_axes,
    tidy,
    whole_numbers,
)


def history(results: Any, ax: Any = None, *, to_go: bool = False) -> Any:
    """The objective after every iteration.

    Args:
        results: a `FitResult`, or a dict of them by name, e.g. {"EM": …, "SQUAREM": …}. Where a result has lanes, each
            is a line.
        ax: of matplotlib; None makes a figure.
        to_go: draws, on a logarithmic scale, how far the objective is below the highest of all that are drawn, with
            lanes the highest of each lane: the slope is the rate.

    Returns:
        The Axes.

    Raises:
        ValueError: if a result has no history.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> params = model.init(jax.random.key(0), x)
        >>> plots.history(jaxem.fit(model, params, x)).get_xlabel()
        'M steps taken'
    """
    named = dict(results) if isinstance(results, Mapping) else {"": results}
    curves = {name: _curves(name, result) for name, result in named.items()}
    ax = tidy(axes_or_new(ax))
    top = np.max([c.max(1) for c in curves.values()], 0) if _alike(curves) else None
    for i, (name, lanes_of) in enumerate(curves.items()):
        faint = len(lanes_of) > 8
        best = lanes_of.max(1) if top is None else top
        for lane, values in enumerate(lanes_of):
            steps = np.flatnonzero(np.isfinite(values))
            shown = values[steps]
            if to_go:
                shown = best[lane] - shown
                steps, shown = steps[shown > 0], shown[shown > 0]
            ax.plot(
                steps,
                shown,
                color=colour(i),
                linestyle=line_style(i),
                linewidth=0.8 if faint else 1.8,
                alpha=0.5 if faint else 1.0,
                marker=marker(i) if len(steps) <= 30 and not faint else None,
                markersize=4,
                label=name if name and lane == 0 else None,
            )
    if to_go:
        ax.set_yscale("log")
    elif ax.get_yscale() == "linear":
        ax.ticklabel_format(axis="y", useOffset=False)
    whole_numbers(ax)
    if any(curves):
        ax.legend(frameon=False)
    name_axes(ax, "M steps taken", "objective still to gain (nats)" if to_go else "log-likelihood + log prior (nats)")
    return ax


def _alike(curves: Mapping[str, np.ndarray]) -> bool:
    return len({len(lanes_of) for lanes_of in curves.values()}) == 1


def _curves(name: str, result: Any) -> np.ndarray:
    """(lanes, max_iter + 1), −inf where there is no objective."""
    if not hasattr(result, "history"):
        raise ValueError(f"results{f'[{name!r}]' if name else ''}: expected a FitResult, got {type(result).__name__}.")
    values = np.asarray(result.history)
    return np.where(np.isfinite(values), values, -np.inf).reshape(-1, values.shape[-1])


def half_steps(trace: BoundTrace, ax: Any = None) -> Any:
    """Both half steps of EM: log-likelihood = bound + KL divergence.

    The E step lifts the bound to the log-likelihood, the M step lifts both, and the gap opens again.

    Args:
        trace: of `jaxem.trace_bound`.
        ax: of matplotlib; None makes a figure.

    Returns:
        The Axes.

    Raises:
        ValueError: if `trace` is no `BoundTrace`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> params = model.init(jax.random.key(0), x)
        >>> ax = plots.half_steps(jaxem.trace_bound(model, params, x, n_iter=2))
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['E1', 'M1', 'E2', 'M2']
    """
    if not isinstance(trace, BoundTrace):
        raise ValueError(f"trace: expected what jaxem.trace_bound returns, got {type(trace).__name__}.")
    after_e, after_m = jax.tree.map(np.asarray, trace.after_e), jax.tree.map(np.asarray, trace.after_m)
    weave = lambda name: np.stack([getattr(after_e, name), getattr(after_m, name)], 1).ravel()  # noqa: E731
    log_lik, elbo = weave("log_lik"), weave("elbo")
    ax = tidy(axes_or_new(ax))
    steps = np.arange(len(log_lik)) / 2 + 0.5
    ax.fill_between(steps, elbo, log_lik, facecolor=PALE, edgecolor=GREY, hatch="///", linewidth=0, label="KL(q ‖ p)")
    ax.plot(steps, log_lik, color=colour(0), marker="o", markersize=5, label="log-likelihood")
    ax.plot(steps, elbo, color=colour(4), linestyle="--", marker="s", markersize=4, label="bound L(q, θ)")
    if len(steps) <= 16:
        ax.set_xticks(steps, [f"{'EM'[i % 2]}{i // 2 + 1}" for i in range(len(steps))])
    ax.legend(frameon=False, loc="lower right")
    name_axes(ax, "half step", "nats, summed over the rows")
    return ax


def lanes(result: Any, ax: Any = None, *, n_bins: int = 40) -> Any:
    """How many iterations the lanes of a batch took, and how each of them ended.

    Args:
        result: of `fit_batch`, `fit_groups`, `bootstrap` or a vmapped fit: anything with `status` and `n_iter` (b,).
        ax: of matplotlib; None makes a figure.
        n_bins: most bars.

    Returns:
        The Axes: bars stacked by status.

    Raises:
        ValueError: if the result has no lanes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> params = model.init(jax.random.key(0), x)
        >>> lanes = lambda leaf: jnp.stack([leaf, leaf])
        >>> many = jaxem.fit_batch(model, jax.tree.map(lanes, params), lanes(x))
        >>> plots.lanes(many).get_legend().get_title().get_text()
        '2 lanes by status'
    """
    status, n_iter = np.asarray(result.status).ravel(), np.asarray(result.n_iter).ravel()
    if np.ndim(result.status) == 0 or not len(status):
        raise ValueError(f"result: expected lanes, status of shape (b,), got shape {np.shape(result.status)}.")
    ax = tidy(axes_or_new(ax))
    width = max(1, math.ceil((n_iter.max() - n_iter.min() + 1) / n_bins))
    edges = np.arange(n_iter.min(), n_iter.max() + width + 1, width) - 0.5
    floor = np.zeros(len(edges) - 1)
    for code in Status:
        counts = np.histogram(n_iter[status == code], edges)[0]
        if counts.sum():
            ax.bar(
                edges[:-1],
                counts,
                width,
                floor,
                align="edge",
                facecolor=colour(int(code)),
                edgecolor="white",
                linewidth=0.4,
                hatch=HATCHES[int(code) % len(HATCHES)],
                label=f"{code.name}: {counts.sum():,}",
            )
            floor = floor + counts
    headroom(ax, 0.05)
    whole_numbers(ax)
    ax.legend(frameon=False, title=f"{len(status):,} lanes by status")
    name_axes(ax, "iterations", "lanes")
    return ax


def bootstrap(
    found: Bootstrap, of: Callable, ax: Any = None, *, level: float = 0.95, names: tuple[str, ...] = ()
) -> Any:
    """The cloud of bootstrap replicates of two numbers, or the histogram of one.

    Args:
        found: of `jaxem.bootstrap`. Replicates that did not converge are left out.
        of: function of the params of one fit, which returns one number, () or (1,), or two, (2,).
        ax: of matplotlib; None makes a figure.
        level: share of the replicates inside the normal ellipse of two numbers, or the percentile interval of one.
        names: what the numbers are called on the axes.

    Returns:
        The Axes.

    Raises:
        ValueError: if `of` returns something else, the level is not between 0 and 1, or fewer than two replicates
            converged.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> from jaxem import plots
        >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> params = model.init(jax.random.key(0), x)
        >>> found = jaxem.bootstrap(model, params, x, jax.random.key(1), n_replicates=20)
        >>> plots.bootstrap(found, lambda params: params.weights[0], names=("weight",)).get_xlabel()
        'weight'
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}; 0.95 is 95 %.")
    parent, values = np.asarray(of(found.parent)), np.asarray(jax.vmap(of)(found.params))
    if parent.shape not in ((), (1,), (2,)):
        raise ValueError(f"of: expected a function that returns one number or two, got shape {parent.shape}.")
    values = values[np.asarray(found.converged)].reshape(-1, max(parent.size, 1))
    if len(values) < 2:
        raise ValueError(f"found: expected at least two replicates that converged, got {len(values)}.")
    ax = tidy(axes_or_new(ax))
    if parent.size == 1:
        _histogram(ax, values[:, 0], float(parent.reshape(())), level)
        name_axes(ax, names[0] if names else "value", "replicates")
    else:
        _cloud(ax, values, parent, level)
        name_axes(ax, *(names if len(names) == 2 else ("first value", "second value")))
    headroom(ax, 0.15)
    ax.legend(frameon=False, loc="upper center", ncols=3, columnspacing=1.2, handletextpad=0.5)
    return ax


def _histogram(ax: Any, values: np.ndarray, parent: float, level: float) -> None:
    ax.hist(values, bins="auto", color=PALE, edgecolor=GREY, linewidth=0.6, label=f"{len(values):,} replicates")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    top = 0.85  # below the legend
    ax.axvline(parent, ymax=top, color=INK, label="the fit")
    ax.axvline(low, ymax=top, color=colour(4), linestyle="--", label=f"{level:.0%} interval")
    ax.axvline(high, ymax=top, color=colour(4), linestyle="--")


def _cloud(ax: Any, values: np.ndarray, parent: np.ndarray, level: float) -> None:
    size = float(np.clip(5000 / len(values), 6, 20))
    ax.scatter(*values.T, s=size, color=colour(0), alpha=0.4, linewidths=0, label=f"{len(values):,} replicates")
    style = {"linestyle": "--", "linewidth": 1.8}
    radius = math.sqrt(-2 * math.log1p(-level))
    ax.add_patch(ellipse(values.mean(0), np.cov(values.T), radius, edgecolor=colour(4), **style))
    ax.plot([], [], color=colour(4), label=f"{level:.0%} ellipse", **style)
    ax.plot(*parent, color=INK, marker="P", markersize=9, markeredgecolor="white", linestyle="", label="the fit")
    ax.autoscale_view()
