"""The worker's one line of work: plans in order, items in order, image files encoded beside the next decode."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import grpc

from services.vae_worker import metrics
from services.vae_worker.decoder import DecodeFailure, Picture
from services.vae_worker.image_files import encode_image
from services.vae_worker.item_runner import FinishedDecode, ItemOutcome, ItemRunner, ItemWork, PlanDecodes, Run
from services.vae_worker.outbox import Outbox
from synerdiff.cancellation import cancel_and_wait
from synerdiff.latents.client import ArenaClient, ArenaUnreachable, Latents
from synerdiff.plans import (
    DecodedImage,
    DecodeEntry,
    SkippedEntry,
    SkipReason,
    TaskFailed,
    VaeItem,
    VaePlan,
    VaeTickDone,
)
from synerdiff.telemetry import get_logger

log = get_logger("decode_loop")

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

# One item runs on the device; the next one waits there with its latents read, so that nothing comes between the two.
_ITEMS_ON_DEVICE = 2

Report = Callable[[VaeTickDone | TaskFailed], None]


@dataclass(eq=False)
class _PlanInHand:
    """A plan on its way, whom to tell, and the tasks cancelled since it came. `decodes` is the device thread's."""

    plan: VaePlan
    report: Report
    cancelled: set[str] = field(default_factory=set)
    dropped: bool = False
    runs: list[Run] = field(default_factory=list)
    skipped: dict[str, SkippedEntry] = field(default_factory=dict)
    decoded: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    decodes: PlanDecodes = field(init=False)

    def __post_init__(self) -> None:
        self.decodes = PlanDecodes.of(self.plan.items, self.cancelled, lambda: self.dropped)

    def skip(self, task_id: str, reason: SkipReason) -> None:
        """Report a task as skipped: once, for the first reason, and not when its end has been reported already."""
        if task_id in self.skipped or task_id in self.failed or task_id in self.decoded:
            return
        metrics.SKIPPED_ENTRIES.labels(reason.name.lower()).inc()
        self.skipped[task_id] = SkippedEntry(task_id, reason)

    def fail(self, task_id: str, code: int, message: str) -> None:
        self.failed.add(task_id)
        metrics.TASKS_FAILED.labels(str(code)).inc()
        log.warning("task failed", task_id=task_id, code=code, reason=message)
        self.report(TaskFailed(task_id, code, message))

    def done(self) -> VaeTickDone:
        return VaeTickDone(
            self.plan.tick, tuple(run.timing() for run in self.runs), tuple(self.skipped.values()), tuple(self.decoded)
        )


@dataclass(frozen=True)
class _OnDevice:
    """An item given to the device thread; without an outcome to come, the end of its plan."""

    in_hand: _PlanInHand
    outcome: asyncio.Future[ItemOutcome | None] | None


