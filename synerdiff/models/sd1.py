"""Stable Diffusion 1.x: the CLIP-L text encoder."""

from typing import ClassVar

from synerdiff.models.stable_diffusion import StableDiffusionFamily


class Sd1(StableDiffusionFamily):
    """Stable Diffusion 1.x, and whatever shares its layout, whichever prediction type its scheduler names."""

    name: ClassVar[str] = "sd1"
    text_activation: ClassVar[str] = "quick_gelu"
