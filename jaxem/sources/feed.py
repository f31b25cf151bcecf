"""Batches on their way to the device: read ahead by a thread, checked, brought to few sizes. Host code."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Data
from ..contracts import capabilities as ask
from ..fold.chunks import on_auto_axes
from ..latent.finite import in_place_of, unlabelled
from ..latent.units import units_of, with_units
from ..numerics import tree as _tree
from ..numerics.arguments import as_rows
from ..numerics.labels import key
from ..numerics.processes import is_sharded

_AHEAD = 2  # batches that are read while one is worked on
_MOST_SIZES = 6  # each is a program; beyond, rows of weight zero fill up to powers of two
_WASTE = 1.26  # a batch is filled up to a size that is at most so many times its own


class Batch(NamedTuple):
    """Rows as the E step takes them; filled up with rows of weight zero.

    Attributes:
        number: from 0, of those that the user's function yields.
        data: cast to one dtype.
        sample_weight: (n,), or None where all rows count once.
        n_rows: of those that were yielded.
    """

    number: int
    data: Data
    sample_weight: Any
    n_rows: int


class Feed:
    """Passes over the batches of a user's function; every pass looks like the first.

    Attributes:
        batches: yields pairs (data, sample_weight).
        sizes: that batches are filled up to; learnt in the first pass.
    """

    def __init__(self, batches: Callable[[], Iterable], model: Any = None, sizes: Iterable[int] = ()):
        if not callable(batches):
            raise ValueError(
                "batches: expected a function that returns a new iterator over (data, sample_weight) at each call, got "
                f"{type(batches).__name__}; an iterator is used up after one pass: pass lambda: …, or a reader."
            )
        self.batches, self.model, self.sizes = batches, model, list(sizes)
        self.ids_checked = False
        self.dtype: Any = None
        self.example: Any = None  # the first row
        self.dtypes: Any = None  # of its leaves, as the model reads them

    def one_pass(self, skip: int = 0) -> Generator[Batch, None, None]:
        """The batches but the first `skip`, from the thread that reads them."""
        items = self._with_own_ids(iter(self.batches()))
        with closing(_read_ahead(self._prepared(i, item) for i, item in enumerate(items) if i >= skip)) as ahead:
            for batch in ahead:
                if batch.n_rows:
                    data, weight = jax.tree.map(jnp.asarray, (batch.data, batch.sample_weight))
                    yield batch._replace(data=data, sample_weight=weight)

    def _with_own_ids(self, items: Iterable) -> Generator[Any, None, None]:
        """The items; of the first pass over grouped rows looked through for ids that come in two of them."""
        seen: dict[Any, int] = {}
        for number, item in enumerate(items):
            units = units_of(item[0]) if isinstance(item, tuple) and not self.ids_checked else None
            if units is not None:
                if units.labels is None:
                    raise ValueError(
                        f"batches: expected rows as grouped(data, ids) returns them, got such as have lost their ids "
                        f"in batch {number}; call grouped in the function that yields the batches."
                    )
                for label in map(key, units.labels.tolist()):
                    if label in seen:
                        raise ValueError(
                            f"batches: expected all rows of an id in one batch, got id {label!r} in batches "
                            f"{seen[label]} and {number}; sort the rows by id, and cut between ids."
                        )
                    seen[label] = number
            yield item
        self.ids_checked = True

    def _prepared(self, number: int, item: Any) -> Batch:
        if not isinstance(item, tuple) or len(item) != 2:
            got = type(item).__name__ + (f" of {len(item)}" if isinstance(item, tuple) else "")
            raise ValueError(
                f"batches: expected pairs (data, sample_weight), with None for no weights, got {got} as batch {number}."
            )
        data, weight = item
        rows = as_rows(unlabelled(data), f"batch {number}")
        n = _tree.n_rows(rows, f"batch {number}")
        self._check_alike(number, rows)
        if weight is not None and np.shape(weight) != (n,):
            raise ValueError(
                f"batches: expected one weight a row, shape ({n},), or None, got {np.shape(weight)} in batch {number}; "
                "weights (n, 1) are weight.ravel()."
            )
        if is_sharded(rows):
            rows = jax.tree.map(jnp.asarray, rows, self.dtypes)
            data, weight = on_auto_axes((in_place_of(data, rows), weight))
            return Batch(number, data, weight, n)
        if jax.process_count() > 1:
            raise ValueError(
                "batches: expected batches that all processes share, as jaxem.shard makes them of the rows of each, "
                f"got rows of process {jax.process_index()} alone as batch {number}."
            )
        rows = jax.tree.map(partial(_cast, number), rows, self.dtypes)
        weight = None if weight is None else np.asarray(weight, self.dtype)
        tree = jax.tree.map(np.asarray, in_place_of(data, rows))
        data, weight = self._filled(tree, weight, n)
        units = units_of(data)
        if units is not None:  # a new number of ids would be a new program
            data = with_units(data, replace(units, n_units=_tree.n_rows(units.data)))
        return Batch(number, data, weight, n)

    def _check_alike(self, number: int, rows: Data) -> None:
        if self.example is None:
            self.dtype, self.example = _tree.float_dtype(rows), jax.tree.map(_first_row, rows)
            read = lambda row: ask.cast_rows(self.model, row, self.dtype)  # noqa: E731
            self.dtypes = jax.tree.map(lambda leaf: leaf.dtype, jax.eval_shape(read, self.example))
        shapes, first = ([np.shape(leaf)[1:] for leaf in jax.tree.leaves(tree)] for tree in (rows, self.example))
        if shapes != first or jax.tree.structure(rows) != jax.tree.structure(self.example):
            raise ValueError(
                f"batches: expected rows of shapes {first} in all batches, as in the first, got {shapes} in batch "
                f"{number}."
            )

    def _filled(self, data: Data, weight: Any, n: int) -> tuple[Data, Any]:
        size = self._size(n)
        if size == n:
            return data, weight
        fill = lambda leaf: np.concatenate([leaf, np.broadcast_to(leaf[:1], (size - n, *leaf.shape[1:]))])  # noqa: E731
        weight = np.ones(n, self.dtype) if weight is None else weight
        return jax.tree.map(fill, data), np.concatenate([weight, np.zeros(size - n, self.dtype)])

    def _size(self, n: int) -> int:
        larger = [size for size in self.sizes if size >= n]
        full = len(self.sizes) >= _MOST_SIZES
        if n == 0 or (larger and (full or min(larger) <= _WASTE * n)):
            return min(larger, default=0) if n else 0
        self.sizes.append(1 << (n - 1).bit_length() if full else n)
        return self.sizes[-1]


def _cast(number: int, leaf: Any, dtype: Any) -> np.ndarray:
    """The leaf in the type that its numbers had in the first batch.

    Raises:
        ValueError: if it does not hold these.
    """
    kind = jax.dtypes.canonicalize_dtype(leaf.dtype)  # without 64 bits, what they hold more is lost of every array
    with np.errstate(invalid="ignore"):
        cast = np.asarray(leaf, dtype)
    holds = kind != np.float64 if np.dtype(dtype).kind == "f" else np.can_cast(kind, dtype, "safe")
    if holds or cast.dtype == kind or np.array_equal(cast, np.asarray(leaf), equal_nan=cast.dtype.kind == "f"):
        return cast
    raise ValueError(
        f"batches: expected numbers that {cast.dtype} holds, as the first batch has, got {leaf.dtype} in batch "
        f"{number}; cast all batches alike."
    )


def _first_row(leaf: Any) -> Any:
    return leaf[:1] if isinstance(leaf, np.ndarray) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _read_ahead(items: Iterable[Any]) -> Generator[Any, None, None]:
    """The items, taken by a thread before they are asked for.

    Not where there are several processes: batches that lie on all of them are made by exchanges, which must come in one
    order with those of the E steps.
    """
    if jax.process_count() > 1:
        yield from items
        return
    end, iterator = object(), iter(items)
    x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]

    def following() -> Any:
        with jax.enable_x64(x64):  # jax's contexts belong to a thread
            return next(iterator, end)

    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(following) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(following))
            yield item
