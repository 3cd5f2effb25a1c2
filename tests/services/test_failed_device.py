"""A device that is lost to its process, or hangs: no task is blamed, the worker ends and says why. All is injected."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.unet_worker.preparation import TaskPreparer
from services.vae_worker.decode_item import DecodeItem, PlanDecodes
from services.vae_worker.decoder import BatchDecoder
from synerdiff.latents.arena import create_arena
from synerdiff.latents.client import Latents
from synerdiff.latents.service import LatentsArenaServicer
from synerdiff.models.device import DeviceFailed
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.plans import DecodeEntry, Execution, SlotRef, VaeItem
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.registry import WorkerRegistry
from synerdiff.requests import ImageFormat
from synerdiff.rpc import LIVENESS, ServiceHost, open_channel, serving
from synerdiff.v1 import stages_pb2_grpc
from tests.parity import unet_side, vae_side
from tests.services.unet_worker.conftest import ServedWorker, served_worker
from tests.services.unet_worker.leader import leading
from tests.services.vae_worker.stage import Leader as VaeLeader
from tests.tiny_models import tiny_model
from tests.values import spec
from tests.waiting import HANG_S

POISONED = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might ...")
SIDE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("sd1", tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture
async def served(model: Path) -> AsyncIterator[ServedWorker]:
    async with served_worker(unet_side(model), threads=1) as worker:
        yield worker


def fail(*_: Any, **__: Any) -> Any:
    raise POISONED


async def test_a_unet_worker_ends_and_blames_no_task(served: ServedWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"), spec("b/0"))
        tried: list[int] = []

        def counted(_: UnetSide, latents: torch.Tensor, *__: Any) -> Any:
            tried.append(len(latents))
            raise POISONED

        monkeypatch.setattr(UnetSide, "predict", counted)
        with capture_logs() as logs:
            await leader.plan([("a/0", 0), ("b/0", 0)])
            await asyncio.wait_for(served.worker.failure.wait(), HANG_S)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(leader.report(), 0.2)
    assert tried == [4], "a poisoned context is not tried again"
    assert {held.task_id for held in served.worker.residents.describe()} == {"a/0", "b/0"}
    (told,) = [log for log in logs if log["log_level"] == "critical"]
    assert told["event"] == "the device failed: this process ends, its tasks run again"
    assert "illegal memory access" in told["reason"]


async def test_a_device_that_fails_while_a_task_is_prepared_is_noticed(
    served: ServedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskPreparer, "prepare", fail)
    async with leading(served.channel) as leader:
        for task_id in ("a/0", "b/0"):
            served.worker.admit(spec(task_id))
        await asyncio.wait_for(served.worker.failure.wait(), HANG_S)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(leader.report(), 0.2)
    assert len(served.worker.residents) == 2


async def test_a_device_that_computes_nothing_is_not_blamed_on_the_only_task(
    served: ServedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an error that is not known to be fatal: not even zeros can be stepped after it."""
    unknown = RuntimeError("CUDA error: in words that nobody knows yet")

    def broken(*_: Any, **__: Any) -> Any:
        raise unknown

    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"))
        monkeypatch.setattr(UnetSide, "predict", broken)
        await leader.plan([("a/0", 0)])
        await asyncio.wait_for(served.worker.failure.wait(), HANG_S)
        assert len(served.worker.residents) == 1


