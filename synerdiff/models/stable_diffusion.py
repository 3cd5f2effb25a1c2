"""Stable Diffusion 1.x, 2.x and XL base: their pipelines' common part, and the text encoders and conditions of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from synerdiff.models.family import Family, PromptEmbeds, PromptEncoder
from synerdiff.models.layout import ModelLayout
from synerdiff.models.prompts import ClipPromptEncoder, PromptTokenizer, in_batches, load_tokenizer, prompts_at_once
from synerdiff.models.weights import load_transformers_model

_TIME_IDS = 6  # original height and width, crop top and left, target height and width


class StableDiffusionFamily(Family):
    """One CLIP text encoder, no added conditions, latents divided by the VAE's scaling factor."""

    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    default_num_inference_steps: ClassVar[int] = 50
    default_guidance_scale: ClassVar[float] = 7.5
    # The hidden_act by which this family's text encoder differs from its sibling's.
    text_activation: ClassVar[str]

    def matches(self, layout: ModelLayout) -> bool:
        """Whether a directory is of this family."""
        if layout.pipeline_class != self.pipeline_class:
            return False
        return bool(layout.config("text_encoder").get("hidden_act", "quick_gelu") == self.text_activation)

    def check(self, layout: ModelLayout) -> None:
        """Raise ModelLoadError when the directory's parts do not fit together."""
        layout.require("text_encoder", "CLIPTextModel")
        layout.require("tokenizer", "CLIPTokenizer", "CLIPTokenizerFast")
        unet = layout.config("unet")
        if unet.get("addition_embed_type") is not None:
            raise layout.refuse(f"its UNet wants added conditions ({unet['addition_embed_type']})")
        width = layout.integer("text_encoder", "hidden_size", 512)
        if unet.get("cross_attention_dim", 1280) != width:
            raise layout.refuse(
                f"its UNet attends to {unet.get('cross_attention_dim')} features, but the text encoder gives {width}"
            )

    def load_encoder(
        self, layout: ModelLayout, dtype: torch.dtype, variant: str, device: torch.device
    ) -> PromptEncoder:
        """Load tokenizer and text encoder; raises ModelLoadError."""
        from transformers import CLIPTextModel

        return ClipPromptEncoder(
            tokenizer=load_tokenizer(layout, "tokenizer", "text_encoder"),
            text_encoder=load_transformers_model(CLIPTextModel, layout, "text_encoder", dtype, variant, device),
            at_once=prompts_at_once(device),
        )

    def added_conditions(self, embeds: Sequence[PromptEmbeds], width: int, height: int) -> dict[str, Tensor] | None:
        """None: these UNets take none."""
        return None

    def unscale(self, latents: Tensor, vae_config: Mapping[str, Any]) -> Tensor:
        """Undo the VAE's scaling factor."""
        return latents / float(vae_config["scaling_factor"])

    def vae_dtype(self, vae_config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
        """The model's own dtype."""
        return dtype


class Sd1(StableDiffusionFamily):
    """Stable Diffusion 1.x (CLIP-L), and other models of its layout, with any prediction type of the scheduler."""

    name: ClassVar[str] = "sd1"
    text_activation: ClassVar[str] = "quick_gelu"


class Sd2(StableDiffusionFamily):
    """Stable Diffusion 2.x, base (epsilon) and 768 (v_prediction): OpenCLIP-H without its last layer."""

    name: ClassVar[str] = "sd2"
    text_activation: ClassVar[str] = "gelu"


@dataclass(frozen=True)
class SdxlPromptEncoder:
    """Two tokenizers and text encoders: last but one hidden states side by side, pooled by the second."""

    tokenizers: tuple[PromptTokenizer, PromptTokenizer]
    text_encoders: tuple[Any, Any]
    zeros_for_empty_negative: bool
    at_once: int = 1

    @property
    def max_tokens(self) -> int:
        """Tokens that fit, the start and end tokens included."""
        return self.tokenizers[0].max_tokens

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode prompts as StableDiffusionXLPipeline does."""
        return in_batches(prompts, self.at_once, self._encode)

    def encode_negative(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode negative prompts; without one the pipeline takes zeros, if its config says so."""
        encoded = iter(self.encode([prompt for prompt in prompts if not self._takes_zeros(prompt)]))
        return [self._zeros() if self._takes_zeros(prompt) else next(encoded) for prompt in prompts]

    def _takes_zeros(self, negative_prompt: str) -> bool:
        return not negative_prompt and self.zeros_for_empty_negative

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        hidden, cut_texts, pooled = [], [], None
        for tokenizer, text_encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            tokens = [tokenizer(prompt) for prompt in prompts]
            ids = torch.cat([one.ids for one in tokens]).to(text_encoder.device)
            output = text_encoder(ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            cut_texts.append([one.cut_text for one in tokens])
            pooled = output[0]
        assert pooled is not None
        together = torch.cat(hidden, dim=-1).to(self.text_encoders[1].dtype)
        # Copies: a kept embedding must not keep the others' memory.
        return [
            PromptEmbeds(row.clone(), pooled_row.clone(), max(texts, key=len))
            for row, pooled_row, texts in zip(together, pooled, zip(*cut_texts, strict=True), strict=True)
        ]

    def _zeros(self) -> PromptEmbeds:
        second = self.text_encoders[1]
        dim = sum(text_encoder.config.hidden_size for text_encoder in self.text_encoders)
        return PromptEmbeds(
            hidden=torch.zeros(self.max_tokens, dim, dtype=second.dtype, device=second.device),
            pooled=torch.zeros(second.config.projection_dim, dtype=second.dtype, device=second.device),
        )


class Sdxl(Family):
    """Stable Diffusion XL base."""

    name: ClassVar[str] = "sdxl"
    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    default_num_inference_steps: ClassVar[int] = 50
    default_guidance_scale: ClassVar[float] = 5.0

    def matches(self, layout: ModelLayout) -> bool:
        """Whether a directory is of this family."""
        return layout.pipeline_class == self.pipeline_class

    def check(self, layout: ModelLayout) -> None:
        """Raise ModelLoadError when the directory's parts do not fit together."""
        layout.require("text_encoder", "CLIPTextModel")
        layout.require("text_encoder_2", "CLIPTextModelWithProjection")
        layout.require("tokenizer", "CLIPTokenizer", "CLIPTokenizerFast")
        layout.require("tokenizer_2", "CLIPTokenizer", "CLIPTokenizerFast")
        unet = layout.config("unet")
        if unet.get("addition_embed_type") != "text_time":
            raise layout.refuse(f"its UNet has addition_embed_type {unet.get('addition_embed_type')}, not text_time")
        width = sum(layout.integer(encoder, "hidden_size", 512) for encoder in ("text_encoder", "text_encoder_2"))
        if unet.get("cross_attention_dim") != width:
            raise layout.refuse(
                f"its UNet attends to {unet.get('cross_attention_dim')} features, but the text encoders give {width}"
            )
        added = layout.integer("unet", "addition_time_embed_dim", 0) * _TIME_IDS
        added += layout.integer("text_encoder_2", "projection_dim", 512)
        if unet.get("projection_class_embeddings_input_dim") != added:
            raise layout.refuse(
                f"its UNet takes {unet.get('projection_class_embeddings_input_dim')} added features, "
                f"but the pooled prompt and {_TIME_IDS} size ids give {added} (a refiner is not served)"
            )

    def load_encoder(
        self, layout: ModelLayout, dtype: torch.dtype, variant: str, device: torch.device
    ) -> PromptEncoder:
        """Load both tokenizers and text encoders; raises ModelLoadError."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        tokenizers = (
            load_tokenizer(layout, "tokenizer", "text_encoder"),
            load_tokenizer(layout, "tokenizer_2", "text_encoder_2"),
        )
        if tokenizers[0].max_tokens != tokenizers[1].max_tokens:
            raise layout.refuse("its tokenizers differ in model_max_length")
        text_encoders = (
            load_transformers_model(CLIPTextModel, layout, "text_encoder", dtype, variant, device),
            load_transformers_model(CLIPTextModelWithProjection, layout, "text_encoder_2", dtype, variant, device),
        )
        zeros = bool(layout.index.get("force_zeros_for_empty_prompt", True))
        return SdxlPromptEncoder(tokenizers, text_encoders, zeros, prompts_at_once(device))

    def added_conditions(self, embeds: Sequence[PromptEmbeds], width: int, height: int) -> dict[str, Tensor] | None:
        """Pooled prompts [rows, dim], and sizes [rows, 6]: the picture as if never scaled nor cropped."""
        pooled = torch.stack([row.pooled for row in embeds if row.pooled is not None])
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled.dtype)
        return {"text_embeds": pooled, "time_ids": time_ids.repeat(len(embeds), 1)}

    def unscale(self, latents: Tensor, vae_config: Mapping[str, Any]) -> Tensor:
        """Undo the VAE's scaling factor, and its mean and deviation where the config has them."""
        mean, std = vae_config.get("latents_mean"), vae_config.get("latents_std")
        scaling_factor = float(vae_config["scaling_factor"])
        if mean is None or std is None:
            return latents / scaling_factor
        return latents * _per_channel(std, latents) / scaling_factor + _per_channel(mean, latents)

    def vae_dtype(self, vae_config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
        """float32 where the VAE is known to overflow in float16."""
        return torch.float32 if dtype == torch.float16 and vae_config.get("force_upcast", True) else dtype


def _per_channel(values: Sequence[float], latents: Tensor) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1).to(latents.device, latents.dtype)
