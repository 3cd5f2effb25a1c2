"""serving.json: an optional file in a model directory with the best way to serve the model."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor
from torch.nn import functional

from synerdiff.errors import InvalidRequest
from synerdiff.models.layout import ModelLayout
from synerdiff.skip_cfg import SkipCfgBudget, SkipPredictor

FILE_NAME = "serving.json"


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


class PreviewFile(BaseModel):
    """A latent-to-RGB projection: `matrix` has three rows of one weight per latent channel, `bias` three numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    matrix: Annotated[list[list[float]], Field(min_length=3, max_length=3)]
    bias: Annotated[list[float], Field(min_length=3, max_length=3)]

    def projection(self) -> PreviewProjection:
        """The projection as tensors."""
        return PreviewProjection(matrix=torch.tensor(self.matrix), bias=torch.tensor(self.bias))


class SkipCfgFile(BaseModel):
    """A `SkipCfgBudget`, as `python -m services.unet_worker.fidelity` measures it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    predictor: str
    share: Annotated[float, Field(ge=0, lt=1)]
    longest_run: Annotated[int, Field(ge=1)]
    head: Annotated[int, Field(ge=1)]
    tail: Annotated[int, Field(ge=0)]
    floor_db: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    measured_db: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    least_calls: Annotated[int, Field(ge=0)]

    @field_validator("predictor")
    @classmethod
    def _readable(cls, text: str) -> str:
        try:
            SkipPredictor.parse(text)
        except InvalidRequest as error:
            raise ValueError(str(error)) from error
        return text

    def budget(self) -> SkipCfgBudget:
        """The same as a value of the scheduler's."""
        return SkipCfgBudget(**self.model_dump())


class ServingFile(BaseModel):
    """The fields of serving.json; missing ones come from the family and the configs. Sizes in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default_num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    default_guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_side: Annotated[int, Field(ge=1)] | None = None
    preview: PreviewFile | None = None
    skip_cfg: SkipCfgFile | None = None


def read_serving_file(layout: ModelLayout, latent_channels: int) -> ServingFile:
    """Read serving.json, if there is one; raises ModelLoadError naming the field that is wrong."""
    path = layout.path / FILE_NAME
    if not path.exists():
        return ServingFile()
    try:
        serving = ServingFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise layout.refuse(f"{FILE_NAME}: {field}: {first['msg']}") from error
    if serving.preview is not None and any(len(row) != latent_channels for row in serving.preview.matrix):
        raise layout.refuse(f"{FILE_NAME}: preview.matrix: every row must have {latent_channels} weights")
    return serving
