"""What every script needs: errors, seeds, model loading, atomic pickles.

Nothing heavy is imported at the top, so that ``--help`` is instant.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
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

# Threads that wait by sleeping: spinning makes PyTorch several times slower on a CPU that is shared with other
# jobs. Read when torch is first imported, so it stands here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent


def unknown(kind: str, got: object, known: Iterable[object], where: str) -> UserError:
    """Build the one error used for every bad name: what, got, choices, where to add one."""
    return UserError(f"unknown {kind} {got!r}: choose from {', '.join(map(str, known))} (see {where})")


# ---------------------------------------------------------------- seeds and fingerprints


def generator(seed: int, *stream: int | str) -> np.random.Generator:
    """Return a generator of its own for ``(seed, *stream)``; equal arguments give equal draws."""
    words = [part if isinstance(part, int) else _word(part) for part in (seed, *stream)]
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

_NUMPY = ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
_SAFE = {"numpy.ndarray", "numpy.dtype", "builtins.set", "builtins.frozenset", "builtins.complex"}
_SAFE |= {f"numpy.{core}.{name}" for core in ("_core", "core") for name in _NUMPY}


class _Unpickler(pickle.Unpickler):
    """Reads builtins and numpy arrays; any other name in the file is refused, nothing is executed."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _SAFE:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which results never contain")
        return super().find_class(module, name)


def save_pickle(record: dict[str, Any], path: Path) -> None:
    """Write ``record`` (builtins and numpy arrays) so that ``path`` is either absent, old, or whole."""
    save_bytes(pickle.dumps(record, protocol=5), path)


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


def load_pickle(path: Path) -> dict[str, Any]:
    """Read a result file with the restricted unpickler.

    Raises:
        UserError: the file is damaged, foreign, or not a dict; the message names it.
    """
    try:
        record = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError,
            MemoryError, TypeError, ValueError, OverflowError) as error:  # fmt: skip
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
    chosen = _dtype(dtype, kind)
    options: dict[str, Any] = {"dtype": chosen}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if device == "map":
        options["device_map"] = "auto"
    with _model_errors(name, target):
        source = local_files(target)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
        if device != "map":
            model = model.to(kind)
    model.eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, target, _model_fingerprint(model))


def _dtype(name: str, device: str) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if name not in known:
        raise unknown("dtype", name, ("auto", *known), "--help")
    return known[name]


@contextmanager
def _model_errors(name: str, target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = str(error)
        if "gated" in text or "401" in text or "403" in text:
            raise UserError(
                f"model {name!r} ({target}) is gated: accept its licence on the model's page, then run "
                "`hf auth login` (or set HF_TOKEN) and try again"
            ) from None
        known = ", ".join(MODEL_ALIASES)
        raise UserError(
            f"cannot load model {name!r} ({target}): give an alias ({known}), a hub name, a folder or a "
            f".gguf file, and check the network; the loader said: {text.splitlines()[0]}"
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
