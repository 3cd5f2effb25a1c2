"""The rehearsal's client, run in a pod of its own: `python -m deploy.rehearsal.load --address scheduler:50051 ...`

Sends requests from several clients at once, each the next when its last is answered, and writes an answer a line. With
`--endless` it begins again after the last request, until SIGTERM; then it waits for what is under way.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from bench.mixed_requests import mixed_requests
from bench.simulated_workers import MODEL as SIMULATED_MODEL
from deploy.rehearsal.answers import LINES, Answer
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.client.load.requests import LoadRequest
from synerdiff.client.results import ImageReady, Progress
from synerdiff.stopping import stop_signal


def main() -> None:
    """Parse the command line and send."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files `answers` and `steps`")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least-steps", type=int, default=4)
    parser.add_argument("--most-steps", type=int, default=12)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--endless", action="store_true")
    parser.add_argument("--model", default="", help="the model's name; empty: the only one there is")
    parser.add_argument("--simulated", action="store_true", help="ask the simulated workers, for pictures of no use")
    asyncio.run(_send(parser.parse_args()))


class Crowd:
    """Clients that share a list of requests, and the file for their answers."""

    def __init__(self, options: argparse.Namespace, stop: asyncio.Event, out: BinaryIO) -> None:
        self._options = options
        self._stop = stop
        self._out = out
        self._requests = mixed_requests(options.requests, options.seed, (options.least_steps, options.most_steps))
        numbers = range(len(self._requests))
        self._numbers: Iterator[int] = itertools.cycle(numbers) if options.endless else iter(numbers)
        self.steps = 0

    async def client(self, shared: AsyncClient | None) -> None:
        """One request after another, over the `shared` connection or each over a new one."""
        while not self._stop.is_set() and (number := next(self._numbers, None)) is not None:
            connection = AsyncClient(self._options.address) if shared is None else contextlib.nullcontext(shared)
            async with connection as client:
                answer = await self._ask(client, number)
            self._out.write(LINES.dump(answer) + b"\n")
            self._out.flush()

    async def _ask(self, client: AsyncClient, number: int) -> Answer:
        """Send one request and follow it to its end, whatever that is."""
        job_id, image_events = "", 0
        steps, images = dict[int, int](), dict[int, str]()
        request: LoadRequest = replace(self._requests[number], model=self._options.model)
        if self._options.simulated:
            request = replace(request, model=SIMULATED_MODEL, num_images=1, sampler=Sampler.DDIM)
            request = replace(request, width=512, height=512)
        try:
            async with contextlib.aclosing(client.stream(request.prompt, **request.options())) as events:
                async for event in events:
                    job_id = event.job_id
                    if isinstance(event, Progress):
                        self.steps += event.step - steps.get(event.index, 0)
                        steps[event.index] = event.step
                    elif isinstance(event, ImageReady):
                        image_events += 1
                        data = b"" if self._options.simulated else event.image.data
                        images[event.image.index] = base64.b64encode(data).decode()
        except Exception as error:  # every way to fail is an answer; none is expected
            return Answer(number, job_id, f"{type(error).__name__}: {error}")
        return Answer(number, job_id, "", images, image_events)


async def _send(options: argparse.Namespace) -> None:
    stop = stop_signal()
    with (options.out / "answers").open("ab") as out:
        crowd = Crowd(options, stop, out)
        counting = asyncio.create_task(_count(crowd, options.out / "steps"))
        async with AsyncClient(options.address) as shared:
            # Half of the clients keep their connection, half connect anew for each request.
            await asyncio.gather(*(crowd.client(shared if i % 2 else None) for i in range(options.clients)))
        counting.cancel()


async def _count(crowd: Crowd, path: Path) -> None:
    coming = path.with_suffix(".coming")
    while True:
        coming.write_text(str(crowd.steps))
        coming.rename(path)
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    main()
