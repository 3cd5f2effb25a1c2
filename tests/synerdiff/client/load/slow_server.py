"""A server of canned pictures that takes its time, one request after the other or all at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from synerdiff.client import AsyncClient
from synerdiff.errors import SynerDiffError
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import images_pb2, images_pb2_grpc

STEPS = 10
Fails = Callable[[str], SynerDiffError | None]


def _never(prompt: str) -> SynerDiffError | None:
    return None


class SlowServer(images_pb2_grpc.ImageGenerationServicer):
    """Takes `seconds` a picture, `at_once` of them side by side. `fails`: which requests, and how, by their prompts."""

    def __init__(self, seconds: float, at_once: int, fails: Fails) -> None:
        self.most_at_once = 0
        self.requests: list[images_pb2.GenerateRequest] = []
        self._seconds = seconds
        self._free = asyncio.Semaphore(at_once)
        self._under_way = 0
        self._fails = fails

    async def Generate(
        self, request: images_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[images_pb2.GenerateEvent]:
        self.requests.append(request)
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            if error := self._fails(request.prompt):
                raise error
            async with self._free:
                await asyncio.sleep(self._seconds)
        finally:
            self._under_way -= 1
        picture = images_pb2.Image(format=images_pb2.IMAGE_FORMAT_PNG, data=b"picture")
        progress = images_pb2.Progress(step=STEPS, num_inference_steps=STEPS)
        skipped = images_pb2.SkippedSteps(index=0, steps=(2, 4, 5))
        yield images_pb2.GenerateEvent(job_id="j", sequence=1, progress=progress)
        yield images_pb2.GenerateEvent(job_id="j", sequence=2, image=picture)
        finished = images_pb2.Finished(skipped_steps=[skipped])
        yield images_pb2.GenerateEvent(job_id="j", sequence=3, finished=finished)


def slow_server(seconds: float, at_once: int = 1000, fails: Fails = _never) -> SlowServer:
    """One that serves `Generate` alone."""
    return SlowServer(seconds, at_once, fails)  # type: ignore[abstract]


@asynccontextmanager
async def serving(server: SlowServer) -> AsyncIterator[AsyncClient]:
    """A client of the server."""
    host = ServiceHost()
    host.add("synerdiff.v1.ImageGeneration", images_pb2_grpc.add_ImageGenerationServicer_to_server, server)
    address = await host.start("127.0.0.1:0")
    async with AsyncClient(address) as client:
        yield client
    await host.drain(0)
