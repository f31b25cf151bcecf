"""Checkpoints of fits under way, kept by orbax: written beside the last, checked when read. Host code."""

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import PyTree
from ..numerics import tree as _tree
from ..numerics.processes import first_has, first_has_bytes
from .version import written_by

_KEPT = 2  # the last, and the one before it
_FORMAT = 3  # of a state; 2 until the loop kept which steps it accepted
_LOCK = "lock"  # a file in the folder


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit under way is kept, so that it goes on where it was interrupted.

    The folder holds the last two states. Called again with the same model, start, options and data, the fit goes on
    from there and ends with the same bits, on the same devices, as one that was never interrupted; one that had ended
    returns its result at once. A state that cannot be read is left alone with a warning, and the one before it used.
    Functions inside of a model are the same if their code and what they close over are. Of a fit that processes of
    `jax.distributed` share, all call, and process 0 reads and writes. Processes of their own that use one folder at the
    same time, such as a job that was started twice, are an error in all but the first.

    Attributes:
        path: of a folder that belongs to this fit alone; it is made where there is none.
        every: seconds between two writes; 0 writes as often as the fit can.

    Example:
        >>> import jax, jaxem, tempfile
        >>> x = jax.random.normal(jax.random.key(0), (300, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> start = model.init(jax.random.key(1), x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint = jaxem.Checkpoint(folder + "/fit", every=10)
        ...     first = jaxem.fit(model, start, x, checkpoint=checkpoint)
        ...     again = jaxem.fit(model, start, x, checkpoint=checkpoint)  # goes on at the end
        >>> bool(first.objective == again.objective)
        True
    """

    path: str | Path
    every: float = 60.0

    def part(self, name: str) -> "Checkpoint":
        """For one of several parts of a call: a folder in the folder."""
        return replace(self, path=Path(self.path) / name)


class Store:
    """An open checkpoint: a context manager.

    Of a fit that several processes share, process 0 writes and reads for all; other fits belong to their process.

    Args:
        checkpoint: where, and how often.
        kind: of the fit, e.g. "fit_stream".
        identity: what the fit must share with the one that is kept, as `identity_of` gives it.
        shared: whether all processes of `jax.distributed` work on this fit, and so all call every method.

    Raises:
        ValueError: if the folder holds another fit, another version, or nothing that can be read, or another process
            uses it now; of the other processes, whatever process 0 could not do.
        OSError: naming the folder, if it cannot be written.
        ImportError: where orbax is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, kind: str, identity: str, shared: bool):
        if not isinstance(checkpoint, Checkpoint):
            raise ValueError(f"checkpoint: expected Checkpoint(path) or None, got {checkpoint!r}.")
        if not checkpoint.every >= 0:
            raise ValueError(f"checkpoint.every: expected seconds of at least 0, got {checkpoint.every!r}.")
        self._every, self._shared, self._keeps = checkpoint.every, shared, not shared or jax.process_index() == 0
        self._about = {"version": _FORMAT, "written_by": written_by(), "kind": kind, "identity": identity}
        self._path = Path(checkpoint.path).absolute()
        self._written = time.monotonic()
        self._newest: tuple[str, dict] | None = None  # of the last state: an ended fit is not written again
        self._orbax: Any = None
        self._manager: Any = None
        self._lock: Any = None
        self._for_all(self._open)

    def _open(self) -> None:
        try:
            import orbax.checkpoint as orbax
        except ImportError as error:
            raise ImportError("checkpoint= needs orbax: pip install 'jaxem[io]', or leave it out.") from error
        with self._told("be made"):
            self._path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._path)
        try:
            self._orbax, self._manager = orbax, self._managed(orbax)
        except BaseException:
            self._unlock()
            raise

    def _managed(self, orbax: Any) -> Any:
        own = jax.process_index()
        alone = orbax.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
        )
        options = orbax.CheckpointManagerOptions(
            max_to_keep=_KEPT, create=False, enable_async_checkpointing=False,
            multiprocessing_options=alone if jax.process_count() > 1 else orbax.options.MultiprocessingOptions(),
        )  # fmt: skip
        return orbax.CheckpointManager(self._path, options=options)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """An error of the disk, or of the storage beneath, as one that names the checkpoint."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"checkpoint: {self._path} cannot {what}: {error}; is the disk full, or the folder deleted or moved?"
            ) from error

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _for_all(self, work: Callable[[], Any]) -> Any:
        """work() of the process that reads and writes; its error is one of all that share the fit, as they would wait.

        Raises:
            ValueError: of the others, with what the error says.
        """
        if not self._shared:
            return work()
        result, error = None, None
        if self._keeps:
            try:
                result = work()
            except Exception as found:  # of a disk or a file, any
                error = found
        said = "" if error is None else str(error) or type(error).__name__
        said = json.loads(first_has_bytes(json.dumps(said).encode()))
        if error is not None:
            raise error
        if said:
            raise ValueError(said)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._manager is not None:
            self._manager.close()
        self._unlock()

    def load(self) -> tuple[list[np.ndarray], dict] | None:
        """The leaves and notes of the last state that is whole; None in a new folder."""
        found = self._for_all(self._last)
        if not self._shared:
            return found
        data, specs = _packed([] if found is None else found[0])
        notes, specs = json.loads(first_has_bytes(json.dumps([None if found is None else found[1], specs]).encode()))
        data = np.frombuffer(first_has_bytes(data.tobytes()), np.uint8)
        return None if notes is None else (_unpacked(data, specs), notes)

    def _last(self) -> tuple[list[np.ndarray], dict] | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                leaves, about = self._read(step)
            except Exception as error:  # whatever orbax, or what it stands on, says of a damaged file
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                warnings.warn(
                    f"checkpoint: {self._path / str(step)} is damaged and is not used ({reason})", stacklevel=6
                )
                continue
            self._check(about)
            self._newest = about["sha256"], about["notes"]
            return leaves, about["notes"]
        if steps:
            raise ValueError(
                f"checkpoint: expected a state that is whole in {self._path}, got {len(steps)} that cannot be read; "
                "delete the folder to begin anew, or pass another path."
            )
        return None

    def agree(self, *values: bool) -> list[bool]:
        """The answers of process 0, whose clock counts, where the fit is shared."""
        return list(values) if not self._shared else first_has(np.asarray(values)).tolist()

    def is_time(self) -> bool:
        """Whether it is time to write, by this process's clock."""
        return time.monotonic() - self._written >= self._every

    def due(self) -> bool:
        """Whether it is time to write; processes agree."""
        return self.agree(self.is_time())[0]

    def save(self, tree: PyTree, notes: dict) -> None:
        """Writes a state beside the last one, and leaves out the one before that."""
        self._for_all(partial(self._write, tree, notes))
        self._written = time.monotonic()

    def _write(self, tree: PyTree, notes: dict) -> None:
        data, specs = _packed(tree)
        digest = hashlib.sha256(data.tobytes()).hexdigest()
        if (digest, notes) == self._newest:
            return
        about = {**self._about, "notes": notes, "specs": specs, "sha256": digest}
        step = max(self._manager.all_steps(), default=-1) + 1
        of = self._orbax.args
        parts = of.Composite(leaves=of.StandardSave({"bytes": data}), about=of.JsonSave(about))
        with self._told("be written"):
            self._manager.save(step, args=parts, force=True)
        self._newest = digest, notes

    def _read(self, step: int) -> tuple[list[np.ndarray], dict]:
        of = self._orbax.args
        kept: Any = self._manager.restore(step, args=of.Composite(leaves=of.StandardRestore(), about=of.JsonRestore()))
        data, about = np.asarray(kept.leaves["bytes"]), kept.about
        if hashlib.sha256(data.tobytes()).hexdigest() != about["sha256"]:
            raise ValueError("its checksum is wrong")
        return _unpacked(data, about["specs"]), about

    def _check(self, about: dict) -> None:
        by, format_ = about.get("written_by", "before 0.1.0"), about.get("version")
        for name, advice in (
            (
                "version",
                f"it was written by jaxem {by}, as format {format_}; this one reads {_FORMAT}",
            ),
            ("kind", "it is of another driver"),
            ("identity", "its model, start, options or data are others"),
        ):
            if about.get(name) != self._about[name]:
                raise ValueError(
                    f"checkpoint: expected a state of this fit in {self._path}, got one of another: {advice}; pass "
                    "another path, or delete the folder to begin anew."
                )


