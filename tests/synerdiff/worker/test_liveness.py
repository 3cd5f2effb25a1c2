"""A device that hangs in one item: a fake of an item blocks, the probe over real gRPC ends, one line says so."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.unet_worker.settings import UnetWorkerSettings
from synerdiff import pace
from synerdiff.models.device import open_device
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide
from synerdiff.plans import Execution, ItemRef
from synerdiff.rpc import LIVENESS, ServiceHost, open_channel, serving
from synerdiff.settings import load
from synerdiff.worker import job_thread
from synerdiff.worker.device_thread import Computed, DeviceItem, DeviceThread
from synerdiff.worker.process import Liveness
from tests.waiting import HANG_S, VirtualTime, WatchedTime, until

LIMIT_S = 600.0


class HangingItem(DeviceItem):
    """Computes until it is let go."""

    exact = False

    def __init__(self, execution: Execution = Execution()) -> None:  # noqa: B008, a frozen value
        self.execution = execution
        self.begun, self.let_go = threading.Event(), threading.Event()

    def prepare(self) -> None: ...

    def compute(self) -> Computed:
        self.begun.set()
        assert self.let_go.wait(HANG_S)
        return Computed(1, 0)

    def over(self, abandoned: bool) -> None: ...


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceThread]:
    failures: list[Exception] = []
    thread = DeviceThread(open_device("cpu"), Pacer(PaceSide.UNET, tmp_path), ThreadShare(1), failures.append)
    thread.start()
    yield thread
    thread.close()
    assert failures == []


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    """The clock of heartbeats."""
    time = VirtualTime()
    monkeypatch.setattr(job_thread, "time", time)
    return time


@pytest.fixture
async def host() -> AsyncIterator[ServiceHost]:
    host = ServiceHost()
    await host.start_health("127.0.0.1:0")
    yield host
    await host.drain(0)


def liveness_of(device: DeviceThread) -> Liveness:
    return Liveness(device.heartbeats, load(UnetWorkerSettings, ["--hang-limit-s", str(LIMIT_S)]))


async def test_a_hung_item_ends_liveness_and_one_that_goes_on_brings_it_back(
    device: DeviceThread, time: VirtualTime, host: ServiceHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synerdiff.worker.process._LOOK_EVERY_S", 0.01)
    item, liveness = HangingItem(), liveness_of(device)
    with capture_logs() as logs:
        following = asyncio.create_task(liveness.follow(host))
        async with open_channel(host.health_address) as channel:
            device.submit_item(device.begin_plan(1), item)
            await asyncio.to_thread(item.begun.wait, HANG_S)
            time.now_s = LIMIT_S - 1
            await asyncio.sleep(0.1)
            assert await serving(channel, LIVENESS), "an item that takes long is not stuck"
            time.now_s = LIMIT_S + 1
            async with asyncio.timeout(HANG_S):
                while await serving(channel, LIVENESS):
                    await asyncio.sleep(0.01)
            item.let_go.set()
            async with asyncio.timeout(HANG_S):
                while not await serving(channel, LIVENESS):
                    await asyncio.sleep(0.01)
        following.cancel()
    [stuck] = [log for log in logs if log["log_level"] == "critical"]
    assert (stuck["thread"], stuck["limit_s"]) == ("device", LIMIT_S)


async def test_items_one_after_another_and_a_thread_at_rest_are_not_stuck(
    device: DeviceThread, time: VirtualTime
) -> None:
    liveness, plan = liveness_of(device), device.begin_plan(1)
    for _ in range(3):
        item = HangingItem()
        device.submit_item(plan, item)
        await asyncio.to_thread(item.begun.wait, HANG_S)
        time.now_s += LIMIT_S - 1
        assert liveness.stuck is None
        item.let_go.set()
    await until(lambda: len(plan.timings) == 3)
    time.now_s += 2 * LIMIT_S
    await until(lambda: liveness.stuck is None, "a thread without work to rest")


async def test_to_wait_for_the_other_worker_is_not_to_be_stuck(
    device: DeviceThread, time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "time", watched := WatchedTime())
    late = Execution(place=1, after=ItemRef(9, 1), patience_ms=10_000 * int(HANG_S), pace="pair")
    device.submit_item(device.begin_plan(1), HangingItem(late))
    await asyncio.to_thread(watched.until_somebody_sleeps)
    time.now_s += 2 * LIMIT_S
    assert liveness_of(device).stuck is None


def test_the_bound_is_generous_by_default() -> None:
    for device, limit_s in (("cpu", 3600), ("cuda:1", 600)):
        settings = load(UnetWorkerSettings, ["--device", device])
        assert Liveness((), settings)._limit_s == limit_s
