"""Import statements that are carried out when one of their names is first asked for (PEP 562). Host code.

A first fit needs a third of the modules, and making their dataclasses and NamedTuples takes longer than reading them.
"""

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class _Later(NamedTuple):
    """A name that a block offers, and the module that has it; of a module, its package."""

    home: str
    name: str
    is_module: bool

    def now(self) -> Any:
        """What it names, imported unless it was already."""
        path = f"{self.home}.{self.name}" if self.is_module else self.home
        __import__(path)
        return sys.modules[path] if self.is_module else getattr(sys.modules[path], self.name)


class _Module:
    """What a statement of a block has in place of its module."""

    def __init__(self, home: str, is_package: bool):
        self._home, self._is_package = home, is_package

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":  # `import *` of a folder, whose own `__init__` imports on demand
            __import__(self._home)
            return sys.modules[self._home].__all__
        return _Later(self._home, name, self._is_package)


_OFFERED: dict[str, _Later] = {}  # by all packages; the names are those of the modules, not of `import … as`


@contextmanager
def on_demand(package: dict[str, Any]) -> Iterator[None]:
    """A block of `from .module import Name` in the `__init__` of a package, whose `globals()` this takes.

    While the block runs, `__import__` notes what this package asks for, and carries out what all others do. After it
    the package has a `__getattr__` that makes up for it, once a name, and a `__dir__` with all names. To people, type
    checkers and tests the statements are what they look like.

    Raises:
        ImportError: if the block imports from elsewhere than below the package.
    """
    own, real = package["__name__"], builtins.__import__

    def note(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not package:
            return real(name, globals, locals, fromlist, level)
        if level != 1:
            raise ImportError(f"{own}: expected `from .module import Name` on demand, got {name!r}; import it above.")
        return _Module(f"{own}.{name}" if name else own, is_package=not name)

    builtins.__import__ = note
    try:
        yield
    finally:
        builtins.__import__ = real
    offered = {name: value for name, value in package.items() if isinstance(value, _Later)}
    for name in offered:
        del package[name]
    _OFFERED.update({item.name: item for item in offered.values()})

    def get(name: str) -> Any:
        if name not in offered:
            raise AttributeError(f"module {own!r} has no attribute {name!r}")
        package[name] = offered[name].now()  # the next time Python finds it by itself
        return package[name]

    package["__getattr__"] = get
    package["__dir__"] = lambda: sorted({*package, *offered})


def class_named(name: str) -> Any:
    """What a module calls by this name, if a package offers it, else None: the classes that a file may name."""
    return _OFFERED[name].now() if name in _OFFERED else None
