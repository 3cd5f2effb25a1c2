"""The other process of the CUDA IPC tests, with the stand-in driver, whose faults are environment variables."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from structlog.testing import capture_logs

from synerdiff.latents import cuda_ipc
from synerdiff.latents.arena import create_arena
from synerdiff.latents.cuda_driver import CudaClone, CudaDevice
from synerdiff.latents.transports import LatentsReader, TransportChoice, open_arena
from synerdiff.plans import SlotRef
from tests.synerdiff.latents.other_process import Commands, described_from, described_to, serve
from tests.waiting import HANG_S

MODULE = "tests.synerdiff.latents.cuda_process"
BINDINGS = "cuda.bindings.driver"


class CudaCommands(Commands):
    """Every command with `faults` meets them and no others: what a StandIn's environment takes, or "no bindings"."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.chosen: LatentsReader | None = None
        self.clones: list[memoryview | CudaClone | None] = []

    def look_at_device(self) -> str:
        """Load the driver, as a worker has before it opens an arena; the device's UUID."""
        return CudaDevice(0).uuid

    def own_on_device(
        self, slots: int, slot_bytes: int, directory: str, transports: Sequence[str], faults: dict[str, str]
    ) -> dict[str, Any]:
        """Own an arena on device 0, as far as that works."""
        choice = TransportChoice(tuple(transports), 0)
        with _meeting(faults), capture_logs() as logs:
            self.arena = create_arena(slots, slot_bytes, "float16", Path(directory), choice)
        return {"description": described_to(self.arena.describe()), "logs": _plain(logs)}

    def acquire(self) -> dict[str, Any]:
        """Take a slot."""
        assert self.arena
        return vars(self.arena.acquire())

    def write_from_device(self, slot: dict[str, Any], fill: int, faults: dict[str, str]) -> str | None:
        """Fill a slot with one byte from device memory, as a GPU worker does. What whoever reads inline is given."""
        assert self.arena
        device = CudaDevice(0)
        source = CudaClone(device, device.allocate(self.arena.slot_bytes), self.arena.slot_bytes)
        device.copy_in(source.pointer, bytes([fill]) * len(source))
        ref = SlotRef(**slot)
        with _meeting(faults):
            self.arena.write(ref, source)
        inline = self.arena.read(ref)
        device.free(source.pointer)
        return inline.hex() if inline else None

    def release(self, slot: dict[str, Any]) -> None:
        assert self.arena
        self.arena.release(SlotRef(**slot))

    def choose(self, description: dict[str, Any], faults: dict[str, str]) -> dict[str, Any]:
        """Open the arena: by which transport, and what is logged."""
        self.forget()
        with _meeting(faults), capture_logs() as logs:
            chosen = self.loop.run_until_complete(self._choose(description))
        return chosen | {"logs": _plain(logs)}

    async def _choose(self, description: dict[str, Any]) -> dict[str, Any]:
        self.chosen = await open_arena(
            described_from(description), _nobody, TransportChoice(("cuda_ipc", "shm"), cuda_device=0)
        )
        return {"transport": self.chosen.transport}

    def read_chosen(self, slot: dict[str, Any], faults: dict[str, str]) -> str | None:
        """What the reader chosen last finds; an error by its message."""
        assert self.chosen
        with _meeting(faults), capture_logs():
            try:
                [data] = self.loop.run_until_complete(self.chosen.read([SlotRef(**slot)]))
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        found = data.host() if isinstance(data, CudaClone) else data
        return None if found is None else found.hex()

    def transport(self) -> str:
        """What the reader chosen last reads over now."""
        assert self.chosen
        return self.chosen.transport

    def forget(self) -> None:
        """Close the reader chosen last; it does so on a thread of its own."""
        if self.chosen:
            self.chosen.close()
            self.chosen = None


async def _nobody(slots: Sequence[SlotRef]) -> list[bytes | None]:
    raise AssertionError("not to be asked")


@contextlib.contextmanager
def _meeting(faults: dict[str, str]) -> Iterator[None]:
    """Have the stand-in show `faults`, to a device that is looked at anew; without them nothing is in a hurry."""
    variables = {f"STANDIN_CUDA_{name.upper()}": value for name, value in faults.items() if name != "no bindings"}
    modules = {BINDINGS: None} if "no bindings" in faults else {}
    opens_within_s = cuda_ipc.OPEN_TIMEOUT_S if faults else HANG_S
    with (
        patch.dict(os.environ, variables),
        patch.dict(sys.modules, modules),
        patch.object(cuda_ipc, "OPEN_TIMEOUT_S", opens_within_s),
    ):
        cuda_ipc.whole_gpu.cache_clear()
        yield
    cuda_ipc.whole_gpu.cache_clear()


def _plain(logs: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(line) for line in logs]


if __name__ == "__main__":
    serve(CudaCommands())
