"""A pair of workers that only report, in times that are known: items in step, or side by side on two cores."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from services.scheduler.effects import (
    Admit,
    CancelOnWorker,
    ForgetImages,
    ReleaseSlots,
    SendUnetPlan,
    SendVaePlan,
    WorkerEffect,
)
from services.scheduler.profiler.probing import ProbePair
from services.scheduler.profiler.profiling import Probe
from synerdiff.plans import (
    ItemTiming,
    SkippedEntry,
    SkipReason,
    SlotRef,
    TaskFailed,
    TaskReady,
    UnetItem,
    UnetTickDone,
    VaeItem,
    VaeTickDone,
)
from synerdiff.profiles import Setting
from synerdiff.requests import TaskSpec
from tests.services.scheduler.harness import CARD
from tests.services.scheduler.measured_profiles import record, two_cores

Report = TaskReady | TaskFailed | UnetTickDone | VaeTickDone

CALLS_OF_LONG_TASKS = 200
VAE_SHARE = 0.7  # of an item's time, after which its decodes beside steps end


def pair(slots: int = 32, device: str = "EPYC") -> ProbePair:
    card = replace(CARD, latent_channels=4)
    unet = record("unet", model_card=card, device=device)
    return ProbePair(unet, record("vae", model_card=replace(card, size_multiple=8), device=device), slots, unet.address)


class TimedPair:
    """Answers commands in the next turn of the event loop. `told` hears of each report and the worker it comes from.

    `held` are the tasks with a slot, `images` those whose image a VAE worker keeps. `step_free`: nobody waits for
    anybody. `broken`: a UNet row count that cannot be computed. `most_rows`, `most_decodes`: what memory suffices for,
    0 for any; `row_bytes`: what each row and decode takes.
    """

    def __init__(self, told: Callable[[str, Report], None], slots: int = 32) -> None:
        self.held: dict[str, TaskSpec] = {}
        self.images: set[str] = set()
        self.most_held = 0
        self.plans = 0
        self.step_free = False
        self.broken = 0
        self.most_rows = self.most_decodes = self.row_bytes = 0
        self.paused = False
        self.ticks: list[int] = []
        self._told = told
        self._slots = slots
        self._calls: dict[str, int] = {}
        self._now_ns = 0
        self._half: dict[int, SendUnetPlan | SendVaePlan] = {}

    def send(self, effect: WorkerEffect) -> None:
        match effect:
            case Admit(worker_id=worker_id, task=task):
                self.held[task.task_id] = task
                self._calls[task.task_id] = 0
                self.most_held = max(self.most_held, len(self.held))
                calls = min(task.num_inference_steps, CALLS_OF_LONG_TASKS)
                self._report(worker_id, TaskReady(task.task_id, calls, 1.0))
            case CancelOnWorker(task_ids=task_ids) | ReleaseSlots(task_ids=task_ids) | ForgetImages(task_ids=task_ids):
                for task_id in task_ids:
                    if effect.worker_id.startswith("unet"):
                        self.held.pop(task_id, None)
                    self.images.discard(task_id)
            case SendUnetPlan() | SendVaePlan():
                self.plans += 1
                if not self.paused:
                    asyncio.get_running_loop().call_soon(self._take, effect)

    def _report(self, worker_id: str, report: Report) -> None:
        asyncio.get_running_loop().call_soon(self._told, worker_id, report)

    def _take(self, effect: SendUnetPlan | SendVaePlan) -> None:
        """Run a plan; the two parts of a tick together, once the other one may have come."""
        tick = effect.plan.tick
        if tick in self._half:
            self._run(tick, [self._half.pop(tick), effect])
        else:
            self._half[tick] = effect
            asyncio.get_running_loop().call_soon(self._alone, tick)

    def _alone(self, tick: int) -> None:
        effect = self._half.pop(tick, None)
        if effect:
            self._run(tick, [effect])

    def _run(self, tick: int, parts: list[SendUnetPlan | SendVaePlan]) -> None:
        self.ticks.append(tick)
        unet = next((part for part in parts if isinstance(part, SendUnetPlan)), None)
        vae = next((part for part in parts if isinstance(part, SendVaePlan)), None)
        stepping = {item.execution.place: item for item in unet.plan.items} if unet else {}
        decoding = {item.execution.place: item for item in vae.plan.items} if vae else {}
        done = UnetTickDone(tick, (), (), ()), VaeTickDone(tick, (), (), ())
        clocks = [self._now_ns, self._now_ns]
        for place in sorted({*stepping, *decoding}):
            done = self._run_item(stepping.get(place), decoding.get(place), clocks, *done)
        self._now_ns = max(clocks) + 1000
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
        rows, skipped, finished = self._step(stepping) if stepping else (0, (), ())
        decodes = decoding.entries if decoding else ()
        threads = [item.execution.threads if item else 0 for item in (stepping, decoding)]
        probe = Probe(rows, len(decodes), Setting(decodes[0].chunks if decodes else 1, *threads))
        ms = two_cores(probe) if rows or decodes else 0.001
        if not self.step_free:
            clocks[:] = [max(clocks)] * 2
        begun = tuple(clocks)
        if stepping:
            clocks[0] += round(ms * 1e6)
            unet = replace(unet, items=(*unet.items, self._timing(begun[0], clocks[0], rows, self.most_rows)))
        if decoding:
            clocks[1] += round(ms * 1e6 * (VAE_SHARE if stepping else 1))
            vae = replace(vae, items=(*vae.items, self._timing(begun[1], clocks[1], len(decodes), self.most_decodes)))
            self.images |= {entry.task_id for entry in decodes}
        return replace(unet, skipped=(*unet.skipped, *skipped), finished=(*unet.finished, *finished)), vae

    def _step(self, item: UnetItem) -> tuple[int, tuple[SkippedEntry, ...], tuple[tuple[str, SlotRef], ...]]:
        """Rows computed, entries that were stale, tasks that are through."""
        rows, skipped = 0, []
        finished: list[tuple[str, SlotRef]] = []
        for entry in item.entries:
            spec = self.held.get(entry.task_id)
            if spec is None or self._calls[entry.task_id] != entry.call:
                skipped.append(SkippedEntry(entry.task_id, SkipReason.UNKNOWN_TASK))
                continue
            rows += spec.rows
            self._calls[entry.task_id] += 1
            if self._calls[entry.task_id] == min(spec.num_inference_steps, CALLS_OF_LONG_TASKS):
                finished.append((entry.task_id, SlotRef("a", len(finished), 1)))
        if rows == self.broken != 0:
            self._report("unet-0", TaskFailed(item.entries[0].task_id, 13, "the UNet call failed"))
        return rows, tuple(skipped), tuple(finished)
