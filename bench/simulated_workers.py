"""Stage workers without models: real gRPC, real registration, a tick takes a set time.

    python -m bench.simulated_workers --redis-url redis://127.0.0.1:6379/0 --domains 16 --tick-ms 20

Each domain is a UNet worker and a VAE worker on ports of their own. On SIGTERM, one line of JSON says how long the UNet
workers ran and how long they stood idle with unfinished tasks resident.
"""

import asyncio
import contextlib
import functools
import io
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import typer
from PIL import Image

from bench.command import run
from services.scheduler.simulation.counting import CountingUnet, decode, picture
from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.host import boot_id
from synerdiff.plans import (
    DecodedImage,
    ItemTiming,
    Preview,
    TaskFailed,
    TaskReady,
    UnetPlan,
    UnetTickDone,
    VaeTickDone,
)
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerKind, WorkerRecord, WorkerRegistry, keep_announced
from synerdiff.requests import ImageFormat
from synerdiff.rpc import ServiceHost
from synerdiff.stopping import cancel_and_wait, stop_signal
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire import stages
from synerdiff.worker.leader import LeaderGuard

MODEL = "simulated"
CARD = ModelCard(
    name=MODEL,
    family="sd1",
    native_width=512,
    native_height=512,
    size_multiple=64,
    max_side=1024,
    default_num_inference_steps=20,
    default_guidance_scale=7.5,
    default_sampler=Sampler.DDIM,
    samplers=(SamplerLimits(Sampler.DDIM, 1, 1_000_000),),
    max_prompt_tokens=77,
    prediction_type="epsilon",
)


@functools.cache
def grey(image_format: ImageFormat, width: int, height: int) -> bytes:
    """A grey picture, as a file; each kind of it is drawn once."""
    file = io.BytesIO()
    options = {"lossless": True} if image_format is ImageFormat.WEBP else {}
    Image.new("RGB", (width, height), (128, 128, 128)).save(file, image_format.name, **options)
    return file.getvalue()


