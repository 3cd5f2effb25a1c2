"""A pair of workers that only report, in times that are known: in step or side by side on two cores; and its prober."""

import asyncio
import itertools
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from services.scheduler.engine.effects import (
    Admit,
    CancelOnWorker,
    ForgetImages,
    ReleaseSlots,
    SendUnetPlan,
    SendVaePlan,
    WorkerEffect,
)
from services.scheduler.engine.events import Report
from services.scheduler.profiles.measuring.prober import ProbePair, Prober
from services.scheduler.profiles.measuring.profiler import Profiler, ProfilerOptions
from services.scheduler.profiles.measuring.rounds import Probe
from services.scheduler.simulation.counting import CountedTask, CountingUnet, Stepped
from synerdiff.plans import ItemTiming, TaskFailed, UnetItem, UnetTickDone, VaeItem, VaeTickDone
from synerdiff.profiles import Profile, Setting
from tests.services.scheduler.measured_profiles import record, two_cores
from tests.values import CARD

CALLS_OF_LONG_TASKS = 200
VAE_SHARE = 0.7  # of an item's time, after which its decodes beside steps end
TURNS = 12  # of the event loop, in which whoever hears of a report answers it


def pair(slots: int = 32, device: str = "EPYC", threads: int = 2) -> ProbePair:
    card = replace(CARD, latent_channels=4)
    unet = record("unet", model_card=card, device=device, threads=threads, memory_format="contiguous")
    coarse = replace(card, size_multiple=8)
    vae = record("vae", model_card=coarse, device=device, threads=threads, memory_format="channels_last")
    return ProbePair(unet, vae, slots, unet.address)


class TimedPair:
    """Answers commands some turns of the event loop later. `told` hears of each report and the worker it comes from.

    `images` are the tasks whose image a VAE worker keeps. `step_free`: nobody waits for
    anybody. `broken`: a UNet row count that cannot be computed. `most_rows`, `most_decodes`: what memory suffices for,
    0 for any; `row_bytes`: what each row and decode takes. `item_ms`: of an item and when it begins, in virtual ms;
    `plan_ms`: from the end of what a worker has to do to the beginning of a plan that comes then.
    """

    def __init__(
        self,
        told: Callable[[str, Report], None],
        slots: int = 32,
        item_ms: Callable[[Probe, float], float] = lambda probe, now_ms: two_cores(probe),
        plan_ms: float = 0.001,
    ) -> None:
        self._unet = CountingUnet("a", slots)
        self.images: set[str] = set()
        self.admitted = self.most_held = 0
        self.plans = 0
        self.step_free = False
        self.broken = 0
        self.most_rows = self.most_decodes = self.row_bytes = 0
        self.paused = False
        self.ticks: list[int] = []
        self._told = told
        self._item_ms = item_ms
        self._plan_ns = round(plan_ms * 1e6)
        self._heard_ns = 0
        self._sent_ns: dict[int, int] = {}
        self._now_ns = 0
        self._waiting: dict[int, list[SendUnetPlan | SendVaePlan]] = {}

    def send(self, effect: WorkerEffect) -> None:
        match effect:
            case Admit(worker_id=worker_id, task=task):
                self.admitted += 1
                report = self._unet.admit(task, min(task.num_inference_steps, CALLS_OF_LONG_TASKS))
                self.most_held = max(self.most_held, len(self.held))
                self._report(worker_id, report)
            case CancelOnWorker(task_ids=task_ids) | ReleaseSlots(task_ids=task_ids) | ForgetImages(task_ids=task_ids):
                if effect.worker_id.startswith("unet"):
                    self._unet.let_go(task_ids)
                self.images.difference_update(task_ids)
            case SendUnetPlan() | SendVaePlan():
                self.plans += 1
                self._sent_ns[effect.plan.tick] = self._heard_ns
                if not self._waiting and not self.paused:
                    self._later(TURNS)
                self._waiting.setdefault(effect.plan.tick, []).append(effect)

    @property
    def held(self) -> Mapping[str, CountedTask]:
        """The tasks with a slot."""
        return self._unet.residents

    @property
    def now_s(self) -> float:
        """The virtual time at which all is done that was asked for."""
        return self._now_ns / 1e9

    def _report(self, worker_id: str, report: Report) -> None:
        def deliver(at_ns: int = self._now_ns) -> None:
            self._heard_ns = at_ns
            self._told(worker_id, report)

        asyncio.get_running_loop().call_soon(deliver)

    def _later(self, turns: int) -> None:
        """Run the next plan after so many turns, and then the one that waits behind it."""
        if turns:
            asyncio.get_running_loop().call_soon(self._later, turns - 1)
            return
        tick = next(iter(self._waiting))
        self._run(tick, self._waiting[tick])
        del self._waiting[tick]
        if self._waiting:
            self._later(TURNS)

    def _run(self, tick: int, parts: list[SendUnetPlan | SendVaePlan]) -> None:
        self.ticks.append(tick)
        unet = next((part for part in parts if isinstance(part, SendUnetPlan)), None)
        vae = next((part for part in parts if isinstance(part, SendVaePlan)), None)
        stepping = {item.execution.place: item for item in unet.plan.items} if unet else {}
        decoding = {item.execution.place: item for item in vae.plan.items} if vae else {}
        done = UnetTickDone(tick, (), (), ()), VaeTickDone(tick, (), (), ())
        begin_ns = max(self._now_ns, self._sent_ns.pop(tick) + self._plan_ns)
        clocks = [begin_ns, begin_ns]
        for place in sorted({*stepping, *decoding}):
            done = self._run_item(stepping.get(place), decoding.get(place), clocks, *done)
        self._now_ns = max(clocks)
        for part, report in ((unet, done[0]), (vae, done[1])):
            if part:
                self._report(part.worker_id, report)

    def _timing(self, start_ns: int, end_ns: int, count: int, most: int) -> ItemTiming:
        halved = count if most and count > most else 0
        return ItemTiming(start_ns, end_ns, count, halved=halved, peak_bytes=count * self.row_bytes)

    def _run_item(
        self,
        stepping: UnetItem | None,
        decoding: VaeItem | None,
        clocks: list[int],
        unet: UnetTickDone,
        vae: VaeTickDone,
    ) -> tuple[UnetTickDone, VaeTickDone]:
        """The reports with an item more. `clocks`: when each side ended the one before, in ns; moved on."""
        rows, skipped, finished = self._step(stepping) if stepping else Stepped(0, (), ())
        decodes = decoding.entries if decoding else ()
        threads = [item.execution.threads if item else 0 for item in (stepping, decoding)]
        probe = Probe(rows, len(decodes), Setting(decodes[0].chunks if decodes else 1, *threads))
        if not self.step_free:
            clocks[:] = [max(clocks)] * 2
        ms = self._item_ms(probe, max(clocks) / 1e6) if rows or decodes else 0.001
        begun = tuple(clocks)
        if stepping:
            clocks[0] += round(ms * 1e6)
            unet = replace(unet, items=(*unet.items, self._timing(begun[0], clocks[0], rows, self.most_rows)))
        if decoding:
            clocks[1] += round(ms * 1e6 * (VAE_SHARE if stepping else 1))
            vae = replace(vae, items=(*vae.items, self._timing(begun[1], clocks[1], len(decodes), self.most_decodes)))
            self.images |= {entry.task_id for entry in decodes}
        return replace(unet, skipped=(*unet.skipped, *skipped), finished=(*unet.finished, *finished)), vae

    def _step(self, item: UnetItem) -> Stepped:
        stepped = self._unet.step((item,))
        if stepped.rows == self.broken != 0:
            self._report("unet-0", TaskFailed(item.entries[0].task_id, 13, "the UNet call failed"))
        return stepped


