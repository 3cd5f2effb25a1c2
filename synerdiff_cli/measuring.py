"""The measurements of `synerdiff profile`: workers of its own, one pair for each split of the device."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from services.scheduler.leading.measuring_leader import probing
from services.scheduler.policy.pace import best_costs
from services.scheduler.profiles.measuring.profiler import Profiler, ProfilerOptions
from services.scheduler.profiles.measuring.rounds import ProbeFailed
from services.scheduler.profiles.store import ProfileStore
from synerdiff.cards import ModelCard
from synerdiff.profiles import Profile
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerRegistry
from synerdiff.requests import rows_of_call
from synerdiff.skip_cfg import SkipCfgBudget
from synerdiff_cli.console import EXIT_FAILED, err, fail
from synerdiff_cli.deployment import LocalOptions, plan_deployment
from synerdiff_cli.profile_display import ProfileDisplay
from synerdiff_cli.running import StartupDisplay, check_redis
from synerdiff_cli.shares import Split
from synerdiff_cli.supervisor import Supervisor

FLOOR_DB = 40
MODULE = "services.unet_worker.fidelity"
_TAIL_LINES = 5

Told = Callable[[int, int, float], None]


class FidelityFailed(RuntimeError):
    """The measuring process failed; the message ends with its last output."""


async def measured_budget(model: Path, dtype: str, told: Told) -> SkipCfgBudget | None:
    """The budget that keeps pictures at FLOOR_DB of PSNR against full guidance; None where no skipping does.

    `dtype` as in the workers' settings. `told` hears how many of how many comparisons are done, and the seconds left.
    Raises FidelityFailed.
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
                _tell(line, told)
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status:
            said = errors.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            raise FidelityFailed("\n".join([f"measuring fidelity failed with exit status {status}", *said]))
        budget = json.loads(result.read_text(encoding="utf-8"))["budget"]
        return SkipCfgBudget(**budget) if budget else None


def _tell(line: bytes, told: Told) -> None:
    try:
        progress = json.loads(line)
        told(progress["done"], progress["total"], progress["eta_s"])
    except (ValueError, KeyError, TypeError):
        return


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
    """Measure every split, most pictures per second first, and keep all in Redis if given. Exits where it cannot."""
    if wishes.redis_url:
        await check_redis(wishes.redis_url)
    found = []
    for split in wishes.splits:
        if len(wishes.splits) > 1:
            err.print(f"Shares {split.label}")
        found.append(await _measure_split(split, wishes))
    if wishes.fidelity:
        budget = await _budget(wishes.splits[0].local)
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
    """The best profile; where there were others to choose from, it says so."""
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
            fail(f"could not be measured: {error}", EXIT_FAILED)


@asynccontextmanager
async def _workers(options: LocalOptions) -> AsyncIterator[tuple[Supervisor, WorkerRegistry]]:
    deployment = plan_deployment(options)
    with StartupDisplay(deployment.children) as display:
        async with Supervisor(deployment.children, on_change=display.change) as supervisor:
            await supervisor.start()
            display.close()
            async with connect(deployment.redis_url) as redis:
                yield supervisor, WorkerRegistry(redis)


async def _budget(options: LocalOptions) -> SkipCfgBudget | None:
    with ProfileDisplay() as display:
        try:
            return await measured_budget(options.models[0].path, options.dtype, display.show_fidelity)
        except FidelityFailed as error:
            fail(str(error), EXIT_FAILED)
