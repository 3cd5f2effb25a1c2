"""CUDA IPC between real processes, against the stand-in driver: what it carries, and what becomes of each failure.

The stand-in is no GPU: see tests/cuda_driver/standin.c, and tests/gpu for the same on a real one.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bench.latents import Experiment, Findings, Side, Trial
from synerdiff.latents.cuda_driver import CudaDevice, CudaUnavailable
from synerdiff.latents.description import ArenaDescription
from synerdiff.latents.transports import TransportChoice, open_arena
from tests.cuda_driver.stand_in import NO_COMPILER, StandIn, build, compiler
from tests.synerdiff.latents import cuda_process
from tests.synerdiff.latents.other_process import OtherProcess, described_from
from tests.told_process import module
from tests.waiting import wait_until

SLOT_BYTES = 65536
FULL = (bytes([7]) * SLOT_BYTES).hex()
TRANSFERS = int(os.environ.get("SYNERDIFF_TEST_TRANSFERS", "300"))
KILLS = int(os.environ.get("SYNERDIFF_TEST_KILLS", "2"))
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")

pytestmark = pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return build(tmp_path_factory.mktemp("cuda"), Path())


@pytest.fixture(scope="module")
def stand_in(library: StandIn, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return replace(library, memory=tmp_path_factory.mktemp("device-memory"))


def started(stand_in: StandIn, *prefix: str, **settings: str) -> OtherProcess:
    return OtherProcess(*prefix, *module(cuda_process.MODULE), environment=stand_in.environment(**settings))


def ready(*processes: OtherProcess) -> None:
    for process in processes:
        assert process.ask("look_at_device") == "GPU-57a4d1c0-de00-0000-0000-000000000001"


@pytest.fixture(scope="module")
def sides(stand_in: StandIn) -> Iterator[tuple[OtherProcess, OtherProcess]]:
    owner, reader = started(stand_in), started(stand_in, pause_us="200")
    ready(owner, reader)
    yield owner, reader
    owner.close()
    reader.close()


@pytest.fixture(scope="module")
def owner(sides: tuple[OtherProcess, OtherProcess]) -> OtherProcess:
    return sides[0]


@pytest.fixture(scope="module")
def reader(sides: tuple[OtherProcess, OtherProcess]) -> OtherProcess:
    return sides[1]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shm")


def own(owner: OtherProcess, directory: Path, *transports: str, **faults: str) -> Any:
    asked = {"directory": str(directory), "transports": transports or ("cuda_ipc", "shm"), "faults": faults}
    return owner.ask("own_on_device", slots=2, slot_bytes=SLOT_BYTES, **asked)


@pytest.fixture
def described(owner: OtherProcess, directory: Path) -> Any:
    owned = own(owner, directory)
    assert owned["logs"] == []
    return owned["description"]


def test_latents_stay_on_the_device_and_are_there_for_every_transport(
    owner: OtherProcess, reader: OtherProcess, stand_in: StandIn, described: Any
) -> None:
    assert [offer["transport"] for offer in described["offers"]] == ["cuda_ipc", "shm"]
    slot = owner.ask("acquire")
    assert owner.ask("write_from_device", slot=slot, fill=7, faults={}) == FULL
    reader.ask("forget")
    before = stand_in.mapped_by(reader.process.pid)
    assert reader.ask("choose", description=described, faults={})["transport"] == "cuda_ipc"
    assert reader.ask("read_chosen", slot=slot, faults={}) == FULL
    from_host = owner.ask("write", fill=9)
    assert reader.ask("read_chosen", slot=from_host, faults={}) == (bytes([9]) * SLOT_BYTES).hex()
    for released in (slot, from_host):
        owner.ask("release", slot=released)
        assert reader.ask("read_chosen", slot=released, faults={}) is None
    reader.ask("forget")
    # A reader closes what it has open on a thread of its own.
    wait_until(lambda: stand_in.mapped_by(reader.process.pid) == before, "the end of every mapping and copy")


def test_a_slot_that_changes_hands_within_a_copy_is_not_given_out(
    owner: OtherProcess, reader: OtherProcess, described: Any
) -> None:
    """The copy takes 0.3 s in its middle, and the slot's next holder writes meanwhile."""
    assert reader.ask("choose", description=described, faults={})["transport"] == "cuda_ipc"
    for _ in range(10):
        slot = owner.ask("write", fill=7)
        reader.send("read_chosen", slot=slot, faults={"pause_us": "300000"})
        time.sleep(0.1)
        owner.ask("release", slot=slot)
        owner.ask("release", slot=owner.ask("write", fill=8))
        found = reader.answer()
        if found is None:
            return
        assert found == FULL, "torn"
    pytest.fail("this machine is too busy for the test to mean anything")


