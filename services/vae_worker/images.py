"""Image files: encoded with parameters inside, beside the next decode, and kept until the leader has them stored."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from services.vae_worker import metrics
from services.vae_worker.decoder import Picture
from synerdiff.errors import StaleLeader
from synerdiff.plans import DecodedImage, DecodeEntry
from synerdiff.requests import ImageFormat
from synerdiff.telemetry import get_logger
from synerdiff.worker.fail_stop import FailStop

# Measured on 512 x 512 pictures: level 6, Pillow's own, takes three times as long for the same size.
_PNG_COMPRESS_LEVEL = 4
_JPEG_QUALITY = 95
_WEBP_METHOD = 2

_JSON_KEY = "synerdiff"
_LINE_KEY = "parameters"
_EXIF_IFD = 0x8769
_IMAGE_DESCRIPTION = 0x010E
_USER_COMMENT = 0x9286
_UTF16_COMMENT = b"UNICODE\0"
# A JPEG segment's length has 16 bits, of which the length itself and the Exif marker take eight bytes.
_MAX_JPEG_EXIF_BYTES = 0xFFFF - 8

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

Failed = Callable[[str, int, str], None]

log = get_logger("image_outbox")


def encode_image(pixels: npt.NDArray[np.uint8], image_format: ImageFormat, parameters_json: str) -> bytes:
    """A file of `pixels` [H, W, 3] with the parameters embedded. PNG and WebP are lossless.

    Parameters too long for a JPEG's EXIF lose their line for people first, and are left out if that is not enough.
    Raises ValueError where the format cannot hold a picture of this size, or `parameters_json` is no JSON object.
    """
    parameters = json.loads(parameters_json or "{}")
    if not isinstance(parameters, dict):
        raise ValueError("parameters_json: must be a JSON object")
    image, file = Image.fromarray(pixels), io.BytesIO()
    match image_format:
        case ImageFormat.PNG:
            image.save(file, "PNG", compress_level=_PNG_COMPRESS_LEVEL, pnginfo=_png_info(parameters))
        case ImageFormat.JPEG:
            exif = next(exif for exif in _exif_forms(parameters) if len(exif) <= _MAX_JPEG_EXIF_BYTES)
            image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0, exif=exif)
        case ImageFormat.WEBP:
            image.save(file, "WEBP", lossless=True, method=_WEBP_METHOD, exif=next(_exif_forms(parameters)))
    return file.getvalue()


def readable_line(parameters: Mapping[str, Any]) -> str:
    """The parameters as people and image tools read them: prompt, negative prompt, then `Name: value, ...`."""
    details = {
        "Steps": parameters.get("num_inference_steps"),
        "Sampler": parameters.get("sampler"),
        "CFG scale": parameters.get("guidance_scale"),
        "Seed": parameters.get("seed"),
        "Size": f"{parameters['width']}x{parameters['height']}" if {"width", "height"} <= parameters.keys() else None,
        "Model": parameters.get("model"),
    }
    lines = [
        _one_line(parameters.get("prompt", "")),
        f"Negative prompt: {_one_line(parameters['negative_prompt'])}" if parameters.get("negative_prompt") else "",
        ", ".join(f"{name}: {value}" for name, value in details.items() if value is not None),
    ]
    return "\n".join(line for line in lines if line)


def _one_line(text: object) -> str:
    """Without control characters: a NUL would end a text chunk, a line break would forge a line."""
    return "".join(c if c.isprintable() else " " for c in str(text)).strip()


def _json(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, ensure_ascii=False)


def _png_info(parameters: Mapping[str, Any]) -> PngInfo:
    info = PngInfo()
    if parameters:
        info.add_text(_LINE_KEY, readable_line(parameters))
        info.add_text(_JSON_KEY, _json(parameters))
    return info


def _exif_forms(parameters: Mapping[str, Any]) -> Iterator[bytes]:
    """EXIF with everything, then with the JSON alone, then with nothing."""
    exif = Image.Exif()
    if parameters:
        exif[_IMAGE_DESCRIPTION] = _json(parameters).encode()
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UTF16_COMMENT + readable_line(parameters).encode("utf-16-be")
        yield exif.tobytes()
        del exif.get_ifd(_EXIF_IFD)[_USER_COMMENT]
        yield exif.tobytes()
    yield Image.Exif().tobytes()


class ImageOutbox:
    """Images by task, in order of arrival; a newer one of a task takes the older one's place.

    One stream follows at a time, and each new one is given everything that is still here. Over `max_bytes` the oldest
    images go: a live leader has at most one image per slot here, so an earlier leader never came for those.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: dict[str, DecodedImage] = {}
        self._bytes = 0
        self._token = -1  # of the leader that took images last
        self._stream: asyncio.Queue[str | None] | None = None  # ids of images to send; None ends it
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._images)

    def put(self, image: DecodedImage) -> None:
        """Keep an image and send it on the stream that follows."""
        self._remove(image.task_id)
        self._images[image.task_id] = image
        self._bytes += len(image.data)
        while self._bytes > self._max_bytes and len(self._images) > 1:
            oldest = next(iter(self._images))
            log.warning("outbox full, oldest image dropped", task_id=oldest, max_bytes=self._max_bytes)
            metrics.OUTBOX_DROPPED.inc()
            self._remove(oldest)
        self._changed()
        if self._stream is not None:
            self._stream.put_nowait(image.task_id)

    def forget(self, task_ids: Iterable[str]) -> None:
        """Drop the images of these tasks: they are stored, or not needed. Unknown ids are ignored."""
        for task_id in task_ids:
            self._remove(task_id)
        self._changed()

    async def follow(self, token: int) -> AsyncIterator[DecodedImage]:
        """Everything here, then each new image. Ends with a newer stream; raises StaleLeader for a higher token."""
        if token >= self._token:
            self.end_streams()
            self._token = token
            stream = self._stream = asyncio.Queue[str | None]()
            for task_id in self._images:
                stream.put_nowait(task_id)
            while self._stream is stream and (sent := await stream.get()) is not None:
                if sent in self._images:
                    yield self._images[sent]
        if token < self._token:
            raise StaleLeader(f"leader token {token} is older than {self._token}, which takes the images", self._token)

    def end_streams(self, *, older_than: int | None = None) -> None:
        """End the stream that follows, if its leader's token is older than that."""
        if self._stream is not None and (older_than is None or self._token < older_than):
            self._stream.put_nowait(None)
            self._stream = None

    async def emptied(self) -> None:
        """Wait until no image is left."""
        await self._empty.wait()

    def _remove(self, task_id: str) -> None:
        image = self._images.pop(task_id, None)
        if image is not None:
            self._bytes -= len(image.data)

    def _changed(self) -> None:
        metrics.OUTBOX_IMAGES.set(len(self._images))
        metrics.OUTBOX_BYTES.set(self._bytes)
        if self._images:
            self._empty.clear()
        else:
            self._empty.set()


