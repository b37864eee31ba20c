"""Stage 1: hidden states of every sentence, axes of every layer, scores of every sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from analysis.classifiers import AxisSet, fit_axes
from analysis.missing import command
from analysis.prefix_tree import PrefixTree, Request, stack_pooled
from analysis.process_prompts import Encoded, Prompter, Prompts, load_prompts
from analysis.progress import bar
from analysis.store import Store, finished, read, write
from analysis.trials import axis_turns
from configs.settings import Settings, as_plain
from data.load import Dataset, Split, load_dataset
from utils import LoadedModel, UserError, fingerprint

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

    What is on disk already is kept. ``mean``, ``last`` and ``each`` write hidden states only: the mean over
    the sentence's tokens, its last token, or every token.

    Raises:
        UserError: bad data or settings, or results of other settings in the same folder.
    """  # fmt: skip
    whole = load_dataset(key, settings.seed, settings.n_axis, settings.n_trial)
    identity = prep_identity(lm, whole, settings)
    split = whole.compact()
    dataset = split.dataset
    about = {
        "settings": dict(as_plain(settings)),
        **lm.about,
        "dataset_key": key,
    }
    layers = range(lm.n_layers)
    last_files = [
        store.axes(layer) if method == "pcascore" else store.hidden(layer, method) for layer in layers
    ]
    last_files += [store.embedding] if method == "pcascore" else []
    identity_of = identity if method == "pcascore" else {**identity, "method": method}
    if all([finished(path, identity_of, overwrite) for path in last_files]):
        log.info("preparation is there already: %s", store.folder)
        return
    write(store.split, _split_record(split), identity, **about)
    encoded = encode_sentences(lm, dataset, load_prompts(key))
    tree = PrefixTree(lm.model, lm.tokenizer, token_budget)
    if method == "each":
        _write_each(tree, encoded, store, lm, identity_of, about)
        return
    if method == "pcascore":
        write(store.embedding, {"hidden": mean_embeddings(lm, encoded)}, identity, **about)
    pooled = pool_sentences(tree, encoded, layers, last_token=method == "last")
    for layer in bar(layers, desc="fitting axes", unit="layer"):
        hidden = np.ascontiguousarray(pooled[:, layer])
        write(store.hidden(layer, method), {"hidden": hidden}, identity_of, **about)
        if method == "pcascore":
            axes = fit_layer(hidden, split, settings, layer)
            write(store.axes(layer), _axes_record(axes, hidden, split), identity, **about)


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

    table = lm.model.get_input_embeddings()
    found = []
    with torch.inference_mode():
        for e in encoded:
            start, stop = e.spans[0]
            ids = torch.tensor(e.ids[start:stop], device=table.weight.device)
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
        if not name.startswith("pc"):
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
) -> None:
    """Write every token's state, as many layers per pass as fit into a gigabyte."""  # fmt: skip
    spans = [[(t, t + 1) for t in range(*e.spans[0])] for e in encoded]
    tokens = sum(len(s) for s in spans)
    offsets = np.cumsum([0, *(len(s) for s in spans)])
    width = lm.model.config.get_text_config().hidden_size
    at_once = max(1, BYTES_AT_ONCE // (tokens * width * 4))
    requests = [Request(e.ids, s) for e, s in zip(encoded, spans, strict=True)]
    for first in bar(range(0, lm.n_layers, at_once), desc="reading every token", unit="pass"):
        layers = range(first, min(first + at_once, lm.n_layers))
        pooled = np.concatenate([reading.pooled for reading in tree.read(requests, layers)])
        for slot, layer in enumerate(layers):
            record = {"hidden": np.ascontiguousarray(pooled[:, slot]), "offsets": offsets}
            write(store.hidden(layer, "each"), record, identity, **about)


def load_axes(store: Store, layer: int, identity: Mapping[str, Any] | None = None) -> tuple[AxisSet, dict]:
    """Return the axes of one layer and the whole record, or say which command makes them."""
    path = store.axes(layer)
    if not path.exists():
        raise UserError(f"no axes for layer {layer} ({path}): run `{command(store)}`")
    record = read(path, identity)
    return AxisSet.from_record(record), record
