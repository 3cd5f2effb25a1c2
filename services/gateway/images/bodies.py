"""The bodies of /v1/images: requests of OpenAI's clients, SynerDiff's additional fields, and answers."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from synerdiff.cards import Sampler

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
OutputFormat = Literal["png", "jpeg", "webp"]

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_SAMPLERS = ", ".join(f"`{sampler.name.lower()}`" for sampler in Sampler)


def _size(value: str) -> str:
    if value != "auto" and not _SIZE.fullmatch(value):
        raise ValueError(f"{value[:32]!r} is not WIDTHxHEIGHT in pixels, such as 512x512, nor auto")
    return value


def _base64_only(value: object) -> object:
    if value == "url":
        raise ValueError("'url' is not served: nothing is kept to be fetched; leave it out, or say b64_json")
    return value


def _opaque_only(value: object) -> object:
    if value == "transparent":
        raise ValueError("'transparent' is not served: pictures are opaque")
    return value


class GenerationBody(BaseModel):
    """The picture to draw. A parameter that is left out, or null, is the model's or the server's default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(description="What to draw; at most 8 KiB of UTF-8.")
    model: str | None = Field(None, description="A model's name or alias; may be left out where there is one.")
    n: int | None = Field(None, ge=1, le=10, description="How many pictures; picture k is drawn from seed + k.")
    size: Annotated[str, AfterValidator(_size)] | None = Field(
        None,
        description="`WIDTHxHEIGHT` in pixels, within the model's bounds; `auto`: its native size.",
        json_schema_extra={"examples": ["auto", "512x512"]},
    )
    quality: Quality | None = Field(
        None,
        description="How many denoising steps, by the model's default: `low` half as many, `medium` and `auto` that, "
        "`high` twice, `xhigh` three and `max` four times; `standard` is `medium`, `hd` is `high`. "
        "`num_inference_steps` goes before it.",
    )
    output_format: OutputFormat | None = Field(None, description="`png` if left out.")
    output_compression: int | None = Field(
        None,
        ge=0,
        le=100,
        description="JPEG's and WebP's quality. Left out or 100: JPEG at 95 without subsampling, WebP lossless.",
    )
    response_format: Annotated[Literal["b64_json"], BeforeValidator(_base64_only)] | None = Field(
        None, description="Pictures always come as base64."
    )
    background: Annotated[Literal["auto", "opaque"], BeforeValidator(_opaque_only)] | None = Field(
        None, description="Pictures are opaque."
    )
    moderation: Literal["auto", "low"] | None = Field(
        None, description="Without effect: the model's own safety checker decides, where it has one."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="With `stream`: at most so many previews of each picture on the way."
    )
    user: str | None = Field(None, description="Without effect; told back as `safety_identifier`.")
    safety_identifier: str | None = Field(None, description="Without effect; told back.")

    negative_prompt: str | None = Field(None, description="What not to draw.")
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps, within the sampler's bounds.")
    guidance_scale: float | None = Field(None, ge=0, le=100, description="Pull towards the prompt; up to 1: none.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed, the same picture; drawn if left out.")
    sampler: str | None = Field(None, description=f"One of the model's: {_SAMPLERS}.")
    skip_cfg: bool | list[int] | None = Field(
        None, description="false: guidance on every step; a list of zero-based steps: skipped on exactly those."
    )

    @property
    def sides(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None: the model's own."""
        match = _SIZE.fullmatch(self.size or "auto")
        return (int(match[1]), int(match[2])) if match else None


class TokenDetails(BaseModel):
    """Tokens by kind."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """The usage of a request, counted as docs/http.md says."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class ImageAnswer(BaseModel):
    """One picture. `flagged`: the model's safety checker objected, and the picture is black."""

    b64_json: str
    seed: int
    flagged: bool


class TimingsAnswer(BaseModel):
    """Where the time went, in seconds; encode, denoise and decode are those of the slowest picture."""

    queue_s: float
    encode_s: float
    denoise_s: float
    decode_s: float


class JobAnswer(BaseModel):
    """SynerDiff's additional fields. `skipped_steps`: by picture, the steps on which guidance was skipped."""

    job_id: str
    model: str
    num_inference_steps: int
    skipped_steps: dict[str, list[int]]
    warnings: list[str]
    timings: TimingsAnswer


class ImagesAnswer(BaseModel):
    """The pictures of a request."""

    created: int
    background: Literal["opaque"]
    data: list[ImageAnswer]
    output_format: OutputFormat
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto"]
    size: str
    safety_identifier: str | None = None
    usage: Usage
    synerdiff: JobAnswer


class Error(BaseModel):
    """An error: its message, OpenAI's type of it, the parameter it is about, and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """An error in OpenAI's form."""

    error: Error
