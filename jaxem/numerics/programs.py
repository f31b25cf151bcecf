"""Compiled programs, and how much effort goes into compiling them.

XLA's code generation for CPUs takes longer than a small problem runs: a fit of 500 rows is compiled for 2 s to run for
a millisecond. Without LLVM's optimisation and without the emitters of fused loops (jaxlib 0.10) it takes a fifth of
that, and runs for five. So programs that are called from Python with few numbers are compiled in haste; inside of a
`jax.jit` of the caller's, on accelerators and on more numbers XLA does what it always does. The values agree to
rounding.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from .._typing import PyTree
from . import tree as _tree

_IN_HASTE = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}


class Program:
    """A jitted function that is compiled in haste where its arguments are concrete, few, and on a CPU.

    Args:
        function: pure.
        at_most: numbers in the arguments, for which the time of the compiler is longer than the run's.
        options: of `jax.jit`.
    """

    def __init__(self, function: Callable, at_most: int, **options: Any):
        functools.update_wrapper(self, function)
        self.at_most = at_most
        self.thorough, self._function, self._options = jax.jit(function, **options), function, options

    def __call__(self, *args: Any) -> Any:
        """The function's value; differentiable and traceable as any jitted function."""
        return (self.hasty if self.is_small(args) else self.thorough)(*args)

    def outside(self, *args: Any) -> Any:
        """The same of concrete arguments, by a caller who knows that no program is being made."""
        return (self.hasty if self._are_few(args) else self.thorough)(*args)

    @functools.cached_property
    def hasty(self) -> Callable:
        """The program compiled in haste; it cannot be part of another."""
        return jax.jit(self._function, **self._options, compiler_options=in_haste())

    def is_small(self, args: PyTree, copies: int = 1) -> bool:
        """Whether these arguments, of each of so many copies, are numbers few enough, here and now."""
        return self._are_few(args, copies) and not _tree.is_tracing(args) and not is_inside_a_program()

    def _are_few(self, args: PyTree, copies: int = 1) -> bool:
        return n_numbers(args) * copies <= self.at_most and jax.default_backend() == "cpu"

    def _cache_size(self) -> int:
        """How many programs there are; the word of `jax.jit`'s."""
        return self.thorough._cache_size() + self.hasty._cache_size()  # type: ignore[attr-defined]


def program(at_most: int, **options: Any) -> Callable[[Callable], Program]:
    """Decorates a function as a `Program`."""
    return lambda function: Program(function, at_most, **options)


def n_numbers(tree: PyTree) -> int:
    """Entries of all arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if isinstance(leaf, (jax.Array, np.ndarray)))


def is_inside_a_program() -> bool:
    """Whether what is computed now becomes part of a program, even from constants."""
    return _tree.is_tracing(lax.full((), 0.0))


@functools.cache
def in_haste() -> dict[str, Any]:
    """The compiler's options for that, those that this jaxlib knows."""
    if _knows(_IN_HASTE):
        return _IN_HASTE
    return {name: value for name, value in _IN_HASTE.items() if _knows({name: value})}


def _knows(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
