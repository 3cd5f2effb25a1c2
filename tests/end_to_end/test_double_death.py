"""UNet and VAE worker dying at once, as clients of CUDA MPS do; SYNERDIFF_TEST_DOUBLE_DEATHS sets how often."""

import asyncio
import os
import random

from bench.exact import Files, files_of, in_a_crowd
from bench.load import largest_differences, send_all
from bench.status import leaders_status, slots_used
from tests.end_to_end.command import Up, processes
from tests.end_to_end.conftest import EXACT
from tests.rounding import A_LEVEL

DEATHS = int(os.environ.get("SYNERDIFF_TEST_DOUBLE_DEATHS", "1"))
REQUESTS = in_a_crowd(EXACT[::-1] * DEATHS)


async def test_both_workers_dying_at_once_cost_time_and_nothing_else(up: Up, alone: list[Files]) -> None:
    sending = asyncio.create_task(send_all(up.addresses[0], REQUESTS, clients=8))
    dead: dict[str, int] = {}
    for _ in range(DEATHS):
        await at_work(up, dead)
        await asyncio.sleep(random.uniform(0, 0.4))
        assert not sending.done(), "the load was over before both died"
        dead = up.kill("unet", "vae")
    window = await sending
    assert len(window.served) == len(REQUESTS), window.answers
    assert [files_of(answer) for answer in window.answers[::2]] == alone[::-1] * DEATHS, "exact ones are no others"
    assert max(largest_differences(REQUESTS, window.answers[1::2])) <= A_LEVEL
    assert await slots_used(up.addresses) == 0
    assert all(f"{name} died and is started again" in up.said() for name in dead)
    assert not processes(up.home).keys() & set(dead.values())


async def at_work(up: Up, dead: dict[str, int]) -> None:
    """Return once both workers are there, others than the dead, and the leader has given the UNet worker tasks."""
    while True:
        await asyncio.sleep(0.05)
        status = await leaders_status(up.addresses)
        workers = [worker for worker in status.workers if worker.attached] if status else []
        busy = any(worker.slots_used for worker in workers if worker.kind == "unet")
        both = {worker.kind for worker in workers} == {"unet", "vae"}
        if busy and both and not set(up.pids().values()) & set(dead.values()):
            return
