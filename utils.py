"""What every script needs: errors, seeds, model loading, atomic pickles.

Nothing heavy is imported at the top, so that ``--help`` is instant.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.embedded_model import local_files
from configs.settings import MODEL_ALIASES, UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Threads wait by sleeping: spinning makes PyTorch several times slower on a CPU shared with other jobs.
# Read when torch is first imported, so it stands here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent


def unknown(kind: str, got: object, known: Iterable[object], where: str) -> UserError:
    """Build the one error used for every bad name: what, got, choices, where to add one."""
    return UserError(f"unknown {kind} {got!r}: choose from {', '.join(map(str, known))} (see {where})")


def generator(seed: int, *stream: int | str) -> np.random.Generator:
    """Return a generator of its own for ``(seed, *stream)``; equal arguments give equal draws."""
    words = [
        part if isinstance(part, int) else _word(part) for part in (len(stream), seed, *stream)
    ]  # the length: trailing zeros count
    return np.random.default_rng(words)


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def fingerprint(*parts: object) -> str:
    """Return a sha256 hex digest of ``parts``: arrays by dtype, shape and bytes, the rest as JSON."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


# ---------------------------------------------------------------- pickles

_END = b"sha256:"  # after the pickle, which ends itself; then the digest of what comes before


class _DType:
    """Stands in for numpy.dtype while reading: plain numbers, booleans and text only."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[biufcSU]\d{1,9}", name):
            raise pickle.UnpicklingError(f"it holds objects or structures (array type {name!r})")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it has an array of byte order {state[1]!r}")
        self.order = state[1]

    def read(self, raw: bytes) -> np.ndarray:
        dtype = np.dtype(self.order + self.name)
        return np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)


def _array(raw: bytes, dtype: _DType, shape: tuple[int, ...], order: str, *rest: object) -> np.ndarray:
    return dtype.read(raw).reshape(shape, order=order)


_READERS = {
    "numpy._core.numeric._frombuffer": _array, "numpy.core.numeric._frombuffer": _array,
    "numpy._core.multiarray.scalar": lambda dtype, raw: dtype.read(raw)[0] if len(raw) else np.str_(),
    "numpy.dtype": _DType,
    "builtins.set": set, "builtins.frozenset": frozenset, "builtins.complex": complex,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Reads builtins and numpy arrays with functions of our own; nothing that the file names is called."""

    def find_class(self, module: str, name: str) -> Any:
        reader = _READERS.get(f"{module}.{name}")
        if reader is None:
            what = "object arrays are refused" if module.startswith("numpy") else "results never contain it"
            raise pickle.UnpicklingError(f"it names {module}.{name}: {what}")
        return reader


class _Pickler(pickle.Pickler):
    """Writes every array in one piece, which is the only form that is read back."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        if value.dtype.kind not in "biufcSU":
            raise TypeError(f"results hold arrays of numbers, booleans and text, not {value.dtype}")
        whole = value.flags.c_contiguous or value.flags.f_contiguous
        return NotImplemented if whole else np.ascontiguousarray(value).__reduce_ex__(5)


def save_pickle(record: dict[str, Any], path: Path) -> None:
    """Write ``record`` (builtins and numpy arrays) so that ``path`` is either absent, old, or whole.

    The file is an ordinary pickle followed by a checksum, which ``pickle.load`` ignores.
    """
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(record)
    payload = stream.getvalue()
    save_bytes(payload + _END + hashlib.sha256(payload).digest(), path)


def save_bytes(payload: bytes, path: Path) -> None:
    """Write a file under a temporary name in the same folder, fsync, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as handle:
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


_BROKEN = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, MemoryError, TypeError,
    ValueError, OverflowError, RuntimeError, SystemError,
)  # fmt: skip
"""What a damaged pickle can raise."""


def load_pickle(path: Path) -> dict[str, Any]:
    """Read a result file with the restricted unpickler.

    Raises:
        UserError: the file is damaged, foreign, or not a dict; the message names it.
    """
    try:
        payload, end, digest = path.read_bytes().rpartition(_END)
        if not end or hashlib.sha256(payload).digest() != digest:
            raise pickle.UnpicklingError("its checksum is missing or wrong")
        record = _Unpickler(io.BytesIO(payload)).load()
    except _BROKEN as error:
        raise UserError(
            f"{path} is not a readable result file ({error}): move it away and run the command again"
        ) from None
    if not isinstance(record, dict):
        raise UserError(f"{path} holds a {type(record).__name__}, but results are dicts: move it away")
    return record


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be read."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Hub name, folder or file; names the results folder."""
    fingerprint: str
    """sha256 of the configuration and of a sample of every weight."""

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def max_positions(self) -> int | None:
        """Context length in tokens, None if the configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def dtype(self) -> str:
        """Such as ``float32``."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def about(self) -> dict[str, Any]:
        """What results record of the model."""
        size = sum(weight.numel() for weight in self.model.parameters())
        return {"model_name": self.name, "n_layers": self.n_layers, "n_parameters": size}


def model_name(name: str) -> str:
    """Return the hub name, folder or file that an alias stands for."""
    return MODEL_ALIASES.get(name, name)


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer for inference.

    Args:
        name: alias (configs/settings.py), hub name, local folder, or ``.gguf`` file.
        device: ``auto`` (GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, or ``map`` to spread a
            model over all devices (accelerate's ``device_map="auto"``).
        dtype: ``auto`` (bfloat16 on a GPU, float32 on a CPU), ``float32``, ``bfloat16``, ``float16``.
        attn_implementation: passed to transformers; default: sdpa where the model has it.

    Raises:
        UserError: the model is missing, gated, or broken; the message says what to do.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    target = model_name(name)
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device in ("auto", "map") else device
    chosen = choose_dtype(dtype, kind)
    options: dict[str, Any] = {"dtype": chosen}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if device == "map":
        options["device_map"] = "auto"
    with model_errors(name, target):
        source = local_files(target)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
        if device != "map":
            model = model.to(kind)
    model.eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, target, _model_fingerprint(model))


def choose_dtype(name: str, device: str) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if name not in known:
        raise unknown("dtype", name, ("auto", *known), "--help")
    return known[name]


@contextmanager
def model_errors(name: str, target: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # loaders of several libraries: tokenizers raises the bare class
        log.debug("loading %s failed", target, exc_info=True)
        text = str(error) or type(error).__name__
        if "gated repo" in text or "401 Client" in text or "403 Client" in text:
            raise UserError(
                f"model {name!r} ({target}) is gated: accept its licence on the model's page, then run "
                "`hf auth login` (or set HF_TOKEN) and try again"
            ) from None
        raise UserError(
            f"cannot load model {name!r} ({target}): give an alias ({', '.join(MODEL_ALIASES)}), a hub name, "
            "a folder or a .gguf file; check the network, --device, --attn_implementation. The loader said: "
            f"{text.strip().splitlines()[0]}"
        ) from None


def _model_fingerprint(model: PreTrainedModel) -> str:
    config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE_CONFIG}
    samples = []
    for key, weight in model.state_dict().items():
        if weight.device.type == "meta":
            continue
        flat = weight.reshape(-1)
        picked = flat[:: max(1, flat.numel() // 16)][:16].float().cpu().numpy()
        samples.append((key, list(weight.shape), picked.tolist()))
    return fingerprint(config, samples)


_VOLATILE_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"}
