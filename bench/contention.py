"""What a UNet worker and a VAE worker cost each other on the cores of one machine, and what running both at once gains.

    python -m bench.contention [--rows 16] [--images 2] [--seconds 3] [--rounds 3] [--environment A=1,B=2 ...]

Two real processes with the device code of the two workers. In each environment they call their model for a few seconds
in turn: alone with one thread and with all, beside each other with every combination of these, and alone with the
thread count changed at every call. Rounds repeat all cases, so that a disturbance does not fall on one of them alone.
Prints a table of medians in ms and, per environment, the gain: the time of a UNet call and the decodes that fit beside
it, run one after the other with environment and threads that are best for each alone, over the time of that UNet call
when both run at once. `--json` prints the numbers instead. Each side is this program again, started with `--side`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from synerdiff.host import usable_cores
from synerdiff_cli.deployment import BUNDLED_MODEL

ENVIRONMENTS = (
    "OMP_WAIT_POLICY=passive",
    "OMP_WAIT_POLICY=passive,GOMP_SPINCOUNT=2000",
    "OMP_WAIT_POLICY=passive,GOMP_SPINCOUNT=10000",
    "OMP_WAIT_POLICY=active",
)
SIDES = ("unet", "vae")


@dataclass(frozen=True)
class Case:
    """Which sides run at once, each with which thread counts in turn (none: it does not run)."""

    unet: tuple[int, ...] = ()
    vae: tuple[int, ...] = ()

    def threads(self, side: str) -> tuple[int, ...]:
        """The thread counts of a side."""
        return self.unet if side == "unet" else self.vae


@dataclass
class Calls:
    """Times in ms of each side's calls of one case, by the thread count that they ran with."""

    ms: dict[str, dict[int, list[float]]] = field(default_factory=lambda: {side: {} for side in SIDES})

    def add(self, side: str, times: Sequence[tuple[int, float]]) -> None:
        """Take up what a side has measured."""
        for threads, ms in times:
            self.ms[side].setdefault(threads, []).append(ms)

    def median(self, side: str) -> float:
        """Median of a side's calls."""
        return median(ms for times in self.ms[side].values() for ms in times)

    def spike(self, side: str) -> float:
        """The largest call against the median of its thread count."""
        return max(max(times) / median(times) for times in self.ms[side].values())


@dataclass(frozen=True)
class Gain:
    """What co-running gains: `decodes` images fit beside one UNet call of `beside_ms`; `serial_ms` is both in turn."""

    unet_threads: int
    vae_threads: int
    beside_ms: float
    decodes: float
    serial_ms: float
    gain: float


