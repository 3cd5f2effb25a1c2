"""`python -m bench.peers.process --model DIR`: one pipeline, served one by one, in batches, and looped over bare.

All three in one process and over one pipeline, so that they differ in nothing else; only one is asked at a time. It
finds its best batch size first, and then writes a line of JSON to stdout: both addresses and the sweep. A line of JSON
on stdin runs the bare loop, whose times come back as a line. It ends when stdin does.
"""

import asyncio
import io
import itertools
import json
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import torch._dynamo.config
import torch._inductor.config
import typer
from diffusers import DiffusionPipeline
from PIL import Image

from bench.command import lines_of_stdin, run
from bench.peers.line import Alike, Asked, Line
from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import images_pb2, images_pb2_grpc

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
FORMATS = {"contiguous": CONTIGUOUS, "channels_last": CHANNELS_LAST}
# From latents of this side on, pictures are decoded one by one: at once they would not fit a GPU, and one fills it.
_SLICED_FROM = 128


class Painter:
    """A pipeline of a model directory. Not for several threads at once. `device`: cpu or cuda.

    `compiled`: its UNet and its VAE's decoder run through inductor with frozen weights, each batch size for itself;
    the first call of a size compiles it. On a GPU only the UNet's blocks are compiled, as diffusers advises: whole, it
    takes minutes.
    """

    def __init__(self, model: Path, dtype: torch.dtype, *, compiled: bool, device: str = "cpu") -> None:
        self.pipeline: Any = DiffusionPipeline.from_pretrained(
            str(model), dtype=dtype, use_safetensors=True, local_files_only=True
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(device)
        self._on_gpu = device != "cpu"
        if self._on_gpu and self.pipeline.unet.config.sample_size >= _SLICED_FROM:
            self.pipeline.vae.enable_slicing()
        self._networks = (self.pipeline.unet, self.pipeline.vae)
        for network in self._networks:
            network.eval().requires_grad_(False)
        self._format = "contiguous"
        if compiled and self._on_gpu:
            torch._dynamo.config.recompile_limit = 64
            self.pipeline.unet.compile_repeated_blocks(dynamic=False)
        elif compiled:
            torch._inductor.config.freezing = True
            torch._dynamo.config.recompile_limit = 64
            self.pipeline.unet = torch.compile(self.pipeline.unet, dynamic=False)
            self.pipeline.vae.decoder = torch.compile(self.pipeline.vae.decoder, dynamic=False)

    def use_format(self, name: str) -> None:
        """Lay the weights out so, one of FORMATS. Not for a compiled pipeline."""
        if name != self._format:
            for network in self._networks:
                network.to(memory_format=FORMATS[name])
            self._format = name

    @torch.inference_mode()
    def draw(self, asked: Sequence[Asked], size: int, output_type: str = "pil") -> Sequence[Any]:
        """Pictures of alike requests, in one call of `size`; "pil", or "pt" for a tensor [n, 3, height, width]."""
        padded = [*asked, *([asked[-1]] * (size - len(asked)))]
        alike = asked[0].alike
        pictures: Sequence[Any] = self.pipeline(
            [one.prompt for one in padded],
            negative_prompt=[one.negative_prompt for one in padded] if alike.has_negative_prompt else None,
            num_inference_steps=alike.num_inference_steps,
            guidance_scale=alike.guidance_scale,
            width=alike.width,
            height=alike.height,
            generator=[torch.Generator("cpu").manual_seed(one.seed) for one in padded],
            output_type=output_type,
        ).images
        if self._on_gpu:
            torch.cuda.synchronize()
        return pictures[: len(asked)]


STEPS = 8
TIMES = 2
SIZES = "1,4,8,16,24,32"


def sizes_of(text: str) -> tuple[int, ...]:
    """Sizes by comma, in order; 1 is always among them. Raises ValueError."""
    sizes = {1, *map(int, text.split(","))}
    if min(sizes) < 1:
        raise ValueError(f"{text}: a size below 1")
    return tuple(sorted(sizes))


@dataclass(frozen=True)
class Sweep:
    """Seconds of a call of so many pictures and `steps` steps, by layout and size."""

    steps: int
    seconds: Mapping[str, Mapping[int, float]]

    def best_format(self, size: int) -> str:
        """The layout that draws this many at a time soonest."""
        return min(self.seconds, key=lambda name: self.seconds[name][size])

    def best_size(self) -> int:
        """The size that draws the most pictures per second, in its best layout."""
        sizes = next(iter(self.seconds.values()))
        return max(sizes, key=lambda size: size / self.seconds[self.best_format(size)][size])


def sweep(painter: Painter, sizes: Sequence[int], measured: Alike, *, times: int = TIMES, compiled: bool) -> Sweep:
    """Measure every size, so many times in turns, after a short call that readies (or compiles) it."""
    short = measured._replace(num_inference_steps=2)
    seconds: dict[str, dict[int, float]] = {}
    for name in ("contiguous",) if compiled else FORMATS:
        painter.use_format(name)
        for size in sizes:
            call_s(painter, short, size)
        taken: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(times):
            for size in sizes:
                taken[size].append(call_s(painter, measured, size))
        seconds[name] = {size: statistics.median(each) for size, each in taken.items()}
    return Sweep(measured.num_inference_steps, seconds)


def call_s(painter: Painter, alike: Alike, size: int) -> float:
    """Seconds of one call, its pictures left as a tensor."""
    asked = [Asked(f"a red apple {number}", number, alike) for number in range(size)]
    began = time.perf_counter()
    painter.draw(asked, size, "pt")
    return time.perf_counter() - began


# As the VAE worker encodes: a higher level takes longer for hardly smaller files.
_PNG_COMPRESS_LEVEL = 4
# diffusers' default.
_STEPS, _GUIDANCE_SCALE = 50, 7.5


class PeerService(images_pb2_grpc.ImageGenerationServicer):
    """Serves `Generate` alone."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def Generate(
        self, request: images_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[images_pb2.GenerateEvent]:
        """Queue the request, then answer with its picture. Raises InvalidRequest for one that is not served here."""
        asked, job_id = asked_of(request), uuid.uuid4().hex
        yield images_pb2.GenerateEvent(job_id=job_id, sequence=1, queued=images_pb2.Queued())
        picture = await self._line.picture(asked)
        data = await asyncio.to_thread(_png, picture)
        image = images_pb2.Image(
            seed=asked.seed, width=picture.width, height=picture.height, format=images_pb2.IMAGE_FORMAT_PNG, data=data
        )
        yield images_pb2.GenerateEvent(job_id=job_id, sequence=2, image=image)
        yield images_pb2.GenerateEvent(job_id=job_id, sequence=3, finished=images_pb2.Finished())


def asked_of(request: images_pb2.GenerateRequest) -> Asked:
    """A request's parameters; raises InvalidRequest for several pictures, a sampler, or another format than PNG."""
    if request.num_images > 1:
        raise InvalidRequest(FieldViolation("num_images", f"{request.num_images}; only 1 is served here"))
    if request.sampler != images_pb2.SAMPLER_UNSPECIFIED:
        raise InvalidRequest(FieldViolation("sampler", "only the model's own is served here"))
    if request.image_format not in (images_pb2.IMAGE_FORMAT_UNSPECIFIED, images_pb2.IMAGE_FORMAT_PNG):
        raise InvalidRequest(FieldViolation("image_format", "only PNG is served here"))
    alike = Alike(
        request.num_inference_steps or _STEPS,
        request.guidance_scale if request.HasField("guidance_scale") else _GUIDANCE_SCALE,
        request.width or None,
        request.height or None,
        bool(request.negative_prompt),
    )
    seed = request.seed if request.HasField("seed") else random.randrange(2**32)
    return Asked(request.prompt, seed, alike, request.negative_prompt)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=_PNG_COMPRESS_LEVEL)
    return file.getvalue()


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
        for size in range(1, studio.best_size + 1):  # oneDNN prepares each size anew
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
        async for line in lines_of_stdin():
            print(json.dumps(await studio.loop(**json.loads(line))), flush=True)
        for host in hosts:
            await host.drain(0)
        for task in tasks:
            task.cancel()


async def _host(line: Line) -> ServiceHost:
    host = ServiceHost()
    service = PeerService(line)  # type: ignore[abstract]  # other methods are UNIMPLEMENTED
    host.add("synerdiff.v1.ImageGeneration", images_pb2_grpc.add_ImageGenerationServicer_to_server, service)
    await host.start("127.0.0.1:0")
    await host.set_ready(True)
    return host


if __name__ == "__main__":
    run(serve)
