"""Many fits side by side, without one waiting for another. Host code.

    begin all ─▶ gather those still running ─▶ a few iterations ─▶ scatter home ─▶ … ─▶ end all

Side by side all lanes of a program wait for the slowest. So a program runs a few iterations only, on as many lanes as
are still running, rounded up to the next of a ladder of sizes: one compiled program a size. The iterations are those of
the one loop (`fitting.begin`, `go_on`, `end`), so any number of rounds gives the same fits. Several local devices each
take an equal part of the lanes, and run their rounds at the same time in one program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .._typing import Array, Data, Params, PyTree
from ..contracts.result import FitResult
from ..contracts.status import Status, is_failure
from ..fold.chunks import HOLD_BYTES
from ..latent.finite import unlabelled
from ..loop.run import Options, Run, begin, begin_bound, end, go_on
from ..numerics import tree as _tree
from ..numerics.processes import is_sharded
from ..storage.checkpoint import Checkpoint, open_store, rebuilt
from ..storage.identity import identity_of
from .lanes import Lanes, over, progress_bar

# of a round: one at first, as many fits end after five; a sixteenth of those behind its lanes later. Measured on 1024
# mixtures: longer rounds leave lanes waiting, shorter ones save nothing more (`python -m benchmarks.scale.lanes`)
_FIRST_TRIPS, _GROWTH = 1, 16
_SMALLEST = 8  # lanes on a device
_NUMBERS = HOLD_BYTES  # of all fits that go side by side, unless the user says how many: 5 GB of float32


class Problem(NamedTuple):
    """What one lane fits. `start` is a function, called where a fit begins and nowhere else.

    The model may be bound to the data before, as where many lanes share both.
    """

    model: Any
    start: Callable[[], Params]
    data: Data
    sample_weight: Any
    options: Options
    is_bound: bool = False

    def begin(self) -> Run:
        """A run that has not taken a step."""
        how = begin_bound if self.is_bound else begin
        return how(self.model, self.start(), self.data, self.sample_weight, self.options)

    def go_on(self, run: Run, n_iter: Any, paths: tuple[int, ...] = (0, 1)) -> Run:
        """The run after up to so many more M steps."""
        return go_on(run, self.data, self.sample_weight, self.options, n_iter, paths)

    def end(self, run: Run) -> FitResult:
        """The result of a run that has stopped."""
        return end(run, self.data, self.sample_weight, self.options)


class Work(NamedTuple):
    """What the lanes of one call do; static: `problem(static, lane, shared) -> Problem`, a module-level function."""

    problem: Callable
    static: Any


class Finished(NamedTuple):
    """Results that lead with the lanes, and E steps that lanes needed and that ran for them."""

    fits: FitResult
    needed: int
    run: int


def ladder(most: int) -> list[int]:
    """Sizes below `most`, three an octave, multiples of 8; and `most` itself."""
    octaves = range(most.bit_length() + 1)
    sizes = {-(-int(np.ceil(factor * 2**j)) // 8) * 8 for factor in (1, 1.26, 1.59) for j in octaves}
    return [*sorted(size for size in sizes if size < most), most]


def can_go_in_rounds(plan: str, *trees: PyTree) -> bool:
    """Whether lanes go side by side, have values, and lie on one device each."""
    return plan == "lanes" and not _tree.is_tracing(*trees) and not is_sharded(trees)


def most_lanes(max_lanes: int | None, n_lanes: int, lane_size: int) -> int:
    """How many lanes may go side by side: `max_lanes`, or as many as have room for `lane_size` numbers each."""
    if max_lanes is None:
        max_lanes = _NUMBERS // max(lane_size, 1)
    return max(1, min(max_lanes, n_lanes))


def size_of_fit(data: Data, k: int) -> int:
    """Numbers that a fit of k components keeps: the rows, their weights, log densities and responsibilities."""
    leaves = jax.tree.leaves(unlabelled(data))
    n = np.shape(leaves[0])[0] if leaves and np.ndim(leaves[0]) else 1
    return sum(int(np.prod(np.shape(leaf))) for leaf in leaves) + n * (2 * k + 1)


# --- programs; in each, `index` says which lanes


class _Home(NamedTuple):
    """All lanes: what they read, and what is fixed of their runs."""

    lanes: Lanes
    model: Any = None
    start: Params = None

    def problem(self, work: Work, i: Array) -> Problem:
        """That of lane i."""
        own, of_problem, shared = self.lanes.batched, self.lanes.of_problem, self.lanes.shared
        lane = _tree.take(own, i)
        if of_problem is not None:
            lane = (lane, _tree.take(of_problem, i // (_tree.n_rows(own) // _tree.n_rows(of_problem))))
        return work.problem(work.static, lane, shared)

    def run(self, state: Any, i: Array) -> Run:
        """That of lane i."""
        return Run(*_tree.take((self.model, self.start, state), i))


def _spread(fn: Callable, mesh: Mesh | None, homes: tuple, *sharded: PyTree) -> PyTree:
    """fn on every device's own lanes; what lanes share is everywhere."""
    if mesh is None:
        return fn(*homes, *sharded)
    spec = [_Home(Lanes(P("lanes"), P(), P("lanes")), P("lanes"), P("lanes"))] * len(homes)
    specs = (*spec, *([P("lanes")] * len(sharded)))
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P("lanes"), check_vma=False)
    return mapped(*homes, *sharded)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(work: Work, mesh: Mesh | None, at_once: int, home: _Home, index: Array) -> Run:
    def one(home: _Home, i: Array) -> Run:
        return home.problem(work, i).begin()

    return _spread(lambda home, index: over(partial(one, home), index, "lanes", at_once), mesh, (home,), index)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _round(
    work: Work, mesh: Mesh | None, path: int, home: _Home, state: Any, seats: tuple[Array, Array]
) -> tuple[Any, Any]:
    """The state of all lanes after some more M steps of those in `seats`; and what the host looks at.

    Seats are numbers of lanes, and how many M steps each takes at most.
    """

    def one(home: _Home, state: Any, i: Array, n_iter: Array) -> Any:
        return home.problem(work, i).go_on(home.run(state, i), n_iter, (path,)).state

    def block(home: _Home, state: Any, index: Array, n_iter: Array) -> tuple[Any, Any]:
        new = jax.vmap(partial(one, home, state))(index, n_iter)
        home_state = jax.tree.map(lambda all_, some: all_.at[index].set(some), state, new)
        return home_state, (new.status, new.n_iter, new.n_evals, new.path)

    return _spread(block, mesh, (home,), state, *seats)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _stand(work: Work, mesh: Mesh | None, at_once: int, home: _Home, state: Any, index: Array) -> Array:
    def one(home: _Home, state: Any, i: Array) -> Array:
        return standing(home.run(state, i), home.problem(work, i))

    return _spread(_each(one, at_once), mesh, (home,), state, index)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _end(work: Work, mesh: Mesh | None, at_once: int, home: _Home, state: Any, index: Array) -> FitResult:
    def one(home: _Home, state: Any, i: Array) -> FitResult:
        problem = home.problem(work, i)
        result = problem.end(home.run(state, i))
        return problem.options.differentiable(result, problem.model, problem.data, problem.sample_weight)

    return _spread(_each(one, at_once), mesh, (home,), state, index)


