"""Columns of a table of fits. pandas is imported where it is used."""

from typing import Any

import jax
import numpy as np

from .._typing import Params


def import_pandas(what: str) -> Any:
    """The module.

    Raises:
        ImportError: naming the extra, without it.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(f"{what} needs pandas: pip install 'jaxem[tables]'.") from error
    return pandas


def as_column(labels: np.ndarray) -> Any:
    """Labels of any kind, tuples too, one an entry."""
    return labels if labels.dtype != object else import_pandas("to_frame").Series(list(labels), dtype=object)


def param_columns(params: Params) -> dict[str, np.ndarray]:
    """Every number of the params by name, `weights[0]`, `mean[0,1]`, each (b,); leaves lead with the lanes b."""
    leaves = [(path, np.asarray(leaf)) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = [_name(path).removeprefix("components.") for path, _ in leaves]
    if len(set(names)) < len(names):
        names = [_name(path) for path, _ in leaves]
    columns = {}
    for name, (_, leaf) in zip(names, leaves, strict=True):
        for index in np.ndindex(*leaf.shape[1:]):
            columns[name + (f"[{','.join(map(str, index))}]" if index else "")] = leaf[:, *index]
    return columns


def _name(path: Any) -> str:
    """`components.mean`, `components[0].rate`; `params` for params that are one array."""
    text = ""
    for key in path:
        if isinstance(key, jax.tree_util.SequenceKey):
            text += f"[{key.idx}]"
        else:
            text += f".{getattr(key, 'name', getattr(key, 'key', key))}"
    return text[1:] if text.startswith(".") else f"params{text}"
