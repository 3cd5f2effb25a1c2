"""Randomly initialised diffusers-layout directories of the exact architecture of each family, small enough to test."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

FamilyName = Literal["sd1", "sd2", "sdxl"]

EMOJI_MODEL = Path(__file__).parent.parent / "models" / "emoji" / "model"
NATIVE_SIZE = 64  # pixels; latents of 8 x 8

# As in the scheduler_config.json of Stable Diffusion 1.5, 2.1 and XL base.
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_SD_SCHEDULER = {
    **_BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_SDXL_SCHEDULER = {
    **_SD_SCHEDULER,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}

# SDXL reads a layer whose output is not normalised: embeddings of the others' size would make a UNet so steep that it
# turns rounding errors into other pictures within a few steps.
_UNNORMALISED = {"initializer_factor": 5.0}


def tiny_model(
    family: FamilyName,
    path: Path,
    *,
    safety_checker: bool = False,
    safety_threshold: float = 1.0,
    variant: str | None = None,
) -> Path:
    """Build a seeded tiny model of `family` in the directory `path`, and return that.

    With `safety_checker`, pictures whose concept similarity reaches `safety_threshold` are flagged: 1.0 flags none and
    -1.0 flags all. `variant="fp16"` writes half-precision weights under the variant's file names.
    """
    torch.manual_seed({"sd1": 1, "sd2": 2, "sdxl": 3}[family])
    pipeline = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl}[family]()
    if safety_checker:
        pipeline.register_modules(
            safety_checker=_safety_checker(safety_threshold),
            feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        )
    if variant == "fp16":
        pipeline.to(torch.float16)
    pipeline.save_pretrained(path, safe_serialization=True, variant=variant)
    return path


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON config file in place."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def _sd1() -> StableDiffusionPipeline:
    return _stable_diffusion(
        scheduler=PNDMScheduler.from_config(_SD_SCHEDULER),
        text_encoder=CLIPTextModel(_text_config(hidden_act="quick_gelu")),
        tokenizer=_tokenizer(pad_token="<|endoftext|>"),
        unet=_unet(attention_head_dim=4),
    )


def _sd2() -> StableDiffusionPipeline:
    return _stable_diffusion(
        scheduler=DDIMScheduler.from_config(_SD_SCHEDULER | {"prediction_type": "v_prediction"}),
        text_encoder=CLIPTextModel(_text_config(hidden_act="gelu", projection_dim=64)),
        tokenizer=_tokenizer(pad_token="!"),
        unet=_unet(attention_head_dim=[2, 4], use_linear_projection=True),
    )


def _stable_diffusion(**components: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        **components,
        vae=_vae(scaling_factor=0.18215),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    pooled_dim, time_dim, time_ids = 48, 8, 6
    unet = _unet(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[2, 2, 4],
        transformer_layers_per_block=[1, 1, 2],
        cross_attention_dim=32 + 48,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_dim,
        projection_class_embeddings_input_dim=time_dim * time_ids + pooled_dim,
    )
    return StableDiffusionXLPipeline(
        scheduler=EulerDiscreteScheduler.from_config(_SDXL_SCHEDULER),
        text_encoder=CLIPTextModel(_text_config(hidden_act="quick_gelu", **_UNNORMALISED)),
        text_encoder_2=CLIPTextModelWithProjection(
            _text_config(hidden_act="gelu", hidden_size=48, projection_dim=pooled_dim, **_UNNORMALISED)
        ),
        tokenizer=_tokenizer(pad_token="<|endoftext|>"),
        tokenizer_2=_tokenizer(pad_token="!"),
        unet=unet,
        vae=_vae(scaling_factor=0.13025, force_upcast=True),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _tokenizer(pad_token: str) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(EMOJI_MODEL / "tokenizer", pad_token=pad_token)


def _text_config(**changes: Any) -> CLIPTextConfig:
    tokenizer = _tokenizer(pad_token="<|endoftext|>")
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "projection_dim": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        # Far above CLIP's own 0.02: a random encoder must still tell prompts apart.
        "initializer_factor": 20.0,
    }
    return CLIPTextConfig(**(settings | changes))


def _unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": NATIVE_SIZE // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    }
    unet = UNet2DConditionModel(**(settings | changes))
    with torch.no_grad():
        # A fresh UNet answers almost nothing, whatever the prompt: make noise_pred about as large as noise.
        unet.conv_out.weight.mul_(3.0)
    return unet


def _vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=NATIVE_SIZE,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        **({"force_upcast": False} | changes),
    )


def _safety_checker(threshold: float) -> StableDiffusionSafetyChecker:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 16,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    with torch.no_grad():
        checker.concept_embeds.normal_()
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds.normal_()
    return checker