def _each(one: Callable[[_Home, Any, Array], Any], at_once: int) -> Callable:
    return lambda home, state, index: over(partial(one, home, state), index, "lanes", at_once)


def standing(run: Run, problem: Problem) -> Array:
    """What a start under way is ranked by: as `standing_of` what it is heading for."""
    state = run.state
    stopped = state._replace(status=jnp.where(state.status == Status.RUNNING, Status.MAX_ITER, state.status))
    return standing_of(problem.end(run._replace(state=stopped)))


def standing_of(result: FitResult) -> Array:
    """What fits are ranked by: the objective; −inf of a failed one. All that are not admissible lie in between."""
    objective, low = result.objective, jnp.finfo(result.objective.dtype).min
    # in their own order, far below every objective
    of_spike = low * (0.5 - jnp.sign(objective) * jnp.log1p(jnp.abs(objective)) / 4096)
    spike = result.status == Status.INADMISSIBLE
    ranks = jnp.where(spike, of_spike, jnp.where(is_failure(result.status), -jnp.inf, objective))
    return jnp.where(jnp.isnan(objective), -jnp.inf, ranks)


# --- on the host


def run_in_rounds(
    work: Work, lanes: Lanes, max_iter: int, at_once: int, *, race: Any = None, shape: tuple[int, int] = (0, 0),
    progress: bool = False, checkpoint: Checkpoint | None = None,
) -> tuple[Finished, np.ndarray]:  # fmt: skip
    """Fits all lanes.

    Args:
        work: what they do.
        lanes: concrete values.
        max_iter: the most M steps.
        at_once: the most lanes that run side by side; another enters where one has ended.
        race: a `Race` among the starts of each problem, or None.
        shape: problems and starts that the lanes are made of, problems first; for a race.
        progress: a tqdm bar over lanes.
        checkpoint: where the lanes are kept from round to round.

    Returns:
        The fits, and which lanes went on to their end: (b,).
    """
    with open_store(checkpoint, "lanes in rounds", lambda: identity_of(lanes, work, race, max_iter)) as store:
        rounds = _Rounds(work, lanes, at_once, progress, store)
        if not rounds.is_chosen:
            if race is not None:
                rounds.advance(min(race.n_iter, max_iter))
                ranks = np.asarray(rounds.standing()).reshape(shape)
                order = np.argsort(-ranks, axis=1, kind="stable")[:, : race.keep]
                best = np.zeros(shape, bool)
                np.put_along_axis(best, order, True, axis=1)
                rounds.chosen = best.reshape(-1)
            rounds.is_chosen = True
        rounds.advance(max_iter)
        if checkpoint is not None:
            rounds.save()
        return rounds.finish(), rounds.chosen


