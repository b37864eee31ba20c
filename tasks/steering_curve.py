"""Validation curve: does a push along an axis move the score, and the label that the model reports?

While a sentence is read, alpha training deviations of the axis are added to its tokens at one layer.
Measured are its score at that layer, which must move by alpha, and at later layers; and the label reported
for it after examples with their true labels, which are not pushed. The text is the same for every alpha.

Reads   results/<model>/<dataset>/axes_layer<l>.pkl   (from main_prep.py)
Writes  results/<model>/<dataset>/study_steering_<axis>_layer<l>.pkl, after every experiment, so a killed run
        is resumed by the same command; figures/steering_<axis>_layer<l>.png and .csv
Try     python -m tasks.steering_curve --model smollm2 --axis lr --layer middle --n_experiments 12
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.cli.flags import base_parser, natural
from analysis.cli.script import script
from analysis.studies.causal.flags import add_study_flags, run_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.experiments.study import Study
    from analysis.statistics.resampling import MeanCI
    from analysis.studies.causal.experiment import CurveSizes
    from analysis.studies.causal.flags import Load

Row = dict[str, Any]
ALPHA = 0.05
"""A p below this counts as an effect."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_study_flags(parser)
    parser.add_argument(
        "--n_examples", type=natural, default=32, help="examples with true labels (default: %(default)s)"
    )
    parser.add_argument(
        "--alphas", type=float, nargs="+", default=[-4, -3, -2, -1, 0, 1, 2, 3, 4],
        help="pushes in training deviations, rising, with 0 (default: %(default)s)",
    )  # fmt: skip
    return parser.parse_args(argv)


def curve_table(found: Mapping[str, np.ndarray], alphas: Sequence[float], layers: Sequence[int]) -> list[Row]:
    """Return one row per plotted number.

    Args:
        found: see SteeringCurve.unit, with the experiments as first axis.
        alphas: Q strengths.
        layers: R layers read.

    Returns:
        Rows of ``what`` (``score``; ``score in report``; ``P(upper)``), ``layer_read``, ``alpha``, ``value``
        with its 95 % bootstrap interval over experiments, and ``experiments``.
    """
    from scipy.special import expit

    from analysis.stats_fn import mean_ci
    from analysis.studies.causal.figures import DASHES

    def rows(what: str, layer: int | str, ci: MeanCI) -> Iterator[Row]:
        for q, alpha in enumerate(alphas):
            value, low, high, n = (part[q].item() for part in ci)
            place = {"what": what, "layer_read": layer, "alpha": alpha}
            yield {**place, "value": value, "low": low, "high": high, "experiments": n}

    scores = {"score": found["measured"].mean(1), "score in report": found["in_report"].mean((1, 2))}
    upper = expit(found["lean"].astype(np.float64)).mean(axis=2)  # (E, 2 flips, Q)
    table = []
    for what, values in scores.items():
        ci = mean_ci(values)
        for r, layer in enumerate(layers):
            table += rows(what, layer, type(ci)(*(part[:, r] for part in ci)))
    table += rows("P(upper)", "", mean_ci(upper.mean(axis=1)))
    for f, name in enumerate(DASHES):
        table += rows(f"P(upper), {name}", "", mean_ci(upper[:, f]))
    return table


def slope(lean: np.ndarray, alphas: Sequence[float]) -> Row:
    """Return how much the logit of the upper label rises per training deviation of the push.

    Args:
        lean: (E, 2 flips, J, Q).
        alphas: Q strengths.

    Returns:
        ``slope``, the mean over experiments of least-squares slopes, its interval, sign-flip ``p``, and
        ``experiments``.
    """
    from analysis.stats_fn import mean_ci, sign_flip_p

    slopes = np.polyfit(alphas, lean.mean(axis=(1, 2)).T.astype(np.float64), 1)[0]
    ci = mean_ci(slopes)
    ends = {"slope_low": float(ci.low), "slope_high": float(ci.high)}
    return {"slope": float(ci.mean), **ends, "p": sign_flip_p(slopes), "experiments": len(slopes)}


