"""A whole VAE worker over real gRPC, reading a real arena: what a leader asks, and what it hears back."""

import asyncio
import contextlib
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from services.vae_worker import decode_loop
from services.vae_worker.decoder import BatchDecoder, DecodeInProgress
from services.vae_worker.image_files import encode_image, read_parameters
from services.vae_worker.item_runner import ItemRunner
from services.vae_worker.metrics import READ_SECONDS
from services.vae_worker.outbox import Outbox
from services.vae_worker.worker import SERVICE_NAME, VaeWorker
from synerdiff.latents.arena import Arena, create_arena
from synerdiff.latents.client import ArenaClient, Latents
from synerdiff.latents.service import LatentsArenaServicer
from synerdiff.models.device import DeviceFailed
from synerdiff.models.family import VaeSide
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide
from synerdiff.plans import (
    DecodedImage,
    DecodeEntry,
    Execution,
    SkippedEntry,
    SkipReason,
    SlotRef,
    TaskFailed,
    VaeItem,
    VaePlan,
    VaeTickDone,
)
from synerdiff.requests import ImageFormat
from synerdiff.rpc import ServiceHost, open_channel
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import (
    decoded_image_from_pb,
    task_failed_from_pb,
    vae_plan_to_pb,
    vae_tick_done_from_pb,
)
from tests.services.vae_worker.conftest import assert_decoded, assert_decoded_as_jpeg, latents_of
from tests.waiting import HANG_S, until

SIDE = 32


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


