"""Clients that hang up: their slots are free within two ticks, and those that wait leave the queue.

Before a real scheduler that abandons nothing, with one slot and half a second a tick (simulated). All but the pictures
of one step are endless, so nothing but a cancellation ends them.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import httpx2
import pytest

from bench.status import Status, until
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.rpc import open_channel
from synerdiff.v1 import operations_pb2, operations_pb2_grpc
from tests.services.gateway.deployment import PATH, Door, asking, running_gateway, simulated_schedulers
from tests.waiting import HANG_S
from tests.waiting import until as came_to_pass

pytestmark = pytest.mark.alone

TICK_MS = 500.0
GUIDED, UNGUIDED = 2, 1  # rows of a tick
ENDLESS = {"prompt": "x", "num_inference_steps": 1_000_000}
SHORT = {"prompt": "x", "num_inference_steps": 1, "guidance_scale": 1.0}
HANG_UPS = 40
_HANG_UPS = re.compile(r"^synerdiff_gateway_hang_ups_total (\S+)$", re.MULTILINE)
_ACCEPTED = re.compile(r"^synerdiff_requests_accepted_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class OneSlot:
    """A gateway before a scheduler with one slot."""

    door: Door
    scheduler: str
    metrics_url: str

    async def holds(self, slots_used: int, waiting: int) -> None:
        """Return once that many slots are taken, and as many jobs wait."""
        await until(self.scheduler, lambda status: _held(status) == (slots_used, waiting), HANG_S)

    def answered(self) -> int:
        return sum(line.get("path") == PATH for line in self.door.lines())

    def hang_ups(self) -> float:
        return _sum(_HANG_UPS, self.door.get("/metrics").text)

    def accepted(self) -> float:
        return _sum(_ACCEPTED, httpx2.get(self.metrics_url).text)


def _sum(metric: re.Pattern[str], text: str) -> float:
    return sum(map(float, metric.findall(text)))


def _held(status: Status) -> tuple[int, int]:
    return sum(worker.slots_used for worker in status.workers), sum(queue.waiting for queue in status.queues)


@pytest.fixture(scope="module")
def one_slot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneSlot]:
    redis, port = RedisProcess(tmp_path_factory.mktemp("redis")), free_port()
    redis.start()
    flags = ("--abandonment-s", "3600", "--metrics-port", str(port))
    deployed = simulated_schedulers(redis.url, *flags, tick_ms=TICK_MS, max_steps=1_000_000, slots=1)
    with deployed as scheduler, running_gateway(scheduler, tmp_path_factory.mktemp("gateway")) as door:
        yield OneSlot(door, scheduler, f"http://127.0.0.1:{port}/metrics")
    redis.stop()


async def unet_ticks(scheduler: str) -> AsyncGenerator[operations_pb2.TickPart, None]:
    """The scheduler's own record of ticks as they end, of the UNet worker."""
    async with open_channel(scheduler) as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        async for message in stub.WatchTicks(operations_pb2.WatchTicksRequest()):
            for part in message.parts:
                if part.kind == "unet":
                    yield part


async def next_with(ticks: AsyncGenerator[operations_pb2.TickPart, None], rows: int, after_unix_ms: float = 0) -> int:
    """How many ticks have ended after a time and before the next one of so many rows."""
    before = 0
    async for tick in ticks:
        if sum(item.rows for item in tick.items) == rows:
            return before
        before += any(item.end_unix_ms > after_unix_ms for item in tick.items)
    raise AssertionError("no more ticks")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_slot_is_the_next_ones_within_two_ticks(one_slot: OneSlot, streamed: bool) -> None:
    _, writer = await asking(one_slot.door, {**ENDLESS, "stream": streamed})
    await one_slot.holds(1, waiting=0)
    async with httpx2.AsyncClient(timeout=HANG_S) as http, aclosing(unet_ticks(one_slot.scheduler)) as ticks:
        waiting = asyncio.create_task(http.post(one_slot.door.url + PATH, json=SHORT))
        await one_slot.holds(1, waiting=1)
        await next_with(ticks, GUIDED)
        hang_ups = one_slot.hang_ups()
        writer.close()
        await came_to_pass(lambda: one_slot.hang_ups() > hang_ups, "a cancellation")
        cancelled_unix_ms = time.time() * 1e3
        before = await asyncio.wait_for(next_with(ticks, UNGUIDED, cancelled_unix_ms), HANG_S)
        assert (await waiting).status_code == 200
    assert before <= 2


async def test_one_that_waits_leaves_the_queue_while_the_slot_is_taken(one_slot: OneSlot) -> None:
    _, first = await asking(one_slot.door, ENDLESS)
    await one_slot.holds(1, waiting=0)
    _, second = await asking(one_slot.door, ENDLESS)
    await one_slot.holds(1, waiting=1)
    second.close()
    hung_up_at_s = time.monotonic()
    await one_slot.holds(1, waiting=0)
    assert (time.monotonic() - hung_up_at_s) * 1e3 < 2 * TICK_MS
    first.close()
    await one_slot.holds(0, waiting=0)


@pytest.mark.parametrize("streamed", [True, False])
async def test_whenever_a_client_hangs_up_its_job_is_cancelled(one_slot: OneSlot, streamed: bool) -> None:
    draw = random.Random(1)
    hang_ups, accepted, answered = one_slot.hang_ups(), one_slot.accepted(), one_slot.answered()
    for at in range(HANG_UPS):
        _, writer = await asking(one_slot.door, {**ENDLESS, "stream": streamed})
        await asyncio.sleep(draw.uniform(0, 0.05) if at % 4 else 0)
        writer.close()
    await came_to_pass(lambda: one_slot.answered() == answered + HANG_UPS)
    await one_slot.holds(0, waiting=0)
    assert one_slot.accepted() - accepted > HANG_UPS / 2
    await came_to_pass(
        lambda: one_slot.hang_ups() - hang_ups == one_slot.accepted() - accepted, "a cancellation of each"
    )
