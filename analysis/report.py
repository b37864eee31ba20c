"""Stage 3: can the model report its own activation along an axis?

One unit is one experiment on one axis of one layer: one conversation of N sentences with their scores, read
once with each digit assignment. Before each score the logits of both digits are taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from analysis.experiment import Study, check_fits, read_counted, unit_identity
from analysis.prefix_tree import PrefixTree, Request
from analysis.process_prompts import Encoded, Prompter
from analysis.store import UnitKey
from analysis.trials import draw_order, report_turns
from utils import LoadedModel

FLIPS = (False, True)


def report_identity(study: Study, key: UnitKey, reader: str | None = None) -> dict[str, Any]:
    """Return what a report unit depends on; ``reader`` is the fingerprint of another model that reads."""
    more = {} if reader is None else {"reader": reader}
    return unit_identity(study, key, ("report_examples",), **more)


class Report:
    """Runs report units: scores from ``study``, read by ``lm`` (the same model, unless cross-model)."""

    def __init__(self, lm: LoadedModel, study: Study, tree: PrefixTree) -> None:
        self.lm, self.study, self.tree = lm, study, tree
        self.prompter = Prompter(lm.tokenizer, lm.name)
        self.digits = self.prompter.answer_ids(study.prompts.shown, (0, 1))

    def check(self, keys: Iterable[UnitKey]) -> None:
        """Raise UserError before any work if sentences are missing or the prompt does not fit."""
        orders = [self.order(exp) for exp in sorted({key.exp for key in keys})]
        lengths = [partial(self.length, rows) for rows in orders]
        check_fits(lengths, self.study.settings.report_examples, self.lm.max_positions)

    def order(self, exp: int) -> np.ndarray:
        """Return the rows of experiment ``exp`` in the order shown."""
        settings = self.study.settings
        return draw_order(settings.seed, exp, self.study.trial_rows, settings.report_examples)

    def length(self, rows: np.ndarray, n: int) -> int:
        """Return the tokens of the conversation over the first ``n`` of ``rows``."""
        return len(self.encode(rows[:n], np.zeros(n, np.int64), False).ids) if n else 0

    def encode(self, rows: np.ndarray, labels: np.ndarray, flip: bool) -> Encoded:
        """Return the conversation with every label marked."""
        sentences = [self.study.sentences[row] for row in rows]
        return self.prompter.encode(report_turns(self.study.prompts, sentences, labels, flip))

    def unit(self, key: UnitKey) -> dict[str, Any]:
        """Run one unit and return its record."""
        rows = self.order(key.exp)
        labels = self.study.labels(key.layer, key.axis)[rows]
        encoded = [self.encode(rows, labels, flip) for flip in FLIPS]
        requests = [Request(e.ids, logits_at=[place - 1 for place in e.labels]) for e in encoded]
        readings, tokens = read_counted(self.tree, requests, (), self.digits)
        logits = np.stack([reading.logits for reading in readings])  # (2 flips, N, 2 digits)
        return {
            "rows": rows,
            "scores": self.study.scores(key.layer, key.axis)[rows],
            "labels": labels,
            "flip": np.array(FLIPS),
            "logit_diff": logits[:, :, 1] - logits[:, :, 0],
            "tokens": tokens,
        }
