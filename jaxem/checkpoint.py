"""Checkpoints of fits under way, kept by orbax: written beside the last, checked when read. Host code."""

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from . import _tree
from ._typing import Array, PyTree
from .hosts import all_have, first_has

_KEPT = 2  # the last, and the one before it
_MOST_STATES = 8  # that a folder ever has: those kept, and what was being written or deleted
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit under way is kept, so that it goes on where it was interrupted.

    The folder holds the last two states. Called again with the same model, start, options and data, the fit goes on
    from there and ends with the same bits as one that was never interrupted; one that had ended returns its result at
    once. A state that is damaged is refused with a warning, and the one before it used. Under `jax.distributed` all
    processes call, with one folder that they all reach.

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

    Args:
        checkpoint: where, and how often.
        kind: of the fit, e.g. "fit_stream".
        identity: what the fit must share with the one that is kept, as `identity_of` gives it.

    Raises:
        ValueError: if the folder holds another fit, another version, or nothing that can be read.
        ImportError: where orbax is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, kind: str, identity: str):
        if not isinstance(checkpoint, Checkpoint):
            raise ValueError(f"checkpoint: expected Checkpoint(path) or None, got {checkpoint!r}.")
        if not checkpoint.every >= 0:
            raise ValueError(f"checkpoint.every: expected seconds of at least 0, got {checkpoint.every!r}.")
        try:
            import orbax.checkpoint as orbax
        except ImportError as error:
            raise ImportError("checkpoint= needs orbax: pip install 'jaxem[io]', or leave it out.") from error
        self._orbax, self._every = orbax, checkpoint.every
        self._about = {"version": _VERSION, "kind": kind, "identity": identity}
        self._path = Path(checkpoint.path).absolute()
        options = orbax.CheckpointManagerOptions(max_to_keep=_KEPT, create=True, enable_async_checkpointing=False)
        self._manager = orbax.CheckpointManager(self._path, options=options)
        self._written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

    def load(self) -> tuple[list[np.ndarray], dict] | None:
        """The leaves and notes of the last state that is whole, for all processes; None in a new folder."""
        known = sorted(self._manager.all_steps(), reverse=True)[:_MOST_STATES]
        steps = first_has(np.asarray(known + [-1] * (_MOST_STATES - len(known)), np.int32)).tolist()
        steps = [step for step in steps if step >= 0]
        for step in steps:
            leaves, about, reason = [], {}, "another process cannot read it"
            try:
                leaves, about = self._read(step)
            except Exception as error:  # whatever orbax, or what it stands on, says of a damaged file
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            if not all_have(bool(about)):
                warnings.warn(
                    f"checkpoint: {self._path / str(step)} is damaged and is not used ({reason})", stacklevel=4
                )
                self._manager.delete(step)
                continue
            self._check(about)
            return leaves, about["notes"]
        if steps:
            raise ValueError(
                f"checkpoint: expected a state that is whole in {self._path}, got {len(steps)} damaged; the fit must "
                "begin anew: it does at the next call, or in another folder."
            )
        return None

    def due(self) -> bool:
        """Whether it is time to write; processes agree."""
        return bool(first_has(time.monotonic() - self._written >= self._every))

    def save(self, tree: PyTree, notes: dict) -> None:
        """Writes a state beside the last one, and leaves out the one before that."""
        data, specs = _packed(tree)
        digest = hashlib.sha256(data.tobytes()).hexdigest()
        about = {**self._about, "notes": notes, "specs": specs, "sha256": digest}
        step = int(first_has(max(self._manager.all_steps(), default=-1) + 1))
        of = self._orbax.args
        self._manager.save(
            step, args=of.Composite(leaves=of.StandardSave({"bytes": data}), about=of.JsonSave(about)), force=True
        )
        self._written = time.monotonic()

    def _read(self, step: int) -> tuple[list[np.ndarray], dict]:
        of = self._orbax.args
        kept: Any = self._manager.restore(step, args=of.Composite(leaves=of.StandardRestore(), about=of.JsonRestore()))
        data, about = np.asarray(kept.leaves["bytes"]), kept.about
        if hashlib.sha256(data.tobytes()).hexdigest() != about["sha256"]:
            raise ValueError("its checksum is wrong")
        return _unpacked(data, about["specs"]), about

    def _check(self, about: dict) -> None:
        for name, advice in (
            ("version", "it was written by another version of jaxem"),
            ("kind", "it is of another driver"),
            ("identity", "its model, start, options or data are others"),
        ):
            if about.get(name) != self._about[name]:
                raise ValueError(
                    f"checkpoint: expected a state of this fit in {self._path}, got one of another: {advice}; pass "
                    "another path, or delete the folder to begin anew."
                )


def fingerprint(data: PyTree, sample_weight: Array | None) -> Array:
    """A number that tells the rows of positive weight from others, whatever their order: () uint32, adds up."""
    leaves = jax.tree.leaves(data) + ([] if sample_weight is None else [sample_weight])
    row = jnp.zeros(leaves[0].shape[0], jnp.uint32)
    for leaf in leaves:
        for column in leaf.reshape(leaf.shape[0], -1).T:
            row = (row ^ _bits(column)) * jnp.uint32(0x01000193)  # Fowler, Noll & Vo
            row = row ^ (row >> 15)
    if sample_weight is not None:
        row = jnp.where(sample_weight > 0, row, 0)
    return jnp.sum(row, dtype=jnp.uint32)


def _bits(values: Array) -> Array:
    """(n,) as uint32."""
    if values.dtype.itemsize < 4:
        return values.astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return bits if bits.ndim == 1 else bits[:, 0] ^ (bits[:, 1] * jnp.uint32(31))


def identity_of(*trees: PyTree, said: str = "") -> str:
    """Tells what is given, and `said` of it, from anything else, in another process too."""
    leaves, structure = jax.tree.flatten(trees)
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{structure}{said}")
    data, specs = _packed(leaves)
    return hashlib.sha256(text.encode() + json.dumps(specs).encode() + data.tobytes()).hexdigest()


def _packed(tree: PyTree) -> tuple[np.ndarray, list]:
    """All leaves in one row of bytes (orbax keeps no empty array, and no checksum), and their dtypes and shapes."""
    arrays = [np.asarray(_key_data(leaf)) for leaf in jax.tree.leaves(tree)]
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


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def rebuilt(like: PyTree, leaves: list[np.ndarray]) -> PyTree:
    """The leaves in the structure, and with the random keys, of a tree that was kept."""

    def one(template: Any, leaf: np.ndarray) -> Any:
        if not _is_key(template):
            return jnp.asarray(leaf)
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(template))

    templates, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [one(*pair) for pair in zip(templates, leaves, strict=True)])


def check_concrete(checkpoint: Checkpoint | None, *trees: PyTree) -> None:
    """Raises a ValueError if traced values are to be kept."""
    if checkpoint is not None and _tree.is_tracing(*trees):
        raise ValueError("checkpoint: expected concrete values, got traced ones; call outside of jit and grad.")


def kept(checkpoint: Checkpoint | None, kind: str, identity: Callable[[], str]) -> Any:
    """An open `Store`, or one that keeps nothing where no checkpoint is asked for."""
    return _Nowhere() if checkpoint is None else Store(checkpoint, kind, identity())


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