class _Rounds:
    """Which lanes run, as the host knows it; the only thing here that changes."""

    def __init__(self, work: Work, lanes: Lanes, at_once: int, progress: bool, store: Any):
        self.work, self.n = work, _tree.n_rows(lanes.batched)
        self.bar = progress_bar(self.n, "lane") if progress else None
        devices = _devices_for(lanes)
        split = lanes.batched if lanes.of_problem is None else lanes.of_problem
        n_devices = max(1, min(len(devices), at_once, self.n // _SMALLEST, _tree.n_rows(split)))
        self.mesh = Mesh(np.asarray(devices[:n_devices]), ("lanes",)) if n_devices > 1 else None
        self.home = _Home(_placed(lanes, self.mesh, n_devices))
        n_all = _tree.n_rows(self.home.lanes.batched)
        self.per_device = n_all // n_devices
        self.at_once = max(1, min(at_once // n_devices, self.per_device))
        self.rungs = ladder(self.at_once)
        self.shape = (n_devices, self.per_device)
        self.every = np.tile(np.arange(self.per_device, dtype=np.int32), n_devices)
        run = _begin(self.work, self.mesh, self.at_once, self.home, self.every)
        self.home, self.state = _Home(self.home.lanes, run.model, run.start), run.state
        self.run, self.chosen, self.is_chosen = 0, np.ones(self.n, bool), False
        self.store = store
        self._resume()
        self.seen = [np.array(x).reshape(self.shape) for x in _watched(self.state)]

    def _resume(self) -> None:
        """Where the store has lanes, they are as they were when they were kept."""
        found = self.store.load()
        if found is None:
            return
        leaves, notes = found
        begun = (self.home.model, self.home.start, self.state)
        # lanes that only fill up the devices, of which there may be others now, are as they were begun
        where = jax.tree.map(lambda leaf: leaf.sharding, begun)
        put = lambda begun, found: jax.tree.map(lambda all_, some: all_.at[: self.n].set(some), begun, found)  # noqa: E731
        model, start, self.state = jax.jit(put, out_shardings=where)(begun, rebuilt(begun, leaves[:-1]))
        self.home = _Home(self.home.lanes, model, start)
        self.chosen, self.is_chosen, self.run = leaves[-1], notes["is_chosen"], notes["run"]

    def save(self) -> None:
        """Keeps the lanes as they are, if they are to be kept."""
        lanes = lambda tree: jax.tree.map(lambda leaf: leaf[: self.n], tree)  # noqa: E731
        notes = {"is_chosen": self.is_chosen, "run": self.run}
        self.store.save((*map(lanes, (self.home.model, self.home.start, self.state)), self.chosen), notes)

    def advance(self, limit: int) -> None:
        """Runs the chosen lanes until they have ended or have `limit` M steps behind them."""
        chosen = np.zeros(self.shape, bool)
        chosen.reshape(-1)[: self.n] = self.chosen
        while True:
            status, n_iter, _, path = self.seen
            alive = chosen & (status == Status.RUNNING) & (n_iter <= limit)
            if not alive.any():
                return
            for one_path in (0, 1):  # apart, as lanes on one would wait for those on the other
                if (alive & (path == one_path)).any():
                    self._go_round(alive & (path == one_path), one_path, limit)

    def _go_round(self, alive: np.ndarray, path: int, limit: int) -> None:
        index, present = self._seats(alive)
        rows = np.arange(self.shape[0])[:, None]
        done, evals = self.seen[1][rows, index], self.seen[2][rows, index]
        trips = max(_FIRST_TRIPS, int(np.median(done[present])) // _GROWTH)
        steps = np.minimum(trips - (done == 0), limit + 1 - np.maximum(done, 1))
        steps = np.where(present, steps, -1).astype(np.int32)
        self.state, new = _round(
            self.work, self.mesh, path, self.home, self.state, (index.reshape(-1), steps.reshape(-1))
        )
        new = [np.asarray(x).reshape(index.shape) for x in new]
        for known, value in zip(self.seen, new, strict=True):
            known[rows, index] = value
        self.run += present.size * int((new[2] - evals).max())  # all wait for the slowest
        if self.bar is not None:
            self.bar.update(int(np.sum(present & (new[0] != Status.RUNNING))))
        if self.store.due():
            self.save()

    def _seats(self, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(devices, rung) lanes that run next, of each device its own, filled up with others; and which are not."""
        most = min(int(alive.sum(1).max()), self.at_once)
        rung = next(size for size in self.rungs if size >= most)
        # by place: lanes that wait for room come behind those that run
        index = np.argsort(~alive, axis=1, kind="stable")[:, :rung].astype(np.int32)
        return index, np.take_along_axis(alive, index, axis=1)

    def standing(self) -> Array:
        """(b,), see `standing`."""
        return _stand(self.work, self.mesh, self.at_once, self.home, self.state, self.every)[: self.n]

    def finish(self) -> Finished:
        """The fits of all lanes."""
        if self.bar is not None:
            self.bar.update(self.n - self.bar.n)
            self.bar.close()
        fits = _end(self.work, self.mesh, self.at_once, self.home, self.state, self.every)
        if len(self.every) > self.n:
            fits = jax.tree.map(lambda leaf: leaf[: self.n], fits)
        return Finished(fits, int(self.seen[2].reshape(-1)[: self.n].sum()), self.run)


def _watched(state: Any) -> tuple:
    return state.status, state.n_iter, state.n_evals, state.path


def _devices_for(lanes: Lanes) -> list:
    """All local devices, unless the user has chosen one."""
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    arrays = [leaf for leaf in jax.tree.leaves(lanes) if isinstance(leaf, jax.Array)]
    chosen = [leaf for leaf in arrays if getattr(leaf, "committed", False)]
    return list(chosen[0].devices()) if chosen else jax.local_devices() if default is None else [default]


def _placed(lanes: Lanes, mesh: Mesh | None, n_devices: int) -> Lanes:
    """On the device once, not at every round; the last problem repeated where devices would have unequal parts."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, lanes)
    split = lanes.batched if lanes.of_problem is None else lanes.of_problem
    n = _tree.n_rows(split)
    more = -n % n_devices

    def put(tree: PyTree) -> PyTree:
        if tree is None:
            return None
        rows = np.minimum(np.arange(n + more)[:, None] * (each := _tree.n_rows(tree) // n) + np.arange(each), each * n)
        rows = np.where(np.arange(n + more)[:, None] < n, rows, rows[n - 1]).reshape(-1)
        sharding = NamedSharding(mesh, P("lanes"))
        return jax.tree.map(lambda leaf: jax.device_put(leaf[rows] if more else leaf, sharding), tree)

    return Lanes(put(lanes.batched), jax.device_put(lanes.shared, NamedSharding(mesh, P())), put(lanes.of_problem))
