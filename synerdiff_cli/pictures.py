"""Picture files: their default names, and a small view of one on a terminal."""

import re
import unicodedata
from pathlib import Path

from PIL import Image
from rich.color import Color
from rich.segment import Segment, Segments
from rich.style import Style

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_SLUG_LENGTH = 48


def slug(prompt: str) -> str:
    """`prompt` as a file name: lower-case letters, digits and dashes, never empty."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_LENGTH].strip("-")
    return words or "picture"


def default_path(prompt: str, seed: int, suffix: str, folder: Path) -> Path:
    """A new file in `folder` named after prompt and seed; a number is added rather than a file overwritten."""
    stem = f"{slug(prompt)}-{seed}"
    path = folder / f"{stem}{suffix}"
    number = 2
    while path.exists():
        path = folder / f"{stem}-{number}{suffix}"
        number += 1
    return path


def numbered_path(path: Path, index: int) -> Path:
    """The file of picture `index` when `path` was asked for: that for the first, "name-INDEX.png" for the others."""
    return path if index == 0 else path.with_name(f"{path.stem}-{index}{path.suffix}")


def terminal_picture(picture: Image.Image, columns: int = 32) -> Segments:
    """`picture` in half-block characters: each stands for two pixels, one above the other."""
    rows = max(1, round(columns * picture.height / picture.width / 2))
    pixels = picture.convert("RGB").resize((columns, rows * 2), Image.Resampling.BOX)
    segments: list[Segment] = []
    for row in range(rows):
        for column in range(columns):
            upper, lower = (Color.from_rgb(*_rgb(pixels, column, 2 * row + half)) for half in (0, 1))
            segments.append(Segment("▀", Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    return Segments(segments)


def _rgb(picture: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    pixel = picture.getpixel((x, y))
    assert isinstance(pixel, tuple)
    red, green, blue = pixel[:3]
    return int(red), int(green), int(blue)
