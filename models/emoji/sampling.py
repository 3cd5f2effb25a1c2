"""Pictures for the figures: DDIM with guidance on chosen steps, many prompts at once."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

PROMPTS_AT_ONCE = 50


def load_pipeline(model: Path) -> StableDiffusionPipeline:
    """The model in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.float32)


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    guidance_scale: float = 3.0,
    steps: int = 20,
    guided: Sequence[bool] | None = None,
    in_bfloat16: bool = True,
    at_once: int = PROMPTS_AT_ONCE,
) -> Tensor:
    """Finished latents [n, 4, 16, 16] of the prompts, prompt k from seed k.

    `guided[i]` says whether step i uses guidance (both branches) or the conditional prediction alone.
    """
    guided = [guidance_scale > 1.0] * steps if guided is None else guided
    batches = []
    for first in range(0, len(prompts), at_once):
        batch = prompts[first : first + at_once]
        seeds = range(first, first + len(batch))
        noise = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        batches.append(_denoise(pipeline, batch, noise, guidance_scale, guided, in_bfloat16))
    return torch.cat(batches)


def _denoise(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    latents: Tensor,
    guidance_scale: float,
    guided: Sequence[bool],
    in_bfloat16: bool,
) -> Tensor:
    conditional = _encode(pipeline, prompts)
    unconditional = _encode(pipeline, [""]).expand(len(prompts), -1, -1)
    both = torch.cat([unconditional, conditional])
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(len(guided))
    for timestep, is_guided in zip(scheduler.timesteps, guided, strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            if is_guided:
                rows = pipeline.unet(torch.cat([latents, latents]), timestep, encoder_hidden_states=both).sample
                without, with_prompt = rows.float().chunk(2)
                noise_pred = without + guidance_scale * (with_prompt - without)
            else:
                noise_pred = pipeline.unet(latents, timestep, encoder_hidden_states=conditional).sample.float()
        latents = scheduler.step(noise_pred, timestep, latents).prev_sample
    return latents


def _encode(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    tokenizer = pipeline.tokenizer
    ids = tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return pipeline.text_encoder(ids).last_hidden_state


@torch.no_grad()
def decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    """Pictures [n, 3, 128, 128] in [-1, 1]."""
    vae = pipeline.vae
    return torch.cat([vae.decode(batch / vae.config.scaling_factor).sample for batch in latents.split(16)]).clamp(-1, 1)
