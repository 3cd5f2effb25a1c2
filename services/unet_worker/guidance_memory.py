"""What a task remembers of its guidance, so that calls may skip it; and D predicted from that, for a batch of tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synerdiff.skip_cfg import SkipPredictor


@dataclass(eq=False)
class GuidanceMemory:
    """The last measured D of one task, as many as its predictor needs, and which of its calls skipped guidance.

    `predictor` is None for a task that never skips. `differences` are [C, h, w] fp32 on the model's device, the newest
    first and in units of predicted noise (`units` of a call are what D is multiplied by for that); `measured` are the
    calls that measured them. What a batch has computed is taken over by `measure` and `skip`
    alone, once per call, so a call that failed half-way leaves no trace.
    """

    predictor: SkipPredictor | None = None
    units: tuple[float, ...] = ()
    differences: list[Tensor] = field(default_factory=list, repr=False)
    measured: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()

    @property
    def remembers(self) -> int:
        """How many measured D are kept."""
        return self.predictor.remembers if self.predictor else 0

    @property
    def can_skip(self) -> bool:
        """Whether D can be predicted: there is a predictor, and a D was measured if it goes by any."""
        return self.predictor is not None and (bool(self.measured) or not self.remembers)

    def stale(self, call: int) -> bool:
        """Whether D was measured before, but not at the call before this one."""
        return bool(self.measured) and self.measured[0] < call - 1

    def weights(self, call: int) -> tuple[float, ...]:
        """What each of `differences` weighs in D' at a call; to be asked for only where `can_skip`."""
        if self.predictor is None:
            return ()
        return tuple(weight / self.units[call] for weight in self.predictor.weights(self.measured, call))

    def measure(self, call: int, difference: Tensor) -> None:
        """Remember D [C, h, w] of a guided call."""
        if self.remembers:
            self.differences = [difference * self.units[call], *self.differences][: self.remembers]
            self.measured = (call, *self.measured)[: self.remembers]

    def skip(self, call: int) -> None:
        """Note that a call has skipped guidance."""
        self.skipped = (*self.skipped, call)

    def forget(self) -> None:
        """Free what was measured; which calls skipped stays known."""
        self.differences, self.measured = [], ()


def predict_differences(
    memories: Sequence[GuidanceMemory],
    calls: Sequence[int],
    like: Tensor,
    upload: Callable[[Tensor], Tensor] = lambda weights: weights,
) -> Tensor:
    """D' [memories, C, h, w] fp32 of each task at its call. `like` is [..., C, h, w], where `upload` takes weights."""
    most = max(memory.remembers for memory in memories)
    differences = like.new_zeros((len(memories), most, *like.shape[-3:]))
    weights = torch.zeros(len(memories), most)
    for place, (memory, call) in enumerate(zip(memories, calls, strict=True)):
        for age, (difference, weight) in enumerate(zip(memory.differences, memory.weights(call), strict=True)):
            differences[place, age] = difference
            weights[place, age] = weight
    predicted: Tensor = (upload(weights)[:, :, None, None, None] * differences).sum(1)
    return predicted


def drift(differences: Tensor, predicted: Tensor) -> Tensor:
    """[n]: |D - D'| / |D| per task, for [n, C, h, w] each."""
    off: Tensor = (differences - predicted).flatten(1).norm(dim=1)
    length: Tensor = differences.flatten(1).norm(dim=1)
    return off / length.clamp_min(torch.finfo(length.dtype).tiny)
