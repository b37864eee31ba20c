"""Flags of the plot scripts, and which layers they mean."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from analysis.results.commands import no_axes
from analysis.results.store import Store
from configs.layers import choose_layers
from configs.settings import FORMATS

log = logging.getLogger(__name__)


def add_plot_flags(parser: argparse.ArgumentParser, kinds: Mapping[str, str], main: Collection[str]) -> None:
    """Add the flags of both plot scripts.

    Args:
        parser: of the script.
        kinds: kind of figure -> what it shows.
        main: the kinds drawn by default.
    """
    parser.add_argument(
        "--figure", nargs="+", choices=tuple(kinds), metavar="KIND",
        help=f"which figures, see below (default: {', '.join(main)})",
    )  # fmt: skip
    lines = [f"  {name:13s} {what}" for name, what in kinds.items()]
    parser.epilog = "\n".join(["kinds of figures:", *lines])
    parser.add_argument("--all", action="store_true", help="every figure that the results on disk allow")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME",
        help="other models for the figures over models (default: all with runs on this dataset)",
    )  # fmt: skip
    parser.add_argument(
        "--layer", default="all",
        help="layers that were targeted: all (with runs), middle, selected, or such as 7,15 (default: all)",
    )  # fmt: skip
    parser.add_argument("--axes", nargs="+", metavar="NAME", help="such as lr pc1 (default: all with runs)")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=["png"],
        help="file formats, several allowed (default: png)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: results/<model>/<dataset>/figures"
    )


def chosen_kinds(args: argparse.Namespace, kinds: Collection[str], main: Collection[str]) -> set[str]:
    """Return the kinds of figures that ``--figure`` and ``--all`` ask for; ``--models`` implies its kind."""
    chosen = set(kinds if args.all else args.figure or main)
    return chosen if args.models is None else {*chosen, "models"}


def resolve_layers(store: Store, spec: str, kind: str) -> list[int] | None:
    """Return the layers that ``--layer`` means, from the layers that have axes; None is all with runs.

    Selected layers without runs are named in the log and left out.

    Raises:
        UserError: not a layer of this model, with the choices.
    """
    if spec == "all":
        return None
    have = {unit.layer for unit in store.units(kind)}
    known = store.layers() or sorted(have)
    if not known:
        raise no_axes(store)
    chosen = choose_layers(spec, store.model, known[-1] + 1)
    if spec != "selected":
        return list(chosen)
    lacking = [layer for layer in chosen if layer not in have]
    if lacking:
        log.warning("selected layers without runs are left out: %s", ", ".join(map(str, lacking)))
    return [layer for layer in chosen if layer in have] or list(chosen)
