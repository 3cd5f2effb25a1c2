"""A deployment under settings of its own, a load on it, and the results of both."""

import contextlib
import math
import os
import statistics
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from bench.status import until
from services.scheduler.settings import SchedulerSettings
from services.unet_worker.settings import UnetWorkerSettings
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff import profiles
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.client.load import trace
from synerdiff.client.load.arrivals import Arrival, bursts
from synerdiff.client.load.requests import LoadRequest, Mix, prompts_of_words
from synerdiff.client.load.sending import OpenLoop, Window, send
from synerdiff.client.load.summary import percentile, summarise
from synerdiff.rpc import open_channel
from synerdiff.worker_settings import CompileMode
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource
from synerdiff_cli.local import Running, running

SAMPLERS = (Sampler.DDIM, Sampler.EULER, Sampler.DPMSOLVER_MULTISTEP)
PROFILE_KNOWN_WITHIN_S = 15.0
SETTINGS = frozenset(
    name for of in (SchedulerSettings, UnetWorkerSettings, VaeWorkerSettings) for name in of.model_fields
)

# Requests of mixed steps and samplers, and equal ones; all for one image of the model's native size.
PROMPTS = prompts_of_words(BUNDLED_MODEL.parent / "core.txt")
MIXED = Mix(PROMPTS, steps=(8, 12, 20, 20), guidance_scales=(3.0, 4.0, 5.0), samplers=SAMPLERS)


def equal_requests(num_inference_steps: int = 20, skip_cfg: bool | None = None) -> Mix:
    """Requests that differ in prompt and seed alone."""
    like = LoadRequest("", 0, num_inference_steps, guidance_scale=4.0, sampler=Sampler.DDIM, skip_cfg=skip_cfg)
    return Mix(PROMPTS, like)


@dataclass(frozen=True)
class Outcome:
    """The results of a load: its window, and the items and the thresholds (s from its start, value) of its trace."""

    window: Window
    items: "tuple[ItemRun, ...]"
    thresholds: tuple[tuple[float, float], ...]

    @property
    def errors(self) -> list[str]:
        return [f"{answer.error}: {answer.message}" for answer in self.window.answers if answer.error]

    def summary(self) -> dict[str, Any]:
        """Latencies end to end from when requests were due; NaN where none was served."""
        whole, decodes_ms = summarise([self.window]), [1000 * answer.decode_s for answer in self.window.served]
        ratios = [run.ratio for run in self.items]
        return {
            "requests": len(self.window.served),
            "errors": self.errors,
            "images_per_s": whole.images_per_s,
            "end_to_end_mean_s": whole.mean_s,
            "end_to_end_p99_s": whole.p99_s,
            "end_to_end_last_s": whole.max_s,
            "decode_mean_ms": statistics.fmean(decodes_ms) if decodes_ms else math.nan,
            "decode_p99_ms": percentile(decodes_ms, 99),
            "skipped_share": whole.skipped_share,
            "items_compared": len(ratios),
            "item_ratio_median": percentile(ratios, 50),
            "item_ratio_largest": max(ratios, default=math.nan),
            "items_over_2x": sum(ratio > 2 for ratio in ratios),
        }


@dataclass(frozen=True)
class ItemRun:
    """An item that ran in step and as planned, with a predicted time: measured over predicted, and when it ended."""

    kind: str
    ratio: float
    end_s: float


@contextlib.asynccontextmanager
async def deployment(
    settings: Mapping[str, str], profile: Path | None = None, dtype: str = "float32"
) -> AsyncIterator[str]:
    """The address of `deployed`, with the bundled model, once every worker has done each of its kinds of work and the
    planner has planned common counts."""
    async with deployed(settings, profile, dtype) as system:
        address = system.deployment.addresses[0]
        for count in (1, 4, 12):
            await serve(address, bursts(count, equal_requests(6), seed=count))
        yield address


@contextlib.asynccontextmanager
async def deployed(
    settings: Mapping[str, str],
    profile: Path | None = None,
    dtype: str = "float32",
    model: Path = BUNDLED_MODEL,
    *,
    idle_profile: bool = True,
    schedulers: int = 1,
    unet_workers: int = 1,
) -> AsyncIterator[Running]:
    """Schedulers, UNet workers and a VAE worker under `settings`, each by the name that the service has for it.

    `profile`: a file that its domain is to plan by, with its whole path; `idle_profile`: measure one when idle where
    there is none. Raises ValueError for a setting that none of them has, RuntimeError where the scheduler does not take
    the profile.
    """
    for name in settings:
        if name not in SETTINGS:
            raise ValueError(f"{name}: no setting of scheduler or workers")
    variables = {f"SYNERDIFF_{name.upper()}": value for name, value in settings.items()}
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, variables):
        local = LocalOptions(
            Path(folder),
            (ModelSource("emoji" if model == BUNDLED_MODEL else model.name, model),),
            dtype=dtype,
            profile=profile,
            idle_profile=idle_profile,
            compile=cast(CompileMode, settings.get("compile", "off")),
            schedulers=schedulers,
            unet_workers=unet_workers,
        )
        async with running(local) as system:
            if profile:
                await _takes_profile(system.deployment.addresses[0], profile)
            yield system


async def serve(address: str, arrivals: Sequence[Arrival]) -> Outcome:
    """Send every request when it is due and wait for all of them."""
    async with AsyncClient(address, patience_s=60.0) as client:
        window = await send(client, OpenLoop(tuple(arrivals)))
    async with open_channel(address) as channel:
        events = await trace.trace_events(channel, window.began_unix_s)
    since_s = window.began_unix_s
    return Outcome(window, item_runs(events, since_s * 1e6), trace.thresholds(events, since_s))


def item_runs(events: Sequence[Mapping[str, Any]], began_unix_us: float) -> tuple[ItemRun, ...]:
    """The items of a trace that can be compared with their prediction, each once, in order of their ends."""
    runs: dict[tuple[int, int, int], ItemRun] = {}
    for event in events:
        args = event.get("args", {})
        if not (args.get("intact") and args.get("in_step") and args.get("predicted_ms")):
            continue
        both = args["rows"] and args["decodes"]
        end_s = (event["ts"] + event["dur"] - began_unix_us) / 1e6
        run = ItemRun("beside" if both else event["cat"], args["measured_ms"] / args["predicted_ms"], end_s)
        runs[event["pid"], args["tick"], args["place"]] = run
    return tuple(sorted(runs.values(), key=lambda run: run.end_s))


async def _takes_profile(address: str, profile: Path) -> None:
    digest = profiles.load(profile).digest
    try:
        await until(address, lambda s: digest in {each.profile_digest for each in s.planning}, PROFILE_KNOWN_WITHIN_S)
    except TimeoutError:
        where = f"{profile} up within {PROFILE_KNOWN_WITHIN_S:g} s; its log says why"
        raise RuntimeError(f"the scheduler did not take {where}") from None
