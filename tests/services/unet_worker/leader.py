"""A leader's stream for tests: sends domain values, collects domain values."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from synerdiff.plans import Preview, ResidentTask, TaskFailed, TaskReady, UnetEntry, UnetItem, UnetPlan, UnetTickDone
from synerdiff.requests import TaskSpec
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire import stages
from tests.waiting import HANG_S

Entry = tuple[str, int] | tuple[str, int, bool]  # task id, call, and whether it skips guidance
Report = TaskReady | TaskFailed | UnetTickDone | Preview


class Leader:
    """One Run stream. `residents` is what the worker held when it attached."""

    def __init__(self, call: Any, token: int) -> None:
        self.call = call
        self.token = token
        self.tick = 0
        self.residents: dict[str, ResidentTask] = {}
        self.attached = stages_pb2.UnetAttached()

    async def attach(self) -> None:
        await self.send(attach=stages_pb2.Attach(leader_token=self.token, domain="test"))
        self.attached = (await self._read()).attached
        residents = map(stages.resident_task_from_pb, self.attached.resident)
        self.residents = {resident.task_id: resident for resident in residents}

    async def send(self, **command: Any) -> None:
        await self.call.write(stages_pb2.UnetCommand(**command))

    async def admit(self, *specs: TaskSpec) -> list[Report]:
        """Admit tasks and wait for the answer to each."""
        for spec in specs:
            await self.send(admit=stages.task_spec_to_pb(spec))
        return [await self.report() for _ in specs]

    async def plan(self, *items: Sequence[Entry], tick: int | None = None) -> None:
        """Send a plan of items."""
        self.tick = self.tick + 1 if tick is None else tick
        unet_items = tuple(UnetItem(tuple(UnetEntry(*entry) for entry in item)) for item in items)
        await self.send(plan=stages.unet_plan_to_pb(UnetPlan(self.token, self.tick, unet_items)))

    async def run(self, *items: Sequence[Entry]) -> UnetTickDone:
        """Send a plan and wait for its report; nothing else may come before."""
        await self.plan(*items)
        done = await self.report()
        assert isinstance(done, UnetTickDone), done
        assert done.tick == self.tick
        return done

    async def cancel(self, *task_ids: str) -> None:
        await self.send(cancel=stages_pb2.CancelTasks(task_ids=task_ids))

    async def release(self, *task_ids: str) -> None:
        await self.send(release=stages_pb2.CancelTasks(task_ids=task_ids))

    async def report(self) -> Report:
        """The next report."""
        report = await self._read()
        match report.WhichOneof("report"):
            case "task_ready":
                return stages.task_ready_from_pb(report.task_ready)
            case "task_failed":
                return stages.task_failed_from_pb(report.task_failed)
            case "preview":
                return stages.preview_from_pb(report.preview)
            case "tick_done":
                return stages.unet_tick_done_from_pb(report.tick_done)
            case unexpected:
                raise AssertionError(unexpected)

    async def ended(self) -> grpc.StatusCode:
        """The status that the worker ends the stream with, whatever it still sends before."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await asyncio.wait_for(self.call.read(), HANG_S) is not grpc.aio.EOF:
                pass
        code: grpc.StatusCode = await self.call.code()
        return code

    async def _read(self) -> stages_pb2.UnetReport:
        report = await asyncio.wait_for(self.call.read(), HANG_S)
        assert report is not grpc.aio.EOF, await self.call.details()
        assert isinstance(report, stages_pb2.UnetReport)
        return report


@asynccontextmanager
async def leading(channel: grpc.aio.Channel, token: int = 1) -> AsyncIterator[Leader]:
    """An attached leader, whose stream is cut at the end."""
    leader = Leader(stages_pb2_grpc.UnetStageStub(channel).Run(), token)
    await leader.attach()
    try:
        yield leader
    finally:
        leader.call.cancel()


async def finish(leader: Leader, task_id: str, calls: int) -> UnetTickDone:
    """Run all calls of one task in one plan."""
    return await leader.run(*[[(task_id, call)] for call in range(calls)])
