"""What the tests of the contracts share: cases, fits, comparisons."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ALGORITHMS, CASES, Case, N

import jaxem
from jaxem.contracts import capabilities as ask
from jaxem.latent.informative import informed_weight
from jaxem.loop import loop
from jaxem.numerics.programs import in_haste

MAX_ITER = 300


EPS = np.finfo(np.float64).eps


# One iteration in two orders of summation differs by some 100 eps, 2e-14; a fixed point divides that by 1 - rate,
# 10 at most, and a component at the floor, 1e-6, about a thousand. The rest is room for other libms.
ROUNDING = 5e-11


_rng = np.random.default_rng(0)


UNEVEN = _rng.uniform(0.5, 1.5, N)


INTEGER = _rng.permutation(np.repeat([0, 1, 2], [N // 4, N // 2, N // 4])).astype(float)  # they sum to N


def for_cases(
    slow: Callable[[Case], bool] = lambda case: False,
    algorithms: bool = True,
    cross: bool = False,
    only: tuple[str, ...] = (),
    every: bool = False,
    core: bool = False,
    weekly: Callable[[Case], bool] = lambda case: False,
) -> pytest.MarkDecorator:
    """Parametrises by case; session scope, so that pytest keeps the tests of one case together.

    Args:
        slow: cases to mark as slow, besides the models that are slow; of those, they are left out.
        algorithms: False for properties of the model alone.
        cross: True to pair algorithms with all models but variants; otherwise they meet one.
        only: models: for what is long to compile and hardly depends on the model.
        every: True to leave out none.
        core: True for what slow cases are tested on at every change; the rest of them is tested once a week, as are
            pairs with all models but two.
        weekly: cases that are tested once a week too, for what is long to compile.
    """
    cases = CASES if cross else [case for case in CASES if not case.crossed]
    assert set(only) <= {case.model.name for case in cases}
    cases = [case for case in cases if not only or case.model.name in only]
    cases = [case for case in cases if every or not (case.model.slow and slow(case))]
    cases = cases if algorithms else [case for case in cases if case.algorithm is ALGORITHMS[0]]

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        late = [pytest.mark.slow] if case.slow or slow(case) else []
        return [*late, pytest.mark.weekly] if late and (_is_weekly(case, core) or weekly(case)) else late

    marked = [pytest.param(case, id=case.name, marks=marks(case)) for case in cases]
    return pytest.mark.parametrize("case", marked, scope="session")


def _is_weekly(case: Case, core: bool) -> bool:
    if case.crossed:
        return case.model.name not in ("full", "poisson")
    return not core


def is_variant(case: Case) -> bool:
    return case.model.variant


def is_quick_variant(case: Case) -> bool:
    """For what depends on the hyper-parameters, so that slow variants are not left out."""
    return case.model.variant and not case.model.slow


def is_not(*names: str) -> Callable[[Case], bool]:
    return lambda case: case.model.name not in names


def em_first(slow: Callable[[Case], bool] = lambda case: False) -> Callable[[Case], bool]:
    """Algorithms other than EM with the slow tests: for what hardly depends on how the fixed point was found."""
    return lambda case: slow(case) or case.algorithm is not ALGORITHMS[0]


def need(model: Any, *methods: str) -> None:
    for method in methods:
        if not hasattr(model, method):
            pytest.skip(f"{type(model).__name__} has no {method}")


quick_jit = functools.partial(jax.jit, compiler_options=in_haste())


@functools.partial(quick_jit, static_argnames=("max_iter", "chunk_size"))
def _fit(model: Any, start: Any, data: Any, weight: Any, algorithm: Any, tol: Any, max_iter: int, chunk_size: Any):
    return jaxem.fit(
        model, start, data, sample_weight=weight, algorithm=algorithm, tol=tol, max_iter=max_iter, chunk_size=chunk_size
    )


def fit(
    case: Case,
    data: Any = None,
    weight: Any = UNEVEN,
    *,
    model: Any = None,
    start: Any = None,
    tol: float = -1.0,
    chunk_size: int | None = None,
) -> jaxem.FitResult:
    """MAX_ITER iterations, unless `tol` says otherwise; quickly compiled."""
    model = case.model.build() if model is None else model
    start = case.model.start() if start is None else start
    data = case.model.data if data is None else data
    return _fit(model, start, data, weight, case.algorithm.build(), tol, MAX_ITER, chunk_size)


def fit_as_users(case: Case, data: Any = None, weight: Any = UNEVEN, **options: Any) -> jaxem.FitResult:
    """A plain call of `jaxem.fit`, with the default rule."""
    options = {"tol": 1e-6, "max_iter": MAX_ITER, "algorithm": case.algorithm.build()} | options
    model, start = options.pop("model", case.model.build()), options.pop("start", case.model.start())
    return jaxem.fit(model, start, case.model.data if data is None else data, sample_weight=weight, **options)


@functools.cache
def fitted(case: Case) -> jaxem.FitResult:
    """At the fixed point, to rounding."""
    return fit(case)


@functools.cache
def stopped(case: Case) -> jaxem.FitResult:
    """By the default rule."""
    return fit(case, tol=1e-6)


def arrays(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def assert_close(actual: Any, expected: Any, tolerance: float = ROUNDING) -> None:
    """Leaf by leaf, relative to the largest element of the leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e), err_msg=jax.tree_util.keystr(path))
        size = np.max(np.abs(e), initial=0, where=np.isfinite(e))
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * size, err_msg=jax.tree_util.keystr(path))


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_same_fit(actual: jaxem.FitResult, expected: jaxem.FitResult, tolerance: float = ROUNDING) -> None:
    """Params, objectives and the number of iterations."""
    assert int(actual.status) == int(expected.status)
    assert int(actual.n_iter) == int(expected.n_iter)
    fields = lambda result: (result.params, result.objective, result.log_lik, result.history)  # noqa: E731
    assert_close(fields(actual), fields(expected), tolerance)


