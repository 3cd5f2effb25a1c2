"""Exact decoding in row bands against `vae.decode`: peak memory, time and error over the number of bands.

    python -m bench.chunked_decode [--size 512] [--batch 1] [--bands 1 2 4 8 16] [--rounds 3] [--threads N] [--json]

The decoder has the architecture of Stable Diffusion 1.5's (SDXL's is the same) and random weights, in float32 on the
CPU; `--model DIRECTORY` takes another's VAE. The first round measures memory and error, the others time, each round all
band counts turn by turn. `time_ratio` is the median over the rounds of chunked / unchunked of the same round,
`cpu_ratio` that of CPU seconds, which other processes disturb less. `uneven` is how far the fraction of work that the
decoder names is from that of time at worst, `unit_ms` its longest single unit.
"""

import argparse
import gc
import json
import os
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from bench.live_bytes import LiveBytes, reset_peak_rss, rss_bytes
from services.vae_worker.chunked_decoder import ChunkedDecoder

SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


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
        """One timed decode."""
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
    """What is printed: one row for each way."""
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
    vae = AutoencoderKL(**SD15_VAE) if model is None else AutoencoderKL.from_pretrained(model, subfolder="vae")
    return vae.eval()


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="pixels along either side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--bands", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, help="a model directory in diffusers' layout")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vae = load_vae(options.model)
    side = options.size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(options.batch, vae.config.latent_channels, side, side)
    table = rows(measure(vae, latents, options.bands, options.rounds))
    if options.json:
        print(json.dumps(table, indent=2))
        return
    print("".join(f"{name:>14}" for name in table[0]))
    for row in table:
        print("".join(f"{value!s:>14}" for value in row.values()))


if __name__ == "__main__":
    main()
