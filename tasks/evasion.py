"""Can a model that controls its activations evade a probe?

Probes that tell the dataset's classes apart are fitted on the axis-fitting half, and judged on trial
sentences as they are and under control: after examples with a request to score high or low on one axis.

Reads   results/<model>/<dataset>/axes_layer<l>.pkl, hidden_layer<l>.pkl      (from main_prep.py)
Writes  results/<model>/<dataset>/study_evasion_exp<e>_<axis>_layer<l>.pkl, the states of one experiment
        results/<model>/<dataset>/figures/evasion_<axis>_layer<l>/*.png and summary_evasion.csv
        Experiments that exist are kept, so a killed run is resumed by the same command.
Try     python -m tasks.evasion --model smollm2 --dataset commonsense --axis lr --layer middle
"""

from __future__ import annotations

import argparse
import logging
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.base.errors import UserError
from analysis.cli.flags import (
    add_run_flags,
    base_parser,
    positive,
    run_options,
    settings_from,
    store_from,
)
from analysis.cli.script import script, setup_logging
from analysis.results.claims import claim
from analysis.results.schema import CONTROL
from analysis.results.store import Store, UnitKey, finished, read, write
from configs.layers import choose_layers
from configs.settings import ACTIVE, INACTIVE, as_plain
from utils import model_name

if TYPE_CHECKING:
    from analysis.engine.request import Reading, Request
    from analysis.experiments.study import Study
    from analysis.process_prompts import Prompter
    from analysis.studies.evasion.probes import Judged

log = logging.getLogger("evasion")


