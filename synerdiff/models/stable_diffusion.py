"""Stable Diffusion 1.x and 2.x: what they share of StableDiffusionPipeline, and the text encoder of each."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from synerdiff.models.family import Family, PromptEmbeds, PromptEncoder
from synerdiff.models.layout import ModelLayout
from synerdiff.models.prompts import ClipPromptEncoder, load_tokenizer, prompts_at_once
from synerdiff.models.weights import load_transformers_model


class StableDiffusionFamily(Family):
    """One CLIP text encoder, no added conditions, latents divided by the VAE's scaling factor."""

    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    default_num_inference_steps: ClassVar[int] = 50
    default_guidance_scale: ClassVar[float] = 7.5
    # The hidden_act that tells this family's text encoder from its sibling's.
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
    """Stable Diffusion 1.x (CLIP-L), and whatever shares its layout, whichever prediction type its scheduler names."""

    name: ClassVar[str] = "sd1"
    text_activation: ClassVar[str] = "quick_gelu"


class Sd2(StableDiffusionFamily):
    """Stable Diffusion 2.x, base (epsilon) and 768 (v_prediction): OpenCLIP-H without its last layer."""

    name: ClassVar[str] = "sd2"
    text_activation: ClassVar[str] = "gelu"
