"""The device thread's part of an item: wait for the UNet worker, take the item's threads, decode some chunks or all."""

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

import grpc

from services.vae_worker import metrics
from services.vae_worker.decoder import BatchDecoder, DecodeFailure, DecodeInProgress, Picture
from synerdiff.latents.client import Latents
from synerdiff.models.device import Fault, Mark, Timeline, fault_of
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer
from synerdiff.plans import DecodeEntry, Execution, ItemTiming, VaeItem
from synerdiff.telemetry import get_logger

log = get_logger("item_runner")

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

Course = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class ItemWork:
    """What the device thread is given of an item: `fresh` entries begin with their latents, `resumed` ones go on.

    `last`: its plan ends with it.
    """

    tick: int
    execution: Execution
    fresh: tuple[tuple[DecodeEntry, Latents], ...]
    resumed: tuple[DecodeEntry, ...]
    last: bool = True


@dataclass(frozen=True)
class FinishedDecode:
    """An entry that is decoded, well or not. `decode_ms`: what its batch took, over all of its items."""

    entry: DecodeEntry
    outcome: Picture | DecodeFailure
    decode_ms: float


@dataclass(frozen=True)
class Run:
    """An item that was given to the device, from `start` to `end`. `halved`, `peak_bytes`: see ItemTiming."""

    timeline: Timeline
    start: Mark
    end: Mark
    images: int
    waited_ms: float
    halved: int
    peak_bytes: int

    def timing(self) -> ItemTiming:
        """As it ran. Waits for its end, which is over once the last item of its plan has run."""
        start_ns, end_ns = self.timeline.unix_ns(self.start), self.timeline.unix_ns(self.end)
        return ItemTiming(start_ns, end_ns, self.images, self.waited_ms, self.halved, self.peak_bytes)


@dataclass(frozen=True)
class ItemOutcome:
    """What became of an item. `lost`: tasks that could not go on, since their earlier chunks were not done."""

    run: Run
    finished: tuple[FinishedDecode, ...]
    lost: tuple[str, ...]


@dataclass(eq=False)
class _Batch:
    """Images decoded together, over several items where they are cut into chunks. `latents`: until it begins."""

    entries: tuple[DecodeEntry, ...]
    latents: tuple[Latents, ...]
    progress: DecodeInProgress | None = None
    chunks_done: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class PlanDecodes:
    """The decodes of one plan. Only the device thread touches `batches` and `timeline` until its last item has ended.

    `courses`: which chunks of a task are done in which of the plan's items. `cancelled` and what `abandoned` says may
    change while they run.
    """

    courses: dict[str, Course]
    cancelled: Set[str]
    abandoned: Callable[[], bool]
    batches: list[_Batch] = field(default_factory=list)
    timeline: Timeline | None = None

    @classmethod
    def of(cls, items: Sequence[VaeItem], cancelled: Set[str], abandoned: Callable[[], bool]) -> "PlanDecodes":
        """Those of a plan with `items`."""
        courses: dict[str, Course] = {}
        for number, item in enumerate(items):
            for entry in item.entries:
                chunks = (number, entry.first_chunk, entry.end_chunk)
                courses[entry.task_id] = (*courses.get(entry.task_id, ()), chunks)
        return cls(courses, cancelled, abandoned)

    def wanted(self, entry: DecodeEntry) -> bool:
        """Whether the entry's task has not been cancelled."""
        return entry.task_id not in self.cancelled

    def unfinished(self) -> list[str]:
        """Tasks that were begun and not brought to their end."""
        return [entry.task_id for batch in self.batches for entry in batch.entries]


