"""The gRPC set-up every service shares, over real sockets: health, reflection, errors, limits and drain."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from synerdiff.errors import FieldViolation, InvalidRequest, NotFound, QueueFull, StaleLeader, SynerDiffError
from synerdiff.rpc import LIVENESS, MIB, READINESS, STARTUP, ServiceHost, create_server, open_channel, serving
from synerdiff.status import from_rpc_error
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.waiting import HANG_S

SERVICE = "synerdiff.v1.ImageGeneration"


class Scripted(images_pb2_grpc.ImageGenerationServicer):
    """Raises `error` when it has one; otherwise GetJob echoes and Watch runs until it is cut."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def GetJob(self, request: images_pb2.GetJobRequest, context: Any) -> images_pb2.Job:
        if self.error:
            raise self.error
        return images_pb2.Job(job_id=request.job_id)

    async def Watch(self, request: images_pb2.WatchRequest, context: Any) -> AsyncIterator[images_pb2.GenerateEvent]:
        yield images_pb2.GenerateEvent(sequence=1)
        if self.error:
            raise self.error
        await asyncio.sleep(60)


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()  # type: ignore[abstract]


@pytest.fixture
async def host(scripted: Scripted) -> AsyncIterator[ServiceHost]:
    host = ServiceHost(create_server(max_receive_bytes=MIB))
    host.add(SERVICE, images_pb2_grpc.add_ImageGenerationServicer_to_server, scripted)
    await host.start("127.0.0.1:0", "127.0.0.1:0")
    yield host
    await host.drain(0)


@pytest.fixture
async def channel(host: ServiceHost) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(host.address) as channel:
        yield channel


async def get_job(channel: grpc.aio.Channel, job_id: str = "j") -> images_pb2.Job:
    stub = images_pb2_grpc.ImageGenerationStub(channel)
    return await stub.GetJob(images_pb2.GetJobRequest(job_id=job_id))  # type: ignore[no-any-return]


async def watch(channel: grpc.aio.Channel) -> None:
    async for _ in images_pb2_grpc.ImageGenerationStub(channel).Watch(images_pb2.WatchRequest()):
        pass


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_health_follows_readiness_on_both_ports(host: ServiceHost, channel: grpc.aio.Channel) -> None:
    async with open_channel(host.health_address) as plain:
        for port in (channel, plain):
            assert [await serving(port, n) for n in ("", STARTUP, READINESS, SERVICE)] == [False] * 4
            assert await serving(port, LIVENESS)
        await host.set_ready(True)
        for port in (channel, plain):
            assert [await serving(port, n) for n in ("", STARTUP, READINESS, SERVICE)] == [True] * 4
        await host.set_ready(False)
        assert not await serving(plain, READINESS)
        assert await serving(plain, STARTUP), "startup stays on once it was"


async def test_health_of_an_unknown_service_is_not_found(channel: grpc.aio.Channel) -> None:
    error = await refused(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nonsense")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name async for reply in call for service in reply.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@pytest.mark.parametrize("call", [get_job, watch])
async def test_a_raised_error_arrives_with_its_details(
    scripted: Scripted, channel: grpc.aio.Channel, call: Any
) -> None:
    scripted.error = InvalidRequest(
        FieldViolation("width", "7 is not a multiple of 8"), FieldViolation("seed", "ü" * 9)
    )
    error = from_rpc_error(await refused(call(channel)))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(error, InvalidRequest)
    assert error.violations == scripted.error.violations
    assert error.message == scripted.error.message


async def test_retry_delay_arrives(scripted: Scripted, channel: grpc.aio.Channel) -> None:
    scripted.error = QueueFull("full", retry_after_s=2.5)
    error = from_rpc_error(await refused(get_job(channel)))
    assert isinstance(error, QueueFull)
    assert error.retry_after_s == 2.5


async def test_long_errors_fit_into_any_clients_headers(scripted: Scripted, channel: grpc.aio.Channel) -> None:
    scripted.error = InvalidRequest(*(FieldViolation("prompt", "ß" * 4000) for _ in range(100)))
    assert (await refused(get_job(channel))).code() == grpc.StatusCode.INVALID_ARGUMENT
    scripted.error = NotFound("ß" * 100_000)
    error = await refused(get_job(channel))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details().endswith("...")


@pytest.mark.parametrize("call", [get_job, watch])
async def test_an_unexpected_error_leaks_nothing(scripted: Scripted, channel: grpc.aio.Channel, call: Any) -> None:
    scripted.error = RuntimeError("the password is 1234")
    error = await refused(call(channel))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "1234" not in error.details()
    assert "error_id" in error.details()


async def test_a_message_over_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    assert (await refused(get_job(channel, "x" * (MIB + 1)))).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await get_job(channel, "still here")).job_id == "still here"


async def test_two_hosts_cannot_share_a_port(host: ServiceHost) -> None:
    with pytest.raises(SynerDiffError, match=f"cannot listen on '{host.address}'"):
        await ServiceHost().start(host.address)


async def test_drain_lets_running_calls_end_and_takes_no_new_ones(host: ServiceHost, channel: grpc.aio.Channel) -> None:
    await host.set_ready(True)
    running = images_pb2_grpc.ImageGenerationStub(channel).Watch(images_pb2.WatchRequest())
    assert (await running.read()).sequence == 1
    async with open_channel(host.health_address) as plain:
        draining = asyncio.create_task(host.drain(0.5))
        await asyncio.sleep(0.1)
        assert not running.done()
        assert not await serving(plain, READINESS)
        assert await serving(plain, LIVENESS), "a draining process must not be killed for it"
        async with open_channel(host.address) as late:
            assert (await refused(get_job(late))).code() == grpc.StatusCode.UNAVAILABLE
        await draining
    assert await running.code() == grpc.StatusCode.UNAVAILABLE, "cut after the grace period"


async def test_a_stale_leader_is_told_the_newest_token(scripted: Scripted, channel: grpc.aio.Channel) -> None:
    scripted.error = StaleLeader("another leads", newest_token=2**40)
    error = from_rpc_error(await refused(get_job(channel)))
    assert isinstance(error, StaleLeader)
    assert error.newest_token == 2**40


async def test_an_answer_too_large_for_the_client_is_no_full_queue(host: ServiceHost) -> None:
    async with open_channel(host.address, max_message_bytes=1000) as channel:
        request = images_pb2.GetJobRequest(job_id="j" * 2000).SerializeToString()
        error = from_rpc_error(await refused(channel.unary_unary(f"/{SERVICE}/GetJob")(request)))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not isinstance(error, QueueFull)


@pytest.mark.parametrize("method", ["GetJob", "Watch"])
async def test_a_call_without_a_message_is_refused(channel: grpc.aio.Channel, method: str) -> None:
    call = channel.stream_stream(f"/{SERVICE}/{method}")(iter(()))
    assert await asyncio.wait_for(call.code(), HANG_S) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_method_that_a_servicer_does_not_have_is_unimplemented(channel: grpc.aio.Channel) -> None:
    for method in (f"/{SERVICE}/CancelJob", "/grpc.health.v1.Health/List"):
        assert (await refused(channel.unary_unary(method)(b""))).code() is grpc.StatusCode.UNIMPLEMENTED
