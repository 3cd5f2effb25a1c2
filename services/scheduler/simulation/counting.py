"""A worker that counts instead of computing: its answers to commands, under any driver and clock.

The conditions of a plan's entries stand here alone. A virtual clock, a gRPC service and tests drive it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from synerdiff.plans import (
    DecodedImage,
    DecodeEntry,
    ResidentTask,
    SkippedEntry,
    SkipReason,
    SlotRef,
    TaskFailed,
    TaskReady,
    UnetItem,
    VaeItem,
)
from synerdiff.requests import TaskSpec

_NO_ROOM = 8  # RESOURCE_EXHAUSTED, as a UNet worker answers whose arena is full


@dataclass
class CountedTask:
    """A resident task: a counter and a slot."""

    spec: TaskSpec
    slot: SlotRef
    num_calls: int
    next_call: int = 0

    @property
    def finished(self) -> bool:
        """Whether its last call is done."""
        return self.next_call >= self.num_calls

    @property
    def told(self) -> ResidentTask:
        """Its report to a leader that attaches."""
        return ResidentTask(self.spec.task_id, self.next_call, self.num_calls, self.slot if self.finished else None)


class Stepped(NamedTuple):
    """Results of items. `rows`: of the UNet calls that were made."""

    rows: int
    skipped: tuple[SkippedEntry, ...]
    finished: tuple[tuple[str, SlotRef], ...]


class Decoded(NamedTuple):
    """Results of items: the entries whose decodes ended, and those whose latents were gone."""

    entries: tuple[DecodeEntry, ...]
    skipped: tuple[SkippedEntry, ...]

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Of those whose decodes ended."""
        return tuple(entry.task_id for entry in self.entries)


@dataclass
class CountingUnet:
    """The tasks of a UNet worker with `slots` slots. `arena_id`: of its arena, another one in each of its lives."""

    arena_id: str
    slots: int
    residents: dict[str, CountedTask] = field(default_factory=dict)
    _epoch: int = 0

    def resident_tasks(self) -> list[ResidentTask]:
        """The report to a leader that attaches."""
        return [task.told for task in self.residents.values()]

    def admit(self, spec: TaskSpec, num_calls: int = 0, encode_ms: float = 1.0) -> TaskReady | TaskFailed:
        """Take a task of so many calls (0: one a step) into the lowest free slot; failed where there is none."""
        used = {task.slot.index for task in self.residents.values()}
        index = next((index for index in range(self.slots) if index not in used), None)
        if index is None:
            return TaskFailed(spec.task_id, _NO_ROOM, "arena full")
        self._epoch += 1
        slot = SlotRef(self.arena_id, index, self._epoch)
        task = self.residents[spec.task_id] = CountedTask(spec, slot, num_calls or spec.num_inference_steps)
        return TaskReady(spec.task_id, task.num_calls, encode_ms)

    def let_go(self, task_ids: Iterable[str]) -> None:
        """Free the slots of tasks that were cancelled or released."""
        for task_id in task_ids:
            self.residents.pop(task_id, None)

    def rows(self, item: UnetItem) -> int:
        """UNet rows of an item, of the tasks that are here."""
        present = [(self.residents.get(entry.task_id), entry) for entry in item.entries]
        return sum(task.spec.rows - entry.skip_cfg for task, entry in present if task)

    def step(self, items: Iterable[UnetItem]) -> Stepped:
        """Advance by a call each task that stands where its entry says; the others are skipped."""
        rows, skipped, finished = 0, list[SkippedEntry](), list[tuple[str, SlotRef]]()
        for entry in (entry for item in items for entry in item.entries):
            task = self.residents.get(entry.task_id)
            if task is None:
                skipped.append(SkippedEntry(entry.task_id, SkipReason.UNKNOWN_TASK))
            elif task.finished or task.next_call != entry.call:
                skipped.append(SkippedEntry(entry.task_id, SkipReason.OTHER_CALL, task.next_call))
            else:
                task.next_call += 1
                rows += task.spec.rows - entry.skip_cfg
                if task.finished:
                    finished.append((entry.task_id, task.slot))
        return Stepped(rows, tuple(skipped), tuple(finished))

    def holds(self, entry: DecodeEntry) -> bool:
        """Whether the slot still has the latents that the entry is to decode."""
        task = self.residents.get(entry.task_id)
        return task is not None and task.slot == entry.slot


def decode(items: Iterable[VaeItem], held: Callable[[DecodeEntry], bool]) -> Decoded:
    """End the decodes whose last chunk is in these items and whose latents are `held`; the others are skipped."""
    ends = [entry for item in items for entry in item.entries if entry.end_chunk == entry.chunks]
    stale = tuple(SkippedEntry(entry.task_id, SkipReason.STALE_SLOT) for entry in ends if not held(entry))
    return Decoded(tuple(filter(held, ends)), stale)


def picture(entry: DecodeEntry, data: bytes = b"", decode_ms: float = 0.0) -> DecodedImage:
    """The image file of a decode that has ended."""
    return DecodedImage(
        entry.task_id, entry.image_format, entry.width, entry.height, data, False, decode_ms, encode_ms=0.0
    )
