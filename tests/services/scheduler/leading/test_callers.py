"""Callers of one model under load: a whole scheduler, a real Redis and simulated workers."""

import asyncio
from pathlib import Path

from redis.asyncio import Redis

from services.scheduler.api.callers_file import CallersFile, key_hash
from services.scheduler.api.gate import Gate
from synerdiff.client import AsyncClient
from tests.services.scheduler.whole import MODEL, whole_scheduler

SLOTS = 4
STEPS = 10


async def test_a_flood_does_not_hold_up_another_caller(redis: Redis, tmp_path: Path) -> None:
    """While one of the other's requests is under way, the flood is served about once for each slot.

    Counted in requests, so that the speed of the machine does not matter. A request waits for a slot, for which those
    in the slots end once, and takes as long as the next ones of the flood. In order of acceptance it would wait for all
    the flood's.
    """
    (path := tmp_path / "callers").write_text(f"flood {key_hash('flood')}\nfew {key_hash('few')}\n")
    ended: list[str] = []

    async def draw(client: AsyncClient, name: str) -> int:
        """How many requests of the flood ended meanwhile."""
        before = len(ended)
        await client.generate("a", model=MODEL, num_inference_steps=STEPS)
        meanwhile = len(ended) - before
        if name == "flood":
            ended.append(name)
        return meanwhile

    async with (
        whole_scheduler(redis, slots=SLOTS, check=Gate(CallersFile(path))) as whole,
        AsyncClient(whole.scheduler.address, key="flood") as flood,
        AsyncClient(whole.scheduler.address, key="few") as few,
    ):
        flooding = [asyncio.create_task(draw(flood, "flood")) for _ in range(60 * SLOTS)]
        while len(ended) < SLOTS:
            await asyncio.sleep(0.01)
        passed = [await draw(few, "few") for _ in range(5)]
        assert len(ended) < 60 * SLOTS, f"the flood was over too soon: {passed}"
        for task in flooding:
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)
    assert max(passed) <= 4 * SLOTS, passed
