"""Calls are timed under the method and code that their client gets, streams and errors too."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from services.scheduler.api.call_durations import CallDurations
from synerdiff.errors import NotFound
from synerdiff.rpc import ServiceHost, create_server, open_channel, serving
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.services.scheduler.redis_jobs import metric
from tests.waiting import until


class Scripted(images_pb2_grpc.ImageGenerationServicer):
    async def GetJob(self, request: images_pb2.GetJobRequest, context: Any) -> images_pb2.Job:
        if request.job_id == "none":
            raise NotFound("no such job")
        if request.job_id == "bad":
            raise ValueError("a fault")
        return images_pb2.Job(job_id=request.job_id)

    async def Watch(self, request: images_pb2.WatchRequest, context: Any) -> AsyncIterator[images_pb2.GenerateEvent]:
        yield images_pb2.GenerateEvent(sequence=1)
        if request.job_id == "none":
            raise NotFound("no such job")
        await asyncio.sleep(0.05 if request.job_id == "short" else 600)


def sample(name: str, method: str, code: str) -> float:
    return metric(f"rpc_seconds_{name}", method=f"ImageGeneration/{method}", code=code)


@pytest.fixture
async def stub() -> AsyncIterator[Any]:
    host = ServiceHost(create_server(interceptors=[CallDurations()]))
    add = images_pb2_grpc.add_ImageGenerationServicer_to_server
    host.add("synerdiff.v1.ImageGeneration", add, Scripted())  # type: ignore[abstract]
    await host.start("127.0.0.1:0")
    async with open_channel(host.address) as channel:
        await serving(channel)
        yield images_pb2_grpc.ImageGenerationStub(channel)
    await host.drain(0)


@pytest.mark.parametrize(("job_id", "code"), [("j", "OK"), ("none", "NOT_FOUND"), ("bad", "INTERNAL")])
async def test_a_call_counts_under_its_code(stub: Any, job_id: str, code: str) -> None:
    before = sample("count", "GetJob", code)
    assert (await stub.GetJob(images_pb2.GetJobRequest(job_id=job_id)).code()).name == code
    await until(lambda: sample("count", "GetJob", code) == before + 1)


async def test_a_stream_takes_as_long_as_it_is_followed(stub: Any) -> None:
    before, events = (
        sample("sum", "Watch", "OK"),
        [e async for e in stub.Watch(images_pb2.WatchRequest(job_id="short"))],
    )
    assert len(events) == 1
    await until(lambda: sample("sum", "Watch", "OK") - before >= 0.05)


async def test_a_stream_that_fails_or_is_left_counts_under_its_code(stub: Any) -> None:
    failed, left = sample("count", "Watch", "NOT_FOUND"), sample("count", "Watch", "CANCELLED")
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in stub.Watch(images_pb2.WatchRequest(job_id="none")):
            pass
    call = stub.Watch(images_pb2.WatchRequest(job_id="long"))
    async for _ in call:
        call.cancel()
        break
    await until(lambda: sample("count", "Watch", "NOT_FOUND") == failed + 1)
    await until(lambda: sample("count", "Watch", "CANCELLED") == left + 1)


def test_probes_are_not_counted() -> None:
    counted = {sample.labels.get("method", "") for family in REGISTRY.collect() for sample in family.samples}
    assert not [method for method in counted if "Health" in method or "health" in method]