class DecodeLoop:
    """Runs plans one after another. Everything but `run` is called from the event loop and returns at once.

    `device` has one thread, on which alone `runner` runs; `encoders` has the threads that make image files.
    """

    def __init__(
        self, runner: ItemRunner, arenas: ArenaClient, outbox: Outbox, device: Executor, encoders: Executor
    ) -> None:
        self._runner = runner
        self._arenas = arenas
        self._outbox = outbox
        self._device = device
        self._encoders = encoders
        self._plans: set[_PlanInHand] = set()
        self._submitted: asyncio.Queue[_PlanInHand] = asyncio.Queue()
        self._on_device: asyncio.Queue[_OnDevice] = asyncio.Queue()
        self._room = asyncio.Semaphore(_ITEMS_ON_DEVICE)
        self._encoding: set[asyncio.Task[None]] = set()
        self._settled = asyncio.Event()
        self._settled.set()

    async def settled(self) -> None:
        """Wait until no plan is in hand and no image file is being made."""
        await self._settled.wait()

    def submit(self, plan: VaePlan, report: Report) -> None:
        """Take a plan. `report` hears of each task that failed, then of the tick."""
        in_hand = _PlanInHand(plan, report)
        self._plans.add(in_hand)
        self._submitted.put_nowait(in_hand)
        self._note_work()

    def cancel(self, task_ids: Iterable[str]) -> None:
        """Skip these tasks in the plans now in hand, from the next item on, and forget their images."""
        cancelled = set(task_ids)
        for in_hand in self._plans:
            in_hand.cancelled |= cancelled
        for encoding in self._encoding:
            if encoding.get_name() in cancelled:
                encoding.cancel()
        self._outbox.forget(cancelled)

    def drop_plans(self) -> None:
        """Run no further item of the plans now in hand, and report nothing of them."""
        for in_hand in self._plans:
            in_hand.dropped = True

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            DeviceFailed: nothing can be decoded any more.
        """
        working = [asyncio.create_task(self._feed()), asyncio.create_task(self._collect())]
        try:
            ended, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in working:
                await cancel_and_wait(task)

    async def _feed(self) -> None:
        """Give the device thread one item after another, its latents read while the one before runs."""
        while True:
            in_hand = await self._submitted.get()
            for place, item in enumerate(in_hand.plan.items, start=1):
                await self._room.acquire()
                work = await self._read(in_hand, item, last=place == len(in_hand.plan.items))
                outcome = asyncio.get_running_loop().run_in_executor(
                    self._device, self._runner.run, work, in_hand.decodes
                )
                self._on_device.put_nowait(_OnDevice(in_hand, outcome))
            self._on_device.put_nowait(_OnDevice(in_hand, None))

    async def _collect(self) -> None:
        """Take up what the device thread has done, in its order."""
        while True:
            handed = await self._on_device.get()
            if handed.outcome is None:
                self._end_plan(handed.in_hand)
                continue
            outcome = await handed.outcome
            self._room.release()
            if outcome is not None:
                self._take_up(handed.in_hand, outcome)

    def _take_up(self, in_hand: _PlanInHand, outcome: ItemOutcome) -> None:
        in_hand.runs.append(outcome.run)
        metrics.WAIT_SECONDS.observe(outcome.run.waited_ms / 1000)
        for finished in outcome.finished:
            self._take_up_decode(in_hand, finished)
        for task_id in outcome.lost:
            in_hand.skip(task_id, SkipReason.NOT_READY)

    def _take_up_decode(self, in_hand: _PlanInHand, finished: FinishedDecode) -> None:
        task_id = finished.entry.task_id
        if isinstance(finished.outcome, DecodeFailure):
            in_hand.fail(task_id, finished.outcome.code, finished.outcome.message)
        elif task_id not in in_hand.cancelled:
            in_hand.decoded.append(task_id)
            self._start_encoding(in_hand, finished.entry, finished.outcome, finished.decode_ms)

    def _end_plan(self, in_hand: _PlanInHand) -> None:
        self._plans.discard(in_hand)
        self._note_work()
        if in_hand.dropped:
            return
        planned = {entry.task_id: None for item in in_hand.plan.items for entry in item.entries}
        for task_id in planned:
            if task_id in in_hand.cancelled:
                in_hand.skip(task_id, SkipReason.UNKNOWN_TASK)
        for task_id in in_hand.decodes.unfinished():
            in_hand.skip(task_id, SkipReason.NOT_READY)
        in_hand.report(in_hand.done())

    # ---- latents

    async def _read(self, in_hand: _PlanInHand, item: VaeItem, last: bool) -> ItemWork:
        """The item's entries that can be decoded, with latents where they begin; the others are skipped."""
        wanted: dict[str, list[DecodeEntry]] = {}
        resumed = []
        for entry in item.entries:
            if entry.first_chunk > 0:
                resumed.append(entry)
            elif entry.task_id not in in_hand.cancelled and not in_hand.dropped:
                wanted.setdefault(entry.arena_address, []).append(entry)
        with metrics.READ_SECONDS.time():
            read = [await self._read_arena(in_hand, *arena) for arena in wanted.items()]
        metrics.ARENAS.clear()  # a transport that is no longer used must not keep its last number
        for transport, arenas in self._arenas.transports().items():
            metrics.ARENAS.labels(transport).set(arenas)
        fresh = tuple(pair for pairs in read for pair in pairs)
        return ItemWork(in_hand.plan.tick, item.execution, fresh, tuple(resumed), last)

    async def _read_arena(
        self, in_hand: _PlanInHand, address: str, entries: Sequence[DecodeEntry]
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

    # ---- image files

    def _start_encoding(self, in_hand: _PlanInHand, entry: DecodeEntry, picture: Picture, decode_ms: float) -> None:
        encoding = asyncio.create_task(self._encode(in_hand, entry, picture, decode_ms), name=entry.task_id)
        self._encoding.add(encoding)
        encoding.add_done_callback(self._encoded)

    def _encoded(self, encoding: asyncio.Task[None]) -> None:
        self._encoding.discard(encoding)
        self._note_work()

    async def _encode(self, in_hand: _PlanInHand, entry: DecodeEntry, picture: Picture, decode_ms: float) -> None:
        started = time.perf_counter()
        try:
            data = await asyncio.get_running_loop().run_in_executor(
                self._encoders, encode_image, picture.pixels, entry.image_format, entry.parameters_json
            )
        except Exception as error:  # the file of one picture must not end the work of others
            in_hand.fail(entry.task_id, _INTERNAL, f"image file: {error}")
            return
        seconds = time.perf_counter() - started
        image_format = entry.image_format.name.lower()
        metrics.ENCODE_SECONDS.labels(image_format).observe(seconds)
        metrics.IMAGES.labels(image_format).inc()
        metrics.FLAGGED.inc(picture.flagged)
        self._outbox.put(
            DecodedImage(
                task_id=entry.task_id,
                format=entry.image_format,
                width=entry.width,
                height=entry.height,
                data=data,
                flagged=picture.flagged,
                decode_ms=decode_ms,
                encode_ms=seconds * 1000,
            )
        )

    def _note_work(self) -> None:
        metrics.PLANS_IN_HAND.set(len(self._plans))
        if self._plans or self._encoding:
            self._settled.clear()
        else:
            self._settled.set()
