"""The other process of the arena tests: a reader or an owner, told what to do in JSON lines on stdin.

Lives in a process of its own because both sides of a mapping in one process would share the interpreter's lock.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synerdiff.latents.arena import Arena, create_arena
from synerdiff.latents.description import ArenaDescription, TransportOffer
from synerdiff.latents.shared_memory import SharedMemoryReader
from synerdiff.plans import SlotRef
from tests.told_process import ToldProcess, module, obey


class OtherProcess(ToldProcess):
    """This side's handle on it."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None) -> None:
        super().__init__(*(command or module(__name__)), environment=environment)

    def open(self, description: ArenaDescription) -> None:
        self.ask("open", description=described_to(description))

    def read(self, slot: SlotRef) -> bytes | None:
        found = self.ask("read", slot=asdict(slot))
        return None if found is None else bytes.fromhex(found)


@contextlib.contextmanager
def other_process() -> Iterator[OtherProcess]:
    with contextlib.closing(OtherProcess()) as other:
        yield other


def pattern(epoch: int, length: int) -> bytes:
    """What the busy owner writes under an epoch: another byte each time, all along the slot."""
    return bytes([epoch % 251]) * length


def described_to(description: ArenaDescription) -> dict[str, Any]:
    """A description as `described_from` takes it."""
    plain = asdict(description)
    for offer in plain["offers"]:
        offer |= {"pattern": offer["pattern"].hex(), "cuda_handle": offer["cuda_handle"].hex()}
    return plain


def described_from(plain: dict[str, Any]) -> ArenaDescription:
    """The description that the other process has answered `own` with."""
    offers = tuple(_offer(o) for o in plain["offers"])
    return ArenaDescription(**{**plain, "offers": offers})


class Commands:
    """What the other process can be asked to do."""

    def __init__(self) -> None:
        self.reader: SharedMemoryReader | None = None
        self.arena: Arena | None = None

    def open(self, description: dict[str, Any]) -> None:
        if self.reader:
            self.reader.close()
        arena = described_from(description)
        self.reader = SharedMemoryReader(arena.offers[0], arena)

    def read(self, slot: dict[str, Any]) -> str | None:
        assert self.reader
        data = self.reader.load(SlotRef(**slot))
        return None if data is None else data.hex()

    def own(self, slots: int, slot_bytes: int, directory: str) -> dict[str, Any]:
        """Own an arena in `directory`; the process may then be killed."""
        self.arena = create_arena(slots, slot_bytes, "float32", Path(directory))
        return described_to(self.arena.describe())

    def write(self, fill: int) -> dict[str, Any]:
        """Take a slot and fill it with one byte."""
        assert self.arena
        slot = self.arena.acquire()
        self.arena.write(slot, bytes([fill]) * self.arena.slot_bytes)
        return asdict(slot)

    def hammer(self, counter: str, enough: str) -> None:
        """Write and release one slot as fast as it goes, with the epoch that is current in the file `counter`.

        Until there is a file `enough`. Every fiftieth life lasts a while: a reader wins now and then, too.
        """
        assert self.arena
        with open(counter, "r+b", buffering=0) as file:
            while not Path(enough).exists():
                slot = self.arena.acquire()
                file.seek(0)
                file.write(slot.epoch.to_bytes(8, "little"))
                self.arena.write(slot, pattern(slot.epoch, self.arena.slot_bytes))
                if slot.epoch % 50 == 0:
                    time.sleep(0.01)
                self.arena.release(slot)


def serve(commands: Commands) -> None:
    """Carry out commands until stdin ends."""
    obey(commands)
    if commands.arena:
        commands.arena.close()


def _offer(plain: dict[str, Any]) -> TransportOffer:
    raw = {name: bytes.fromhex(plain[name]) for name in ("pattern", "cuda_handle")}
    return TransportOffer(**plain | raw)


if __name__ == "__main__":
    serve(Commands())
