"""Items to be measured and what the reports say of them: pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Probe(NamedTuple):
    """An item to be measured."""

    rows: int
    decodes: int
    setting: Setting


class Run(NamedTuple):
    """One run of an item: ms from its start to its end, and to when each side ended (0 for one without a part)."""

    probe: Probe
    ms: float
    unet_ms: float
    vae_ms: float


class Footprint(NamedTuple):
    """Most bytes held while an item ran: by each worker as its device counts it, by both as seen from outside; or 0."""

    unet_bytes: int = 0
    vae_bytes: int = 0
    both_bytes: int = 0


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
    """A plan as it ran: each item's timing on either side, None where it has no part."""

    items: tuple[tuple[ItemTiming | None, ItemTiming | None], ...]

    @property
    def start_unix_ns(self) -> int:
        """When its first item began."""
        return min(timing.start_unix_ns for item in self.items for timing in item if timing)

    @property
    def end_unix_ns(self) -> int:
        """When its last item ended."""
        return max(timing.end_unix_ns for item in self.items for timing in item if timing)

    @property
    def ms(self) -> float:
        """From the start of the first item to the end of the last."""
        return (self.end_unix_ns - self.start_unix_ns) / 1e6

    def runs(self, probes: Sequence[Probe]) -> list[Run]:
        """Each item by itself."""
        return [_run(probe, unet, vae) for probe, (unet, vae) in zip(probes, self.items, strict=True)]

    def footprint(self, outside_bytes: int) -> Footprint:
        """What it held. `outside_bytes`: both workers together, for devices that do not count."""
        sides = zip(*self.items, strict=True)
        unet, vae = (max((timing.peak_bytes for timing in side if timing), default=0) for side in sides)
        return Footprint(unet, vae, unet + vae or outside_bytes)

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


def round_times(items: Sequence[ProbeItem], unet: UnetTickDone | None, vae: VaeTickDone | None) -> RoundTimes:
    """What the reports of a round's two parts say. Raises ProbeFailed, MemoryRanOut where it was not done at once."""
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
    return RoundTimes(tuple(timed))


def _run(probe: Probe, unet: ItemTiming | None, vae: ItemTiming | None) -> Run:
    start = min(side.start_unix_ns for side in (unet, vae) if side)
    unet_ms, vae_ms = ((side.end_unix_ns - start) / 1e6 if side else 0.0 for side in (unet, vae))
    return Run(probe, max(unet_ms, vae_ms), unet_ms, vae_ms)


@dataclass(frozen=True)
class Extent:
    """Items of up to `max_rows` and `max_decodes`, alone and beside each other.

    `unet`, `vae`, `beside`: settings of each, the default first, then those to be tried against it. `bands`: counts
    over 1 that a decode may be cut into.
    """

    max_rows: int
    max_decodes: int
    unet: tuple[Setting, ...] = (Setting(),)
    vae: tuple[Setting, ...] = (Setting(),)
    beside: tuple[Setting, ...] = (Setting(),)
    bands: tuple[int, ...] = ()


def extent_for(
    max_rows: int, max_decodes: int, chunks: Sequence[int], unet_threads: int, vae_threads: int, cores: int
) -> Extent:
    """What is worth measuring on a device.

    On CPUs (`cores` > 0) each side alone has all its threads or one, and beside each other they split the cores: all of
    them to both is never better (teams of threads then wait for cores that the other's hold). On GPUs, with `cores` 0,
    the shares are fixed per process.
    """
    bands = tuple(sorted({count for count in chunks if count > 1}))
    if not cores:
        return Extent(max_rows, max_decodes, bands=bands)
    counts = [max(1, round(cores * share)) for share in (1 / 4, 1 / 8, 1 / 2)]
    beside = [Setting(1, min(max(1, cores - n), unet_threads), min(n, vae_threads)) for n in counts]
    unet, vae = (tuple(dict.fromkeys((threads, 1))) for threads in (unet_threads, vae_threads))
    return Extent(
        max_rows,
        max_decodes,
        tuple(Setting(1, n, 0) for n in unet),
        tuple(Setting(1, 0, n) for n in vae),
        tuple(dict.fromkeys(beside)),
        bands,
    )
