"""Checks that every driver makes of its options and data."""

import warnings
from typing import Any

import jax
import numpy as np

from .._typing import Data
from ..numerics.arguments import as_count


def check_max_lanes(value: Any) -> int | None:
    """Raises a ValueError unless `value` is a positive int or None."""
    return None if value is None else as_count("max_lanes", value)


def warn_if_rounded(data: Data) -> None:
    """One warning if float64 NumPy data are about to be rounded because x64 is off."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return
    if any(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in jax.tree.leaves(data)):
        warnings.warn(
            "float64 data are rounded to float32, because jax_enable_x64 is off; "
            "jax.config.update('jax_enable_x64', True) keeps them, .astype('float32') silences this.",
            UserWarning,
            stacklevel=3,
        )
