"""The file under /dev/shm: whose it is, who may read it, and what happens to it when its owner dies."""

import os
import resource
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from synerdiff.latents.arena import Arena, create_arena
from synerdiff.latents.description import ArenaDescription, TransportUnusable
from synerdiff.latents.shared_memory import SharedMemoryReader, sweep_stale_files
from tests.synerdiff.latents.other_process import OtherProcess


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = create_arena(2, 64, "float32")
    yield made
    made.close()


def path_of(described: ArenaDescription) -> Path:
    return Path(described.offers[0].shm_path)


def refusal(described: ArenaDescription, **changed: object) -> str:
    offer = replace(described.offers[0], **changed)  # type: ignore[arg-type]
    with pytest.raises(TransportUnusable) as refused:
        SharedMemoryReader(offer, described)
    return str(refused.value)


def test_the_file_is_its_owners_alone_and_names_boot_and_process(arena: Arena) -> None:
    path = path_of(arena.describe())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert arena.describe().offers[0].boot_id in path.name
    assert str(os.getpid()) in path.name
    arena.close()
    assert not path.exists()


def test_a_reader_outlives_the_owner_and_then_finds_nothing(arena: Arena) -> None:
    slot = arena.acquire()
    arena.write(slot, b"\7" * 64)
    reader = SharedMemoryReader(arena.describe().offers[0], arena.describe())
    assert bytes(reader.load(slot) or b"") == b"\7" * 64
    arena.close()
    assert reader.load(slot) is None
    reader.close()


def test_a_damaged_copy_is_not_given_out(arena: Arena) -> None:
    slot = arena.acquire()
    arena.write(slot, b"\7" * 64)
    reader = SharedMemoryReader(arena.describe().offers[0], arena.describe())
    path = path_of(arena.describe())
    damaged = path.read_bytes().replace(b"\7" * 64, b"\7" * 63 + b"\0")
    path.write_bytes(damaged)
    assert reader.load(slot) is None
    reader.close()


def test_an_offer_is_proved_before_it_is_trusted(arena: Arena, tmp_path: Path) -> None:
    described = arena.describe()
    path = path_of(described)
    link = path.with_name(path.name + "-link")
    link.symlink_to(path)
    short = tmp_path / path.name
    short.write_bytes(path.read_bytes()[:100])
    try:
        assert "pattern" in refusal(described, pattern=b"x" * 16)
        assert "another host" in refusal(described, boot_id="another")
        assert "cannot open" in refusal(described, shm_path=str(path) + "-gone")
        assert "cannot open" in refusal(described, shm_path=str(link))
        assert "not the name" in refusal(described, shm_path="/etc/passwd")
        assert "100 bytes" in refusal(described, shm_path=str(short))
        assert "bytes, not" in refusal(replace(described, slots=1 << 40))
        assert "pattern" in refusal(replace(described, slots=1))
    finally:
        link.unlink()


def test_arenas_of_dead_owners_are_swept_and_no_others(tmp_path: Path) -> None:
    dead, alive = OtherProcess(), OtherProcess()
    left = Path(dead.ask("own", slots=1, slot_bytes=64, directory=str(tmp_path))["offers"][0]["shm_path"])
    kept = Path(alive.ask("own", slots=1, slot_bytes=64, directory=str(tmp_path))["offers"][0]["shm_path"])
    of_earlier_boot = tmp_path / "synerdiff-latents-00000000-0000-0000-0000-000000000000-1-abcd"
    of_earlier_boot.write_bytes(b"")
    strange = tmp_path / "somebody-elses"
    strange.write_bytes(b"")
    link = tmp_path / "synerdiff-latents-link"
    link.symlink_to(strange)
    dead.process.kill()
    dead.close()
    try:
        assert set(sweep_stale_files(tmp_path)) == {left, of_earlier_boot}
        assert set(tmp_path.iterdir()) == {kept, strange, link}
    finally:
        alive.close()


def test_a_new_arena_sweeps_first(tmp_path: Path) -> None:
    (tmp_path / "synerdiff-latents-old").write_bytes(b"")
    made = create_arena(1, 64, "float32", tmp_path)
    assert list(tmp_path.iterdir()) == [path_of(made.describe())]
    made.close()


def test_without_room_the_arena_falls_back_and_leaves_no_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        made = create_arena(64, 1 << 20, "float32", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert made.describe().offers == ()
    assert list(tmp_path.iterdir()) == []
    made.close()
