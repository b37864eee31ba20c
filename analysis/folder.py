"""A figures folder as a whole: what is in it, one overview per layer, and the index page.

``figures.json`` remembers the caption and heading of every figure, so that the control and the report script
can each rewrite their own part of the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.drawing import Written
from analysis.figures import FORMATS, write_figure
from analysis.gallery import Entry, stitch, write_index
from utils import UserError, save_bytes

LISTED = "figures.json"
OVERVIEW = "overview"
_PLAIN = re.compile(r"[\w-][\w ,.-]*")
"""Names become file names: nothing in them may lead out of the folder."""


def finish_folder(
    folder: Path,
    stage: str,
    written: Sequence[Written],
    formats: Sequence[str],
    title: str,
    about: Mapping[str, Any],
) -> Path:
    """Update the list of figures, draw an overview of each layer's PNG files, write index.html.

    Args:
        folder: of the figures.
        stage: whose figures ``written`` replace on the list.
        written: figures that were just drawn.
        formats: of the overviews.
        title, about: of the page.

    Returns:
        The page's path.
    """
    known = [entry for entry in _read(folder / LISTED) if entry["stage"] not in (stage, OVERVIEW)]
    known += [{"stage": stage, "name": w.name, "group": w.group, "caption": w.caption} for w in written]
    known = [entry for entry in known if _files(folder, entry["name"])]
    known = [*_overviews(folder, known, formats, title), *known]
    save_bytes(json.dumps(known, indent=1).encode(), folder / LISTED)
    entries = [Entry(e["name"], e["caption"], e["group"], _files(folder, e["name"])) for e in known]
    return write_index(folder, entries, title, about)


def _overviews(
    folder: Path, known: Iterable[Mapping[str, str]], formats: Sequence[str], title: str
) -> list[dict[str, str]]:
    """Stitch the PNG files of every layer with two or more, and return the list's entries."""
    groups: dict[str, list[Path]] = {}
    for entry in known:
        path = folder / f"{entry['name']}.png"
        if entry["group"].startswith("layer") and path.is_file():
            groups.setdefault(entry["group"], []).append(path)
    found = []
    for group, paths in sorted(groups.items()):
        if len(paths) > 1:
            name = f"{OVERVIEW}_{group.replace(', ', '_').replace(' ', '')}"
            write_figure(stitch(paths, f"{title}: {group}"), folder, name, formats)
            about = {"caption": f"All figures of {group}.", "group": "overview"}
            found.append({"stage": OVERVIEW, "name": name, **about})
    return found


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        found = [{key: str(entry[key]) for key in ("stage", "name", "group", "caption")} for entry in listed]
        if not all(_PLAIN.fullmatch(entry[key]) for entry in found for key in ("name", "group")):
            raise ValueError("a name that is no plain file name")
        return found
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path} is not readable: remove it and draw the figures again") from None


def _files(folder: Path, name: str) -> dict[str, Path]:
    return {form: path for form in FORMATS if (path := folder / f"{name}.{form}").is_file()}
