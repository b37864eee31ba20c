"""What every script needs: errors, seeds, files that are whole, model loading.

The user's door to seeding, model loading and aliases, and serialization. It stands below all rooms of
analysis/ but the ground (analysis/base) and imports none of them.

Nothing heavy is imported at the top, so that ``--help`` is instant.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from analysis.base.embedded import local_files
from analysis.base.errors import UserError as UserError
from analysis.base.errors import unknown as unknown
from analysis.base.files import DamagedFile as DamagedFile
from analysis.base.files import load_pickle as load_pickle
from analysis.base.files import save_bytes as save_bytes
from analysis.base.files import save_pickle as save_pickle
from analysis.base.seeds import fingerprint as fingerprint
from analysis.base.seeds import generator as generator
from configs.settings import MODEL_ALIASES

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


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
        devices = sorted({str(weight.device) for weight in self.model.parameters()})
        return {
            "model_name": self.name,
            "model_fingerprint": self.fingerprint,
            "n_layers": self.n_layers,
            "hidden_size": self.model.config.get_text_config().hidden_size,
            "n_parameters": size,
            "device": ", ".join(devices),
            "dtype": self.dtype,
            "attn_implementation": self.model.config.get_text_config()._attn_implementation,
        }


def model_name(name: str) -> str:
    """Return the hub name, folder or file that an alias stands for."""
    return MODEL_ALIASES.get(name, name)


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer for inference.

    Args:
        name: alias (configs/settings.py), hub name, local folder, or ``.gguf`` file.
        device: ``auto`` (GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, or ``map`` to spread a
            model over all devices (accelerate's ``device_map="auto"``).
        dtype: ``auto`` (bfloat16 on a GPU, float32 on a CPU), ``float32``, ``bfloat16``, ``float16``.
        attn_implementation: passed to transformers; default: sdpa where the model has it.
        load_in_4bit: keep the weights in 4 bits (bitsandbytes, nf4) and compute in ``dtype``.

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
    if load_in_4bit:
        options["quantization_config"] = _four_bits(kind, chosen)
        options.setdefault("device_map", {"": kind})
    with model_errors(name, target):
        source = local_files(target)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
        if "device_map" not in options:
            model = model.to(kind)  # type: ignore[arg-type]  # its decorator hides ``self``
    model.eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, target, _model_fingerprint(model))


def _four_bits(device: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    if not device.startswith("cuda") or find_spec("bitsandbytes") is None:
        raise UserError(
            "--load_in_4bit needs a GPU and the package bitsandbytes: run it where there is a GPU, after "
            "`pip install bitsandbytes`, or leave --load_in_4bit out"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


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
        offloaded = weight.device.type == "meta"  # --device map, for want of room on a GPU
        samples.append(
            (key, list(weight.shape), _offloaded_sample(model, key) if offloaded else _sample(weight))
        )
    return fingerprint(config, samples)


def _sample(weight: torch.Tensor) -> list[float]:
    flat = weight.reshape(-1)
    return flat[:: max(1, flat.numel() // 16)][:16].float().cpu().numpy().tolist()


def _offloaded_sample(model: PreTrainedModel, key: str) -> list[float]:
    from accelerate.utils import align_module_device

    parent, _, name = key.rpartition(".")
    module = model.get_submodule(parent)
    with align_module_device(module, "cpu"):
        return _sample(getattr(module, name))


_VOLATILE_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"}


if __name__ == "__main__":  # `python utils.py verify FOLDER`, as `python -m tasks.verify FOLDER`
    import runpy
    import sys

    sys.argv[1:2] = [] if sys.argv[1:2] == ["verify"] else sys.argv[1:2]
    runpy.run_module("tasks.verify", run_name="__main__")
