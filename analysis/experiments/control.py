"""Stage 2: can the model move its own activation along an axis?

One unit is one experiment on one axis of one layer: all arms, N, modes, targets and label flips. They hang
off chains of examples (labels as they are or flipped, true or permuted) and are forwarded in one tree. Then
every sentence is read again by itself, which tells what its text carries from what the context adds.

Shape letters: T trials   K axes   L layers   D hidden size
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np

from analysis.axes.names import ENSEMBLE, LR
from analysis.base.errors import UserError
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.request import Reading, Request
from analysis.engine.steering import Steering
from analysis.experiments.ahead import Ahead
from analysis.experiments.grid import GridStage
from analysis.experiments.preparation import not_finite
from analysis.experiments.reading import check_fits, read_counted
from analysis.experiments.score_text import before_score
from analysis.experiments.study import Study, unit_identity
from analysis.experiments.text_probes import TextProbes
from analysis.experiments.trials import (
    ControlTrial,
    axis_turns,
    control_trials,
    control_turns,
    copy_rate,
    draw_order,
    sham_labels,
)
from analysis.experiments.workload import Work, work_of
from analysis.process_prompts import Encoded, Prompter
from analysis.results.schema import CONTROL, UNIT_KINDS
from analysis.results.store import UnitKey
from configs.settings import ACTIVE, ARMS, PUSHED, SHAM, TRUE, Settings
from utils import LoadedModel

_SETTINGS = ("shots", "modes", "arms", "push", "max_new_tokens", "temperature")


def control_identity(study: Study, key: UnitKey) -> dict[str, Any]:
    """Return what a control unit depends on."""
    return unit_identity(study, key, _SETTINGS)


class ControlPrompts:
    """Builds the prompts of control units; no model is needed for it."""

    def __init__(self, study: Study, prompter: Prompter) -> None:
        self.study, self.prompter = study, prompter
        self.settings: Settings = study.settings

    def order(self, exp: int) -> np.ndarray:
        """Return the rows of experiment ``exp``: the examples, then the last test sentence."""
        return draw_order(self.settings.seed, exp, self.study.trial_rows, self.settings.shots[-1] + 1)

    def length(self, rows: np.ndarray, n: int) -> int:
        """Return the tokens of the longest prompt with ``n`` examples, its reply included."""
        sentences = [self.study.sentences[row] for row in rows]
        lengths = []
        for mode, levels in itertools.product(self.settings.modes, self.settings.levels):
            trial = ControlTrial(n, False, levels - 1, mode, levels)
            turns = control_turns(trial, self.study.prompts, sentences, [0] * len(sentences))
            reply = self.settings.max_new_tokens if mode == ACTIVE else 0
            lengths.append(len(self.prompter.encode(turns, reply=mode == ACTIVE).ids) + reply)
        return max(lengths)

    def trials(self, key: UnitKey) -> list[ControlTrial]:
        """Return the trials of one unit; an axis without a direction cannot be pushed."""
        settings = self.settings
        arms = [arm for arm in settings.arms if arm != PUSHED or self.study.can_push(key)]
        return control_trials(settings.shots, settings.modes, key.levels, arms)

    def requests(self, key: UnitKey) -> list[Request]:
        """Return what the engine is to do for one unit."""
        rows = self.order(key.exp)
        sentences = [self.study.sentences[row] for row in rows]
        labels = self.study.labels(key.layer, key.axis, key.levels)[rows]
        sham = sham_labels(self.settings.seed, key.exp, labels[:-1])
        shown = {arm: (sham if arm == SHAM else labels).tolist() for arm in ARMS}
        return [self.request(key, trial, sentences, shown[trial.arm]) for trial in self.trials(key)]

    def alone(self, key: UnitKey) -> list[Request]:
        """Return readings of as many sentences by themselves as a unit has trials, at most its own ones."""
        rows = self.order(key.exp)[: len(self.trials(key))]
        turns = (axis_turns(self.study.prompts, self.study.sentences[row]) for row in rows)
        return [Request(one.ids, one.spans) for one in map(self.prompter.encode, turns)]

    def request(
        self, key: UnitKey, trial: ControlTrial, sentences: Sequence[str], labels: Sequence[int]
    ) -> Request:
        """Return what the engine is to do for one trial."""
        active = trial.mode == ACTIVE
        turns = control_turns(trial, self.study.prompts, sentences, labels)
        encoded = self.prompter.encode(turns, reply=active)
        steering = self.push(key, trial, encoded) if trial.arm == PUSHED else ()
        reply = self.sampling(key, trial) if active else None
        return Request(encoded.ids, encoded.spans, reply=reply, steering=steering)

    def push(self, key: UnitKey, trial: ControlTrial, encoded: Encoded) -> tuple[Steering]:
        """Return what adds the axis, as wanted, to the sentence that is read, or to all of what is written.

        What is written begins with the last token of the prompt, from which the first one is drawn.
        """
        start, stop = encoded.spans[0] if encoded.spans else (len(encoded.ids) - 1, None)
        alpha = self.settings.push * (1 if trial.want else -1)
        return (self.study.push(key, alpha, start, stop),)

    def sampling(self, key: UnitKey, trial: ControlTrial) -> Sampling:
        """Return a seed for this reply alone, so that it does not depend on what else is computed.

        It is the same in all arms: they differ by what is shown or pushed, not by luck.
        """
        axis = zlib.crc32(key.axis.encode())
        seed = (self.settings.seed, key.exp, key.layer, axis, trial.n, int(trial.flip), trial.target)
        return Sampling(self.settings.max_new_tokens, self.settings.temperature, seed, before_score)


class Control(ControlPrompts):
    """Runs control units with one model."""

    def __init__(self, lm: LoadedModel, study: Study, tree: PrefixTree) -> None:
        study.check_model(lm)
        # a copy, since prompts are tokenized while the engine decodes replies with the model's own
        super().__init__(study, Prompter(deepcopy(lm.tokenizer), lm.name))
        self.lm, self.tree = lm, tree
        self.ahead = Ahead(self.requests)
        self.probes = TextProbes(lm, study)
        for levels in self.settings.levels:  # labels must be single tokens
            self.prompter.answer_ids(study.prompts.shown, range(levels))

    def check(self, keys: Iterable[UnitKey]) -> None:
        """Raise UserError before any work if an experiment lacks sentences or its prompt does not fit."""
        orders = [self.order(exp) for exp in sorted({key.exp for key in keys})]
        lengths = [partial(self.length, rows) for rows in orders]
        check_fits(lengths, self.settings.shots[-1], self.lm.max_positions)

    def unit(self, key: UnitKey) -> dict[str, Any]:
        """Run one unit and return its record, see docs in README (results files)."""
        rows = self.order(key.exp)
        sentences = [self.study.sentences[row] for row in rows]
        trials, layers = self.trials(key), self.study.layers
        readings, tokens = read_counted(self.tree, self.ahead.take(key), layers)
        pooled = np.stack([_activation(reading) for reading in readings])
        texts = text_columns(trials, readings, sentences)
        self.check_pooled(key, pooled, texts)
        alone, more = self.probes.read(self.tree, key, texts["text"], partial(self.axis_scores, key))
        return {
            **trial_columns(trials),
            **self.reading_columns(key, pooled),
            **texts,
            **alone,
            "difference": mean_difference(trials, pooled[:, layers.index(key.layer)], self.settings.modes),
            "test_sentence": [sentences[trial.n] for trial in trials],
            "rows": rows,
            "tokens": {name: count + more[name] for name, count in tokens.items()},
        }

    def check_pooled(self, key: UnitKey, pooled: np.ndarray, texts: Mapping[str, Any]) -> None:
        """Raise UserError if activations (T, L, D) are not finite at a layer although there is a sentence."""
        bad = ~np.isfinite(pooled).all(axis=2) & ~texts["empty"][:, None]
        if bad.any():
            slot = int(bad.any(axis=0).argmax())
            layer, sentence = self.study.layers[slot], texts["text"][int(bad[:, slot].argmax())]
            unit = f"control of {key.axis}, layer {key.layer}, experiment {key.exp}"
            raise not_finite(f"activations of layer {layer} ({unit})", sentence, self.lm.dtype)

    def axis_scores(self, key: UnitKey, pooled: np.ndarray) -> np.ndarray:
        """Return (T, K) scores of states (T, L, D) on the axes of the target layer and on the ensemble."""
        layers = self.study.layers
        members = [self.study.axes(layer).score(pooled[:, slot], LR) for slot, layer in enumerate(layers)]
        scores = self.study.axes(key.layer).scores(pooled[:, layers.index(key.layer)])
        return np.column_stack([scores, self.study.ensemble.score(np.stack(members, axis=1))])

    def reading_columns(self, key: UnitKey, pooled: np.ndarray) -> dict[str, Any]:
        """Return scores on every axis of the target layer, and the target axis at every layer.

        Args:
            key: the unit.
            pooled: (T, L, D) float32 at every layer, NaN rows for empty replies.

        Returns:
            ``affected`` names and ``scores`` (T, K); ``layers`` and ``by_layer`` (T, L), the axis of the same
            name of every layer, principal components turned to agree with the targeted one; ``projection``
            (T, L), the target layer's direction read at every layer, in deviations of the target layer's
            scores (NaN for lr_ensemble, which has no direction).
        """
        axes, layers = self.study.axes(key.layer), self.study.layers
        own = LR if key.axis == ENSEMBLE else key.axis
        by_layer, projection = (np.full((len(pooled), len(layers)), np.nan, np.float32) for _ in range(2))
        for slot, layer in enumerate(layers):
            here = self.study.axes(layer)
            by_layer[:, slot] = self.study.turn(layer, key) * here.score(pooled[:, slot], own)
            if key.axis != ENSEMBLE:
                k = axes.index(key.axis)
                moved = pooled[:, slot].astype(np.float64) - here.mean
                projection[:, slot] = moved @ axes.directions[k] / axes.scales[k]
        return {
            "affected": [*axes.names, ENSEMBLE],
            "scores": self.axis_scores(key, pooled),
            "layers": np.array(layers),
            "by_layer": by_layer,
            "projection": projection,
        }


class ControlStage(GridStage):
    """Control of axes of layers."""

    kind = CONTROL
    name = UNIT_KINDS[kind].name
    control: Control

    def identity(self, unit: UnitKey) -> dict[str, Any]:
        """Return what a unit depends on."""
        return control_identity(self.study, unit)

    def begin(self) -> None:
        """Load the model, and check that all prompts fit."""
        super().begin()
        self.control = Control(self.lm, self.study, self.machine.engine(self.model))
        self.control.check(self.units())

    def soon(self, unit: UnitKey, following: UnitKey | None) -> None:
        """Build the prompts of the next unit while this one is computed."""
        self.control.ahead.keep(unit, following)

    def work(self, unit: UnitKey) -> dict[str, Any]:
        """Run a unit and return its record."""
        return check_finite(self.control.unit(unit), unit)

    def expected(self, unit: UnitKey) -> Work:
        """Return what a unit takes; a written sentence is taken to be as long as the given one."""
        prompts, sizes = ControlPrompts(self.study, self.prompter), self.machine.shape(self.model)
        works = (prompts.requests(unit), prompts.alone(unit))
        return sum((work_of(requests, sizes.n_layers, self.machine.sizes[1]) for requests in works), Work())


def trial_columns(trials: Sequence[ControlTrial]) -> dict[str, Any]:
    """Return what was asked for, per trial."""
    return {
        "n": np.array([trial.n for trial in trials]),
        "flip": np.array([trial.flip for trial in trials]),
        "target": np.array([trial.target for trial in trials]),
        "want": np.array([trial.want for trial in trials]),
        "mode": [trial.mode for trial in trials],
        "arm": [trial.arm for trial in trials],
    }


def text_columns(
    trials: Sequence[ControlTrial], readings: Sequence[Reading], sentences: Sequence[str]
) -> dict[str, Any]:
    """Return what was written, how much of it was copied, and whether a score text was cut off."""
    text, ids, copied, cut = [], [], [], []
    for trial, reading in zip(trials, readings, strict=True):
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


def mean_difference(
    trials: Sequence[ControlTrial], pooled: np.ndarray, modes: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return per mode how the hidden state changes in the true arm at the largest N, from low to high wanted.

    Args:
        trials: T of them.
        pooled: (T, D) at the target layer, NaN rows for empty replies.
        modes: of the trials.

    Returns:
        mode -> (D,) float32, the mean over the label assignments; NaN if a reply was empty.
    """
    last = max(trial.n for trial in trials)
    signs = {
        mode: np.array(
            [(2 * t.want - 1) * (t.n == last and t.mode == mode and t.arm == TRUE) for t in trials]
        )
        for mode in modes
    }
    return {
        mode: (pooled[sign != 0] * sign[sign != 0, None]).sum(axis=0) / (np.abs(sign).sum() / 2)
        for mode, sign in signs.items()
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
