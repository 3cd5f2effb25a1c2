"""Sections 3 and 5: a model served by the whole deployment, and diffusers pipelines as people would serve it."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu import mps
from bench.gpu.configs import GUIDANCE_SCALE, ModelName
from bench.gpu.kit import Kit
from bench.peers.measuring import Peer, numbers, peer
from bench.serving import PROMPTS, deployed
from synerdiff.client import AsyncClient
from synerdiff.client.load.arrivals import bursts, poisson
from synerdiff.client.load.requests import Drawn, LoadRequest, Mix
from synerdiff.client.load.sending import ClosedLoop, Load, OpenLoop, send

# A share of the batching server's throughput in the burst.
_POISSON_SHARE = 0.7
_PATIENCE_S = 60.0
_SEED = 1
_TIME_SLICED, _MPS = "time-sliced", "MPS"
# A UNet worker's log line about a batch size that it runs kernel by kernel.
_WITHOUT_GRAPH = "no CUDA graph for this batch"
_SKIPS = {"skips off": False, "skips on": None}


@dataclass(frozen=True)
class Course:
    """How much of each load. `sizes`: batches that the pipeline tries; `compiled_s`: left for a compiled one.

    `slots`: of our UNet worker, which captures a graph of every common batch size up to two rows each before it serves.
    """

    sizes: Sequence[int]
    alone: int
    loops: int
    burst: int
    poisson_s: float
    poisson_skips: Sequence[str]
    compiled_s: float
    slots: int


_COURSES: dict[str, Course] = {
    "sd15": Course((1, 8, 16, 32), 4, 2, 64, 12.0, tuple(_SKIPS), 45.0, 32),
    "sdxl": Course((1, 4, 8), 2, 2, 24, 12.0, ("skips on",), 60.0, 16),
}
_TINY = Course((1, 2), 1, 1, 6, 1.0, ("skips on",), 0.0, 8)


def run(kit: Kit, name: ModelName) -> None:
    """Record every load. Raises RuntimeError naming those that failed; the rest was measured all the same."""
    kit.wait_for_model(name)
    failures = asyncio.run(_Serving(kit, name).measure())
    if failures:
        raise RuntimeError("; ".join(failures))


def by_profile(kit: Kit, name: ModelName, way: str, profile: Path) -> None:
    """Record bursts on a deployment that plans by a profile. Under MPS where the caller's processes are its clients."""
    asyncio.run(_Serving(kit, name).served(way, profile))


