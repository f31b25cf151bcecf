"""What each process of a small cluster runs; `test_hosts` starts them and compares what the first one writes.

    python host_script.py TASKS RANK PROCESSES PORT FOLDER

Not a test by itself. Each task is a function of this process's rows; what it returns is written by name.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxem
from jaxem.storage.checkpoint import Store

CUTS = (0, 61, 102)  # the rows of process 0, and of process 1
MODEL = jaxem.Mixture(jaxem.FullNormal(), 2)


def table() -> tuple[np.ndarray, np.ndarray]:
    """All rows, and their weights."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-1, 1, (61, 2)), rng.normal(1, 0.6, (41, 2))])
    return x, rng.integers(0, 3, 102).astype(float)


def start() -> jaxem.MixtureParams:
    x, _ = table()
    components = jaxem.NormalParams(jnp.asarray(x[[0, -1]]), jnp.stack([jnp.eye(2)] * 2))
    return jaxem.MixtureParams(jnp.array([0.5, 0.5]), components)


def own() -> tuple[np.ndarray, np.ndarray]:
    """The rows of this process, and their weights."""
    rank = jax.process_index()
    return tuple(leaf[CUTS[rank] : CUTS[rank + 1]] for leaf in table())  # type: ignore[return-value]


def plain() -> Any:
    data, weight = jaxem.shard(own()[0])
    return jaxem.fit(MODEL, start(), data, sample_weight=weight)


def weighted() -> Any:
    rows, weight = own()
    known = np.where(np.arange(len(rows)) == 0, jax.process_index(), -1)
    data, weight = jaxem.shard(jaxem.labelled(rows, known), sample_weight=weight)
    return jaxem.fit(MODEL, start(), data, sample_weight=weight, chunk_size=20)


def restarts() -> Any:
    data, weight = jaxem.shard(own()[0])
    return jaxem.fit_restarts(MODEL, jax.random.key(3), data, sample_weight=weight, n_restarts=3)


def lanes() -> Any:
    """Two problems, one on each process, and the rows of each over its devices."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, -1), ("lanes", "observations"))
    x = table()[0][:100]
    both = np.stack([x, x * [2, 0.5]])
    cut = NamedSharding(mesh, P("lanes", "observations"))
    data = jax.make_array_from_callback(both.shape, cut, lambda index: both[index])
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start())
    # lanes end on the host that they are on: a replicated copy is one that all can read
    result = jaxem.fit_batch(MODEL, starts, data)
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(result)


def stream() -> Any:
    rows, weight = own()

    def batches() -> Iterator:
        for part, w in zip(np.array_split(rows, 3), np.array_split(weight, 3), strict=True):
            yield jaxem.shard(part, sample_weight=w)

    return jaxem.fit_stream(MODEL, start(), batches, max_iter=8, tol=-1)


def refused(call: Callable[[], Any]) -> np.ndarray:
    """What the error says."""
    try:
        call()
    except (ValueError, OSError) as error:
        return np.asarray(str(error))
    raise AssertionError("expected an error")


def bad_row() -> Any:
    rows = own()[0].copy()
    if jax.process_index() == 1:
        rows[3] = np.nan
    data, weight = jaxem.shard(rows)
    return refused(lambda: jaxem.fit(MODEL, start(), data, sample_weight=weight))


def other_columns() -> Any:
    return refused(lambda: jaxem.shard(own()[0][:, : 2 - jax.process_index()]))


def other_start() -> Any:
    data, weight = jaxem.shard(own()[0])
    other = jax.tree.map(lambda leaf: leaf + jax.process_index(), start())
    return refused(lambda: jaxem.fit(MODEL, other, data, sample_weight=weight))


def kept() -> Any:
    """A fit that is written after every iteration; the process that JAXEM_TEST_LOSES names is lost after the fourth.

    Returns the result, and the iterations inside the first state that was written.
    """
    data, weight = jaxem.shard(own()[0])
    save, saved = Store.save, []

    def save_and_lose(*args: Any) -> None:
        saved.append(int(args[1].state.n_iter))
        save(*args)
        if len(saved) == 4 and os.environ.get("JAXEM_TEST_LOSES") == str(jax.process_index()):
            os.kill(os.getpid(), signal.SIGKILL)

    Store.save = save_and_lose  # type: ignore[method-assign]
    checkpoint = jaxem.Checkpoint(Path(os.environ["JAXEM_TEST_FOLDER"]) / "kept", every=0)
    result = jaxem.fit(MODEL, start(), data, sample_weight=weight, max_iter=9, tol=-1, checkpoint=checkpoint)
    return result, saved[0]


def full_disk() -> Any:
    """What each process says where process 0 cannot write."""
    data, weight = jaxem.shard(own()[0])

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    Store._write = full  # type: ignore[method-assign]
    checkpoint = jaxem.Checkpoint(Path(os.environ["JAXEM_TEST_FOLDER"]) / "full", every=0)
    return refused(lambda: jaxem.fit(MODEL, start(), data, sample_weight=weight, checkpoint=checkpoint))


TASKS = (plain, weighted, restarts, lanes, stream, bad_row, other_columns, other_start, full_disk, kept)


def main(names: str, rank: str, processes: str, port: str, folder: str) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(
        f"127.0.0.1:{port}", int(processes), int(rank), initialization_timeout=60, heartbeat_timeout_seconds=10
    )
    os.environ["JAXEM_TEST_FOLDER"] = folder
    found = {}
    for task in TASKS:
        if task.__name__ in names.split(","):
            result = task()
            leaves = {f"{task.__name__}.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(result))}
            found |= leaves
    np.savez(Path(folder) / f"found{rank}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
