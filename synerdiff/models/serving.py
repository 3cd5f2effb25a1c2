"""serving.json: an optional file in a model directory that says how the model is best served."""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from synerdiff.errors import InvalidRequest
from synerdiff.models.layout import ModelLayout
from synerdiff.models.preview import PreviewProjection
from synerdiff.skip_cfg import SkipCfgBudget, SkipPredictor

FILE_NAME = "serving.json"


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
