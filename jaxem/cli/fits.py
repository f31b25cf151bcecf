"""The fits of a table: for every number of components, and the best of them by a criterion, group by group."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
    "exponential": lambda x: x >= 0,
    "beta": lambda x: (x > 0) & (x < 1),
    "poisson": _COUNT,
    "negative-binomial": _COUNT,
    "bernoulli": lambda x: (x == 0) | (x == 1),
}
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


class Fits(NamedTuple):
    """The fits of G groups with each of K numbers of components, on the host.

    Attributes:
        labels: (G,); [None] without groups.
        n_rows: (G,).
        n_components: (K,).
        criterion: (K, G), lower is better; NaN where a fit failed.
        status, n_iter, n_parameters, log_lik: (K, G).
        chosen: (G,) index of the best number of components; of the first where all failed.
        models: (K,) as they were asked for, not bound.
        params: (K,) params whose leaves lead with the groups, heaviest component first.
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
    selection = jaxem.select(
        models, jax.random.key(job.seed), values, criterion=job.criterion, n_restarts=job.n_restarts,
        tol=job.tol, max_iter=job.max_iter, progress=job.progress,
    )  # fmt: skip
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
    rows: dict[str, list[np.ndarray]] = {
        name: [] for name in ("criterion", "status", "n_iter", "n_parameters", "log_lik")
    }
    params = []
    for model in models:
        groups = jaxem.fit_groups(
            model, jax.random.key(job.seed), values, codes, n_restarts=job.n_restarts, tol=job.tol,
            max_iter=job.max_iter, progress=job.progress,
        ).ordered()  # fmt: skip
        log_lik, status = np.asarray(groups.log_lik, float), np.asarray(groups.status)
        p = np.broadcast_to(np.asarray(_count_parameters(groups.fits.model, groups.params)), log_lik.shape)
        score = -2 * log_lik + p * (2.0 if job.criterion == "aic" else np.log(n_rows))
        if job.criterion in ("icl", "icl_entropy"):
            score = score + 2 * _unsure(job.criterion, groups, values, codes)
        rows["criterion"].append(np.where(np.asarray(groups.failed), np.nan, score))
        for name, value in (("status", status), ("n_iter", groups.n_iter), ("n_parameters", p), ("log_lik", log_lik)):
            rows[name].append(np.asarray(value))
        params.append(jax.tree.map(np.asarray, groups.params))
    stacked = {name: np.stack(parts) for name, parts in rows.items()}
    chosen = np.argmin(np.where(np.isnan(stacked["criterion"]), np.inf, stacked["criterion"]), 0)
    return Fits(
        labels, n_rows, job.n_components, chosen=chosen, models=models, params=params, **stacked
    )  # fmt: skip


@jax.jit
def _count_parameters(models: Any, params: Any) -> Any:
    return jax.vmap(lambda model, params: jnp.asarray(model.n_parameters(params)))(models, params)


def _unsure(criterion: str, groups: jaxem.GroupsResult, values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Σ −log of the largest responsibility, or of the entropies of the responsibilities, by group: (G,)."""
    r = np.asarray(groups.responsibilities(values, codes), float)
    log_r = np.log(np.where(r > 0, r, 1))
    rows = -np.sum(r * log_r, 1) if criterion == "icl_entropy" else -log_r[np.arange(len(r)), r.argmax(1)]
    return np.bincount(codes, rows, len(groups.labels))
