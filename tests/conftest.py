"""Configures jax before any test module uses it, in every xdist worker alike.

Doctests see this configuration when they run beside tests, and jax's defaults when they run alone (`pytest jaxem`).
"""

import gc
import importlib.metadata
import itertools
import os

# tests compile much and compute little: so they take a third of the time
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 10):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # of later versions a fatal error
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
# Each of a program's collectives holds one of XLA's threads on every device until all devices have come to it. Two that
# do not depend on each other can hold them all, of which there are as many as cores or devices: then nobody arrives.
os.environ.setdefault("NPROC", "16")
# A program that one worker writes into jax's cache, another may read before it is whole: each has a folder of its own.
_cache, _worker = os.environ.get("JAX_COMPILATION_CACHE_DIR"), os.environ.get("PYTEST_XDIST_WORKER")
if _cache and _worker and os.path.basename(_cache) != _worker:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_cache, _worker)

import jax  # noqa: E402
import pytest  # noqa: E402

from jaxem.running import padding as ragged  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
ragged._BUCKET_WORK = 0  # the small tables of tests are padded to as many sizes as large ones are


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def no_pictures(monkeypatch):
    """The command without matplotlib, whose pictures take longest."""
    monkeypatch.setattr("jaxem.cli.pictures.can_draw", lambda: False)


@pytest.fixture(autouse=True)
def exempt_algorithms(request):
    """Skips properties of the contract that an algorithm does not have; its entry says why."""
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    algorithm = getattr(case, "algorithm", None)
    if algorithm is not None and request.node.originalname in algorithm.exempt:
        pytest.skip(algorithm.exempt[request.node.originalname])


def rarely_collect_garbage() -> None:
    """What is there stays there: jax keeps millions of objects, which Python would go through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


rarely_collect_garbage()
_tests_so_far = itertools.count(1)


@pytest.fixture(autouse=True)
def few_memory_maps():
    """Drops compiled programs now and then: each holds memory maps, of which Linux grants 65,530 a process."""
    yield
    if next(_tests_so_far) % 50 == 0:
        jax.clear_caches()
        rarely_collect_garbage()
