"""The leader's streams to its workers: one long-lived Run each, opened once it is announced, reopened when it breaks.

Thin by intent: commands go out in the order they were given, reports go to the engine as they come. What a report means
is the engine's affair; that a stream began or ended is told to it like any other event.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import grpc

from services.scheduler.engine.effects import (
    Admit,
    CancelOnWorker,
    ForgetImages,
    ReleaseSlots,
    SendUnetPlan,
    SendVaePlan,
    WorkerEffect,
)
from services.scheduler.engine.events import Report, Reported, UnetAttached, VaeAttached, WorkerAnnounced, WorkerLost
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.leading.listener import Listener
from synerdiff.cancellation import cancel_and_wait
from synerdiff.errors import StaleLeader
from synerdiff.registry import WorkerRecord
from synerdiff.rpc import open_channel
from synerdiff.status import from_rpc_error
from synerdiff.telemetry import get_logger
from synerdiff.tls import BadTlsFiles, ClientTls
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire import stages

log = get_logger("workers")

ATTACH_TIMEOUT_S = 10.0


Command = stages_pb2.UnetCommand | stages_pb2.VaeCommand


class WorkerStream:
    """A stream to one worker. `run` returns when it has ended; `send` never blocks."""

    def __init__(
        self, record: WorkerRecord, token: int, leader_id: str, leader: Listener, tls: ClientTls | None
    ) -> None:
        self.record = record
        self._tls = tls
        self._token = token
        self._leader_id = leader_id
        self._leader = leader
        self._outgoing: asyncio.Queue[Command] = asyncio.Queue()

    def send(self, effect: WorkerEffect) -> None:
        """Queue a command for the worker."""
        self._outgoing.put_nowait((_unet_command if self.record.kind == "unet" else _vae_command)(effect))

    async def run(self) -> None:
        """Attach and serve the stream until it ends.

        Raises grpc.aio.AioRpcError or TimeoutError as it ended, BadTlsFiles where it could not begin.
        """
        async with open_channel(self.record.address, tls=self._tls) as channel:
            if self.record.kind == "unet":
                await self._run_unet(channel)
            else:
                await self._run_vae(channel)

    async def _run_unet(self, channel: grpc.aio.Channel) -> None:
        call = stages_pb2_grpc.UnetStageStub(channel).Run()
        await call.write(stages_pb2.UnetCommand(attach=self._attach()))
        first: stages_pb2.UnetReport = await _first_report(call)
        attached = first.attached
        lane = UnetLaneState(
            self.record.worker_id,
            self.record.domain,
            self.record.model_card.name,
            draining=attached.draining,
            slots=attached.slots,
            shares_cores=self.record.threads > 0,
            arena_address=attached.arena_address or self.record.address,
            weights=self.record.weights,
        )
        resident = tuple(stages.resident_task_from_pb(task) for task in attached.resident)
        self._leader.on(UnetAttached(lane, resident))
        await self._serve(call, self._unet_report)

    async def _run_vae(self, channel: grpc.aio.Channel) -> None:
        stub = stages_pb2_grpc.VaeStageStub(channel)
        call = stub.Run()
        await call.write(stages_pb2.VaeCommand(attach=self._attach()))
        first: stages_pb2.VaeReport = await _first_report(call)
        record = self.record
        lane = VaeLaneState(
            record.worker_id,
            record.domain,
            record.model_card.name,
            draining=first.attached.draining,
            weights=record.weights,
        )
        self._leader.on(VaeAttached(lane))
        images = asyncio.create_task(self._receive_images(stub))
        try:
            await self._serve(call, self._vae_report)
        finally:
            images.cancel()

    def _attach(self) -> stages_pb2.Attach:
        return stages_pb2.Attach(leader_token=self._token, domain=self.record.domain, leader_id=self._leader_id)

    async def _serve(self, call: "grpc.aio.StreamStreamCall", handle: Callable[..., None]) -> None:
        log.info("worker attached", worker_id=self.record.worker_id, address=self.record.address)
        writer = asyncio.create_task(self._write(call))
        try:
            while (report := await call.read()) is not grpc.aio.EOF:
                handle(report)
        finally:
            writer.cancel()
            call.cancel()
            self._leader.on(WorkerLost(self.record.worker_id))

    async def _write(self, call: "grpc.aio.StreamStreamCall") -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader sees the same end
            while True:
                await call.write(await self._outgoing.get())

    async def _receive_images(self, stub: Any) -> None:
        """Images come on a stream of their own; one that breaks is opened again and what was not stored comes again."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for image in stub.Images(stages_pb2.ImagesRequest(leader_token=self._token)):
                    self._report(stages.decoded_image_from_pb(image))
            await asyncio.sleep(0.1)

    def _unet_report(self, report: stages_pb2.UnetReport) -> None:
        kind = report.WhichOneof("report")
        if kind == "tick_done":
            self._report(stages.unet_tick_done_from_pb(report.tick_done))
        elif kind == "task_ready":
            self._report(stages.task_ready_from_pb(report.task_ready))
        elif kind == "task_failed":
            self._report(stages.task_failed_from_pb(report.task_failed))
        elif kind == "preview":
            self._report(stages.preview_from_pb(report.preview))

    def _vae_report(self, report: stages_pb2.VaeReport) -> None:
        kind = report.WhichOneof("report")
        if kind == "tick_done":
            self._report(stages.vae_tick_done_from_pb(report.tick_done))
        elif kind == "task_failed":
            self._report(stages.task_failed_from_pb(report.task_failed))

    def _report(self, report: Report) -> None:
        self._leader.on(Reported(self.record.worker_id, report))