class ItemRunner:
    """Runs items on the device thread, which alone calls it; `close` is for when that thread has ended."""

    def __init__(self, decoder: BatchDecoder, pacer: Pacer, share: ThreadShare) -> None:
        self._decoder = decoder
        self._pacer = pacer
        self._share = share

    def run(self, work: ItemWork, decodes: PlanDecodes) -> ItemOutcome | None:
        """Run an item in its turn, or nothing of it (None) when its plan has been abandoned.

        Raises:
            DeviceFailed: nothing can be decoded any more.
        """
        waited_ms = self._pacer.before(work.execution, decodes.abandoned)
        if decodes.abandoned():
            decodes.batches.clear()
            return None
        entries = (*(entry for entry, _ in work.fresh), *work.resumed)
        self._share.take(work.execution.threads, exact=any(entry.exact for entry in entries))
        timeline = decodes.timeline = decodes.timeline or self._begin_plan()
        start = timeline.mark()
        # A batch goes on for those of its tasks that are still wanted; without any, its memory is freed here.
        decodes.batches[:] = [batch for batch in decodes.batches if any(map(decodes.wanted, batch.entries))]
        resumed, lost = _resumed(work, decodes)
        images, halved, finished = 0, 0, list[FinishedDecode]()
        for end_chunk, batch in [*resumed, *_begun(work, decodes)]:
            images += len(batch.entries)
            finished += self._advance(batch, end_chunk, decodes)
            too_many = batch.progress.take_halved() if batch.progress else 0
            halved = min(filter(None, (halved, too_many)), default=0)
        end = timeline.mark()
        if work.execution.pace or work.last:
            timeline.wait(end)  # the UNet worker, or the leader, is told next that it is over
        self._pacer.after(work.execution, work.tick)
        run = Run(timeline, start, end, images, waited_ms, halved, self._decoder.compute.peak_bytes())
        return ItemOutcome(run, tuple(finished), lost)

    def _begin_plan(self) -> Timeline:
        self._decoder.compute.restart_peak()
        return self._decoder.compute.timeline()

    def warm_up(self) -> None:
        """Make the first decode. Raises DeviceFailed."""
        self._share.take(0)
        self._decoder.warm_up()

    def close(self) -> None:
        """Let go of the pace with UNet workers."""
        self._pacer.close()

    def _advance(self, batch: _Batch, end_chunk: int, decodes: PlanDecodes) -> list[FinishedDecode]:
        """Work on a batch up to a chunk. Its decodes, once all of them are done."""
        started = time.perf_counter()
        try:
            progress = batch.progress or self._begin(batch)
            done = progress.advance(end_chunk / batch.entries[0].chunks)
            outcomes = progress.outcomes() if done else []
        except Exception as error:  # a fault of ours: it must not end the work of others
            if fault_of(error) is Fault.FATAL:
                raise
            log.exception("item failed", task_ids=[entry.task_id for entry in batch.entries])
            decodes.batches.remove(batch)
            failure = DecodeFailure(_INTERNAL, f"decode failed: {error}")
            return [FinishedDecode(entry, failure, 0.0) for entry in batch.entries]
        batch.chunks_done = end_chunk
        batch.seconds += time.perf_counter() - started
        if not done:
            return []
        decodes.batches.remove(batch)
        metrics.DECODE_SECONDS.observe(batch.seconds)
        metrics.BATCH_IMAGES.observe(len(batch.entries))
        ms = batch.seconds * 1000
        return [FinishedDecode(entry, outcome, ms) for entry, outcome in zip(batch.entries, outcomes, strict=True)]

    def _begin(self, batch: _Batch) -> DecodeInProgress:
        first = batch.entries[0]
        batch.progress = self._decoder.begin(batch.latents, first.width, first.height, first.chunks, first.exact)
        batch.latents = ()
        return batch.progress


def _resumed(work: ItemWork, decodes: PlanDecodes) -> tuple[list[tuple[int, _Batch]], tuple[str, ...]]:
    """The batches that go on, with the chunk they go up to, and the tasks of entries that none of them continues."""
    under_way = {entry.task_id: batch for batch in decodes.batches for entry in batch.entries}
    going_on: dict[_Batch, int] = {}
    lost = []
    for entry in filter(decodes.wanted, work.resumed):
        batch = under_way.get(entry.task_id)
        if batch is not None and batch.chunks_done == entry.first_chunk:
            going_on[batch] = entry.end_chunk
        else:
            lost.append(entry.task_id)
    return [(end_chunk, batch) for batch, end_chunk in going_on.items()], tuple(lost)


def _begun(work: ItemWork, decodes: PlanDecodes) -> list[tuple[int, _Batch]]:
    """New batches, each of entries of one size and one course through the plan, with the chunk they go up to.

    Exact entries are a batch each.
    """
    groups: dict[tuple[int, int, int, Course, str], list[tuple[DecodeEntry, Latents]]] = {}
    for entry, latents in work.fresh:
        if decodes.wanted(entry):
            alone = entry.task_id if entry.exact else ""
            key = (entry.width, entry.height, entry.chunks, decodes.courses[entry.task_id], alone)
            groups.setdefault(key, []).append((entry, latents))
    begun = []
    for group in groups.values():
        entries, latents_of_all = zip(*group, strict=True)
        batch = _Batch(tuple(entries), tuple(latents_of_all))
        decodes.batches.append(batch)
        begun.append((batch.entries[0].end_chunk, batch))
    return begun
