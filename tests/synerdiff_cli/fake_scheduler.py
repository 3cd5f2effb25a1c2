"""A scheduler made of canned answers on a real port, and the command whose work with them is tested."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from typer.testing import CliRunner, Result

from synerdiff.cards import Sampler, SamplerLimits
from synerdiff.errors import SynerDiffError
from synerdiff.rpc import ServiceHost
from synerdiff.tls import ServerTls
from synerdiff.v1 import images_pb2, images_pb2_grpc, operations_pb2, operations_pb2_grpc
from synerdiff.wire.public import model_card_to_pb
from synerdiff_cli.main import app
from tests import values
from tests.waiting import HANG_S

CARD = replace(values.CARD, default_sampler=Sampler.DDIM, samplers=(SamplerLimits(Sampler.DDIM, 1, 999),))


def synerdiff(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, list(arguments))


def png(color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(file, "PNG")
    return file.getvalue()


@dataclass
class Script:
    """What the fake scheduler answers, and what it was asked."""

    events: list[images_pb2.GenerateEvent] = field(default_factory=list)
    error: SynerDiffError | None = None
    trace_json: bytes = b""
    trace_domains: list[str] = field(default_factory=list)
    planning: list[operations_pb2.PlanningStatus] = field(default_factory=list)
    weights: list[images_pb2.Weights] = field(default_factory=list)
    hangs: bool = False
    late_s: float = 0.0
    requests: list[images_pb2.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    ticks: list[operations_pb2.WatchTicksResponse] = field(default_factory=list)

    def happen(self, **event: Any) -> None:
        """Let an event come next: its kind as the keyword, its message as the value."""
        sequence = len(self.events) + 1
        self.events.append(images_pb2.GenerateEvent(job_id="job-1", sequence=sequence, **event))

    def succeed(self, num_images: int = 1, warnings: tuple[str, ...] = ()) -> None:
        """Let a job be queued, run and finish with red pictures of 16 by 16 pixels."""
        self.happen(queued=images_pb2.Queued(position=2))
        self.happen(started=images_pb2.Started())
        for i in range(num_images):
            self.happen(progress=images_pb2.Progress(index=i, step=4, num_inference_steps=4, preview=png()))
            image = images_pb2.Image(
                index=i, seed=7 + i, width=16, height=16, format=images_pb2.IMAGE_FORMAT_PNG, data=png()
            )
            self.happen(image=image)
        self.happen(finished=images_pb2.Finished(warnings=warnings))


class _Images(images_pb2_grpc.ImageGenerationServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def Generate(
        self, request: images_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[images_pb2.GenerateEvent]:
        self._script.requests.append(request)
        self._script.metadata.append(dict(context.invocation_metadata()))
        async for event in self._play():
            yield event

    async def Watch(self, request: images_pb2.WatchRequest, context: Any) -> AsyncIterator[images_pb2.GenerateEvent]:
        async for event in self._play():
            yield event

    async def Submit(self, request: images_pb2.GenerateRequest, context: Any) -> images_pb2.Job:
        self._script.requests.append(request)
        return _job(images_pb2.JOB_STATE_QUEUED)

    async def GetJob(self, request: images_pb2.GetJobRequest, context: Any) -> images_pb2.Job:
        if self._script.error is not None:
            raise self._script.error
        return _job(images_pb2.JOB_STATE_QUEUED)

    async def GetImage(self, request: images_pb2.GetImageRequest, context: Any) -> images_pb2.Image:
        return next(event.image for event in self._script.events if event.HasField("image"))

    async def CancelJob(self, request: images_pb2.CancelJobRequest, context: Any) -> images_pb2.Job:
        self._script.cancelled.append(request.job_id)
        return _job(images_pb2.JOB_STATE_CANCELLED)

    async def DeleteJob(self, request: images_pb2.DeleteJobRequest, context: Any) -> images_pb2.DeleteJobResponse:
        if self._script.error is not None:
            raise self._script.error
        self._script.deleted.append(request.job_id)
        return images_pb2.DeleteJobResponse()

    async def ListModels(self, request: images_pb2.ListModelsRequest, context: Any) -> images_pb2.ListModelsResponse:
        card = model_card_to_pb(CARD, available=True)
        card.weights.extend(self._script.weights)
        return images_pb2.ListModelsResponse(models=[card])

    async def _play(self) -> AsyncIterator[images_pb2.GenerateEvent]:
        if self._script.error is not None:
            raise self._script.error
        await asyncio.sleep(self._script.late_s)
        for event in self._script.events:
            yield event
        if self._script.hangs:
            await asyncio.sleep(600)


class _Operations(operations_pb2_grpc.OperationsServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def GetStatus(
        self, request: operations_pb2.GetStatusRequest, context: Any
    ) -> operations_pb2.GetStatusResponse:
        worker = operations_pb2.WorkerStatus(worker_id="unet-emoji-0", kind="unet", slots=32, slots_used=3)
        return operations_pb2.GetStatusResponse(
            pool="default", leader=True, policy="continuous", workers=[worker], planning=self._script.planning
        )

    async def GetTrace(self, request: operations_pb2.GetTraceRequest, context: Any) -> operations_pb2.GetTraceResponse:
        self._script.trace_domains.append(request.domain)
        if self._script.error is not None:
            raise self._script.error
        return operations_pb2.GetTraceResponse(trace_json=self._script.trace_json)

    async def WatchTicks(
        self, request: operations_pb2.WatchTicksRequest, context: Any
    ) -> AsyncIterator[operations_pb2.WatchTicksResponse]:
        if self._script.error is not None:
            raise self._script.error
        for message in self._script.ticks:
            yield message
        await asyncio.sleep(600)


def _job(state: "images_pb2.JobState.ValueType") -> images_pb2.Job:
    return images_pb2.Job(job_id="job-1", state=state, position=2, model="emoji", seed=7)


class FakeScheduler:
    """Serves `script` from a thread of its own between `start` and `stop`."""

    def __init__(self, tls: ServerTls | None = None) -> None:
        self.script = Script()
        self._tls = tls
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._host, self.address = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(HANG_S)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._host.drain(0), self._loop).result(HANG_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG_S)
        self._loop.close()

    async def _serve(self) -> tuple[ServiceHost, str]:
        host = ServiceHost(tls=self._tls)
        images, operations = _Images(self.script), _Operations(self.script)
        host.add("synerdiff.v1.ImageGeneration", images_pb2_grpc.add_ImageGenerationServicer_to_server, images)
        host.add("synerdiff.v1.Operations", operations_pb2_grpc.add_OperationsServicer_to_server, operations)
        return host, await host.start("127.0.0.1:0")
