"""A load whose requests are sent once each, and whose accepted jobs are followed to their ends through any trouble."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.serving import PROMPTS
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient, ImageReady
from synerdiff.client.load.requests import LoadRequest
from synerdiff.errors import SynerDiffError

MOST_LEVELS = 2  # of 255, that a picture may differ by from the same one in another batch
REQUESTS = 24  # unlike each other; sent again and again
STEPS = 4
# Longer than any fault: whoever has an accepted job waits for it.
_PATIENCE_S = 600.0


@dataclass
class Sent:
    """A request, and what came of it. Times in s of the load. `code`: of a refusal, or of an accepted job's bad end."""

    number: int
    scheduler: int
    sent_s: float
    job_id: str = ""
    code: str = ""
    message: str = ""
    answered_s: float = 0.0
    ended_s: float = 0.0
    levels: int | None = None

    @property
    def own_picture(self) -> bool:
        return self.levels is not None and self.levels <= MOST_LEVELS


@dataclass
class Load:
    """Requests at a rate, each sent once; accepted jobs are followed to their end. `pictures`: of every request."""

    addresses: Sequence[str]
    pictures: Mapping[int, Any]
    began_s: float = field(default_factory=time.monotonic)
    sent: list[Sent] = field(default_factory=list)

    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    async def run(self, seconds: float, rate: float) -> None:
        """Return once every accepted job has ended."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            opened = [[AsyncClient(a, patience_s=p) for a in self.addresses] for p in (0.0, _PATIENCE_S)]
            for client in (client for clients in opened for client in clients):
                stack.push_async_callback(client.close)
            for number in range(round(seconds * rate)):
                await asyncio.sleep(max(0.0, number / rate - self.now_s()))
                sent = Sent(number, number % len(self.addresses), self.now_s())
                self.sent.append(sent)
                tasks.create_task(self._one(sent, *(clients[sent.scheduler] for clients in opened)))

    async def _one(self, sent: Sent, eager: AsyncClient, patient: AsyncClient) -> None:
        request = REQUESTED[sent.number % REQUESTS]
        try:
            if sent.number // len(self.addresses) % 2:
                sent.job_id = (await eager.submit(request.prompt, **request.options())).job_id
            else:
                await self._generate(sent, eager, request)
        except SynerDiffError as error:
            if not sent.job_id:
                sent.code, sent.message = error.code.name, error.message
        sent.answered_s = sent.answered_s or self.now_s()
        if sent.job_id and sent.levels is None:
            await self._follow(sent, patient)

    async def _generate(self, sent: Sent, client: AsyncClient, request: LoadRequest) -> None:
        async for event in client.stream(request.prompt, **request.options()):
            sent.job_id, sent.answered_s = event.job_id, sent.answered_s or self.now_s()
            if isinstance(event, ImageReady):
                self._drawn(sent, event)

    async def _follow(self, sent: Sent, client: AsyncClient) -> None:
        try:
            async for event in client.watch(sent.job_id):
                if isinstance(event, ImageReady):
                    self._drawn(sent, event)
        except SynerDiffError as error:
            sent.code, sent.message = error.code.name, error.message

    def _drawn(self, sent: Sent, event: ImageReady) -> None:
        sent.levels = _levels(self.pictures[sent.number % REQUESTS], _pixels(event.image))
        sent.ended_s = self.now_s()


REQUESTED = tuple(
    LoadRequest(PROMPTS[number], 1000 + number, STEPS, 4.0, Sampler.DDIM, skip_cfg=False) for number in range(REQUESTS)
)


def _pixels(image: Any) -> Any:
    return np.asarray(image.pil.convert("RGB")).astype(int)


def _levels(one: Any, other: Any) -> int:
    return int(np.abs(one - other).max())


async def undisturbed(address: str) -> dict[int, Any]:
    """The picture of each request. Raises RuntimeError where two are alike: one could pass for the other."""
    async with AsyncClient(address, patience_s=60.0) as client:
        drawn = [await client.generate(request.prompt, **request.options()) for request in REQUESTED]
    pictures = {number: _pixels(result.image) for number, result in enumerate(drawn)}
    for number, picture in pictures.items():
        if any(_levels(picture, pictures[other]) <= MOST_LEVELS for other in range(number)):
            raise RuntimeError(f"request {number} has the picture of another")
    return pictures
