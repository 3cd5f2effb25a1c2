"""The rehearsal's client, run in a pod of its own: `python -m deploy.rehearsal.load --address scheduler:50051 ...`

Sends requests from several clients at once, each the next when its last is answered, and writes an answer a line. With
`--endless` it begins again after the last request, until SIGTERM; then it waits for the requests under way.
"""

import asyncio
import base64
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from bench.command import run
from bench.mixed_requests import mixed_requests
from bench.simulated_workers import MODEL as SIMULATED_MODEL
from deploy.rehearsal.answers import LINES, Answer
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.client.load.requests import LoadRequest
from synerdiff.client.results import ImageReady, Progress
from synerdiff.stopping import stop_signal


async def send(
    address: Annotated[str, typer.Option()],
    out: Annotated[Path, typer.Option(help="Folder for the files `answers` and `steps`.")],
    requests: int = 12,
    seed: int = 1,
    least_steps: int = 4,
    most_steps: int = 12,
    clients: int = 1,
    endless: bool = False,
    model: Annotated[str, typer.Option(help="The model's name; empty: the only one there is.")] = "",
    simulated: Annotated[bool, typer.Option(help="Ask the simulated workers, for pictures of no use.")] = False,
) -> None:
    """Send until every request is answered."""
    mixed = mixed_requests(requests, seed, (least_steps, most_steps))
    asked: list[LoadRequest] = [replace(each, model=model) for each in mixed]
    if simulated:
        plain = partial(replace, model=SIMULATED_MODEL, num_images=1, sampler=Sampler.DDIM, width=512, height=512)
        asked = [plain(each) for each in asked]
    numbers = itertools.cycle(range(requests)) if endless else iter(range(requests))
    with (out / "answers").open("ab") as answers:
        crowd = Crowd(address, asked, numbers, stop_signal(), answers, keep_pictures=not simulated)
        counting = asyncio.create_task(_count(crowd, out / "steps"))
        async with AsyncClient(address) as shared:
            # Half of the clients keep their connection, half connect anew for each request.
            await asyncio.gather(*(crowd.client(shared if i % 2 else None) for i in range(clients)))
        counting.cancel()


@dataclass
class Crowd:
    """Clients that share a list of requests, and the file for their answers."""

    address: str
    requests: list[LoadRequest]
    numbers: Iterator[int]
    stop: asyncio.Event
    out: BinaryIO
    keep_pictures: bool
    steps: int = 0

    async def client(self, shared: AsyncClient | None) -> None:
        """One request after another, over the `shared` connection or each over a new one."""
        while not self.stop.is_set() and (number := next(self.numbers, None)) is not None:
            connection = AsyncClient(self.address) if shared is None else contextlib.nullcontext(shared)
            async with connection as client:
                answer = await self._ask(client, number)
            self.out.write(LINES.dump(answer) + b"\n")
            self.out.flush()

    async def _ask(self, client: AsyncClient, number: int) -> Answer:
        """Send one request and follow it to its end, good or bad."""
        job_id, image_events = "", 0
        steps, images = dict[int, int](), dict[int, str]()
        request = self.requests[number]
        try:
            async with contextlib.aclosing(client.stream(request.prompt, **request.options())) as events:
                async for event in events:
                    job_id = event.job_id
                    if isinstance(event, Progress):
                        self.steps += event.step - steps.get(event.index, 0)
                        steps[event.index] = event.step
                    elif isinstance(event, ImageReady):
                        image_events += 1
                        data = event.image.data if self.keep_pictures else b""
                        images[event.image.index] = base64.b64encode(data).decode()
        except Exception as error:  # every failure is recorded as an answer; none is expected
            return Answer(number, job_id, f"{type(error).__name__}: {error}")
        return Answer(number, job_id, "", images, image_events)


async def _count(crowd: Crowd, path: Path) -> None:
    coming = path.with_suffix(".coming")
    while True:
        coming.write_text(str(crowd.steps))
        coming.rename(path)
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    run(send)
