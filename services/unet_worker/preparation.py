"""From a task spec to a task that can be stepped: prompt encoded, noise drawn from the seed, sampler table built."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.unet_worker.guidance_memory import GuidanceMemory
from services.unet_worker.noise import TaskNoise, noise_units
from services.unet_worker.prompts import PromptEncoder, PromptKey
from services.unet_worker.sampler_table import SamplerTable
from services.unet_worker.samplers import sampler_table
from services.unet_worker.tasks import DenoisingTask
from synerdiff.cards import ModelCard
from synerdiff.models.family import PromptEmbeds, UnetSide
from synerdiff.requests import TaskSpec
from synerdiff.skip_cfg import SkipPredictor


@dataclass(frozen=True)
class PreparedTask:
    """A task at its first call. `encode_ms` is 0 when its prompts were cached; it is shared by its batch."""

    task: DenoisingTask
    encode_ms: float
    warnings: tuple[str, ...]


class TaskPreparer:
    """Prepares several tasks at a time, so that their prompts are encoded together. Thread-safe."""

    def __init__(
        self, unet_side: UnetSide, embedding_cache_bytes: int = 64 * 2**20, card: ModelCard | None = None
    ) -> None:
        self.prompts = PromptEncoder(unet_side, embedding_cache_bytes)
        self._card = card
        self._unet_side = unet_side

    @torch.inference_mode()
    def prepare(self, specs: Sequence[TaskSpec]) -> list[PreparedTask]:
        """The tasks of `specs`, in order.

        Raises InvalidRequest where the model's scheduler does not take the sampler or the number of steps, or the
        predictor of guidance cannot be read.
        """
        with self._unet_side.compute.beside() as lend:
            encoded = self.prompts.encode([key for spec in specs for key in _prompt_keys(spec)])
            prepared = []
            for spec in specs:
                keys = _prompt_keys(spec)
                embeds = [encoded.embeds[key] for key in keys]
                encode_ms = encoded.encode_ms if encoded.encoded.intersection(keys) else 0.0
                task = self._at_first_call(spec, embeds)
                lend([task.registers, *(tensor for embed in embeds for tensor in embed.tensors())])
                prepared.append(PreparedTask(task, encode_ms, self._replaced(spec) + _cut(embeds)))
        return prepared

    def _replaced(self, spec: TaskSpec) -> tuple[str, ...]:
        """A warning for a picture by the sampler that stands in for the model's own scheduler."""
        card = self._card
        if card is None or not card.scheduler_refused or spec.sampler is not card.default_sampler:
            return ()
        name = spec.sampler.name.lower()
        return (f"sampler: {name} stands in for the model's own scheduler: {card.scheduler_refused}",)

    def _at_first_call(self, spec: TaskSpec, embeds: Sequence[PromptEmbeds]) -> DenoisingTask:
        side = self._unet_side
        table = sampler_table(side.scheduler_config, spec.sampler, spec.num_inference_steps)
        shape = side.latent_shape(spec.width, spec.height)
        noise = TaskNoise(spec.seed, shape, side.dtype, table)
        registers = torch.zeros((table.num_registers, *shape), dtype=torch.float32)
        registers[0] = noise.initial_latents()
        return DenoisingTask(
            spec=spec,
            embeds=embeds[0],
            negative_embeds=embeds[1] if spec.rows == 2 else None,
            table=table,
            registers=side.compute.upload(registers),
            noise=noise,
            guidance=self._guidance(spec, table),
        )

    def _guidance(self, spec: TaskSpec, table: SamplerTable) -> GuidanceMemory:
        if not spec.skip_predictor:
            return GuidanceMemory()
        predictor = SkipPredictor.parse(spec.skip_predictor)
        return GuidanceMemory(predictor, noise_units(self._unet_side.scheduler_config, table.timesteps))


def _prompt_keys(spec: TaskSpec) -> list[PromptKey]:
    prompt = PromptKey(spec.prompt, is_negative=False, alone=spec.exact)
    negative = PromptKey(spec.negative_prompt, is_negative=True, alone=spec.exact)
    return [prompt] if spec.rows == 1 else [prompt, negative]


def _cut(embeds: Sequence[PromptEmbeds]) -> tuple[str, ...]:
    fields = ("prompt", "negative_prompt")
    return tuple(
        f"{field}: the model reads no further than its token limit; cut: {embed.cut_text!r}"
        for field, embed in zip(fields, embeds, strict=False)
        if embed.cut_text
    )
