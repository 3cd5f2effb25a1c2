"""The last ticks that ran, in a bounded ring."""

from collections import deque
from dataclasses import dataclass
from itertools import islice

from services.scheduler.engine.tasks import PlannedPart
from synerdiff.plans import ItemTiming, UnetTickDone, VaeTickDone

KEPT_TICKS = 4096


@dataclass(frozen=True)
class TickRecord:
    """One worker's part of a tick as it ran. `kind` is "unet" or "vae".

    `planned`: what it was asked for, None where this leader never asked. `stale`: entries that no longer fitted.
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
        """A report of `worker` (domain, id, kind), with what was planned and the lengths of both queues."""
        return cls(*worker, done.tick, done.items, planned, len(done.skipped), *queues)


class TickLog:
    """A ring of the last ticks of all domains. `added`: records that it was ever given."""

    def __init__(self, kept: int = KEPT_TICKS) -> None:
        self.added = 0
        self._records: deque[TickRecord] = deque(maxlen=kept)

    def add(self, record: TickRecord) -> None:
        """Keep a worker's part of a tick."""
        self._records.append(record)
        self.added += 1

    def since(self, added: int) -> list[TickRecord]:
        """What came after the first `added` records, as far as it is kept, in order of arrival."""
        new = min(self.added - added, len(self._records))
        return list(islice(self._records, len(self._records) - new, None))

    def records(self, domain: str = "") -> list[TickRecord]:
        """What is kept of `domain`, or of all when empty, in order of arrival."""
        return [record for record in self._records if domain in ("", record.domain)]
