"""The options of a request, and the GenerateRequest made of them."""

import uuid
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message

from synerdiff.cards import Sampler
from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff.requests import ImageFormat, Priority
from synerdiff.v1 import images_pb2

E = TypeVar("E", bound=IntEnum)

_ENUMS: dict[str, type[IntEnum]] = {"sampler": Sampler, "image_format": ImageFormat, "priority": Priority}
_NOT_PLAIN = {*_ENUMS, "timeout", "skip_cfg", "skip_cfg_max_fraction", "request_id"}


class GenerateOptions(TypedDict, total=False):
    """Keyword options of `generate`, `stream` and `submit`. None takes the model's or server's default.

    width, height: pixels. timeout: seconds from acceptance to the last image, waiting included.
    sampler, image_format, priority: a member of the enum or its name, such as "euler_ancestral", "jpeg" or "high".
    skip_cfg: False keeps guidance on every step; a sequence of zero-based steps skips it on exactly those.
    skip_cfg_max_fraction: at most this share of the steps may be skipped. preview_every: steps between previews.
    exact: True draws the same picture to the bit, in any batch: docs/api.md.
    results_only: after the first event, send only images and the end; `generate` without `on_event` does so.
    request_id: an idempotency key; the same key with the same request gives the same job. Random when left out.
    """

    model: str | None
    negative_prompt: str | None
    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    seed: int | None
    sampler: Sampler | str | None
    num_images: int | None
    image_format: ImageFormat | str | None
    priority: Priority | str | None
    timeout: float | None
    skip_cfg: bool | Sequence[int] | None
    skip_cfg_max_fraction: float | None
    preview_every: int | None
    exact: bool | None
    results_only: bool | None
    request_id: str | None


def generate_request(prompt: str, options: GenerateOptions) -> images_pb2.GenerateRequest:
    """The message for `prompt` and `options`.

    Raises InvalidRequest for a value that the message cannot hold or an unknown enum name, and TypeError for an
    option that does not exist. All other bounds are the server's to check.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if unknown := given.keys() - GenerateOptions.__annotations__.keys():
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    pb = images_pb2.GenerateRequest(request_id=given.get("request_id") or uuid.uuid4().hex)
    _set(pb, "prompt", prompt)
    for name in given.keys() - _NOT_PLAIN:
        _set(pb, name, given[name])
    for name, enum in _ENUMS.items():
        if name in given:
            setattr(pb, name, _enum_value(name, given[name], enum).value)
    if "timeout" in given:
        _set_timeout(pb, given["timeout"])
    _set_skip_cfg(pb, given.get("skip_cfg"), given.get("skip_cfg_max_fraction"))
    return pb


def _set(message: Message, field: str, value: object) -> None:
    try:
        setattr(message, field, value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(FieldViolation(field, f"{value!r} cannot be sent: {error}")) from None


def _set_timeout(pb: images_pb2.GenerateRequest, seconds: float) -> None:
    try:
        pb.timeout.FromNanoseconds(round(seconds * 1e9))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(FieldViolation("timeout", f"{seconds!r} is not a number of seconds: {error}")) from None


def _set_skip_cfg(
    pb: images_pb2.GenerateRequest, skip_cfg: bool | Sequence[int] | None, max_fraction: float | None
) -> None:
    if skip_cfg is False:
        pb.skip_cfg.mode = images_pb2.SKIP_CFG_MODE_OFF
    elif skip_cfg is True:
        pb.skip_cfg.mode = images_pb2.SKIP_CFG_MODE_AUTO
    elif skip_cfg is not None:
        pb.skip_cfg.mode = images_pb2.SKIP_CFG_MODE_FIXED
        try:
            pb.skip_cfg.steps.extend(skip_cfg)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(FieldViolation("skip_cfg", f"{skip_cfg!r} cannot be sent: {error}")) from None
    if max_fraction is not None:
        _set(pb.skip_cfg, "max_fraction", max_fraction)


def _enum_value(field: str, value: object, enum: type[E]) -> E:
    if isinstance(value, enum):
        return value
    if isinstance(value, str):
        name = value.upper().replace("-", "_").removeprefix(f"{field.upper()}_")
        if name in enum.__members__:
            return enum[name]
    names = ", ".join(member.name.lower() for member in enum)
    raise InvalidRequest(FieldViolation(field, f"{value!r} is unknown; one of: {names}"))
