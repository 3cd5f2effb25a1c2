"""Tokenizing, and the text encoder of the models that have one."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from synerdiff.models.family import PromptEmbeds
from synerdiff.models.layout import ModelLayout


@dataclass(frozen=True)
class Tokens:
    """One tokenized prompt: `ids` and `attention_mask` are [1, max_tokens]; `cut_text` is what did not fit."""

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
        """Tokenize one prompt."""
        with self.lock:
            padded = self.tokenizer(
                prompt, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
            )
            whole = self.tokenizer(prompt, verbose=False).input_ids
            cut_ids = whole[self.max_tokens - 1 : -1] if len(whole) > self.max_tokens else []
            cut_text = self.tokenizer.decode(cut_ids).strip() if cut_ids else ""
        return Tokens(ids=padded.input_ids, attention_mask=padded.attention_mask, cut_text=cut_text)


def load_tokenizer(layout: ModelLayout, component: str, text_config: dict[str, Any]) -> PromptTokenizer:
    """Load a tokenizer that fits the text encoder of `text_config`; raises ModelLoadError."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(layout.path), subfolder=component, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise layout.refuse(f"{component} does not load: {error}") from error
    positions = text_config.get("max_position_embeddings", 77)
    if tokenizer.model_max_length > positions:
        raise layout.refuse(
            f"{component} has model_max_length {tokenizer.model_max_length}, "
            f"but its text encoder takes {positions} tokens"
        )
    if len(tokenizer) > text_config.get("vocab_size", 49408):
        raise layout.refuse(f"{component} has {len(tokenizer)} entries, more than its text encoder knows")
    return PromptTokenizer(tokenizer)


@dataclass(frozen=True)
class ClipPromptEncoder:
    """One tokenizer and one CLIP text encoder, whose last hidden state is the embedding: SD 1.x and 2.x."""

    tokenizer: PromptTokenizer
    text_encoder: Any

    @property
    def max_tokens(self) -> int:
        """Tokens that fit, the start and end tokens included."""
        return self.tokenizer.max_tokens

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode prompts as StableDiffusionPipeline does, each alone."""
        return [self._encode_one(prompt) for prompt in prompts]

    def encode_negative(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode negative prompts: "" is a prompt like any other here."""
        return self.encode(prompts)

    @torch.no_grad()
    def _encode_one(self, prompt: str) -> PromptEmbeds:
        tokens = self.tokenizer(prompt)
        device = self.text_encoder.device
        uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        attention_mask = tokens.attention_mask.to(device) if uses_mask else None
        hidden = self.text_encoder(tokens.ids.to(device), attention_mask=attention_mask)[0][0]
        return PromptEmbeds(hidden=hidden.to(self.text_encoder.dtype), cut_text=tokens.cut_text)
