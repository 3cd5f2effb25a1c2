"""Parts of ticks: as they were planned and as they ran. The last that ran are kept in a bounded ring. Pure."""

from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from services.scheduler.planner.planned_round import RoundReason
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.plans import ItemTiming, UnetTickDone, VaeTickDone
from synerdiff.profiles import Setting

KEPT_TICKS = 4096
# Reports of a tick come within a tick or two of each other; an item whose other half is later than this is lost.
KEPT_HALVES = 512

T = TypeVar("T")


@dataclass(frozen=True)
class PartItem:
    """An item of a worker's part of a tick as it was planned, for reports, traces and corrections of the profile.

    `rows` and `decodes` are of the whole item, in either worker's part; `decodes` may be a fraction.
    `tasks` are those that step. `key`: of all that is in it, None where its two sides differ. `reason`: see `Item`.
    """

    place: int
    rows: int
    skips: int
    decodes: float
    chunks: int
    setting: Setting
    predicted_ms: float
    tasks: int = 0
    key: BatchKey | None = None
    reason: RoundReason | None = None


@dataclass(frozen=True)
class PlannedPart:
    """One worker's part of a tick: the tasks it names, and the items it has a part in, in order. `in_step`: its items
    wait for those of the domain's other worker. `why`: see `TickPlan`."""

    task_ids: tuple[str, ...]
    items: tuple[PartItem, ...]
    threshold: float = 0.0
    key: BatchKey | None = None
    in_step: bool = False
    why: str = ""


@dataclass(frozen=True)
class TickRecord:
    """One worker's part of a tick as it ran. `kind` is "unet" or "vae".

    `planned`: its plan, None where this leader made none. `stale`: entries that no longer fitted.
    `waiting` and `decodes`: the leader's tasks without a worker, and those being decoded or ready to be, when the
    report came.
    """

    domain: str
    worker_id: str
    kind: str
    tick: int
    items: tuple[ItemTiming, ...]
    planned: PlannedPart | None = None
    stale: int = 0
    waiting: int = 0
    decodes: int = 0

    @classmethod
    def of(
        cls,
        worker: tuple[str, str, str],
        done: UnetTickDone | VaeTickDone,
        planned: PlannedPart | None = None,
        queues: tuple[int, int] = (0, 0),
    ) -> "TickRecord":
        """A report of `worker` (domain, id, kind), with its plan and the lengths of both queues."""
        return cls(*worker, done.tick, done.items, planned, len(done.skipped), *queues)


class Ring(Generic[T]):
    """The last values added. `added`: the number of all that ever were."""

    def __init__(self, kept: int = KEPT_TICKS) -> None:
        self.added = 0
        self._kept: deque[T] = deque(maxlen=kept)

    def add(self, value: T) -> None:
        """Keep a value."""
        self._kept.append(value)
        self.added += 1

    def since(self, added: int) -> list[T]:
        """The kept values after the first `added` of all, in order."""
        new = min(self.added - added, len(self._kept))
        return list(islice(self._kept, len(self._kept) - new, None))


class TickLog(Ring[TickRecord]):
    """The last ticks of all domains."""

    def records(self, domain: str = "") -> list[TickRecord]:
        """The kept records of `domain`, or of all when empty, in order of arrival."""
        return [record for record in self._kept if domain in ("", record.domain)]


@dataclass(frozen=True)
class MeasuredItem:
    """One item of a tick with each side's own times; None for a side it does not have.

    `intact`: nothing that it named was stale and memory sufficed, so it ran at once and as planned.
    `in_step`: it began when the item before it had ended on both workers; only then does its time compare
    with a profile's.
    """

    domain: str
    tick: int
    planned: PartItem
    unet: ItemTiming | None
    vae: ItemTiming | None
    intact: bool
    in_step: bool

    @property
    def kind(self) -> str:
        """Its sides: "unet" or "vae" alone, or one "beside" the other."""
        return "beside" if self.unet and self.vae else "unet" if self.unet else "vae"

    @property
    def sides(self) -> tuple[ItemTiming, ...]:
        """The sides it has."""
        return tuple(side for side in (self.unet, self.vae) if side)

    @property
    def start_unix_ns(self) -> int:
        """When its first side began."""
        return min(side.start_unix_ns for side in self.sides)

    @property
    def end_unix_ns(self) -> int:
        """When its last side ended."""
        return max(side.end_unix_ns for side in self.sides)

    @property
    def ms(self) -> float:
        """From the start of its first side to the end of its last."""
        return (self.end_unix_ns - self.start_unix_ns) / 1e6

    @property
    def waited_ms(self) -> float:
        """The longer of its sides' waits for the other worker before they began."""
        return max(side.waited_ms for side in self.sides)

    @property
    def ratio(self) -> float | None:
        """Measured over predicted time; None where the two do not compare, or no time was predicted."""
        if not (self.intact and self.in_step and self.planned.predicted_ms > 0 and self.ms > 0):
            return None
        return self.ms / self.planned.predicted_ms


class Pairing:
    """Joins the parts of a tick. An item of one side is whole at once; of the others the first half is kept a while."""

    def __init__(self, kept: int = KEPT_HALVES) -> None:
        self._kept = kept
        self._halves: OrderedDict[tuple[str, int, int, str], tuple[ItemTiming, bool]] = OrderedDict()

    def add(self, record: TickRecord) -> list[MeasuredItem]:
        """The items that this part makes whole, in order. A part that does not match its plan makes none."""
        planned = record.planned
        if planned is None or len(planned.items) != len(record.items):
            return []
        whole = []
        for item, timing in zip(planned.items, record.items, strict=True):
            as_planned = record.kind == "vae" or timing.rows == item.rows
            intact = not record.stale and not timing.halved and as_planned
            measured = self._join(record, item, timing, intact)
            if measured:
                whole.append(measured)
        return whole

    def _join(self, record: TickRecord, item: PartItem, timing: ItemTiming, intact: bool) -> MeasuredItem | None:
        assert record.planned is not None
        of_unet, in_step = record.kind == "unet", record.planned.in_step
        if item.rows and item.decodes:
            other = self._halves.pop((record.domain, record.tick, item.place, "vae" if of_unet else "unet"), None)
            if other is None:
                self._keep((record.domain, record.tick, item.place, record.kind), timing, intact)
                return None
            sides = (timing, other[0]) if of_unet else (other[0], timing)
            intact = intact and other[1]
            return MeasuredItem(record.domain, record.tick, item, *sides, intact, in_step)
        unet, vae = (timing, None) if of_unet else (None, timing)
        return MeasuredItem(record.domain, record.tick, item, unet, vae, intact, in_step)

    def _keep(self, place: tuple[str, int, int, str], timing: ItemTiming, intact: bool) -> None:
        self._halves[place] = timing, intact
        if len(self._halves) > self._kept:
            self._halves.popitem(last=False)
