"""Admission: a GenerateRequest as it came in -> an ImageRequest with every default filled in and every bound checked.

Pure, and before anything is spent on a request. All violations are reported together.
"""

import hashlib
import math
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy

from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.errors import FieldViolation, InvalidRequest, NotFound
from synerdiff.requests import ImageFormat, ImageRequest, Priority
from synerdiff.skip_cfg import SkipCfg, SkipCfgMode
from synerdiff.v1 import images_pb2

SEED_BOUND = 2**63
DRAWN_SEED_BOUND = 2**32

E = TypeVar("E", bound=IntEnum)


@dataclass(frozen=True)
class AdmissionLimits:
    """The server's own bounds and defaults; the model card has the rest."""

    max_request_id_bytes: int = 128
    max_prompt_bytes: int = 8192
    max_num_images: int = 16
    max_guidance_scale: float = 100.0
    max_preview_every: int = 1000
    default_timeout_s: float = 600.0
    max_timeout_s: float = 3600.0
    default_model: str = ""
    exact: bool = False


def body_digest(pb: images_pb2.GenerateRequest) -> bytes:
    """SHA-256 of a request's content: equal for two requests that differ in request_id and results_only alone."""
    body = images_pb2.GenerateRequest()
    body.CopyFrom(pb)
    body.ClearField("request_id")
    body.ClearField("results_only")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def resolve(pb: images_pb2.GenerateRequest, cards: Sequence[ModelCard], limits: AdmissionLimits) -> ImageRequest:
    """The request that `pb` asks for. Raises InvalidRequest naming every bad field with its value and bound, and
    NotFound for an unknown model."""
    card = _card(pb.model, cards, limits)
    fields = _Fields(pb, card, limits)
    num_images = fields.num_images()
    sampler = fields.sampler()
    exact = pb.exact if pb.HasField("exact") else limits.exact
    request = ImageRequest(
        request_id=fields.request_id(),
        model=card.name,
        prompt=fields.text("prompt", pb.prompt),
        negative_prompt=fields.text("negative_prompt", pb.negative_prompt),
        width=fields.side("width", pb.width, card.native_width),
        height=fields.side("height", pb.height, card.native_height),
        num_inference_steps=fields.num_inference_steps(sampler),
        guidance_scale=fields.guidance_scale(),
        seed=fields.seed(num_images),
        sampler=sampler.sampler,
        num_images=num_images,
        image_format=fields.choice("image_format", pb.image_format, ImageFormat, ImageFormat.PNG),
        priority=fields.choice("priority", pb.priority, Priority, Priority.NORMAL),
        timeout_ms=fields.timeout_ms(),
        preview_every=fields.preview_every(),
        skip_cfg=fields.skip_cfg(sampler, exact),
        timed=pb.HasField("timeout"),
        exact=exact,
    )
    if fields.violations:
        raise InvalidRequest(*fields.violations)
    return request


def _card(name: str, cards: Sequence[ModelCard], limits: AdmissionLimits) -> ModelCard:
    if not cards:
        raise NotFound(f"model: {_shown(name)} is unknown; there are no models: no UNet worker has announced one yet")
    wanted = name or limits.default_model or (cards[0].name if len(cards) == 1 else "")
    known = ", ".join(sorted(card.name for card in cards))
    if not wanted:
        raise InvalidRequest(FieldViolation("model", f"'' names none, and there is no default; one of: {known}"))
    card = next((card for card in cards if card.name == wanted), None)
    if card is None:
        raise NotFound(f"model: {_shown(wanted)} is unknown; the models are: {known}")
    return card


