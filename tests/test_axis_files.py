"""Axes that are written and read again are the same, and a file that is not whole is refused by name."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from safetensors import safe_open
from safetensors.numpy import save_file

from analysis.axes.exchange import export_gguf, export_safetensors, import_gguf, import_safetensors
from analysis.axes.steer import steer_along
from analysis.base.errors import UserError
from analysis.classifiers import AxisSet, fit_axes
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Request

SIZE = 32
MODEL = {"model": "org/tiny", "model_fingerprint": "abc"}


def fitted(layer: int) -> AxisSet:
    rng = np.random.default_rng(layer)
    hidden, labels = rng.standard_normal((20, SIZE)).astype(np.float32), np.arange(20) % 2
    options = {"lr_c": 1.0, "max_pc": 3, "n_random": 1, "n_shuffled": 0, "threshold": "median", "seed": 0}
    return fit_axes(hidden, labels, layer=layer, **options)


AXES = {layer: fitted(layer) for layer in (0, 2, 3)}
LATER = {layer: AXES[layer] for layer in (2, 3)}


def assert_same(one: AxisSet, other: AxisSet) -> None:
    for field in fields(AxisSet):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and np.array_equal(a, b), field.name
        else:
            assert a == b, field.name


# ---------------------------------------------------------------- safetensors


def test_axes_in_safetensors_come_back_exactly(tmp_path):
    path = tmp_path / "new folder" / "axes.safetensors"
    export_safetensors(AXES, AXES[0].names, path, **MODEL)
    found = import_safetensors(path)
    assert (found.model, found.model_fingerprint, list(found.axes)) == ("org/tiny", "abc", [0, 2, 3])
    for layer, axes in AXES.items():
        assert_same(found.axes[layer], axes)
    assert list(path.parent.iterdir()) == [path]


def test_some_axes_in_another_order_score_the_same(tmp_path, rng):
    path, hidden = tmp_path / "axes.safetensors", rng.standard_normal((5, SIZE)).astype(np.float32)
    export_safetensors(AXES, ["pc2", "lr"], path, **MODEL)
    found = import_safetensors(path).axes[2]
    assert found.names == ("pc2", "lr") and list(found.accuracy) == ["lr"]
    for k, name in enumerate(found.names):
        wanted = AXES[2].scores(hidden)[:, AXES[2].index(name)]
        np.testing.assert_allclose(found.scores(hidden)[:, k], wanted, rtol=1e-6)
        assert found.threshold(name) == AXES[2].threshold(name)


def test_safetensors_are_laid_out_as_documented(tmp_path):
    path = tmp_path / "axes.safetensors"
    export_safetensors({2: AXES[2]}, ["lr"], path, **MODEL)
    with safe_open(path, framework="numpy") as file:
        about, keys = file.metadata(), set(file.keys())
        direction = file.get_tensor("layer.2.lr.direction")
    assert keys == {
        "layer.2.mean", "layer.2.variance_ratio", "layer.2.lr.direction", "layer.2.lr.scale",
        "layer.2.lr.threshold",
    }  # fmt: skip
    assert np.array_equal(direction, AXES[2].directions[0])
    assert json.loads(about["layers"]) == [2] and json.loads(about["axes"]) == ["lr"]
    assert about["format"] == "1" and about["hidden_size"] == str(SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, about: tensors.pop("layer.2.lr.scale"), "lacks the tensor 'layer.2.lr.scale'"),
        (lambda tensors, about: tensors.update({"layer.2.mean": np.zeros(8, np.float32)}), r"shape \(8,\)"),
        (lambda tensors, about: tensors["layer.2.lr.direction"].fill(np.nan), "not finite"),
        (lambda tensors, about: tensors.update({"layer.2.mean": np.zeros(SIZE)}), "is float64"),
        (lambda tensors, about: about.update(format="pt"), "its format is 'pt'"),
        (lambda tensors, about: about.pop("layers"), "metadata are incomplete"),
        (lambda tensors, about: about.update(layers="{"), "metadata are incomplete"),
        (lambda tensors, about: about.update(axes="[]"), "no axes"),
    ],
)
def test_safetensors_that_are_not_ours_are_refused(change, message, tmp_path):
    path = tmp_path / "axes.safetensors"
    export_safetensors({2: AXES[2]}, ["lr"], path, **MODEL)
    with safe_open(path, framework="numpy") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key).copy() for key in file.keys()}  # noqa: SIM118
    change(tensors, about)
    save_file(tensors, path, about)
    with pytest.raises(UserError, match=f"axes.safetensors holds no readable axes: .*{message}"):
        import_safetensors(path)


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_a_file_that_is_cut_anywhere_or_missing_is_refused(suffix, tmp_path):
    path = tmp_path / f"axes.{suffix}"
    if suffix == "gguf":
        export_gguf(LATER, "lr", path, model_hint="llama")
        last = GGUFReader(path).tensors[-1]
        stop, read = last.data_offset + last.n_bytes, import_gguf
    else:
        export_safetensors(LATER, ["lr"], path, **MODEL)
        stop, read = path.stat().st_size, import_safetensors
    payload = path.read_bytes()
    read(path)
    for length in (*range(0, stop, 5), stop - 1):
        path.write_bytes(payload[:length])
        with pytest.raises(UserError, match=rf"axes\.{suffix} holds no readable axes"):
            read(path)
    path.unlink()
    with pytest.raises(UserError, match=rf"axes\.{suffix} holds no readable axes"):
        read(path)


def test_an_export_that_cannot_be_done_leaves_what_was_there(tmp_path):
    path = tmp_path / "axes"
    path.write_text("old")
    for names, axes in (([], AXES), (["lr"], {})):
        with pytest.raises(ValueError, match="nothing to export") as raised:
            export_safetensors(axes, names, path, **MODEL)
        assert raised.type is ValueError
    with pytest.raises(UserError, match="unknown axis 'up'"):
        export_safetensors(AXES, ["lr", "up"], path, **MODEL)
    with pytest.raises(UserError, match="unknown axis"):
        export_gguf(LATER, "up", path, model_hint="llama")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- GGUF


@pytest.mark.parametrize("scaled", [True, False])
def test_a_control_vector_comes_back_exactly(scaled, tmp_path):
    path = tmp_path / "lr.gguf"
    export_gguf(LATER, "pc1", path, model_hint="llama", scaled=scaled)
    found = import_gguf(path, SIZE)
    assert (found.model_hint, found.name, list(found.vectors)) == ("llama", "pc1", [2, 3])
    for layer, axes in LATER.items():
        k = axes.index("pc1")
        wanted = axes.directions[k] * axes.scales[k] if scaled else axes.directions[k]
        assert found.vectors[layer].dtype == np.float32 and np.array_equal(found.vectors[layer], wanted)
    assert list(tmp_path.iterdir()) == [path]


def test_a_control_vector_is_what_llama_cpp_reads(tmp_path):
    """Type F32, one dimension, named by the block from 1, as its common/common.cpp asks for."""
    path = tmp_path / "lr.gguf"
    export_gguf(LATER, "lr", path, model_hint="llama")
    reader = GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    found = [(t.name, t.tensor_type.name, t.shape.tolist()) for t in reader.tensors]
    assert found == [("direction.2", "F32", [SIZE]), ("direction.3", "F32", [SIZE])]


def test_strength_1_of_a_scaled_vector_is_steering_with_alpha_1(tiny_lm, rng, tmp_path):
    path, ids = tmp_path / "lr.gguf", rng.integers(11, 512, 12)
    export_gguf({2: AXES[2]}, "lr", path, model_hint="llama")
    vector = import_gguf(path).vectors[2]
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer)
    push = steer_along({2: AXES[2]}, "lr", "add", 1.0)
    requests = [Request(ids, [(0, 12)]), Request(ids, [(0, 12)], steering=[push])]
    plain, steered = (reading.pooled[0, 0] for reading in tree.read(requests, [2]))
    np.testing.assert_allclose(steered - plain, vector, atol=1e-5)


def test_layer_0_has_no_place_in_a_control_vector(tmp_path):
    with pytest.raises(ValueError, match="layer 0: llama.cpp cannot steer after the first block"):
        export_gguf(AXES, "lr", tmp_path / "lr.gguf", model_hint="llama")


def write_by_hand(
    path: Path, tensors: dict[str, np.ndarray], architecture: str = "controlvector", count: int = 2
) -> None:
    writer = GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "qwen2")
    writer.add_int32("controlvector.layer_count", count)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_control_vector_of_another_program_is_read(tmp_path):
    path, ones = tmp_path / "other.gguf", np.ones(4, np.float32)
    write_by_hand(path, {"direction.2": 2 * ones, "direction.1": ones})
    found = import_gguf(path)
    assert (found.model_hint, found.name, list(found.vectors)) == ("qwen2", "", [1, 2])
    np.testing.assert_array_equal(found.vectors[2], [2, 2, 2, 2])


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({"direction.1": ONES, "direction.2": ONES}, {"architecture": "llama"}, "architecture is 'llama'"),
        ({"direction.1": ONES}, {}, "lacks tensors: 1 directions for a layer count of 2"),
        ({}, {"count": 0}, "lacks tensors: 0 directions"),
        ({"direction.1": ONES, "direction.2": np.ones(5, np.float32)}, {}, r"sizes \[4, 5\]"),
        ({"direction.1": ONES * np.nan, "direction.2": ONES}, {}, "'direction.1' holds numbers"),
        ({"direction.1": ONES.astype(np.float16), "direction.2": ONES}, {}, "is F16"),
        ({"direction.1": np.ones((2, 4), np.float32), "direction.2": ONES}, {}, r"of shape \(2, 4\)"),
        ({"direction.0": ONES, "direction.1": ONES}, {}, "tensor 'direction.0'"),
        ({"weight": ONES, "direction.1": ONES}, {}, "tensor 'weight'"),
    ],
)
def test_a_control_vector_that_is_not_one_is_refused(tensors, options, message, tmp_path):
    path = tmp_path / "other.gguf"
    write_by_hand(path, tensors, **options)
    with pytest.raises(UserError, match=f"other.gguf holds no readable axes: .*{message}"):
        import_gguf(path)


def test_a_control_vector_of_another_model_is_refused(tmp_path):
    path = tmp_path / "lr.gguf"
    export_gguf(LATER, "lr", path, model_hint="llama")
    with pytest.raises(UserError, match=r"sizes \[32\], the model's hidden size is 576"):
        import_gguf(path, 576)
