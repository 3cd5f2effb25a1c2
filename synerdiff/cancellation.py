"""Ending tasks for certain."""

import asyncio
from collections.abc import Coroutine
from typing import Any

ASK_AGAIN_S = 0.1


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks until all have ended: wait_for (redis-py's) may lose a cancellation before Python 3.12."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=ASK_AGAIN_S)


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Run coroutines until one has ended, and cancel the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
