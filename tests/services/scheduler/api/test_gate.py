"""Callers by their keys and certificates over real gRPC: who gets in, and what one learns of another's jobs."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from redis.asyncio import Redis

from services.scheduler.api import callers_file
from services.scheduler.api.callers_file import BadCallersFile, CallersFile, key_hash, new_key, read_callers
from services.scheduler.api.gate import Gate
from synerdiff.client import AsyncClient, ClientTls
from synerdiff.client.aio import bearer
from synerdiff.errors import NotFound, PermissionDenied, SynerDiffError, Unauthenticated
from synerdiff.rpc import open_channel, serving
from synerdiff.status import from_rpc_error
from synerdiff.tls import ServerTls
from synerdiff.v1 import images_pb2, images_pb2_grpc, operations_pb2, operations_pb2_grpc
from tests.services.scheduler.harness import Leader, Scheduler, served
from tests.services.scheduler.redis_jobs import job_of

PEM = Path(__file__).parents[3] / "synerdiff" / "tls"
KEYS = {name: new_key() for name in ("alice", "bob", "root")}
OPTIONS = {"alice": "", "bob": "priorities=normal,low", "root": "operator"}


def put(path: Path, text: str) -> None:
    path.write_text(text)


def move(path: Path, to: Path) -> None:
    path.rename(to)


def lines(*names: str) -> str:
    return "".join(f"{name} {key_hash(KEYS[name])} {OPTIONS[name]}\n" for name in names)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "callers"
    path.write_text("# who may call\n" + lines("alice", "bob", "root"))
    return path


@pytest.fixture
async def gated(redis: Redis, file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scheduler]:
    monkeypatch.setattr(callers_file, "LOOK_AGAIN_AFTER_S", 0.0)
    async with served(redis, check=Gate(CallersFile(file))) as scheduler:
        yield scheduler


def call_of(stub: Any, method: str, request: Any) -> Callable[[Any], Any]:
    """One that is given its metadata; of a stream the first message."""

    async def call(metadata: Any) -> Any:
        requests = iter([request]) if method == "ServerReflectionInfo" else request
        made = getattr(stub, method)(requests, metadata=metadata)
        return await (made if isinstance(made, grpc.aio.UnaryUnaryCall) else made.read())

    return call


def calls(channel: grpc.aio.Channel, job_id: str) -> dict[str, Callable[[Any], Any]]:
    """Every RPC of a scheduler but health, as a call that is given its metadata."""
    images, operations = images_pb2_grpc.ImageGenerationStub(channel), operations_pb2_grpc.OperationsStub(channel)
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    return {
        "Generate": call_of(images, "Generate", images_pb2.GenerateRequest(prompt="a")),
        "Submit": call_of(images, "Submit", images_pb2.GenerateRequest(prompt="a")),
        "Watch": call_of(images, "Watch", images_pb2.WatchRequest(job_id=job_id)),
        "GetJob": call_of(images, "GetJob", images_pb2.GetJobRequest(job_id=job_id)),
        "GetImage": call_of(images, "GetImage", images_pb2.GetImageRequest(job_id=job_id)),
        "CancelJob": call_of(images, "CancelJob", images_pb2.CancelJobRequest(job_id=job_id)),
        "DeleteJob": call_of(images, "DeleteJob", images_pb2.DeleteJobRequest(job_id=job_id)),
        "ListModels": call_of(images, "ListModels", images_pb2.ListModelsRequest()),
        "GetStatus": call_of(operations, "GetStatus", operations_pb2.GetStatusRequest()),
        "GetTrace": call_of(operations, "GetTrace", operations_pb2.GetTraceRequest()),
        "WatchTicks": call_of(operations, "WatchTicks", operations_pb2.WatchTicksRequest()),
        "ServerReflectionInfo": call_of(
            reflection, "ServerReflectionInfo", reflection_pb2.ServerReflectionRequest(list_services="")
        ),
    }


OF_OPERATORS = {"GetStatus", "GetTrace", "WatchTicks", "ServerReflectionInfo"}


async def refusal(call: Callable[[Any], Any], metadata: Any) -> SynerDiffError | None:
    try:
        await call(metadata)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def test_every_rpc_is_tried() -> None:
    services = (images_pb2.DESCRIPTOR, operations_pb2.DESCRIPTOR)
    named = {m.name for file in services for service in file.services_by_name.values() for m in service.methods}
    assert named | {"ServerReflectionInfo"} == set(calls(grpc.aio.insecure_channel("nowhere:1"), ""))


@pytest.mark.parametrize(
    "metadata", [(), (("authorization", "Bearer "),), bearer("sd-wrong"), (("authorization", KEYS["alice"]),)]
)
async def test_without_a_good_key_every_rpc_is_refused(gated: Scheduler, metadata: Any) -> None:
    async with open_channel(gated.address) as channel:
        for name, call in calls(channel, "0" * 32).items():
            assert isinstance(await refusal(call, metadata), Unauthenticated), name
        assert await serving(channel), "health is for anybody"


async def test_of_anothers_job_nothing_is_learned(gated: Scheduler, redis: Redis) -> None:
    leader = await Leader.of(redis, gated.store)
    async with AsyncClient(gated.address, key=KEYS["alice"]) as alice, open_channel(gated.address) as channel:
        job_id = (await alice.submit("a car")).job_id
        await leader.complete(await leader.take())
        for name in ("Watch", "GetJob", "GetImage", "CancelJob", "DeleteJob"):
            of_hers = await refusal(calls(channel, job_id)[name], bearer(KEYS["bob"]))
            of_none = await refusal(calls(channel, "0" * 32)[name], bearer(KEYS["bob"]))
            assert isinstance(of_hers, NotFound), name
            assert isinstance(of_none, NotFound), name
            assert of_hers.message.replace(job_id, "0" * 32) == of_none.message, name
            assert await refusal(calls(channel, job_id)[name], bearer(KEYS["alice"])) is None, name


async def test_request_ids_are_each_callers_own(gated: Scheduler) -> None:
    async with (
        AsyncClient(gated.address, key=KEYS["alice"]) as alice,
        AsyncClient(gated.address, key=KEYS["bob"]) as bob,
    ):
        hers = await alice.submit("a car", request_id="same", seed=1)
        his = await bob.submit("a dog", request_id="same", seed=1)
        assert hers.job_id != his.job_id
        assert (await alice.submit("a car", request_id="same", seed=1)).job_id == hers.job_id


async def test_roles(gated: Scheduler) -> None:
    async with open_channel(gated.address) as channel:
        for name, call in calls(channel, "0" * 32).items():
            denied = await refusal(call, bearer(KEYS["alice"]))
            assert isinstance(denied, PermissionDenied) == (name in OF_OPERATORS), name
            if name in OF_OPERATORS - {"WatchTicks"}:  # the harness' pool has no ticks
                assert await refusal(call, bearer(KEYS["root"])) is None, name
    async with AsyncClient(gated.address, key=KEYS["bob"]) as bob:
        with pytest.raises(PermissionDenied, match="priority: HIGH is not for caller 'bob', but NORMAL, LOW"):
            await bob.submit("a car", priority="high")
        await bob.submit("a car", priority="low")


async def test_the_file_is_followed_and_a_bad_one_changes_nothing(gated: Scheduler, file: Path) -> None:
    async with (
        AsyncClient(gated.address, key=KEYS["alice"]) as alice,
        AsyncClient(gated.address, key=KEYS["bob"]) as bob,
    ):
        await bob.models()
        put(file, lines("alice"))
        with pytest.raises(Unauthenticated):
            await bob.models()
        await alice.models()
        put(file, lines("bob") + "nonsense\n")
        await alice.models()
        move(file, file.parent / "gone")
        await alice.models()
        secret = file.parent / "mounted"  # as Kubernetes does it: another file comes in the place of the old one
        put(secret, lines("bob"))
        move(secret, file)
        await bob.models()
        with pytest.raises(Unauthenticated):
            await alice.models()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("alice", "neither"),
        ("alice sha256:abc", "neither"),
        (f"alice sha256:{'A' * 64}", "neither"),
        (f"a/b {key_hash('k')}", "'a/b' is no name"),
        (f"alice {key_hash('k')} admin", "'admin' is no option"),
        (f"alice {key_hash('k')} priorities=urgent", "'urgent' is none of high, normal, low"),
        (f"alice {key_hash('k')}\nbob {key_hash('k')}", "comes twice"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "callers"
    path.write_text(line)
    with pytest.raises(BadCallersFile, match=f"callers, line [12]: .*{told}"):
        read_callers(path)


@pytest.mark.parametrize("certificates_file", [True, False])
async def test_a_certificates_name_is_a_caller(redis: Redis, tmp_path: Path, certificates_file: bool) -> None:
    path = tmp_path / "callers"
    path.write_text(lines("alice") + "client certificate\n")
    tls = ServerTls(PEM / "server.pem", PEM / "server.key", client_ca=PEM / "ca.pem")
    gate = Gate(CallersFile(path) if certificates_file else None, certificates=True)
    certificate = ClientTls(PEM / "ca.pem", PEM / "client.pem", PEM / "client.key")
    other = ClientTls(PEM / "ca.pem", PEM / "worker.pem", PEM / "worker.key")
    async with served(redis, tls=tls, check=gate) as scheduler:
        async with AsyncClient(scheduler.address, tls=certificate) as client:
            job_id = (await client.submit("a car")).job_id
            assert (await job_of(scheduler.store, job_id)).caller == "client"
        async with AsyncClient(scheduler.address, tls=other) as client:
            with pytest.raises(Unauthenticated if certificates_file else NotFound):
                await client.job(job_id)


def test_the_check_costs_less_than_a_tenth_of_a_millisecond(tmp_path: Path) -> None:
    """With a thousand callers, the look at the file included; the median of batches, for the machine is shared."""
    path = tmp_path / "callers"
    path.write_text("".join(f"caller-{n} {key_hash(str(n))}\n" for n in range(1000)))

    class Context:
        def invocation_metadata(self) -> Any:
            return (("user-agent", "grpc-python"), ("traceparent", "00-1-2-01"), *bearer("999"))

    gate, context = Gate(CallersFile(path)), Context()

    def batch_ms() -> float:
        began = time.process_time()
        for _ in range(1000):
            gate(context, "/synerdiff.v1.ImageGeneration/Submit")
        return time.process_time() - began  # ms a call, as there were a thousand

    costs = sorted(batch_ms() for _ in range(9))
    assert costs[4] < 0.1, costs