@dataclass
class SimulatedUnet(stages_pb2_grpc.UnetStageServicer):
    """A UNet worker that counts. `row_s`: the time that each row adds to a tick. `idle_s` is time without a plan
    while an unfinished task was resident.
    """

    worker_id: str
    tick_s: float
    slots: int
    address: str = ""
    row_s: float = 0.0
    guard: LeaderGuard = field(default_factory=LeaderGuard)
    busy_s: float = 0.0
    idle_s: float = 0.0
    ticks: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        self.counting = CountingUnet(self.worker_id, self.slots)

    async def Run(
        self, requests: AsyncIterator[stages_pb2.UnetCommand], context: Any
    ) -> AsyncIterator[stages_pb2.UnetReport]:
        attach = (await anext(requests)).attach
        self.guard.attach(attach.leader_token, attach.leader_id)
        plans: asyncio.Queue[UnetPlan] = asyncio.Queue()
        reports: asyncio.Queue[stages_pb2.UnetReport] = asyncio.Queue()
        residents = map(stages.resident_task_to_pb, self.counting.resident_tasks())
        await reports.put(
            stages_pb2.UnetReport(
                attached=stages_pb2.UnetAttached(
                    worker_id=self.worker_id, slots=self.slots, arena_address=self.address, resident=residents
                )
            )
        )
        parts = [
            asyncio.create_task(self._listen(requests, plans, reports)),
            asyncio.create_task(self._step(plans, reports)),
        ]
        try:
            while True:
                yield await reports.get()
        finally:
            for part in parts:
                part.cancel()

    async def _listen(
        self, requests: AsyncIterator[stages_pb2.UnetCommand], plans: "asyncio.Queue[UnetPlan]", reports: Any
    ) -> None:
        async for command in requests:
            kind = command.WhichOneof("command")
            if kind == "plan":
                plan = stages.unet_plan_from_pb(command.plan)
                if self.guard.accepts(plan.leader_token, plan.tick):
                    plans.put_nowait(plan)
            elif kind == "admit":
                match self.counting.admit(stages.task_spec_from_pb(command.admit)):
                    case TaskReady() as ready:
                        reports.put_nowait(stages_pb2.UnetReport(task_ready=stages.task_ready_to_pb(ready)))
                    case TaskFailed() as failed:
                        reports.put_nowait(stages_pb2.UnetReport(task_failed=stages.task_failed_to_pb(failed)))
            elif kind in ("cancel", "release"):
                self.counting.let_go(getattr(command, kind).task_ids)

    async def _step(self, plans: "asyncio.Queue[UnetPlan]", reports: Any) -> None:
        while True:
            waited_from = time.perf_counter()
            had_work = any(not task.finished for task in self.counting.residents.values())
            plan = await plans.get()
            began = time.perf_counter()
            if had_work:
                self.idle_s += began - waited_from
            start_ns = time.time_ns()
            tick_s = self.tick_s + self.row_s * sum(map(self.counting.rows, plan.items))
            await asyncio.sleep(max(0.0, tick_s - (time.perf_counter() - began)))
            stepped = self.counting.step(plan.items)
            for preview in self._previews(plan):
                reports.put_nowait(stages_pb2.UnetReport(preview=stages.preview_to_pb(preview)))
            self.busy_s += time.perf_counter() - began
            self.ticks += 1
            self.calls += sum(len(item.entries) for item in plan.items) - len(stepped.skipped)
            items = (ItemTiming(start_ns, time.time_ns(), stepped.rows),)
            done = UnetTickDone(plan.tick, items, stepped.skipped, stepped.finished)
            reports.put_nowait(stages_pb2.UnetReport(tick_done=stages.unet_tick_done_to_pb(done)))

    def _previews(self, plan: UnetPlan) -> Iterator[Preview]:
        """Those that are due after the calls that a plan has just made."""
        for entry in (entry for item in plan.items for entry in item.entries):
            task = self.counting.residents.get(entry.task_id)
            if task is None or task.finished or task.next_call != entry.call + 1 or not task.spec.preview_every:
                continue
            if task.next_call % task.spec.preview_every == 0:
                png = grey(ImageFormat.PNG, task.spec.width // 8, task.spec.height // 8)
                yield Preview(entry.task_id, task.next_call, png)


@dataclass
class SimulatedVae(stages_pb2_grpc.VaeStageServicer):
    """A VAE worker whose pictures are all the same."""

    worker_id: str
    decode_s: float
    guard: LeaderGuard = field(default_factory=LeaderGuard)
    images: asyncio.Queue[DecodedImage] = field(default_factory=asyncio.Queue)

    async def Run(
        self, requests: AsyncIterator[stages_pb2.VaeCommand], context: Any
    ) -> AsyncIterator[stages_pb2.VaeReport]:
        attach = (await anext(requests)).attach
        self.guard.attach(attach.leader_token, attach.leader_id)
        yield stages_pb2.VaeReport(attached=stages_pb2.VaeAttached(worker_id=self.worker_id))
        async for command in requests:
            if command.WhichOneof("command") != "plan":
                continue
            plan, start_ns = stages.vae_plan_from_pb(command.plan), time.time_ns()
            if not self.guard.accepts(plan.leader_token, plan.tick):
                continue
            decoded = decode(plan.items, held=lambda entry: True)  # held by any UNet worker's process
            await asyncio.sleep(self.decode_s * len(decoded.entries))
            for entry in decoded.entries:
                file = grey(entry.image_format, entry.width, entry.height)
                self.images.put_nowait(picture(entry, file, self.decode_s * 1e3))
            items = (ItemTiming(start_ns, time.time_ns(), len(decoded.entries)),)
            done = VaeTickDone(plan.tick, items, (), decoded.task_ids)
            yield stages_pb2.VaeReport(tick_done=stages.vae_tick_done_to_pb(done))

    async def Images(self, request: stages_pb2.ImagesRequest, context: Any) -> AsyncIterator[stages_pb2.DecodedImage]:
        while True:
            yield stages.decoded_image_to_pb(await self.images.get())


@dataclass
class SimulatedWorker:
    """A simulated UNet or VAE worker as a service that announces itself; `domain` is the device it claims to share."""

    servicer: SimulatedUnet | SimulatedVae
    domain: str
    pool: str = "default"
    listen: str = "127.0.0.1:0"
    health_listen: str = ""
    advertise: str = ""
    card: ModelCard = CARD
    host: ServiceHost = field(default_factory=ServiceHost)
    announcing: "asyncio.Task[None]" = field(init=False)

    async def start(self, registry: WorkerRegistry) -> None:
        """Serve, ready, and announced from now on by the task `announcing`. Raises SynerDiffError for a taken port."""
        kind: WorkerKind
        add: Callable[[Any, Any], None]
        if isinstance(self.servicer, SimulatedUnet):
            kind, name, add = "unet", "UnetStage", stages_pb2_grpc.add_UnetStageServicer_to_server
        else:
            kind, name, add = "vae", "VaeStage", stages_pb2_grpc.add_VaeStageServicer_to_server
        self.host.add(f"synerdiff.v1.{name}", add, self.servicer)
        bound = await self.host.start(self.listen, self.health_listen)
        address = self.advertise or bound
        if isinstance(self.servicer, SimulatedUnet):
            self.servicer.address = address
        await self.host.set_ready(True)
        record = WorkerRecord(
            self.servicer.worker_id, kind, address, self.card, self.pool, self.domain, boot_id(), os.getpid()
        )
        self.announcing = asyncio.create_task(keep_announced(registry, lambda: record))


async def serve(
    redis_url: Annotated[str, typer.Option()],
    domains: int = 1,
    tick_ms: float = 20.0,
    decode_ms: float = 5.0,
    slots: int = 32,
    max_steps: int = 1_000_000,
) -> dict[str, float]:
    """Run until SIGTERM. Returns totals over the UNet workers. `max_steps`: the most that the model takes."""
    stop = stop_signal()
    card = replace(CARD, samplers=(SamplerLimits(Sampler.DDIM, 1, max_steps),))
    unets: list[SimulatedUnet] = []
    announcing = []
    async with connect(redis_url) as redis, contextlib.AsyncExitStack() as hosts:
        for index in range(domains):
            unet = SimulatedUnet(f"unet-{os.getpid()}-{index}", tick_ms / 1e3, slots)
            vae = SimulatedVae(f"vae-{os.getpid()}-{index}", decode_ms / 1e3)
            unets.append(unet)
            for servicer in (unet, vae):
                worker = SimulatedWorker(servicer, f"simulated-{os.getpid()}-{index}", card=card)
                hosts.push_async_callback(worker.host.drain, 0.0)
                await worker.start(WorkerRegistry(redis))
                announcing.append(worker.announcing)
        await stop.wait()
        await cancel_and_wait(*announcing)
    busy, idle = sum(u.busy_s for u in unets), sum(u.idle_s for u in unets)
    return {
        "ticks": sum(u.ticks for u in unets),
        "unet_calls": sum(u.calls for u in unets),
        "busy_s": round(busy, 3),
        "idle_s": round(idle, 3),
        "idle_share": round(idle / (busy + idle), 5) if busy else 0.0,
        "worst_idle_share": round(max(u.idle_s / (u.busy_s + u.idle_s) for u in unets if u.ticks), 5) if busy else 0.0,
    }


if __name__ == "__main__":
    run(serve, show=json.dumps)
