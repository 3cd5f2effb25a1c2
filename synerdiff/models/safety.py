"""The safety checker that a model directory may carry, run as the diffusers pipeline runs it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPImageProcessor


@dataclass(frozen=True)
class SafetyChecker:
    """diffusers' checker with the feature extractor that prepares its input."""

    model: StableDiffusionSafetyChecker
    feature_extractor: CLIPImageProcessor

    @torch.no_grad()
    def __call__(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], list[bool]]:
        """Check pictures [n, H, W, 3]; returns them with flagged ones black, and which were flagged."""
        features = self.feature_extractor([Image.fromarray(image) for image in images], return_tensors="pt")
        pixel_values = features.pixel_values.to(self.model.device, self.model.dtype)
        # The checker blackens its input in place, so it gets a copy.
        checked, flagged = self.model(images=images.copy(), clip_input=pixel_values)
        return checked, [bool(flag) for flag in flagged]
