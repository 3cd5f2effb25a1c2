"""`python -m bench.peers.process --model DIR`: one pipeline, served one by one, in batches, and looped over bare.

All three in one process and over one pipeline, so that they differ in nothing else; only one is asked at a time. It
finds its best batch size first, and then writes a line of JSON to stdout: both addresses and the sweep. A line of JSON
on stdin runs the bare loop, whose times come back as a line. It ends when stdin does.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer

from bench.command import run
from bench.peers.line import Line
from bench.peers.painter import Alike, Asked, Painter
from bench.peers.service import PeerService
from bench.peers.sweep import SIZES, STEPS, TIMES, Sweep, call_s, sizes_of, sweep
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import images_pb2_grpc

T = TypeVar("T")

# Requests that come at once, over one connection, are a few milliseconds apart.
_GATHER_S = 0.005


class Studio:
    """The pipeline and the thread it runs on. `sizes`: the only ones it draws at a time, where it is compiled."""

    def __init__(self, painter: Painter, found: Sweep, sizes: Sequence[int] = ()) -> None:
        self.best_size = found.best_size()
        self._painter = painter
        self._found = found
        self._sizes = sizes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pipeline")

    async def draw_one(self, asked: Sequence[Asked]) -> Sequence[Any]:
        return await self._run(lambda: self._draw(asked, 1, "pil"))

    async def draw_batch(self, asked: Sequence[Asked]) -> Sequence[Any]:
        """As many as there are, at most the best size."""
        return await self._run(lambda: self._draw(asked, self.best_size, "pil"))

    async def loop(
        self, size: int, calls: int, prompts: Sequence[str], num_inference_steps: int, guidance_scale: float
    ) -> list[float]:
        """Seconds of each call of a bare loop over batches of `size`."""
        alike = Alike(num_inference_steps, guidance_scale, None, None, False)
        numbers, endless = itertools.count(), itertools.cycle(prompts)

        def loop() -> list[float]:
            taken: list[float] = []
            while len(taken) < calls:
                asked = [Asked(next(endless), next(numbers), alike) for _ in range(size)]
                began = time.perf_counter()
                self._draw(asked, size, "pt")
                taken.append(time.perf_counter() - began)
            return taken

        return await self._run(loop)

    def _draw(self, asked: Sequence[Asked], laid_out_for: int, output_type: str) -> Sequence[Any]:
        size = next((size for size in self._sizes if size >= len(asked)), len(asked))
        self._painter.use_format(self._found.best_format(laid_out_for))
        return self._painter.draw(asked, size, output_type)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


async def serve(
    model: Annotated[Path, typer.Option()],
    dtype: str = "float32",
    compiled: Annotated[bool, typer.Option("--compiled")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    sweep_steps: Annotated[int, typer.Option(help="Most steps of a call of the sweep.")] = STEPS,
    sweep_times: Annotated[int, typer.Option(help="Calls of each size in the sweep.")] = TIMES,
    threads: Annotated[int, typer.Option(help="Of torch; 0: its own choice.")] = 0,
    steps: Annotated[int, typer.Option(help="Of the sweep's requests.")] = 20,
    guidance_scale: float = 5.0,
    sizes: Annotated[str, typer.Option(help="Batch sizes to try, by comma.")] = SIZES,
) -> None:
    """Load, sweep, serve, until stdin ends."""
    if threads:
        torch.set_num_threads(threads)
    alike, listed = Alike(steps, guidance_scale, None, None, False), sizes_of(sizes)
    began = time.perf_counter()
    painter = Painter(model, getattr(torch, dtype), compiled=compiled, device=device)
    measured = alike._replace(num_inference_steps=min(sweep_steps, steps))
    found = sweep(painter, listed, measured, times=sweep_times, compiled=compiled)
    studio = Studio(painter, found, listed if compiled else ())
    if not compiled and device == "cpu":
        painter.use_format(found.best_format(studio.best_size))
        for size in range(1, studio.best_size + 1):  # what oneDNN makes anew for each
            call_s(painter, alike._replace(num_inference_steps=1), size)
    lines = Line(studio.draw_one, 1), Line(studio.draw_batch, studio.best_size, _GATHER_S)
    async with asyncio.TaskGroup() as running:
        tasks = [running.create_task(line.run()) for line in lines]
        hosts = [await _host(line) for line in lines]
        ready = {
            "one": hosts[0].address,
            "batched": hosts[1].address,
            "best_size": studio.best_size,
            "start_s": time.perf_counter() - began,
            "threads": torch.get_num_threads(),
            "sweep": asdict(found),
        }
        print(json.dumps(ready), flush=True)
        async for line in _lines_of_stdin():
            print(json.dumps(await studio.loop(**json.loads(line))), flush=True)
        for host in hosts:
            await host.drain(0)
        for task in tasks:
            task.cancel()


async def _host(line: Line) -> ServiceHost:
    host = ServiceHost()
    service = PeerService(line)  # type: ignore[abstract]  # what it does not serve is UNIMPLEMENTED
    host.add("synerdiff.v1.ImageGeneration", images_pb2_grpc.add_ImageGenerationServicer_to_server, service)
    await host.start("127.0.0.1:0")
    await host.set_ready(True)
    return host


async def _lines_of_stdin() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


if __name__ == "__main__":
    run(serve)
