"""The leader's stream to one worker: commands go out in the order they were given, reports to the engine as they come.

Thin by intent. What a report means is the engine's affair; that a stream began or ended is told to it like any other
event. A stream is whole or over: what ends one part of it, ends it, and the worker is called again.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from services.scheduler.engine import effects
from services.scheduler.engine.events import Report, Reported, UnetAttached, VaeAttached, WorkerAnnounced, WorkerLost
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.leading.options import Listener
from services.scheduler.leading.plan_watch import SUSPECT_AT, PlanWatch
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.plans import TaskFailed
from synerdiff.registry import WorkerRecord
from synerdiff.rpc import open_channel
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger
from synerdiff.tls import ClientTls
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire import stages

log = get_logger("workers")

ATTACH_TIMEOUT_S = 10.0
LOOK_EVERY_S = 0.5
IMAGES_AGAIN_S = 0.5
IMAGES_TRIES = 5  # in a row without an image
_INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]

Command = stages_pb2.UnetCommand | stages_pb2.VaeCommand


class Overdue(Exception):
    """A worker has not answered in a time that one whose device works could need."""


class WorkerStream:
    """A stream to one worker. `run` returns when it has ended; `send` never blocks."""

    def __init__(
        self, record: WorkerRecord, attach: stages_pb2.Attach, leader: Listener, tls: ClientTls | None, watch: PlanWatch
    ) -> None:
        self.record = record
        self.watch = watch
        self._attach = attach
        self._leader = leader
        self._tls = tls
        self._announced = True
        self._suspect = False
        self._outgoing: asyncio.Queue[Command] = asyncio.Queue()

    def send(self, effect: effects.WorkerEffect) -> None:
        """Queue a command for the worker."""
        self.watch.sent(effect)
        self._outgoing.put_nowait((_unet_command if self.record.kind == "unet" else _vae_command)(effect))

    def announced(self, takes_new: bool) -> None:
        """Whether the worker announces that it takes new work. It is given none while its reports are overdue."""
        self._announced = takes_new
        self._leader.on(WorkerAnnounced(self.record.worker_id, takes_new and not self._suspect))

    async def run(self) -> None:
        """Attach and serve the stream until it ends.

        Raises grpc.aio.AioRpcError or TimeoutError as it ended, BadTlsFiles where it could not begin, Overdue where the
        worker has to be given up.
        """
        async with open_channel(self.record.address, tls=self._tls) as channel:
            if self.record.kind == "unet":
                await self._run_unet(channel)
            else:
                await self._run_vae(channel)

    async def _run_unet(self, channel: grpc.aio.Channel) -> None:
        call = stages_pb2_grpc.UnetStageStub(channel).Run()
        await call.write(stages_pb2.UnetCommand(attach=self._attach))
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
        await call.write(stages_pb2.VaeCommand(attach=self._attach))
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
        await self._serve(call, self._vae_report, self._receive_images(stub))

    async def _serve(
        self, call: "grpc.aio.StreamStreamCall", handle: Callable[[Any], None], *more: Coroutine[None, None, None]
    ) -> None:
        log.info("worker attached", worker_id=self.record.worker_id, address=self.record.address)
        reading = asyncio.create_task(_read(call, handle))
        parts = [reading, *map(asyncio.create_task, (self._write(call, reading), self._look(), *more))]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            await cancel_and_wait(*parts)
            call.cancel()
            self._leader.on(WorkerLost(self.record.worker_id))

    async def _write(self, call: "grpc.aio.StreamStreamCall", reading: "asyncio.Task[None]") -> None:
        try:
            while True:
                await call.write(await self._outgoing.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await asyncio.wait([reading])  # it sees the same end, and how

    async def _look(self) -> None:
        """Give the worker nothing new while its reports are overdue, and give it up in the end. Raises Overdue."""
        kind, worker_id, metrics = self.record.kind, self.record.worker_id, PoolMetrics.of_process()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            used = self.watch.after(LOOK_EVERY_S)
            if used >= 1:
                metrics.worker_overdue(kind, "lost")
                raise Overdue("; ".join(self.watch.awaited()))
            if (used >= SUSPECT_AT) is not self._suspect:
                self._suspect = not self._suspect
                if self._suspect:
                    metrics.worker_overdue(kind, "suspect")
                    log.warning(
                        "worker is overdue: nothing new for it", worker_id=worker_id, of=[*self.watch.awaited()]
                    )
                else:
                    log.info("worker is not overdue any more", worker_id=worker_id)
                self.announced(self._announced)

    async def _receive_images(self, stub: Any) -> None:
        """Images come on a stream of their own; one that breaks is opened again and what was not stored comes again.

        Raises grpc.aio.AioRpcError where that does not help.
        """
        tries = 0
        while True:
            try:
                async for image in stub.Images(stages_pb2.ImagesRequest(leader_token=self._attach.leader_token)):
                    tries = 0
                    self._image(image)
                how = "it ended"
            except grpc.aio.AioRpcError as error:
                tries += 1
                if tries == IMAGES_TRIES or error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                how = f"{error.code()}: {error.details()}"
            log.warning("image stream is opened again", worker_id=self.record.worker_id, reason=how)
            await asyncio.sleep(IMAGES_AGAIN_S)

    def _image(self, image: stages_pb2.DecodedImage) -> None:
        """One that cannot be read would come again for ever: its job fails, and the worker may forget it."""
        try:
            self._report(stages.decoded_image_from_pb(image))
        except ValueError as error:
            worker_id, task_id = self.record.worker_id, image.task_id
            log.error("an image cannot be read: its job fails", worker_id=worker_id, task_id=task_id, reason=str(error))
            PoolMetrics.of_process().report_unreadable(self.record.kind)
            self._report(TaskFailed(task_id, _INTERNAL, f"the image of worker {worker_id} cannot be read: {error}"))
            self.send(effects.ForgetImages(worker_id, (task_id,)))

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
        self.watch.reported(report)
        self._leader.on(Reported(self.record.worker_id, report))


async def _first_report(call: "grpc.aio.StreamStreamCall") -> Any:
    """The answer to the attach. Raises AioRpcError when the worker refuses, TimeoutError when it says nothing."""
    report = await asyncio.wait_for(call.read(), ATTACH_TIMEOUT_S)
    if report is grpc.aio.EOF:
        trailing = grpc.aio.Metadata(*(await call.trailing_metadata() or ()))
        raise grpc.aio.AioRpcError(await call.code(), grpc.aio.Metadata(), trailing, await call.details())
    return report


async def _read(call: "grpc.aio.StreamStreamCall", handle: Callable[[Any], None]) -> None:
    while (report := await call.read()) is not grpc.aio.EOF:
        handle(report)


def _unet_command(effect: effects.WorkerEffect) -> Command:
    match effect:
        case effects.SendUnetPlan(plan=plan):
            return stages_pb2.UnetCommand(plan=stages.unet_plan_to_pb(plan))
        case effects.Admit(task=task):
            return stages_pb2.UnetCommand(admit=stages.task_spec_to_pb(task))
        case effects.CancelOnWorker(task_ids=task_ids):
            return stages_pb2.UnetCommand(cancel=stages_pb2.CancelTasks(task_ids=task_ids))
        case effects.ReleaseSlots(task_ids=task_ids):
            return stages_pb2.UnetCommand(release=stages_pb2.CancelTasks(task_ids=task_ids))
        case _:
            raise TypeError(f"not a UNet worker's: {effect}")


def _vae_command(effect: effects.WorkerEffect) -> Command:
    match effect:
        case effects.SendVaePlan(plan=plan):
            return stages_pb2.VaeCommand(plan=stages.vae_plan_to_pb(plan))
        case effects.CancelOnWorker(task_ids=task_ids):
            return stages_pb2.VaeCommand(cancel=stages_pb2.CancelTasks(task_ids=task_ids))
        case effects.ForgetImages(task_ids=task_ids):
            return stages_pb2.VaeCommand(stored=stages_pb2.CancelTasks(task_ids=task_ids))
        case _:
            raise TypeError(f"not a VAE worker's: {effect}")
