"""Overviews of many figures: one stitched figure of a layer, and index.html next to the files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from utils import UserError, save_bytes

TEMPLATE = Path(__file__).with_name("gallery.html.j2")
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
        about: provenance such as ``analysis.store.provenance()``; nested mappings are joined.

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
