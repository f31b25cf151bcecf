"""Type aliases in one place."""

from typing import Any

import jax

Array = jax.Array
Key = jax.Array
PyTree = Any
Params = Any
Stats = Any
Data = Any
