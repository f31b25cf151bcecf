"""Checks that every driver makes of its options and data."""

import numbers
import sys
import warnings
from typing import Any

import jax
import numpy as np

from .._typing import Data
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_int


def check_max_lanes(value: Any) -> int | None:
    """Raises a ValueError unless `value` is a positive int or None."""
    return None if value is None else as_count("max_lanes", value)


def warn_if_rounded(data: Data) -> None:
    """One warning, at the line that called jaxem, if float64 NumPy data are about to be rounded as x64 is off."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return
    if any(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in jax.tree.leaves(data)):
        warnings.warn(
            "float64 data are rounded to float32, because jax_enable_x64 is off; "
            "jax.config.update('jax_enable_x64', True) keeps them, .astype('float32') silences this.",
            UserWarning,
            stacklevel=level_outside(),
        )


def level_outside() -> int:
    """The `stacklevel`, for the function that calls this, of the first frame outside of the package."""
    package, level = __name__.partition(".")[0], 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level


def check_option(name: str, value: Any, low: float, high: float = np.inf, *, open_low: bool = False) -> None:
    """Raises a ValueError unless a concrete option is a number in [low, high]; (low, high] if `open_low`."""
    if _tree.is_tracing(value):
        return
    number = np.asarray(value) if isinstance(value, (numbers.Real, np.ndarray, jax.Array)) else np.asarray(np.nan)
    inside = (number > low if open_low else number >= low) & (number <= high)
    if number.dtype == bool or not np.all(inside):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == np.inf else ']'}"
        raise ValueError(f"{name}: expected a number in {interval}, got {value!r}; leave it out for the default.")


def check_size(name: str, value: Any, least: int = 1) -> None:
    """Raises a ValueError unless a static option is an int of at least `least`."""
    value = as_int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an int ≥ {least}, got {value!r}; it is static.")
