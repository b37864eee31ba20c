"""Stage 2: can the model move its own activation along an axis?

One unit is one experiment on one axis of one layer: all N, both modes, both targets, both label flips. They
hang off two chains of examples (labels as they are, and flipped) and are forwarded in one tree.

Shape letters: T trials   K axes   L layers   D hidden size
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from analysis.experiment import Study, check_fits, read_counted, unit_identity
from analysis.prefix_tree import PrefixTree, Reading, Request
from analysis.process_prompts import Prompter
from analysis.replies import Sampling
from analysis.store import UnitKey
from analysis.trials import ControlTrial, control_trials, control_turns, copy_rate, draw_order
from configs.settings import Settings
from utils import LoadedModel, UserError

_SETTINGS = ("shots", "modes", "max_new_tokens", "temperature")


def control_identity(study: Study, key: UnitKey) -> dict[str, Any]:
    """Return what a control unit depends on."""
    return unit_identity(study, key, _SETTINGS)


class Control:
    """Runs control units with one model."""

    def __init__(self, lm: LoadedModel, study: Study, tree: PrefixTree) -> None:
        study.check_model(lm)
        self.lm, self.study, self.tree = lm, study, tree
        self.settings: Settings = study.settings
        self.prompter = Prompter(lm.tokenizer, lm.name)
        self.prompter.answer_ids(study.prompts.shown, (0, 1))  # labels must be single tokens
        self.trials = control_trials(self.settings.shots, self.settings.modes)

    def check(self, keys: Iterable[UnitKey]) -> None:
        """Raise UserError before any work if an experiment lacks sentences or its prompt does not fit."""
        orders = [self.order(exp) for exp in sorted({key.exp for key in keys})]
        lengths = [partial(self.length, rows) for rows in orders]
        check_fits(lengths, self.settings.shots[-1], self.lm.max_positions)

    def order(self, exp: int) -> np.ndarray:
        """Return the rows of experiment ``exp``: the examples, then the last test sentence."""
        return draw_order(self.settings.seed, exp, self.study.trial_rows, self.settings.shots[-1] + 1)

    def length(self, rows: np.ndarray, n: int) -> int:
        """Return the tokens of the longest prompt with ``n`` examples, its reply included."""
        sentences = [self.study.sentences[row] for row in rows]
        lengths = []
        for mode in self.settings.modes:
            trial = ControlTrial(n, False, 1, mode)
            turns = control_turns(trial, self.study.prompts, sentences, [0] * len(sentences))
            reply = self.settings.max_new_tokens if mode == "active" else 0
            lengths.append(len(self.prompter.encode(turns, reply=mode == "active").ids) + reply)
        return max(lengths)

    def unit(self, key: UnitKey) -> dict[str, Any]:
        """Run one unit and return its record, see docs in README (results files)."""
        rows = self.order(key.exp)
        sentences = [self.study.sentences[row] for row in rows]
        labels = self.study.labels(key.layer, key.axis)[rows]
        requests = [self.request(key, trial, sentences, labels) for trial in self.trials]
        layers = self.study.layers
        readings, tokens = read_counted(self.tree, requests, layers)
        pooled = np.stack([_activation(reading) for reading in readings])
        return {
            **self.trial_columns(),
            **self.reading_columns(key, pooled, layers),
            **self.text_columns(readings, sentences),
            "test_sentence": [sentences[trial.n] for trial in self.trials],
            "rows": rows,
            "tokens": tokens,
        }

    def request(
        self, key: UnitKey, trial: ControlTrial, sentences: Sequence[str], labels: Sequence[int]
    ) -> Request:
        """Return what the engine is to do for one trial."""
        active = trial.mode == "active"
        turns = control_turns(trial, self.study.prompts, sentences, labels)
        encoded = self.prompter.encode(turns, reply=active)
        return Request(encoded.ids, encoded.spans, reply=self.sampling(key, trial) if active else None)

    def sampling(self, key: UnitKey, trial: ControlTrial) -> Sampling:
        """Return a seed for this reply alone, so that it does not depend on what else is computed."""
        axis = zlib.crc32(key.axis.encode())
        seed = (self.settings.seed, key.exp, key.layer, axis, trial.n, int(trial.flip), trial.target)
        return Sampling(self.settings.max_new_tokens, self.settings.temperature, seed)

    # ------------------------------------------------------------ columns of the record

    def trial_columns(self) -> dict[str, Any]:
        """Return what was asked for, per trial."""
        return {
            "n": np.array([trial.n for trial in self.trials]),
            "flip": np.array([trial.flip for trial in self.trials]),
            "target": np.array([trial.target for trial in self.trials]),
            "want": np.array([trial.want for trial in self.trials]),
            "mode": [trial.mode for trial in self.trials],
        }

    def reading_columns(self, key: UnitKey, pooled: np.ndarray, layers: Sequence[int]) -> dict[str, Any]:
        """Return scores on every axis of the target layer, and the target axis at every layer.

        Args:
            key: the unit.
            pooled: (T, L, D) float32, NaN rows for empty replies.
            layers: the L layers.
        """
        axes = self.study.axes(key.layer)
        at = list(layers).index(key.layer)
        by_layer = np.full((len(pooled), len(layers)), np.nan, np.float32)
        projection = np.empty_like(by_layer)
        direction = axes.directions[axes.index(key.axis)]
        for slot, layer in enumerate(layers):
            own = self.study.axes(layer)
            if key.axis in own.names:
                by_layer[:, slot] = own.scores(pooled[:, slot])[:, own.index(key.axis)]
            projection[:, slot] = (pooled[:, slot] - own.mean) @ direction
        return {
            "affected": list(axes.names),
            "scores": axes.scores(pooled[:, at]),
            "layers": np.array(layers),
            "by_layer": by_layer,
            "projection": projection,
        }

    def text_columns(self, readings: Sequence[Reading], sentences: Sequence[str]) -> dict[str, Any]:
        """Return what was written, how much of it was copied, and whether a score text was cut off."""
        text, ids, copied, cut = [], [], [], []
        for trial, reading in zip(self.trials, readings, strict=True):
            reply = reading.reply
            text.append(reply.sentence if reply else sentences[trial.n])
            ids.append(list(reply.ids) if reply else [])
            copied.append(copy_rate(reply.sentence, sentences[: trial.n]) if reply else np.nan)
            cut.append(bool(reply and reply.cut))
        return {
            "text": text,
            "reply_ids": ids,
            "copy_rate": np.array(copied, np.float32),
            "cut": np.array(cut),
            "empty": np.array([not t for t in text]),
        }


def _activation(reading: Reading) -> np.ndarray:
    """Return (L, D): the sentence that was read, or the one that was written."""
    return reading.pooled[0] if reading.reply is None else reading.reply_pooled


def check_finite(record: dict[str, Any], key: UnitKey) -> dict[str, Any]:
    """Raise UserError if a score is not finite although there was a sentence."""
    bad = ~np.isfinite(record["scores"]).all(axis=1) & ~record["empty"]
    if bad.any():
        raise UserError(
            f"activations of {key.axis}, layer {key.layer}, experiment {key.exp} are not finite (first: "
            f"{record['text'][int(bad.argmax())]!r}): use --dtype bfloat16 or float32"
        )
    return record
