"""What tells one fit from another in the folder of a checkpoint."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxem
from jaxem.storage.identity import identity_of


def _plus(c: float):
    return lambda x: x + c


class _Adds:
    def __init__(self, c: float):
        self.c = c

    def __call__(self, x: float) -> float:
        return x + self.c


class _Slotted:
    __slots__ = ("c",)

    def __init__(self, c: float):
        self.c = c


_KINDS = {
    "function": _plus,
    "jit": lambda c: jax.jit(_plus(c)),
    "custom_jvp": lambda c: jax.custom_jvp(_plus(c)),
    "cache": lambda c: functools.cache(_plus(c)),
    "partial": lambda c: functools.partial(pow, c),
    "callable": _Adds,
    "method": lambda c: _Adds(c).__call__,
    "slots": _Slotted,
    "model": lambda c: jaxem.Mixture(jaxem.FullNormal(floor=c), 2),
    "static field": lambda c: jaxem.Mixture(jaxem.Poisson(), int(c)),
    "array": lambda c: np.asarray(c),
    "key": lambda c: jax.random.key(int(c)),
    "set": lambda c: {c, "other"},
}


@pytest.mark.parametrize("kind", _KINDS)
def test_what_is_built_alike_is_the_same_and_anything_else_another(kind):
    make = _KINDS[kind]
    assert identity_of(make(1.0)) == identity_of(make(1.0)) != identity_of(make(2.0))


def test_structure_dtype_and_kind_of_key_count():
    x = np.ones(3)
    pairs = [(((1,), 2), ((1, 2),)), (x, x.astype(np.float32)), (x, x[:, None]), ({"a": 1}, {"b": 1})]
    pairs.append(tuple(jax.random.key(0, impl=impl) for impl in ("rbg", "unsafe_rbg")))
    assert not any(identity_of(a) == identity_of(b) for a, b in pairs)


def test_the_code_of_a_class_of_the_users_counts():
    def model(power: int) -> type:
        namespace: dict = {}
        exec(f"class Model:\n    def e_step(self, x):\n        return x ** {power}\n", namespace)
        return namespace["Model"]

    assert identity_of(model(2)()) == identity_of(model(2)()) != identity_of(model(3)())


@pytest.mark.slow
def test_another_process_says_the_same():
    code = (
        "import jax, jaxem; from jaxem.storage.identity import identity_of\n"
        "def f(x): return x in {'a', 'b', 'c'}\n"
        "print(identity_of(f, jax.jit(f), {'a', 'b'}, jaxem.Mixture(jaxem.FullNormal(), 2), jaxem.EM()))"
    )
    root = str(Path(__file__).parents[2])
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(said) == 1