@dataclass(frozen=True)
class Noise:
    """`slowest` of phases of `shortest_s` to `longest_s`; `deviation` of a run; `held_up`: share of up to 10 times."""

    slowest: float = 2.0
    shortest_s: float = 1.0
    longest_s: float = 8.0
    deviation: float = 0.03
    held_up: float = 0.01


def noisy(quiet_ms: Callable[[Probe], float], noise: Noise, seed: int) -> Callable[[Probe, float], float]:
    """How long an item takes that begins at a moment (ms), given how long it takes on the quiet machine."""
    source = random.Random(seed)
    begins_ms, factors = [0.0], [source.uniform(1, noise.slowest)]

    def factor(now_ms: float) -> float:
        while begins_ms[-1] < now_ms:
            begins_ms.append(begins_ms[-1] + 1000 * source.uniform(noise.shortest_s, noise.longest_s))
            factors.append(source.uniform(1, noise.slowest))
        return factors[bisect_right(begins_ms, now_ms) - 1]

    def item_ms(probe: Probe, now_ms: float) -> float:
        own = source.lognormvariate(0, noise.deviation)
        held_up = source.uniform(1.5, 10) if source.random() < noise.held_up else 1.0
        return quiet_ms(probe) * factor(now_ms) * own * held_up

    return item_ms


class Bench:
    """A prober with its pair; `item_ms` and `plan_ms` as `TimedPair` takes them. `threads`: of each; 0: on a GPU."""

    def __init__(
        self,
        slots: int = 32,
        item_ms: Callable[[Probe, float], float] = lambda probe, now_ms: two_cores(probe),
        plan_ms: float = 0.001,
        threads: int = 2,
    ) -> None:
        self.pair = TimedPair(
            lambda worker_id, report: self.prober.reported(worker_id, report), slots, item_ms, plan_ms
        )
        ticks = itertools.count(1)
        self.prober = Prober(pair(slots, threads=threads), (256, 256), 7, self.pair.send, lambda: next(ticks))

    async def profile(self, **options: object) -> Profile:
        """What measuring the pair gives, by the pair's own time."""
        made = await Profiler(ProfilerOptions(**options), lambda: self.pair.now_s).run(self.prober)  # type: ignore[arg-type]
        self.prober.close()
        return made
