"""Contact sheets: labelled pictures in a grid."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LABEL_FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
LABEL_LENGTH = 28
GAP, LABEL_HEIGHT = 12, 30


def to_image(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in [-1, 1] as an image."""
    return Image.fromarray(((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def save_sheet(pictures: Sequence[Tensor], labels: Sequence[str], columns: int, path: Path, size: int) -> None:
    """Write pictures, each scaled to `size` pixels with its label below."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (size + GAP) + GAP, rows * (size + LABEL_HEIGHT) + 8), (240, 240, 240))
    draw, font = ImageDraw.Draw(sheet), _label_font()
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = GAP + place % columns * (size + GAP)
        top = 8 + place // columns * (size + LABEL_HEIGHT)
        sheet.paste(to_image(picture).resize((size, size), Image.Resampling.LANCZOS), (left, top))
        draw.text((left + 2, top + size + 3), label[:LABEL_LENGTH], fill=(20, 20, 20), font=font)
    sheet.save(path)


def _label_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(str(LABEL_FONT), 11) if LABEL_FONT.exists() else ImageFont.load_default(11)
