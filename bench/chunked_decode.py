"""Exact decoding in row bands against `vae.decode`: peak memory, time and error over the number of bands.

    python -m bench.chunked_decode [--size 512] [--batch 1] [--bands 1,2,4,8,16] [--rounds 3] [--threads N]

The decoder has the architecture of Stable Diffusion 1.5's (SDXL's is the same) and random weights, in float32 on the
CPU; `--model DIRECTORY` takes another's VAE. The first round measures the bytes of tensors alive at once and the error,
the others time, each round all band counts turn by turn. The ratios are to `vae.decode`: `less_memory` times fewer
bytes, `time_ratio` the median over the rounds of chunked / unchunked of the same round.
"""

import os
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.command import ModelDirectory, markdown_table, run
from bench.gpu.configs import FULL
from services.vae_worker.chunked_decoder import ChunkedDecoder


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators return inside `with` while they live, but none that were made before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operator and count the new storages in its result."""
        kwargs = kwargs or {}
        given = {_storage_id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _storage_id(leaf) not in given | self._known:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage_id(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


os.environ.setdefault("OMP_WAIT_POLICY", "passive")


_WHOLE = 0
_HEADINGS = ("bands", "live_mib", "less_memory", "seconds", "time_ratio", "largest_error")


def measure(vae: AutoencoderKL, latents: Tensor, bands: list[int], rounds: int) -> list[tuple[object, ...]]:
    """A row for vae.decode and for each count of bands."""
    chunked = ChunkedDecoder(vae)

    @torch.no_grad()
    def decode(way: int) -> Tensor:
        if way != _WHOLE:
            return chunked.decode(latents, way)
        image: Tensor = vae.decode(latents, return_dict=False)[0]
        return image

    ways = (_WHOLE, *bands)
    images: dict[int, Tensor] = {}
    peaks: dict[int, int] = {}
    for way in ways:
        with LiveBytes() as live:
            images[way] = decode(way)
        peaks[way] = live.peak
    seconds: dict[int, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            began = time.perf_counter()
            decode(way)
            seconds[way].append(time.perf_counter() - began)
    expected = images[_WHOLE]
    return [
        (
            way or "unchunked",
            round(peaks[way] / 2**20, 1),
            round(peaks[_WHOLE] / peaks[way], 2),
            round(statistics.median(seconds[way]), 3),
            round(statistics.median(a / b for a, b in zip(seconds[way], seconds[_WHOLE], strict=True)), 3),
            f"{float((images[way] - expected).abs().max() / expected.abs().max()):.1e}",
        )
        for way in ways
    ]


def load_vae(model: Path | None) -> AutoencoderKL:
    """The VAE of a model directory, or a random one shaped like Stable Diffusion 1.5's."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**FULL["sd15"].vae) if model is None else AutoencoderKL.from_pretrained(model, subfolder="vae")
    return vae.eval()


def command(
    size: Annotated[int, typer.Option(help="Pixels along either side.")] = 512,
    batch: int = 1,
    bands: Annotated[str, typer.Option(help="Band counts by comma.")] = "1,2,4,8,16",
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 3,
    threads: int = len(os.sched_getaffinity(0)),
    model: ModelDirectory | None = None,
) -> list[tuple[object, ...]]:
    torch.set_num_threads(threads)
    vae = load_vae(model)
    side = size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(batch, vae.config.latent_channels, side, side)
    return measure(vae, latents, [int(count) for count in bands.split(",")], rounds)


if __name__ == "__main__":
    run(command, show=lambda rows: markdown_table(_HEADINGS, rows))
