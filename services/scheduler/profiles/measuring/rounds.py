"""Items to be measured, the tasks for them, and the reading of reports: pure.

Tasks have real prompts and real latents, at the model's own size and sampler.
"""

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from synerdiff.cards import ModelCard
from synerdiff.plans import ItemTiming, SlotRef, UnetEntry, UnetTickDone, VaeTickDone
from synerdiff.profiles import Setting
from synerdiff.requests import TaskSpec

_EARLY_MS = 1.0  # in step an item begins on one side at most this long before the last ended on the other: clocks
PREFIX = "probe-"
_PROMPTS = (
    "a slice of pizza",
    "a red car on a country road in the evening",
    "a portrait of an old sailor, oil on canvas",
    "two cats",
    "a castle on a hill, snow, wide angle",
    "a cup of coffee on a wooden table, morning light, photograph",
)
_GUIDANCE_SCALE = 5.0  # where the model's own is none
_LONG = 1000  # steps of tasks that are to be stepped again and again


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
        """The bytes it held. `outside_bytes`: of both workers together, for devices that do not count."""
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
    """A round's times by the reports of its two parts. Raises ProbeFailed, MemoryRanOut where an item was halved."""
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
    """Items of up to `max_rows` and `max_decodes`, alone and beside each other. `unet`, `vae`, `beside`: settings of
    each, the default first, then those to be tried against it. `bands`: counts over 1 that a decode may be cut into."""

    max_rows: int
    max_decodes: int
    unet: tuple[Setting, ...] = (Setting(),)
    vae: tuple[Setting, ...] = (Setting(),)
    beside: tuple[Setting, ...] = (Setting(),)
    bands: tuple[int, ...] = ()


def extent_for(
    max_rows: int, max_decodes: int, chunks: Sequence[int], unet_threads: int, vae_threads: int, cores: int
) -> Extent:
    """The items worth measuring on a device.

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


@dataclass
class ProbeTask:
    """A task on the UNet worker. `num_calls` is 0 until it is prepared, `slot` is set once its latents are final."""

    spec: TaskSpec
    num_calls: int = 0
    next_call: int = 0
    slot: SlotRef | None = None

    @property
    def task_id(self) -> str:
        """Its id."""
        return self.spec.task_id

    @property
    def calls_left(self) -> int:
        """UNet calls it can still make."""
        return self.num_calls - self.next_call

    def step(self) -> UnetEntry:
        """Its next call, counted as made."""
        self.next_call += 1
        return UnetEntry(self.task_id, self.next_call - 1)


@dataclass
class ProbeTasks:
    """Makes probe tasks of one model and size, and holds them; `arriving` until they can be stepped or decoded."""

    card: ModelCard
    width: int
    height: int
    guided: list[ProbeTask] = field(default_factory=list)
    unguided: list[ProbeTask] = field(default_factory=list)
    finished: list[ProbeTask] = field(default_factory=list)
    arriving: list[ProbeTask] = field(default_factory=list)
    _run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def prefix(self) -> str:
        """The beginning of the ids of these tasks."""
        return f"{PREFIX}{self._run}/"

    def long(self, guided: bool) -> ProbeTask:
        """A task with as many steps as the sampler takes, of two rows or of one."""
        limits = self.card.limits(self.card.default_sampler)
        steps = min(limits.max_num_inference_steps, _LONG) if limits else self.card.default_num_inference_steps
        own = self.card.default_guidance_scale
        return self._task(steps, (own if own > 1 else _GUIDANCE_SCALE) if guided else 1.0)

    def short(self) -> ProbeTask:
        """A task with the fewest steps that the sampler takes: only its latents are needed."""
        limits = self.card.limits(self.card.default_sampler)
        return self._task(limits.min_num_inference_steps if limits else 1, 1.0)

    def all(self) -> list[ProbeTask]:
        """Every task that holds a slot."""
        return [*self.guided, *self.unguided, *self.finished, *self.arriving]

    def clear(self) -> tuple[str, ...]:
        """Forget all; returns their ids."""
        task_ids = tuple(task.task_id for task in self.all())
        for tasks in (self.guided, self.unguided, self.finished, self.arriving):
            tasks.clear()
        return task_ids

    def _task(self, steps: int, guidance_scale: float) -> ProbeTask:
        number = next(self._numbers)
        spec = TaskSpec(
            task_id=f"{self.prefix}{number}",
            prompt=_PROMPTS[number % len(_PROMPTS)],
            negative_prompt="",
            width=self.width,
            height=self.height,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            seed=number,
            sampler=self.card.default_sampler,
            preview_every=0,
        )
        return ProbeTask(spec)
