"""What a command computes with: models that are loaded when they are first needed, and their engines."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

from analysis.engine.prefix_tree import PrefixTree
from analysis.models.shape import Shape, load_shape, load_tokenizer, run_device, run_sizes
from analysis.process_prompts import Prompter
from utils import LoadedModel, load_model, model_name


class Machine:
    """Loads each model once, and only if something is computed with it; sizes and prompts need no weights."""

    def __init__(
        self, token_budget: int | None = None, known: dict[str, LoadedModel] | None = None, **options: Any
    ) -> None:
        """Remember how models are loaded.

        Args:
            token_budget: see PrefixTree.
            known: models that are loaded already, by the name they are asked for with; filled.
            options: device, dtype, attn_implementation, load_in_4bit of utils.load_model.
        """
        self.token_budget, self.options = token_budget, options
        self.known = {} if known is None else known
        self.engines: dict[str, PrefixTree] = {}
        self.shape = cache(self._shape)

    def model(self, name: str) -> LoadedModel:
        """Return a model, loaded at the first call."""
        if name not in self.known:
            self.known[name] = load_model(name, **self.options)
        return self.known[name]

    def engine(self, name: str) -> PrefixTree:
        """Return the engine of a model; it remembers what fits into memory."""
        if name not in self.engines:
            lm = self.model(name)
            self.engines[name] = PrefixTree(lm.model, lm.tokenizer, self.token_budget)
        return self.engines[name]

    def prompter(self, name: str) -> Prompter:
        """Return what builds prompts for a model, with a tokenizer of its own; no model is loaded for it.

        Of its own, since prompts are tokenized while the engine decodes replies with the model's.
        """
        lm = self.known.get(name)
        return Prompter(deepcopy(lm.tokenizer) if lm else load_tokenizer(name), model_name(name))

    # ------------------------------------------------------------ without weights

    def _shape(self, name: str) -> Shape:
        """Return the sizes of a model, from its configuration."""
        shape = load_shape(name)
        return replace(shape, eager=shape.eager or self.options.get("attn_implementation") == "eager")

    @property
    def device(self) -> str:
        """Where models compute, as asked for."""
        return run_device(self.options.get("device", "auto"))

    @property
    def sizes(self) -> tuple[str, int]:
        """Precision, and the most tokens at once."""
        asked = self.options.get("device", "auto"), self.options.get("dtype", "auto")
        return run_sizes(*asked, self.token_budget)
