"""Sections 7 and 9: calls of bare modules in this process: timed in many ways, and two streams of them side by side.

It times bare modules, so that each row differs in one thing from "eager NCHW".
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._dynamo.config
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.configs import ModelName
from bench.gpu.kit import Kit
from bench.gpu.models import unet_arguments
from bench.pictures import psnr_db
from services.vae_worker.chunked_decoder import ChunkedDecoder
from synerdiff.models.device import open_device
from synerdiff.models.loading import load_vae_side
from synerdiff_cli.deployment import BUNDLED_MODEL

Call = Callable[[], Any]

_RUNS_BEFORE_CAPTURE = 3


def wait_for(device: str) -> None:
    """Wait until the device has done all its queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def median_ms(call: Call, device: str, seconds: float = 0.6) -> float:
    """The median ms of a call, over five calls at least and `seconds` otherwise; two before that do not count."""
    for _ in range(2):
        call()
    wait_for(device)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or (time.perf_counter() < end and len(taken) < 500):
        began = time.perf_counter()
        call()
        wait_for(device)
        taken.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(taken), 4)


def graphed(call: Call) -> Call:
    """A CUDA graph of a call, on a stream and workspaces of its own, as a call. Raises the capture's error."""
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(_RUNS_BEFORE_CAPTURE):
            call()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=aside):
            kept = call()
    finally:
        torch.cuda.set_stream(here)  # a capture that fails to begin leaves its own

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Networks:
    """UNet and VAE of one model on the kit's device, in `dtype`."""

    kit: Kit
    name: ModelName
    unet: Any
    vae: Any
    dtype: torch.dtype

    @classmethod
    def load(cls, kit: Kit, name: ModelName) -> "Networks":
        dtype = getattr(torch, kit.dtype)
        found = [
            module.from_pretrained(str(kit.model_path(name)), subfolder=part, dtype=dtype, local_files_only=True)
            for module, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        ]
        unet, vae = (each.to(kit.device, dtype).eval().requires_grad_(False) for each in found)
        return cls(kit, name, unet, vae, dtype)

    def step(self, rows: int, layout: str = "NCHW") -> Call:
        arguments = unet_arguments(self.kit.config(self.name), rows, self.kit.device, self.dtype)
        arguments["sample"] = arguments["sample"].to(memory_format=FORMATS[layout])
        self.unet.to(memory_format=FORMATS[layout])
        return _no_gradients(lambda: self.unet(**arguments)[0])

    def decode(self, images: int, layout: str = "NCHW", dtype: torch.dtype | None = None) -> Call:
        """A decode of so many pictures; the VAE is left in that layout and dtype."""
        side, dtype = self.kit.config(self.name).latent_side, dtype or self.dtype
        self.vae.to(dtype=dtype, memory_format=FORMATS[layout])
        latents = torch.randn(images, 4, side, side, device=self.kit.device, dtype=dtype)
        latents = latents.to(memory_format=FORMATS[layout])
        return _no_gradients(lambda: self.vae.decode(latents, return_dict=False)[0])

    def captured(self, call: Call) -> tuple[str, Call]:
        """A call as a graph where that can be had, and how it runs."""
        if self.kit.tiny:
            return "eager", call
        try:
            return "graph", graphed(call)
        except Exception as error:
            self.kit.record("trouble", what=f"{self.name}: capturing", error=str(error)[-1000:])
            torch.cuda.empty_cache()
            return "eager", call


def _no_gradients(call: Callable[[], Any]) -> Call:
    def without() -> Any:
        with torch.inference_mode():
            return call()

    return without


_TIMES, _TINY_TIMES = 7, 2
WAY = "two streams"


def two_cells(kit: Kit, name: ModelName) -> None:
    """Section 9: two cells of a model, UNet rows alone and a decode alone, and both side by side."""
    kit.wait_for_model(name)
    measure(kit, name, 2 if kit.tiny else 16, 1)


def measure(kit: Kit, name: ModelName, rows: int, images: int) -> None:
    """Record the times of steps of `rows` rows and a decode of `images`, side by side and in turn."""
    networks = Networks.load(kit, name)
    seconds = 0.05 if kit.tiny else 0.4
    how, step = networks.captured(networks.step(rows))
    how_decode, decode = networks.captured(networks.decode(images))
    step_ms, decode_ms = median_ms(step, kit.device, seconds), median_ms(decode, kit.device, seconds)
    steps = max(1, round(decode_ms / step_ms))
    serial, together = [], []
    for _ in range(_TINY_TIMES if kit.tiny else _TIMES):
        serial.append(_in_turn(kit, step, steps, decode))
        together.append(_at_once(kit, step, steps, decode))
    serial_ms, together_ms = statistics.median(serial), statistics.median(together)
    kit.record(
        "overlap",
        model=name,
        way=WAY,
        how=f"step {how}, decode {how_decode}",
        rows=rows,
        steps=steps,
        decodes=images,
        step_ms=step_ms,
        decode_ms=decode_ms,
        serial_ms=round(serial_ms, 3),
        together_ms=round(together_ms, 3),
        gain=round(1 - together_ms / serial_ms, 4),
    )


def _in_turn(kit: Kit, step: Call, steps: int, decode: Call) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    decode()
    wait_for(kit.device)
    return (time.perf_counter() - began) * 1000


def _at_once(kit: Kit, step: Call, steps: int, decode: Call) -> float:
    """On a CPU in turn, too: there are no streams."""
    one, other = _stream(kit), _stream(kit)
    wait_for(kit.device)
    began = time.perf_counter()
    with other:
        decode()
    with one:
        for _ in range(steps):
            step()
    wait_for(kit.device)
    return (time.perf_counter() - began) * 1000


