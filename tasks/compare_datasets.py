"""How well do a model's hidden states separate the classes? Shipped and published datasets side by side.

Reads   data/, also data/published/ where it was downloaded (python -m data.download all)
Writes  results/<model>/<dataset>/ (the preparation of each), results/<model>/datasets.csv and datasets.png
Try     python -m tasks.compare_datasets --model smollm2
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.base.errors import UserError
from analysis.base.files import save_bytes
from analysis.cli.flags import add_run_flags, base_parser, loading_options, positive, settings_from
from analysis.cli.script import script, setup_logging
from analysis.results.store import Store, read
from data.load import SHIPPED, read_dataset
from data.sources import SOURCES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("compare_datasets")

PUBLISHED = tuple(f"published/{name}" for name in SOURCES)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = base_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument(
        "--keys",
        nargs="+",
        help="datasets (default: the shipped ones, and the published ones that are there)",
    )
    for name, text in (("n_axis", "sentences to fit on"), ("n_trial", "held-out sentences")):
        parser.add_argument(f"--{name}", type=positive, default=300, help=f"{text} (default: %(default)s)")
    return parser.parse_args(argv)


def present(keys: Sequence[str]) -> list[str]:
    """Return the keys that can be read; what is missing is said in the log."""
    found = []
    for key in keys:
        try:
            read_dataset(key)
        except UserError as error:
            log.warning("left out: %s", error)
            continue
        found.append(key)
    return found


def accuracies(store: Store) -> np.ndarray:
    """Return (L,) held-out accuracy of the logistic regression at every layer."""
    return np.array([read(store.axes(layer))["accuracy"]["lr"][1] for layer in store.layers()])


def draw(by_key: Mapping[str, np.ndarray], model: str, n_axis: int, n_trial: int) -> Figure:
    """Return the figure: one line per dataset over layers, shipped solid, published dashed."""
    from matplotlib.figure import Figure

    from analysis.figures.style import OKABE_ITO

    figure = Figure(figsize=(7.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(key.removeprefix("published/").removesuffix("_test") for key in by_key))
    for key, values in by_key.items():
        name = key.removeprefix("published/").removesuffix("_test")
        style = "--" if key.startswith("published/") else "-"
        color = OKABE_ITO[names.index(name) % len(OKABE_ITO)]
        axes.plot(range(len(values)), values, style, color=color, label=key, marker="o", markersize=2.5)
    axes.axhline(0.5, color="0.5", linewidth=0.8)
    axes.set(xlabel="layer", ylabel="held-out accuracy", ylim=(0.4, 1.02))
    axes.set_title(
        f"Logistic regression on sentence means, {model}\n{n_axis} sentences to fit, {n_trial} held out"
    )
    figure.legend(loc="outside right center", frameon=False)
    return figure


def table(by_key: Mapping[str, np.ndarray]) -> str:
    """Return the accuracies as CSV text, one row per layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", *by_key])
    for layer, row in enumerate(zip(*by_key.values(), strict=True)):
        writer.writerow([layer, *(f"{value:.4f}" for value in row)])
    return text.getvalue()


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Prepare every dataset and compare; see the module's docstring."""
    args = parse_args(argv)
    setup_logging(args.log_level)
    settings = settings_from(args, args.model)
    keys = args.keys or present((*SHIPPED, *PUBLISHED))

    from analysis.experiments.preparation import prepare
    from utils import load_model

    lm = load_model(args.model, **loading_options(args))
    stores = {key: Store(args.results / "compare", args.model, key) for key in keys}
    for key, store in stores.items():
        prepare(lm, key, settings, store, token_budget=args.token_budget, overwrite=args.overwrite)
    by_key = {key: accuracies(store) for key, store in stores.items()}
    folder = next(iter(stores.values())).folder.parent
    save_bytes(table(by_key).encode(), folder / "datasets.csv")
    image = io.BytesIO()
    draw(by_key, args.model, args.n_axis, args.n_trial).savefig(image, format="png", dpi=150)
    save_bytes(image.getvalue(), folder / "datasets.png")
    print(f"{'dataset':26s} best layer  accuracy  middle layer  last layer")
    for key, values in by_key.items():
        best, middle = int(values.argmax()), values[len(values) // 2]
        print(f"{key:26s} {best:10d}  {values[best]:8.3f}  {middle:12.3f}  {values[-1]:10.3f}")
    print(f"{folder / 'datasets.csv'}\n{folder / 'datasets.png'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
