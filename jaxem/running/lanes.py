"""Running many problems: which plan, how many threads, how much of the work was needed. Host code.

On a CPU lanes run one after another in cache, compiled lanes on one thread per core; on an accelerator side by side,
in rounds (see `rounds`) where values are concrete. The plan follows from the backend, can be set by hand, and never
changes an answer.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array, Key, PyTree
from ..numerics import tree as _tree
from ..numerics.processes import axes_of, check_alike, is_here, is_sharded, jointly
from ..numerics.programs import Program
from ..storage.checkpoint import Checkpoint, check_concrete, open_store
from ..storage.identity import identity_of

_BLOCKS_PER_THREAD = 16
_THREADED_ELEMENTS = 200_000  # a lane with more elements than this keeps all cores busy by itself


class Lanes(NamedTuple):
    """Lanes of one shape.

    Attributes:
        batched: pytree of arrays with a leading lane axis.
        shared: what all lanes read.
        of_problem: pytree of arrays that lead with problems, each of which consecutive lanes read; None: there is none.
    """

    batched: PyTree
    shared: PyTree
    of_problem: PyTree = None


def resolve_plan(plan: str, lanes: PyTree = None) -> str:
    """The plan asked for; "auto" is "sequential" on a CPU, and "lanes" elsewhere and where lanes are sharded.

    Raises:
        ValueError: on another name.
    """
    if plan not in ("auto", "lanes", "sequential"):
        raise ValueError(f"plan: expected 'auto', 'lanes' or 'sequential', got {plan!r}.")
    if plan != "auto":
        return plan
    return "sequential" if jax.default_backend() == "cpu" and not is_sharded(lanes) else "lanes"


def over(fn: Callable, batched: PyTree, plan: str, at_once: int | None = None, axes: Any = None) -> PyTree:
    """fn over the leading axis of `batched`, by the plan, inside one program; at most `at_once` lanes side by side.

    `axes` of a mesh are those over which the lanes lie: what fn does on other axes is then done by the devices of a
    lane only.
    """
    if plan != "lanes":
        return lax.map(fn, batched)
    if at_once is None or at_once >= _tree.n_rows(batched):
        return jax.vmap(fn, spmd_axis_name=axes)(batched)
    return lax.map(fn, batched, batch_size=at_once)


def _run_block(per_lane: Callable, static: Any, plan: str, at_once: int | None, axes: Any, lanes: Lanes) -> PyTree:
    return over(lambda one: per_lane(static, one, lanes.shared), lanes.batched, plan, at_once, axes)


_program = jax.jit(_run_block, static_argnums=(0, 1, 2, 3, 4))
# Lanes already fill the cores: a kernel of a few microseconds that XLA splits over threads only waits for them.
_one_thread_program = jax.jit(
    _run_block,
    static_argnums=(0, 1, 2, 3, 4),
    compiler_options={"xla_disable_hlo_passes": "cpu-parallel-task-assigner"},
)
_in_few_starts = Program(_run_block, at_most=2**15, static_argnums=(0, 1, 2, 3, 4))


def run_lanes(
    per_lane: Callable,
    static: Any,
    groups: Iterable[Lanes],
    plan: str,
    *,
    progress: bool = False,
    max_lanes: int | None = None,
    checkpoint: Checkpoint | None = None,
    in_haste: bool = False,
) -> list[PyTree]:
    """Results of `per_lane(static, lane, shared)` for groups of lanes of different shapes.

    Traced values, and accelerators, make one program a group. Concrete values on a CPU are cut into blocks, which a
    thread per core takes in turn.

    Args:
        per_lane: a module-level function; `static` is hashable.
        static: what it is compiled for.
        groups: lanes by shape.
        plan: "lanes" or "sequential".
        progress: a tqdm bar over blocks.
        max_lanes: the most lanes that run at once; None for any number.
        checkpoint: where blocks that have ended are kept.
        in_haste: few numbers may be compiled in haste, see `numerics.programs`. Not for problems whose answers must
            have the same bits whichever others there are.

    Raises:
        ValueError: if a checkpoint is asked of one program, which has nothing to keep before its end.
    """
    groups = list(groups)
    check_concrete(checkpoint, groups)
    if plan == "lanes" or _tree.is_tracing(groups) or jax.default_backend() != "cpu" or not is_here(groups):
        if checkpoint is not None:
            raise ValueError(
                "checkpoint: expected lanes that each lie on one device, with plan='lanes' on an accelerator; others "
                "are one program, of which nothing can be kept before it ends."
            )
        if not is_here(groups):
            check_alike(lanes=groups)
        return [jointly(_program, per_lane, static, plan, max_lanes, axes_of(one.batched), one) for one in groups]
    n_threads = min(_n_cores(), max_lanes or _n_cores())
    few = in_haste and all(_in_few_starts.is_small(lanes.shared, _tree.n_rows(lanes.batched)) for lanes in groups)
    task = _Task(per_lane, static, _in_few_starts.hasty if few else _one_thread_program)
    with open_store(checkpoint, "lanes in turn", lambda: identity_of(groups, per_lane, static)) as store:
        return _in_turn(task, groups, n_threads, progress, store)


class _Task(NamedTuple):
    """What every lane is for, and the program of those that are small."""

    per_lane: Callable
    static: Any
    of_small: Callable

    def of(self, program: Callable) -> Callable[[Lanes], PyTree]:
        """The program of lanes one after another."""
        return partial(program, self.per_lane, self.static, "sequential", None, None)


class _Block(NamedTuple):
    """Lanes that one thread takes; those of a group have equal sizes, so the last overlaps its neighbour.

    One that is not small is a single lane, which keeps all cores busy: such blocks run one after another.
    """

    group: int
    first: int
    size: int
    overlap: int
    small: bool


def _cut(groups: list[Lanes], n_threads: int) -> list[_Block]:
    """The blocks, the longest first."""
    sizes = [_tree_size(lanes.batched) + _tree_size(lanes.shared) * _tree.n_rows(lanes.batched) for lanes in groups]
    blocks = []
    for group, lanes in enumerate(groups):
        n = _tree.n_rows(lanes.batched)
        small = sizes[group] <= _THREADED_ELEMENTS * n and not is_sharded(lanes.shared)
        n_blocks = -(-n_threads * _BLOCKS_PER_THREAD * sizes[group] // sum(sizes)) if small else n
        size = -(-n // min(n, n_blocks))
        starts = [(start, min(start, n - size)) for start in range(0, n, size)]
        blocks += [_Block(group, first, size, start - first, small) for start, first in starts]
    return sorted(
        blocks, key=lambda block: -block.size * sizes[block.group] / _tree.n_rows(groups[block.group].batched)
    )


def _in_turn(task: _Task, groups: list[Lanes], n_threads: int, progress: bool, store: Any) -> list[PyTree]:
    """The results of the groups, block by block; those that `store` has are not computed again."""
    host = [Lanes(jax.tree.map(_as_host, lanes.batched), lanes.shared) for lanes in groups]
    x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    device = jax.config.jax_default_device  # type: ignore[attr-defined]

    def lanes_of(block: _Block) -> Lanes:
        lanes = host[block.group]
        return Lanes(
            jax.tree.map(lambda leaf: leaf[block.first : block.first + block.size], lanes.batched), lanes.shared
        )

    def run(i: int) -> None:
        block = blocks[i]
        program = task.of(task.of_small if block.small else _program)
        with jax.enable_x64(x64), jax.default_device(device):  # jax's contexts belong to a thread
            out = program(lanes_of(block))
        results[i] = jax.tree.map(lambda leaf: np.asarray(leaf)[block.overlap :], out)

    def save() -> None:
        ended = [i for i, result in enumerate(results) if result is not None]
        store.save([results[i] for i in ended], {"n_cut": n_cut, "ended": ended})

    found = store.load()
    n_cut = n_threads if found is None else found[1]["n_cut"]  # the cores may be others now, the blocks not
    blocks = _cut(groups, n_cut)
    results: list[PyTree] = [None] * len(blocks)
    if found is not None:
        leaves, notes = found
        out = jax.eval_shape(task.of(_run_block), lanes_of(blocks[0]))
        n, structure = len(jax.tree.leaves(out)), jax.tree.structure(out)
        for place, i in enumerate(notes["ended"]):
            results[i] = jax.tree.unflatten(structure, leaves[place * n : (place + 1) * n])
    from concurrent.futures import ThreadPoolExecutor  # importing it costs `import jaxem` a millisecond

    left = [i for i, result in enumerate(results) if result is None]
    bar = progress_bar(len(left), "block") if progress else None
    pool = ThreadPoolExecutor(n_threads)

    def run_all() -> Iterator:
        yield from map(run, [i for i in left if not blocks[i].small])
        yield from pool.map(run, [i for i in left if blocks[i].small])

    try:
        for _ in run_all():
            if bar is not None:
                bar.update()
            if store.due():
                save()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C, those that wait do not run
        if bar is not None:
            bar.close()
        save()
    order = sorted(range(len(blocks)), key=lambda i: blocks[i].first + blocks[i].overlap)
    of_group = lambda group: [results[i] for i in order if blocks[i].group == group]  # noqa: E731
    return [jax.tree.map(lambda *parts: np.concatenate(parts), *of_group(group)) for group in range(len(groups))]


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tree_size(tree: PyTree) -> int:
    return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


class HostKeys:
    """Random keys, of which any rows can be had without a program for their number."""

    def __init__(self, keys: Key):
        self._data, self._impl = np.asarray(jax.random.key_data(keys)), jax.random.key_impl(keys)

    def __getitem__(self, rows: Any) -> Key:
        return jax.random.wrap_key_data(jnp.asarray(self._data[rows]), impl=self._impl)


def _as_host(leaf: Any) -> Any:
    """NumPy views slice without a dispatch."""
    return HostKeys(leaf) if _tree.is_key(leaf) else np.asarray(leaf)


def progress_bar(total: int, unit: str) -> Any:
    """A bar of tqdm.

    Raises:
        ImportError: where tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'jaxem[progress]', or pass progress=False.") from error
    return tqdm(total=total, unit=unit, leave=False)


def lane_efficiency(phases: Iterable[Array], plan: str) -> Array:
    """Iterations that the lanes needed over iterations that ran for them: side by side, all wait for the slowest.

    Args:
        phases: E steps by lane, of each program after the other.
        plan: that the programs ran by.
    """
    phases = [jnp.asarray(n_evals) for n_evals in phases]
    if plan == "sequential":
        return jnp.ones((), jnp.result_type(float))
    return share(sum(map(jnp.sum, phases)), sum(jnp.max(n_evals) * n_evals.size for n_evals in phases))


def share(needed: Any, run: Any) -> Array:
    """Needed over run; 1 where nothing ran."""
    needed, run = jnp.asarray(needed, jnp.result_type(float)), jnp.asarray(run, jnp.result_type(float))
    return jnp.where(run > 0, needed / jnp.maximum(run, 1), 1)
