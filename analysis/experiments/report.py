"""Stage 3: can the model report its own activation along an axis?

One unit is one experiment on one axis of one layer: one conversation of N sentences with their scores, read
once with each digit assignment. Before each score the logits of all digits in use are taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Request
from analysis.experiments.ahead import Ahead
from analysis.experiments.grid import GridStage
from analysis.experiments.machine import Machine
from analysis.experiments.observers import (
    center_and_scale,
    fit_sizes,
    kernel,
    same_n_predictions,
    word_kernel,
)
from analysis.experiments.preparation import not_finite
from analysis.experiments.reading import check_fits, read_counted
from analysis.experiments.study import Study, unit_identity
from analysis.experiments.trials import draw_order, report_turns
from analysis.experiments.workload import Work, work_of
from analysis.process_prompts import Encoded, Prompter
from analysis.results.schema import REPORT, UNIT_KINDS
from analysis.results.store import Store, UnitKey, read
from utils import LoadedModel, model_name

FLIPS = (False, True)
OBSERVER_C = 1.0
"""Inverse L2 strength of the observers, see analysis/experiments/observers.py."""


def report_identity(
    study: Study, key: UnitKey, reader: str | None = None, reader_dtype: str | None = None
) -> dict[str, Any]:
    """Return what a report unit depends on; ``reader`` is the fingerprint of another model that reads."""
    more = {} if reader is None else {"reader": reader, "reader_dtype": reader_dtype}
    return unit_identity(study, key, ("report_examples",), **more)


class Baselines:
    """Observers that see the same labelled examples: what the report could be without introspection.

    ``own`` is given the target layer's activations, ``embedding`` the mean input embeddings, ``words`` bags
    of words; see analysis/experiments/observers.py. Inner products of all trial sentences are computed once
    and shared.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.place = np.full(len(study.sentences), -1)
        self.place[study.trial_rows] = np.arange(len(study.trial_rows))
        self.features = lru_cache(maxsize=4)(self._features)

    def predict(self, key: UnitKey, rows: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return name -> (N,) float32, the probability of the upper half of the levels at every position."""
        store, sides = self.study.store, (labels >= key.levels / 2).astype(np.int64)
        grams = {
            "own": self.features(store.hidden(key.layer)),
            "embedding": self.features(store.embedding),
            "words": self.words,
        }
        chosen = np.ix_(self.place[rows], self.place[rows])
        return {
            name: same_n_predictions(gram[chosen], sides, OBSERVER_C, fit_sizes(len(rows))).astype(np.float32)
            for name, gram in grams.items()
        }

    def _features(self, path: Path) -> np.ndarray:
        """Return (n_trial, n_trial) inner products of the stored features of the trial sentences."""
        hidden = read(path, self.study.identity)["hidden"]
        fitting = center_and_scale(hidden[self.study.axis_rows])
        return kernel(hidden[self.study.trial_rows], *fitting)

    @cached_property
    def words(self) -> np.ndarray:
        """(n_trial, n_trial) inner products of the bags of words of the trial sentences."""
        sentences = np.array(self.study.sentences, dtype=object)
        return word_kernel(sentences[self.study.trial_rows], sentences[self.study.axis_rows])


class ReportPrompts:
    """Builds the conversations of report units; no model is needed for it."""

    def __init__(self, study: Study, prompter: Prompter) -> None:
        self.study, self.prompter = study, prompter

    def order(self, exp: int) -> np.ndarray:
        """Return the rows of experiment ``exp`` in the order shown."""
        settings = self.study.settings
        return draw_order(settings.seed, exp, self.study.trial_rows, settings.report_examples)

    def encode(self, rows: np.ndarray, labels: np.ndarray, flip: bool, levels: int) -> Encoded:
        """Return the conversation with every label marked."""
        sentences = [self.study.sentences[row] for row in rows]
        return self.prompter.encode(
            report_turns(self.study.prompts, sentences, labels.tolist(), flip, levels)
        )

    def requests(self, key: UnitKey) -> list[Request]:
        """Return what the engine is to do for one unit."""
        rows = self.order(key.exp)
        labels = self.study.labels(key.layer, key.axis, key.levels)[rows]
        encoded = [self.encode(rows, labels, flip, key.levels) for flip in FLIPS]
        return [Request(e.ids, logits_at=[place - 1 for place in e.labels]) for e in encoded]


class Report(ReportPrompts):
    """Runs report units: scores from ``study``, read by ``lm`` (the same model, unless cross-model)."""

    def __init__(self, lm: LoadedModel, study: Study, tree: PrefixTree) -> None:
        # a copy, since prompts are tokenized in a thread of their own
        super().__init__(study, Prompter(deepcopy(lm.tokenizer), lm.name))
        self.lm, self.tree = lm, tree
        self.baselines = Baselines(study)
        self.ahead = Ahead(self.requests)
        self.digits = {
            levels: self.prompter.answer_ids(study.prompts.shown, range(levels))
            for levels in study.settings.levels
        }

    def check(self, keys: Iterable[UnitKey]) -> None:
        """Raise UserError before any work if sentences are missing or the prompt does not fit."""
        orders = [self.order(exp) for exp in sorted({key.exp for key in keys})]
        lengths = [partial(self.length, rows) for rows in orders]
        check_fits(lengths, self.study.settings.report_examples, self.lm.max_positions)

    def length(self, rows: np.ndarray, n: int) -> int:
        """Return the tokens of the conversation over the first ``n`` of ``rows``."""
        if n == 0:
            return 0
        labels = np.zeros(n, np.int64)
        return max(len(self.encode(rows[:n], labels, False, levels).ids) for levels in self.digits)

    def unit(self, key: UnitKey) -> dict[str, Any]:
        """Run one unit and return its record."""
        rows = self.order(key.exp)
        labels = self.study.labels(key.layer, key.axis, key.levels)[rows]
        readings, tokens = read_counted(self.tree, self.ahead.take(key), (), self.digits[key.levels])
        logits = np.stack([reading.logits for reading in readings])
        self.check_logits(key, rows, logits)
        return {
            "rows": rows,
            "scores": self.study.scores(key.layer, key.axis)[rows],
            "labels": labels,
            "flip": np.array(FLIPS),
            "logits": logits,  # (2 flips, N, levels)
            "observers": self.baselines.predict(key, rows, labels),
            "tokens": tokens,
        }

    def check_logits(self, key: UnitKey, rows: np.ndarray, logits: np.ndarray) -> None:
        """Raise UserError if logits (2, N, levels) are not finite."""
        bad = ~np.isfinite(logits).all(axis=(0, 2))
        if bad.any():
            sentence = self.study.sentences[rows[int(bad.argmax())]]
            unit = f"report of {key.axis}, layer {key.layer}, experiment {key.exp}"
            raise not_finite(f"logits after the last layer ({unit})", sentence, self.lm.dtype)


class ReportStage(GridStage):
    """Report of axes of layers, by the model that they belong to or by another one."""

    kind = REPORT
    name = UNIT_KINDS[kind].name
    report: Report

    def __init__(
        self,
        study: Study,
        axes: Iterable[str],
        layer: str,
        exps: Iterable[int],
        machine: Machine,
        reader: str | None = None,
    ) -> None:
        """See GridStage; ``reader`` is the model that reports, None: the one that the axes belong to."""
        source = study.store
        own = reader is None or model_name(reader) == model_name(source.model)
        super().__init__(study, axes, layer, exps, machine, None if own else reader)
        self.store = report_store(source, self.model)

    def identity(self, unit: UnitKey) -> dict[str, Any]:
        """Return what a unit depends on; for another model than the axes' that model is loaded."""
        other = () if self.own_model else (self.lm.fingerprint, self.lm.dtype)
        return report_identity(self.study, unit, *other)

    def begin(self) -> None:
        """Load the model, and check that all conversations fit."""
        super().begin()
        self.report = Report(self.lm, self.study, self.machine.engine(self.model))
        self.report.check(self.units())

    def soon(self, unit: UnitKey, following: UnitKey | None) -> None:
        """Build the prompts of the next unit while this one is computed."""
        self.report.ahead.keep(unit, following)

    def work(self, unit: UnitKey) -> dict[str, Any]:
        """Run a unit and return its record."""
        return self.report.unit(unit)

    def expected(self, unit: UnitKey) -> Work:
        """Return what a unit takes."""
        requests = ReportPrompts(self.study, self.prompter).requests(unit)
        return work_of(requests, 0, self.machine.sizes[1])


def report_store(source: Store, reader: str) -> Store:
    """Return where reports by ``reader`` of the scores of ``source.model`` go."""
    names = model_name(reader), model_name(source.model)
    return source if names[0] == names[1] else Store(source.root, "_from_".join(names), source.dataset)
