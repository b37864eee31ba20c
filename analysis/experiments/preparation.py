"""Stage 1: hidden states of every sentence, axes of every layer, scores of every sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis.axes.names import family_of
from analysis.base.errors import UserError
from analysis.base.progress import bar
from analysis.base.seeds import fingerprint
from analysis.classifiers import AxisSet, fit_axes, fit_layers
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Request, stack_pooled
from analysis.experiments.trials import axis_turns
from analysis.models.blocks import input_device
from analysis.process_prompts import Encoded, Prompter, Prompts, load_prompts
from analysis.results.claims import claim
from analysis.results.store import Store, finished, read, stamp, still_needed, write
from configs.settings import Settings, as_plain
from data.load import Dataset, Split, load_dataset
from utils import LoadedModel

log = logging.getLogger(__name__)

METHODS = ("pcascore", "mean", "last", "each")
PREP_SETTINGS = ("seed", "n_axis", "n_trial", "lr_c", "threshold", "max_pc", "n_random", "n_shuffled")
BYTES_AT_ONCE = 2**30
"""Of every token's states that ``each`` keeps during one pass."""


def prep_identity(lm: LoadedModel, split: Split, settings: Settings) -> dict[str, Any]:
    """Return what the axes depend on."""
    prompts = load_prompts(split.dataset.key)
    plain = as_plain(settings)
    return {
        "model": lm.fingerprint,
        "dtype": lm.dtype,
        "dataset": split.fingerprint,
        "axis_prompt": fingerprint(prompts.axis_system, prompts.user_turn),
        **{name: plain[name] for name in PREP_SETTINGS},
    }


def run_meta(lm: LoadedModel, store: Store, settings: Settings, dataset: str) -> dict[str, Any]:
    """Return what every file of a run records besides its identity; ``dataset`` is a fingerprint."""
    return {
        "settings": dict(as_plain(settings)),
        "seed": settings.seed,
        **lm.about,
        "dataset_key": store.dataset,
        "dataset_fingerprint": dataset,
        "flags": store.flags.strip(),
    }


