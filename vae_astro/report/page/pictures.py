"""Figures as pictures inside a page, each with words for who cannot see it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["Picture", "drawing", "encoded", "photograph", "stored"]

DPI = 120
READABLE = 0.5
"""Share of its own width below which the text of a picture is too small to be read: 10 point at
`DPI` are 8 CSS pixels there. On a narrower screen the picture is pushed from side to side."""
QUALITY = 88
"""Of WebP: stamps are noise, which a lossless format keeps at five times the size."""
WIDEST = 1500
"""Pixels of a picture that comes from a file."""


@dataclass(frozen=True)
class Picture:
    """A picture that travels in the page.

    Attributes
    ----------
    uri : str
        ``data:`` address.
    width, height : int
        In CSS pixels: a page that knows them does not jump while it loads.
    alt : str
        What is to be seen on it.
    caption : str
        How it is to be read.
    """

    uri: str
    width: int
    height: int
    alt: str
    caption: str = ""

    @property
    def least_width(self) -> int:
        """In CSS pixels, at which what is written on it can still be read."""
        return round(READABLE * self.width)


def photograph(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A figure of stamps, as pixels."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return encoded(np.asarray(canvas.buffer_rgba())[:, :, :3].copy(), alt, caption)


def drawing(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A figure of lines and bars, as SVG: sharp at every size and on paper."""
    canvas = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "vae_astro"}):
        figure.savefig(canvas, format="svg", metadata={"Date": None})
    width, height = (round(DPI * inches) for inches in figure.get_size_inches())
    return Picture(_uri("svg+xml", canvas.getvalue()), width, height, alt, caption)


def stored(path: Path, alt: str, caption: str = "") -> Picture | None:
    """A picture file of a run folder; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.thumbnail((WIDEST, image.height))
            return encoded(image, alt, caption)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def encoded(image: Image.Image | np.ndarray, alt: str, caption: str = "") -> Picture:
    """Pixels (H, W, 3) as WebP."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.convert("RGB").save(file, format="WEBP", quality=QUALITY, method=2)
    return Picture(_uri("webp", file.getvalue()), image.width, image.height, alt, caption)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