def verdict(fit: Row) -> str:
    """Return one line on the reported label; a null is reported as such."""
    from analysis.tables.text import interval, show_p

    found = f"{interval(fit, 'slope', 4)} logits per std, p {show_p(fit['p'])}"
    null = "" if fit["p"] < ALPHA else "no detectable effect: "
    return f"reported label: {null}slope {found}, {fit['experiments']} experiments"


def summary(rows: Sequence[Row], fit: Row) -> str:
    """Return a table over alpha and the verdict as text."""
    from analysis.tables.text import interval, text_table

    told = [row for row in rows if row["what"] in ("score", "P(upper)")]
    lines: dict[float, list[str]] = {row["alpha"]: [f"{row['alpha']:g}"] for row in told}
    for row in told:
        lines[row["alpha"]].append(
            interval({**row, "value_low": row["low"], "value_high": row["high"]}, "value")
        )
    header = dict.fromkeys(f"{row['what']} {row['layer_read']}".strip() for row in told)
    return f"{text_table(['alpha', *header], list(lines.values()))}\n{verdict(fit)}"


def draw(rows: Sequence[Row], fit: Row, where: str, layer: int, sizes: CurveSizes) -> Figure:
    """Return the figure."""
    from analysis.figures.style import count
    from analysis.pages.drawn import curve
    from analysis.studies.causal.figures import DASHES, plot_steering

    def pick(what: str, read: int | str = "") -> list[Row]:
        return [row for row in rows if (row["what"], row["layer_read"]) == (what, read)]

    layers = dict.fromkeys(row["layer_read"] for row in rows if row["what"] == "score")
    measured = {read: curve(pick("score", read), "alpha") for read in layers}
    by_flip = {name: curve(pick(f"P(upper), {name}"), "alpha").y for name in DASHES}
    tests = count([sizes.n_test], "test sentence").removeprefix("n = ")
    note = (
        f"{count([fit['experiments']], 'experiment')}, {tests} in each. Bands: 95 % bootstrap interval over "
        "experiments. Left: the sentence alone, in the measuring conversation. Right: after "
        f"{count([sizes.n_examples], 'example').removeprefix('n = ')} with true labels; only the test "
        f"sentence is pushed, its text stays the same. {verdict(fit).capitalize()}."
    )
    title = f"A push, its score and the reported label: {where}"
    return plot_steering(measured, layer, curve(pick("P(upper)"), "alpha"), by_flip, title, note)


def run_layer(args: argparse.Namespace, study: Study, layer: int, load: Load) -> None:
    """Run what is missing at one layer; write and print the results."""
    from analysis.figures.style import write_figure
    from analysis.studies.causal import experiment as causal
    from analysis.tables.text import write_csv

    sizes = causal.CurveSizes(args.n_examples, args.n_test, tuple(args.alphas))
    store, stem = study.store, f"steering_{args.axis}_layer{layer}"

    def start() -> tuple[Callable[[int], dict[str, np.ndarray]], dict[str, Any]]:
        lm, tree = load()
        return causal.SteeringCurve(lm, study, tree, args.axis, layer, sizes).unit, lm.about

    identity = causal.study_identity(study, args.axis, layer, sizes)
    path = store.study("steering", args.axis, layer)
    found = causal.run_experiments(path, identity, args.n_experiments, start, args.overwrite)
    rows = curve_table(found, sizes.alphas, causal.later_layers(layer, len(study.layers)))
    fit = slope(found["lean"], sizes.alphas)
    table = write_csv([*rows, {"what": "slope of the logit", **_as_row(fit)}], store.figures / f"{stem}.csv")
    where = f"{store.model}, {store.dataset}, {args.axis}, layer {layer}"
    paths = write_figure(draw(rows, fit, where, layer, sizes), store.figures, stem, ["png"])
    print(f"{where}\n{summary(rows, fit)}", table, *paths, sep="\n")


def _as_row(fit: Row) -> Row:
    ends = {"value": fit["slope"], "low": fit["slope_low"], "high": fit["slope_high"]}
    return {**ends, "experiments": fit["experiments"]}


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the validation curve; see the module's docstring."""
    return run_layers(parse_args(argv), run_layer)


if __name__ == "__main__":
    raise SystemExit(main())
