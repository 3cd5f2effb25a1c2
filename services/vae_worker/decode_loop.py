"""The worker's one line of work: plans in order, items in order, image files encoded beside the next decode."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import grpc

from services.vae_worker import metrics
from services.vae_worker.decoder import BatchDecoder, DecodeFailure, DeviceFailed, Picture
from services.vae_worker.image_files import encode_image
from services.vae_worker.outbox import Outbox
from synerdiff.latents.client import ArenaClient, ArenaUnreachable, Latents
from synerdiff.plans import (
    DecodedImage,
    DecodeEntry,
    ItemTiming,
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

Report = Callable[[VaeTickDone | TaskFailed], None]


@dataclass
class _PlanInHand:
    """A plan on its way, whom to tell, and the tasks cancelled since it came."""

    plan: VaePlan
    report: Report
    cancelled: set[str] = field(default_factory=set)
    dropped: bool = False
    timings: list[ItemTiming] = field(default_factory=list)
    skipped: list[SkippedEntry] = field(default_factory=list)
    decoded: list[str] = field(default_factory=list)

    def skip(self, task_id: str, reason: SkipReason) -> None:
        metrics.SKIPPED_ENTRIES.labels(reason.name.lower()).inc()
        self.skipped.append(SkippedEntry(task_id, reason))

    def fail(self, task_id: str, code: int, message: str) -> None:
        metrics.TASKS_FAILED.labels(str(code)).inc()
        log.warning("task failed", task_id=task_id, code=code, reason=message)
        self.report(TaskFailed(task_id, code, message))


class DecodeLoop:
    """Runs plans one after another. Everything but `run` is called from the event loop and returns at once.

    `device` has one thread, which alone touches the model; `encoders` has the threads that make image files.
    """

    def __init__(
        self, decoder: BatchDecoder, arenas: ArenaClient, outbox: Outbox, device: Executor, encoders: Executor
    ) -> None:
        self._decoder = decoder
        self._arenas = arenas
        self._outbox = outbox
        self._device = device
        self._encoders = encoders
        self._plans: dict[int, _PlanInHand] = {}
        self._accepted = 0
        self._wanted = asyncio.Event()
        self._encoding: set[asyncio.Task[None]] = set()
        self._settled = asyncio.Event()
        self._settled.set()

    async def settled(self) -> None:
        """Wait until no plan is in hand and no image file is being made."""
        await self._settled.wait()

    def submit(self, plan: VaePlan, report: Report) -> None:
        """Take a plan. `report` hears of each task that failed, then of the tick."""
        self._accepted += 1
        self._plans[self._accepted] = _PlanInHand(plan, report)
        self._wanted.set()
        self._note_work()

    def cancel(self, task_ids: Iterable[str]) -> None:
        """Skip these tasks in the plans now in hand, from the next item on, and forget their images."""
        cancelled = set(task_ids)
        for in_hand in self._plans.values():
            in_hand.cancelled |= cancelled
        for encoding in self._encoding:
            if encoding.get_name() in cancelled:
                encoding.cancel()
        self._outbox.forget(cancelled)

    def drop_plans(self) -> None:
        """Run no further item of the plans now in hand, and report nothing of them."""
        for in_hand in self._plans.values():
            in_hand.dropped = True

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            DeviceFailed: nothing can be decoded any more.
        """
        while True:
            while not self._plans:
                self._wanted.clear()
                await self._wanted.wait()
            number, in_hand = next(iter(self._plans.items()))
            try:
                await self._run_plan(in_hand)
            finally:
                del self._plans[number]
                self._note_work()

    async def _run_plan(self, in_hand: _PlanInHand) -> None:
        for item in in_hand.plan.items:
            if in_hand.dropped:
                return
            started_ns = time.time_ns()
            before = len(in_hand.decoded)
            await self._run_item(in_hand, item)
            images = len(in_hand.decoded) - before
            in_hand.timings.append(ItemTiming(started_ns, time.time_ns(), images))
        if not in_hand.dropped:
            done = (tuple(in_hand.timings), tuple(in_hand.skipped), tuple(in_hand.decoded))
            in_hand.report(VaeTickDone(in_hand.plan.tick, *done))

    async def _run_item(self, in_hand: _PlanInHand, item: VaeItem) -> None:
        found = await self._read(in_hand, item)
        if not found:
            return
        try:
            await self._decode(in_hand, found)
        except DeviceFailed:
            raise
        except Exception as error:  # a fault of ours: it must not end the work of others
            log.exception("item failed", task_ids=[entry.task_id for entry, _ in found])
            for entry, _ in found:
                in_hand.fail(entry.task_id, _INTERNAL, f"decode failed: {error}")

    async def _decode(self, in_hand: _PlanInHand, found: Sequence[tuple[DecodeEntry, Latents]]) -> None:
        first = found[0][0]
        batch = [latents for _, latents in found]
        started = time.perf_counter()
        outcomes = await asyncio.get_running_loop().run_in_executor(
            self._device, self._decoder.decode, batch, first.width, first.height
        )
        seconds = time.perf_counter() - started
        metrics.DECODE_SECONDS.observe(seconds)
        metrics.BATCH_IMAGES.observe(len(batch))
        for (entry, _), outcome in zip(found, outcomes, strict=True):
            if isinstance(outcome, DecodeFailure):
                in_hand.fail(entry.task_id, outcome.code, outcome.message)
            elif entry.task_id in in_hand.cancelled:
                in_hand.skip(entry.task_id, SkipReason.UNKNOWN_TASK)
            else:
                in_hand.decoded.append(entry.task_id)
                self._start_encoding(in_hand, entry, outcome, seconds * 1000)

    # ---- latents

    async def _read(self, in_hand: _PlanInHand, item: VaeItem) -> list[tuple[DecodeEntry, Latents]]:
        """The entries that can be decoded, with their latents; the others are skipped."""
        wanted: dict[str, list[DecodeEntry]] = {}
        for entry in item.entries:
            if entry.task_id in in_hand.cancelled:
                in_hand.skip(entry.task_id, SkipReason.UNKNOWN_TASK)
            else:
                wanted.setdefault(entry.arena_address, []).append(entry)
        with metrics.READ_SECONDS.time():
            read = [await self._read_arena(in_hand, *arena) for arena in wanted.items()]
        metrics.ARENAS.clear()  # a transport that is no longer used must not keep its last number
        for transport, arenas in self._arenas.transports().items():
            metrics.ARENAS.labels(transport).set(arenas)
        return [pair for pairs in read for pair in pairs]

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
