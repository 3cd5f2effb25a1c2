"""The Run stream of a stage: a leader's commands in, reports out."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import grpc

from synerdiff.errors import FieldViolation, InvalidRequest, SynerDiffError
from synerdiff.pace import check_paced
from synerdiff.plans import Preview, TaskFailed, TaskReady, UnetPlan, UnetTickDone, VaePlan, VaeTickDone
from synerdiff.stopping import cancel_and_wait
from synerdiff.v1 import stages_pb2
from synerdiff.wire import stages
from synerdiff.worker.leader import Leader
from synerdiff.worker.stage_worker import StageWorker

W = TypeVar("W", bound=StageWorker)
P = TypeVar("P", UnetPlan, VaePlan)


# The field of a report for each type of message, and its encoder.
_FIELDS: dict[type[Any], tuple[str, Callable[[Any], Any]]] = {
    Preview: ("preview", stages.preview_to_pb),
    TaskReady: ("task_ready", stages.task_ready_to_pb),
    TaskFailed: ("task_failed", stages.task_failed_to_pb),
    UnetTickDone: ("tick_done", stages.unet_tick_done_to_pb),
    VaeTickDone: ("tick_done", stages.vae_tick_done_to_pb),
}


class RunServicer(ABC, Generic[W]):
    """Serves one worker. `Run` is the same in either stage but for its messages: see stages.proto."""

    def __init__(self, worker: W) -> None:
        self._worker = worker

    report_type: type[Any]

    @abstractmethod
    def attached(self, leader: Leader) -> Any:
        """The first report's content."""

    @abstractmethod
    def carry_out(self, command: Any, leader: Leader) -> None:
        """Carry out a leader's command. Raises InvalidRequest."""

    async def Run(self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """One leader's stream."""
        attach = await _attach(request_iterator)
        leader = await self._worker.attach(attach.leader_token, attach.leader_id, attach.domain)
        obeying = asyncio.create_task(self._obey(request_iterator, leader))
        try:
            with self._worker.failure.guarding("the sender of reports"):
                if not leader.ended:
                    yield self.report_type(attached=self.attached(leader))
                async for message in leader.messages():
                    field, to_pb = _FIELDS[type(message)]
                    yield self.report_type(**{field: to_pb(message)})
        finally:
            self._worker.detach(leader)
            await cancel_and_wait(obeying)

    async def _obey(self, commands: AsyncIterator[Any], leader: Leader) -> None:
        """Carry out a stream's commands for as long as it is the newest; then end it."""
        error: SynerDiffError | None = None
        try:
            with self._worker.failure.guarding("obeying the leader"):
                async for command in commands:
                    if self._worker.leader is not leader:
                        return
                    self.carry_out(command, leader)
        except SynerDiffError as refused:
            error = refused
        except grpc.aio.BaseError:
            pass  # the call has ended
        except Exception:
            error = SynerDiffError("a command could not be carried out; the worker's log says why")
        finally:
            leader.end(error)


def unexpected(command: Any) -> InvalidRequest:
    """The refusal of a command that cannot come after the first message."""
    return InvalidRequest(FieldViolation("command", f"{command.WhichOneof('command')} cannot come after attach"))


def checked_plan(pb: Any, from_pb: Callable[[Any], P]) -> P:
    """The plan, checked. Raises InvalidRequest for one that cannot run, or where `from_pb` raises ValueError."""
    try:
        plan = from_pb(pb)
        check_paced(plan.tick, (item.execution for item in plan.items))
    except ValueError as error:
        raise InvalidRequest(FieldViolation("plan", str(error))) from error
    return plan


async def _attach(commands: AsyncIterator[Any]) -> stages_pb2.Attach:
    first = await anext(aiter(commands), None)
    if first is None or first.WhichOneof("command") != "attach":
        raise InvalidRequest(FieldViolation("command", "the first message must be attach"))
    attach: stages_pb2.Attach = first.attach
    return attach