class Side:
    """A process with one side of the model."""

    def __init__(self, side: str, arguments: argparse.Namespace, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "bench.contention", "--side", side, "--model", str(arguments.model)]
        command += ["--rows", str(arguments.rows), "--images", str(arguments.images), "--dtype", arguments.dtype]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        self._process = subprocess.Popen(
            command, env=inherited | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def start(self, threads: Sequence[int], seconds: float) -> None:
        """Have it call its model for some seconds."""
        assert self._process.stdin
        print(json.dumps([threads, seconds]), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """What it says next: (threads, ms) of each call."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a side of the bench died; its error is above")
        return json.loads(line)


def cases(cores: int) -> list[Case]:
    """All cases for thread counts of one and of all cores."""
    counts = sorted({1, cores})
    alone = [Case(unet=(k,)) for k in counts] + [Case(vae=(k,)) for k in counts]
    beside = [Case(unet=(u,), vae=(v,)) for u, v in product(counts, counts)]
    return [*alone, *beside, Case(unet=tuple(counts)), Case(vae=tuple(counts))]


def measure(arguments: argparse.Namespace, environment: str) -> dict[Case, Calls]:
    """All cases under one environment."""
    settings = dict(setting.split("=", 1) for setting in environment.split(",") if setting)
    found = {case: Calls() for case in cases(usable_cores())}
    with ExitStack() as stack:
        sides = {side: stack.enter_context(Side(side, arguments, settings)) for side in SIDES}
        for _ in range(arguments.rounds):
            for case, calls in found.items():
                running = [side for side in SIDES if case.threads(side)]
                for side in running:
                    sides[side].start(case.threads(side), arguments.seconds)
                for side in running:
                    calls.add(side, sides[side].answer())
    return found


def best_gain(found: Mapping[Case, Calls], alone: Mapping[str, float], images: int) -> Gain:
    """The largest gain over the combinations of thread counts, against `alone`, the best ms of each side by itself."""
    gains = []
    for case, calls in found.items():
        if case.unet and case.vae:
            unet_ms, vae_ms = calls.median("unet"), calls.median("vae")
            serial_ms = alone["unet"] + unet_ms / vae_ms * alone["vae"]
            decodes = images * unet_ms / vae_ms
            gains.append(Gain(case.unet[0], case.vae[0], unet_ms, decodes, serial_ms, serial_ms / unet_ms))
    return max(gains, key=lambda gain: gain.gain)


def best_alone(found: Mapping[Case, Calls]) -> dict[str, float]:
    """Median ms of each side by itself, with the thread count that is best for it."""
    return {
        side: min(
            calls.median(side)
            for case, calls in found.items()
            if len(case.threads(side)) == 1 and len(case.unet + case.vae) == 1
        )
        for side in SIDES
    }


def print_table(environment: str, found: Mapping[Case, Calls], gain: Gain) -> None:
    """The cases of one environment and its gain."""
    print(f"\n{environment}\n  {'threads UNet + VAE':<22}{'UNet ms':>9}{'VAE ms':>9}{'largest / median':>19}")
    for case, calls in found.items():
        name = " + ".join("/".join(map(str, case.threads(side))) or "-" for side in SIDES)
        shown = [f"{calls.median(side):9.1f}" if case.threads(side) else f"{'':>9}" for side in SIDES]
        spike = max(calls.spike(side) for side in SIDES if case.threads(side))
        print(f"  {name:<22}{shown[0]}{shown[1]}{spike:19.2f}")
    print(
        f"  best beside: {gain.unet_threads} + {gain.vae_threads} threads, a UNet call and {gain.decodes:.1f} decodes"
        f" in {gain.beside_ms:.0f} ms; one after the other {gain.serial_ms:.0f} ms: {gain.gain:.2f}x"
    )


def run_side(arguments: argparse.Namespace) -> None:
    """One side: calls its model as told on stdin."""
    call, limit_threads = _call(arguments)
    for threads in sorted({1, usable_cores()}):
        limit_threads(threads)
        for _ in range(3):
            call()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        counts, seconds = json.loads(line)
        times: list[tuple[int, float]] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 2 * len(counts):
            threads = counts[len(times) % len(counts)]
            limit_threads(threads)
            started = time.perf_counter()
            call()
            times.append((threads, (time.perf_counter() - started) * 1000))
        print(json.dumps(times), flush=True)


def _call(arguments: argparse.Namespace) -> tuple[Callable[[], object], Callable[[int], None]]:
    """A call of the side's model at its native size, and what sets its threads. Imports torch, in the side only."""
    import torch

    from synerdiff.models.dtypes import dtype_from_name
    from synerdiff.models.loading import load_unet_side, load_vae_side
    from synerdiff.models.threads import limit_torch_threads

    dtype = dtype_from_name(arguments.dtype)
    unet_side = load_unet_side(arguments.model, dtype)
    width, height = unet_side.native_size
    shape = unet_side.latent_shape(width, height)
    if arguments.side == "vae":
        vae_side = load_vae_side(arguments.model, dtype)
        latents = torch.randn(arguments.images, *shape)
        return lambda: vae_side.decode(latents), limit_torch_threads
    conditioning = unet_side.conditioning([unet_side.encode(["a cat"])[0]] * arguments.rows, width, height)
    sample, timesteps = torch.randn(arguments.rows, *shape), torch.full((arguments.rows,), 500.0)
    return lambda: unet_side.predict(sample, timesteps, conditioning), limit_torch_threads


def main() -> None:
    """Measure every environment, then print tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="UNet rows of a call")
    parser.add_argument("--images", type=int, default=2, help="pictures of a decode")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a case runs, each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--environment", action="append", help=f"repeatable; default: {', '.join(ENVIRONMENTS)}")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments)
        return
    environments = arguments.environment or list(ENVIRONMENTS)
    found = {environment: measure(arguments, environment) for environment in environments}
    # One after the other, each would run under whichever environment is best for it.
    alones = [best_alone(calls) for calls in found.values()]
    alone = {side: min(best[side] for best in alones) for side in SIDES}
    gains = {environment: best_gain(calls, alone, arguments.images) for environment, calls in found.items()}
    load = os.getloadavg()[0]
    if arguments.json:
        shown = {name: asdict(gain) for name, gain in gains.items()}
        print(json.dumps({"cores": usable_cores(), "load": load, "alone_ms": alone, "gains": shown}, indent=2))
        return
    print(f"{usable_cores()} cores, load {load:.1f}; {arguments.rows} UNet rows, {arguments.images} pictures")
    for environment, calls in found.items():
        print_table(environment, calls, gains[environment])


if __name__ == "__main__":
    main()
