"""The measurements of `synerdiff profile`: workers of its own, one pair for each split of the device between them.

`--shares 70:30,60:40` gives the splits, UNet:VAE in percent. On a CPU a share is a number of threads. On a GPU it is
CUDA MPS's share of a client, set by a variable of each worker; MPS lets a client lower its share, never raise it.
"""

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from services.scheduler.leading.measuring_leader import probing
from services.scheduler.policy.policy_spec import best_costs
from services.scheduler.profiles.measuring.profiler import Profiler, ProfilerOptions
from services.scheduler.profiles.measuring.rounds import ProbeFailed
from services.scheduler.profiles.store import ProfileStore
from synerdiff.cards import ModelCard
from synerdiff.host import usable_cores
from synerdiff.mps import DEFAULT_PIPE_DIRECTORY, THREAD_PERCENTAGE, device_ordinal, find_client
from synerdiff.profiles import Profile
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerRegistry
from synerdiff.requests import rows_of_call
from synerdiff.skip_cfg import SkipCfgBudget
from synerdiff_cli.console import CommandError, err
from synerdiff_cli.deployment import LocalOptions, OptionError, plan_deployment
from synerdiff_cli.local import StartupDisplay, check_redis
from synerdiff_cli.profile_display import ProfileDisplay
from synerdiff_cli.supervisor import Supervisor

FLOOR_DB = 40
MODULE = "services.unet_worker.fidelity"
_TAIL_LINES = 5
_SHARES = re.compile(r"\s*(\d{1,3}):(\d{1,3})\s*", re.ASCII)

Told = Callable[[int, int, float], None]


class Shares(NamedTuple):
    """Percent of the device for either worker, 1 to 100 each; more than 100 together: they overlap."""

    unet: int
    vae: int

    def __str__(self) -> str:
        return f"{self.unet}:{self.vae}"


@dataclass(frozen=True)
class Split:
    """One way to run both workers, and the shares that lead to it. `fixed`: no item may give a worker more."""

    shares: tuple[Shares, ...]
    local: LocalOptions
    fixed: bool = False

    @property
    def label(self) -> str:
        """The shares as they were asked for."""
        return ", ".join(map(str, self.shares))


def parse_shares(text: str) -> tuple[Shares, ...]:
    """The splits of `--shares`, each once. Raises OptionError."""
    matches = [(part, _SHARES.fullmatch(part)) for part in text.split(",")]
    for part, match in matches:
        if not match or not all(1 <= int(number) <= 100 for number in match.groups()):
            raise OptionError(
                f"--shares: {part.strip()!r} is not UNET:VAE in percent from 1 to 100 each, as 70:30,60:40"
            )
    return tuple(dict.fromkeys(Shares(int(match[1]), int(match[2])) for _, match in matches if match))


def splits_of(local: LocalOptions, shares: Iterable[Shares], device: str) -> tuple[Split, ...]:
    """The splits to run for the shares on a `device` (cpu, cuda or cuda:N).

    Raises OptionError where they cannot be had: threads given as well, no MPS on a GPU, or an MPS that allows less.
    """
    if local.threads:
        raise OptionError("--shares: shares say how many threads a worker has; leave --threads out")
    return _on_gpu(local, shares, device) if device.startswith("cuda") else _on_cpu(local, shares)


def thread_counts(shares: Shares, cores: int) -> dict[str, int]:
    """CPU threads of each kind of worker: nearest to its share, at least one; over the cores only where shares are."""
    unet, vae = (max(1, round(cores * share / 100)) for share in shares)
    if sum(shares) <= 100 and cores > 1:
        unet = min(unet, cores - 1)
        vae = min(vae, cores - unet)
    return {"unet": unet, "vae": vae}


def _on_cpu(local: LocalOptions, shares: Iterable[Shares]) -> tuple[Split, ...]:
    by_counts: dict[tuple[int, ...], list[Shares]] = {}
    for split in shares:
        by_counts.setdefault(tuple(thread_counts(split, usable_cores()).values()), []).append(split)
    return tuple(
        Split(
            tuple(alike),
            replace(local, worker_threads=dict(zip(("unet", "vae"), counts, strict=True))),
            fixed=sum(counts) <= usable_cores(),
        )
        for counts, alike in by_counts.items()
    )


def _on_gpu(local: LocalOptions, shares: Iterable[Shares], device: str) -> tuple[Split, ...]:
    splits = tuple(shares)
    _check_mps_allows(splits, device, {name: value for name, value in os.environ.items() if name != THREAD_PERCENTAGE})

    def workers(split: Shares) -> LocalOptions:
        variables = {kind: {THREAD_PERCENTAGE: str(percent)} for kind, percent in split._asdict().items()}
        return replace(local, worker_environment=variables)

    return tuple(Split((split,), workers(split), fixed=True) for split in splits)


