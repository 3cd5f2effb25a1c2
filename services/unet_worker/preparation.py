"""From a task spec to a task that can be stepped: prompt encoded, noise drawn from the seed, sampler table built.

Encoded prompts are kept for repeated use: most traffic repeats its negative prompt, and much of it its prompt.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.unet_worker import metrics
from services.unet_worker.guidance import GuidanceMemory
from services.unet_worker.noise import TaskNoise, noise_units
from services.unet_worker.sampler_table import SamplerTable
from services.unet_worker.samplers import sampler_table
from services.unet_worker.tasks import DenoisingTask
from synerdiff.cards import ModelCard
from synerdiff.models.family import PromptEmbeds, UnetSide
from synerdiff.requests import TaskSpec
from synerdiff.skip_cfg import SkipPredictor

MAX_ENCODE_BATCH = 16


@dataclass(frozen=True)
class PromptKey:
    """A prompt and its part: an absent negative may be encoded otherwise. `alone`: in its own call, if exact."""

    text: str
    is_negative: bool
    alone: bool = False


class EmbeddingCache:
    """Evicts the least recently used prompts; never more than `capacity_bytes` in all. Thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[PromptKey, PromptEmbeds] = OrderedDict()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes of the embeddings and prompts held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, prompt: PromptKey) -> PromptEmbeds | None:
        """The prompt's embeddings, which become the most recently used; None when they are not held."""
        with self._lock:
            embeds = self._entries.get(prompt)
            if embeds is not None:
                self._entries.move_to_end(prompt)
        (metrics.CACHE_MISSES if embeds is None else metrics.CACHE_HITS).inc()
        return embeds

    def put(self, prompt: PromptKey, embeds: PromptEmbeds) -> None:
        """Hold the prompt's embeddings; an entry larger than the capacity is not held."""
        size = _size(prompt, embeds)
        if size > self.capacity_bytes:
            return
        with self._lock:
            self._forget(prompt)
            while self._bytes + size > self.capacity_bytes:
                self._forget(next(iter(self._entries)))
            self._entries[prompt] = embeds
            self._bytes += size
            metrics.CACHE_BYTES.set(self._bytes)

    def _forget(self, prompt: PromptKey) -> None:
        embeds = self._entries.pop(prompt, None)
        if embeds is not None:
            self._bytes -= _size(prompt, embeds)


def _size(prompt: PromptKey, embeds: PromptEmbeds) -> int:
    return embeds.nbytes + len(prompt.text.encode())


@dataclass(frozen=True)
class EncodedPrompts:
    """Embeddings by prompt, and how long the prompts that were not cached took; `encoded` names those."""

    embeds: dict[PromptKey, PromptEmbeds]
    encoded: frozenset[PromptKey]
    encode_ms: float


class PromptEncoder:
    """Encodes through the cache, several prompts in one batch. Thread-safe: one batch at a time."""

    def __init__(self, unet_side: UnetSide, capacity_bytes: int) -> None:
        self.cache = EmbeddingCache(capacity_bytes)
        self._unet_side = unet_side
        self._encoding = threading.Lock()  # the tokenizers cannot be used by two threads at once

    def encode(self, prompts: Sequence[PromptKey]) -> EncodedPrompts:
        """Embeddings of every prompt in `prompts`, on the model's device and in its dtype."""
        embeds: dict[PromptKey, PromptEmbeds] = {}
        missing: list[PromptKey] = []
        for prompt in dict.fromkeys(prompts):
            cached = self.cache.get(prompt)
            if cached is None:
                missing.append(prompt)
            else:
                embeds[prompt] = cached
        started = time.perf_counter()
        if missing:
            with self._encoding, metrics.ENCODE_SECONDS.time():
                embeds.update(self._encode_missing(missing))
        encode_ms = (time.perf_counter() - started) * 1000 if missing else 0.0
        return EncodedPrompts(embeds, frozenset(missing), encode_ms)

    def _encode_missing(self, prompts: Sequence[PromptKey]) -> dict[PromptKey, PromptEmbeds]:
        encoded: dict[PromptKey, PromptEmbeds] = {}
        positive = [prompt for prompt in prompts if not prompt.is_negative]
        negative = [prompt for prompt in prompts if prompt.is_negative]
        for keys, encode in ((positive, self._unet_side.encode), (negative, self._unet_side.encode_negative)):
            shared, most = [key for key in keys if not key.alone], MAX_ENCODE_BATCH
            batches = [shared[first : first + most] for first in range(0, len(shared), most)]
            for batch in (*batches, *([key] for key in keys if key.alone)):
                encoded.update(zip(batch, encode([key.text for key in batch]), strict=True))
        for key, embeds in encoded.items():
            self.cache.put(key, embeds)
        return encoded


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