class _Fields:
    """One method per field. A bad field leaves a violation behind and yields its default, so that checks go on."""

    def __init__(self, pb: images_pb2.GenerateRequest, card: ModelCard, limits: AdmissionLimits) -> None:
        self.pb = pb
        self.card = card
        self.limits = limits
        self.violations: list[FieldViolation] = []

    def _refuse(self, field: str, description: str) -> None:
        self.violations.append(FieldViolation(field, description))

    def request_id(self) -> str:
        value, bound = self.pb.request_id, self.limits.max_request_id_bytes
        size = len(value.encode())
        if size > bound:
            self._refuse("request_id", f"{size} bytes of UTF-8 is out of bounds: at most {bound}")
        elif not value.isprintable():
            self._refuse("request_id", f"{_shown(value)} has characters that are not printable")
        return value or uuid.uuid4().hex

    def text(self, field: str, value: str) -> str:
        size, bound = len(value.encode()), self.limits.max_prompt_bytes
        if size > bound:
            self._refuse(field, f"{size} bytes of UTF-8 is out of bounds: at most {bound}")
        # Image metadata is written as NUL-terminated text, so a NUL would cut it silently.
        if (at := value.find("\0")) >= 0:
            self._refuse(field, f"a NUL character at index {at}; none is allowed")
        return value

    def side(self, field: str, value: int, native: int) -> int:
        multiple, largest = self.card.size_multiple, self.card.max_side
        if value and (value % multiple or not multiple <= value <= largest):
            self._refuse(field, f"{value} is not a multiple of {multiple} from {multiple} to {largest}")
        return value or native

    def sampler(self) -> SamplerLimits:
        default = self.card.limits(self.card.default_sampler) or self.card.samplers[0]
        sampler = self.choice("sampler", self.pb.sampler, Sampler, default.sampler)
        offered = self.card.limits(sampler)
        if offered is None:
            names = ", ".join(f"SAMPLER_{s.sampler.name}" for s in self.card.samplers)
            self._refuse("sampler", f"SAMPLER_{sampler.name} is not offered by model {self.card.name}; one of: {names}")
        return offered or default

    def num_inference_steps(self, sampler: SamplerLimits) -> int:
        value = self.pb.num_inference_steps
        least, most = sampler.min_num_inference_steps, sampler.max_num_inference_steps
        if value and not least <= value <= most:
            name = f"SAMPLER_{sampler.sampler.name}"
            self._refuse("num_inference_steps", f"{value} is out of bounds for {name}: from {least} to {most}")
        return value or min(max(self.card.default_num_inference_steps, least), most)

    def guidance_scale(self) -> float:
        if not self.pb.HasField("guidance_scale"):
            return self.card.default_guidance_scale
        # The client wrote the shortest decimal of the float32 on the wire: 7.3, not 7.300000190734863.
        value = float(str(numpy.float32(self.pb.guidance_scale)))
        bound = self.limits.max_guidance_scale
        if not 0 <= value <= bound:
            self._refuse("guidance_scale", f"{value:g} is out of bounds: from 0 to {bound:g}")
        return value

    def num_images(self) -> int:
        value, bound = self.pb.num_images, self.limits.max_num_images
        if value > bound:
            self._refuse("num_images", f"{value} is out of bounds: from 1 to {bound}")
        return value or 1

    def seed(self, num_images: int) -> int:
        if not self.pb.HasField("seed"):
            return secrets.randbelow(DRAWN_SEED_BOUND)
        last = self.pb.seed + num_images - 1
        if last >= SEED_BOUND:
            self._refuse(
                "seed", f"{self.pb.seed} gives the last image seed {last}; it must be below 2^63 = {SEED_BOUND}"
            )
        return self.pb.seed

    def choice(self, field: str, value: int, kind: type[E], default: E) -> E:
        if not value:
            return default
        try:
            return kind(value)
        except ValueError:
            self._refuse(field, f"{value} is not a value of this enum; from 0 to {max(kind).value}")
            return default

    def timeout_ms(self) -> int:
        if not self.pb.HasField("timeout"):
            return math.ceil(self.limits.default_timeout_s * 1000)
        seconds, nanos = self.pb.timeout.seconds, self.pb.timeout.nanos
        bound_ns = round(self.limits.max_timeout_s * 1e9)
        total_ns = seconds * 10**9 + nanos
        if not -(10**9) < nanos < 10**9 or seconds * nanos < 0:
            self._refuse(
                "timeout", f"seconds {seconds} and nanos {nanos} are not a Duration: |nanos| < 1e9, signs alike"
            )
        elif not 0 < total_ns <= bound_ns:
            self._refuse("timeout", f"{total_ns / 1e9:g} s is out of bounds: above 0, to {bound_ns / 1e9:g} s")
        return -(-total_ns // 10**6)

    def preview_every(self) -> int:
        value, bound = self.pb.preview_every, self.limits.max_preview_every
        if value > bound:
            self._refuse("preview_every", f"{value} is out of bounds: from 0 (none) to {bound} steps")
        return value

    def skip_cfg(self, sampler: SamplerLimits, exact: bool) -> SkipCfg:
        """As asked; of an exact request, which load may not change, AUTO is OFF."""
        skip = self.pb.skip_cfg
        if not 0 <= skip.max_fraction <= 1:
            self._refuse("skip_cfg.max_fraction", f"{skip.max_fraction:g} is out of bounds: from 0 to 1")
        if skip.mode not in images_pb2.SkipCfgMode.values():
            self._refuse("skip_cfg.mode", f"{skip.mode} is not a value of this enum; from 0 to 3")
        if skip.steps and skip.mode != images_pb2.SKIP_CFG_MODE_FIXED:
            self._refuse("skip_cfg.steps", f"{len(skip.steps)} steps given; only SKIP_CFG_MODE_FIXED takes any")
        last = sampler.unet_calls(self.pb.num_inference_steps or self.card.default_num_inference_steps) - 1
        misfit = next((step for step in skip.steps if not 1 <= step <= last), None)
        if misfit is not None:
            self._refuse("skip_cfg.steps", f"{misfit} is out of bounds: from 1 (the first is always guided) to {last}")
        if self.violations:
            return SkipCfg()
        mode = SkipCfgMode(skip.mode or SkipCfgMode.AUTO)
        if exact and mode is SkipCfgMode.AUTO:
            mode = SkipCfgMode.OFF
        return SkipCfg(mode, skip.max_fraction, tuple(sorted(set(skip.steps))))


def _shown(value: str, limit: int = 64) -> str:
    """`value` quoted, and cut so that a huge one does not fill the answer."""
    return repr(value) if len(value) <= limit else f"{value[:limit]!r}... ({len(value)} characters)"
