"""The networks of a random model in this process, called as bare modules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from bench.gpu.configs import ModelName
from bench.gpu.kit import Kit
from bench.gpu.models import unet_arguments
from bench.gpu.timing import Call, graphed

FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Networks:
    """UNet and VAE of one model on the kit's device, in `dtype`."""

    kit: Kit
    name: ModelName
    unet: Any
    vae: Any
    dtype: torch.dtype

    @classmethod
    def load(cls, kit: Kit, name: ModelName) -> "Networks":
        dtype = getattr(torch, kit.dtype)
        found = [
            module.from_pretrained(str(kit.model_path(name)), subfolder=part, dtype=dtype, local_files_only=True)
            for module, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        ]
        unet, vae = (each.to(kit.device, dtype).eval().requires_grad_(False) for each in found)
        return cls(kit, name, unet, vae, dtype)

    def step(self, rows: int, layout: str = "NCHW") -> Call:
        arguments = unet_arguments(self.kit.config(self.name), rows, self.kit.device, self.dtype)
        arguments["sample"] = arguments["sample"].to(memory_format=FORMATS[layout])
        self.unet.to(memory_format=FORMATS[layout])
        return _no_gradients(lambda: self.unet(**arguments)[0])

    def decode(self, images: int, layout: str = "NCHW", dtype: torch.dtype | None = None) -> Call:
        """A decode of so many pictures; the VAE is left in that layout and dtype."""
        side, dtype = self.kit.config(self.name).latent_side, dtype or self.dtype
        self.vae.to(dtype=dtype, memory_format=FORMATS[layout])
        latents = torch.randn(images, 4, side, side, device=self.kit.device, dtype=dtype)
        latents = latents.to(memory_format=FORMATS[layout])
        return _no_gradients(lambda: self.vae.decode(latents, return_dict=False)[0])

    def captured(self, call: Call) -> tuple[str, Call]:
        """A call as a graph where that can be had, and how it runs."""
        if self.kit.tiny:
            return "eager", call
        try:
            return "graph", graphed(call)
        except Exception as error:
            self.kit.record("trouble", what=f"{self.name}: capturing", error=str(error)[-1000:])
            torch.cuda.empty_cache()
            return "eager", call


def _no_gradients(call: Callable[[], Any]) -> Call:
    def without() -> Any:
        with torch.inference_mode():
            return call()

    return without