@dataclass(frozen=True)
class Plan:
    """What is asked of the model; part of the identity of every file."""

    axis: str
    layer: int
    layers: list[int]
    """Whose states are kept: those of the ensemble, and ``layer``."""
    n_examples: int
    n_test: int
    n_written: int


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--axis", default="lr", help="axis of the feedback (default: %(default)s)")
    parser.add_argument("--layer", default="middle", help="layer of the feedback (default: %(default)s)")
    parser.add_argument(
        "--layers", default="all",
        help="layers of the ensemble probes, with that of the feedback: all, selected, or such as 7,15 "
        "(default: %(default)s)",
    )  # fmt: skip
    sizes = {
        "n_examples": (32, "examples in context"),
        "n_test": (24, "test sentences of an experiment, half of them of each class"),
        "n_written": (4, "sentences that the model writes for each request and label assignment"),
        "n_experiments": (6, "experiments"),
    }
    for name, (size, text) in sizes.items():
        parser.add_argument(f"--{name}", type=positive, default=size, help=f"{text} (default: %(default)s)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- trials


class Trials:
    """Builds the prompts of an experiment and reads their states."""

    def __init__(self, study: Study, plan: Plan) -> None:
        self.study, self.plan = study, plan
        self.classes: np.ndarray = read(study.store.split, study.identity)["labels"]
        scores = study.scores(plan.layer, plan.axis)[study.axis_rows]
        one = self.classes[study.axis_rows] == 1
        self.class_1_high = bool(scores[one].mean() >= scores[~one].mean())

    def identity(self, exp: int) -> dict[str, Any]:
        """Return what the file of an experiment depends on."""
        from analysis.experiments.units import unit_identity

        key = UnitKey(CONTROL, self.plan.axis, self.plan.layer, exp)
        return unit_identity(self.study, key, ("max_new_tokens", "temperature"), **asdict(self.plan))

    def path(self, exp: int) -> Path:
        """Return the file of an experiment."""
        return self.study.store.study(f"evasion_exp{exp}", self.plan.axis, self.plan.layer)

    def rows(self, exp: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples (n_examples,) and the test sentences (2, P), class 0 then class 1.

        Raises:
            UserError: the trial half has too few sentences.
        """
        from analysis.experiments.trials import draw_order

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
        from analysis.engine.replies import Sampling
        from analysis.engine.request import Request
        from analysis.experiments.score_text import before_score
        from analysis.experiments.trials import ControlTrial, control_turns

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
        written = np.stack([one.reply_pooled for one in replies])
        shown, tests = self.rows(exp)
        return {
            "pooled": pooled.reshape(2, 2, 2, -1, *pooled.shape[2:]),
            "written": written.reshape(2, 2, -1, *written.shape[1:]),
            "texts": [one.reply.sentence for one in replies],
            "shown": shown,
            "tests": tests,
            "class_1_high": self.class_1_high,
        }


def run_trials(trials: Trials, exps: Sequence[int], options: dict[str, Any]) -> None:
    """Run the experiments that are not on disk yet; the model is loaded only if there are any."""
    from analysis.engine.prefix_tree import PrefixTree
    from analysis.experiments.units import read_counted
    from analysis.process_prompts import Prompter
    from utils import load_model

    overwrite, budget = options.pop("overwrite"), options.pop("token_budget")
    todo = [e for e in exps if not finished(trials.path(e), trials.identity(e), overwrite)]
    if todo:
        store = trials.study.store
        lm = load_model(store.model, **options)
        trials.study.check_model(lm)
        tree, prompter = PrefixTree(lm.model, lm.tokenizer, budget), Prompter(lm.tokenizer, lm.name)
        about = {
            "settings": dict(as_plain(trials.study.settings)), **lm.about, "dataset_key": store.dataset
        }  # fmt: skip
        for exp in todo:
            with claim(trials.path(exp), wait=True):
                if finished(trials.path(exp), trials.identity(exp), overwrite):
                    continue  # another process did it meanwhile
                readings, tokens = read_counted(tree, trials.requests(prompter, exp), trials.plan.layers)
                record = {**trials.record(readings, exp), "tokens": tokens}
                write(trials.path(exp), record, trials.identity(exp), **about)
            log.info("experiment %d: %d prompt and %d reply tokens", exp, tokens["prompt"], tokens["reply"])
    log.info("%d new, %d kept", len(todo), len(exps) - len(todo))


def judge(trials: Trials, exps: Sequence[int]) -> dict[tuple[str, str], Judged]:
    """Fit the probes and return what each says, by (probe, scope)."""
    from analysis.base.progress import bar
    from analysis.studies.evasion.probes import Judged, fit_probes, probe_scores

    study, plan = trials.study, trials.plan
    hidden, probes = {}, {}
    for layer in bar(plan.layers, desc="fitting probes", unit="layer"):
        hidden[layer] = states = read(study.store.hidden(layer), study.identity)["hidden"]
        fitting = states[study.axis_rows], trials.classes[study.axis_rows]
        probes[layer] = fit_probes(*fitting, study.axes(layer), study.settings.seed)
    whole = probe_scores(probes, hidden, plan.layer)
    parts, tests = {"pooled": [], "written": []}, []
    for exp in exps:
        record = read(trials.path(exp), trials.identity(exp))
        tests.append(record["tests"])
        for name, found in parts.items():
            by_layer = {layer: record[name][..., i, :] for i, layer in enumerate(plan.layers)}
            found.append(probe_scores(probes, by_layer, plan.layer))
    rows = study.trial_rows
    return {
        key: Judged(
            scores[rows], trials.classes[rows], scores[np.array(tests)],
            *(np.stack([found[key] for found in parts[name]]) for name in parts),
        )
        for key, scores in whole.items()
    }  # fmt: skip


def plan_of(args: argparse.Namespace, store: Store, n_layers: int) -> Plan:
    """Return what the flags ask for; more than one ``--layer`` is an error."""
    chosen = choose_layers(args.layer, store.model, n_layers)
    if len(chosen) > 1:
        raise UserError(f"--layer {args.layer}: give one layer of feedback, such as middle or {chosen[0]}")
    layers = sorted({*choose_layers(args.layers, store.model, n_layers), *chosen})
    return Plan(args.axis, chosen[0], layers, args.n_examples, args.n_test, args.n_written)


def dry_run(trials: Trials, exps: Sequence[int], args: argparse.Namespace) -> str:
    """Return the work that is left, as lines for the terminal."""
    from analysis.experiments.workload import Stage, Work, describe, work_of
    from analysis.models.shape import load_shape, load_tokenizer, run_device, run_sizes
    from analysis.process_prompts import Prompter

    todo = [exp for exp in exps if args.overwrite or not trials.path(exp).exists()]
    dtype, tokens = run_sizes(args.device, args.dtype, args.token_budget)
    model, work = trials.study.store.model, Work()
    if todo:
        prompter = Prompter(load_tokenizer(model), model_name(model))
        work = work_of(trials.requests(prompter, todo[0]), len(trials.plan.layers), tokens)
    stage = Stage("evasion", work, len(todo), len(exps) - len(todo))
    return describe(model, load_shape(model), [stage], dtype, tokens, run_device(args.device) == "cpu")


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiments, judge them, print tables and draw; see the module's docstring."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    settings, store = settings_from(args, args.model), store_from(args, args.model)

    from analysis.experiments.study import open_study

    study = open_study(store, settings)
    trials = Trials(study, plan_of(args, store, len(study.layers)))
    exps = range(args.n_experiments)
    if args.dry_run:
        print(dry_run(trials, exps, args))
        return 0
    for exp in exps:
        trials.rows(exp)  # too few sentences are an error before any work
    run_trials(trials, exps, run_options(args))

    from analysis.studies.evasion.figures import evasion_tables, write_evasion
    from analysis.studies.evasion.probes import evasion_rows

    judged = judge(trials, exps)
    rows = evasion_rows(judged, settings.seed)
    folder = store.figures / f"evasion_{args.axis}_layer{trials.plan.layer}"
    about = {"model": store.model, "dataset": store.dataset, "axis": args.axis, "layer": trials.plan.layer}
    written = write_evasion(judged, rows, folder, {**about, "n_examples": args.n_examples})
    print(evasion_tables(rows))
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