def repeated_rows(case: Case) -> Any:
    return jax.tree.map(lambda leaf: np.repeat(leaf, INTEGER.astype(int), 0), case.model.data)


def need_fixed_point(case: Case) -> None:
    if not case.algorithm.build().ends_at_em_fixed_point:
        pytest.skip("the algorithm does not end at a fixed point of EM")


def is_float(leaf: Any) -> bool:
    return np.issubdtype(np.asarray(leaf).dtype, np.floating)


def with_floats(change: Callable[[Any], Any], data: Any) -> Any:
    """Data with their numbers changed; whole numbers, such as lengths of series, stay."""
    return jax.tree.map(lambda leaf: change(leaf) if is_float(leaf) else leaf, data)


def floats_of(data: Any) -> Any:
    """What of data has a derivative: without the whole numbers."""
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, data)


def joined(floats: Any, data: Any) -> Any:
    """Inverse of `floats_of`, with the whole numbers of `data`."""
    rest = iter(jax.tree.leaves(floats))
    return jax.tree.map(lambda leaf: next(rest) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, data)


def split_model(case: Case) -> tuple[list[np.ndarray], Callable[[Any], Any], list[str]]:
    """Floating hyper-parameters, a function that puts them back, and their names."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(case.model.build())
    floats = [np.asarray(leaf) for _, leaf in leaves if is_float(leaf)]
    names = [jax.tree_util.keystr(path) for path, leaf in leaves if is_float(leaf)]

    def join(values: Any) -> Any:
        rest = iter(values)
        return jax.tree.unflatten(tree, [next(rest) if is_float(leaf) else leaf for _, leaf in leaves])

    return floats, join, names


def answer(case: Case, arguments: Any, run: Callable[..., jaxem.FitResult] = fit_as_users, **options: Any) -> Any:
    """What is differentiated: (hyper-parameters, start, data, weights) -> params, objective, log_lik."""
    floats, start, data, weight = arguments
    data = joined(data, case.model.data)
    result = run(case, data, weight, model=split_model(case)[1](floats), start=start, tol=-1.0, **options)
    return result.params, result.objective, result.log_lik


def directions(case: Case) -> list[tuple[str, Any]]:
    """Two directions for the data (none where they are discrete), one for the weights, one for each hyper-parameter."""
    floats, _, names = split_model(case)
    rng = np.random.default_rng(5)
    movable = floats_of(case.model.data)
    zero = jax.tree.map(np.zeros_like, (floats, case.model.start(), movable, UNEVEN))
    found = []
    for i in range(0 if case.model.discrete else 2):
        step = jax.tree.map(lambda leaf: np.nanstd(leaf, 0) * rng.normal(size=leaf.shape), movable)
        found.append((f"data {i}", (zero[0], zero[1], step, zero[3])))
    found.append(("sample_weight", (*zero[:3], rng.normal(size=N))))
    for i, name in enumerate(names):
        step = [leaf * rng.uniform(0.5, 1.5, leaf.shape) if i == j else zero[0][j] for j, leaf in enumerate(floats)]
        found.append((name, (step, *zero[1:])))
    return found


@functools.cache
def derivative_program(case: Case) -> Callable[[Any, Any, Any], Any]:
    """(arguments, tangents, cotangent) -> J·tangent for each, and Jᵀ·cotangent: one compilation for both modes."""

    @quick_jit
    def both(arguments: Any, tangents: Any, cotangent: Any) -> Any:
        _, push = jax.linearize(functools.partial(answer, case), arguments)
        pull = jax.linear_transpose(push, arguments)
        return jax.vmap(push)(tangents), pull(cotangent)[0]

    return both


def derivatives(case: Case, data: Any, weight: Any) -> tuple[Any, Any, Any, Any]:
    """Tangents, cotangent, J·tangents, Jᵀ·cotangent."""
    arguments = arrays((split_model(case)[0], case.model.start(), floats_of(data), weight))
    tangents = jax.tree.map(lambda *leaves: np.stack(leaves), *[step for _, step in directions(case)])
    shapes = jax.eval_shape(functools.partial(answer, case), arguments)
    rng = np.random.default_rng(6)
    cotangent = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape)), shapes)
    pushed, pulled = derivative_program(case)(arguments, tangents, cotangent)
    return tangents, cotangent, pushed, pulled


def with_absent_rows(case: Case, *fill: float) -> Any:
    """The data with rows of weight zero overwritten."""
    absent = INTEGER == 0

    def overwrite(leaf: np.ndarray) -> np.ndarray:
        leaf = leaf.copy()
        leaf[absent] = np.resize(fill, leaf[absent].shape) if is_float(leaf) else np.iinfo(leaf.dtype).max
        return leaf

    return jax.tree.map(overwrite, case.model.data)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watched:
    """A model whose fast path is trusted outside a radius about some params: −1 everywhere, inf nowhere."""

    model: Any
    centre: Any
    radius: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        found = getattr(self.model, name)
        return self._localised if name == "localised" else found

    def _localised(self) -> "Watched":
        return replace(self, model=self.model.localised(), centre=self.model.to_local(self.centre))

    def bind(self, data: Any, sample_weight: Any) -> "Watched":
        return replace(self, model=ask.bind(self.model, data, sample_weight))

    def trusted(self, params: Any) -> Any:
        return distance(params, self.centre) > self.radius


def distance(a: Any, b: Any) -> Any:
    parts = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y), initial=0), a, b)
    return functools.reduce(jnp.maximum, jax.tree.leaves(parts))


TOTAL = 60  # iterations to split


@quick_jit
def _advance(state: Any, model: Any, data: Any, weight: Any, algorithm: Any, n_iter: Any, tol: Any) -> loop.LoopState:
    return loop.advance(state, model, data, weight, algorithm=algorithm, stop=jaxem.Aitken(tol), n_iter=n_iter)


@functools.partial(quick_jit, static_argnames="max_iter")
def _begin(model: Any, params: Any, data: Any, weight: Any, algorithm: Any, max_iter: int) -> Any:
    bound = ask.bind(model, data, weight)
    return loop.start(bound, params, data, weight, algorithm=algorithm, max_iter=max_iter), bound


def steps(case: Case, radius: float, split: list[int], tol: float, max_iter: int = TOTAL) -> Any:
    """The state after calls of `advance` with these numbers of iterations, and the bound model."""
    model = Watched(case.model.build(), case.model.start() if radius < 0 else fitted(case).params, radius)
    start, data, weight = arrays((case.model.start(), case.model.data, UNEVEN))
    weight = informed_weight(case.model.build(), data, weight)  # as the drivers do for the loop
    state, bound = _begin(model, start, data, weight, case.algorithm.build(), max_iter)
    for n_iter in split:
        state = _advance(state, bound, data, weight, case.algorithm.build(), n_iter, tol)
    return state, bound


@quick_jit
def _conclude(state: Any, model: Any, data: Any, weight: Any, algorithm: Any) -> loop.LoopState:
    return loop.conclude(state, model, data, weight, algorithm=algorithm)


def after(case: Case, n_iter: int, max_iter: int = TOTAL) -> jaxem.FitResult:
    state, bound = steps(case, -1.0, [n_iter], 0.0, max_iter)
    if has_fixed_length(case):
        data, weight = arrays((case.model.data, UNEVEN))
        weight = informed_weight(case.model.build(), data, weight)
        state = _conclude(state, bound, data, weight, case.algorithm.build())
    return loop.finish(state, bound)


def has_fixed_length(case: Case) -> bool:
    return ask.has_fixed_length(case.algorithm.build())


def number_of_iterations(case: Case) -> int | None:
    """MAX_ITER of an algorithm that no rule ends; None: as many as the rule says."""
    return MAX_ITER if has_fixed_length(case) else None


@quick_jit
def _ask(model: Any, params: Any, data: Any, unreadable: Any, repeated: Any) -> dict[str, Any]:
    have = lambda *names: [name for name in names if hasattr(model, name)]  # noqa: E731
    criteria = have("aic", "bic", "icl", "icl_entropy")
    found = {name: getattr(model, name)(params, data) for name in criteria}
    found |= {name: getattr(model, name)(params, data) for name in have("log_prob", "responsibilities", "predict")}
    weight = jnp.asarray(INTEGER)
    by_weight = {name: getattr(model, name)(params, unreadable, sample_weight=weight) for name in criteria}
    by_rows = {name: getattr(model, name)(params, repeated) for name in criteria}
    return found | {"by_weight": by_weight, "by_rows": by_rows}


@functools.cache
def answers(case: Case) -> dict[str, Any]:
    """What the fitted model says of its data."""
    result = stopped(case)
    return jax.device_get(
        _ask(result.model, result.params, case.model.data, with_absent_rows(case, np.nan), repeated_rows(case))
    )
