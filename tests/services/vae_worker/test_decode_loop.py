"""The order of decodes: when plans are begun, and what of them is dropped; decodes wait until a test lets them go."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from services.vae_worker.decoder import BatchDecoder, DecodeInProgress
from services.vae_worker.metrics import READ_SECONDS
from synerdiff.latents.client import Latents
from synerdiff.models.family import VaeSide
from synerdiff.plans import DecodedImage, SkipReason
from synerdiff.requests import ImageFormat
from tests.services.vae_worker.stage import SIDE, Stage
from tests.waiting import HANG_S, until


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
    monkeypatch.setattr(stage.worker.loop, "_decoder", decoder)
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
    await asyncio.wait_for(stage.worker.leaderless(), HANG_S)
    leader = await stage.attached()
    await leader.plan(2, [third])
    gated.gate.release(2)
    assert (await leader.done()).decoded == ("c/0",)
    assert set(await leader.images(2)) == {"a/0", "c/0"}
