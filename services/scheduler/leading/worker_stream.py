"""The leader's stream to one worker: commands go out in the order they were given, reports to the engine as they come.

A stream is whole or over: the end of one part ends the others, and the leader calls the worker again. A device that
hangs leaves its process alive, its stream open and its health SERVING: only the missing reports show it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from services.scheduler.engine import effects
from services.scheduler.engine.events import (
    Event,
    Report,
    Reported,
    UnetAttached,
    VaeAttached,
    WorkerAnnounced,
    WorkerLost,
)
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.plans import TaskFailed, TaskReady, UnetTickDone, VaeTickDone
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
# The limit of a plan's time over its prediction. A machine slowed tenfold by its neighbours takes ten times as
# long, and waits three times as long for the other worker (`dispatch`): less than half of this.
TIMES_PREDICTED = 30
# However short the prediction: a graph is captured, a compiled package comes into use, a host is moved.
LEAST_S = 60.0
SUSPECT_AT = 0.5
_INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]

_Reports = Mapping[str, Callable[[Any], Report]]
_VAE_REPORTS: _Reports = {"tick_done": stages.vae_tick_done_from_pb, "task_failed": stages.task_failed_from_pb}
_UNET_REPORTS: _Reports = {
    "tick_done": stages.unet_tick_done_from_pb,
    "task_failed": stages.task_failed_from_pb,
    "task_ready": stages.task_ready_from_pb,
    "preview": stages.preview_from_pb,
}
Command = stages_pb2.UnetCommand | stages_pb2.VaeCommand


class Listener(Protocol):
    """A leader, or one that only measures. Called on the event loop; must not block, and does not raise."""

    def on(self, event: Event) -> None:
        """Something has happened."""

    def superseded(self, newest_token: int = 0) -> None:
        """Another leader has taken over; `newest_token`: the newest that a worker has seen, 0 if unknown."""

    def failed(self, error: BaseException) -> None:
        """A part that reports here cannot go on: the leadership that it is part of ends, and another begins."""


@dataclass(frozen=True)
class Patience:
    """`unpredicted_s`: for a prompt, each item of a plan that no profile predicts, and at least for a first plan."""

    unpredicted_s: float = 600.0

    def of(self, plan: effects.SendUnetPlan | effects.SendVaePlan, *, warm: bool) -> float:
        """For the plan, in seconds, from when the worker is done with the one before. `warm`: it has run one before."""
        if not plan.predicted_ms:
            return self.unpredicted_s * len(plan.plan.items)
        least_s = min(LEAST_S, self.unpredicted_s) if warm else self.unpredicted_s
        return max(TIMES_PREDICTED * plan.predicted_ms / 1000, least_s)


@dataclass
class _Line:
    """Requests that are done one after the other: the worker may take `allowed_s` for the first, and took `taken_s`."""

    allowed_s: dict[int | str, float] = field(default_factory=dict)
    taken_s: float = 0.0

    def expect(self, key: int | str, allowed_s: float) -> None:
        if not self.allowed_s:
            self.taken_s = 0.0
        self.allowed_s[key] = allowed_s

    def is_over(self, *keys: int | str) -> bool:
        """Whether one of these was expected: then the next has its time from now on."""
        known = [self.allowed_s.pop(key, None) for key in keys]
        over = any(allowed_s is not None for allowed_s in known)
        if over:
            self.taken_s = 0.0
        return over

    def used(self) -> float:
        return self.taken_s / next(iter(self.allowed_s.values())) if self.allowed_s else 0.0


class PlanWatch:
    """The requests to one worker on one stream that await an answer. Reads no clock: see `after`.

    `stretch`: factor on the usual patience. `warm`: this process of the worker has run a plan before. `answered`:
    something that takes the device has been answered.
    """

    def __init__(self, patience: Patience, stretch: float = 1.0, *, warm: bool = False) -> None:
        self.answered = False
        self._warm = warm
        self._patience = patience
        self._stretch = stretch
        self._plans, self._prompts = _Line(), _Line()

    def sent(self, effect: effects.WorkerEffect) -> None:
        """A command went to the worker: a request, or the release of tasks."""
        match effect:
            case effects.SendUnetPlan() | effects.SendVaePlan():
                self._plans.expect(effect.plan.tick, self._patience.of(effect, warm=self._warm) * self._stretch)
            case effects.Admit(task=task):
                self._prompts.expect(task.task_id, self._patience.unpredicted_s * self._stretch)
            case effects.CancelOnWorker(task_ids=task_ids) | effects.ReleaseSlots(task_ids=task_ids):
                self._prompts.is_over(*task_ids)

    def reported(self, report: Report) -> None:
        """The worker has answered."""
        match report:
            case UnetTickDone() | VaeTickDone():
                if self._plans.is_over(report.tick):
                    self.answered = self._warm = True
            case TaskReady() | TaskFailed():
                self.answered |= self._prompts.is_over(report.task_id)

    def after(self, seconds: float) -> float:
        """Let time pass, by how often this is called, not by the clock. Returns how much patience is used up, of 1."""
        for line in (self._plans, self._prompts):
            line.taken_s += seconds
        return max(self._plans.used(), self._prompts.used())

    def awaited(self) -> Iterable[str]:
        """The awaited answers, in words."""
        for what, line in (("tick", self._plans), ("prompt of task", self._prompts)):
            for key, allowed_s in list(line.allowed_s.items())[:1]:
                yield f"{what} {key}: {line.taken_s:g} of {allowed_s:g} s"


class Overdue(Exception):
    """A worker has not answered in the longest time that one with a working device could need."""


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
        self._names = record.worker_id, record.domain, record.model_card.name
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
        self._leader.on(WorkerAnnounced(self.record.worker_id, takes_new, self._suspect))

    async def run(self) -> None:
        """Attach and serve the stream until it ends. Raises grpc.aio.AioRpcError or TimeoutError as it ended,
        BadTlsFiles where it could not begin, Overdue where the worker has to be given up."""
        async with open_channel(self.record.address, tls=self._tls) as channel:
            if self.record.kind == "unet":
                await self._run_unet(channel)
            else:
                await self._run_vae(channel)

    async def _run_unet(self, channel: grpc.aio.Channel) -> None:
        call = stages_pb2_grpc.UnetStageStub(channel).Run()
        await call.write(stages_pb2.UnetCommand(attach=self._attach))
        attached: stages_pb2.UnetAttached = (await _first_report(call)).attached
        lane = UnetLaneState(
            *self._names,
            draining=attached.draining,
            slots=attached.slots,
            shares_cores=self.record.threads > 0,
            arena_address=attached.arena_address or self.record.address,
            weights=self.record.weights,
        )
        resident = tuple(stages.resident_task_from_pb(task) for task in attached.resident)
        self._leader.on(UnetAttached(lane, resident))
        await self._serve(call, _UNET_REPORTS)

    async def _run_vae(self, channel: grpc.aio.Channel) -> None:
        stub = stages_pb2_grpc.VaeStageStub(channel)
        call = stub.Run()
        await call.write(stages_pb2.VaeCommand(attach=self._attach))
        attached: stages_pb2.VaeAttached = (await _first_report(call)).attached
        lane = VaeLaneState(*self._names, draining=attached.draining, weights=self.record.weights)
        self._leader.on(VaeAttached(lane))
        await self._serve(call, _VAE_REPORTS, self._receive_images(stub))

    async def _serve(
        self, call: "grpc.aio.StreamStreamCall", known: _Reports, *more: Coroutine[None, None, None]
    ) -> None:
        log.info("worker attached", worker_id=self.record.worker_id, address=self.record.address)
        reading = asyncio.create_task(self._read(call, known))
        parts = [reading, *map(asyncio.create_task, (self._write(call, reading), self._look(), *more))]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            await cancel_and_wait(*parts)
            call.cancel()
            self._leader.on(WorkerLost(self.record.worker_id))

    async def _read(self, call: "grpc.aio.StreamStreamCall", known: _Reports) -> None:
        while (report := await call.read()) is not grpc.aio.EOF:
            kind = report.WhichOneof("report")
            if kind in known:
                self._report(known[kind](getattr(report, kind)))

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
                metrics.overdue.labels(kind, "lost").inc()
                metrics.losses.labels(kind).inc()
                raise Overdue("; ".join(self.watch.awaited()))
            if (used >= SUSPECT_AT) is not self._suspect:
                self._suspect = not self._suspect
                if self._suspect:
                    metrics.overdue.labels(kind, "suspect").inc()
                    log.warning(
                        "worker is overdue: nothing new for it", worker_id=worker_id, of=[*self.watch.awaited()]
                    )
                else:
                    log.info("worker is not overdue any more", worker_id=worker_id)
                self.announced(self._announced)

    async def _receive_images(self, stub: Any) -> None:
        """Images come on a stream of their own; a broken one is opened again, and images not stored come again.
        Raises grpc.aio.AioRpcError where that does not help."""
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
        """Report an image. An unreadable one would come again for ever: its job fails, and the worker forgets it."""
        try:
            self._report(stages.decoded_image_from_pb(image))
        except ValueError as error:
            worker_id, task_id = self.record.worker_id, image.task_id
            log.error("an image cannot be read: its job fails", worker_id=worker_id, task_id=task_id, reason=str(error))
            PoolMetrics.of_process().unreadable.labels(self.record.kind).inc()
            self._report(TaskFailed(task_id, _INTERNAL, f"the image of worker {worker_id} cannot be read: {error}"))
            self.send(effects.ForgetImages(worker_id, (task_id,)))

    def _report(self, report: Report) -> None:
        self.watch.reported(report)
        self._leader.on(Reported(self.record.worker_id, report))


async def _first_report(call: "grpc.aio.StreamStreamCall") -> Any:
    """The answer to the attach. Raises AioRpcError when the worker refuses, TimeoutError without an answer."""
    report = await asyncio.wait_for(call.read(), ATTACH_TIMEOUT_S)
    if report is grpc.aio.EOF:
        trailing = grpc.aio.Metadata(*(await call.trailing_metadata() or ()))
        raise grpc.aio.AioRpcError(await call.code(), grpc.aio.Metadata(), trailing, await call.details())
    return report


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
