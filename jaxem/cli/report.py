"""The report: one HTML page that needs nothing beside it."""

import base64
import html
from typing import Any

import numpy as np

import jaxem

from .fits import HOLDINGS, Fits
from .rows import Table

_HEADS = ("smallest count", "largest ratio", "at the floor")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: 0.15em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
img { max-width: 100%; } figure { margin: 1em 0; } figcaption { color: #555; }
code { background: #f3f3f3; padding: 0.1em 0.3em; } .bad { color: #a11; }
"""


def write_report(
    table: Table, fits: Fits, summary: dict[str, Any], pictures: list[tuple[str, bytes]], notes: list[str], top: int
) -> str:
    """The page.

    Args:
        table: what was fitted.
        fits: the fits.
        summary: settings, counts and times, as in summary.json.
        pictures: captions and PNG files.
        notes: sentences for the reader.
        top: how many groups and bad rows to list.
    """
    parts = [f"<h1>{_text(summary['table'])}</h1>", f"<p><code>{_text(summary['command'])}</code></p>"]
    parts += [f"<p>{_text(line)}</p>" for line in [*sentences(table, fits, summary), *notes]]
    parts.append("<h2>How the fits ended</h2>" + _rows(["status", "fits", "what it means"], _statuses(fits)))
    if len(fits.n_components) > 1:
        parts.append(f"<h2>Components, by {_text(summary['criterion']).upper()}</h2>" + _choice(fits))
    parts += [_figure(caption, picture) for caption, picture in pictures]
    if fits.labels[0] is not None:
        parts.append(f"<h2>The {min(top, len(fits.labels))} groups with the most rows</h2>" + _largest(fits, top))
    else:
        parts.append("<h2>Components</h2>" + _components(fits, table.names))
    if len(table.bad.places):
        parts.append("<h2>Rows left out</h2>" + _bad(table, top))
    times = "".join(f"{name} {seconds:.2f} s, " for name, seconds in summary["seconds"].items())
    parts.append(f"<p><small>{times}jaxem {summary['jaxem']}, jax {summary['jax']} on {summary['device']}</small></p>")
    title = _text(summary["table"])
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def sentences(table: Table, fits: Fits, summary: dict[str, Any]) -> list[str]:
    """What was read and fitted, in words: for the page and for the terminal."""
    read, n_bad = len(table.values) + len(table.bad.places), len(table.bad.places)
    columns = ", ".join(table.names) if len(table.names) <= 8 else f"{len(table.names):,} columns"
    groups = "" if fits.labels[0] is None else f" in {len(fits.labels):,} groups"
    ks = fits.n_components
    k = f"{ks[0]}" if len(ks) == 1 else f"{ks[0]} to {ks[-1]}"
    lines = [
        f"{read:,} rows read, {n_bad:,} left out, {len(table.values):,} fitted{groups}: {columns}.",
        f"Mixtures of {k} components, family {summary['family']}, the best of {summary['restarts']} starts each.",
    ]
    if summary["min_count"] > 0:
        least = f"{summary['min_count']:g}"
        lines.append(f"A fit counts only where every component holds at least {least} rows and none lies at the floor.")
    else:
        lines.append("Any maximum counts, with components of few rows, and at the floor, too (--min-count 0).")
    if n_bad:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in table.bad.counts().items())
        lines.append(f"Rows left out: {reasons}. The first: {table.bad.line(0, table.place)}.")
    if fits.n_failed:
        lines.append(f"{fits.n_failed:,} of {len(fits.labels):,} fits failed; fits.csv has their status.")
    return lines


def _statuses(fits: Fits) -> list[list[str]]:
    codes, counts = np.unique(fits.best("status"), return_counts=True)
    return [
        [jaxem.Status(code).name, f"{count:,}", jaxem.Status(code).explanation]
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
    ]


def _choice(fits: Fits) -> str:
    if fits.labels[0] is None:
        cells = [
            [
                f"{k}{' (chosen)' if i == fits.chosen[0] else ''}",
                _number(fits.criterion[i, 0]),
                _number(fits.log_lik[i, 0]),
                *(_number(getattr(fits, name)[i, 0]) for name in HOLDINGS),
            ]
            for i, k in enumerate(fits.n_components)
        ]
        return _rows(["components", "criterion", "log-likelihood", *_HEADS], cells)
    counts = np.bincount(fits.chosen, minlength=len(fits.n_components))
    return _rows(["components", "groups"], [[str(k), f"{c:,}"] for k, c in zip(fits.n_components, counts, strict=True)])


def _largest(fits: Fits, top: int) -> str:
    ks = np.array(fits.n_components)[fits.chosen]
    criterion, status = fits.best("criterion"), [jaxem.Status(code).name for code in fits.best("status").tolist()]
    order = np.argsort(-fits.n_rows, kind="stable")[:top]
    cells = [
        [
            str(fits.labels[g]),
            f"{fits.n_rows[g]:,}",
            str(ks[g]),
            _number(float(criterion[g])),
            str(status[g]),
            *(_number(float(fits.best(name)[g])) for name in HOLDINGS),
        ]
        for g in order
    ]
    return _rows(["group", "rows", "components", "criterion", "status", *_HEADS], cells)


def _components(fits: Fits, names: list[str], most: int = 12) -> str:
    params = fits.params_of(0)
    first = params.components[0]  # the means, or what takes their place
    field = params.components._fields[0]
    if first.ndim != 2:
        return _rows(["component", "weight"], [[str(j + 1), f"{w:.4f}"] for j, w in enumerate(params.weights)])
    cells = [
        [str(j + 1), f"{w:.4f}", *(_number(v) for v in first[j][:most])] for j, w in enumerate(params.weights.tolist())
    ]
    return _rows(["component", "weight", *(f"{field} {name}" for name in names[:most])], cells)


def _bad(table: Table, top: int) -> str:
    n = min(top, len(table.bad.places))
    items = "".join(f"<li>{_text(table.bad.line(i, table.place))}</li>" for i in range(n))
    more = f"<p>bad_rows.csv has all {len(table.bad.places):,}.</p>" if n < len(table.bad.places) else ""
    return f"<ul>{items}</ul>{more}"


def _rows(head: list[str], cells: list[list[str]]) -> str:
    line = lambda tag, row: "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in row) + "</tr>"  # noqa: E731
    return "<table>" + line("th", head) + "".join(line("td", row) for row in cells) + "</table>"


def _figure(caption: str, picture: bytes) -> str:
    source = base64.b64encode(picture).decode()
    name = _text(caption)
    return f'<figure><img alt="{name}" src="data:image/png;base64,{source}"><figcaption>{name}</figcaption></figure>'


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:,.6g}"


def _text(text: Any) -> str:
    return html.escape(str(text))
