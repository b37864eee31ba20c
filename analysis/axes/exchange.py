"""Axes as files that other programs read: safetensors for everything, a GGUF control vector for llama.cpp.

    export_safetensors({15: axes}, ["lr", "pc1"], path, model=lm.name, model_fingerprint=lm.fingerprint)
    export_gguf({15: axes}, "lr", path, model_hint="llama")       # llama.cpp: --control-vector FILE

Layers in a GGUF control vector: llama.cpp adds ``direction.<k>`` to the output of block k counted from 0
(``build_cvec(cur, il)``, the tensor that it calls ``l_out-<il>``), as repeng does. This is our layer k, so
layer i is written as ``direction.<i>``, without an offset. llama.cpp refuses ``direction.0`` and never steers
after the first block, so layer 0 cannot be exported. Beware of llama.cpp's own cvector-generator: it names
what it read after block k - 1 ``direction.<k>``, which is then added one block later than it was read.

Shape letters: L layers   K axes   D hidden size
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from analysis.base.errors import UserError
from analysis.base.files import save_bytes
from analysis.classifiers import AxisSet

FORMAT = "1"
"""Version of the safetensors layout."""
ARCHITECTURE = "controlvector"


@dataclass(frozen=True)
class AxisFile:
    """What a safetensors file of axes holds."""

    model: str
    """Name of the model that the axes were fitted on."""
    model_fingerprint: str
    """See ``LoadedModel.fingerprint``."""
    axes: dict[int, AxisSet]
    """Layer -> its axes."""


@dataclass(frozen=True)
class ControlVector:
    """What a GGUF control vector holds."""

    model_hint: str
    """Architecture of the model, such as ``llama``; may be empty."""
    name: str
    """Of the axis; empty if the file does not say."""
    vectors: dict[int, np.ndarray]
    """Layer -> (D,) float32, what strength 1 adds to the residual stream after that block."""


# ---------------------------------------------------------------- safetensors


def export_safetensors(
    axes: Mapping[int, AxisSet], names: Sequence[str], path: Path, *, model: str, model_fingerprint: str
) -> None:
    """Write axes with all that is needed to score with them: ``(h - mean) @ direction / scale``.

    Tensors of layer l and axis a: ``layer.<l>.<a>.direction`` (D,), ``layer.<l>.<a>.scale``,
    ``layer.<l>.<a>.threshold`` (), float32; for all axes of a layer ``layer.<l>.mean`` (D,) and
    ``layer.<l>.variance_ratio`` (R,). Metadata: ``format``, ``model``, ``model_fingerprint``,
    ``hidden_size``, ``layers``, ``axes``, ``accuracy`` (layer -> axis -> share), the last four as JSON.

    Args:
        axes: layer -> its axes, L of them.
        names: the axes to write, in this order.
        path: file to write, as a whole or not at all.
        model: name of the model that the axes were fitted on.
        model_fingerprint: see ``LoadedModel.fingerprint``.

    Raises:
        ValueError: no layers or no names.
        UserError: a layer that lacks an axis.
    """
    _check_choice(axes, names)
    tensors: dict[str, np.ndarray] = {}
    for layer, one in axes.items():
        tensors |= {f"layer.{layer}.mean": one.mean, f"layer.{layer}.variance_ratio": one.variance_ratio}
        for name in names:
            k, key = one.index(name), f"layer.{layer}.{name}"
            tensors[f"{key}.direction"] = np.ascontiguousarray(one.directions[k])
            tensors[f"{key}.scale"] = np.array(one.scales[k], np.float32)
            tensors[f"{key}.threshold"] = np.array(one.thresholds[k], np.float32)
    about = {
        "hidden_size": len(next(iter(axes.values())).mean),
        "layers": [int(layer) for layer in axes],
        "axes": list(names),
        "accuracy": {
            str(layer): {name: one.accuracy[name] for name in names if name in one.accuracy}
            for layer, one in axes.items()
        },
    }
    metadata = {"format": FORMAT, "model": model, "model_fingerprint": model_fingerprint}
    save_bytes(save(tensors, metadata | {key: json.dumps(value) for key, value in about.items()}), path)


def _check_choice(axes: Mapping[int, AxisSet], names: Sequence[str]) -> None:
    if not axes or not names:
        raise ValueError(f"nothing to export: {len(axes)} layers and {len(names)} axes, give at least one")
    for one in axes.values():
        for name in names:
            one.index(name)


def import_safetensors(path: Path) -> AxisFile:
    """Read what ``export_safetensors`` wrote; every array is exactly as it was.

    Raises:
        UserError: the file is missing, damaged, of another format, lacks a tensor, or holds one of a wrong
            shape or type or that is not finite; the message names it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from None
    if about.get("format") != FORMAT:
        raise _unreadable(path, f"its format is {about.get('format')!r}, axes are written as {FORMAT!r}")
    try:
        names, accuracy = tuple(json.loads(about["axes"])), json.loads(about["accuracy"])
        layers, width = json.loads(about["layers"]), json.loads(about["hidden_size"])
        model, model_fingerprint = about["model"], about["model_fingerprint"]
        shares = {int(layer): dict(accuracy[str(layer)]) for layer in layers}
    except (KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, f"its metadata are incomplete ({error!r})") from None
    if not names or not shares:
        raise _unreadable(path, "it names no axes or no layers")
    reader = _Tensors(path, tensors, width)
    axes = {layer: reader.axes(layer, names, share) for layer, share in shares.items()}
    return AxisFile(model, model_fingerprint, axes)


