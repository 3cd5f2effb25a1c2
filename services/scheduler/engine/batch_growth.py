"""How many tasks step together where no profile says it: more, for as long as that makes steps faster by the clock."""

from dataclasses import dataclass, field
from statistics import median

from services.scheduler.policy.snapshots import BatchSize
from synerdiff.telemetry import get_logger

log = get_logger("batches")

# Neighbouring items of either size that decide: the median of so many is not moved by a neighbour that was busy.
_PAIRS = 9
# More rows per ms by which a larger batch has to be faster: less is not worth that everybody waits for everybody.
_PAYS = 1.04
# Items until a size that did not pay is tried again: the worker may run compiled by then, or in better company.
_RETRY_ITEMS = 256
# Of the batch: fewer tasks than this beside it say little of twice as many.
_WIDE = 1.5

# Slots are held as well by tasks that are prepared, decoded and stored.
_STEPPING = 3 / 4


def most_of_slots(slots: int) -> int:
    """Most tasks that are to step together on a worker with so many slots."""
    return max(1, int(slots * _STEPPING))


@dataclass
class BatchGrowth:
    """Of one UNet worker and batch key.

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
