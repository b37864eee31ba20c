"""Flags of the plot scripts, and which layers they mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.results.commands import no_axes
from analysis.results.store import Store
from analysis.tables.text import log
from configs.layers import choose_layers


def add_plot_flags(parser: argparse.ArgumentParser, kinds: Sequence[str], main: Sequence[str]) -> None:
    """Add the flags of both plot scripts; ``main`` are the kinds of figures drawn by default."""
    parser.add_argument(
        "--figure", nargs="+", choices=kinds, metavar="KIND",
        help=f"which figures: {', '.join(kinds)} (default: {', '.join(main)})",
    )  # fmt: skip
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
        "--format", nargs="+", choices=("png", "pdf", "svg"), default=["png"],
        help="file formats, several allowed (default: png)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: results/<model>/<dataset>/figures"
    )


def chosen_kinds(args: argparse.Namespace, kinds: Sequence[str], main: Sequence[str]) -> Sequence[str]:
    """Return the kinds of figures that ``--figure`` and ``--all`` ask for; ``--models`` implies its kind."""
    chosen = kinds if args.all else args.figure or main
    return chosen if args.models is None else list(dict.fromkeys([*chosen, "models"]))


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