class Dying(BatchDecoder):
    """Fails where `where` says: as latents come, or as they are decoded. Counts the decodes that were tried."""

    def __init__(self, side: VaeSide, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried = 0
        if where == "latents":
            monkeypatch.setattr(self, "_part", fail)

        def decode(latents: torch.Tensor) -> Any:
            self.tried += 1
            raise POISONED

        super().__init__(side, decode)


@pytest.mark.parametrize("where", ["latents", "decode"])
def test_a_vae_worker_fails_as_a_whole(model: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    side = vae_side(model)
    decoder = Dying(side, where, monkeypatch)
    entries = [
        DecodeEntry(task_id, "", SlotRef("a", 0, 1), SIDE, SIDE, ImageFormat.PNG, "{}") for task_id in ("a", "b")
    ]
    decodes = PlanDecodes([VaeItem(tuple(entries))], set())
    data = bytes(4 * 8 * 8 * 4)
    fresh = tuple((entry, Latents(memoryview(bytearray(data)), "float32")) for entry in entries)
    with pytest.raises((DeviceFailed, torch.AcceleratorError), match="illegal memory access"):
        DecodeItem(Execution(), fresh, (), decoder, decodes, lambda outcome: None).compute()
    assert decoder.tried <= 1, "a poisoned context is not tried again"


# What watches the device is one for both kinds of worker: one of each is started here.


async def test_a_unet_process_whose_device_fails_ends_with_status_one(
    redis: Redis, redis_server: RedisProcess, model: Path
) -> None:
    async with _failing("unet", "poisoned", redis_server.url, model) as process:
        async with open_channel(await _announced(redis, "unet")) as channel:
            assert not await _step(channel), "a task was blamed, or a report made"
        _, stderr = await asyncio.wait_for(process.communicate(), HANG_S)
    assert process.returncode == 1
    (told,) = [line for line in stderr.decode().splitlines() if '"level": "critical"' in line]
    assert "the device failed: this process ends" in told
    assert "unspecified launch failure" in told


async def test_a_vae_process_whose_device_hangs_is_not_alive_and_ends_at_once_when_told_to(
    redis: Redis, redis_server: RedisProcess, model: Path
) -> None:
    health = f"127.0.0.1:{free_port()}"
    flags = ("--health-listen", health, "--hang-limit-s", "3", "--drain-grace-s", "3000")
    async with _failing("vae", "hangs", redis_server.url, model, *flags) as process:
        address = await _announced(redis, "vae")
        async with open_channel(address) as channel, open_channel(health) as probe:
            assert await serving(probe, LIVENESS)
            working = asyncio.create_task(_decode(channel))
            async with asyncio.timeout(HANG_S):
                while await serving(probe, LIVENESS):
                    await asyncio.sleep(0.05)
            assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            _, stderr = await asyncio.wait_for(process.communicate(), HANG_S)
            assert not await working, "a task was blamed, or a report made"
    assert process.returncode == 1
    (told,) = [line for line in stderr.decode().splitlines() if '"level": "critical"' in line]
    assert "a thread is stuck" in told


@contextlib.asynccontextmanager
async def _failing(
    kind: str, how: str, redis_url: str, model: Path, *flags: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    flags = ("--model", str(model), "--redis-url", redis_url, "--pool", kind, "--threads", "1", *flags)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.services.poisoned_worker", kind, how, *flags), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def _announced(redis: Redis, pool: str) -> str:
    """The address of the pool's only worker, once there is one."""
    async with asyncio.timeout(HANG_S):
        while not (records := await WorkerRegistry(redis).workers(pool)):
            await asyncio.sleep(0.05)
    return records[0].address


async def _step(channel: grpc.aio.Channel) -> list[object]:
    async with leading(channel) as leader:
        await leader.admit(spec("a/0"))
        await leader.plan([("a/0", 0)])
        return await _until_the_end(leader.report)


async def _decode(channel: grpc.aio.Channel) -> list[object]:
    arena, host = create_arena(1, 4 * 8 * 8 * 4, "float32"), ServiceHost()
    host.add("arena", stages_pb2_grpc.add_LatentsArenaServicer_to_server, LatentsArenaServicer(arena))
    address = await host.start("127.0.0.1:0")
    slot = arena.acquire()
    arena.write(slot, bytes(4 * 8 * 8 * 4))
    leader = VaeLeader(channel, 1)
    await leader.attach()
    await leader.plan(1, [DecodeEntry("a/0", address, slot, SIDE, SIDE, ImageFormat.PNG, "{}")])
    try:
        return await _until_the_end(leader.report)
    finally:
        await host.drain(0)
        arena.close()


async def _until_the_end(report: Callable[[], Awaitable[object]]) -> list[object]:
    reports: list[object] = []
    with contextlib.suppress(grpc.aio.AioRpcError, AssertionError):  # the stream ends, one way or the other
        while True:
            reports.append(await report())
    return reports
