"""Deaths under load: both workers at once, and one that stands still. And exact pictures, which no crowd changes.

SYNERDIFF_TEST_DOUBLE_DEATHS sets how often both workers die, as clients of CUDA MPS do.
"""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from bench.exact import Files, files_of, in_a_crowd
from bench.load import largest_differences, send_all
from bench.mixed_requests import mixed_requests
from bench.status import leaders_status, slots_used
from tests.end_to_end.command import Up, processes, running_up
from tests.end_to_end.conftest import EXACT
from tests.rounding import A_LEVEL

DEATHS = int(os.environ.get("SYNERDIFF_TEST_DOUBLE_DEATHS", "1"))
BOTH = frozenset({"unet", "vae"})
PLAN_TIMEOUT_S = 3
KEEPALIVE_S = 30 + 10  # after which gRPC ends a stream to a process that does not answer at all
STILL = mixed_requests(12, seed=29)


@pytest.mark.usefixtures("all_slots_end_free")
async def test_exact_pictures_are_the_same_to_the_byte_whatever_else_is_drawn(up: Up, alone: list[Files]) -> None:
    crowd = await send_all(up.addresses[1], in_a_crowd(EXACT), clients=len(EXACT))
    assert [files_of(answer) for answer in crowd.answers[::2]] == alone
    assert all(answer.pictures for answer in crowd.answers[1::2])


@pytest.mark.usefixtures("all_slots_end_free")
async def test_both_workers_dying_at_once_cost_time_and_nothing_else(up: Up, alone: list[Files]) -> None:
    requests = in_a_crowd(EXACT[::-1] * DEATHS)
    sending = asyncio.create_task(send_all(up.addresses[0], requests, clients=8))
    dead: dict[str, int] = {}
    for _ in range(DEATHS):
        await until_attached(up, BOTH, busy=True, dead=dead.values())
        await asyncio.sleep(random.uniform(0, 0.4))
        assert not sending.done(), "the load was over before both died"
        dead = up.kill("unet", "vae")
    window = await sending
    assert len(window.served) == len(requests), window.answers
    assert [files_of(answer) for answer in window.answers[::2]] == alone[::-1] * DEATHS, "exact ones are no others"
    assert max(largest_differences(requests, window.answers[1::2])) <= A_LEVEL
    assert all(f"{name} died and is started again" in up.said() for name in dead)
    assert not processes(up.home).keys() & set(dead.values())


async def test_one_that_stands_still_with_its_stream_open_costs_time_and_nothing_else(tmp_path: Path) -> None:
    """As on a device that hangs: it is given up, and taken back."""
    with running_up(tmp_path, schedulers=1, SYNERDIFF_PLAN_TIMEOUT_S=str(PLAN_TIMEOUT_S)) as up:
        sending = asyncio.create_task(send_all(up.addresses[0], STILL, clients=8))
        for kind in sorted(BOTH):
            await until_attached(up, BOTH, busy=True)
            assert not sending.done(), "the load was over before both stood still"
            with standing_still(up, kind):
                async with asyncio.timeout(KEEPALIVE_S - 5):
                    await until_attached(up, BOTH - {kind})
        window = await sending
        assert len(window.served) == len(STILL), window.answers
        assert max(largest_differences(STILL, window.served)) <= A_LEVEL
        assert await slots_used(up.addresses) == 0
        log = (up.logs / "scheduler-0.log").read_text()
        assert [f'"worker_id": "{kind}-emoji-0"' in log for kind in BOTH] == [True, True]
        assert log.count("worker is given up") >= 2
        assert not [name for name in up.pids() if f"{name} died" in up.said()]


@contextlib.contextmanager
def standing_still(up: Up, kind: str) -> Iterator[None]:
    """Stop the worker of a kind, and let it go on at the end."""
    pid = next(pid for name, pid in up.pids().items() if name.startswith(kind))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def until_attached(up: Up, kinds: Collection[str], *, busy: bool = False, dead: Collection[int] = ()) -> None:
    """Return once the leader has workers of these kinds and no others, with tasks if `busy`, and none of the `dead`."""
    while True:
        status = await leaders_status(up.addresses)
        workers = [worker for worker in status.workers if worker.attached] if status else []
        used = any(worker.slots_used for worker in workers if worker.kind == "unet")
        there = {worker.kind for worker in workers} == set(kinds)
        if there and (used or not busy) and not set(up.pids().values()) & set(dead):
            return
        await asyncio.sleep(0.05)
