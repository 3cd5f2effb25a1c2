"""A task as the denoiser sees it: one image on its way from noise to latents."""

from dataclasses import dataclass, field

from torch import Tensor

from services.unet_worker.guidance import GuidanceMemory
from services.unet_worker.noise import TaskNoise
from services.unet_worker.sampler_table import SamplerTable
from synerdiff.models.family import PromptEmbeds
from synerdiff.requests import TaskSpec


@dataclass(eq=False)
class DenoisingTask:
    """One image being denoised. Only the thread that steps it may touch it; `next_call` may be read by any.

    `registers` is [R, C, h, w] fp32 on the model's device: register 0 is the sample, the others hold the sampler's
    memory of earlier calls. `negative_embeds` is None for a task without guidance.
    """

    spec: TaskSpec
    embeds: PromptEmbeds
    negative_embeds: PromptEmbeds | None
    table: SamplerTable
    registers: Tensor
    noise: TaskNoise
    guidance: GuidanceMemory = field(default_factory=GuidanceMemory)
    next_call: int = 0
    _drawn: Tensor | None = field(default=None, repr=False)

    @property
    def guided(self) -> bool:
        """Whether each call takes an unconditional row too."""
        return self.negative_embeds is not None

    @property
    def can_skip(self) -> bool:
        """Whether the next call may leave guidance to be predicted."""
        return self.guided and self.guidance.can_skip

    @property
    def num_calls(self) -> int:
        """UNet calls in all."""
        return self.table.num_calls

    @property
    def done(self) -> bool:
        """Whether the last call has been made."""
        return self.next_call >= self.num_calls

    @property
    def sample(self) -> Tensor:
        """[C, h, w] fp32: the latents as they stand."""
        return self.registers[0]

    def step_noise(self) -> Tensor | None:
        """[C, h, w] on the CPU for the next call, the same if it is repeated; None where its sampler draws none."""
        if self.noise.next_call == self.next_call:
            self._drawn = self.noise.next_step()
        return self._drawn

    def advance(self, registers: Tensor, difference: Tensor | None = None, skipped: bool = False) -> None:
        """Take over the registers [R, C, h, w] after a call, and D [C, h, w] if measured; `skipped`: of guidance."""
        self.registers.copy_(registers)
        if difference is not None:
            self.guidance.measure(self.next_call, difference)
        if skipped:
            self.guidance.skip(self.next_call)
        self._drawn = None
        self.next_call += 1
        if self.done:
            self.guidance.forget()
