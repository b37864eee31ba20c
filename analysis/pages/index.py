"""The page that lists the figures of a folder: ``index.html``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from analysis.base.files import save_bytes
from analysis.pages.html import render
from analysis.pages.overview import BROKEN_IMAGE, unreadable_image

NAME = "index.html"
_SHOWN = ("png", "svg")  # formats that a page can show, best first


@dataclass(frozen=True)
class Entry:
    """One figure of the index."""

    name: str
    """File name without its ending."""
    caption: str
    """What it shows, in a sentence or two."""
    group: str
    """Such as ``layer 15``; groups stand in the order in which they first come."""
    files: Mapping[str, Path]
    """Format (png, pdf, svg) -> file; files that do not exist are left out."""


def write_index(folder: Path, entries: Sequence[Entry], title: str, about: Mapping[str, Any]) -> Path:
    """Write ``folder/index.html``, which lists every figure by group, and return its path.

    The page links to files and holds none of them; CSV files of the folder and ``../report.html`` are
    linked where they exist.

    Args:
        folder: where the figures are; links are relative to it.
        about: provenance such as ``analysis.results.store.provenance()``; nested mappings are joined.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, entry in enumerate(entries, 1):
        groups.setdefault(entry.group, []).append({"id": f"figure-{number}", **_figure(entry, folder)})
    report = folder.parent / "report.html"
    html = render(
        "index.html.j2",
        title=title,
        groups=groups,
        tables=[{"name": path.name, "link": _link(path, folder)} for path in sorted(folder.glob("*.csv"))],
        report=_link(report, folder) if report.is_file() else "",
        about=about,
    )
    path = folder / NAME
    save_bytes(html, path)
    return path


def _figure(entry: Entry, folder: Path) -> dict[str, Any]:
    files = {form: path for form, path in entry.files.items() if path.is_file()}
    form = next((form for form in _SHOWN if form in files), "")
    return {
        "name": entry.name,
        "caption": entry.caption,
        "image": _link(files[form], folder) if form else "",
        "size": _pixels(files[form]) if form == "png" else (),
        "links": {form: _link(path, folder) for form, path in files.items()},
    }


def _pixels(path: Path) -> tuple[int, int]:
    """Return width and height, so that the page does not jump while images load."""
    try:
        with Image.open(path) as image:
            return image.size
    except BROKEN_IMAGE as error:
        raise unreadable_image(path, error) from None


def _link(path: Path, folder: Path) -> str:
    """Return the percent-encoded relative link; ./ keeps a name such as ``a:b`` from being a scheme."""
    relative = Path(os.path.relpath(path, folder)).as_posix()
    return quote(relative if relative.startswith("../") else f"./{relative}")
