"""One item of a plan, as the device thread decodes it: some chunks of its decodes, or all."""

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import grpc

from services.vae_worker import metrics
from services.vae_worker.decoder import BatchDecoder, DecodeFailure, DecodeInProgress, Picture
from synerdiff.latents.client import Latents
from synerdiff.models.device import Fault, fault_of
from synerdiff.plans import DecodeEntry, Execution, VaeItem
from synerdiff.telemetry import get_logger
from synerdiff.worker.device_thread import Computed, DeviceItem

log = get_logger("decode_item")

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

ChunkRanges = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class FinishedDecode:
    """An entry whose decode ended, with a picture or a failure. `decode_ms`: the time of its batch, over all items."""

    entry: DecodeEntry
    outcome: Picture | DecodeFailure
    decode_ms: float


@dataclass(eq=False)
class _Batch:
    """Images decoded together, over several items where they are cut into chunks. `latents`: until it begins."""

    entries: tuple[DecodeEntry, ...]
    latents: tuple[Latents, ...]
    progress: DecodeInProgress | None = None
    chunks_done: int = 0
    seconds: float = 0.0


class PlanDecodes:
    """The decodes of one plan. Only the device thread touches `batches` until the plan's last item has ended.

    `ranges`: which chunks of a task are done in which of the plan's items. `cancelled` may change while they run.
    """

    def __init__(self, items: Sequence[VaeItem], cancelled: Set[str]) -> None:
        self.ranges: dict[str, ChunkRanges] = {}
        self.cancelled = cancelled
        self.batches: list[_Batch] = []
        for number, item in enumerate(items):
            for entry in item.entries:
                chunks = (number, entry.first_chunk, entry.end_chunk)
                self.ranges[entry.task_id] = (*self.ranges.get(entry.task_id, ()), chunks)

    def wanted(self, entry: DecodeEntry) -> bool:
        """Whether the entry's task has not been cancelled."""
        return entry.task_id not in self.cancelled

    def unfinished(self) -> list[str]:
        """Tasks that were begun and not finished."""
        return [entry.task_id for batch in self.batches for entry in batch.entries]


class DecodeItem(DeviceItem):
    """An item of a plan. Its `fresh` entries begin with their latents, its `resumed` ones go on.

    `ended` gets it once it is over, on a thread of the device's: with its `finished` decodes, and the tasks that are
    `lost` since their earlier chunks were not done.
    """

    def __init__(
        self,
        execution: Execution,
        fresh: tuple[tuple[DecodeEntry, Latents], ...],
        resumed: tuple[DecodeEntry, ...],
        decoder: BatchDecoder,
        decodes: PlanDecodes,
        ended: Callable[["DecodeItem"], None],
    ) -> None:
        self.execution = execution
        self.exact = any(entry.exact for entry in (*(entry for entry, _ in fresh), *resumed))
        self._fresh = fresh
        self._resumed = resumed
        self._decoder = decoder
        self._decodes = decodes
        self._ended = ended
        self.finished: list[FinishedDecode] = []
        self.lost: list[str] = []

    def prepare(self) -> None:
        """Nothing: latents were read before."""

    def compute(self) -> Computed:
        """Decode. Raises DeviceFailed: nothing can be decoded any more."""
        batches = self._decodes.batches
        # A batch goes on for those of its tasks that are still wanted; without any, its memory is freed here.
        batches[:] = [batch for batch in batches if any(map(self._decodes.wanted, batch.entries))]
        images = halved = 0
        for batch, end_chunk in [*self._going_on().items(), *self._begun()]:
            images += len(batch.entries)
            self.finished += self._advance(batch, end_chunk)
            too_many = batch.progress.take_halved() if batch.progress else 0
            halved = min(filter(None, (halved, too_many)), default=0)
        self._fresh = ()
        return Computed(images, halved)

    def over(self, abandoned: bool) -> None:
        """Hand the outcome over. Abandoned decodes free their memory."""
        if abandoned:
            self._decodes.batches.clear()
        self._ended(self)

    def _advance(self, batch: _Batch, end_chunk: int) -> list[FinishedDecode]:
        """Work on a batch up to a chunk. Its decodes, once all of them are done."""
        started = time.perf_counter()
        try:
            progress = batch.progress or self._begin(batch)
            done = progress.advance(end_chunk / batch.entries[0].chunks)
            outcomes = progress.outcomes() if done else []
        except Exception as error:  # a defect of this code: it must not end the decodes of others
            if fault_of(error) is Fault.FATAL:
                raise
            log.exception("item failed", task_ids=[entry.task_id for entry in batch.entries])
            self._decodes.batches.remove(batch)
            failure = DecodeFailure(_INTERNAL, f"decode failed: {error}")
            return [FinishedDecode(entry, failure, 0.0) for entry in batch.entries]
        batch.chunks_done = end_chunk
        batch.seconds += time.perf_counter() - started
        if not done:
            return []
        self._decodes.batches.remove(batch)
        metrics.DECODE_SECONDS.observe(batch.seconds)
        metrics.BATCH_IMAGES.observe(len(batch.entries))
        ms = batch.seconds * 1000
        return [FinishedDecode(entry, outcome, ms) for entry, outcome in zip(batch.entries, outcomes, strict=True)]

    def _begin(self, batch: _Batch) -> DecodeInProgress:
        first = batch.entries[0]
        batch.progress = self._decoder.begin(batch.latents, first.width, first.height, first.chunks, first.exact)
        batch.latents = ()
        return batch.progress

    def _going_on(self) -> dict[_Batch, int]:
        """The batches that go on, with the chunk they go up to."""
        under_way = {entry.task_id: batch for batch in self._decodes.batches for entry in batch.entries}
        going_on: dict[_Batch, int] = {}
        for entry in filter(self._decodes.wanted, self._resumed):
            batch = under_way.get(entry.task_id)
            if batch is not None and batch.chunks_done == entry.first_chunk:
                going_on[batch] = entry.end_chunk
            else:
                self.lost.append(entry.task_id)
        return going_on

    def _begun(self) -> list[tuple[_Batch, int]]:
        """New batches of one size and equal chunks, with the chunk each goes up to; exact entries are a batch each."""
        groups: dict[tuple[int, int, int, ChunkRanges, str], list[tuple[DecodeEntry, Latents]]] = {}
        for entry, latents in self._fresh:
            if self._decodes.wanted(entry):
                alone = entry.task_id if entry.exact else ""
                key = (entry.width, entry.height, entry.chunks, self._decodes.ranges[entry.task_id], alone)
                groups.setdefault(key, []).append((entry, latents))
        begun = []
        for group in groups.values():
            entries, latents_of_all = zip(*group, strict=True)
            batch = _Batch(tuple(entries), tuple(latents_of_all))
            self._decodes.batches.append(batch)
            begun.append((batch, batch.entries[0].end_chunk))
        return begun
