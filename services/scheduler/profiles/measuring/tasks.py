"""The tasks that a profile is measured with: real prompts, real latents, at the model's own size and sampler."""

import itertools
import uuid
from dataclasses import dataclass, field

from synerdiff.cards import ModelCard
from synerdiff.plans import SlotRef, UnetEntry
from synerdiff.requests import TaskSpec

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
        """What the ids of these tasks begin with."""
        return f"{PREFIX}{self._run}/"

    def long(self, guided: bool) -> ProbeTask:
        """A task with as many steps as the sampler takes, of two rows or of one."""
        limits = self.card.limits(self.card.default_sampler)
        steps = min(limits.max_num_inference_steps, _LONG) if limits else self.card.default_num_inference_steps
        own = self.card.default_guidance_scale
        return self._task(steps, (own if own > 1 else _GUIDANCE_SCALE) if guided else 1.0)

    def short(self) -> ProbeTask:
        """A task with the fewest steps that the sampler takes: what is wanted of it are its latents."""
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
