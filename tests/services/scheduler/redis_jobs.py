"""Requests, images and progress as the job store's tests need them, and a leader made on the spot."""

from typing import Any, NamedTuple

from prometheus_client import REGISTRY
from redis.asyncio import Redis

from services.scheduler.store import keys
from services.scheduler.store.leadership import Leadership
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from synerdiff.jobs import JobRecord, JobTimings
from synerdiff.plans import DecodedImage
from synerdiff.requests import ImageFormat
from tests.values import a_request

DIGEST = b"\x00digest\xff"
TIMINGS = JobTimings(queue_ms=1.5, encode_ms=2.0, denoise_ms=3000.0, decode_ms=4.25)


def a_picture(data: bytes = b"\x89PNG\x00\xff") -> DecodedImage:
    """A decoded image with the given file."""
    return DecodedImage("job/0", ImageFormat.WEBP, 64, 64, data, flagged=True, decode_ms=1.0, encode_ms=1.0)


class Step(NamedTuple):
    """A ProgressUpdate."""

    job_id: str
    image: int
    step: int
    total: int = 4
    preview: bytes = b""


async def accept(store: JobStore, *, abandonable: bool = False, **changes: Any) -> str:
    """The name of a new job."""
    return (await store.accept(a_request(**changes), DIGEST, abandonable)).job_id


async def running_job(store: JobStore, lease: Lease, *, abandonable: bool = False, **changes: Any) -> str:
    """The name of a new job, which was read and started."""
    job_id = await accept(store, abandonable=abandonable, **changes)
    await store.read_new(lease, ["emoji"], 1)
    assert await store.start(lease, job_id)
    return job_id


async def job_of(store: JobStore, job_id: str) -> JobRecord:
    """The record of a job that is there."""
    record = await store.job(job_id)
    assert record is not None
    return record


async def new_leader(redis: Redis, pool: str = "default", instance_id: str = "one") -> Lease:
    """The lease of a new leader, as if the TTL of the one before had run out."""
    await redis.delete(keys.PATTERNS["leader"] % pool)
    lease = await Leadership(redis, pool, instance_id, ttl_s=60.0).acquire()
    assert lease is not None
    return lease


def metric(name: str, **labels: str) -> float:
    """What this process counts; 0 where it has not begun to."""
    return REGISTRY.get_sample_value(f"synerdiff_{name}", labels) or 0.0
