"""What the status says of a worker: from its record, and from the leader's books."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from redis.asyncio import Redis

from services.scheduler.api import tick_watches
from services.scheduler.api.operations import OperationsService, worker_statuses
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import Ring, TickLog
from services.scheduler.telemetry.tick_messages import TickMessages
from synerdiff.client import AsyncClient
from synerdiff.rpc import ServiceHost, open_channel
from synerdiff.v1 import operations_pb2, operations_pb2_grpc
from tests.services.scheduler.harness import MODEL, Scheduler, Whole, whole_scheduler
from tests.services.scheduler.measured_profiles import record as worker
from tests.services.scheduler.reports import planned, record, timing
from tests.waiting import until


def test_a_worker_is_shown_with_its_device_and_its_share() -> None:
    unet = worker("unet", device="cuda: H100, 80 GiB", threads=0, mps_thread_percent=70, execution="compiled")
    shown, without_mps = worker_statuses([unet, worker("vae")], None)
    assert (shown.device, shown.mps_thread_percent, shown.attached) == ("cuda: H100, 80 GiB", 70, False)
    assert (shown.execution, without_mps.execution) == ("compiled", "eager")
    assert without_mps.mps_thread_percent == 0


def test_a_worker_that_drains_is_shown_for_as_long_as_it_is_held() -> None:
    holdings = Holdings(max_deaths=1)
    holdings.unet["unet-0"] = UnetLaneState("unet-0", "GPU-1", "emoji", slots=8)
    holdings.vae["vae-0"] = VaeLaneState("vae-0", "GPU-1", "emoji", draining=True)
    holdings.unet["unet-0"].suspect = True
    still_announced = worker_statuses([worker("unet"), worker("vae")], holdings)
    announced_no_more = worker_statuses([worker("unet")], holdings)
    for statuses in (still_announced, announced_no_more):
        told = [(one.worker_id, one.kind, one.attached, one.draining, one.suspect) for one in statuses]
        assert told == [("unet-0", "unet", True, False, True), ("vae-0", "vae", True, True, False)]


@contextlib.asynccontextmanager
async def operations(whole: Whole, status: OperationsService | None = None) -> AsyncIterator[Any]:
    """A stub of the operators' API of `whole`."""
    host = ServiceHost()
    (status or OperationsService(whole.pool)).add_to(host)
    address = await host.start("127.0.0.1:0")
    async with open_channel(address) as channel:
        yield operations_pb2_grpc.OperationsStub(channel)
    await host.drain(0)


async def draw(whole: Whole, steps: int = 4) -> None:
    async with AsyncClient(whole.scheduler.address) as client:
        await client.generate("a dog", model=MODEL, num_inference_steps=steps)


async def test_a_watch_tells_of_ticks_and_jobs_and_nothing_is_encoded_before_or_after(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    message = TickMessages.message

    def counted(self: TickMessages, records: Any, ended: Any, missed: int) -> operations_pb2.WatchTicksResponse:
        encoded.append(len(records))
        return message(self, records, ended, missed)

    monkeypatch.setattr(TickMessages, "message", counted)
    monkeypatch.setattr(tick_watches, "LOOK_EVERY_S", 0.01)
    async with whole_scheduler(redis) as whole, operations(whole, status := OperationsService(whole.pool)) as stub:
        await draw(whole)
        before = whole.pool.ticks.added
        assert before > 0
        assert encoded == []
        (queue,) = (await stub.GetStatus(operations_pb2.GetStatusRequest())).queues
        assert [one.priority for one in queue.classes] == [1, 2, 3]
        traced = (await stub.GetTrace(operations_pb2.GetTraceRequest())).trace_json
        assert {"unet", "vae"} <= {event.get("cat") for event in json.loads(traced)["traceEvents"]}

        call = stub.WatchTicks(operations_pb2.WatchTicksRequest(last=2))
        first = await call.read()
        assert len(first.parts) == 2
        await draw(whole, steps=6)
        parts: list[operations_pb2.TickPart] = []
        ended: list[operations_pb2.EndedJob] = []
        while not ended:
            heard = await call.read()
            parts += list(heard.parts)
            ended += list(heard.ended)
        call.cancel()
        assert sum(len(part.items) for part in parts if part.kind == "unet") >= 6
        assert {part.kind for part in parts} == {"unet", "vae"}
        assert all(part.domain == "simulated" and not part.stale for part in parts)
        assert ended[0].outcome == "finished"
        assert ended[0].latency_ms > 0

        await until(lambda: status.watches.open == 0)
        seen, at = len(encoded), whole.pool.ticks.added
        await draw(whole)
        assert whole.pool.ticks.added > at
        assert len(encoded) == seen


async def test_a_watch_ends_where_nobody_leads_and_with_a_domain_that_is_unknown(redis: Redis) -> None:
    async with whole_scheduler(redis) as whole, operations(whole) as stub:
        unknown = stub.WatchTicks(operations_pb2.WatchTicksRequest(domain="nowhere"))
        assert await unknown.code() is grpc.StatusCode.NOT_FOUND
        assert "simulated" in await unknown.details()
        call = stub.WatchTicks(operations_pb2.WatchTicksRequest(domain="simulated"))
        await call.read()
        whole.pool.leader = None
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_is_read_slowly_gets_all_that_is_kept_and_hears_what_it_missed() -> None:
    log = TickLog(kept=3)
    watch = tick_watches.Watch("d", log, Ring(), last=0)
    opened = await watch.news()
    assert opened is not None
    assert not opened.parts
    assert await watch.news() is None
    for tick in range(5):
        log.add(record("unet", tick, (planned(1, 2), timing(0, 1, 2))))
    log.add(record("unet", 9, (planned(1, 2), timing(0, 1, 2)), domain="another"))
    late = await watch.news()
    assert late is not None
    assert ([part.tick for part in late.parts], late.missed) == ([3, 4], 3)


async def test_no_more_watch_than_the_leader_bears(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick_watches, "MOST_WATCHES", 1)
    async with whole_scheduler(redis) as whole, operations(whole) as stub:
        request = operations_pb2.WatchTicksRequest()
        first = stub.WatchTicks(request)
        await first.read()
        assert await stub.WatchTicks(request).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()

        async def again() -> bool:
            try:
                await stub.WatchTicks(request).read()
            except grpc.aio.AioRpcError:
                return False
            return True

        while not await again():
            pass


async def test_health_and_reflection_answer(scheduler: Scheduler) -> None:
    services = ["synerdiff.v1.ImageGeneration", "synerdiff.v1.Operations"]
    async with open_channel(scheduler.address) as channel:
        for service in ["", "readiness", *services]:
            reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=service) for service in services]
        replies = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))
        assert all([reply.file_descriptor_response.file_descriptor_proto async for reply in replies])
