"""Cheap previews: a linear map from latents to RGB, one pixel per latent, no VAE call."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class PreviewProjection:
    """RGB in [0, 1] ~ `matrix` [3, C] @ latent [C] + `bias` [3]; both float32 on the CPU."""

    matrix: Tensor
    bias: Tensor

    def images(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Project latents [n, C, h, w] into small pictures [n, h, w, 3], uint8."""
        channels_last = latents.detach().to("cpu", torch.float32).permute(0, 2, 3, 1)
        rgb = channels_last @ self.matrix.T + self.bias
        pixels: npt.NDArray[np.uint8] = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return pixels


def fit_projection(latents: Tensor, images: npt.NDArray[np.uint8]) -> PreviewProjection:
    """Fit by least squares: latents [n, C, h, w] against the pictures [n, H, W, 3] that they decode to."""
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    patches = functional.adaptive_avg_pool2d(pictures, (latents.shape[-2], latents.shape[-1]))
    colours = patches.permute(0, 2, 3, 1).reshape(-1, 3)
    samples = latents.double().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    design = torch.cat([samples, torch.ones(len(samples), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, colours).solution.float()
    return PreviewProjection(matrix=solution[:-1].T.contiguous(), bias=solution[-1].contiguous())
