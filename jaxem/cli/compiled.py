"""Compiled programs that the command keeps for its next runs, in the user's cache folder. Safe to delete."""

import os
import sys
from pathlib import Path

import jax

MOST_BYTES = 2**29
_WORTH_KEEPING = 0.2  # seconds of compilation


def keep_compiled() -> None:
    """Lets jax keep compiled programs in `cache_folder()`, and removes the oldest beyond `MOST_BYTES`.

    Only for a process of its own, as it sets jax's configuration. Does nothing where the user has set jax's own cache,
    or nothing can be written there.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_oldest(folder, MOST_BYTES)
    except OSError:  # a home without room or rights: compile, and keep nothing
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def cache_folder() -> Path:
    """`jaxem/compiled` in `XDG_CACHE_HOME`, else where the system keeps caches of users."""
    home = Path(os.path.expanduser("~"))
    system = {"darwin": home / "Library" / "Caches", "win32": home / "AppData" / "Local"}
    given = os.environ.get("XDG_CACHE_HOME", "")  # one that is not absolute is to be ignored, says the specification
    base = Path(given) if os.path.isabs(given) else system.get(sys.platform, home / ".cache")
    return base / "jaxem" / "compiled"


def remove_oldest(folder: Path, most_bytes: int) -> None:
    """Removes files that were not read for longest until what is left takes at most `most_bytes`."""
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    total = sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda pair: max(pair[1].st_atime, pair[1].st_mtime)):
        if total <= most_bytes:
            return
        path.unlink(missing_ok=True)  # another process may have been faster
        total -= stat.st_size
