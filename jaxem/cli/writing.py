"""What the command leaves in a folder: all of it, or nothing."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

from . import row_files
from .failure import Failure, first_line, listed
from .fits import HOLDINGS, Fits
from .rows import REASONS, BadRows, Table

FILES = ("fits.csv", "candidates.csv", "components.csv", "bad_rows.csv", "summary.json", "report.html", "models")
SERIES_FILES = ("states.csv", "params.csv", "series.png", "transitions.png")
_MOST_COLUMNS = 1000  # of components.csv


def check_folder(folder: Path, force: bool) -> None:
    """Finds out before the work begins whether the results can be written.

    Raises:
        Failure: if the folder is there and holds something, and either `force` is off or it is not ours alone.
    """
    try:
        folder = folder.resolve()
        if folder.exists():
            if folder.is_mount():
                raise Failure(f"--out {folder}: is a mount point, which cannot be replaced; name a folder in it")
            if not folder.is_dir():
                raise Failure(f"--out {folder}: expected a folder, got a file")
            inside = sorted(path.name for path in folder.iterdir())
            ours = {*FILES, *SERIES_FILES, *row_files.FILES}
            foreign = [name for name in inside if name not in ours]
            if foreign and force:
                raise Failure(f"--out {folder}: --force replaces results only, and there is also {listed(foreign, 3)}")
            if inside and not force:
                raise Failure(f"--out {folder}: already holds {listed(inside, 3)}; --force replaces results")
        above = next(path for path in [*folder.absolute().parents] if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise Failure(f"--out {folder}: cannot be made in {above}")
    except (OSError, ValueError) as error:
        raise Failure(f"--out {folder}: {getattr(error, 'strerror', None) or first_line(error)}") from error


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the place, which takes that place at the end, unless an error comes first."""
    folder = folder.resolve()
    mark = secrets.token_hex(4)
    beside, old = folder.with_name(f".{folder.name}.{mark}.part"), folder.with_name(f".{folder.name}.{mark}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise Failure(f"--out {folder}: cannot be written: {error.strerror or first_line(error)}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_results(folder: Path, table: Table, fits: Fits, criterion: str) -> list[str]:
    """Writes the tables and the params; returns what is to be said about them."""
    import polars as pl

    heads: dict[str, Any] = {"group": [str(label) if label is not None else "all" for label in fits.labels]}
    rows = {**heads, "n_rows": fits.n_rows, "n_components": np.array(fits.n_components)[fits.chosen]}
    rows |= {"status": _status(fits.best("status")), criterion: fits.best("criterion")}
    rows |= {name: fits.best(name) for name in ("log_lik", "n_parameters", "n_iter", *HOLDINGS)}
    write_csv(folder / "fits.csv", rows)
    if len(fits.n_components) > 1:
        n, g = len(fits.n_components), len(fits.labels)
        every: dict[str, Any] = {name: np.repeat(np.array(values, object), n) for name, values in heads.items()}
        every["n_components"] = np.tile(fits.n_components, g)
        every["chosen"] = (np.arange(n) == fits.chosen[:, None]).ravel()
        every |= {"status": _status(fits.status.T.ravel()), criterion: fits.criterion.T.ravel()}
        every |= {name: getattr(fits, name).T.ravel() for name in ("log_lik", "n_parameters", "n_iter", *HOLDINGS)}
        write_csv(folder / "candidates.csv", every)
    parts, notes = component_columns(fits, table.names, heads)
    pl.concat([pl.DataFrame(part) for part in parts]).sort("_group", "component", maintain_order=True).drop(
        "_group"
    ).write_csv(folder / "components.csv")
    write_bad_rows(folder / "bad_rows.csv", table.bad, table.place)
    (folder / "models").mkdir()
    for k, model, params in zip(fits.n_components, fits.models, fits.params, strict=True):
        # of one fit without the axis of groups, so that what is loaded goes into predict and diagnose as it is
        own = (
            jax.tree.map(jnp.asarray, params)
            if fits.grouped
            else jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), params)
        )
        jaxem.save(folder / "models" / f"k={k}.npz", model, own)
    return notes


def component_columns(fits: Fits, names: list[str], heads: dict) -> tuple[list[dict[str, Any]], list[str]]:
    """Columns of components.csv, for each number of components, of the groups that it was chosen for; and notes."""
    parts, notes = [], []
    for i, k in enumerate(fits.n_components):
        groups = np.flatnonzero(fits.chosen == i)
        if not len(groups):
            continue
        params = fits.params[i]
        columns: dict[str, Any] = {"_group": np.repeat(groups, k)}
        columns |= {name: np.repeat(np.array(values, object)[groups], k) for name, values in heads.items()}
        columns["component"] = np.tile(np.arange(1, k + 1), len(groups))
        columns["weight"] = params.weights[groups].ravel()
        axes = fits.models[i].family.component_axes()
        for field, leaf, axis in zip(params.components._fields, params.components, axes, strict=True):
            leaf = leaf[groups]
            if axis is None:  # shared by the components
                leaf = np.broadcast_to(leaf[:, None], (len(groups), k, *leaf.shape[1:]))
            found = _entries(field, leaf.reshape(len(groups) * k, *leaf.shape[2:]), names)
            if len(columns) + len(found) > _MOST_COLUMNS:
                notes.append(f"components.csv leaves out {field}, {len(found):,} columns; models/ has them")
            else:
                columns |= found
        parts.append(columns)
    return parts, list(dict.fromkeys(notes))


def _entries(field: str, leaf: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of the entries of a param, each once where it is symmetric."""
    if leaf.ndim == 1:
        return {field: leaf}
    if leaf.ndim == 2:
        return {f"{field} {a}": leaf[:, i] for i, a in enumerate(names)}
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1)]
    if len(pairs) > _MOST_COLUMNS:
        return dict.fromkeys(map(str, pairs), leaf[:, 0, 0])  # counted only
    return {f"{field} {names[j]} {names[i]}": leaf[:, i, j] for i, j in pairs}


def write_bad_rows(file: Path, bad: BadRows, place: str) -> None:
    """One line for each row that was left out; no file where there is none."""
    if len(bad.places):
        reasons = np.array(REASONS, object)[bad.reasons]
        values = ["" if value is None else str(value) for value in bad.values]
        write_csv(file, {place: bad.places, "column": bad.columns, "reason": reasons, "value": values})


def write_summary(file: Path, summary: dict[str, Any]) -> None:
    """The settings, counts and times."""
    file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_csv(file: Path, columns: dict[str, Any]) -> None:
    """Columns by name, arrays or lists of text."""
    import polars as pl

    text = lambda values: isinstance(values, list) or values.dtype == object  # noqa: E731
    series = [
        pl.Series(name, list(values), pl.String) if text(values) else pl.Series(name, values)
        for name, values in columns.items()
    ]
    pl.DataFrame(series).write_csv(file)


def _status(codes: np.ndarray) -> list[str]:
    names = {int(status): status.name for status in jaxem.Status}
    return [names[code] for code in codes.tolist()]
