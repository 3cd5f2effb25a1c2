"""Who is drawn next, and with whom."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from bench.peers.line import Alike, Asked, Line


def asked(seed: int, steps: int = 20) -> Asked:
    return Asked("a cat", seed, Alike(steps, 5.0, None, None, False))


class Pipeline:
    """Draws what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.fails = False

    async def draw(self, batch: Sequence[Asked]) -> list[int]:
        self.batches.append([one.seed for one in batch])
        await self.go.wait()
        if self.fails:
            raise ValueError("out of paint")
        return [one.seed for one in batch]


@asynccontextmanager
async def line_of(pipeline: Pipeline, largest: int) -> AsyncIterator[Line]:
    line = Line(pipeline.draw, largest)
    running = asyncio.create_task(line.run())
    yield line
    running.cancel()


async def pictures(line: Line, *requests: Asked) -> list["asyncio.Task[int]"]:
    tasks = [asyncio.create_task(line.picture(request)) for request in requests]
    await asyncio.sleep(0.01)
    return tasks


async def test_the_oldest_is_drawn_with_those_like_it_that_wait() -> None:
    pipeline = Pipeline()
    async with line_of(pipeline, largest=3) as line:
        first = await pictures(line, asked(1))
        later = await pictures(line, asked(2), asked(3, steps=8), asked(4), asked(5), asked(6), asked(7, steps=8))
        pipeline.go.set()
        assert [await task for task in first + later] == [1, 2, 3, 4, 5, 6, 7]
    assert pipeline.batches == [[1], [2, 4, 5], [3, 7], [6]]


async def test_one_at_a_time() -> None:
    pipeline = Pipeline()
    pipeline.go.set()
    async with line_of(pipeline, largest=1) as line:
        assert [await task for task in await pictures(line, asked(1), asked(2))] == [1, 2]
    assert pipeline.batches == [[1], [2]]


async def test_who_went_away_is_not_drawn_and_a_failure_is_everybodys_of_its_batch() -> None:
    pipeline = Pipeline()
    async with line_of(pipeline, largest=4) as line:
        (first,) = await pictures(line, asked(1))
        gone, stays = await pictures(line, asked(2), asked(3))
        gone.cancel()
        pipeline.fails = True
        pipeline.go.set()
        for task in (first, stays):
            with pytest.raises(ValueError, match="out of paint"):
                await task
        pipeline.fails = False
        assert await line.picture(asked(4)) == 4
    assert pipeline.batches == [[1], [3], [4]]
