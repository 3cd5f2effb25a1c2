"""A whole VAE worker over real gRPC, reading a real arena: what a leader asks, and what it hears back."""

import asyncio
import threading
import time
from dataclasses import replace

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from services.vae_worker import images, service
from services.vae_worker.decoder import BatchDecoder, DecodeInProgress
from services.vae_worker.images import encode_image
from synerdiff.errors import Unavailable
from synerdiff.models.device import DeviceFailed
from synerdiff.plans import DecodeEntry, Execution, SkippedEntry, SkipReason, SlotRef, VaeItem, VaePlan
from synerdiff.requests import ImageFormat
from synerdiff.v1 import stages_pb2
from synerdiff.wire.stages import vae_plan_to_pb, vae_tick_done_from_pb
from tests.services.vae_worker.conftest import assert_decoded, assert_decoded_as_jpeg
from tests.services.vae_worker.parameters import read_parameters
from tests.services.vae_worker.stage import SIDE, Stage, ended_with, latents_of, picture
from tests.waiting import HANG_S


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
    # The file is made beside the end of the plan: either may come first.
    reports = {report.WhichOneof("report"): report for report in [await leader.report() for _ in range(2)]}
    assert vae_tick_done_from_pb(reports["tick_done"].tick_done).decoded == ("good/0", "json/0")
    assert reports["task_failed"].task_failed.task_id == "json/0"
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


async def test_a_dead_device_ends_the_work(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*_: object) -> DecodeInProgress:
        raise DeviceFailed("the device is gone")

    monkeypatch.setattr(BatchDecoder, "begin", dead)
    leader = await stage.attached()
    await leader.plan(1, stage.entries("a/0"))
    await asyncio.wait_for(stage.worker.failure.wait(), HANG_S)
    assert isinstance(stage.worker.failure.error, DeviceFailed)
    stage.worker.end_streams(Unavailable("it has failed"))
    assert await ended_with(leader) is grpc.StatusCode.UNAVAILABLE, "no task is to blame"


async def test_a_broken_sender_of_images_ends_the_worker(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "decoded_image_to_pb", None)
    leader = await stage.attached()
    await leader.plan(1, stage.entries("a/0"))
    with pytest.raises(grpc.aio.AioRpcError):
        await leader.images(1)
    await asyncio.wait_for(stage.worker.failure.wait(), HANG_S)


async def test_files_are_encoded_beside_the_next_decode(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(pixels: npt.NDArray[np.uint8], image_format: ImageFormat, parameters_json: str) -> bytes:
        assert release.wait(HANG_S)
        return encode_image(pixels, image_format, parameters_json)

    monkeypatch.setattr(images, "encode_image", slow)
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
    stage.worker.draining = True
    draining = asyncio.create_task(stage.worker.until_done())
    assert set(await leader.images(1)) == {"a/0"}
    await asyncio.sleep(1.2)
    assert not draining.done()
    again = stage.leader()
    assert (await again.attach()).draining
    await again.stored("a/0")
    await asyncio.wait_for(draining, HANG_S)
