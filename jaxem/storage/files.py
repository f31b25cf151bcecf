"""Models and their params in files: npz archives of plain arrays under a JSON header. Host code.

    header      {"jaxem": 1, "sha256": …, "written_by": …, "body": {"model": …, "params": …, "arrays": […]}}
    0, 1, …     the arrays

No pickle: a file holds names and numbers, and loading it runs no code but the library's own.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import Params
from .encoding import decode, encode, named
from .version import written_by

FORMAT = 1


def save(path: str | os.PathLike, model: Any, params: Params, *, own: Iterable[Any] = ()) -> None:
    """Writes a model and its params, to the bit; a bound model with its constants of the data.

    The file is complete or not there: it is written beside its place and moved there at the end. Of a `FitResult`, save
    `result.model` and `result.params`, of one fit or of a batch.

    Args:
        path: of the file, with any suffix; `.npz` is usual, as NumPy reads it. A file that is there is replaced.
        model: of the library's classes, and of yours in `own`.
        params: any tree of concrete arrays.
        own: your own dataclasses, NamedTuples, functions (of `LogJoint`, `Density`) and bijections in the model: the
            file holds their names, never code.

    Raises:
        ValueError: on a value that has no form in a file, naming its place.
        OSError: if the file cannot be written.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem, os, tempfile
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxem.save(os.path.join(folder, "fit.npz"), result.model, result.params)
        ...     model, params = jaxem.load(os.path.join(folder, "fit.npz"))
        >>> bool((model.predict(params, x) == result.model.predict(result.params, x)).all())
        True
    """
    names = named(own)
    nodes, arrays = encode({"model": model, "params": params}, names)
    body = {**nodes, "arrays": [[array.dtype.str, list(array.shape)] for array in arrays]}
    header = {"jaxem": FORMAT, "written_by": written_by(), "sha256": _digest(body, arrays), "body": body}
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(buffer, header=text, **{str(i): array for i, array in enumerate(arrays)})  # type: ignore[arg-type]
    _write(Path(path), buffer.getvalue())


def load(path: str | os.PathLike, *, own: Iterable[Any] = ()) -> tuple[Any, Params]:
    """The model and the params that `save` wrote, to the bit.

    JAX arrays come back as such; one of 64 bits stays a NumPy array where jax's 64-bit types are off, so that it loses
    no digits.

    Args:
        path: of the file.
        own: as it was given to `save`.

    Raises:
        ValueError: naming the path, if the file is damaged, cut short or not one of `save`, of a format or with classes
            that this version does not know, or with names that are not in `own`.
        OSError: if the file cannot be read.

    Example:
        >>> import jax.numpy as jnp, jaxem, os, tempfile
        >>> params = jaxem.MixtureParams(jnp.array([0.5, 0.5]), jaxem.PoissonParams(jnp.array([[1.0], [9.0]])))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxem.save(os.path.join(folder, "fit.npz"), jaxem.Mixture(jaxem.Poisson(), 2), params)
        ...     model, params = jaxem.load(os.path.join(folder, "fit.npz"))
        >>> model.n_components, params.components.rate.tolist()
        (2, [[1.0], [9.0]])
    """
    names = named(own)
    content = Path(path).read_bytes()
    try:
        body, arrays = _read(content)
        model, params = (decode(body[name], arrays, names) for name in ("model", "params"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)}: expected what jaxem.save writes, got another structure.") from error
    return model, params


def _read(content: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The body of the header and the arrays, as written."""
    members = _members(content)
    if "header" not in members:
        raise ValueError(f"expected a file of jaxem.save, got an archive of {sorted(members)[:5]} without a header.")
    try:
        header = json.loads(members["header"].tobytes())
        version, body = header["jaxem"], header.get("body")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("expected a file of jaxem.save, got an archive with a header of something else.") from error
    if version != FORMAT:
        raise ValueError(
            f"expected a file of format {FORMAT}, got format {version!r}, written by jaxem {header.get('written_by')}; "
            "install that version to read it."
        )
    shapes = body["arrays"]
    arrays = [members[str(i)] for i in range(len(shapes)) if str(i) in members]
    if len(arrays) != len(shapes) or len(members) != len(shapes) + 1:
        raise ValueError(f"expected {len(shapes)} arrays, got {len(members) - 1}; the file is damaged: write it again.")
    if header.get("sha256") != _digest(body, arrays):
        raise ValueError("expected content with the checksum in its header, got another; the file is damaged.")
    return body, arrays


def _members(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz archive. A damaged one may raise anything in its readers."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            broken = archive.testzip()
            if broken is not None:
                raise ValueError(f"its member {broken} does not have the checksum that it should have")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:
        raise ValueError(
            f"expected an npz archive of jaxem.save, got {len(content)} bytes that cannot be read ({error}); the file "
            "is damaged, cut short, or something else: write it again."
        ) from error


def _digest(body: Any, arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, also where the machine stops in between."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
