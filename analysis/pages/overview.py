"""All figures of a layer in one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from analysis.base.errors import UserError

STITCHED_WIDTH = 14.0
"""Inches: two figures of 7 inches side by side, pixel for pixel."""
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What PIL raises."""
_TITLE_BAND, _GAP = 0.4, 0.12  # inches above the images and below every row


def stitch(paths: Sequence[Path], title: str) -> Figure:
    """Return one figure that holds existing PNG figures in two columns, each at its own aspect ratio.

    A row is as high as its higher image. Saved at 200 dots per inch, figures 7 inches wide keep every
    pixel.

    Args:
        paths: PNG files, in reading order.

    Raises:
        UserError: a file is no readable PNG file.
    """
    if not paths:
        raise ValueError("no figures to put together")
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


def _image(path: Path) -> np.ndarray:
    try:
        return imread(path)
    except BROKEN_IMAGE as error:
        raise unreadable_image(path, error) from None


def unreadable_image(path: Path, error: Exception) -> UserError:
    """Return the error for a damaged image of a figures folder."""
    return UserError(f"{path} is no readable PNG file ({type(error).__name__}): remove it and draw it again")
