"""Labels of groups as users have them: lists, arrays, columns of pandas, polars and pyarrow. Host code.

A label that is missing, be it None, NaN, NaT or NA, is a label as others are, the last one: its rows are one group.
"""

import datetime
from collections.abc import Hashable
from typing import Any

import numpy as np

from . import tree as _tree

_NEVER_MISSING = {str, bytes, int, bool, datetime.date}
_LONG = 100  # characters: every entry of an array of text is as wide as the longest
_SECONDS = {"W": 604_800, "D": 86_400, "h": 3600, "m": 60, "s": 1}
_PARTS = {"ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12, "fs": 10**15, "as": 10**18}  # of a second


def as_labels(group_ids: Any) -> np.ndarray:
    """(n,) labels as an array of numbers, text or times, or else of objects, among which None is what is missing.

    Raises:
        ValueError: if they are traced, or not one label a row.
    """
    if _tree.is_tracing(group_ids):
        raise ValueError("group_ids: expected concrete labels, got a traced array; pass NumPy labels from outside jit.")
    ids = _as_array(group_ids)
    if ids.ndim != 1:
        raise ValueError(f"group_ids: expected one label a row, shape (n,), got shape {ids.shape}.")
    if ids.dtype.kind == "T":  # text of any length, of which some may be missing
        ids = ids.astype(object)
    if ids.dtype == object and not set(map(type, ids)) <= _NEVER_MISSING:
        ids = _objects([_with_none(label) for label in ids])
    return ids


def _as_array(group_ids: Any) -> np.ndarray:
    if isinstance(group_ids, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(group_ids)
        return np.where(masked, None, group_ids.data.astype(object)) if masked.any() else group_ids.data  # type: ignore
    if isinstance(group_ids, np.ndarray):
        return group_ids
    if not hasattr(group_ids, "__array__"):
        return _from_sequence(list(group_ids))
    to_list = next((method for name in _TO_LIST if (method := getattr(group_ids, name, None)) is not None), None)
    if to_list is None or isinstance(getattr(group_ids, "dtype", None), np.dtype):
        return np.asarray(group_ids)
    # a type of a table's own. As an array, whole numbers with a gap would be floats, and times would lose their zone
    array = np.asarray(group_ids)
    zone = next((zone for name in ("dtype", "type") for zone in _zones(getattr(group_ids, name, None))), None)
    if array.dtype.kind not in "mM":
        return _from_sequence(to_list())
    if zone is None:
        return array
    fine = array[~np.isnat(array)].astype("datetime64[ns]").view(np.int64)
    if (fine % 1000).any():
        raise ValueError(
            f"group_ids: expected times in whole microseconds where they have a zone ({zone}), got nanoseconds; cast "
            "them to microseconds, to integers, or to times without a zone."
        )
    return _from_sequence(to_list())


_TO_LIST = ("to_pylist", "to_list", "tolist")  # pyarrow; polars and columns of pandas; arrays of pandas


def _zones(kind: Any) -> list:
    return [zone for name in ("time_zone", "tz") if (zone := getattr(kind, name, None)) is not None]


def _from_sequence(sequence: list) -> np.ndarray:
    plain = not any(isinstance(label, tuple) for label in sequence)
    kinds = {type(label) for label in sequence}
    # NumPy drops trailing NULs of bytes and strings: labels that end with one stay objects
    nul = any(isinstance(label, (bytes, str)) and label[-1:] in (b"\0", "\0") for label in sequence)
    text = kinds <= {str, bytes}
    if plain and len(kinds) <= 1 and not nul and not (text and max(map(len, sequence), default=0) > _LONG):
        return np.asarray(sequence)
    return _objects(sequence)  # tuples or mixed types: one object each, never broadcast or turned into strings


def _objects(labels: list) -> np.ndarray:
    array = np.empty(len(labels), object)
    array[:] = labels
    return array


def _with_none(label: Any) -> Any:
    """None for a label that is missing, and for what is missing in a tuple."""
    if isinstance(label, tuple):
        parts = tuple(_with_none(part) for part in label)
        return label if all(new is old for new, old in zip(parts, label, strict=True)) else parts
    return None if _is_missing(label) else label


def _is_missing(label: Any) -> bool:
    """None, and whatever does not equal itself: NaN, NaT; of NA nobody knows."""
    if label is None:
        return True
    try:
        return bool(label != label)
    except TypeError:
        return True
    except ValueError as error:
        raise ValueError(
            f"group_ids: expected hashable labels, got one of type {type(label).__name__}; use tuples or text."
        ) from error


def missing(labels: np.ndarray) -> np.ndarray:
    """(n,) which labels, as `as_labels` gives them, are missing."""
    if labels.dtype == object:
        return np.fromiter((label is None for label in labels), bool, len(labels))
    return np.isnat(labels) if labels.dtype.kind in "mM" else labels != labels


def heads(labels: np.ndarray) -> np.ndarray:
    """(n,) where runs of equal labels begin; n ≥ 1."""
    gone = missing(labels)
    change = (labels[1:] != labels[:-1]) & ~(gone[1:] & gone[:-1])
    return np.concatenate([[True], change.astype(bool)])


def factorize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted unique labels, or in order of appearance where they have no order, and the code of each value.

    Raises:
        ValueError: on labels that cannot be hashed.
    """
    if values.dtype.kind in "US":  # a table of hashes takes a third of the time of sorting all
        labels, code = factorize(values.astype(object))
        return labels.astype(values.dtype), code
    if values.dtype != object:
        return np.unique(values, return_inverse=True)
    codes: dict[Hashable, int] = {}
    try:
        code = np.fromiter((codes.setdefault(value, len(codes)) for value in values), np.int64, len(values))
    except TypeError as error:
        raise ValueError(f"group_ids: expected hashable labels, got {error}; use tuples or text.") from error
    labels = _objects(list(codes))
    try:
        rank = sorted(range(len(labels)), key=lambda i: _rank(labels[i]))
    except TypeError:
        rank = sorted(range(len(labels)), key=lambda i: labels[i] is None)
    position = np.empty(len(labels), np.int64)
    position[rank] = np.arange(len(labels))
    return labels[rank], position[code]


def _rank(label: Any) -> tuple:
    """Sorts as labels do; what is missing comes last."""
    if label is None:
        return (1,)
    return (0, tuple(map(_rank, label)) if isinstance(label, tuple) else label)


def positions(labels: np.ndarray) -> dict[Hashable, int]:
    """Of labels, by themselves and by `key`."""
    known = {key(label): i for i, label in reversed(list(enumerate(labels)))}
    return known | {label: i for i, label in enumerate(labels.tolist()) if labels.dtype.kind not in "mM"}


def find(label: Any, known: dict[Hashable, int]) -> int:
    """Position of a label; −1 if it is not there."""
    try:
        position = known.get(label, -1)
        return position if position >= 0 else known.get(key(label), -1)
    except TypeError:  # not hashable
        return -1


def key(label: Any) -> Hashable:
    """The same for labels that are the same in other types: times in other units, what is missing."""
    if isinstance(label, tuple):
        return tuple(map(key, label))
    if hasattr(label, "as_py"):  # of pyarrow
        return key(label.as_py())
    if label is None or _is_missing(label):
        return None
    if getattr(label, "tzinfo", None) is not None:
        return label
    if isinstance(label, (datetime.datetime, datetime.timedelta)) and hasattr(label, "to_numpy"):  # of pandas: finer
        return _key_of_time(label.to_numpy())  # type: ignore[attr-defined]
    if isinstance(label, datetime.datetime):
        return _key_of_time(np.datetime64(label))
    if isinstance(label, datetime.date):
        return _key_of_time(np.datetime64(label))
    if isinstance(label, datetime.timedelta):
        return _key_of_time(np.timedelta64(label))
    if isinstance(label, (np.datetime64, np.timedelta64)):
        return _key_of_time(label)
    return label.item() if isinstance(label, np.generic) else label


def _key_of_time(time: Any) -> Hashable:
    """Kind and attoseconds, exactly."""
    unit, count = np.datetime_data(time.dtype)
    if time.dtype.kind == "M" and unit in ("Y", "M"):
        return _key_of_time(time.astype("datetime64[D]"))
    number = int(time.astype(np.int64)) * count
    if unit in _SECONDS:
        return time.dtype.kind, number * _SECONDS[unit] * _PARTS["as"]
    if unit in _PARTS:
        return time.dtype.kind, number * (_PARTS["as"] // _PARTS[unit])
    return time.dtype.kind, unit, number
