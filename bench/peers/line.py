"""Requests before a pipeline, drawn one by one or in batches of those that are alike."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Alike(NamedTuple):
    """The parameters that all requests of one call share. Sizes in pixels, None: the model's own."""

    num_inference_steps: int
    guidance_scale: float
    width: int | None
    height: int | None
    has_negative_prompt: bool


@dataclass(frozen=True)
class Asked:
    prompt: str
    seed: int
    alike: Alike
    negative_prompt: str = ""


Draw = Callable[[Sequence[Asked]], Awaitable[Sequence[Any]]]


class _Waiting(NamedTuple):
    asked: Asked
    picture: "asyncio.Future[Any]"


class Line:
    """Requests before one pipeline, which draws up to `largest`; when idle before, it gathers for `gather_s`."""

    def __init__(self, draw: Draw, largest: int, gather_s: float = 0.0) -> None:
        self._draw = draw
        self._largest = largest
        self._gather_s = gather_s
        self._waiting: list[_Waiting] = []
        self._somebody = asyncio.Event()

    async def picture(self, asked: Asked) -> Any:
        """The picture, when it is its turn. Raises the errors of drawing."""
        waiting = _Waiting(asked, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._somebody.set()
        return await waiting.picture

    async def run(self) -> None:
        while True:
            if not self._somebody.is_set():
                await self._somebody.wait()
                await asyncio.sleep(self._gather_s)
            batch = self._next_batch()
            if batch:
                await self._draw_all(batch)

    def _next_batch(self) -> list[_Waiting]:
        """Take the next batch out of the line; abandoned ones are left out."""
        waiting = [one for one in self._waiting if not one.picture.done()]
        alike = [one for one in waiting if one.asked.alike == waiting[0].asked.alike][: self._largest]
        self._waiting = [one for one in waiting if one not in alike]
        if not self._waiting:
            self._somebody.clear()
        return alike

    async def _draw_all(self, batch: Sequence[_Waiting]) -> None:
        try:
            pictures = await self._draw([one.asked for one in batch])
        except Exception as error:
            for one in batch:
                if not one.picture.done():
                    one.picture.set_exception(error)
            return
        for one, picture in zip(batch, pictures, strict=True):
            if not one.picture.done():
                one.picture.set_result(picture)