@pytest.fixture
async def stage(vae_side: VaeSide) -> AsyncIterator[Stage]:
    arena = create_arena(16, 4 * (SIDE // 8) ** 2 * 4, "float32")
    arena_host, host = ServiceHost(), ServiceHost()
    arena_host.add(
        "synerdiff.v1.LatentsArena", stages_pb2_grpc.add_LatentsArenaServicer_to_server, LatentsArenaServicer(arena)
    )
    worker = VaeWorker(vae_side, "vae-1", encode_threads=2, outbox_bytes=1 << 24)
    host.add(SERVICE_NAME, stages_pb2_grpc.add_VaeStageServicer_to_server, worker.servicer)
    arena_address, address = await arena_host.start("127.0.0.1:0"), await host.start("127.0.0.1:0")
    working = asyncio.create_task(worker.loop.run())
    made = Stage(worker, address, arena, arena_address)
    yield made
    for channel in made.channels:
        await channel.close()
    await host.drain(0)
    await arena_host.drain(0)
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
    await worker.close()
    arena.close()


def picture(image: DecodedImage) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(image.data)) as opened:
        assert opened.format == image.format.name
        return np.asarray(opened.convert("RGB"))


async def ended_with(leader: Leader) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        assert await leader.call.read() is grpc.aio.EOF
    code: grpc.StatusCode = await leader.call.code()
    return code


async def test_pictures_are_those_of_diffusers_in_every_format(stage: Stage) -> None:
    latents = latents_of(3, SIDE, SIDE)
    leader = stage.leader()
    attached = await leader.attach()
    assert (attached.worker_id, attached.draining) == ("vae-1", False)
    entries = [
        stage.entry(f"job/{i}", one, image_format=image_format)
        for i, (one, image_format) in enumerate(zip(latents, ImageFormat, strict=True))
    ]
    started_ns = time.time_ns()
    await leader.plan(1, entries[:2], entries[2:])
    done = await leader.done()
    assert (done.tick, done.decoded, done.skipped) == (1, ("job/0", "job/1", "job/2"), ())
    assert [timing.rows for timing in done.items] == [2, 1]
    times = [t for timing in done.items for t in (timing.start_unix_ns, timing.end_unix_ns)]
    assert times == sorted(times)
    assert started_ns <= times[0]
    assert times[-1] <= time.time_ns()
    images = await leader.images(3)
    for i, latent in enumerate(latents):
        image = images[f"job/{i}"]
        if image.format is ImageFormat.JPEG:
            assert_decoded_as_jpeg(picture(image), latent)
        else:
            assert_decoded([picture(image)], latent[None])
        assert (image.width, image.height, image.flagged) == (SIDE, SIDE, False)
        assert image.decode_ms > 0
        assert image.encode_ms > 0
        assert read_parameters(image.data) == {"prompt": f"job/{i}"}


async def test_what_cannot_be_read_is_skipped_and_the_rest_decoded(stage: Stage) -> None:
    leader = await stage.attached()
    stale, good, strange, lost = stage.entries("stale/0", "good/0", "strange/0", "lost/0")
    stage.arena.release(stale.slot)
    strange = DecodeEntry(**{**vars(strange), "slot": SlotRef("another life", 0, 1)})
    lost = DecodeEntry(**{**vars(lost), "arena_address": "127.0.0.1:1"})
    await leader.plan(1, [stale, good, strange, lost], [stale])
    done = await leader.done()
    assert done.decoded == ("good/0",)
    assert set(done.skipped) == {
        SkippedEntry("stale/0", SkipReason.STALE_SLOT),
        SkippedEntry("strange/0", SkipReason.STALE_SLOT),
        SkippedEntry("lost/0", SkipReason.ARENA_UNREACHABLE),
    }
    assert [timing.rows for timing in done.items] == [1, 0]
    assert set(await leader.images(1)) == {"good/0"}


async def test_input_at_fault_fails_its_task_and_no_other(stage: Stage) -> None:
    leader = await stage.attached()
    wrong, good = stage.entries("wrong/0", "good/0")
    bad_json = stage.entry("json/0", latents_of(1, SIDE, SIDE)[0], parameters_json="[]")
    wrong = DecodeEntry(**{**vars(wrong), "width": 2 * SIDE, "height": 2 * SIDE})
    await leader.plan(1, [wrong], [good], [bad_json])
    failed = await leader.failed()
    assert (failed.task_id, failed.code) == ("wrong/0", 13)
    assert f"{2 * SIDE} x {2 * SIDE}" in failed.message
    assert (await leader.done()).decoded == ("good/0", "json/0")
    assert (await leader.failed()).task_id == "json/0"
    assert set(await leader.images(1)) == {"good/0"}


async def test_a_newer_leader_wins(stage: Stage) -> None:
    older = await stage.attached(token=5)
    newer = await stage.attached(token=6)
    assert await ended_with(older) is grpc.StatusCode.FAILED_PRECONDITION
    late = stage.leader(token=5)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await late.attach()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await late.images(1)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    [entry] = stage.entries("a/0")
    await newer.plan(1, [entry], token=5)
    await newer.plan(2, [entry])
    assert (await newer.done()).tick == 2


async def test_a_leader_may_attach_again_and_its_older_stream_ends_well(stage: Stage) -> None:
    first = await stage.attached(token=5)
    [entry] = stage.entries("a/0")
    await first.plan(3, [entry])
    await first.done()
    again = await stage.attached(token=5)
    assert await ended_with(first) is grpc.StatusCode.OK
    await again.plan(3, [entry])
    await again.plan(4, [entry])
    assert (await again.done()).tick == 4


async def test_repeated_and_older_plans_are_ignored(stage: Stage) -> None:
    leader = await stage.attached()
    first, second = stage.entries("a/0", "b/0")
    for tick in (2, 2, 1):
        await leader.plan(tick, [first])
    await leader.plan(3, [second])
    assert [(await leader.done()).decoded for _ in range(2)] == [("a/0",), ("b/0",)]


@pytest.mark.parametrize(
    "command", ["plan first", "attach twice", "unknown format", "no such chunks", "a pace that leads elsewhere"]
)
async def test_a_leader_out_of_order_is_told_so(stage: Stage, command: str) -> None:
    leader = stage.leader()
    if command == "plan first":
        await leader.plan(1)
    else:
        await leader.attach()
    if command == "attach twice":
        await leader.call.write(stages_pb2.VaeCommand(attach=stages_pb2.Attach(leader_token=1)))
    elif command == "unknown format":
        item = stages_pb2.VaeItem(entries=[stages_pb2.DecodeEntry(task_id="a/0")])
        plan = stages_pb2.VaePlan(leader_token=1, tick=1, items=[item])
        await leader.call.write(stages_pb2.VaeCommand(plan=plan))
    elif command == "no such chunks":
        await leader.plan(1, [replace(entry, chunks=4, first_chunk=2, end_chunk=5) for entry in stage.entries("a/0")])
    elif command == "a pace that leads elsewhere":
        elsewhere = VaePlan(1, 1, (VaeItem((), Execution(pace="../../etc/x")),))
        await leader.call.write(stages_pb2.VaeCommand(plan=vae_plan_to_pb(elsewhere)))
    assert await ended_with(leader) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_decode_goes_on_over_the_items_of_its_plan_and_no_further(stage: Stage) -> None:
    leader = await stage.attached()
    [whole], [cut, short] = stage.entries("whole/0"), stage.entries("cut/0", "short/0")
    parts = [replace(cut, chunks=4, first_chunk=first, end_chunk=first + 2) for first in (0, 2)]
    begun = replace(short, chunks=4, first_chunk=0, end_chunk=2)
    await leader.plan(1, [parts[0]], [whole, begun], [parts[1]])
    done = await leader.done()
    assert done.decoded == ("whole/0", "cut/0")
    assert done.skipped == (SkippedEntry("short/0", SkipReason.NOT_READY),)
    assert [timing.rows for timing in done.items] == [1, 2, 1]
    assert set(await leader.images(2)) == {"whole/0", "cut/0"}
    await leader.plan(2, [replace(short, chunks=4, first_chunk=2, end_chunk=4)])
    assert (await leader.done()).skipped == (SkippedEntry("short/0", SkipReason.NOT_READY),)
    await leader.plan(3, [short])
    assert (await leader.done()).decoded == ("short/0",)


async def test_images_come_again_until_they_are_stored(stage: Stage) -> None:
    leader = await stage.attached(token=1)
    await leader.plan(1, stage.entries("a/0", "b/0"))
    assert set(await leader.images(2)) == {"a/0", "b/0"}
    assert set(await leader.images(2, again=True)) == {"a/0", "b/0"}
    await leader.stored("a/0")
    await leader.plan(2, stage.entries("c/0"))
    assert set(await leader.images(1)) == {"c/0"}
    newer = await stage.attached(token=2)
    assert set(await newer.images(2)) == {"b/0", "c/0"}
    await newer.no_image()
    await newer.stored("b/0", "c/0")
    await asyncio.wait_for(stage.worker.outbox.emptied(), HANG_S)


class GatedDecoder(BatchDecoder):
    """A decoder that waits before each batch until the test lets it go on."""

    def __init__(self, side: VaeSide) -> None:
        super().__init__(side)
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def begin(
        self, batch: Sequence[Latents], width: int, height: int, bands: int, exact: bool = False
    ) -> DecodeInProgress:
        self.begun.release()
        assert self.gate.acquire(timeout=HANG_S)
        return super().begin(batch, width, height, bands, exact)

    async def decoding(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=HANG_S)


@pytest.fixture
def gated(stage: Stage, vae_side: VaeSide, monkeypatch: pytest.MonkeyPatch) -> GatedDecoder:
    decoder = GatedDecoder(vae_side)
    monkeypatch.setattr(stage.worker.loop._runner, "_decoder", decoder)
    return decoder


async def test_a_cancel_counts_from_the_next_item_on(stage: Stage, gated: GatedDecoder) -> None:
    leader = await stage.attached()
    first, second, third = stage.entries("a/0", "b/0", "c/0")
    await leader.plan(1, [first], [second, third])
    await leader.plan(2, [second])
    await gated.decoding()
    stage.worker.outbox.put(DecodedImage("decoy/0", ImageFormat.PNG, SIDE, SIDE, b"png", False, 0, 0))
    await leader.cancel("a/0", "b/0", "decoy/0")
    await asyncio.wait_for(stage.worker.outbox.emptied(), HANG_S)  # so the cancel has been carried out
    gated.gate.release(2)
    done = await leader.done()
    assert done.decoded == ("c/0",)
    assert {skipped.task_id for skipped in done.skipped} == {"a/0", "b/0"}
    assert {skipped.reason for skipped in done.skipped} == {SkipReason.UNKNOWN_TASK}
    assert (await leader.done()).decoded == ()
    assert set(await leader.images(1)) == {"c/0"}
    await leader.plan(3, [second])
    gated.gate.release()
    assert (await leader.done()).decoded == ("b/0",), "a plan made after the cancel was taken for cancelled"


async def test_latents_are_read_while_the_item_before_is_decoded(stage: Stage, gated: GatedDecoder) -> None:
    """Also those of the next plan: the device never waits for them."""
    leader = await stage.attached()
    first, second = stage.entries("a/0", "b/0")
    await leader.plan(1, [first])
    await gated.decoding()
    reads = READ_SECONDS._sum.get()
    await leader.plan(2, [second])
    await until(lambda: READ_SECONDS._sum.get() > reads)
    stage.arena.release(second.slot)
    gated.gate.release(2)
    assert [(await leader.done()).decoded for _ in range(2)] == [("a/0",), ("b/0",)]


async def test_a_newer_leader_drops_the_plans_of_the_older(stage: Stage, gated: GatedDecoder) -> None:
    older = await stage.attached(token=1)
    first, second, third = stage.entries("a/0", "b/0", "c/0")
    await older.plan(1, [first], [second])
    await older.plan(2, [second])
    await gated.decoding()
    newer = await stage.attached(token=2)
    await newer.plan(1, [third])
    gated.gate.release(2)
    assert (await newer.done()).decoded == ("c/0",)
    assert not gated.gate.acquire(blocking=False), "an item was skipped that should have run"
    assert set(await newer.images(2)) == {"a/0", "c/0"}, "what was decoded already is not lost"


async def test_a_leader_that_goes_away_leaves_no_plans_behind(stage: Stage, gated: GatedDecoder) -> None:
    gone = await stage.attached()
    first, second, third = stage.entries("a/0", "b/0", "c/0")
    await gone.plan(1, [first], [second])
    await gated.decoding()
    gone.call.cancel()
    await asyncio.wait_for(stage.worker.servicer.leaderless(), HANG_S)
    leader = await stage.attached()
    await leader.plan(2, [third])
    gated.gate.release(2)
    assert (await leader.done()).decoded == ("c/0",)
    assert set(await leader.images(2)) == {"a/0", "c/0"}


async def test_a_dead_device_ends_the_work(vae_side: VaeSide) -> None:
    class DeadDecoder(BatchDecoder):
        def begin(self, *_: object, **__: object) -> DecodeInProgress:
            raise DeviceFailed("the device is gone")

    class Arenas(ArenaClient):
        async def read(self, address: str, slots: Sequence[SlotRef]) -> list[Latents | None]:
            return [Latents(memoryview(bytearray(4)), "float32") for _ in slots]

    reports: list[object] = []
    with ThreadPoolExecutor(1) as threads:
        runner = ItemRunner(DeadDecoder(vae_side), Pacer(PaceSide.VAE), ThreadShare(1))
        loop = decode_loop.DecodeLoop(runner, Arenas(), Outbox(1000), threads, threads)
        entry = DecodeEntry("a/0", "nowhere", SlotRef("a", 0, 1), SIDE, SIDE, ImageFormat.PNG, "")
        loop.submit(VaePlan(1, 1, (VaeItem((entry,)),)), reports.append)
        with pytest.raises(DeviceFailed):
            await asyncio.wait_for(loop.run(), HANG_S)
    assert reports == [], "no task is to blame"


async def test_files_are_encoded_beside_the_next_decode(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(pixels: npt.NDArray[np.uint8], image_format: ImageFormat, parameters_json: str) -> bytes:
        assert release.wait(HANG_S)
        return encode_image(pixels, image_format, parameters_json)

    monkeypatch.setattr(decode_loop, "encode_image", slow)
    leader = await stage.attached()
    first, second = stage.entries("a/0", "b/0")
    await leader.plan(1, [first], [second])
    done = await leader.done()
    assert done.decoded == ("a/0", "b/0"), "the report waited for an image file"
    assert len(stage.worker.outbox) == 0
    release.set()
    assert set(await leader.images(2)) == {"a/0", "b/0"}


async def test_draining_waits_until_images_are_stored(stage: Stage) -> None:
    leader = await stage.attached()
    await leader.plan(1, stage.entries("a/0"))
    await leader.done()
    draining = asyncio.create_task(stage.worker.drain(HANG_S))
    assert set(await leader.images(1)) == {"a/0"}
    await asyncio.sleep(1.2)
    assert not draining.done()
    again = stage.leader()
    assert (await again.attach()).draining
    await again.stored("a/0")
    await asyncio.wait_for(draining, HANG_S)
