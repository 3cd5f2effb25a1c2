"""Items to be measured and what the reports say of them: pure."""

from collections.abc import Sequence
from typing import NamedTuple

from services.scheduler.profiler.profiling import Probe
from services.scheduler.profiler.samples import Timing
from synerdiff.plans import ItemTiming, UnetTickDone, VaeTickDone
from synerdiff.profiles import Setting

_EARLY_MS = 1.0  # in step an item begins on one side at most this long before the last ended on the other: clocks


class ProbeFailed(Exception):
    """An item could not be measured; the message says why."""


class MemoryRanOut(ProbeFailed):
    """A worker, "unet" or "vae", had no memory for `at_once` rows or decodes at once."""

    def __init__(self, kind: str, at_once: int) -> None:
        super().__init__(f"the {kind} worker has no memory for {at_once} {'rows' if kind == 'unet' else 'decodes'}")
        self.kind = kind
        self.at_once = at_once


class ProbeItem(NamedTuple):
    """An item to run: `rows` beside the chunks from `first` up to `end` of `decodes` decodes."""

    rows: int
    decodes: int
    setting: Setting
    first: int = 0
    end: int = 1

    @classmethod
    def whole(cls, probe: Probe) -> "ProbeItem":
        """An item whose decodes begin and end in it."""
        return cls(probe.rows, probe.decodes, probe.setting, 0, probe.setting.chunks)


class RoundTimes(NamedTuple):
    """A plan as it ran: each item's timing on either side, None where it has no part.

    `turnaround_ms`: from when it was sent to when the last report of it was there.
    """

    items: tuple[tuple[ItemTiming | None, ItemTiming | None], ...]
    turnaround_ms: float

    @property
    def ms(self) -> float:
        """From the start of the first item to the end of the last."""
        both = [timing for item in self.items for timing in item if timing]
        return (max(t.end_unix_ns for t in both) - min(t.start_unix_ns for t in both)) / 1e6

    def timings(self) -> list[Timing]:
        """Each item by itself."""
        return [_timing(unet, vae) for unet, vae in self.items]

    @property
    def in_step(self) -> bool:
        """Whether no item began on one side before the one before it had ended on the other."""
        pairs = zip(self.items, self.items[1:], strict=False)
        return all(
            later.start_unix_ns >= earlier.end_unix_ns - _EARLY_MS * 1e6
            for before, after in pairs
            for earlier in before
            for later in after
            if earlier and later
        )


def round_times(
    items: Sequence[ProbeItem], unet: UnetTickDone | None, vae: VaeTickDone | None, turnaround_ms: float
) -> RoundTimes:
    """What the reports of a round's two parts say.

    Raises ProbeFailed where they did not do what was asked, MemoryRanOut where they could not do it at once.
    """
    for kind, done in (("unet", unet), ("vae", vae)):
        halved = [timing.halved for timing in done.items if timing.halved] if done else []
        if halved:
            raise MemoryRanOut(kind, min(halved))
    skipped = [*(unet.skipped if unet else ()), *(vae.skipped if vae else ())]
    if skipped:
        raise ProbeFailed(f"{skipped[0].task_id} was skipped: {skipped[0].reason.name.lower()}")
    unet_timings, vae_timings = iter(unet.items if unet else ()), iter(vae.items if vae else ())
    timed = []
    for item in items:
        of_unet = next(unet_timings) if item.rows else None
        of_vae = next(vae_timings) if item.decodes else None
        if of_unet and of_unet.rows != item.rows:
            raise ProbeFailed(f"{item.rows} UNet rows were asked for, {of_unet.rows} were computed")
        if of_vae and of_vae.rows != item.decodes:
            raise ProbeFailed(f"{item.decodes} decodes were asked for, {of_vae.rows} were made")
        timed.append((of_unet, of_vae))
    return RoundTimes(tuple(timed), turnaround_ms)


def _timing(unet: ItemTiming | None, vae: ItemTiming | None) -> Timing:
    sides = [side for side in (unet, vae) if side]
    start = min(side.start_unix_ns for side in sides)
    unet_ms, vae_ms = ((side.end_unix_ns - start) / 1e6 if side else 0.0 for side in (unet, vae))
    unet_bytes, vae_bytes = (side.peak_bytes if side else 0 for side in (unet, vae))
    return Timing(max(unet_ms, vae_ms), unet_ms, vae_ms, unet_bytes, vae_bytes)
