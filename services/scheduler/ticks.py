"""The last ticks that ran, in a bounded ring, and their form as a Chrome/Perfetto trace."""

import json
from collections import deque
from dataclasses import dataclass

from synerdiff.plans import ItemTiming, UnetTickDone, VaeTickDone

KEPT_TICKS = 4096


@dataclass(frozen=True)
class TickRecord:
    """One worker's part of a tick as it ran."""

    domain: str
    worker_id: str
    kind: str
    tick: int
    items: tuple[ItemTiming, ...]
    skipped: int


class TickLog:
    """A ring of the last ticks of all domains."""

    def __init__(self, kept: int = KEPT_TICKS) -> None:
        self._records: deque[TickRecord] = deque(maxlen=kept)

    def add(self, domain: str, worker_id: str, kind: str, done: UnetTickDone | VaeTickDone) -> None:
        """Keep what a report says of its tick."""
        self._records.append(TickRecord(domain, worker_id, kind, done.tick, done.items, len(done.skipped)))

    def trace(self, domain: str) -> bytes:
        """Chrome trace event JSON of `domain`, or of all when empty: a process per domain, a thread per worker."""
        records = [r for r in self._records if domain in ("", r.domain)]
        processes = {name: pid for pid, name in enumerate(sorted({r.domain for r in records}), start=1)}
        threads = {worker: tid for tid, worker in enumerate(sorted({r.worker_id for r in records}), start=1)}
        events: list[dict[str, object]] = [
            {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for name, pid in processes.items()
        ]
        named = {(processes[r.domain], threads[r.worker_id], f"{r.kind} {r.worker_id}") for r in records}
        events += [
            {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
            for pid, tid, name in sorted(named)
        ]
        for record in records:
            unit = "rows" if record.kind == "unet" else "images"
            events += [
                {
                    "ph": "X",
                    "name": f"tick {record.tick}: {item.rows} {unit}",
                    "pid": processes[record.domain],
                    "tid": threads[record.worker_id],
                    "ts": item.start_unix_ns / 1000,
                    "dur": (item.end_unix_ns - item.start_unix_ns) / 1000,
                    "args": {"tick": record.tick, unit: item.rows, "skipped": record.skipped},
                }
                for item in record.items
            ]
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()
