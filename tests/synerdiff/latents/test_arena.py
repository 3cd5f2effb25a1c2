"""The life of a slot, seen by its owner and by a reader in another process at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from structlog.testing import capture_logs

from synerdiff.latents.arena import Arena, ArenaFull, StaleSlot, create_arena
from synerdiff.latents.shared_memory import SharedMemoryReader
from synerdiff.plans import SlotRef
from tests.synerdiff.latents.other_process import OtherProcess, described_from, other_process, pattern

SLOTS, SLOT_BYTES = 3, 256


class SlotLife(RuleBasedStateMachine):
    """The model: who holds which slot, and what was written. Everything else must be refused or empty."""

    other: OtherProcess
    refs = Bundle("refs")

    @initialize()
    def create(self) -> None:
        self.arena = create_arena(SLOTS, SLOT_BYTES, "float32")
        self.other.open(self.arena.describe())
        self.held: dict[SlotRef, bytes | None] = {}
        self.last_epoch: dict[int, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.arena.close()

    @rule(target=refs)
    def acquire(self) -> SlotRef:
        if len(self.held) == SLOTS:
            with pytest.raises(ArenaFull):
                self.arena.acquire()
            return SlotRef("another arena", 0, 1)
        slot = self.arena.acquire()
        assert slot.index not in {held.index for held in self.held}
        assert slot.epoch > self.last_epoch.get(slot.index, 0)
        self.last_epoch[slot.index] = slot.epoch
        self.held[slot] = None
        return slot

    @rule(slot=refs, data=st.binary(min_size=4, max_size=SLOT_BYTES).map(lambda b: b[: len(b) // 4 * 4]))
    def write(self, slot: SlotRef, data: bytes) -> None:
        if slot not in self.held:
            with pytest.raises(StaleSlot):
                self.arena.write(slot, data)
        elif self.held[slot] is not None:
            with pytest.raises(ValueError, match="written before"):
                self.arena.write(slot, data)
        else:
            self.arena.write(slot, data)
            self.held[slot] = data

    @rule(slot=refs)
    def release(self, slot: SlotRef) -> None:
        self.arena.release(slot)
        self.held.pop(slot, None)

    @rule(slot=consumes(refs))
    def forget(self, slot: SlotRef) -> None:
        """Keep the bundle small, so that rules meet slots that are still held."""
        self.release(slot)

    @rule(slot=refs)
    def read(self, slot: SlotRef) -> None:
        expected = self.held.get(slot)
        assert self.arena.read(slot) == expected
        assert self.other.read(slot) == expected

    @rule(index=st.integers(0, SLOTS), epoch=st.integers(0, 5))
    def read_any(self, index: int, epoch: int) -> None:
        slot = SlotRef(self.arena.arena_id, index, epoch)
        assert self.arena.read(slot) == self.other.read(slot) == self.held.get(slot)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "arena"):
            assert self.arena.free_slots == SLOTS - len(self.held)


def test_slot_life_with_a_reader_in_another_process() -> None:
    with other_process() as other:
        SlotLife.other = other
        case = SlotLife.TestCase
        case.settings = settings(max_examples=60, stateful_step_count=30)
        case("runTest").runTest()


def test_bytes_are_never_torn_or_stale(tmp_path: Path) -> None:
    """An owner that rewrites one slot without pause, against a reader that always asks for the newest epoch."""
    slot_bytes, least = 1 << 20, 50
    counter, enough = tmp_path / "epoch", tmp_path / "enough"
    counter.write_bytes(bytes(8))
    with other_process() as owner:
        described = described_from(owner.ask("own", slots=1, slot_bytes=slot_bytes, directory="/dev/shm"))
        reader = SharedMemoryReader(described.offers[0], described)
        whole = missed = 0
        owner.send("hammer", counter=str(counter), enough=str(enough))
        epoch = 0
        while epoch < 1500 or whole < least or missed < least:
            epoch = int.from_bytes(counter.read_bytes(), "little")
            data = reader.load(SlotRef(described.arena_id, 0, epoch))
            if data is None:
                missed += 1
            else:
                whole += 1
                assert data == pattern(epoch, slot_bytes), f"epoch {epoch}: torn"
        enough.touch()
        owner.answer()
        reader.close()


@pytest.fixture(params=["shared", "process"])
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arena]:
    directory = Path("/dev/shm") if request.param == "shared" else tmp_path / "missing"
    made = create_arena(2, 64, "float16", directory)
    yield made
    made.close()


def test_a_slot_has_one_life_in_every_kind_of_memory(arena: Arena) -> None:
    slot = arena.acquire()
    assert arena.read(slot) is None
    arena.write(slot, memoryview(b"\1\2" * 32))
    assert arena.read(slot) == b"\1\2" * 32
    arena.release(slot)
    arena.release(slot)
    assert arena.free_slots == 2
    assert arena.read(slot) is None
    again = arena.acquire()
    assert (again.index, again.epoch) == (slot.index, slot.epoch + 1)
    arena.release(slot)
    assert arena.free_slots == 1


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 66], ids=["empty", "half an element", "too long"])
def test_latents_that_do_not_fit_are_refused(arena: Arena, data: bytes) -> None:
    slot = arena.acquire()
    with pytest.raises(ValueError, match=f"latents of {len(data)} bytes: a slot takes 1 to 64"):
        arena.write(slot, data)
    arena.write(slot, b"\0" * 64)


def test_after_close_everything_is_stale(arena: Arena) -> None:
    slot = arena.acquire()
    arena.write(slot, b"\0" * 64)
    arena.close()
    arena.close()
    assert arena.read(slot) is None
    with pytest.raises(ArenaFull):
        arena.acquire()
    with pytest.raises(StaleSlot):
        arena.write(slot, b"\0" * 64)


@pytest.mark.parametrize(
    ("slots", "slot_bytes", "dtype", "named"),
    [(0, 64, "float32", "slots=0"), (1, 0, "float32", "slot_bytes=0"), (1, 64, "int8", "int8")],
)
def test_bad_sizes_are_named(slots: int, slot_bytes: int, dtype: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        create_arena(slots, slot_bytes, dtype)


def test_without_shared_memory_there_is_one_warning_and_no_offer(tmp_path: Path) -> None:
    with capture_logs() as logs:
        made = create_arena(2, 64, "float32", tmp_path / "missing")
    assert made.describe().offers == ()
    assert [line["log_level"] for line in logs] == ["warning"]
    assert "missing" in logs[0]["reason"]
    made.close()