def _stream(kit: Kit) -> contextlib.AbstractContextManager[Any]:
    if kit.tiny:
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]


_ROWS, _IMAGES, _BANDS = (2, 16), (1, 4), (1, 2, 4)
_TINY_ROWS, _TINY_IMAGES = (2,), (1,)
_ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
_COMPILE_S = 25.0
_DTYPES = ("float16", "bfloat16", "float32")


def choices(kit: Kit, name: ModelName) -> None:
    kit.wait_for_model(name)
    choices = _Choices(kit, Networks.load(kit, name))
    choices.vae_dtypes()
    for rows in _TINY_ROWS if kit.tiny else _ROWS:
        choices.unet(rows)
    for images in _TINY_IMAGES if kit.tiny else _IMAGES:
        choices.vae(images)
    choices.bands()
    if not kit.tiny:
        choices.compiled()


class _Choices:
    def __init__(self, kit: Kit, networks: Networks) -> None:
        self._kit = kit
        self._networks = networks
        self._seconds = 0.02 if kit.tiny else 0.4

    def unet(self, rows: int) -> None:
        self._layouts("UNet", rows, partial(self._networks.step, rows))
        call = self._networks.step(rows)
        for kernel, backend in _ATTENTION.items():
            with sdpa_kernel(backend):
                self._time("UNet", rows, f"graph NCHW, {kernel} attention", call, graph=True)

    def compiled(self) -> None:
        """A UNet call whose repeated blocks went through inductor, as far as there is time: each takes a while."""
        torch._dynamo.config.recompile_limit = 64
        self._networks.unet.compile_repeated_blocks(dynamic=False)
        for rows, layout in itertools.product(reversed(_ROWS), FORMATS):
            if self._kit.left_s < _COMPILE_S:
                return
            call = self._networks.step(rows, layout)
            self._time("UNet", rows, f"compiled blocks {layout}", call)
            self._time("UNet", rows, f"compiled blocks {layout}, graph", call, graph=True)

    def vae(self, images: int) -> None:
        self._layouts("VAE", images, partial(self._networks.decode, images))
        for dtype in _DTYPES:
            if dtype != self._kit.dtype and not (self._kit.tiny and dtype == "float16"):
                call = self._networks.decode(images, dtype=getattr(torch, dtype))
                self._time("VAE", images, f"eager NCHW, {dtype}", call)
        self._networks.vae.to(self._networks.dtype)

    def bands(self) -> None:
        side = self._kit.config(self._networks.name).latent_side
        latents = torch.randn(1, 4, side, side, device=self._kit.device, dtype=self._networks.dtype)
        self._networks.vae.to(memory_format=torch.contiguous_format)
        decoder = ChunkedDecoder(self._networks.vae)

        def decode(bands: int) -> None:
            with torch.inference_mode():
                for _ in decoder.units(latents, bands):
                    pass

        for bands in _BANDS[:2] if self._kit.tiny else _BANDS:
            self._time("VAE", 1, f"eager NCHW, {bands} bands", partial(decode, bands))

    def vae_dtypes(self) -> None:
        """PSNR of the bundled model's pictures against those of a float32 VAE, from the same latents."""
        device = open_device(self._kit.device)
        shape, generator = (4, 4, 16, 16), torch.Generator().manual_seed(0)
        latents = torch.randn(*shape, generator=generator)
        pictures: dict[str, Any] = {}
        for dtype in reversed(_DTYPES):
            if self._kit.tiny and dtype == "float16":
                continue
            found = load_vae_side(BUNDLED_MODEL, getattr(torch, dtype), safety_checker=False, device=device)
            pictures[dtype] = found.decode(latents.to(found.dtype))
        for dtype, made in pictures.items():
            worst = min(psnr_db(one, other) for one, other in zip(made, pictures["float32"], strict=True))
            self._kit.record("quality", what="bundled model's VAE against float32", how=dtype, psnr_db=round(worst, 1))

    # ---- times

    def _layouts(self, part: str, count: int, call_of: Callable[[str], Call]) -> None:
        """In each memory format: eager, as a graph, and as one whose kernels cuDNN timed."""
        for layout in FORMATS:
            call = call_of(layout)
            self._time(part, count, f"eager {layout}", call)
            self._time(part, count, f"graph {layout}", call, graph=True)
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                self._time(part, count, f"graph {layout}, cudnn.benchmark", call, graph=True)

    def _time(self, part: str, count: int, how: str, call: Call, *, graph: bool = False) -> None:
        """Record a call's time, as a graph where asked for; on a CPU then the call itself, so that all of this runs."""
        kit = self._kit
        if graph and kit.tiny:
            how = f"{how} (not captured)"
        try:
            call = graphed(call) if graph and not kit.tiny else call
            if not kit.tiny:
                torch.cuda.reset_peak_memory_stats()
            ms = median_ms(call, kit.device, self._seconds)
        except Exception as error:
            kit.record("trouble", what=f"{part}, {count}, {how}", error=str(error)[-600:])
            if not kit.tiny:
                torch.cuda.empty_cache()
            return
        # The most that torch's allocator held meanwhile, weights among it.
        peak_mib = None if kit.tiny else torch.cuda.max_memory_allocated() >> 20
        kit.record("call", model=self._networks.name, part=part, count=count, how=how, ms=ms, peak_mib=peak_mib)
