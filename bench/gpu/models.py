"""Model directories at full size with random weights, made in seconds and without a network.

Speed does not depend on the values of weights, so one random block, tiled and scaled by 1/sqrt(fan_in), fills them all.
The pictures mean nothing. Their budget of skipped guidance was never measured: they get the bundled model's, so that
skipping can be timed.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bench.gpu.configs import GUIDANCE_SCALE, ModelConfig, ModelName
from bench.gpu.kit import Kit
from synerdiff_cli.deployment import BUNDLED_MODEL

TOKENS = 77

_ORDER: tuple[ModelName, ...] = ("sd15", "sdxl", "sd21")
_BLOCK_ELEMENTS = 1 << 22
_COMPONENTS = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")


def run(kit: Kit) -> None:
    """Make the directories in the order of need, and count costs. Raises AssertionError for an unpublished config."""
    kit.model_path(_ORDER[0]).parent.mkdir(parents=True, exist_ok=True)
    for name in _ORDER:
        began, config = time.monotonic(), kit.config(name)
        costs = count_costs(config)
        published = config.unet_parameters_m
        assert not published or abs(costs["unet_parameters_m"] - published) < 0.1, f"{name}: {costs}, not {published}"
        save_model(config, kit.model_path(name))
        kit.record("cost", model=name, title=config.title, side=config.side, **costs, seconds=time.monotonic() - began)


def meta_unet(config: ModelConfig) -> Any:
    with torch.device("meta"):
        return UNet2DConditionModel(**config.unet)


def meta_vae(config: ModelConfig) -> Any:
    with torch.device("meta"):
        return AutoencoderKL(**config.vae)


def parameters_m(module: Any) -> float:
    return float(sum(parameter.numel() for parameter in module.parameters())) / 1e6


def save_model(config: ModelConfig, path: Path) -> None:
    """Write a model directory of these configs in diffusers' layout, float16; it is at `path` once it is whole."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline = _pipeline(config, random_block())
    pipeline.save_pretrained(unfinished, safe_serialization=True)
    budget = json.loads((BUNDLED_MODEL / "serving.json").read_text())["skip_cfg"]
    own = {"default_num_inference_steps": config.steps, "default_guidance_scale": GUIDANCE_SCALE}
    (unfinished / "serving.json").write_text(json.dumps({**own, "skip_cfg": budget | {"least_calls": config.steps}}))
    unfinished.rename(path)


def random_block(elements: int = _BLOCK_ELEMENTS) -> Tensor:
    """The values that fill weights: as many as no row of a matrix divides; so no two rows are alike."""
    return torch.randn(elements + 1, generator=torch.Generator().manual_seed(1)).half()


def fill(module: Any, block: Tensor) -> Any:
    """Give a module without weights the random ones of `block`: norms multiply by 1, biases add nothing."""
    weights = {name: _weight(name, tensor.shape, block) for name, tensor in module.state_dict().items()}
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def unet_arguments(config: ModelConfig, rows: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The keyword arguments of a call of `config`'s UNet for so many rows; random, but on "meta"."""
    width = config.unet["cross_attention_dim"]
    arguments: dict[str, Any] = {
        "sample": torch.randn(rows, 4, config.latent_side, config.latent_side, device=device, dtype=dtype),
        "timestep": torch.full((rows,), 500.0, device=device),
        "encoder_hidden_states": torch.randn(rows, TOKENS, width, device=device, dtype=dtype),
        "return_dict": False,
    }
    if "addition_embed_type" in config.unet:
        pooled = config.text_encoders[-1]["projection_dim"]
        arguments["added_cond_kwargs"] = {
            "text_embeds": torch.randn(rows, pooled, device=device, dtype=dtype),
            "time_ids": torch.ones(rows, 6, device=device, dtype=dtype),
        }
    return arguments


def count_costs(config: ModelConfig) -> dict[str, float]:
    """TFLOP of a UNet row and of a decode by torch's own counter, and millions of parameters of either."""
    unet, vae = meta_unet(config), meta_vae(config)
    latents = torch.empty(1, 4, config.latent_side, config.latent_side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as of_row:
        unet(**unet_arguments(config, 1, "meta", torch.float32))
    with torch.no_grad(), FlopCounterMode(display=False) as of_decode:
        vae.decode(latents)
    return {
        "row_tflop": of_row.get_total_flops() / 1e12,
        "decode_tflop": of_decode.get_total_flops() / 1e12,
        "unet_parameters_m": parameters_m(unet),
        "decoder_parameters_m": parameters_m(vae.decoder),
    }


def _pipeline(config: ModelConfig, block: Tensor) -> DiffusionPipeline:
    tokenizers = [
        CLIPTokenizer.from_pretrained(BUNDLED_MODEL / "tokenizer", pad_token=pad, model_max_length=TOKENS)
        for pad in config.pad_tokens
    ]
    ends = {"bos_token_id": tokenizers[0].bos_token_id, "eos_token_id": tokenizers[0].eos_token_id}
    encoders = []
    for number, text in enumerate(config.text_encoders):
        cls = CLIPTextModelWithProjection if number else CLIPTextModel
        with torch.device("meta"):
            empty = cls(CLIPTextConfig(**text, **ends))
        encoders.append(fill(empty, block))
    components: dict[str, Any] = {
        **dict(zip(_COMPONENTS, encoders, strict=False)),
        **dict(zip(_TOKENIZERS, tokenizers, strict=False)),
        "unet": fill(meta_unet(config), block),
        "vae": fill(meta_vae(config), block),
        "scheduler": getattr(diffusers, config.scheduler_class).from_config(dict(config.scheduler)),
    }
    if len(encoders) > 1:
        return diffusers.StableDiffusionXLPipeline(**components, add_watermarker=False)
    return diffusers.StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _weight(name: str, shape: torch.Size, block: Tensor) -> Tensor:
    if len(shape) < 2:
        fill_with = 1.0 if name.endswith("weight") else 0.0
        return torch.full(shape, fill_with, dtype=torch.float16)
    elements, fan_in = shape.numel(), math.prod(shape[1:])
    tiled = block.repeat(-(-elements // len(block)))[:elements] if elements > len(block) else block[:elements].clone()
    return tiled.mul_(fan_in**-0.5).reshape(shape)
