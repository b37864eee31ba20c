"""Causal report: can the model tell how its activations were pushed, when the text says nothing about it?

Every example sentence is read with +v or -v added at one layer, and its label tells which; then a test
sentence is read with +v or -v and the model must report the label. The visible text is the same for both,
so accuracy above 0.5 cannot come from the text. What random directions show as well is not specific to the
axis. See analysis/studies/causal/experiment.py for the arms and the design.

Reads   results/<model>/<dataset>/axes_layer<l>.pkl, hidden_layer<l>.pkl   (from main_prep.py)
Writes  results/<model>/<dataset>/study_causal_<axis>_layer<l>.pkl, after every experiment, so a killed run is
        resumed by the same command; figures/causal_<axis>_layer<l>.png and .csv
Try     python -m tasks.causal_report --model smollm2 --axis lr --layer middle --n_experiments 12
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.cli.flags import base_parser, positive
from analysis.cli.script import script
from analysis.studies.causal.flags import add_study_flags, run_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.experiments.study import Study
    from analysis.studies.causal.experiment import CausalSizes
    from analysis.studies.causal.flags import Load

Row = dict[str, Any]
ALPHA = 0.05
"""A q below this counts as an effect."""
NULL = "no detectable effect"
RESULTS = {"accuracy": "accuracy", "pairs": "pairs right", "code": "code d_z", "pull": "pull d_z"}
SHARES = ("accuracy", "pairs")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_study_flags(parser)
    parser.add_argument(
        "--n_examples", type=positive, default=32, help="examples, an even number (default: %(default)s)"
    )
    parser.add_argument(
        "--alpha", type=float, default=4.0, help="push, in training deviations (default: %(default)s)"
    )
    parser.add_argument(
        "--repeat_sentence", action="store_true",
        help="one sentence is every example and the test sentence: the text differs in labels only",
    )  # fmt: skip
    return parser.parse_args(argv)


def causal_table(lean: np.ndarray) -> list[Row]:
    """Return one row per arm.

    Args:
        lean: (E, arms, 2 mappings, J, 2 signs) logit of digit 1 minus that of digit 0; E experiments, J test
            sentences.

    Returns:
        Four results, each with the ends of its interval, ``p`` (sign flips of whole experiments) and ``q``
        (Benjamini-Hochberg over the arms):

            accuracy  share of answers that are the right digit
            pairs     share of pairs (same text, +v and -v) whose logits move towards the right digit; unlike
                      accuracy it does not suffer if the model prefers one digit whatever is pushed
            code      d_z of that move; ``code_logits`` is its mean in logits
            pull      d_z of the move from -v to +v, whatever the signs stand for
    """
    from analysis.stats_fn import benjamini_hochberg, control_effect, mean_ci, sign_flip_p
    from analysis.studies.causal.experiment import ARMS, MAPPINGS, SIGNS

    mapping, signs = np.array(MAPPINGS)[:, None], np.array(SIGNS)
    rows: list[Row] = []
    for a, arm in enumerate(ARMS):
        one = lean[:, a].astype(np.float64)  # (E, 2 mappings, J, 2 signs)
        n, right = len(one), 0.5 + 0.5 * np.sign(one * mapping[..., None] * signs)  # a tie is 0.5
        minus, plus = one[..., 0], one[..., 1]
        high, low = np.where(mapping > 0, plus, minus), np.where(mapping > 0, minus, plus)
        row = {"arm": arm, "experiments": n, "trials": right.size}
        row |= {f"accuracy_mapping{m}": float(right[:, m].mean()) for m in range(len(MAPPINGS))}
        row["code_logits"] = float((high - low).mean())
        for name, share in zip(SHARES, (right, 0.5 + 0.5 * np.sign(high - low)), strict=True):
            share = share.reshape(n, -1).mean(axis=1)
            found = mean_ci(share)
            row |= {name: float(found.mean), f"{name}_p": sign_flip_p(share - 0.5)}
            row |= {f"{name}_low": float(found.low), f"{name}_high": float(found.high)}
        for name, sides in (("code", (high, low)), ("pull", (plus, minus))):
            effect = control_effect(*(side.reshape(n, -1) for side in sides))
            row |= {name: effect.dz, f"{name}_p": effect.p}
            row |= {f"{name}_low": effect.dz_low, f"{name}_high": effect.dz_high}
        rows.append(row)
    for name in RESULTS:
        adjusted = benjamini_hochberg(np.array([row[f"{name}_p"] for row in rows]))
        rows = [{**row, f"{name}_q": float(q)} for row, q in zip(rows, adjusted, strict=True)]
    return rows


def verdict(row: Row, name: str = "accuracy") -> str:
    """Return one line about an arm; a null is reported as such."""
    from analysis.tables.text import interval, show_p

    q = row[f"{name}_q"]
    size = f" (mean {row['code_logits']:.2g} logits)" if name == "code" else ""
    found = f"{RESULTS[name]} {interval(row, name)}{size}, {row['experiments']} experiments"
    if np.isnan(q):
        return f"{row['arm']}: not tested: {found}"
    return f"{row['arm']}: {found}, q {show_p(q)}" if q < ALPHA else f"{row['arm']}: {NULL}: {found}"


def summary(rows: Sequence[Row]) -> str:
    """Return the table and the verdicts as text."""
    from analysis.tables.text import interval, show_p, text_table

    header = ["arm"]
    for title in RESULTS.values():
        header += [f"{title} [95 % CI]", "p", "q"]
    cells = []
    for row in rows:
        line = [row["arm"]]
        for name in RESULTS:
            line += [interval(row, name), show_p(row[f"{name}_p"]), show_p(row[f"{name}_q"])]
        cells.append([*line, row["experiments"], row["trials"]])
    table = text_table([*header, "experiments", "trials"], cells)
    return "\n".join([table, *(verdict(rows[0], name) for name in ("accuracy", "pairs", "code"))])


def draw(rows: Sequence[Row], where: str, sizes: CausalSizes) -> Figure:
    """Return the figure of all arms."""
    from analysis.figures.style import count
    from analysis.studies.causal.figures import Points, plot_arms

    points = {
        name: Points(*(np.array([row[f"{name}{end}"] for row in rows]) for end in ("", "_low", "_high")))
        for name in RESULTS
    }
    tests = count([1 if sizes.repeat_sentence else sizes.n_test], "test sentence").removeprefix("n = ")
    note = (
        f"{count((row['experiments'] for row in rows), 'experiment')}; in each {sizes.n_examples} examples "
        f"and {tests}, read with both signs under both mappings; pushes of {sizes.alpha:g} std. Bars: 95 % "
        "bootstrap interval over experiments. Dashed: chance. clean and query_only are 0.5 by design. "
        "Random directions: a new one per experiment; random is pushed by as many of its own std as target, "
        "random_norm as far in activation space."
    )
    return plot_arms([row["arm"] for row in rows], points, f"Is a push reported? {where}", note)


def run_layer(args: argparse.Namespace, study: Study, layer: int, load: Load) -> None:
    """Run what is missing at one layer; write and print the results."""
    from analysis.figures.style import write_figure
    from analysis.studies.causal import experiment as causal
    from analysis.tables.text import write_csv

    sizes = causal.CausalSizes(args.n_examples, args.n_test, args.alpha, args.repeat_sentence)
    store, name = study.store, "causal_repeated" if args.repeat_sentence else "causal"

    def start() -> tuple[Callable[[int], dict[str, np.ndarray]], dict[str, Any]]:
        lm, tree = load()
        return causal.CausalReport(lm, study, tree, args.axis, layer, sizes).unit, lm.about

    identity = causal.study_identity(study, args.axis, layer, sizes)
    path = store.study(name, args.axis, layer)
    found = causal.run_experiments(path, identity, args.n_experiments, start, args.overwrite)
    rows, stem = causal_table(found["lean"]), f"{name}_{args.axis}_layer{layer}"
    table = write_csv(rows, store.figures / f"{stem}.csv")
    where = f"{store.model}, {store.dataset}, {args.axis}, layer {layer}"
    paths = write_figure(draw(rows, where, sizes), store.figures, stem, ["png"])
    print(f"{where}\n{summary(rows)}", table, *paths, sep="\n")


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the causal report; see the module's docstring."""
    return run_layers(parse_args(argv), run_layer)


if __name__ == "__main__":
    raise SystemExit(main())
