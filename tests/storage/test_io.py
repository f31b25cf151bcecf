"""Files: every model and its params come back to the bit; nothing else is taken for a file of this library."""

import io
import json
import os
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MODELS
from helpers import once_a_week, x64

import jaxem
from jaxem.numerics import tree as _tree
from jaxem.storage import files


def parts(value: Any) -> list[Any]:
    """What a value is made of, classes and numbers to the bit, that two of them can be compared."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        kind = jax.Array if isinstance(value, jax.Array) else type(value)
        return [kind, array.dtype.str, array.shape, array.tobytes()]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value), *(parts(getattr(value, field.name)) for field in fields(value))]
    if isinstance(value, dict):
        return [dict, *([key, parts(child)] for key, child in value.items())]
    if isinstance(value, (tuple, list)):
        return [type(value), *map(parts, value)]
    return [type(value), value]


def stored(folder: Path, model: Any, params: Any, **options: Any) -> tuple[Any, Any]:
    jaxem.save(folder / "fit.npz", model, params, **options)
    return jaxem.load(folder / "fit.npz", **options)


@pytest.mark.parametrize(
    ("entry", "dtype"),
    [
        pytest.param(entry, dtype, id=f"{entry.name}-{dtype.__name__}", marks=once_a_week if late else ())
        for entry in MODELS
        for dtype, late in ((np.float32, entry.slow or entry.variant), (np.float64, True))
    ],
)
def test_models_and_params_come_back_to_the_bit(entry, dtype, tmp_path):
    in_dtype = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)  # noqa: E731
    model, params, data = entry.build(), in_dtype(entry.start()), in_dtype(entry.data)
    bound = jaxem.bind(model, data, None)
    for saved in (model, in_dtype(model), bound):
        assert parts(stored(tmp_path, saved, params)) == parts((saved, params))
    assert jax.tree.structure(stored(tmp_path, bound, params)) == jax.tree.structure((bound, params))


def test_what_is_loaded_goes_on_as_what_was_saved(tmp_path):
    entry = next(entry for entry in MODELS if entry.name == "full")
    result = jaxem.fit(entry.build(), entry.start(), entry.data, max_iter=3, tol=-1.0)
    model, params = stored(tmp_path, result.model, result.params)
    options = {"max_iter": 2, "tol": -1.0}
    again = jaxem.fit(model, params, entry.data, **options)
    assert parts(again) == parts(jaxem.fit(result.model, result.params, entry.data, **options))
    assert parts(stored(tmp_path, again, {"anything": again})[1]) == parts({"anything": again})


# --- what is the user's own


class Rate(NamedTuple):
    rate: Any
    offset: Any = 0.0


@_tree.register
@dataclass(frozen=True)
class Own:
    family: Any
    scale: Any = 2.5


class NoFields:
    pass


def log_joint(theta: Any, x: Any) -> Any:
    return -jnp.square(x - jnp.stack([theta, -theta]))


UNIT = replace(jaxem.bijections.real, name="of my own")


def test_classes_and_functions_of_the_user_are_named_at_both_ends(tmp_path):
    model = Own(jaxem.LogJoint(log_joint, 2, constraints=jaxem.bijections.interval(-1.0, 0.3)))
    params = Rate(np.float64(0.1))
    own = [Own, Rate, log_joint]
    assert parts(stored(tmp_path, model, params, own=own)) == parts((model, params))
    for missing in own:
        rest = [item for item in own if item is not missing]
        with pytest.raises(ValueError, match=rf"fit\.npz: .*{missing.__name__}.*own="):
            jaxem.load(tmp_path / "fit.npz", own=rest)
        with pytest.raises(ValueError, match=r"^(model|params).*own="):
            jaxem.save(tmp_path / "other.npz", model, params, own=rest)
    assert os.listdir(tmp_path) == ["fit.npz"]


def test_functions_inside_of_the_library_s_models(tmp_path):
    density = jaxem.Density(
        log_joint,
        {"a": None, "b": (jaxem.bijections.positive, jaxem.bijections.greater_than(2.0))},
        start={"a": 1.0, "b": (2.0, 3.0)},
    )
    models = [
        jaxem.Mixture(density, 3),
        jaxem.LogJoint(jax.tree_util.Partial(log_joint, jnp.ones(2)), 2, constraints=jaxem.bijections.simplex),
        jaxem.LogJoint.quadrature(log_joint, 5, m_step=jaxem.Full(), constraints=UNIT),
    ]
    for model in models:
        loaded, _ = stored(tmp_path, model, (), own=[log_joint, UNIT])
        assert jax.tree.structure(loaded) == jax.tree.structure(model)
        assert parts(jax.tree.leaves(loaded)) == parts(jax.tree.leaves(model))


def test_densities_of_numpyro(tmp_path):
    distributions = pytest.importorskip("numpyro.distributions")
    model = jaxem.Mixture(jaxem.from_numpyro(distributions.Gamma), 2)
    loaded, _ = stored(tmp_path, model, (), own=[distributions.Gamma])
    assert parts(loaded) == parts(model)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (NoFields(), r"params\['a'\]\[1\]: .*got NoFields; make it a frozen dataclass"),
        (Rate(1.0), r"params\['a'\]\[1\]: .*own=\[Rate\]"),
        (Rate, r"params\['a'\]\[1\]: .*got 'Rate', code"),
        (np.array([None]), r"params\['a'\]\[1\]: .*got dtype object"),
        (np.array([1j]), "got dtype complex"),
        (jax.random.key(0), "got dtype key"),
        ({1: 2.0}, "got dict"),
        (UNIT, r"got 'of my own', code that no file holds; pass own="),
    ],
)
def test_what_has_no_form_in_a_file_is_refused_with_its_place(value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        jaxem.save(tmp_path / "fit.npz", jaxem.FullNormal(), {"a": [0.0, value]})
    assert not os.listdir(tmp_path)


def test_traced_values_are_refused(tmp_path):
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda x: jaxem.save(tmp_path / "fit.npz", jaxem.FullNormal(), x))(1.0)


@pytest.mark.parametrize("own", [[3], [Rate, type("Rate", (), {})]])
def test_names_of_the_user_are_unlike_each_other(own, tmp_path):
    with pytest.raises(ValueError, match="^own: "):
        jaxem.save(tmp_path / "fit.npz", jaxem.FullNormal(), (), own=own)


# --- numbers


def test_numbers_keep_their_types(tmp_path):
    values = [
        1, 2**70, 0.1, -0.0, float("inf"), True, None, "text", np.float32(0.1), np.int8(3), np.array(True),
        np.array([np.nan, -np.nan]), jnp.array([1, 2], jnp.int32), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 2)), np.arange(3, dtype=">f8"), {"b": 1, "a": ()},
    ]  # fmt: skip
    assert parts(stored(tmp_path, jaxem.FullNormal(), values)[1]) == parts(values)


def test_64_bits_keep_their_digits_where_jax_has_32(tmp_path):
    third = jnp.asarray(1 / 3, jnp.float64)
    jaxem.save(tmp_path / "fit.npz", jaxem.FullNormal(), third)
    with x64(False):
        params = jaxem.load(tmp_path / "fit.npz")[1]
    assert isinstance(params, np.ndarray) and params.dtype == np.float64 and params == 1 / 3


# --- files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = jaxem.Mixture(jaxem.FullNormal(prior=None), 2, concentration=np.array([1.0, 2.0]))
    bank: Any = (np.ones((2, 1)), np.ones((2, 1, 1)))
    params = jaxem.MixtureParams(np.array([0.25, 0.75]), jaxem.NormalParams(*bank))
    jaxem.save(tmp_path / "fit.npz", model, params)
    return tmp_path / "fit.npz"


def test_files_cut_short_are_refused(file):
    content, expected = file.read_bytes(), "fit.npz: expected an npz archive of jaxem.save, got .* bytes"
    for length in np.linspace(0, len(content) - 1, 51).astype(int):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=expected):
            jaxem.load(file)


def test_a_flipped_byte_is_refused_or_without_effect(file):
    content, whole = file.read_bytes(), parts(jaxem.load(file))
    refused = 0
    positions = np.random.default_rng(0).permutation(len(content))[:400]
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(bytes(damaged))
        try:
            assert parts(jaxem.load(file)) == whole  # a date in the archive's directory
        except ValueError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > len(positions) / 2


def rewritten(file: Path, change: Any, arrays: dict[str, np.ndarray] | None = None) -> None:
    """With another header, or other arrays, in a sound archive."""
    with np.load(file) as archive:
        members = dict(archive)
    header = json.loads(members.pop("header").tobytes())
    change(header)
    np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **(members | (arrays or {})))  # type: ignore[arg-type]


def signed(change: Any) -> Any:
    """A change that a later version could have made, with the checksum that belongs to it."""

    def both(header: dict) -> None:
        with_arrays = header["body"]
        change(with_arrays)
        arrays = [np.zeros(shape, dtype) for dtype, shape in with_arrays["arrays"]]
        header["sha256"] = files._digest(with_arrays, arrays)

    return both


def test_arrays_exchanged_between_files_are_refused(file):
    rewritten(file, lambda header: None)
    jaxem.load(file)
    rewritten(file, lambda header: None, {"0": np.array([1.0, 2.5])})
    with pytest.raises(ValueError, match=r"fit\.npz: .*checksum"):
        jaxem.load(file)
    rewritten(file, lambda header: None, {"9": np.zeros(1)})
    with pytest.raises(ValueError, match=r"fit\.npz: expected 4 arrays, got 5"):
        jaxem.load(file)


def test_files_of_another_format_are_refused(file):
    rewritten(file, lambda header: header.update(jaxem=2, written_by="7.0"))
    with pytest.raises(ValueError, match=r"fit\.npz: expected a file of format 1, got format 2, .* jaxem 7\.0;"):
        jaxem.load(file)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "Unheard", "fields": {}}, "holds a Unheard.*newer"),
        ({"type": "MixtureParams", "fields": {"weights": 1.0}}, r"without the fields \['components'\]"),
        ({"type": "FullNormal", "fields": {"later": 1.0}}, r"with fields \['later'\]"),
        ({"own": "Rate", "fields": {}}, r"holds 'Rate'.*own=\[Rate\]"),
        ({"value": "system"}, r"holds 'system'.*own=\[system\]"),
        ({"bijection": "system(1)"}, r"holds the bijection 'system\(1\)'"),
        ({"array": 7, "of": "numpy"}, "another structure"),
        ({"unknown": 1}, "another structure"),
        ({}, "another structure"),
        ([1], "another structure"),
    ],
)
def test_nodes_that_nobody_knows_are_refused(node, message, file):
    jaxem.save(file, jaxem.FullNormal(), ())
    rewritten(file, signed(lambda body: body.update(params=node)))
    with pytest.raises(ValueError, match=rf"fit\.npz: .*{message}"):
        jaxem.load(file)


def test_fields_added_since_have_their_defaults(file):
    jaxem.save(file, jaxem.FullNormal(), ())
    rewritten(file, signed(lambda body: body["model"]["fields"].pop("missing")))
    assert jaxem.load(file)[0].missing is False


@pytest.mark.parametrize("arrays", [{"a": np.ones(2)}, {"header": np.ones(2)}, {"header": np.array([1, 2], np.uint8)}])
def test_other_npz_files_are_refused(arrays, tmp_path):
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=r"other\.npz: expected a file of jaxem\.save"):
        jaxem.load(tmp_path / "other.npz")


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "other.npz", header=np.array([print], object))
    with pytest.raises(ValueError, match=r"other\.npz: .*cannot be read"):
        jaxem.load(tmp_path / "other.npz")


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        jaxem.load(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError):
        jaxem.save(tmp_path / "none" / "fit.npz", jaxem.FullNormal(), ())


def test_a_write_that_fails_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def fails(*arguments: Any) -> None:
        raise OSError("the disk is full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, fails)
            with pytest.raises(OSError, match="the disk is full"):
                jaxem.save(file, jaxem.FullNormal(), ())
        assert file.read_bytes() == before and os.listdir(file.parent) == ["fit.npz"]


def test_any_suffix_is_obeyed_and_numpy_reads_the_arrays(tmp_path):
    jaxem.save(tmp_path / "fit.em", jaxem.FullNormal(), np.arange(3.0))
    with np.load(io.BytesIO((tmp_path / "fit.em").read_bytes()), allow_pickle=False) as archive:
        assert np.array_equal(archive["0"], np.arange(3.0))
