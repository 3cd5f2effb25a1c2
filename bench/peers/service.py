"""`Generate` of synerdiff.v1 over a line of requests: one picture each, with the model's own sampler."""

import asyncio
import io
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

from PIL import Image

from bench.peers.line import Line
from bench.peers.painter import Alike, Asked
from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff.v1 import images_pb2, images_pb2_grpc

# As the VAE worker encodes: a higher level takes longer for hardly smaller files.
_PNG_COMPRESS_LEVEL = 4
# What diffusers takes where nothing is said.
_STEPS, _GUIDANCE_SCALE = 50, 7.5


class PeerService(images_pb2_grpc.ImageGenerationServicer):
    """Serves `Generate` alone."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def Generate(
        self, request: images_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[images_pb2.GenerateEvent]:
        """Queue the request, then answer with its picture. Raises InvalidRequest for what is not served here."""
        asked, job_id = asked_of(request), uuid.uuid4().hex
        yield images_pb2.GenerateEvent(job_id=job_id, sequence=1, queued=images_pb2.Queued())
        picture = await self._line.picture(asked)
        data = await asyncio.to_thread(_png, picture)
        image = images_pb2.Image(
            seed=asked.seed, width=picture.width, height=picture.height, format=images_pb2.IMAGE_FORMAT_PNG, data=data
        )
        yield images_pb2.GenerateEvent(job_id=job_id, sequence=2, image=image)
        yield images_pb2.GenerateEvent(job_id=job_id, sequence=3, finished=images_pb2.Finished())


def asked_of(request: images_pb2.GenerateRequest) -> Asked:
    """What is to be drawn; raises InvalidRequest for several pictures, a sampler, or another format than PNG."""
    if request.num_images > 1:
        raise InvalidRequest(FieldViolation("num_images", f"{request.num_images}; only 1 is served here"))
    if request.sampler != images_pb2.SAMPLER_UNSPECIFIED:
        raise InvalidRequest(FieldViolation("sampler", "only the model's own is served here"))
    if request.image_format not in (images_pb2.IMAGE_FORMAT_UNSPECIFIED, images_pb2.IMAGE_FORMAT_PNG):
        raise InvalidRequest(FieldViolation("image_format", "only PNG is served here"))
    alike = Alike(
        request.num_inference_steps or _STEPS,
        request.guidance_scale if request.HasField("guidance_scale") else _GUIDANCE_SCALE,
        request.width or None,
        request.height or None,
        bool(request.negative_prompt),
    )
    seed = request.seed if request.HasField("seed") else random.randrange(2**32)
    return Asked(request.prompt, seed, alike, request.negative_prompt)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=_PNG_COMPRESS_LEVEL)
    return file.getvalue()
