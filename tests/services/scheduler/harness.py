"""A scheduler without a pool: the public API over real gRPC and Redis, and a leader's part played by hand."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from redis.asyncio import Redis

from services.scheduler.api.generate import MAX_REQUEST_BYTES, ImageGenerationService
from services.scheduler.api.operations import SERVICE
from services.scheduler.api.validation import AdmissionLimits
from services.scheduler.engine.events import Event
from services.scheduler.store.leadership import Leadership
from services.scheduler.store.queue import JobStore, JobStoreSettings, Lease
from synerdiff.cards import ModelCard
from synerdiff.interceptors import Check, let_all_in
from synerdiff.jobs import JobRecord, JobTimings
from synerdiff.plans import DecodedImage
from synerdiff.registry import WorkerKind, WorkerRecord, WorkerRegistry
from synerdiff.requests import task_id
from synerdiff.rpc import ServiceHost, create_server
from synerdiff.stopping import cancel_and_wait
from synerdiff.tls import ServerTls
from synerdiff.v1 import operations_pb2, operations_pb2_grpc
from tests.values import CARD, a_worker


class QuietOperations(operations_pb2_grpc.OperationsServicer):
    """Those of a pool with nothing going on."""

    async def GetStatus(
        self, request: operations_pb2.GetStatusRequest, context: Any
    ) -> operations_pb2.GetStatusResponse:
        return operations_pb2.GetStatusResponse(pool="default", leader=True, policy="continuous")

    async def GetTrace(self, request: operations_pb2.GetTraceRequest, context: Any) -> operations_pb2.GetTraceResponse:
        return operations_pb2.GetTraceResponse(trace_json=b'{"traceEvents": []}')

    async def WatchTicks(
        self, request: operations_pb2.WatchTicksRequest, context: Any
    ) -> AsyncIterator[operations_pb2.WatchTicksResponse]:
        yield operations_pb2.WatchTicksResponse()


@dataclass
class Scheduler:
    """One instance of the API."""

    host: ServiceHost
    store: JobStore

    @property
    def address(self) -> str:
        return self.host.address

    async def stop(self, grace_s: float = 0.0) -> None:
        await self.host.drain(grace_s)
        await self.store.close()


async def start_scheduler(
    redis: Redis,
    listen: str = "127.0.0.1:0",
    settings: JobStoreSettings | None = None,
    check: Check = let_all_in,
    tls: ServerTls | None = None,
) -> Scheduler:
    store = JobStore(redis, settings)
    host = ServiceHost(create_server(max_receive_bytes=MAX_REQUEST_BYTES, check=check), tls=tls)
    ImageGenerationService(store, WorkerRegistry(redis), AdmissionLimits(), host.draining).add_to(host)
    host.add(SERVICE, operations_pb2_grpc.add_OperationsServicer_to_server, QuietOperations())
    await host.start(listen)
    await host.set_ready(True)
    return Scheduler(host, store)


async def announce(redis: Redis, kind: WorkerKind, card: ModelCard = CARD, **fields: Any) -> WorkerRecord:
    record = a_worker(kind, worker_id=f"{kind}-{card.name}", model_card=card)
    record = replace(record, **fields)
    await WorkerRegistry(redis).announce(record, ttl_s=60)
    return record


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, 1, 2)).save(out, "PNG")
    return out.getvalue()


@dataclass
class Step:
    """A ProgressUpdate."""

    job_id: str
    index: int
    step: int
    total: int
    preview: bytes = b""


class Leader:
    """Takes jobs from the store and makes them happen, one call at a time."""

    def __init__(self, store: JobStore, lease: Lease) -> None:
        self.store = store
        self.lease = lease

    @classmethod
    async def of(cls, redis: Redis, store: JobStore) -> "Leader":
        lease = await Leadership(redis, "default", "by hand").acquire()
        assert lease is not None
        return cls(store, lease)

    async def take(self) -> JobRecord:
        """The next job, started."""
        while not (records := await self.store.read_new(self.lease, ["emoji"], 1)):
            await asyncio.sleep(0.02)
        assert await self.store.start(self.lease, records[0].job_id)
        return records[0]

    async def progress(self, job: JobRecord, step: int, preview: bytes = b"") -> None:
        update = Step(job.job_id, 0, step, job.request.num_inference_steps, preview)
        await self.store.append_progress(self.lease, [update])

    async def complete(self, job: JobRecord, padding_bytes: int = 0) -> None:
        """Every image, as many bytes longer as given, then the end."""
        assert await self.store.decoding(self.lease, job.job_id)
        for index in range(job.request.num_images):
            seed = job.request.seed + index
            image = DecodedImage(
                task_id(job.job_id, index),
                job.request.image_format,
                8,
                8,
                png(seed) + bytes(padding_bytes),
                False,
                decode_ms=1,
                encode_ms=1,
            )
            assert await self.store.store_image(self.lease, job.job_id, image, index, seed)
        assert await self.store.finish(self.lease, job.job_id, JobTimings(1, 2, 3, 4), ["a warning"])

    async def work(self) -> None:
        """Take and complete jobs until cancelled."""
        while True:
            job = await self.take()
            await self.progress(job, 1)
            await self.complete(job)


class Heard:
    """A Listener that remembers what it hears, and expects no end."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on(self, event: Event) -> None:
        self.events.append(event)

    def superseded(self, newest_token: int = 0) -> None:
        raise AssertionError("superseded")

    def failed(self, error: BaseException) -> None:
        raise AssertionError("failed") from error


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine beside the test."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await cancel_and_wait(task)
