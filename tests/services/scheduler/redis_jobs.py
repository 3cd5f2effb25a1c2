"""Requests, images and progress as the job store's tests need them, and a leader made on the spot."""

from dataclasses import dataclass

from redis.asyncio import Redis

from services.scheduler.store import keys
from services.scheduler.store.leadership import Leadership
from services.scheduler.store.scripts import Lease
from synerdiff.jobs import JobTimings
from synerdiff.plans import DecodedImage
from synerdiff.requests import ImageFormat

DIGEST = b"\x00digest\xff"
TIMINGS = JobTimings(queue_ms=1.5, encode_ms=2.0, denoise_ms=3000.0, decode_ms=4.25)


def a_picture(data: bytes = b"\x89PNG\x00\xff") -> DecodedImage:
    """A decoded image with the given file."""
    return DecodedImage("job/0", ImageFormat.WEBP, 64, 64, data, flagged=True, decode_ms=1.0, encode_ms=1.0)


@dataclass(frozen=True)
class Step:
    """A ProgressUpdate."""

    job_id: str
    index: int
    step: int
    total: int = 4
    preview: bytes = b""


async def new_leader(redis: Redis, pool: str = "default", instance_id: str = "one") -> Lease:
    """The lease of a new leader, as if the TTL of the one before had run out."""
    await redis.delete(keys.PATTERNS["leader"] % pool)
    lease = await Leadership(redis, pool, instance_id, ttl_s=60.0).acquire()
    assert lease is not None
    return lease
