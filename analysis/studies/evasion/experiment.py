"""One experiment of the evasion study: the same sentences under requests to score high and low.

Shape letters as in probes.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.base.errors import UserError
from analysis.engine.replies import Sampling
from analysis.engine.request import Reading, Request
from analysis.experiments.score_text import before_score
from analysis.experiments.study import Study
from analysis.experiments.trials import ControlTrial, control_turns, draw_order
from analysis.process_prompts import Prompter
from analysis.results.store import read
from analysis.studies.evasion.flags import Plan
from configs.settings import ACTIVE, INACTIVE


class Trials:
    """Builds the prompts of an experiment and reads their states."""

    def __init__(self, study: Study, plan: Plan) -> None:
        self.study, self.plan = study, plan
        self.classes: np.ndarray = read(study.store.split, study.identity)["labels"]
        scores = study.scores(plan.layer, plan.axis)[study.axis_rows]
        one = self.classes[study.axis_rows] == 1
        self.class_1_high = bool(scores[one].mean() >= scores[~one].mean())

    def rows(self, exp: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples (n_examples,) and the test sentences (2, P), class 0 then class 1.

        Raises:
            UserError: the trial half has too few sentences.
        """
        pool, plan = self.study.trial_rows, self.plan
        order = draw_order(self.study.settings.seed, exp, pool, len(pool))
        shown, rest = order[: plan.n_examples], order[plan.n_examples :]
        by_class = [rest[self.classes[rest] == label][: plan.n_test // 2] for label in (0, 1)]
        if plan.n_test % 2 or min(map(len, by_class)) < plan.n_test // 2:
            raise UserError(
                f"--n_test {plan.n_test} and --n_examples {plan.n_examples}: the trial half has {len(pool)} "
                "sentences; n_test must be even, and half of it must be left of each class: lower them, or "
                "prepare with a larger n_trial"
            )
        return shown, np.stack(by_class)

    def requests(self, prompter: Prompter, exp: int) -> list[Request]:
        """Return, for each label flip and wanted side, the test sentences and then the replies."""
        study, plan, settings = self.study, self.plan, self.study.settings
        shown, tests = self.rows(exp)
        examples = [study.sentences[row] for row in shown]
        labels = study.labels(plan.layer, plan.axis)[shown]
        stream = settings.seed, exp, plan.layer, zlib.crc32(plan.axis.encode())
        found = []
        for flip in (0, 1):
            for want in (0, 1):
                target = want ^ flip ^ (not self.class_1_high)
                trial = ControlTrial(plan.n_examples, bool(flip), target, INACTIVE)
                for row in tests.ravel():
                    turns = control_turns(trial, study.prompts, [*examples, study.sentences[row]], labels)
                    encoded = prompter.encode(turns)
                    found.append(Request(encoded.ids, encoded.spans))
                trial = ControlTrial(plan.n_examples, bool(flip), target, ACTIVE)
                ids = prompter.encode(control_turns(trial, study.prompts, examples, labels), reply=True).ids
                for i in range(plan.n_written):
                    seed = (*stream, flip, want, i)
                    reply = Sampling(settings.max_new_tokens, settings.temperature, seed, before_score)
                    found.append(Request(ids, reply=reply))
        return found

    def record(self, readings: Sequence[Reading], exp: int) -> dict[str, Any]:
        """Return the content of an experiment's file.

        Returns:
            ``pooled`` (F, W, 2, P, L, D) float32 of the test sentences and ``written`` (F, W, R, L, D) of the
            replies, NaN where empty; ``texts`` of the replies in that order; ``shown`` and ``tests``, rows.
        """
        each = self.plan.n_test + self.plan.n_written
        blocks = [readings[start : start + each] for start in range(0, 4 * each, each)]
        pooled = np.stack([[one.pooled[0] for one in block[: self.plan.n_test]] for block in blocks])
        if not np.isfinite(pooled).all():
            raise UserError(f"states of experiment {exp} are not finite: use --dtype bfloat16 or float32")
        replies = [one for block in blocks for one in block[self.plan.n_test :]]
        written = np.stack([one.reply_pooled for one in replies if one.reply_pooled is not None])
        shown, tests = self.rows(exp)
        return {
            "pooled": pooled.reshape(2, 2, 2, -1, *pooled.shape[2:]),
            "written": written.reshape(2, 2, -1, *written.shape[1:]),
            "texts": [one.reply.sentence if one.reply else "" for one in replies],
            "shown": shown,
            "tests": tests,
            "class_1_high": self.class_1_high,
        }
