"""Reports of ticks as a domain's two workers make them, and a small profile, for tests of what is learned from them."""

from services.scheduler.engine.ticks import PartItem, PlannedPart, TickRecord
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.plans import ItemTiming
from synerdiff.profiles import Cell, ItemCaps, Profile, ProfileSubject, Setting

KEY = BatchKey("m", 64, 64)
MS = 1_000_000
ALONE, BESIDE = Setting(1, 2, 0), Setting(2, 1, 1)


def profile() -> Profile:
    """UNet alone 10 ms a row, decodes alone 20 ms, both 12 ms a row and 24 ms a decode."""
    cells = [Cell(rows, 0, 10.0 * rows, 11.0 * rows, ALONE) for rows in (1, 2, 4, 8)]
    cells += [Cell(0, n, 20.0 * n, 22.0 * n, Setting(2, 0, 2)) for n in (1, 2)]
    cells += [Cell(r, n, 12.0 * r + 24 * n, 13.0 * r + 25 * n, BESIDE) for r in (2, 8) for n in (1, 2)]
    subject = ProfileSubject("m", "0" * 16, "cpu", "float32", (4, 8, 8), "threads")
    return Profile(subject, tuple(cells), ItemCaps(4, 2), "2026-11-22T00:00:00Z")


def planned(place: int, rows: int, decodes: float = 0.0, predicted_ms: float = 10.0, skips: int = 0) -> PartItem:
    """An item as the profile would have it run."""
    setting = BESIDE if rows and decodes else ALONE if rows else Setting(2, 0, 2)
    return PartItem(place, rows, skips, decodes, setting.chunks, setting, predicted_ms, tasks=rows, key=KEY)


def timing(start_ms: float, end_ms: float, ran: int, waited_ms: float = 0.0) -> ItemTiming:
    return ItemTiming(round(start_ms * MS), round(end_ms * MS), ran, waited_ms)


def record(
    kind: str,
    tick: int,
    *items: tuple[PartItem, ItemTiming],
    domain: str = "d",
    threshold: float = 0.9,
    in_step: bool = True,
    stale: int = 0,
) -> TickRecord:
    """One worker's part of a tick; the worker is named after its kind."""
    part = PlannedPart(("t",), tuple(p for p, _ in items), threshold, KEY, in_step)
    return TickRecord(domain, kind[0], kind, tick, tuple(t for _, t in items), part, stale, waiting=3, decodes=1)
