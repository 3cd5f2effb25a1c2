"""What is read for many requests at once, and when it is read again."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from services.scheduler.api import generate
from services.scheduler.api.generate import Kept
from tests.waiting import VirtualTime


async def test_it_is_read_again_once_it_is_old_or_no_good(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, count = VirtualTime(), itertools.count(1)
    monkeypatch.setattr(generate, "time", clock)

    async def read() -> int:
        return next(count)

    value = Kept(read, for_s=1.0)
    assert [await value.get(), await value.get()] == [1, 1]
    clock.now_s = 1.5
    assert [await value.get(), await value.get()] == [2, 2]
    assert await value.get(lambda number: number == 2) == 2
    assert await value.get(lambda number: number > 2) == 3


async def test_an_error_is_not_kept() -> None:
    answers: Iterator[int | ConnectionError] = iter([ConnectionError("away"), 1])

    async def read() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    value = Kept(read, for_s=1.0)
    with pytest.raises(ConnectionError):
        await value.get()
    assert await value.get() == 1


async def test_those_that_come_meanwhile_share_one_reading() -> None:
    go_on, count = asyncio.Event(), itertools.count(1)

    async def read() -> int:
        number = next(count)
        await go_on.wait()
        return number

    value = Kept(read, for_s=1.0)
    readers = [asyncio.create_task(value.get()) for _ in range(3)]
    # The reading under way may have begun before what it wants was there.
    picky = [asyncio.create_task(value.get(lambda number: number > 1)) for _ in range(2)]
    await asyncio.sleep(0)
    readers[0].cancel()
    go_on.set()
    assert await asyncio.gather(*readers[1:], *picky) == [1, 1, 2, 2]
    assert next(count) == 3
