"""Tokenizing, and the text encoder of the models that have one."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor

from synerdiff.models.family import PromptEmbeds
from synerdiff.models.layout import ModelLayout

_VECTORS = TextualInversionLoaderMixin()


@dataclass(frozen=True)
class Tokens:
    """One tokenized prompt: `ids` and `attention_mask` are [1, max_tokens]; `cut_text` is the text that did not fit."""

    ids: Tensor
    attention_mask: Tensor
    cut_text: str


@dataclass(frozen=True)
class PromptTokenizer:
    """A CLIP tokenizer as the pipelines use it: padded to the model's length, the rest cut."""

    tokenizer: Any
    # Fast tokenizers keep padding and truncation as state, and refuse concurrent calls.
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @property
    def max_tokens(self) -> int:
        """Tokens that fit, the start and end tokens included."""
        return int(self.tokenizer.model_max_length)

    def __call__(self, prompt: str) -> Tokens:
        """Tokenize one prompt. A token that stands for several vectors of textual inversion becomes all of them."""
        with self.lock:
            prompt = _VECTORS.maybe_convert_prompt(prompt, self.tokenizer)
            padded = self.tokenizer(
                prompt, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
            )
            cut_text = self._beyond(prompt) if padded.attention_mask.all() else ""
        return Tokens(ids=padded.input_ids, attention_mask=padded.attention_mask, cut_text=cut_text)

    def _beyond(self, prompt: str) -> str:
        whole = self.tokenizer(prompt, verbose=False).input_ids
        cut_ids = whole[self.max_tokens - 1 : -1] if len(whole) > self.max_tokens else []
        return str(self.tokenizer.decode(cut_ids).strip()) if cut_ids else ""


def prompts_at_once(device: torch.device) -> int:
    """How many prompts a text encoder there takes in one call.

    On a CPU one: batches gain nothing there, and embeddings are those of diffusers' pipeline to the bit. On a GPU a
    call of a few prompts takes as long as a call of one, and their embeddings differ from those by rounding.
    """
    return 1 if device.type == "cpu" else 16


def in_batches(
    prompts: Sequence[str], most: int, encode: Callable[[Sequence[str]], list[PromptEmbeds]]
) -> list[PromptEmbeds]:
    """The results of `encode` for prompts, `most` of them at a time."""
    batches = [prompts[first : first + most] for first in range(0, len(prompts), most)]
    return [embeds for batch in batches for embeds in encode(batch)]


def load_tokenizer(layout: ModelLayout, component: str, text_encoder: str) -> PromptTokenizer:
    """Load a tokenizer that fits a text encoder of the same directory; raises ModelLoadError."""
    from transformers import CLIPTokenizer

    folder = layout.path / component
    # Without either file the library makes a tokenizer without words.
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise layout.refuse(f"{component} holds neither tokenizer.json nor vocab.json")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(layout.path), subfolder=component, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise layout.refuse(f"{component} does not load: {error}") from error
    positions = layout.integer(text_encoder, "max_position_embeddings", 77)
    if tokenizer.model_max_length > positions:
        raise layout.refuse(
            f"{component} has model_max_length {tokenizer.model_max_length}, "
            f"but its text encoder takes {positions} tokens"
        )
    if len(tokenizer) > layout.integer(text_encoder, "vocab_size", 49408):
        raise layout.refuse(f"{component} has {len(tokenizer)} entries, more than its text encoder knows")
    return PromptTokenizer(tokenizer)


@dataclass(frozen=True)
class ClipPromptEncoder:
    """A tokenizer and a CLIP text encoder (SD 1.x, 2.x): its last hidden state. `at_once`: see `prompts_at_once`."""

    tokenizer: PromptTokenizer
    text_encoder: Any
    at_once: int = 1

    @property
    def max_tokens(self) -> int:
        """Tokens that fit, the start and end tokens included."""
        return self.tokenizer.max_tokens

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode prompts as StableDiffusionPipeline does."""
        return in_batches(prompts, self.at_once, self._encode)

    def encode_negative(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode negative prompts: "" is a prompt like any other here."""
        return self.encode(prompts)

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        tokens = [self.tokenizer(prompt) for prompt in prompts]
        device = self.text_encoder.device
        uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        attention_mask = torch.cat([one.attention_mask for one in tokens]).to(device) if uses_mask else None
        ids = torch.cat([one.ids for one in tokens]).to(device)
        hidden = self.text_encoder(ids, attention_mask=attention_mask)[0].to(self.text_encoder.dtype)
        # Copies: a kept embedding must not keep the others' memory.
        return [PromptEmbeds(row.clone(), cut_text=one.cut_text) for row, one in zip(hidden, tokens, strict=True)]