def _check_mps_allows(splits: Iterable[Shares], device: str, environ: Mapping[str, str]) -> None:
    found = find_client(device_ordinal(device), environ)
    client = found.client
    if client is None:
        why = "; ".join(found.warnings) or f"there is no control daemon at {DEFAULT_PIPE_DIRECTORY}"
        raise OptionError(
            f"--shares: on {device} they need CUDA MPS, and {why}. `nvidia-cuda-mps-control -d` starts it"
        )
    for split in splits:
        if max(split) > client.thread_percent:
            raise OptionError(
                f"--shares: {split} is more than the {client.thread_percent} % that CUDA MPS allows every client here "
                f"({client.thread_source}); a client can only lower it. Where the daemon is yours, end its clients and "
                "`echo set_default_active_thread_percentage 100 | nvidia-cuda-mps-control`"
            )


class MeasuringFailed(CommandError):
    """Something could not be measured; the message says why."""


async def measured_budget(model: Path, dtype: str, told: Told) -> SkipCfgBudget | None:
    """The budget that keeps pictures at FLOOR_DB of PSNR against full guidance; None where no skipping does.

    `dtype` as in the workers' settings. `told` gets the number of comparisons done, their total, and the seconds left.
    Raises MeasuringFailed with its last output.
    """
    with tempfile.TemporaryDirectory(prefix="synerdiff-fidelity-") as folder:
        result, errors = Path(folder) / "fidelity.json", Path(folder) / "errors.log"
        with errors.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", MODULE),
                *("--model", str(model), "--out", str(result), "--floor-db", str(FLOOR_DB), "--dtype", dtype),
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # other lines do not report progress
                    progress = json.loads(line)
                    told(progress["done"], progress["total"], progress["eta_s"])
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status:
            said = errors.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            raise MeasuringFailed("\n".join([f"measuring fidelity failed with exit status {status}", *said]))
        budget = json.loads(result.read_text(encoding="utf-8"))["budget"]
        return SkipCfgBudget(**budget) if budget else None


@dataclass(frozen=True)
class Wishes:
    """The splits to measure, at least one, and where results go. `width`, `height` in pixels, 0: the native size."""

    splits: tuple[Split, ...]
    profiler: ProfilerOptions
    width: int
    height: int
    fidelity: bool
    redis_url: str


class Measured(NamedTuple):
    """A split, its profile, and the pictures per second that the device can make so at best."""

    split: Split
    profile: Profile
    pictures_per_s: float


async def measure(wishes: Wishes) -> list[Measured]:
    """Measure every split, most pictures per second first, and keep all in Redis if given."""
    if wishes.redis_url:
        await check_redis(wishes.redis_url)
    found = []
    for split in wishes.splits:
        if len(wishes.splits) > 1:
            err.print(f"Shares {split.label}")
        found.append(await _measure_split(split, wishes))
    if wishes.fidelity:
        options = wishes.splits[0].local
        with ProfileDisplay() as display:
            budget = await measured_budget(options.models[0].path, options.dtype, display.show_fidelity)
        found = [each._replace(profile=replace(each.profile, skip_cfg=budget)) for each in found]
    if wishes.redis_url:
        async with connect(wishes.redis_url) as redis:
            for each in found:
                await ProfileStore(redis).put(each.profile)
    return sorted(found, key=lambda each: -each.pictures_per_s)


def pictures_per_s(profile: Profile, card: ModelCard) -> float:
    """Pictures of the model's default steps and guidance that a device can denoise and decode per second at best."""
    rows_a_call = rows_of_call(card.default_guidance_scale)
    return 1000 / best_costs(profile).task_ms(rows_a_call * card.default_num_inference_steps, 1)


def with_note(found: Sequence[Measured]) -> Profile:
    """The best profile, with a note where it was chosen among several."""
    best = found[0]
    if len(found) == 1:
        return best.profile
    others = ", ".join(f"{each.split.label}: {each.pictures_per_s:.3g}" for each in found)
    note = f"shares {best.split.label} made the most pictures per second at best ({others})"
    return replace(best.profile, notes=(*best.profile.notes, note))


async def _measure_split(split: Split, wishes: Wishes) -> Measured:
    async with _workers(split.local) as (supervisor, registry):
        profiler = Profiler(replace(wishes.profiler, fixed_shares=split.fixed))

        async def work() -> Measured:
            async with probing(registry, wishes.width, wishes.height) as prober:
                with ProfileDisplay() as display:
                    profile = await profiler.run(prober, display.show)
                return Measured(split, profile, pictures_per_s(profile, prober.pair.unet.model_card))

        try:
            return await supervisor.guard(work())
        except ProbeFailed as error:
            raise MeasuringFailed(f"could not be measured: {error}") from error


@contextlib.asynccontextmanager
async def _workers(options: LocalOptions) -> AsyncIterator[tuple[Supervisor, WorkerRegistry]]:
    deployment = plan_deployment(options)
    with StartupDisplay(deployment.children) as display:
        async with Supervisor(deployment.children, on_change=display.change) as supervisor:
            await supervisor.start()
            display.close()
            async with connect(deployment.redis_url) as redis:
                yield supervisor, WorkerRegistry(redis)
