"""Coming back after broken connections, against a server that breaks them on purpose, over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synerdiff.client import AsyncClient, Finished, Progress
from synerdiff.errors import AlreadyExists, DeadlineExceeded, NotFound, QueueFull, SynerDiffError, Unavailable
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.waiting import HANG_S

EVENTS = 12


class Breaking(images_pb2_grpc.ImageGenerationServicer):
    """A job of EVENTS events. Each call serves as many as its turn in `cuts` says and then breaks."""

    def __init__(self) -> None:
        self.cuts: list[int] = []
        self.code = grpc.StatusCode.UNAVAILABLE
        self.refusals: list[SynerDiffError] = []
        self.requests: list[images_pb2.GenerateRequest] = []
        self.accepts_then_breaks = 0
        self.pause_s = 0.0

    async def Generate(
        self, request: images_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[images_pb2.GenerateEvent]:
        self.requests.append(request)
        if self.refusals:
            raise self.refusals.pop(0)
        if self.accepts_then_breaks:
            self.accepts_then_breaks -= 1
            await context.abort(self.code, "gone after acceptance")
        async for event in self._events(0, context):
            yield event

    async def Watch(self, request: images_pb2.WatchRequest, context: Any) -> AsyncIterator[images_pb2.GenerateEvent]:
        if request.job_id != "job":
            raise NotFound("job_id: unknown")
        async for event in self._events(request.after_sequence, context):
            yield event

    async def Submit(self, request: images_pb2.GenerateRequest, context: Any) -> images_pb2.Job:
        self.requests.append(request)
        if self.accepts_then_breaks:
            self.accepts_then_breaks -= 1
            await context.abort(self.code, "gone after acceptance")
        return images_pb2.Job(job_id="job", state=images_pb2.JOB_STATE_QUEUED)

    async def _events(self, after: int, context: Any) -> AsyncIterator[images_pb2.GenerateEvent]:
        await context.send_initial_metadata(())
        left = self.cuts.pop(0) if self.cuts else None
        for sequence in range(after + 1, EVENTS + 1):
            if left == 0:
                await context.abort(self.code, "cut")
            left = None if left is None else left - 1
            await asyncio.sleep(self.pause_s)
            event = images_pb2.GenerateEvent(job_id="job", sequence=sequence)
            if sequence == EVENTS:
                event.finished.SetInParent()
            else:
                event.progress.step = sequence
            yield event
        if left is not None:
            await context.abort(self.code, "cut")


@pytest.fixture
def servicer() -> Breaking:
    return Breaking()  # type: ignore[abstract]


@pytest.fixture
async def host(servicer: Breaking) -> AsyncIterator[ServiceHost]:
    host = ServiceHost()
    host.add("synerdiff.v1.ImageGeneration", images_pb2_grpc.add_ImageGenerationServicer_to_server, servicer)
    await host.start("127.0.0.1:0")
    yield host
    await host.drain(0)


@pytest.fixture
async def client(host: ServiceHost) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(host.address, patience_s=HANG_S) as client:
        yield client


async def sequences(client: AsyncClient) -> Sequence[int]:
    return [event.sequence async for event in client.stream("x")]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, EVENTS), max_size=4),
    code=st.sampled_from([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED]),
)
def test_every_event_comes_once_and_in_order_however_often_it_is_cut(cuts: list[int], code: grpc.StatusCode) -> None:
    async def scenario() -> Sequence[int]:
        servicer = Breaking()  # type: ignore[abstract]
        servicer.cuts, servicer.code = list(cuts), code
        host = ServiceHost()
        host.add("synerdiff.v1.ImageGeneration", images_pb2_grpc.add_ImageGenerationServicer_to_server, servicer)
        try:
            async with AsyncClient(await host.start("127.0.0.1:0")) as client:
                return await sequences(client)
        finally:
            await host.drain(0)

    assert asyncio.run(scenario()) == list(range(1, EVENTS + 1))


async def test_an_acceptance_that_was_not_heard_is_asked_for_again_under_the_same_id(
    servicer: Breaking, client: AsyncClient
) -> None:
    servicer.accepts_then_breaks = 2
    assert list(await sequences(client)) == list(range(1, EVENTS + 1))
    assert len(servicer.requests) == 3
    assert servicer.requests[0] == servicer.requests[1] == servicer.requests[2]
    servicer.accepts_then_breaks = 1
    assert (await client.submit("x")).job_id == "job"
    assert servicer.requests[3] == servicer.requests[4]


async def test_watch_goes_on_after_a_sequence(servicer: Breaking, client: AsyncClient) -> None:
    servicer.cuts = [2]
    events = [event async for event in client.watch("job", after_sequence=8)]
    assert [event.sequence for event in events] == [9, 10, 11, 12]
    assert isinstance(events[0], Progress)
    assert isinstance(events[-1], Finished)


async def test_an_answered_error_is_raised_at_once(servicer: Breaking, client: AsyncClient) -> None:
    servicer.refusals = [AlreadyExists("used before")]
    with pytest.raises(AlreadyExists, match="used before"):
        await client.generate("x")
    assert len(servicer.requests) == 1


async def test_a_full_queue_is_raised_or_waited_out(servicer: Breaking, host: ServiceHost, client: AsyncClient) -> None:
    servicer.refusals = [QueueFull("full", retry_after_s=0.2)]
    with pytest.raises(QueueFull) as caught:
        await client.generate("x")
    assert caught.value.retry_after_s == 0.2
    servicer.refusals = [QueueFull("full", retry_after_s=0.2), QueueFull("full", retry_after_s=0.2)]
    started = time.monotonic()
    async with AsyncClient(host.address, patience_s=0.1, wait_when_full=True) as waiting:
        await waiting.generate("x")
    assert time.monotonic() - started >= 0.4


async def test_nobody_there_is_unavailable_after_the_patience() -> None:
    started = time.monotonic()
    async with AsyncClient("127.0.0.1:1", patience_s=0.5) as client:
        with pytest.raises(Unavailable, match="no answer for"):
            await client.generate("x")
        with pytest.raises(Unavailable, match="no answer for"):
            await client.models()
    assert time.monotonic() - started < 20, "as long as by default"


async def test_the_clients_deadline_ends_a_job_that_the_server_does_not_end(
    servicer: Breaking, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synerdiff.client.aio._DEADLINE_MARGIN_S", 0.1)
    servicer.pause_s = HANG_S
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await client.generate("x", timeout=0.2)
    assert time.monotonic() - started < HANG_S, "it waited for the server"


async def test_leaving_a_stream_ends_its_call(servicer: Breaking, client: AsyncClient) -> None:
    servicer.pause_s = 0.02
    stream = client.stream("x")
    assert (await anext(stream)).sequence == 1
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
