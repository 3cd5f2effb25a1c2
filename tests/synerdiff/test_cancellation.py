"""A task ends even when it loses a cancellation."""

import asyncio
import contextlib

from synerdiff.cancellation import cancel_and_wait
from tests.waiting import HANG_S


async def stubborn(deaf_times: int) -> None:
    for _ in range(deaf_times):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    await asyncio.sleep(60)


async def test_lost_cancellations_are_asked_for_again() -> None:
    tasks = [asyncio.create_task(stubborn(deaf_times)) for deaf_times in (0, 1, 3)]
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_and_wait(*tasks), HANG_S)
    assert all(task.cancelled() for task in tasks)


async def test_ended_tasks_are_left_alone() -> None:
    task = asyncio.create_task(asyncio.sleep(0, result=7))
    await task
    await cancel_and_wait(task)
    await cancel_and_wait()
    assert task.result() == 7
