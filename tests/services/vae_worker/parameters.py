"""The generation parameters inside an image file, read back."""

import io
import json
from typing import Any

from PIL import Image

_JSON_KEY = "synerdiff"
_IMAGE_DESCRIPTION = 0x010E


def read_parameters(data: bytes) -> dict[str, Any] | None:
    """The generation parameters embedded in an image file, or None when it carries none."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            image.load()  # text chunks may follow the pixels
            text = image.info.get(_JSON_KEY)
        else:
            text = image.getexif().get(_IMAGE_DESCRIPTION)
            # EXIF knows only ASCII here, so Pillow reads the UTF-8 bytes as Latin-1.
            text = text.encode("latin-1").decode() if isinstance(text, str) else None
    try:
        parameters = json.loads(text) if text else None
    except ValueError:
        return None
    return parameters if isinstance(parameters, dict) else None
