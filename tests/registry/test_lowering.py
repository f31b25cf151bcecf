"""Every public entry point lowers for accelerators that are not at hand; what the lowered programs say.

Nothing here runs: `jax.export` lowers for a platform without a device of it.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import Case, N
from contract_cases import UNEVEN, em_first, fit_as_users, for_cases, is_not, is_variant, split_model
from helpers import blobs, mixture, two_starts
from jax import export

import jaxem
from jaxem.drivers import single as fitting
from jaxem.drivers import stream as streams
from jaxem.running import rounds

PLATFORMS = ("cuda", "rocm", "tpu")


def _in_float32(tree: Any) -> Any:
    def one(leaf: Any) -> Any:
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)
        return jax.ShapeDtypeStruct(np.shape(leaf), np.float32 if dtype.kind == "f" else dtype)

    return jax.tree.map(one, tree)


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


def lowered(fn: Callable, *arguments: Any) -> str:
    """The program of a function, for all platforms; it fails where an operation has no rule for one of them."""
    exported = export.export(jax.jit(fn), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return exported.mlir_module()


def fit_and_gradient(case: Case) -> str:
    """Lowered `fit`, with its derivative by hyper-parameters, data and weights where it has one."""
    floats, join, _ = split_model(case)

    def both(floats: Any, start: Any, data: Any, weight: Any) -> Any:
        def objective(floats: Any, data: Any, weight: Any) -> Any:
            result = fit_as_users(case, data, weight, model=join(floats), start=start)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(result.params)), result

        if not case.algorithm.build().ends_at_em_fixed_point:
            return objective(floats, data, weight)
        return jax.value_and_grad(objective, (0, 1, 2), has_aux=True, allow_int=True)(floats, data, weight)

    return lowered(both, *_in_float32((floats, case.model.start(), case.model.data, UNEVEN)))


@for_cases(slow=em_first(is_variant), every=True)
def test_the_fit_and_its_gradient_lower_with_full_precision_and_never_leave_the_device(case):
    program = fit_and_gradient(case)
    products = [line for line in program.splitlines() if "dot_general" in line and "xf32>" in line]
    rounded = [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]
    assert not rounded, rounded[0]
    assert not re.findall(r"callback|infeed|outfeed|stablehlo.(?:send|recv)", program)


def drivers(case: Case) -> Callable:
    model, algorithm = case.model.build(), case.algorithm.build()
    two = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)  # noqa: E731

    def run(start: Any, data: Any, weight: Any) -> Any:
        key, options = jax.random.key(0), {"plan": "lanes", "algorithm": algorithm}
        found = [jaxem.fit_batch(model, two(start), two(data), sample_weight=two(weight), **options)]
        if hasattr(model, "init"):
            found.append(jaxem.fit_restarts(model, key, data, n_restarts=2, sample_weight=weight, **options))
            groups = jaxem.fit_groups(model, key, data, np.arange(N) % 2, sample_weight=weight, **options)
            found.append(groups.fits)
        return found

    return run


def posterior(case: Case) -> Callable:
    model = case.model.build()

    def run(start: Any, data: Any, weight: Any) -> Any:
        bound = jaxem.bind(model, data, weight)
        names = ("log_joint", "log_prob", "responsibilities", "predict", "aic", "bic", "icl")
        found = [getattr(bound, name)(start, data) for name in names if hasattr(model, name)]
        found += [model.init(jax.random.key(0), data)] if hasattr(model, "init") else []
        given = () if case.model.given is None else (_as_float32(case.model.given),)
        found += (
            [bound.sample(start, jax.random.key(0), 5, *case.model.sampled, *given)] if hasattr(bound, "sample") else []
        )
        if hasattr(model, "log_joint"):
            found.append(jaxem.decompose(model, start, data, sample_weight=weight))
        return found

    return run


def uncertainty(case: Case) -> Callable:
    model = case.model.build()

    def run(start: Any, data: Any, weight: Any) -> Any:
        options = {"sample_weight": weight}
        of = lambda params: jax.tree.leaves(params)[0]  # noqa: E731
        found = [jaxem.standard_errors(model, start, data, **options), jaxem.em_rate(model, start, data, **options)]
        found.append(jaxem.influence(model, start, data, of=of, **options))
        found.append(jaxem.newton_correction(model, start, data, **options))
        found.append(jaxem.bootstrap(model, start, data, jax.random.key(0), 2, plan="lanes", **options))
        return found

    return run


@for_cases(slow=is_not("full"), weekly=is_variant, algorithms=False, every=True)
@pytest.mark.parametrize("entry_points", [drivers, posterior, uncertainty])
def test_every_entry_point_lowers(case, entry_points):
    lowered(entry_points(case), *_in_float32((case.model.start(), case.model.data, UNEVEN)))


# --- what the host calls again and again


class Watched:
    """A jitted function of which every program that is called is lowered for all platforms first."""

    def __init__(self, function: Any, seen: dict[str, int], name: str):
        self.function, self.seen, self.name = function, seen, name

    def __call__(self, *args: Any, **options: Any) -> Any:
        text = self.function.trace(*args, **options).lower(lowering_platforms=PLATFORMS).as_text()
        assert "stablehlo" in text and not re.findall(r"callback|infeed|outfeed|stablehlo.(?:send|recv)", text)
        self.seen[self.name] = self.seen.get(self.name, 0) + 1
        return self.function(*args, **options)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["full", "diagonal"])
def test_programs_that_go_on_from_the_host_lower(family, monkeypatch, tmp_path):
    seen: dict[str, int] = {}
    for module, names in (
        (rounds, ("_begin", "_round", "_stand", "_end")),
        (streams, ("_bind", "_merge", "_begin", "_add", "_trip", "_end")),
        (fitting, ("_begin", "_go_on", "_end")),
    ):
        for name in names:
            place = f"{module.__name__}.{name}"
            monkeypatch.setattr(module, name, Watched(getattr(module, name), seen, place))
    x, model, start = blobs(40, dtype=np.float32), mixture(family), two_starts(family, dtype=np.float32)
    options: Any = {"max_iter": 3, "tol": -1}
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), (start, x))
    jaxem.fit_batch(model, *both, plan="lanes", **options)
    jaxem.fit_restarts(model, jax.random.key(0), x, n_restarts=9, plan="lanes", race=jaxem.Race(1, 2), **options)
    jaxem.fit_stream(model, start, lambda: iter([(x[:20], None), (x[20:], None)]), **options)
    pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra io")
    jaxem.fit(model, start, x, checkpoint=jaxem.Checkpoint(tmp_path), **options)
    assert len(seen) == 13 and seen["jaxem.running.rounds._round"] > 2