def prepare(
    lm: LoadedModel,
    key: str,
    settings: Settings,
    store: Store,
    *,
    method: str = "pcascore",
    token_budget: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the split, and per layer the pooled hidden states and (``pcascore``) axes with scores.

    What is on disk already is kept; damaged files are set aside and made again. ``mean``, ``last`` and
    ``each`` write hidden states only: the mean over the sentence's tokens, its last token, or every token.
    Of several processes one does the work, and the others wait for it.

    Raises:
        UserError: bad data or settings, activations that are not finite, or results of other settings in
            the same folder.
    """  # fmt: skip
    whole = load_dataset(key, settings.seed, settings.n_axis, settings.n_trial)
    identity = prep_identity(lm, whole, settings)
    identity_of = identity if method == "pcascore" else {**identity, "method": method}
    files = {store.split: identity}
    if method == "pcascore":
        files |= {path: identity for path in (store.embedding, *map(store.axes, range(lm.n_layers)))}
    files |= {store.hidden(layer, method): identity_of for layer in range(lm.n_layers)}
    stamps = {path: stamp(path) for path in files}
    todo = [path for path in files if not finished(path, files[path], overwrite)]
    if not todo:
        log.info("preparation is there already: %s", store.folder)
        return
    with claim(store.folder / "preparation", wait=True):
        todo = [path for path in todo if still_needed(path, files[path], stamps[path])]
        if not todo:
            log.info("another process has prepared %s meanwhile", store.folder)
            return
        meta = run_meta(lm, store, settings, identity["dataset"])
        stage = _Stage(lm, whole.compact(), settings, store, files, frozenset(todo), meta)
        stage.run(method, token_budget)


@dataclass(frozen=True)
class _Stage:
    """One preparation: what to write, and what is known about it."""

    lm: LoadedModel
    split: Split
    settings: Settings
    store: Store
    files: Mapping[Path, Mapping[str, Any]]
    """Every file and its identity."""
    todo: frozenset[Path]
    meta: Mapping[str, Any]

    def write(self, path: Path, record: Mapping[str, Any]) -> None:
        if path in self.todo:
            write(path, record, self.files[path], **self.meta)

    def run(self, method: str, token_budget: int | None) -> None:
        store, lm = self.store, self.lm
        self.write(store.split, _split_record(self.split))
        encoded = encode_sentences(lm, self.split.dataset, load_prompts(self.split.dataset.key))
        if store.embedding in self.todo:
            embedded = mean_embeddings(lm, encoded)
            check_hidden(embedded, self.split.dataset.sentences, "the input embeddings", lm.dtype)
            self.write(store.embedding, {"hidden": embedded})
        layers = [at for at in range(lm.n_layers) if store.hidden(at, method) in self.todo]
        tree = PrefixTree(lm.model, lm.tokenizer, token_budget) if layers else None
        if method == "each" and layers:
            identity = self.files[store.hidden(layers[0], method)]
            sentences = self.split.dataset.sentences
            _write_each(tree, encoded, store, lm, identity, self.meta, layers, sentences)
            return
        pooled = pool_sentences(tree, encoded, layers, last_token=method == "last") if layers else None
        with bar(total=lm.n_layers, desc="fitting axes", unit="layer") as shown:
            fit = partial(self.fit, method=method, read_now=layers, pooled=pooled)
            fit_layers(fit, range(lm.n_layers), shown.update)

    def fit(self, layer: int, method: str, read_now: Sequence[int], pooled: np.ndarray | None) -> None:
        """Write one layer's part of ``pooled`` (B, len(read_now), D) and its axes."""
        if layer in read_now:
            hidden = np.ascontiguousarray(pooled[:, read_now.index(layer)])
            check_hidden(hidden, self.split.dataset.sentences, f"activations of layer {layer}", self.lm.dtype)
            self.write(self.store.hidden(layer, method), {"hidden": hidden})
        if self.store.axes(layer) in self.todo:
            if layer not in read_now:
                path = self.store.hidden(layer)
                hidden = read(path, self.files[path])["hidden"]
            axes = fit_layer(hidden, self.split, self.settings, layer)
            self.write(self.store.axes(layer), _axes_record(axes, hidden, self.split))


def check_hidden(hidden: np.ndarray, sentences: Sequence[str], what: str, dtype: str) -> None:
    """Raise UserError if a row of ``hidden`` (B, D), one per sentence, is not finite."""
    bad = ~np.isfinite(hidden).all(axis=1)
    if bad.any():
        raise not_finite(what, sentences[int(bad.argmax())], dtype)


def not_finite(what: str, sentence: str, dtype: str) -> UserError:
    """Return the error for activations or logits that are infinite or not a number."""
    advice = {
        "float16": "float16 overflows: use --dtype bfloat16 or float32",
        "bfloat16": "use --dtype float32",
        "float32": "a wider --dtype than float32 there is not: check the model's weights",
    }
    return UserError(
        f"{what} are not finite in {dtype}, the first at the sentence {sentence!r}: "
        f"{advice.get(dtype, 'use --dtype float32')}"
    )


def encode_sentences(lm: LoadedModel, dataset: Dataset, prompts: Prompts) -> list[Encoded]:
    """Tokenize every sentence in its measuring conversation, and check that each fits the context."""
    prompter = Prompter(lm.tokenizer, lm.name)
    return [prompter.encode(axis_turns(prompts, sentence)) for sentence in dataset.sentences]


def pool_sentences(
    tree: PrefixTree, encoded: Sequence[Encoded], layers: Sequence[int], last_token: bool = False
) -> np.ndarray:
    """Return (B, L, D) float32: the mean over each sentence's own tokens, or its last token."""
    spans = [e.spans[0] for e in encoded]
    if last_token:
        spans = [(stop - 1, stop) for _, stop in spans]
    requests = [Request(e.ids, [span]) for e, span in zip(encoded, spans, strict=True)]
    with bar(desc="reading sentences", unit="token", unit_scale=True) as shown:
        expect = partial(setattr, shown, "total")
        readings = tree.read(requests, layers, progress=shown.update, expect=expect)
    return stack_pooled(readings)


def mean_embeddings(lm: LoadedModel, encoded: Sequence[Encoded]) -> np.ndarray:
    """Return (B, D) float32: each sentence's mean input embedding, what the text alone tells."""
    import torch

    table, device = lm.model.get_input_embeddings(), input_device(lm.model)
    found = []
    with torch.inference_mode():
        for e in encoded:
            start, stop = e.spans[0]
            ids = torch.tensor(e.ids[start:stop], device=device)
            found.append(table(ids).float().mean(dim=0).cpu().numpy())
    return np.stack(found)


def fit_layer(hidden: np.ndarray, split: Split, settings: Settings, layer: int) -> AxisSet:
    """Fit the axes of one layer on the fitting half of ``hidden`` (B, D)."""
    return fit_axes(
        hidden[split.axis_rows], split.dataset.labels[split.axis_rows], lr_c=settings.lr_c,
        max_pc=settings.max_pc, n_random=settings.n_random, n_shuffled=settings.n_shuffled,
        threshold=settings.threshold, seed=settings.seed, layer=layer,
    )  # fmt: skip


def _axes_record(axes: AxisSet, hidden: np.ndarray, split: Split) -> dict[str, Any]:
    scores = axes.scores(hidden)
    return {**axes.as_record(), "scores": scores, "accuracy": _accuracies(axes, scores, split)}


def _accuracies(axes: AxisSet, scores: np.ndarray, split: Split) -> dict[str, tuple[float, float]]:
    """Return {axis: (fitting, held-out accuracy)} of score > threshold against the label, for class axes."""
    found = {}
    for k, name in enumerate(axes.names):
        if family_of(name).judged:
            right = (scores[:, k] > axes.thresholds[k]) == split.dataset.labels
            found[name] = (float(right[split.axis_rows].mean()), float(right[split.trial_rows].mean()))
    return found


def _split_record(split: Split) -> dict[str, Any]:
    dataset = split.dataset
    return {
        "ids": dataset.ids,
        "sentences": dataset.sentences,
        "labels": dataset.labels,
        "groups": dataset.groups,
        "axis_rows": split.axis_rows,
        "trial_rows": split.trial_rows,
    }


def _write_each(
    tree: PrefixTree,
    encoded: Sequence[Encoded],
    store: Store,
    lm: LoadedModel,
    identity: Mapping[str, Any],
    about: Mapping[str, Any],
    wanted: Sequence[int] | None = None,
    sentences: Sequence[str] = (),
) -> None:
    """Write every token's state at the ``wanted`` layers, as many per pass as fit into a gigabyte."""
    spans = [[(t, t + 1) for t in range(*e.spans[0])] for e in encoded]
    tokens = sum(len(s) for s in spans)
    offsets = np.cumsum([0, *(len(s) for s in spans)])
    owners = [sentence for sentence, s in zip(sentences, spans, strict=False) for _ in s]
    width = lm.model.config.get_text_config().hidden_size
    at_once = max(1, BYTES_AT_ONCE // (tokens * width * 4))
    requests = [Request(e.ids, s) for e, s in zip(encoded, spans, strict=True)]
    wanted = range(lm.n_layers) if wanted is None else wanted
    for first in bar(range(0, len(wanted), at_once), desc="reading every token", unit="pass"):
        layers = wanted[first : first + at_once]
        pooled = np.concatenate([reading.pooled for reading in tree.read(requests, layers)])
        for slot, layer in enumerate(layers):
            hidden = np.ascontiguousarray(pooled[:, slot])
            check_hidden(hidden, owners, f"activations of layer {layer}", lm.dtype)
            write(store.hidden(layer, "each"), {"hidden": hidden, "offsets": offsets}, identity, **about)