class _Serving:
    """One model's loads, on one after the other."""

    def __init__(self, kit: Kit, name: ModelName) -> None:
        self._kit = kit
        self._name = name
        self._course = _TINY if kit.tiny else _COURSES[name]
        self._steps = kit.config(name).steps
        self._rate_per_s = 0.0
        self._best_size = self._course.sizes[-1]
        self._failures: list[str] = []

    async def measure(self) -> list[str]:
        """Run every load; returns the failures."""
        await self._attempt("diffusers eager", self._pipeline(compiled=False))
        if not (mps.works(self._kit) and await self._attempt("served under MPS", self._under_mps())):
            await self._attempt("served", self.served(_TIME_SLICED))
        if self._kit.left_s > self._course.compiled_s and not self._kit.tiny:
            await self._attempt("diffusers compiled", self._pipeline(compiled=True))
        return self._failures

    async def _attempt(self, what: str, work: Awaitable[None]) -> bool:
        """Whether it worked. A failure does not keep the others from being measured."""
        try:
            await asyncio.wait_for(work, max(1.0, self._kit.left_s))
        except Exception as error:
            self._failures.append(f"{what}: {type(error).__name__}: {error}")
            self._kit.record("trouble", what=what, error=self._failures[-1][-2000:])
            return False
        return True

    # ---- diffusers

    async def _pipeline(self, *, compiled: bool) -> None:
        kit, course = self._kit, self._course
        log = kit.work / f"peer-{self._name}-{compiled}.log"
        how = "compiled" if compiled else "eager"
        sizes = (self._best_size,) if compiled else course.sizes
        options = {"model": kit.model_path(self._name), "dtype": kit.dtype, "device": kit.device, "compiled": compiled}
        options |= {"steps": self._steps, "guidance_scale": GUIDANCE_SCALE, "sizes": ",".join(map(str, sizes))}
        options |= {"sweep_steps": 4, "sweep_times": 1}
        try:
            async with peer(how, options, kit.work / "inductor", log) as running:
                best = self._best_size = running.about["best_size"]
                kit.record("sweep", model=self._name, who=f"diffusers {how}", best_size=best, **running.about["sweep"])
                await self._loop(running, f"diffusers {how}, one at a time", 1, course.alone)
                await self._loop(running, f"diffusers {how}, batches of {best}", best, course.loops)
                if not compiled:
                    await self._dynamic_batching(running, f"diffusers {how}, dynamic batches up to {best}")
        finally:
            kit.keep_log(f"diffusers {how}", log)

    async def _loop(self, running: Peer, who: str, size: int, calls: int) -> None:
        asked = {"num_inference_steps": self._steps, "guidance_scale": GUIDANCE_SCALE}
        window = await running.loop(size, calls, prompts=PROMPTS[:64], **asked)
        self._record(who, "offline", "alone", **numbers(window))

    async def _dynamic_batching(self, running: Peer, who: str) -> None:
        async with AsyncClient(running.about["batched"], patience_s=_PATIENCE_S) as client:
            await self._load(client, who, "alone", "burst", self._burst(self._mix(None)))
            await self._load(client, who, "alone", "Poisson", self._poisson(self._mix(None)))

    # ---- ours

    async def _under_mps(self) -> None:
        with mps.daemon():
            await self.served(_MPS)

    async def served(self, way: str, profile: Path | None = None) -> None:
        """The loads on our deployment; only bursts on one with a profile."""
        kit, who = self._kit, "served by a profile" if profile else "served"
        settings = {"device": kit.device, "compile": "off", "slots": str(self._course.slots)}
        if way.startswith(_MPS) and not kit.tiny:
            settings["require_mps"] = "true"
        path = kit.model_path(self._name)
        async with deployed(settings, profile, kit.dtype, path, idle_profile=False) as system:
            try:
                async with AsyncClient(system.deployment.addresses[0], patience_s=_PATIENCE_S) as client:
                    await send(client, OpenLoop(bursts(self._course.burst // 2, self._mix(None), 0)))  # warms up
                    for skips, skip_cfg in _SKIPS.items():
                        await self._load(client, f"{who}, {skips}", way, "burst", self._burst(self._mix(skip_cfg)))
                    if profile is None:
                        await self._light_loads(client, who, way)
            finally:
                for child in system.deployment.children:
                    kit.keep_log(f"{self._name} {way}: {child.name}", child.log)
                    if child.name.startswith("unet"):
                        without = child.log.read_text(errors="replace").count(_WITHOUT_GRAPH)
                        kit.record("graphs", model=self._name, way=way, sizes_without=without)

    async def _light_loads(self, client: AsyncClient, who: str, way: str) -> None:
        await self._load(client, f"{who}, skips off", way, "one client", self._alone(self._mix(False)))
        for skips in self._course.poisson_skips:
            await self._load(client, f"{who}, {skips}", way, "Poisson", self._poisson(self._mix(_SKIPS[skips])))

    # ---- loads

    def _burst(self, mix: Mix) -> Load:
        return OpenLoop(bursts(self._course.burst, mix, _SEED))

    def _alone(self, mix: Mix) -> Load:
        return ClosedLoop(Drawn(mix, _SEED, self._course.alone), 1)

    def _poisson(self, mix: Mix) -> Load:
        seconds = self._course.poisson_s
        while not (arrivals := poisson(self._rate_per_s, mix, _SEED, seconds=seconds)):
            seconds *= 2  # a slow machine may get no request at all in so short a time
        return OpenLoop(arrivals)

    async def _load(self, client: AsyncClient, who: str, way: str, load: str, sent: Load) -> None:
        found = numbers(await send(client, sent))
        if load == "burst" and not self._rate_per_s:
            self._rate_per_s = _POISSON_SHARE * found["images_per_s"]
        rate_per_s = self._rate_per_s if load == "Poisson" else 0.0
        self._record(who, load, way, rate_per_s=round(rate_per_s, 3), **found)

    def _record(self, who: str, load: str, way: str, **figures: Any) -> None:
        self._kit.record("load", model=self._name, who=who, load=load, way=way, steps=self._steps, **figures)

    def _mix(self, skip_cfg: bool | None) -> Mix:
        return Mix(PROMPTS, LoadRequest("", 0, self._steps, GUIDANCE_SCALE, skip_cfg=skip_cfg))
