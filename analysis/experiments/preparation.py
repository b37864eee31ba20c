"""Stage 1: hidden states of every sentence, axes of every layer, scores of every sentence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
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
from analysis.experiments.machine import Machine
from analysis.experiments.trials import axis_turns
from analysis.experiments.units import Stage, run
from analysis.experiments.workload import Work, work_of
from analysis.models.blocks import input_device
from analysis.process_prompts import Encoded, Prompter, Prompts, load_prompts
from analysis.results.store import Store, read, write
from configs.settings import Settings, as_plain
from data.load import Dataset, Split, load_dataset
from utils import LoadedModel

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
        "measured_on": "trial half",  # scales and thresholds; older preparations: the fitting half
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


class Preparation(Stage[str]):
    """What comes before all experiments: one unit per dataset, of many files.

    The split, and per layer the pooled hidden states and (``pcascore``) axes with scores. ``mean``, ``last``
    and ``each`` write hidden states only: the mean over the sentence's tokens, its last token, or every
    token.
    """

    name = "preparation"
    waits = True

    def __init__(
        self, stores: Iterable[Store], settings: Settings, machine: Machine, method: str = "pcascore"
    ) -> None:
        """Say what is to be prepared; nothing is loaded or read.

        Args:
            stores: of one model and one or more datasets.
            settings: sizes of the split and of the axes.
            machine: loads the model.
            method: one of METHODS.
        """
        self.stores = {store.dataset: store for store in stores}
        self.model = next(iter(self.stores.values())).model
        self.settings, self.machine, self.method = settings, machine, method
        self.split = cache(self._split)

    def _split(self, unit: str) -> Split:
        """Return a whole dataset and its halves."""
        return load_dataset(unit, self.settings.seed, self.settings.n_axis, self.settings.n_trial)

    def units(self) -> list[str]:
        """Return the keys of the datasets."""
        return list(self.stores)

    def place(self, unit: str) -> Path:
        """Return what is claimed, no file of its own."""
        return self.stores[unit].folder / "preparation"

    def files(self, unit: str) -> dict[Path, Mapping[str, Any]]:
        """Return every file and its identity, which needs the model."""
        lm, store = self.machine.model(self.model), self.stores[unit]
        identity = prep_identity(lm, self.split(unit), self.settings)
        found: dict[Path, Mapping[str, Any]] = {store.split: identity}
        if self.method == "pcascore":
            found |= {path: identity for path in (store.embedding, *map(store.axes, range(lm.n_layers)))}
        else:
            identity = {**identity, "method": self.method}
        return found | {store.hidden(layer, self.method): identity for layer in range(lm.n_layers)}

    def check(self, units: Sequence[str]) -> None:
        """Raise UserError for a dataset that is not there or too small, before a large model is loaded."""
        for unit in units:
            self.split(unit)

    def do(self, unit: str, missing: Collection[Path]) -> None:
        """Write what is missing of one dataset."""
        lm, store, files = self.machine.model(self.model), self.stores[unit], self.files(unit)
        about = run_meta(lm, store, self.settings, files[store.split]["dataset"])
        split = self.split(unit).compact()
        task = _Task(lm, split, self.settings, store, files, frozenset(missing), about, self.method)
        task.run(partial(self.machine.engine, self.model))

    def expected(self, unit: str) -> Work:
        """Return what a dataset takes; ``each`` takes several passes, all counted in full."""
        shape, budget = self.machine.shape(self.model), self.machine.sizes[1]
        dataset = self.split(unit).compact().dataset
        encoded = _encoded(self.machine.prompter(self.model), dataset, load_prompts(unit))
        if self.method != "each":
            requests = [Request(e.ids, e.spans) for e in encoded]
            return work_of(requests, shape.n_layers, budget)
        requests = [Request(e.ids, every_token(e)) for e in encoded]
        passes = layers_at_once(requests, shape.hidden)
        whole = -(-shape.n_layers // passes)
        return work_of(requests, min(shape.n_layers, passes), budget) * whole

    def alike(self, unit: str) -> tuple[Any, ...]:
        """Return the dataset: each has sentences of its own length."""
        return 0, unit

    def on_disk(self, unit: str) -> bool:
        """Return whether what is written last is there."""
        store, last = self.stores[unit], self.machine.shape(self.model).n_layers - 1
        return (store.axes(last) if self.method == "pcascore" else store.hidden(last, self.method)).exists()


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
    """Prepare one dataset with a model that is loaded; see Preparation.

    What is on disk already is kept; damaged files are set aside and made again. Of several processes one does
    the work, and the others wait for it.

    Raises:
        UserError: bad data or settings, activations that are not finite, or results of other settings in
            the same folder.
    """  # fmt: skip
    store = replace(store, dataset=key)
    machine = Machine(token_budget, {store.model: lm})
    run(Preparation([store], settings, machine, method), overwrite=overwrite)


@dataclass(frozen=True)
class _Task:
    """One preparation: what to write, and what is known about it."""

    lm: LoadedModel
    split: Split
    settings: Settings
    store: Store
    files: Mapping[Path, Mapping[str, Any]]
    """Every file and its identity."""
    missing: frozenset[Path]
    about: Mapping[str, Any]
    method: str

    def write(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write a file if it is missing."""
        if path in self.missing:
            write(path, record, self.files[path], **self.about)

    def run(self, engine: Callable[[], PrefixTree]) -> None:
        """Read the sentences and fit the axes, as far as files are missing; ``engine`` is made if needed."""
        store, lm, sentences = self.store, self.lm, self.split.dataset.sentences
        self.write(store.split, _split_record(self.split))
        encoded = encode_sentences(lm, self.split.dataset, load_prompts(self.split.dataset.key))
        if store.embedding in self.missing:
            embedded = mean_embeddings(lm, encoded)
            check_hidden(embedded, sentences, "the input embeddings", lm.dtype)
            self.write(store.embedding, {"hidden": embedded})
        layers = [at for at in range(lm.n_layers) if store.hidden(at, self.method) in self.missing]
        if self.method == "each":
            if layers:
                self.write_each(engine(), encoded, layers)
            return
        pooled = np.empty((len(encoded), 0, 0), np.float32)
        if layers:
            pooled = pool_sentences(engine(), encoded, layers, last_token=self.method == "last")
        with bar(total=lm.n_layers, desc="fitting axes", unit="layer") as shown:
            fit = partial(self.fit, read_now=layers, pooled=pooled)
            fit_layers(fit, range(lm.n_layers), shown.update)

    def fit(self, layer: int, read_now: Sequence[int], pooled: np.ndarray) -> None:
        """Write one layer's part of ``pooled`` (B, len(read_now), D) and its axes."""
        if layer in read_now:
            hidden = np.ascontiguousarray(pooled[:, read_now.index(layer)])
            check_hidden(hidden, self.split.dataset.sentences, f"activations of layer {layer}", self.lm.dtype)
            self.write(self.store.hidden(layer, self.method), {"hidden": hidden})
        if self.store.axes(layer) in self.missing:
            if layer not in read_now:
                path = self.store.hidden(layer)
                hidden = read(path, self.files[path])["hidden"]
            axes = fit_layer(hidden, self.split, self.settings, layer)
            self.write(self.store.axes(layer), _axes_record(axes, hidden, self.split))

    def write_each(self, tree: PrefixTree, encoded: Sequence[Encoded], layers: Sequence[int]) -> None:
        """Write every token's state at ``layers``, as many per pass as fit into a gigabyte."""
        requests = [Request(e.ids, every_token(e)) for e in encoded]
        offsets = np.cumsum([0, *(len(request.spans) for request in requests)])
        owners = np.repeat(np.array(self.split.dataset.sentences, object), np.diff(offsets))
        at_once = layers_at_once(requests, self.lm.model.config.get_text_config().hidden_size)
        for first in bar(range(0, len(layers), at_once), desc="reading every token", unit="pass"):
            now = layers[first : first + at_once]
            pooled = np.concatenate([reading.pooled for reading in tree.read(requests, now)])
            for slot, layer in enumerate(now):
                hidden = np.ascontiguousarray(pooled[:, slot])
                check_hidden(hidden, owners, f"activations of layer {layer}", self.lm.dtype)
                self.write(self.store.hidden(layer, "each"), {"hidden": hidden, "offsets": offsets})


def every_token(encoded: Encoded) -> list[tuple[int, int]]:
    """Return a span for every token of the sentence."""
    return [(token, token + 1) for token in range(*encoded.spans[0])]


def layers_at_once(requests: Sequence[Request], width: int) -> int:
    """Return at how many layers of ``width`` the spans of all requests may be kept during one pass."""
    spans = sum(len(request.spans) for request in requests)
    return max(1, BYTES_AT_ONCE // (spans * width * 4))


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
    return _encoded(Prompter(lm.tokenizer, lm.name), dataset, prompts)


def _encoded(prompter: Prompter, dataset: Dataset, prompts: Prompts) -> list[Encoded]:
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
    """Fit the axes of one layer on the fitting half of ``hidden`` (B, D), and measure with the other half."""
    return fit_axes(
        hidden[split.axis_rows], split.dataset.labels[split.axis_rows],
        groups=split.dataset.groups[split.axis_rows], held_out=hidden[split.trial_rows],
        lr_c=None if settings.lr_c == "auto" else float(settings.lr_c),
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
