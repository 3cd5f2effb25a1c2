"""Section 7: the same calls in other ways: graphs, memory format, cudnn.benchmark, attention kernel, dtype, bands.

It times bare modules, so that each row differs in one thing from "eager NCHW".
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch._dynamo.config
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.configs import ModelName
from bench.gpu.kit import Kit
from bench.gpu.networks import FORMATS, Networks
from bench.gpu.timing import Call, graphed, median_ms
from bench.parity import psnr_db
from services.vae_worker.chunked_decoder import ChunkedDecoder
from synerdiff.models.device import open_device
from synerdiff.models.loading import load_vae_side
from synerdiff_cli.deployment import BUNDLED_MODEL

_ROWS, _IMAGES, _BANDS = (2, 16), (1, 4), (1, 2, 4)
_TINY_ROWS, _TINY_IMAGES = (2,), (1,)
_ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
_COMPILE_S = 25.0
_DTYPES = ("float16", "bfloat16", "float32")


def run(kit: Kit, name: ModelName) -> None:
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
                self._time_graphed("UNet", rows, f"graph NCHW, {kernel} attention", call)

    def compiled(self) -> None:
        """A UNet call whose repeated blocks went through inductor, as far as there is time: each takes a while."""
        torch._dynamo.config.recompile_limit = 64
        self._networks.unet.compile_repeated_blocks(dynamic=False)
        for rows, layout in itertools.product(reversed(_ROWS), FORMATS):
            if self._kit.left_s < _COMPILE_S:
                return
            call = self._networks.step(rows, layout)
            self._time("UNet", rows, f"compiled blocks {layout}", call)
            self._time_graphed("UNet", rows, f"compiled blocks {layout}, graph", call)

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
            self._time_graphed(part, count, f"graph {layout}", call)
            with _benchmarking():
                self._time_graphed(part, count, f"graph {layout}, cudnn.benchmark", call)

    def _time(self, part: str, count: int, how: str, call: Call) -> None:
        with contextlib.suppress(_Refused):
            with self._named(part, count, how), _peak_memory(self._kit) as peak:
                ms = median_ms(call, self._kit.device, self._seconds)
            named = {"model": self._networks.name, "part": part, "count": count, "how": how}
            self._kit.record("call", **named, ms=ms, peak_mib=peak())

    def _time_graphed(self, part: str, count: int, how: str, call: Call) -> None:
        """On a CPU the call itself, so that all that leads there is run."""
        how = f"{how} (not captured)" if self._kit.tiny else how
        with contextlib.suppress(_Refused):
            with self._named(part, count, how):
                call = call if self._kit.tiny else graphed(call)
            self._time(part, count, how, call)

    @contextlib.contextmanager
    def _named(self, part: str, count: int, how: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._kit.record("trouble", what=f"{part}, {count}, {how}", error=str(error)[-600:])
            if not self._kit.tiny:
                torch.cuda.empty_cache()
            raise _Refused from error


class _Refused(Exception):
    """This way cannot be had here."""


@contextlib.contextmanager
def _peak_memory(kit: Kit) -> Iterator[Callable[[], int | None]]:
    """The most MiB that torch's allocator held since the block began, weights among them; None on a CPU."""
    if kit.tiny:
        yield lambda: None
        return
    torch.cuda.reset_peak_memory_stats()
    yield lambda: torch.cuda.max_memory_allocated() >> 20


@contextlib.contextmanager
def _benchmarking() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
