"""Finished image files, kept until the leader says that they are stored."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from services.vae_worker import metrics
from synerdiff.errors import StaleLeader
from synerdiff.plans import DecodedImage
from synerdiff.telemetry import get_logger

log = get_logger("image_outbox")


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
        """The images of these tasks are stored, or nobody wants them. Unknown ids are ignored."""
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
