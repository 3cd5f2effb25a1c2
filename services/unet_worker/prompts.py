"""Encoded prompts, kept for repeated use: most traffic repeats its negative prompt, and much of it its prompt."""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from services.unet_worker import metrics
from synerdiff.models.family import PromptEmbeds, UnetSide

MAX_ENCODE_BATCH = 16


@dataclass(frozen=True)
class PromptKey:
    """A prompt and its part: an absent negative may be encoded otherwise. `alone`: in its own call, if exact."""

    text: str
    is_negative: bool
    alone: bool = False


class EmbeddingCache:
    """Least recently used prompts out first; never more than `capacity_bytes` in all. Thread-safe."""

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
        """Hold the prompt's embeddings; what alone exceeds the capacity is not held."""
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
