"""The VaeStage service: one leader's commands in, reports and image files out."""

import asyncio
from collections.abc import AsyncIterator

import grpc

from services.vae_worker.decode_loop import DecodeLoop
from services.vae_worker.outbox import Outbox
from synerdiff.errors import FieldViolation, InvalidRequest, StaleLeader, SynerDiffError
from synerdiff.leadership_guard import LeaderGuard
from synerdiff.pace import check_paced
from synerdiff.plans import TaskFailed, VaePlan, VaeTickDone
from synerdiff.telemetry import get_logger
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import decoded_image_to_pb, task_failed_to_pb, vae_plan_from_pb, vae_tick_done_to_pb

log = get_logger("service")


class _LeaderStream:
    """The reports of one Run stream, until it is ended from either side."""

    def __init__(self, token: int) -> None:
        self.token = token
        self._reports: asyncio.Queue[stages_pb2.VaeReport | SynerDiffError | None] = asyncio.Queue()

    def report(self, message: VaeTickDone | TaskFailed) -> None:
        if isinstance(message, TaskFailed):
            self._reports.put_nowait(stages_pb2.VaeReport(task_failed=task_failed_to_pb(message)))
        else:
            self._reports.put_nowait(stages_pb2.VaeReport(tick_done=vae_tick_done_to_pb(message)))

    def end(self, error: SynerDiffError | None = None) -> None:
        """End the stream after the reports it has, well or with `error`."""
        self._reports.put_nowait(error)

    async def reports(self) -> AsyncIterator[stages_pb2.VaeReport]:
        while (report := await self._reports.get()) is not None:
            if isinstance(report, SynerDiffError):
                raise report
            yield report


class VaeStageServicer(stages_pb2_grpc.VaeStageServicer):
    """Serves one leader at a time: the one with the highest token, on its newest stream."""

    def __init__(self, worker_id: str, loop: DecodeLoop, outbox: Outbox) -> None:
        self._worker_id = worker_id
        self._loop = loop
        self._outbox = outbox
        self._guard = LeaderGuard()
        self._stream: _LeaderStream | None = None
        self._draining = False
        self._leaderless = asyncio.Event()
        self._leaderless.set()

    def start_draining(self) -> None:
        """Tell leaders that attach from now on to plan nothing new here."""
        self._draining = True

    def end_streams(self, error: SynerDiffError | None = None) -> None:
        """End every stream after what it still has to say."""
        if self._stream is not None:
            self._stream.end(error)
        self._outbox.end_streams()

    async def leaderless(self) -> None:
        """Wait until no leader is attached."""
        await self._leaderless.wait()

    async def Run(
        self, request_iterator: AsyncIterator[stages_pb2.VaeCommand], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[stages_pb2.VaeReport]:
        """One leader's stream: see stages.proto."""
        stream = self._attach(await anext(request_iterator, stages_pb2.VaeCommand()))
        commands = asyncio.create_task(self._obey(request_iterator, stream))
        try:
            attached = stages_pb2.VaeAttached(worker_id=self._worker_id, draining=self._draining)
            yield stages_pb2.VaeReport(attached=attached)
            async for report in stream.reports():
                yield report
        finally:
            commands.cancel()
            if self._stream is stream:
                self._stream = None
                self._leaderless.set()
                self._loop.drop_plans()

    async def Images(
        self, request: stages_pb2.ImagesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[stages_pb2.DecodedImage]:
        """Image files that are not stored yet, then those that come: see stages.proto."""
        if request.leader_token < self._guard.token:
            raise self._guard.stale(request.leader_token)
        async for image in self._outbox.follow(request.leader_token):
            yield decoded_image_to_pb(image)

    def _attach(self, command: stages_pb2.VaeCommand) -> _LeaderStream:
        if command.WhichOneof("command") != "attach":
            raise InvalidRequest(FieldViolation("command", "the first message of a stream must be attach"))
        token = command.attach.leader_token
        self._guard.attach(token, command.attach.leader_id)
        if self._stream is not None:
            newer = token > self._stream.token
            self._stream.end(StaleLeader(f"leader token {token} holds this worker now", token) if newer else None)
            self._loop.drop_plans()
        self._outbox.end_streams(older_than=token)
        self._stream = _LeaderStream(token)
        self._leaderless.clear()
        log.info("leader attached", leader_token=token, domain=command.attach.domain)
        return self._stream

    async def _obey(self, commands: AsyncIterator[stages_pb2.VaeCommand], stream: _LeaderStream) -> None:
        """Carry out a stream's commands for as long as it is the newest; then end it."""
        error: SynerDiffError | None = None
        try:
            async for command in commands:
                if self._stream is not stream:
                    return
                self._carry_out(command, stream)
        except InvalidRequest as refused:
            error = refused
        except Exception:
            log.exception("a leader's commands could not be carried out")
            error = SynerDiffError("a command could not be carried out; the worker's log says why")
        stream.end(error)

    def _carry_out(self, command: stages_pb2.VaeCommand, stream: _LeaderStream) -> None:
        match command.WhichOneof("command"):
            case "plan":
                self._take_plan(command.plan, stream)
            case "cancel":
                self._loop.cancel(command.cancel.task_ids)
            case "stored":
                self._outbox.forget(command.stored.task_ids)
            case other:
                raise InvalidRequest(FieldViolation("command", f"{other} is not expected after the first message"))

    def _take_plan(self, pb: stages_pb2.VaePlan, stream: _LeaderStream) -> None:
        try:
            plan = vae_plan_from_pb(pb)
            check_paced(plan.tick, (item.execution for item in plan.items))
            _check_chunks(plan)
        except ValueError as error:
            raise InvalidRequest(FieldViolation("plan", str(error))) from error
        if self._guard.accepts(plan.leader_token, plan.tick):
            self._loop.submit(plan, stream.report)
        else:
            log.info(
                "plan ignored: repeated, older or another leader's", leader_token=plan.leader_token, tick=plan.tick
            )


def _check_chunks(plan: VaePlan) -> None:
    for entry in (entry for item in plan.items for entry in item.entries):
        if not 0 <= entry.first_chunk < entry.end_chunk <= entry.chunks:
            chunks = f"chunks {entry.first_chunk} to {entry.end_chunk} of {entry.chunks}"
            raise ValueError(f"{entry.task_id}: {chunks} is not a part of a decode")
