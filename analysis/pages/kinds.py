"""Which kinds of figures there are: what ``--figure`` calls them, what they show, and who draws them.

To add a kind: an entry of KINDS, the function of analysis/pages/ that it names, which chooses the numbers and
writes the caption, and the function of analysis/figures/ that draws them. Flags, ``--help``, the index and
summary.csv follow. Nothing heavy is imported before the first figure is drawn: ``--help`` is instant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from analysis.results import schema
from analysis.results.schema import UNIT_KINDS

if TYPE_CHECKING:
    from analysis.pages.drawn import Drawn

REPORT, CONTROL = (UNIT_KINDS[prefix].name for prefix in (schema.REPORT, schema.CONTROL))
"""Stages, each with a script of its own: plot_pred.py and plot_imit.py."""


@dataclass(frozen=True)
class Kind:
    """One kind of figure."""

    name: str
    """What ``--figure`` calls it."""
    stage: str
    draw: str
    """Module of analysis/pages and its function that yields the figures from the view of the stage."""
    what: str
    """What is seen, in a few words, for ``--help``."""
    main: bool = False
    """Drawn without ``--figure`` and ``--all``."""

    @property
    def function(self) -> Callable[[Any], Iterator[Drawn]]:
        """Return the function that ``draw`` names."""
        module, name = self.draw.split(".")
        return getattr(import_module(f"analysis.pages.{module}"), name)


KINDS = (
    Kind("report", REPORT, "report.by_examples", "accuracy and cross-entropy against examples shown", True),
    Kind("layers", REPORT, "report.by_layer", "the same at every layer, in one figure", True),
    Kind("observers", REPORT, "report.observers", "the model beside observers of the same examples", True),
    Kind("levels", REPORT, "report.exact_levels", "more than two levels: exact hits, rank correlation", True),
    Kind("mean", REPORT, "report.mean_over_layers", "report, the mean over layers"),
    Kind("confusion", REPORT, "report.confusion", "more than two levels: digits by true level"),
    Kind("level_scores", REPORT, "report.level_scores", "more than two levels: how scores become levels"),
    Kind("models", REPORT, "models.report_models", "report and observers of several models"),
    Kind("effect", CONTROL, "control.effect", "effect against examples shown", True),
    Kind("readout", CONTROL, "control.readout", "effect at every layer, on its axis of the same name", True),
    Kind("heatmap", CONTROL, "control.heatmap", "effect on the targeted and on other axes", True),
    Kind("scores", CONTROL, "control.scores", "histograms of scores, high and low wanted", True),
    Kind("density", CONTROL, "control.density", "original and reached scores as densities"),
    Kind("accumulation", CONTROL, "control.accumulation", "the target layer's axis read at every layer"),
    Kind("precision", CONTROL, "control.precision", "target against other axes, as a ratio"),
    Kind("cosine", CONTROL, "control.cosine", "does the hidden state move along the axis?"),
    Kind("layers", CONTROL, "control.across_layers", "effect against the layer that is targeted", True),
    Kind("axes", CONTROL, "axes.axes_figures", "the axes: accuracy, variance, cosines", True),
    Kind("models", CONTROL, "models.control_models", "effect of several models against depth and size"),
)
"""In the order of the index page."""


def of_stage(stage: str) -> dict[str, Kind]:
    """Return the kinds of one stage by name."""
    return {kind.name: kind for kind in KINDS if kind.stage == stage}


def main_of(stage: str) -> tuple[str, ...]:
    """Return the names of the kinds that are drawn if nothing else is asked for."""
    return tuple(name for name, kind in of_stage(stage).items() if kind.main)


def rank(stage: str, name: str) -> int:
    """Return the place of a kind on the index page; those of studies, which are not named here, come last."""
    return next((i for i, kind in enumerate(KINDS) if (kind.stage, kind.name) == (stage, name)), len(KINDS))


def draw(stage: str, chosen: Collection[str], view: Any) -> Iterator[Drawn]:
    """Yield the figures of the ``chosen`` kinds that the results allow, one at a time.

    Args:
        view: of the stage: ``control.ControlView`` or ``report.ReportView`` of analysis/pages.
    """
    for name, kind in of_stage(stage).items():
        if name in chosen:
            yield from (replace(one, kind=name) for one in kind.function(view))
