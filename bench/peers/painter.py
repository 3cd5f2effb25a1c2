"""A diffusers pipeline as people use it: one call for a list of prompts, eager or compiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo.config
import torch._inductor.config
from diffusers import DiffusionPipeline

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
FORMATS = {"contiguous": CONTIGUOUS, "channels_last": CHANNELS_LAST}
# From latents of this side on, pictures are decoded one by one: at once they would not fit a GPU, and one fills it.
_SLICED_FROM = 128


class Alike(NamedTuple):
    """What all requests of one call must have in common. Sizes in pixels, None: the model's own."""

    num_inference_steps: int
    guidance_scale: float
    width: int | None
    height: int | None
    has_negative_prompt: bool


@dataclass(frozen=True)
class Asked:
    prompt: str
    seed: int
    alike: Alike
    negative_prompt: str = ""


class Painter:
    """A pipeline of a model directory. Not for several threads at once. `device`: cpu or cuda.

    `compiled`: its UNet and its VAE's decoder run through inductor with frozen weights, each batch size for itself;
    the first call of a size compiles it. On a GPU only the UNet's blocks are compiled, as diffusers advises: whole, it
    takes minutes.
    """

    def __init__(self, model: Path, dtype: torch.dtype, *, compiled: bool, device: str = "cpu") -> None:
        self.pipeline: Any = DiffusionPipeline.from_pretrained(
            str(model), dtype=dtype, use_safetensors=True, local_files_only=True
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(device)
        self._on_gpu = device != "cpu"
        if self._on_gpu and self.pipeline.unet.config.sample_size >= _SLICED_FROM:
            self.pipeline.vae.enable_slicing()
        self._networks = (self.pipeline.unet, self.pipeline.vae)
        for network in self._networks:
            network.eval().requires_grad_(False)
        self._format = "contiguous"
        if compiled and self._on_gpu:
            torch._dynamo.config.recompile_limit = 64
            self.pipeline.unet.compile_repeated_blocks(dynamic=False)
        elif compiled:
            torch._inductor.config.freezing = True
            torch._dynamo.config.recompile_limit = 64
            self.pipeline.unet = torch.compile(self.pipeline.unet, dynamic=False)
            self.pipeline.vae.decoder = torch.compile(self.pipeline.vae.decoder, dynamic=False)

    def use_format(self, name: str) -> None:
        """Lay the weights out so, one of FORMATS. Not for a compiled pipeline."""
        if name != self._format:
            for network in self._networks:
                network.to(memory_format=FORMATS[name])
            self._format = name

    @torch.inference_mode()
    def draw(self, asked: Sequence[Asked], size: int, output_type: str = "pil") -> Sequence[Any]:
        """Pictures of alike requests, in one call of `size`; "pil", or "pt" for a tensor [n, 3, height, width]."""
        padded = [*asked, *([asked[-1]] * (size - len(asked)))]
        alike = asked[0].alike
        pictures: Sequence[Any] = self.pipeline(
            [one.prompt for one in padded],
            negative_prompt=[one.negative_prompt for one in padded] if alike.has_negative_prompt else None,
            num_inference_steps=alike.num_inference_steps,
            guidance_scale=alike.guidance_scale,
            width=alike.width,
            height=alike.height,
            generator=[torch.Generator("cpu").manual_seed(one.seed) for one in padded],
            output_type=output_type,
        ).images
        if self._on_gpu:
            torch.cuda.synchronize()
        return pictures[: len(asked)]
