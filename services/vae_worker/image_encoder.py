"""Image files, encoded beside the next decode."""

import asyncio
import time
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor

import grpc

from services.vae_worker import metrics
from services.vae_worker.decoder import Picture
from services.vae_worker.image_files import encode_image
from services.vae_worker.image_outbox import ImageOutbox
from synerdiff.plans import DecodedImage, DecodeEntry
from synerdiff.worker.fail_stop import FailStop

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

Failed = Callable[[str, int, str], None]


class ImageEncoder:
    """Makes files on `threads` threads of its own, and puts them into `outbox`. Belongs to the event loop."""

    def __init__(self, threads: int, outbox: ImageOutbox, failure: FailStop) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="image-files")
        self._outbox = outbox
        self._failure = failure
        self._encoding: set[asyncio.Task[None]] = set()

    def submit(self, entry: DecodeEntry, picture: Picture, decode_ms: float, failed: Failed) -> None:
        """Make a picture's file; `failed` hears of task, code and reason where that cannot be done."""
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