class ImageEncoder:
    """Makes files on `threads` threads of its own, and puts them into `outbox`. Belongs to the event loop."""

    def __init__(self, threads: int, outbox: ImageOutbox, failure: FailStop) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="image-files")
        self._outbox = outbox
        self._failure = failure
        self._encoding: set[asyncio.Task[None]] = set()

    def submit(self, entry: DecodeEntry, picture: Picture, decode_ms: float, failed: Failed) -> None:
        """Make a picture's file; `failed` gets the task, a code and the reason where that cannot be done."""
        encoding = asyncio.create_task(self._encode(entry, picture, decode_ms, failed), name=entry.task_id)
        self._failure.watch(encoding, "an image file")
        self._encoding.add(encoding)
        encoding.add_done_callback(self._encoding.discard)

    def cancel(self, task_ids: Set[str]) -> None:
        """Make no file of these tasks, and forget those that there are."""
        for encoding in self._encoding:
            if encoding.get_name() in task_ids:
                encoding.cancel()
        self._outbox.forget(task_ids)

    async def settled(self) -> None:
        """Wait until no file is being made."""
        while self._encoding:
            await asyncio.wait(self._encoding)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _encode(self, entry: DecodeEntry, picture: Picture, decode_ms: float, failed: Failed) -> None:
        started = time.perf_counter()
        try:
            data = await asyncio.get_running_loop().run_in_executor(
                self._threads, encode_image, picture.pixels, entry.image_format, entry.parameters_json
            )
        except Exception as error:  # the file of one picture must not end the work of others
            failed(entry.task_id, _INTERNAL, f"image file: {error}")
            return
        seconds = time.perf_counter() - started
        image_format = entry.image_format.name.lower()
        metrics.ENCODE_SECONDS.labels(image_format).observe(seconds)
        metrics.IMAGES.labels(image_format).inc()
        metrics.FLAGGED.inc(picture.flagged)
        self._outbox.put(
            DecodedImage(
                task_id=entry.task_id,
                format=entry.image_format,
                width=entry.width,
                height=entry.height,
                data=data,
                flagged=picture.flagged,
                decode_ms=decode_ms,
                encode_ms=seconds * 1000,
            )
        )