def test_a_slot_is_not_given_out_before_it_is_whole(owner: OtherProcess, reader: OtherProcess, described: Any) -> None:
    assert reader.ask("choose", description=described, faults={})["transport"] == "cuda_ipc"
    slot = owner.ask("acquire")
    owner.send("write_from_device", slot=slot, fill=7, faults={"pause_us": "300000"})
    time.sleep(0.1)
    assert reader.ask("read_chosen", slot=slot, faults={}) in (None, FULL)
    owner.answer()
    assert reader.ask("read_chosen", slot=slot, faults={}) == FULL


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"fail": "cuIpcOpenMemHandle=201"}, "CUDA_ERROR_INVALID_CONTEXT (CUDA error 201): the owner's process id is"),
        ({"name": "Stand-in GPU MIG 1g.5gb"}, "MIG slice, and MIG has no CUDA IPC"),
        ({"uuid": "57a4d1c0de0000000000000000000002"}, "the arena is on another GPU, GPU-57a4d1c0-de00"),
        ({"no bindings": ""}, "cuda-bindings is not installed (pip install 'synerdiff[gpu]')"),
        ({"fail": "cuInit=100"}, "cuInit: CUDA_ERROR_NO_DEVICE (CUDA error 100)"),
        ({"fail": "cuDevicePrimaryCtxRetain=805"}, "CUDA_ERROR_MPS_CONNECTION_FAILED (CUDA error 805)"),
        ({"fail": "cuIpcOpenMemHandle=205"}, "cuIpcOpenMemHandle: CUDA_ERROR_MAP_FAILED (CUDA error 205)"),
        ({"hang": "cuIpcOpenMemHandle"}, "the arena's memory was not opened within 0.5 s"),
    ],
    ids=["201", "mig", "another gpu", "no bindings", "no device", "mps", "other error", "hanging"],
)
def test_a_reader_names_what_failed_and_goes_on_to_shared_memory(
    reader: OtherProcess, described: Any, faults: dict[str, str], reason: str
) -> None:
    chosen = reader.ask("choose", description=described, faults=faults)
    assert chosen["transport"] == "shm"
    assert reason in logged_reason(chosen)


def test_memory_that_is_slow_to_open_is_read_once_it_is_there(
    owner: OtherProcess, reader: OtherProcess, stand_in: StandIn, described: Any
) -> None:
    slot = owner.ask("write", fill=7)
    chosen = reader.ask("choose", description=described, faults={"delay_ms": "cuIpcOpenMemHandle=800"})
    assert chosen["transport"] == "shm"

    def is_there() -> bool:
        assert reader.ask("read_chosen", slot=slot, faults={}) == FULL
        return bool(reader.ask("transport") == "cuda_ipc")

    wait_until(is_there)
    reader.ask("forget")
    closed = memory_of(stand_in, described).name
    wait_until(lambda: closed not in stand_in.mapped_by(reader.process.pid))


def logged_reason(chosen: Any) -> str:
    """What the one line says of cuda_ipc."""
    [line] = chosen["logs"]
    return str(line["failed"]["cuda_ipc"])


def memory_of(stand_in: StandIn, described: Any) -> Path:
    """The stand-in's file that an arena's device memory is."""
    pattern = bytes.fromhex(described["offers"][0]["pattern"])
    for path in stand_in.memory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a copy that is being freed
            if pattern in path.read_bytes()[:64]:
                return path
    raise AssertionError("the arena has no device memory")


def test_memory_that_does_not_hold_the_pattern_is_refused(
    reader: OtherProcess, stand_in: StandIn, described: Any
) -> None:
    arena = memory_of(stand_in, described)
    with arena.open("r+b") as memory:
        memory.write(bytes(64))
    chosen = reader.ask("choose", description=described, faults={})
    assert chosen["transport"] == "shm"
    assert "does not hold the pattern offered" in logged_reason(chosen)
    wait_until(lambda: arena.name not in stand_in.mapped_by(reader.process.pid), "the end of what was refused")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"uid": 4_000_000}, "the arena belongs to user 4000000, this process runs as user"),
        ({"boot_id": "another"}, "on another host"),
        ({"cuda_handle": b"short"}, "a handle of 5 bytes"),
    ],
    ids=["another user", "another host", "no handle"],
)
async def test_what_needs_no_driver_is_refused_without_one(described: Any, changed: Any, reason: str) -> None:
    arena: ArenaDescription = described_from(described)
    wrong = replace(arena, offers=(replace(arena.offers[0], **changed), arena.offers[1]))
    assert reason in await refusal_here(wrong)


async def refusal_here(arena: ArenaDescription) -> str:
    """Why this process, which has no stand-in, reads the arena by shared memory."""

    async def nobody(slots: object) -> list[bytes | None]:
        raise AssertionError("not to be asked")

    with capture_logs() as logs:
        reader = await open_arena(arena, nobody, TransportChoice(("cuda_ipc", "shm"), cuda_device=0))
    reader.close()
    assert reader.transport == "shm"
    return str(logs[0]["failed"]["cuda_ipc"])


@pytest.mark.skipif(find_library("cuda") is not None, reason="this machine has a CUDA driver")
async def test_a_missing_driver_is_named(described: Any) -> None:
    with pytest.raises(CudaUnavailable, match="no CUDA driver"):
        CudaDevice(0)
    assert "no CUDA driver" in await refusal_here(described_from(described))


