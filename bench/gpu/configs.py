"""The published configs of Stable Diffusion 1.5, 2.1 and XL base, and tiny ones of the same shape for CPUs.

Sources: unet/, vae/, text_encoder*/ and scheduler/ of the repositories stable-diffusion-v1-5, stable-diffusion-2-1 and
stable-diffusion-xl-base-1.0, less the defaults of diffusers' and transformers' classes. SD 1.5 is given DDIM here,
whose 20 steps are 20 UNet calls; its own PNDM makes 21.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

ModelName = Literal["sd15", "sd21", "sdxl"]
Config = Mapping[str, Any]

# The parameters of pictures of full-size models.
STEPS, GUIDANCE_SCALE = 20, 5.0

_VAE: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_BETAS: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_DDIM: Config = {**_BETAS, "clip_sample": False, "set_alpha_to_one": False}


@dataclass(frozen=True)
class ModelConfig:
    """The configs of one model. `side`: pixels of its native picture; `pad_tokens`: of each tokenizer.

    `unet_parameters_m`: millions of parameters of its UNet, as published; 0: not checked. `steps`: of the pictures
    that are asked for.
    """

    title: str
    side: int
    unet: Config
    vae: Config
    text_encoders: tuple[Config, ...]
    pad_tokens: tuple[str, ...]
    scheduler_class: str
    scheduler: Config
    unet_parameters_m: float = 0.0
    steps: int = STEPS

    @property
    def latent_side(self) -> int:
        """Latents of a native picture are this many wide and high."""
        return self.side // 8


FULL: Mapping[ModelName, ModelConfig] = {
    "sd15": ModelConfig(
        title="SD 1.5",
        side=512,
        unet={
            "sample_size": 64,
            "cross_attention_dim": 768,
        },
        vae=_VAE,
        text_encoders=(_CLIP_L,),
        pad_tokens=("<|endoftext|>",),
        scheduler_class="DDIMScheduler",
        scheduler=_DDIM,
        unet_parameters_m=859.5,
    ),
    "sd21": ModelConfig(
        title="SD 2.1",
        side=768,
        unet={
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        vae={**_VAE, "sample_size": 768},
        text_encoders=(
            {
                **_CLIP_L,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "projection_dim": 512,
                "hidden_act": "gelu",
            },
        ),
        pad_tokens=("!",),
        scheduler_class="DDIMScheduler",
        scheduler={**_DDIM, "prediction_type": "v_prediction"},
        unet_parameters_m=865.9,
    ),
    "sdxl": ModelConfig(
        title="SDXL",
        side=1024,
        unet={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
        vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        text_encoders=(
            _CLIP_L,
            {
                **_CLIP_L,
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "projection_dim": 1280,
                "hidden_act": "gelu",
            },
        ),
        pad_tokens=("<|endoftext|>", "!"),
        scheduler_class="EulerDiscreteScheduler",
        scheduler={**_BETAS, "timestep_spacing": "leading", "use_karras_sigmas": False},
        unet_parameters_m=2567.5,
    ),
}

_TINY_SIDE, _TINY_STEPS = 64, 8
_TINY_TEXT: Config = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY_VAE: Config = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": _TINY_SIDE,
}


def _tiny(full: ModelConfig) -> ModelConfig:
    widths = (32,) if len(full.text_encoders) == 1 else (32, 48)
    unet: dict[str, Any] = {
        **full.unet,
        "sample_size": _TINY_SIDE // 8,
        "block_out_channels": (32, 32, 64, 64)[: len(full.unet.get("block_out_channels", range(4)))],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": sum(widths),
        "attention_head_dim": 4,
    }
    if "transformer_layers_per_block" in unet:
        unet["transformer_layers_per_block"] = (1, 1, 2)
        unet["addition_time_embed_dim"] = 8
        unet["projection_class_embeddings_input_dim"] = 6 * 8 + widths[-1]
    texts = zip(full.text_encoders, widths, strict=True)
    return replace(
        full,
        title=f"tiny {full.title}",
        side=_TINY_SIDE,
        unet=unet,
        vae={**full.vae, **_TINY_VAE},
        text_encoders=tuple({**text, **_TINY_TEXT, "hidden_size": w, "projection_dim": w} for text, w in texts),
        unet_parameters_m=0.0,
        steps=_TINY_STEPS,
    )


TINY: Mapping[ModelName, ModelConfig] = {name: _tiny(full) for name, full in FULL.items()}
