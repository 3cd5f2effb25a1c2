"""Exact decoding in row bands against `vae.decode`: peak memory, time and error over the number of bands.

    python -m bench.chunked_decode [--size 512] [--batch 1] [--bands 1,2,4,8,16] [--rounds 3] [--threads N]

The decoder has the architecture of Stable Diffusion 1.5's (SDXL's is the same) and random weights, in float32 on the
CPU; `--model DIRECTORY` takes another's VAE. The first round measures memory and error, the others time, each round all
band counts turn by turn. `time_ratio` is the median over the rounds of chunked / unchunked of the same round,
`cpu_ratio` that of CPU seconds, which other processes disturb less. `uneven` is how far the fraction of work that the
decoder names is from that of time at worst, `unit_ms` its longest single unit.
"""

import gc
import os
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor

from bench.command import ModelDirectory, run
from bench.gpu.configs import FULL
from bench.live_bytes import LiveBytes, reset_peak_rss, rss_bytes
from bench.reporting import markdown_table
from services.vae_worker.chunked_decoder import ChunkedDecoder


@dataclass
class Measured:
    """One way to decode; `bands` 0: vae.decode."""

    bands: int
    live_bytes: int = 0
    resident_bytes: int = 0
    largest_error: float = 0.0
    units: int = 1
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    uneven: list[float] = field(default_factory=list)
    longest_unit_s: list[float] = field(default_factory=list)


class Bench:
    """The two decoders of one VAE, and the latents they decode."""

    def __init__(self, vae: AutoencoderKL, latents: Tensor) -> None:
        self._vae = vae
        self._chunked = ChunkedDecoder(vae)
        self._latents = latents

    def memory(self, measured: Measured, expected: Tensor | None) -> Tensor:
        """Peak bytes and, against `expected`, the error."""
        gc.collect()
        before = rss_bytes("VmRSS")
        reset_peak_rss()
        with LiveBytes() as live:
            image = self._decode(measured.bands)
        measured.live_bytes = live.peak
        measured.resident_bytes = rss_bytes("VmHWM") - before
        if expected is not None:
            measured.largest_error = float((image - expected).abs().max() / expected.abs().max())
        return image

    def time(self, measured: Measured) -> None:
        began, cpu_began = time.perf_counter(), time.process_time()
        if measured.bands == 0:
            self._decode(0)
            measured.seconds.append(time.perf_counter() - began)
            measured.cpu_seconds.append(time.process_time() - cpu_began)
            return
        ends, fractions = [0.0], [0.0]
        for fraction in self._chunked.units(self._latents, measured.bands):
            ends.append(time.perf_counter() - began)
            fractions.append(fraction)
        seconds = time.perf_counter() - began
        measured.seconds.append(seconds)
        measured.cpu_seconds.append(time.process_time() - cpu_began)
        measured.units = len(ends) - 1
        measured.uneven.append(max(abs(end / seconds - f) for end, f in zip(ends, fractions, strict=True)))
        measured.longest_unit_s.append(max(b - a for a, b in pairwise(ends)))

    @torch.no_grad()
    def _decode(self, bands: int) -> Tensor:
        if bands:
            return self._chunked.decode(self._latents, bands)
        image: Tensor = self._vae.decode(self._latents, return_dict=False)[0]
        return image


def measure(vae: AutoencoderKL, latents: Tensor, bands: list[int], rounds: int) -> list[Measured]:
    """All band counts, after vae.decode itself."""
    bench = Bench(vae, latents)
    ways = [Measured(count) for count in (0, *bands)]
    expected = bench.memory(ways[0], None)
    for way in ways[1:]:
        bench.memory(way, expected)
    for _ in range(rounds):
        for way in ways:
            bench.time(way)
    return ways


def rows(ways: list[Measured]) -> list[dict[str, float | int | str]]:
    whole = ways[0]
    return [
        {
            "bands": way.bands or "unchunked",
            "units": way.units,
            "live_mib": round(way.live_bytes / 2**20, 1),
            "live_ratio": round(whole.live_bytes / way.live_bytes, 2),
            "resident_mib": round(way.resident_bytes / 2**20),
            "seconds": round(statistics.median(way.seconds), 3),
            "time_ratio": _median_ratio(way.seconds, whole.seconds),
            "cpu_ratio": _median_ratio(way.cpu_seconds, whole.cpu_seconds),
            "unit_ms": round(statistics.median(way.longest_unit_s or way.seconds) * 1000),
            "uneven": round(statistics.median(way.uneven), 3) if way.uneven else "",
            "largest_error": f"{way.largest_error:.1e}",
        }
        for way in ways
    ]


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


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
) -> list[dict[str, float | int | str]]:
    torch.set_num_threads(threads)
    vae = load_vae(model)
    side = size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(batch, vae.config.latent_channels, side, side)
    return rows(measure(vae, latents, [int(count) for count in bands.split(",")], rounds))


if __name__ == "__main__":
    run(command, show=lambda table: markdown_table(list(table[0]), [list(row.values()) for row in table]))
