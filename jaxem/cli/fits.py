"""The fits of a table: for every number of components, and the best of them by a criterion, group by group."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxem

from .failure import Failure
from .rows import Table

FAMILIES: dict[str, Callable[..., Any]] = {
    "full": jaxem.FullNormal,
    "diagonal": jaxem.DiagonalNormal,
    "spherical": jaxem.SphericalNormal,
    "tied": jaxem.TiedNormal,
    "student-t": jaxem.StudentT,
    "log-normal": jaxem.LogNormal,
    "gamma": jaxem.Gamma,
    "weibull": jaxem.Weibull,
    "exponential": jaxem.Exponential,
    "beta": jaxem.Beta,
    "poisson": jaxem.Poisson,
    "negative-binomial": jaxem.NegativeBinomial,
    "bernoulli": jaxem.Bernoulli,
}
_COUNT = lambda x: (x >= 0) & (x == np.round(x))  # noqa: E731
SUPPORTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log-normal": lambda x: x > 0,
    "gamma": lambda x: x > 0,
    "weibull": lambda x: x > 0,
    "exponential": lambda x: x >= 0,
    "beta": lambda x: (x > 0) & (x < 1),
    "poisson": _COUNT,
    "negative-binomial": _COUNT,
    "bernoulli": lambda x: (x == 0) | (x == 1),
}
HOLDINGS = ("smallest_count", "largest_ratio", "n_at_floor")
_MOST_ENTRIES = 2_000_000  # of the covariances of one fit: beyond, a full one is no model of anybody's rows


class Job(NamedTuple):
    """What is asked of every group."""

    family: str
    n_components: list[int]
    criterion: str
    n_restarts: int
    tol: float
    max_iter: int
    seed: int
    floor: float | None
    progress: bool
    min_count: float = 5.0

    @property
    def admissible(self) -> jaxem.Admissible | None:
        """Which maxima are answers; None: any."""
        return jaxem.Admissible(self.min_count) if self.min_count > 0 else None


class Fits(NamedTuple):
    """The fits of G groups with each of K numbers of components, on the host.

    Attributes:
        labels: (G,); [None] without groups.
        n_rows: (G,).
        n_components: (K,).
        criterion: (K, G), lower is better; NaN where a fit failed or is not admissible.
        status, n_iter, n_parameters, log_lik: (K, G).
        smallest_count, largest_ratio, n_at_floor: (K, G) of the components, see `jaxem.diagnose`; NaN where the family
            has none.
        chosen: (G,) index of the best number of components; of the first where all failed.
        models: (K,) as they were asked for, not bound.
        params: (K,) params whose leaves lead with the groups, heaviest component first.
        results: (K,) `FitResult`, or `GroupsResult` with groups, heaviest component first.
        values: (n, d) what was fitted.
    """

    labels: np.ndarray
    n_rows: np.ndarray
    n_components: list[int]
    criterion: np.ndarray
    status: np.ndarray
    n_iter: np.ndarray
    n_parameters: np.ndarray
    log_lik: np.ndarray
    chosen: np.ndarray
    models: list[Any]
    params: list[Any]
    smallest_count: np.ndarray
    largest_ratio: np.ndarray
    n_at_floor: np.ndarray
    results: list[Any]
    values: np.ndarray

    def best(self, name: str) -> np.ndarray:
        """(G,) of the chosen fits."""
        return getattr(self, name)[self.chosen, np.arange(len(self.chosen))]

    def params_of(self, group: int) -> Any:
        """The params of the fit chosen for one group."""
        return jax.tree.map(lambda leaf: leaf[group], self.params[self.chosen[group]])

    @property
    def grouped(self) -> bool:
        """Whether there are groups; else all rows are one."""
        return self.labels[0] is not None

    @property
    def n_failed(self) -> int:
        """Groups of which no fit is usable."""
        return int(np.isnan(self.best("criterion")).sum())


def make_models(job: Job, n_columns: int) -> list[Any]:
    """A mixture for each number of components.

    Raises:
        Failure: where a floor is given to a family without one, or the covariances would fill the memory.
    """
    make: Callable[..., Any] = FAMILIES[job.family]
    if job.family in ("full", "tied", "student-t"):
        entries = n_columns**2 * (max(job.n_components) if job.family != "tied" else 1)
        if entries > _MOST_ENTRIES:
            raise Failure(
                f"--family {job.family}: {n_columns:,} columns make {entries:,} covariances a fit, more than "
                f"{_MOST_ENTRIES:,}; choose fewer with --columns, or --family diagonal"
            )
    if job.floor is not None:
        if job.family not in ("full", "diagonal", "spherical", "tied", "log-normal"):
            raise Failure(f"--floor: expected a normal family, got --family {job.family}, which has none")
        make = partial(make, floor=job.floor)
    return [jaxem.Mixture(make(), k) for k in job.n_components]


def outside(table: Table, family: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) which rows are outside of the family's support, and the first column to blame."""
    if family not in SUPPORTS:
        nothing = np.zeros(len(table.values), bool)
        return nothing, nothing.astype(int)
    bad = np.logical_not(SUPPORTS[family](table.values))
    return np.asarray(bad.any(1)), np.argmax(bad, 1)