@dataclass(frozen=True)
class _Tensors:
    """The tensors of one file, checked when they are taken out."""

    path: Path
    tensors: Mapping[str, np.ndarray]
    width: int

    def take(self, key: str, shape: tuple[int, ...] | None) -> np.ndarray:
        if key not in self.tensors:
            raise _unreadable(self.path, f"it lacks the tensor {key!r}")
        value = self.tensors[key]
        if value.dtype != np.float32 or (shape is not None and value.shape != shape):
            raise _unreadable(
                self.path, f"{key!r} is {value.dtype} of shape {value.shape}, not float32 of {shape}"
            )
        if not np.isfinite(value).all():
            raise _unreadable(self.path, f"{key!r} holds numbers that are not finite")
        return value

    def axes(self, layer: int, names: tuple[str, ...], accuracy: dict[str, float]) -> AxisSet:
        def rows(part: str, shape: tuple[int, ...]) -> np.ndarray:
            return np.stack([self.take(f"layer.{layer}.{name}.{part}", shape) for name in names])

        return AxisSet(
            names,
            rows("direction", (self.width,)),
            self.take(f"layer.{layer}.mean", (self.width,)),
            rows("scale", ()),
            rows("threshold", ()),
            self.take(f"layer.{layer}.variance_ratio", None),
            accuracy,
        )


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"{path} holds no readable axes: {why}. Export it again, or give another file")


# ---------------------------------------------------------------- GGUF


def export_gguf(
    axes: Mapping[int, AxisSet], name: str, path: Path, *, model_hint: str, scaled: bool = True
) -> None:
    """Write one axis as a control vector for llama.cpp and repeng, float32; see above for the layers.

    Args:
        axes: layer -> its axes; layers from 1.
        name: of the axis.
        path: file to write, as a whole or not at all.
        model_hint: architecture as llama.cpp names it, such as ``llama`` or ``qwen2``.
        scaled: write direction times scale, so that strength 1 moves the score at its layer by 1
            training standard deviation, as ``add`` with alpha 1 of analysis/engine/steering.py does; else
            unit vectors.

    Raises:
        ValueError: no layers, or layer 0.
        UserError: a layer that lacks the axis.
    """
    _check_choice(axes, [name])
    if min(axes) < 1:
        raise ValueError(
            f"layer {min(axes)}: llama.cpp cannot steer after the first block, export layers from 1"
        )
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "vector.gguf"
        writer = GGUFWriter(part, ARCHITECTURE)
        writer.add_name(name)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(axes))
        for layer in sorted(axes):
            one, k = axes[layer], axes[layer].index(name)
            vector = one.directions[k] * (one.scales[k] if scaled else 1)
            writer.add_tensor(f"direction.{layer}", vector.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        save_bytes(part.read_bytes(), path)


_BROKEN = (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError, OSError, struct.error)
"""What the reader of the gguf package can raise on a damaged file."""


def import_gguf(path: Path, hidden_size: int | None = None) -> ControlVector:
    """Read a control vector, of this or another program.

    Args:
        path: a GGUF file of architecture ``controlvector``.
        hidden_size: D of the model that will be steered; None takes any, the same for all layers.

    Raises:
        UserError: the file is missing, damaged, no control vector, lacks tensors, or holds one of a wrong
            name, size or type or that is not finite; the message names it.
    """
    try:
        reader = GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        # copies: the reader maps the file, which may be replaced
        tensors = {tensor.name: (tensor.tensor_type, np.array(tensor.data)) for tensor in reader.tensors}
    except _BROKEN as error:
        raise _unreadable(path, str(error) or type(error).__name__) from None
    if fields.get("general.architecture") != ARCHITECTURE:
        found = fields.get("general.architecture")
        raise _unreadable(path, f"its architecture is {found!r}, a control vector's is {ARCHITECTURE!r}")
    vectors = {_layer_of(path, key): _vector(path, key, *tensors[key]) for key in tensors}
    count = fields.get(f"{ARCHITECTURE}.layer_count", 1)
    if not vectors or not isinstance(count, int) or len(vectors) < count:
        raise _unreadable(path, f"it lacks tensors: {len(vectors)} directions for a layer count of {count}")
    sizes = {len(vector) for vector in vectors.values()} | ({hidden_size} - {None})
    if len(sizes) > 1:
        wanted = "" if hidden_size is None else f", the model's hidden size is {hidden_size}"
        found = sorted({len(vector) for vector in vectors.values()})
        raise _unreadable(path, f"its directions have sizes {found}{wanted}")
    hint, name = fields.get(f"{ARCHITECTURE}.model_hint", ""), fields.get("general.name", "")
    return ControlVector(str(hint), str(name), dict(sorted(vectors.items())))


def _layer_of(path: Path, key: str) -> int:
    match = re.fullmatch(r"direction\.([1-9]\d*)", key)
    if not match:
        raise _unreadable(
            path, f"it has a tensor {key!r}: directions are named direction.1, direction.2, ..."
        )
    return int(match[1])


def _vector(path: Path, key: str, kind: GGMLQuantizationType, data: np.ndarray) -> np.ndarray:
    if kind != GGMLQuantizationType.F32 or data.ndim != 1:
        raise _unreadable(path, f"{key!r} is {kind.name} of shape {data.shape}, not one row of F32")
    if not np.isfinite(data).all():
        raise _unreadable(path, f"{key!r} holds numbers that are not finite")
    return data.astype(np.float32)  # in this machine's byte order
