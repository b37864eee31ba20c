"""The flags of the comparison of datasets; nothing heavy is imported."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from analysis.base.errors import UserError
from analysis.cli.flags import add_run_flags, add_shard_flag, positive
from data.load import SHIPPED, read_dataset
from data.sources import SOURCES

log = logging.getLogger(__name__)

PUBLISHED = tuple(f"published/{name}" for name in SOURCES)


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the comparison, those of scripts that run a model included."""
    add_run_flags(parser)
    add_shard_flag(parser)
    parser.add_argument(
        "--keys",
        nargs="+",
        help="datasets (default: the shipped ones, and the published ones that are there)",
    )
    for name, text in (("n_axis", "sentences to fit on"), ("n_trial", "held-out sentences")):
        parser.add_argument(f"--{name}", type=positive, default=300, help=f"{text} (default: %(default)s)")


def chosen_keys(args: argparse.Namespace) -> list[str]:
    """Return the datasets that are compared; UserError if none is there."""
    found = args.keys or present((*SHIPPED, *PUBLISHED))
    if not found:
        raise UserError("no dataset can be read: name some with --keys, see data/README.md")
    return found


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
