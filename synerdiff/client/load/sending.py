"""Sending a load to one server, and when every request of it was due, sent and answered.

Latency counts from the time a request was due, not from its sending: a client or server that falls behind cannot
hide it. In an open loop that is the time of its arrival, in a closed loop the end of the request before it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from synerdiff.client import AsyncClient, Event, GeneratedImage, Progress
from synerdiff.client.load.arrivals import Arrival
from synerdiff.client.load.requests import LoadRequest
from synerdiff.errors import SynerDiffError


@dataclass(frozen=True)
class OpenLoop:
    """Requests that are sent when they are due, even while others are unanswered."""

    arrivals: tuple[Arrival, ...]


@dataclass(frozen=True)
class ClosedLoop:
    """Clients that send a request each, and the next when it is answered; for at most `seconds`, where given."""

    requests: Iterable[LoadRequest]
    concurrency: int
    seconds: float | None = None


Load = OpenLoop | ClosedLoop


@dataclass(frozen=True)
class Answer:
    """How a request ended: with images, or with an error, named by its gRPC code. Times in s from its window's start.

    `number`: its place in the load. `unet_calls`: of all its images, 0 if unknown; `skipped_calls` of
    them went without guidance. `queue_s`, `decode_s`: reported by the server. `pictures`: kept on request.
    """

    number: int
    due_s: float
    sent_s: float
    ended_s: float
    error: str = ""
    message: str = ""
    images: int = 0
    unet_calls: int = 0
    skipped_calls: int = 0
    queue_s: float = 0.0
    decode_s: float = 0.0
    pictures: tuple[GeneratedImage, ...] = ()

    @property
    def latency_s(self) -> float:
        """From when it was due to its end."""
        return self.ended_s - self.due_s


@dataclass(frozen=True)
class Window:
    """A load as one server answered it, in order of `number`. `concurrency`: of a closed loop, else 0."""

    answers: tuple[Answer, ...]
    began_unix_s: float
    concurrency: int = 0

    @property
    def served(self) -> tuple[Answer, ...]:
        """The answers with images."""
        return tuple(answer for answer in self.answers if not answer.error)

    @property
    def seconds(self) -> float:
        """From when the first request was due to the last end."""
        if not self.answers:
            return 0.0
        return max(answer.ended_s for answer in self.answers) - min(answer.due_s for answer in self.answers)

    @property
    def images_per_s(self) -> float:
        """Images over the window's seconds.

        In a closed loop of three rounds or more, by Little's law: its clients over the mean latency of the requests
        but the first to end and the last to end, as many of each as there are clients. A count between two moments
        would depend on the number of requests of one batch in between, which end at once.
        """
        if self.concurrency and len(self.answers) >= 3 * self.concurrency:
            by_end = sorted(self.answers, key=lambda answer: answer.ended_s)
            middle = by_end[self.concurrency : -self.concurrency]
            spent_s = sum(answer.latency_s for answer in middle)
            return self.concurrency * sum(answer.images for answer in middle) / max(spent_s, 1e-9)
        return sum(answer.images for answer in self.answers) / max(self.seconds, 1e-9)


async def send(
    client: AsyncClient,
    load: Load,
    *,
    on_answer: Callable[[Answer], object] | None = None,
    keep_pictures: bool = False,
) -> Window:
    """Send a load and wait for every answer; `on_answer` is called with each."""
    sender = _Sender(client, on_answer, keep_pictures)
    if isinstance(load, OpenLoop):
        await sender.open_loop(load.arrivals)
    else:
        await sender.closed_loop(load)
    answers = tuple(sorted(sender.answers, key=lambda answer: answer.number))
    return Window(answers, sender.began_unix_s, load.concurrency if isinstance(load, ClosedLoop) else 0)


class _Sender:
    """One window under way."""

    def __init__(self, client: AsyncClient, on_answer: Callable[[Answer], object] | None, keep_pictures: bool) -> None:
        self.answers: list[Answer] = []
        self.began_unix_s = time.time()
        self._client = client
        self._on_answer = on_answer
        self._keep_pictures = keep_pictures
        self._began = time.monotonic()

    async def open_loop(self, arrivals: Iterable[Arrival]) -> None:
        async with asyncio.TaskGroup() as under_way:
            for number, arrival in enumerate(sorted(arrivals, key=lambda arrival: arrival.at_s)):
                await asyncio.sleep(max(0.0, arrival.at_s - self._now()))
                under_way.create_task(self._one(number, arrival.request, arrival.at_s))

    async def closed_loop(self, load: ClosedLoop) -> None:
        waiting = enumerate(load.requests)

        async def client_loop(numbered: Iterator[tuple[int, LoadRequest]]) -> None:
            while load.seconds is None or self._now() < load.seconds:
                number, request = next(numbered, (-1, None))
                if request is None:
                    return
                await self._one(number, request, self._now())

        async with asyncio.TaskGroup() as clients:
            for _ in range(load.concurrency):
                clients.create_task(client_loop(waiting))

    async def _one(self, number: int, request: LoadRequest, due_s: float) -> None:
        sent_s, calls = self._now(), dict[int, int]()

        def hear(event: Event) -> None:
            if isinstance(event, Progress):
                calls[event.index] = event.num_inference_steps

        try:
            result = await self._client.generate(request.prompt, on_event=hear, **request.options())
        except SynerDiffError as error:
            answer = Answer(number, due_s, sent_s, self._now(), error.code.name, error.message)
        else:
            answer = Answer(
                number,
                due_s,
                sent_s,
                self._now(),
                images=len(result.images),
                unet_calls=sum(calls.get(image.index, request.num_inference_steps or 0) for image in result.images),
                skipped_calls=sum(map(len, result.skipped_steps.values())),
                queue_s=result.timings.queue_s,
                decode_s=result.timings.decode_s,
                pictures=result.images if self._keep_pictures else (),
            )
        self.answers.append(answer)
        if self._on_answer is not None:
            self._on_answer(answer)

    def _now(self) -> float:
        return time.monotonic() - self._began


T = TypeVar("T")
R = TypeVar("R")


def order_of_round(targets: Sequence[T], number: int) -> tuple[T, ...]:
    """The order of a round: every target once, starting with another each time, every other time backwards.

    So each target comes early and late, and after each of its neighbours, about as often as any other.
    """
    shift = (number // 2) % len(targets) if targets else 0
    rotated = (*targets[shift:], *targets[:shift])
    return rotated[::-1] if number % 2 else rotated


async def in_turns(targets: Sequence[T], rounds: int, run: Callable[[T, int], Awaitable[R]]) -> list[dict[T, R]]:
    """`run(target, round)` for every target of every round, never two at once. Returns the results of each round."""
    results = []
    for number in range(rounds):
        done = {target: await run(target, number) for target in order_of_round(targets, number)}
        results.append({target: done[target] for target in targets})
    return results
