"""The results of a job: its events, its progress and its images. Any scheduler can follow them."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Sequence
from typing import cast

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from services.scheduler.store import keys
from services.scheduler.store.images import BYTES_PER_IMAGE, is_elsewhere
from services.scheduler.store.records import (
    event_from_entry,
    image_event,
    image_message,
    is_terminal,
    progress_event,
    state_from_reply,
)
from services.scheduler.store.scripts import Lease
from services.scheduler.store.store_base import StoreBase
from synerdiff.errors import NotFound, Unavailable
from synerdiff.jobs import ENDED, JobState
from synerdiff.plans import DecodedImage
from synerdiff.redis_client import patiently
from synerdiff.v1 import images_pb2

POSITION_EVERY_S = 1.0  # how often a queued follower hears of a new position
POLL_S = 5.0  # the safety net under pub/sub
EVENT = b"event"  # the message of a stored event on the channel of its job; progress is its own message

NO_POSITION_WANTED = ""
NO_POSITION_SHOWN = "-1"


# Of an image, by job id and index: its UNet calls done, of how many, and a preview PNG or b"".
ProgressUpdate = tuple[str, int, int, int, bytes]


class JobResults(StoreBase):
    """Events and images, written by a pool's leader and read by any scheduler. Writing is safe to repeat."""

    async def append_progress(self, lease: Lease, updates: Sequence[ProgressUpdate]) -> None:
        """Write the progress of many images in one call. Each replaces the last of its image; late ones are dropped."""
        args: list[str | bytes | int] = []
        for job_id, index, step, total, preview in updates:
            args += (job_id, index, progress_event(index, step, total, preview))
        await self._leader("append_progress", lease, *args)

    async def store_image(self, lease: Lease, job_id: str, image: DecodedImage, index: int, seed: int) -> bool:
        """Keep the file of image `index`. False when the job has ended or belongs to another pool by now. Raises
        Unavailable where the image store does not take it; Redis then has not heard of the image."""
        message = image_message(image, index, seed)
        record = await self._images.put(job_id, message)
        args = (index, record.SerializeToString(), image_event(message))
        return bool(await self._leader("store_image", lease, job_id, *args))

    async def images(self, job_id: str, max_bytes: int) -> list[images_pb2.Image]:
        """The images stored so far, by index: the first ones with their bytes, as many as fit into `max_bytes`.

        The others are not read, since they may be more than this process has memory for. Those whose file is gone have
        no bytes either. Raises Unavailable.
        """
        sizes: dict[int, int] = dict(map(tuple, await self._api("image_sizes", job_id)))
        small = await self._records(job_id, [index for index, size in sizes.items() if size <= BYTES_PER_IMAGE])
        sizes |= {record.index: record.size_bytes for record in small if is_elsewhere(record)}
        indices = sorted(sizes)
        room = itertools.accumulate(sizes[index] for index in indices)
        fitting = [index for index, total in zip(indices, room, strict=True) if total <= max_bytes]
        records = await self._records(job_id, fitting)
        files = await asyncio.gather(
            *(self._with_file(job_id, record, self._settings.api_patience_s) for record in records)
        )
        images = [image or record for image, record in zip(files, records, strict=True)]
        left_out = indices[len(fitting) :]
        if left_out:
            events = await self.events(job_id)
            told = {event.image.index: event.image for event in events if event.HasField("image")}
            for index in left_out:
                image = told.get(index) or images_pb2.Image(index=index)
                image.size_bytes = image.size_bytes or sizes[index]
                images.append(image)
        return images

    async def image(self, job_id: str, index: int) -> images_pb2.Image | None:
        """One image with its bytes; None while there is none. Raises NotFound for a file that is gone, Unavailable."""
        for record in await self._records(job_id, [index]):
            image = await self._with_file(job_id, record, self._settings.api_patience_s)
            if image is None:
                raise NotFound(f"the file of image {index} of job {job_id!r} is not kept any more")
            return image
        return None

    async def _records(self, job_id: str, indices: Sequence[int]) -> list[images_pb2.Image]:
        if not indices:
            return []
        key, fields = keys.images(job_id), [str(index) for index in indices]
        stored = await patiently(lambda: self._redis.hmget(key, fields), self._settings.api_patience_s)
        images = [images_pb2.Image.FromString(cast(bytes, image)) for image in stored if image is not None]
        for image in images:
            image.size_bytes = image.size_bytes or len(image.data)  # one that an older version stored does not say
        return images

    async def _with_file(self, job_id: str, record: images_pb2.Image, patience_s: float) -> images_pb2.Image | None:
        """The image of a record with its bytes; None where its file is gone. Raises Unavailable."""
        if not is_elsewhere(record):
            return record
        again = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            stop=stop_after_delay(patience_s),
            reraise=True,
        )
        return await again(self._images.get, job_id, record)

    async def progress(self, job_id: str) -> float:
        """0 to 1 over all images of a job, in UNet calls; 0 for an unknown job."""
        reply = await self._api("progress", job_id)
        if reply is None:
            return 0.0
        state, num_images, stored, latest = reply
        if state_from_reply(job_id, state) is JobState.FINISHED:
            return 1.0
        under_way = [images_pb2.GenerateEvent.FromString(event).progress for event in latest]
        done = stored + sum(image.step / image.num_inference_steps for image in under_way)
        return float(done / int(num_images))

    async def events(self, job_id: str, after_sequence: int = 0) -> list[images_pb2.GenerateEvent]:
        """The events after `after_sequence`, in order, images without their bytes. Raises NotFound."""
        _, events = await self._read_events(job_id, after_sequence, NO_POSITION_WANTED)
        return events

    async def follow(self, job_id: str, after_sequence: int = 0) -> AsyncGenerator[images_pb2.GenerateEvent, None]:
        """The events after `after_sequence` as they happen, images with their bytes; ends with the job.

        While it is followed an abandonable job is kept alive. A queued job's position comes again when it moves.
        Outlives a Redis that is away for `follower_patience_s`. Raises NotFound, Unavailable.
        """
        shown, known = NO_POSITION_SHOWN, False
        images_lost: set[int] = set()
        positions_from = time.monotonic() + POSITION_EVERY_S
        with self._notifications.listen(keys.wake(job_id)) as wakeups, self._follower_leases.following(job_id):
            while True:
                position_due = time.monotonic() >= positions_from
                wanted = shown if position_due else NO_POSITION_WANTED
                if position_due:
                    positions_from = time.monotonic() + POSITION_EVERY_S
                state, events = await self._read_events(job_id, after_sequence, wanted, known=known)
                known = True
                for event in events:
                    after_sequence = event.sequence
                    if event.HasField("queued"):
                        shown = str(event.queued.position)
                    if await self._completed(event, images_lost):
                        yield event
                    if is_terminal(event):
                        return
                if state in ENDED:
                    return
                patience_s = POSITION_EVERY_S if state is JobState.QUEUED else POLL_S
                # Messages keep their order, so progress without an event before it needs no reading.
                while (heard := await wakeups.wait(patience_s)) and EVENT not in heard:
                    for event in _progress_events(job_id, after_sequence, heard):
                        after_sequence = event.sequence
                        yield event

    async def _read_events(
        self, job_id: str, after: int, shown_position: str, *, known: bool = False
    ) -> tuple[JobState, list[images_pb2.GenerateEvent]]:
        reply = await self._follower("read_events", job_id, after, shown_position)
        if reply is None and known:
            gone = "it was deleted, or is lost: Redis has no record of it any more; send the request again"
            raise NotFound(f"job {job_id!r} is gone: {gone}")
        if reply is None:
            raise NotFound(f"no job {job_id!r}, or its results are not kept any more")
        state, *entries = reply
        events = [event_from_entry(job_id, *entry) for entry in entries]
        return state_from_reply(job_id, state), sorted(events, key=lambda event: event.sequence)

    async def _completed(self, event: images_pb2.GenerateEvent, lost: set[int]) -> bool:
        """Give an image's event its bytes. False where they are lost.

        While the job runs, an image that Redis has lost is drawn again. `lost`: the lost images that are not drawn
        again yet. Raises NotFound for a finished job with any.
        """
        job_id = event.job_id
        if event.HasField("image"):
            index = event.image.index
            stored = await patiently(
                lambda: self._redis.hget(keys.images(job_id), str(index)), self._settings.follower_patience_s
            )
            record = None if stored is None else images_pb2.Image.FromString(cast(bytes, stored))
            image = record and await self._with_file(job_id, record, self._settings.follower_patience_s)
            if image is None:
                lost.add(index)
                return False
            lost.discard(index)
            event.image.CopyFrom(image)
        if event.HasField("finished") and lost:
            raise NotFound(f"the images of job {job_id!r} are not kept any more")
        return True


def _progress_events(job_id: str, after_sequence: int, messages: set[bytes]) -> list[images_pb2.GenerateEvent]:
    """The Progress events of messages "<sequence>:<event>" after `after_sequence`, in order."""
    parted = (message.partition(b":") for message in messages)
    news = sorted((int(sequence), event) for sequence, _, event in parted if int(sequence) > after_sequence)
    return [event_from_entry(job_id, sequence, b"event", event) for sequence, event in news]