def test_no_room_for_a_copy_is_named_and_leaves_the_choice_to_another_transport(
    owner: OtherProcess, reader: OtherProcess, described: Any
) -> None:
    written = owner.ask("write", fill=7)
    assert reader.ask("choose", description=described, faults={})["transport"] == "cuda_ipc"
    found = reader.ask("read_chosen", slot=written, faults={"fail": "cuMemAlloc=2"})
    assert found == "TransportUnusable: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (CUDA error 2)"
    assert reader.ask("read_chosen", slot=written, faults={}) == FULL
    owner.ask("release", slot=written)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"memory": "1000000"}, "no 2097152 bytes of device memory: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY"),
        ({"fail": "cuIpcGetMemHandle=801"}, "device memory cannot be exported: cuIpcGetMemHandle: CUDA_ERROR_NOT_SUPP"),
        ({"name": "Stand-in GPU MIG 1g.5gb"}, "MIG slice"),
        ({"no bindings": ""}, "cuda-bindings is not installed"),
    ],
    ids=["no memory", "no export", "mig", "no bindings"],
)
def test_an_owner_that_cannot_offer_its_gpu_says_why_and_offers_the_rest(
    reader: OtherProcess, stand_in: StandIn, directory: Path, faults: dict[str, str], reason: str
) -> None:
    before = stand_in.left()
    owned = own(reader, directory, **faults)
    assert [offer["transport"] for offer in owned["description"]["offers"]] == ["shm"]
    [line] = owned["logs"]
    assert reason in line["reason"]
    assert stand_in.left() == before


def test_transports_are_what_the_settings_leave(reader: OtherProcess, directory: Path) -> None:
    def offered(*transports: str) -> list[str]:
        return [offer["transport"] for offer in own(reader, directory, *transports)["description"]["offers"]]

    assert offered("cuda_ipc") == ["cuda_ipc"]
    assert offered("shm") == ["shm"]
    own(reader, directory, "cuda_ipc")
    assert reader.ask("write_from_device", slot=reader.ask("acquire"), fill=7, faults={}) == FULL


def test_owner_and_reader_of_one_process_id_are_told_what_to_do(library: StandIn, tmp_path: Path) -> None:
    """Two containers with process ids of their own, in both of which the worker is process 1."""
    if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make process id namespaces")
    stand_in = replace(library, memory=tmp_path)
    owner, reader = started(stand_in, *NAMESPACE), started(stand_in, *NAMESPACE)
    ready(owner, reader)
    described = own(owner, tmp_path)["description"]
    chosen = reader.ask("choose", description=described, faults={})
    owner.close()
    reader.close()
    assert chosen["transport"] == "shm"
    assert "(CUDA error 201): owner and reader both have the process id 1;" in logged_reason(chosen)
    assert "set shareProcessNamespace: true" in logged_reason(chosen)


def test_a_new_arena_closes_the_mapping_of_the_old(
    owner: OtherProcess, reader: OtherProcess, stand_in: StandIn, directory: Path, described: Any
) -> None:
    assert reader.ask("choose", description=described, faults={})["transport"] == "cuda_ipc"
    assert memory_of(stand_in, described).name in stand_in.mapped_by(reader.process.pid)
    again = own(owner, directory)["description"]
    assert again["offers"][0]["epoch"] > described["offers"][0]["epoch"]
    assert reader.ask("choose", description=again, faults={})["transport"] == "cuda_ipc"
    old, new = memory_of(stand_in, described).name, memory_of(stand_in, again).name
    assert new in stand_in.mapped_by(reader.process.pid)
    wait_until(lambda: old not in stand_in.mapped_by(reader.process.pid))


class Watched(Experiment):
    """The experiment, with a look at what the processes have mapped when they should have let go of everything."""

    def __init__(self, trial: Trial, stand_in: StandIn) -> None:
        super().__init__(trial)
        self._stand_in = stand_in

    async def while_idle(self, owner: Side, reader: Side) -> None:
        wait_until(lambda: not self._stand_in.mapped_by(reader.process.pid), "the end of every mapping of the reader")
        arena_and_source = 2
        left = self._stand_in.left()
        self._judge(len(left) == arena_and_source, f"leaked: {left} is all there should be, and is more")


@pytest.mark.timeout(900)
async def test_nothing_is_torn_stale_lost_or_leaked_whoever_is_killed(
    library: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SYNERDIFF_TEST_TRANSFERS=10000 SYNERDIFF_TEST_KILLS=40 make it the long one."""
    stand_in = replace(library, memory=tmp_path)
    for name, value in stand_in.environment(pause_us="1000").items():
        monkeypatch.setenv(name, value)
    findings: Findings = await Watched(Trial(transfers=TRANSFERS, kills=KILLS), stand_in).run()
    print(findings.summary())
    assert findings.violations == []
    assert findings.whole >= TRANSFERS
    assert sum(findings.kills.values()) == KILLS
    assert set(findings.transports) == {"cuda_ipc"}
    assert findings.raced["whole"], "the reader never won: nothing was tested"
    assert findings.raced["none"], "the reader never lost: nothing was tested"
    assert stand_in.left() == []
