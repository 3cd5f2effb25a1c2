"""Schedulers over a real Redis: the public API and a leader's part played by hand, or whole with simulated workers."""

import asyncio
import contextlib
import io
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from redis.asyncio import Redis

from bench import simulated_workers
from bench.simulated_workers import SimulatedUnet, SimulatedVae, SimulatedWorker
from services.scheduler.api.generate import MAX_REQUEST_BYTES, ImageGenerationService
from services.scheduler.api.operations import SERVICE
from services.scheduler.api.validation import AdmissionLimits
from services.scheduler.engine.events import Event
from services.scheduler.leading.leader import LeaderOptions
from services.scheduler.leading.pool import Pool
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds
from services.scheduler.store.leadership import Leadership
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from services.scheduler.store.store_base import JobStoreSettings
from synerdiff.cards import ModelCard
from synerdiff.client import AsyncClient, GenerateResult
from synerdiff.interceptors import Check, let_all_in
from synerdiff.jobs import JobRecord, JobTimings
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerKind, WorkerRecord, WorkerRegistry
from synerdiff.rpc import ServiceHost, create_server
from synerdiff.settings import EXIT_BAD_SETTINGS
from synerdiff.stopping import cancel_and_wait
from synerdiff.tls import ServerTls
from synerdiff.v1 import operations_pb2, operations_pb2_grpc
from tests.services.scheduler.redis_jobs import Step, a_picture, new_leader
from tests.values import CARD, a_worker
from tests.waiting import HANG_S, until


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


@contextlib.asynccontextmanager
async def served(redis: Redis, **options: Any) -> AsyncIterator[Scheduler]:
    """A scheduler with a UNet worker announced, until the block ends. `options`: of `start_scheduler`."""
    await announce(redis, "unet")
    scheduler = await start_scheduler(redis, **options)
    yield scheduler
    await scheduler.stop()


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, 1, 2)).save(out, "PNG")
    return out.getvalue()


class Leader:
    """Takes jobs from the store and makes them happen, one call at a time."""

    def __init__(self, store: JobStore, lease: Lease) -> None:
        self.store = store
        self.lease = lease

    @classmethod
    async def of(cls, redis: Redis, store: JobStore) -> "Leader":
        return cls(store, await new_leader(redis))

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
            image = replace(
                a_picture(png(seed) + bytes(padding_bytes)), format=job.request.image_format, width=8, height=8
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

    def all(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

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


LEADER_TTL_S = 0.3
DOMAIN, MODEL = "simulated", simulated_workers.CARD.name


@dataclass(frozen=True)
class Whole:
    """A scheduler that leads its pool."""

    scheduler: Scheduler
    pool: Pool
    unet: SimulatedUnet

    @property
    def attached(self) -> bool:
        """Whether its leader has both workers."""
        leader = self.pool.leader
        return bool(leader and leader.engine.holdings.unet and leader.engine.holdings.vae)


@contextlib.asynccontextmanager
async def whole_scheduler(
    redis: Redis,
    *,
    tick_s: float = 0.01,
    row_s: float = 0.0,
    decode_s: float = 0.002,
    slots: int = 4,
    policy: str = "continuous",
    check: Check = let_all_in,
) -> AsyncIterator[Whole]:
    """Serve and lead, with a pair of workers attached, until the block ends."""
    registry = WorkerRegistry(redis)
    unet, vae = SimulatedUnet("unet", tick_s, slots, row_s=row_s), SimulatedVae("vae", decode_s)
    plans = PlanBook()
    workers = [SimulatedWorker(servicer, DOMAIN) for servicer in (unet, vae)]
    scheduler = await start_scheduler(redis, check=check)
    pool = Pool(
        "default",
        LeaderOptions(ConfiguredPolicy(POLICIES[policy], PolicyBounds(), plans), plans=plans),
        scheduler.store,
        registry,
        Leadership(redis, "default", "whole", LEADER_TTL_S),
        LEADER_TTL_S,
    )
    whole = Whole(scheduler, pool, unet)
    try:
        for worker in workers:
            await worker.start(registry)
        async with background(pool.run()), background(pool.sweep()):
            await until(lambda: whole.attached)
            yield whole
    finally:
        await cancel_and_wait(*(worker.announcing for worker in workers))
        for worker in workers:
            await worker.host.drain(0)
        await scheduler.stop()


def drawn(client: AsyncClient, jobs: int, steps: int, num_images: int = 1) -> list["asyncio.Task[GenerateResult]"]:
    """So many requests under way."""
    options = {"model": MODEL, "num_inference_steps": steps, "num_images": num_images}
    return [asyncio.create_task(client.generate(f"{n}", **options)) for n in range(jobs)]  # type: ignore[arg-type]


async def the_line_it_ends_with(*flags: str) -> bytes:
    """The one line that a scheduler with these flags says before it ends."""
    scheduler = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.scheduler", "--listen", "127.0.0.1:0", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parents[3],
    )
    said, _ = await asyncio.wait_for(scheduler.communicate(), HANG_S)
    assert scheduler.returncode == EXIT_BAD_SETTINGS, said
    assert said.count(b"\n") == 1, said
    return said


async def serve(redis_url: str) -> None:
    """Serve until killed, once the address is printed."""
    scheduler = await start_scheduler(connect(redis_url))
    print(scheduler.address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
