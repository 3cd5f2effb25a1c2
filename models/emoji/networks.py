"""The networks, untrained: a small VAE, UNet and CLIP text encoder of the Stable Diffusion layout."""

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 32  # tokenizer and text encoder agree
TEXT_WIDTH = 128
LATENT_CHANNELS = 4

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


def make_vae() -> AutoencoderKL:
    """2.7 M parameters, 8x downsampling."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        sample_size=128,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """0.9 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """8.5 M parameters; cross-attention at the 8x8 level and in the middle block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, in this class
        norm_num_groups=32,
    )


@torch.no_grad()
def start_as_resampler(vae: AutoencoderKL) -> None:
    """Make a fresh autoencoder start as (nearly) a linear 8x down and up sampler.

    Residual branches are off, resampling convolutions average or copy, shortcuts are the identity. Without it colours
    take thousands of steps.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            _quieten_residual(module)
        elif isinstance(module, Attention):
            module.to_out[0].weight.mul_(0.1)
        elif isinstance(module, Downsample2D | Upsample2D):
            _make_resampling(module)
    vae.quant_conv.bias[LATENT_CHANNELS:] = -7.0  # a nearly deterministic posterior


def _quieten_residual(block: ResnetBlock2D) -> None:
    block.conv2.weight.mul_(0.1)
    block.conv2.bias.zero_()
    if block.conv_shortcut is None:
        return
    weight = block.conv_shortcut.weight
    channels = min(weight.shape[:2])
    weight[:channels].mul_(0.1)
    weight[range(channels), range(channels)] += 1
    block.conv_shortcut.bias.zero_()


def _make_resampling(module: Downsample2D | Upsample2D) -> None:
    weight = module.conv.weight
    weight.mul_(0.2)
    module.conv.bias.zero_()
    same = range(weight.shape[0])
    if isinstance(module, Downsample2D):
        weight[same, same, 0:2, 0:2] += 0.25  # padded by (0, 1, 0, 1): a 2x2 mean
    else:
        weight[same, same, 1, 1] += 1