def _locked(folder: Path) -> Any:
    """An open file that this process has locked, until it is closed or the process ends, however that may be.

    None where the system or its file system has no such locks: then nothing watches.

    Raises:
        ValueError: if another has locked it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    file = (folder / _LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        number = file.read().strip()
        file.close()
        raise ValueError(
            f"checkpoint: expected a folder that no other fit uses, got {folder}, which another process"
            f"{f' ({number})' if number else ''}, or another fit of this one, uses now; wait for its end, or pass "
            "another path."
        ) from error
    except OSError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"pid {os.getpid()}")
    file.flush()
    return file


def _packed(tree: PyTree) -> tuple[np.ndarray, list]:
    """All leaves in one row of bytes (orbax keeps no empty array, and no checksum), and their dtypes and shapes."""
    arrays = [np.asarray(_tree.key_data(leaf)) for leaf in jax.tree.leaves(tree)]
    specs = [[array.dtype.str, list(array.shape)] for array in arrays]
    data = b"".join(array.tobytes() for array in arrays) or b"\0"
    return np.frombuffer(data, np.uint8), specs


def _unpacked(data: np.ndarray, specs: list) -> list[np.ndarray]:
    leaves, first = [], 0
    for dtype, shape in specs:
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        leaves.append(np.frombuffer(data[first : first + size].tobytes(), dtype).reshape(shape))
        first += size
    return leaves


def rebuilt(like: PyTree, leaves: list[np.ndarray]) -> PyTree:
    """The leaves in the structure, and with the random keys, of a tree that was kept."""

    def one(template: Any, leaf: np.ndarray) -> Any:
        if not _tree.is_key(template):
            return jnp.asarray(leaf)
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(template))

    templates, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [one(*pair) for pair in zip(templates, leaves, strict=True)])


def check_concrete(checkpoint: Checkpoint | None, *trees: PyTree) -> None:
    """Raises a ValueError if traced values are to be kept."""
    if checkpoint is not None and _tree.is_tracing(*trees):
        raise ValueError("checkpoint: expected concrete values, got traced ones; call outside of jit and grad.")


def open_store(checkpoint: Checkpoint | None, kind: str, identity: Callable[[], str], shared: bool = False) -> Any:
    """An open `Store`, or one that keeps nothing where no checkpoint is asked for."""
    return _Nowhere() if checkpoint is None else Store(checkpoint, kind, identity(), shared)


class _Nowhere:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return False

    def save(self, tree: PyTree, notes: dict) -> None:
        pass
