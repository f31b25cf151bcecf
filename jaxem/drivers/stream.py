"""`fit_stream`: data that are read batch by batch, once an iteration. Host code.

    pass 0: bind a batch ─▶ merge ─▶ …            ─▶ the bound model
    pass i: E step of a batch ─▶ + (compensated) ─▶ … ─▶ one trip of the loop on the sums

The trip is that of the one loop; only the fold runs here, so every algorithm that takes one E step a trip works.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Params, PyTree
from ..algorithms.em import EM
from ..contracts import capabilities as ask
from ..contracts.checks import warn_if_rounded
from ..contracts.protocols import Algorithm, StoppingRule
from ..contracts.result import FitResult
from ..contracts.status import Status
from ..fold.chunks import FoldPlan, plan_fold
from ..fold.constants import Bound, bound_to, merge
from ..fold.sources import Summed, is_additive
from ..latent.finite import unlabelled
from ..latent.informative import informed_weight
from ..latent.units import n_units_present, total_units
from ..loop.derivative import Stop
from ..loop.loop import advance_by_sums, evaluated, start
from ..loop.run import Options, Run, end
from ..loop.state import LoopState
from ..numerics import tree as _tree
from ..numerics.processes import check_alike, together
from ..running.lanes import progress_bar
from ..sources.feed import Batch, Feed
from ..storage.checkpoint import Checkpoint, open_store, rebuilt
from ..storage.identity import fingerprint, identity_of
from .asked import check_arguments, check_model, make_options


class Sums(NamedTuple):
    """Of the E steps of batches: what they add up to, what rounding has lost of it, and the fingerprint of the rows."""

    total: PyTree
    lost: PyTree
    check: Array


class Seen(NamedTuple):
    """What pass 0 found; NumPy numbers.

    Attributes:
        weight: of all rows, of series in steps.
        n_present: rows of positive weight.
        n_rows: all rows.
        check: their fingerprint.
    """

    weight: Any
    n_present: Any
    n_rows: Any
    check: Any


class Under(NamedTuple):
    """A fit under way.

    Attributes:
        run: model, start, state of the loop.
        seen: what pass 0 found.
        first: rows and fingerprint of the first batch.
        sums: over the first batches of this pass; None before there is one.
        n_batches: how many these are.
        n_rows: theirs.
    """

    run: Run
    seen: Seen
    first: list[int]
    sums: Any = None
    n_batches: int = 0
    n_rows: int = 0


_bind = jax.jit(bound_to)
_merge = jax.jit(merge)


@jax.jit
def _count(model: Any, data: Data, weight: Array | None) -> tuple[Array, Array]:
    """Their weight, of series in steps, and how many rows have some."""
    rows = unlabelled(data)
    n_present = n_units_present(data, weight)
    return total_units(model, data, rows, weight), n_present


_fingerprint = jax.jit(fingerprint)


@jax.jit
def _begin(model: Any, params: Params, summed: Summed, options: Options) -> Run:
    params = ask.imposed(model, params)
    state = start(model, params, summed, None, algorithm=options.algorithm, max_iter=options.max_iter)
    return Run(model, params, state)


def _e_step(model: Any, params: Params, data: Data, sample_weight: Any, path: int, plan: FoldPlan) -> PyTree:
    return evaluated(model, params, plan, path).e_step(params, data, sample_weight)


@partial(jax.jit, static_argnames=("path", "plan"), donate_argnames="sums")
def _add(sums: Sums, model: Any, params: Params, data: Data, sample_weight: Any, *, path: int, plan: FoldPlan) -> Sums:
    """One batch more, by compensated addition (Kahan 1965)."""
    term = jax.tree.map(jnp.subtract, _e_step(model, params, data, sample_weight, path, plan), sums.lost)
    total = jax.tree.map(jnp.add, sums.total, term)
    lost = jax.tree.map(lambda new, old, part: (new - old) - part, total, sums.total, term)
    return Sums(total, lost, sums.check + fingerprint(data, sample_weight))


@partial(jax.jit, static_argnames="path")
def _trip(state: LoopState, model: Any, summed: Summed, options: Options, path: int) -> LoopState:
    return advance_by_sums(state, model, summed, algorithm=options.algorithm, stop=options.stop, path=path)


_end = jax.jit(end)


def fit_stream(
    model: Any,
    params: Params,
    batches: Callable[[], Iterable],
    *,
    algorithm: Algorithm = EM(),
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
    stop: StoppingRule | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> FitResult:
    """Fits a model by EM to data that do not fit in memory.

    The data are read once to bind the model (pass 0), then once an iteration, by a thread that is two batches ahead.
    The answer is that of `fit` on all rows, up to the order of additions, which are compensated.

    Args:
        model: an `EMModel` or `FiniteLatent` whose statistics add up.
        params: start, e.g. `model.init(key, data)` of a sample of rows.
        batches: returns a new iterator at each call, over pairs (data, sample_weight): data as `fit` takes them,
            sample_weight (n,) or None; of series whole ones, `Sequences` of one t. Every pass must give the same rows.
            Batches of a few sizes need few programs: others are filled up with rows of weight zero. Under
            `jax.distributed` every process yields as many, each as `shard` makes it of the rows that it has.
        algorithm: one that takes one E step an iteration: `EM()`, `SQUAREM()`, `Anderson()`, `ParabolicEM()`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`, within a batch.
        stop: as in `fit`.
        checkpoint: `Checkpoint(path)`: the fit is kept there, between two batches too, and goes on from there. Of the
            data it knows the first batch again, and the others at the end of a pass; an ended fit reads no more.
        progress: a tqdm bar over passes.

    Returns:
        A `FitResult`. It has no derivative.

    Raises:
        ValueError: naming the argument, as `fit` does, with the number of the batch; if a pass gives other rows than
            the first; if the model's statistics are the rows themselves, or the algorithm reads data more than once an
            iteration.
        RuntimeError: of the other processes, if one of several that hold the data has ended.

    Status:
        Any of `Status`; see there.

    Example:
        >>> import jax, numpy as np, jaxem
        >>> def batches():
        ...     for i in range(3):
        ...         rng = np.random.default_rng(i)
        ...         x = rng.normal(size=(500, 1)) + rng.choice([-4.0, 4.0], (500, 1))
        ...         yield x.astype("float32"), None
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> sample, _ = next(batches())
        >>> result = jaxem.fit_stream(model, model.init(jax.random.key(0), sample), batches)
        >>> np.sort(result.params.components.mean[:, 0]).round(0)
        array([-4.,  4.], dtype=...)
    """
    check_model(model)
    options = make_options(algorithm, tol, max_iter, Stop(), stop, FoldPlan(chunk_size))
    _check_one_reading(model, algorithm)
    feed = Feed(batches, model)
    bar = progress_bar(max_iter, "pass") if progress else None
    identity, several = lambda: identity_of(model, params, options), jax.process_count() > 1  # noqa: E731
    with together(), open_store(checkpoint, "fit_stream", identity, shared=several) as store:
        if several:
            check_alike(model=model, params=params, options=options)
        found = store.load()
        if found is None:
            under, options = _begun(feed, model, params, options)
        else:
            under, options = _found(feed, model, params, options, *found)
        while _goes_on(under.run.state):
            under = _read(feed, under, options, store)
            under = _after_pass(under, options)
            if bar is not None:
                bar.update()
        _save(store, feed, under)
    if bar is not None:
        bar.close()
    return _end(under.run, _summed(under.seen), None, options)


def _save(store: Any, feed: Feed, under: Under) -> None:
    notes = {"n_batches": under.n_batches, "n_rows": under.n_rows, "sizes": feed.sizes, "first": under.first}
    store.save((under.run, under.seen, under.sums), notes)


def _found(
    feed: Feed, model: Any, params: Params, options: Options, leaves: list, notes: dict
) -> tuple[Under, Options]:
    """A fit under way as it was kept; one batch is read to know what it is made of."""
    feed.sizes = notes["sizes"]
    with closing(_batches(feed, model)) as batches:
        batch = next(batches, None)
    if batch is None:
        raise ValueError("batches: expected the rows of the fit that the checkpoint keeps, got none.")
    if _first_of(batch) != notes["first"]:
        raise ValueError(
            "batches: expected the rows of the fit that the checkpoint keeps, got others in the first batch; pass "
            "another path, or delete the folder to begin anew."
        )
    model, params, options = _cast(feed, model, params, options)
    seen = Seen(*[np.asarray(0)] * 4)
    like = (_begin(_bind(model, batch.data, batch.sample_weight).model, params, _summed(seen), options), seen)
    n = len(jax.tree.leaves(like))
    run, seen = rebuilt(like, leaves[:n])
    under = Under(run, Seen(*map(np.asarray, seen)), notes["first"], None, notes["n_batches"], notes["n_rows"])
    if under.n_batches:
        under = under._replace(sums=rebuilt(_no_sums(run, batch, options), leaves[n:]))
    return under, options


def _cast(feed: Feed, model: Any, params: Params, options: Options) -> tuple[Any, Params, Options]:
    """To the dtype of the data."""
    model, params = _tree.cast_floats(model, feed.dtype), _tree.cast_data(params, feed.dtype)
    return ask.holding(model, params), params, _tree.cast_floats(options, feed.dtype)


def _goes_on(state: LoopState) -> bool:
    return bool(state.status == Status.RUNNING) and int(state.n_iter) < state.history.shape[0]


def _begun(feed: Feed, model: Any, params: Params, options: Options) -> tuple[Under, Options]:
    """Pass 0: the model bound to all rows, which are checked."""
    bound: Bound | None = None
    first: Batch | None = None
    weight, n_present, n_rows, check = 0.0, 0, 0, 0
    for batch in _batches(feed, model):
        if first is None:
            first = batch
            warn_if_rounded(feed.example)
            model, params, options = _cast(feed, model, params, options)
        try:
            check_arguments(model, params, batch.data, batch.sample_weight, is_whole=False)
        except ValueError as error:
            raise ValueError(f"batch {batch.number}: {error}") from None
        some, present = map(float, _count(model, batch.data, batch.sample_weight))
        weight, n_present, n_rows = weight + some, n_present + int(present), n_rows + batch.n_rows
        check = (check + int(_fingerprint(batch.data, batch.sample_weight))) % 2**32
        if present:
            new = _bind(model, batch.data, batch.sample_weight)
            bound = new if bound is None else _merge(bound, new)
        if batch is first:
            _check_algorithm(bound or _bind(model, batch.data, batch.sample_weight), params, batch, options)
    if first is None:
        raise ValueError("batches: expected at least one row, got none.")
    model = (bound or _bind(model, first.data, first.sample_weight)).model
    seen = Seen(np.asarray(weight, feed.dtype), np.asarray(n_present), np.asarray(n_rows), np.uint32(check))
    run = _begin(model, params, _summed(seen), options)
    return Under(run, seen, _first_of(first)), options


def _batches(feed: Feed, model: Any, skip: int = 0) -> Generator[Batch, None, None]:
    """The batches but the first `skip`, without weight for rows that say nothing."""
    with closing(feed.one_pass(skip)) as batches:
        for batch in batches:
            yield batch._replace(sample_weight=informed_weight(model, batch.data, batch.sample_weight))


def _first_of(batch: Batch) -> list[int]:
    """What tells the first batch from that of other data."""
    return [batch.n_rows, int(_fingerprint(batch.data, batch.sample_weight))]


def _no_sums(run: Run, batch: Batch, options: Options) -> Sums:
    """Zeros; the statistics of the two paths may have different shapes."""
    e_step = partial(_e_step, path=int(run.state.path), plan=_plan(batch, options))
    shapes = jax.eval_shape(e_step, run.model, run.state.params, batch.data, batch.sample_weight)
    zero = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)  # noqa: E731
    return Sums(zero(), zero(), jnp.zeros((), jnp.uint32))


def _plan(batch: Batch, options: Options) -> FoldPlan:
    return plan_fold(unlabelled(batch.data), options.plan.chunk_size)


def _check_one_reading(model: Any, algorithm: Algorithm) -> None:
    if not is_additive(model):
        raise ValueError(
            f"model: expected statistics that add up over batches, got {type(model).__name__}, whose statistics are "
            "the rows themselves; fit it in memory, or to a sample of the rows."
        )
    if ask.by_rows(algorithm) or ask.has_fixed_length(algorithm):
        raise ValueError(
            "algorithm: expected one that takes one E step over all rows an iteration, got "
            f"{type(algorithm).__name__}; use EM(), SQUAREM(), Anderson() or ParabolicEM()."
        )


def _check_algorithm(bound: Bound, params: Params, batch: Batch, options: Options) -> None:
    """Raises before the rest is read if the algorithm reads data more than once an iteration."""

    def once(model: Any, params: Params, data: Data, weight: Any) -> LoopState:
        one = jnp.ones((), jax.tree.leaves(params)[0].dtype)
        run = _begin(model, params, Summed(None, None, one, one), options)
        stats, objective = _e_step(model, run.state.params, data, weight, 1, FoldPlan(options.plan.chunk_size))
        return _trip(run.state, model, Summed(stats, objective, one, one), options, 1)

    jax.eval_shape(once, bound.model, params, batch.data, batch.sample_weight)


def _read(feed: Feed, under: Under, options: Options, store: Any) -> Under:
    """The rest of a pass: E steps at the params that the loop evaluates next."""
    run = under.run
    path = int(run.state.path)
    with closing(_batches(feed, run.model, under.n_batches)) as batches:
        for batch in batches:
            sums = _no_sums(run, batch, options) if under.sums is None else under.sums
            plan = _plan(batch, options)
            sums = _add(sums, run.model, run.state.params, batch.data, batch.sample_weight, path=path, plan=plan)
            under = under._replace(sums=sums, n_batches=batch.number + 1, n_rows=under.n_rows + batch.n_rows)
            if store.due():
                _save(store, feed, under)
    return under


def _after_pass(under: Under, options: Options) -> Under:
    """One trip of the loop; the sums are empty again.

    Raises:
        ValueError: if the rows of the pass were not those of pass 0.
    """
    seen = under.seen
    if under.n_rows != seen.n_rows:
        raise ValueError(
            f"batches: expected the {seen.n_rows} rows of the first pass in each, got {under.n_rows}; return a new "
            "iterator over all rows at every call."
        )
    if np.asarray(under.sums.check) != seen.check:
        raise ValueError(
            f"batches: expected the same rows in each pass, got {seen.n_rows} rows with other numbers or weights than "
            "in the first; draw random rows from a seed of their own, so that each pass draws the same."
        )
    state = _trip(under.run.state, under.run.model, _summed(seen, under.sums.total), options, int(under.run.state.path))
    return Under(under.run._replace(state=state), seen, under.first)


def _summed(seen: Seen, total: tuple = (None, None)) -> Summed:
    stats, objective = total
    return Summed(stats, objective, seen.weight, seen.n_present)
