"""Callers of one model under load: a whole scheduler, a real Redis and simulated workers."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis

from bench.fairness import TIMES, slower
from services.scheduler.api.callers_file import CallersFile, key_hash
from services.scheduler.api.gate import Gate
from services.scheduler.engine.events import ProfileKnown
from services.scheduler.policy.snapshots import BatchKey
from services.scheduler.simulation.workloads import Mix, poisson
from synerdiff.client import AsyncClient
from synerdiff.errors import QueueFull
from synerdiff.profiles import ItemCaps
from tests.services.scheduler.harness import DOMAIN, MODEL, whole_scheduler
from tests.services.scheduler.simulated import straight_line_profile
from tests.waiting import until

# A step of r rows takes 2 ms and 2 ms a row, a decode 10 ms. So a request takes 480 ms on half of the device, and 68 ms
# for the two full steps of the flood that may be under way when it comes are well within half of that.
PROFILE = straight_line_profile(step_ms=2.0, row_ms=2.0, decode_ms=10.0, caps=ItemCaps(8, 4))
LONG = 40
MIX = Mix(steps=((LONG, 1.0),))
RATE_PER_S = 0.6 * MIX.capacity_per_s(PROFILE) / 2
DUE_S = [arrival.at_ms / 1000 for arrival in poisson(RATE_PER_S, 6, MIX, seed=1)]


async def draw(client: AsyncClient, due_s: float) -> float:
    """Draw a picture at a time of the event loop's clock; returns how long it took, from then on."""
    now_s = asyncio.get_running_loop().time
    await asyncio.sleep(due_s - now_s())
    await client.generate("a", model=MODEL, num_inference_steps=LONG)
    return now_s() - due_s


async def send_without_end(client: AsyncClient, refused: list[QueueFull]) -> None:
    """At fifty times the other's rate, whatever the answer."""
    while True:
        try:
            await client.submit("a", model=MODEL, num_inference_steps=LONG)
        except QueueFull as refusal:
            refused.append(refusal)
        await asyncio.sleep(1 / (TIMES * RATE_PER_S))


async def latencies_s(
    redis: Redis, check: Gate, slowness: float, refused: list[QueueFull] | None = None
) -> Sequence[float]:
    """Of the quiet caller's requests, on a device that is so many times slower; beside a flood with `refused`."""
    times = {"tick_s": 0.002 * slowness, "row_s": 0.002 * slowness, "decode_s": 0.01 * slowness}
    async with (
        whole_scheduler(redis, **times, slots=32, policy="synerdiff", check=check) as whole,
        AsyncClient(whole.scheduler.address, key="flood") as flood,
        AsyncClient(whole.scheduler.address, key="few") as few,
    ):
        assert whole.pool.leader
        whole.pool.leader.on(ProfileKnown(DOMAIN, BatchKey(MODEL, 512, 512), slower(PROFILE, slowness)))
        flooding = asyncio.create_task(send_without_end(flood, refused)) if refused is not None else None
        if flooding:
            await until(lambda: refused, "a refusal")
        begin_s = asyncio.get_running_loop().time()
        latencies = await asyncio.gather(*(draw(few, begin_s + due_s) for due_s in DUE_S))
        if flooding:
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
        return latencies


@pytest.mark.alone
async def test_beside_a_flood_a_caller_has_half_of_the_device(redis: Redis, tmp_path: Path) -> None:
    """Live: its P99 is at most 1.5 times that on a device of half the speed, on which it is alone. What is too much of
    the flood is refused, by the name of the limit, with the time to come back at. Simulated, and for other policies:
    tests/services/scheduler/policy/test_ordering.py."""
    (path := tmp_path / "callers").write_text(f"flood {key_hash('flood')} waiting_jobs=100\nfew {key_hash('few')}\n")
    check = Gate(CallersFile(path))
    alone_s = await latencies_s(redis, check, slowness=2.0)
    refused = list[QueueFull]()
    beside_s = await latencies_s(redis, check, slowness=1.0, refused=refused)
    assert np.percentile(beside_s, 99) <= 1.5 * np.percentile(alone_s, 99), (beside_s, alone_s)
    assert {refusal.message for refusal in refused} == {"caller 'flood' has 100 of waiting_jobs=100"}
    assert all(refusal.retry_after_s > 0 for refusal in refused)
