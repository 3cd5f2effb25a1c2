"""Reading an arena from elsewhere: the best transport that proves itself, over real gRPC, through restarts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from synerdiff.latents.arena import Arena, create_arena
from synerdiff.latents.client import ArenaClient, ArenaUnreachable
from synerdiff.latents.description import TransportOffer, TransportUnusable
from synerdiff.latents.shared_memory import SharedMemoryReader, sweep_stale_files
from synerdiff.latents.transports import HOST_TRANSPORTS, TransportChoice, open_arena
from synerdiff.plans import SlotRef
from synerdiff.settings import load
from synerdiff.wire.stages import arena_description_from_pb, arena_description_to_pb
from synerdiff.worker_settings import WorkerSettings
from tests.services.worker_processes import served_arena
from tests.synerdiff.latents.other_process import described_from, other_process

SLOT_BYTES = 64


@dataclass
class Owner:
    """A UNet worker, as far as its arena goes."""

    arena: Arena
    address: str

    def written(self, fill: int) -> SlotRef:
        slot = self.arena.acquire()
        self.arena.write(slot, bytes([fill]) * SLOT_BYTES)
        return slot


@contextlib.asynccontextmanager
async def owner(listen: str = "127.0.0.1:0", directory: Path = Path("/dev/shm")) -> AsyncIterator[Owner]:
    arena = create_arena(4, SLOT_BYTES, "bfloat16", directory)
    async with served_arena(arena, listen) as address:
        yield Owner(arena, address)


@pytest.fixture
async def client() -> AsyncIterator[ArenaClient]:
    made = ArenaClient()
    yield made
    await made.close()


async def filled(client: ArenaClient, address: str, *slots: SlotRef) -> list[int | None]:
    """The byte that each slot is full of; None when stale."""
    found: list[int | None] = []
    for latents in await client.read(address, slots):
        if latents is None:
            found.append(None)
            continue
        assert latents.dtype == "bfloat16"
        data = latents.host()
        assert not data.readonly
        assert bytes(data) == bytes(data[:1]) * SLOT_BYTES
        found.append(data[0])
    return found


@pytest.mark.parametrize("transport", ["shm", "inline"])
async def test_every_transport_gives_the_same(transport: str, client: ArenaClient, tmp_path: Path) -> None:
    directory = Path("/dev/shm") if transport == "shm" else tmp_path / "missing"
    async with owner(directory=directory) as unet:
        first, gone, second, held = unet.written(1), unet.written(2), unet.written(3), unet.arena.acquire()
        unet.arena.release(gone)
        strange = SlotRef("another life", 0, 1)
        beyond = SlotRef(unet.arena.arena_id, 99, 1)
        asked = (second, gone, first, held, strange, beyond)
        assert await filled(client, unet.address, *asked) == [3, None, 1, None, None, None]
        assert client.transports() == {transport: 1}


async def test_what_was_read_stays_as_it_was(client: ArenaClient) -> None:
    async with owner() as unet:
        slot = unet.written(5)
        [latents] = await client.read(unet.address, [slot])
        unet.arena.release(slot)
        unet.written(6)
        assert latents
        assert bytes(latents.host()) == b"\5" * SLOT_BYTES


async def test_a_restarted_owner_is_found_at_the_same_address(client: ArenaClient) -> None:
    async with owner() as unet:
        before = unet.written(1)
        assert await filled(client, unet.address, before) == [1]
    async with owner(unet.address) as again:
        after = again.written(2)
        assert await filled(client, again.address, before, after) == [None, 2]


def test_finished_latents_outlive_an_owner_that_was_killed(tmp_path: Path) -> None:
    """A reader that has opened the arena once needs its owner no more: decodes go on while the owner restarts."""
    with other_process() as other:
        described = described_from(other.ask("own", slots=1, slot_bytes=SLOT_BYTES, directory=str(tmp_path)))
        slot = SlotRef(**other.ask("write", fill=7))
        reader = asyncio.run(open_arena(described, unused, HOST_TRANSPORTS))
        other.process.kill()
        other.process.wait()
        assert sweep_stale_files(tmp_path) == [Path(described.offers[0].shm_path)]
        [latents] = asyncio.run(reader.read([slot]))
        assert isinstance(latents, memoryview)
        assert bytes(latents) == b"\7" * SLOT_BYTES
        reader.close()


async def test_an_owner_that_does_not_answer_is_named(client: ArenaClient) -> None:
    async with owner() as unet:
        slot = unet.written(1)
    with pytest.raises(ArenaUnreachable, match=unet.address):
        await client.read(unet.address, [slot])


async def test_an_inline_owner_that_dies_is_named(client: ArenaClient, tmp_path: Path) -> None:
    async with owner(directory=tmp_path / "missing") as unet:
        slot = unet.written(1)
        assert await filled(client, unet.address, slot) == [1]
    with pytest.raises(ArenaUnreachable, match="UNAVAILABLE"):
        await client.read(unet.address, [slot])


async def test_arenas_that_nobody_asks_for_are_let_go() -> None:
    now = 0.0
    client = ArenaClient(idle_s=10, clock=lambda: now)
    async with owner() as first, owner() as second:
        slot, other = first.written(1), second.written(2)
        await client.read(first.address, [slot])
        now = 11
        await client.read(second.address, [other])
        assert client.transports() == {"shm": 1}
        assert await filled(client, first.address, slot) == [1]
        await client.close()


async def test_a_transport_that_fails_while_reading_is_given_up_for_the_next(
    client: ArenaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: SharedMemoryReader, slots: Sequence[SlotRef]) -> list[memoryview | None]:
        raise TransportUnusable("gone")

    async with owner() as unet:
        first, second = unet.written(1), unet.written(2)
        assert await filled(client, unet.address, first) == [1]
        monkeypatch.setattr(SharedMemoryReader, "read", broken)
        with capture_logs() as logs:
            assert await filled(client, unet.address, second, first) == [2, 1]
        monkeypatch.undo()
        assert client.transports() == {"inline": 1}
        assert [line["failed"] for line in logs] == [{"shm": "gone"}]
        assert await filled(client, unet.address, first) == [1]
        assert client.transports() == {"inline": 1}, "what failed was tried again"


@pytest.mark.parametrize(
    ("device", "setting", "choice"),
    [
        ("cpu", "cuda_ipc,shm", TransportChoice(("cuda_ipc", "shm"), None)),
        ("cuda", "shm,cuda_ipc", TransportChoice(("shm", "cuda_ipc"), 0)),
        ("cuda:3", "", TransportChoice((), 3)),
    ],
)
def test_the_settings_say_what_may_be_used(device: str, setting: str, choice: TransportChoice) -> None:
    settings = load(WorkerSettings, [f"--device={device}", f"--latents-transports={setting}"])
    assert settings.transport_choice() == choice


async def test_a_transport_that_the_settings_leave_out_is_not_used() -> None:
    async with owner() as unet:
        client = ArenaClient(TransportChoice(("cuda_ipc",), None))
        with capture_logs() as logs:
            assert await filled(client, unet.address, unet.written(1)) == [1]
        assert client.transports() == {"inline": 1}
        assert logs[0]["failed"] == {"shm": "not among this process's latents_transports"}
        await client.close()


async def unused(slots: Sequence[SlotRef]) -> list[bytes | None]:
    raise AssertionError("not to be asked")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"pattern": b"0123456789abcdef"}, "does not hold the pattern"),
        ({"boot_id": "another"}, "on another host"),
        ({"transport": "telepathy"}, "not known to this version"),
        ({"transport": "cuda_ipc"}, "does not compute on a GPU"),
    ],
)
async def test_an_offer_that_fails_is_named_in_one_line(wrong: dict[str, object], reason: str) -> None:
    arena = create_arena(1, SLOT_BYTES, "float16")
    described = arena.describe()
    bad: TransportOffer = replace(described.offers[0], **wrong)  # type: ignore[arg-type]
    with capture_logs() as logs:
        reader = await open_arena(replace(described, offers=(bad,)), unused, HOST_TRANSPORTS)
    assert reader.transport == "inline"
    assert len(logs) == 1
    assert reason in logs[0]["failed"][bad.transport]
    with capture_logs() as logs:
        offers = (replace(bad, transport="other"), *described.offers)
        reader = await open_arena(replace(described, offers=offers), unused, HOST_TRANSPORTS)
    assert reader.transport == "shm"
    assert list(logs[0]["failed"]) == ["other"]
    reader.close()
    arena.close()


def test_a_description_survives_the_wire() -> None:
    arena = create_arena(3, SLOT_BYTES, "float16")
    assert arena_description_from_pb(arena_description_to_pb(arena.describe())) == arena.describe()
    arena.close()
