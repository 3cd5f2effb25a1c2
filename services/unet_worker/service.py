"""The UnetStage servicer: messages in, the worker's methods, messages out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc

from services.unet_worker.outbox import Report
from services.unet_worker.worker import Leader, UnetWorker, superseded
from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff.pace import check_paced
from synerdiff.plans import Preview, TaskFailed, TaskReady, UnetPlan
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import (
    preview_to_pb,
    resident_task_to_pb,
    task_failed_to_pb,
    task_ready_to_pb,
    task_spec_from_pb,
    unet_plan_from_pb,
    unet_tick_done_to_pb,
)


class UnetStageServicer(stages_pb2_grpc.UnetStageServicer):
    """Serves one worker. `arena_address` is "host:port" of its LatentsArena, as VAE workers reach it."""

    def __init__(self, worker: UnetWorker, worker_id: str) -> None:
        self.arena_address = ""
        self._worker = worker
        self._worker_id = worker_id

    async def Run(
        self, request_iterator: AsyncIterator[stages_pb2.UnetCommand], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[stages_pb2.UnetReport]:
        """One leader's stream: see stages.proto."""
        attach = await _attach(request_iterator)
        leader = await self._worker.attach(attach.leader_token, attach.leader_id)
        obeying = asyncio.create_task(self._obey(request_iterator, leader))
        try:
            yield stages_pb2.UnetReport(attached=self._attached(leader))
            async for message in leader.outbox.messages():
                yield _report(message)
            if leader.superseded:
                raise superseded(leader)
            await obeying
        finally:
            obeying.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await obeying
            self._worker.detach(leader)

    def _attached(self, leader: Leader) -> stages_pb2.UnetAttached:
        return stages_pb2.UnetAttached(
            worker_id=self._worker_id,
            slots=self._worker.slots,
            arena_address=self.arena_address,
            resident=[resident_task_to_pb(resident) for resident in leader.residents],
            draining=self._worker.draining,
        )

    async def _obey(self, commands: AsyncIterator[stages_pb2.UnetCommand], leader: Leader) -> None:
        try:
            async for command in commands:
                if not self._worker.serves(leader):
                    return
                self._carry_out(command, leader)
        finally:
            leader.outbox.close()

    def _carry_out(self, command: stages_pb2.UnetCommand, leader: Leader) -> None:
        match command.WhichOneof("command"):
            case "plan":
                self._worker.run_plan(_plan(command.plan))
            case "admit":
                self._admit(command.admit, leader)
            case "cancel":
                self._worker.drop(command.cancel.task_ids, "cancelled")
            case "release":
                self._worker.drop(command.release.task_ids, "released")
            case unexpected:
                raise InvalidRequest(FieldViolation("command", f"{unexpected} cannot come after attach"))

    def _admit(self, pb: stages_pb2.TaskSpec, leader: Leader) -> None:
        try:
            spec = task_spec_from_pb(pb)
        except ValueError as error:
            leader.outbox.put(TaskFailed(pb.task_id, grpc.StatusCode.INVALID_ARGUMENT.value[0], f"sampler: {error}"))
        else:
            self._worker.admit(spec)


async def _attach(commands: AsyncIterator[stages_pb2.UnetCommand]) -> stages_pb2.Attach:
    first = await anext(aiter(commands), None)
    if first is None or first.WhichOneof("command") != "attach":
        raise InvalidRequest(FieldViolation("command", "the first message must be attach"))
    return first.attach


def _plan(pb: stages_pb2.UnetPlan) -> UnetPlan:
    plan = unet_plan_from_pb(pb)
    try:
        check_paced(plan.tick, (item.execution for item in plan.items))
    except ValueError as error:
        raise InvalidRequest(FieldViolation("plan", str(error))) from error
    return plan


def _report(message: Report | Preview) -> stages_pb2.UnetReport:
    if isinstance(message, Preview):
        return stages_pb2.UnetReport(preview=preview_to_pb(message))
    if isinstance(message, TaskReady):
        return stages_pb2.UnetReport(task_ready=task_ready_to_pb(message))
    if isinstance(message, TaskFailed):
        return stages_pb2.UnetReport(task_failed=task_failed_to_pb(message))
    return stages_pb2.UnetReport(tick_done=unet_tick_done_to_pb(message))
