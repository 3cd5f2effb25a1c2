"""/v1/models: the models that there are, in OpenAI's form, with their cards."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field

from services.gateway.errors import unknown_model
from services.gateway.gateway import caller_of, gateway_of
from services.gateway.images.bodies import ErrorAnswer
from synerdiff.cards import Sampler
from synerdiff.client import Model

router = APIRouter(tags=["models"])

ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 429, 503)}


def _name(sampler: Sampler) -> str:
    return sampler.name.lower()


Name = Annotated[str, BeforeValidator(_name)]


class SamplerAnswer(BaseModel, from_attributes=True):
    """A sampler, and the num_inference_steps that it takes."""

    name: Name = Field(validation_alias="sampler")
    min_num_inference_steps: int
    max_num_inference_steps: int


class CardAnswer(BaseModel, from_attributes=True):
    """The bounds of requests for a model, and its defaults. Sizes in pixels."""

    name: str
    family: str
    available: bool = False
    width: int = Field(validation_alias="native_width")
    height: int = Field(validation_alias="native_height")
    size_multiple: int
    max_side: int
    num_inference_steps: int = Field(validation_alias="default_num_inference_steps")
    guidance_scale: float = Field(validation_alias="default_guidance_scale")
    sampler: Name = Field(validation_alias="default_sampler")
    samplers: list[SamplerAnswer]


class ModelAnswer(BaseModel):
    """A model. `id`: its name, or an alias of it. `created`: 0, since it is not recorded."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "synerdiff"
    synerdiff: CardAnswer


class ModelsAnswer(BaseModel):
    """Every model, by each of its names."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


@router.get("/v1/models", summary="The models", responses=ERRORS)
async def models(request: Request) -> ModelsAnswer:
    """OpenAI's models.list; `synerdiff` has the card of each."""
    found = await gateway_of(request).catalogue.models(caller_of(request).client)
    return ModelsAnswer(data=[model_answer(name, model) for name, model in found.items()])


@router.get("/v1/models/{name:path}", summary="One model", responses=ERRORS)
async def model(request: Request, name: str) -> ModelAnswer:
    """OpenAI's models.retrieve."""
    found = await gateway_of(request).catalogue.models(caller_of(request).client)
    if name not in found:
        raise unknown_model(name, sorted(found))
    return model_answer(name, found[name])


def model_answer(name: str, model: Model) -> ModelAnswer:
    """A model under one of its names."""
    card = CardAnswer.model_validate(model.card).model_copy(update={"available": model.available})
    return ModelAnswer(id=name, synerdiff=card)
