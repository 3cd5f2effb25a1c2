"""Sizes of items: within memory and, without a profile, as large as measured times justify. Pure.

Items stay under the size for which memory did not suffice. Without a profile more tasks step together for as long as
that makes steps faster.
"""

from dataclasses import dataclass, field, replace
from statistics import median

from services.scheduler.engine.ticks import PlannedPart
from services.scheduler.policy.snapshots import BatchKey, BatchSize
from synerdiff.plans import ItemTiming
from synerdiff.profiles import ItemCaps, Profile
from synerdiff.telemetry import get_logger

log = get_logger("batches")

UNBOUNDED = ItemCaps(1 << 20, 1 << 20)

# Neighbouring items of either size that decide: the median of so many is not moved by a neighbour that was busy.
_PAIRS = 9
# More rows per ms by which a larger batch has to be faster: less is not worth its tasks' waiting for each other.
_PAYS = 1.04
# Items until a size that did not pay is tried again: the worker may run compiled by then, or beside less other work.
_RETRY_ITEMS = 256
# Times the batch: an item of fewer tasks says little about one of twice as many.
_WIDE = 1.5
# Slots are held as well by tasks that are prepared, decoded and stored.
_STEPPING = 3 / 4


class MemoryBounds:
    """Bounds on items by domain and batch key, learned from items that a worker had to run in halves. They hold for as
    long as a leadership: the next leader learns anew."""

    def __init__(self) -> None:
        self._caps: dict[tuple[str, BatchKey], ItemCaps] = {}

    def of(self, domain: str, key: BatchKey) -> ItemCaps:
        """The bounds on one key's items."""
        return self._caps.get((domain, key), UNBOUNDED)

    def of_domain(self, domain: str) -> dict[BatchKey, ItemCaps]:
        """The bounds of a domain, by key."""
        return {key: caps for (where, key), caps in self._caps.items() if where == domain}

    def forget(self, domain: str) -> None:
        """Forget the bounds of a domain."""
        self._caps = {place: caps for place, caps in self._caps.items() if place[0] != domain}

    def within(self, domain: str, key: BatchKey, profile: Profile) -> Profile:
        """The profile with its caps lowered to the bounds; itself where they are not reached."""
        caps = profile.caps.within(self.of(domain, key))
        return profile if caps == profile.caps else replace(profile, caps=caps)

    def learn(self, domain: str, kind: str, items: tuple[ItemTiming, ...], planned: PlannedPart) -> set[BatchKey]:
        """Learn from a report of a "unet" or "vae" worker and its plan. Returns the keys with lower bounds now.
        No bound is below one task or decode: an item of one is tried with any memory."""
        lowered = set()
        for timing, item in zip(items, planned.items, strict=False):
            key = item.key or planned.key
            if not timing.halved or key is None:
                continue
            known, fits = self.of(domain, key), timing.halved - 1
            if kind == "unet":
                caps = known.within(ItemCaps(max(1, fits // 2), known.vae))
            else:
                caps = known.within(ItemCaps(known.unet, max(1, fits)))
            if caps != known:
                self._caps[domain, key] = caps
                lowered.add(key)
        return lowered


def most_of_slots(slots: int) -> int:
    """Most tasks that are to step together on a worker with so many slots."""
    return max(1, int(slots * _STEPPING))


@dataclass
class BatchGrowth:
    """The batch size of one UNet worker and batch key.

    `tasks` are the batch; `most` is its bound. While more than `tasks` could step, every other item takes up to twice
    as many. Twice as many are the batch from then on if they made more rows per ms, and are left for a while if not.
    """

    tasks: int
    most: int
    _wide_next: bool = False
    _narrow_rate: float | None = None
    _gains: list[float] = field(default_factory=list)
    _left_alone: int = 0
    _seen: set[int] = field(default_factory=set)

    def size(self) -> BatchSize:
        """Tasks of the next item, and of the largest item that may come."""
        tried = self.tasks if self._left_alone else self._larger
        return BatchSize(tried if self._wide_next else self.tasks, tried)

    @property
    def _larger(self) -> int:
        return min(2 * self.tasks, self.most)

    def ran(self, tasks: int, rows: int, ms: float) -> None:
        """An item of this key has run, which took the worker `ms`."""
        if rows not in self._seen:  # the first call of a size takes longer than any other
            self._seen.add(rows)
            return
        if self._left_alone:
            self._left_alone -= 1
            return
        if tasks < self.tasks or self.tasks >= self.most or ms <= 0:
            return
        if tasks == self.tasks:
            self._narrow_rate, self._wide_next = rows / ms, True
        elif tasks >= _WIDE * self.tasks and self._narrow_rate is not None:
            self._gains.append(rows / ms / self._narrow_rate)
            self._narrow_rate, self._wide_next = None, False
            if len(self._gains) == _PAIRS:
                self._decide()

    def _decide(self) -> None:
        gain, larger = median(self._gains), self._larger
        log.info("tried larger batches", tasks=self.tasks, tried=larger, gain=round(gain, 3), grown=gain >= _PAYS)
        if gain >= _PAYS:
            self.tasks = larger
        else:
            self._left_alone = _RETRY_ITEMS
        self._gains.clear()
