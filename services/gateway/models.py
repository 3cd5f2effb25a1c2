"""/v1/models: the models that there are, in OpenAI's form, with their cards."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from services.gateway.errors import unknown_model
from services.gateway.gateway import caller_of, gateway_of
from services.gateway.images.bodies import ErrorAnswer
from synerdiff.client import Model

router = APIRouter(tags=["models"])

ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 429, 503)}


class SamplerAnswer(BaseModel):
    """A sampler, and the num_inference_steps that it takes."""

    name: str
    min_num_inference_steps: int
    max_num_inference_steps: int


class CardAnswer(BaseModel):
    """What requests for a model may ask for, and what they get when they do not say. Sizes in pixels."""

    name: str
    family: str
    available: bool
    width: int
    height: int
    size_multiple: int
    max_side: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    samplers: list[SamplerAnswer]


class ModelAnswer(BaseModel):
    """A model. `id`: its name, or an alias of it. `created`: 0, for nobody keeps that."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    synerdiff: CardAnswer


class ModelsAnswer(BaseModel):
    """Every model, by each of its names."""

    object: Literal["list"]
    data: list[ModelAnswer]


@router.get("/v1/models", summary="The models", response_model=ModelsAnswer, responses=ERRORS)
async def models(request: Request) -> Response:
    """OpenAI's models.list; `synerdiff` has what each takes."""
    found = await gateway_of(request).catalogue.models(caller_of(request).client)
    return JSONResponse({"object": "list", "data": [model_answer(name, model) for name, model in found.items()]})


@router.get("/v1/models/{name:path}", summary="One model", response_model=ModelAnswer, responses=ERRORS)
async def model(request: Request, name: str) -> Response:
    """OpenAI's models.retrieve."""
    found = await gateway_of(request).catalogue.models(caller_of(request).client)
    if name not in found:
        raise unknown_model(name, sorted(found))
    return JSONResponse(model_answer(name, found[name]))


def model_answer(name: str, model: Model) -> dict[str, Any]:
    """A model under one of its names."""
    card = model.card
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "synerdiff",
        "synerdiff": {
            "name": card.name,
            "family": card.family,
            "available": model.available,
            "width": card.native_width,
            "height": card.native_height,
            "size_multiple": card.size_multiple,
            "max_side": card.max_side,
            "num_inference_steps": card.default_num_inference_steps,
            "guidance_scale": card.default_guidance_scale,
            "sampler": card.default_sampler.name.lower(),
            "samplers": [
                {
                    "name": limits.sampler.name.lower(),
                    "min_num_inference_steps": limits.min_num_inference_steps,
                    "max_num_inference_steps": limits.max_num_inference_steps,
                }
                for limits in card.samplers
            ],
        },
    }