def fit_table(table: Table, job: Job) -> Fits:
    """Fits every group with every number of components, and chooses."""
    models = make_models(job, table.values.shape[1])
    values = table.values.astype(np.float64 if jax.config.jax_enable_x64 else np.float32)  # type: ignore[attr-defined]
    return _one(models, values, job) if table.codes is None else _groups(models, values, table, job)


def _one(models: list[Any], values: np.ndarray, job: Job) -> Fits:
    selection = jaxem.select(models, jax.random.key(job.seed), values, **_options(job))
    results = [result.ordered() for result in selection.results]
    column = lambda name: np.array(selection.table[name], float)[:, None]  # noqa: E731
    return Fits(
        labels=np.array([None], object),
        n_rows=np.array([len(values)]),
        n_components=job.n_components,
        criterion=column("criterion"),
        status=np.array([[int(result.status)] for result in results]),
        n_iter=column("n_iter").astype(int),
        n_parameters=column("n_parameters").astype(int),
        log_lik=column("log_lik"),
        chosen=np.array([selection.index]),
        models=models,
        params=[jax.tree.map(lambda leaf: np.asarray(leaf)[None], result.params) for result in results],
        results=results,
        values=values,
        **_holdings([result.holdings() for result in results], 1),
    )


def _groups(models: list[Any], values: np.ndarray, table: Table, job: Job) -> Fits:
    codes, labels = table.codes, table.labels
    assert codes is not None and labels is not None
    n_rows = np.bincount(codes, minlength=len(labels))
    if n_rows.max() < min(job.n_components):
        raise Failure(
            f"--by: expected groups of rows, got {len(labels):,} groups of at most {n_rows.max():,}; is the column an "
            "identifier?"
        )
    selection = jaxem.select(models, jax.random.key(job.seed), values, group_ids=codes, **_options(job))
    results = [result.ordered() for result in selection.results]
    grid = lambda name: np.asarray(selection.table[name]).reshape(len(labels), len(models)).T  # noqa: E731
    return Fits(
        labels=labels,
        n_rows=n_rows,
        n_components=job.n_components,
        criterion=grid("criterion"),
        status=np.stack([np.asarray(result.status) for result in results]),
        n_iter=grid("n_iter"),
        n_parameters=grid("n_parameters"),
        log_lik=grid("log_lik"),
        chosen=selection.index,
        models=models,
        params=[jax.tree.map(np.asarray, result.params) for result in results],
        results=results,
        values=values,
        **_holdings([result.fits.holdings() for result in results], len(labels)),
    )


def _options(job: Job) -> dict[str, Any]:
    return {
        "criterion": job.criterion, "n_restarts": job.n_restarts, "tol": job.tol, "max_iter": job.max_iter,
        "progress": job.progress, "admissible": job.admissible,
    }  # fmt: skip


def _holdings(found: list[Any], n_groups: int) -> dict[str, np.ndarray]:
    """What the components hold, for every number of them and every group: (K, G) each."""

    def grid(name: str) -> np.ndarray:
        values = [getattr(one, name) for one in found]
        known = [np.nan if value is None else np.asarray(value, float) for value in values]
        return np.stack([np.broadcast_to(value, n_groups) for value in known])

    return {name: grid(name) for name in HOLDINGS}
