"""A worker that stands still with its stream open, as on a device that hangs: it is given up, and taken back."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from bench.load import largest_differences, send_all
from bench.mixed_requests import mixed_requests
from bench.status import leaders_status, slots_used
from tests.end_to_end.command import Up, running_up
from tests.rounding import A_LEVEL

PLAN_TIMEOUT_S = 3
KEEPALIVE_S = 30 + 10  # after which gRPC ends a stream to a process that does not answer at all
REQUESTS = mixed_requests(12, seed=29)


async def test_one_that_stands_still_costs_time_and_nothing_else(tmp_path: Path) -> None:
    with running_up(tmp_path, schedulers=1, SYNERDIFF_PLAN_TIMEOUT_S=str(PLAN_TIMEOUT_S)) as up:
        sending = asyncio.create_task(send_all(up.addresses[0], REQUESTS, clients=8))
        for kind in ("unet", "vae"):
            await until_attached(up, {"unet", "vae"}, busy=True)
            assert not sending.done(), "the load was over before both stood still"
            with standing_still(up, kind):
                async with asyncio.timeout(KEEPALIVE_S - 5):
                    await until_attached(up, {"unet", "vae"} - {kind})
        window = await sending
        assert len(window.served) == len(REQUESTS), window.answers
        assert max(largest_differences(REQUESTS, window.served)) <= A_LEVEL
        assert await slots_used(up.addresses) == 0
        log = (up.logs / "scheduler-0.log").read_text()
        assert [f'"worker_id": "{kind}-emoji-0"' in log for kind in ("unet", "vae")] == [True, True]
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


async def until_attached(up: Up, kinds: set[str], *, busy: bool = False) -> None:
    """Return once the leader has workers of these kinds and no others, and, if `busy`, tasks on the UNet worker."""
    while True:
        status = await leaders_status(up.addresses)
        workers = [worker for worker in status.workers if worker.attached] if status else []
        used = sum(worker.slots_used for worker in workers)
        if {worker.kind for worker in workers} == kinds and (used or not busy):
            return
        await asyncio.sleep(0.05)