async def _first_report(call: "grpc.aio.StreamStreamCall") -> Any:
    """The answer to the attach. Raises AioRpcError when the worker refuses, TimeoutError when it says nothing."""
    report = await asyncio.wait_for(call.read(), ATTACH_TIMEOUT_S)
    if report is grpc.aio.EOF:
        trailing = grpc.aio.Metadata(*(await call.trailing_metadata() or ()))
        raise grpc.aio.AioRpcError(await call.code(), grpc.aio.Metadata(), trailing, await call.details())
    return report


class WorkerStreams:
    """The streams to every announced worker of a pool."""

    def __init__(self, token: int, leader: Listener, tls: ClientTls | None = None) -> None:
        self._token = token
        self._leader_id = uuid.uuid4().hex  # of this leadership: Redis may give its token out again
        self._leader = leader
        self._tls = tls
        self._streams: dict[str, WorkerStream] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def send(self, effect: WorkerEffect) -> None:
        """Pass a command on. To a worker whose stream has just ended it is dropped: the engine hears of that end."""
        stream = self._streams.get(effect.worker_id)
        if stream:
            stream.send(effect)

    def reconcile(self, announced: list[WorkerRecord]) -> None:
        """Open a stream to each announced worker without one; say which of the others take nothing new any more.

        A worker that drains says so and withdraws in the end. One whose record ran out while Redis was away comes back,
        and is told of again.
        """
        known = {record.worker_id: record for record in announced}
        for worker_id, stream in list(self._streams.items()):
            record = known.get(worker_id)
            takes_new = record is not None and not record.draining
            self._leader.on(WorkerAnnounced(worker_id, takes_new))
            if record is None:
                continue
            if record.address != stream.record.address or record.pid != stream.record.pid:
                self._tasks[worker_id].cancel()  # another life of the same worker
        for worker_id, record in known.items():
            if worker_id not in self._streams:
                stream = self._streams[worker_id] = WorkerStream(
                    record, self._token, self._leader_id, self._leader, self._tls
                )
                self._tasks[worker_id] = asyncio.create_task(self._run(stream))

    async def _run(self, stream: WorkerStream) -> None:
        worker_id = stream.record.worker_id
        try:
            await stream.run()
        except grpc.aio.AioRpcError as error:
            log.info("worker stream ended", worker_id=worker_id, code=str(error.code()), details=error.details())
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                refusal = from_rpc_error(error)
                self._leader.superseded(refusal.newest_token if isinstance(refusal, StaleLeader) else 0)
        except TimeoutError:
            log.warning("worker did not answer", worker_id=worker_id, address=stream.record.address)
        except BadTlsFiles as error:
            log.error("worker cannot be called", worker_id=worker_id, reason=str(error))
        finally:
            self._streams.pop(worker_id, None)
            self._tasks.pop(worker_id, None)

    async def close(self) -> None:
        """End every stream. Workers keep their tasks for the next leader."""
        await cancel_and_wait(*self._tasks.values())


def _unet_command(effect: WorkerEffect) -> Command:
    match effect:
        case SendUnetPlan(plan=plan):
            return stages_pb2.UnetCommand(plan=stages.unet_plan_to_pb(plan))
        case Admit(task=task):
            return stages_pb2.UnetCommand(admit=stages.task_spec_to_pb(task))
        case CancelOnWorker(task_ids=task_ids):
            return stages_pb2.UnetCommand(cancel=stages_pb2.CancelTasks(task_ids=task_ids))
        case ReleaseSlots(task_ids=task_ids):
            return stages_pb2.UnetCommand(release=stages_pb2.CancelTasks(task_ids=task_ids))
        case _:
            raise TypeError(f"not a UNet worker's: {effect}")


def _vae_command(effect: WorkerEffect) -> Command:
    match effect:
        case SendVaePlan(plan=plan):
            return stages_pb2.VaeCommand(plan=stages.vae_plan_to_pb(plan))
        case CancelOnWorker(task_ids=task_ids):
            return stages_pb2.VaeCommand(cancel=stages_pb2.CancelTasks(task_ids=task_ids))
        case ForgetImages(task_ids=task_ids):
            return stages_pb2.VaeCommand(stored=stages_pb2.CancelTasks(task_ids=task_ids))
        case _:
            raise TypeError(f"not a VAE worker's: {effect}")
