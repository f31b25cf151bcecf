"""Which component each row of a table belongs to, and how sure that is."""

from typing import NamedTuple

import numpy as np

import jaxem

from .fits import Fits
from .rows import REASONS, Table


class Classes(NamedTuple):
    """All rows of a file, in its order, those that were left out among them.

    Attributes:
        cluster: (m,) number of the most probable component, from 1, the heaviest of its group; 0 where there is none.
        probabilities: (m, k) of the components, k the most of any group; NaN where there is none.
        left_out: (m,) why a row has no cluster, "" where it has one.
    """

    cluster: np.ndarray
    probabilities: np.ndarray
    left_out: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """(m,) of the cluster itself; NaN where there is none."""
        rows = np.arange(len(self.cluster))
        return self.probabilities[rows, np.maximum(self.cluster - 1, 0)]


def classes_of(table: Table, fits: Fits) -> Classes:
    """Every row by the fit chosen for its group."""
    probabilities = _probabilities(table, fits)
    known = np.asarray(np.isfinite(probabilities).any(1))
    cluster = np.where(known, np.argmax(np.where(np.isnan(probabilities), -1, probabilities), 1) + 1, 0)
    why = np.full(len(known), "", object)
    codes = np.zeros(len(known), int) if table.codes is None else table.codes
    usable = np.isfinite(fits.best("criterion"))
    names = np.array([f"no fit: {jaxem.Status(int(code)).name}" for code in fits.best("status")], object)
    why[~known] = np.where(usable[codes], "no component explains it", names[codes])[~known]
    return _with_bad_rows(table, Classes(cluster, probabilities, why))


def _probabilities(table: Table, fits: Fits) -> np.ndarray:
    """(n, k) for the rows that were fitted."""
    found = np.full((len(table.values), max(fits.n_components)), np.nan, fits.values.dtype)
    usable = np.isfinite(fits.best("criterion"))
    for i, (k, result) in enumerate(zip(fits.n_components, fits.results, strict=True)):
        here = (fits.chosen == i) & usable
        if not here.any():
            continue
        if table.codes is None:
            found[:, :k] = result.model.responsibilities(result.params, fits.values)
        else:
            rows = np.flatnonzero(here[table.codes])
            found[rows, :k] = result.responsibilities(fits.values[rows], table.codes[rows])
    return found


def _with_bad_rows(table: Table, fitted: Classes) -> Classes:
    order = np.argsort(np.concatenate([table.places, table.bad.places]), kind="stable")
    n_bad = len(table.bad.places)
    reasons = np.array(REASONS, object)[table.bad.reasons]
    none = np.full((n_bad, fitted.probabilities.shape[1]), np.nan, fitted.probabilities.dtype)
    joined = Classes(
        np.concatenate([fitted.cluster, np.zeros(n_bad, int)]),
        np.concatenate([fitted.probabilities, none]),
        np.concatenate([fitted.left_out, reasons]),
    )
    return Classes(*(leaf[order] for leaf in joined))
