"""A few seconds of the fuzzing that is run for minutes elsewhere, and that it finds what there is to find."""

import asyncio
import random
from typing import Any

import pytest

from bench.fuzz import Fuzzer, fuzz
from bench.processes import simulated_service
from synerdiff.rpc import ServiceHost, open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc

pytestmark = pytest.mark.alone

SECONDS = 3.0


def test_nothing_that_is_no_request_is_internal_or_hangs() -> None:
    with simulated_service(tick_ms=2.0) as service:
        found = asyncio.run(fuzz(service.address, service.scheduler, SECONDS, seed=random.randrange(1 << 30)))
    assert found["faults"] == [], found
    assert isinstance(found["calls"], int)
    assert found["calls"] > 100, found


async def test_a_service_that_fails_inside_is_found() -> None:
    class Failing(images_pb2_grpc.ImageGenerationServicer):
        async def GetJob(self, request: images_pb2.GetJobRequest, context: Any) -> images_pb2.Job:
            raise RuntimeError("a mistake")

    host = ServiceHost()
    failing = Failing()  # type: ignore[abstract]
    host.add("synerdiff.v1.ImageGeneration", images_pb2_grpc.add_ImageGenerationServicer_to_server, failing)
    address = await host.start("127.0.0.1:0")
    async with open_channel(address) as channel:
        fuzzer = Fuzzer(random.Random(1), channel, address)
        job = images_pb2.DESCRIPTOR.services_by_name["ImageGeneration"].methods_by_name["GetJob"]
        await fuzzer._call(job, b"")
    await host.drain(0)
    assert len(fuzzer.faults) == 1
    assert "GetJob" in fuzzer.faults[0]
