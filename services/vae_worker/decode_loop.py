"""The plans of a VAE worker, in order: latents read ahead, items on the device thread, and their outcome."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from services.vae_worker import metrics
from services.vae_worker.decode_item import DecodeItem, FinishedDecode, PlanDecodes
from services.vae_worker.decoder import BatchDecoder, DecodeFailure
from services.vae_worker.images import ImageEncoder
from synerdiff.latents.client import ArenaClient, ArenaUnreachable, Latents
from synerdiff.plans import DecodeEntry, ItemTiming, SkippedEntry, SkipReason, TaskFailed, VaeItem, VaePlan, VaeTickDone
from synerdiff.telemetry import get_logger
from synerdiff.worker.device_thread import DevicePlan, DeviceThread
from synerdiff.worker.fail_stop import FailStop

log = get_logger("decode_loop")

# One item runs on the device; the next one waits there with its latents read, so that nothing comes between the two.
_ITEMS_ON_DEVICE = 2

Report = Callable[[VaeTickDone | TaskFailed], None]


@dataclass(eq=False)
class PlanInHand:
    """A plan on its way, its reports, and the tasks cancelled since it came. `decodes` is the device thread's."""

    plan: VaePlan
    report: Report
    on_device: DevicePlan
    cancelled: set[str] = field(default_factory=set)
    skipped: dict[str, SkippedEntry] = field(default_factory=dict)
    decoded: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    decodes: PlanDecodes = field(init=False)

    def __post_init__(self) -> None:
        self.decodes = PlanDecodes(self.plan.items, self.cancelled)

    def skip(self, task_id: str, reason: SkipReason) -> None:
        """Report a task as skipped: once, for the first reason, and not when its end has been reported already."""
        if task_id not in self.skipped and task_id not in self.failed and task_id not in self.decoded:
            self.skipped[task_id] = SkippedEntry(task_id, reason)

    def fail(self, task_id: str, code: int, message: str) -> None:
        """Report a task that cannot become a picture."""
        self.failed.add(task_id)
        self.report(TaskFailed(task_id, code, message))

    def end(self, timings: tuple[ItemTiming, ...]) -> None:
        """Report the plan."""
        planned = {entry.task_id: None for item in self.plan.items for entry in item.entries}
        for task_id in planned:
            if task_id in self.cancelled:
                self.skip(task_id, SkipReason.UNKNOWN_TASK)
        for task_id in self.decodes.unfinished():
            self.skip(task_id, SkipReason.NOT_READY)
        self.report(VaeTickDone(self.plan.tick, timings, tuple(self.skipped.values()), tuple(self.decoded)))


class DecodeLoop:
    """Runs plans one after another. Everything but `run` is called from the event loop and returns at once."""

    def __init__(
        self, decoder: BatchDecoder, device: DeviceThread, arenas: ArenaClient, encoder: ImageEncoder, failure: FailStop
    ) -> None:
        self._decoder = decoder
        self._device = device
        self._arenas = arenas
        self._encoder = encoder
        self._failure = failure
        self._plans: set[PlanInHand] = set()
        self._submitted: asyncio.Queue[PlanInHand] = asyncio.Queue()
        self._room = asyncio.Semaphore(_ITEMS_ON_DEVICE)
        self._settled = asyncio.Event()
        self._note_plans()

    @property
    def plans_in_hand(self) -> int:
        """Plans taken and not yet reported."""
        return len(self._plans)

    async def settled(self) -> None:
        """Wait until no plan is in hand."""
        await self._settled.wait()

    def submit(self, plan: VaePlan, report: Report) -> None:
        """Take a plan. `report` gets each task that failed, then the tick, unless the plan is abandoned."""
        in_hand = PlanInHand(plan, report, self._device.begin_plan(plan.tick))
        self._plans.add(in_hand)
        self._submitted.put_nowait(in_hand)
        self._note_plans()

    def cancel(self, task_ids: Iterable[str]) -> None:
        """Skip these tasks in the plans now in hand, from the next item on, and forget their images."""
        cancelled = set(task_ids)
        for in_hand in self._plans:
            in_hand.cancelled |= cancelled
        self._encoder.cancel(cancelled)

    async def run(self) -> None:
        """Give the device thread one item after another, latents read while the one before runs; until cancelled."""
        while True:
            in_hand = await self._submitted.get()
            for item in in_hand.plan.items:
                await self._room.acquire()
                self._device.submit_item(in_hand.on_device, await self._read(in_hand, item))
            report = partial(self._failure.on_loop, self._end_plan, in_hand)
            self._device.submit(partial(self._device.settle_plan, in_hand.on_device, report))

    # ---- outcomes

    def _take_up(self, in_hand: PlanInHand, item: DecodeItem) -> None:
        self._room.release()
        for finished in item.finished:
            self._take_up_decode(in_hand, finished)
        for task_id in item.lost:
            in_hand.skip(task_id, SkipReason.NOT_READY)

    def _take_up_decode(self, in_hand: PlanInHand, finished: FinishedDecode) -> None:
        task_id = finished.entry.task_id
        if isinstance(finished.outcome, DecodeFailure):
            in_hand.fail(task_id, finished.outcome.code, finished.outcome.message)
        elif task_id not in in_hand.cancelled:
            in_hand.decoded.append(task_id)
            self._encoder.submit(finished.entry, finished.outcome, finished.decode_ms, in_hand.fail)

    def _end_plan(self, in_hand: PlanInHand, timings: tuple[ItemTiming, ...]) -> None:
        self._plans.discard(in_hand)
        self._note_plans()
        if not in_hand.on_device.abandoned:
            in_hand.end(timings)

    def _note_plans(self) -> None:
        metrics.PLANS_IN_HAND.set(len(self._plans))
        if self._plans:
            self._settled.clear()
        else:
            self._settled.set()

    # ---- latents

    async def _read(self, in_hand: PlanInHand, item: VaeItem) -> DecodeItem:
        """The item's entries that can be decoded, with latents where they begin; the others are skipped."""
        wanted: dict[str, list[DecodeEntry]] = {}
        resumed = []
        for entry in item.entries:
            if entry.first_chunk > 0:
                resumed.append(entry)
            elif entry.task_id not in in_hand.cancelled and not in_hand.on_device.abandoned:
                wanted.setdefault(entry.arena_address, []).append(entry)
        with metrics.READ_SECONDS.time():
            read = [await self._read_arena(in_hand, *arena) for arena in wanted.items()]
        metrics.ARENAS.clear()  # a transport that is no longer used must not keep its last number
        for transport, arenas in self._arenas.transports().items():
            metrics.ARENAS.labels(transport).set(arenas)
        fresh = tuple(pair for pairs in read for pair in pairs)
        ended = partial(self._failure.on_loop, self._take_up, in_hand)
        return DecodeItem(item.execution, fresh, tuple(resumed), self._decoder, in_hand.decodes, ended)

    async def _read_arena(
        self, in_hand: PlanInHand, address: str, entries: Sequence[DecodeEntry]
    ) -> list[tuple[DecodeEntry, Latents]]:
        try:
            read = await self._arenas.read(address, [entry.slot for entry in entries])
        except ArenaUnreachable as error:
            log.warning("latents out of reach", task_ids=[entry.task_id for entry in entries], reason=str(error))
            for entry in entries:
                in_hand.skip(entry.task_id, SkipReason.ARENA_UNREACHABLE)
            return []
        for entry, latents in zip(entries, read, strict=True):
            if latents is None:
                in_hand.skip(entry.task_id, SkipReason.STALE_SLOT)
        return [(entry, latents) for entry, latents in zip(entries, read, strict=True) if latents is not None]
