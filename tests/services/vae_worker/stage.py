"""A VAE worker behind gRPC with an arena of its own, and the leader that drives it, for tests."""

import asyncio
import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from services.vae_worker.worker import VaeWorker
from synerdiff.latents.arena import Arena
from synerdiff.plans import DecodedImage, DecodeEntry, TaskFailed, VaeItem, VaePlan, VaeTickDone
from synerdiff.requests import ImageFormat
from synerdiff.rpc import open_channel
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import decoded_image_from_pb, task_failed_from_pb, vae_plan_to_pb, vae_tick_done_from_pb
from tests.waiting import HANG_S

SIDE = 32
MODEL = Path(__file__).parents[3] / "models" / "emoji" / "model"


@cache
def reference_vae() -> AutoencoderKL:
    """Diffusers' own."""
    return AutoencoderKL.from_pretrained(MODEL, subfolder="vae")


def latents_of(count: int, width: int, height: int) -> torch.Tensor:
    """Random latents [count, C, height / factor, width / factor], each its own."""
    config = reference_vae().config
    factor = 2 ** (len(config.block_out_channels) - 1)
    shape = (count, config.latent_channels, height // factor, width // factor)
    return torch.randn(shape, generator=torch.Generator().manual_seed(count))


class Leader:
    """A scheduler's end of a worker's two streams."""

    def __init__(self, channel: grpc.aio.Channel, token: int) -> None:
        self.token = token
        self._stub = stages_pb2_grpc.VaeStageStub(channel)
        self.call: Any = self._stub.Run()
        self._images: Any = None

    async def attach(self) -> stages_pb2.VaeAttached:
        attach = stages_pb2.Attach(leader_token=self.token, domain="here")
        await self.call.write(stages_pb2.VaeCommand(attach=attach))
        report = await self.report()
        assert report.WhichOneof("report") == "attached"
        return report.attached

    async def plan(self, tick: int, *items: Sequence[DecodeEntry], token: int | None = None) -> None:
        plan = VaePlan(self.token if token is None else token, tick, tuple(VaeItem(tuple(item)) for item in items))
        await self.call.write(stages_pb2.VaeCommand(plan=vae_plan_to_pb(plan)))

    async def cancel(self, *task_ids: str) -> None:
        await self.call.write(stages_pb2.VaeCommand(cancel=stages_pb2.CancelTasks(task_ids=task_ids)))

    async def stored(self, *task_ids: str) -> None:
        await self.call.write(stages_pb2.VaeCommand(stored=stages_pb2.CancelTasks(task_ids=task_ids)))

    async def report(self) -> stages_pb2.VaeReport:
        report: stages_pb2.VaeReport = await asyncio.wait_for(self.call.read(), HANG_S)
        if report is grpc.aio.EOF:
            raise EOFError
        return report

    async def done(self) -> VaeTickDone:
        report = await self.report()
        assert report.WhichOneof("report") == "tick_done", report
        return vae_tick_done_from_pb(report.tick_done)

    async def failed(self) -> TaskFailed:
        report = await self.report()
        assert report.WhichOneof("report") == "task_failed", report
        return task_failed_from_pb(report.task_failed)

    async def images(self, count: int, *, again: bool = False) -> dict[str, DecodedImage]:
        """The next images of its stream; with `again`, of a new stream."""
        if self._images is None or again:
            self._images = self._stub.Images(stages_pb2.ImagesRequest(leader_token=self.token))
        images = [decoded_image_from_pb(await asyncio.wait_for(self._images.read(), HANG_S)) for _ in range(count)]
        return {image.task_id: image for image in images}

    async def no_image(self) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self._images.read(), 0.1)


@dataclass
class Stage:
    """A worker, the arena that its plans name, and channels for leaders."""

    worker: VaeWorker
    address: str
    arena: Arena
    arena_address: str
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def leader(self, token: int = 1) -> Leader:
        self.channels.append(open_channel(self.address))
        return Leader(self.channels[-1], token)

    async def attached(self, token: int = 1) -> Leader:
        leader = self.leader(token)
        await leader.attach()
        return leader

    def entry(self, task_id: str, latents: torch.Tensor, **changed: Any) -> DecodeEntry:
        slot = self.arena.acquire()
        self.arena.write(slot, latents.contiguous().numpy().tobytes())
        fields: dict[str, Any] = {
            "task_id": task_id,
            "arena_address": self.arena_address,
            "slot": slot,
            "width": SIDE,
            "height": SIDE,
            "image_format": ImageFormat.PNG,
            "parameters_json": json.dumps({"prompt": task_id}),
        }
        return DecodeEntry(**fields | changed)

    def entries(self, *task_ids: str) -> list[DecodeEntry]:
        return [
            self.entry(task_id, one)
            for task_id, one in zip(task_ids, latents_of(len(task_ids), SIDE, SIDE), strict=True)
        ]


def picture(image: DecodedImage) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(image.data)) as opened:
        assert opened.format == image.format.name
        return np.asarray(opened.convert("RGB"))


async def ended_with(leader: Leader) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        assert await leader.call.read() is grpc.aio.EOF
    code: grpc.StatusCode = await leader.call.code()
    return code
