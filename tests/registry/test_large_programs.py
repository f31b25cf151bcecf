"""What the programs of large fits say: no array of n·k·d elements, and nothing of an iteration on the host.

Nothing here is computed: models are lowered for shapes that no test could hold.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from helpers import once_a_week

import jaxem

N, D, K = 2**20, 32, 16


def rows(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((N, *shape), np.float32)


REGRESSION = (rows(D), rows())
COMPONENTS = {
    "full": (jaxem.FullNormal(), rows(D)),
    "diagonal": (jaxem.DiagonalNormal(), rows(D)),
    "spherical": (jaxem.SphericalNormal(), rows(D)),
    "tied": (jaxem.TiedNormal(), rows(D)),
    "low_rank": (jaxem.LowRankNormal(4), rows(D)),
    "full_missing": (jaxem.FullNormal(missing=True), rows(D)),
    "tied_missing": (jaxem.TiedNormal(missing=True), rows(D)),
    "student_t": (jaxem.StudentT(), rows(D)),
    "student_t_diagonal": (jaxem.StudentT(4.0, jaxem.DiagonalNormal()), rows(D)),
    "poisson": (jaxem.Poisson(), rows(D)),
    "poisson_missing": (jaxem.Poisson(missing=True), rows(D)),
    "negative_binomial": (jaxem.NegativeBinomial(), rows(D)),
    "multinomial": (jaxem.Multinomial(), rows(D)),
    "bernoulli": (jaxem.Bernoulli(), rows(D)),
    "categorical": (jaxem.Categorical(4), rows(D)),
    "exponential": (jaxem.Exponential(), rows(D)),
    "gamma": (jaxem.Gamma(), rows(D)),
    "log_normal": (jaxem.LogNormal(), rows(D)),
    "beta": (jaxem.Beta(), rows(D)),
    "dirichlet": (jaxem.Dirichlet(), rows(D)),
    "von_mises_fisher": (jaxem.VonMisesFisher(), rows(D)),
    "linear": (jaxem.LinearRegression(), REGRESSION),
    "student_t_regression": (jaxem.StudentTRegression(), REGRESSION),
    "poisson_regression": (jaxem.PoissonRegression(), REGRESSION),
    "negative_binomial_regression": (jaxem.NegativeBinomialRegression(), REGRESSION),
    "logistic_regression": (jaxem.LogisticRegression(), REGRESSION),
    "product": (
        jaxem.Product(gaps=jaxem.FullNormal(missing=True), counts=jaxem.Poisson()),
        {"gaps": rows(D), "counts": rows(D)},
    ),
    "one_of": (jaxem.OneOf(jaxem.Uniform(), *[jaxem.FullNormal()] * (K - 1)), rows(D)),
}
QUICK = ("diagonal", "full_missing", "poisson", "linear")
GATED = (jaxem.Mixture(jaxem.FullNormal(), K, gate=jaxem.SoftmaxGate()), jaxem.gated(rows(D), rows(D)))
MODELS = {name: (jaxem.Mixture(family, K), data) for name, (family, data) in COMPONENTS.items()} | {"gated": GATED}
for_models = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=once_a_week) for name in MODELS]
)


class Operation(NamedTuple):
    name: str
    target: str  # of a custom call
    types: tuple[str, ...]  # of the results
    looping: bool  # inside a while loop


def operations(lowered: Any) -> list[Operation]:
    """All operations of a lowered program, functions at the places where they are called."""
    module = lowered.compiler_ir("stablehlo")
    functions = {op.attributes["sym_name"].value: op for op in module.body.operations}

    def inside(op: Any, looping: bool) -> Iterator[Operation]:
        for block in (block for region in op.regions for block in region):
            for child in block.operations:
                child = child.operation
                target = getattr(child.attributes.get("call_target_name"), "value", "")
                yield Operation(child.name, target, tuple(str(out.type) for out in child.results), looping)
                yield from inside(child, looping or child.name == "stablehlo.while")
                if child.name == "func.call":
                    yield from inside(functions[child.attributes["callee"].value], looping)

    return list(inside(functions["main"], False))


def size(tensor: str) -> int:
    dimensions = re.match(r"tensor<((?:\d+x)*)", tensor)
    return math.prod(map(int, dimensions[1].split("x")[:-1])) if dimensions else 0


def lowered_fit(model: Any, data: Any, **options: Any) -> list[Operation]:
    """`fit` from a start by `init`, for a GPU."""

    def run(data: Any, weight: Any) -> Any:
        start = model.init(jax.random.key(0), data, weight)
        return jaxem.fit(model, start, data, sample_weight=weight, derivative=jaxem.Stop(), **options)

    return operations(jax.jit(run).trace(data, rows()).lower(lowering_platforms=("cuda",)))


def largest_array(program: list[Operation]) -> tuple[int, str, str]:
    return max((size(tensor), op.name, tensor) for op in program for tensor in op.types)


def on_the_host(program: list[Operation]) -> list[Operation]:
    """What leaves the device within an iteration."""
    loops = [op for op in program if op.looping]
    transfers = ("infeed", "outfeed", "send", "recv")
    return [
        op for op in loops if op.name.split(".")[-1] in transfers or re.search("callback|host|feed", op.target.lower())
    ]


@pytest.mark.slow
@for_models
def test_no_array_of_a_large_fit_has_n_k_d_elements_and_no_iteration_leaves_the_device(name):
    program = lowered_fit(*MODELS[name])
    assert any(size(tensor) == N * D for op in program for tensor in op.types)  # the data are seen
    assert sum(op.name == "stablehlo.dot_general" and op.looping for op in program) >= 2  # the iterations are seen
    assert largest_array(program)[0] < N * K * D, largest_array(program)
    assert not on_the_host(program)


def test_an_array_of_n_k_d_elements_would_be_found():
    assert largest_array(lowered_fit(*MODELS["full_missing"], chunk_size=N))[0] >= N * K * D


def test_a_call_to_the_host_would_be_found():
    def log_joint(theta: Any, x: Any) -> Any:
        jax.debug.callback(lambda x: None, x)
        return -jax.numpy.square(x - jax.numpy.stack([theta, -theta]))

    model = jaxem.LogJoint(log_joint, 2, m_step=jaxem.Full())
    run = lambda x: jaxem.fit(model, jax.numpy.float32(1.0), x, derivative=jaxem.Stop())  # noqa: E731
    lowered = jax.jit(run).lower(jax.ShapeDtypeStruct((100,), np.float32))  # for a GPU that is not there it would fail
    assert on_the_host(operations(lowered))
