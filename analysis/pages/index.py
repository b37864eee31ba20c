"""A figures folder as a whole: what is in it, one overview per layer, and the index page.

``figures.json`` remembers the caption and heading of every figure, so that the control and the report script
can each rewrite their own part of the page.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from analysis.base.errors import UserError
from analysis.base.files import save_bytes
from analysis.figures.style import FORMATS, write_figure
from analysis.pages.drawn import Written

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


TEMPLATE = Path(__file__).with_name("templates") / "gallery.html.j2"
STITCHED_WIDTH = 14.0
"""Inches: two figures of 7 inches side by side, pixel for pixel."""
_TITLE_BAND, _GAP = 0.4, 0.12  # inches above the images and below every row
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises
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


def stitch(paths: Sequence[Path], title: str) -> Figure:
    """Return one figure that holds existing PNG figures in two columns, each at its own aspect ratio.

    A row is as high as its higher image. Saved at 200 dots per inch, figures 7 inches wide keep every
    pixel.

    Args:
        paths: PNG files, in reading order.

    Raises:
        UserError: no files, or one that is not there.
    """
    lacking = [str(path) for path in paths if not path.is_file()]
    if lacking or not paths:
        what = f"no such figure: {', '.join(lacking)}" if lacking else "no figures to put together"
        raise UserError(f"{what}. Give PNG files; plot_imit.py and plot_pred.py write them")
    images = [_image(path) for path in paths]
    width = STITCHED_WIDTH / 2
    heights = [width * image.shape[0] / image.shape[1] for image in images]
    tops = np.cumsum([_TITLE_BAND, *(max(heights[i : i + 2]) + _GAP for i in range(0, len(heights), 2))])
    total = float(tops[-1])
    fig = Figure(figsize=(STITCHED_WIDTH, total))
    fig.text(0.005, 1 - 0.1 / total, title, va="top", fontsize=13, fontweight="bold")
    for i, (image, height) in enumerate(zip(images, heights, strict=True)):
        bottom = 1 - (tops[i // 2] + height) / total
        ax = fig.add_axes((0.5 * (i % 2), bottom, 0.5, height / total))
        ax.imshow(image, aspect="auto")  # the frame has the image's own aspect
        ax.set_axis_off()
    return fig


def write_index(folder: Path, entries: Sequence[Entry], title: str, about: Mapping[str, Any]) -> Path:
    """Write ``folder/index.html``, which lists every figure by group, and return its path.

    The page links to files and holds none of them; CSV files of the folder and ``../report.html`` are
    linked where they exist.

    Args:
        folder: where the figures are; links are relative to it.
        about: provenance such as ``analysis.results.store.provenance()``; nested mappings are joined.

    Raises:
        UserError: there are no entries.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not entries:
        raise UserError(f"no figures for {folder / 'index.html'}: run plot_imit.py or plot_pred.py first")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, entry in enumerate(entries, 1):
        groups.setdefault(entry.group, []).append({"id": f"figure-{number}", **_figure(entry, folder)})
    report = folder.parent / "report.html"
    html = environment.get_template(TEMPLATE.name).render(
        title=title,
        groups=groups,
        tables=[{"name": path.name, "link": _link(path, folder)} for path in sorted(folder.glob("*.csv"))],
        report=_link(report, folder) if report.is_file() else "",
        about=about,
    )
    path = folder / "index.html"
    save_bytes(html.encode(), path)
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
    except _BROKEN as error:
        raise _unreadable(path, error) from None


def _image(path: Path) -> np.ndarray:
    try:
        return imread(path)
    except _BROKEN as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is no readable PNG file ({type(error).__name__}): remove it and draw it again")


def _link(path: Path, folder: Path) -> str:
    """Return the percent-encoded relative link; ./ keeps a name such as ``a:b`` from being a scheme."""
    relative = Path(os.path.relpath(path, folder)).as_posix()
    return quote(relative if relative.startswith("../") else f"./{relative}")
