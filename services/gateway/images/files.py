"""Image files that a gateway makes itself: at a compression asked for, and previews at the size of their picture."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from services.gateway.images.drawing import Drawing

# In parallel, on threads of their own: Pillow releases the interpreter lock while it works.
_THREADS = 2
_PREVIEW_QUALITY = 80
# A JPEG segment's length has 16 bits, of which the length itself and the Exif marker take eight bytes.
_MAX_JPEG_EXIF_BYTES = 0xFFFF - 8
_EXIF = b"Exif\0\0"


class Files:
    """Encodes on threads of its own, so that no answer waits for another's picture."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "files")

    async def picture(self, drawing: Drawing, file: bytes) -> bytes:
        """A worker's file as it is answered."""
        if drawing.recompress is None:
            return file
        return await self._run(recompressed, file, drawing.output_format, drawing.recompress)

    async def preview(self, drawing: Drawing, png: bytes) -> bytes:
        """A preview at the size and in the format of its picture."""
        return await self._run(enlarged, png, (drawing.width, drawing.height), drawing.output_format)

    def close(self) -> None:
        """End the threads; waiting files are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, make: Any, *arguments: Any) -> bytes:
        made: bytes = await asyncio.get_running_loop().run_in_executor(self._threads, make, *arguments)
        return made


def recompressed(file: bytes, output_format: str, quality: int) -> bytes:
    """A lossless WebP file as JPEG or WebP of `quality`, 0 to 100, with the parameters that its EXIF holds."""
    with Image.open(io.BytesIO(file)) as image:
        exif = image.info.get("exif", b"")
        if exif and not exif.startswith(_EXIF):
            exif = _EXIF + exif  # which WebP leaves out
        if output_format == "jpeg" and len(exif) > _MAX_JPEG_EXIF_BYTES:
            exif = b""
        return _encoded(image.convert("RGB"), output_format, quality=quality, exif=exif)


def enlarged(png: bytes, size: tuple[int, int], output_format: str) -> bytes:
    """A small picture at `size` (width, height)."""
    with Image.open(io.BytesIO(png)) as image:
        picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if output_format == "png":
        return _encoded(picture, "png", compress_level=1)
    return _encoded(picture, output_format, quality=_PREVIEW_QUALITY)


def _encoded(picture: Image.Image, output_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, output_format.upper(), **options)
    return file.getvalue()
