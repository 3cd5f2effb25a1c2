"""A device that is lost to its process, or hangs: no task is blamed, the worker ends and says why. All is injected."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
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
from synerdiff.models.device import DeviceFailed
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.plans import DecodeEntry, Execution, SlotRef, VaeItem
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.registry import WorkerRegistry
from synerdiff.requests import ImageFormat
from synerdiff.rpc import LIVENESS, open_channel, serving
from tests.parity import unet_side, vae_side
from tests.services.unet_worker.conftest import ServedWorker, served_worker
from tests.services.unet_worker.leader import leading
from tests.services.vae_worker.stage import Leader as VaeLeader
from tests.services.worker_processes import announced, served_arena, worker_process
from tests.values import spec
from tests.waiting import HANG_S

POISONED = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might ...")
SIDE = 64


@pytest.fixture
async def served(tiny_path: Path) -> AsyncIterator[ServedWorker]:
    async with served_worker(unet_side(tiny_path), threads=1) as worker:
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
def test_a_vae_worker_fails_as_a_whole(tiny_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    side = vae_side(tiny_path)
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
    redis: Redis, redis_server: RedisProcess, tiny_path: Path
) -> None:
    async with _failing("unet", "poisoned", redis_server.url, tiny_path) as process:
        async with open_channel((await announced(WorkerRegistry(redis), "unet")).address) as channel:
            assert not await _step(channel), "a task was blamed, or a report made"
        _, stderr = await asyncio.wait_for(process.communicate(), HANG_S)
    assert process.returncode == 1
    (told,) = [line for line in stderr.decode().splitlines() if '"level": "critical"' in line]
    assert "the device failed: this process ends" in told
    assert "unspecified launch failure" in told


async def test_a_vae_process_whose_device_hangs_is_not_alive_and_ends_at_once_when_told_to(
    redis: Redis, redis_server: RedisProcess, tiny_path: Path
) -> None:
    health = f"127.0.0.1:{free_port()}"
    flags = ("--health-listen", health, "--hang-limit-s", "3", "--drain-grace-s", "3000")
    async with _failing("vae", "hangs", redis_server.url, tiny_path, *flags) as process:
        vae = await announced(WorkerRegistry(redis), "vae")
        async with open_channel(vae.address) as channel, open_channel(health) as probe:
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


def _failing(
    kind: str, how: str, redis_url: str, tiny_path: Path, *flags: str
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    flags = ("--model", str(tiny_path), "--redis-url", redis_url, "--pool", kind, *flags)
    return worker_process("tests.services.poisoned_worker", kind, how, *flags)


async def _step(channel: grpc.aio.Channel) -> list[object]:
    async with leading(channel) as leader:
        await leader.admit(spec("a/0"))
        await leader.plan([("a/0", 0)])
        return await _until_the_end(leader.report)


async def _decode(channel: grpc.aio.Channel) -> list[object]:
    async with served_arena(arena := create_arena(1, 4 * 8 * 8 * 4, "float32")) as address:
        slot = arena.acquire()
        arena.write(slot, bytes(4 * 8 * 8 * 4))
        leader = VaeLeader(channel, 1)
        await leader.attach()
        await leader.plan(1, [DecodeEntry("a/0", address, slot, SIDE, SIDE, ImageFormat.PNG, "{}")])
        return await _until_the_end(leader.report)


async def _until_the_end(report: Callable[[], Awaitable[object]]) -> list[object]:
    reports: list[object] = []
    with contextlib.suppress(grpc.aio.AioRpcError, AssertionError):  # the stream ends, one way or the other
        while True:
            reports.append(await report())
    return reports
